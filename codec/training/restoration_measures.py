"""What a restoration filter saves: bits at equal PSNR on validation slabs, by their own curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mricodec.models.training.restoration import (
    GAIN,
    Conditions,
    RestorationFilter,
    least_squares_gain,
    neighbours,
    position_class,
    ratio_class,
    without_mean,
)

from .restoration_pairs import UNITS, Pair, PairInfo

# Bits per voxel at which savings are stated.
RATES = (0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Point:
    """A slab at one quality: bits per voxel, PSNR in dB without and with filter, gain in 1/64."""

    bits: float
    unfiltered: float
    filtered: float
    gain: int


@torch.no_grad()
def correction_of(network: RestorationFilter, pair: Pair, slices: Sequence[int]) -> torch.Tensor:
    """The filter's correction of some slices of a slab, [n, H, W] in 1 / UNITS of a step."""
    u = without_mean(pair.v)
    out = []
    for t in slices:
        around = torch.from_numpy(u[neighbours(t, len(u))].astype(np.float32))[None]
        conditions = Conditions(
            torch.tensor([pair.info.rate]),
            torch.tensor([position_class(pair.info.depth, t)]),
            torch.tensor([ratio_class(pair.info.ratio)]),
        )
        out.append(network(around.contiguous(memory_format=torch.channels_last), conditions)[0])
    return torch.stack(out)


def measure(network: RestorationFilter, pair: Pair, every: int = 1) -> Point:
    """A slab with its least-squares gain, rounded and clamped as in a decoder.

    every: only each so manieth slice is measured.
    """
    slices = list(range(every // 2, len(pair.v), every)) or [0]
    correction = correction_of(network, pair, slices)
    error = torch.from_numpy(pair.error[slices].astype(np.float32))
    gain = least_squares_gain(correction, error)
    whole = np.rint(correction.numpy()).astype(np.int64)
    v = pair.v[slices].astype(np.int64)
    corrected = v + ((gain * whole + GAIN // 2) >> 6)
    original = _samples(v + pair.error[slices], pair.info)
    unfiltered, filtered = (_psnr(_samples(x, pair.info), original, pair.info.peak)
                            for x in (v, corrected))  # fmt: skip
    return Point(pair.info.bits, unfiltered, filtered, gain)


def saving(points: Iterable[Point], rate: float) -> float:
    """Percent of bits at the PSNR that the filter reaches at `rate` bits per voxel; negative: less.

    Piecewise linear in the logarithm of the rate, the last pieces extended.
    """
    rows = sorted((point.bits, point.unfiltered, point.filtered) for point in points)
    bits, unfiltered, filtered = np.array(rows).T
    octaves = np.log2(bits)
    psnr = _interpolated(float(np.log2(rate)), octaves, filtered)
    return 100 * (rate / 2 ** _interpolated(psnr, unfiltered, octaves) - 1)


def table(points: dict[str, list[Point]]) -> list[str]:
    """One line for each slab and one for their mean: savings at RATES."""
    rows = {name: [saving(each, rate) for rate in RATES] for name, each in points.items()}
    rows["mean"] = np.mean(list(rows.values()), 0).tolist()
    width = max(map(len, rows))
    return [
        f"{name:{width}} " + " ".join(f"{value:6.1f}" for value in row)
        for name, row in rows.items()
    ]


def _samples(v: NDArray[np.int64], info: PairInfo) -> NDArray[np.float64]:
    """v in 1 / UNITS of a step -> samples as a decoder gives them."""
    samples: NDArray[np.float64] = np.floor(v * (info.step / UNITS) + 0.5).clip(0, info.peak)
    return samples


def _psnr(x: NDArray[np.float64], original: NDArray[np.float64], peak: int) -> float:
    error = max(float(np.square(x - original).mean()), 1e-9)
    return float(10 * np.log10(peak**2 / error))


def _interpolated(x: float, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> float:
    n = int(np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2))
    return float(ys[n] + (ys[n + 1] - ys[n]) * (x - xs[n]) / (xs[n + 1] - xs[n]))
