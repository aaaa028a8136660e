"""`mricodec study run`, `interpolate` and `augment`."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_STUDY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def study() -> None:
    """The representation study: generative models of brain slices, trained and measured."""


@study.command()
@click.option(
    "--data",
    required=True,
    type=_STUDY,
    help="Folder with train/, validation/, test/ and MANIFEST.csv.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=_FOLDER,
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
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
              help="Budget for every training instead of the configuration's steps.")  # fmt: skip
@click.option("--retrain", is_flag=True, help="Train the shipped models too instead of using them.")
@click.option(
    "--lpips-weights", type=_FILE, help="Published LPIPS weights (AlexNet) as safetensors."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def run(
    data: Path, output: Path, only: str, config: str, minutes: float | None, retrain: bool,
    lpips_weights: Path | None, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Train what is missing, measure on test/, write tables, figures and one HTML page.

    Repeating the command goes on where it was interrupted. Needs the extra 'bench'.
    """
    import torch

    from mricodec.codec.study import experiments as core

    if threads is not None:
        torch.set_num_threads(threads)
    parts = [part.strip() for part in only.split(",") if part.strip()] or core.PARTS
    report = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    page = core.run(
        data,
        output,
        only=parts,
        config=config,
        minutes=minutes,
        retrain=retrain,
        lpips=lpips_weights,
        report=report,
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
    "--study", "folder", type=_STUDY, help="Folder of a 'study run' that trained the model."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def interpolate(
    scans: tuple[Path, ...],
    weights: str,
    output: Path,
    model: str,
    folder: Path | None,
    force: bool,
) -> None:
    """Mix heads: SCANS at equal heights below the vertex, on the study's common grid, through an autoencoder."""
    from mricodec.codec.study import synthesis

    if output.exists() and not force:
        raise click.UsageError(f"{output} exists; use --force to overwrite it")
    try:
        numbers = [float(part) for part in weights.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"expected numbers by commas, found {weights!r}", param_hint="--weights"
        ) from None
    synthesis.interpolate_scans(scans, numbers, output, synthesis.load_autoencoder(model, folder))


@click.command()
@click.argument("data", type=_STUDY)
@click.option("-n", "--count", required=True, type=click.IntRange(min=1), help="How many pictures.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=_FOLDER,
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
@click.option(
    "--study", "folder", type=_STUDY, help="Folder of a 'study run'; needed by acai and bagan."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def augment(
    data: Path, count: int, output: Path, method: str, model: str, folder: Path | None, seed: int
) -> None:
    """Make pictures from the training scans of DATA: two of one contrast and height, of different
    subjects, mixed, or drawn from a class; contrasts in turn."""
    from mricodec.codec.study import synthesis

    if output.exists():
        raise click.UsageError(f"{output} exists; choose another folder")
    synthesis.augment(data, output, count, method, model, folder, seed)
