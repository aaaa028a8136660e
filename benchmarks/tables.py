"""Tables (Markdown) from measured points and from the points of other codecs in CSV files.

BD-rate: on each volume directly between two codecs, Akima's spline on the logarithm of the rate, over the
PSNRs that x265 medium covers between 0.05 and 0.8 bits per voxel; against JPEG 2000 only from 25 dB up; then
averaged.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mricodec.codec import metrics
from mricodec.codec.rate_distortion import LEAST_POINTS, LEAST_PSNR, Jpeg2000, Point

ANCHOR = "x265-medium"
ANCHOR_RATES = (0.05, 0.8)  # bits per voxel
REFERENCES = (ANCHOR, "x265-veryslow", "vvenc-medium", Jpeg2000.name)
LOSSLESS_REFERENCE = "jxl-e7"

# Volumes by the beginning of their names: how much slices have in common differs from class to class.
CLASSES = {
    "near-isotropic": ("mri10yr", "saganon", "studyforrest"),
    "thick": ("openms", "sctms"),
    "DWI": ("dcmqacanon61", "dcmqauih"),
    "body": ("prostatex",),
}
OTHER = "other"

_COLUMNS = ("volume", "roi", "codec", "bpv", "psnr")


@dataclass(frozen=True)
class Sample:
    """What the tables need of a point."""

    volume: str
    roi: str
    codec: str
    bpv: float
    psnr: float  # dB; inf if exact


@dataclass(frozen=True)
class BdRow:
    volume: str
    codec: str
    reference: str
    result: metrics.BdRate | None
    reason: str = ""  # why there is no result


Curves = dict[str, list[Sample]]  # by codec


def of_points(points: Iterable[Point]) -> list[Sample]:
    return [Sample(p.volume, p.roi, p.codec, p.bpv, p.psnr) for p in points]


def read_csv(path: Path) -> list[Sample]:
    """Rows with the columns volume, roi, codec, bpv, psnr. ValueError says what is wrong with the file."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}"
            )
        samples = []
        for row in reader:
            try:
                bpv, psnr = float(row["bpv"]), float(row["psnr"])
            except (ValueError, TypeError) as error:
                place = f"{path}, line {reader.line_num}"
                raise ValueError(f"{place}: expected numbers as bpv and psnr ({error})") from error
            samples.append(Sample(row["volume"], row["roi"], row["codec"], bpv, psnr))
        return samples


def class_of(volume: str) -> str:
    return next((name for name, starts in CLASSES.items() if volume.startswith(starts)), OTHER)


def bd_rates(samples: Iterable[Sample], rivals: Iterable[Sample]) -> list[BdRow]:
    """Every measured lossy codec against every reference with points on the same volume and roi.

    A measured codec takes precedence over one of the same name in `rivals`.
    """
    measured = _by_place(samples)
    known = _by_place(rivals)
    rows = []
    for place, curves in measured.items():
        everything = known.get(place, {}) | curves
        for reference in REFERENCES:
            if reference in everything:
                rows += [_bd_row(everything, codec, reference) for codec in curves if codec != reference]
    return rows


def summary(points: Iterable[Point], rivals: Sequence[Sample]) -> str:
    """All tables; "" without points."""
    samples = of_points(points)
    rows = bd_rates(samples, rivals)
    parts = []
    if rows:
        rates = f"{ANCHOR_RATES[0]} to {ANCHOR_RATES[1]} bpv"
        parts.append(f"BD-rate in % over the PSNRs that {ANCHOR} covers at {rates}, where it is known")
        parts += [_by_class(rows), _by_volume(rows)]
    if lossless := _lossless(samples, rivals):
        parts += ["Lossless, bits per voxel; codecs with all volumes", lossless]
    return "\n\n".join(parts)


def _by_place(samples: Iterable[Sample]) -> dict[tuple[str, str], Curves]:
    """Lossy points by volume and roi."""
    places: dict[tuple[str, str], Curves] = {}
    for sample in samples:
        if math.isfinite(sample.psnr):
            places.setdefault((sample.volume, sample.roi), {}).setdefault(sample.codec, []).append(sample)
    return places


def _bd_row(curves: Curves, codec: str, reference: str) -> BdRow:
    volume = curves[codec][0].volume
    low, high = -math.inf, math.inf
    try:
        if ANCHOR in curves:
            low, high = metrics.psnr_range(*_columns(curves[ANCHOR]), *ANCHOR_RATES)
        if Jpeg2000.name in (codec, reference):
            low = max(low, LEAST_PSNR)
        result = metrics.bd_rate(*_columns(curves[codec]), *_columns(curves[reference]), low, high)
    except ValueError as error:
        return BdRow(volume, codec, reference, None, str(error))
    return BdRow(volume, codec, reference, result)


def _columns(curve: Sequence[Sample]) -> tuple[list[float], list[float]]:
    return [sample.bpv for sample in curve], [sample.psnr for sample in curve]


def _by_class(rows: Sequence[BdRow]) -> str:
    classes = [*CLASSES, OTHER]
    lines = []
    for pair in dict.fromkeys((row.codec, row.reference) for row in rows):
        percents: dict[str, list[float]] = {name: [] for name in classes}
        for row in rows:
            if (row.codec, row.reference) == pair and row.result is not None:
                percents[class_of(row.volume)].append(row.result.percent)
        every = [percent for values in percents.values() for percent in values]
        lines.append([*pair, *(_mean(percents[name]) for name in classes), _mean(every), str(len(every))])
    return _markdown(["codec", "against", *classes, "mean", "volumes"], lines)


def _by_volume(rows: Sequence[BdRow]) -> str:
    lines = []
    for row in rows:
        cells = ["-", row.reason, "", ""]
        if (found := row.result) is not None:
            few = " (few)" if found.points < LEAST_POINTS else ""
            span = f"{found.low:.1f} to {found.high:.1f}"
            cells = [f"{found.percent:+.1f}", span, f"{found.points}{few}", str(found.reference_points)]
        lines.append([row.volume, row.codec, row.reference, *cells])
    return _markdown(["volume", "codec", "against", "%", "common range, dB", "points", "its points"], lines)


def _lossless(samples: Iterable[Sample], rivals: Iterable[Sample]) -> str:
    """Whole volumes only; "" if none was measured."""
    measured = [sample for sample in samples if sample.psnr == math.inf and sample.roi == "full"]
    volumes = sorted({sample.volume for sample in measured})
    rates: dict[str, dict[str, float]] = {}
    for sample in (*rivals, *measured):  # measured ones last: they take precedence
        if sample.psnr == math.inf and sample.roi == "full" and sample.volume in volumes:
            rates.setdefault(sample.codec, {})[sample.volume] = sample.bpv
    means = {codec: sum(r.values()) / len(r) for codec, r in rates.items() if len(r) == len(volumes)}
    if not volumes:
        return ""
    reference = means.get(LOSSLESS_REFERENCE)
    lines = []
    for codec in sorted(means, key=means.__getitem__):
        relative = "-" if reference is None else f"{100 * (means[codec] / reference - 1):+.1f} %"
        each = [f"{rates[codec][volume]:.3f}" for volume in volumes]
        lines.append([codec, f"{means[codec]:.3f}", relative, *each])
    return _markdown(["codec", "mean", f"to {LOSSLESS_REFERENCE}", *volumes], lines)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):+.1f}" if values else "-"


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
