"""A stack of DICOM slices as a scan for the encoder: slices are read on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.formats.dicom.values import UNSCALED
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, Envelope

from .files import Instance
from .stacks import Series, Stack, stacks_of


class StackScan:
    """A stack as a `volume.Scan`."""

    declared_labels = False

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        self.chunks: Iterable[tuple[bytes, bytes]] = ()
        self.shape = stack.shape
        self.dtype = DTYPES[stack.first.dtype].newbyteorder(">" if stack.first.big_endian else "<")
        part = stack.parts[0]
        rescales = set().union(*stack.rescales)
        slope, inter = rescales.pop() if len(rescales) == 1 else UNSCALED
        self.envelope = Envelope(
            affine=part.affine, spacing_mm=part.spacing_mm, slope=slope, inter=inter
        )
        self.stack = stack
        # The mosaic that was read last, by the id of its instance.
        self._mosaic: tuple[int, NDArray[Any]] | None = None
        # The range of padding values, and the value that is read instead.
        self._padding: tuple[tuple[int, int], int] | None = None

    @property
    def file_name(self) -> str:
        """The name of the first file."""
        return self.stack.slices[0][0].name

    def replace_padding(self, padding: tuple[int, int], value: int) -> None:
        """Read voxels in the range (smallest, largest) as another value from now on."""
        self._padding = padding, value

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        depth = tiling.volume_shape[0]
        for first in range(0, tiling.volumes * depth, depth):
            if tiling.axis == 0:
                for slab in range(tiling.slabs_per_volume):
                    start, stop = tiling.span(slab)
                    yield self._read(first + start, first + stop)
            else:
                yield from tiling.cut(self._read(first, first + depth))

    def slices(self) -> Iterator[NDArray[Any]]:
        """Every slice [j, i], in order."""
        for n in range(len(self.stack.slices)):
            yield self._read(n, n + 1)[0]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        slices = [self._slice(*self.stack.slices[n]) for n in range(start, stop)]
        block = np.stack(slices).astype(self.dtype.newbyteorder("="), copy=False)
        if self._padding is not None:
            (smallest, largest), value = self._padding
            is_padding = (block >= smallest) & (block <= largest)
            block = np.where(is_padding, block.dtype.type(value), block)
        return block

    def _slice(self, instance: Instance, n: int) -> NDArray[Any]:
        """Slice n of an instance, in the byte order of the file."""
        pixels = instance.pixels
        assert pixels is not None
        if not pixels.tiles:
            raw = instance.source.read(pixels.offset + n * pixels.slice_bytes, pixels.slice_bytes)
            return np.frombuffer(raw, self.dtype).reshape(pixels.rows, pixels.columns)
        if self._mosaic is None or self._mosaic[0] != id(instance):
            frame = np.frombuffer(instance.source.read(pixels.offset, pixels.size), self.dtype)
            slices = split_mosaic(frame, pixels.tiles, pixels.rows, pixels.columns)
            self._mosaic = id(instance), slices
        tile: NDArray[Any] = self._mosaic[1][n]
        return tile

    def gzip_file(self) -> BinaryIO | None:
        return None

    def close(self) -> None:
        pass


def series_voxels(series: Series) -> NDArray[Any]:
    """The values of the largest volume, as `codec.decode` gives them; ValueError if none."""
    stacks = stacks_of(series)
    if not stacks:
        raise ValueError(
            f"expected pixel data that can be coded in the series {series.title or series.uid}, "
            "found none"
        )
    stack = stacks[0]
    part = stack.parts[0]
    slices = list(StackScan(stack, series.title).slices())[: len(part.slices)]
    return stack.values.values(np.stack(slices), 0).reshape(*part.shape, *slices[0].shape)


def split_mosaic(frame: NDArray[Any], tiles: int, rows: int, columns: int) -> NDArray[Any]:
    """A mosaic frame of tiles x tiles tiles -> its slices [n, rows, columns]."""
    grid = frame.reshape(tiles, rows, tiles, columns)
    return grid.swapaxes(1, 2).reshape(-1, rows, columns)


def join_mosaic(slices: NDArray[Any], tiles: int) -> NDArray[Any]:
    """The inverse of `split_mosaic`: slices [tiles * tiles, rows, columns] -> the frame."""
    rows, columns = slices.shape[1:]
    return slices.reshape(tiles, tiles, rows, columns).swapaxes(1, 2)
