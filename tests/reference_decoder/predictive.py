"""format/predictive.md: slabs of coder 1, voxel by voxel in Python's integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .container import BOUNDED, LOSSLESS, Fields, unzigzag
from .entropy import TOTAL, Run, Tables
from .sections import SampleMap, read_sample_map, store_slab
from .weights import PREDICTIVE, tensors

Tap = tuple[int, int, int]
Context = tuple[int, int, int, int, int]

SQUARE = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))
CROSS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))


def _disc(inner: int, outer: int) -> list[Tap]:
    near = range(-outer, outer + 1)
    return [
        (0, i, j)
        for i in near
        for j in near
        if i <= 0 and j + 2 * i < 0 and inner**2 < i * i + j * j <= outer**2
    ]


def _slice(t: int, offsets: Sequence[tuple[int, int]]) -> list[Tap]:
    return [(t, i, j) for i, j in offsets]


# Neighbours that least squares may use.
CANDIDATES: list[Tap] = [
    *_disc(0, 6),
    *_slice(-1, [*SQUARE, (0, -2), (0, 2), (-2, 0)]),
    *_slice(-2, CROSS),
    *_disc(6, 7),
    *_slice(-1, [(-2, -1), (-2, 1), (-2, -2), (-2, 2), (-1, -2), (-1, 2), (1, -2)]),
    *_slice(-2, [(-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2), (0, 2), (2, 0)]),
]
REFERENCE_CANDIDATES: list[Tap] = [
    *_slice(0, [*SQUARE, (0, -2), (0, 2), (-2, 0), (2, 0)]),
    (-1, 0, 0),
    (1, 0, 0),
]
# The features of the scale: errors of neighbours, and differences of pairs of them.
ERRORS: list[Tap] = [
    *_slice(
        0, [(-2, -1), (-2, 0), (-2, 1), (-1, -2), (-1, -1), (-1, 0), (-1, 1), (0, -2), (0, -1)]
    ),
    *_slice(-1, SQUARE),
]
PAIRS: list[tuple[Tap, Tap]] = [
    ((0, 0, -1), (0, -1, -1)),
    ((0, -1, 0), (0, -1, -1)),
    ((0, -1, 0), (0, -1, 1)),
    ((0, 0, -1), (0, 0, -2)),
    ((0, -1, 0), (0, -2, 0)),
    ((0, 0, -1), (0, -1, 0)),
    *(((-1, 0, 0), (-1, i, j)) for i, j in CROSS[1:]),
]
# The inputs of the adaptive filter: values, then errors; of a long filter more of either.
NEAREST: list[Tap] = [(0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1)]
VALUE_INPUTS: list[Tap] = [*NEAREST, (-1, 0, 0)]
ERROR_INPUTS: list[Tap] = [*NEAREST, (0, 0, -2), (0, -2, 0), (-1, 0, 0)]
LONG_INPUTS: list[Tap] = [(-1, 0, 1), (-1, 0, -1), (-1, 1, 0), (-1, -1, 0)]
NO_FILTER, SHORT_FILTER, LONG_FILTER = 0, 1, 2

# 2**12 * 2**(n / 8).
EIGHTHS = (4096, 4467, 4871, 5312, 5793, 6317, 6889, 7512)


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def quotient(a: int, b: int) -> int:
    """a / b towards zero."""
    return a // b if a >= 0 else -(-a // b)


def quarter_octaves(value: int) -> int:
    octave = value.bit_length() - 1
    return 4 * octave + ((4 * value >> octave) & 3)


@cache
def voxel_weights() -> list[list[int]]:
    weights: list[list[int]] = tensors(PREDICTIVE)["tables.voxel"].tolist()
    return weights


@cache
def shipped_tables() -> dict[str, Tables]:
    return {
        "voxel": Tables(voxel_weights(), -40, 4),
        "byte": Tables(tensors(PREDICTIVE)["tables.byte"].tolist(), 0),
    }


def normalised(weights: Sequence[int], total: int) -> list[int]:
    """Weights from 1 on that sum to the total, the first of the largest raised."""
    whole = [1 + w * (total - len(weights)) // sum(weights) for w in weights]
    whole[whole.index(max(whole))] += total - sum(whole)
    return whole


def skewed_weights(skew: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows of the nine variants of "voxel"; skew [5][33]."""
    nodes = tensors(PREDICTIVE)["tables.place"].tolist()
    variants = [skew[4]]
    for level in skew[:4]:
        variants += [level, level[::-1]]
    rows = []
    for variant in variants:
        factors = [(EIGHTHS[x % 8] << 4) >> (4 - x // 8) for x in variant]
        for number, row in enumerate(voxel_weights()):
            if number < 8:
                rows.append(row)
                continue
            pairs = zip(row[:-1], nodes[number], strict=True)
            scaled = [w * factors[node] >> 12 for w, node in pairs]
            rows.append(normalised([*scaled, row[-1]], TOTAL))
    return rows


def within_rows(bound: int) -> int:
    """Indices that the set "within" tells apart."""
    return 88 + 4 * (2 + bound.bit_length())


def within_weights(bound: int) -> list[list[int]]:
    """The rows of the set "within" of a layer's bound."""
    rows = []
    for z in range(-bound - 4, bound + 5):
        for index in range(within_rows(bound)):
            row, raw = shipped_tables()["voxel"].row_and_raw(max(index, 1)) or (0, 0)
            half = (1 << raw) // 2
            columns = (clamp((u - z + half) >> raw, -40, 40) for u in range(-bound, bound + 1))
            weights = [voxel_weights()[row][column + 40] for column in columns]
            rows.append([*normalised(weights, TOTAL - 1), 1])
    return rows


def index_of(distribution: int, fraction: int) -> int:
    if distribution < 8:
        return distribution
    if distribution < 28:
        return 8 + 4 * (distribution - 8) + 4 * fraction // 9
    return 88 + distribution - 28


def offset_of(distribution: int) -> int:
    return (1 << (distribution - 28) // 4) // 2 if distribution >= 28 else 0


@dataclass(frozen=True)
class Predictor:
    """Taps of the slab and of references (reference, tap), and coefficients [3][taps of both]."""

    taps: Sequence[Tap]
    coefficients: Sequence[Sequence[int]]
    reference_taps: Sequence[tuple[int, Tap]] = ()


@dataclass(frozen=True)
class Side:
    """The side information of a part."""

    low: int
    span: int
    palette: list[int] = field(default_factory=list)
    border: int = 0
    filter: int = NO_FILTER
    snapped: bool = False
    skew: list[list[int]] = field(default_factory=list)
    predictor: Predictor = Predictor((), ())
    distributions: list[int] = field(default_factory=list)

    @property
    def top(self) -> int:
        return len(self.palette) - 1 if self.palette else self.span

    def of_reference(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        inside = np.clip(samples - self.low, 0, self.span)
        if self.palette:
            inside = np.minimum(np.searchsorted(self.palette, inside), self.top)
        return inside


class SideReader:
    """Numbers of the side information."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def bytes(self, count: int) -> list[int]:
        return [clamp(n, 0, 255) for n in self.run.call(shipped_tables()["byte"], [0] * count)]

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.bytes(1)
            value |= (byte & 127) << shift
            if byte < 128:
                break
        return value

    def numbers(self, count: int, distribution: int | None = None) -> list[int]:
        if distribution is None:
            distribution = min(self.bytes(1)[0], 127)
        indices = [index_of(distribution, 0)] * count
        values = self.run.call(shipped_tables()["voxel"], indices)
        return [value - offset_of(distribution) for value in values]

    def side(self, shape: tuple[int, int, int], references: int) -> Side:
        low = clamp(unzigzag(self.number()), -(2**31), 2**31 - 1)
        span = min(self.number(), 2**24 - 1)
        if span == 0:
            return Side(low, span)
        palette = self.palette(min(self.number(), math.prod(shape), span + 1), span)
        border = min(self.number(), len(palette) - 1 if palette else span)
        options = self.number()
        skew = self.skew() if options & 8 else []
        predictor = self.predictor(shape[0], references)
        distributions = self.distributions(clamp(self.number(), 1, 128))
        filter, snapped = min(options & 3, LONG_FILTER), bool(options & 4)
        return Side(low, span, palette, border, filter, snapped, skew, predictor, distributions)

    def palette(self, size: int, span: int) -> list[int]:
        if size < 2:
            return []
        palette = [0]
        for gap in self.numbers(size - 1):
            palette.append(palette[-1] + 1 + clamp(gap, 0, span))
        return [min(value, span) for value in palette]

    def skew(self) -> list[list[int]]:
        steps = [clamp(n, -1024, 1024) for n in self.numbers(5 * 33)]
        levels = (steps[33 * level :][:33] for level in range(5))
        return [[clamp(n, -32, 32) for n in itertools.accumulate(level)] for level in levels]

    def predictor(self, slices: int, references: int) -> Predictor:
        if self.number() == 0:
            shipped = tensors(PREDICTIVE)
            taps = [(t, i, j) for t, i, j in shipped["predictor.taps"].tolist()]
            return Predictor(taps, shipped["predictor.coefficients"].tolist())
        others = [(r, tap) for r in range(references) for tap in REFERENCE_CANDIDATES]
        mask = self.bytes(-(-(len(CANDIDATES) + len(others)) // 8))
        chosen = [bool(mask[m // 8] >> m % 8 & 1) for m in range(len(CANDIDATES) + len(others))]
        taps = [tap for tap, bit in zip(CANDIDATES, chosen, strict=False) if bit]
        reference_taps = list(itertools.compress(others, chosen[len(CANDIDATES) :]))
        coefficients: list[list[int]] = []
        for stage in range(3):
            if stage >= slices:
                coefficients.append(coefficients[-1])
                continue
            sent = [-t <= stage for t, _, _ in taps] + [True] * len(reference_taps)
            values = iter(self.numbers(sum(sent)) if any(sent) else [])
            row = [clamp(next(values), -(2**15), 2**15) if bit else 0 for bit in sent]
            coefficients.append(row)
        return Predictor(taps, coefficients, reference_taps)

    def distributions(self, count: int) -> list[int]:
        last, result = -1, []
        for difference in self.numbers(count, 20):
            last += 1 + clamp(difference, -128, 128)
            result.append(clamp(last, 0, 127))
        return result


class Neighbours:
    """A part's values with the margin that stands for what is beyond it."""

    BEFORE, MARGIN = 2, 8

    def __init__(self, shape: tuple[int, int, int], outside: int) -> None:
        self.slices, self.rows, self.columns = shape
        self.width = self.columns + 2 * self.MARGIN
        self.height = self.rows + self.MARGIN + 3
        self.values = [outside] * ((self.slices + self.BEFORE) * self.height * self.width)

    def position(self, t: int, i: int, j: int) -> int:
        return ((t + self.BEFORE) * self.height + i + self.MARGIN) * self.width + j + self.MARGIN

    def offset(self, tap: Tap) -> int:
        t, i, j = tap
        return (t * self.height + i) * self.width + j

    def put(self, t: int, i: int, j: int, value: int) -> None:
        """A voxel, and its copies beyond the part."""
        margin = self.MARGIN
        self.values[self.position(t, i, j)] = value
        if j == 0:  # The row below has it before its first voxel.
            start = self.position(t, i + 1, -margin)
            self.values[start : start + margin] = [value] * margin
        rows = (i, self.rows) if i == self.rows - 1 else (i,)  # The last row is repeated below.
        for row in rows:
            last = j == self.columns - 1
            start = self.position(t, row, j)
            self.values[start : start + 1 + margin * last] = [value] * (1 + margin * last)


def fronts(shape: tuple[int, int, int]) -> Iterator[list[Tap]]:
    """The voxels (t, i, j) of every front, in the order in which they are coded."""
    slices, height, width = shape
    for n in range(width + 2 * (height - 1) + 4 * (slices - 1)):
        front = [
            (t, s - 2 * t, n - 2 * s)
            for s in range(max(0, (n - width) // 2), n // 2 + 1)
            for t in range(slices)
            if 0 <= s - 2 * t < height and 0 <= n - 2 * s < width
        ]
        if front:
            yield front


@dataclass
class Prediction:
    """What is known of a voxel before it is decoded."""

    context: int  # The context b of its scale.
    nearest: int  # N.
    fraction: int  # φ.
    sign: int  # σ.
    level: int  # The level of skewed tables.
    refined: int  # The prediction after the filter.
    scale: int  # M.
    inputs: list[int]  # u.
    weights: list[int]  # G.

    @property
    def variant(self) -> int:
        return 0 if self.level == 4 else 1 + 2 * self.level + (self.sign < 0)


class PartModel:
    """Predictions of the voxels of a part, and what they learn."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        top: int,
        border: int,
        predictor: Predictor,
        references: Sequence[NDArray[Any]] = (),
        filter: int = SHORT_FILTER,
    ) -> None:
        self.top = 16 * top
        self.x, self.e = Neighbours(shape, 16 * border), Neighbours(shape, 0)
        self.predictor = predictor
        self.references = [np.pad(16 * r, 2, "edge").tolist() for r in references]
        long = LONG_INPUTS if filter == LONG_FILTER else []
        values, errors = VALUE_INPUTS + long, ERROR_INPUTS + long
        self.filter = filter
        self.first_slice_inputs = [tap[0] == 0 for tap in values + errors]
        self.zeros = [0] * len(values + errors)
        self.filters: dict[tuple[int, int], list[int]] = {}
        offset = self.x.offset
        self.taps = [offset(tap) for tap in predictor.taps]
        self.value_inputs = [offset(tap) for tap in values]
        self.error_inputs = [offset(tap) for tap in errors]
        self.errors = [offset(tap) for tap in ERRORS]
        self.pairs = [(offset(one), offset(other)) for one, other in PAIRS]
        self.scale_weights = tensors(PREDICTIVE)["scale.weights"].tolist()

    def predict(self, t: int, i: int, j: int) -> Prediction:
        x, e, at = self.x.values, self.e.values, self.x.position(t, i, j)
        p = self.least_squares(t, i, j)
        features = [abs(e[at + tap]) for tap in self.errors]
        features += [abs(x[at + one] - x[at + other]) for one, other in self.pairs]
        weights = self.scale_weights[min(t, 1)]
        scale = 1 + (sum(w * f for w, f in zip(weights, features, strict=True)) >> 12)
        m = scale + 7
        inputs = filter_weights = self.zeros
        if self.filter:
            differences = [x[at + tap] - p for tap in self.value_inputs]
            differences += [e[at + tap] for tap in self.error_inputs]
            inputs = [clamp(quotient(64 * d, m), -256, 256) for d in differences]
            if t == 0:
                inputs = [u * here for u, here in zip(inputs, self.first_slice_inputs, strict=True)]
            filter_weights = self.mixed_filter(t, i, j)
            q = sum(w * u for w, u in zip(filter_weights, inputs, strict=True))
            p = clamp(p + ((clamp(q, -(2**24), 2**24) * m + 2**21) >> 22), 0, self.top)
        nearest = (p + 8) >> 4
        difference = p - 16 * nearest
        context = quarter_octaves(scale)
        level = sum(limit <= quarter_octaves(p + 1) - context for limit in (0, 3, 5, 8))
        sign = -1 if difference < 0 else 1
        return Prediction(
            context, nearest, abs(difference), sign, level, p, m, inputs, filter_weights
        )

    def least_squares(self, t: int, i: int, j: int) -> int:
        x, at = self.x.values, self.x.position(t, i, j)
        coefficients = self.predictor.coefficients[min(t, 2)]
        total = sum(c * x[at + tap] for c, tap in zip(coefficients, self.taps, strict=False))
        others = coefficients[len(self.taps) :]
        for c, (r, (dt, di, dj)) in zip(others, self.predictor.reference_taps, strict=True):
            total += c * self.references[r][t + dt + 2][i + di + 2][j + dj + 2]
        return clamp((total + 2**12) >> 13, 0, self.top)

    def mixed_filter(self, t: int, i: int, j: int) -> list[int]:
        above = self.filters.get((t, i - 1), self.zeros)
        before = self.filters.get((t - 1, i), self.zeros)
        second = before if t else above
        row = self.filters.get((t, i), self.zeros)
        if j == 0:
            row = above if i else before
        triples = zip(row, above, second, strict=True)
        return [(11 * o + 3 * a + 2 * b + 8) >> 4 for o, a, b in triples]

    def learn(self, voxel: Tap, value: int, predicted: Prediction) -> None:
        """After all voxels of its front are predicted."""
        error = 16 * value - predicted.refined
        self.x.put(*voxel, 16 * value)
        self.e.put(*voxel, error)
        if self.filter:
            inputs = predicted.inputs
            e = clamp(quotient(64 * error, predicted.scale), -128, 128)
            gain = quotient(e << 24, 81920 + sum(u * u for u in inputs))
            self.filters[voxel[:2]] = [
                clamp(w + ((gain * u + 128) >> 8), -(2**18), 2**18)
                for w, u in zip(predicted.weights, inputs, strict=True)
            ]


class PartDecoder:
    """A part, in a run of its own."""

    def __init__(
        self,
        run: Run,
        shape: tuple[int, int, int],
        max_error: int,
        references: Sequence[NDArray[np.int64]],
        within: int,
    ) -> None:
        self.run, self.shape, self.max_error, self.within = run, shape, max_error, within
        self.side = SideReader(run).side(shape, len(references))
        self.references = [self.side.of_reference(reference) for reference in references]
        self.centre = references[0] - self.side.low if within else None
        self.tables, self.block = shipped_tables()["voxel"], [0] * 9
        if within:
            self.tables = Tables(within_weights(within), -within)
        elif any(map(any, self.side.skew)):
            self.tables = Tables(skewed_weights(self.side.skew), -40, 4, variants=9)
            flat = [not any(self.side.skew[4 if v == 0 else (v - 1) // 2]) for v in range(9)]
            self.block = [flat.index(True) if flat[v] else v for v in range(9)]

    def decode(self) -> NDArray[np.int64]:
        side = self.side
        if side.span == 0:
            return np.full(self.shape, side.low, np.int64)
        model = PartModel(
            self.shape, side.top, side.border, side.predictor, self.references, side.filter
        )
        decoded = np.empty(self.shape, np.int64)
        for front in fronts(self.shape):
            predictions = [model.predict(*voxel) for voxel in front]
            values = self.values(front, predictions)
            for voxel, value, predicted in zip(front, values, predictions, strict=True):
                model.learn(voxel, value, predicted)
                decoded[voxel] = value
        if side.palette:
            decoded = np.array(side.palette)[decoded]
        return decoded + side.low

    def values(self, front: list[Tap], predictions: list[Prediction]) -> list[int]:
        """One call: the values of a front."""
        side, ends = self.side, self.side.distributions
        distributions = [ends[min(p.context, len(ends) - 1)] for p in predictions]
        fractions = [0 if self.max_error else p.fraction for p in predictions]
        indices = list(map(index_of, distributions, fractions))
        if self.centre is not None:
            return self.values_within(front, predictions, indices)
        if self.tables.variants > 1:
            blocks = (self.block[p.variant] for p in predictions)
            indices = [256 * block + index for block, index in zip(blocks, indices, strict=True)]
        values = []
        coded = self.run.call(self.tables, indices)
        for p, distribution, value in zip(predictions, distributions, coded, strict=True):
            nearest = p.nearest
            if side.snapped and nearest <= self.max_error:
                nearest = 0
            step = p.sign * (2 * self.max_error + 1)
            values.append(clamp(nearest + step * (value - offset_of(distribution)), 0, side.top))
        return values

    def values_within(
        self, front: list[Tap], predictions: list[Prediction], indices: list[int]
    ) -> list[int]:
        """Over a bounded layer."""
        assert self.centre is not None
        reach, count, rows = self.within + 4, within_rows(self.within), []
        centres = [int(self.centre[voxel]) for voxel in front]
        for p, centre, index in zip(predictions, centres, indices, strict=True):
            z = clamp(p.sign * (p.nearest - centre), -reach, reach)
            rows.append(count * (z + reach) + min(index, count - 1))
        coded = self.run.call(self.tables, rows)
        triples = zip(centres, predictions, coded, strict=True)
        return [clamp(centre + p.sign * u, 0, self.side.top) for centre, p, u in triples]


def decode_part(
    data: bytes,
    shape: tuple[int, int, int],
    max_error: int,
    references: Sequence[NDArray[np.int64]] = (),
    within: int = 0,
) -> NDArray[np.int64]:
    """Samples [K, H, W]; references of the same shape; within: the bound of a layer, 0 for none."""
    slices, height, width = shape
    voxels = math.prod(shape)
    side = math.isqrt(voxels - 1) + 1
    folded = shape
    if width + 2 * height + 4 * slices > 8 * side:
        folded = (1, -(-voxels // side), side)
    missing = math.prod(folded) - voxels
    known = [np.pad(r.reshape(-1), (0, missing), "edge").reshape(folded) for r in references]
    run = Run(data)
    decoded = PartDecoder(run, folded, max_error, known, within).decode()
    run.end()
    return decoded.reshape(-1)[:voxels].reshape(shape)


@dataclass(frozen=True)
class Parameters:
    """HEAD.params of coder 1."""

    sample_map: SampleMap
    chain: int
    max_error: int


def read_parameters(params: bytes, voxel_type: str, mode: int, coder: int) -> Parameters:
    fields = Fields(params)
    sample_map, chain, max_error = read_sample_map(fields, voxel_type, coder), fields.varint(), 0
    if mode == BOUNDED:
        max_error = fields.varint()
        fields.numbers("df")
    elif mode != LOSSLESS:
        raise ValueError(f"expected a lossless or bounded stream of coder 1, found mode {mode}")
    fields.end()
    return Parameters(sample_map, chain, max_error)


def decode_slab(
    payload: bytes,
    shape: tuple[int, int, int],
    parameters: Parameters,
    references: Sequence[NDArray[np.int64]] = (),
    within: int = 0,
) -> NDArray[Any]:
    """A SLAB of coder 1 -> voxels [K, J, I]."""
    sample_map = parameters.sample_map
    dtype = np.dtype(sample_map.voxel_type)
    fields, voxels = Fields(payload), math.prod(shape)
    method = fields.u8()
    if method == 1:
        content = store_slab(fields.rest(), voxels, dtype.itemsize)
        return np.frombuffer(content, dtype.newbyteorder("<")).reshape(shape)
    if method != 0:
        raise ValueError(f"expected a slab of method 0 or 1, found {method}")
    low = read_low_bits(fields, voxels, sample_map.low_bits) if sample_map.low_bits else None
    parts = fields.varint()
    if not 1 <= parts <= shape[0]:
        raise ValueError(f"expected 1 to {shape[0]} parts, found {parts}")
    sizes = [fields.varint() for _ in range(parts - 1)]
    runs = [*(fields.take(size) for size in sizes), fields.rest()]
    edges = [part * shape[0] // parts for part in range(parts + 1)]
    decoded = [
        decode_part(
            run,
            (stop - start, *shape[1:]),
            parameters.max_error,
            [reference[start:stop] for reference in references],
            within,
        )
        for run, (start, stop) in zip(runs, itertools.pairwise(edges), strict=True)
    ]
    return sample_map.voxels(np.concatenate(decoded), low)


def read_low_bits(fields: Fields, voxels: int, bits: int) -> list[int]:
    """The lower bits of all voxels, with a sample map of kind 5."""
    size = -(-bits // 8)
    if fields.u8() == 1:
        content = store_slab(fields.take(fields.varint()), voxels, size)
        return [
            int.from_bytes(content[n : n + size], "little") for n in range(0, len(content), size)
        ]
    whole = int.from_bytes(fields.take(-(-voxels * bits // 8)), "little")
    return [whole >> n * bits & (1 << bits) - 1 for n in range(voxels)]
