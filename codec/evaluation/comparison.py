"""Codecs against each other over many volumes: BD-rates, PSNRs at given rates, means by class with intervals.

BD-rate: on each volume directly between two codecs, Akima's spline on the logarithm of the rate, nothing extrapolated,
over the PSNRs that x265 medium covers between 0.05 and 0.8 bits per voxel where it is known, else over 25 to 52 dB;
against JPEG 2000 only from 25 dB up, below which its 130 bytes of header per slice are most of a file. Then averaged;
intervals are 95 % bootstrap intervals over the volumes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mricodec.codec.voxels.metrics import Range

from . import bd_rate
from .rate_distortion import MIN_POINTS, Point

ANCHOR = "x265-medium"
ANCHOR_RATES = (0.05, 0.8)  # bits per voxel
USUAL_PSNRS = (25.0, 52.0)  # dB, where the anchor is not known
JPEG2000 = "jpeg2000"
MIN_PSNR = 25.0  # dB, against JPEG 2000
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # bits per voxel at which PSNRs are averaged
RESAMPLES = 10_000
CONFIDENCE = 95.0  # percent

_COLUMNS = ("volume", "roi", "codec", "bpv", "psnr")

Place = tuple[str, str]  # volume, roi
Group = Callable[[str], str]  # the class of a volume


@dataclass(frozen=True)
class Sample:
    """What comparisons need of a point."""

    volume: str
    roi: str
    codec: str
    bpv: float
    psnr: float  # dB; inf if exact
    ssim: float = math.nan
    maxerr: float = math.nan  # stored units


Curves = dict[str, list[Sample]]  # by codec


@dataclass(frozen=True)
class BdRow:
    volume: str
    codec: str
    reference: str
    result: bd_rate.BdRate | None
    reason: str = ""  # why there is no result

    def __str__(self) -> str:
        pair = f"{self.volume}: {self.codec} against {self.reference}"
        if self.result is None:
            return f"{pair}: {self.reason}"
        few = ", few" if self.result.points < MIN_POINTS else ""
        return (
            f"{pair}: {self.result.percent:+.1f} % bits at equal PSNR, {self.result.low:.1f} to "
            f"{self.result.high:.1f} dB ({self.result.points} and {self.result.reference_points} points{few})"
        )


@dataclass(frozen=True)
class Mean:
    """A mean over volumes with its bootstrap interval."""

    value: float
    low: float  # nan with fewer than two volumes
    high: float
    volumes: int

    def text(self, form: str = "+.1f") -> str:
        """Mean and interval, such as "-12.3 [-15.0, -9.1]"; "-" without volumes."""
        if not self.volumes:
            return "-"
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class RatesRead:
    """A file of other codecs' points: those that can be used, and what is wrong with the rest."""

    samples: tuple[Sample, ...]
    faults: tuple[str, ...]


def of_points(points: Iterable[Point]) -> list[Sample]:
    return [Sample(p.volume, p.roi, p.codec, p.bpv, p.psnr, p.ssim, p.maxerr) for p in points]


def read_csv(path: Path, shapes: dict[Place, tuple[int, ...]] | None = None) -> RatesRead:
    """Rows with the columns volume, roi, codec, bpv, psnr (inf if exact), and ssim and maxerr where they are there.

    With the `shapes` ([..., k, j, i]) of the volumes measured, rows of other volumes are dropped without a word, those
    of another shape (column `shape`) and lines that are no points are named once each, and so is a file that fits
    no volume. ValueError if columns are missing, UnicodeDecodeError or OSError if it can't be read.
    """
    samples: list[Sample] = []
    faults: list[str] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}"
            )
        try:
            for row in reader:
                found = _sample(row, f"{path}, line {reader.line_num}", shapes)
                if isinstance(found, Sample):
                    samples.append(found)
                elif found and found.partition(": ")[2] not in (
                    fault.partition(": ")[2] for fault in faults
                ):
                    faults.append(found)
        except csv.Error as error:
            faults.append(f"{path}, line {reader.line_num}: {error}")
    if not samples and not faults:
        faults.append(f"{path}: expected points of the volumes measured, found others only")
    return RatesRead(tuple(samples), tuple(faults))


def _sample(
    row: dict[str, str], place: str, shapes: dict[Place, tuple[int, ...]] | None
) -> Sample | str | None:
    """The point of a row, or what is wrong with it; None if it is of no concern."""
    volume, roi = row["volume"], row["roi"]
    if shapes is not None:
        if (volume, roi) not in shapes:
            return None
        shape = "x".join(map(str, shapes[volume, roi]))
        if row.get("shape") not in (None, "", shape):
            return f"{place}: {volume} {roi} is {shape} here, {row['shape']} there: another volume"
    try:
        bpv, psnr = float(row["bpv"]), float(row["psnr"])
        ssim, maxerr = (float(row.get(name) or "nan") for name in ("ssim", "maxerr"))
    except (ValueError, TypeError) as error:
        return f"{place}: expected numbers as bpv, psnr, ssim and maxerr ({error})"
    if not (bpv > 0 and psnr == psnr and row["codec"]):
        return f"{place}: expected a codec, bpv above 0 and a PSNR, found {row['codec']!r}, {bpv:g} and {psnr:g}"
    return Sample(volume, roi, row["codec"], bpv, psnr, ssim, maxerr)


def curves_by_place(samples: Iterable[Sample]) -> dict[Place, Curves]:
    """Points that are not exact, by volume and roi, then codec."""
    places: dict[Place, Curves] = {}
    for sample in samples:
        if math.isfinite(sample.psnr):
            places.setdefault((sample.volume, sample.roi), {}).setdefault(sample.codec, []).append(
                sample
            )
    return places


def bd_rows(
    samples: Iterable[Sample],
    rivals: Iterable[Sample],
    codecs: Sequence[str],
    references: Sequence[str],
    rates: dict[str, Range] | None = None,
) -> list[BdRow]:
    """Each of `codecs` against each of the `references`, wherever both have points; not against itself.

    Points of `samples` take precedence over those of the same codec in `rivals`. `rates`: for some references the
    bits per voxel whose PSNRs, on the reference's own curve, are the range.
    """
    measured, known = curves_by_place(samples), curves_by_place(rivals)
    rows = []
    for place, own in measured.items():
        curves = known.get(place, {}) | own
        for reference in references:
            for codec in codecs:
                if codec != reference and codec in curves and reference in curves:
                    rows.append(_bd_row(curves, codec, reference, (rates or {}).get(reference)))
    return rows


def _bd_row(curves: Curves, codec: str, reference: str, rates: Range | None) -> BdRow:
    volume = curves[codec][0].volume
    low, high = USUAL_PSNRS
    try:
        if rates is not None:
            low, high = bd_rate.psnr_range(*columns(curves[reference]), *rates)
        elif ANCHOR in curves:
            low, high = bd_rate.psnr_range(*columns(curves[ANCHOR]), *ANCHOR_RATES)
        if JPEG2000 in (codec, reference):
            low = max(low, MIN_PSNR)
        result = bd_rate.bd_rate(*columns(curves[codec]), *columns(curves[reference]), low, high)
    except ValueError as error:
        return BdRow(volume, codec, reference, None, str(error))
    return BdRow(volume, codec, reference, result)


def columns(curve: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Rates and PSNRs."""
    return [sample.bpv for sample in curve], [sample.psnr for sample in curve]


def bootstrap(values: Sequence[float]) -> Mean:
    """Mean, and the interval between the percentiles of the means of as many values drawn with replacement."""
    if not values:
        return Mean(math.nan, math.nan, math.nan, 0)
    numbers = np.asarray(values, np.float64)
    if len(numbers) == 1:
        return Mean(float(numbers[0]), math.nan, math.nan, 1)
    drawn = np.random.default_rng(0).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    rest = (100 - CONFIDENCE) / 2
    low, high = np.percentile(numbers[drawn].mean(1), (rest, 100 - rest)).tolist()
    return Mean(float(numbers.mean()), low, high, len(numbers))


def pairs(rows: Iterable[BdRow]) -> list[tuple[str, str]]:
    """(codec, reference), each once."""
    return list(dict.fromkeys((row.codec, row.reference) for row in rows))


def by_group(
    rows: Sequence[BdRow], pair: tuple[str, str], groups: Sequence[str], group_of: Group
) -> list[Mean]:
    """Mean BD-rate (percent) of a pair in each class, then over all volumes."""
    found = [
        (group_of(r.volume), r.result.percent)
        for r in rows
        if (r.codec, r.reference) == pair and r.result
    ]
    each = [bootstrap([percent for name, percent in found if name == group]) for group in groups]
    return [*each, bootstrap([percent for _, percent in found])]


def worst(rows: Sequence[BdRow], pair: tuple[str, str]) -> BdRow | None:
    """The volume on which a codec does worst against a reference."""
    found = [row for row in rows if (row.codec, row.reference) == pair and row.result is not None]
    return max(found, key=lambda row: row.result.percent if row.result else -math.inf, default=None)


def psnrs_at_rates(
    curves: dict[Place, Curves], codec: str, rates: Sequence[float]
) -> dict[Place, list[float]]:
    """PSNR (dB) of a codec at `rates` on every volume; nan where its curve does not reach."""
    found = {}
    for place, of_place in curves.items():
        if codec in of_place:
            try:
                found[place] = bd_rate.psnr_at(*columns(of_place[codec]), rates).tolist()
            except ValueError:  # fewer than 4 points
                continue
    return found


def mean_psnrs(
    samples: Iterable[Sample],
    codec: str,
    group: str | None,
    group_of: Group,
    rates: Sequence[float] = RATES,
) -> list[Mean]:
    """PSNR (dB) of a codec at each of `rates`, averaged over the volumes of a class (None: all) that reach it."""
    found = psnrs_at_rates(curves_by_place(samples), codec, rates)
    rows = [row for (volume, _), row in found.items() if group is None or group_of(volume) == group]
    return [bootstrap([row[n] for row in rows if math.isfinite(row[n])]) for n in range(len(rates))]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in _rows(heads, lines))


def _rows(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    yield heads
    yield ["---"] * len(heads)
    yield from lines
