"""`mricodec rd-curve`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

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
@click.argument("original", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("decoded", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare(original: Path, decoded: Path) -> None:
    """PSNR, SSIM and largest error of DECODED (a scan or a stream) against ORIGINAL, in stored units."""
    from mricodec import codec
    from mricodec.codec import metrics
    from mricodec.codec.rate_distortion import Source

    from .main import naming

    source = Source.of_file(original)
    with decoded.open("rb") as file:
        is_stream = file.read(len(codec.MAGIC)) == codec.MAGIC
    if is_stream:
        with naming(str(decoded)):
            voxels = codec.decode(decoded).array
    else:
        voxels = Source.of_file(decoded).voxels
    if voxels.shape != source.voxels.shape:
        raise click.UsageError(f"expected scans of one shape, found {source.voxels.shape} and {voxels.shape}")
    found = metrics.compare(source.voxels, voxels)
    bits = 8 * decoded.stat().st_size / source.voxels.size
    click.echo(
        f"PSNR {found.psnr:.2f} dB (peak {found.peak:g}), SSIM {found.ssim:.4f}, RMSE {found.rmse:.4g}, "
        f"largest error {found.max_error:g}; {decoded.name}: {bits:.3f} bits per voxel"
    )
