"""The picture of README.md: the bundled scan, its reconstruction and error, and its curves.

mricodec rd-curve codec/sample/brain_t1w.nii.gz -o OUT --model default --model hyperprior \\
    --model factorized
python -m benchmarks.picture OUT/rd.json -o benchmarks/figures/sample.png
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from mricodec import codec

SAMPLE = Path(__file__).parent.parent / "codec" / "sample" / "brain_t1w.nii.gz"
# Quality of the reconstruction that is shown.
QUALITY = 30.0
# Brightest value of the grey window, and largest error of the colours, relative to the peak.
BRIGHTEST, ERROR_LIMIT = 0.8, 0.06


@click.command()
@click.argument("rd", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(rd: Path, output: Path) -> None:
    """Draw the picture from RD, the rd.json of `mricodec rd-curve`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    *images, curves = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    _draw_scan(figure, images)
    _draw_curves(curves, json.loads(rd.read_text())["points"])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)


def _draw_scan(figure: Any, axes: Sequence[Any]) -> None:
    """The middle slice: original, reconstruction, error."""
    lossless = codec.encode(SAMPLE, lossless=True) or b""
    stream = codec.encode(SAMPLE, quality=QUALITY) or b""
    original, decoded = codec.decode(lossless).array, codec.decode(stream).array
    peak = int(original.max()) - int(original.min())
    k = original.shape[0] // 2
    bits, lossless_rate, rate = (
        8 * count / original.size for count in (original.nbytes, len(lossless), len(stream))
    )
    titles = (
        f"original, {bits:.0f} bits per voxel; lossless {lossless_rate:.1f}",
        f"decoded, quality {QUALITY:g}: {rate:.2f} bits, {bits / rate:.0f} : 1",
    )
    for axis, voxels, title in zip(axes, (original, decoded), titles, strict=False):
        axis.imshow(voxels[k, ::-1], cmap="gray", vmin=0, vmax=BRIGHTEST * peak)
        axis.set_title(title, fontsize=9)
    percent = 100 * (decoded.astype(np.float64) - original)[k, ::-1] / peak
    limit = 100 * ERROR_LIMIT
    drawn = axes[2].imshow(percent, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[2].set_title("error, % of the range", fontsize=9)
    figure.colorbar(drawn, ax=axes[2], shrink=0.7)
    for axis in axes:
        axis.set_axis_off()


def _draw_curves(axis: Any, points: Sequence[dict[str, Any]]) -> None:
    lossy = [point for point in points if isinstance(point["psnr"], float)]
    for name in dict.fromkeys(point["codec"] for point in lossy):
        curve = sorted((p["bpv"], p["psnr"]) for p in lossy if p["codec"] == name)
        axis.plot(*zip(*curve, strict=True), "o-", markersize=3, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("bits per voxel (file size)")
    axis.set_ylabel("PSNR, dB (peak = maximum − minimum)")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()


if __name__ == "__main__":
    main()
