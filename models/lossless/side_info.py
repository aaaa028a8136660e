"""What a slab of the predictive coder sends before its voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import SymbolCoder, unzigzag, zigzag

from .fronts import (
    CANDIDATES,
    CONTEXTS,
    DISTRIBUTIONS,
    FILTERS,
    FIRST_FINE,
    LEVELS,
    LONG_FILTERS,
    NODES,
    OCTAVE,
    REFERENCE_CANDIDATES,
    STAGES,
    Predictor,
    shipped,
)
from .tables import SKEW_OCTAVES, half_of_index, index_of_distribution

# Largest difference between values of a slab.
MAX_SPAN = (1 << 24) - 1
# The distribution of differences between distributions: a scale of 1.
STEP_DISTRIBUTION = FIRST_FINE + 3 * OCTAVE
NO_SKEWS = np.zeros((LEVELS, NODES), np.int32)
NO_PREDICTOR = Predictor((), np.zeros((STAGES, 0), np.int32))


@dataclass(frozen=True, eq=False)
class Side:
    """Side information of a slab."""

    low: int  # The least value.
    span: int  # The largest value minus the least.
    # The values that occur, minus the least; their ranks are coded. None: values are coded.
    palette: NDArray[np.int32] | None = None
    border: int = 0  # The value beyond the slab.
    filters: int = FILTERS  # The adaptive filters of the rows.
    snap: bool = False  # Whether predictions within the bound of the least value are taken for it.
    # [LEVELS, NODES]: factors of the tables, in eighths of an octave.
    skews: NDArray[np.int32] = field(default_factory=lambda: NO_SKEWS)
    predictor: Predictor = NO_PREDICTOR
    # The distribution of each context.
    distributions: NDArray[np.intp] = field(default_factory=lambda: np.zeros(1, np.intp))

    @property
    def largest(self) -> int:
        """Largest value or rank that is coded."""
        return self.span if self.palette is None else self.palette.size - 1

    def ranks(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """Any values, such as a reference's -> the nearest that are coded.

        With a palette the next above.
        """
        inside = np.clip(values.astype(np.int64) - self.low, 0, self.span).astype(np.int32)
        if self.palette is None:
            return inside
        return np.minimum(self.palette.searchsorted(inside), self.largest).astype(np.int32)

    def values(self, ranks: NDArray[np.int32]) -> NDArray[np.int32]:
        """The inverse, for what is coded."""
        return (ranks if self.palette is None else self.palette[ranks]) + np.int32(self.low)


def code_side_information(
    coder: SymbolCoder, shape: tuple[int, ...], side: Side | None, references: int
) -> Side:
    """Code `side`, or decode it if it is None, for a slab of this shape."""
    numbers = _Numbers(coder)
    low = numbers.signed(None if side is None else side.low)
    span = min(numbers.unsigned(None if side is None else side.span), MAX_SPAN)
    if span == 0:
        return Side(low, span)
    palette = _palette(numbers, math.prod(shape), span, side)
    largest = span if palette is None else palette.size - 1
    border = min(numbers.unsigned(None if side is None else side.border), largest)
    options = numbers.unsigned(
        None if side is None else side.filters + 4 * side.snap + 8 * bool(side.skews.any())
    )
    skews = _skews(numbers, None if side is None else side.skews) if options & 8 else NO_SKEWS
    predictor = _predictor(numbers, shape[0], None if side is None else side.predictor, references)
    distributions = _distributions(numbers, None if side is None else side.distributions)
    return Side(
        low,
        span,
        palette,
        border,
        min(options & 3, LONG_FILTERS),
        bool(options & 4),
        skews,
        predictor,
        distributions,
    )


def _palette(
    numbers: _Numbers, voxels: int, span: int, side: Side | None
) -> NDArray[np.int32] | None:
    source = None if side is None else side.palette
    size = numbers.unsigned(None if side is None else 0 if source is None else source.size)
    size = min(size, voxels, span + 1)
    if size < 2:
        return None
    gaps = numbers.many(size - 1, None if source is None else np.diff(source) - 1)
    palette = np.concatenate(([0], np.cumsum(np.clip(gaps, 0, span) + 1)))
    return np.minimum(palette, span).astype(np.int32)


def _predictor(
    numbers: _Numbers, slices: int, source: Predictor | None, references: int
) -> Predictor:
    """0 for the shipped one; else 1, a bit for each candidate, then coefficients by stage."""
    default = shipped().predictor
    if numbers.unsigned(None if source is None else int(source is not default)) == 0:
        return default
    reference_candidates = [(r, tap) for r in range(references) for tap in REFERENCE_CANDIDATES]
    mask = None
    if source is not None:
        there = [tap in source.taps for tap in CANDIDATES] + [
            tap in source.reference_taps for tap in reference_candidates
        ]
        mask = np.packbits(there, bitorder="little")
    count = len(CANDIDATES) + len(reference_candidates)
    mask = numbers.raw(-(-count // 8), mask).astype(np.uint8)
    chosen = np.unpackbits(mask, count=count, bitorder="little")
    taps = tuple(tap for tap, taken in zip(CANDIDATES, chosen, strict=False) if taken)
    reference_taps = tuple(
        tap
        for tap, taken in zip(reference_candidates, chosen[len(CANDIDATES) :], strict=True)
        if taken
    )
    coefficients = np.zeros((STAGES, len(taps) + len(reference_taps)), np.int32)
    needed = np.array([-t for t, _, _ in taps] + [0] * len(reference_taps))
    for stage in range(min(slices, STAGES)):
        there_now = needed <= stage
        size = int(there_now.sum())
        if size:
            sent = numbers.many(
                size, None if source is None else source.coefficients[stage, there_now]
            )
            coefficients[stage, there_now] = np.clip(sent, -(1 << 15), 1 << 15)
    coefficients[slices:] = coefficients[min(slices, STAGES) - 1]
    return Predictor(taps, coefficients, reference_taps)


def _distributions(numbers: _Numbers, source: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Each as its difference from one more than the one before."""
    count = max(1, min(numbers.unsigned(None if source is None else source.size), CONTEXTS))
    steps = None if source is None else np.diff(source, prepend=-1) - 1
    steps = np.clip(numbers.many(count, steps, STEP_DISTRIBUTION), -DISTRIBUTIONS, DISTRIBUTIONS)
    distributions: NDArray[np.intp] = np.clip(
        np.cumsum(steps + 1) - 1, 0, DISTRIBUTIONS - 1
    ).astype(np.intp)
    return distributions


def _skews(numbers: _Numbers, source: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """Each as its difference from the one before, level by level."""
    steps = None if source is None else np.diff(source, axis=1, prepend=0).reshape(-1)
    coded = np.clip(numbers.many(LEVELS * NODES, steps), -1024, 1024).reshape(LEVELS, NODES)
    limit = 8 * SKEW_OCTAVES
    return np.clip(np.cumsum(coded, axis=1), -limit, limit).astype(np.int32)


class _Numbers:
    """Integers of the side information; each call returns the numbers it codes or decodes.

    source: the numbers to encode, None to decode.
    """

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder = coder

    def raw(self, n: int, source: NDArray[Any] | None) -> NDArray[np.int64]:
        """n numbers below 256."""
        values = None if source is None else source.astype(np.int64)[None]
        coded: NDArray[np.int64] = self._coder.code(
            shipped().tables["byte"], np.zeros((1, n), np.uint8), values
        )[0]
        return np.clip(coded, 0, 255)

    def unsigned(self, source: int | None) -> int:
        """LEB128, below 2**35."""
        value = 0
        for group in range(5):
            byte = None
            if source is not None:
                rest = source >> (7 * group)
                byte = np.array([rest & 127 | (128 if rest > 127 else 0)])
            coded = int(self.raw(1, byte)[0])
            value |= (coded & 127) << (7 * group)
            if coded < 128:
                break
        return value

    def signed(self, source: int | None) -> int:
        """Zigzag, of 32 bits."""
        value = unzigzag(self.unsigned(None if source is None else zigzag(source)))
        return max(-(1 << 31), min(value, (1 << 31) - 1))

    def many(
        self, n: int, source: NDArray[Any] | None, distribution: int | None = None
    ) -> NDArray[np.int64]:
        """n numbers with the tables of a distribution, which is coded first if it is None."""
        if distribution is None:
            distribution = int(
                self.raw(1, None if source is None else np.array([distribution_for(source)]))[0]
            )
        index = np.full((1, n), index_of_distribution()[min(distribution, DISTRIBUTIONS - 1), 0])
        half = half_of_index()[index]
        coded: NDArray[np.int64] = self._coder.code(
            shipped().tables["voxel"],
            index,
            None if source is None else source.astype(np.int64) + half,
        )
        numbers: NDArray[np.int64] = coded[0] - half[0]
        return numbers


def distribution_for(values: NDArray[Any]) -> int:
    """The distribution whose scale is that of the values."""
    scale = max(1.2 * float(np.abs(values).mean()), 0.25)
    return min(FIRST_FINE + round(OCTAVE * (math.log2(scale) + 3)), DISTRIBUTIONS - 1)
