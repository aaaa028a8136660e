"""Integers <-> bytes by integer probability tables (format/entropy.md).

The range coder is ``constriction.stream.queue``, whose categorical model, when its probabilities
are integer weights that sum to 2**24, has exactly these weights as its frequencies. What the tables
mean stands in symbols.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import constriction
import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, Truncated
from .symbols import ProbabilityTables, SymbolCoder, unzigzag_array, zigzag_array

# Raw bits are coded in pieces of at most this many bits.
PIECE_BITS = 16

# Weights up to which the symbols of a row are coded in one call with those of other rows. A call
# for a single row costs 1 us; a call with a row for every symbol costs 2 ns a weight, which is
# cheaper for rows with few symbols.
_FEW_PROBABILITIES = 1 << 10

# An escape sends the bit length of its value, 0 .. 64, as one of 128 symbols.
_LENGTH_BITS = 7

_queue = constriction.stream.queue
_model = constriction.stream.model
# The model of 2**bits symbols that are equally likely, by bits.
_UNIFORM = (None, *(_model.Uniform(1 << bits) for bits in range(1, PIECE_BITS + 1)))
# The model that takes a row of probabilities for every symbol.
_FAMILY = _model.Categorical(perfect=False)


class _Rows:
    """constriction's models of the rows of a set of tables, each built when it is first needed."""

    def __init__(self, weights: NDArray[np.uint32]) -> None:
        # constriction scales probabilities to sum to 2**24 - bins - 1, as these do, and adds 1 to
        # each.
        self.probabilities = weights.astype(np.float64) - 1.0
        self._models: list[Any] = [None] * len(weights)

    def model(self, row: int) -> Any:
        if self._models[row] is None:
            self._models[row] = _model.Categorical(
                self.probabilities[row], perfect=False, lazy=False
            )
        return self._models[row]


_rows: WeakKeyDictionary[ProbabilityTables, _Rows] = WeakKeyDictionary()


def _rows_of(tables: ProbabilityTables) -> _Rows:
    """Kept as long as the tables are."""
    rows = _rows.get(tables)
    if rows is None:
        rows = _rows[tables] = _Rows(tables.weights)
    return rows


class _Coder(SymbolCoder):
    """The order of things on the wire, once for both directions."""

    @abstractmethod
    def _run(
        self, block: NDArray[np.int32], model: Any, *probabilities: NDArray[np.float64]
    ) -> None:
        """Encode the symbols in ``block`` [n], or decode n symbols into it."""

    def _code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """index [n], values [n] to encode or None to decode -> the values as decoded, int64 [n]."""
        positions, row, raw_bits = tables.locate(index)
        sent = None if values is None else _sent(values, positions)
        columns = None if sent is None else tables.columns(sent, raw_bits)
        columns = self._tokens(tables, row, columns)
        escaped = np.flatnonzero(columns == tables.bins)
        low_bits = None
        if raw_bits is not None:
            width = raw_bits.copy()
            width[escaped] = 0
            bits = None if sent is None else sent.astype(np.int64).view(np.uint64)
            low_bits = self._raw_bits(width, bits)
        in_full = None
        if escaped.size:
            in_full = self._escapes(escaped.size, None if sent is None else sent[escaped])
        if values is not None:
            return values.astype(np.int64)

        result = columns + np.int64(tables.low)
        if raw_bits is not None and low_bits is not None:
            result <<= raw_bits
            result |= low_bits.view(np.int64)
        if in_full is not None:
            result[escaped] = in_full
        if positions is None:
            return result
        full = np.zeros(index.size, np.int64)
        full[positions] = result
        return full

    def _tokens(
        self, tables: ProbabilityTables, row: NDArray[Any], columns: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Columns 0 .. bins of the rows ``row`` [n], sent stably sorted by row."""
        order = np.argsort(row, kind="stable")
        block = np.empty(row.size, np.int32) if columns is None else columns[order].astype(np.int32)
        counts = np.bincount(row)
        rows = np.flatnonzero(counts)
        self._sorted_tokens(tables, block, row[order], rows.tolist(), counts[rows].tolist())
        if columns is None:
            columns = np.empty(row.size, tables.token_dtype)
            columns[order] = block.astype(tables.token_dtype)
        return columns

    def _sorted_tokens(
        self,
        tables: ProbabilityTables,
        block: NDArray[np.int32],
        row: NDArray[Any],
        rows: list[int],
        counts: list[int],
    ) -> None:
        """Columns [n] of the rows ``row`` [n]: counts[0] times rows[0], and so on."""
        models = _rows_of(tables)
        few = _FEW_PROBABILITIES // tables.weights.shape[1]
        # Rows with few symbols wait between `coded` and `start`, until they are coded in one call.
        coded = start = 0
        for r, count in zip(rows, counts, strict=True):
            if count > few:
                if coded < start:
                    self._run(block[coded:start], _FAMILY, models.probabilities[row[coded:start]])
                coded = start + count
                self._run(block[start:coded], models.model(r))
                start = coded
            else:
                start += count
        if coded < start:
            self._run(block[coded:start], _FAMILY, models.probabilities[row[coded:start]])

    def _raw_bits(
        self, width: NDArray[np.uint8], bits: NDArray[np.uint64] | None
    ) -> NDArray[np.uint64]:
        """The ``width`` [n] low bits of ``bits`` [n], sent stably sorted by width.

        Higher bits come back 0.
        """
        result = np.zeros(width.size, np.uint64)
        positions = np.flatnonzero(width)
        width = width[positions]
        positions = positions[np.argsort(width, kind="stable")]
        start = 0
        for w, count in enumerate(np.bincount(width).tolist()):
            if count == 0:
                continue
            group = positions[start : start + count]
            start += count
            block = np.zeros(count, np.uint64) if bits is None else bits[group]
            self._sorted_bits(block, w, encode=bits is not None)
            result[group] = block
        return result

    def _sorted_bits(self, bits: NDArray[np.uint64], width: int, *, encode: bool) -> None:
        """The ``width`` low bits of each of ``bits``: encoded, or decoded into zeros."""
        for shift in range(0, width, PIECE_BITS):
            n = min(PIECE_BITS, width - shift)
            if encode:
                piece = (bits >> np.uint64(shift)) & np.uint64((1 << n) - 1)
                self._run(piece.astype(np.int32), _UNIFORM[n])
            else:
                decoded = np.empty(bits.size, np.int32)
                self._run(decoded, _UNIFORM[n])
                bits |= decoded.astype(np.uint64) << np.uint64(shift)

    def _escapes(self, n: int, values: NDArray[Any] | None) -> NDArray[np.int64]:
        """Values [n] in full: zigzag, bit length, then the bits below the leading one."""
        bits, length = None, np.empty(n, np.int32)
        if values is not None:
            bits = zigzag_array(values.astype(np.int64))
            length = _bit_length(bits)
        self._run(length, _UNIFORM[_LENGTH_BITS])
        if int(length.max()) > 64:
            raise FormatError(
                f"expected escaped values of at most 64 bits, found {length.max()} "
                "in an entropy-coded slab: the stream is damaged or was made with other weights"
            )
        width = np.maximum(length, 1) - 1
        bits = self._raw_bits(width.astype(np.uint8), bits)
        bits |= np.where(length > 0, np.uint64(1) << width.astype(np.uint64), np.uint64(0))
        return unzigzag_array(bits)


class EntropyEncoder(_Coder):
    """Codes values into the bytes of one slab. Not thread-safe."""

    def __init__(self) -> None:
        self._encoder = _queue.RangeEncoder()

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """index: uint8 or uint16; values: any integers that fit int64, of the same shape.

        Returns the values, as the decoder will return them. ValueError if an index is beyond the
        tables, or a value is not 0 where its index says so.
        """
        _check_index(index)
        if values is None:
            raise ValueError("expected values to encode, found none")
        if values.shape != index.shape:
            raise ValueError(
                f"expected values of the shape of the indices {index.shape}, found {values.shape}"
            )
        return self._code(tables, index.reshape(-1), values.reshape(-1)).reshape(index.shape)

    def code_calls(
        self,
        tables: ProbabilityTables,
        index: NDArray[Any],
        values: NDArray[Any],
        sizes: Sequence[int],
    ) -> None:
        """The bytes of a call of `code` for each size, but sooner: all are sorted at once."""
        _check_index(index)
        if values.shape != index.shape or index.size != sum(sizes):
            raise ValueError(
                f"expected {sum(sizes)} indices and values, found {index.shape} and {values.shape}"
            )
        positions, row, raw_bits = tables.locate(index)
        sent = _sent(values, positions)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        if positions is not None:
            ends = positions.searchsorted(ends)
        columns = tables.columns(sent, raw_bits)
        escaped = np.flatnonzero(columns == tables.bins)
        escape_ends = escaped.searchsorted(ends).tolist()
        in_full = sent[escaped]
        width = np.zeros(row.size, np.uint8) if raw_bits is None else raw_bits.copy()
        width[escaped] = 0
        tokens = _Groups.of(row, ends)
        row, block = row[tokens.order], columns[tokens.order].astype(np.int32)
        raw = _RawBits.of(sent, width, ends)
        for call in range(len(sizes)):
            first, stop = tokens.calls[call : call + 2]
            if first < stop:
                part = slice(tokens.starts[first], tokens.starts[stop])
                counts = [b - a for a, b in pairwise(tokens.starts[first : stop + 1])]
                self._sorted_tokens(tables, block[part], row[part], tokens.keys[first:stop], counts)
            for group in range(*raw.groups.calls[call : call + 2]):
                part = slice(*raw.groups.starts[group : group + 2])
                if raw.single is not None:
                    self._run(raw.single[part], _UNIFORM[raw.groups.keys[group]])
                else:
                    self._sorted_bits(raw.bits[part], raw.groups.keys[group], encode=True)
            part = slice(*escape_ends[call : call + 2])
            if part.start < part.stop:
                self._escapes(part.stop - part.start, in_full[part])

    def finish(self) -> bytes:
        """The coded bytes: 32-bit little-endian words, none if nothing was coded."""
        words: NDArray[np.uint32] = self._encoder.get_compressed()
        return words.astype("<u4").tobytes()

    def _run(
        self, block: NDArray[np.int32], model: Any, *probabilities: NDArray[np.float64]
    ) -> None:
        self._encoder.encode(block, model, *probabilities)


class EntropyDecoder(_Coder):
    """The inverse of an `EntropyEncoder`, for the same calls in the same order. Not thread-safe."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4 != 0:
            raise Truncated(
                f"expected an entropy-coded slab of whole 32-bit words, found {len(data)} bytes: "
                "the slab is cut short; get the file again"
            )
        self._decoder = _queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def code(
        self,
        tables: ProbabilityTables,
        index: NDArray[Any],
        values: NDArray[Any] | None = None,
    ) -> NDArray[np.int64]:
        """index: as the encoder had it; values: None. Returns int64 values of its shape.

        FormatError if the bytes cannot have been written by the encoder; damaged bytes may also
        decode to wrong values, which only checksums reveal. Allocates in proportion to the indices,
        whatever the bytes.
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
        except AssertionError:
            # constriction raises this for a quantile beyond the last symbol.
            raise FormatError(
                "expected an entropy-coded slab, found bytes that no encoder writes: "
                "the stream is damaged or was made with other weights"
            ) from None


class _Groups(NamedTuple):
    """Values [n] of consecutive calls, those of a call stably sorted by a key.

    A group is the values of one call that have one key.

    order: positions of the values, in this order.
    starts: where each group starts in this order, and n.
    keys: the key of each group.
    calls: the first group of each call, and the number of groups.
    """

    order: NDArray[np.intp]
    starts: list[int]
    keys: list[int]
    calls: list[int]

    @classmethod
    def of(cls, key: NDArray[np.unsignedinteger], ends: NDArray[np.intp]) -> _Groups:
        """ends: where the first call starts, and where each ends."""
        order = np.empty(key.size, np.intp)
        for start, stop in pairwise(ends.tolist()):
            np.add(key[start:stop].argsort(kind="stable"), start, out=order[start:stop])
        key = key[order]
        first = np.ones(order.size + 1, bool)
        first[1:-1] = key[1:] != key[:-1]
        first[ends] = True
        starts = np.flatnonzero(first)
        return cls(
            order,
            starts.tolist(),
            key[starts[:-1]].tolist(),
            starts.searchsorted(ends).tolist(),
        )


class _RawBits(NamedTuple):
    """The raw bits of consecutive calls, those of a call stably sorted by their number.

    groups: of the values of one call that have one number of raw bits.
    bits: of each value, in this order.
    single: the same, if all of them fit one piece.
    """

    groups: _Groups
    bits: NDArray[np.uint64]
    single: NDArray[np.int32] | None

    @classmethod
    def of(cls, values: NDArray[Any], width: NDArray[np.uint8], ends: NDArray[np.intp]) -> _RawBits:
        """values [n], the number of raw bits of each, and where calls start and end."""
        raw = np.flatnonzero(width)
        groups = _Groups.of(width[raw], raw.searchsorted(ends))
        raw = raw[groups.order]
        mask = (np.uint64(1) << width[raw].astype(np.uint64)) - np.uint64(1)
        bits = values[raw].astype(np.int64).view(np.uint64) & mask
        fits = int(width.max(initial=0)) <= PIECE_BITS
        return cls(groups, bits, bits.astype(np.int32) if fits else None)


def _check_index(index: NDArray[Any]) -> None:
    if index.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected indices of type uint8 or uint16, found {index.dtype}")


def _sent(values: NDArray[Any], positions: NDArray[np.intp] | None) -> NDArray[Any]:
    """The values at the positions (None: all), int32 or int64. ValueError if another is not 0."""
    if values.dtype.kind not in "iu" or values.dtype == np.uint64:
        raise ValueError(f"expected integer values that fit int64, found {values.dtype}")
    if values.dtype != np.int32:
        values = values.astype(np.int64)
    if positions is None:
        return values
    sent = values[positions]
    if np.count_nonzero(values) != np.count_nonzero(sent):
        raise ValueError("expected the value 0 wherever the index is 0")
    return sent


def _bit_length(u: NDArray[np.uint64]) -> NDArray[np.int32]:
    """int.bit_length of each element, exactly (a float64 holds 32 bits without rounding)."""
    high = (u >> np.uint64(32)).astype(np.float64)
    low = (u & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.asarray(np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1]), np.int32)
