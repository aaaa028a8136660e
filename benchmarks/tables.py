"""All tables of README.md from the committed results and points of peers; nothing is measured.

python -m benchmarks.tables
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from mricodec.codec.evaluation.points import PointFile, RdPoint, rd_points, read_csv
from mricodec.codec.evaluation.rate_distortion import Point
from mricodec.codec.voxels.quality import DEFAULT_QUALITY

from . import lossless_tables, lossy_tables, volumes
from .lossy_tables import PROJECT, LossyTables

FOLDER = Path(__file__).parent
# Points of codecs that were measured elsewhere, see peers/README.md.
PEER_CSVS = LOSSY_PEERS, LOSSLESS_PEERS, NEAR_PEERS = tuple(
    FOLDER / "peers" / f"{name}.csv" for name in ("lossy", "lossless", "near")
)
# From the simplest model to the whole, by the names that `benchmarks.ablation` gives them.
ABLATION = (
    f"{PROJECT}-factorized",
    f"{PROJECT}-hyperprior",
    f"{PROJECT} + context",
    f"{PROJECT} + slices",
    PROJECT,
    f"{PROJECT}-high",
)
# Codecs of the table of lossless sizes by their names in the results.
LOSSLESS = f"{PROJECT}-default"


def committed(name: str) -> list[Point]:
    """The points of a committed file of results."""
    return PointFile(FOLDER / f"{name}.jsonl", dict).points


def peers(path: Path) -> list[RdPoint]:
    """The points of a CSV of peers."""
    return list(read_csv(path).points)


def sections() -> Iterator[tuple[str, str]]:
    """Title and content of every table."""
    yield from _lossy_sections()
    yield from _exact_sections()


def _lossy_sections() -> Iterator[tuple[str, str]]:
    points, known = committed("results"), peers(LOSSY_PEERS)
    codecs = (PROJECT, f"{PROJECT}-high")
    test = LossyTables(points, known, codecs)
    yield "Lossy, test volumes", test.by_class()
    yield f"Lossy, the default quality ({DEFAULT_QUALITY:g})", test.default_quality()
    for codec in codecs:
        yield f"Lossy, every test volume: {codec}", test.by_volume(codec)
    validation = LossyTables(committed("validation"), (), [PROJECT])
    yield "Lossy, validation volumes", validation.by_class()
    ablated = {point.volume for point in points if point.codec == f"{PROJECT} + context"}
    part = [point for point in points if point.volume in ablated]
    yield "Ablation", lossy_tables.ablation(part, known, ABLATION)


def _exact_sections() -> Iterator[tuple[str, str]]:
    exact, known = committed("exact"), peers(LOSSLESS_PEERS)
    test_names = {volume.name for volume in volumes.listed() if volume.split == "test"}
    test = [point for point in exact if point.volume in test_names]
    ours = [point for point in test if point.codec == LOSSLESS]
    yield "Lossless, bits per voxel", lossless_tables.lossless([*rd_points(ours), *known], LOSSLESS)
    yield "Lossless, efforts", lossless_tables.efforts(test, known)
    bounded = lossless_tables.near_lossless(test, peers(NEAR_PEERS), f"{PROJECT}-near")
    yield "Bounded error", bounded
    yield "Layers", lossless_tables.layers(exact)
    yield "4-D scans without loss", lossless_tables.series_4d(exact)


@click.command()
def main() -> None:
    """Print every table."""
    for title, content in sections():
        click.echo(f"## {title}\n\n{content}\n")


if __name__ == "__main__":
    main()
