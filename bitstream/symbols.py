"""The seam between models and entropy coding: probability tables and the coder of symbols.

A model never computes a probability while it codes. For every value it chooses the *index* of a
table that was shipped with its weights; a `SymbolCoder` turns values into bytes, or bytes into
values, by these tables.

    model ── tables, index, values ──► SymbolCoder ──► bytes        encoding
    model ◄── values ── SymbolCoder ◄── tables, index; bytes        decoding

Models import this module and nothing else of `bitstream`; it needs numpy alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Bits of a probability.
PRECISION = 24
# The sum of every row of weights.
TOTAL = 1 << PRECISION
# A value has 64 bits, and its token keeps at least two of them.
MAX_RAW_BITS = 62
# An index has 8 bits; with variants, 8 more.
_INDICES = 256
_MAX_SIDE = 1 << 16


@dataclass(frozen=True, eq=False)
class ProbabilityTables:
    """A set of probability tables, one a row, for values of one distribution family.

    Values are coded as a token and raw bits (the hybrid integers of JPEG XL): an index stands for a
    row and a number k of raw bits, and the value v is the token v >> k, coded by the row, and its k
    low bits as they are. A token that the row has no column for is replaced by the escape, and the
    value is coded in full.

    weights: uint32 [rows, bins + 1]; every entry >= 1, every row sums to 2**24; the last column is
        the escape.
    low: the token of column 0; columns 0 .. bins - 1 stand for the tokens low .. low + bins - 1.
    octave: 0: the index is the row, and there are no raw bits. Otherwise the rows are log-spaced
        scales, `octave` of them per doubling; index 0 says that the value is zero and not sent (row
        0 is never used), and an index beyond the rows repeats the last octave with one more raw bit
        for each octave passed.
    variants: how many blocks of rows follow each other, with octave > 0; index 256 v + x stands for
        row x of block v.
    name: of the set, in statistics.

    ValueError if the tables are not like this.
    """

    weights: NDArray[np.uint32]
    low: int
    octave: int
    variants: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        self._check_weights()
        if not -(1 << 31) <= self.low < (1 << 31) - self.weights.shape[1]:
            raise ValueError(
                f"expected columns that stand for 32-bit values, found low = {self.low}"
            )
        if (
            not 1 <= self.variants <= (_INDICES if self.octave else 1)
            or len(self.weights) % self.variants
        ):
            raise ValueError(
                "expected variants of as many rows each, "
                f"found {self.variants} of {len(self.weights)} rows"
            )
        if self.octave == 0:
            return
        if not 0 < self.octave < self.rows <= _INDICES:
            raise ValueError(
                f"expected 0 < octave < rows <= {_INDICES}, "
                f"found octave {self.octave}, rows {self.rows}"
            )
        if self.raw_bits_of_index[-1] > MAX_RAW_BITS:
            raise ValueError(
                f"index 255 would mean {self.raw_bits_of_index[-1]} raw bits, "
                f"more than {MAX_RAW_BITS}"
            )

    def _check_weights(self) -> None:
        weights = self.weights
        if weights.dtype != np.uint32 or weights.ndim != 2 or min(weights.shape) < 1:
            raise ValueError(
                f"expected weights uint32 [rows, bins + 1], found {weights.dtype} {weights.shape}"
            )
        if weights.shape[1] < 2 or max(weights.shape) > _MAX_SIDE:
            raise ValueError(
                f"expected 1 to {_MAX_SIDE} rows and 2 to {_MAX_SIDE} columns, "
                f"found weights of shape {weights.shape}"
            )
        if not weights.all() or (weights.sum(axis=1, dtype=np.uint64) != TOTAL).any():
            raise ValueError(f"expected weights >= 1 with every row summing to 2**{PRECISION}")

    @property
    def rows(self) -> int:
        """Rows of a variant."""
        return len(self.weights) // self.variants

    @property
    def bins(self) -> int:
        """How many tokens a row can code; also the column of the escape."""
        return int(self.weights.shape[1]) - 1

    @property
    def token_dtype(self) -> type[np.uint8 | np.uint16]:
        """The smallest type that holds a column: tokens are gathered from all over memory."""
        return np.uint8 if self.bins < 256 else np.uint16

    @cached_property
    def row_of_index(self) -> NDArray[np.uint8]:
        """The row of every index, with octave > 0."""
        index = np.arange(_INDICES)
        first = self.rows - self.octave
        row = np.where(index < self.rows, index, first + (index - first) % self.octave)
        return row.astype(np.uint8)

    @cached_property
    def raw_bits_of_index(self) -> NDArray[np.uint8]:
        """The number of raw bits of every index, with octave > 0."""
        index = np.arange(_INDICES)
        octaves = (index - self.rows + self.octave) // self.octave
        return np.where(index < self.rows, 0, octaves).astype(np.uint8)

    def locate(
        self, index: NDArray[Any]
    ) -> tuple[NDArray[np.intp] | None, NDArray[Any], NDArray[np.uint8] | None]:
        """index [n] -> which values are sent, and how.

        Returns the positions of the values that are sent (None: all of them), their rows, and their
        numbers of raw bits (None: all are 0). ValueError if an index is beyond the tables.
        """
        if self.octave == 0:
            if index.size and int(index.max()) >= self.rows:
                raise ValueError(f"expected indices below {self.rows}, found {index.max()}")
            return None, index.astype(np.uint8) if self.rows <= 256 else index, None
        expected = np.uint8 if self.variants == 1 else np.uint16
        if index.dtype != expected:
            raise ValueError(f"expected indices of type {np.dtype(expected)}, found {index.dtype}")
        variant = None
        if self.variants > 1:
            variant = index >> 8
            if index.size and int(variant.max()) >= self.variants:
                raise ValueError(
                    f"expected indices of {self.variants} variants, found {variant.max()}"
                )
            index = index.astype(np.uint8)
        sent = index != 0
        positions = None
        if np.count_nonzero(sent) < index.size:
            positions = np.flatnonzero(sent)
            index = index[positions]
            variant = None if variant is None else variant[positions]
        row, raw_bits = index, None
        if index.size and int(index.max()) >= self.rows:
            row, raw_bits = self.row_of_index[index], self.raw_bits_of_index[index]
        if variant is not None:
            row = variant * np.uint16(self.rows) + row
        return positions, row, raw_bits

    def columns(self, values: NDArray[Any], raw_bits: NDArray[np.uint8] | None) -> NDArray[Any]:
        """Values [n], int32 or int64 -> columns of their tokens; the escape where there is none."""
        token = values if raw_bits is None else values >> raw_bits.astype(values.dtype)
        # Modulo 2**32 or 2**64 the difference is below bins exactly where the token has a column.
        unsigned = np.uint32 if token.dtype == np.int32 else np.uint64
        column = (token - token.dtype.type(self.low)).view(unsigned)
        columns: NDArray[Any] = np.minimum(column, unsigned(self.bins)).astype(self.token_dtype)
        return columns


class SymbolCoder(Protocol):
    """Encodes or decodes the symbols of S slabs that are coded together, each its own stream.

    A model makes the same calls in both directions: with values to encode, with None to decode.
    """

    @abstractmethod
    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        """index [S, n], values [S, n] to encode or None to decode -> the values as decoded.

        index: uint8, or uint16 where the tables have variants or more than 256 rows.
        """

    def code_calls(
        self,
        tables: ProbabilityTables,
        index: NDArray[Any],
        values: NDArray[Any],
        sizes: Sequence[int],
    ) -> None:
        """Encodes values [n] of a single slab as a call of `code` for each of the sizes."""
        for start, stop in pairwise(accumulate(sizes, initial=0)):
            self.code(tables, index[None, start:stop], values[None, start:stop])

    def of(self, slabs: Sequence[int]) -> SymbolCoder:
        """The coder of some of the slabs."""
        return self


class SlabStreams(SymbolCoder):
    """Slabs that are coded together, each by its own entropy coder."""

    def __init__(self, streams: Sequence[SymbolCoder]) -> None:
        self.streams = streams

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        if values is None:
            return np.stack(
                [stream.code(tables, index[s], None) for s, stream in enumerate(self.streams)]
            )
        for s, stream in enumerate(self.streams):
            stream.code(tables, index[s], values[s])
        return values

    def of(self, slabs: Sequence[int]) -> SlabStreams:
        return SlabStreams([self.streams[s] for s in slabs])


def normalised(shares: NDArray[Any], total: int = TOTAL) -> NDArray[np.uint32]:
    """Shares [..., n], not negative -> weights >= 1 that sum to `total`.

    Proportions are rounded down, and the largest weight takes the rest. Integer shares below 2**39
    are divided in integers, so that every machine has the same weights.
    """
    free = total - shares.shape[-1]
    if shares.dtype.kind in "iu":
        shares = shares.astype(np.int64)
        weights = 1 + shares * free // shares.sum(axis=-1, keepdims=True)
    else:
        weights = 1 + np.floor(shares / shares.sum(axis=-1, keepdims=True) * free).astype(np.int64)
    largest = weights.argmax(axis=-1, keepdims=True)
    rest = total - weights.sum(axis=-1, keepdims=True)
    np.put_along_axis(
        weights, largest, np.take_along_axis(weights, largest, axis=-1) + rest, axis=-1
    )
    result: NDArray[np.uint32] = weights.astype(np.uint32)
    return result


def zigzag(value: int) -> int:
    """0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return (value >> 1) ^ -(value & 1)


def zigzag_array(values: NDArray[Any]) -> NDArray[Any]:
    """`zigzag` of signed integers -> unsigned ones of the same size."""
    bits = 8 * values.itemsize
    return ((values << 1) ^ (values >> (bits - 1))).view(f"u{values.itemsize}")


def unzigzag_array(values: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `zigzag_array`."""
    one = values.dtype.type(1)
    signed = f"i{values.itemsize}"
    result: NDArray[Any] = (values >> one).view(signed) ^ -(values & one).view(signed)
    return result
