"""Tables are normalised as the format says, and zigzag has an inverse."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mricodec.bitstream.range_coder import EntropyEncoder
from mricodec.bitstream.symbols import (
    TOTAL,
    ProbabilityTables,
    SymbolCoder,
    normalised,
    unzigzag,
    unzigzag_array,
    zigzag,
    zigzag_array,
)

SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 90))


@settings(deadline=None)
@examples(
    SHAPES.flatmap(lambda shape: hnp.arrays(np.uint32, shape)), st.sampled_from([TOTAL, 1000])
)
def test_integer_shares_are_divided_exactly(shares: NDArray[np.uint32], total: int) -> None:
    shares[:, 0] |= 1
    for row, weights in zip(shares.tolist(), normalised(shares, total).tolist(), strict=True):
        expected = [1 + share * (total - len(row)) // sum(row) for share in row]
        expected[expected.index(max(expected))] += total - sum(expected)
        assert weights == expected


@settings(deadline=None)
@examples(SHAPES.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(0, 1))))
def test_any_shares_give_tables(shares: NDArray[np.float64]) -> None:
    shares[:, 0] += 1e-3
    weights = normalised(shares)
    tables = ProbabilityTables(weights, 0, 0)
    expected = shares / shares.sum(axis=1, keepdims=True) * TOTAL
    assert (np.abs(weights - expected) <= shares.shape[1] + 1).all()
    assert tables.rows == len(shares) and tables.bins == shares.shape[1] - 1


@examples(st.integers())
def test_zigzag_is_undone(value: int) -> None:
    assert zigzag(value) >= 0 and unzigzag(zigzag(value)) == value
    assert [zigzag(n) for n in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]


@examples(st.sampled_from(["i1", "i2", "i4", "i8"]).flatmap(lambda t: hnp.arrays(t, 9)))
def test_zigzag_of_arrays_is_that_of_their_values(values: NDArray[Any]) -> None:
    unsigned = zigzag_array(values)
    assert unsigned.dtype == np.dtype(f"u{values.itemsize}")
    assert unsigned.tolist() == [zigzag(value) for value in values.tolist()]
    restored = unzigzag_array(unsigned)
    assert restored.dtype == values.dtype and (restored == values).all()


def test_calls_are_those_of_their_sizes() -> None:
    """What `SymbolCoder` does itself is what the range coder does faster."""

    class OneByOne(EntropyEncoder):
        code_calls = SymbolCoder.code_calls

    random = np.random.default_rng(0)
    tables = ProbabilityTables(normalised(random.random((20, 9))), -4, 5)
    index = random.integers(0, 256, 500).astype(np.uint8)
    values = random.integers(-300, 300, 500) * (index > 0)
    streams = []
    for coder in (EntropyEncoder(), OneByOne()):
        coder.code_calls(tables, index, values, [100, 0, 399, 1])
        streams.append(coder.finish())
    assert streams[0] == streams[1]


@pytest.mark.parametrize("module", ["constriction", "torch", "backports.zstd", "compression.zstd"])
def test_nothing_but_numpy_is_needed(module: str) -> None:
    code = (
        f"import sys; from mricodec.bitstream import symbols; sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
