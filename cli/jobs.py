"""The conversions of one command: checked together before anything is written, then run in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from mricodec.bitstream.errors import error_text

from . import console, files


@dataclass(frozen=True)
class Options:
    """What all conversions of a command share."""

    device: str
    force: bool
    quiet: bool
    verbose: bool
    # Remove the input when the output was decoded and every byte compared.
    remove: bool
    # Of a .nii.gz, only the .nii inside has to come back.
    unpacked: bool = False
    # Weights file of a model that is not shipped.
    model: str | None = None


@dataclass(frozen=True)
class Job:
    """One conversion: its input files, its target, and what does it."""

    name: str
    inputs: tuple[str, ...]
    target: str
    # Do it; False if the input was damaged or, against the wish of the user, kept.
    run: Callable[[], bool]
    # Whether the target is a folder, whose files `run` checks.
    fills_folder: bool = False


def prepare(jobs: Sequence[Job], folder: str | None, force: bool) -> None:
    """Check every target before anything is written, and make the folder for them.

    A target may not be an input of any job, nor be there without --force, nor be named twice.
    """
    if folder is not None:
        parent = Path(folder).absolute().parent
        if not parent.is_dir():
            raise click.UsageError(f"{parent}: no such folder for the output; make it first")
    inputs = {
        os.path.realpath(file)
        for job in jobs
        for name in job.inputs
        if name != "-"
        for file in files.both_files(Path(name))
    }
    names: dict[str, str] = {}
    for job in jobs:
        if job.target == "-":
            continue
        other = names.setdefault(os.path.realpath(job.target), job.name)
        if other is not job.name:
            raise click.UsageError(
                f"{other} and {job.name} both give {job.target}; rename one of them"
            )
        if not job.fills_folder:
            files.check_target(Path(job.target), inputs, in_folder=folder is not None, force=force)
    if folder is not None:
        Path(folder).mkdir(exist_ok=True)


def run_all(jobs: Sequence[Job]) -> bool:
    """Run the jobs, and whether all went well; an error of one of several doesn't stop the rest."""
    if len(jobs) == 1:
        return jobs[0].run()
    good = True
    for job in jobs:
        try:
            good = job.run() and good
        except click.ClickException as error:
            good = False
            console.say(f"Error: {error.format_message()}")
        except (OSError, ValueError) as error:
            good = False
            text = error_text(error)
            console.say(f"Error: {text}" if job.name in text else f"Error: {job.name}: {text}")
    return good
