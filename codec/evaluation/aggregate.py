"""Statistics over many volumes: BD-rates, PSNRs at equal rates, means by class with intervals.

BD-rate: on each volume directly between two codecs, Akima's spline on the logarithm of the rate,
nothing extrapolated, over the PSNRs that the anchor x265 medium covers between 0.05 and 0.8 bits
per voxel where the anchor is known, else over 25 to 52 dB; against JPEG 2000 only from 25 dB up,
below which its 130 bytes of header per slice are most of a file. Volumes are averaged with equal
weight; intervals are 95 % bootstrap intervals over the volumes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mricodec.codec.voxels.metrics import Range

from . import bd_rate
from .points import RdPoint, Region
from .rate_distortion import MIN_POINTS, json_row

# The codec whose PSNRs at ANCHOR_RATES (bits per voxel) are the range of every BD-rate.
ANCHOR = "x265-medium"
ANCHOR_RATES = (0.05, 0.8)
# Range of PSNR (dB) where the anchor is not known.
DEFAULT_PSNRS = (25.0, 52.0)
# Against this codec nothing below MIN_JPEG2000_PSNR (dB) counts: its headers dominate there.
JPEG2000 = "jpeg2000"
MIN_JPEG2000_PSNR = 25.0
# Rates in bits per voxel at which PSNRs are averaged.
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
# Draws with replacement of a bootstrap interval, and its confidence in percent.
RESAMPLES = 10_000
CONFIDENCE = 95.0
# Volumes that a bootstrap interval needs: of fewer, the percentiles are far too narrow.
MIN_VOLUMES = 5
# What follows a BD-rate from fewer than MIN_POINTS points of the codec in the common range.
FEW_POINTS = "*"
FEW_POINTS_NOTE = f"{FEW_POINTS} fewer than {MIN_POINTS} points of the codec in the common range"

# The points of each codec on one region.
Curves = dict[str, list[RdPoint]]


@dataclass(frozen=True)
class BdRow:
    """BD-rate of a codec against a reference on one volume, or the reason why there is none."""

    volume: str
    codec: str
    reference: str
    result: bd_rate.BdRate | None
    reason: str = ""

    @property
    def few_points(self) -> bool:
        """Whether too few points of the codec are in the common range to rely on the number."""
        return self.result is not None and self.result.points < MIN_POINTS

    def percent(self) -> str:
        """The BD-rate in percent, marked if it is from few points; "-" if there is none."""
        if self.result is None:
            return "-"
        return f"{self.result.percent:+.1f}" + (FEW_POINTS if self.few_points else "")

    def __str__(self) -> str:
        pair = f"{self.volume}: {self.codec} against {self.reference}"
        if self.result is None:
            return f"{pair}: {self.reason}"
        note = f", {FEW_POINTS} fewer than {MIN_POINTS}" if self.few_points else ""
        return (
            f"{pair}: {self.percent()} % bits at equal PSNR, {self.result.low:.1f} to "
            f"{self.result.high:.1f} dB ({self.result.points} and "
            f"{self.result.reference_points} points{note})"
        )

    def to_row(self) -> dict[str, Any]:
        """One flat row for CSV and JSON; None where there is no BD-rate."""
        result = self.result
        values = {
            "percent": result.percent if result else math.nan,
            "low_db": result.low if result else math.nan,
            "high_db": result.high if result else math.nan,
            "points": result.points if result else 0,
            "reference_points": result.reference_points if result else 0,
            "few_points": int(self.few_points),
        }
        pair = {"volume": self.volume, "codec": self.codec, "reference": self.reference}
        return pair | json_row(values) | {"reason": self.reason}


@dataclass(frozen=True)
class Mean:
    """A mean over volumes with its bootstrap interval."""

    value: float
    # Ends of the interval; nan with fewer than MIN_VOLUMES volumes.
    low: float
    high: float
    volumes: int
    # Whether a BD-rate from few points is among the values.
    few_points: bool = False

    def text(self, form: str = "+.1f") -> str:
        """Mean and interval, such as "-12.3 [-15.0, -9.1]"; "-" without volumes."""
        if not self.volumes:
            return "-"
        value = f"{self.value:{form}}" + (FEW_POINTS if self.few_points else "")
        if math.isnan(self.low):
            return value
        return f"{value} [{self.low:{form}}, {self.high:{form}}]"


def curves_by_region(points: Iterable[RdPoint]) -> dict[Region, Curves]:
    """Points that are not exact, by volume and roi, then codec."""
    regions: dict[Region, Curves] = {}
    for point in points:
        if math.isfinite(point.psnr):
            curves = regions.setdefault((point.volume, point.roi), {})
            curves.setdefault(point.codec, []).append(point)
    return regions


def bd_rows(
    measured: Iterable[RdPoint],
    known: Iterable[RdPoint],
    codecs: Sequence[str],
    references: Sequence[str],
    rates: dict[str, Range] | None = None,
) -> list[BdRow]:
    """Each of `codecs` against each other codec of `references`, wherever both have points.

    Points of `measured` take precedence over those of the same codec in `known`. rates: for some
    references, the bits per voxel whose PSNRs on the reference's curve are the range.
    """
    known_curves = curves_by_region(known)
    rows = []
    for region, curves in curves_by_region(measured).items():
        curves = known_curves.get(region, {}) | curves
        for reference in references:
            for codec in codecs:
                if codec != reference and codec in curves and reference in curves:
                    rows.append(_bd_row(curves, codec, reference, (rates or {}).get(reference)))
    return rows


def _bd_row(curves: Curves, codec: str, reference: str, rates: Range | None) -> BdRow:
    volume = curves[codec][0].volume
    low, high = DEFAULT_PSNRS
    try:
        if rates is not None:
            low, high = bd_rate.psnr_range(*columns(curves[reference]), *rates)
        elif ANCHOR in curves:
            low, high = bd_rate.psnr_range(*columns(curves[ANCHOR]), *ANCHOR_RATES)
        if JPEG2000 in (codec, reference):
            low = max(low, MIN_JPEG2000_PSNR)
        result = bd_rate.bd_rate(*columns(curves[codec]), *columns(curves[reference]), low, high)
    except ValueError as error:
        return BdRow(volume, codec, reference, None, str(error))
    return BdRow(volume, codec, reference, result)


def columns(curve: Sequence[RdPoint]) -> tuple[list[float], list[float]]:
    """Rates and PSNRs."""
    return [point.bpv for point in curve], [point.psnr for point in curve]


def bootstrap(values: Sequence[float], few_points: bool = False) -> Mean:
    """Mean and percentile bootstrap interval; no interval of fewer than MIN_VOLUMES values."""
    if not values:
        return Mean(math.nan, math.nan, math.nan, 0)
    numbers = np.asarray(values, np.float64)
    mean, count = float(numbers.mean()), len(numbers)
    if count < MIN_VOLUMES:
        return Mean(mean, math.nan, math.nan, count, few_points)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(numbers[drawn].mean(1), (tail, 100 - tail)).tolist()
    return Mean(mean, low, high, count, few_points)


def pairs(rows: Iterable[BdRow]) -> list[tuple[str, str]]:
    """(codec, reference), each once."""
    return list(dict.fromkeys((row.codec, row.reference) for row in rows))


def class_means(
    rows: Sequence[BdRow], pair: tuple[str, str], groups: Sequence[str], classes: dict[str, str]
) -> list[Mean]:
    """Mean BD-rate (percent) of a pair in each class of `groups`, then over all volumes.

    classes: the class of each volume.
    """
    of_pair = [row for row in rows if (row.codec, row.reference) == pair]
    by_group = [[r for r in of_pair if classes.get(r.volume, "") == group] for group in groups]
    return [_mean_bd_rate(members) for members in (*by_group, of_pair)]


def _mean_bd_rate(rows: Sequence[BdRow]) -> Mean:
    percents = [row.result.percent for row in rows if row.result]
    return bootstrap(percents, any(row.few_points for row in rows))


def worst_case(rows: Sequence[BdRow], pair: tuple[str, str]) -> str:
    """The volume on which a codec is worst against a reference, and its BD-rate; "-" if none."""
    of_pair = [r for r in rows if (r.codec, r.reference) == pair and r.result is not None]
    worst = max(of_pair, key=lambda r: r.result.percent if r.result else -math.inf, default=None)
    return "-" if worst is None else f"{worst.volume} ({worst.percent()})"


def psnrs_at_rates(
    curves: dict[Region, Curves], codec: str, rates: Sequence[float]
) -> dict[Region, list[float]]:
    """PSNR (dB) of a codec at `rates` on every region; nan where its curve does not reach."""
    psnrs = {}
    for region, of_region in curves.items():
        if codec in of_region:
            try:
                psnrs[region] = bd_rate.psnr_at(*columns(of_region[codec]), rates).tolist()
            except ValueError:  # The curve has fewer than 4 points.
                continue
    return psnrs


def mean_psnrs(
    points: Iterable[RdPoint],
    codec: str,
    group: str | None,
    classes: dict[str, str],
    rates: Sequence[float] = RATES,
) -> list[Mean]:
    """PSNR (dB) of a codec at each rate, averaged over the volumes of a class that reach it.

    group: a class, or None for all volumes; classes: the class of each volume.
    """
    psnrs = psnrs_at_rates(curves_by_region(points), codec, rates)
    rows = [
        row
        for (volume, _), row in psnrs.items()
        if group is None or classes.get(volume, "") == group
    ]
    return [bootstrap([row[n] for row in rows if math.isfinite(row[n])]) for n in range(len(rates))]


def groups_of(classes: dict[str, str]) -> list[str | None]:
    """None (all volumes), then each class if there are several."""
    groups = list(dict.fromkeys(classes.values()))
    return [None, *(groups if len(groups) > 1 else [])]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in _rows(heads, lines))


def _rows(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    yield heads
    yield ["---"] * len(heads)
    yield from lines
