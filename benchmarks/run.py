"""Every codec on every volume: lossy curves and lossless sizes as JSON lines, and tables of them.

From the root of the repository:

    python -m benchmarks.run DATA... -o results.jsonl

What is measured is in README.md in this folder.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from mricodec.codec.evaluation import aggregate, bd_rate, still
from mricodec.codec.evaluation.aggregate import (
    ANCHOR,
    ANCHOR_RATES,
    JPEG2000,
    MIN_JPEG2000_PSNR,
)
from mricodec.codec.evaluation.codecs import (
    MODELS,
    Mricodec,
    MricodecLossless,
    available_baselines,
    spread_qualities,
)
from mricodec.codec.evaluation.points import PointFile, RdPoint, Region, rd_points, read_csv
from mricodec.codec.evaluation.rate_distortion import (
    MIN_POINTS,
    Codec,
    Point,
    Source,
    measure,
    scan_name,
)
from mricodec.codec.evaluation.report import environment
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.settings import EFFORTS
from mricodec.codec.voxels.metrics import Range
from mricodec.codec.voxels.quality import DEFAULT_QUALITY
from mricodec.models.extras import MissingExtra

from . import lossless_tables, volumes
from .lossy_tables import HIGH_RATES, PROJECT, LossyTables
from .tables import LOSSLESS_PEERS, LOSSY_PEERS, PEER_CSVS

# Slices of a lossy region.
SLAB = 40
# Points of a curve within the PSNRs where it is compared, and in all.
DENSE_POINTS = 13
MAX_POINTS = 32
# Points of a curve that takes long, one on each side of the range where it is compared included.
SLOW_POINTS = 11
# PSNR (dB) and RMSE (stored units) at the fine end: a curve ends at the first that it reaches.
FINEST_PSNR, FINEST_RMSE = 52.0, 0.5
# Qualities where the usual ones don't reach the fine end.
FINER_QUALITIES = (90.0, 100.0)
# Target PSNRs (dB) of JPEG 2000.
TARGETS = tuple(float(target) for target in range(25, 54))
# Points of a curve of a video codec.
VIDEO_POINTS = 14
# The codec whose curves take long.
SLOW = f"{PROJECT}-high"
# Video codecs that run where the CSV files have no points: names of `codecs.BASELINES`.
VIDEO = ("x265", "x265-veryslow", "svtav1")

# PSNRs (dB) between which a curve has to have so many points.
Dense = tuple[Range, int]
# The next parameter of a curve from its points; None if the curve is complete.
Schedule = Callable[[Sequence[Point]], float | None]


def next_quality(points: Sequence[Point], dense: Sequence[Dense] = ()) -> float | None:
    """An even spread and the default, then the fine end, then the widest gap of a dense range.

    Without any `dense` range: what the curve itself covers at `ANCHOR_RATES`.
    """
    measured = {point.param for point in points}
    for quality in (*spread_qualities(MIN_POINTS), DEFAULT_QUALITY):
        if quality not in measured:
            return quality
    finest = max(points, key=lambda point: point.psnr)
    if finest.psnr < FINEST_PSNR and finest.rmse > FINEST_RMSE:
        for quality in FINER_QUALITIES:
            if quality not in measured:
                return quality
    if not dense:
        covered = _range([p.bpv for p in points], [p.psnr for p in points], ANCHOR_RATES)
        dense = [(covered, DENSE_POINTS)] if covered else []
    for (low, high), count in dense:
        if len(points) < MAX_POINTS and sum(low <= p.psnr <= high for p in points) < count:
            quality_in_gap = _middle_of_widest_gap(points, low, high)
            if quality_in_gap is not None:
                return quality_in_gap
    return None


def _middle_of_widest_gap(points: Sequence[Point], low: float, high: float) -> float | None:
    """The quality between the two neighbours that are farthest apart within a range of PSNR."""
    measured = {point.param for point in points}
    widest, quality = 0.0, None
    for a, b in pairwise(sorted(points, key=lambda point: point.param)):
        gap = min(max(a.psnr, b.psnr), high) - max(min(a.psnr, b.psnr), low)
        middle = round((a.param + b.param) / 2, 2)
        if gap > widest and middle not in measured:
            widest, quality = gap, middle
    return quality


def _range(rates: Sequence[float], psnrs: Sequence[float], at: Range) -> Range | None:
    """PSNRs of a curve at two rates; None if it has nothing between them."""
    try:
        return bd_rate.psnr_range(rates, psnrs, *at)
    except ValueError:
        return None


def each_of(parameters: Sequence[float]) -> Schedule:
    """Every parameter once."""

    def schedule(points: Sequence[Point]) -> float | None:
        measured = {point.param for point in points}
        return next((parameter for parameter in parameters if parameter not in measured), None)

    return schedule


def covering(points: Sequence[Point], span: Range, count: int = SLOW_POINTS) -> list[float]:
    """At most `count` qualities of points within and next to a range of PSNR, about evenly."""
    ordered = sorted(points, key=lambda point: point.psnr)
    inside = [n for n, point in enumerate(ordered) if span[0] <= point.psnr <= span[1]]
    if not inside:
        return []
    part = ordered[max(inside[0] - 1, 0) : inside[-1] + 2]
    chosen = {round(n) for n in np.linspace(0, len(part) - 1, min(count, len(part)))}
    return [part[n].param for n in sorted(chosen)]


def measure_curve(
    codec: Codec, source: Source, schedule: Schedule, results: PointFile
) -> list[Point]:
    """All points that the schedule asks for; coded files are not kept."""
    while (parameter := schedule(results.curve(source, codec))) is not None:
        with tempfile.TemporaryDirectory() as folder:
            point = measure(codec, source, parameter, Path(folder))
        results.add(point)
        click.echo(
            f"{point.volume} {point.roi} {point.codec} {point.param:g}: {point.bpv:.4f} bpv, "
            f"{point.psnr:.2f} dB, SSIM {point.ssim:.4f}, {point.enc_wall:.2f} s + "
            f"{point.dec_wall:.2f} s",
            err=True,
        )
    return results.curve(source, codec)


def sources(path: Path) -> tuple[Source, Source]:
    """The whole volume (of a 4-D scan the first) and its central slices.

    ValueError or OSError if it can't be read.
    """
    whole = Source.bare(path)
    return whole, whole.central(SLAB)


class Bench:
    """A run over a set of scans: sources, measured points, points of CSV files, failures."""

    def __init__(self, scans: Sequence[Path], output: Path, csvs: Sequence[Path] = ()) -> None:
        """ValueError if `output` holds something else."""
        self.failures: list[str] = []
        self._paths: dict[str, Path] = {}
        self._seen: set[Region] = set()
        self._shapes: dict[Region, tuple[int, ...]] = {}
        for path in scans:
            self._register(path)
        self.results = PointFile(output, environment)
        self.known: list[RdPoint] = []
        for csv in csvs:
            try:
                content = read_csv(csv, self._shapes)
            except (ValueError, OSError) as error:
                self.failures.append(str(error))
                continue
            self.known += content.points
            # The committed points need not be of the volumes measured.
            if content.points or csv not in PEER_CSVS:
                self.failures += content.faults

    def _register(self, path: Path) -> None:
        """Shapes from headers only: what a CSV has to agree with."""
        name = scan_name(path)
        if name in self._paths:
            self.failures.append(f"{path}: named like {self._paths[name]}")
            return
        try:
            with closing(open_scan(path)) as scan:
                shape = scan.shape[-3:]
        except (ValueError, OSError) as error:
            self.failures.append(f"{path}: {error}")
            return
        self._paths[name] = path
        self._shapes[name, "full"] = shape
        self._shapes[name, f"slab{SLAB}"] = (min(shape[0], SLAB), *shape[1:])

    @property
    def points(self) -> list[Point]:
        """On the scans of this run."""
        return [point for point in self.results.points if (point.volume, point.roi) in self._seen]

    def sources(self) -> Iterator[tuple[Source, Source]]:
        """Whole and central part of every scan that can be read."""
        for number, (name, path) in enumerate(self._paths.items(), 1):
            click.echo(f"{number}/{len(self._paths)} {name}", err=True)
            try:
                both = sources(path)
            except (ValueError, OSError) as error:
                self.failures.append(f"{path}: {error}")
                continue
            for source in both:
                self.results.discard(source)
                self._seen.add((source.name, source.roi))
            yield both

    def curve(self, codec: Codec, source: Source, schedule: Schedule) -> list[Point]:
        """What the schedule asks for, as far as the codec can."""
        try:
            return measure_curve(codec, source, schedule, self.results)
        # A FormatError is a ValueError, errors of imagecodecs and ffmpeg are RuntimeErrors.
        except (ValueError, RuntimeError) as error:
            self.failures.append(f"{source.name} with {codec.name}: {error}")
            return self.results.curve(source, codec)

    def video_curves(self, source: Source, codecs: Sequence[Codec]) -> None:
        """The video codecs that no CSV has points of on this volume."""
        known = {p.codec for p in self.known if (p.volume, p.roi) == (source.name, source.roi)}
        for codec in codecs:
            if codec.name not in known:
                self.curve(codec, source, each_of(codec.parameters(VIDEO_POINTS, [])))

    def dense(self, source: Source) -> list[Dense]:
        """Where curves of this volume are compared, from the points of other codecs."""
        by_region = aggregate.curves_by_region([*self.known, *rd_points(self.points)])
        curves = by_region.get((source.name, source.roi), {})
        anchor, high = (
            _range(*aggregate.columns(curves.get(codec, [])), rates)
            for codec, rates in ((ANCHOR, ANCHOR_RATES), (JPEG2000, HIGH_RATES))
        )
        dense: list[Dense] = []
        if anchor is not None:
            dense.append((anchor, DENSE_POINTS))
            dense.append(((max(MIN_JPEG2000_PSNR, anchor[0]), anchor[1]), MIN_POINTS))
        if high is not None:
            dense.append((high, MIN_POINTS))
        return dense

    def project_curve(self, codec: Codec, source: Source) -> list[Point]:
        """A curve of this project, dense where it is compared.

        Of effort high only there, at qualities of the default effort.
        """
        dense = self.dense(source)
        if codec.name == SLOW and dense:
            key = (PROJECT, source.name, source.roi)
            usual = [p for p in self.results.points if (p.codec, p.volume, p.roi) == key]
            if qualities := covering(usual, dense[0][0]):
                return self.curve(codec, source, each_of(qualities))
        return self.curve(codec, source, lambda points: next_quality(points, dense))

    def finish(self, text: str) -> None:
        """Tables to stdout, failures to stderr; exit code 1 if there are some."""
        click.echo(text)
        for failure in dict.fromkeys(self.failures):
            click.echo(f"left out: {failure}", err=True)
        if self.failures:
            raise click.exceptions.Exit(1)


def summary(points: Sequence[Point], known: Sequence[RdPoint] = ()) -> str:
    """All tables that the points allow."""
    lossy = LossyTables.of(points, known)
    parts = []
    if lossy.codecs:
        parts.append(lossy.by_class())
        parts += [f"{codec}, every volume:\n\n{lossy.by_volume(codec)}" for codec in lossy.codecs]
        parts.append(lossy.default_quality())
    samples = [p for p in rd_points(points) if p.codec == MricodecLossless.name]
    baselines = [p for p in rd_points(points) if not p.codec.startswith(PROJECT)]
    parts.append(lossless_tables.lossless([*samples, *baselines, *known], MricodecLossless.name))
    return "\n\n".join(part for part in parts if part) or "no points"


def video_codecs(names: Sequence[str] = VIDEO) -> list[Codec]:
    """The video codecs that run here; the others are named on stderr."""
    available, missing = available_baselines(names)
    for name, reason in missing.items():
        click.echo(f"not run: {name}: {reason}", err=True)
    return available


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def scans_of(data: Sequence[Path], split: str) -> list[Path]:
    """The scans to measure; what differs from volumes.csv goes to stderr.

    UsageError, in one line, if there are none.
    """
    try:
        paths = volumes.scans(data, split)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for line in volumes.differences(paths, split):
        click.echo(f"note: {line}", err=True)
    return paths


# Arguments and options that the commands share.
DATA = click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
SPLIT = click.option(
    "--split",
    type=click.Choice(volumes.SPLITS),
    default=volumes.SPLITS[0],
    show_default=True,
    help="Folder of a data folder that is measured.",
)
OUTPUT = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON lines.",
)
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores."
)


def peers_option(*defaults: Path) -> Callable[..., Any]:
    """CSV files with points of other codecs; the committed ones by default."""
    return click.option(
        "--peers",
        "csvs",
        multiple=True,
        default=defaults,
        type=click.Path(dir_okay=False, path_type=Path),
        help="CSV with points of other codecs on the same volumes; default: those of peers/.",
    )


@click.command()
@DATA
@SPLIT
@OUTPUT
@peers_option(LOSSY_PEERS, LOSSLESS_PEERS)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(MODELS),
    default=("default",),
    show_default=True,
)
@click.option(
    "--effort",
    "efforts",
    multiple=True,
    type=click.Choice(EFFORTS),
    default=("default",),
    show_default=True,
    help="Effort of the encoder; may be given several times.",
)
@click.option(
    "--video",
    "videos",
    multiple=True,
    type=click.Choice(VIDEO),
    default=VIDEO,
    show_default=True,
    help="Video codecs to run where the CSVs have no points.",
)
@click.option("--run-peers", is_flag=True, help="Run them where the CSVs have points, too.")
@click.option("--only", type=click.Choice(("lossy", "lossless")), help="Leave out the other.")
@THREADS
def main(**options: Any) -> None:
    """Measure every codec on the scans of DATA and print tables; repeat to resume.

    DATA: scans, folders of scans, or a data folder with test/ (or another --split).
    """
    use_threads(options["threads"])
    only = options["only"]
    try:
        scans = scans_of(options["data"], options["split"])
        bench = Bench(scans, options["output"], options["csvs"])
        models = [
            Mricodec(name, effort=effort)
            for name in dict.fromkeys(options["models"])
            for effort in dict.fromkeys(options["efforts"])
        ]
        jpeg2000, lossless = still.jpeg2000(), [MricodecLossless(), *still.lossless()]
    except (MissingExtra, ValueError) as error:
        raise click.ClickException(str(error)) from error
    videos = video_codecs(options["videos"]) if only != "lossless" else []
    if options["run_peers"]:
        rerun = {codec.name for codec in videos}
        bench.known = [point for point in bench.known if point.codec not in rerun]
    for whole, part in bench.sources():
        if only != "lossless":
            bench.curve(jpeg2000, part, each_of(TARGETS))
            bench.video_curves(part, videos)
            for model in models:
                bench.project_curve(model, part)
        if only != "lossy":
            for codec in lossless:
                bench.curve(codec, whole, each_of([0.0]))
    points = bench.points
    if only is not None:
        points = [p for p in points if math.isinf(p.psnr) == (only == "lossless")]
    bench.finish(summary(points, bench.known))


if __name__ == "__main__":
    main()
