"""Every codec on every volume: lossy curves and lossless sizes as JSON lines, and tables of them.

From the root of the repository:

    python -m benchmarks.run DATA -o results.jsonl --peers lossy.csv --peers lossless.csv

What is measured and what the tables say is in README.md beside this file.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from mricodec.codec.formats import open_scan
from mricodec.codec.peers import MissingExtra
from mricodec.codec.rate_distortion import (
    LEAST_POINTS,
    MODELS,
    Contender,
    Mricodec,
    MricodecLossless,
    Point,
    Source,
    measure,
    scan_name,
    spread_qualities,
)
from mricodec.codec.report import environment
from mricodec.codec.tiling import SLAB_SLICES, Tiling
from mricodec.codec.volume import Volume

from . import peers, tables

SLAB = 40  # slices of a lossy roi
DENSE_RATES = (0.08, 1.0)  # bits per voxel between which the points of a curve have to be dense ...
DENSE_POINTS = 13  # ... so many of them
MOST_POINTS = 32
TARGETS = tuple(float(target) for target in range(26, 53))  # dB, of JPEG 2000


class ResultFile:
    """JSON lines: an "environment" before the points of every run, then the points."""

    def __init__(self, path: Path) -> None:
        """What is there already. ValueError if it is something else."""
        self._path = path
        self._curves: dict[tuple[str, str, str], dict[float, Point]] = {}
        self._announced = False
        if not path.exists():
            return
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                row = json.loads(line)
                if "environment" not in row:
                    self._take(Point.from_row(row))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a point, found something else ({error!r})"
                ) from error
        if end != len(content):  # the last line of an interrupted run
            path.write_bytes(content[:end])

    @property
    def points(self) -> list[Point]:
        return [point for curve in self._curves.values() for point in curve.values()]

    def of(self, source: Source, contender: Contender) -> list[Point]:
        """The points of one curve; none if the volume or the codec is another one now."""
        curve = self._curves.get((source.name, source.roi, contender.name), {})
        return [point for point in curve.values() if point.holds_for(source, contender)]

    def add(self, point: Point) -> None:
        self._take(point)
        with self._path.open("a", encoding="utf-8") as file:
            if not self._announced:
                file.write(json.dumps({"environment": environment()}) + "\n")
                self._announced = True
            file.write(json.dumps(point.to_row()) + "\n")

    def _take(self, point: Point) -> None:
        """A point of another volume or version begins its curve anew."""
        curve = self._curves.setdefault((point.volume, point.roi, point.codec), {})
        if any((p.voxels, p.version) != (point.voxels, point.version) for p in curve.values()):
            curve.clear()
        curve[point.param] = point


def sources(path: Path) -> tuple[Source, Source]:
    """The whole volume (of a 4-D scan the first) and its central slices. ValueError, OSError: unreadable."""
    with closing(open_scan(path)) as scan:
        tiling = Tiling(scan.shape, 0, SLAB_SLICES)
        slabs = []
        for slab in scan.blocks(tiling):
            slabs.append(slab)
            if len(slabs) == tiling.slabs_per_volume:
                break
        voxels = np.concatenate(slabs)
        spacing_mm = scan.spacing_mm
    whole = Source.of_array(scan_name(path), Volume.from_array(voxels, spacing_mm=spacing_mm))
    if len(voxels) <= SLAB:
        return whole, whole
    start = (len(voxels) - SLAB) // 2
    part = Volume.from_array(np.ascontiguousarray(voxels[start : start + SLAB]), spacing_mm=spacing_mm)
    return whole, Source.of_array(whole.name, part, limits=whole.limits, roi=f"slab{SLAB}")


def next_quality(points: Sequence[Point]) -> float | None:
    """An even spread, then the middle of the widest step within `DENSE_RATES`; None: the curve is done."""
    measured = {point.param for point in points}
    for quality in spread_qualities(LEAST_POINTS):
        if quality not in measured:
            return quality
    low, high = DENSE_RATES
    if len(points) >= MOST_POINTS or sum(low <= point.bpv <= high for point in points) >= DENSE_POINTS:
        return None
    widest, answer = 0.0, None
    for a, b in pairwise(sorted(points, key=lambda point: point.param)):
        start, end = sorted((a.bpv, b.bpv))
        step = math.log(max(min(end, high), low) / min(max(start, low), high))
        middle = round((a.param + b.param) / 2, 2)
        if step > widest and middle not in measured:
            widest, answer = step, middle
    return answer


def next_target(points: Sequence[Point]) -> float | None:
    """JPEG 2000: every target in turn."""
    measured = {point.param for point in points}
    return next((target for target in TARGETS if target not in measured), None)


def once(points: Sequence[Point]) -> float | None:
    """Lossless: no parameter."""
    return None if points else 0.0


def measure_curve(
    contender: Contender,
    source: Source,
    schedule: Callable[[Sequence[Point]], float | None],
    results: ResultFile,
) -> None:
    """All points that the schedule asks for and that are missing; coded files are not kept."""
    while (parameter := schedule(results.of(source, contender))) is not None:
        with tempfile.TemporaryDirectory() as folder:
            point = measure(contender, source, parameter, Path(folder))
        results.add(point)
        click.echo(
            f"{point.volume} {point.roi} {point.codec} {point.param:g}: {point.bpv:.4f} bpv, "
            f"{point.psnr:.2f} dB, SSIM {point.ssim:.4f}, {point.enc_wall:.2f} s + {point.dec_wall:.2f} s",
            err=True,
        )


def scans(data: Sequence[Path]) -> list[Path]:
    """The files themselves, and those of NIfTI in the folders."""
    found: list[Path] = []
    for path in data:
        inside = [path] if path.is_file() else path.iterdir()
        found += sorted(scan for scan in inside if path.is_file() or scan.name.endswith((".nii", ".nii.gz")))
    return found


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines."
)
@click.option(
    "--model", "models", multiple=True, type=click.Choice(MODELS), default=("default",), show_default=True
)
@click.option("--only", type=click.Choice(("lossy", "lossless")), help="Leave out the other.")
@click.option(
    "--peers",
    "csvs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with points of other codecs on the same volumes.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
def main(
    data: tuple[Path, ...],
    output: Path,
    models: tuple[str, ...],
    only: str | None,
    csvs: tuple[Path, ...],
    threads: int | None,
) -> None:
    """Measure every codec on the scans of DATA (files and folders) and print tables; repeat to resume."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    failures = []
    try:
        results = ResultFile(output)
        lossy: list[Contender] = [] if only == "lossless" else [*map(Mricodec, models), *peers.lossy()]
        lossless: list[Contender] = [] if only == "lossy" else [MricodecLossless(), *peers.lossless()]
    except (MissingExtra, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for path in scans(data):
        try:
            whole, part = sources(path)
        except (ValueError, OSError) as error:
            failures.append(f"{path}: {error}")
            continue
        for source, contender, schedule in (
            *((part, c, next_quality if isinstance(c, Mricodec) else next_target) for c in lossy),
            *((whole, c, once) for c in lossless),
        ):
            try:
                measure_curve(contender, source, schedule, results)
            except (ValueError, RuntimeError) as error:  # FormatError, an error of imagecodecs
                failures.append(f"{source.name} with {contender.name}: {error}")
    rivals = []
    for path in csvs:
        try:
            rivals += tables.read_csv(path)
        except ValueError as error:
            failures.append(str(error))
    click.echo(tables.summary(results.points, rivals))
    for failure in failures:
        click.echo(f"left out: {failure}", err=True)
    if failures:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
