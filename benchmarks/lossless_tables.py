"""Tables of lossless and near-lossless coding in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mricodec.codec.evaluation.aggregate import markdown
from mricodec.codec.evaluation.points import RdPoint, rd_points
from mricodec.codec.evaluation.rate_distortion import Point

# The lossless codec that sizes are relative to.
REFERENCE = "jxl-e7"
# The near-lossless baseline that sizes are relative to, and how the names of its kind begin.
NEAR_REFERENCE, QUANTISED = "quant+jxl-e7", "quant+"
# Largest errors of near-lossless coding, stored units.
ERRORS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Bytes of a stored voxel, by which speeds are counted.
VOXEL_BYTES = 2


def lossless(samples: Iterable[RdPoint], required: str) -> str:
    """Bits per voxel on the volumes that the codec `required` has, smallest mean first.

    Only codecs that have all of these volumes are shown; "" without volumes.
    """
    rates: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample.roi == "full" and math.isinf(sample.psnr):
            rates.setdefault(sample.codec, {}).setdefault(sample.volume, sample.bpv)
    volumes = sorted(rates.get(required, ()))
    complete = {
        codec: [of_codec[volume] for volume in volumes]
        for codec, of_codec in rates.items()
        if all(volume in of_codec for volume in volumes)
    }
    if not volumes:
        return ""
    means = {codec: sum(values) / len(values) for codec, values in complete.items()}
    reference = means.get(REFERENCE)
    lines = []
    for codec, mean in sorted(means.items(), key=lambda item: item[1]):
        relative = f"{100 * (mean / reference - 1):+.1f} %" if reference else "-"
        cells = [f"{rate:.3f}" for rate in complete[codec]]
        lines.append([codec, f"{mean:.3f}", relative, *cells])
    return markdown(["codec", "mean", f"to {REFERENCE}", *volumes], lines)


def efforts(points: Sequence[Point], known: Sequence[RdPoint]) -> str:
    """Mean size and speed of codecs that were timed, over the volumes that the reference has."""
    timed = [p for p in points if p.roi == "full" and p.exact]
    references = {s.volume: s.bpv for s in known if s.codec == REFERENCE and s.roi == "full"}
    lines = []
    for codec in dict.fromkeys(p.codec for p in timed):
        of_codec = [p for p in timed if p.codec == codec and p.volume in references]
        if not of_codec:
            continue
        mean = np.mean([p.bpv for p in of_codec])
        relative = mean / np.mean([references[p.volume] for p in of_codec]) - 1
        megabytes = sum(VOXEL_BYTES * p.nvox for p in of_codec) / 1e6
        speeds = [
            f"{megabytes / sum(times):.1f}"
            for times in ([p.enc_wall for p in of_codec], [p.dec_wall for p in of_codec])
        ]
        cells = [str(len(of_codec)), f"{mean:.3f}", f"{100 * relative:+.1f} %"]
        lines.append([codec, *cells, *speeds])
    heads = ["codec", "volumes", "mean bpv", f"to {REFERENCE} on them", "MB/s encode", "decode"]
    return markdown(heads, lines)


def near_lossless(points: Sequence[Point], known: Sequence[RdPoint], codec: str) -> str:
    """Mean bits per voxel and PSNR at each largest error, and where a baseline is smaller."""
    reference = {
        (s.volume, s.roi, s.param): s for s in known if s.codec == NEAR_REFERENCE and s.param >= 1
    }
    lines = []
    for error in ERRORS:
        ours = {
            (p.volume, p.roi, error): p
            for p in points
            if p.codec == codec and p.param == error and (p.volume, p.roi, error) in reference
        }
        if not ours:
            continue
        theirs = [reference[key] for key in ours]
        smaller = [
            f"{s.volume} ({s.codec})"
            for s in known
            if (point := ours.get((s.volume, s.roi, s.param))) is not None
            and not s.codec.startswith(QUANTISED)
            and s.bpv <= point.bpv
        ]
        bpv, psnr = _means(rd_points(ours.values()))
        their_bpv, their_psnr = _means(theirs)
        saved = f"{100 * (1 - bpv / their_bpv):.1f} %"
        cells = [f"{bpv:.3f}", f"{psnr:.2f}", f"{their_bpv:.3f}", f"{their_psnr:.2f}", saved]
        lines.append([f"{error:g}", str(len(ours)), *cells, ", ".join(smaller) or "none"])
    heads = ["largest error", "volumes", "bpv", "PSNR", NEAR_REFERENCE, "PSNR", "fewer bits"]
    return markdown([*heads, "another baseline is smaller on"], lines)


def _means(samples: Sequence[RdPoint]) -> tuple[float, float]:
    """Bits per voxel and PSNR."""
    return float(np.mean([s.bpv for s in samples])), float(np.mean([s.psnr for s in samples]))


def layers(points: Sequence[Point]) -> str:
    """What a lossy layer inside a lossless stream costs."""
    rates = {(p.volume, p.codec): p.bpv for p in points if p.roi == "full" and p.exact}
    lines = []
    for volume, codec in sorted(rates):
        direct = rates.get((volume, "mricodec-default"))
        if codec == "mricodec-layers" and direct:
            layered = rates[volume, codec]
            more = f"{100 * (layered / direct - 1):+.1f} %"
            lines.append([volume, f"{layered:.3f}", f"{direct:.3f}", more])
    return markdown(["volume", "with a lossy layer, bpv", "without", "difference"], lines)


def series_4d(points: Sequence[Point]) -> str:
    """Whole 4-D scans against their volumes one by one."""
    rates = {(p.volume, p.codec): p.bpv for p in points if p.roi == "4d"}
    lines = []
    for volume in sorted({volume for volume, _ in rates}):
        whole, alone = rates.get((volume, "mricodec-default")), rates.get((volume, "volumes-alone"))
        if whole and alone:
            saved = f"{100 * (1 - whole / alone):.1f} %"
            lines.append([volume, f"{whole:.3f}", f"{alone:.3f}", saved])
    return markdown(["4-D scan", "whole, bpv", "its volumes alone", "fewer bits"], lines)
