"""What the coders of slabs have in common, and what they require of a lossy model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.codec.volume import to_file_order

# Voxels of the slabs that are coded together.
BATCH_VOXELS = 13_000_000

Shape = tuple[int, int, int]
# Where the values of slabs may be put, in native byte order; None: into arrays of their own.
Outputs = Sequence[NDArray[Any] | None]
# Samples of other slabs of the same shape, which the decoder has already.
References = Sequence[NDArray[np.int32]]
T = TypeVar("T")


@dataclass(frozen=True)
class LossyParams:
    """The parameters of a volume for a lossy model.

    step: of the quantiser in samples, a float32.
    peak: the largest sample.
    spacing_mm: along the axes of a slab, across the slices first.
    """

    step: float
    peak: int
    spacing_mm: tuple[float, float, float]


class LossyModel(Protocol):
    """A learned model. Stateless: threads may share it."""

    @property
    def name(self) -> str:
        """The name for users."""

    @property
    def model_id(self) -> bytes:
        """First 8 bytes of the SHA-256 of its weights."""

    @property
    def exact_samples(self) -> bool:
        """Whether every machine decodes to the same samples."""


class SymbolModel(LossyModel, Protocol):
    """A model that hands its symbols to an entropy coder, such as those of models/loader.py.

    Slabs of one shape are coded together.
    """

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: LossyParams
    ) -> NDArray[np.int32]:
        """Samples [S, K, H, W] -> the samples that the decoder will give."""

    def decode(
        self, shape: tuple[int, int, int, int], params: LossyParams, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        """The decoded samples [S, K, H, W]."""


class SlabCoder(Protocol):
    """Slabs of stored values [n, h, w] <-> payloads.

    batch_voxels: voxels of the slabs that are best coded in one call. exact: whether every machine
    decodes to the same values. References are given with a single slab only.
    """

    batch_voxels: int
    exact: bool

    def encode(
        self, slabs: Sequence[NDArray[Any]], references: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        """The payload of each slab, and the values that it decodes to."""

    def decode(
        self,
        payloads: Sequence[bytes],
        shapes: Sequence[Shape],
        references: References = (),
        outputs: Outputs = (),
    ) -> list[NDArray[Any]]:
        """Values in native byte order; FormatError if a payload is damaged.

        outputs: an array for each slab, or none; the values are there, or in arrays of their own.
        """


def checksum(slab: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """CRC-32 of the voxels of a slab in its order and the byte order of the type."""
    return zlib.crc32(to_file_order(slab, dtype))


def windows(slabs: Iterable[T], voxels: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Consecutive slabs of at most `limit` voxels together, but at least one."""
    window: list[T] = []
    held = 0
    for slab in slabs:
        if window and held + voxels(slab) > limit:
            yield window
            window, held = [], 0
        window.append(slab)
        held += voxels(slab)
    if window:
        yield window


class UncodedSymbols(SymbolCoder):
    """Writes nothing: keeps the values of each call, for a decoder in the same process."""

    def __init__(self, values: Sequence[NDArray[np.int64]] = ()) -> None:
        self._kept = list(values)
        self._next = 0

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        if values is not None:
            self._kept.append(np.asarray(values, np.int64))
            return self._kept[-1]
        self._next += 1
        return self._kept[self._next - 1]

    def replay(self) -> UncodedSymbols:
        """The same symbols again, from the first on."""
        return UncodedSymbols(self._kept)
