"""What the coders of slabs have in common, and what they ask of a lossy model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.codec.volume import to_file_order

BATCH_VOXELS = 13_000_000  # coded side by side


Shape = tuple[int, int, int]
References = Sequence[
    NDArray[np.int32]
]  # codes that the decoder has already, of the shape of the one slab that is coded
T = TypeVar("T")


@dataclass(frozen=True)
class LossyParams:
    """What a lossy model is told of a volume, in both directions; `effort` in encoding alone."""

    step: float  # quantiser step in codes, a float32
    peak: int  # the largest code
    spacing_mm: tuple[float, float, float]  # of the axes of a slab: across the slices first
    effort: str = "default"  # "high": the encoder may search longer, for the same decoder; a model may ignore it


class LossyModel(Protocol):
    """A learned model of models/zoo.py. Stateless: threads may share it."""

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> bytes:
        """First 8 bytes of the SHA-256 of its weights."""

    @property
    def exact_samples(self) -> bool:
        """Whether every machine decodes to the same samples."""

    @property
    def by_id(self) -> bool:
        """Whether `loader.load_model` gives the same of its id, on a CPU: other processes can work for it."""

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: LossyParams
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give."""

    def decode(
        self, shape: tuple[int, int, int, int], params: LossyParams, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W]."""


def checksum(slab: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """CRC-32 of the voxels of a slab in its order and the byte order of the type."""
    return zlib.crc32(to_file_order(slab, dtype))


class SlabCoder(Protocol):
    """Stored values of slabs, [n, h, w] each <-> payloads; `beside` belongs to the only one."""

    batch_voxels: int  # how many it wants at once, at most
    exact: bool  # whether every machine decodes to the same values

    def encode(
        self, slabs: Sequence[NDArray[Any]], beside: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        """The payload of each slab, and the values that it decodes to."""

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: References = ()
    ) -> list[NDArray[Any]]:
        """Values in native byte order; FormatError if a payload is damaged."""


def windows(slabs: Iterable[T], voxels: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Consecutive slabs of at most `most` voxels together, but at least one."""
    window: list[T] = []
    held = 0
    for slab in slabs:
        if window and held + voxels(slab) > most:
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
