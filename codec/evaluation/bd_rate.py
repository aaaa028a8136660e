"""BD-rate of two rate-distortion curves (Bjontegaard 2001), by Akima's spline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mricodec.codec.voxels.metrics import Range

# Half the distance of the two nodes of Gauss-Legendre quadrature, which integrates a cubic exactly.
_GAUSS_NODE = 0.5 / math.sqrt(3.0)


@dataclass(frozen=True)
class BdRate:
    """Mean difference of rate at equal PSNR."""

    # Difference of rate in percent; negative: fewer bits than the reference.
    percent: float
    # Ends of the common range of PSNR in dB.
    low: float
    high: float
    # Points of the codec and of the reference within that range.
    points: int
    reference_points: int


class Akima:
    """Interpolating spline of Akima, J. ACM 17 (1970) 589: piecewise cubic, local, no overshoot.

    Needs at least 4 finite points with strictly increasing x, else ValueError. Not defined outside
    x[0] ... x[-1].
    """

    def __init__(self, x: ArrayLike, y: ArrayLike) -> None:
        self.x = np.asarray(x, np.float64)
        self._y = np.asarray(y, np.float64)
        if self.x.ndim != 1 or self.x.shape != self._y.shape or len(self.x) < 4:
            raise ValueError(
                f"Akima's spline needs 4 points at least, got x {self.x.shape}, y {self._y.shape}"
            )
        if not (
            np.isfinite(self.x).all() and np.isfinite(self._y).all() and (np.diff(self.x) > 0).all()
        ):
            raise ValueError("Akima's spline needs finite points with strictly increasing x")
        inner = np.diff(self._y) / np.diff(self.x)
        # Two more slopes on either side, continued linearly.
        slope = np.empty(len(inner) + 4)
        slope[2:-2] = inner
        slope[1] = 2 * slope[2] - slope[3]
        slope[0] = 2 * slope[1] - slope[2]
        slope[-2] = 2 * slope[-3] - slope[-4]
        slope[-1] = 2 * slope[-2] - slope[-3]
        change = np.abs(np.diff(slope))
        before, after = change[:-2], change[2:]
        weight = before + after
        # Where the slopes are equal on each side, the tangent is their mean.
        flat = weight <= 1e-9 * weight.max(initial=0.0)
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
        # Cubic Hermite polynomials.
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
        nodes = (centre - _GAUSS_NODE * width, centre + _GAUSS_NODE * width)
        return float(0.5 * (width * (self(nodes[0]) + self(nodes[1]))).sum())


def bd_rate(
    rates: ArrayLike,
    psnrs: ArrayLike,
    reference_rates: ArrayLike,
    reference_psnrs: ArrayLike,
    low: float = -math.inf,
    high: float = math.inf,
) -> BdRate:
    """Bjontegaard's mean difference of rate at equal PSNR, Akima's spline on the log of the rate.

    Rates in any unit, the same for both curves; PSNR in dB. The mean is taken over `low` ... `high`
    dB as far as both curves were measured: nothing is extrapolated, and the result has the range.
    Points of infinite PSNR are ignored; of several with the same PSNR the smallest rate counts.
    ValueError with fewer than 4 points on a curve or without a common range.
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

    Where the curve begins or ends between them, its end counts. ValueError with fewer than 4 points
    or if the curve has nothing between the two rates.
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
    """PSNR (dB) of a curve at the rates `at`, by Akima's spline; nan beyond its ends.

    ValueError with fewer than 4 points.
    """
    return _inside(_psnr_curve(rates, psnrs), np.log(np.asarray(at, np.float64)))


def rate_at(rates: ArrayLike, psnrs: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Rate of a curve at the PSNRs `at` (dB), by Akima's spline; nan beyond its ends.

    ValueError with fewer than 4 points.
    """
    return np.exp(_inside(_log_rate(rates, psnrs), np.asarray(at, np.float64)))


def _inside(curve: Akima, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a spline; nan beyond its ends."""
    values = np.full(at.shape, math.nan)
    inside = (at >= curve.x[0]) & (at <= curve.x[-1])
    values[inside] = curve(at[inside])
    return values


def largest_excess(
    rates: ArrayLike,
    psnrs: ArrayLike,
    reference_rates: ArrayLike,
    reference_psnrs: ArrayLike,
    low: float,
    high: float,
) -> tuple[float, float]:
    """The largest difference of rate (percent) between `low` and `high` dB, and its PSNR (dB).

    Evaluated every 0.1 dB of the range that both curves cover; negative if the curve needs fewer
    bits than the reference everywhere. ValueError as in `bd_rate`.
    """
    log_rate, reference = _log_rate(rates, psnrs), _log_rate(reference_rates, reference_psnrs)
    start = float(max(low, log_rate.x[0], reference.x[0]))
    end = float(min(high, log_rate.x[-1], reference.x[-1]))
    if not start < end:
        raise ValueError(f"no common range of PSNR within {low:.2f} ... {high:.2f} dB")
    at = np.linspace(start, end, math.ceil(10 * (end - start)) + 1)
    difference = log_rate(at) - reference(at)
    largest = int(difference.argmax())
    return 100 * math.expm1(difference[largest]), float(at[largest])


def _psnr_curve(rates: ArrayLike, psnrs: ArrayLike) -> Akima:
    """PSNR over the logarithm of the rate."""
    rate, quality = _finite_points(rates, psnrs)
    log_rates, negative = _smallest_cost(np.log(rate), -quality)
    return Akima(log_rates, -negative)


def _finite_points(rates: ArrayLike, psnrs: ArrayLike) -> NDArray[np.float64]:
    """[2, n]: rates and PSNRs of the points that a logarithm and a spline can take."""
    rate, quality = np.asarray(rates, np.float64), np.asarray(psnrs, np.float64)
    if rate.ndim != 1 or rate.shape != quality.shape:
        raise ValueError(
            f"a curve is two lists of the same length, got {rate.shape} and {quality.shape}"
        )
    return np.stack([rate, quality])[:, np.isfinite(rate) & np.isfinite(quality) & (rate > 0)]


def _log_rate(rates: ArrayLike, psnrs: ArrayLike) -> Akima:
    """Logarithm of the rate over the PSNR."""
    rate, quality = _finite_points(rates, psnrs)
    return Akima(*_smallest_cost(quality, np.log(rate)))


def _smallest_cost(
    x: NDArray[np.float64], cost: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in the order of x; of several with the same x the one of smallest cost."""
    order = np.lexsort((cost, x))
    x, cost = x[order], cost[order]
    first = np.diff(x, prepend=-np.inf) > 0
    if first.sum() < 4:
        raise ValueError(
            f"a rate-distortion curve needs at least 4 different points, got {int(first.sum())}"
        )
    return x[first], cost[first]


def _within(values: NDArray[np.float64], low: float, high: float) -> int:
    return int(((values >= low) & (values <= high)).sum())
