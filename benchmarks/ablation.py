"""What each part of the default model is worth: curves with parts of it switched off.

    python -m benchmarks.ablation DATA... -o results.jsonl

Factorized -> hyperprior -> + context -> + slices -> default -> effort high. "+ context": the
default network, every slice on its own, the transform within slices only. "+ slices": slices use
their neighbours as references in the usual order. "default": the transform spans as many slices as
the encoder chooses. Nothing is trained again: the network was trained with all of its parts, and
what one is worth to it may differ from what a network trained without would lose. Every figure is
of real files that are decoded again. A file of `benchmarks.run` may be continued: the points that
it holds are not measured again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import Tensor

from mricodec.codec.evaluation.codecs import Mricodec
from mricodec.models import loader, zoo
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.coding_order import CodingStep
from mricodec.models.lossy.context_model import ContextCodec

from . import lossy_tables, run
from .lossy_tables import PROJECT
from .tables import LOSSY_PEERS


class SlicesAlone(ContextCodec):
    """Low bands without references."""

    def order(self, groups: int) -> list[CodingStep]:
        none = (-1,) * groups
        return [CodingStep(tuple(range(groups)), none, none)]


class WithinSlices(ContextLossy):
    """The transform within slices only."""

    def depths(self, y: Tensor) -> list[int]:
        return [1] * len(y)


def within_slices(network: type[ContextCodec], device: str = "cpu") -> WithinSlices:
    """The default model with another order of slices, and without a transform across them."""
    entry = zoo.find("default")
    whole: Any = loader.assemble(entry.name, network, entry.path.read_bytes(), device)
    return WithinSlices(entry.name, entry.model_id, whole.network, whole.tables, device)


def steps() -> list[Mricodec]:
    """From the simplest to the whole; names that `benchmarks.run` measures too are its names."""
    return [
        Mricodec("factorized"),
        Mricodec("hyperprior"),
        Mricodec(within_slices(SlicesAlone), name=f"{PROJECT} + context"),
        Mricodec(within_slices(ContextCodec), name=f"{PROJECT} + slices"),
        Mricodec(),
        Mricodec(effort="high"),
    ]


@click.command()
@run.DATA
@run.SPLIT
@run.OUTPUT
@run.peers_option(LOSSY_PEERS)
@run.THREADS
def main(
    data: tuple[Path, ...], split: str, output: Path, csvs: tuple[Path, ...], threads: int | None
) -> None:
    """Measure every step on the scans of DATA and print tables; repeat to resume.

    DATA: scans, folders of scans, or a data folder with test/ (or another --split).
    """
    run.use_threads(threads)
    try:
        bench = run.Bench(run.scans_of(data, split), output, csvs)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    codecs = steps()
    videos = run.video_codecs(("x265",))
    for _, part in bench.sources():
        bench.video_curves(part, videos)
        for codec in codecs:
            bench.project_curve(codec, part)
    names = [codec.name for codec in codecs]
    bench.finish(lossy_tables.ablation(bench.points, bench.known, names))


if __name__ == "__main__":
    main()
