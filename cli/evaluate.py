"""`mricodec rd-curve` and `compare`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from mricodec.codec.evaluation.codecs import BASELINES, DEFAULT_BASELINES, MODELS
from mricodec.codec.evaluation.rate_distortion import MIN_POINTS, Codec
from mricodec.codec.settings import Effort

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("rd-curve")
@click.argument("scans", nargs=-1, required=True, type=_FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the coded files, tables, plots and rd.html.",
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
@click.option("--effort", "efforts", multiple=True, default=("default",), type=click.Choice(("default", "high")),
              help="Effort of the models' encoders; may be given twice.")  # fmt: skip
@click.option("--codec", "codecs", multiple=True, metavar="MODULE:OBJECT",
              help="Anyone's codec, see mricodec.codec.evaluation.codecs; may be given several times.")  # fmt: skip
@click.option("--live", "lives", multiple=True, type=click.Choice((*BASELINES, "none")),
              help=f"Peers to run; default: {', '.join(DEFAULT_BASELINES)}, those that are installed.")  # fmt: skip
@click.option("--peers", "csvs", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
              help="CSV with points of other codecs on the same volumes; may be given several times.")  # fmt: skip
@click.option("--central", type=click.IntRange(min=1), metavar="N",
              help="Code bare arrays, of a 4-D scan the first volume, and of it the central N slices.")  # fmt: skip
@click.option(
    "--points",
    default=10,
    show_default=True,
    type=click.IntRange(min=MIN_POINTS),
    help="Files per curve.",
)
@click.option(
    "-f", "--force", is_flag=True, help="Measure everything again, overwrite what is in the folder."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, ...; auto: a GPU where there is one.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print every point with its times.")
def rd_curve(
    scans: tuple[Path, ...],
    output: Path,
    models: tuple[str, ...],
    efforts: tuple[Effort, ...],
    codecs: tuple[str, ...],
    lives: tuple[str, ...],
    csvs: tuple[Path, ...],
    central: int | None,
    points: int,
    force: bool,
    threads: int | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Rate-distortion curves of SCANS, other codecs beside them: PSNR, SSIM and more against bits per voxel.

    Every point is a real file that is decoded again: the rate counts all of its bytes. Repeating the command
    measures only what is missing. Needs the extra 'bench' (pip install 'mricodec[bench]').
    """
    from mricodec.codec.evaluation import codecs as measurable
    from mricodec.codec.evaluation import report
    from mricodec.codec.evaluation.extras import MissingExtra

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    failures = []
    try:
        report.require_extras()
        external = [measurable.load_codec(where) for where in codecs]
    except (MissingExtra, ValueError) as error:
        raise click.UsageError(str(error)) from error
    tested: list[Codec] = [
        measurable.Mricodec(name, effort=effort, device=device)
        for name in dict.fromkeys(models)
        for effort in dict.fromkeys(efforts)
    ]
    tested += [measurable.MricodecNearLossless(), measurable.MricodecLossless(), *external]
    names = [name for name in lives or DEFAULT_BASELINES if name != "none"]
    baselines, missing = measurable.available_baselines(names)
    for name, reason in missing.items():
        if lives:
            failures.append(f"{name}: {reason}")
        elif not quiet:
            click.echo(f"not run: {name}: {reason}", err=True)
    settings = report.RdSettings(points=points, central=central, force=force, csvs=csvs)
    try:
        with _points_bar(quiet) as progress:
            result = report.rd_curve(
                scans, output, tested, baselines, settings=settings, progress=progress
            )
    except FileExistsError as error:
        raise click.UsageError(str(error)) from error
    if verbose:
        for point in result.points:
            click.echo(
                f"{point.volume}: {point.codec} {point.param:g}: {point.bpv:.4f} bits per voxel, "
                f"{point.psnr:.2f} dB, SSIM {point.ssim:.4f}, {point.enc_wall:.2f} s, {point.dec_wall:.2f} s"
            )
    if not quiet:
        for row in result.bd_rates:
            if verbose or row.codec == tested[0].name:
                click.echo(str(row))
        for file in result.files:
            click.echo(str(file))
    failures += [str(entry) for entry in result.failures]
    for failure in failures:
        click.echo(f"left out: {failure}", err=True)
    if failures:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _points_bar(quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """One line on a terminal: how far, what is measured, and how long it may take."""
    if quiet or not sys.stderr.isatty():
        yield lambda fraction, label: None
        return
    start = time.monotonic()

    def show(fraction: float, label: str) -> None:
        left = (time.monotonic() - start) * (1 / fraction - 1) if fraction else 0.0
        rest = f", {left / 60:.0f} min left" if left > 90 else ""
        click.echo(f"\r\033[K{fraction:4.0%} {label[:70]}{rest}", nl=False, err=True)

    try:
        yield show
    finally:
        click.echo("\r\033[K", nl=False, err=True)


@click.command()
@click.argument("original", type=click.Path(exists=True, path_type=Path))
@click.argument("decoded", type=click.Path(exists=True, path_type=Path))
def compare(original: Path, decoded: Path) -> None:
    """PSNR, SSIM and largest error of DECODED (a scan, a stream or a DICOM folder) against ORIGINAL, in stored units.

    Of a DICOM series its largest stack is compared.
    """
    from mricodec.codec.voxels import metrics

    (source, _), (voxels, size) = _voxels(original), _voxels(decoded)
    if voxels.shape != source.shape:
        raise click.UsageError(
            f"expected scans of one shape, found {source.shape} and {voxels.shape}"
        )
    found = metrics.compare(source, voxels)
    bits = 8 * size / source.size
    click.echo(
        f"PSNR {found.psnr:.2f} dB (peak {found.peak:g}), SSIM {found.ssim:.4f}, RMSE {found.rmse:.4g}, "
        f"largest error {found.max_error:g}; {decoded.name}: {bits:.3f} bits per voxel"
    )


def _voxels(path: Path) -> tuple[NDArray[Any], int]:
    """Of a scan, a stream or a DICOM series, and the bytes of all its files."""
    from mricodec import codec
    from mricodec.codec.dicom.stack_scan import series_voxels
    from mricodec.codec.evaluation.rate_distortion import Source

    from .dicom import is_dicom
    from .files import naming

    if is_dicom(str(path)):
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
