"""Which row of the shipped probability tables a state stands for."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import TOTAL, ProbabilityTables, normalised

from .fronts import (
    CONTEXTS,
    DISTRIBUTIONS,
    FIRST_COARSE,
    FIRST_COARSE_ROW,
    FIRST_FINE,
    FRACTIONS,
    OCTAVE,
    TOKEN_MAX,
    UNIT,
    VARIANTS,
    shipped,
)

# A probability is multiplied by at most 2**SKEW_OCTAVES.
SKEW_OCTAVES = 4
# The largest bound that has tables of its own.
MAX_WITHIN = 16
# 2**12 * 2**(n / 8).
_EIGHTHS = np.array([4096, 4467, 4871, 5312, 5793, 6317, 6889, 7512], np.int64)
# Predictions farther outside the bound count as this far.
_WITHIN_BEYOND = 4


def skewed_tables(skews: NDArray[np.integer]) -> ProbabilityTables:
    """The tables of "voxel" with every probability times 2**(skew / 8) at its node.

    skews [LEVELS, NODES].
    """
    shipped_tables = shipped()
    voxel = shipped_tables.tables["voxel"]
    scaled = voxel.weights[FIRST_FINE:].astype(np.int64)
    variants = [skews[-1]]
    for skew in skews[:-1]:
        variants += [skew, skew[::-1]]
    blocks = []
    for skew in variants:
        octave, eighth = np.divmod(skew.astype(np.int64), 8)
        factor = (_EIGHTHS[eighth] << SKEW_OCTAVES) >> (SKEW_OCTAVES - octave)
        skewed = scaled.copy()
        skewed[:, :-1] = skewed[:, :-1] * factor[shipped_tables.nodes[FIRST_FINE:]] >> 12
        blocks += [voxel.weights[:FIRST_FINE], normalised(skewed)]
    return ProbabilityTables(np.concatenate(blocks), voxel.low, voxel.octave, VARIANTS)


@cache
def within_tables(within: int) -> ProbabilityTables:
    """Tables for integers within a bound of a known one: "voxel", moved to the prediction and cut.

    Row: (prediction - known integer, both mirrored if the sign is negative) x table index; see
    `within_row`.
    """
    voxel = shipped().tables["voxel"].weights.astype(np.int64)
    indices = np.maximum(np.arange(_within_indices(within)), 1)
    beyond = np.maximum(indices - FIRST_COARSE_ROW, 0)
    row = np.where(indices < FIRST_COARSE_ROW, indices, FIRST_COARSE_ROW + beyond % OCTAVE)[
        None, :, None
    ]
    shift = np.arange(-within - _WITHIN_BEYOND, within + _WITHIN_BEYOND + 1)[:, None, None]
    offset = np.arange(-within, within + 1) - shift
    raw_bits = (beyond // OCTAVE)[None, :, None]
    column = (
        np.clip((offset + ((1 << raw_bits) >> 1)) >> raw_bits, -TOKEN_MAX, TOKEN_MAX) + TOKEN_MAX
    )
    weights = normalised(voxel[row, column].reshape(-1, 2 * within + 1), TOTAL - 1)
    # Nothing is escaped: the last column has the least weight that there is.
    return ProbabilityTables(np.pad(weights, ((0, 0), (0, 1)), constant_values=1), -within, 0)


def _within_indices(within: int) -> int:
    """Table indices that are distinguished; beyond, all integers are about as likely."""
    return FIRST_COARSE_ROW + OCTAVE * (within.bit_length() + 2)


def within_row(
    index: NDArray[np.uint8], shift: NDArray[np.int64], within: int
) -> NDArray[np.uint16]:
    reach = within + _WITHIN_BEYOND
    indices = _within_indices(within)
    position = np.clip(shift, -reach, reach) + reach
    rows: NDArray[np.uint16] = (position * indices + np.minimum(index, indices - 1)).astype(
        np.uint16
    )
    return rows


@cache
def index_of_distribution() -> NDArray[np.uint8]:
    """[DISTRIBUTIONS, 16]: the table index of a distribution.

    By the distance from the prediction to the nearest integer in 16ths, 0 .. 8.
    """
    distribution = np.arange(DISTRIBUTIONS)[:, None]
    fraction = np.minimum(np.arange(UNIT) * FRACTIONS // (UNIT // 2 + 1), FRACTIONS - 1)
    fine = FIRST_FINE + (distribution - FIRST_FINE) * FRACTIONS + fraction
    coarse = distribution - FIRST_COARSE + FIRST_COARSE_ROW
    spiky = distribution + 0 * fraction
    scaled = np.where(distribution < FIRST_COARSE, fine, coarse)
    index = np.where(distribution < FIRST_FINE, spiky, scaled)
    return index.astype(np.uint8)


def index_of_state(distributions: NDArray[np.intp]) -> NDArray[np.uint16]:
    """[VARIANTS * CONTEXTS * 16]: variant * 256 + the table index of each state.

    Contexts without a distribution have that of the last one.
    """
    padded = np.pad(distributions, (0, CONTEXTS - distributions.size), mode="edge")
    index = index_of_distribution()[padded].reshape(-1).astype(np.uint16)
    return (np.arange(VARIANTS, dtype=np.uint16)[:, None] * np.uint16(256) + index).reshape(-1)


@cache
def half_of_index() -> NDArray[np.int32]:
    """[256]: half of 2**k for an index with k raw bits; added to errors, it rounds their tokens."""
    raw_bits = np.maximum(np.arange(256) - FIRST_COARSE_ROW, 0) // OCTAVE
    half: NDArray[np.int32] = ((1 << np.minimum(raw_bits, 24)) >> 1).astype(np.int32)
    return half
