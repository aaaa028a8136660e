"""The preview in a stream without loss: the reduced scan within a bound that keeps it small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import Scan, Volume
from mricodec.codec.voxels import preview

# Voxels from which on a scan gets a preview; smaller ones decode in no time.
PREVIEW_FROM = 1 << 18
# Share of the stream that a preview should take; it is left out if it takes twice as much.
PREVIEW_SHARE = 0.008
# Trials of a bound for the preview.
PREVIEW_TRIES = 2
# Size of a stream relative to its voxels, a preview included: noise has room for a coarse one.
MAX_GROWTH = 1.0008


class ReducedScan:
    """The `writing.PreviewEncoder` of a scan."""

    def __init__(
        self,
        scan: Scan,
        tiling: Tiling,
        sigma: float,
        encode: Callable[[Volume, float], bytes],
    ) -> None:
        """sigma: noise in stored units. encode: (volume, largest error) -> a bounded stream."""
        self._tiling = tiling
        self._sigma = sigma
        self._encode = encode
        self._spacing_mm = preview.reduced_spacing(scan.envelope.spacing_mm, tiling)
        self._bytes = math.prod(scan.shape) * scan.dtype.itemsize
        self._order = FileOrder(tiling)
        self._blocks: list[NDArray[Any]] = []

    def add(self, slab: NDArray[Any]) -> None:
        """Reduce the next slab."""
        self._blocks += self._order.add(preview.reduced(slab))

    def encode(self, stream_bytes: int) -> bytes | None:
        """Within the smallest bound that gives the size it should have, by an estimate."""
        array = np.concatenate(self._blocks).reshape(preview.reduced_shape(self._tiling))
        if array.dtype.kind not in "iuf":
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            span = float(array.max()) - float(array.min())
        room = min(PREVIEW_SHARE * stream_bytes, (MAX_GROWTH * self._bytes - stream_bytes) / 2)
        if not 0 < span < math.inf or room <= 0:
            return None
        volume = Volume.from_array(array, spacing_mm=self._spacing_mm)
        finest = max(self._sigma, span / 1024, 1.0 if array.dtype.kind in "iu" else 0.0)
        bound = preview.bound_for(array, finest, span / 8, 8 * room / array.size)
        for _ in range(PREVIEW_TRIES):
            stream = self._encode(volume, bound)
            if len(stream) <= 2 * room:
                return stream
            # Doubling the bound saves roughly one bit of a sample.
            bound *= 2 * len(stream) / room
        return None


def has_preview(tiling: Tiling) -> bool:
    """Whether a scan is large enough for a preview."""
    return math.prod(tiling.shape) >= PREVIEW_FROM
