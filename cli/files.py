"""Inputs and outputs of commands: '-' for stdin and stdout, and names that are checked first."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

# Types of arguments: '-' is stdin or stdout.
SOURCE = click.Path(exists=True, allow_dash=True)
INPUT_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@contextlib.contextmanager
def open_input(name: str) -> Iterator[str | BinaryIO]:
    """The path, or stdin for '-'."""
    if name != "-":
        yield name
        return
    if sys.stdin is None:
        raise click.UsageError("-: expected an open stdin, found it closed")
    with click.open_file("-", "rb") as file:
        yield file  # type: ignore[misc]


@contextlib.contextmanager
def open_output(name: str) -> Iterator[str | BinaryIO]:
    """The path, or stdout for '-'."""
    if name != "-":
        yield name
        return
    from mricodec.codec.atomic import named_errors

    if sys.stdout is None:
        raise click.UsageError("-: expected an open stdout, found it closed")
    with click.open_file("-", "wb") as file, named_errors("stdout"):
        yield file  # type: ignore[misc]
        file.flush()


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a stream in front of what is wrong with it."""
    from mricodec.bitstream.errors import FormatError

    try:
        yield
    except FormatError as error:
        raise type(error)(f"{shown_name(name)}: {error}") from error


def shown_name(name: str) -> str:
    return "stdin" if name == "-" else name


def check_output(output: str, source: str, force: bool) -> None:
    """Refuse an output that is the input, or is there without --force; either may be a pair."""
    from mricodec.codec.formats.nifti import pair_paths

    if output == "-":
        return
    if not output:
        raise click.UsageError("-o: expected the name of the output, found nothing")
    path = Path(output)
    if path.is_dir():
        raise click.UsageError(f"{path} is a directory, expected the name of a file")
    if not path.parent.is_dir():
        raise click.UsageError(f"{path.parent}: no such folder for the output; make it first")
    inputs = [] if source == "-" else pair_paths(Path(source)) or [Path(source)]
    inputs = [file for file in inputs if file.exists()]
    for file in pair_paths(path) or [path]:
        if file.exists() and any(file.samefile(other) for other in inputs):
            raise click.UsageError(f"{file} is the input too; choose another name")
        if file.is_file() and not force:
            raise click.UsageError(f"{file} exists; use --force to overwrite it")
