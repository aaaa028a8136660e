"""DICOM: `wrap`, `unwrap`, and what `encode` and `decode` do with a series."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mricodec.bitstream.errors import error_text

from . import console, files, removal
from .jobs import Job, Options

if TYPE_CHECKING:
    from mricodec.codec import Decoder, Deidentifier, Encoder, SeriesReport
    from mricodec.codec.dicom.stacks import Series


def is_dicom(path: str) -> bool:
    """Whether a path is a folder or a DICOM file."""
    from mricodec.codec.formats.dicom import elements

    if path == "-":
        return False
    if Path(path).is_dir():
        return True
    with open(path, "rb") as file:
        return elements.is_dicom(file.read(elements.PREFIX_SIZE))


def split(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Scans, and what belongs to DICOM series: among several paths all but what is named as a scan.

    Of a .hdr/.img pair whose files are both there, one is enough.
    """
    from mricodec.codec.filenames import MGH_ENDINGS, NIFTI_ENDINGS, ends_with

    if len(paths) > 1 and "-" in paths:
        raise click.UsageError("-: expected one scan from stdin, found other paths with it")
    scans: dict[tuple[Path, ...], str] = {}
    others = []
    for path in paths:
        named = len(paths) == 1 or ends_with(path, (*NIFTI_ENDINGS, *MGH_ENDINGS))
        if named and not is_dicom(path):
            scans.setdefault(files.both_files(Path(path)), path)
        else:
            others.append(path)
    return list(scans.values()), others


# A series, and where its stream goes.
Target = tuple["Series", str]


def find(
    paths: Sequence[str], output: str | None, folder: str | None, remover: Deidentifier | None
) -> tuple[list[Target], bool]:
    """The series of the paths with their targets, and whether all could be de-identified.

    Without an output, every folder is searched for itself.
    """
    from mricodec import codec

    groups = [list(paths)]
    if output is None:
        loose = [path for path in paths if not Path(path).is_dir()]
        groups = [[path] for path in paths if path not in loose] + ([loose] if loose else [])
    targets: list[Target] = []
    complete = True
    for group in groups:
        series = codec.find_series(group)
        if any(instance.wrapped for one in series if not one.uid for instance in one.instances):
            raise click.UsageError(
                f"{', '.join(group)}: expected images, found DICOM objects with mricodec streams, "
                "which are encoded already; 'decode' or 'unwrap' them"
            )
        if not any(one.uid for one in series):
            raise click.UsageError(
                f"{', '.join(group)}: expected DICOM files or scans "
                "(.nii, .nii.gz, .hdr/.img, .mgz), found neither"
            )
        if remover is not None:
            count = len(series)
            series = _deidentified(series, remover)
            complete = complete and len(series) == count
        targets += zip(series, _targets(series, group, output, folder), strict=True)
    return targets, complete


def _deidentified(series: list[Series], remover: Deidentifier) -> list[Series]:
    """Before the outputs get names, which may identify too; without those that can't be cleaned."""
    clean = []
    for one in series:
        try:
            clean.append(remover.series(one))
        except ValueError as error:
            console.say(f"{one.title or one.uid}: not encoded: {error}")
    return clean


def _targets(
    series: list[Series], group: Sequence[str], output: str | None, folder: str | None
) -> list[str]:
    """Names for the streams of the series of one group of paths."""
    from mricodec.codec.filenames import STREAM_ENDINGS, series_stem

    if folder is None and (output is not None or len(group) == len(series) == 1):
        return [files.target(group[0], output, None)] * len(series)
    if folder is None and Path(group[0]).is_dir() and len(series) > 1:
        raise click.UsageError(
            f"{group[0]}: expected one series, found {len(series)}; give -o NAME/, a folder for "
            f"their streams ({'; '.join(map(_describe, series))})"
        )
    where = str(Path(group[0]).parent) if folder is None else folder
    counts: dict[str, int] = defaultdict(int)
    targets = []
    for one in series:
        stem = series_stem(one.title)
        counts[stem] += 1
        name = stem if counts[stem] == 1 else f"{stem}_{counts[stem]}"
        targets.append(files.target(group[0], None, where, name + STREAM_ENDINGS[0]))
    return targets


def _describe(series: Series) -> str:
    return f"{series.title or series.uid or 'others'}: {len(series.instances)} files"


def encode_job(planned: Target, encoder: Encoder, options: Options) -> Job:
    """The encoding of one series."""
    series, target = planned
    inputs = tuple(
        str(instance.source.path)
        for instance in series.instances
        if instance.source.path != Path()  # It is in memory, de-identified.
    )

    def run() -> bool:
        good = _encode(series, target, encoder, options)
        if not options.remove:
            return good
        return removal.remove_series(series, target, options.device) and good

    return Job(_describe(series), inputs, target, run)


def _encode(series: Series, target: str, encoder: Encoder, options: Options) -> bool:
    """Write one stream; False if a file of the series is damaged, or its slices have no place."""
    from mricodec import codec

    start = time.perf_counter()
    label = f"encode {Path(target).name}"
    try:
        with (
            files.open_output(target) as out,
            console.Bar(label, quiet=options.quiet, size=series.size) as bar,
        ):
            report = codec.encode_series_file(series, out, encoder, progress=bar.update)
    except (ValueError, OSError) as error:
        name = series.title or series.uid
        raise click.ClickException(f"{name}: not encoded: {error_text(error)}") from error
    _show_notes(report.notes, options.verbose)
    if not options.quiet:
        seconds = time.perf_counter() - start
        console.say(
            f"{series.title or 'series'} -> {target}: {_summary(report)}, {seconds:.1f} s",
        )
    return not (report.damaged or report.misplaced)


def _summary(report: SeriesReport) -> str:
    shapes = " + ".join("x".join(map(str, shape[::-1])) for shape in report.shapes)
    original, stream = map(console.byte_count, (report.original_bytes, report.stream_bytes))
    return (
        f"{report.files} files, {shapes or 'no coded voxels'}, {original} -> {stream}, "
        f"ratio {report.ratio:.2f}, {report.mode}"
    )


def _show_notes(notes: tuple[tuple[str, str], ...], verbose: bool) -> None:
    """One line for every note; files of the same one together, unless `verbose`."""
    files: dict[str, list[str]] = defaultdict(list)
    for name, note in notes:
        files[note].append(name)
    for note, names in files.items():
        for name in names if verbose else names[:1]:
            more = f" (and {len(names) - 1} files more)" if len(names) > 1 and not verbose else ""
            console.say(f"{name}{more}: {note}")


def restore(stream: str, target: str, options: Options) -> None:
    """The files of a series, into a folder."""
    from mricodec import codec

    start = time.perf_counter()
    with (
        files.naming(stream),
        files.open_input(stream) as source,
        console.Bar(f"decode {files.shown_name(stream)}", quiet=options.quiet) as bar,
    ):
        decoder = codec.Decoder(model=options.model, device=options.device)
        names = codec.restore_series(
            source, target, force=options.force, decoder=decoder, progress=bar.update
        )
    if not options.quiet:
        seconds = time.perf_counter() - start
        console.say(f"{stream} -> {target}: {len(names)} files, {seconds:.1f} s")


def further_volumes(stream: str, output: str, decoder: Decoder, *, force: bool) -> None:
    """The volumes of a series beyond the first, each into a NIfTI file: NAME_2.nii.gz, ..."""
    from mricodec.codec.filenames import NIFTI_ENDINGS, without_ending

    if stream == "-" or output == "-":
        return
    stem = without_ending(output, NIFTI_ENDINGS)

    def path_of(number: int) -> str:
        name = f"{stem}_{number}{output[len(stem) :]}"
        if Path(name).exists() and not force:
            raise click.UsageError(f"{name} exists; use --force to overwrite it")
        return name

    for path in decoder.decode_further(stream, path_of):
        console.say(f"{stream} -> {path}: a further volume of the series")


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("stream", type=_FILE)
@click.option("-o", "--output", type=_OUTPUT, help="The DICOM file; default: STREAM's name, .dcm.")
@console.force_option
def wrap(stream: Path, output: Path | None, force: bool) -> None:
    """Put STREAM into a DICOM object (Raw Data) that a PACS stores and forwards."""
    from mricodec.codec import filenames
    from mricodec.codec.dicom import raw_data

    if output is None:
        stem = filenames.without_ending(stream.name, filenames.STREAM_ENDINGS)
        output = stream.with_name(f"{stem}.dcm")
    if filenames.ends_with(output, (*filenames.STREAM_ENDINGS, *filenames.NIFTI_ENDINGS)):
        raise click.UsageError(f"{output}: expected the name of a DICOM file, for example NAME.dcm")
    with files.naming(str(stream)):
        _write(output, raw_data.wrap(stream.read_bytes()), stream, force)


@click.command()
@click.argument("file", type=_FILE)
@click.option("-o", "--output", type=_OUTPUT, help="The stream; default: FILE's name, .mrc.")
@console.force_option
def unwrap(file: Path, output: Path | None, force: bool) -> None:
    """Take the stream out of the DICOM object FILE."""
    from mricodec.codec import filenames
    from mricodec.codec.dicom import raw_data

    if output is None:
        output = filenames.stream_path(file)
    files.check_stream_name(str(output))
    with files.naming(str(file)):
        _write(output, raw_data.unwrap(file.read_bytes()), file, force)


def _write(output: Path, data: bytes, source: Path, force: bool) -> None:
    from mricodec.codec.atomic import replacing

    inputs = {os.path.realpath(source)}
    files.check_target(output, inputs, in_folder=False, force=force)
    with replacing(output) as file:
        file.write(data)
