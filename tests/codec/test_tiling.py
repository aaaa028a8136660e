"""Slabs: every slice of a volume is in one, and none is a thin rest."""

from __future__ import annotations

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from mricodec.codec import tiling
from mricodec.codec.tiling import Tiling


@pytest.mark.parametrize(
    ("shape", "depths"),
    [
        ((256, 256, 192), [64, 64, 64, 64]),
        ((176, 220, 220), [48, 48, 40, 40]),
        ((100, 512, 512), [32, 32, 24, 12]),  # not 4 x 32, the last of 4
        ((49, 8, 8), [32, 17]),
        ((48, 256, 256), [48]),
        ((3, 5000, 5000), [1, 1, 1]),
    ],
)
def test_depths_of_slabs(shape: tuple[int, int, int], depths: list[int]) -> None:
    cut = tiling.choose(shape, (1.0, 1.0, 1.0))
    assert [cut.slab_shape(n)[0] for n in range(cut.slabs)] == depths


@examples(
    length=st.integers(1, 300),
    slices=st.integers(1, 70),
    ends=st.tuples(st.integers(0, 299), st.integers(1, 300)),
)
def test_slabs_cover_their_volume_once(length: int, slices: int, ends: tuple[int, int]) -> None:
    cut = Tiling((length, 1, 1), 0, slices)
    spans = [cut.span(n) for n in range(cut.slabs)]
    assert [n for span in spans for n in range(*span)] == list(range(length))
    assert all(start < stop <= start + slices for start, stop in spans)
    start, stop = min(ends), min(max(ends), length)
    if start < stop:
        inside = range(start, stop)
        assert [*cut.covering(start, stop)] == [
            n for n, span in enumerate(spans) if {*range(*span)} & {*inside}
        ]
