"""`mricodec rd-curve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from mricodec.codec.rate_distortion import LEAST_POINTS, MODELS


@click.command("rd-curve")
@click.argument(
    "scans", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the coded files, rd.csv, rd.json, rd.png and rd.svg.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("default",),
    show_default=True,
    type=click.Choice(MODELS),
    help="Model to draw a curve of; may be given several times.",
)
@click.option(
    "--points",
    default=10,
    show_default=True,
    type=click.IntRange(min=LEAST_POINTS),
    help="Files per curve, over --quality 0 to 80.",
)
@click.option(
    "-f", "--force", is_flag=True, help="Measure everything again, overwrite what is in the folder."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, ...; auto: a GPU where there is one."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print every point with its times.")
def rd_curve(
    scans: tuple[Path, ...],
    output: Path,
    models: tuple[str, ...],
    points: int,
    force: bool,
    threads: int | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Rate-distortion curves of SCANS: PSNR and SSIM against bits per voxel, JPEG 2000 beside it.

    Every point is a real file that is decoded again: the rate counts all of its bytes. Repeating the command
    measures only what is missing. Needs the extra 'bench' (pip install 'mricodec[bench]').
    """
    from mricodec.codec import rate_distortion, report
    from mricodec.codec.peers import MissingExtra

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    names = tuple(dict.fromkeys(models))
    try:
        report.require_extras()
        contenders = [rate_distortion.Mricodec(name, device=device) for name in names]
        with click.progressbar(
            length=len(scans) * (len(names) + 1) * points,
            label="rd-curve",
            file=sys.stderr,
            hidden=quiet or not sys.stderr.isatty(),
            item_show_func=lambda label: label,
        ) as bar:
            result = report.rd_curve(
                scans,
                output,
                contenders=contenders,
                qualities=rate_distortion.spread_qualities(points),
                force=force,
                progress=lambda label: bar.update(1, label),
            )
    except (MissingExtra, FileExistsError) as error:
        raise click.UsageError(str(error)) from error
    if verbose:
        for point in result.points:
            click.echo(
                f"{point.volume}: {point.codec} {point.param:g}: {point.bpv:.4f} bits per voxel, "
                f"{point.psnr:.2f} dB, SSIM {point.ssim:.4f}, {point.enc_wall:.2f} s, {point.dec_wall:.2f} s"
            )
    if not quiet:
        for comparison in result.comparisons:
            click.echo(str(comparison))
        for file in result.files:
            click.echo(str(file))
    for entry in result.left_out:
        click.echo(
            f"left out: {entry.volume}{entry.codec and ' with '}{entry.codec}: {entry.reason}", err=True
        )
    if result.left_out:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("original", type=click.Path(exists=True, path_type=Path))
@click.argument("decoded", type=click.Path(exists=True, path_type=Path))
def compare(original: Path, decoded: Path) -> None:
    """PSNR, SSIM and largest error of DECODED (a scan, a stream or a DICOM folder) against ORIGINAL, in stored units.

    Of a DICOM series its largest stack is compared.
    """
    from mricodec.codec import metrics

    (source, _), (voxels, size) = _voxels(original), _voxels(decoded)
    if voxels.shape != source.shape:
        raise click.UsageError(f"expected scans of one shape, found {source.shape} and {voxels.shape}")
    found = metrics.compare(source, voxels)
    bits = 8 * size / source.size
    click.echo(
        f"PSNR {found.psnr:.2f} dB (peak {found.peak:g}), SSIM {found.ssim:.4f}, RMSE {found.rmse:.4g}, "
        f"largest error {found.max_error:g}; {decoded.name}: {bits:.3f} bits per voxel"
    )


def _voxels(path: Path) -> tuple[NDArray[Any], int]:
    """Of a scan, a stream or a DICOM series, and the bytes of all its files."""
    from mricodec import codec
    from mricodec.codec.rate_distortion import Source
    from mricodec.codec.series import series_voxels

    from .main import naming
    from .series import is_series

    if is_series((str(path),)):
        (series, *others) = codec.find_series(path)
        if others:
            raise click.UsageError(f"{path}: expected one DICOM series, found {1 + len(others)}")
        return series_voxels(series), series.size
    with path.open("rb") as file:
        is_stream = file.read(len(codec.MAGIC)) == codec.MAGIC
    if not is_stream:
        return Source.of_file(path).voxels, path.stat().st_size
    with naming(str(path)):
        return codec.decode(path).array, path.stat().st_size
