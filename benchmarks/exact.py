"""Lossless and near-lossless coding of every volume: sizes, errors, times, and what peers need.

From the root of the repository, with the extra `bench` installed:

    python -m benchmarks.exact DATA -o exact.jsonl --peers near.csv --peers lossless.csv

The same command again measures only what is missing. Lossless at every effort beside tomoz (if it is installed), in
turn on each volume, so that their times compare; then each largest error of `ERRORS` on the central
40 slices, as the peers; what layers cost; 4-D scans as a whole against
their volumes one by one. Times are those of one run: let nothing else run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.benchmarks.run import in_turn, measure_curve, scans, sources
from mricodec.codec import api
from mricodec.codec.evaluation.points import PointFile, RdPoint, rd_points, read_csv
from mricodec.codec.evaluation.rate_distortion import Codec, Point, Source
from mricodec.codec.evaluation.report import environment
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.settings import EFFORTS, Effort
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Volume

ERRORS = (1.0, 2.0, 4.0, 8.0, 16.0)
REFERENCE = "quant+jxl-e7"
LOSSLESS_REFERENCE = "jxl-e7"
VERSION = "3"  # of the lossless coder; raise it when its bytes change


@dataclass(frozen=True)
class Exact(Codec):
    """This codec without loss (parameter 0), or with a largest error."""

    name: str
    effort: Effort = "default"
    suffix: str = ".mrc"
    version: str = VERSION

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return [0.0, *ERRORS]

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        bound = parameter or None
        api.Encoder(lossless=bound is None, max_error=bound, effort=self.effort).encode(
            source.input, out=path
        )

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        return api.decode(path).array


@dataclass(frozen=True)
class Layers(Exact):
    """Without loss, over a lossy layer."""

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        api.Encoder(lossless=True, layers=True).encode(source.input, out=path)


@dataclass(frozen=True)
class VolumesAlone(Exact):
    """The volumes of a 4-D scan, each a stream of its own, one after the other."""

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        shape = source.voxels.shape[-3:]
        streams = [
            api.encode(volume, lossless=True) or b"" for volume in source.voxels.reshape(-1, *shape)
        ]
        path.write_bytes(b"".join(len(stream).to_bytes(4, "little") + stream for stream in streams))

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        data, at, volumes = path.read_bytes(), 0, []
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            volumes.append(api.decode(data[at + 4 : at + 4 + size]).array)
            at += 4 + size
        return np.stack(volumes).reshape(source.voxels.shape)


class Tomoz(Codec):
    """PyPI's tomoz: a learned lossless codec of 16-bit volumes."""

    name = "tomoz"
    suffix = ".tomoz"

    def __init__(self) -> None:
        self._module: Any = importlib.import_module("tomoz")
        self.version = str(self._module.__version__)

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return [0.0]

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        path.write_bytes(self._module.encode(source.voxels))

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        decoded: NDArray[Any] = self._module.decode(path.read_bytes())
        return decoded.reshape(source.voxels.shape)


def whole_4d(path: Path) -> Source | None:
    """The whole of a scan with several volumes; None for another."""
    with closing(open_scan(path)) as scan:
        tiling = Tiling(scan.shape, 0, scan.shape[-3] if len(scan.shape) > 3 else 1)
        if tiling.volumes < 2:
            return None
        voxels = np.concatenate(list(scan.blocks(tiling))).reshape(scan.shape)
        return Source.of_array(
            path.name.partition(".")[0],
            Volume.from_array(voxels, spacing_mm=scan.envelope.spacing_mm),
            roi="4d",
        )


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON lines.",
)
@click.option(
    "--peers", "csvs", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--only", type=click.Choice(("lossless", "near", "4d", "layers")), help="Leave out the others."
)
@click.option(
    "--effort",
    "efforts",
    multiple=True,
    type=click.Choice(EFFORTS),
    help="Measure these alone; default: all.",
)
def main(
    data: tuple[Path, ...],
    output: Path,
    csvs: tuple[Path, ...],
    only: str | None,
    efforts: tuple[Effort, ...],
) -> None:
    """Measure the exact and bounded coders on the scans of DATA and print tables; repeat to resume."""
    results = PointFile(output, environment)
    lossless: list[Codec] = [Exact(f"mricodec-{effort}", effort) for effort in efforts or EFFORTS]
    try:
        lossless.append(Tomoz())
    except ImportError:
        click.echo("left out: tomoz (pip install tomoz)", err=True)
    near = Exact("mricodec-near")
    for path in scans(data):
        whole, part = sources(path)
        if only in (None, "lossless"):
            for codec in lossless:
                measure_curve(codec, whole, in_turn([0.0]), results)
        if only in (None, "near"):
            measure_curve(near, part, in_turn(ERRORS), results)
        if only in (None, "layers"):
            for codec in (Exact("mricodec-default"), Layers("mricodec-layers")):
                measure_curve(codec, whole, in_turn([0.0]), results)
        if only in (None, "4d") and (series := whole_4d(path)) is not None:
            for codec in (Exact("mricodec-default"), VolumesAlone("volumes-alone")):
                measure_curve(codec, series, in_turn([0.0]), results)
    peers = [sample for path in csvs for sample in read_csv(path).points]
    tables = (
        lossless_table(results.points, peers),
        near_table(results.points, csvs),
        layers_table(results.points),
    )
    click.echo("\n\n".join((*tables, table_4d(results.points))))


def lossless_table(points: Sequence[Point], peers: Sequence[RdPoint]) -> str:
    """Bits per voxel and megabytes of stored voxels (two bytes each) a second, over the volumes that the reference has too."""
    own = [p for p in points if p.roi == "full" and p.param == 0]
    rates = {
        (s.volume, s.codec): s.bpv
        for s in (*rd_points(own), *peers)
        if s.roi == "full" and math.isinf(s.psnr)
    }
    volumes = sorted({p.volume for p in own})
    volumes = [v for v in volumes if (v, LOSSLESS_REFERENCE) in rates] or volumes
    reference = [rates[v, LOSSLESS_REFERENCE] for v in volumes if (v, LOSSLESS_REFERENCE) in rates]
    lines = [
        "| lossless | volumes | mean bpv | of JPEG XL e7 | MB/s enc | MB/s dec |",
        "|---|---|---|---|---|---|",
    ]
    for codec in sorted({codec for _, codec in rates}):
        found = [rates[v, codec] for v in volumes if (v, codec) in rates]
        if not found:
            continue
        mine = [p for p in own if p.codec == codec and p.volume in volumes]
        size = sum(2e-6 * p.nvox for p in mine)
        speed = [
            f"{size / sum(t):.1f}" if mine else ""
            for t in ([p.enc_wall for p in mine], [p.dec_wall for p in mine])
        ]
        share = f"{np.mean(found) / np.mean(reference):.4f}" if len(found) == len(reference) else ""
        lines.append(
            f"| {codec} | {len(found)} | {np.mean(found):.3f} | {share} | {speed[0]} | {speed[1]} |"
        )
    return "\n".join(lines)


def near_table(points: Sequence[Point], csvs: Sequence[Path]) -> str:
    """Mean bits per voxel and PSNR at each largest error; on how many volumes a peer is smaller."""
    import csv

    rows = [row for path in csvs for row in csv.DictReader(path.open(encoding="utf-8"))]
    rois = {(row["volume"], row["roi"]) for row in rows if row["codec"] == REFERENCE}
    lines = [
        "| E | bpv | PSNR | " + REFERENCE + " | PSNR | saved | a peer is smaller on |",
        "|---|---|---|---|---|---|---|",
    ]
    for error in ERRORS:
        own = {
            p.volume: p
            for p in points
            if p.codec == "mricodec-near" and p.param == error and (p.volume, p.roi) in rois
        }
        at = [
            row
            for row in rows
            if (row["volume"], row["roi"]) in rois and _number(row["param"]) == error
        ]
        at = [row for row in at if row["volume"] in own]
        reference = [row for row in at if row["codec"] == REFERENCE]
        beaten = [
            f"{row['volume']} ({row['codec']})"
            for row in at
            if not row["codec"].startswith("quant") and float(row["bpv"]) <= own[row["volume"]].bpv
        ]
        if not own:
            continue
        bpv, psnr = np.mean([p.bpv for p in own.values()]), np.mean([p.psnr for p in own.values()])
        theirs = [
            np.mean([float(row[c]) for row in reference]) if reference else math.nan
            for c in ("bpv", "psnr")
        ]
        lines.append(
            f"| {error:g} | {bpv:.3f} | {psnr:.2f} | {theirs[0]:.3f} | {theirs[1]:.2f} | {1 - bpv / theirs[0]:.1%} | "
            f"{', '.join(beaten) or 'none'} |"
        )
    return "\n".join(lines)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def layers_table(points: Sequence[Point]) -> str:
    """What a lossy layer inside costs."""
    lines = ["| with a lossy layer | bpv | without | more |", "|---|---|---|---|"]
    rates = {(p.volume, p.codec): p.bpv for p in points if p.roi == "full"}
    for volume in sorted({volume for volume, codec in rates if codec == "mricodec-layers"}):
        layered, direct = (
            rates[volume, "mricodec-layers"],
            rates.get((volume, "mricodec-default"), math.nan),
        )
        lines.append(f"| {volume} | {layered:.3f} | {direct:.3f} | {layered / direct - 1:.1%} |")
    return "\n".join(lines)


def table_4d(points: Sequence[Point]) -> str:
    """Whole 4-D scans against their volumes one by one."""
    lines = ["| 4-D scan | whole, bpv | volumes alone | saved |", "|---|---|---|---|"]
    rates = {(p.volume, p.codec): p.bpv for p in points if p.roi == "4d"}
    for volume in sorted({v for v, _ in rates}):
        whole, alone = rates.get((volume, "mricodec-default")), rates.get((volume, "volumes-alone"))
        if whole and alone:
            lines.append(f"| {volume} | {whole:.3f} | {alone:.3f} | {1 - whole / alone:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
