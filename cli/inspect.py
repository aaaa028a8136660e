"""`mricodec info`, `verify` and `compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console, dicom, files

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mricodec.codec import Finding, StreamInfo


@click.command()
@click.argument("stream", type=files.INPUT_FILE)
@click.option(
    "--phi", is_flag=True, help="What may identify a person, besides the voxels, instead."
)
@console.json_option
def info(stream: str, phi: bool, as_json: bool) -> None:
    """What STREAM holds."""
    console.hurry()
    from mricodec import codec

    with files.naming(stream), files.open_input(stream) as source:
        if phi:
            _show_phi(codec.identifying(source), as_json)
            return
        about = codec.info(source)
    click.echo(console.json_text(_values(about)) if as_json else console.table(rows(about)))


@click.command()
@click.argument("streams", nargs=-1, required=True, type=files.INPUT_FILE)
@click.option("-t", "--deep", is_flag=True, help="Decode, and compare the digest of the result.")
@console.model_file_option
@console.coding_options
def verify(
    streams: tuple[str, ...],
    deep: bool,
    model: str | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check the checksums of STREAMS."""
    console.hurry()
    from mricodec import codec

    damaged = 0
    for stream in streams:
        try:
            with (
                files.open_input(stream) as source,
                console.Bar(f"verify {stream}", quiet=quiet) as bar,
            ):
                about = codec.verify(
                    source, deep=deep, model=model, device=device, progress=bar.update
                )
        except codec.FormatError as error:
            damaged += 1
            console.say(f"{files.shown_name(stream)}: {error}")
            continue
        if not quiet:
            checked = "checksums"
            if deep:
                rounding = "decoded; not compared, as its samples may differ by rounding"
                checked = "decoded and compared" if about.exact else rounding
            click.echo(f"{stream}: good ({checked})")
            if verbose:
                click.echo(console.table(rows(about)))
    if damaged:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("original", type=files.PATH)
@click.argument("decoded", type=files.PATH)
@console.model_file_option
@console.json_option
def compare(original: Path, decoded: Path, model: str | None, as_json: bool) -> None:
    """PSNR, SSIM and largest error of DECODED against ORIGINAL, in stored units.

    Both may be scans, streams or DICOM folders; of a DICOM series the largest stack is compared.
    """
    console.hurry()
    from mricodec.codec.voxels import metrics

    (source, _), (voxels, size) = _voxels(original, model), _voxels(decoded, model)
    if voxels.shape != source.shape:
        raise click.UsageError(
            f"expected scans of one shape, found {source.shape} and {voxels.shape}"
        )
    distortion = metrics.compare(source, voxels)
    bits = 8 * size / source.size
    if as_json:
        values = {**dataclasses.asdict(distortion), "bytes": size, "bits_per_voxel": bits}
        click.echo(console.json_text(values))
        return
    click.echo(
        f"PSNR {distortion.psnr:.2f} dB (peak {distortion.peak:g}), SSIM {distortion.ssim:.4f}, "
        f"RMSE {distortion.rmse:.4g}, largest error {distortion.max_error:g}; "
        f"{decoded.name}: {bits:.3f} bits per voxel"
    )


def _voxels(path: Path, model: str | None) -> tuple[NDArray[Any], int]:
    """The voxels of a scan, a stream or a DICOM series, and the bytes of all its files.

    model: the weights file of a stream whose model is not shipped.
    """
    from mricodec import codec
    from mricodec.codec.dicom.stack_scan import series_voxels
    from mricodec.codec.filenames import is_stream
    from mricodec.codec.formats.dicom.wrapped import holds_stream

    wrapped = path.is_file() and holds_stream(path)
    if dicom.is_dicom(str(path)) and not wrapped:
        (series, *others) = codec.find_series(path)
        if others:
            raise click.UsageError(f"{path}: expected one DICOM series, found {1 + len(others)}")
        return series_voxels(series), series.size
    size = sum(file.stat().st_size for file in files.both_files(path))
    if wrapped or is_stream(path):
        with files.naming(str(path)):
            return codec.Decoder(model=model).decode(path).array, size
    from mricodec.codec.evaluation.rate_distortion import Source

    return Source.of_file(path).voxels, size


def rows(info: StreamInfo) -> list[tuple[str, str]]:
    """The table of a stream."""
    k, j, i = info.spacing_mm
    shape = f"{shape_text(info)} (i x j x k ...)" if info.slabs else "no voxels are coded"
    lines: list[tuple[str, str | None]] = [
        ("shape", shape),
        ("spacing", f"{i:.4g} x {j:.4g} x {k:.4g} mm"),
        ("type", info.dtype + (", big-endian" if info.big_endian else "")),
        ("mode", f"{info.mode} ({info.coder})"),
        ("files", f"{info.files}, a DICOM series" if info.files else None),
        ("bound", _bound(info)),
        ("layers", ", ".join((*info.layers, info.mode)) if info.layers else None),
        (".nii.gz", None if info.gzip is None else f"made again ({info.gzip})"),
        ("preview", "decodes alone" if info.preview else None),
        ("model", _model_row(info)),
        ("asked for", None if info.target is None else str(info.target)),
        *_distortion_rows(info),
        ("size", f"{info.original_bytes} -> {info.stream_bytes} bytes"),
        ("ratio", f"{info.ratio:.2f} ({info.bits_per_voxel:.3f} bits per voxel)"),
        ("slabs", f"{info.slabs}, of up to {info.slab_slices} slices along {info.slab_axis}"),
        *((f"section {name}", f"{size} bytes") for name, size in info.sections),
        ("SHA-256", info.sha256),
    ]
    return [(name, value) for name, value in lines if value is not None]


def _bound(info: StreamInfo) -> str | None:
    if info.max_error is None:
        return None
    return f"every voxel within {info.max_error:.6g} stored units"


def _distortion_rows(info: StreamInfo) -> list[tuple[str, str]]:
    measured = info.fidelity
    if measured is None:
        return []
    noise = measured.sigma_hat
    relative = f" = {measured.rmse / noise:.2f} of the noise" if noise > 0 else ""
    lines = [
        ("noise", f"{noise:.4g} stored units"),
        ("step", f"{measured.step:.4g} stored units"),
        ("RMSE", f"{measured.rmse:.4g} stored units{relative}"),
        ("largest error", f"{measured.max_error:.4g} stored units"),
        ("PSNR", f"{measured.psnr:.2f} dB"),
    ]
    if not info.exact:
        lines.append(("samples", "may differ by rounding from machine to machine"))
    return lines


def shape_text(info: StreamInfo) -> str:
    """i x j x k ..., as NIfTI counts the axes."""
    return "x".join(str(n) for n in info.shape[::-1])


def _model(info: StreamInfo) -> str | None:
    from mricodec import codec

    return codec.model_name(info.model_id) if info.model_id else None


def _model_row(info: StreamInfo) -> str | None:
    """Name or file, and id; for a model that is not here, which file decoding needs."""
    if not info.model_id:
        return None
    needed = "not here: needs a weights file whose SHA-256 begins with the id, by --model or in "
    return f"{_model(info) or needed + 'MRICODEC_MODELS'} ({info.model_id})"


def _values(info: StreamInfo) -> dict[str, Any]:
    values = {
        **dataclasses.asdict(info),
        "model": _model(info),
        "sections": dict(info.sections),
        "ratio": info.ratio,
        "bits_per_voxel": info.bits_per_voxel,
    }
    if info.fidelity is not None:
        values["fidelity"]["psnr"] = info.fidelity.psnr
    return values


def _show_phi(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        click.echo(console.json_text([dataclasses.asdict(finding) for finding in findings]))
        return
    lines = []
    for finding in findings:
        more = f", ... ({finding.count} in all)" if finding.count > len(finding.values) else ""
        lines.append((finding.name, ", ".join(finding.values) + more))
    click.echo(console.table(lines) if lines else "nothing found that identifies")
