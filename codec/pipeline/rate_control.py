"""Rate control: the quantiser's step at which a file has the PSNR or size that was asked for.

The magnitudes of the coefficients of a scan predict the rate-distortion curve over the step; whole
files correct the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.settings import Target

# Largest difference of the PSNR from its target, dB.
PSNR_TOLERANCE = 0.1
# Largest difference of the size from its target, as a part of it.
RATE_TOLERANCE = 0.02
# The finest step in samples: below half a sample nothing differs any more.
FINEST_STEP = 0.25
# Files of a search; two or three are enough in nearly all.
TRIALS = 8
# Bins of magnitudes, and steps of the predicted curve, in an octave.
FINE = 8
BINS = 32 * FINE
# log2 of the magnitudes of the first bin, which are taken for 0.
SMALLEST = -8
# The predicted curve is that of the default model on the validation scans, within 0.5 dB and 0.4
# octaves of the size in most cases.
# Coefficients below this part of a step become 0.
_DEAD_ZONE = 0.8
# PSNR above that of the dead-zone quantiser, dB.
_PSNR_GAIN = 1.9
# Size in octaves above half the logarithm of the power.
_SIZE_OFFSET = 1.5
# Below this log2 of the bits per voxel the curve is steeper by this factor.
_BEND, _STEEPER = -1.3, 4 / 3

Measure = Callable[[float], float]
Floats = NDArray[np.float64]


def magnitudes(coefficients: NDArray[Any]) -> Floats:
    """Histogram of the magnitudes, float64 [BINS], in bins of 1 / FINE octave."""
    with np.errstate(divide="ignore"):
        octave = np.log2(np.abs(coefficients))
    bins = ((octave - SMALLEST) * FINE).clip(0, BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=BINS).astype(np.float64)


@dataclass(frozen=True)
class Extent:
    """The size of a scan, which its target is relative to.

    itemsize: bytes of a stored voxel. peak: maximum - minimum, stored units.
    """

    voxels: int
    itemsize: int
    peak: float


@dataclass(frozen=True)
class Trial:
    """A file that was written: its bytes, and its mean squared error in stored units squared."""

    nbytes: int
    mse: float


@dataclass(frozen=True)
class Aim:
    """A target as a height of a curve over log2(step): PSNR in dB, or log2 of bits per voxel."""

    target: Target
    extent: Extent

    @property
    def _kind(self) -> str:
        return "psnr" if self.target.kind == "psnr" else "bpv"

    @property
    def height(self) -> float:
        value = self.target.value
        if self.target.kind == "ratio":
            value = 8 * self.extent.itemsize / value
        return value if self._kind == "psnr" else math.log2(value)

    @property
    def tolerance(self) -> float:
        """A little less than what is promised, as the error that a file states is rounded up."""
        return (
            0.95 * PSNR_TOLERANCE if self._kind == "psnr" else math.log2(1 + 0.95 * RATE_TOLERANCE)
        )

    def of(self, trial: Trial) -> float:
        """The height of a file."""
        if self._kind == "bpv":
            return math.log2(8 * trial.nbytes / self.extent.voxels)
        return self._psnr(trial.mse) if trial.mse > 0 else self.exact

    def _psnr(self, mse: float) -> float:
        return 20 * math.log10(self.extent.peak) - 10 * math.log10(mse)

    def expected(self, octave: float, counts: Floats, scale: float) -> float:
        """The predicted height at log2 of a step in samples.

        counts: `magnitudes` of the coefficients. scale: stored units of a sample.
        """
        power = np.exp2(2 * (SMALLEST + (np.arange(BINS) + 0.5) / FINE - octave))  # in steps
        power[0] = 0
        if self._kind == "psnr":
            mse = float(np.average(np.where(power < _DEAD_ZONE**2, power, 1 / 12), weights=counts))
            return _PSNR_GAIN + self._psnr(max(mse, 1e-9) * (scale * 2**octave) ** 2)
        height = _SIZE_OFFSET + math.log2(
            max(float(np.average(np.log2(1 + power), weights=counts)) / 2, 1e-9)
        )
        return height if height > _BEND else _BEND + _STEEPER * (height - _BEND)

    @property
    def exact(self) -> float:
        """PSNR (dB) that stands for no error at all: that of one voxel off by one."""
        return 20 * math.log10(self.extent.peak) + 10 * math.log10(self.extent.voxels)

    def value(self, height: float) -> float:
        """Back to the units of the target."""
        if self._kind == "psnr":
            return height
        return (
            8 * self.extent.itemsize / 2**height
            if self.target.kind == "ratio"
            else float(2**height)
        )


@dataclass
class Search:
    """A root of height(log2 step) = goal, for a falling curve, from few and costly measurements.

    The error of the predicted curve changes linearly between two measurements.
    """

    goal: float
    octaves: Floats  # log2 of steps, rising
    expected: Floats  # heights there
    points: list[tuple[float, float]] = field(default_factory=list)  # (log2 step, height)

    def run(self, measure: Measure, tolerance: float, trials: int = TRIALS) -> tuple[float, float]:
        """(log2 step, height) of the nearest measurement.

        The search ends within the tolerance, or where no step is left to try.
        """
        for _ in range(trials):
            at = self.next()
            if any(abs(at - tried) < 1e-4 for tried, _ in self.points):
                break
            self.points.append((at, measure(at)))
            if abs(self._nearest(1)[0][1] - self.goal) <= tolerance:
                break
        return self._nearest(1)[0]

    def _nearest(self, count: int) -> list[tuple[float, float]]:
        return sorted(self.points, key=lambda point: abs(point[1] - self.goal))[:count]

    def next(self) -> float:
        """The log2 of a step at which the goal is predicted."""
        above, below = self._around()
        low = float(self.octaves[0]) if above is None else above[0]
        high = float(self.octaves[-1]) if below is None else below[0]
        if low >= high:  # The curve rises here.
            return (low + high) / 2
        at = np.linspace(low, high, 1 + math.ceil(64 * (high - low)))
        left = np.interp(at, self.octaves, self.expected) + self._prediction_error(at) - self.goal
        if not (left[0] >= 0 > left[-1]):
            return low if left[0] < 0 else high
        n = int(np.argmax(left < 0))
        return float(at[n] - (at[n] - at[n - 1]) * left[n] / (left[n] - left[n - 1]))

    def _around(self) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """The coarsest measurement above the goal, and the finest below it."""
        above = max((point for point in self.points if point[1] >= self.goal), default=None)
        return above, min((point for point in self.points if point[1] < self.goal), default=None)

    def _prediction_error(self, at: Floats) -> Floats:
        """The error of the prediction, from the two points around the goal or nearest to it."""
        above, below = self._around()
        two = sorted(self._nearest(2)) if above is None or below is None else [above, below]
        if not two:
            return np.zeros_like(at)
        beyond = [height - float(np.interp(x, self.octaves, self.expected)) for x, height in two]
        if len(two) == 1:
            return np.full_like(at, beyond[0])
        (first, _), (last, _) = two
        share = ((at - first) / (last - first)).clip(-1, 2)
        return np.asarray(beyond[0] + share * (beyond[1] - beyond[0]))


def shortfall(aim: Aim, octave: float, height: float, low: float, high: float) -> str | None:
    """Why a file with log2 step `octave` in `low` ... `high` misses its target, or None."""
    if abs(height - aim.height) <= aim.tolerance:
        return None
    why = "its size jumps between the steps of the quantiser"
    if octave <= low + 1e-4:
        why = "the quantiser goes no finer; --lossless leaves no error"
    elif octave >= high - 1e-4:
        why = "the quantiser goes no coarser"
    reached = aim.target.describe(aim.value(height))
    if aim.target.kind == "psnr" and height >= aim.exact:
        reached = "no error at all"
    return f"asked for {aim.target}, the nearest found is {reached}: {why}"
