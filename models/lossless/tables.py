"""Which row of the shipped probability tables a context stands for."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import TOTAL, ProbabilityTables, normalised

from .fronts import (
    BUCKETS,
    FIRST_COARSE,
    FIRST_COARSE_ROW,
    FIRST_FINE,
    FRACTIONS,
    HEAD_MAX,
    KINDS,
    OCTAVE,
    UNIT,
    VARIANTS,
    shipped,
)

# 2**12 times 2**(n / 8)
TILT_OCTAVES = 4  # a probability is multiplied by at most 2**4
_EIGHTHS = np.array([4096, 4467, 4871, 5312, 5793, 6317, 6889, 7512], np.int64)


def tilted_tables(tilts: NDArray[np.integer]) -> ProbabilityTables:
    """The tables of "voxel" with every probability times 2**(tilt / 8) at its node; tilts [LEVELS, NODES]."""
    shipped_tables = shipped()
    voxel = shipped_tables.tables["voxel"]
    scaled = voxel.weights[FIRST_FINE:].astype(np.int64)
    variants = [tilts[-1]]
    for tilt in tilts[:-1]:
        variants += [tilt, tilt[::-1]]
    blocks = []
    for tilt in variants:
        octave, eighth = np.divmod(tilt.astype(np.int64), 8)
        factor = (_EIGHTHS[eighth] << TILT_OCTAVES) >> (TILT_OCTAVES - octave)
        tilted = scaled.copy()
        tilted[:, :-1] = tilted[:, :-1] * factor[shipped_tables.places[FIRST_FINE:]] >> 12
        blocks += [voxel.weights[:FIRST_FINE], normalised(tilted)]
    return ProbabilityTables(np.concatenate(blocks), voxel.low, voxel.octave, VARIANTS)


MAX_WITHIN = 16  # the largest bound that has tables of its own
_WITHIN_BEYOND = 4  # predictions farther outside count as these


@cache
def within_tables(within: int) -> ProbabilityTables:
    """Tables for integers within so much of a known one: those of "voxel", moved to the prediction and cut off.

    Row: (prediction less the known one, both mirrored if the sign is negative) x table index; see `_within_row`.
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
    column = np.clip((offset + ((1 << raw_bits) >> 1)) >> raw_bits, -HEAD_MAX, HEAD_MAX) + HEAD_MAX
    weights = normalised(voxel[row, column].reshape(-1, 2 * within + 1), TOTAL - 1)
    # Nothing is escaped: the last column has the least weight that there is.
    return ProbabilityTables(np.pad(weights, ((0, 0), (0, 1)), constant_values=1), -within, 0)


def _within_indices(within: int) -> int:
    """Table indices that are told apart; beyond, all integers are about as likely."""
    return FIRST_COARSE_ROW + OCTAVE * (within.bit_length() + 2)


def _within_row(
    index: NDArray[np.uint8], shift: NDArray[np.int64], within: int
) -> NDArray[np.uint16]:
    reach = within + _WITHIN_BEYOND
    indices = _within_indices(within)
    place = np.clip(shift, -reach, reach) + reach
    rows: NDArray[np.uint16] = (place * indices + np.minimum(index, indices - 1)).astype(np.uint16)
    return rows


@cache
def index_of_kind() -> NDArray[np.uint8]:
    """[KINDS, 16]: the table index of a kind, by the 16ths from the prediction to the nearest integer, 0 .. 8."""
    kind = np.arange(KINDS)[:, None]
    fraction = np.minimum(np.arange(UNIT) * FRACTIONS // (UNIT // 2 + 1), FRACTIONS - 1)
    fine = FIRST_FINE + (kind - FIRST_FINE) * FRACTIONS + fraction
    coarse = kind - FIRST_COARSE + FIRST_COARSE_ROW
    spiky = kind + 0 * fraction
    index = np.where(kind < FIRST_FINE, spiky, np.where(kind < FIRST_COARSE, fine, coarse))
    return index.astype(np.uint8)


def index_of_context(kinds: NDArray[np.intp]) -> NDArray[np.uint16]:
    """[VARIANTS * BUCKETS * 16]: variant * 256 + the table index of each context; buckets without a kind get that of
    the last one."""
    padded = np.pad(kinds, (0, BUCKETS - kinds.size), mode="edge")
    index = index_of_kind()[padded].reshape(-1).astype(np.uint16)
    return (np.arange(VARIANTS, dtype=np.uint16)[:, None] * np.uint16(256) + index).reshape(-1)


@cache
def _half_of_index() -> NDArray[np.int32]:
    """[256]: half of 2**k for an index with k raw bits, added to errors so that their heads are rounded."""
    raw_bits = np.maximum(np.arange(256) - FIRST_COARSE_ROW, 0) // OCTAVE
    half: NDArray[np.int32] = ((1 << np.minimum(raw_bits, 24)) >> 1).astype(np.int32)
    return half
