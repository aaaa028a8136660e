"""Inputs and outputs of commands: '-' for stdin and stdout, and names that are checked first."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

# Types of arguments: '-' is stdin or stdout.
SOURCE = click.Path(exists=True, allow_dash=True)
INPUT_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
PATH = click.Path(exists=True, path_type=Path)
OUTPUT = click.Path(allow_dash=True)


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
    if sys.stdout.isatty():
        raise click.UsageError("-: expected a pipe or a file, found a terminal; give -o FILE")
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
    """The name of an input in messages."""
    return "stdin" if name == "-" else name


def volume_bytes(scan: str) -> int | None:
    """Bytes of the voxels of a NIfTI scan, by its header; None where it doesn't say."""
    from mricodec.codec.filenames import NIFTI_ENDINGS, ends_with
    from mricodec.codec.formats.registry import open_scan

    if not ends_with(scan, NIFTI_ENDINGS):
        return None
    with contextlib.suppress(OSError, ValueError), contextlib.closing(open_scan(scan)) as opened:
        return math.prod(opened.shape) * opened.dtype.itemsize
    return None


def is_folder(output: str) -> bool:
    """Whether an output is a folder: there already, or written NAME/."""
    return output.endswith(("/", os.sep)) or (bool(output) and Path(output).is_dir())


def target(source: str, output: str | None, folder: str | None, name: str | None = None) -> str:
    """Where the stream of an input goes: `name` or a name like the input's in `folder`, if there
    is one; else `output`; else beside the input."""
    from mricodec.codec.filenames import stream_path

    if folder is None and (output is not None or source == "-"):
        return output or "-"
    if source == "-":
        raise click.UsageError(f"{folder}: expected the name of a file for what comes from stdin")
    default = stream_path(Path(source))
    return str(default if folder is None else Path(folder, name or default.name))


def check_stream_name(output: str) -> None:
    """Refuse to write a stream under the name of something else; devices and pipes pass."""
    from mricodec.codec.filenames import STREAM_ENDINGS, ends_with

    path = Path(output)
    if not output:
        raise click.UsageError("-o: expected the name of the output, found nothing")
    if output == "-" or ends_with(output, STREAM_ENDINGS) or (path.exists() and not path.is_file()):
        return
    raise click.UsageError(
        f"{output}: expected a name that ends in {' or '.join(STREAM_ENDINGS)} for a stream, "
        "or NAME/ for a folder"
    )


def check_target(target: Path, inputs: set[str], *, in_folder: bool, force: bool) -> None:
    """Refuse a target that is an input or, without --force, there already; either may be a pair.

    inputs: real paths; in_folder: the folder is made afterwards.
    """
    if target.is_dir():
        raise click.UsageError(f"{target} is a directory, expected the name of a file")
    if not in_folder and not target.parent.is_dir():
        raise click.UsageError(f"{target.parent}: no such folder for the output; make it first")
    for file in both_files(target):
        if os.path.realpath(file) in inputs:
            raise click.UsageError(f"{file} is the input too; choose another name")
        if file.is_file() and not force:
            raise click.UsageError(f"{file} exists; use --force to overwrite it")


def both_files(path: Path) -> tuple[Path, ...]:
    """The header and the voxels of a .hdr/.img pair, else the file alone."""
    from mricodec.codec.formats.nifti import pair_paths

    return pair_paths(path) or (path,)
