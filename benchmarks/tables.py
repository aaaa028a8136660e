"""What the points say, as tables in Markdown: bits at equal PSNR, the default quality, lossless sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from mricodec.codec.evaluation import aggregate, bd_rate
from mricodec.codec.evaluation.aggregate import (
    ANCHOR,
    ANCHOR_RATES,
    JPEG2000,
    BdRow,
    Mean,
    markdown,
)
from mricodec.codec.evaluation.codecs import MricodecLossless
from mricodec.codec.evaluation.points import RdPoint, rd_points
from mricodec.codec.evaluation.rate_distortion import MIN_POINTS, Point
from mricodec.codec.voxels.metrics import Range
from mricodec.codec.voxels.quality import DEFAULT_QUALITY

OWN = "mricodec"  # how the names of this project's codecs begin
REFERENCES = (ANCHOR, "x265-veryslow", "vvenc-medium", JPEG2000)
HIGH_RATES = (0.8, 1.6)  # bits per voxel of JPEG 2000, a range of its own
WORST_PSNRS = (28.0, 52.0)  # dB between which no volume may need more bits than JPEG 2000
LOSSLESS_REFERENCE = "jxl-e7"

NEAR_ISOTROPIC, THICK, DIFFUSION, BODY = "near-isotropic", "thick slices", "diffusion", "body"
CLASSES = {
    "mri10yr": NEAR_ISOTROPIC, "saganon": NEAR_ISOTROPIC, "studyforrest": NEAR_ISOTROPIC,
    "openms": THICK, "sctms": THICK,
    "dcmqacanon61": DIFFUSION, "dcmqauih": DIFFUSION,
    "prostatex": BODY,
}  # fmt: skip
_OF_GEOMETRY = {"4-D": DIFFUSION}  # other names of `rate_distortion.group_of`


def classes(points: Iterable[Point]) -> dict[str, str]:
    """The class of each volume: by the beginning of its name, or of the scan's geometry for a name that is not known."""
    return {
        p.volume: CLASSES.get(p.volume.partition("_")[0], _OF_GEOMETRY.get(p.group, p.group))
        for p in points
    }


def summary(points: Sequence[Point], rivals: Sequence[RdPoint] = ()) -> str:
    """All tables that the points allow; `rivals` are points of codecs that were not run, lossless ones among them."""
    samples = rd_points(points)
    finite = [point for point in points if math.isfinite(point.psnr)]
    codecs = list(dict.fromkeys(point.codec for point in finite if point.codec.startswith(OWN)))
    of_volume = classes(points)
    parts = []
    if codecs:
        rows = aggregate.bd_rows(samples, rivals, codecs, REFERENCES)
        high = aggregate.bd_rows(samples, rivals, codecs, [JPEG2000], {JPEG2000: HIGH_RATES})
        low, top = ANCHOR_RATES
        parts += [
            f"Bits at equal PSNR, % (negative: fewer), over the PSNRs of {ANCHOR} at {low:g} to {top:g} bits per voxel; "
            f"{aggregate.CONFIDENCE:g} % bootstrap intervals over the volumes",
            by_class(rows, of_volume),
            f"The same against {JPEG2000} alone, at its {HIGH_RATES[0]:g} to {HIGH_RATES[1]:g} bits per voxel",
            by_class(high, of_volume),
        ]
        for codec in codecs:
            parts += [
                f"{codec}, every volume",
                by_volume(samples, rivals, codec, rows, high, of_volume),
            ]
        parts += [f"Default quality, {DEFAULT_QUALITY:g}", default_quality(finite, of_volume)]
    lossless = lossless_table([*samples, *rivals])
    if lossless:
        parts += ["Lossless, bits per voxel of whole volumes", lossless]
    return "\n\n".join(part for part in parts if part) or "no points"


def by_class(rows: Sequence[BdRow], of_volume: dict[str, str]) -> str:
    """A line for each pair of codecs: means of the classes and of all volumes, and the worst of these."""
    if not rows:
        return "no pair of codecs has points on the same volume"
    groups = _ordered(of_volume[row.volume] for row in rows)
    lines = []
    for pair in aggregate.pairs(rows):
        *each, every = aggregate.class_means(rows, pair, groups, of_volume)
        named = aggregate.worst_case(rows, pair)
        lines.append([*pair, *map(Mean.text, each), every.text(), str(every.volumes), named])
    return markdown(["codec", "against", *groups, "mean", "volumes", "worst"], lines)


def by_volume(
    samples: Sequence[RdPoint], rivals: Sequence[RdPoint], codec: str,
    rows: Sequence[BdRow], high: Sequence[BdRow], of_volume: dict[str, str],
) -> str:  # fmt: skip
    """BD-rates of a codec; "*": fewer than 8 of its points in the range. Where it does worst beside JPEG 2000."""
    own = {row.volume: row for row in high if row.codec == codec}
    references = [
        name
        for name in REFERENCES
        if any(row.reference == name and row.codec == codec for row in rows)
    ]
    worst = excesses(samples, rivals, codec)
    low, top = WORST_PSNRS
    lines = []
    for volume, group in of_volume.items():
        of_pair = {row.reference: row for row in rows if (row.volume, row.codec) == (volume, codec)}
        if not of_pair and volume not in worst:
            continue
        first = next((row.result for row in of_pair.values() if row.result), None)
        span = f"{first.low:.1f} to {first.high:.1f} ({first.points})" if first else "-"
        found = [_percent(of_pair.get(name)) for name in references]
        excess = "{:+.1f} at {:.1f} dB".format(*worst[volume]) if volume in worst else "-"
        lines.append([volume, group, span, *found, _percent(own.get(volume)), excess])
    last = [
        f"{JPEG2000} at {HIGH_RATES[0]:g} to {HIGH_RATES[1]:g}",
        f"most against {JPEG2000}, {low:g} to {top:g} dB",
    ]
    table = markdown(["volume", "class", "common range, dB (points)", *references, *last], lines)
    worse = [volume for volume, (percent, _) in worst.items() if percent > 0]
    if not worst:
        return table
    return f"{table}\n\nWorse than {JPEG2000} somewhere between {low:g} and {top:g} dB: {', '.join(worse) or 'nowhere'}"


def excesses(
    samples: Iterable[RdPoint], rivals: Iterable[RdPoint], codec: str, psnrs: Range = WORST_PSNRS
) -> dict[str, tuple[float, float]]:
    """By volume, the most bits that a codec needs more than JPEG 2000 at any PSNR of the range: (percent, dB)."""
    known = aggregate.curves_by_region(rivals)
    found = {}
    for region, measured in aggregate.curves_by_region(samples).items():
        curves = known.get(region, {}) | measured
        if codec in curves and JPEG2000 in curves:
            own, reference = (aggregate.columns(curves[name]) for name in (codec, JPEG2000))
            try:
                found[region[0]] = bd_rate.largest_excess(*own, *reference, *psnrs)
            except ValueError:  # too few points, nothing in common
                continue
    return found


def default_quality(points: Iterable[Point], of_volume: dict[str, str]) -> str:
    """Rate and error at the default quality, and their range."""
    found = [p for p in points if p.param == DEFAULT_QUALITY and p.codec.startswith(OWN)]
    lines = [
        [
            p.volume,
            of_volume[p.volume],
            p.codec,
            f"{p.bpv:.3f}",
            f"{p.psnr:.2f}",
            f"{p.ssim:.4f}",
            f"{p.rmse_noise:.3f}",
        ]
        for p in found
    ]
    for codec in dict.fromkeys(p.codec for p in found):
        for title, pick in _EXTREMES.items():
            each = (
                [getattr(p, name) for p in found if p.codec == codec]
                for name in ("bpv", "psnr", "ssim", "rmse_noise")
            )
            cells = [
                f"{pick(values):{form}}"
                for values, form in zip(each, (".3f", ".2f", ".4f", ".3f"), strict=True)
            ]
            lines.append([title, "", codec, *cells])
    return (
        markdown(["volume", "class", "codec", "bpv", "PSNR", "SSIM", "RMSE/noise"], lines)
        if found
        else ""
    )


_EXTREMES: dict[str, Callable[[Iterable[float]], float]] = {"least": min, "most": max}


def lossless_table(samples: Iterable[RdPoint]) -> str:
    """Bits per voxel on the volumes that `MricodecLossless` has, of the codecs that have all of them, smallest mean first.

    "" without volumes. Files of lossy codecs that happen to be exact do not count.
    """
    rates: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample.roi == "full" and math.isinf(sample.psnr):
            rates.setdefault(sample.codec, {}).setdefault(sample.volume, sample.bpv)
    names = sorted(rates.get(MricodecLossless.name, ()))
    rates = {
        codec: of
        for codec, of in rates.items()
        if codec == MricodecLossless.name or not codec.startswith(OWN)
    }
    whole = {
        codec: [of[name] for name in names]
        for codec, of in rates.items()
        if all(name in of for name in names)
    }
    if not names or not whole:
        return ""
    means = {codec: sum(of) / len(of) for codec, of in whole.items()}
    reference = means.get(LOSSLESS_REFERENCE)
    lines = []
    for codec, mean in sorted(means.items(), key=lambda item: item[1]):
        relative = f"{100 * (mean / reference - 1):+.1f} %" if reference else "-"
        lines.append([codec, f"{mean:.3f}", relative, *(f"{rate:.3f}" for rate in whole[codec])])
    return markdown(["codec", "mean", f"to {LOSSLESS_REFERENCE}", *names], lines)


def _ordered(groups: Iterable[str]) -> list[str]:
    """Each once, the usual ones first."""
    there = set(groups)
    usual = [group for group in (NEAR_ISOTROPIC, THICK, DIFFUSION, BODY) if group in there]
    return usual + sorted(there.difference(usual))


def _percent(row: BdRow | None) -> str:
    if row is None or row.result is None:
        return "-"
    return f"{row.result.percent:+.1f}" + ("*" if row.result.points < MIN_POINTS else "")
