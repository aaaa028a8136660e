"""DICOM: `wrap`, `unwrap`, and what `encode` and `decode` do with a series."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import console, files

if TYPE_CHECKING:
    from mricodec import codec
    from mricodec.codec.dicom.files import Series

NIFTI_NAMES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")


def is_series(paths: tuple[str, ...]) -> bool:
    """Whether these are folders, several files, or a DICOM file."""
    from mricodec.codec.dicom import files as dicom

    if len(paths) > 1 or Path(paths[0]).is_dir():
        if "-" in paths:
            raise click.UsageError("-: expected one scan from stdin, found other paths beside it")
        return True
    if paths[0] == "-":
        return False
    with open(paths[0], "rb") as file:
        return dicom.accept(file.read(dicom.PREFIX))


def encode(
    paths: tuple[str, ...],
    output: str,
    encoder: codec.Encoder,
    remover: codec.Deidentifier | None,
    *,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """One stream per series; exit code 1 if a file was damaged or a series could not be encoded."""
    from mricodec import codec

    found = codec.find_series(paths)
    if not any(series.uid for series in found):
        raise click.UsageError(
            f"{', '.join(paths)}: expected DICOM files, found none; give one NIfTI scan at a time"
        )
    failed = False
    if remover is not None:
        found, failed = _deidentified(found, remover)
    targets = _targets(found, Path(output), force)
    for series, target in zip(found, targets, strict=True):
        start = time.perf_counter()
        try:
            with console.Bar(f"encode {target.name}", quiet=quiet) as bar:
                report = codec.encode_series_file(series, target, encoder, progress=bar.update)
        except (ValueError, OSError) as error:
            failed = True
            console.say(
                f"{series.title or series.uid}: not encoded: {' '.join(str(error).split())}"
            )
            continue
        failed = failed or report.damaged
        _show_notes(report.notes, verbose)
        if not quiet:
            shapes = (
                " + ".join("x".join(map(str, shape[::-1])) for shape in report.shapes)
                or "no coded voxels"
            )
            console.say(
                f"{series.title or 'series'} -> {target}: {report.files} files, {shapes}, {console.byte_count(report.original_bytes)} -> "
                f"{console.byte_count(report.stream_bytes)}, ratio {report.ratio:.2f}, {report.mode}, {time.perf_counter() - start:.1f} s"
            )
    if failed:
        raise click.exceptions.Exit(1)


def _deidentified(found: list[Series], remover: codec.Deidentifier) -> tuple[list[Series], bool]:
    """Before the outputs get names, which may identify too; and whether any failed."""
    clean = []
    for series in found:
        try:
            clean.append(remover.series(series))
        except ValueError as error:
            console.say(f"{series.title or series.uid}: not encoded: {error}")
    return clean, len(clean) < len(found)


def decodes_to_files(stream: str, output: str, form: str | None) -> bool:
    """Whether `decode` restores the files of a series: asked for, or a series and no NIfTI name."""
    if form is not None:
        return form == "dicom"
    if output == "-" or output.lower().endswith(NIFTI_NAMES):
        return False
    if stream == "-":
        return True
    from mricodec import codec

    with files.naming(stream):
        return codec.info(stream).files > 0


def decode(stream: str, output: str, *, device: str, force: bool, quiet: bool) -> None:
    """The files of a series into a folder."""
    from mricodec import codec

    start = time.perf_counter()
    with (
        files.naming(stream),
        files.open_input(stream) as source,
        console.Bar("decode", quiet=quiet) as bar,
    ):
        decoder = codec.Decoder(device=device)
        names = codec.restore_series(
            source, output, force=force, decoder=decoder, progress=bar.update
        )
    if not quiet:
        console.say(
            f"{stream} -> {output}: {len(names)} files, {time.perf_counter() - start:.1f} s"
        )


def further_stacks(
    stream: str, output: str, decode_file: Callable[[bytes, str], object], *, force: bool
) -> None:
    """The stacks of a series beyond the first, each into a NIfTI file of its own: NAME_2.nii.gz ..."""
    from mricodec import codec

    if stream == "-" or output == "-":
        return
    for number, payload in enumerate(codec.further_stacks(stream), 2):
        ending = next(ending for ending in NIFTI_NAMES[::-1] if output.lower().endswith(ending))
        name = f"{output[: -len(ending)]}_{number}{output[-len(ending) :]}"
        if Path(name).exists() and not force:
            raise click.UsageError(f"{name} exists; use --force to overwrite it")
        decode_file(payload, name)
        console.say(f"{stream} -> {name}: a further stack of the series")


def _targets(found: list[Series], output: Path, force: bool) -> list[Path]:
    """A file for one series, a folder of files for several."""
    folder = output.is_dir()
    if len(found) > 1 and not folder:
        if output.suffix or output.exists():
            listing = "; ".join(
                f"{s.title or s.uid or 'others'}: {len(s.instances)} files" for s in found
            )
            raise click.UsageError(
                f"{output}: expected a folder for {len(found)} series, found the name of a file ({listing})"
            )
        folder = True
    if not output.parent.is_dir():
        raise click.UsageError(f"{output.parent}: no such folder for the output; make it first")
    if not folder:
        targets = [output]
    else:
        names: dict[str, int] = defaultdict(int)
        targets = []
        for series in found:
            name = re.sub(r"[^A-Za-z0-9.+-]+", "_", series.title).strip("_.")[:80] or "series"
            names[name] += 1
            targets.append(
                output / (f"{name}.mrc" if names[name] == 1 else f"{name}_{names[name]}.mrc")
            )
    sources = {
        os.path.realpath(instance.source.path) for series in found for instance in series.instances
    }
    for target in targets:
        if os.path.realpath(target) in sources:
            raise click.UsageError(f"{target} is an input too; choose another name")
        if target.exists() and not force:
            raise click.UsageError(f"{target} exists; use --force to overwrite it")
    if folder:
        output.mkdir(exist_ok=True)
    return targets


def _show_notes(notes: tuple[tuple[str, str], ...], verbose: bool) -> None:
    """One line for every note; files of the same one together, unless `verbose`."""
    files: dict[str, list[str]] = defaultdict(list)
    for name, note in notes:
        files[note].append(name)
    for note, names in files.items():
        for name in names if verbose else names[:1]:
            more = f" (and {len(names) - 1} files more)" if len(names) > 1 and not verbose else ""
            console.say(f"{name}{more}: {note}")


@click.command()
@click.argument("stream", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The DICOM file.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def wrap(stream: Path, output: Path, force: bool) -> None:
    """Put STREAM into a DICOM object (Raw Data) that a PACS stores and forwards."""
    from mricodec.codec.dicom import raw_data as wrapping

    with files.naming(str(stream)):
        _write(output, wrapping.wrap(stream.read_bytes()), stream, force)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The stream.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def unwrap(file: Path, output: Path, force: bool) -> None:
    """Take the stream out of the DICOM object FILE."""
    from mricodec.codec.dicom import raw_data as wrapping

    with files.naming(str(file)):
        _write(output, wrapping.unwrap(file.read_bytes()), file, force)


def _write(output: Path, data: bytes, source: Path, force: bool) -> None:
    from mricodec.codec.atomic import replacing

    files.check_output(str(output), str(source), force)
    with replacing(output) as file:
        file.write(data)
