"""`mricodec encode`."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console, dicom, files, removal
from .jobs import Job, Options, prepare, run_all

if TYPE_CHECKING:
    from mricodec.codec import Encoder, EncodeReport

_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=files.SOURCE, metavar="SCAN | DICOM...")
@click.option(
    "-o",
    "--output",
    type=files.OUTPUT,
    help="The stream to write, .mrc or .mric, or NAME/ for a folder of streams; default: beside "
    "each input, scan.nii.gz -> scan.mrc.",
)
@click.option(
    "--quality",
    type=click.FloatRange(0, 100),
    help="Fidelity relative to the scan's noise; default: 50, below it.",
)
@click.option("--psnr", type=_POSITIVE, help="Instead of --quality: PSNR in dB, within 0.1.")
@click.option("--bpv", type=_POSITIVE, help="Instead: bits per voxel of the file, within 2 %.")
@click.option("--ratio", type=_POSITIVE, help="Instead: stored voxels over file, within 2 %.")
@click.option("--lossless", is_flag=True, help="Restore every bit.")
@click.option(
    "--max-error",
    help="No voxel differs by more: stored units, or a part of the noise, like 0.5sigma.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="With these two: a lossy layer that decodes alone, then the rest.",
)
@click.option(
    "--effort",
    type=click.Choice(("fast", "default", "high")),
    default="default",
    show_default=True,
    help="How long to search for a smaller file; decoding is the same.",
)
@click.option(
    "--no-gzip",
    is_flag=True,
    help="Do not find out how to make the identical .nii.gz again: faster.",
)
@click.option(
    "--model",
    cls=console.ModelOption,
    metavar="NAME | FILE",
)
@click.option(
    "--deidentify",
    is_flag=True,
    help="Take identities out of the headers (DICOM PS3.15 basic profile).",
)
@click.option(
    "--rm",
    "remove",
    is_flag=True,
    help="With --lossless: remove each input after its stream was decoded and every byte compared.",
)
@console.force_option
@console.coding_options
def encode(
    paths: tuple[str, ...],
    output: str | None,
    no_gzip: bool,
    deidentify: bool,
    remove: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Compress scans (.nii, .nii.gz, .hdr/.img, .mgz), or DICOM series: folders and files.

    Every scan gives a stream, and so does every series of the DICOM files.
    """
    console.hurry()
    if remove and (deidentify or not settings["lossless"] or "-" in (output, *paths)):
        raise click.UsageError(
            "--rm: expected files and --lossless, without --deidentify: "
            "only what can be restored byte for byte is removed"
        )
    from mricodec import codec

    options = Options(settings["device"], force, quiet, verbose, remove, unpacked=no_gzip)
    make_encoder = functools.partial(codec.Encoder, **settings, gzip=not no_gzip)
    remover = codec.Deidentifier() if deidentify else None
    encoder = make_encoder(deidentify=remover)
    scans, dicom_paths = dicom.split(paths)
    folder = _folder(output, bool(dicom_paths))
    if output is not None and folder is None:
        files.check_stream_name(output)
    jobs = [_scan_job(scan, files.target(scan, output, folder), encoder, options) for scan in scans]
    complete = True
    if dicom_paths:
        series, complete = dicom.find(dicom_paths, output, folder, remover)
        jobs += [dicom.encode_job(one, make_encoder(), options) for one in series]
    if output is not None and folder is None and len(jobs) > 1:
        kind = "inputs" if scans else "series"
        raise click.UsageError(
            f"{output}: expected NAME/, a folder, for {len(jobs)} {kind}, found the name of a file "
            f"({'; '.join(job.name for job in jobs)})"
        )
    prepare(jobs, folder, force)
    if not (run_all(jobs) and complete):
        raise click.exceptions.Exit(1)


def _folder(output: str | None, has_dicom: bool) -> str | None:
    """The output if it is a folder; for DICOM, a name without an ending is one too."""
    if output is None or output == "-":
        return None
    is_plain = bool(output) and not Path(output).suffix and not Path(output).exists()
    return output if files.is_folder(output) or (has_dicom and is_plain) else None


def _scan_job(scan: str, target: str, encoder: Encoder, options: Options) -> Job:
    def run() -> bool:
        _encode_scan(encoder, scan, target, options)
        if not options.remove:
            return True
        return removal.remove_scan(scan, target, options.device, unpacked=options.unpacked)

    return Job(scan, (scan,), target, run)


def _encode_scan(encoder: Encoder, scan: str, target: str, options: Options) -> None:
    start = time.perf_counter()
    size = files.volume_bytes(scan)
    with (
        files.open_input(scan) as source,
        files.open_output(target) as out,
        console.Bar(f"encode {files.shown_name(scan)}", quiet=options.quiet, size=size) as bar,
    ):
        report = encoder.encode_file(source, out, progress=bar.update)
    if report.reason is not None:
        console.say(f"{scan}: coded without loss: {report.reason}")
    if report.missed is not None:
        console.say(f"{scan}: {report.missed}")
    if report.no_layers is not None:
        console.say(f"{scan}: without layers: {report.no_layers}")
    if not options.quiet:
        seconds = time.perf_counter() - start
        console.say(f"{scan} -> {target}: {_summary(report)}, {seconds:.1f} s")
        if options.verbose and report.fidelity is not None:
            console.say(_distortion(report))


def _summary(report: EncodeReport) -> str:
    byte_count = console.byte_count
    parts = [
        f"{byte_count(report.original_bytes)} -> {byte_count(report.stream_bytes)}",
        f"ratio {report.ratio:.2f}",
    ]
    if report.max_error is not None:
        parts.append(f"every voxel within {report.max_error:.4g}")
    else:
        parts.append(report.mode if report.model is None else f"{report.mode} ({report.model})")
    measured = report.fidelity
    if measured is not None:
        parts.append(f"PSNR {measured.psnr:.1f} dB")
        if measured.sigma_hat > 0:
            parts.append(f"RMSE {measured.rmse / measured.sigma_hat:.2f} of the noise")
    if report.layers:
        parts.append(f"with layers ({', '.join(report.layers)})")
    if report.gzip is not None:
        restored = f"the .nii.gz comes back ({report.gzip})"
        parts.append(restored if report.gzip else "only the .nii inside comes back")
    return ", ".join(parts)


def _distortion(report: EncodeReport) -> str:
    measured = report.fidelity
    assert measured is not None
    return (
        f"noise {measured.sigma_hat:.4g}, step {measured.step:.4g}, RMSE {measured.rmse:.4g}, "
        f"largest error {measured.max_error:.4g} stored units; "
        f"{report.bits_per_voxel:.3f} bits per voxel"
    )
