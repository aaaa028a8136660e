"""`rd-curve`: measure, then write tables (CSV, JSON), plots and one HTML page; extra `bench`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from mricodec.codec.atomic import replacing
from mricodec.models.extras import require

from . import aggregate, page, plots
from .aggregate import BdRow
from .points import PointFile, RdPoint, classes, rd_points, read_csv
from .rate_distortion import (
    MIN_POINTS,
    Codec,
    Point,
    Row,
    Source,
    json_row,
    measure,
    scan_name,
)

# Names of the files in the folder of the results.
POINTS, DATA, TABLE, BD_TABLE, PAGE = "points.jsonl", "rd.json", "rd.csv", "bd-rate.csv", "rd.html"
# Rates (bits per voxel) of the pictures on the page.
PICTURE_RATES = (0.1, 0.3, 1.0)

# Called with the fraction of the work that is done, and what comes next.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class RdSettings:
    """How the curves of `rd_curve` are measured."""

    # Files per curve.
    points: int = 10
    # Code bare arrays, of a 4-D scan the first volume, and of that so many central slices; None
    # codes whole files, headers included.
    central: int | None = None
    # Measure again what an earlier run has measured.
    force: bool = False
    # CSV files with points of further baselines, see `points.read_csv`.
    csvs: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if self.points < MIN_POINTS:
            raise ValueError(f"a curve needs at least {MIN_POINTS} points, got {self.points}")


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why; volume and codec are "" where it concerns all."""

    volume: str
    codec: str
    reason: str

    def __str__(self) -> str:
        subject = " with ".join(name for name in (self.volume, self.codec) if name)
        return f"{subject}: {self.reason}" if subject else self.reason


@dataclass(frozen=True)
class RdReport:
    """The result of `rd_curve`."""

    # By volume and codec, then by size.
    points: tuple[Point, ...]
    # Points of codecs that were not run, from CSV files.
    others: tuple[RdPoint, ...]
    bd_rates: tuple[BdRow, ...]
    failures: tuple[Failure, ...]
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of rd.json."""
        samples = [*rd_points(self.points), *self.others]
        return {
            "environment": environment(),
            "points": [point.to_row() for point in self.points],
            "bd_rate": [row.to_row() for row in self.bd_rates],
            "mean_psnr": _mean_rows(samples, classes(self.points)),
            "failures": [asdict(failure) for failure in self.failures],
        }


def rd_curve(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    codecs: Sequence[Codec],
    baselines: Sequence[Codec] = (),
    *,
    settings: RdSettings | None = None,
    progress: Progress = lambda fraction, label: None,
) -> RdReport:
    """Encode every scan with every codec and baseline at several parameters each, decode, compare.

    Writes the coded files, points.jsonl, rd.json, rd.csv, bd-rate.csv, rd.html and the plots into
    `folder`. What an earlier run measured there is kept while file, scan and codec are the same.
    BD-rates are those of `codecs` against `baselines` and against points of CSV files. A scan,
    codec or CSV file that fails is reported, everything else is finished.

    MissingExtra, before anything is measured, without matplotlib; FileExistsError if `folder` holds
    something else; OSError if it can't be written.
    """
    settings = settings or RdSettings()
    require_extras()
    run = _Run(Path(folder), settings)
    share = _Share([_file_size(path) for path in paths], progress)
    for number, (path, name) in enumerate(zip(paths, _unique_names(paths), strict=True)):
        try:
            source = _source(path, name, settings.central)
        except (ValueError, OSError) as error:
            run.failures.append(Failure(name, "", str(error)))
            continue
        run.measure_all(source, codecs, baselines, share.of_scan(number))
        run.draw(source, codecs)
    progress(1.0, "report")
    return run.write([codec.name for codec in codecs])


def _source(path: str | os.PathLike[str], name: str, central: int | None) -> Source:
    if central is None:
        return Source.of_file(path, name)
    return Source.bare(path, name).central(central)


def _file_size(path: str | os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # The scan is reported when it is opened.
        return 0


class _Share:
    """Progress of the whole from that of each scan; a scan counts as much as its file is large."""

    def __init__(self, sizes: Sequence[int], progress: Progress) -> None:
        self._sizes, self._progress = sizes, progress

    def of_scan(self, number: int) -> Progress:
        total = max(sum(self._sizes), 1)
        before, size = sum(self._sizes[:number]), self._sizes[number]
        return lambda fraction, label: self._progress((before + fraction * size) / total, label)


def require_extras() -> None:
    """MissingExtra if the plots can't be drawn."""
    require("matplotlib.figure", "bench", "plots")


def environment() -> dict[str, str]:
    """Date, machine and versions, to accompany measured figures."""
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
    except OSError:  # Another system than Linux.
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class _Run:
    """Measurements into one folder."""

    def __init__(self, folder: Path, settings: RdSettings) -> None:
        self._folder, self._settings = folder, settings
        self._regions: set[tuple[str, str]] = set()  # The volumes of this run.
        self._pictures: list[tuple[str, bytes]] = []
        self.failures: list[Failure] = []
        known = folder / POINTS
        if settings.force:
            known.unlink(missing_ok=True)
        elif folder.exists() and any(folder.iterdir()) and not known.exists():
            raise FileExistsError(
                f"{folder}: not empty and not from an earlier run; "
                "choose another, or overwrite with --force"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._results = PointFile(known, environment)
        except ValueError as error:
            raise ValueError(
                f"{error}; choose another folder, or overwrite with --force"
            ) from error

    def measure_all(
        self,
        source: Source,
        codecs: Sequence[Codec],
        baselines: Sequence[Codec],
        progress: Progress,
    ) -> None:
        """All curves of one scan; baselines aim at the PSNRs that the codecs have reached."""
        self._results.discard(source)
        self._regions.add((source.name, source.roi))
        psnrs: list[float] = []
        everyone = [*codecs, *baselines]
        for number, codec in enumerate(everyone):

            def of_curve(fraction: float, label: str, before: int = number) -> None:
                progress((before + fraction) / len(everyone), label)

            parameters = codec.parameters(self._settings.points, psnrs)
            points = self._measure(source, codec, parameters, of_curve)
            if number < len(codecs):
                psnrs += [point.psnr for point in points]

    def _measure(
        self, source: Source, codec: Codec, parameters: Sequence[float], progress: Progress
    ) -> list[Point]:
        """What is missing of one curve; a codec that fails is not tried again on this scan."""
        points = {p.param: p for p in self._results.curve(source, codec, self._folder)}
        for number, parameter in enumerate(dict.fromkeys(parameters)):
            progress(number / len(parameters), f"{source.name}: {codec.name} {parameter:g}")
            if parameter in points:
                continue
            try:
                points[parameter] = measure(codec, source, parameter, self._folder)
            # A FormatError is a ValueError, errors of imagecodecs and ffmpeg are RuntimeErrors.
            except (ValueError, RuntimeError) as error:
                self.failures.append(Failure(source.name, codec.name, str(error)))
                break
            self._results.add(points[parameter])
        return list(points.values())

    def draw(self, source: Source, codecs: Sequence[Codec]) -> None:
        """Pictures of the first codec that has a curve on this volume."""
        for codec in codecs:
            points = [
                p for p in self._results.curve(source, codec, self._folder) if math.isfinite(p.psnr)
            ]
            if len(points) >= len(PICTURE_RATES):
                nearest = (_nearest(points, rate) for rate in PICTURE_RATES)
                chosen = {point.param: point for point in nearest}.values()
                decoded = [(p, codec.decode(source, self._folder / p.file)) for p in chosen]
                self._pictures.append((source.name, page.pictures(source, decoded)))
                return

    def write(self, codecs: Sequence[str]) -> RdReport:
        """Write all files; `codecs` are the names of those that BD-rates are computed of."""
        points = [p for p in self._results.points if (p.volume, p.roi) in self._regions]
        others = self._read_csvs(points)
        samples = [*rd_points(points), *others]
        names = dict.fromkeys(sample.codec for sample in samples)
        references = [name for name in names if name not in codecs[1:]]
        rows = aggregate.bd_rows(samples, (), codecs, references)
        files = [self._folder / DATA]
        if points:
            files += self._write_tables(points, rows)
            files += plots.draw(samples, points, self._folder)
            files.append(self._folder / PAGE)
        report = RdReport(
            tuple(points), tuple(others), tuple(rows), tuple(self.failures), tuple(files)
        )
        _write(self._folder / DATA, json.dumps(report.to_json(), indent=1))
        if points:
            failures = [str(failure) for failure in self.failures]
            document = page.Document(
                points, others, rows, failures, self._pictures, environment(), classes(points)
            )
            svgs = [file for file in files if file.suffix == ".svg"]
            _write(self._folder / PAGE, page.render(document, svgs))
        return report

    def _write_tables(self, points: Sequence[Point], rows: Sequence[BdRow]) -> list[Path]:
        files = [self._folder / TABLE]
        names = [field.name for field in fields(Point)]
        _write(files[0], _csv_text(names, [asdict(point) for point in points]))
        if rows:
            flat = [row.to_row() for row in rows]
            files.append(self._folder / BD_TABLE)
            _write(files[1], _csv_text(list(flat[0]), flat))
        return files

    def _read_csvs(self, points: Sequence[Point]) -> list[RdPoint]:
        """Points of codecs that were not run here, on the volumes that were."""
        shapes = {(p.volume, p.roi): tuple(map(int, p.shape.split("x"))) for p in points}
        run_here = {(p.volume, p.roi, p.codec) for p in points}
        others: list[RdPoint] = []
        for path in self._settings.csvs:
            try:
                content = read_csv(path, shapes)
            except (ValueError, OSError) as error:
                self.failures.append(Failure("", "", str(error)))
                continue
            self.failures += [Failure("", "", fault) for fault in content.faults]
            others += [p for p in content.points if (p.volume, p.roi, p.codec) not in run_here]
        return others


def _nearest(points: Sequence[Point], rate: float) -> Point:
    return min(points, key=lambda point: abs(math.log(point.bpv / rate)))


def _mean_rows(samples: Sequence[RdPoint], of_volume: dict[str, str]) -> list[Row]:
    """Mean PSNRs by class and codec at `aggregate.RATES`."""
    rows: list[Row] = []
    for codec in dict.fromkeys(sample.codec for sample in samples):
        for group in (None, *dict.fromkeys(of_volume.values())):
            means = aggregate.mean_psnrs(samples, codec, group, of_volume)
            for rate, mean in zip(aggregate.RATES, means, strict=True):
                if mean.volumes:
                    label: Row = {"codec": codec, "class": group or "all", "bpv": rate}
                    rows.append({**label, **json_row(asdict(mean))})
    return rows


def _csv_text(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _unique_names(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """A name for each scan, numbered from 2 where the files of two folders have the same."""
    names: list[str] = []
    for path in paths:
        name, number = scan_name(path), 1
        while name in names:
            number += 1
            name = f"{scan_name(path)}-{number}"
        names.append(name)
    return names
