"""The noise of a volume, against which fidelity is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAD_OF_UNIT_NORMAL = 0.6745
GOLDEN = (5**0.5 - 1) / 2
MAX_SLICES = 12  # evenly spaced ones are enough for a median
LINES = 1024  # of those along an axis, at least, are enough for a median of spectra
FEWEST = 16  # coefficients in the foreground; with fewer, all that vary are taken
SHORTEST = 32  # voxels along an axis from which its spectrum is looked at
MIN_BAND = 0.4  # of the spectrum taken for occupied; scanners interpolate by 2 at most
EDGE = 0.1  # half the width over which the edge of the occupied band is looked for, of the Nyquist frequency
DROP = 2.0  # fall of the amplitude across such an edge; a 1/f spectrum falls by 1.3, 1/f**2 by 1.7 at most


def sampled(volume: NDArray[Any]) -> NDArray[Any]:
    """The slices [n, h, w] that `sigma_hat` looks at."""
    count = len(volume)
    return (
        volume
        if count <= MAX_SLICES
        else volume[np.linspace(0, count - 1, MAX_SLICES).round().astype(int)]
    )


def sigma_hat(volume: NDArray[Any]) -> float:
    """Standard deviation of the noise per voxel of ``volume`` [n, h, w] (slices first), in stored units.

    Median absolute deviation over 0.6745 of the finest diagonal (HH) band of the orthonormal Haar wavelet in
    the slices (Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994), over
    the foreground: blocks brighter than half the mean.

    A scanner that interpolates fills the outer k-space with zeros, and one that filters fades it out: there
    the finest band holds next to no noise. So each axis is first cut back to the part of its spectrum that is
    occupied, which undoes the interpolation and keeps the noise per voxel. An exactly constant background
    does not count. 0.0 for a volume without diagonal detail, such as a constant one or one of a single voxel.
    Non-finite values must be replaced before.
    """
    voxels = np.asarray(sampled(volume), np.float64)
    voxels = voxels - voxels.min()
    bands = [_occupied(voxels, axis) for axis in (1, 2)]
    if min(bands) < 1.0:
        return _mad(*_haar(_cut_spectrum(voxels, bands)))
    low, detail = _haar(voxels)
    if volume.dtype.kind in "iu":
        detail = detail + 0.5 * _dither(detail.size).reshape(detail.shape)
    return _mad(low, detail)


def _mad(low: NDArray[np.float64], detail: NDArray[np.float64]) -> float:
    foreground = detail[low > 0.5 * low.mean()] if low.size else detail
    if foreground.size < FEWEST:
        foreground = detail[low > 0]
    return float(np.median(np.abs(foreground)) / MAD_OF_UNIT_NORMAL) if foreground.size else 0.0


def _haar(voxels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each 2x2 block and its diagonal detail; an axis of length 1 is left as it is."""
    low, detail = voxels, voxels
    for axis in (1, 2):
        n = voxels.shape[axis] // 2 * 2
        if n == 0:
            continue
        even, odd = (
            (slice(None),) * axis + (slice(0, n, 2),),
            (slice(None),) * axis + (slice(1, n, 2),),
        )
        low = (low[even] + low[odd]) * np.float64(0.5)
        detail = (detail[even] - detail[odd]) * np.float64(0.5**0.5)
    return (low, detail) if low.shape != voxels.shape else (low, np.zeros_like(low))


def _dither(count: int) -> NDArray[np.float64]:
    """Uniform in [-0.5, 0.5), the same every time: the median of integers would jump by whole steps."""
    return np.asarray(np.arange(count) * GOLDEN % 1.0 - 0.5, np.float64)


def _occupied(voxels: NDArray[np.float64], axis: int) -> float:
    """The part of the spectrum along an axis, from 0 to 1 = Nyquist, that the scanner has measured."""
    n = voxels.shape[axis]
    if n < SHORTEST:
        return 1.0
    lines = np.moveaxis(np.diff(voxels, axis=3 - axis), axis, 2).reshape(
        -1, n
    )  # differences across the lines: less signal
    lines = lines[:: max(1, len(lines) // LINES)] * np.hanning(n)
    lines = lines[lines.any(1)]
    if not len(lines):
        return 1.0
    spectrum = np.fft.rfft(lines)
    power = np.median(np.ascontiguousarray((spectrum.real**2 + spectrum.imag**2).T), axis=1)
    width = max(1, round(EDGE * len(power)))
    sums = np.concatenate([[0.0], np.cumsum(power)])
    edges = np.arange(max(width, round(MIN_BAND * len(power))), len(power) - 1)
    stops = np.minimum(edges + width, len(power))
    below = (sums[edges] - sums[edges - width]) / width
    above = (sums[stops] - sums[edges]) / (stops - edges)
    drop = np.sqrt(below / np.maximum(above, np.finfo(float).tiny))
    best = int(np.argmax(drop))
    return float(edges[best]) / (len(power) - 1) if drop[best] > DROP else 1.0


def _cut_spectrum(voxels: NDArray[np.float64], bands: list[float]) -> NDArray[np.float64]:
    """Resample each axis to the occupied part of its spectrum, keeping the amplitude."""
    for axis, band in zip((1, 2), bands, strict=True):
        n = voxels.shape[axis]
        kept = round(n * band)
        if kept < n:
            spectrum = np.fft.rfft(voxels, axis=axis)
            spectrum = np.take(spectrum, range(kept // 2 + 1), axis=axis)
            voxels = np.fft.irfft(spectrum, kept, axis=axis) * (kept / n)
    return voxels
