"""`mricodec encode`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from . import console, dicom, files

if TYPE_CHECKING:
    from mricodec.codec import Encoder, EncodeReport

_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=files.SOURCE, metavar="SCAN | DICOM...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(allow_dash=True),
    help="The stream to write (.mrc); a folder for several DICOM series.",
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
    help="default, or for research: hyperprior, factorized, cnn8, cnn16, cnn32, unet, "
    "unet-2level, vae.",
)
@click.option(
    "--deidentify",
    is_flag=True,
    help="Take identities out of the headers (DICOM PS3.15 basic profile).",
)
@console.force_option
@console.coding_options
def encode(
    paths: tuple[str, ...],
    output: str,
    no_gzip: bool,
    deidentify: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Compress SCAN (.nii, .nii.gz, .hdr/.img, .mgz), or DICOM series: folders and files."""
    console.exit_at_once()
    from mricodec import codec

    is_series = dicom.is_series(paths)
    remover = codec.Deidentifier() if deidentify else None
    encoder = codec.Encoder(**settings, gzip=not no_gzip, deidentify=None if is_series else remover)
    if is_series:
        dicom.encode(paths, output, encoder, remover, force=force, quiet=quiet, verbose=verbose)
        return
    files.check_output(output, paths[0], force)
    _encode_scan(encoder, paths[0], output, quiet, verbose)


def _encode_scan(encoder: Encoder, scan: str, output: str, quiet: bool, verbose: bool) -> None:
    start = time.perf_counter()
    with (
        files.open_input(scan) as source,
        files.open_output(output) as out,
        console.Bar("encode", quiet=quiet) as bar,
    ):
        report = encoder.encode_file(source, out, progress=bar.update)
    if report.reason is not None:
        console.say(f"{scan}: coded without loss: {report.reason}")
    if report.missed is not None:
        console.say(f"{scan}: {report.missed}")
    if report.no_layers is not None:
        console.say(f"{scan}: without layers: {report.no_layers}")
    if not quiet:
        seconds = time.perf_counter() - start
        console.say(f"{scan} -> {output}: {_summary(report)}, {seconds:.1f} s")
        if verbose and report.fidelity is not None:
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
