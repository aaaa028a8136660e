"""Measures of pictures and of samples of pictures, and what each of them means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mricodec.codec.voxels import metrics

from .corpus import GRID, Picture

MEASURES = {
    "PSNR": "per slice, dB, peak = maximum − minimum of its volume",
    "MSE": "per slice, of pixels in 0 … 1 of their volume",
    "SSIM": "Wang et al. 2004, window 7 × 7, range that of the volume; of interpolants, the mean "
    "over both parents",
    "feature distance": "LPIPS's construction on a contrast classifier trained here, all weights "
    "1, the mean over both parents; not LPIPS",
    "LPIPS": "LPIPS 0.1, AlexNet, the mean over both parents; only with published weights",
    "nearest": "feature distance to the nearest training picture of the contrast: small is "
    "plausible",
    "novelty": "root mean squared difference of pixels on the common grid to the nearest training "
    "picture of any contrast, on the scale 0 … 255",
    "sharpness": "mean absolute gradient relative to that of the parents: below 1 is blurred, "
    "above 1 has edges that no parent has",
    "mesh": "mean absolute gradient of rows (columns) by their phase in a period of 8 pixels: "
    "standard deviation over mean; the pattern that strides leave, large where sharpness is a "
    "texture",
    "PSNR of the parents": "of their reconstructions on the common grid: what ACAI costs",
}
# Period of the pattern that strides leave, pixels.
MESH_PERIOD = 8


def psnr(x: Picture, y: Picture) -> float:
    """dB, for pictures in 0 ... 1."""
    return metrics.psnr(x, y, limits=(0.0, 1.0))


def ssim(x: Picture, y: Picture) -> float:
    """For pictures in 0 ... 1."""
    return metrics.ssim(x, y, limits=(0.0, 1.0))


def gradient(picture: Picture) -> float:
    """Mean absolute difference of neighbours, the sum of both axes."""
    return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())


def mean_gradient(pictures: torch.Tensor) -> float:
    """Mean of `gradient` over pictures [n, 1, H, W]."""
    return float(np.mean([gradient(picture) for picture in pictures[:, 0].numpy()]))


def mesh(picture: Picture) -> float:
    """How much the gradient of rows and columns depends on their phase, see MEASURES."""
    spreads = []
    for axis in (0, 1):
        profile = np.abs(np.diff(picture, axis=axis)).mean(1 - axis)
        phases = [float(profile[n::MESH_PERIOD].mean()) for n in range(MESH_PERIOD)]
        spreads.append(np.std(phases) / max(float(np.mean(phases)), 1e-9))
    return float(np.mean(spreads))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, range, and the values with four digits."""
    return {
        "mean": float(np.mean(values)),
        "sd": deviation(values),
        "min": min(values),
        "max": max(values),
        "values": [float(f"{value:.4g}") for value in values],
    }


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def halved(pictures: Picture) -> torch.Tensor:
    """[n, GRID, GRID] -> [n, 1, GRID / 2, GRID / 2], means of 2 x 2."""
    half = pictures.reshape(len(pictures), GRID // 2, 2, GRID // 2, 2).mean((2, 4))
    return torch.from_numpy(np.ascontiguousarray(half, np.float32))[:, None]
