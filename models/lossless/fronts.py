"""Prediction of the voxels of a slab, front by front of the integer lattice, in both directions.

The voxels (t, i, j) of a slab (slice, row, column) lie on the fronts n = j + 2 i + 4 t. A front
holds at most one voxel of every row, and whatever a voxel is predicted from (its slice from west to
north-east, a patch of the slice before) lies on fronts with a smaller n. So the voxels of a front
are handled together, yet each sees a causal neighbourhood at full resolution, as in a raster scan:

    known voxels, references --> least squares of the slab --> + NLMS filter of the row
                                                           --> prediction, in 16ths
    errors of neighbours, gradients --> local scale --> context --> table

References are arrays of the slab's shape that both sides have already (a lossy layer, an earlier
volume): their neighbourhood on all sides counts.

The filters (normalised least mean squares, one a row; Haykin, Adaptive Filter Theory, 4th ed. 2002,
ch. 6) follow local statistics, which no predictor of the whole slab can; each is blended with the
filter of the row above and that of the same row in the slice before. All of it is integer
arithmetic, much of it in float64 with integers below 2**53. format/predictive.md states every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import ProbabilityTables
from mricodec.models.weights_file import read_shipped

Float = NDArray[np.float64]
Tap = tuple[int, int, int]  # offset (t, i, j) of a neighbour

WEIGHTS = Path(__file__).parents[1] / "weights" / "predictive_tables.safetensors"
WEIGHTS_SHA256 = "c67fe647400be973411d6f6e7f54cb37db62eba20d9188a096ed499d62b8186b"

UNIT = 16  # predictions, errors and scales are in 16ths of a voxel value
COEFFICIENT_BITS = 13
SCALE_BITS = 12
STAGES = 3  # predictors: for the first slice, the second, all others


def _causal(reach: int) -> tuple[Tap, ...]:
    """Neighbours in the slice on earlier fronts, within a distance."""
    near = range(-reach, reach + 1)
    return tuple(
        (0, i, j)
        for i in near
        for j in near
        if i <= 0 and j + 2 * i < 0 and i * i + j * j <= reach * reach
    )


def _patch(*offsets: tuple[int, int]) -> tuple[Tap, ...]:
    return tuple((-1, i, j) for i, j in offsets)


_SQUARE = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))
_CROSS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))

# What least squares may choose from.
CANDIDATES: tuple[Tap, ...] = (
    *_causal(6),
    *_patch(*_SQUARE, (0, -2), (0, 2), (-2, 0)),
    *((-2, i, j) for i, j in _CROSS),
)
NEAR_CANDIDATES = len(CANDIDATES)
# Farther ones, for effort high: scanners interpolate, which makes distant neighbours informative.
CANDIDATES += (
    *(tap for tap in _causal(7) if tap not in CANDIDATES),
    *_patch((-2, -1), (-2, 1), (-2, -2), (-2, 2), (-1, -2), (-1, 2), (1, -2)),
    *(
        (-2, i, j)
        for i, j in ((-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2), (0, 2), (2, 0))
    ),
)
# The candidates of every reference, on any side of the voxel.
REFERENCE_CANDIDATES: tuple[Tap, ...] = (
    *((0, i, j) for i, j in _SQUARE),
    *((0, i, j) for i, j in ((0, -2), (0, 2), (-2, 0), (2, 0))),
    *((t, 0, 0) for t in (-1, 1)),
)
# The local scale is a weighted sum of absolute errors of neighbours ...
ERRORS: tuple[Tap, ...] = (
    *(
        (0, i, j)
        for i, j in (
            (-2, -1),
            (-2, 0),
            (-2, 1),
            (-1, -2),
            (-1, -1),
            (-1, 0),
            (-1, 1),
            (0, -2),
            (0, -1),
        )
    ),
    *_patch(*_SQUARE),
)
# ... and of absolute differences between pairs of them.
GRADIENTS: tuple[tuple[Tap, Tap], ...] = (
    ((0, 0, -1), (0, -1, -1)),
    ((0, -1, 0), (0, -1, -1)),
    ((0, -1, 0), (0, -1, 1)),
    ((0, 0, -1), (0, 0, -2)),
    ((0, -1, 0), (0, -2, 0)),
    ((0, 0, -1), (0, -1, 0)),
    *(((-1, 0, 0), (-1, i, j)) for i, j in _CROSS[1:]),
)
FEATURES = len(ERRORS) + len(GRADIENTS)
# Inputs of the adaptive filter: neighbours less the prediction, then errors of neighbours.
_NEAREST: tuple[Tap, ...] = ((0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1))
ADAPTIVE_VALUES: tuple[Tap, ...] = (*_NEAREST, (-1, 0, 0))
ADAPTIVE_ERRORS: tuple[Tap, ...] = (*_NEAREST, (0, 0, -2), (0, -2, 0), (-1, 0, 0))
# Long filters have these after each of the two.
_LONG_TAPS: tuple[Tap, ...] = ((-1, 0, 1), (-1, 0, -1), (-1, 1, 0), (-1, -1, 0))
NO_FILTERS, FILTERS, LONG_FILTERS = 0, 1, 2
MAX_REFERENCES = 2

# Largest input of a filter, in 64ths of the local scale.
INPUT_MAX = 256
# Largest error that adapts a filter, in 64ths of the local scale.
ERROR_MAX = 128
# Largest weight of a filter, in 2**-16.
WEIGHT_MAX = 1 << 18
# Added to the squared length of the inputs.
REGULARISATION = 20 << 12

# Distributions. 0: all zero, nothing sent; then spikes at zero; then scales, 4 an octave from 1/8
# on, that depend on the fraction of the prediction; then scales from 4 on, that do not.
OCTAVE = 4
SPIKES = 7
FINE = 5 * OCTAVE
FRACTIONS = 4
FIRST_FINE = 1 + SPIKES
FIRST_COARSE = FIRST_FINE + FINE
FIRST_COARSE_ROW = FIRST_FINE + FINE * FRACTIONS
ROWS = FIRST_COARSE_ROW + OCTAVE
DISTRIBUTIONS = FIRST_COARSE + 25 * OCTAVE
TOKEN_MAX = 40  # tables code -40 .. 40
CONTEXTS = 128
# Levels of the ratio of prediction and scale: below 1, 1.7, 2.4, 4; the rest. Where it is small,
# noise is skewed (that of magnitudes is Rician), and the tables of each sign are skewed.
LEVELS = 5
# Nodes of a skew: distances in quarters of the scale, -4 .. 4.
NODES = 33
# The largest level, then the others for positive and negative signs.
VARIANTS = 1 + 2 * (LEVELS - 1)
LEVEL_LIMITS = (0, 3, 5, 8)
MIN_RATIO = -1

_MIN_WEIGHT, _MAX_WEIGHT = np.int32(-WEIGHT_MAX), np.int32(WEIGHT_MAX)
_RING = 32  # fronts kept: more than any neighbour is back
_REACH = 8  # rows above and below the active ones whose padding is kept up
_PAD = 2  # of references: no neighbour is farther in a slice
_MARGIN = 12  # unused rows of lanes before the first


@dataclass(frozen=True, eq=False)
class Predictor:
    """Least squares: prediction = sum of coefficients * neighbours, in 2**-13."""

    taps: tuple[Tap, ...]
    coefficients: NDArray[
        np.int32
    ]  # [STAGES, all taps], below 2**15 in size; 0 where a stage lacks the slice
    reference_taps: tuple[
        tuple[int, Tap], ...
    ] = ()  # (number of the reference, neighbour), after `taps`


@dataclass(frozen=True, eq=False)
class Shipped:
    """What the tables file holds."""

    tables: dict[str, ProbabilityTables]
    scale_weights: Float  # [2, FEATURES] integers in 2**-12: first slice, all others
    predictor: Predictor  # for slabs too small to fit one
    nodes: NDArray[np.int8]  # [ROWS, 2 TOKEN_MAX + 1]: the node of each token.


@cache
def shipped() -> Shipped:
    """Loaded once. OSError if the file is missing, ValueError if it is another."""
    from safetensors.numpy import load

    arrays = load(read_shipped(WEIGHTS, WEIGHTS_SHA256))
    taps = tuple((int(t), int(i), int(j)) for t, i, j in arrays["predictor.taps"])
    return Shipped(
        {
            "voxel": ProbabilityTables(arrays["tables.voxel"], -TOKEN_MAX, OCTAVE),
            "byte": ProbabilityTables(arrays["tables.byte"], 0, 0),
        },
        arrays["scale.weights"].astype(np.float64),
        Predictor(taps, arrays["predictor.coefficients"]),
        arrays["tables.place"],
    )


def _variants() -> NDArray[np.int64]:
    """[2, limits]: state of a variant, by the sign and the quarter octaves of prediction / scale.

    From `MIN_RATIO` on.
    """
    ratio = np.arange(MIN_RATIO, LEVEL_LIMITS[-1] + 1)
    level = np.searchsorted(LEVEL_LIMITS, ratio, side="right")
    variant = np.where(level < LEVELS - 1, 1 + 2 * level, 0)
    return np.stack([variant, np.where(variant > 0, variant + 1, 0)]) * (CONTEXTS * UNIT)


VARIANT_STATES = _variants()


class Front(NamedTuple):
    """The voxels of one front, before they are known."""

    voxels: NDArray[np.intp]  # [m], positions in the slab, C order
    state: NDArray[
        np.intp
    ]  # [m], (variant * CONTEXTS + context) * 16 + distance from the prediction to `nearest`, 16ths
    nearest: Float  # [m], that integer
    sign: Float  # [m], -1 where the prediction is below it: errors are coded with that sign


class _Pending(NamedTuple):
    """A front whose values are not known yet."""

    n: int
    active: slice  # lanes
    lanes: NDArray[np.intp]  # that hold voxels, among the active ones
    prediction: Float  # of these
    scale: Float  # of all active ones


@dataclass(frozen=True, eq=False)
class FrontModel:
    """What voxels are predicted with: `Shipped.scale_weights`, and which of the rows' filters."""

    predictor: Predictor
    scale_weights: Float
    filters: int = FILTERS


class FrontPredictor:
    """Runs over the fronts of a slab.

    Lanes, one a row of the slab, are stored in the order of s = i + 2 t, then t: so the lanes that
    have a voxel on a front, and the neighbours of these voxels at each offset, are contiguous.
    Column 0 stands for t = -1.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        span: int,
        border: int,
        model: FrontModel,
        references: Sequence[NDArray[np.int32]] = (),
    ) -> None:
        """span: the largest value (the least is 0); border: the value beyond the slab; references:
        [slices, height, width] each, of the same range."""
        slices, height, width = shape
        self._width, self._span = width, float(span * UNIT)
        self._columns = slices + 1
        self._rows = height + 2 * (slices - 1)
        self._front_count = width + 2 * (height - 1) + 4 * (slices - 1)
        self._slices = slices
        self._adaptive = model.filters
        self._coefficients = model.predictor.coefficients.astype(np.float64)
        self._scale_weights = model.scale_weights
        self._lay_out(shape, model.predictor, references)
        self._allocate(border, model.predictor)

    def _lay_out(
        self,
        shape: tuple[int, int, int],
        predictor: Predictor,
        references: Sequence[NDArray[np.int32]],
    ) -> None:
        """Positions of the lanes in the slab and in the padded references."""
        _, height, width = shape
        lane = np.arange((self._rows + _MARGIN + 1) * self._columns)
        s, t = lane // self._columns - _MARGIN, lane % self._columns - 1
        i = s - 2 * t
        self._valid = (t >= 0) & (i >= 0) & (i < height) & (s < self._rows)
        self._valid_lanes = np.flatnonzero(self._valid)
        self._origin = ((t * height + i) * width - 2 * i - 4 * t)[self._valid_lanes]
        padded = [
            np.pad(reference, ((1, 1), (_PAD, _PAD), (_PAD, _PAD)), mode="edge")
            for reference in references
        ]
        self._references = [(reference * float(UNIT)).reshape(-1) for reference in padded]
        rows, columns = height + 2 * _PAD, width + 2 * _PAD
        origin = ((t + 1) * rows + i + _PAD) * columns + _PAD - 2 * i - 4 * t
        self._reference_origin = origin[self._valid_lanes]
        self._reference_taps = [
            (r, (t * rows + i) * columns + j) for r, (t, i, j) in predictor.reference_taps
        ]

    def _allocate(self, border: int, predictor: Predictor) -> None:
        """The state of the prediction, and arrays for intermediate results."""
        extra = _LONG_TAPS if self._adaptive == LONG_FILTERS else ()
        values, errors = ADAPTIVE_VALUES + extra, ADAPTIVE_ERRORS + extra
        inputs, lanes = len(values) + len(errors), len(self._valid)
        # Values and the errors of their predictions, [front % _RING, lane]; filters.
        self._x = np.full((_RING, lanes), float(border * UNIT))
        self._e = np.zeros((_RING, lanes))
        self._w = np.zeros((inputs, lanes), np.int32)

        def offsets(taps: tuple[Tap, ...]) -> list[tuple[int, int]]:
            """(fronts back, lanes on) of neighbours."""
            return [(-(4 * t + 2 * i + j), (2 * t + i) * self._columns + t) for t, i, j in taps]

        self._taps = offsets(predictor.taps)
        self._errors = offsets(ERRORS)
        self._gradients = [(*offsets((p,)), *offsets((q,))) for p, q in GRADIENTS]
        self._adaptive_values = offsets(values)
        self._adaptive_errors = offsets(errors)
        self._needs_slice = np.flatnonzero([t < 0 for t, _, _ in values + errors])

        size = self._columns * min(self._rows, (self._width + 1) // 2)
        self._neighbours = np.zeros((len(self._taps) + len(self._reference_taps), size))
        self._features = np.empty((FEATURES, size))
        self._quotients = np.empty((inputs, size))
        self._inputs = np.empty((inputs, size), np.int32)
        self._blend = np.empty((inputs, size), np.int32)
        self._products = np.empty((inputs, size), np.int32)

    def fronts(self) -> Iterator[Front]:
        """Each front in turn; `put` its values before the next is asked for."""
        for n in range(self._front_count):
            first = max(0, (n - self._width + 2) // 2)
            last = min(n // 2, self._rows - 1)
            a, b = (first + _MARGIN) * self._columns, (last + 1 + _MARGIN) * self._columns
            self._keep_padding(n, a, b)
            if first > last:
                continue
            starting = n % 2 == 0 and last == n // 2
            if starting and self._adaptive:
                self._start_filters(n)
            known = self._valid_lanes.searchsorted((a, b))
            lanes = self._valid_lanes[known[0] : known[1]] - a

            positions = (
                self._reference_origin[known[0] : known[1]] + n if self._references else None
            )
            prediction = self._predict(n, a, b, lanes, positions)
            scale = self._scale(n, a, b)
            if self._adaptive:
                prediction = self._adapt(n, a, b, prediction, scale)
            predicted, around = prediction.take(lanes), scale.take(lanes)
            self._pending = _Pending(n, slice(a, b), lanes, predicted, scale)
            nearest = np.floor((predicted + UNIT // 2) * (1 / UNIT))
            fraction = predicted - nearest * UNIT
            negative = fraction < 0
            context = _octaves(around)
            ratio = _octaves(predicted + 1)
            ratio -= context
            ratio -= MIN_RATIO
            np.maximum(ratio, 0, out=ratio)
            np.minimum(ratio, LEVEL_LIMITS[-1] - MIN_RATIO, out=ratio)
            state = VARIANT_STATES[negative.view(np.int8), ratio]
            context *= UNIT
            state += context
            state += np.abs(fraction).astype(np.int64)
            voxels = self._origin[known[0] : known[1]] + n
            yield Front(voxels, state, nearest, np.where(negative, -1.0, 1.0))
            if starting:
                self._pad_next_rows(n)

    def put(self, values: Float) -> None:
        """The values [m] of the front, in its order."""
        n, active, lanes, prediction, scale = self._pending
        a, b = active.start, active.stop
        above = slice(a - self._columns, b - self._columns)
        x = self._x[(n - 2) % _RING, above] * 1.0
        e = self._e[(n - 2) % _RING, above] * 1.0
        known = values * UNIT
        x[lanes] = known
        known -= prediction
        e[lanes] = known
        self._x[n % _RING, a:b] = x
        self._e[n % _RING, a:b] = e
        if self._adaptive:
            self._learn(a, b, e * self._valid[a:b], scale)

    def _keep_padding(self, n: int, a: int, b: int) -> None:
        """Beyond its ends a row goes on with the value it had on the front before."""
        if n == 0:
            return
        reach = _REACH * self._columns
        for lanes in (slice(a - reach, a), slice(b, b + reach)):
            self._x[n % _RING, lanes] = self._x[(n - 1) % _RING, lanes]
            self._e[n % _RING, lanes] = self._e[(n - 1) % _RING, lanes]

    def _pad_next_rows(self, n: int) -> None:
        """Left of the rows that start two fronts on: the first value of the row above."""
        starting = (n // 2 + _MARGIN) * self._columns
        rows = slice(starting, starting + self._columns)
        below = slice(starting + self._columns, starting + 2 * self._columns)
        self._x[:, below] = self._x[n % _RING, rows]
        self._e[:, below] = self._e[n % _RING, rows]

    def _predict(
        self, n: int, a: int, b: int, voxels: NDArray[np.intp], positions: NDArray[np.intp] | None
    ) -> Float:
        """Least squares, in 16ths, within the range of the values.

        voxels: the lanes, from a on, that hold one; positions: of these in the references.
        """
        neighbours = self._neighbours[:, : b - a]
        for k, (back, on) in enumerate(self._taps):
            neighbours[k] = self._x[(n - back) % _RING, a + on : b + on]
        if positions is not None:
            for k, (r, on) in enumerate(self._reference_taps, len(self._taps)):
                neighbours[k, voxels] = self._references[r].take(positions + on)
        total: Float = self._coefficients[-1] @ neighbours
        for stage in range(min(self._slices, STAGES - 1)):
            lanes = slice(stage + 1, None, self._columns)
            total[lanes] = self._coefficients[stage] @ np.ascontiguousarray(neighbours[:, lanes])
        total += 1 << (COEFFICIENT_BITS - 1)
        total *= 1 / (1 << COEFFICIENT_BITS)
        np.floor(total, out=total)
        np.maximum(total, 0, out=total)
        np.minimum(total, self._span, out=total)
        return total

    def _scale(self, n: int, a: int, b: int) -> Float:
        """1 + the local scale, in 16ths."""
        features = self._features[:, : b - a]
        for k, (back, on) in enumerate(self._errors):
            np.abs(self._e[(n - back) % _RING, a + on : b + on], out=features[k])
        for k, ((back, on), (back_2, on_2)) in enumerate(self._gradients, len(self._errors)):
            one = self._x[(n - back) % _RING, a + on : b + on]
            np.subtract(one, self._x[(n - back_2) % _RING, a + on_2 : b + on_2], out=features[k])
        gradients = features[len(self._errors) :]
        np.abs(gradients, out=gradients)
        scale: Float = self._scale_weights[1] @ features
        lanes = slice(1, None, self._columns)
        scale[lanes] = self._scale_weights[0] @ np.ascontiguousarray(features[:, lanes])
        scale *= 1 / (1 << SCALE_BITS)
        np.floor(scale, out=scale)
        scale += 1
        return scale

    def _start_filters(self, n: int) -> None:
        """A row starts with the filter of the row above, the first one of a slice before."""
        starting = (n // 2 + _MARGIN) * self._columns
        self._w[:, starting : starting + self._columns] = self._w[
            :, starting - self._columns : starting
        ]
        t = n // 4
        if n % 4 == 0 and 0 < t < self._slices:
            lane = starting + t + 1
            self._w[:, lane] = self._w[:, lane - 2 * self._columns - 1]
        self._stand_in(starting, starting + self._columns)

    def _adapt(self, n: int, a: int, b: int, prediction: Float, scale: Float) -> Float:
        """The prediction after the rows' filters, in 16ths."""
        m = b - a
        inputs, blend, products = self._inputs[:, :m], self._blend[:, :m], self._products[:, :m]
        quotients = self._quotients[:, :m]
        for k, (back, on) in enumerate(self._adaptive_values):
            np.subtract(self._x[(n - back) % _RING, a + on : b + on], prediction, out=quotients[k])
        for k, (back, on) in enumerate(self._adaptive_errors, len(self._adaptive_values)):
            quotients[k] = self._e[(n - back) % _RING, a + on : b + on]
        unit = scale + 7
        quotients /= unit * (1 / 64)
        quotients.clip(-INPUT_MAX, INPUT_MAX, out=quotients)
        inputs[...] = quotients  # towards zero
        inputs[self._needs_slice, 1 :: self._columns] = 0

        np.multiply(self._w[:, a:b], 11, out=blend)
        np.multiply(self._w[:, a - self._columns : b - self._columns], 3, out=products)
        blend += products
        back = 2 * self._columns + 1
        np.multiply(self._w[:, a - back : b - back], 2, out=products)
        blend += products
        blend += 8
        blend >>= 4

        np.multiply(blend, inputs, out=products)
        correction: Float = _total(products).astype(np.float64)
        np.maximum(correction, -(1 << 24), out=correction)
        np.minimum(correction, 1 << 24, out=correction)
        correction *= unit
        correction += 1 << 21
        correction *= 1 / (1 << 22)
        np.floor(correction, out=correction)
        correction += prediction
        np.maximum(correction, 0, out=correction)
        np.minimum(correction, self._span, out=correction)
        return correction

    def _learn(self, a: int, b: int, error: Float, scale: Float) -> None:
        """One step of the rows' filters. error: 0 where there is no voxel."""
        m = b - a
        inputs, blend, products = self._inputs[:, :m], self._blend[:, :m], self._products[:, :m]
        error = error / ((scale + 7) * (1 / 64))
        np.maximum(error, -ERROR_MAX, out=error)
        np.minimum(error, ERROR_MAX, out=error)
        np.trunc(error, out=error)
        np.multiply(inputs, inputs, out=products)
        gain = (error * (1 << 24) / (_total(products) + REGULARISATION)).astype(
            np.int32
        )  # towards zero
        np.multiply(inputs, gain, out=products)
        products += 128
        products >>= 8
        blend += products
        blend.clip(_MIN_WEIGHT, _MAX_WEIGHT, out=self._w[:, a:b])
        self._stand_in(a, b)

    def _stand_in(self, a: int, b: int) -> None:
        """Before the first slice a row stands positions the row above it."""
        back = 2 * self._columns
        self._w[:, a - back : b - back : self._columns] = self._w[
            :, a + 1 - self._columns : b - self._columns : self._columns
        ]


def _octaves(values: Float) -> NDArray[np.int64]:
    """Quarter octaves of integers v from 1 on: 4 l + (4 v / 2**l mod 4), 2**l the largest <= v."""
    octaves: NDArray[np.int64] = (values.view(np.int64) >> 50) - (1023 << 2)
    return octaves


def _total(products: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sum over the inputs; below 2**31."""
    total: NDArray[np.int32] = products[0] + products[1]
    for row in products[2:]:
        total += row
    return total
