"""The encoder's choices for a slab of the lossless coder: palette, border, predictor, tables.

A decoder takes any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fronts import (
    CANDIDATES,
    COEFFICIENT_BITS,
    CONTEXTS,
    DISTRIBUTIONS,
    FIRST_COARSE,
    FIRST_COARSE_ROW,
    FIRST_FINE,
    LEVELS,
    NEAR_CANDIDATES,
    NODES,
    OCTAVE,
    REFERENCE_CANDIDATES,
    ROWS,
    STAGES,
    TOKEN_MAX,
    VARIANTS,
    Predictor,
    Tap,
    shipped,
)
from .tables import index_of_distribution

if TYPE_CHECKING:
    from .prediction import Predicted

Float = NDArray[np.float64]

# Voxels that a predictor is fitted to.
ROWS_FITTED = 30_000
# Voxels by which the weights of the fit are estimated.
ROWS_WEIGHED = 8_000
# Voxels by which filters are compared.
ROWS_COMPARED = 300_000
# Voxels by which distributions are chosen, and of a context at most.
ROWS_SORTED = 400_000
ROWS_COUNTED = 6_000
# Size of a matrix product up to which OpenBLAS uses one thread.
PRODUCTS_ALONE = 1 << 18
# Slabs with fewer voxels take the shipped predictor.
SMALL = 1 << 12
# Bits of a coefficient in the stream.
COEFFICIENT_COST = 12
# Bits per voxel that a neighbour must save, for the time it takes.
TAP_COST = 1e-4
# Share of voxels from which on the least value counts as background.
BACKGROUND = 0.02
# Errors that skews are counted from.
SKEW_ERRORS = 200_000
MAX_SKEW = 32
# Bits of the skew of a level in the stream.
SKEW_COST = 150
# Bits per voxel that the skew of a level must save, for the time it takes.
SKEW_TIME = 5e-4
# Packing is tried if fewer than this share of the values occur.
PALETTE_BELOW = 0.75


@dataclass(frozen=True)
class FitOptions:
    """How a predictor is fitted."""

    centre: bool = True  # Whether the voxel of a reference at the same position is a neighbour.
    tap_cost: float = TAP_COST  # Bits per voxel that a neighbour must save.
    rows: int = ROWS_FITTED  # Voxels of the sample.
    far: bool = False  # Whether all CANDIDATES are tried.


DEFAULT_FIT = FitOptions()


def choose_border(slab: NDArray[np.int32]) -> int:
    """Value beyond the slab [K, H, W]: the median of its first rows and first columns."""
    return int(np.median(np.concatenate([slab[:, :1].ravel(), slab[:, :, :1].ravel()])))


def choose_palette(slab: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """The values that occur, if coding their ranks promises to be shorter.

    Judged by differences of neighbours in a row: the mean of log2(1 + abs(difference)) of values
    and of ranks.
    """
    occurs = np.zeros(int(slab.max()) + 1, bool)
    occurs[slab] = True
    palette = np.flatnonzero(occurs)
    if palette.size >= PALETTE_BELOW * (int(palette[-1]) + 1) or palette.size < 2:
        return None
    part = slab[:: -(-len(slab) // 4)]
    saved = _roughness(part) - _roughness(palette.searchsorted(part))
    cost = palette.size * (2 + np.log2((int(palette[-1]) + 1) / palette.size))
    return palette.astype(np.int32) if saved * slab.size > cost else None


def _roughness(slab: NDArray[np.integer]) -> float:
    """Bits per voxel, about."""
    steps = np.abs(np.diff(slab.reshape(-1).astype(np.float64)))
    return float(np.log2(1 + steps).mean()) if steps.size else 0.0


def has_background(slab: NDArray[np.int32]) -> bool:
    """Whether the least value is common enough to be one."""
    return bool(np.count_nonzero(slab == 0) >= BACKGROUND * slab.size)


def fit_predictor(
    slab: NDArray[np.int32],
    target: NDArray[np.int32] | None = None,
    *,
    references: Sequence[NDArray[np.int32]] = (),
    options: FitOptions = DEFAULT_FIT,
) -> Predictor:
    """Weighted least squares on a sample of a slab [K, H, W], for the neighbours that are worth it.

    target: what is predicted, if it is not the slab; references: arrays of its shape that are
    known.
    """
    if slab.size < SMALL:
        return shipped().predictor
    target = slab if target is None else target
    slices = len(slab)
    last = min(slices, STAGES) - 1
    tried = CANDIDATES if options.far else CANDIDATES[:NEAR_CANDIDATES]
    candidates = [tap for tap in tried if -tap[0] <= last]
    allowed = [tap for tap in REFERENCE_CANDIDATES if options.centre or tap != (0, 0, 0)]
    reference_candidates = [(r, tap) for r in range(len(references)) for tap in allowed]
    random = np.random.default_rng(0)
    data = Data(slab, target, references, reference_candidates, options.rows)
    information, moment = normal_equations(data, candidates, last, slices, random)
    chosen = _worthwhile(information, moment, COEFFICIENT_COST + options.tap_cost * slab.size)
    taps = tuple(candidates[k] for k in chosen if k < len(candidates))
    first = len(candidates)
    reference_taps = tuple(reference_candidates[k - first] for k in chosen if k >= first)
    data = data._replace(reference_taps=reference_taps)
    coefficients = np.zeros((STAGES, len(chosen)))
    coefficients[last:] = _solve(information[np.ix_(chosen, chosen)], moment[chosen])
    for stage in range(last):
        usable = [k for k, tap in enumerate(taps) if -tap[0] <= stage]
        stage_taps = [taps[k] for k in usable]
        usable += range(len(taps), len(chosen))
        information, moment = normal_equations(data, stage_taps, stage, stage + 1, random)
        coefficients[stage, usable] = _solve(information, moment)
    return Predictor(taps, whole_coefficients(coefficients), reference_taps)


class Data(NamedTuple):
    """What a predictor is fitted to."""

    slab: NDArray[np.int32]  # The known voxels [K, H, W].
    target: NDArray[np.int32]  # The predicted ones.
    references: Sequence[NDArray[np.int32]] = ()
    reference_taps: Sequence[tuple[int, Tap]] = ()
    rows: int = ROWS_FITTED  # Voxels of the sample.


def whole_coefficients(coefficients: Float) -> NDArray[np.int32]:
    """As they are sent."""
    limit = (1 << 15) - 1
    return np.clip(np.rint(coefficients * (1 << COEFFICIENT_BITS)), -limit, limit).astype(np.int32)


def normal_equations(
    data: Data, taps: list[Tap], start: int, stop: int, random: np.random.Generator
) -> tuple[Float, Float]:
    """Information [T, T] and moment [T] of a sample of the voxels of slices start .. stop - 1.

    Weights are 1 / (expected error * (half the expected error + the residual)), the expected error
    from the gradients around the voxel, so that noise and edges count alike and the information is
    in nats.
    """
    x, a, spread, per_sample = _sample(data, taps, start, stop, random)
    part = slice(
        None, None, -(-x.size // max(ROWS_WEIGHED, 10 * len(a.T)))
    )  # enough to find the weights
    weights = np.ones(x.size)
    for _ in range(2):
        information, moment = _weighted(a[part], x[part], weights[part])
        residual: Float = np.abs(x - _times(a, _solve(information, moment)))
        expected = (
            0.8 * spread * (residual.sum() / max(spread.sum(), 1e-9)) + 0.2 * residual.mean() + 0.1
        )
        weights = np.reciprocal(expected * (0.5 * expected + residual))
    information, moment = _weighted(a, x, weights)
    return information * per_sample, moment * per_sample


_PAD = max(max(abs(i), abs(j)) for _, i, j in CANDIDATES)


def _sample(
    data: Data, taps: list[Tap], start: int, stop: int, random: np.random.Generator
) -> tuple[Float, Float, Float, float]:
    """Some voxels [n], neighbours [n, T], gradients around them [n], and voxels per sample."""
    slab = data.slab
    padding = ((2, 1), (_PAD, _PAD), (_PAD, _PAD))
    padded = np.pad(slab, padding, mode="edge")
    _, rows, columns = padded.shape
    _, height, width = slab.shape
    voxels = (stop - start) * height * width
    position = np.arange(voxels) if voxels <= data.rows else random.integers(0, voxels, data.rows)
    t, rest = np.divmod(position, height * width)
    i, j = np.divmod(rest, width)
    origin = ((t + start + 2) * rows + i + _PAD) * columns + j + _PAD
    flat = padded.reshape(-1)

    def neighbour(tap: Tap, of: NDArray[np.int32] = flat) -> Float:
        values: Float = of[origin + (tap[0] * rows + tap[1]) * columns + tap[2]].astype(np.float64)
        return values

    padded_references = [
        np.pad(reference, padding, mode="edge").reshape(-1) for reference in data.references
    ]
    a = np.empty((len(taps) + len(data.reference_taps), position.size))
    for row, tap in zip(a, taps, strict=False):
        row[:] = neighbour(tap)
    for row, (r, tap) in zip(a[len(taps) :], data.reference_taps, strict=True):
        row[:] = neighbour(tap, padded_references[r])
    target = data.target.reshape(-1)[position + start * height * width].astype(np.float64)
    west, north, north_west, north_east = (
        neighbour((0, *o)) for o in ((0, -1), (-1, 0), (-1, -1), (-1, 1))
    )
    spread: Float = (
        np.abs(west - north_west) + np.abs(north - north_west) + np.abs(north - north_east)
    )
    spread += np.abs(west - neighbour((0, 0, -2))) + np.abs(north - neighbour((0, -2, 0)))
    return target, a.T, spread, voxels / position.size


def _weighted(a: Float, x: Float, weights: Float) -> tuple[Float, Float]:
    scaled = a * weights[:, None]
    information, moment = np.zeros((a.shape[1], a.shape[1])), np.zeros(a.shape[1])
    for part in _parts(a):
        information += scaled[part].T @ a[part]
        moment += scaled[part].T @ x[part]
    ridge = np.diag(information) * 1e-6 + 1e-3 * weights.mean()
    return information + np.diag(ridge), moment


def _times(a: Float, coefficients: Float) -> Float:
    return np.concatenate([a[part] @ coefficients for part in _parts(a)])


def _parts(a: Float) -> list[slice]:
    """Some rows at a time, so few that OpenBLAS starts no threads besides the workers."""
    size = max(1, PRODUCTS_ALONE // max(a.shape[1], 1) ** 2)
    return [slice(first, first + size) for first in range(0, len(a), size)]


def _solve(information: Float, moment: Float) -> Float:
    return np.asarray(np.linalg.solve(information, moment), np.float64)


def _worthwhile(information: Float, moment: Float, cost: float) -> list[int]:
    """Backward elimination: the neighbours each of which saves its cost in bits."""
    chosen = list(range(moment.size))
    while chosen:
        covariance = np.linalg.inv(information[np.ix_(chosen, chosen)])
        coefficients = covariance @ moment[chosen]
        saved = coefficients**2 / np.diag(covariance) * (0.5 / np.log(2))
        poor = [k for k in np.argsort(saved) if saved[k] < cost]
        if not poor:
            break
        dropped = set(poor[: max(1, len(poor) // 4)])
        chosen = [tap for k, tap in enumerate(chosen) if k not in dropped]
    return chosen


def choose_skews(index: NDArray[np.uint16], error: NDArray[np.int32]) -> NDArray[np.int32]:
    """Skews of the tables [LEVELS, NODES], from errors [n] and their `tables.index_of_state`.

    The logarithm of the frequency of a node over its probability; 0 for a level where that saves
    less than it costs.
    """
    step = -(-error.size // SKEW_ERRORS)
    index, error = index[::step], error[::step].astype(np.int64)
    table, variant = (index & 255).astype(np.intp), (index >> 8).astype(np.intp)
    beyond = np.maximum(table - FIRST_COARSE_ROW, 0)
    row = np.where(table < FIRST_COARSE_ROW, table, FIRST_COARSE_ROW + beyond % OCTAVE)
    shift = beyond // OCTAVE
    token = (error + ((1 << shift) >> 1)) >> shift
    known = (row >= FIRST_FINE) & (np.abs(token) <= TOKEN_MAX)
    row, variant = row[known], variant[known]
    node = shipped().nodes[row, token[known] + TOKEN_MAX].astype(np.intp)
    met = (
        np.bincount(variant * NODES + node, minlength=VARIANTS * NODES)
        .reshape(VARIANTS, NODES)
        .astype(np.float64)
    )
    used = np.bincount(variant * ROWS + row, minlength=VARIANTS * ROWS).reshape(VARIANTS, ROWS)
    skews = np.zeros((LEVELS, NODES), np.int32)
    for level in range(LEVELS):
        # Both signs in the direction of positive ones; of one variant, both directions alike.
        one, other = (0, 0) if level == LEVELS - 1 else (1 + 2 * level, 2 + 2 * level)
        frequency = met[one] + met[other][::-1]
        expected = used[one] @ _masses() + (used[other] @ _masses())[::-1]
        share = 16 * expected / max(expected.sum(), 1)
        skew = np.clip(
            np.rint(8 * np.log2((frequency + share + 1e-9) / (expected + share + 1e-9))),
            -MAX_SKEW,
            MAX_SKEW,
        )
        whole = max(expected @ 2 ** (skew / 8), 1e-9) / max(expected.sum(), 1e-9)
        saved = step * (frequency @ skew / 8 - frequency.sum() * np.log2(whole))
        if saved * (0.5 if one == other else 1.0) > SKEW_COST + SKEW_TIME * step * error.size:
            skews[level] = skew
    return skews


@cache
def _masses() -> Float:
    """[ROWS, NODES]: the probabilities of the nodes."""
    weights = shipped().tables["voxel"].weights[:, :-1] / 2**24
    masses = np.zeros((ROWS, NODES))
    for row in range(FIRST_FINE, ROWS):
        masses[row] = np.bincount(shipped().nodes[row], weights[row], minlength=NODES)
    return masses


def bits(predicted: Predicted, distributions: NDArray[np.intp]) -> float:
    """About how many bits the errors of a slab take with these distributions, from a sample."""
    step = -(-predicted.error.size // ROWS_COMPARED)
    state, error = predicted.state[::step].astype(np.intp), predicted.error[::step]
    distribution = distributions[np.minimum((state >> 4) % CONTEXTS, distributions.size - 1)]
    masks = [distribution == k for k in range(1, DISTRIBUTIONS)]
    return step * sum(
        cost(k, state[mask] & 15, error[mask]) for k, mask in enumerate(masks, 1) if mask.any()
    )


def choose_distributions(state: NDArray[np.integer], error: NDArray[np.int32]) -> NDArray[np.intp]:
    """The distribution of each context up to the last that occurs, from states and errors [n]."""
    step = -(-error.size // ROWS_SORTED)
    context = (state >> 4).astype(np.uint8) % CONTEXTS
    met = np.bincount(context, minlength=CONTEXTS)
    without_error = np.bincount(context[error != 0], minlength=CONTEXTS) == 0
    distributions = np.zeros(int(context.max()) + 1, np.intp)
    state, error, context = state[::step], error[::step], context[::step]
    order = np.argsort(context, kind="stable")
    ends = np.cumsum(np.bincount(context, minlength=CONTEXTS)).tolist()
    for b, (start, end) in enumerate(pairwise((0, *ends[: distributions.size]))):
        if met[b] and without_error[b]:
            continue  # distribution 0
        if start == end:
            distributions[b] = distributions[b - 1] + 1 if b else 1
            continue
        positions = order[start : end : -(-(end - start) // ROWS_COUNTED)]
        distributions[b] = _best_distribution(
            (state[positions] & 15).astype(np.intp), error[positions]
        )
    return np.minimum(distributions, DISTRIBUTIONS - 1)


def _best_distribution(fraction: NDArray[np.intp], error: NDArray[np.int32]) -> int:
    scale = 1.2 * float(np.abs(error - fraction / 16).mean())
    about = FIRST_FINE + round(OCTAVE * (np.log2(max(scale, 2.0**-9)) + 3))
    low = 1 if about < FIRST_FINE + OCTAVE else about - 3
    tried = range(low, min(max(about + 3, FIRST_FINE + OCTAVE), DISTRIBUTIONS))
    return min(tried, key=lambda distribution: cost(distribution, fraction, error))


def cost(distribution: int, fraction: NDArray[np.intp], error: NDArray[np.int32]) -> float:
    """Bits for the errors."""
    shift = max(distribution - FIRST_COARSE, 0) // OCTAVE
    index = index_of_distribution()[distribution]
    row = np.where(
        index < FIRST_COARSE_ROW, index, FIRST_COARSE_ROW + (distribution - FIRST_COARSE) % OCTAVE
    )
    token = np.clip((error + ((1 << shift) >> 1)) >> shift, -TOKEN_MAX - 1, TOKEN_MAX + 1)
    escaped = np.abs(token) > TOKEN_MAX
    column = np.where(escaped, 2 * TOKEN_MAX + 1, token + TOKEN_MAX)
    bits = _bits()[row[fraction], column].sum() + shift * (error.size - np.count_nonzero(escaped))
    whole = np.abs(error[escaped]).astype(np.float64)
    return float(bits + np.sum(8 + np.floor(np.log2(np.maximum(2 * whole, 1)))))


@cache
def _bits() -> Float:
    """[rows, columns]: what a symbol of a table costs."""
    bits: Float = 24 - np.log2(shipped().tables["voxel"].weights)
    return bits
