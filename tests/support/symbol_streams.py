"""A model by itself: its parameters, and the streams of its symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import PRECISION, ProbabilityTables, SlabStreams


@dataclass(frozen=True)
class Params:
    step: float
    peak: int
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    effort: str = "default"


class Streams(SlabStreams):
    """One entropy coder a slab; adds up the ideal bits of what is encoded."""

    def __init__(self, streams: Sequence[Any], counted: list[float] | None = None) -> None:
        super().__init__(streams)
        self.counted = [] if counted is None else counted  # Ideal bits of each call.

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        if values is not None:
            self.counted.append(ideal_bits(tables, index.ravel(), values.ravel()))
        return super().code(tables, index, values)

    def of(self, slabs: Sequence[int]) -> Streams:
        return Streams([self.streams[s] for s in slabs], self.counted)


def ideal_bits(tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any]) -> float:
    """Code length: -log2 of probabilities, raw bits, and an Exp-Golomb length for escapes."""
    positions, row, raw_bits = tables.locate(index)
    values = values.astype(np.int64)
    values = values if positions is None else values[positions]
    columns = tables.columns(values, raw_bits)
    escaped = columns == tables.bins
    bits = PRECISION - np.log2(tables.weights[row, columns])
    if raw_bits is not None:
        bits += np.where(escaped, 0, raw_bits)
    golomb = sum(7 + max(math.ceil(math.log2(2 * abs(int(v)) + 1)) - 1, 0) for v in values[escaped])
    return float(bits.sum()) + golomb
