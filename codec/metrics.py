"""Fidelity of decoded voxels and the distance between two rate-distortion curves; numpy only.

Voxels are stored values `[..., j, i]` of any real type; every function walks over the two-dimensional slices
of the last two axes, so that a memory map is enough and only a few slices of float64 exist at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Range = tuple[float, float]  # (lowest, highest)

SSIM_WINDOW = 7  # voxels a side
_K1, _K2 = 0.01, 0.03  # Wang, Bovik, Sheikh, Simoncelli 2004
MS_SSIM_SIDE = 176  # voxels, the least of both sides of a slice: 5 scales of an 11 x 11 window
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003; finest first
_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_FOR_WINDOWS = 1 << 20  # voxels are enough for percentiles
_GAUSS = 0.5 / math.sqrt(3.0)  # two nodes integrate a cubic exactly


@dataclass(frozen=True)
class Fidelity:
    mse: float  # stored units squared
    rmse: float  # stored units
    max_error: float  # stored units
    psnr: float  # dB; inf if identical
    ssim: float  # nan where a slice is smaller than the window
    peak: float  # of psnr and ssim: maximum - minimum, stored units


@dataclass(frozen=True)
class BdRate:
    """Mean difference of rate at equal PSNR."""

    percent: float  # < 0: fewer bits than the reference
    low: float  # dB, start of the common range
    high: float  # dB, its end
    points: int  # of the codec's own within the common range
    reference_points: int  # of the reference within it


def value_range(voxels: NDArray[Any]) -> Range:
    """(minimum, maximum) of the stored values."""
    return float(voxels.min()), float(voxels.max())


def errors(original: NDArray[Any], decoded: NDArray[Any]) -> tuple[float, float]:
    """`mse` and `max_error`, sooner."""
    total, largest = 0.0, 0.0
    for x, y in _slices(original, decoded):
        difference = (x - y).ravel()
        total += float(difference @ difference)
        largest = max(largest, float(np.abs(difference, out=difference).max()))
    return total / original.size, largest


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
    """Peak signal-to-noise ratio in dB, peak = maximum - minimum; inf where nothing differs.

    `limits` = (minimum, maximum) of the whole volume in stored units, needed if `original` is a part of it.
    ValueError if they do not differ: a constant volume has no PSNR.
    """
    low, high = _limits(original, limits)
    return _psnr(mse(original, decoded), high - low)


def ssim(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> float:
    """Mean over the slices of the two-dimensional SSIM (Wang et al. 2004), K1 = 0.01, K2 = 0.03.

    Uniform window of 7 x 7 voxels, wholly inside the slice; sample covariance (n - 1). `limits` as in `psnr`:
    the data range is maximum - minimum, and values count from the minimum. Equals scikit-image's
    `structural_similarity(x - minimum, y - minimum, win_size=7, data_range=maximum - minimum)`, averaged over
    the slices. ValueError if a slice is smaller than the window.
    """
    low, high = _limits(original, limits)
    if original.ndim < 2 or min(original.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs slices of {SSIM_WINDOW} x {SSIM_WINDOW} voxels at least, got {original.shape}"
        )
    total, count = 0.0, 0
    for x, y in _slices(original, decoded):
        total += _ssim_of_slice(x, y, low, high - low)
        count += 1
    return total / count


def ms_ssim(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> float:
    """Mean over the slices of the two-dimensional multi-scale SSIM (Wang, Simoncelli, Bovik 2003), `limits` as in `ssim`.

    Five scales, each half the one before (means of 2 x 2 voxels, an odd last row or column left out), weights 0.0448,
    0.2856, 0.3001, 0.2363, 0.1333; Gaussian window of 11 x 11 voxels, sigma 1.5, wholly inside the slice; K1 = 0.01,
    K2 = 0.03; negative terms count as 0. ValueError if a side of a slice is below 176 voxels.
    """
    low, high = _limits(original, limits)
    if original.ndim < 2 or min(original.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM needs slices of {MS_SSIM_SIDE} x {MS_SSIM_SIDE} voxels at least, got {original.shape}")
    values = [_ms_ssim_of_slice(x, y, low, high - low) for x, y in _slices(original, decoded)]
    return sum(values) / len(values)


@dataclass(frozen=True)
class Windows:
    """Ranges of stored values that a viewer may display, each (black, white)."""

    full: Range  # percentiles 0.5 to 99.5 of all voxels
    narrow: Range  # percentiles 25 to 75 of the foreground
    bright: Range  # percentiles 75 to 99.5 of the foreground


def display_windows(voxels: NDArray[Any]) -> Windows:
    """Three display windows of a volume; its foreground is what lies above half the mean, counted from the minimum."""
    sample = voxels.reshape(-1)[:: -(-voxels.size // _FOR_WINDOWS)].astype(np.float64)
    low = float(voxels.min())
    foreground = sample[sample - low > 0.5 * (sample - low).mean()]
    if not foreground.size:
        foreground = sample
    darkest, brightest = np.percentile(sample, (0.5, 99.5)).tolist()
    quarter, three, top = np.percentile(foreground, (25, 75, 99.5)).tolist()
    return Windows((darkest, brightest), (quarter, three), (three, top))


def psnr_in_window(original: NDArray[Any], decoded: NDArray[Any], window: Range) -> float:
    """PSNR (dB) of what a viewer shows with this window: values beyond are black or white, peak = white - black.

    The mean is taken over the voxels whose original lies inside the window, so that no black background flatters it.
    inf if none of them differs; nan for an empty window.
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


def compare(original: NDArray[Any], decoded: NDArray[Any], *, limits: Range | None = None) -> Fidelity:
    """All figures of one decoded volume, `limits` as in `psnr`; `ssim` is nan if its window does not fit."""
    low, high = _limits(original, limits)
    squared, largest = errors(original, decoded)
    large_enough = original.ndim >= 2 and min(original.shape[-2:]) >= SSIM_WINDOW
    return Fidelity(
        mse=squared,
        rmse=math.sqrt(squared),
        max_error=largest,
        psnr=_psnr(squared, high - low),
        ssim=ssim(original, decoded, limits=(low, high)) if large_enough else math.nan,
        peak=high - low,
    )


class Akima:
    """Interpolating spline of Akima, J. ACM 17 (1970) 589: piecewise cubic, local, calm beside a step.

    Needs >= 4 finite points with strictly increasing x, else ValueError. Not defined outside x[0] ... x[-1].
    """

    def __init__(self, x: ArrayLike, y: ArrayLike) -> None:
        self.x = np.asarray(x, np.float64)
        self._y = np.asarray(y, np.float64)
        if self.x.ndim != 1 or self.x.shape != self._y.shape or len(self.x) < 4:
            raise ValueError(
                f"Akima's spline needs 4 points at least, got x {self.x.shape}, y {self._y.shape}"
            )
        if not (np.isfinite(self.x).all() and np.isfinite(self._y).all() and (np.diff(self.x) > 0).all()):
            raise ValueError("Akima's spline needs finite points with strictly increasing x")
        inner = np.diff(self._y) / np.diff(self.x)
        slope = np.empty(len(inner) + 4)  # two more on either side, continued linearly
        slope[2:-2] = inner
        slope[1] = 2 * slope[2] - slope[3]
        slope[0] = 2 * slope[1] - slope[2]
        slope[-2] = 2 * slope[-3] - slope[-4]
        slope[-1] = 2 * slope[-2] - slope[-3]
        change = np.abs(np.diff(slope))
        before, after = change[:-2], change[2:]
        weight = before + after
        flat = weight <= 1e-9 * weight.max(initial=0.0)  # equal slopes on each side: their mean
        before, after = np.where(flat, 1.0, before), np.where(flat, 1.0, after)
        self._tangent = (after * slope[1:-2] + before * slope[2:-1]) / (before + after)

    def __call__(self, at: ArrayLike) -> NDArray[np.float64]:
        """Values at points within the range; ValueError outside."""
        points = np.asarray(at, np.float64)
        if points.size and not (points.min() >= self.x[0] and points.max() <= self.x[-1]):
            raise ValueError(f"{points} is not within {self.x[0]:g} ... {self.x[-1]:g}")
        left = np.clip(np.searchsorted(self.x, points, side="right") - 1, 0, len(self.x) - 2)
        width = self.x[left + 1] - self.x[left]
        t = (points - self.x[left]) / width
        # cubic Hermite polynomials
        value: NDArray[np.float64] = (
            (1 + 2 * t) * (1 - t) ** 2 * self._y[left]
            + t * (1 - t) ** 2 * width * self._tangent[left]
            + t**2 * (3 - 2 * t) * self._y[left + 1]
            - t**2 * (1 - t) * width * self._tangent[left + 1]
        )
        return value

    def integral(self, low: float, high: float) -> float:
        """Exact integral from `low` to `high`, both within the range."""
        edges = np.concatenate([[low], self.x[(self.x > low) & (self.x < high)], [high]])
        width, centre = np.diff(edges), 0.5 * (edges[:-1] + edges[1:])
        return float(0.5 * (width * (self(centre - _GAUSS * width) + self(centre + _GAUSS * width))).sum())


def bd_rate(
    rates: ArrayLike,
    psnrs: ArrayLike,
    reference_rates: ArrayLike,
    reference_psnrs: ArrayLike,
    low: float = -math.inf,
    high: float = math.inf,
) -> BdRate:
    """Bjontegaard's mean difference of rate at equal PSNR, Akima's spline on the logarithm of the rate.

    Rates in any unit, the same for both curves; PSNR in dB. The mean is taken over `low` ... `high` dB as far
    as both curves have been measured: nothing is extrapolated, and the range that was left is in the answer.
    Points of infinite PSNR are left out; of several with the same PSNR the cheapest counts. ValueError with
    fewer than 4 points on a curve or without a common range.
    """
    log_rate = _log_rate(rates, psnrs)
    reference = _log_rate(reference_rates, reference_psnrs)
    start = float(max(low, log_rate.x[0], reference.x[0]))
    end = float(min(high, log_rate.x[-1], reference.x[-1]))
    if not start < end:
        raise ValueError(
            f"no common range of PSNR: {log_rate.x[0]:.2f} ... {log_rate.x[-1]:.2f} dB against "
            f"{reference.x[0]:.2f} ... {reference.x[-1]:.2f} dB within {low:.2f} ... {high:.2f} dB"
        )
    difference = (log_rate.integral(start, end) - reference.integral(start, end)) / (end - start)
    return BdRate(
        percent=100.0 * math.expm1(difference),
        low=start,
        high=end,
        points=_within(log_rate.x, start, end),
        reference_points=_within(reference.x, start, end),
    )


def psnr_range(rates: ArrayLike, psnrs: ArrayLike, lowest: float, highest: float) -> Range:
    """PSNR (dB) of a curve at two rates, by Akima's spline over the logarithm of the rate.

    Where the curve begins or ends in between, its own end counts. ValueError with fewer than 4 points or if
    the curve has nothing between the two rates.
    """
    curve = _psnr_curve(rates, psnrs)
    start, end = max(math.log(lowest), curve.x[0]), min(math.log(highest), curve.x[-1])
    if not start < end:
        raise ValueError(
            f"nothing between the rates {lowest:g} and {highest:g}: "
            f"the curve runs from {math.exp(curve.x[0]):.3g} to {math.exp(curve.x[-1]):.3g}"
        )
    low, high = curve([start, end])
    return float(low), float(high)


def psnr_at(rates: ArrayLike, psnrs: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """PSNR (dB) of a curve at the rates `at`, by Akima's spline; nan beyond its ends. ValueError with fewer than 4 points."""
    curve = _psnr_curve(rates, psnrs)
    wanted = np.log(np.asarray(at, np.float64))
    inside = (wanted >= curve.x[0]) & (wanted <= curve.x[-1])
    found = np.full(wanted.shape, math.nan)
    found[inside] = curve(wanted[inside])
    return found


def largest_excess(
    rates: ArrayLike, psnrs: ArrayLike, reference_rates: ArrayLike, reference_psnrs: ArrayLike, low: float, high: float
) -> tuple[float, float]:
    """(percent, dB): where between `low` and `high` dB a curve needs most bits relative to a reference; < 0: nowhere more.

    Every 0.1 dB of the range that both have been measured in; ValueError as in `bd_rate`.
    """
    log_rate, reference = _log_rate(rates, psnrs), _log_rate(reference_rates, reference_psnrs)
    start, end = float(max(low, log_rate.x[0], reference.x[0])), float(min(high, log_rate.x[-1], reference.x[-1]))
    if not start < end:
        raise ValueError(f"no common range of PSNR within {low:.2f} ... {high:.2f} dB")
    at = np.linspace(start, end, math.ceil(10 * (end - start)) + 1)
    difference = log_rate(at) - reference(at)
    worst = int(difference.argmax())
    return 100 * math.expm1(difference[worst]), float(at[worst])


def _psnr_curve(rates: ArrayLike, psnrs: ArrayLike) -> Akima:
    """PSNR over the logarithm of the rate."""
    rate, quality = _usable(rates, psnrs)
    log_rates, negative = _cheapest(np.log(rate), -quality)
    return Akima(log_rates, -negative)


def _usable(rates: ArrayLike, psnrs: ArrayLike) -> NDArray[np.float64]:
    """[2, n]: rates and PSNRs of the points that a logarithm and a spline can take."""
    rate, quality = np.asarray(rates, np.float64), np.asarray(psnrs, np.float64)
    if rate.ndim != 1 or rate.shape != quality.shape:
        raise ValueError(f"a curve is two lists of the same length, got {rate.shape} and {quality.shape}")
    return np.stack([rate, quality])[:, np.isfinite(rate) & np.isfinite(quality) & (rate > 0)]


def _log_rate(rates: ArrayLike, psnrs: ArrayLike) -> Akima:
    """Logarithm of the rate over the PSNR."""
    rate, quality = _usable(rates, psnrs)
    return Akima(*_cheapest(quality, np.log(rate)))


def _cheapest(
    x: NDArray[np.float64], cost: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in the order of x; of several with the same x the one of least cost."""
    order = np.lexsort((cost, x))
    x, cost = x[order], cost[order]
    first = np.diff(x, prepend=-np.inf) > 0
    if first.sum() < 4:
        raise ValueError(f"a rate-distortion curve needs at least 4 different points, got {int(first.sum())}")
    return x[first], cost[first]


def _within(values: NDArray[np.float64], low: float, high: float) -> int:
    return int(((values >= low) & (values <= high)).sum())


def _limits(original: NDArray[Any], limits: Range | None) -> Range:
    low, high = value_range(original) if limits is None else limits
    if not (high > low and math.isfinite(high - low)):
        raise ValueError(f"PSNR and SSIM need finite values that differ, these lie in {low:g} ... {high:g}")
    return low, high


def _psnr(squared: float, peak: float) -> float:
    return math.inf if squared == 0 else 20 * math.log10(peak) - 10 * math.log10(squared)


def _slices(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Corresponding slices [j, i] as float64."""
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


def _ssim_of_slice(x: NDArray[np.float64], y: NDArray[np.float64], low: float, peak: float) -> float:
    # In units of the peak, around the middle of the range: differences of the integral image keep 10 digits.
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


def _ms_ssim_of_slice(x: NDArray[np.float64], y: NDArray[np.float64], low: float, peak: float) -> float:
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
    """Filtered by the Gaussian window along both axes, where it lies inside."""
    for axis in (0, 1):
        n = image.shape[axis] - len(_GAUSSIAN) + 1
        parts = (image[t : t + n] if axis == 0 else image[:, t : t + n] for t in range(len(_GAUSSIAN)))
        total = np.zeros((n, image.shape[1]) if axis == 0 else (image.shape[0], n))
        for weight, part in zip(_GAUSSIAN, parts, strict=True):
            total += weight * part
        image = total
    return image


def _halved(image: NDArray[np.float64]) -> NDArray[np.float64]:
    j, i = (n // 2 * 2 for n in image.shape)
    image = image[:j, :i]
    return np.asarray((image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4, np.float64)


def _window_sums(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over all windows inside the image, from its integral image."""
    integral = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, axis=0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    n = SSIM_WINDOW
    return integral[n:, n:] - integral[:-n, n:] - integral[n:, :-n] + integral[:-n, :-n]
