"""Savings of a filter from curves that are known, and slabs measured as a decoder gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mricodec.codec.training import restoration_measures as measures
from mricodec.codec.training.restoration_measures import Point
from mricodec.codec.training.restoration_pairs import Pair, PairInfo
from mricodec.models.training.restoration import RestorationFilter


def curve(gained_db: float, slope: float = 4.0) -> list[Point]:
    """PSNR rises by `slope` dB an octave of the rate, and by `gained_db` with the filter."""
    bits = [0.03, 0.06, 0.15, 0.4, 0.7]
    psnr = [40 + slope * float(np.log2(b)) for b in bits]
    return [Point(b, p, p + gained_db, 64) for b, p in zip(bits, psnr, strict=True)]


@pytest.mark.parametrize("rate", [0.01, *measures.RATES, 1.0])
def test_saving_is_the_octaves_that_the_gain_is_worth(rate: float) -> None:
    assert measures.saving(curve(0.4), rate) == pytest.approx(100 * (2**-0.1 - 1))
    assert measures.saving(reversed(curve(0.0)), rate) == pytest.approx(0)


def test_table_ends_with_the_mean() -> None:
    lines = measures.table({"a": curve(0.4), "b": curve(0.0)})
    assert [line.split()[0] for line in lines] == ["a", "b", "mean"]
    assert lines[2].split()[1:] == ["-3.3"] * len(measures.RATES)


def pair(error: np.ndarray, step: float) -> Pair:
    v = np.random.default_rng(0).integers(0, 90 * 256, error.shape).astype(np.int32)
    info = PairInfo("x", "thick", 30.0, 2, 5, 3.0, step, int(90 * step), 0.2, 0.01)
    return Pair(v, error.astype(np.int16), info)


def test_a_filter_that_only_harms_is_off() -> None:
    torch.manual_seed(0)
    network = RestorationFilter(integer=True)
    item = pair(np.random.default_rng(1).normal(0, 60, (4, 24, 24)), 12.5)
    whole = torch.from_numpy(item.error.astype(np.float32))
    correction = measures.correction_of(network, item, range(4))
    assert correction.shape == whole.shape
    opposed = Pair(item.v, (-correction.numpy()).astype(np.int16), item.info)
    point = measures.measure(network, opposed)
    assert point.gain == 0 and point.filtered == point.unfiltered
    helped = Pair(item.v, correction.numpy().astype(np.int16), item.info)
    point = measures.measure(network, helped)
    assert point.gain == 64 and point.filtered > point.unfiltered + 3


def test_some_slices_are_measured_alone() -> None:
    network = RestorationFilter(integer=True)
    error = np.zeros((5, 16, 16))
    error[[1, 4]] = 100
    item = pair(error, 40.0)
    every = measures.measure(network, item, 3)
    assert every.unfiltered == pytest.approx(
        10 * np.log10(item.info.peak**2 / (100 * 40.0 / 256) ** 2), abs=0.2
    )
