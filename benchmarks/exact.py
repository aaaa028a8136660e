"""Lossless and near-lossless coding of every volume: sizes, errors, times.

From the root of the repository, with the extra `bench` installed:

    python -m benchmarks.exact DATA -o exact.jsonl

The same command again measures only what is missing. Lossless at every effort and tomoz (if it is
installed), one after the other on each volume, so that their times compare; then each largest error
of `ERRORS` on the central 40 slices; what layers cost; 4-D scans as a whole and their volumes one
by one. Times are those of one run: let nothing else run.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.codec import api
from mricodec.codec.evaluation.points import RdPoint
from mricodec.codec.evaluation.rate_distortion import Codec, Source, scan_name
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.settings import EFFORTS, Effort
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Volume

from . import lossless_tables, run
from .lossless_tables import ERRORS
from .run import each_of
from .tables import LOSSLESS_PEERS, NEAR_PEERS

# Version of the lossless coder: it is raised when its bytes change.
VERSION = "3"
# What `--only` chooses from.
PARTS = ("lossless", "near", "4d", "layers")


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
    """The volumes of a 4-D scan, each a stream of its own, behind its length (u32)."""

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
        volume = Volume.from_array(voxels, spacing_mm=scan.envelope.spacing_mm)
        return Source.of_array(scan_name(path), volume, roi="4d")


def measure_scan(
    bench: run.Bench, path: Path, parts: Sequence[str], lossless: Sequence[Codec]
) -> None:
    """All parts of one scan. ValueError or OSError if it can't be read."""
    whole, part = run.sources(path)
    exactly, default = each_of([0.0]), Exact("mricodec-default")
    if "lossless" in parts:
        for codec in lossless:
            bench.curve(codec, whole, exactly)
    if "near" in parts:
        bench.curve(Exact("mricodec-near"), part, each_of(ERRORS))
    if "layers" in parts:
        for codec in (default, Layers("mricodec-layers")):
            bench.curve(codec, whole, exactly)
    if "4d" in parts and (series := whole_4d(path)) is not None:
        for codec in (default, VolumesAlone("volumes-alone")):
            bench.curve(codec, series, exactly)


def summary(bench: run.Bench, known: Sequence[RdPoint]) -> str:
    """The tables of all points in the file of results."""
    points = bench.results.points
    tables = (
        lossless_tables.efforts(points, known),
        lossless_tables.near_lossless(points, known, "mricodec-near"),
        lossless_tables.layers(points),
        lossless_tables.series_4d(points),
    )
    return "\n\n".join(tables)


@click.command()
@run.DATA
@run.SPLIT
@run.OUTPUT
@run.peers_option(LOSSLESS_PEERS, NEAR_PEERS)
@click.option("--only", type=click.Choice(PARTS), help="Leave out the others.")
@click.option(
    "--effort",
    "efforts",
    multiple=True,
    type=click.Choice(EFFORTS),
    default=EFFORTS,
    show_default=True,
    help="Efforts of the lossless coder.",
)
def main(**options: Any) -> None:
    """Measure the exact and bounded coders on the scans of DATA and print tables; repeat to resume.

    DATA: scans, folders of scans, or a data folder with test/ (or another --split).
    """
    scans = run.scans_of(options["data"], options["split"])
    try:
        bench = run.Bench(scans, options["output"], options["csvs"])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    efforts: Sequence[Effort] = options["efforts"]
    lossless: list[Codec] = [Exact(f"mricodec-{effort}", effort) for effort in efforts]
    try:
        lossless.append(Tomoz())
    except ImportError:
        click.echo("not run: tomoz: pip install tomoz", err=True)
    parts = (options["only"],) if options["only"] else PARTS
    for path in scans:
        try:
            measure_scan(bench, path, parts, lossless)
        except (ValueError, OSError) as error:
            bench.failures.append(f"{path}: {error}")
    bench.finish(summary(bench, bench.known))


if __name__ == "__main__":
    main()
