"""How a scan is cut into slabs, each coded on its own, and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Slices up to which a volume is one slab; a deeper one has an even number, for two processes.
SLAB_SLICES = 48
# Slices of a slab: enough for transform and prediction across slices, few enough for random access.
MAX_SLICES = 64
# Voxels of a slab, for bounded memory: a slab of wider slices is thinner.
SLAB_VOXELS = 13_000_000
# Slabs hold a multiple of this many slices where the scan does: the depth of the deepest transform.
SLICE_GROUP = 8
# Ratio of spacings from which on another axis than k is taken for the slice axis.
COARSER = 1.5


@dataclass(frozen=True)
class Tiling:
    """Volumes of `shape` (..., k, j, i) cut along `axis` (0: k, 1: j, 2: i) into slabs.

    All slabs of a volume have `slices` slices but the last two, which share the rest evenly, in
    multiples of `SLICE_GROUP`: two processes that work on halves of the slabs then have about as
    much to do. Slabs are numbered volume by volume. A slab array is [n, h, w]: the slab axis first,
    then the other two.
    """

    shape: tuple[int, ...]
    axis: int
    slices: int

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(k, j, i) of one volume; missing axes have length 1."""
        k, j, i = (1, 1, 1, *self.shape)[-3:]
        return k, j, i

    @property
    def volumes(self) -> int:
        return math.prod(self.shape[:-3])

    @property
    def length(self) -> int:
        """Slices of one volume along the slab axis."""
        return self.volume_shape[self.axis]

    @property
    def slabs_per_volume(self) -> int:
        return -(-self.length // self.slices)

    @property
    def slabs(self) -> int:
        return self.volumes * self.slabs_per_volume

    def span(self, slab: int) -> tuple[int, int]:
        """First slice of a slab and the slice after its last, along the slab axis."""
        n, count = slab % self.slabs_per_volume, self.slabs_per_volume
        start, stop = n * self.slices, min((n + 1) * self.slices, self.length)
        if count >= 2 and n >= count - 2:
            first = (count - 2) * self.slices
            half = -(-(self.length - first) // (2 * SLICE_GROUP)) * SLICE_GROUP
            middle = first + min(self.slices, half)
            start, stop = (first, middle) if n == count - 2 else (middle, self.length)
        return start, stop

    def covering(self, start: int, stop: int) -> range:
        """The slabs of a volume that hold the slices start .. stop - 1 along the slab axis."""
        spans = [self.span(n) for n in range(self.slabs_per_volume)]
        held = [n for n, (first, end) in enumerate(spans) if first < stop and start < end]
        return range(held[0], held[-1] + 1) if held else range(0)

    def slab_shape(self, slab: int) -> tuple[int, int, int]:
        start, stop = self.span(slab)
        h, w = (n for axis, n in enumerate(self.volume_shape) if axis != self.axis)
        return stop - start, h, w

    def cut(self, volume: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The slabs of one volume [k, j, i], as views."""
        slabs_first = np.moveaxis(volume, self.axis, 0)
        for slab in range(self.slabs_per_volume):
            start, stop = self.span(slab)
            yield slabs_first[start:stop]

    def slab_axes(self, along_axes: tuple[float, float, float]) -> tuple[float, float, float]:
        """Values of the axes (k, j, i), such as the spacing, in the order of the axes of a slab."""
        first = along_axes[self.axis]
        h, w = (value for axis, value in enumerate(along_axes) if axis != self.axis)
        return first, h, w


class FileOrder:
    """Turns slabs, added in order, back into blocks [k, j, i] in the order of a file.

    Slabs along k are blocks already; others are held until their volume is complete.
    """

    def __init__(self, tiling: Tiling) -> None:
        self._tiling = tiling
        self._held: list[NDArray[Any]] = []

    def add(self, slab: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The blocks that this slab completes."""
        if self._tiling.axis == 0:
            yield slab
            return
        self._held.append(slab)
        if len(self._held) == self._tiling.slabs_per_volume:
            volume = np.moveaxis(np.concatenate(self._held), 0, self._tiling.axis)
            self._held = []
            yield volume


def choose(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Tiling:
    """Slabs along k, unless another axis is clearly coarser, of about even depth.

    A volume with an axis of length 1 is one slice, whatever that axis is.
    """
    lengths = Tiling(shape, 0, 1).volume_shape
    coarsest = int(np.argmax(spacing_mm))
    if 1 in lengths:
        axis = lengths.index(1)
    elif spacing_mm[coarsest] >= COARSER * spacing_mm[0]:
        axis = coarsest
    else:
        axis = 0
    length = lengths[axis]
    deepest = max(1, min(MAX_SLICES, SLAB_VOXELS * length // math.prod(lengths)))
    count = 1 if length <= min(deepest, SLAB_SLICES) else 2 * -(-length // (2 * deepest))
    depth = -(-length // count)
    if deepest >= SLICE_GROUP:
        depth = -(-depth // SLICE_GROUP) * SLICE_GROUP
    return Tiling(shape, axis, min(length, deepest, depth))
