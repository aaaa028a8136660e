"""Reference slabs of a 4-D scan: those of the volumes before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.tiling import Tiling


class ReferenceBuffer:
    """The slabs of volumes that are coded beside the same slab of earlier volumes of a 4-D scan."""

    def __init__(self, tiling: Tiling, length: int) -> None:
        """length: volumes in a chain; 0: none is coded so."""
        self._slabs = tiling.slabs_per_volume
        self._length = length
        self._last: dict[int, NDArray[np.int32]] = {}
        self._sum: dict[int, NDArray[np.int32]] = {}

    def beside(self, slab: int) -> list[NDArray[np.int32]]:
        """What slab number `slab` is coded beside: the codes of the same slab of the volume before, and the mean
        over all of the chain before, rounded down, if these are several."""
        volume, part = divmod(slab, self._slabs)
        place = volume % self._length if self._length else 0
        if place == 0:
            return []
        return [self._last[part], *([self._sum[part] // place] if place > 1 else [])]

    def add(self, slab: int, codes: NDArray[np.int32]) -> None:
        """The codes of a slab, in order."""
        volume, part = divmod(slab, self._slabs)
        self._last[part] = codes
        self._sum[part] = self._sum[part] + codes if volume % self._length else codes
