"""A scan at a quarter of the resolution of its slices: block means of 4 x 4 voxels, every slice kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.tiling import Tiling

FACTOR = 4
SLICES_JUDGED = 8
ENTROPY_SHARE = 0.6  # of that entropy: what the coder takes, about


def reduced_shape(tiling: Tiling) -> tuple[int, ...]:
    """Of a scan of this tiling: the two axes of its slices are divided, the ends rounded up."""
    volume = [
        n if axis == tiling.axis else -(-n // FACTOR) for axis, n in enumerate(tiling.volume_shape)
    ]
    missing = max(0, 3 - len(tiling.shape))
    return (*tiling.shape[:-3], *volume[missing:])


def reduced_affine(
    affine: NDArray[np.float64] | None, tiling: Tiling
) -> NDArray[np.float64] | None:
    """The affine of the reduced scan: a voxel stands in the middle of its block."""
    if affine is None:
        return None
    scale = np.eye(4)
    for axis in range(3):
        if axis != tiling.axis:
            n = 2 - axis  # the columns of an affine are i, j, k
            scale[n, n], scale[n, 3] = FACTOR, (FACTOR - 1) / 2
    return np.asarray(affine @ scale, np.float64)


def reduced_spacing(
    spacing_mm: tuple[float, float, float], tiling: Tiling
) -> tuple[float, float, float]:
    """(k, j, i)"""
    k, j, i = (s * (1 if axis == tiling.axis else FACTOR) for axis, s in enumerate(spacing_mm))
    return k, j, i


def reduced(slab: NDArray[Any]) -> NDArray[Any]:
    """[n, h, w] -> [n, ceil(h / 4), ceil(w / 4)] of the same type.

    Means of numbers, rounded where they are integers; what has no mean (colours, complex and non-finite values,
    integers of 64 bits) is represented by the voxel in the middle of the block.
    """
    _, h, w = slab.shape
    rows, columns = np.arange(0, h, FACTOR), np.arange(0, w, FACTOR)
    kind, size = slab.dtype.kind, slab.dtype.itemsize
    if (kind == "f" and size <= 8) or (kind in "iu" and size <= 4):
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduceat(
                np.add.reduceat(slab, columns, axis=2, dtype=np.float64), rows, axis=1
            )
            mean = total / (np.minimum(FACTOR, h - rows)[:, None] * np.minimum(FACTOR, w - columns))
        if np.isfinite(mean).all():
            return np.asarray(mean if kind == "f" else np.rint(mean), slab.dtype)
    at_rows = np.minimum(rows + FACTOR // 2, h - 1)
    at_columns = np.minimum(columns + FACTOR // 2, w - 1)
    return slab[:, at_rows[:, None], at_columns]


def bound_for(array: NDArray[Any], least: float, most: float, bits: float) -> float:
    """The smallest largest error from `least` up to `most`, in steps of sqrt 2, with which the array promises to take at most
    so many bits a voxel.

    Judged by some slices, quantised to it: the entropy of what JPEG-LS's median predictor leaves, in three classes of activity.
    """
    slices = array.reshape(-1, *array.shape[-2:])
    slices = slices[:: -(-len(slices) // SLICES_JUDGED)].astype(np.float64)
    slices = slices - slices.min()
    bound = least
    while bound < most and ENTROPY_SHARE * _entropy(np.floor(slices / (2 * bound) + 0.5)) > bits:
        bound *= np.sqrt(2)
    return float(min(bound, max(least, most)))


def _entropy(slices: NDArray[np.float64]) -> float:
    west, north, corner = slices[:, 1:, :-1], slices[:, :-1, 1:], slices[:, :-1, :-1]
    predicted = np.clip(west + north - corner, np.minimum(west, north), np.maximum(west, north))
    error = slices[:, 1:, 1:] - predicted
    activity = np.minimum(np.abs(west - corner) + np.abs(north - corner), 2)
    bits = 0.0
    for n in range(3):
        counts = np.unique(error[activity == n], return_counts=True)[1]
        bits -= float(np.sum(counts * np.log2(counts / max(counts.sum(), 1))))
    return bits / max(error.size, 1)


def reduced_scan(array: NDArray[Any], tiling: Tiling) -> NDArray[Any]:
    """The whole scan [..., k, j, i], reduced."""
    volumes = array.reshape(tiling.volumes, *tiling.volume_shape)
    turned = (np.moveaxis(reduced(np.moveaxis(v, tiling.axis, 0)), 0, tiling.axis) for v in volumes)
    return np.stack(list(turned)).reshape(reduced_shape(tiling))
