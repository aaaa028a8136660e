"""Tables of lossy curves in Markdown: bits at equal PSNR, every volume, the default quality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mricodec.codec.evaluation import aggregate, bd_rate
from mricodec.codec.evaluation.aggregate import (
    ANCHOR,
    ANCHOR_RATES,
    FEW_POINTS_NOTE,
    JPEG2000,
    BdRow,
    Mean,
    markdown,
)
from mricodec.codec.evaluation.points import RdPoint, rd_points
from mricodec.codec.evaluation.rate_distortion import Point
from mricodec.codec.voxels.metrics import Range
from mricodec.codec.voxels.quality import DEFAULT_QUALITY

# How the names of this project's codecs begin; the default model has this name.
PROJECT = "mricodec"
# Codecs that BD-rates are computed against.
REFERENCES = (ANCHOR, "x265-veryslow", "svtav1-p5", "vvenc-medium", JPEG2000)
# Codecs whose rates are shown at the PSNR of the default quality.
AT_EQUAL_PSNR = (*REFERENCES, "htj2k", "jp3d-nz3", "sperr")
# A range of JPEG 2000's rates (bits per voxel) at which it is compared separately.
HIGH_RATES = (0.8, 1.6)
# PSNRs (dB) between which no volume may need more bits than JPEG 2000.
EXCESS_PSNRS = (28.0, 52.0)

NEAR_ISOTROPIC, THICK, DIFFUSION, BODY = "near-isotropic", "thick slices", "diffusion", "body"
# Class of a volume by the beginning of its name.
CLASSES = {
    "mri10yr": NEAR_ISOTROPIC,
    "saganon": NEAR_ISOTROPIC,
    "studyforrest": NEAR_ISOTROPIC,
    "openms": THICK,
    "sctms": THICK,
    "dcmqacanon61": DIFFUSION,
    "dcmqauih": DIFFUSION,
    "prostatex": BODY,
}
# Classes by geometry (`rate_distortion.group_of`) that have another name here.
_OF_GEOMETRY = {"4-D": DIFFUSION}


def classes(points: Iterable[Point]) -> dict[str, str]:
    """The class of each volume: by its name, else by its geometry."""
    return {
        p.volume: CLASSES.get(p.volume.partition("_")[0], _OF_GEOMETRY.get(p.group, p.group))
        for p in points
    }


# Figures of a point that the last line of the table of the default quality averages.
_AVERAGED = ("bpv", "psnr", "rmse_noise")


@dataclass(frozen=True)
class LossyTables:
    """Lossy points of this project and of baselines on the same volumes."""

    points: Sequence[Point]
    # Points of baselines that were measured elsewhere.
    known: Sequence[RdPoint]
    # Codecs of this project that are compared with the baselines.
    codecs: Sequence[str]

    @classmethod
    def of(cls, points: Sequence[Point], known: Sequence[RdPoint]) -> LossyTables:
        """Of all codecs of this project that have lossy points."""
        names = (p.codec for p in points if math.isfinite(p.psnr))
        return cls(points, known, list(dict.fromkeys(n for n in names if n.startswith(PROJECT))))

    @cached_property
    def classes(self) -> dict[str, str]:
        return classes(self.points)

    @cached_property
    def samples(self) -> list[RdPoint]:
        return rd_points(self.points)

    @cached_property
    def curves(self) -> dict[tuple[str, str], aggregate.Curves]:
        """Curves of every codec by region; points measured here take precedence."""
        known = aggregate.curves_by_region(self.known)
        measured = aggregate.curves_by_region(self.samples)
        return {region: known.get(region, {}) | curves for region, curves in measured.items()}

    @cached_property
    def rows(self) -> list[BdRow]:
        return aggregate.bd_rows(self.samples, self.known, self.codecs, REFERENCES)

    @cached_property
    def high_rows(self) -> list[BdRow]:
        """Against JPEG 2000 at HIGH_RATES."""
        rates = {JPEG2000: HIGH_RATES}
        return aggregate.bd_rows(self.samples, self.known, self.codecs, [JPEG2000], rates)

    def by_class(self) -> str:
        """Means of the classes against every reference, and once more at high rates."""
        low, high = ANCHOR_RATES
        parts = [
            f"Bits at equal PSNR in percent (negative: fewer), over the PSNRs of {ANCHOR} at "
            f"{low:g} to {high:g} bits per voxel; in brackets {aggregate.CONFIDENCE:g} % bootstrap "
            f"intervals over the volumes where there are at least {aggregate.MIN_VOLUMES}; "
            f"{FEW_POINTS_NOTE}.",
            by_class(self.rows, self.classes),
            f"Against {JPEG2000} at its {HIGH_RATES[0]:g} to {HIGH_RATES[1]:g} bits per voxel:",
            by_class(self.high_rows, self.classes),
        ]
        return "\n\n".join(parts)

    def by_volume(self, codec: str) -> str:
        """BD-rates of a codec on every volume, and where it is worst against JPEG 2000."""
        references = [r for r in REFERENCES if (codec, r) in aggregate.pairs(self.rows)]
        high = {row.volume: row for row in self.high_rows if row.codec == codec}
        excess = self.excesses(codec)
        lines = []
        for volume, group in self.classes.items():
            rows = {r.reference: r for r in self.rows if (r.volume, r.codec) == (volume, codec)}
            if rows or volume in excess:
                cells = [_percent(rows.get(reference)) for reference in references]
                span = _common_range(list(rows.values()))
                largest = "{:+.1f} at {:.1f} dB".format(*excess.get(volume, (math.nan, math.nan)))
                cells = [*cells, _percent(high.get(volume)), largest.replace("nan at nan dB", "-")]
                lines.append([volume, group, span, *cells])
        low, top = EXCESS_PSNRS
        heads = [
            "volume",
            "class",
            "common range, dB (points)",
            *references,
            f"{JPEG2000} at {HIGH_RATES[0]:g} to {HIGH_RATES[1]:g} bpv",
            f"largest against {JPEG2000}, {low:g} to {top:g} dB",
        ]
        worse = [volume for volume, (percent, _) in excess.items() if percent > 0]
        sentence = (
            f"\n\nMore bits than {JPEG2000} somewhere between {low:g} and {top:g} dB: "
            f"{', '.join(worse) or 'nowhere'}."
        )
        return markdown(heads, lines) + (sentence if excess else "")

    def excesses(self, codec: str, psnrs: Range = EXCESS_PSNRS) -> dict[str, tuple[float, float]]:
        """By volume, the largest difference of rate to JPEG 2000: (percent, dB)."""
        excess = {}
        for (volume, _), curves in self.curves.items():
            if codec in curves and JPEG2000 in curves:
                pair = (aggregate.columns(curves[name]) for name in (codec, JPEG2000))
                (rates, values), (reference_rates, reference_values) = pair
                try:
                    excess[volume] = bd_rate.largest_excess(
                        rates, values, reference_rates, reference_values, *psnrs
                    )
                except ValueError:  # Too few points, or no common range.
                    continue
        return excess

    def default_quality(self) -> str:
        """Every volume at the default quality, and the rates of other codecs at that PSNR."""
        points = [p for p in self.points if (p.codec, p.param) == (PROJECT, DEFAULT_QUALITY)]
        if not points:
            return ""
        rates = [self._rates_at(point) for point in points]
        codecs = [name for name in AT_EQUAL_PSNR if any(math.isfinite(r[name]) for r in rates)]
        lines = []
        for point, others in zip(points, rates, strict=True):
            cells = [f"{point.bpv:.3f}", f"{point.psnr:.2f}", f"{point.rmse_noise:.2f}"]
            shown = (_number(others[name], ".3f") for name in codecs)
            lines.append([point.volume, self.classes[point.volume], *cells, *shown])
        means = [float(np.mean([getattr(p, name) for p in points])) for name in _AVERAGED]
        cells = [f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:.2f}"]
        ratios = [
            [r[name] / p.bpv for p, r in zip(points, rates, strict=True) if r[name] > 0]
            for name in codecs
        ]
        shown = (f"× {np.mean(ratio):.2f} ({len(ratio)})" for ratio in ratios)
        lines.append(["mean; of the others the mean ratio (volumes)", "", *cells, *shown])
        heads = ["volume", "class", f"{PROJECT}, bpv", "PSNR, dB", "RMSE/noise", *codecs]
        return markdown(heads, lines)

    def _rates_at(self, point: Point) -> dict[str, float]:
        """Bits per voxel of every codec at the PSNR of a point; nan beyond its curve."""
        curves = self.curves[point.volume, point.roi]
        rates = dict.fromkeys(AT_EQUAL_PSNR, math.nan)
        for codec in AT_EQUAL_PSNR:
            if codec in curves:
                try:
                    columns = aggregate.columns(curves[codec])
                    rates[codec] = float(bd_rate.rate_at(*columns, [point.psnr])[0])
                except ValueError:  # The curve has fewer than 4 points.
                    continue
        return rates


def by_class(rows: Sequence[BdRow], of_volume: dict[str, str]) -> str:
    """A line for each pair of codecs: means of the classes and of all volumes, the worst volume."""
    if not rows:
        return "No pair of codecs has points on the same volume."
    groups = _ordered(of_volume[row.volume] for row in rows)
    counts = {row.volume: of_volume[row.volume] for row in rows}
    lines = []
    for pair in aggregate.pairs(rows):
        *each, every = aggregate.class_means(rows, pair, groups, of_volume)
        worst = aggregate.worst_case(rows, pair)
        lines.append([*pair, *map(Mean.text, each), every.text(), str(every.volumes), worst])
    heads = [f"{group} ({list(counts.values()).count(group)})" for group in groups]
    return markdown(["codec", "against", *heads, "mean", "volumes", "worst volume"], lines)


def ablation(points: Sequence[Point], known: Sequence[RdPoint], codecs: Sequence[str]) -> str:
    """Each step against the one before it, the anchor and JPEG 2000; then what each costs."""
    samples = rd_points(points)
    rows: list[BdRow] = []
    for before, codec in zip([None, *codecs], codecs, strict=False):
        references = [name for name in (before, ANCHOR, JPEG2000) if name is not None]
        rows += aggregate.bd_rows(samples, known, [codec], references)
    lines = []
    for codec in codecs:
        curve = [point for point in points if point.codec == codec]
        if curve:
            kmacs = [f"{curve[0].kmac_enc:.1f}", f"{curve[0].kmac_dec:.1f}"]
            encode = np.mean([p.enc_wall / p.nvox * 1e6 for p in curve])
            decode = np.mean([p.dec_wall / p.nvox * 1e6 for p in curve])
            lines.append([codec, *kmacs, f"{encode:.2f}", f"{decode:.2f}"])
    heads = [
        "codec",
        "kMAC per voxel, encoder",
        "decoder",
        "encode, s per million voxels",
        "decode",
    ]
    return by_class(rows, classes(points)) + "\n\n" + markdown(heads, lines)


def _common_range(rows: Sequence[BdRow]) -> str:
    """Common range with the first reference, and the points of the codec in it."""
    first = next((row.result for row in rows if row.result), None)
    return f"{first.low:.1f} to {first.high:.1f} ({first.points})" if first else "-"


def _ordered(groups: Iterable[str]) -> list[str]:
    """Each once, the usual ones first."""
    present = set(groups)
    usual = [group for group in (NEAR_ISOTROPIC, THICK, DIFFUSION, BODY) if group in present]
    return usual + sorted(present.difference(usual))


def _percent(row: BdRow | None) -> str:
    return "-" if row is None else row.percent()


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"
