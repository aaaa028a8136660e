"""The preview of a scan: means of 4 x 4 voxels within each slice; every slice is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.tiling import Tiling

# Voxels of a block along both axes of a slice.
FACTOR = 4
# Slices, evenly spaced, from which the size of a preview is estimated.
ESTIMATED_SLICES = 8
# Bits that the predictive coder needs, as a share of the entropy of the median predictor's errors.
ENTROPY_SHARE = 0.6
# Classes of activity: the sum of two gradients is 0, 1, or more.
_ACTIVITY_CLASSES = 3


def reduced_shape(tiling: Tiling) -> tuple[int, ...]:
    """The shape of the reduced scan: the axes of a slice are divided by 4 and rounded up."""
    volume = [
        n if axis == tiling.axis else -(-n // FACTOR) for axis, n in enumerate(tiling.volume_shape)
    ]
    missing = max(0, 3 - len(tiling.shape))
    return (*tiling.shape[:-3], *volume[missing:])


def reduced_affine(
    affine: NDArray[np.float64] | None, tiling: Tiling
) -> NDArray[np.float64] | None:
    """The affine [4, 4] of the reduced scan: a voxel lies at the centre of its block."""
    if affine is None:
        return None
    scale = np.eye(4)
    for axis in range(3):
        if axis != tiling.axis:
            n = 2 - axis  # The columns of an affine are i, j, k.
            scale[n, n], scale[n, 3] = FACTOR, (FACTOR - 1) / 2
    return np.asarray(affine @ scale, np.float64)


def reduced_spacing(
    spacing_mm: tuple[float, float, float], tiling: Tiling
) -> tuple[float, float, float]:
    """The spacing (k, j, i) of the reduced scan, in mm."""
    k, j, i = (s * (1 if axis == tiling.axis else FACTOR) for axis, s in enumerate(spacing_mm))
    return k, j, i


def reduced(slab: NDArray[Any]) -> NDArray[Any]:
    """[n, h, w] -> [n, ceil(h / 4), ceil(w / 4)] of the same type.

    Means of the blocks, rounded for integer types. Colours, complex values, integers of 64 bits and
    slabs with non-finite means have the voxel at the centre of each block instead.
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


def bound_for(array: NDArray[Any], lowest: float, highest: float, bits_per_voxel: float) -> float:
    """The smallest bound on the error, in stored units, that is expected to meet a rate.

    Bounds from `lowest` to `highest` are tried in steps of sqrt(2). The rate of the array
    [..., h, w] is estimated from some of its slices, quantised within the bound: the entropy of the
    errors of JPEG-LS's median predictor, in three classes of activity.
    """
    slices = array.reshape(-1, *array.shape[-2:])
    slices = slices[:: -(-len(slices) // ESTIMATED_SLICES)].astype(np.float64)
    slices = slices - slices.min()
    bound = lowest
    while bound < highest and _rate(np.floor(slices / (2 * bound) + 0.5)) > bits_per_voxel:
        bound *= np.sqrt(2)
    return float(min(bound, max(lowest, highest)))


def _rate(slices: NDArray[np.float64]) -> float:
    """Estimated bits per voxel of the predictive coder on integer slices [n, h, w]."""
    west, north, corner = slices[:, 1:, :-1], slices[:, :-1, 1:], slices[:, :-1, :-1]
    predicted = np.clip(west + north - corner, np.minimum(west, north), np.maximum(west, north))
    error = slices[:, 1:, 1:] - predicted
    activity = np.minimum(np.abs(west - corner) + np.abs(north - corner), _ACTIVITY_CLASSES - 1)
    bits = 0.0
    for n in range(_ACTIVITY_CLASSES):
        counts = np.unique(error[activity == n], return_counts=True)[1]
        bits -= float(np.sum(counts * np.log2(counts / max(counts.sum(), 1))))
    return ENTROPY_SHARE * (bits / max(error.size, 1))


def reduced_scan(array: NDArray[Any], tiling: Tiling) -> NDArray[Any]:
    """The reduced version of a whole scan [..., k, j, i]."""
    volumes = array.reshape(tiling.volumes, *tiling.volume_shape)
    small = (np.moveaxis(reduced(np.moveaxis(v, tiling.axis, 0)), 0, tiling.axis) for v in volumes)
    return np.stack(list(small)).reshape(reduced_shape(tiling))
