"""`mricodec decode`."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import click

from . import console, dicom, files, inspect

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


@click.command()
@click.argument("stream", type=files.INPUT_FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(allow_dash=True),
    help="The scan to write: .nii, .nii.gz, or .hdr for a pair; of a DICOM series, a folder for "
    "its files.",
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
@console.force_option
@console.coding_options
def decode(
    stream: str,
    output: str,
    form: str | None,
    salvage: bool,
    force: bool,
    device: str,
    quiet: bool,
    verbose: bool,
    **part: Any,
) -> None:
    """Restore the scan from STREAM, or a part of it."""
    console.exit_at_once()
    ranges = part["slices"] is not None or part["volumes"] is not None
    if dicom.decodes_to_files(stream, output, form):
        if ranges:
            raise click.UsageError(
                "--slices and --volumes need --format nifti: "
                "the files of a series are restored as a whole"
            )
        dicom.decode(stream, output, device=device, force=force, quiet=quiet)
        return
    if part["preview"] and (ranges or salvage):
        raise click.UsageError("--preview takes neither --slices nor --volumes nor --salvage")
    files.check_output(output, stream, force)
    start = time.perf_counter()
    info, lost = _decode_scan(stream, output, part, salvage, device, force, quiet)
    if not quiet:
        what = "a preview of " if part["preview"] else "a part of " if ranges else ""
        size = f"{inspect.shape_text(info)} {info.dtype}, {console.byte_count(info.original_bytes)}"
        console.say(f"{stream} -> {output}: {what}{size}, {time.perf_counter() - start:.1f} s")
        if verbose:
            console.say(console.table(inspect.rows(info)))
    if lost:
        raise click.exceptions.Exit(1)


def _decode_scan(
    stream: str,
    output: str,
    part: dict[str, Any],
    salvage: bool,
    device: str,
    force: bool,
    quiet: bool,
) -> tuple[StreamInfo, list[str]]:
    """Write the scan, and the further stacks of a DICOM series; what could not be salvaged."""
    from mricodec import codec

    decoder = codec.Decoder(device=device)
    lost: list[str] = []
    with (
        warnings.catch_warnings(record=True) as caught,
        files.naming(stream),
        files.open_input(stream) as source,
        files.open_output(output) as out,
        console.Bar("decode", quiet=quiet) as bar,
    ):
        warnings.simplefilter("always", codec.GzipDiffers)
        info = decoder.decode_file(
            source, out, **part, salvage=lost.append if salvage else None, progress=bar.update
        )
        if info.files and not any(value not in (None, False) for value in part.values()):
            dicom.further_stacks(stream, output, decoder.decode_file, force=force)
    for reason in lost:
        console.say(f"{stream}: lost: {reason}")
    for warning in caught:
        console.say(str(warning.message))
    return info, lost
