"""The predictive coder of the C core beside JPEG XL: bits, and CPU time of one core.

    python -m benchmarks.native.lossless DATA --split validation --voxels 2000000

Of every scan the first volume, or with --voxels its central slices, is one block. JPEG XL e7 codes
slice by slice, 4 bytes more each. Needs imagecodecs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.codec.evaluation.rate_distortion import Source, scan_name
from mricodec.codec.native import library, predictive
from mricodec.models.extras import require

from .. import run

# Slices of a block at least, where a scan has them.
MIN_SLICES = 8
# Bytes that JPEG XL needs beside the codestream of a slice: its length.
LENGTH_BYTES = 4

Samples = NDArray[np.int32]
Result = TypeVar("Result")


def block_of(path: Path, voxels: int) -> Samples:
    """Samples [k, j, i] of the first volume of a scan, from 0 on; the central slices of it."""
    array = Source.bare(path).voxels
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected integers, found {array.dtype}")
    slices = max(MIN_SLICES, voxels // (array.shape[1] * array.shape[2]))
    if voxels and len(array) > slices:
        start = (len(array) - slices) // 2
        array = array[start : start + slices]
    return (array.astype(np.int64) - int(array.min())).astype(np.int32)


def jpegxl_bits(samples: Samples) -> float:
    """Bits of a voxel by JPEG XL e7."""
    encode: Any = require("imagecodecs", "bench", "JPEG XL").jpegxl_encode
    pictures = samples.astype(np.uint8 if samples.max() < 256 else np.uint16)
    sizes = (len(encode(picture, effort=7, lossless=True)) for picture in pictures)
    return 8 * (sum(sizes) + LENGTH_BYTES * len(samples)) / samples.size


def timed(work: Callable[[], Result], repeats: int) -> tuple[Result, float]:
    """What it returns, and the least CPU time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return result, min(times)


def measured(samples: Samples, effort: str, repeats: int) -> tuple[float, float, float]:
    """Bits a voxel, and nanoseconds a voxel to encode and to decode."""
    data, encoding = timed(lambda: predictive.encode(samples, effort), repeats)
    slices, height, width = samples.shape
    decoded, decoding = timed(lambda: predictive.decode(data, (slices, height, width)), repeats)
    if not np.array_equal(decoded, samples):
        raise ValueError("decoded samples differ")
    nanoseconds = 1e9 / samples.size
    return 8 * len(data) / samples.size, encoding * nanoseconds, decoding * nanoseconds


@click.command(help=__doc__)
@run.DATA
@run.SPLIT
@click.option("--voxels", default=0, help="Of a block, about; 0 for the whole volume.")
@click.option("--effort", "efforts", multiple=True, type=click.Choice(list(predictive.EFFORTS)))
@click.option("--repeats", default=1, show_default=True, help="The fastest of these counts.")
def main(
    data: Sequence[Path], split: str, voxels: int, efforts: Sequence[str], repeats: int
) -> None:
    """Print a table; exit code 1 if a scan could not be measured."""
    efforts = efforts or list(predictive.EFFORTS)
    click.echo(f"backend {library.backend()}; nanoseconds a voxel to encode / decode\n")
    columns = " | ".join(f"{effort} | ratio | ns" for effort in efforts)
    click.echo(f"| scan | JPEG XL e7 | {columns} |")
    click.echo("|---" * (2 + 3 * len(efforts)) + "|")
    rows, failures = [], 0
    for path in run.scans_of(data, split):
        try:
            samples = block_of(path, voxels)
            peer = jpegxl_bits(samples)
            figures = [measured(samples, effort, repeats) for effort in efforts]
        except (ValueError, OSError) as error:
            failures += 1
            click.echo(f"left out: {path}: {error}", err=True)
            continue
        rows.append([(bits / peer, encode, decode) for bits, encode, decode in figures])
        cells = " | ".join(
            f"{bits:.4f} | {bits / peer:.4f} | {encode:.0f} / {decode:.0f}"
            for bits, encode, decode in figures
        )
        click.echo(f"| {scan_name(path)} | {peer:.4f} | {cells} |")
    if rows:
        means = np.mean(rows, axis=0)
        cells = " | ".join(
            f"| {r:.4f} | {encode:.0f} / {decode:.0f}" for r, encode, decode in means
        )
        click.echo(f"| mean | | {cells} |")
    if failures:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
