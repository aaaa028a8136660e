"""`mricodec rd-curve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mricodec.codec.evaluation.codecs import BASELINES, DEFAULT_BASELINES
from mricodec.codec.evaluation.rate_distortion import MIN_POINTS, Codec
from mricodec.codec.settings import Effort

from . import console

if TYPE_CHECKING:
    from mricodec.codec.evaluation.report import RdReport

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CSV = click.Path(dir_okay=False, path_type=Path)


@click.command("rd-curve")
@click.argument("scans", nargs=-1, required=True, type=_FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the coded files, tables, plots and rd.html.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("default",),
    show_default=True,
    type=console.ModelType(),
    help="Model to draw a curve of; may be repeated.",
)
@click.option(
    "--effort",
    "efforts",
    multiple=True,
    default=("default",),
    show_default=True,
    type=click.Choice(("default", "high")),
    help="Effort of the models' encoders; may be repeated.",
)
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    metavar="MODULE:OBJECT",
    help="A codec of your own, see mricodec.codec.evaluation.codecs; may be repeated.",
)
@click.option(
    "--live",
    "baselines",
    multiple=True,
    type=click.Choice((*BASELINES, "none")),
    help=f"Codecs to compare with; default: {', '.join(DEFAULT_BASELINES)}, if installed.",
)
@click.option(
    "--peers",
    "csvs",
    multiple=True,
    type=_CSV,
    help="CSV with points of other codecs on the same volumes; may be repeated.",
)
@click.option(
    "--central",
    type=click.IntRange(min=1),
    metavar="N",
    help="Code bare arrays: the central N slices, of a 4-D scan those of its first volume.",
)
@click.option(
    "--points",
    default=10,
    show_default=True,
    type=click.IntRange(min=MIN_POINTS),
    help="Files per curve.",
)
@click.option(
    "-f", "--force", is_flag=True, help="Measure everything again, overwrite what is in the folder."
)
@console.coding_options
def rd_curve(
    scans: tuple[Path, ...],
    output: Path,
    models: tuple[str, ...],
    efforts: tuple[Effort, ...],
    codecs: tuple[str, ...],
    baselines: tuple[str, ...],
    device: str,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Rate-distortion curves of SCANS and other codecs: PSNR, SSIM and more against bits per voxel.

    Every point is a real file that is decoded again: the rate counts all of its bytes. Repeating
    the command measures only what is missing. Needs pip install 'mricodec[bench]'.
    """
    from mricodec.codec.evaluation import codecs as measurable
    from mricodec.codec.evaluation import report

    report.require_extras()
    external = [measurable.load_codec(where) for where in codecs]
    tested = [*_mricodecs(models, efforts, device), *external]
    names = [name for name in baselines or DEFAULT_BASELINES if name != "none"]
    available, missing = measurable.available_baselines(names)
    reasons = [f"{name}: {reason}" for name, reason in missing.items()]
    if not baselines and not quiet:
        for reason in reasons:
            console.say(f"not run: {reason}")
    try:
        with console.Bar("rd-curve", quiet=quiet) as bar:
            result = report.rd_curve(
                scans,
                output,
                tested,
                available,
                settings=report.RdSettings(**settings),
                progress=bar.update,
            )
    except FileExistsError as error:
        raise click.UsageError(str(error)) from error
    _show(result, tested[0].name, quiet, verbose)
    failures = [*(reasons if baselines else ()), *map(str, result.failures)]
    if failures:
        console.say("\n".join(f"left out: {failure}" for failure in failures))
        raise click.exceptions.Exit(1)


def _mricodecs(models: Sequence[str], efforts: Sequence[Effort], device: str) -> list[Codec]:
    """Every model at every effort, and the two modes without one."""
    from mricodec.codec.evaluation import codecs as measurable

    curves = [
        measurable.Mricodec(name, effort=effort, device=device)
        for name in dict.fromkeys(models)
        for effort in dict.fromkeys(efforts)
    ]
    return [*curves, measurable.MricodecNearLossless(), measurable.MricodecLossless()]


def _show(result: RdReport, codec: str, quiet: bool, verbose: bool) -> None:
    """The BD-rates of one codec and the files written; verbose: of all codecs, and every point."""
    if verbose:
        for point in result.points:
            click.echo(
                f"{point.volume}: {point.codec} {point.param:g}: {point.bpv:.4f} bits per voxel, "
                f"{point.psnr:.2f} dB, SSIM {point.ssim:.4f}, "
                f"{point.enc_wall:.2f} s, {point.dec_wall:.2f} s"
            )
    if not quiet:
        for row in result.bd_rates:
            if verbose or row.codec == codec:
                click.echo(str(row))
        for file in result.files:
            click.echo(str(file))
