"""`rd-curve`: measure, then tables (CSV, JSON) and a picture (PNG, SVG) of the curves; extra `bench`."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import peers
from .metrics import SSIM_WINDOW
from .output import replacing
from .rate_distortion import (
    LEAST_POINTS,
    LEAST_PSNR,
    Comparison,
    Contender,
    Jpeg2000,
    Point,
    Source,
    compare_curves,
    measure,
    scan_name,
    sha256_of_file,
)

DATA, TABLE, PICTURE, DRAWING = "rd.json", "rd.csv", "rd.png", "rd.svg"
_HIGHEST_PSNR = 52.0  # dB, of a BD-rate; above, a file is hardly smaller than one without loss
_USUAL_PSNRS = (LEAST_PSNR, 58.0)  # dB, of JPEG 2000; its 9/7 transform does not come much closer to integers

# Okabe and Ito's colours: told apart by colour-blind readers and in grey
_STYLES: dict[str, dict[str, Any]] = {
    "mricodec": {"color": "#0072B2", "marker": "o", "label": "mricodec"},
    "mricodec-hyperprior": {"color": "#D55E00", "marker": "^", "label": "mricodec, hyperprior"},
    "mricodec-factorized": {"color": "#009E73", "marker": "v", "label": "mricodec, factorized"},
    "jpeg2000": {"color": "#555555", "marker": "s", "label": "JPEG 2000", "linestyle": "--"},
}


@dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why."""

    volume: str
    codec: str  # "" for all
    reason: str


@dataclass(frozen=True)
class RdReport:
    points: tuple[Point, ...]  # by volume and codec, then by size
    comparisons: tuple[Comparison, ...]  # of every other codec with JPEG 2000, 25 to 52 dB
    left_out: tuple[LeftOut, ...]
    files: tuple[Path, ...]


def rd_curve(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    contenders: Sequence[Contender],
    qualities: Sequence[float],
    force: bool = False,
    progress: Callable[[str], None] = lambda label: None,
) -> RdReport:
    """Encode every scan with every contender at every quality, and with JPEG 2000 over the same PSNRs.

    Writes the coded files, rd.json, rd.csv, rd.png and rd.svg into `folder`. What an earlier run measured
    there is kept while file, scan and codec are the same; `force` measures all again. A scan or codec that
    fails is left out and named, the rest is finished. `progress` is told each of the (len(contenders) + 1) x
    len(qualities) points of a scan before its turn.

    MissingExtra, before anything is done, if imagecodecs or matplotlib is missing; FileExistsError if
    `folder` holds something else; OSError if it can't be written; ValueError with fewer than 8 qualities.
    """
    if len(qualities) < LEAST_POINTS:
        raise ValueError(f"a curve needs at least {LEAST_POINTS} points, got {len(qualities)}")
    require_extras()
    jpeg2000 = Jpeg2000()
    results = _Results(Path(folder), force=force)
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            source = Source.of_file(path, name)
        except (ValueError, OSError) as error:
            results.left_out.append(LeftOut(name, "", str(error)))
            continue
        for contender in contenders:
            results.measure(source, contender, qualities, progress)
        others = [p.psnr for p in results.points if p.volume == name and p.codec != jpeg2000.name]
        targets = _targets(others, len(qualities))
        results.measure(source, jpeg2000, targets, progress)
    return results.write()


def require_extras() -> None:
    """MissingExtra if JPEG 2000 or the plots can't be had."""
    peers.require("imagecodecs")
    peers.require("matplotlib.figure")


def environment() -> dict[str, str]:
    """Date, machine and versions, to stand beside figures."""
    versions = {}
    for package in ("mricodec", "torch", "numpy", "imagecodecs"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class _Results:
    """The points of one folder; its rd.json is rewritten after every one."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        self._folder = folder
        self._points: dict[tuple[str, str, str, float], Point] = {}
        self.left_out: list[LeftOut] = []
        known = folder / DATA
        if known.exists() and not force:
            try:
                points = [Point.from_row(row) for row in json.loads(known.read_bytes())["points"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{known}: expected the points of an earlier run, found something else ({error!r}); "
                    "choose another folder, or overwrite with --force"
                ) from error
            self._points = {point.key: point for point in points}
        elif folder.exists() and any(folder.iterdir()) and not force:
            raise FileExistsError(
                f"{folder}: not empty and not from an earlier run; choose another, or overwrite with --force"
            )
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def points(self) -> list[Point]:
        """By volume and codec in the order of their first point, then by size."""
        pairs = dict.fromkeys((p.volume, p.codec) for p in self._points.values())
        order = {pair: position for position, pair in enumerate(pairs)}
        return sorted(self._points.values(), key=lambda p: (order[p.volume, p.codec], p.nbytes))

    def measure(
        self,
        source: Source,
        contender: Contender,
        parameters: Iterable[float],
        progress: Callable[[str], None],
    ) -> None:
        """One curve, or what is missing of it; after a failure the codec is left out for this scan."""
        for point in self.points:
            of_curve = (point.volume, point.codec) == (source.name, contender.name)
            another_scan = point.volume == source.name and point.voxels != source.digest
            if another_scan or (of_curve and not self._holds(point, source, contender)):
                del self._points[point.key]
        for parameter in parameters:
            progress(f"{source.name}: {contender.name} {parameter:g}")
            if (source.name, source.roi, contender.name, parameter) in self._points:
                continue
            try:
                point = measure(contender, source, parameter, self._folder)
            except (ValueError, RuntimeError) as error:  # FormatError, an error of imagecodecs
                self.left_out.append(LeftOut(source.name, contender.name, str(error)))
                return
            self._points[point.key] = point
            self._write_data()

    def _holds(self, point: Point, source: Source, contender: Contender) -> bool:
        """The point is of this scan and codec, and its file is still what was measured."""
        file = self._folder / point.file
        return (
            point.holds_for(source, contender)
            and file.is_file()
            and sha256_of_file(file) == point.file_sha256
        )

    def _comparisons(self) -> list[Comparison]:
        curves: dict[str, dict[str, list[Point]]] = {}
        for point in self.points:
            curves.setdefault(point.volume, {}).setdefault(point.codec, []).append(point)
        return [
            compare_curves(curve, codecs[Jpeg2000.name], LEAST_PSNR, _HIGHEST_PSNR)
            for codecs in curves.values()
            if Jpeg2000.name in codecs
            for codec, curve in codecs.items()
            if codec != Jpeg2000.name
        ]

    def _write_data(self) -> None:
        content = {
            "environment": environment(),
            "points": [point.to_row() for point in self.points],
            "bd_rate": [asdict(comparison) for comparison in self._comparisons()],
            "left_out": [asdict(entry) for entry in self.left_out],
        }
        with replacing(self._folder / DATA) as file:
            file.write(json.dumps(content, indent=1).encode())

    def write(self) -> RdReport:
        self._write_data()
        files = [self._folder / DATA]
        if self.points:
            with replacing(self._folder / TABLE) as file:
                file.write(_table(self.points).encode())
            files += [self._folder / TABLE, *draw(self.points, self._folder)]
        return RdReport(tuple(self.points), tuple(self._comparisons()), tuple(self.left_out), tuple(files))


def _table(points: Sequence[Point]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    return text.getvalue()


def _targets(psnrs: Sequence[float], count: int) -> list[float]:
    """PSNRs (dB) for JPEG 2000: those of the other curves as far as they are usual."""
    usual = [min(max(psnr, _USUAL_PSNRS[0]), _USUAL_PSNRS[1]) for psnr in psnrs]
    low, high = min(usual, default=0), max(usual, default=0)
    if high - low < 1:  # dB: no curve
        low, high = _USUAL_PSNRS
    return [round(float(target), 1) for target in np.linspace(low, high, count)]


def _names(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """A name for each scan, numbered from 2 where the files of two folders have the same."""
    names: list[str] = []
    for path in paths:
        name, number = scan_name(path), 1
        while name in names:
            number += 1
            name = f"{scan_name(path)}-{number}"
        names.append(name)
    return names


def draw(points: Sequence[Point], folder: Path) -> list[Path]:
    """rd.png and rd.svg: for each volume PSNR and SSIM against bits per voxel, one line per codec."""
    from matplotlib.figure import Figure

    volumes = list(dict.fromkeys(point.volume for point in points))
    figure = Figure(figsize=(10, 0.6 + 3.9 * len(volumes)), layout="constrained")
    panels = figure.subplots(len(volumes), 2, squeeze=False)
    for (left, right), volume in zip(panels, volumes, strict=True):
        of_volume = [point for point in points if point.volume == volume]
        first = of_volume[0]
        left.set_title(f"{volume}  ({first.shape.replace('x', ' × ')})", loc="left", fontsize=10)
        for panel in (left, right):
            _axes(panel, [point.bpv for point in of_volume])
        left.set_ylabel(f"PSNR (dB), peak = max − min = {first.peak:g}")
        right.set_ylabel(f"SSIM, {SSIM_WINDOW} × {SSIM_WINDOW} in-plane")
        for codec in dict.fromkeys(point.codec for point in of_volume):
            curve = [point for point in of_volume if point.codec == codec]
            style: dict[str, Any] = _STYLES.get(codec, {"label": codec, "marker": "D"})
            for panel, heights in ((left, [p.psnr for p in curve]), (right, [p.ssim for p in curve])):
                panel.plot([p.bpv for p in curve], heights, linewidth=1.6, markersize=4.5, **style)
        left.legend(loc="best", frameon=False, fontsize=9)
    figure.supxlabel("bits per voxel (whole file)", fontsize=10)
    with replacing(folder / PICTURE) as file:
        figure.savefig(file, format="png", dpi=150)
    with replacing(folder / DRAWING) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return [folder / PICTURE, folder / DRAWING]


def _axes(panel: Any, rates: Sequence[float]) -> None:
    """Logarithmic axis of rates with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.set_xlim(min(rates) / 1.15, max(rates) * 1.15)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=15))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, which="major", color="#dddddd", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
