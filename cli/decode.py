"""`mricodec decode`."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console, dicom, files, inspect, removal
from .jobs import Job, Options, prepare, run_all

if TYPE_CHECKING:
    from mricodec.codec import StreamInfo


class _Range(click.ParamType):  # type: ignore[type-arg]
    """a:b, from a up to but not including b."""

    name = "a:b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, slice):
            return value
        start, colon, stop = str(value).partition(":")
        try:
            if not colon:
                raise ValueError
            return slice(int(start) if start else None, int(stop) if stop else None)
        except ValueError:
            self.fail(
                "expected a:b with whole numbers (from a, up to but not including b), "
                f"found {value!r}",
                param,
            )


# Options that decode a part of a stream, and --salvage: what is decoded then is not the whole.
_PARTS = ("slices", "volumes", "layer", "preview", "salvage")


@click.command()
@click.argument("streams", nargs=-1, required=True, type=files.INPUT_FILE, metavar="STREAM...")
@click.option(
    "-o",
    "--output",
    type=files.OUTPUT,
    help="The scan to write: .nii, .nii.gz, or .hdr for a pair; of a DICOM series, a folder for "
    "its files; NAME/ for several scans. Default: beside each stream, scan.mrc -> scan.nii.gz, "
    "or series.mrc -> series/.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["dicom", "nifti"]),
    help="Of a DICOM series; default: by the name of the output.",
)
@click.option("--slices", type=_Range(), help="Only these slices of the third axis.")
@click.option("--volumes", type=_Range(), help="Only these volumes of a 4-D scan.")
@click.option(
    "--layer",
    type=click.IntRange(min=1),
    help="Only so many layers of a stream with layers; 1: the coarsest.",
)
@click.option(
    "--preview",
    is_flag=True,
    help="The scan with a quarter of the resolution of its slices, quickly.",
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Of a damaged stream write what is good, zeros for the rest; exits 1.",
)
@click.option(
    "--rm",
    "remove",
    is_flag=True,
    help="Remove each lossless stream after its output was read back and every byte compared.",
)
@console.model_file_option
@console.force_option
@console.coding_options
def decode(
    streams: tuple[str, ...],
    output: str | None,
    form: str | None,
    remove: bool,
    model: str | None,
    force: bool,
    device: str,
    quiet: bool,
    verbose: bool,
    **part: Any,
) -> None:
    """Restore the scans from STREAMs, or a part of one."""
    console.hurry()
    if part["preview"] and any(part[name] for name in ("slices", "volumes", "salvage")):
        raise click.UsageError("--preview takes neither --slices nor --volumes nor --salvage")
    if remove and (_is_part(part) or "-" in (output, *streams)):
        raise click.UsageError("--rm: expected files that are decoded as a whole")
    several = len(streams) > 1
    if several and ("-" in streams or (output is not None and not files.is_folder(output))):
        raise click.UsageError(
            f"expected files and -o NAME/, a folder, for several streams, found {output or '-'}"
        )
    options = Options(device, force, quiet, verbose, remove, model=model)
    jobs = [_job(stream, output, form, several, part, options) for stream in streams]
    fills = not several and jobs[0].fills_folder
    folder = output if output and files.is_folder(output) and not fills else None
    prepare(jobs, folder, force)
    if not run_all(jobs):
        raise click.exceptions.Exit(1)


def _is_part(part: dict[str, Any]) -> bool:
    return any(part[name] not in (None, False) for name in _PARTS)


def _job(
    stream: str,
    output: str | None,
    form: str | None,
    several: bool,
    part: dict[str, Any],
    options: Options,
) -> Job:
    """The decoding of one stream into the files of a series or into a scan."""
    about = _about(stream, part["salvage"])
    is_series = about is not None and about.files > 0
    to_files = _to_files(stream, output, form, is_series)
    target = _target(stream, output, to_files, several)
    if to_files and _is_part(part):
        raise click.UsageError(
            f"{stream}: --slices, --volumes, --layer, --preview and --salvage need --format nifti: "
            "the files of a series are restored as a whole"
        )
    partial = about is not None and (about.mode != "lossless" or to_files != is_series)
    if options.remove and about is not None and partial:
        raise click.UsageError(
            f"{stream}: --rm: expected a lossless stream of which all is restored, found "
            + ("a series decoded to NIfTI" if is_series and not to_files else about.mode)
        )

    def run() -> bool:
        if to_files:
            dicom.restore(stream, target, options)
            good = True
        else:
            good = _decode_scan(stream, target, about, part, options)
        if not options.remove:
            return good
        return removal.remove_stream(stream, target, options.device, is_series=to_files)

    return Job(stream, (stream,), target, run, fills_folder=to_files)


def _about(stream: str, salvage: bool) -> StreamInfo | None:
    """What a stream holds; None for stdin, and for a damaged one that is to be salvaged."""
    from mricodec import codec

    if stream == "-":
        return None
    try:
        with files.naming(stream):
            return codec.info(stream)
    except codec.FormatError:
        if salvage:
            return None
        raise


def _to_files(stream: str, output: str | None, form: str | None, is_series: bool) -> bool:
    """Whether to restore the files of a series: asked for, or a series and no NIfTI name."""
    from mricodec.codec.filenames import NIFTI_ENDINGS, ends_with

    if form is not None:
        return form == "dicom"
    if output is not None and (output == "-" or ends_with(output, NIFTI_ENDINGS)):
        return False
    return output is not None if stream == "-" else is_series


def _target(stream: str, output: str | None, to_files: bool, several: bool) -> str:
    """Where a stream is decoded to."""
    from mricodec.codec.filenames import folder_path, scan_path

    if stream == "-":
        return output or "-"
    default = (folder_path if to_files else scan_path)(Path(stream))
    if output is None:
        return str(default)
    if files.is_folder(output) and (several or not to_files):
        return str(Path(output, default.name))
    return output


def _decode_scan(
    stream: str,
    target: str,
    about: StreamInfo | None,
    part: dict[str, Any],
    options: Options,
) -> bool:
    """Write the scan, and the further stacks of a DICOM series; False if some of it is lost."""
    from mricodec import codec

    start = time.perf_counter()
    decoder = codec.Decoder(model=options.model, device=options.device)
    lost: list[str] = []
    size = None if about is None or _is_part(part) else about.original_bytes
    chosen = {**part, "salvage": lost.append if part["salvage"] else None}
    with (
        warnings.catch_warnings(record=True) as caught,
        files.naming(stream),
        files.open_input(stream) as source,
        files.open_output(target) as out,
        console.Bar(f"decode {files.shown_name(stream)}", quiet=options.quiet, size=size) as bar,
    ):
        warnings.simplefilter("always", codec.GzipDiffers)
        info = decoder.decode_file(source, out, **chosen, progress=bar.update)
        if info.files and not _is_part(part):
            dicom.further_volumes(stream, target, decoder, force=options.force)
    for reason in lost:
        console.say(f"{stream}: lost: {reason}")
    for warning in caught:
        console.say(str(warning.message))
    if not options.quiet:
        seconds = time.perf_counter() - start
        console.say(f"{stream} -> {target}: {_summary(info, part)}, {seconds:.1f} s")
        if options.verbose:
            console.say(console.table(inspect.rows(info)))
    return not lost


def _summary(info: StreamInfo, part: dict[str, Any]) -> str:
    prefix = ""
    if part["preview"]:
        prefix = "a preview of "
    elif part["slices"] is not None or part["volumes"] is not None:
        prefix = "a part of "
    size = console.byte_count(info.original_bytes)
    return f"{prefix}{inspect.shape_text(info)} {info.dtype}, {size}"
