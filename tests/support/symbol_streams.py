"""A model by itself: its parameters, and the streams of its symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.range_coder import Tables
from mricodec.models import zoo


@dataclass(frozen=True)
class Params:
    step: float
    peak: int
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    effort: str = "default"


class Streams:
    """One entropy coder a slab; counts the ideal bits beside."""

    def __init__(self, model: zoo.LossyModel, streams: list[Any]) -> None:
        self.tables = {name: Tables(t.weights, t.low, t.octave) for name, t in model.tables.items()}
        self.model, self.streams = model, streams
        self.counted: list[float] = []  # ideal bits of the calls

    def code(self, name: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[Any]:
        tables = self.tables[name]
        rows = [
            s.code(tables, index[i], None if values is None else values[i])
            for i, s in enumerate(self.streams)
        ]
        if values is not None:
            self.counted.append(ideal_bits(tables, index.ravel(), values.ravel()))
        return np.stack(rows)

    def of(self, slabs: Sequence[int]) -> Streams:
        some = Streams(self.model, [self.streams[s] for s in slabs])
        some.counted = self.counted
        return some


def ideal_bits(tables: Tables, index: NDArray[Any], values: NDArray[Any]) -> float:
    """Code length of the model: -log2 of the table entries, raw bits, and an Exp-Golomb length for escapes."""
    index, values = index.astype(np.int64), values.astype(np.int64)
    k = np.zeros_like(index)
    row = index
    if tables.octave:
        index, values = index[index > 0], values[index > 0]
        beyond = index - (tables.rows - tables.octave)
        large = index >= tables.rows
        k = np.where(large, beyond // tables.octave, 0)
        row = np.where(large, tables.rows - tables.octave + beyond % tables.octave, index)
    head = (values >> k) - tables.low
    escaped = (head < 0) | (head >= tables.bins)
    head = np.where(escaped, tables.bins, head)
    bits = -np.log2(tables.weights[row, head] / (1 << 24)) + np.where(escaped, 0, k)
    golomb = sum(7 + max(math.ceil(math.log2(2 * abs(int(v)) + 1)) - 1, 0) for v in values[escaped])
    return float(bits.sum()) + golomb
