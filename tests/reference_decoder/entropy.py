"""format/entropy.md: the range coder, and calls of values by probability tables."""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Sequence
from typing import Any

from .container import unzigzag

TOTAL = 1 << 24


class RangeDecoder:
    """In natural numbers of any size."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise ValueError(f"expected whole words of 4 bytes, found {len(data)} bytes")
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.next = 0
        self.lower = 0
        self.range = 2**64 - 1
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        self.next += 1
        return self.words[self.next - 1] if self.next <= len(self.words) else 0

    def symbol(self, cumulative: Sequence[int]) -> int:
        """cumulative: 0, w0, w0 + w1, ..., 2**24."""
        scale = self.range >> 24
        quantile = (self.point - self.lower) % 2**64 // scale
        if quantile >= TOTAL:
            raise ValueError("expected a quantile below 2**24, found one that no encoder writes")
        symbol = bisect.bisect_right(cumulative, quantile) - 1
        self.lower = (self.lower + scale * cumulative[symbol]) % 2**64
        self.range = scale * (cumulative[symbol + 1] - cumulative[symbol])
        if self.range < 2**32:
            self.lower = (self.lower << 32) % 2**64
            self.range <<= 32
            self.point = (self.point << 32) % 2**64 + self.word()
        return symbol

    def uniform(self, bits: int) -> int:
        return self.symbol(range(0, TOTAL + 1, TOTAL >> bits))

    def exhausted(self) -> bool:
        return self.next >= len(self.words) and (
            self.range == 2**64 - 1 or (self.point - self.lower) % 2**64 < 2**33 - 1
        )


class RangeEncoder:
    """Carries run through one big integer."""

    def __init__(self) -> None:
        self.lower = 0
        self.range = 2**64 - 1
        self.shifts = 0

    def symbol(self, symbol: int, cumulative: Sequence[int]) -> None:
        scale = self.range >> 24
        self.lower += scale * cumulative[symbol]
        self.range = scale * (cumulative[symbol + 1] - cumulative[symbol])
        if self.range < 2**32:
            self.lower <<= 32
            self.range <<= 32
            self.shifts += 1

    def finish(self) -> bytes:
        if self.range == 2**64 - 1:
            return b""
        top = self.lower + 2**32 - 1 >> 32
        words = [top >> 32 * n & 2**32 - 1 for n in range(self.shifts, -1, -1)]
        if (self.lower + self.range >> 32) % 2**32 == words[-1]:
            words.append(0)
        return struct.pack(f"<{len(words)}I", *words)


class Tables:
    """A table set: weights [variants * rows, bins + 1]."""

    def __init__(self, weights: Any, low: int, octave: int = 0, variants: int = 1) -> None:
        rows = [[int(weight) for weight in row] for row in weights]
        self.cumulative = [list(itertools.accumulate(row, initial=0)) for row in rows]
        if any(row[-1] != TOTAL for row in self.cumulative) or min(map(min, rows)) < 1:
            raise ValueError("expected rows of weights from 1 on that sum to 2**24, found others")
        self.rows, self.bins = len(rows) // variants, len(rows[0]) - 1
        self.low, self.octave, self.variants = low, octave, variants

    def row_and_raw(self, index: int) -> tuple[int, int] | None:
        """What an index stands for; None: the value is 0 and is not sent."""
        if not self.octave:
            return index, 0
        variant, index = divmod(index, 256) if self.variants > 1 else (0, index)
        if index == 0:
            return None
        raw = 0
        if index >= self.rows:
            raw, excess = divmod(index - (self.rows - self.octave), self.octave)
            index = self.rows - self.octave + excess
        return variant * self.rows + index, raw


class Run:
    """A run of the range coder: calls of values."""

    def __init__(self, data: bytes) -> None:
        self.coder = RangeDecoder(data)

    def call(self, tables: Tables, indices: Sequence[int]) -> list[int]:
        values = [0] * len(indices)
        coded = {m: tables.row_and_raw(index) for m, index in enumerate(indices)}
        sent = {m: pair for m, pair in coded.items() if pair is not None}
        rows, raws = ({m: pair[n] for m, pair in sent.items()} for n in (0, 1))
        escaped = set()
        for m in sorted(rows, key=rows.__getitem__):
            column = self.coder.symbol(tables.cumulative[rows[m]])
            values[m] = tables.low + column
            if column == tables.bins:
                escaped.add(m)
        for m, bits in self.raw_bits({m: raws[m] for m in raws if m not in escaped}).items():
            values[m] = values[m] << raws[m] | bits
        lengths = {m: self.coder.uniform(7) for m in sorted(escaped)}
        if max(lengths.values(), default=0) > 64:
            raise ValueError("expected escapes of at most 64 bits, found more")
        low_bits = self.raw_bits({m: max(length - 1, 0) for m, length in lengths.items()})
        for m, length in lengths.items():
            values[m] = unzigzag(low_bits[m] | 1 << length - 1 if length else 0)
        return values

    def raw_bits(self, widths: dict[int, int]) -> dict[int, int]:
        """Widths by position, in the order of the call -> the bits of each."""
        result = dict.fromkeys(widths, 0)
        for width in sorted(set(widths.values())):
            alike = [m for m in widths if widths[m] == width]
            for start in range(0, width, 16):
                for m in alike:
                    result[m] |= self.coder.uniform(min(16, width - start)) << start
        return result

    def end(self) -> None:
        if not self.coder.exhausted():
            raise ValueError("expected the end of the entropy-coded bytes, found more")
