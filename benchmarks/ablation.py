"""What each part of the default model is worth: the same curve with parts of it switched off, and of the simpler models.

    python -m benchmarks.ablation DATA... -o results.jsonl --peers lossy.csv

Factorized -> hyperprior -> + context -> + slices -> default -> effort high. "+ context": the default network, every slice
on its own, the transform within slices alone. "+ slices": slices lean on their neighbours in the usual order. "default":
the transform reaches across as many slices as the encoder chooses. Nothing is trained anew: the network has learned with
all of its parts, and what one is worth to it may differ from what a network trained without would lose. Every figure is
of real files, decoded again. A file of `benchmarks.run` may be gone on with: what it holds is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mricodec.benchmarks import run, tables
from mricodec.codec.evaluation import aggregate
from mricodec.codec.evaluation.aggregate import ANCHOR, JPEG2000, markdown
from mricodec.codec.evaluation.codecs import Mricodec
from mricodec.codec.evaluation.points import RdPoint, rd_points
from mricodec.codec.evaluation.rate_distortion import Point
from mricodec.models import loader, zoo
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.codec_base import Params
from mricodec.models.lossy.coding_order import CodingStep
from mricodec.models.lossy.context_model import ContextCodec


class SlicesAlone(ContextCodec):
    """Low bands without references."""

    def order(self, groups: int) -> list[CodingStep]:
        none = (-1,) * groups
        return [CodingStep(tuple(range(groups)), none, none)]


class WithinSlices(ContextLossy):
    """The transform within slices alone."""

    def depths(self, x: NDArray[np.int32], y: Tensor, params: Params) -> list[int]:
        return [1] * len(x)


def within_slices(network: type[ContextCodec], device: str = "cpu") -> WithinSlices:
    """The default model with another order of slices, and without a transform across them."""
    entry = zoo.find("default")
    whole: Any = loader.assemble(entry.name, network, entry.path.read_bytes(), device)
    return WithinSlices(entry.name, entry.model_id, whole.network, whole.tables, device)


def steps() -> list[Mricodec]:
    """From the simplest to the whole; the names of those that `benchmarks.run` measures too are the same there."""
    return [
        Mricodec("factorized"),
        Mricodec("hyperprior"),
        Mricodec(within_slices(SlicesAlone), name=f"{tables.OWN} + context"),
        Mricodec(within_slices(ContextCodec), name=f"{tables.OWN} + slices"),
        Mricodec(),
        Mricodec(effort="high"),
    ]


def table(points: Sequence[Point], rivals: Sequence[RdPoint], codecs: Sequence[str]) -> str:
    """Each step against the one before, the anchor and JPEG 2000: means of the classes and of all volumes."""
    samples = rd_points(points)
    rows = []
    for before, codec in zip(["", *codecs], codecs, strict=False):
        references = [name for name in (before, ANCHOR, JPEG2000) if name]
        rows += aggregate.bd_rows(samples, rivals, [codec], references)
    return tables.by_class(rows, tables.classes(points)) + "\n\n" + _sizes(points, codecs)


def _sizes(points: Sequence[Point], codecs: Sequence[str]) -> str:
    """What the encoder and decoder of each step cost."""
    lines = []
    for codec in codecs:
        own = [point for point in points if point.codec == codec]
        if own:
            seconds = [
                np.mean([getattr(p, name) / p.nvox * 1e6 for p in own])
                for name in ("enc_wall", "dec_wall")
            ]
            lines.append(
                [
                    codec,
                    f"{own[0].kmac_enc:.1f}",
                    f"{own[0].kmac_dec:.1f}",
                    *(f"{s:.2f}" for s in seconds),
                ]
            )
    return markdown(
        ["codec", "kMAC per voxel, encoder", "decoder", "encode, s per Mvoxel", "decode"], lines
    )


@click.command()
@run.DATA
@run.OUTPUT
@run.PEERS
@run.THREADS
def main(data: tuple[Path, ...], output: Path, csvs: tuple[Path, ...], threads: int | None) -> None:
    """Measure every step on the scans of DATA (files and folders) and print tables; repeat to resume."""
    run.use_threads(threads)
    try:
        bench = run.Bench(data, output, csvs)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    all_steps = steps()
    videos = run.live_videos()
    for _, part in bench.sources():
        bench.videos(part, videos)
        for codec in all_steps:
            bench.own(codec, part)
    bench.finish(table(bench.points, bench.rivals, [codec.name for codec in all_steps]))


if __name__ == "__main__":
    main()
