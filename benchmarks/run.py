"""Every codec on every volume: lossy curves and lossless sizes as JSON lines, and tables of them.

From the root of the repository:

    python -m benchmarks.run DATA... -o results.jsonl --peers lossy.csv --peers lossless.csv

What is measured and what the tables say is in README.md beside this file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from mricodec.benchmarks import tables
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
from mricodec.codec.evaluation.extras import MissingExtra
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
from mricodec.codec.settings import EFFORTS, Effort
from mricodec.codec.voxels import metrics
from mricodec.codec.voxels.quality import DEFAULT_QUALITY

SLAB = 40  # slices of a lossy roi
DENSE_POINTS = 13  # of a curve within the PSNRs where it is compared
MAX_POINTS = 32
SLOW_POINTS = 11  # of a curve that takes long: with those around where it is compared
FINEST_PSNR, FINEST_RMSE = (
    52.0,
    0.5,
)  # dB, stored units: a curve need go no further than the first of them
FINER_QUALITIES = (90.0, 100.0)  # where the usual ones do not reach that far
TARGETS = tuple(float(target) for target in range(25, 54))  # dB, of JPEG 2000
VIDEO_POINTS = 14
SLOW = f"{tables.OWN}-high"
LIVE = {
    "x265": ANCHOR,
    "x265-veryslow": "x265-veryslow",
}  # run where the CSV has no points: names of `codecs.BASELINES`

Dense = tuple[metrics.Range, int]  # PSNRs (dB) between which a curve has to have so many points
Schedule = Callable[
    [Sequence[Point]], float | None
]  # the next parameter of a curve; None: it is done


def next_quality(points: Sequence[Point], dense: Sequence[Dense] = ()) -> float | None:
    """An even spread and the default, on to the finest PSNR, then the middle of the widest gap of a range not yet dense.

    Without any: what the curve itself covers at `ANCHOR_RATES`.
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
        own = _range([p.bpv for p in points], [p.psnr for p in points], ANCHOR_RATES)
        dense = [(own, DENSE_POINTS)] if own else []
    for (low, high), wanted in dense:
        if (
            len(points) >= MAX_POINTS
            or sum(low <= point.psnr <= high for point in points) >= wanted
        ):
            continue
        widest, answer = 0.0, None
        for a, b in pairwise(sorted(points, key=lambda point: point.param)):
            gap = min(max(a.psnr, b.psnr), high) - max(min(a.psnr, b.psnr), low)
            middle = round((a.param + b.param) / 2, 2)
            if gap > widest and middle not in measured:
                widest, answer = gap, middle
        if answer is not None:
            return answer
    return None


def _range(
    rates: Sequence[float], psnrs: Sequence[float], at: metrics.Range
) -> metrics.Range | None:
    """PSNRs of a curve at two rates; None if it does not come by there."""
    try:
        return bd_rate.psnr_range(rates, psnrs, *at)
    except ValueError:
        return None


def in_turn(parameters: Sequence[float]) -> Schedule:
    """Every parameter once."""

    def schedule(points: Sequence[Point]) -> float | None:
        measured = {point.param for point in points}
        return next((parameter for parameter in parameters if parameter not in measured), None)

    return schedule


def covering(points: Sequence[Point], span: metrics.Range, count: int = SLOW_POINTS) -> list[float]:
    """Qualities of points of a curve within a range of PSNR and next to it, at most `count`, about evenly."""
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
    """All points that the schedule asks for, those that are missing measured; coded files are not kept."""
    while (parameter := schedule(results.curve(source, codec))) is not None:
        with tempfile.TemporaryDirectory() as folder:
            point = measure(codec, source, parameter, Path(folder))
        results.add(point)
        click.echo(
            f"{point.volume} {point.roi} {point.codec} {point.param:g}: {point.bpv:.4f} bpv, {point.psnr:.2f} dB, "
            f"SSIM {point.ssim:.4f}, {point.enc_wall:.2f} s + {point.dec_wall:.2f} s",
            err=True,
        )
    return results.curve(source, codec)


def scans(data: Sequence[Path]) -> list[Path]:
    """The files themselves, and those of NIfTI in the folders."""
    found: list[Path] = []
    for path in data:
        inside = [path] if path.is_file() else path.iterdir()
        found += sorted(
            scan for scan in inside if path.is_file() or scan.name.endswith((".nii", ".nii.gz"))
        )
    return found


def sources(path: Path) -> tuple[Source, Source]:
    """The whole volume (of a 4-D scan the first) and its central slices. ValueError, OSError: unreadable."""
    whole = Source.bare(path)
    return whole, whole.central(SLAB)


class Bench:
    """A run over a set of scans: their sources, the points measured and those from CSV files, and what was left out."""

    def __init__(self, data: Sequence[Path], output: Path, csvs: Sequence[Path]) -> None:
        """ValueError if `output` holds something else."""
        self.failures: list[str] = []
        self._paths: dict[str, Path] = {}
        self._seen: set[Region] = set()
        self._shapes: dict[Region, tuple[int, ...]] = {}
        for path in scans(data):
            self._plan(path)
        self.results = PointFile(output, environment)
        self.rivals: list[RdPoint] = []
        for csv in csvs:
            try:
                found = read_csv(csv, self._shapes)
            except (ValueError, OSError) as error:
                self.failures.append(str(error))
                continue
            self.rivals += found.points
            self.failures += found.faults

    def _plan(self, path: Path) -> None:
        """Shapes from headers alone: what a CSV has to agree with."""
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
        except (
            ValueError,
            RuntimeError,
        ) as error:  # FormatError, an error of imagecodecs or ffmpeg
            self.failures.append(f"{source.name} with {codec.name}: {error}")
            return self.results.curve(source, codec)

    def videos(self, source: Source, live: Sequence[Codec]) -> None:
        """The video codecs that no CSV has points of on this volume."""
        known = {s.codec for s in self.rivals if (s.volume, s.roi) == (source.name, source.roi)}
        for codec in live:
            if codec.name not in known:
                self.curve(codec, source, in_turn(codec.parameters(VIDEO_POINTS, [])))

    def dense(self, source: Source) -> list[Dense]:
        """Where curves of this volume are compared, as far as the points of other codecs tell."""
        region = (source.name, source.roi)
        known = aggregate.curves_by_region([*self.rivals, *rd_points(self.points)]).get(region, {})
        anchor, high = (
            _range(*aggregate.columns(known.get(codec, [])), rates)
            for codec, rates in ((ANCHOR, ANCHOR_RATES), (JPEG2000, tables.HIGH_RATES))
        )
        found = []
        if anchor is not None:
            found += [
                (anchor, DENSE_POINTS),
                ((max(MIN_JPEG2000_PSNR, anchor[0]), anchor[1]), MIN_POINTS),
            ]
        return [*found, *([(high, MIN_POINTS)] if high is not None else [])]

    def own(self, codec: Codec, source: Source) -> list[Point]:
        """A curve of this project, dense where it is compared; of effort high there alone, at qualities of the default's."""
        dense = self.dense(source)
        if codec.name == SLOW and dense:
            usual = [
                p
                for p in self.results.points
                if (p.codec, p.volume, p.roi) == (tables.OWN, source.name, source.roi)
            ]
            if qualities := covering(usual, dense[0][0]):
                return self.curve(codec, source, in_turn(qualities))
        return self.curve(codec, source, lambda points: next_quality(points, dense))

    def finish(self, text: str) -> None:
        """Tables to stdout, failures to stderr; exit code 1 if there are some."""
        click.echo(text)
        for failure in dict.fromkeys(self.failures):
            click.echo(f"left out: {failure}", err=True)
        if self.failures:
            raise click.exceptions.Exit(1)


def live_videos(names: Sequence[str] = tuple(LIVE)) -> list[Codec]:
    """The video codecs that run here; the others are named on stderr."""
    found, missing = available_baselines(names)
    for name, reason in missing.items():
        click.echo(f"not run: {name}: {reason}", err=True)
    return found


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


DATA = click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
OUTPUT = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON lines.",
)
PEERS = click.option("--peers", "csvs", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
                     help="CSV with points of other codecs on the same volumes; may be given several times.")  # fmt: skip
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores."
)


@click.command()
@DATA
@OUTPUT
@PEERS
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(MODELS),
    default=("default",),
    show_default=True,
)
@click.option("--effort", "efforts", multiple=True, type=click.Choice(EFFORTS), default=("default",), show_default=True,
              help="Effort of the encoder; may be given twice.")  # fmt: skip
@click.option("--video", "live", multiple=True, type=click.Choice(tuple(LIVE)), default=tuple(LIVE), show_default=True,
              help="Video codecs to run where the CSVs have no points.")  # fmt: skip
@click.option("--only", type=click.Choice(("lossy", "lossless")), help="Leave out the other.")
@THREADS
def main(
    data: tuple[Path, ...],
    output: Path,
    csvs: tuple[Path, ...],
    models: tuple[str, ...],
    efforts: tuple[Effort, ...],
    live: tuple[str, ...],
    only: str | None,
    threads: int | None,
) -> None:
    """Measure every codec on the scans of DATA (files and folders) and print tables; repeat to resume."""
    use_threads(threads)
    try:
        bench = Bench(data, output, csvs)
        own = [
            Mricodec(name, effort=effort)
            for name in dict.fromkeys(models)
            for effort in dict.fromkeys(efforts)
        ]
        jpeg2000, lossless = still.jpeg2000(), [MricodecLossless(), *still.lossless()]
    except (MissingExtra, ValueError) as error:
        raise click.ClickException(str(error)) from error
    videos = live_videos(live) if only != "lossless" else []
    for whole, part in bench.sources():
        if only != "lossless":
            bench.curve(jpeg2000, part, in_turn(TARGETS))
            bench.videos(part, videos)
            for model in own:
                bench.own(model, part)
        if only != "lossy":
            for codec in lossless:
                bench.curve(codec, whole, in_turn([0.0]))
    bench.finish(tables.summary([p for p in bench.points if only is None or math.isinf(p.psnr) == (only == "lossless")],
                                bench.rivals))  # fmt: skip


if __name__ == "__main__":
    main()
