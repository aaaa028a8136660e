"""An estimate of the noise of a volume, to which the quality of lossy coding is relative."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Median absolute deviation of the unit normal distribution.
MAD_OF_UNIT_NORMAL = 0.6745
# Fractional part of the golden ratio: its multiples modulo 1 are spread evenly.
GOLDEN = (5**0.5 - 1) / 2
# Slices, evenly spaced, that are enough for a median.
MAX_SLICES = 12
# Lines along an axis that are enough for a median of their spectra.
MIN_LINES = 1024
# Coefficients that the foreground must have; with fewer, all blocks that are not empty count.
MIN_FOREGROUND = 16
# Voxels that an axis must have for its spectrum to be examined.
MIN_LENGTH = 32
# The smallest share of the spectrum that can be occupied: scanners interpolate by 2 at most.
MIN_BAND = 0.4
# Half the width of the window in which a band edge is sought, as a share of the Nyquist frequency.
EDGE_WIDTH = 0.1
# Fall of the amplitude across a band edge; a 1/f spectrum falls by 1.3 and 1/f**2 by 1.7 at most.
MIN_DROP = 2.0


def sampled(volume: NDArray[Any]) -> NDArray[Any]:
    """The slices [n, h, w] of a volume that `sigma_hat` evaluates."""
    count = len(volume)
    return (
        volume
        if count <= MAX_SLICES
        else volume[np.linspace(0, count - 1, MAX_SLICES).round().astype(int)]
    )


def sigma_hat(volume: NDArray[Any]) -> float:
    """Standard deviation of the noise per voxel of a volume [n, h, w], in stored units.

    Median absolute deviation over 0.6745 of the finest diagonal (HH) band of the orthonormal Haar
    wavelet in the slices (Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage",
    Biometrika 1994), over the foreground: blocks brighter than half the mean.

    A scanner that interpolates fills the outer k-space with zeros, and one that filters fades it
    out: the finest band then has next to no noise. Therefore each axis is first cropped to the
    occupied part of its spectrum, which undoes the interpolation and keeps the noise per voxel.
    An exactly constant background does not count. The result is 0.0 for a volume without diagonal
    detail, such as a constant one. All values must be finite.
    """
    slices = sampled(volume)
    bands = [_occupied(slices, axis) for axis in (1, 2)]
    minimum = slices.min()
    if min(bands) < 1.0:
        return _mad(*_haar(_crop_spectrum(slices.astype(np.float64) - minimum, bands)))
    if slices.dtype.kind not in "iu":
        return _mad(*_haar(slices.astype(np.float64) - minimum))
    small = slices.dtype.itemsize <= 2
    low, detail = _haar(slices.astype(np.int32 if small else np.float64) - minimum)
    return _mad(low, detail + 0.5 * _dither(detail.size).reshape(detail.shape))


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `numpy.median` along the last axis, which must have values, all of them finite.

    numpy's looks for masks, and imports for that a module which takes as long as the median.
    """
    count = values.shape[-1]
    middle = (count - 1) // 2, count // 2
    ordered = np.partition(values, middle, axis=-1)
    return np.asarray((ordered[..., middle[0]] + ordered[..., middle[1]]) / 2, np.float64)


def _mad(low: NDArray[np.float64], detail: NDArray[np.float64]) -> float:
    """The noise from the detail coefficients of the foreground; low: the means of the blocks."""
    foreground = detail[low > 0.5 * low.mean()] if low.size else detail
    if foreground.size < MIN_FOREGROUND:
        foreground = detail[low > 0]
    return float(median(np.abs(foreground)) / MAD_OF_UNIT_NORMAL) if foreground.size else 0.0


def _haar(voxels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each 2 x 2 block and its diagonal detail; an axis of length 1 is left as it is."""
    low, detail, axes = voxels, voxels, 0
    for axis in (1, 2):
        n = voxels.shape[axis] // 2 * 2
        if n == 0:
            continue
        even, odd = (
            (slice(None),) * axis + (slice(0, n, 2),),
            (slice(None),) * axis + (slice(1, n, 2),),
        )
        low, detail, axes = low[even] + low[odd], detail[even] - detail[odd], axes + 1
    low = low * np.float64(0.5**axes)
    return low, detail * np.float64(0.5 ** (axes / 2)) if axes else np.zeros_like(low)


def _dither(count: int) -> NDArray[np.float64]:
    """Uniform in [-0.5, 0.5) and reproducible: the median of integers would jump by whole steps."""
    multiples = np.arange(count) * GOLDEN
    return np.asarray(multiples - np.floor(multiples) - 0.5, np.float64)


def _occupied(voxels: NDArray[Any], axis: int) -> float:
    """The band limit of the spectrum along an axis: 1.0, the Nyquist frequency, without one."""
    n = voxels.shape[axis]
    if n < MIN_LENGTH:
        return 1.0
    lines = _line_differences(np.moveaxis(voxels, axis, 2)) * np.hanning(n)
    lines = lines[lines.any(1)]
    if not len(lines):
        return 1.0
    spectrum = np.fft.rfft(lines)
    power = median(np.ascontiguousarray((spectrum.real**2 + spectrum.imag**2).T))
    width = max(1, round(EDGE_WIDTH * len(power)))
    sums = np.concatenate([[0.0], np.cumsum(power)])
    edges = np.arange(max(width, round(MIN_BAND * len(power))), len(power) - 1)
    stops = np.minimum(edges + width, len(power))
    below = (sums[edges] - sums[edges - width]) / width
    above = (sums[stops] - sums[edges]) / (stops - edges)
    drop = np.sqrt(below / np.maximum(above, np.finfo(float).tiny))
    best = int(np.argmax(drop))
    return float(edges[best]) / (len(power) - 1) if drop[best] > MIN_DROP else 1.0


def _line_differences(voxels: NDArray[Any]) -> NDArray[np.float64]:
    """Differences of adjacent lines of [slices, lines, n], which have less signal, evenly drawn."""
    slices, lines = voxels.shape[:2]
    count = slices * (lines - 1)
    drawn = np.arange(0, count, max(1, count // MIN_LINES))
    k, line = np.divmod(drawn, max(1, lines - 1))
    differences: NDArray[np.float64] = voxels[k, line + 1].astype(np.float64) - voxels[k, line]
    return differences


def _crop_spectrum(voxels: NDArray[np.float64], bands: list[float]) -> NDArray[np.float64]:
    """Resample each axis of [n, h, w] to its band, given as a share of Nyquist; amplitudes stay."""
    for axis, band in zip((1, 2), bands, strict=True):
        n = voxels.shape[axis]
        kept = round(n * band)
        if kept < n:
            spectrum = np.fft.rfft(voxels, axis=axis)
            spectrum = np.take(spectrum, range(kept // 2 + 1), axis=axis)
            voxels = np.fft.irfft(spectrum, kept, axis=axis) * (kept / n)
    return voxels
