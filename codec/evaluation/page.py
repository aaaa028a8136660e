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

from . import aggregate
from .aggregate import BdRow, Mean
from .points import RdPoint, rd_points
from .rate_distortion import Point, Source

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 }
table { font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee }
th, td { white-space: nowrap }
th { background: #f6f6f6; position: sticky; top: 0 }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
.note { color: #555; font-size: 13px }
.long { display: inline-block; white-space: normal; max-width: 24rem; text-align: left }
.good { color: #00693e } .bad { color: #a8201a } summary { cursor: pointer; margin: .5rem 0 }
"""
# Percentile of the absolute error that the colours of an error picture end at.
_ERROR_PERCENTILE = 99.8
# Smallest and largest height of a picture relative to its width.
_PICTURE_RATIOS = (0.4, 2.0)


@dataclass(frozen=True)
class Document:
    """What the page shows."""

    points: Sequence[Point]
    # Points of codecs that were not run here.
    others: Sequence[RdPoint]
    bd_rates: Sequence[BdRow]
    failures: Sequence[str]
    # Volume and PNG.
    pictures: Sequence[tuple[str, bytes]]
    environment: dict[str, str]
    # The class of each volume.
    classes: dict[str, str] = field(default_factory=dict)


def render(document: Document, plots: Sequence[Path]) -> str:
    """The page; `plots` are SVG files, which become part of it."""
    samples = [*rd_points(document.points), *document.others]
    versions = "; ".join(f"{name} {value}" for name, value in document.environment.items())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>Rate and distortion</title>",
        f"<style>{STYLE}</style></head><body><h1>Rate and distortion</h1>",
        html_note(versions),
    ]
    if document.failures:
        items = "".join(f"<li>{escape(line)}</li>" for line in document.failures)
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    if document.bd_rates:
        parts += ["<h2>Bits at equal PSNR</h2>", _bd_by_class(document), html_note(_BD_NOTE)]
    parts.append("<h2>Curves</h2>")
    parts += [_image(plot.stem, "svg+xml", plot.read_bytes()) for plot in plots]
    parts += [
        "<h2>PSNR at equal rate</h2>",
        _psnrs(samples, document.classes),
        html_note(_PSNR_NOTE),
    ]
    parts += [
        "<h2>Time and size of the codecs</h2>",
        _costs(document.points),
        html_note(_COST_NOTE),
    ]
    if document.pictures:
        parts += ["<h2>Pictures</h2>", html_note(_PICTURE_NOTE)]
        for volume, png in document.pictures:
            parts += [f"<p>{escape(volume)}</p>", _image(volume, "png", png)]
    parts += [*_details_of_volumes(document), "<h2>Definitions</h2>", html_note(_DEFINITIONS)]
    return "\n".join([*parts, "</body></html>"])


def _details_of_volumes(document: Document) -> list[str]:
    parts = ["<h2>Every volume</h2>"]
    if document.bd_rates:
        parts.append(_details("Bits at equal PSNR", _bd_by_volume(document.bd_rates)))
    for volume in dict.fromkeys(point.volume for point in document.points):
        points = [point for point in document.points if point.volume == volume]
        parts.append(_details(f"{volume}: all points", _points(points)))
    return parts


def pictures(source: Source, decoded: Sequence[tuple[Point, NDArray[Any]]]) -> bytes:
    """PNG: for each point the middle slice of the volume, what is decoded, and the error."""
    from matplotlib.figure import Figure

    original = _middle_slice(source.voxels)
    errors = [_middle_slice(voxels) - original for _, voxels in decoded]
    middle_error = np.abs(errors[len(errors) // 2])
    limit = max(float(np.percentile(middle_error, _ERROR_PERCENTILE)), 1e-9)
    ratio = min(max(original.shape[0] / original.shape[1], _PICTURE_RATIOS[0]), _PICTURE_RATIOS[1])
    figure = Figure(figsize=(10, (3.2 * ratio + 0.3) * len(decoded)), layout="constrained")
    panels = figure.subplots(len(decoded), 3, squeeze=False)
    for row, (point, voxels), error in zip(panels, decoded, errors, strict=True):
        title = f"{point.codec}: {point.bpv:.3f} bits per voxel, {point.psnr:.1f} dB"
        images = ((original, "original"), (_middle_slice(voxels), title))
        for panel, (image, text) in zip(row, images, strict=False):
            low, high = source.windows.full
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            panel.set_title(text, fontsize=9)
        drawn = row[2].imshow(error, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower")
        row[2].set_title(f"error, stored units; RMSE {point.rmse:.3g}", fontsize=9)
        figure.colorbar(drawn, ax=row[2], shrink=0.8)
        for panel in row:
            panel.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    return png.getvalue()


def _middle_slice(voxels: NDArray[Any]) -> NDArray[np.float64]:
    slices = voxels.reshape(-1, *((1, 1, *voxels.shape)[-2:]))
    return np.asarray(slices[len(slices) // 2], np.float64)


_BD_NOTE = (
    f"BD-rate in percent (negative: fewer bits than the reference) with {aggregate.CONFIDENCE:g} % "
    f"bootstrap intervals over the volumes where there are at least {aggregate.MIN_VOLUMES}: on "
    "each volume Akima's spline on the logarithm of the rate, over the PSNRs that "
    f"{aggregate.ANCHOR} covers between {aggregate.ANCHOR_RATES[0]:g} and "
    f"{aggregate.ANCHOR_RATES[1]:g} bits per voxel, or {aggregate.DEFAULT_PSNRS[0]:g} to "
    f"{aggregate.DEFAULT_PSNRS[1]:g} dB where that is not known, as far as both curves go; against "
    f"JPEG 2000 only from {aggregate.MIN_JPEG2000_PSNR:g} dB up. {aggregate.FEW_POINTS_NOTE}, of a "
    "mean: on one of its volumes. The ranges and the numbers of points are under Every volume."
)
_PSNR_NOTE = (
    "Mean PSNR (dB) of the volumes whose curve reaches the rate, with bootstrap intervals where "
    f"there are at least {aggregate.MIN_VOLUMES} volumes and, in parentheses, their number. "
    "Columns of different numbers of volumes are not comparable."
)
_COST_NOTE = (
    "Seconds are medians over all points, for a million voxels; starting programs and reading and "
    "writing files count. kMAC: thousand multiply-accumulates of the networks per voxel, counted "
    "while they run."
)
_PICTURE_NOTE = (
    "The middle slice at three rates; all rows have the same grey window (percentiles 0.5 to 99.5) "
    "and range of errors."
)
_DEFINITIONS = (
    "Every point is a real file that was decoded again; bits per voxel count all of its bytes. "
    "PSNR: peak = maximum − minimum of the whole volume. SSIM: 2-D, uniform window of 7 × 7 "
    "voxels, K1 = 0.01, K2 = 0.03, data range = that peak, mean over slices. MS-SSIM: five scales "
    "(1, 1/2, 1/4, 1/8, 1/16) with Gaussian windows of 11 × 11, weights 0.0448, 0.2856, 0.3001, "
    "0.2363, 0.1333, where both sides have 176 voxels. RMSE/noise: relative to the noise σ̂ of the "
    "volume (median absolute deviation of its finest diagonal wavelet band in the foreground). "
    "PSNR in a window: of what a viewer displays, over the voxels inside it: full = percentiles "
    "0.5 to 99.5 of all voxels, narrow = 25 to 75 and bright = 75 to 99.5 of the foreground."
)


def _bd_by_class(document: Document) -> str:
    groups = [group for group in aggregate.groups_of(document.classes) if group is not None]
    heads = ["codec", "against", *map(escape, groups), "all volumes", "volumes", "worst volume"]
    lines = []
    for pair in aggregate.pairs(document.bd_rates):
        means = aggregate.class_means(document.bd_rates, pair, groups, document.classes)
        if means[-1].volumes:  # Without a common range the reason is under every volume.
            worst = aggregate.worst_case(document.bd_rates, pair)
            cells = [*map(escape, pair), *map(_coloured, means)]
            lines.append([*cells, str(means[-1].volumes), escape(worst)])
    return html_table(heads, lines)


def _coloured(mean: Mean) -> str:
    if not mean.volumes:
        return "-"
    return f"<span class='{'good' if mean.value < 0 else 'bad'}'>{mean.text()}</span>"


def _bd_by_volume(rows: Iterable[BdRow]) -> str:
    heads = ["volume", "codec", "against", "%", "common range, dB", "points", "points of reference"]
    lines = []
    for row in rows:
        cells = ["-", _long(row.reason), "", ""]
        if (bd := row.result) is not None:
            span = f"{bd.low:.1f} to {bd.high:.1f}"
            cells = [row.percent(), span, str(bd.points), str(bd.reference_points)]
        lines.append([escape(row.volume), escape(row.codec), escape(row.reference), *cells])
    return html_table(heads, lines) + html_note(f"{aggregate.FEW_POINTS_NOTE}; see --points")


def _psnrs(samples: Sequence[RdPoint], classes: dict[str, str]) -> str:
    lines = []
    for group in aggregate.groups_of(classes):
        for codec in dict.fromkeys(sample.codec for sample in samples):
            means = aggregate.mean_psnrs(samples, codec, group, classes)
            cells = [
                f"{mean.text('.2f')} ({mean.volumes})" if mean.volumes else "-" for mean in means
            ]
            if any(mean.volumes for mean in means):
                lines.append([escape(group or "all volumes"), escape(codec), *cells])
    return html_table(["class", "codec", *(f"{rate:g} bpv" for rate in aggregate.RATES)], lines)


def _costs(points: Sequence[Point]) -> str:
    heads = [
        "codec", "encode, s", "decode, s", "kMAC per voxel, encoder", "decoder", "parameters, M",
        "points", "version",
    ]  # fmt: skip
    lines = []
    for codec in dict.fromkeys(point.codec for point in points):
        curve = [point for point in points if point.codec == codec]
        first = curve[0]
        cells = [
            f"{median(p.enc_wall / p.nvox * 1e6 for p in curve):.3f}",
            f"{median(p.dec_wall / p.nvox * 1e6 for p in curve):.3f}",
            _number(first.kmac_enc, ".1f"),
            _number(first.kmac_dec, ".1f"),
            _number(first.parameters / 1e6, ".2f"),
            str(len(curve)),
        ]
        lines.append([escape(codec), *cells, _long(first.version)])
    return html_table(heads, lines)


# Attribute of a point, heading of its column, and number format.
_COLUMNS = (
    ("param", "parameter", "g"),
    ("nbytes", "bytes", "d"),
    ("bpv", "bits per voxel", ".4f"),
    ("psnr", "PSNR", ".2f"),
    ("ssim", "SSIM", ".4f"),
    ("ms_ssim", "MS-SSIM", ".4f"),
    ("maxerr", "largest error", "g"),
    ("rmse_noise", "RMSE/noise", ".3f"),
    ("psnr_full", "PSNR, full window", ".2f"),
    ("psnr_narrow", "narrow", ".2f"),
    ("psnr_bright", "bright", ".2f"),
    ("enc_wall", "encode, s", ".2f"),
    ("dec_wall", "decode, s", ".2f"),
)


def _points(points: Iterable[Point]) -> str:
    lines = [
        [escape(point.codec), *(_number(getattr(point, name), form) for name, _, form in _COLUMNS)]
        for point in points
    ]
    return html_table(["codec", *(title for _, title, _ in _COLUMNS)], lines)


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    return "exact" if value == math.inf else f"{value:{form}}"


def html_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """An HTML table; headings and cells are HTML already."""
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines]
    return "<div class='wide'><table>" + "\n".join(rows) + "</table></div>"


def _long(text: str) -> str:
    return f"<span class='long'>{escape(text)}</span>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def html_note(text: str) -> str:
    """A paragraph in small print."""
    return f"<p class='note'>{escape(text)}</p>"


def _image(name: str, kind: str, content: bytes) -> str:
    return f"<p><img alt='{escape(name)}' src='{data_uri(kind, content)}'></p>"


def data_uri(kind: str, content: bytes) -> str:
    """An image (kind: png, svg+xml) as the address of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
