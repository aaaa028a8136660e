"""The picture of README.md: the bundled scan, what is decoded, the error, and the curves of `mricodec rd-curve`.

mricodec rd-curve codec/sample/brain_t1w.nii.gz -o OUT --model default --model hyperprior --model factorized
python -m benchmarks.picture OUT/rd.json -o benchmarks/figures/sample.png
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from mricodec import codec

SAMPLE = Path(__file__).parent.parent / "codec" / "sample" / "brain_t1w.nii.gz"
QUALITY = 30.0
ERROR_RANGE = 0.06  # of the peak, both ways


@click.command()
@click.argument("rd", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(rd: Path, output: Path) -> None:
    """Draw it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lossless = codec.encode(SAMPLE, lossless=True)
    assert lossless is not None
    original = codec.decode(lossless).array
    peak = int(original.max()) - int(original.min())
    middle = original.shape[0] // 2
    figure, axes = plt.subplots(
        1, 4, figsize=(15, 4.4), width_ratios=(1, 1, 1, 1.5), layout="constrained"
    )
    axes[0].imshow(original[middle, ::-1], cmap="gray", vmin=0, vmax=0.8 * peak)
    rate = 8 * len(lossless) / original.size
    axes[0].set_title(
        f"original, {8 * original.itemsize} bits per voxel; lossless {rate:.1f}", fontsize=9
    )
    stream = codec.encode(SAMPLE, quality=QUALITY)
    assert stream is not None
    decoded = codec.decode(stream).array
    rate = 8 * len(stream) / original.size
    axes[1].imshow(decoded[middle, ::-1], cmap="gray", vmin=0, vmax=0.8 * peak)
    axes[1].set_title(
        f"decoded, quality {QUALITY:g}: {rate:.2f} bits, {original.itemsize * 8 / rate:.0f} : 1",
        fontsize=9,
    )
    error = (decoded.astype(np.float64) - original)[middle, ::-1] / peak
    shown = axes[2].imshow(
        100 * error, cmap="RdBu_r", vmin=-100 * ERROR_RANGE, vmax=100 * ERROR_RANGE
    )
    axes[2].set_title("error, % of the range", fontsize=9)
    figure.colorbar(shown, ax=axes[2], shrink=0.7)
    for axis in axes[:3]:
        axis.set_axis_off()
    points = [
        point for point in json.loads(rd.read_text())["points"] if isinstance(point["psnr"], float)
    ]  # none exact
    for name in dict.fromkeys(point["codec"] for point in points):
        curve = sorted((p["bpv"], p["psnr"]) for p in points if p["codec"] == name)
        axes[3].plot(*zip(*curve, strict=True), "o-", markersize=3, label=name)
    axes[3].set_xscale("log")
    axes[3].set_xlabel("bits per voxel (file size)")
    axes[3].set_ylabel("PSNR, dB (peak = maximum − minimum)")
    axes[3].grid(True, which="both", alpha=0.3)
    axes[3].legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)


if __name__ == "__main__":
    main()
