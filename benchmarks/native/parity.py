"""What the C core's encoder costs in bits beside torch's, the network and the decoder being one.

    python -m benchmarks.native.parity DATA --split validation

Of every volume the central 16 slices are one slab, encoded at some qualities by torch, and by the C
core at these and next to them. The difference is that of the bits of the slab where the C core's
curve (the logarithm of the bits over the PSNR, straight between its points) has torch's PSNR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.range_coder import EntropyEncoder
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.coders.base import LossyModel, LossyParams, SymbolModel
from mricodec.codec.evaluation.rate_distortion import Source, scan_name
from mricodec.codec.native.model import NativeModel, Workspace
from mricodec.codec.voxels import metrics, noise, quality
from mricodec.codec.voxels.intensity import Intensity
from mricodec.models import zoo
from mricodec.models.loader import load_model

from .. import run

# Slices of the slab.
SLICES = 16
# Qualities of torch's points, and those of the C core's relative to each.
QUALITIES = (20.0, 35.0, 50.0, 65.0, 80.0)
AROUND = (-1.0, 0.0, 1.0)

Samples = NDArray[np.int32]


@dataclass(frozen=True)
class Slab:
    """Samples [k, j, i], and their noise."""

    samples: Samples
    sigma: float

    @classmethod
    def of(cls, source: Source) -> Slab:
        """The central slices of a bare volume, as an encoder of it alone sees them."""
        voxels = source.central(SLICES).voxels
        low, high = voxels.min().item(), voxels.max().item()
        intensity = Intensity.for_lossy(voxels.dtype, low, high)
        sigma = noise.sigma_hat(noise.sampled(voxels)) / intensity.scale
        return cls(intensity.samples(voxels), sigma)

    def params(self, at: float) -> LossyParams:
        """at: quality."""
        peak = int(self.samples.max())
        step = float(np.float32(quality.step(at, self.sigma, peak)))
        return LossyParams(step, peak, (1.0, 1.0, 1.0))

    def point(self, model: LossyModel, at: float) -> tuple[float, float]:
        """PSNR and the logarithm of the bytes at a quality."""
        params = self.params(at)
        if isinstance(model, NativeModel):
            run_bytes, decoded = model.encode_slab(self.samples, params, Workspace())
        else:
            run_bytes, decoded = encoded_by_torch(model, self.samples, params)
        decoded = np.clip(decoded, 0, params.peak)
        return metrics.psnr(self.samples, decoded), math.log(len(run_bytes))


def encoded_by_torch(
    model: SymbolModel, samples: Samples, params: LossyParams
) -> tuple[bytes, Samples]:
    """The run of a slab, and what it decodes to."""
    stream = EntropyEncoder()
    decoded = model.encode(samples[None], params.step, SlabStreams([stream]), params)[0]
    return stream.finish(), decoded


def differences(slab: Slab, native: NativeModel, torch: SymbolModel) -> Iterator[float]:
    """How many more bits the C core takes at torch's PSNR, in percent, for each quality."""
    for at in QUALITIES:
        psnr, log_bytes = slab.point(torch, at)
        curve = [slab.point(native, at + offset) for offset in AROUND]
        at_same = np.interp(psnr, *zip(*curve, strict=True))
        yield 100 * math.expm1(float(at_same) - log_bytes)


@click.command()
@run.DATA
@run.SPLIT
def main(data: tuple[Path, ...], split: str) -> None:
    """Print a table of the differences on the scans of DATA, and their mean and worst.

    DATA: scans, folders of scans, or a data folder with test/ (or another --split).
    """
    weights = zoo.read(zoo.DEFAULT)
    native, torch = NativeModel(weights.name, weights.data), load_model()
    click.echo(f"| volume | {' | '.join(f'{at:g}' for at in QUALITIES)} | mean |")
    click.echo("|---" * (len(QUALITIES) + 2) + "|")
    table, failures = [], 0
    for path in run.scans_of(data, split):
        try:
            slab = Slab.of(Source.bare(path))
        except (ValueError, OSError) as error:
            failures += 1
            click.echo(f"left out: {path}: {error}", err=True)
            continue
        row = list(differences(slab, native, torch))
        table.append(row)
        figures = " | ".join(f"{figure:+.2f}" for figure in (*row, np.mean(row)))
        click.echo(f"| {scan_name(path)} | {figures} |")
    if table:
        worst = max(np.ravel(table), key=abs)
        click.echo(f"\nmean {np.mean(table):+.3f} %, the worst point {worst:+.2f} %")
    if failures:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
