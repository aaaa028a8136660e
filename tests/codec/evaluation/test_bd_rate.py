"""BD-rate against published values; intervals and marks only where the data carry them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from mricodec.codec.evaluation import aggregate, bd_rate
from mricodec.codec.evaluation.aggregate import BdRow
from mricodec.codec.evaluation.points import RdPoint


def test_akima_reproduces_the_example_of_the_paper() -> None:
    # The points of Akima 1970, table 1, with the values of SciPy 1.17 (Akima1DInterpolator).
    x, y = np.arange(11.0), [10, 10, 10, 10, 10, 10, 10.5, 15, 50, 60, 85]
    spline = bd_rate.Akima(x, y)
    expected = [
        10.0,
        10.0,
        10.179435483870968,
        11.732202447163514,
        31.308142288745735,
        54.85834478021978,
        70.859375,
    ]
    assert spline([0.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]) == pytest.approx(expected, abs=1e-12)
    assert spline.integral(1.5, 9.25) == pytest.approx(159.51224772135419, abs=1e-10)
    assert spline(x) == pytest.approx(y, abs=1e-12)


def test_akima_is_exact_for_parabolas() -> None:
    x = np.linspace(-1, 3, 7)
    spline = bd_rate.Akima(x, 2 * x**2 - x + 3)
    at = np.linspace(-1, 3, 50)
    assert spline(at) == pytest.approx(2 * at**2 - at + 3)
    assert spline.integral(-1, 3) == pytest.approx(2 * 28 / 3 - 4 + 12)


def test_akima_needs_four_increasing_points_and_does_not_extrapolate() -> None:
    for x in ([0, 1, 2], [0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 2, math.nan]):
        with pytest.raises(ValueError, match="Akima"):
            bd_rate.Akima(x, [1.0] * len(x))
    with pytest.raises(ValueError, match="within"):
        bd_rate.Akima([0, 1, 2, 3], [1, 2, 3, 4])([3.1])


RATES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
PSNRS = [30.0, 32.5, 35.8, 39.0, 43.1, 48.0]


def test_bd_rate_of_a_curve_against_itself_is_zero() -> None:
    result = bd_rate.bd_rate(RATES, PSNRS, RATES, PSNRS)
    assert result.percent == pytest.approx(0, abs=1e-9)
    assert (result.low, result.high, result.points, result.reference_points) == (30, 48, 6, 6)


@examples(factor=st.floats(0.05, 20))
def test_bd_rate_of_scaled_rates_is_the_factor(factor: float) -> None:
    scaled = [factor * rate for rate in RATES]
    assert bd_rate.bd_rate(scaled, PSNRS, RATES, PSNRS).percent == pytest.approx(100 * (factor - 1))
    halved = bd_rate.bd_rate([rate / 2 for rate in scaled], PSNRS, scaled, PSNRS, 33, 40)
    assert halved.percent == pytest.approx(-50)
    assert (halved.low, halved.high) == (33, 40)


def test_bd_rate_is_taken_where_both_curves_are_known() -> None:
    result = bd_rate.bd_rate(RATES[:5], PSNRS[:5], RATES[1:], PSNRS[1:])
    assert (result.low, result.high, result.points, result.reference_points) == (32.5, 43.1, 4, 4)
    with pytest.raises(ValueError, match="no common range"):
        bd_rate.bd_rate(RATES, PSNRS, RATES, PSNRS, 50, 60)
    with pytest.raises(ValueError, match="no common range"):
        bd_rate.bd_rate(RATES, PSNRS, RATES, [psnr + 30 for psnr in PSNRS])


def test_bd_rate_does_not_mind_order_doubles_and_exact_points() -> None:
    expected = bd_rate.bd_rate(RATES, PSNRS, RATES[1:], PSNRS[1:])
    rates = [*RATES[::-1], 0.2, 3.0]
    psnrs = [*PSNRS[::-1], 35.8, math.inf]
    assert bd_rate.bd_rate(rates, psnrs, RATES[1:], PSNRS[1:]) == expected
    costlier = [*RATES, 0.9]  # The smaller of two rates counts.
    assert bd_rate.bd_rate(costlier, [*PSNRS, 39.0], RATES[1:], PSNRS[1:]) == expected


def test_bd_rate_needs_four_points() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        bd_rate.bd_rate(RATES[:3], PSNRS[:3], RATES, PSNRS)
    with pytest.raises(ValueError, match="same length"):
        bd_rate.bd_rate(RATES, PSNRS[:4], RATES, PSNRS)


def test_the_range_between_two_rates() -> None:
    low, high = bd_rate.psnr_range(RATES, PSNRS, 0.1, 0.8)
    assert (low, high) == pytest.approx((32.5, 43.1))
    low, high = bd_rate.psnr_range(RATES, PSNRS, 0.01, 0.5)
    assert low == 30
    assert 39 < high < 43.1
    with pytest.raises(ValueError, match="nothing between"):
        bd_rate.psnr_range(RATES, PSNRS, 2, 3)


def test_bd_rate_between_two_video_codecs() -> None:
    # x265 medium and VVenC medium on a diffusion volume; SciPy's Akima1DInterpolator agrees.
    x265 = (
        [0.03769, 0.07297, 0.172, 0.38469, 0.69859, 1.11134, 1.63409],
        [31.188, 33.933, 37.41, 41.805, 46.598, 51.576, 56.604],
    )
    vvenc = (
        [0.04241, 0.08141, 0.21359, 0.50144, 0.82909, 1.25806, 1.69972],
        [32.697, 35.411, 39.833, 45.9, 50.772, 56.021, 60.052],
    )
    low, high = bd_rate.psnr_range(*x265, 0.05, 0.8)
    assert (low, high) == pytest.approx((32.367395040540984, 47.92989277068965))
    result = bd_rate.bd_rate(*vvenc, *x265, low, high)
    assert (result.low, result.high) == pytest.approx((32.697, high))
    assert result.percent == pytest.approx(-22.991049439051928)
    assert (result.points, result.reference_points) == (4, 4)


def test_the_rate_at_a_psnr_inverts_the_psnr_at_a_rate() -> None:
    assert bd_rate.rate_at(RATES, PSNRS, PSNRS) == pytest.approx(RATES)
    assert bd_rate.psnr_at(RATES, PSNRS, RATES) == pytest.approx(PSNRS)
    assert np.isnan(bd_rate.rate_at(RATES, PSNRS, [29.9, 48.1])).all()
    assert np.isnan(bd_rate.psnr_at(RATES, PSNRS, [0.04, 1.7])).all()


def test_fewer_than_five_volumes_have_no_bootstrap_interval() -> None:
    for count in range(1, 5):
        mean = aggregate.bootstrap([float(n) for n in range(count)])
        assert (mean.value, mean.volumes) == ((count - 1) / 2, count)
        assert math.isnan(mean.low)
        assert math.isnan(mean.high)
        assert "[" not in mean.text()
    mean = aggregate.bootstrap([0.0, 1, 2, 3, 4])
    assert 0 < mean.low < 2 < mean.high < 4
    assert mean.text() == f"+2.0 [{mean.low:+.1f}, {mean.high:+.1f}]"
    assert aggregate.bootstrap([]).text() == "-"


def curve(codec: str, factor: float, points: int, volume: str) -> list[RdPoint]:
    rates, psnrs = np.geomspace(0.05, 0.8, points), np.linspace(30, 46, points)
    return [
        RdPoint(volume, "full", codec, factor * rate, psnr)
        for rate, psnr in zip(rates, psnrs, strict=True)
    ]


@pytest.mark.parametrize(("points", "mark"), [(7, "*"), (8, "")])
def test_a_bd_rate_from_few_points_is_marked(points: int, mark: str) -> None:
    measured = [p for volume in "ab" for p in curve("ours", 0.5, points, volume)]
    known = [p for volume in "ab" for p in curve("theirs", 1, 9, volume)]
    rows = aggregate.bd_rows(measured, known, ["ours"], ["theirs"])
    assert [row.few_points for row in rows] == [bool(mark)] * 2
    assert {row.percent() for row in rows} == {f"-50.0{mark}"}
    assert (f"-50.0{mark} %" in str(rows[0])) and (("fewer than 8" in str(rows[0])) == bool(mark))
    assert rows[0].to_row()["few_points"] == int(bool(mark))
    assert aggregate.worst_case(rows, ("ours", "theirs")) == f"a (-50.0{mark})"
    means = aggregate.class_means(rows, ("ours", "theirs"), ["x"], {"a": "x", "b": "y"})
    assert [mean.text() for mean in means] == [f"-50.0{mark}"] * 2


def test_a_row_without_a_bd_rate_has_its_reason() -> None:
    row = BdRow("a", "ours", "theirs", None, "no common range")
    assert str(row) == "a: ours against theirs: no common range"
    assert row.percent() == "-"
    assert row.to_row()["percent"] is None
