"""`mricodec study run`, `interpolate` and `augment`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from .console import Bar, force_option, quiet_option, say, threads_option
from .files import check_target

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_OUTPUT_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def study() -> None:
    """The representation study: generative models of brain slices, trained and measured."""


@study.command()
@click.option(
    "--data",
    required=True,
    type=_FOLDER,
    help="Folder with train/, validation/, test/ and MANIFEST.csv, or with training scans alone.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=_OUTPUT_FOLDER,
    help="Folder for models, study.json, figures, study.html.",
)
@click.option(
    "--only",
    default="",
    help="Parts, by commas: cnn, unet, vae, interpolation, bagan, augmentation; default: all.",
)
@click.option(
    "--config",
    default="default",
    show_default=True,
    help="Named configuration; 'debug' ends within two minutes.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Budget for every training instead of the configuration's steps.",
)
@click.option("--retrain", is_flag=True, help="Train the shipped models too instead of using them.")
@click.option(
    "--lpips-weights",
    "lpips",
    type=_FILE,
    help="Published LPIPS weights (AlexNet) as safetensors.",
)
@threads_option
@quiet_option
def run(data: Path, output: Path, only: str, quiet: bool, **options: Any) -> None:
    """Train what is missing, measure on test/, write tables, figures and one HTML page.

    Repeating the command goes on where it was interrupted. Needs the extra 'bench'.
    """
    from mricodec.codec.study import run as experiments
    from mricodec.codec.study.settings import PARTS

    parts = tuple(part.strip() for part in only.split(",") if part.strip()) or PARTS
    settings = experiments.StudySettings(parts, **options)
    with Bar("reading scans", quiet=quiet) as bar:
        page = experiments.run(
            data,
            output,
            settings,
            report=(lambda line: None) if quiet else say,
            progress=bar.update,
        )
    if not quiet:
        click.echo(str(page))


@click.command()
@click.argument("scans", nargs=-1, required=True, type=_FILE)
@click.option(
    "--weights", required=True, help="One number in 0 ... 1 for each scan, by commas, of sum 1."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A .nii or .nii.gz file.",
)
@click.option(
    "--model",
    default="cnn32",
    show_default=True,
    help="Autoencoder: shipped, or of a study (acai-cnn32 ...).",
)
@click.option(
    "--study", "folder", type=_FOLDER, help="Folder of a 'study run' that trained the model."
)
@force_option
def interpolate(
    scans: tuple[Path, ...],
    weights: str,
    output: Path,
    model: str,
    folder: Path | None,
    force: bool,
) -> None:
    """Mix heads: SCANS at equal heights below the vertex, on the study's common grid, through an
    autoencoder."""
    from mricodec.codec.study import synthesis

    inputs = {os.path.realpath(scan) for scan in scans}
    check_target(output, inputs, in_folder=False, force=force)
    network = synthesis.load_autoencoder(model, folder)
    synthesis.interpolate_scans(scans, _numbers(weights), output, network)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"expected numbers by commas, found {text!r}", param_hint="--weights"
        ) from None


@click.command()
@click.argument("data", type=_FOLDER)
@click.option("-n", "--count", required=True, type=click.IntRange(min=1), help="How many pictures.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=_OUTPUT_FOLDER,
    help="Folder for the pictures and manifest.csv; must not exist.",
)
@click.option(
    "--method",
    default="interpolation",
    show_default=True,
    type=click.Choice(("interpolation", "acai", "bagan")),
)
@click.option(
    "--model", default="cnn32", show_default=True, help="Autoencoder of interpolation and acai."
)
@click.option("--study", type=_FOLDER, help="Folder of a 'study run'; needed by acai and bagan.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@quiet_option
def augment(data: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Make pictures from the training scans of DATA: two of one contrast and height, of different
    subjects, mixed, or drawn from a class; contrasts in rotation."""
    from mricodec.codec.study import synthesis
    from mricodec.codec.training.data_folder import left_out_lines

    if output.exists():
        raise click.UsageError(f"{output} exists; choose another folder")
    settings = synthesis.AugmentSettings(**options)
    left_out = synthesis.augment(data, output, settings)
    _say_all([] if quiet else left_out_lines(left_out))


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
