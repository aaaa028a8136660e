"""The entropy coder gives back what it got, and the reference decoder reads its bytes."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from reference_decoder.entropy import RangeDecoder, RangeEncoder, Run, Tables

from mricodec.bitstream import range_coder
from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import TOTAL, ProbabilityTables, normalised

EXTREMES = [-(2**63), 2**63 - 1, -(2**62), 2**62, -1, 0]


def random_tables(
    rng: np.random.Generator, rows: int, bins: int, low: int, octave: int
) -> ProbabilityTables:
    """Rows from nearly flat to nearly certain; weights of 1 are common."""
    weights = np.empty((rows, bins + 1), np.uint32)
    for row in weights:
        p = rng.dirichlet(np.full(bins + 1, 10.0 ** rng.uniform(-2, 1)))
        row[:] = normalised(p)
    return ProbabilityTables(weights, low, octave)


@st.composite
def tables_strategy(draw: st.DrawFn, octaves: bool | None = None) -> ProbabilityTables:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bins = draw(st.integers(1, 80))
    low = draw(st.integers(-100, 10))
    if draw(st.booleans()) if octaves is None else octaves:
        octave = draw(st.integers(5, 12))
        return random_tables(rng, draw(st.integers(octave + 1, 60)), bins, low, octave)
    return random_tables(rng, draw(st.integers(1, 60)), bins, low, 0)


@st.composite
def call_strategy(
    draw: st.DrawFn, max_size: int = 700
) -> tuple[ProbabilityTables, NDArray[Any], NDArray[np.int64]]:
    """Tables, indices, and values on the scale of their index, with escapes up to all of int64."""
    tables = draw(tables_strategy())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, max_size))
    if tables.octave:
        top = draw(st.sampled_from([tables.rows, 256]))
        index = rng.integers(0, top, n).astype(np.uint8)
        index[rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
        shift = np.minimum(tables.raw_bits_of_index[index].astype(np.int64), 55)
    else:
        index = rng.integers(0, tables.rows, n).astype(draw(st.sampled_from([np.uint8, np.uint16])))
        shift = np.zeros(n, np.int64)
    values = rng.integers(tables.low - 3, tables.low + tables.bins + 3, n) << shift
    values |= rng.integers(0, 1 << shift) if n else 0
    for i in rng.integers(0, max(n, 1), draw(st.integers(0, 12)) if n else 0):
        values[i] = draw(st.sampled_from(EXTREMES) | st.integers(-(2**63), 2**63 - 1))
    if tables.octave:
        values[index == 0] = 0
    return tables, index, values


@settings(max_examples=60, deadline=None)
@examples(st.lists(call_strategy(), max_size=4))
def test_round_trip(calls: list[tuple[ProbabilityTables, NDArray[Any], NDArray[np.int64]]]) -> None:
    encoder = EntropyEncoder()
    for tables, index, values in calls:
        np.testing.assert_array_equal(encoder.code(tables, index, values), values)
    data = encoder.finish()
    decoder = EntropyDecoder(data)
    for tables, index, values in calls:
        np.testing.assert_array_equal(decoder.code(tables, index), values)
    decoder.finish()


@settings(max_examples=60, deadline=None)
@examples(call_strategy(), st.lists(st.integers(0, 700), max_size=6))
def test_calls_at_once_give_the_bytes_of_calls(
    call: tuple[ProbabilityTables, NDArray[Any], NDArray[np.int64]], cuts: list[int]
) -> None:
    tables, index, values = call
    ends = sorted(min(cut, index.size) for cut in [0, *cuts, index.size])
    one, other = EntropyEncoder(), EntropyEncoder()
    for start, end in itertools.pairwise(ends):
        one.code(tables, index[start:end], values[start:end])
    other.code_calls(tables, index, values, np.diff(ends).tolist())
    assert other.finish() == one.finish()


def test_calls_at_once_refuse_what_a_call_does() -> None:
    tables = random_tables(np.random.default_rng(0), 20, 9, -4, 5)
    index, values = np.array([3, 0], np.uint8), np.array([1, 2])
    for sizes, message in (([1, 1], "the value 0"), ([1, 2], "expected 3")):
        with pytest.raises(ValueError, match=message):
            EntropyEncoder().code_calls(tables, index, values, sizes)


@settings(max_examples=60, deadline=None)
@examples(st.lists(call_strategy(max_size=150), max_size=3))
def test_bytes_are_as_specified(
    calls: list[tuple[ProbabilityTables, NDArray[Any], NDArray[np.int64]]],
) -> None:
    encoder = EntropyEncoder()
    for call in calls:
        encoder.code(*call)
    run = Run(encoder.finish())
    for tables, index, values in calls:
        known = Tables(tables.weights.tolist(), tables.low, tables.octave)
        assert run.call(known, index.tolist()) == values.tolist()
    run.end()


@settings(max_examples=60, deadline=None)
@examples(tables_strategy(octaves=False), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_range_encoder_is_as_specified(tables: ProbabilityTables, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.sort(rng.integers(0, tables.rows, n)).astype(np.uint8)
    column = rng.integers(0, tables.bins, n)
    encoder = EntropyEncoder()
    encoder.code(tables, index, column + tables.low)
    reference = RangeEncoder()
    for row, symbol in zip(index, column.tolist(), strict=True):
        reference.symbol(symbol, [0, *np.cumsum(tables.weights[row], dtype=np.int64).tolist()])
    assert encoder.finish() == reference.finish()


def test_the_example_of_the_page() -> None:
    tables = ProbabilityTables(np.array([[1 << 22, 1 << 23, 1 << 20, 3 << 20]], np.uint32), -1, 0)
    encoder = EntropyEncoder()
    encoder.code(tables, np.zeros(7, np.uint8), np.array([0, -1, 1, 0, 5, 0, -300]))
    assert encoder.finish().hex(" ") == "b8 a4 6f 59 00 80 38 de"
    page = (
        Path(range_coder.__file__)
        .with_name("format")
        .joinpath("entropy.md")
        .read_text(encoding="utf-8")
    )
    assert encoder.finish().hex(" ") in page


@pytest.mark.parametrize(("side", "word"), [(-1, 0x7FFFFFFF), (1, 0x80000000)])
def test_carries_through_many_words(side: int, word: int) -> None:
    """Symbols whose interval holds 0x80000000 00000000 ... leave all words open until the last."""
    rng = np.random.default_rng(0)
    tables = random_tables(rng, 1, 64, 0, 0)
    cumulative = [0, *np.cumsum(tables.weights[0], dtype=np.int64).tolist()]
    straddling = RangeDecoder(struct.pack("<I", 0x80000000))
    symbols = [straddling.symbol(cumulative) for _ in range(100)]
    symbols[-1] += side
    symbols += rng.integers(0, 64, 50).tolist()
    reference = RangeEncoder()
    encoder = EntropyEncoder()
    for symbol in symbols:
        reference.symbol(symbol, cumulative)
        encoder._run(np.array([symbol], np.int32), range_coder._rows_of(tables).model(0))
    assert encoder.finish() == reference.finish()
    words = np.frombuffer(encoder.finish(), "<u4").tolist()
    assert words[:6] == [word, *[0xFFFFFFFF if side < 0 else 0] * 5]
    decoder = RangeDecoder(encoder.finish())
    assert [decoder.symbol(cumulative) for _ in symbols] == symbols


@pytest.mark.parametrize("n", [300, 5000])
def test_few_and_many_symbols_give_the_same_bytes(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    tables = random_tables(rng, 48, 65, -32, 8)
    index = rng.integers(1, 256, n).astype(np.uint8)
    values = rng.integers(-40, 40, n) << np.minimum(tables.raw_bits_of_index[index], 40).astype(
        np.int64
    )
    streams = set()
    for few in (0, 10**9):
        monkeypatch.setattr(range_coder, "_FEW_PROBABILITIES", few)
        encoder = EntropyEncoder()
        encoder.code(tables, index, values)
        streams.add(encoder.finish())
        decoder = EntropyDecoder(encoder.finish())
        np.testing.assert_array_equal(decoder.code(tables, index), values)
        decoder.finish()
    assert len(streams) == 1


@settings(max_examples=100, deadline=None)
@examples(tables_strategy())
def test_frequencies_are_exactly_the_weights(tables: ProbabilityTables) -> None:
    """The quantile of the first symbol is point // (2**40 - 1): all borders, from both sides."""
    row = range_coder._rows_of(tables).probabilities[0]
    borders = np.cumsum(tables.weights[0].astype(np.int64))
    for column, border in enumerate(borders.tolist()):
        for quantile, expected in ((border - 1, column), (border, column + 1)):
            if quantile == TOTAL:
                continue
            point = quantile * (2**40 - 1)
            words = np.array([point >> 32, point & 0xFFFFFFFF], np.uint32)
            for model, parameters in (
                (range_coder._rows_of(tables).model(0), (1,)),
                (range_coder._FAMILY, (row[None],)),
            ):
                decoder = constriction.stream.queue.RangeDecoder(words)
                assert decoder.decode(model, *parameters).tolist() == [expected]


def test_code_length_is_that_of_the_weights() -> None:
    rng = np.random.default_rng(5)
    tables = random_tables(rng, 48, 65, -32, 8)
    index = rng.integers(1, 48, 20_000).astype(np.uint8)
    weights = tables.weights[:, :-1].astype(np.float64)
    column = np.array([rng.choice(65, p=weights[i] / weights[i].sum()) for i in index])
    encoder = EntropyEncoder()
    encoder.code(tables, index, column - 32)
    bits = (24 - np.log2(tables.weights[index, column])).sum()
    assert len(encoder.finish()) * 8 == pytest.approx(bits, rel=1e-3, abs=64)


def test_shapes_and_types_of_values() -> None:
    rng = np.random.default_rng(6)
    tables = random_tables(rng, 20, 30, -15, 8)
    index = rng.integers(1, 200, (3, 5, 7)).astype(np.uint8)
    values = rng.integers(-100, 100, index.shape)
    streams = set()
    for dtype in (np.int8, np.int16, np.int32, np.int64, ">i4"):
        encoder = EntropyEncoder()
        assert encoder.code(tables, index, values.astype(dtype)).dtype == np.int64
        streams.add(encoder.finish())
    assert len(streams) == 1
    decoded = EntropyDecoder(streams.pop()).code(tables, index)
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, values)


def test_nothing_takes_no_bytes() -> None:
    tables = random_tables(np.random.default_rng(0), 20, 30, -15, 8)
    index = np.zeros(1000, np.uint8)
    encoder = EntropyEncoder()
    encoder.code(tables, index, index)
    assert encoder.finish() == b""
    decoder = EntropyDecoder(b"")
    assert not decoder.code(tables, index).any()
    decoder.finish()


@settings(max_examples=200, deadline=None)
@examples(call_strategy(), st.binary(max_size=64))
def test_any_bytes_decode_or_fail_cleanly(
    call: tuple[ProbabilityTables, NDArray[Any], NDArray[np.int64]], data: bytes
) -> None:
    tables, index, _ = call
    try:
        decoder = EntropyDecoder(data)
        assert decoder.code(tables, index).shape == index.shape
        decoder.finish()
    except FormatError as error:
        assert "\n" not in str(error)


def test_bad_bytes() -> None:
    tables = random_tables(np.random.default_rng(0), 20, 30, -15, 8)
    index = np.full(100, 5, np.uint8)
    with pytest.raises(Truncated, match="whole 32-bit words, found 7 bytes"):
        EntropyDecoder(bytes(7))
    with pytest.raises(FormatError, match="no encoder writes"):
        EntropyDecoder(b"\xff" * 8).code(tables, index)
    encoder = EntropyEncoder()
    encoder.code(tables, index, np.arange(100) % 10)
    decoder = EntropyDecoder(encoder.finish())
    decoder.code(tables, index[:50])
    with pytest.raises(FormatError, match="expected the end"):
        decoder.finish()


def test_escape_longer_than_64_bits() -> None:
    tables = ProbabilityTables(np.array([[1, TOTAL - 1]], np.uint32), 0, 0)
    encoder = EntropyEncoder()
    encoder._run(np.array([1], np.int32), range_coder._rows_of(tables).model(0))
    encoder._run(np.array([65], np.int32), range_coder._UNIFORM[7])
    with pytest.raises(FormatError, match="at most 64 bits, found 65"):
        EntropyDecoder(encoder.finish()).code(tables, np.zeros(1, np.uint8))


@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        (np.zeros(3, np.int64), np.zeros(3, np.int64), "uint8 or uint16"),
        (np.zeros(3, np.uint16), np.zeros(3, np.int64), "uint8"),
        (np.ones(3, np.uint8), np.zeros(4, np.int64), "shape"),
        (np.ones(3, np.uint8), np.zeros(3), "integer"),
        (np.ones(3, np.uint8), np.zeros(3, np.uint64), "integer"),
        (np.zeros(3, np.uint8), np.ones(3, np.int64), "value 0 wherever the index is 0"),
    ],
)
def test_wrong_arguments(index: NDArray[Any], values: NDArray[Any], message: str) -> None:
    tables = random_tables(np.random.default_rng(0), 20, 30, -15, 8)
    with pytest.raises(ValueError, match=message):
        EntropyEncoder().code(tables, index, values)


def test_index_beyond_the_rows() -> None:
    tables = random_tables(np.random.default_rng(0), 300, 5, 0, 0)
    index = np.array([0, 299], np.uint16)
    EntropyEncoder().code(tables, index, np.zeros(2, np.int32))
    for coder in (EntropyEncoder(), EntropyDecoder(bytes(8))):
        with pytest.raises(ValueError, match="below 300, found 300"):
            coder._code(tables, index + 1, None)


@examples(
    hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4)), st.integers(-9, 9)
)
def test_tables_that_are_none(weights: NDArray[np.uint32], octave: int) -> None:
    if (
        weights.shape[1] >= 2
        and weights.all()
        and (weights.sum(axis=1, dtype=np.uint64) == TOTAL).all()
    ):
        return
    with pytest.raises(ValueError, match="expected"):
        ProbabilityTables(weights, 0, octave)


@pytest.mark.parametrize(
    ("rows", "low", "octave"),
    [(4, 0, 4), (4, 0, -1), (300, 0, 8), (9, 0, 3), (4, 2**31, 0)],
)
def test_tables_out_of_range(rows: int, low: int, octave: int) -> None:
    weights = np.tile(np.array([TOTAL - 1, 1], np.uint32), (rows, 1))
    with pytest.raises(ValueError, match=r"octave|raw bits|32-bit"):
        ProbabilityTables(weights, low, octave)
