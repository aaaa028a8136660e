"""Symbols to byte strings and back, for the models' own `compress` and `decompress`.

The codec frames the same symbols as the slabs of its streams. No other module of the models runs a
range coder. `level` is log2 of the range of x over the quantiser's step; x lies in 0 ... 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import ProbabilityTables, SlabStreams, SymbolCoder

# The levels at which networks are trained and their tables fitted.
LEVEL_RANGE = (2.0, 12.0)
# The level where none is named: a quantiser step of 1/64 of the range.
DEFAULT_LEVEL = 6.0
# Integer samples that stand for x = 1 where a model codes integers.
PEAK = (1 << 16) - 1


class StringEncoder(SymbolCoder):
    """Encodes N rows of symbols into N strings for each group of table sets; `group_of` maps their
    names to groups.
    """

    def __init__(self, count: int, group_of: Mapping[str, int]) -> None:
        self._group_of = group_of
        groups = 1 + max(group_of.values())
        self._encoders = [[EntropyEncoder() for _ in range(count)] for _ in range(groups)]

    def of(self, slabs: Sequence[int]) -> SymbolCoder:
        """The coder of some of the rows."""
        part = copy.copy(self)
        part._encoders = [[group[n] for n in slabs] for group in self._encoders]
        return part

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        """index [N, n], values [N, n] -> values."""
        streams = self._encoders[self._group_of[tables.name]]
        return SlabStreams(streams).code(tables, index, values)

    def finish(self) -> list[list[bytes]]:
        """The strings of each group."""
        return [[encoder.finish() for encoder in group] for group in self._encoders]


class StringDecoder(SymbolCoder):
    """The inverse of `StringEncoder`. FormatError if a string is damaged."""

    def __init__(self, strings: Sequence[Sequence[bytes]], group_of: Mapping[str, int]) -> None:
        groups = 1 + max(group_of.values())
        if len(strings) != groups or len({len(group) for group in strings}) != 1:
            raise ValueError(f"strings: expected {groups} lists, as `compress` returned them")
        self._group_of = group_of
        self._decoders = [[EntropyDecoder(string) for string in group] for group in strings]

    def of(self, slabs: Sequence[int]) -> SymbolCoder:
        """The coder of some of the rows."""
        part = copy.copy(self)
        part._decoders = [[group[n] for n in slabs] for group in self._decoders]
        return part

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        """index [N, n] -> values."""
        streams = self._decoders[self._group_of[tables.name]]
        return SlabStreams(streams).code(tables, index, values)

    def finish(self) -> None:
        """FormatError unless all of every string has been decoded."""
        for decoder in (decoder for group in self._decoders for decoder in group):
            decoder.finish()


@dataclass(frozen=True)
class StepParams:
    """The quantiser's step and the largest sample, in units of integer samples."""

    step: float
    peak: int


class VolumeModel(Protocol):
    """A model of integer volumes [S, K, H, W], each a string."""

    tables: dict[str, ProbabilityTables]

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: StepParams
    ) -> NDArray[np.int32]: ...

    def decode(
        self, shape: tuple[int, int, int, int], params: StepParams, coder: SymbolCoder
    ) -> NDArray[np.int32]: ...


def compress_volumes(model: VolumeModel, x: Tensor, level: float) -> dict[str, Any]:
    """x [K, H, W] or [S, K, H, W] -> {"strings": [[one of each volume]], "shape": that of x}."""
    if x.dim() not in (3, 4):
        raise ValueError(f"x: expected [K, H, W] or [S, K, H, W], found {list(x.shape)}")
    samples = (x.detach().clamp(0, 1) * PEAK).round().to(torch.int32).cpu().numpy()
    samples = samples.reshape((-1, *samples.shape[-3:]))
    params = _unit_params(level)
    coder = StringEncoder(len(samples), dict.fromkeys(model.tables, 0))
    model.encode(samples, params.step, coder, params)
    return {"strings": coder.finish(), "shape": tuple(x.shape)}


def decompress_volumes(
    model: VolumeModel, strings: Sequence[Sequence[bytes]], shape: Sequence[int], level: float
) -> dict[str, Any]:
    """Strings and shape as `compress_volumes` returns them -> {"x_hat": float32 of that shape}."""
    coder = StringDecoder(strings, dict.fromkeys(model.tables, 0))
    slices, height, width = shape[-3:]
    size = (len(strings[0]), slices, height, width)
    samples = model.decode(size, _unit_params(level), coder)
    coder.finish()
    return {"x_hat": torch.from_numpy(samples.astype(np.float32) / PEAK).reshape(tuple(shape))}


def _unit_params(level: float) -> StepParams:
    low, high = LEVEL_RANGE
    if not low <= level <= high:
        raise ValueError(f"level: expected {low:g} to {high:g}, found {level:g}")
    return StepParams(PEAK * 2.0**-level, PEAK)
