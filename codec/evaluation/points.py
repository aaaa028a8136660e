"""Files of points: JSON lines of what was measured here, CSV of what was measured elsewhere."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from .rate_distortion import Codec, Point, Source, sha256_of_file

# Columns that a CSV of points must have.
REQUIRED_COLUMNS = ("volume", "roi", "codec", "bpv", "psnr")

# A volume or a part of it: (volume, roi).
Region = tuple[str, str]


@dataclass(frozen=True)
class RdPoint:
    """What statistics need of a point, measured here or elsewhere."""

    volume: str
    roi: str
    codec: str
    # Bits per voxel.
    bpv: float
    # PSNR in dB; inf if no voxel differs.
    psnr: float
    ssim: float = math.nan
    # Largest absolute error, stored units.
    maxerr: float = math.nan
    param: float = math.nan


@dataclass(frozen=True)
class CsvPoints:
    """The points of a CSV file, and what is wrong with its other rows."""

    points: tuple[RdPoint, ...]
    faults: tuple[str, ...]


def rd_points(points: Iterable[Point]) -> list[RdPoint]:
    """Rate and distortion of measured points."""
    return [
        RdPoint(p.volume, p.roi, p.codec, p.bpv, p.psnr, p.ssim, p.maxerr, p.param) for p in points
    ]


def read_csv(path: Path, shapes: dict[Region, tuple[int, ...]] | None = None) -> CsvPoints:
    """Rows with the columns volume, roi, codec, bpv, psnr, and optionally ssim, maxerr and param.

    With the `shapes` ([..., k, j, i]) of the regions measured, rows of other regions are skipped
    silently; a fault is a row whose column `shape` differs, a row that is no point, or a file
    without any row of the regions. Each fault is reported once. ValueError if columns are missing,
    UnicodeDecodeError or OSError if the file can't be read.
    """
    points: list[RdPoint] = []
    faults: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in REQUIRED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: expected the columns {', '.join(REQUIRED_COLUMNS)}; "
                f"missing: {', '.join(missing)}"
            )
        try:
            for row in reader:
                point = _csv_point(row, shapes)
                if isinstance(point, RdPoint):
                    points.append(point)
                elif point:
                    faults.setdefault(point, f"{path}, line {reader.line_num}: {point}")
        except csv.Error as error:
            faults.setdefault(str(error), f"{path}, line {reader.line_num}: {error}")
    if not points and not faults:
        faults[""] = f"{path}: expected points of the volumes measured, found others only"
    return CsvPoints(tuple(points), tuple(faults.values()))


def _csv_point(
    row: dict[str, str], shapes: dict[Region, tuple[int, ...]] | None
) -> RdPoint | str | None:
    """The point of a row, or what is wrong with it; None if it is of another region."""
    volume, roi = row["volume"], row["roi"]
    if shapes is not None:
        if (volume, roi) not in shapes:
            return None
        shape = "x".join(map(str, shapes[volume, roi]))
        if row.get("shape") not in (None, "", shape):
            return f"{volume} {roi} is {shape} here, {row['shape']} there: another volume"
    try:
        bpv, psnr = float(row["bpv"]), float(row["psnr"])
        ssim, maxerr = (float(row.get(name) or "nan") for name in ("ssim", "maxerr"))
    except (ValueError, TypeError) as error:
        return f"expected numbers as bpv, psnr, ssim and maxerr ({error})"
    if not (bpv > 0 and psnr == psnr and row["codec"]):
        return (
            "expected a codec, bpv above 0 and a PSNR, "
            f"found {row['codec']!r}, {bpv:g} and {psnr:g}"
        )
    return RdPoint(volume, roi, row["codec"], bpv, psnr, ssim, maxerr, _number(row.get("param")))


def _number(text: str | None) -> float:
    """The number of a text such as an encoder's setting; nan if it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


class PointFile:
    """JSON lines: an "environment" before the points of every run, then each point as measured."""

    def __init__(self, path: Path, environment: Callable[[], dict[str, str]]) -> None:
        """Read what is there already. ValueError if it is not a file of points."""
        self._path = path
        self._environment = environment
        self._curves: dict[tuple[str, str, str], dict[float, Point]] = {}
        self._announced = False
        if not path.exists():
            return
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                self._take_line(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a point, found something else ({error!r})"
                ) from error
        if end != len(content):  # The last line of an interrupted run is incomplete.
            path.write_bytes(content[:end])

    def _take_line(self, line: bytes) -> None:
        row = json.loads(line)
        if "environment" in row:
            return
        if "file_sha256" in row and not {field.name for field in fields(Point)} <= row.keys():
            return  # A point of an earlier release, which measured less: it is measured again.
        self._take(Point.from_row(row))

    @property
    def points(self) -> list[Point]:
        """By volume and codec in the order of their first point, then by size."""
        return [
            p
            for curve in self._curves.values()
            for p in sorted(curve.values(), key=lambda p: (p.nbytes, p.param))
        ]

    def curve(self, source: Source, codec: Codec, folder: Path | None = None) -> list[Point]:
        """The points of one curve; none if the voxels or the codec's version have changed.

        With a `folder` only those whose files are still there, unchanged.
        """
        curve = self._curves.get((source.name, source.roi, codec.name), {})
        points = [point for point in curve.values() if point.matches(source, codec)]
        return [p for p in points if folder is None or _is_intact(folder, p)]

    def discard(self, source: Source) -> None:
        """Forget what was measured on other voxels under the name of this source."""
        for key in [key for key in self._curves if key[:2] == (source.name, source.roi)]:
            if any(point.voxels != source.digest for point in self._curves[key].values()):
                del self._curves[key]

    def add(self, point: Point) -> None:
        """Append a point to the file."""
        self._take(point)
        with self._path.open("a", encoding="utf-8") as file:
            if not self._announced:
                file.write(json.dumps({"environment": self._environment()}) + "\n")
                self._announced = True
            file.write(json.dumps(point.to_row()) + "\n")

    def _take(self, point: Point) -> None:
        """A point of another volume or version begins its curve anew."""
        curve = self._curves.setdefault((point.volume, point.roi, point.codec), {})
        if any((p.voxels, p.version) != (point.voxels, point.version) for p in curve.values()):
            curve.clear()
        curve[point.param] = point


def _is_intact(folder: Path, point: Point) -> bool:
    file = folder / point.file
    return file.is_file() and sha256_of_file(file) == point.file_sha256


def classes(points: Sequence[Point]) -> dict[str, str]:
    """The class of each volume by its geometry."""
    return {point.volume: point.group for point in points}
