"""Reference slabs of a 4-D scan: the same slab of the volumes before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.tiling import Tiling


class ReferenceBuffer:
    """Samples of the slabs of a chain of volumes, as far as later volumes need them."""

    def __init__(self, tiling: Tiling, length: int) -> None:
        """length: volumes in a chain; 0: no slab has references."""
        self._slabs = tiling.slabs_per_volume
        self._length = length
        self._last: dict[int, NDArray[np.int32]] = {}
        self._sum: dict[int, NDArray[np.int32]] = {}

    def references(self, slab: int) -> list[NDArray[np.int32]]:
        """The references of slab number `slab`: samples of the same slab of the volume before, and
        the mean over all volumes of the chain before, rounded down, if these are several."""
        volume, part = divmod(slab, self._slabs)
        before = volume % self._length if self._length else 0
        if before == 0:
            return []
        return [self._last[part], *([self._sum[part] // before] if before > 1 else [])]

    def add(self, slab: int, samples: NDArray[np.int32]) -> None:
        """The samples of a slab; slabs come in order."""
        volume, part = divmod(slab, self._slabs)
        self._last[part] = samples
        self._sum[part] = self._sum[part] + samples if volume % self._length else samples
