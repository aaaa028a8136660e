"""`mricodec cache` and `mricodec train`."""

from __future__ import annotations

from pathlib import Path

import click

BUDGET_MIB = 55.0


@click.command()
@click.argument("data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.",
)
@click.option(
    "--budget",
    default=BUDGET_MIB,
    show_default=True,
    type=click.FloatRange(min=0.01),
    help="Largest size in MiB.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def cache(
    data_dir: Path, output: Path, budget: float, force: bool, threads: int | None, quiet: bool
) -> None:
    """Pack the scans of DATA_DIR/train and DATA_DIR/validation into one file for training elsewhere.

    Where DATA_DIR/MANIFEST.csv names licences, training scans whose licence does not allow it are left out.
    """
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists; use --force to overwrite it")
    _build(data_dir, output, budget, threads, quiet)


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the run.",
)
@click.option("--config", required=True, help="Named configuration; 'debug' ends within a minute.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Stop after this time instead of the configuration's steps.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Print every line of the log, not only those with a validation.",
)
def train(
    data: Path,
    output: Path,
    config: str,
    device: str,
    minutes: float | None,
    threads: int | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train a model on DATA: a file made by 'mricodec cache', or a folder with train/ and validation/.

    A folder is packed into OUTPUT/cache.safetensors first. Repeating the command resumes an interrupted run
    from its last checkpoint; a finished one ends with the weights in the form that is shipped, but for first stages.
    """
    import torch

    from mricodec.codec.training.cache import load_cache
    from mricodec.models import zoo
    from mricodec.models.training import export
    from mricodec.models.training import loop as training

    if config not in training.CONFIGS:
        raise click.BadParameter(
            f"{config!r} is none of {', '.join(training.CONFIGS)}", param_hint="--config"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    if data.is_dir():
        packed = output / "cache.safetensors"
        if not packed.exists():  # else: made by the run that is resumed
            _build(data, packed, BUDGET_MIB, threads, quiet)
    else:
        packed = data

    def report(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    slabs = load_cache(packed)

    def log(line: str) -> None:
        if verbose or "validation" in line:
            report(line)

    first = training.CONFIGS[config].start
    if first and not (output / f"{first}.safetensors").exists():
        report(
            f"{first}.safetensors is not in {output}: {config} starts from nothing; train {first} first to start from it"
        )
    trained = training.train(slabs, output, config, device=device, minutes=minutes, report=log)
    if trained is None:
        report(f"stopped after {minutes:g} minutes; the same command goes on")
        return
    recipe = training.CONFIGS[config]
    if recipe.model not in zoo.NETWORKS:
        report(f"{trained}: a further stage starts from these weights")
        return
    crops = min(export.CROPS, recipe.steps)
    path, sha256 = export.export(recipe.model, trained, slabs, output, crops=crops, report=report)
    report(f"{path}: SHA-256 {sha256}")


def _build(data_dir: Path, output: Path, budget: float, threads: int | None, quiet: bool) -> None:
    from mricodec.codec.training.cache import build_cache

    report = build_cache(data_dir, output, budget, threads)
    if quiet:
        return
    for scan in report.left_out:
        click.echo(f"left out: {scan.file}: {scan.reason}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    sizes = ", ".join(
        f"{voxels / 1e6:.1f} M voxels for {split}" for split, voxels in report.voxels.items()
    )
    click.echo(f"{output}: {report.size / 2**20:.2f} MiB, {report.slabs} slabs, {sizes}", err=True)
