"""Rate control: the quantiser's step with which a file has the PSNR or the size that was asked for.

PSNR and the logarithm of the size fall almost linearly with the logarithm of the step. A sample of the scan gives the
curve, whole files at one or two steps give its offset: a secant finds the rest.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mricodec.bitstream.errors import FormatError

Effort = Literal["default", "high"]
EFFORTS: tuple[Effort, ...] = ("default", "high")

KINDS = ("psnr", "bpv", "ratio")  # numbers 1, 2, 3 in a stream: appended to only
PSNR_TOLERANCE = 0.1  # dB
RATE_TOLERANCE = 0.02  # of the size
FINEST_STEP = 0.25  # codes; below half a code nothing differs any more
SAMPLE_TRIALS = 4  # of at most a quarter of the scan each
WHOLE_TRIALS = 3
_SLOPES = {"psnr": -5.5, "bpv": -0.9}  # dB and octaves of size for twice the step, at usual rates
_CLOSE = {"psnr": 0.6, "bpv": 0.12}  # dB, octaves: near enough for a sample, whose offset is unknown
_JUMP = 3.0  # octaves of the step, the farthest beyond what was tried
_RMSE_PER_STEP = 0.25  # at usual rates

Measure = Callable[[float], float]


@dataclass(frozen=True)
class Target:
    """What a file is to have: "psnr" (dB, peak = maximum - minimum), "bpv" (bits per voxel of the whole file) or
    "ratio" (bytes of the stored voxels over those of the file)."""

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"target: expected {', '.join(KINDS)}, found {self.kind}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"{self.kind}: expected a number above 0, found {self.value:g}")

    def __str__(self) -> str:
        return self.describe(self.value)

    def describe(self, value: float) -> str:
        """The target with another value."""
        return {"psnr": f"PSNR {value:.4g} dB", "bpv": f"{value:.4g} bits per voxel", "ratio": f"ratio {value:.4g}"}[self.kind]

    def pack(self) -> bytes:
        """Payload of a chunk: kind u8, value f32."""
        return struct.pack("<Bf", KINDS.index(self.kind) + 1, self.value)

    @classmethod
    def unpack(cls, payload: bytes) -> Target | None:
        """None for a kind of a later release. FormatError if it is damaged."""
        if len(payload) != 5:
            raise FormatError(f"expected 5 bytes for a target, found {len(payload)}: the file is damaged")
        kind, value = struct.unpack("<Bf", payload)
        if not 1 <= kind <= len(KINDS):
            return None
        try:
            return cls(KINDS[kind - 1], float(f"{value:.6g}"))
        except ValueError as error:
            raise FormatError(f"{error}: the file is damaged") from error


def target_of(psnr: float | None, bpv: float | None, ratio: float | None) -> Target | None:
    """The one that is given; ValueError for more than one, or a value that can be no target."""
    given = [(kind, value) for kind, value in zip(KINDS, (psnr, bpv, ratio), strict=True) if value is not None]
    if len(given) > 1:
        raise ValueError(f"expected one of {' and '.join(kind for kind, _ in given)}, found both: leave one out")
    return Target(given[0][0], float(given[0][1])) if given else None


@dataclass(frozen=True)
class Extent:
    """What a target is relative to."""

    voxels: int
    itemsize: int  # bytes of a stored voxel
    peak: float  # maximum - minimum, stored units


@dataclass(frozen=True)
class Trial:
    """A file, or a sample of one."""

    nbytes: int
    mse: float  # stored units squared


@dataclass(frozen=True)
class Aim:
    """A target as a height of a curve over log2(step): PSNR in dB, or log2 of the bits per voxel."""

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
    def slope(self) -> float:
        return _SLOPES[self._kind]

    @property
    def close(self) -> float:
        return _CLOSE[self._kind]

    @property
    def tolerance(self) -> float:
        """A little less than what is promised: the error that a file states is rounded up."""
        return 0.95 * PSNR_TOLERANCE if self._kind == "psnr" else math.log2(1 + 0.95 * RATE_TOLERANCE)

    def of(self, trial: Trial, voxels: int) -> float:
        """Height of what was coded, of `voxels` voxels."""
        if self._kind == "bpv":
            return math.log2(8 * trial.nbytes / voxels)
        if trial.mse == 0:
            return self.exact
        return 20 * math.log10(self.extent.peak) - 10 * math.log10(trial.mse)

    @property
    def exact(self) -> float:
        """PSNR (dB) that stands for no error at all: that of one voxel off by one."""
        return 20 * math.log10(self.extent.peak) + 10 * math.log10(self.extent.voxels)

    def value(self, height: float) -> float:
        """Back to the units of the target."""
        if self._kind == "psnr":
            return height
        return 8 * self.extent.itemsize / 2**height if self.target.kind == "ratio" else float(2**height)

    def first(self, usual_step: float, scale: float) -> float:
        """log2 of a step to begin with; `scale`: stored units of a code."""
        if self._kind == "psnr":
            return math.log2(self.extent.peak / scale / _RMSE_PER_STEP) - self.target.value / (20 * math.log10(2))
        return math.log2(usual_step) + self.height / self.slope


@dataclass
class Search:
    """A root of height(log2 step) = goal, for a curve that falls, from few and dear measurements.

    Between two points on either side of the goal the chord leads on, beyond them the slope of the last two.
    """

    goal: float
    low: float  # log2 of the finest step
    high: float  # of the coarsest
    slope: float
    points: list[tuple[float, float]] = field(default_factory=list)  # (log2 step, height)

    def run(self, measure: Measure, start: float, tolerance: float, trials: int) -> tuple[float, float]:
        """(log2 step, height) of the nearest; ends within the tolerance, or where no step is left to try."""
        at = min(max(start, self.low), self.high)
        for _ in range(trials):
            self.points.append((at, measure(at)))
            if abs(self.nearest[1] - self.goal) <= tolerance:
                break
            at = min(max(self.next(), self.low), self.high)
            if any(abs(at - tried) < 1e-4 for tried, _ in self.points):
                break
        return self.nearest

    @property
    def nearest(self) -> tuple[float, float]:
        return min(self.points, key=lambda point: abs(point[1] - self.goal))

    def next(self) -> float:
        """Where the goal is expected."""
        above = max((p for p in self.points if p[1] >= self.goal), default=None)  # the coarsest that is too good
        below = min((p for p in self.points if p[1] < self.goal), default=None)  # the finest that is too bad
        if above is not None and below is not None:
            if above[0] >= below[0]:  # the curve rises here
                return (above[0] + below[0]) / 2
            share = (above[1] - self.goal) / (above[1] - below[1])
            return above[0] + share * (below[0] - above[0])
        edge = above if below is None else below
        assert edge is not None
        jump = (self.goal - edge[1]) / self.local_slope()
        return edge[0] + max(-_JUMP, min(_JUMP, jump))

    def local_slope(self) -> float:
        """Of the two points nearest to the goal; the usual one where they say nothing sensible."""
        two = sorted(self.points, key=lambda p: abs(p[1] - self.goal))[:2]
        if len(two) == 2 and abs(two[0][0] - two[1][0]) > 0.02:
            slope = (two[1][1] - two[0][1]) / (two[1][0] - two[0][0])
            if 0.1 * self.slope > slope > 4 * self.slope:
                return slope
        return self.slope


def search(
    aim: Aim, start: float, low: float, high: float, sample: Measure | None, whole: Measure
) -> tuple[float, float]:
    """(log2 step, height) of the whole file that is nearest to the aim.

    `sample` and `whole` measure heights at log2 steps between `low` and `high`; the sample's curve is taken to lie
    beside the whole's at a constant distance.
    """
    slope, trials = aim.slope, WHOLE_TRIALS + 1
    if sample is not None:
        curve = Search(aim.height, low, high, slope)
        curve.run(sample, start, aim.close, SAMPLE_TRIALS)
        start, slope, trials = curve.next(), curve.local_slope(), WHOLE_TRIALS
    return Search(aim.height, low, high, slope).run(whole, start, aim.tolerance, trials)


def shortfall(aim: Aim, at: float, height: float, low: float, high: float) -> str | None:
    """What to say of a file, made with log2 step `at` from `low` ... `high`, that is not as asked; None if it is."""
    if abs(height - aim.height) <= aim.tolerance:
        return None
    why = "its size jumps between the steps of the quantiser"
    if at <= low + 1e-4:
        why = "the quantiser goes no finer; --lossless leaves no error"
    elif at >= high - 1e-4:
        why = "the quantiser goes no coarser"
    found = aim.target.describe(aim.value(height))
    if aim.target.kind == "psnr" and height >= aim.exact:
        found = "no error at all"
    return f"asked for {aim.target}, the nearest found is {found}: {why}"
