"""Integers <-> bytes, by integer probability tables (format/entropy.md).

A network never computes a probability: it chooses, for every value, the *index* of a table that was shipped
with the weights. An index stands for a row of the tables and a number k of low bits that are sent as they
are; values outside their table are escaped. The range coder is ``constriction.stream.queue``, whose
categorical model, given integer weights that sum to 2**24, uses exactly these weights as its frequencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import constriction
import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, Truncated

PRECISION = 24  # bits of a probability: every row of weights sums to 2**PRECISION
MAX_SHIFT = 62  # a value has 64 bits, its head at least two
CHUNK = 16  # raw bits go in chunks of at most this many

# A call for a row costs 1 us; a call with a row for every symbol, 2 ns a probability: cheaper for rows with few symbols.
_FEW_PROBABILITIES = 1 << 10

_queue = constriction.stream.queue
_model = constriction.stream.model
_UNIFORM = (None, *(_model.Uniform(1 << bits) for bits in range(1, CHUNK + 1)))  # [bits]
_FAMILY = _model.Categorical(perfect=False)
_WIDTH_BITS = 7  # an escape sends its bit length, 0..64, as one of 128 symbols


@dataclass(frozen=True, eq=False)
class Tables:
    """Probability tables for values of one kind.

    weights: [rows, bins + 1]; every entry >= 1, every row sums to 2**24; the last column is the escape.
    low: the value of column 0; columns 0 .. bins-1 stand for the values low .. low + bins-1.
    octave: 0: the index is the row. Otherwise the rows are log-spaced scales, ``octave`` of them per
        doubling; index 0 says that the value is zero and not sent (row 0 is never used), and an index beyond
        the rows repeats the last octave with one more raw bit for each octave passed.
    variants: how many blocks of rows follow each other, with octave > 0; index 256 v + x stands for row x of block v.

    ValueError if the tables are not like this.
    """

    weights: NDArray[np.uint32]
    low: int
    octave: int
    variants: int = 1

    def __post_init__(self) -> None:
        weights = self.weights
        if (
            weights.dtype != np.uint32
            or weights.ndim != 2
            or weights.shape[0] < 1
            or weights.shape[1] < 2
        ):
            raise ValueError(
                f"expected weights uint32 [rows, bins + 1], found {weights.dtype} {weights.shape}"
            )
        if weights.shape[0] > 1 << 16 or weights.shape[1] > 1 << 16:
            raise ValueError(
                f"expected at most 65536 rows and columns, found weights of shape {weights.shape}"
            )
        if not weights.all() or (weights.sum(axis=1, dtype=np.uint64) != 1 << PRECISION).any():
            raise ValueError(f"expected weights >= 1 with every row summing to 2**{PRECISION}")
        if not -(1 << 31) <= self.low < (1 << 31) - weights.shape[1]:
            raise ValueError(
                f"expected columns that stand for 32-bit values, found low = {self.low}"
            )
        if (
            not 1 <= self.variants <= (256 if self.octave else 1)
            or weights.shape[0] % self.variants
        ):
            raise ValueError(
                f"expected variants of as many rows each, found {self.variants} of {weights.shape[0]} rows"
            )
        if self.octave != 0:
            if not 0 < self.octave < self.rows <= 256:
                raise ValueError(
                    f"expected 0 < octave < rows <= 256, found octave {self.octave}, rows {self.rows}"
                )
            if self._shift_of_index[255] > MAX_SHIFT:
                raise ValueError(
                    f"index 255 would mean {self._shift_of_index[255]} raw bits, more than {MAX_SHIFT}"
                )

    @property
    def rows(self) -> int:
        """Of a variant."""
        return int(self.weights.shape[0]) // self.variants

    @property
    def bins(self) -> int:
        """Values a row can code; also the symbol that means escape."""
        return int(self.weights.shape[1]) - 1

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        """[rows, bins + 1]. constriction scales them to sum to 2**24 - bins - 1 (they do), then adds 1."""
        return self.weights.astype(np.float64) - 1.0

    @cached_property
    def _models(self) -> list[Any]:
        """[rows of all variants], made when first asked for by `_model_of`."""
        return [None] * len(self.weights)

    def _model_of(self, row: int) -> Any:
        if self._models[row] is None:
            self._models[row] = _model.Categorical(
                self._probabilities[row], perfect=False, lazy=False
            )
        return self._models[row]

    @property
    def _symbol_dtype(self) -> type[np.uint8 | np.uint16]:
        """Small, because symbols are gathered from all over memory."""
        return np.uint8 if self.bins < 256 else np.uint16

    @cached_property
    def _row_of_index(self) -> NDArray[np.uint8]:
        index = np.arange(256)
        first = self.rows - self.octave
        return np.where(index < self.rows, index, first + (index - first) % self.octave).astype(
            np.uint8
        )

    @cached_property
    def _shift_of_index(self) -> NDArray[np.uint8]:
        index = np.arange(256)
        first = self.rows - self.octave
        return np.where(index < self.rows, 0, (index - first) // self.octave).astype(np.uint8)

    def _locate(
        self, index: NDArray[Any]
    ) -> tuple[NDArray[np.intp] | None, NDArray[Any], NDArray[np.uint8] | None]:
        """index [n] -> positions of the values sent (None: all), their rows, their shifts (None: all 0)."""
        if self.octave == 0:
            if index.size and int(index.max()) >= self.rows:
                raise ValueError(f"expected indices below {self.rows}, found {index.max()}")
            return None, index.astype(np.uint8) if self.rows <= 256 else index, None
        if index.dtype != (np.uint8 if self.variants == 1 else np.uint16):
            raise ValueError(
                f"expected indices of type {'uint8' if self.variants == 1 else 'uint16'}, found {index.dtype}"
            )
        block = None
        if self.variants > 1:
            block = index >> 8
            if index.size and int(block.max()) >= self.variants:
                raise ValueError(
                    f"expected indices of {self.variants} variants, found {block.max()}"
                )
            index = index.astype(np.uint8)
        sent = index != 0
        positions = None
        if np.count_nonzero(sent) < index.size:
            positions = np.flatnonzero(sent)
            index = index[positions]
            block = None if block is None else block[positions]
        row, shift = index, None
        if index.size and int(index.max()) >= self.rows:
            row, shift = self._row_of_index[index], self._shift_of_index[index]
        return positions, row if block is None else block * np.uint16(self.rows) + row, shift


class _Coder(ABC):
    """The order of things on the wire, once for both directions."""

    @abstractmethod
    def _run(
        self, block: NDArray[np.int32], model: Any, *probabilities: NDArray[np.float64]
    ) -> None:
        """Encode the symbols in ``block`` [n], or decode n symbols into it."""

    def _code(
        self, tables: Tables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """index [n]; values [n] to encode, None to decode. Returns what the decoder gets, int64 [n]."""
        positions, row, shift = tables._locate(index)
        sent = None
        if values is not None:
            sent = values = _as_signed(values)
            if positions is not None:
                sent = values[positions]
                if np.count_nonzero(values) != np.count_nonzero(sent):
                    raise ValueError("expected the value 0 wherever the index is 0")

        symbol = self._heads(tables, row, None if sent is None else _symbols(tables, sent, shift))
        escaped = np.flatnonzero(symbol == tables.bins)
        low_bits = None
        if shift is not None:
            width = shift.copy()
            width[escaped] = 0
            low_bits = self._raw_bits(
                width, None if sent is None else sent.astype(np.int64).view(np.uint64)
            )
        whole = None
        if escaped.size:
            whole = self._escapes(escaped.size, None if sent is None else sent[escaped])
        if values is not None:
            return values.astype(np.int64)

        result = symbol + np.int64(tables.low)
        if shift is not None and low_bits is not None:
            result <<= shift
            result |= low_bits.view(np.int64)
        if whole is not None:
            result[escaped] = whole
        if positions is None:
            return result
        full = np.zeros(index.size, np.int64)
        full[positions] = result
        return full

    def _heads(
        self, tables: Tables, row: NDArray[Any], symbol: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Symbols 0 .. bins of the rows ``row`` [n], sent stably sorted by row."""
        order = np.argsort(row, kind="stable")
        block = np.empty(row.size, np.int32) if symbol is None else symbol[order].astype(np.int32)
        counts = np.bincount(row)
        rows = np.flatnonzero(counts)
        self._sorted_heads(tables, block, row[order], rows.tolist(), counts[rows].tolist())
        if symbol is None:
            symbol = np.empty(row.size, tables._symbol_dtype)
            symbol[order] = block.astype(tables._symbol_dtype)
        return symbol

    def _sorted_heads(
        self,
        tables: Tables,
        block: NDArray[np.int32],
        in_order: NDArray[Any],
        rows: list[int],
        counts: list[int],
    ) -> None:
        """Symbols [n] of the rows ``in_order`` [n]: first so many of the first of ``rows``, ..."""
        few = _FEW_PROBABILITIES // tables.weights.shape[1]
        coded = start = 0  # rows with few symbols wait between these two
        for r, count in zip(rows, counts, strict=True):
            if count > few:
                if coded < start:
                    self._run(
                        block[coded:start], _FAMILY, tables._probabilities[in_order[coded:start]]
                    )
                coded = start + count
                self._run(block[start:coded], tables._model_of(r))
                start = coded
            else:
                start += count
        if coded < start:
            self._run(block[coded:start], _FAMILY, tables._probabilities[in_order[coded:start]])

    def _raw_bits(
        self, width: NDArray[np.uint8], bits: NDArray[np.uint64] | None
    ) -> NDArray[np.uint64]:
        """The ``width`` [n] low bits of ``bits`` [n], stably sorted by width. Higher bits come back 0."""
        result = np.zeros(width.size, np.uint64)
        positions = np.flatnonzero(width)
        width = width[positions]
        positions = positions[np.argsort(width, kind="stable")]
        start = 0
        for w, count in enumerate(np.bincount(width).tolist()):
            if count == 0:
                continue
            where = positions[start : start + count]
            start += count
            block = np.zeros(count, np.uint64) if bits is None else bits[where]
            self._sorted_bits(block, w, bits is not None)
            result[where] = block
        return result

    def _sorted_bits(self, bits: NDArray[np.uint64], width: int, given: bool) -> None:
        """The low bits of each, as so many of one width are sent; if they are not given, they are set."""
        for at in range(0, width, CHUNK):
            n = min(CHUNK, width - at)
            if given:
                self._run(
                    ((bits >> np.uint64(at)) & np.uint64((1 << n) - 1)).astype(np.int32),
                    _UNIFORM[n],
                )
            else:
                chunk = np.empty(bits.size, np.int32)
                self._run(chunk, _UNIFORM[n])
                bits |= chunk.astype(np.uint64) << np.uint64(at)

    def _escapes(self, n: int, values: NDArray[Any] | None) -> NDArray[np.int64]:
        """Whole values [n]: zigzag, bit length, then the bits below the leading one."""
        one = np.uint64(1)
        if values is None:
            zigzag, length = None, np.empty(n, np.int32)
        else:
            values = values.astype(np.int64)
            zigzag = (values.view(np.uint64) << one) ^ (values >> 63).view(np.uint64)
            length = _bit_length(zigzag)
        self._run(length, _UNIFORM[_WIDTH_BITS])
        if int(length.max()) > 64:
            raise FormatError(
                f"expected escaped values of at most 64 bits, found {length.max()} in an entropy-coded slab: "
                "the stream is damaged or was made with other weights"
            )
        width = np.maximum(length, 1) - 1
        zigzag = self._raw_bits(width.astype(np.uint8), zigzag)
        zigzag |= np.where(length > 0, one << width.astype(np.uint64), np.uint64(0))
        return (zigzag >> one).view(np.int64) ^ -(zigzag & one).view(np.int64)


class EntropyEncoder(_Coder):
    """Codes values into the bytes of one slab. Not thread-safe."""

    def __init__(self) -> None:
        self._encoder = _queue.RangeEncoder()

    def code(self, tables: Tables, index: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
        """index: uint8 (uint16 where ``octave`` is 0) and values: any integers that fit int64, of one shape.

        Returns the values, as the decoder will return them. ValueError if an index is beyond the tables, or a
        value is not 0 where its index says so.
        """
        _check_index(index)
        if values.shape != index.shape:
            raise ValueError(
                f"expected values of the shape of the indices {index.shape}, found {values.shape}"
            )
        return self._code(tables, index.reshape(-1), values.reshape(-1)).reshape(index.shape)

    def code_calls(
        self, tables: Tables, index: NDArray[Any], values: NDArray[Any], sizes: Sequence[int]
    ) -> None:
        """Codes values [n], the first so many as one call of `code`, and so on, but sooner."""
        _check_index(index)
        if values.shape != index.shape or index.size != sum(sizes):
            raise ValueError(
                f"expected {sum(sizes)} indices and values, found {index.shape} and {values.shape}"
            )
        positions, row, shift = tables._locate(index)
        ends = np.concatenate([[0], np.cumsum(sizes)])  # of the calls
        sent = _as_signed(values)
        if positions is not None:
            if np.count_nonzero(sent) != np.count_nonzero(sent[positions]):
                raise ValueError("expected the value 0 wherever the index is 0")
            sent, ends = sent[positions], positions.searchsorted(ends)
        symbol = _symbols(tables, sent, shift)
        escaped = np.flatnonzero(symbol == tables.bins)
        width = np.zeros(row.size, np.uint8) if shift is None else shift.copy()
        width[escaped] = 0
        raw = np.flatnonzero(width)

        heads, low = _Groups.of(row, ends), _Groups.of(width[raw], raw.searchsorted(ends))
        in_order, block = row[heads.order], symbol[heads.order].astype(np.int32)
        raw, widths = raw[low.order], width[raw[low.order]].astype(np.uint64)
        bits = sent[raw].astype(np.int64).view(np.uint64) & (
            (np.uint64(1) << widths) - np.uint64(1)
        )
        short = bits.astype(np.int32) if not widths.size or int(widths.max()) <= CHUNK else None
        whole, whole_ends = sent[escaped], escaped.searchsorted(ends).tolist()
        for c in range(len(sizes)):
            first, stop = heads.calls[c : c + 2]
            if first < stop:
                part = slice(heads.starts[first], heads.starts[stop])
                counts = [b - a for a, b in pairwise(heads.starts[first : stop + 1])]
                self._sorted_heads(
                    tables, block[part], in_order[part], heads.keys[first:stop], counts
                )
            for group in range(*low.calls[c : c + 2]):
                part = slice(low.starts[group], low.starts[group + 1])
                if short is not None:
                    self._run(short[part], _UNIFORM[low.keys[group]])
                else:
                    self._sorted_bits(bits[part], low.keys[group], True)
            if whole_ends[c] < whole_ends[c + 1]:
                part = slice(*whole_ends[c : c + 2])
                self._escapes(part.stop - part.start, whole[part])

    def finish(self) -> bytes:
        """The coded bytes: 32-bit little-endian words, none if nothing was coded."""
        words: NDArray[np.uint32] = self._encoder.get_compressed()
        return words.astype("<u4").tobytes()

    def _run(
        self, block: NDArray[np.int32], model: Any, *probabilities: NDArray[np.float64]
    ) -> None:
        self._encoder.encode(block, model, *probabilities)


class EntropyDecoder(_Coder):
    """Gives back what an ``EntropyEncoder`` got, for the same calls in the same order. Not thread-safe."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4 != 0:
            raise Truncated(
                f"expected an entropy-coded slab of whole 32-bit words, found {len(data)} bytes: "
                "the slab is cut short; get the file again"
            )
        self._decoder = _queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def code(self, tables: Tables, index: NDArray[Any], values: None = None) -> NDArray[np.int64]:
        """index: as given to the encoder. Returns int64 values of its shape.

        FormatError if the bytes cannot have been written by the encoder; damaged bytes may also decode to
        wrong values, which only checksums tell. Allocates in proportion to the indices, whatever the bytes.
        """
        _check_index(index)
        if values is not None:
            raise ValueError("expected no values when decoding")
        return self._code(tables, index.reshape(-1), None).reshape(index.shape)

    def finish(self) -> None:
        """FormatError if anything is left to decode."""
        if not self._decoder.maybe_exhausted():
            raise FormatError(
                "expected the end of an entropy-coded slab, found more: "
                "the stream is damaged or was made with other weights"
            )

    def _run(
        self, block: NDArray[np.int32], model: Any, *probabilities: NDArray[np.float64]
    ) -> None:
        try:
            block[:] = self._decoder.decode(model, *(probabilities or (block.size,)))
        except AssertionError:  # constriction's word for a quantile beyond the last symbol
            raise FormatError(
                "expected an entropy-coded slab, found bytes that no encoder writes: "
                "the stream is damaged or was made with other weights"
            ) from None


class _Groups(NamedTuple):
    """Values [n] of calls, those of a call stably sorted by a key."""

    order: NDArray[np.intp]
    starts: list[int]  # where values of a call and key start, and n
    keys: list[int]  # of these groups
    calls: list[int]  # where the groups of a call start, and their number

    @classmethod
    def of(cls, key: NDArray[np.unsignedinteger], ends: NDArray[np.intp]) -> _Groups:
        """ends: where the first call starts, and where each ends."""
        order = np.empty(key.size, np.intp)
        for start, stop in pairwise(ends.tolist()):
            np.add(key[start:stop].argsort(kind="stable"), start, out=order[start:stop])
        in_order = key[order]
        new = np.ones(order.size + 1, bool)
        new[1:-1] = in_order[1:] != in_order[:-1]
        new[ends] = True
        starts = np.flatnonzero(new)
        return cls(
            order,
            starts.tolist(),
            in_order[starts[:-1]].tolist(),
            starts.searchsorted(ends).tolist(),
        )


def _check_index(index: NDArray[Any]) -> None:
    if index.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected indices of type uint8 or uint16, found {index.dtype}")


def _as_signed(values: NDArray[Any]) -> NDArray[Any]:
    """int32 as it is, other integers as int64."""
    if values.dtype.kind not in "iu" or values.dtype == np.uint64:
        raise ValueError(f"expected integer values that fit int64, found {values.dtype}")
    return values if values.dtype == np.int32 else values.astype(np.int64)


def _symbols(tables: Tables, values: NDArray[Any], shift: NDArray[np.uint8] | None) -> NDArray[Any]:
    """The column of each value's head [n]; ``bins``, the escape, where the table has none for it."""
    head = values if shift is None else values >> shift.astype(values.dtype)
    # Modulo 2**32 or 2**64 the difference is below bins exactly where the head is one of the table's.
    unsigned = np.uint32 if head.dtype == np.int32 else np.uint64
    column = (head - head.dtype.type(tables.low)).view(unsigned)
    symbols: NDArray[Any] = np.minimum(column, unsigned(tables.bins)).astype(tables._symbol_dtype)
    return symbols


def _bit_length(u: NDArray[np.uint64]) -> NDArray[np.int32]:
    """int.bit_length of each element, exactly (a float64 holds 32 bits without rounding)."""
    high = (u >> np.uint64(32)).astype(np.float64)
    low = (u & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.asarray(np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1]), np.int32)
