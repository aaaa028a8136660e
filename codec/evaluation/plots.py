"""The plots of `rd-curve`, one line per codec: PNG and SVG files; needs matplotlib."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mricodec.codec.atomic import replacing
from mricodec.codec.voxels.metrics import SSIM_WINDOW

from . import aggregate
from .points import RdPoint, Region, classes
from .rate_distortion import Point

# File names, with the suffixes .png and .svg.
CURVES, ERRORS, MEANS = "rd", "rd-error", "rd-mean"
# Label, colour, marker and line of known codecs, in Okabe and Ito's colours where possible: they
# can be distinguished by colour-blind readers and in grey.
_STYLES: dict[str, tuple[str, str, str, str]] = {
    "mricodec": ("mricodec", "#0072B2", "o", "-"),
    "mricodec-high": ("mricodec, effort high", "#0072B2", "*", "-"),
    "mricodec-lossless": ("mricodec, lossless", "#0072B2", "P", "-"),
    "mricodec-near": ("mricodec, near-lossless", "#56B4E9", "D", "-"),
    "mricodec-hyperprior": ("mricodec, hyperprior", "#D55E00", "^", "-"),
    "mricodec-factorized": ("mricodec, factorized", "#009E73", "v", "-"),
    "mricodec-cnn8": ("mricodec, CNN-8", "#F0E442", "1", "-"),
    "mricodec-cnn16": ("mricodec, CNN-16", "#D4B000", "2", "-"),
    "mricodec-cnn32": ("mricodec, CNN-32", "#A08000", "3", "-"),
    "mricodec-unet": ("mricodec, U-Net", "#7B9E00", "4", "-"),
    "mricodec-unet-2level": ("mricodec, U-Net of two levels", "#4F6B00", "+", "-"),
    "mricodec-vae": ("mricodec, VAE", "#B07AA1", "d", "-"),
    "jpeg2000": ("JPEG 2000", "#555555", "s", "--"),
    "htj2k": ("HTJ2K", "#999999", "s", ":"),
    "jxl-e7": ("JPEG XL", "#E69F00", "x", "--"),
    "x265-medium": ("x265 medium", "#CC79A7", "<", "--"),
    "x265-veryslow": ("x265 veryslow", "#882255", "<", "--"),
    "svtav1-p5": ("SVT-AV1 preset 5", "#AA4499", ">", "-."),
    "jp3d-nz1": ("JP3D, 1 level along the slices", "#8B4513", ".", "-"),
    "jp3d-nz3": ("JP3D, 3 levels", "#4682B4", ".", "-"),
    "sperr": ("SPERR", "#6A5ACD", ".", "-"),
    "sz3": ("SZ3", "#B8860B", ".", "-"),
    "vvenc-medium": ("VVenC medium", "#000000", ">", "-."),
}
# Colours of codecs that are not in the table.
_OTHER_COLOURS = (
    "#2E8B57", "#DC143C", "#708090", "#FF7F50", "#20B2AA", "#C71585", "#808000", "#5F9EA0",
)  # fmt: skip
# Ticks of the axis of SSIM, and its upper end: at 1 the logarithmic axis would not end.
_SSIM_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
_MAX_SSIM = 0.9998
# Rates (bits per voxel) at which mean curves are evaluated: lowest, highest, number.
_MEAN_RATES = (0.03, 3.0, 25)
# Inches that a name and its line take in a legend.
_LEGEND_COLUMN = 2.0


def draw(samples: Sequence[RdPoint], points: Sequence[Point], folder: Path) -> list[Path]:
    """Write rd, rd-error and, of several regions, rd-mean; the paths of the files.

    rd: PSNR and SSIM against bits per voxel, a row for each region; rd-error: the largest error;
    rd-mean: PSNR averaged over the volumes of each class. samples: `points` and those of codecs
    that were not run.
    """
    first: dict[Region, Point] = {}
    for point in points:
        first.setdefault((point.volume, point.roi), point)
    files = _save(_curves(samples, first), folder / CURVES)
    files += _save(_errors(samples, first), folder / ERRORS)
    if len(first) > 1:
        files += _save(_mean_curves(samples, classes(points)), folder / MEANS)
    return files


def _save(figure: Any, path: Path) -> list[Path]:
    paths = []
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        paths.append(path.with_suffix(suffix))
        with replacing(paths[-1]) as file:
            figure.savefig(file, format=suffix[1:], **options)
    return paths


def _curves(samples: Sequence[RdPoint], first: dict[Region, Point]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 4.2 * len(first)), layout="constrained")
    panels = figure.subplots(len(first), 2, squeeze=False)
    for (left, right), (region, point) in zip(panels, first.items(), strict=True):
        of_region = [sample for sample in samples if (sample.volume, sample.roi) == region]
        left.set_title(_title(point), loc="left", fontsize=10)
        for panel in (left, right):
            _rate_axis(panel, [sample.bpv for sample in of_region])
        left.set_ylabel(f"PSNR (dB), peak = max − min = {point.peak:g}")
        for codec, curve in _by_codec(of_region):
            _psnr_line(left, codec, curve)
            lossy = [s for s in curve if math.isfinite(s.psnr) and s.ssim < 1 - 1e-6]
            _line(right, codec, lossy, [s.ssim for s in lossy])
        _ssim_axis(right, [s.ssim for s in of_region if not math.isnan(s.ssim)])
    _legend(figure, panels.ravel())
    figure.supxlabel("bits per voxel (whole file)", fontsize=10)
    return figure


def _psnr_line(panel: Any, codec: str, curve: Sequence[RdPoint]) -> None:
    """PSNR of a codec; the rate of what is exact is a vertical line with its name."""
    lossy = [sample for sample in curve if math.isfinite(sample.psnr)]
    _line(panel, codec, lossy, [sample.psnr for sample in lossy])
    style = _style(codec)
    for sample in curve:
        if sample.psnr == math.inf:
            panel.axvline(sample.bpv, color=style["color"], linewidth=1, linestyle=":")
            # At the lower edge: the curves are far above at this rate.
            panel.annotate(
                f"{style['label']}: exact",
                (sample.bpv, 0.02),
                xycoords=panel.get_xaxis_transform(),
                rotation=90,
                fontsize=7,
                va="bottom",
                ha="right",
            )


def _ssim_axis(panel: Any, ssims: Sequence[float]) -> None:
    panel.set_ylabel(f"SSIM, {SSIM_WINDOW} × {SSIM_WINDOW} in-plane (shown as −log₁₀(1 − SSIM))")
    forward_and_inverse = (
        lambda ssim: -np.log10(np.maximum(1 - ssim, 1e-6)),
        lambda value: 1 - 10.0**-value,
    )
    panel.set_yscale("function", functions=forward_and_inverse)
    panel.set_yticks(_SSIM_TICKS)
    panel.yaxis.set_major_formatter(lambda ssim, _: f"{ssim:g}")
    panel.set_ylim(max(0.0, min(ssims, default=0.0)), _MAX_SSIM)


def _errors(samples: Sequence[RdPoint], first: dict[Region, Point]) -> Any:
    figure, panels = _grid(len(first))
    for panel, (region, point) in zip(panels, first.items(), strict=False):
        of_region = [s for s in samples if (s.volume, s.roi) == region and s.maxerr >= 0]
        panel.set_title(_title(point), loc="left", fontsize=10)
        _rate_axis(panel, [sample.bpv for sample in of_region])
        panel.set_yscale("symlog", linthresh=1, linscale=0.3)
        panel.set_ylabel("largest error (stored units)")
        for codec, curve in _by_codec(of_region):
            _line(panel, codec, curve, [s.maxerr for s in curve])
        panel.set_ylim(-0.1, None)
        panel.yaxis.set_major_formatter(lambda error, _: f"{error:g}")
    _legend(figure, panels)
    figure.supxlabel("bits per voxel (whole file)", fontsize=10)
    return figure


def _mean_curves(samples: Sequence[RdPoint], of_volume: dict[str, str]) -> Any:
    groups = aggregate.groups_of(of_volume)
    figure, panels = _grid(len(groups))
    low, high, count = _MEAN_RATES
    rates = np.geomspace(low, high, count).tolist()
    for panel, group in zip(panels, groups, strict=False):
        volumes = sum(group in (None, name) for name in of_volume.values())
        panel.set_title(f"{group or 'all volumes'} ({volumes})", loc="left", fontsize=10)
        _rate_axis(panel, rates)
        panel.set_ylabel("mean PSNR (dB)")
        for number, codec in enumerate(dict.fromkeys(sample.codec for sample in samples)):
            means = aggregate.mean_psnrs(samples, codec, group, of_volume, rates)
            curve = [m for m in zip(rates, means, strict=True) if m[1].volumes == volumes]
            if len(curve) >= 2:
                # One band is legible, a dozen are not.
                _mean_line(panel, codec, curve, band=number == 0)
    _legend(figure, panels)
    figure.supxlabel(
        "bits per voxel; rates that every volume of the class reaches; band: "
        f"{aggregate.CONFIDENCE:g} % bootstrap interval of the first codec, "
        f"of {aggregate.MIN_VOLUMES} volumes and more",
        fontsize=9,
    )
    return figure


def _mean_line(
    panel: Any, codec: str, curve: Sequence[tuple[float, aggregate.Mean]], *, band: bool
) -> None:
    rates = [rate for rate, _ in curve]
    style = {**_style(codec), "marker": None}
    panel.plot(rates, [mean.value for _, mean in curve], linewidth=1.6, **style)
    if band:
        low, high = [mean.low for _, mean in curve], [mean.high for _, mean in curve]
        panel.fill_between(rates, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _grid(count: int) -> tuple[Any, Any]:
    """A figure with `count` panels in two columns."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.5 * columns, 0.6 + 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def _line(panel: Any, codec: str, curve: Sequence[RdPoint], values: Sequence[float]) -> None:
    if curve:
        rates = [sample.bpv for sample in curve]
        panel.plot(rates, values, linewidth=1.4, markersize=4.5, **_style(codec))


def _legend(figure: Any, panels: Iterable[Any]) -> None:
    """One legend for all panels, above them."""
    lines = {
        line.get_label(): line
        for panel in panels
        for line in panel.lines
        if line.get_label()[0] != "_"
    }
    if lines:
        columns = max(1, int(figure.get_figwidth() / _LEGEND_COLUMN))
        figure.legend(
            lines.values(),
            lines.keys(),
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            fontsize=8,
        )


def _title(point: Point) -> str:
    part = "" if point.roi == "full" else f", {point.roi}"
    return f"{point.volume}  ({point.shape.replace('x', ' × ')}{part})"


def _style(codec: str) -> dict[str, Any]:
    # The colour follows from the name, so that it is the same in every panel.
    colour = _OTHER_COLOURS[zlib.crc32(codec.encode()) % len(_OTHER_COLOURS)]
    label, colour, marker, line = _STYLES.get(codec, (codec, colour, ".", "-"))
    return {"label": label, "color": colour, "marker": marker, "linestyle": line}


def _by_codec(samples: Sequence[RdPoint]) -> list[tuple[str, list[RdPoint]]]:
    codecs: dict[str, list[RdPoint]] = {}
    for sample in samples:
        codecs.setdefault(sample.codec, []).append(sample)
    return [
        (codec, sorted(curve, key=lambda sample: sample.bpv)) for codec, curve in codecs.items()
    ]


def _rate_axis(panel: Any, rates: Sequence[float]) -> None:
    """Logarithmic axis of rates with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    if rates:
        panel.set_xlim(min(rates) / 1.15, max(rates) * 1.15)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=15))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, which="major", color="#dddddd", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
