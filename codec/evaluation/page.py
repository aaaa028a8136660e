"""The report of `rd-curve` as one HTML page that needs nothing else: plots, tables, pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import comparison
from .comparison import BdRow, Sample
from .rate_distortion import Point, Source

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
th { background: #f6f6f6; position: sticky; top: 0 } th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto } img { max-width: 100%; height: auto } .note { color: #555; font-size: 13px }
.long { display: inline-block; white-space: normal; max-width: 24rem; text-align: left }
.good { color: #00693e } .bad { color: #a8201a } summary { cursor: pointer; margin: .5rem 0 }
"""


@dataclass(frozen=True)
class Document:
    """What the page shows."""

    points: Sequence[Point]
    others: Sequence[Sample]
    rows: Sequence[BdRow]
    left_out: Sequence[str]
    pictures: Sequence[tuple[str, bytes]]  # volume, PNG
    environment: dict[str, str]
    groups: dict[str, str] = field(default_factory=dict)  # the class of each volume


def render(document: Document, plots: Sequence[Path]) -> str:
    """The page; `plots` are SVG files, which become part of it."""
    samples = [*comparison.of_points(document.points), *document.others]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>Rate and distortion</title>",
        f"<style>{_STYLE}</style></head><body><h1>Rate and distortion</h1>",
        _note("; ".join(f"{name} {value}" for name, value in document.environment.items())),
    ]
    if document.left_out:
        parts += [
            "<h2>Left out</h2><ul>",
            *(f"<li>{escape(line)}</li>" for line in document.left_out),
            "</ul>",
        ]
    if document.rows:
        parts += ["<h2>Bits at equal PSNR</h2>", _bd_by_class(document), _note(_BD_NOTE)]
    parts.append("<h2>Curves</h2>")
    parts += [
        f"<p><img alt='{plot.stem}' src='{_data('svg+xml', plot.read_bytes())}'></p>"
        for plot in plots
    ]
    parts += ["<h2>PSNR at equal rate</h2>", _psnrs(samples, document.groups), _note(_PSNR_NOTE)]
    parts += ["<h2>Time and size of the codecs</h2>", _costs(document.points), _note(_COST_NOTE)]
    if document.pictures:
        parts += ["<h2>Pictures</h2>", _note(_PICTURE_NOTE)]
        for volume, png in document.pictures:
            parts.append(
                f"<p>{escape(volume)}<br><img alt='{escape(volume)}' src='{_data('png', png)}'></p>"
            )
    if document.rows:
        parts += [
            "<h2>Every volume</h2>",
            _details("Bits at equal PSNR", _bd_by_volume(document.rows)),
        ]
    for volume in dict.fromkeys(point.volume for point in document.points):
        parts.append(
            _details(
                f"{volume}: all points", _points([p for p in document.points if p.volume == volume])
            )
        )
    parts += ["<h2>What is measured</h2>", _note(_DEFINITIONS), "</body></html>"]
    return "\n".join(parts)


def pictures(source: Source, decoded: Sequence[tuple[Point, NDArray[Any]]]) -> bytes:
    """PNG: for each point the middle slice of the volume, what is decoded, and the error."""
    from matplotlib.figure import Figure

    def middle(voxels: NDArray[Any]) -> NDArray[np.float64]:
        slices = voxels.reshape(-1, *((1, 1, *voxels.shape)[-2:]))
        return np.asarray(slices[len(slices) // 2], np.float64)

    original = middle(source.voxels)
    low, high = source.windows.full
    errors = [middle(voxels) - original for _, voxels in decoded]
    largest = max(float(np.percentile(np.abs(errors[len(errors) // 2]), 99.8)), 1e-9)
    ratio = min(max(original.shape[0] / original.shape[1], 0.4), 2.0)
    figure = Figure(figsize=(10, (3.2 * ratio + 0.3) * len(decoded)), layout="constrained")
    panels = figure.subplots(len(decoded), 3, squeeze=False)
    for row, (point, voxels), error in zip(panels, decoded, errors, strict=True):
        for panel, image, title in (
            (row[0], original, "original"),
            (
                row[1],
                middle(voxels),
                f"{point.codec}: {point.bpv:.3f} bits per voxel, {point.psnr:.1f} dB",
            ),
        ):
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            panel.set_title(title, fontsize=9)
        shown = row[2].imshow(error, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower")
        row[2].set_title(f"error, stored units; RMSE {point.rmse:.3g}", fontsize=9)
        figure.colorbar(shown, ax=row[2], shrink=0.8)
        for panel in row:
            panel.set_axis_off()
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=90)
    return written.getvalue()


_BD_NOTE = (
    f"BD-rate in percent (negative: fewer bits than the reference) with {comparison.CONFIDENCE:g} % bootstrap intervals over "
    f"the volumes: on each volume Akima's spline on the logarithm of the rate, over the PSNRs that {comparison.ANCHOR} covers "
    f"between {comparison.ANCHOR_RATES[0]:g} and {comparison.ANCHOR_RATES[1]:g} bits per voxel, or "
    f"{comparison.USUAL_PSNRS[0]:g} to {comparison.USUAL_PSNRS[1]:g} dB where that is not known, "
    f"as far as both curves go; against JPEG 2000 only from {comparison.MIN_PSNR:g} dB up. "
    "The ranges and the numbers of points stand under Every volume."
)
_PSNR_NOTE = (
    "Mean PSNR (dB) of the volumes whose curve reaches the rate, with bootstrap intervals and, in parentheses, their number. "
    "Columns of different numbers of volumes are not comparable."
)
_COST_NOTE = (
    "Seconds are medians over all points, for a million voxels, programs started and files read and written included. "
    "kMAC: thousand multiply-accumulates of the networks per voxel, counted while they run."
)
_PICTURE_NOTE = "The middle slice at three rates; the same grey window (percentiles 0.5 to 99.5) and error range in all rows."
_DEFINITIONS = (
    "Every point is a real file that was decoded again; bits per voxel count all of its bytes. PSNR: peak = maximum − minimum "
    "of the whole volume. SSIM: 2-D, uniform window of 7 × 7 voxels, K1 = 0.01, K2 = 0.03, data range = that peak, mean over "
    "slices. MS-SSIM: five scales (1, 1/2, 1/4, 1/8, 1/16) with Gaussian windows of 11 × 11, weights 0.0448, 0.2856, 0.3001, "
    "0.2363, 0.1333, where both sides have 176 voxels. RMSE/noise: relative to the noise σ̂ of the volume (median absolute "
    "deviation of its finest diagonal wavelet band in the foreground). PSNR in a window: of what a viewer displays, over the "
    "voxels inside it: full = percentiles 0.5 to 99.5 of all voxels, narrow = 25 to 75 and bright = 75 to 99.5 of the "
    "foreground."
)


def _bd_by_class(document: Document) -> str:
    classes = list(dict.fromkeys(document.groups.values()))
    heads = [
        "codec",
        "against",
        *(classes if len(classes) > 1 else []),
        "all volumes",
        "volumes",
        "worst",
    ]
    lines = []
    for pair in comparison.pairs(document.rows):
        *each, every = comparison.by_group(
            document.rows, pair, classes, lambda volume: document.groups.get(volume, "")
        )
        if not every.volumes:  # no common range anywhere: said under every volume
            continue
        worst = comparison.worst(document.rows, pair)
        named = (
            f"{worst.volume} ({worst.result.percent:+.1f})"
            if worst is not None and worst.result
            else "-"
        )
        shown = [*(each if len(classes) > 1 else []), every]
        lines.append(
            [
                *map(escape, pair),
                *(_signed(mean) for mean in shown),
                str(every.volumes),
                escape(named),
            ]
        )
    return _table(heads, lines)


def _signed(mean: comparison.Mean) -> str:
    if not mean.volumes:
        return "-"
    return f"<span class='{'good' if mean.value < 0 else 'bad'}'>{mean.text()}</span>"


def _bd_by_volume(rows: Iterable[BdRow]) -> str:
    lines = []
    for row in rows:
        cells = ["-", _long(row.reason), "", ""]
        if (found := row.result) is not None:
            span = f"{found.low:.1f} to {found.high:.1f}"
            cells = [f"{found.percent:+.1f}", span, str(found.points), str(found.reference_points)]
        lines.append([escape(row.volume), escape(row.codec), escape(row.reference), *cells])
    return _table(
        ["volume", "codec", "against", "%", "common range, dB", "points in it", "its points"], lines
    )


def _psnrs(samples: Sequence[Sample], groups: dict[str, str]) -> str:
    classes: list[str | None] = [None, *dict.fromkeys(groups.values())]
    if len(classes) == 2:
        classes = [None]
    lines = []
    for group in classes:
        for codec in dict.fromkeys(sample.codec for sample in samples):
            means = comparison.mean_psnrs(
                samples, codec, group, lambda volume: groups.get(volume, "")
            )
            cells = [
                f"{mean.text('.2f')} ({mean.volumes})" if mean.volumes else "-" for mean in means
            ]
            if any(mean.volumes for mean in means):
                lines.append([escape(group or "all volumes"), escape(codec), *cells])
    return _table(["class", "codec", *(f"{rate:g} bpv" for rate in comparison.RATES)], lines)


def _costs(points: Sequence[Point]) -> str:
    lines = []
    for codec in dict.fromkeys(point.codec for point in points):
        own = [point for point in points if point.codec == codec]
        encode, decode = (
            median(getattr(p, name) / p.nvox * 1e6 for p in own)
            for name in ("enc_wall", "dec_wall")
        )
        first = own[0]
        cost = [
            _number(first.kmac_enc, ".1f"),
            _number(first.kmac_dec, ".1f"),
            _number(first.parameters / 1e6, ".2f"),
        ]
        lines.append(
            [
                escape(codec),
                f"{encode:.3f}",
                f"{decode:.3f}",
                *cost,
                str(len(own)),
                _long(first.version),
            ]
        )
    heads = [
        "codec",
        "encode, s",
        "decode, s",
        "kMAC per voxel, encoder",
        "decoder",
        "parameters, M",
        "points",
        "version",
    ]
    return _table(heads, lines)


_COLUMNS = (
    ("param", "parameter", "g"), ("nbytes", "bytes", "d"), ("bpv", "bits per voxel", ".4f"), ("psnr", "PSNR", ".2f"),
    ("ssim", "SSIM", ".4f"), ("ms_ssim", "MS-SSIM", ".4f"), ("maxerr", "largest error", "g"),
    ("rmse_noise", "RMSE/noise", ".3f"),
    ("psnr_full", "PSNR, full window", ".2f"), ("psnr_narrow", "narrow", ".2f"), ("psnr_bright", "bright", ".2f"),
    ("enc_wall", "encode, s", ".2f"), ("dec_wall", "decode, s", ".2f"),
)  # fmt: skip


def _points(points: Iterable[Point]) -> str:
    lines = [
        [escape(point.codec), *(_number(getattr(point, name), form) for name, _, form in _COLUMNS)]
        for point in points
    ]
    return _table(["codec", *(title for _, title, _ in _COLUMNS)], lines)


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    return "exact" if value == math.inf else f"{value:{form}}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines]
    return "<div class='wide'><table>" + "\n".join(rows) + "</table></div>"


def _long(text: str) -> str:
    return f"<span class='long'>{escape(text)}</span>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _note(text: str) -> str:
    return f"<p class='note'>{escape(text)}</p>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
