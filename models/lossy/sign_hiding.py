"""Sign hiding: signs that are not sent, because the parities of magnitudes carry them.

Sign data hiding (Clare, Henry & Jung 2011, JCTVC-G271; HEVC, clause 7.3.8.11) saves one sign per
group of coefficients: it is the parity of the group's magnitudes, and the encoder changes one of
them where the parity is wrong. Here a group carries M signs at once through a parity-check matrix,

    s = H abs(q) mod 2       s [M] hidden signs (1: negative), q the symbols of the group's carriers

and the encoder finds the cheapest changes of q with s = H abs(q) by Viterbi's algorithm over H:
syndrome-trellis codes (Filler, Judas & Fridrich 2011, "Minimizing additive distortion in
steganography using syndrome-trellis codes"). This gains what trellis-coded quantisation does, yet
all magnitudes of a pass are coded in one call.

    the symbols j of a band in a pass, in coding order, weigh w_j = weights[index_j], about the
    number of signs they can carry; those of weight > 0 are carriers
    C = sum of w; before_j = w_0 + .. + w_(j-1); T = sum of C over the slab's bands in this pass
    G = floor(C / S + 1/2) groups, S = min(GROUP_WEIGHT, floor(sqrt(GROUP_OVERHEAD T)))
    group c = 0 .. G - 1 of the band has the symbols of e(c) <= before_j < e(c + 1), where
    e(c) = ceil(c C / G)
    the groups of all these bands form one sequence; every group but each CHAIN_LENGTH-th, from the
    first on, carries the signs of the first carriers of the group before it that are not zero, at
    most M = floor((e(c + 1) - e(c)) / WEIGHT_PER_SIGN) of them
    column j of H has a 1 in row b + k < M for each bit k that is set in
        COLUMNS[floor(40503 j / 2**8) mod 4],   b = floor(M (before_j - e(c)) / (e(c + 1) - e(c)))

H is banded: a column has ones in at most CONSTRAINT_HEIGHT rows. At its ends a group wastes about
GROUP_OVERHEAD / WEIGHT_MAX carriers, and the first group of a chain carries nothing; S balances the
two. The encoder proceeds along the chains: the signs of group c - 1 are final when carriers of
group c are changed. Of carriers with the same column of H only the cheapest may change; as
w_j <= WEIGHT_MAX < WEIGHT_PER_SIGN there is one for each b.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Weight of a symbol of a large scale.
WEIGHT_MAX = 1024
# Weight of a group, about, in slabs with many carriers. It stays below 1.5 times this, so that the
# signs and the rows below them fit an int64.
GROUP_WEIGHT = 160 * WEIGHT_MAX
# Weight that a group wastes at its ends, about.
GROUP_OVERHEAD = 8 * WEIGHT_MAX
# Weight of the carriers of a group per hidden sign.
WEIGHT_PER_SIGN = 4 * WEIGHT_MAX
# Groups of a chain; the first of them carries no signs.
CHAIN_LENGTH = 8
# Rows of H in which a column may have ones (the constraint height of the code).
CONSTRAINT_HEIGHT = 4
# The columns of H, each CONSTRAINT_HEIGHT bits from its first row on; all have a 1 there.
COLUMNS = np.array([9, 13, 11, 15], np.int64)
# Changes that cost more squared steps count as costing this.
MAX_COST = 4.0
# What sums of columns leave for the rows below.
STATES = 1 << CONSTRAINT_HEIGHT - 1
# bool [sets, columns]: the sets of columns that may change in a row.
_SETS = (np.arange(1 << len(COLUMNS))[:, None] >> np.arange(len(COLUMNS)) & 1).astype(bool)
# int64 [sets]: the sum of each.
_SET_SUMS = np.bitwise_xor.reduce(np.where(_SETS, COLUMNS, 0), axis=1)


def _steps(parity: int) -> NDArray[np.int64]:
    """By state: the pairs of a state before and a set, flat, that lead there and give the parity.

    int64 [STATES, pairs].
    """
    sums = np.arange(STATES)[:, None] ^ _SET_SUMS
    fits = (sums & 1) == parity
    return np.stack([np.flatnonzero(fits & (sums >> 1 == state)) for state in range(STATES)])


_STEPS = (_steps(0), _steps(1))

Int = NDArray[np.int64]


def _divided(a: Int, b: Int) -> Int:
    """floor(a / b) of a >= 0 and b > 0 below 2**53, faster than integer division.

    A quotient that is no integer is farther from one than float64 rounds.
    """
    quotient: Int = (a / b).astype(np.int64)
    return quotient


@dataclass(frozen=True)
class SignGroups:
    """The groups of carriers of a pass, numbered through the bands [N, n] of one or more slabs.

    Arrays have one entry per carrier, per band or per group.
    """

    at: Int  # Per carrier: flat position in [N, n], ascending.
    band: Int  # Per carrier.
    before: Int  # Per carrier: the weight before it in its band.
    symbols: int  # n
    count: Int  # Per band: its groups G.
    total: Int  # Per band: its weight C, at least 1.
    width: Int  # Per group: its weight e(c + 1) - e(c).
    start: Int  # Per group: the weight e(c) before it in its band.
    chain_position: Int  # Per group: 0 .. CHAIN_LENGTH - 1.

    @staticmethod
    def of(index: NDArray[np.uint8], weights: NDArray[np.int32], slabs: int) -> SignGroups:
        """Groups for scale indices [N, n] of the bands of `slabs` slabs, slab after slab.

        Index 0 stands for symbols that are not sent; weights int32 [256], at most WEIGHT_MAX.
        """
        n = max(index.shape[1], 1)
        carries = np.frombuffer(index.tobytes().translate((weights > 0).tobytes()), bool)
        at = np.flatnonzero(carries)
        band = at // n
        upto = np.cumsum(np.take(weights, index.reshape(-1)[at]), dtype=np.int64)
        ends = np.searchsorted(band, np.arange(len(index) + 1))
        sums = np.append(0, upto)[ends]
        before = np.append(0, upto[:-1])[: len(at)] - sums[band]
        total = np.diff(sums)
        size = np.sqrt(GROUP_OVERHEAD * total.reshape(slabs, -1).sum(1)).astype(np.int64)
        size = size.clip(1, GROUP_WEIGHT).repeat(len(index) // slabs)
        count = (2 * total + size) // (2 * size)
        total = np.maximum(total, 1)
        if not count.all():
            inside = count[band] > 0
            at, band, before = at[inside], band[inside], before[inside]
        band_of_group = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(band_of_group)) - (np.cumsum(count) - count)[band_of_group]
        start, end = (
            -(-c * total[band_of_group] // count[band_of_group]) for c in (number, number + 1)
        )
        per_slab = count.reshape(slabs, -1).sum(1)
        first_of_slab = np.repeat(np.cumsum(per_slab) - per_slab, per_slab)
        chain_position = (np.arange(len(band_of_group)) - first_of_slab) % CHAIN_LENGTH
        return SignGroups(at, band, before, n, count, total, end - start, start, chain_position)

    def subset(self, which: NDArray[Any]) -> SignGroups:
        """The same groups with some of the carriers."""
        return replace(self, at=self.at[which], band=self.band[which], before=self.before[which])

    @cached_property
    def group(self) -> Int:
        """Per carrier."""
        group = _divided(self.before * self.count[self.band], self.total[self.band])
        group += (np.cumsum(self.count) - self.count)[self.band]
        return group

    @cached_property
    def column(self) -> Int:
        """Per carrier: which of COLUMNS its column of H is."""
        number: Int = 40503 * (self.at - self.band * self.symbols) >> 8 & 3
        return number

    @cached_property
    def payload_bits(self) -> Int:
        """Per group: the signs M that it can carry, 0 where a chain begins."""
        bits: Int = np.where(self.chain_position == 0, 0, self.width // WEIGHT_PER_SIGN)
        return bits

    @cached_property
    def first_row(self) -> Int:
        """Per carrier: b, the first row of H in which its column has a 1."""
        offset = self.before - self.start[self.group]
        return _divided(self.payload_bits[self.group] * offset, self.width[self.group])


def syndrome(column: Int, first_row: Int, group: Int, groups: int) -> Int:
    """H abs(q) mod 2 of every group: bits 0 .. M - 1 of an int64; higher bits have no meaning.

    column, first_row, group: of the carriers of odd magnitude.
    """
    sums = np.zeros(groups, np.int64)
    np.bitwise_xor.at(sums, group, COLUMNS[column] << first_row)
    return sums


def hidden_signs(groups: SignGroups, magnitude: NDArray[Any]) -> tuple[Int, Int]:
    """Flat positions of the symbols whose signs are hidden, and these signs (1: negative).

    magnitude [N, n].
    """
    if not groups.payload_bits.any():
        return groups.at[:0], groups.at[:0]
    values = magnitude.reshape(-1)[groups.at]
    nonzero = np.flatnonzero(values)
    groups, values = groups.subset(nonzero), values[nonzero]
    odd, count = np.flatnonzero(values & 1), len(groups.width)
    sums = syndrome(groups.column[odd], groups.first_row[odd], groups.group[odd], count)
    first_of_group = np.searchsorted(groups.group, np.arange(count))
    rank = np.arange(len(values)) - first_of_group[groups.group]
    inside = np.flatnonzero(rank < np.append(groups.payload_bits[1:], 0)[groups.group])
    return groups.at[inside], sums[groups.group[inside] + 1] >> rank[inside] & 1


def hide_signs(
    groups: SignGroups,
    q: NDArray[Any],
    error: NDArray[np.float32],
    costs: NDArray[Any],
    index: NDArray[np.uint8],
) -> tuple[NDArray[Any], Int]:
    """Symbols with the cheapest changes that hide the signs, and the positions of these signs.

    Encoder only. q [N, n] integers; error [N, n]: what q is the rounding of, in steps, with the
    same sign; index [N, n]: scale indices. costs [2, 256]: by scale index, in squared steps, what
    the bits of 1 instead of 0 are worth, and those of n + 1 instead of n.
    """
    flat, hidden = q.reshape(-1).copy(), [groups.at[:0]]
    start = np.searchsorted(groups.group, np.arange(len(groups.width) + 1))
    for group in np.flatnonzero(groups.payload_bits).tolist():
        before = groups.at[start[group - 1] : start[group]]
        signs = before[flat[before] != 0][: groups.payload_bits[group]]
        if len(signs) == 0:
            continue
        hidden.append(signs)
        here = slice(start[group], start[group + 1])
        at, column, first_row = groups.at[here], groups.column[here], groups.first_row[here]
        value = flat[at]
        odd = np.flatnonzero(value & 1)
        sums = syndrome(column[odd], first_row[odd], np.zeros_like(odd), 1)[0]
        wrong = (flat[signs] < 0) ^ (sums >> np.arange(len(signs)) & 1)
        cost, changed = _changes(value, error.reshape(-1)[at], costs[:, index.reshape(-1)[at]])
        carriers = _cheapest_flips(column, first_row, cost, wrong)
        flat[at[carriers]] = changed[carriers]
    return flat.reshape(q.shape), np.concatenate(hidden)


def _changes(
    value: NDArray[Any], error: NDArray[np.float32], costs: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The cheaper change of each symbol by one: its cost in squared steps, and the new value.

    costs [2, n] as in `hide_signs`.
    """
    n = np.abs(value)
    twice = 2 * (np.abs(error) - n.astype(np.float32))
    first, later = costs
    up = 1 - twice + np.where(n > 0, later, first)
    down = np.where(n > 0, 1 + twice - np.where(n > 1, later, first), np.inf)
    cost = np.minimum(np.minimum(up, down), MAX_COST)
    return cost, value + (1 - 2 * ((up <= down) == (error < 0)))


def _cheapest_flips(column: Int, first_row: Int, cost: NDArray[Any], wrong: NDArray[Any]) -> Int:
    """The cheapest carriers to change so that exactly the parities `wrong` [rows] flip.

    Viterbi's algorithm over the rows of H. Of carriers with the same column of H only the cheapest
    may change. Rows beyond `wrong` may have any parity.
    """
    rows = len(wrong)
    dearest_first = np.argsort(-cost, kind="stable")
    dearest_first = dearest_first[first_row[dearest_first] < rows]
    carrier = np.full((rows, len(COLUMNS)), -1)
    carrier[first_row[dearest_first], column[dearest_first]] = dearest_first
    costs = np.where(carrier >= 0, cost[carrier], np.inf)
    of_set = np.where(_SETS, costs[:, None], 0).sum(2)  # [rows, sets of columns]
    path = np.full(STATES, np.inf)
    path[0] = 0
    best = np.empty((rows, STATES), np.int64)  # The state before and the set, flat.
    for row in range(rows):
        steps = (path[:, None] + of_set[row]).reshape(-1)[_STEPS[int(wrong[row])]]
        best[row] = _STEPS[int(wrong[row])][np.arange(STATES), steps.argmin(1)]
        path = steps.min(1)
    state, flipped = int(path.argmin()), []
    for row in range(rows - 1, -1, -1):
        state, chosen = divmod(int(best[row, state]), len(_SETS))
        flipped.append(carrier[row, _SETS[chosen]])
    return np.concatenate(flipped)
