"""`mricodec cache` and `mricodec train`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import (
    Bar,
    device_option,
    force_option,
    quiet_option,
    say,
    threads_option,
    verbose_option,
)
from .files import check_target

if TYPE_CHECKING:
    from mricodec.codec.training.run import Reporting


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
    default=55.0,
    show_default=True,
    type=click.FloatRange(min=0.01),
    help="Largest size in MiB.",
)
@force_option
@threads_option
@quiet_option
def cache(data_dir: Path, output: Path, budget: float, force: bool, quiet: bool) -> None:
    """Pack the scans of DATA_DIR/train and DATA_DIR/validation into one file for training.

    A DATA_DIR without these folders is a training set by itself. Where DATA_DIR/MANIFEST.csv names
    licences, training scans whose licence does not allow it are left out.
    """
    from mricodec.codec.training.run import pack

    check_target(output, set(), in_folder=False, force=force)
    with _reporting(quiet=quiet) as reporting:
        pack(data_dir, output, reporting, budget_mib=budget)


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
@device_option
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Stop after this time instead of the configuration's steps.",
)
@threads_option
@quiet_option
@verbose_option
def train(
    data: Path,
    output: Path,
    config: str,
    device: str,
    minutes: float | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train a model on DATA: a file made by 'mricodec cache', or a folder as 'cache' takes.

    A folder is packed into OUTPUT/cache.safetensors first ('debug' packs its smallest scans).
    Repeating the command resumes an interrupted run from its last checkpoint; a finished one ends
    with the weights in the form that is shipped, but for first stages. With -v every row of the log
    is printed, not only those with a validation.
    """
    from mricodec.codec.training import run

    settings = run.TrainSettings(config, device, minutes)
    with _reporting(quiet=quiet, every_row=verbose) as reporting:
        trained = run.train(data, output, settings, reporting)
    if quiet:
        return
    if trained is None:
        say(f"stopped after {minutes:g} minutes; the same command goes on")
    elif trained.shipped is None:
        say(f"{trained.float_weights}: a further stage starts from these weights")
    else:
        say(f"{trained.shipped}: SHA-256 {trained.sha256}")


@contextlib.contextmanager
def _reporting(*, quiet: bool, every_row: bool = False) -> Iterator[Reporting]:
    """Lines and rows of the log on stderr, and a progress bar for each phase."""
    from mricodec.codec.training.run import Reporting

    if quiet:
        yield Reporting()
        return
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def progress(fraction: float, phase: str) -> None:
            if phase not in bars:
                stack.close()
                bars[phase] = stack.enter_context(Bar(phase))
            bars[phase].update(fraction)

        def row(values: dict[str, Any]) -> None:
            if every_row or "validation" in values:
                say(json.dumps(values))

        yield Reporting(say, row, progress)
