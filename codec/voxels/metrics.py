"""Distortion of decoded voxels: squared and largest error, PSNR, SSIM, MS-SSIM; numpy only.

Voxels are stored values [..., j, i] of any real type. Every function iterates over the slices of
the last two axes, so that a memory map can be passed and few slices exist as float64 at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (minimum, maximum) of stored values.
Range = tuple[float, float]

# Voxels along a side of the SSIM window.
SSIM_WINDOW = 7
# Constants of SSIM (Wang, Bovik, Sheikh, Simoncelli 2004).
_K1, _K2 = 0.01, 0.03
# Voxels that both sides of a slice must have for MS-SSIM: 5 scales of an 11 x 11 window.
MS_SSIM_SIDE = 176
# Weights of the scales of MS-SSIM, finest first (Wang, Simoncelli, Bovik 2003).
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The window of MS-SSIM along one axis: a Gaussian of sigma 1.5.
_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
# Voxels that are enough for the percentiles of a volume.
_PERCENTILE_VOXELS = 1 << 20


@dataclass(frozen=True)
class Distortion:
    """The distance of decoded voxels from the original, in stored units but for psnr and ssim.

    mse: mean squared error; rmse: its root; max_error: largest absolute difference.
    psnr: dB, infinite for identical voxels; ssim: NaN if a slice is smaller than the window.
    peak: maximum - minimum of the original, the peak of psnr and ssim.
    """

    mse: float
    rmse: float
    max_error: float
    psnr: float
    ssim: float
    peak: float


def value_range(voxels: NDArray[Any]) -> Range:
    """(minimum, maximum) of the stored values."""
    return float(voxels.min()), float(voxels.max())


def errors(original: NDArray[Any], decoded: NDArray[Any]) -> tuple[float, float]:
    """(`mse`, `max_error`) in one pass."""
    total, largest = 0.0, 0.0
    for x, y in _slices(original, decoded):
        difference = np.abs(x - y)
        largest = max(largest, float(difference.max()))
        # Not a product of vectors, for which numpy starts threads that take longer than the sum.
        total += float(np.square(difference, out=difference).sum())
    return total / original.size, largest


def _limits(original: NDArray[Any], limits: Range | None) -> Range:
    """Minimum and maximum, of the original unless stated. ValueError if they do not differ."""
    low, high = value_range(original) if limits is None else limits
    if not (high > low and math.isfinite(high - low)):
        raise ValueError(
            f"PSNR and SSIM need finite values that differ, these lie in {low:g} ... {high:g}"
        )
    return low, high


def mse(original: NDArray[Any], decoded: NDArray[Any]) -> float:
    """Mean squared error, stored units squared."""
    return errors(original, decoded)[0]


def rmse(original: NDArray[Any], decoded: NDArray[Any]) -> float:
    """Root of the mean squared error, stored units."""
    return math.sqrt(mse(original, decoded))


def max_error(original: NDArray[Any], decoded: NDArray[Any]) -> float:
    """Largest absolute difference, stored units."""
    return errors(original, decoded)[1]


def psnr(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak = maximum - minimum; infinite for identical voxels.

    limits: (minimum, maximum) of the whole volume in stored units, where `original` is a part of
    it. ValueError if they do not differ: a constant volume has no PSNR.
    """
    low, high = _limits(original, limits)
    return _psnr(mse(original, decoded), high - low)


def ssim(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> float:
    """Mean over the slices of the two-dimensional SSIM (Wang et al. 2004), K1 = 0.01, K2 = 0.03.

    Uniform window of 7 x 7 voxels, wholly inside the slice; sample covariance (n - 1). limits: as
    in `psnr`; the data range is maximum - minimum, and values count from the minimum. Equals
    scikit-image's `structural_similarity(x - minimum, y - minimum, win_size=7,
    data_range=maximum - minimum)`, averaged over the slices. ValueError if a slice is smaller than
    the window.
    """
    low, high = _limits(original, limits)
    if original.ndim < 2 or min(original.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs slices of {SSIM_WINDOW} x {SSIM_WINDOW} voxels at least, "
            f"found {original.shape}"
        )
    total, count = 0.0, 0
    for x, y in _slices(original, decoded):
        total += _ssim_of_slice(x, y, low, high - low)
        count += 1
    return total / count


def ms_ssim(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> float:
    """Mean over the slices of two-dimensional multi-scale SSIM (Wang, Simoncelli, Bovik 2003).

    Five scales, each half the size of the previous one (means of 2 x 2 voxels, an odd last row or
    column left out), weights 0.0448, 0.2856, 0.3001, 0.2363, 0.1333; Gaussian window of 11 x 11
    voxels, sigma 1.5, wholly inside the slice; K1 = 0.01, K2 = 0.03; negative terms count as 0.
    limits: as in `ssim`. ValueError if a side of a slice is below 176 voxels.
    """
    low, high = _limits(original, limits)
    if original.ndim < 2 or min(original.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(
            f"MS-SSIM needs slices of {MS_SSIM_SIDE} x {MS_SSIM_SIDE} voxels at least, "
            f"found {original.shape}"
        )
    values = [_ms_ssim_of_slice(x, y, low, high - low) for x, y in _slices(original, decoded)]
    return sum(values) / len(values)


@dataclass(frozen=True)
class Windows:
    """Ranges of stored values that a viewer may display, each (black, white).

    full: percentiles 0.5 to 99.5 of all voxels.
    narrow: percentiles 25 to 75 of the foreground.
    bright: percentiles 75 to 99.5 of the foreground.
    """

    full: Range
    narrow: Range
    bright: Range


def display_windows(voxels: NDArray[Any]) -> Windows:
    """Three display windows of a volume.

    The foreground: voxels above half the mean, both counted from the minimum.
    """
    sample = voxels.reshape(-1)[:: -(-voxels.size // _PERCENTILE_VOXELS)].astype(np.float64)
    low = float(voxels.min())
    foreground = sample[sample - low > 0.5 * (sample - low).mean()]
    if not foreground.size:
        foreground = sample
    darkest, brightest = np.percentile(sample, (0.5, 99.5)).tolist()
    quarter, three, top = np.percentile(foreground, (25, 75, 99.5)).tolist()
    return Windows((darkest, brightest), (quarter, three), (three, top))


def psnr_in_window(original: NDArray[Any], decoded: NDArray[Any], window: Range) -> float:
    """PSNR in dB of the displayed voxels: clipped to the window, peak = white - black.

    The mean is taken over the voxels whose original lies inside the window, so that a black
    background does not improve it. Infinite if none of them differs; NaN for an empty window.
    """
    low, high = window
    if not high > low:
        return math.nan
    total, count = 0.0, 0
    for x, y in _slices(original, decoded):
        inside = (x >= low) & (x <= high)
        difference = np.clip(y[inside], low, high) - x[inside]
        total += float(difference @ difference)
        count += difference.size
    return _psnr(total / count, high - low) if count else math.nan


def compare(
    original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None
) -> Distortion:
    """All measures of a decoded volume; limits: as in `psnr`. NaN for `ssim` on small slices."""
    low, high = _limits(original, limits)
    squared, largest = errors(original, decoded)
    large_enough = original.ndim >= 2 and min(original.shape[-2:]) >= SSIM_WINDOW
    return Distortion(
        mse=squared,
        rmse=math.sqrt(squared),
        max_error=largest,
        psnr=_psnr(squared, high - low),
        ssim=ssim(original, decoded, limits=(low, high)) if large_enough else math.nan,
        peak=high - low,
    )


def _psnr(squared: float, peak: float) -> float:
    """PSNR in dB of a mean squared error."""
    return math.inf if squared == 0 else 20 * math.log10(peak) - 10 * math.log10(squared)


def _slices(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Corresponding slices [j, i] as float64. ValueError for other shapes or no voxels."""
    shape = arrays[0].shape
    for array in arrays[1:]:
        if array.shape != shape:
            raise ValueError(f"arrays differ in shape: {shape} and {array.shape}")
    if 0 in shape:
        raise ValueError(f"no voxels in an array of shape {shape}")
    if len(shape) < 2:
        arrays = tuple(array.reshape(1, -1) for array in arrays)
    for position in np.ndindex(arrays[0].shape[:-2]):
        yield tuple(array[position].astype(np.float64) for array in arrays)


def _ssim_of_slice(
    x: NDArray[np.float64], y: NDArray[np.float64], low: float, peak: float
) -> float:
    # In units of the peak, around the middle of the range, so that differences of the integral
    # image keep 10 digits.
    x, y = (x - low) / peak - 0.5, (y - low) / peak - 0.5
    count = SSIM_WINDOW**2
    mean_x, mean_y = _window_sums(x) / count, _window_sums(y) / count
    sample = count / (count - 1)
    variances = sample * (_window_sums(x * x + y * y) / count - mean_x**2 - mean_y**2)
    covariance = sample * (_window_sums(x * y) / count - mean_x * mean_y)
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances + c2)).mean())


def _ms_ssim_of_slice(
    x: NDArray[np.float64], y: NDArray[np.float64], low: float, peak: float
) -> float:
    x, y = (x - low) / peak, (y - low) / peak
    c1, c2 = _K1**2, _K2**2
    product = 1.0
    for weight in _MS_SSIM_WEIGHTS:
        mean_x, mean_y = _blurred(x), _blurred(y)
        variances = _blurred(x * x + y * y) - mean_x**2 - mean_y**2
        covariance = _blurred(x * y) - mean_x * mean_y
        structure = (2 * covariance + c2) / (variances + c2)
        last = weight == _MS_SSIM_WEIGHTS[-1]
        if last:
            structure *= (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        product *= max(float(structure.mean()), 0.0) ** weight
        if not last:
            x, y = _halved(x), _halved(y)
    return product


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image [j, i] filtered by the Gaussian window, where the window lies inside."""
    for axis in (0, 1):
        n = image.shape[axis] - len(_GAUSSIAN) + 1
        parts = (
            image[t : t + n] if axis == 0 else image[:, t : t + n] for t in range(len(_GAUSSIAN))
        )
        total = np.zeros((n, image.shape[1]) if axis == 0 else (image.shape[0], n))
        for weight, part in zip(_GAUSSIAN, parts, strict=True):
            total += weight * part
        image = total
    return image


def _halved(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2 x 2 voxels of an image [j, i]."""
    j, i = (n // 2 * 2 for n in image.shape)
    image = image[:j, :i]
    return np.asarray(
        (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4, np.float64
    )


def _window_sums(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over all windows inside the image, from its integral image."""
    integral = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, axis=0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    n = SSIM_WINDOW
    return integral[n:, n:] - integral[:-n, n:] - integral[n:, :-n] + integral[:-n, :-n]
