"""`rd-curve`: measure, then tables (CSV, JSON), pictures (PNG, SVG) and one HTML page of the curves; extra `bench`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mricodec.codec.atomic import replacing
from mricodec.codec.voxels.metrics import SSIM_WINDOW

from . import comparison, page
from . import still as peers
from .comparison import BdRow, Sample
from .rate_distortion import MIN_POINTS, Contender, Point, PointFile, Source, measure, scan_name

POINTS, DATA, TABLE, PAGE = "points.jsonl", "rd.json", "rd.csv", "rd.html"
CURVES, ERRORS, MEANS = "rd", "rd-error", "rd-mean"  # .png and .svg
PICTURE_RATES = (0.1, 0.3, 1.0)  # bits per voxel

Progress = Callable[
    [int, int, str], None
]  # points done, points in all (as far as known), what comes next

# Okabe and Ito's colours: told apart by colour-blind readers and in grey
_STYLES: dict[str, dict[str, Any]] = {
    "mricodec": {"color": "#0072B2", "marker": "o", "label": "mricodec"},
    "mricodec-high": {"color": "#0072B2", "marker": "*", "label": "mricodec, effort high"},
    "mricodec-lossless": {"color": "#0072B2", "marker": "P", "label": "mricodec, lossless"},
    "mricodec-near": {"color": "#56B4E9", "marker": "D", "label": "mricodec, near-lossless"},
    "mricodec-hyperprior": {"color": "#D55E00", "marker": "^", "label": "mricodec, hyperprior"},
    "mricodec-factorized": {"color": "#009E73", "marker": "v", "label": "mricodec, factorized"},
    "mricodec-cnn8": {"color": "#F0E442", "marker": "1", "label": "mricodec, CNN-8"},
    "mricodec-cnn16": {"color": "#D4B000", "marker": "2", "label": "mricodec, CNN-16"},
    "mricodec-cnn32": {"color": "#A08000", "marker": "3", "label": "mricodec, CNN-32"},
    "mricodec-unet": {"color": "#7B9E00", "marker": "4", "label": "mricodec, U-Net"},
    "mricodec-unet-2level": {
        "color": "#4F6B00",
        "marker": "+",
        "label": "mricodec, U-Net of two levels",
    },
    "mricodec-vae": {"color": "#B07AA1", "marker": "d", "label": "mricodec, VAE"},
    "jpeg2000": {"color": "#555555", "marker": "s", "label": "JPEG 2000", "linestyle": "--"},
    "htj2k": {"color": "#999999", "marker": "s", "label": "HTJ2K", "linestyle": ":"},
    "jxl-e7": {"color": "#E69F00", "marker": "x", "label": "JPEG XL", "linestyle": "--"},
    "x265-medium": {"color": "#CC79A7", "marker": "<", "label": "x265 medium", "linestyle": "--"},
    "x265-veryslow": {
        "color": "#882255",
        "marker": "<",
        "label": "x265 veryslow",
        "linestyle": "--",
    },
    "svtav1-p5": {
        "color": "#AA4499",
        "marker": ">",
        "label": "SVT-AV1 preset 5",
        "linestyle": "-.",
    },
    "jp3d-nz1": {"color": "#8B4513", "marker": ".", "label": "JP3D, 1 level along the slices"},
    "jp3d-nz3": {"color": "#4682B4", "marker": ".", "label": "JP3D, 3 levels"},
    "sperr": {"color": "#6A5ACD", "marker": ".", "label": "SPERR"},
    "sz3": {"color": "#B8860B", "marker": ".", "label": "SZ3"},
    "vvenc-medium": {"color": "#000000", "marker": ">", "label": "VVenC medium", "linestyle": "-."},
}
_OTHERS = ("#2E8B57", "#DC143C", "#708090", "#FF7F50", "#20B2AA", "#C71585", "#808000", "#5F9EA0")


@dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why."""

    volume: str  # "" for all
    codec: str  # "" for all
    reason: str

    def __str__(self) -> str:
        what = " with ".join(name for name in (self.volume, self.codec) if name)
        return f"{what}: {self.reason}" if what else self.reason


@dataclass(frozen=True)
class RdReport:
    points: tuple[Point, ...]  # by volume and codec, then by size
    others: tuple[Sample, ...]  # of codecs that were not run, from CSV files
    comparisons: tuple[BdRow, ...]
    left_out: tuple[LeftOut, ...]
    files: tuple[Path, ...]


def rd_curve(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    contenders: Sequence[Contender],
    rivals: Sequence[Contender] = (),
    csvs: Sequence[Path] = (),
    points: int = 10,
    central: int | None = None,
    force: bool = False,
    progress: Progress = lambda done, total, label: None,
) -> RdReport:
    """Encode every scan with every contender and rival at `points` parameters each, decode, compare.

    Writes the coded files, points.jsonl, rd.json, rd.csv, rd.html and the plots into `folder`. What an earlier run
    measured there is kept while file, scan and codec are the same; `force` measures all again. Rivals are peers that
    the contenders are compared with; `csvs` hold points of more of them (see `comparison.read_csv`). `central`: code
    bare arrays, of a 4-D scan the first volume, and of that so many slices in the middle; else whole files. A scan,
    codec or CSV that fails is left out and named, the rest is finished.

    MissingExtra, before anything is done, without matplotlib; FileExistsError if `folder` holds something else;
    OSError if it can't be written; ValueError with fewer than 8 points.
    """
    if points < MIN_POINTS:
        raise ValueError(f"a curve needs at least {MIN_POINTS} points, got {points}")
    require_extras()
    run = _Run(Path(folder), force=force)
    codecs = [*contenders, *rivals]
    counts = [len(contender.parameters(points, [])) for contender in codecs]
    total, done = len(paths) * sum(counts), 0
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            source = (
                Source.of_file(path, name)
                if central is None
                else Source.bare(path, name).central(central)
            )
        except (ValueError, OSError) as error:
            run.left_out.append(LeftOut(name, "", str(error)))
            done += sum(counts)
            continue
        run.begin(source)
        psnrs: list[float] = []
        for contender, count in zip(codecs, counts, strict=True):
            chosen = contender.parameters(points, psnrs)

            def further(n: int, label: str, before: int = done) -> None:
                progress(before + n, total, label)

            found = run.measure(source, contender, chosen, further)
            if contender in contenders:
                psnrs += [point.psnr for point in found]
            done += count
        run.draw(source, contenders)
    progress(total, total, "report")
    return run.write([contender.name for contender in contenders], csvs)


def require_extras() -> None:
    """MissingExtra if the plots can't be had."""
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


class _Run:
    """What is measured into one folder."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        self._folder = folder
        self._seen: set[tuple[str, str]] = set()  # volumes of this run
        self._pictures: list[tuple[str, bytes]] = []
        self.left_out: list[LeftOut] = []
        known = folder / POINTS
        if force:
            known.unlink(missing_ok=True)
        elif folder.exists() and any(folder.iterdir()) and not known.exists():
            raise FileExistsError(
                f"{folder}: not empty and not from an earlier run; choose another, or overwrite with --force"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._results = PointFile(known, environment)
        except ValueError as error:
            raise ValueError(
                f"{error}; choose another folder, or overwrite with --force"
            ) from error

    @property
    def _points(self) -> list[Point]:
        return [point for point in self._results.points if (point.volume, point.roi) in self._seen]

    def begin(self, source: Source) -> None:
        self._results.discard(source)
        self._seen.add((source.name, source.roi))

    def measure(
        self,
        source: Source,
        contender: Contender,
        parameters: Iterable[float],
        progress: Callable[[int, str], None],
    ) -> list[Point]:
        """One curve, or what is missing of it; after a failure the codec is left out for the rest of this scan."""
        there = {point.param: point for point in self._results.of(source, contender, self._folder)}
        for number, parameter in enumerate(dict.fromkeys(parameters)):
            progress(number, f"{source.name}: {contender.name} {parameter:g}")
            if parameter in there:
                continue
            try:
                there[parameter] = measure(contender, source, parameter, self._folder)
            except (
                ValueError,
                RuntimeError,
            ) as error:  # FormatError, an error of imagecodecs or ffmpeg
                self.left_out.append(LeftOut(source.name, contender.name, str(error)))
                break
            self._results.add(there[parameter])
        return list(there.values())

    def draw(self, source: Source, contenders: Sequence[Contender]) -> None:
        """Pictures of the first contender with a curve on this volume."""
        for contender in contenders:
            points = [
                p
                for p in self._results.of(source, contender, self._folder)
                if math.isfinite(p.psnr)
            ]
            if len(points) >= len(PICTURE_RATES):
                chosen = {
                    _nearest(points, rate).param: _nearest(points, rate) for rate in PICTURE_RATES
                }
                decoded = [
                    (point, contender.decode(source, self._folder / point.file))
                    for point in chosen.values()
                ]
                self._pictures.append((source.name, page.pictures(source, decoded)))
                return

    def write(self, contenders: Sequence[str], csvs: Sequence[Path]) -> RdReport:
        points = self._points
        others = self._read(csvs, points)
        samples = [*comparison.of_points(points), *others]
        references = [
            codec
            for codec in dict.fromkeys(s.codec for s in samples)
            if codec not in contenders[1:]
        ]
        rows = comparison.bd_rows(samples, (), contenders, references)
        content = {
            "environment": environment(),
            "points": [point.to_row() for point in points],
            "bd_rate": [_plain(asdict(row)) for row in rows],
            "mean_psnr": _means(samples, points),
            "left_out": [asdict(entry) for entry in self.left_out],
        }
        files = [self._folder / DATA]
        with replacing(files[0]) as file:
            file.write(json.dumps(content, indent=1).encode())
        if points:
            files.append(self._folder / TABLE)
            with replacing(files[1]) as file:
                file.write(_table(points).encode())
            files += draw(samples, points, self._folder)
            left_out = [str(entry) for entry in self.left_out]
            document = page.Document(
                points, others, rows, left_out, self._pictures, environment(), groups(points)
            )
            files.append(self._folder / PAGE)
            with replacing(files[-1]) as file:
                file.write(page.render(document, [f for f in files if f.suffix == ".svg"]).encode())
        return RdReport(
            tuple(points), tuple(others), tuple(rows), tuple(self.left_out), tuple(files)
        )

    def _read(self, csvs: Sequence[Path], points: Sequence[Point]) -> list[Sample]:
        """Points of codecs that were not run here, on the volumes that were."""
        shapes = {(p.volume, p.roi): tuple(map(int, p.shape.split("x"))) for p in points}
        run_here = {(p.volume, p.roi, p.codec) for p in points}
        samples: list[Sample] = []
        for path in csvs:
            try:
                found = comparison.read_csv(path, shapes)
            except (ValueError, OSError) as error:
                self.left_out.append(LeftOut("", "", str(error)))
                continue
            self.left_out += [LeftOut("", "", fault) for fault in found.faults]
            samples += [s for s in found.samples if (s.volume, s.roi, s.codec) not in run_here]
        return samples


def groups(points: Iterable[Point]) -> dict[str, str]:
    """The class of each volume."""
    return {point.volume: point.group for point in points}


def _nearest(points: Sequence[Point], rate: float) -> Point:
    return min(points, key=lambda point: abs(math.log(point.bpv / rate)))


def _plain(value: Any) -> Any:
    """For JSON: None for nan."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _means(samples: Sequence[Sample], points: Sequence[Point]) -> list[dict[str, Any]]:
    """Mean PSNRs by class and codec at `comparison.RATES`."""
    of_volume = groups(points)
    classes = [None, *dict.fromkeys(of_volume.values())]
    found = []
    for codec in dict.fromkeys(sample.codec for sample in samples):
        for group in classes:
            means = comparison.mean_psnrs(
                samples, codec, group, lambda volume: of_volume.get(volume, "")
            )
            for rate, mean in zip(comparison.RATES, means, strict=True):
                if mean.volumes:
                    found.append(
                        {
                            "codec": codec,
                            "class": group or "all",
                            "bpv": rate,
                            **_plain(asdict(mean)),
                        }
                    )
    return found


def _table(points: Sequence[Point]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    return text.getvalue()


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


def draw(samples: Sequence[Sample], points: Sequence[Point], folder: Path) -> list[Path]:
    """The plots, one line per codec: rd (PSNR and SSIM against bits per voxel, a row for each volume), rd-error (bits per
    voxel against the largest error) and, of two volumes and more, rd-mean (PSNR averaged over each class)."""
    first: dict[tuple[str, str], Point] = {}
    for point in points:
        first.setdefault((point.volume, point.roi), point)
    files = _save(_curves(samples, first), folder / CURVES) + _save(
        _errors(samples, first), folder / ERRORS
    )
    if len(first) > 1:
        files += _save(_mean_curves(samples, points), folder / MEANS)
    return files


def _save(figure: Any, path: Path) -> list[Path]:
    written = []
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        written.append(path.with_suffix(suffix))
        with replacing(written[-1]) as file:
            figure.savefig(file, format=suffix[1:], **options)
    return written


def _curves(samples: Sequence[Sample], first: dict[tuple[str, str], Point]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 4.2 * len(first)), layout="constrained")
    panels = figure.subplots(len(first), 2, squeeze=False)
    for (left, right), (place, point) in zip(panels, first.items(), strict=True):
        of_volume = [sample for sample in samples if (sample.volume, sample.roi) == place]
        left.set_title(_title(point), loc="left", fontsize=10)
        for panel in (left, right):
            _axes(panel, [sample.bpv for sample in of_volume])
        left.set_ylabel(f"PSNR (dB), peak = max − min = {point.peak:g}")
        right.set_ylabel(
            f"SSIM, {SSIM_WINDOW} × {SSIM_WINDOW} in-plane (shown as −log₁₀(1 − SSIM))"
        )
        for codec, curve in _by_codec(of_volume):
            style = _style(codec)
            shown = [sample for sample in curve if math.isfinite(sample.psnr)]
            if shown:
                left.plot(
                    [s.bpv for s in shown],
                    [s.psnr for s in shown],
                    linewidth=1.4,
                    markersize=4.5,
                    **style,
                )
            for sample in curve:
                if sample.psnr == math.inf:  # a mark at the upper edge
                    left.axvline(
                        sample.bpv, color=style.get("color", "#777777"), linewidth=1, linestyle=":"
                    )
                    left.annotate(
                        f"{style['label']}: exact",
                        (sample.bpv, 0.02),
                        xycoords=left.get_xaxis_transform(),
                        rotation=90,
                        fontsize=7,
                        va="bottom",
                        ha="right",
                    )  # curves are far above there
            known = [s for s in shown if s.ssim < 1 - 1e-6]
            if known:
                right.plot(
                    [s.bpv for s in known],
                    [s.ssim for s in known],
                    linewidth=1.4,
                    markersize=4.5,
                    **style,
                )
        right.set_yscale(
            "function",
            functions=(lambda y: -np.log10(np.maximum(1 - y, 1e-6)), lambda v: 1 - 10.0**-v),
        )
        right.set_yticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995])
        right.yaxis.set_major_formatter(lambda ssim, _: f"{ssim:g}")
        right.set_ylim(
            max(0.0, min((s.ssim for s in of_volume if s.ssim == s.ssim), default=0.0)), 0.9998
        )
    _legend(figure, panels.ravel())
    figure.supxlabel("bits per voxel (whole file)", fontsize=10)
    return figure


def _errors(samples: Sequence[Sample], first: dict[tuple[str, str], Point]) -> Any:
    from matplotlib.figure import Figure

    columns = min(2, len(first))
    rows = -(-len(first) // columns)
    figure = Figure(figsize=(5.5 * columns, 0.6 + 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(first) :]:
        panel.set_axis_off()
    for panel, (place, point) in zip(panels, first.items(), strict=False):
        of_volume = [
            sample
            for sample in samples
            if (sample.volume, sample.roi) == place and sample.maxerr >= 0
        ]
        panel.set_title(_title(point), loc="left", fontsize=10)
        _axes(panel, [sample.bpv for sample in of_volume])
        panel.set_yscale("symlog", linthresh=1, linscale=0.3)
        panel.set_ylabel("largest error (stored units)")
        for codec, curve in _by_codec(of_volume):
            panel.plot(
                [s.bpv for s in curve],
                [s.maxerr for s in curve],
                linewidth=1.4,
                markersize=4.5,
                **_style(codec),
            )
        panel.set_ylim(-0.1, None)
        panel.yaxis.set_major_formatter(lambda error, _: f"{error:g}")
    _legend(figure, panels)
    figure.supxlabel("bits per voxel (whole file)", fontsize=10)
    return figure


def _mean_curves(samples: Sequence[Sample], points: Sequence[Point]) -> Any:
    from matplotlib.figure import Figure

    of_volume = groups(points)
    classes: list[str | None] = [None, *dict.fromkeys(of_volume.values())]
    if len(classes) == 2:  # one class is all
        classes = [None]
    figure = Figure(
        figsize=(5.5 * min(2, len(classes)), 0.6 + 4.2 * -(-len(classes) // 2)),
        layout="constrained",
    )
    panels = figure.subplots(-(-len(classes) // 2), min(2, len(classes)), squeeze=False).ravel()
    for panel in panels[len(classes) :]:
        panel.set_axis_off()
    grid = np.geomspace(0.03, 3, 25).tolist()
    for panel, group in zip(panels, classes, strict=False):
        volumes = [volume for volume, name in of_volume.items() if group in (None, name)]
        panel.set_title(f"{group or 'all volumes'} ({len(volumes)})", loc="left", fontsize=10)
        _axes(panel, grid)
        panel.set_ylabel("mean PSNR (dB)")
        for number, codec in enumerate(dict.fromkeys(sample.codec for sample in samples)):
            means = comparison.mean_psnrs(
                samples, codec, group, lambda volume: of_volume.get(volume, ""), grid
            )
            known = [
                (rate, mean)
                for rate, mean in zip(grid, means, strict=True)
                if mean.volumes == len(volumes)
            ]
            if len(known) < 2:
                continue
            style = {**_style(codec), "marker": None}
            (line,) = panel.plot(
                [rate for rate, _ in known],
                [mean.value for _, mean in known],
                linewidth=1.6,
                **style,
            )
            if number == 0:  # one band can be read, a dozen cannot
                low, high = [mean.low for _, mean in known], [mean.high for _, mean in known]
                panel.fill_between(
                    [rate for rate, _ in known],
                    low,
                    high,
                    color=line.get_color(),
                    alpha=0.12,
                    linewidth=0,
                )
    _legend(figure, panels)
    figure.supxlabel(
        "bits per voxel; rates that every volume of the class reaches; band: "
        f"{comparison.CONFIDENCE:g} % bootstrap interval of the first codec over the volumes", fontsize=9,
    )  # fmt: skip
    return figure


def _legend(figure: Any, panels: Iterable[Any]) -> None:
    """One for all panels, above them."""
    lines = {
        line.get_label(): line
        for panel in panels
        for line in panel.lines
        if line.get_label()[0] != "_"
    }
    if lines:
        columns = max(1, int(figure.get_figwidth() / 2))  # inches that a name and its line may take
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
    other = _OTHERS[zlib.crc32(codec.encode()) % len(_OTHERS)]  # the same in every panel
    return _STYLES.get(codec, {"label": codec, "marker": ".", "color": other})


def _by_codec(samples: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    codecs: dict[str, list[Sample]] = {}
    for sample in samples:
        codecs.setdefault(sample.codec, []).append(sample)
    return [
        (codec, sorted(curve, key=lambda sample: sample.bpv)) for codec, curve in codecs.items()
    ]


def _axes(panel: Any, rates: Sequence[float]) -> None:
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
