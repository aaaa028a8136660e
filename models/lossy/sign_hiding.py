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
# Sums mod 2 of columns with the same first row.
STATES = 1 << CONSTRAINT_HEIGHT
# Costs of the encoder are integers in 1 / COST_SCALE squared steps. An int32 holds the sum of the
# largest costs of 63 changes and as many that are impossible.
COST_SCALE = 1 << 14
# Changes that cost more, in 1 / COST_SCALE, count as costing this.
MAX_COST = 4 * COST_SCALE
# Cost of a change that is impossible.
IMPOSSIBLE = 1 << 25
# The low bits of a cost hold no cost but the trellis state from which the path comes.
STATE_BITS = STATES // 2 - 1
# Chains that the encoder works on side by side.
MAX_LANES = 256
# int64 [columns, STATES]: the sum that a sum becomes when a carrier of a column is changed.
_SUM_WITH_COLUMN = np.arange(STATES) ^ COLUMNS[:, None]
# int64 [STATES]: each sum with the parity of the first row flipped.
_FLIPPED = np.arange(STATES) ^ 1
# int64 [state before, state after]: the sum of the columns that leads from one to the other.
_TRANSITION = np.arange(STATES // 2)[:, None] ^ 2 * np.arange(STATES // 2)
# int32 [state before, state after]: costs that keep a lane in its state, beyond its last row.
_STAY = np.where(np.eye(STATES // 2, dtype=bool), 0, IMPOSSIBLE).astype(np.int32)

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
    # Chains are worked on side by side, the longest first: the first groups of MAX_LANES chains,
    # then the groups after these, and so on.
    chain = np.cumsum(groups.chain_position == 0) - 1
    lanes = np.empty(chain.max(initial=-1) + 1, np.int64)
    lanes[np.argsort(-np.bincount(chain), kind="stable")] = np.arange(len(lanes))
    lane = lanes[chain]
    start = np.searchsorted(groups.group, np.arange(len(lane) + 1))
    for first in range(0, len(lanes), MAX_LANES):
        chosen = np.flatnonzero((lane >= first) & (lane < first + MAX_LANES))
        order = chosen[np.lexsort((lane[chosen], groups.chain_position[chosen]))]
        size = (start[1:] - start[:-1])[order]
        ends = np.append(0, np.cumsum(size))
        which = np.arange(ends[-1]) + np.repeat(start[order] - ends[:-1], size)
        at = groups.at[which]
        value = flat[at]
        cost, changed = _changes(value, error.reshape(-1)[at], costs[:, index.reshape(-1)[at]])
        chains = _Chains(
            value=value,
            cost=cost,
            changed=changed,
            group=np.repeat(np.arange(len(order)), size),
            column=groups.column[which],
            first_row=groups.first_row[which],
            payload_bits=groups.payload_bits[order],
            ends=ends,
            stages=np.append(0, np.cumsum(np.bincount(groups.chain_position[order]))).tolist(),
        )
        hidden.append(at[chains.embed()])
        flat[at] = value
    return flat.reshape(q.shape), np.concatenate(hidden)


def _changes(
    value: NDArray[Any], error: NDArray[np.float32], costs: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The cheaper change of each symbol by one: its cost in 1 / COST_SCALE, and the new value.

    costs [2, n] as in `hide_signs`.
    """
    n = np.abs(value)
    twice = 2 * (np.abs(error) - n.astype(np.float32))
    first, later = costs
    up = 1 - twice + np.where(n > 0, later, first)
    down = np.where(n > 0, 1 + twice - np.where(n > 1, later, first), np.inf)
    cost = np.minimum(COST_SCALE * np.minimum(up, down), MAX_COST).astype(np.int32) & ~STATE_BITS
    return cost, value + (1 - 2 * ((up <= down) == (error < 0)))


@dataclass(frozen=True)
class _Chains:
    """Chains of groups side by side, the longest first.

    Groups are in order of their position in the chain, then of the chain. Arrays have one entry
    per carrier, group by group, unless said otherwise.
    """

    value: NDArray[Any]  # The symbols; `embed` changes them.
    cost: NDArray[np.int32]  # Of changing the symbol.
    changed: NDArray[Any]  # The symbol after its change.
    group: Int
    column: Int
    first_row: Int
    payload_bits: Int  # Per group.
    ends: Int  # 0, then per group: the end of its carriers.
    stages: list[int]  # The first group of each position in the chain, then the number of groups.

    def embed(self) -> Int:
        """Change values so that groups carry the signs of the groups before them.

        Returns the carriers whose signs are hidden.
        """
        groups, rows = len(self.payload_bits), 2 * ((int(self.payload_bits.max()) + 1) // 2)
        if rows == 0:
            return self.ends[:0]
        odd = np.flatnonzero(self.value & 1)
        sums = syndrome(self.column[odd], self.first_row[odd], self.group[odd], groups)
        key, cheapest, costs = self._cheapest_changes(rows)
        sum_costs, uses_column = _costs_of_sums(costs)
        hidden = [cheapest[:0]]
        changes = np.empty(costs.shape, bool)
        row = np.arange(rows)[:, None]
        for last, begin, end in zip(self.stages, self.stages[1:], self.stages[2:], strict=False):
            here, payload = slice(begin, end), self.payload_bits[begin:end]
            carriers, signs, counts = self._signs(last, payload)
            hidden.append(carriers)
            # Rows of H beyond the signs there are to hide may have any parity.
            wrong = (signs ^ sums[here]) & (1 << np.minimum(counts, payload)) - 1
            flips = wrong >> row & 1
            wanted_costs = np.where(flips, sum_costs[_FLIPPED, :, here], sum_costs[:, :, here])
            change = _viterbi(wanted_costs, payload) ^ flips
            positions = row * groups + np.arange(begin, end)
            for c in range(len(COLUMNS) - 1, -1, -1):
                used = uses_column[c].reshape(-1).take(change * (rows * groups) + positions)
                changes[c, :, here] = used & (row < payload)
                change ^= used * COLUMNS[c]
            carriers = cheapest[slice(*np.searchsorted(cheapest, self.ends[[begin, end]]))]
            carriers = carriers[changes.reshape(-1)[key[carriers]]]
            self.value[carriers] = self.changed[carriers]
        return np.concatenate(hidden)

    def _cheapest_changes(self, rows: int) -> tuple[Int, Int, NDArray[np.int32]]:
        """The cheapest carrier of each column of H, of those with the same first row.

        Returns the key of every carrier, flat in [columns, rows, groups], the carriers that are
        the cheapest of their key, ascending, and the costs [columns, rows, groups].
        """
        costs = np.full((len(COLUMNS), rows, len(self.payload_bits)), IMPOSSIBLE, np.int32)
        key = (self.column * rows + self.first_row) * len(self.payload_bits) + self.group
        np.minimum.at(costs.reshape(-1), key, self.cost)
        cheapest = np.flatnonzero(self.cost == costs.reshape(-1)[key])
        unique = np.empty(costs.size, np.int64)
        unique[key[cheapest]] = cheapest
        return key, cheapest[unique[key[cheapest]] == cheapest], costs

    def _signs(self, stage: int, payload: Int) -> tuple[Int, Int, Int]:
        """The signs that the groups after those from `stage` on are to carry, `payload` at most.

        Returns the carriers with these signs, the signs of each group as bits, and the number of
        its symbols that are not zero.
        """
        lanes = len(payload)
        start = self.ends[stage]
        value = self.value[start : self.ends[stage + lanes]]
        nonzero = np.flatnonzero(value)
        lane = self.group[start:][nonzero] - stage
        counts = np.bincount(lane, minlength=lanes)
        rank = np.arange(len(lane)) - (np.cumsum(counts) - counts)[lane]
        inside = np.flatnonzero(rank < payload[lane])
        negative = inside[value[nonzero[inside]] < 0]
        signs = np.zeros(lanes, np.int64)
        np.bitwise_or.at(signs, lane[negative], 1 << rank[negative])
        return nonzero[inside] + start, signs, counts


def _costs_of_sums(costs: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The least cost of every sum of columns with the same first row.

    costs [columns, rows, groups] -> [STATES, rows, groups], and whether the change of each column
    was part of the cheapest way when it was considered, [columns, STATES, rows, groups].
    """
    total = np.full((STATES, *costs.shape[1:]), IMPOSSIBLE, np.int32)
    total[0] = 0
    other = np.empty_like(total)
    uses_column = np.empty((len(COLUMNS), *total.shape), bool)
    for reached, cost, better in zip(_SUM_WITH_COLUMN, costs, uses_column, strict=True):
        np.take(total, reached, 0, other, "clip")
        other += cost
        np.less(other, total, out=better)
        np.minimum(total, other, out=total)
    return total, uses_column


def _viterbi(costs: NDArray[np.int32], payload: Int) -> Int:
    """The sums [rows, lanes] on the cheapest path through the trellis that flips no parity.

    costs [STATES, rows, lanes] of the sums in each row, int32. Lanes keep their state from their
    last row on. The forward pass from the first row and the backward pass from the last one run
    side by side and meet in the middle.
    """
    rows, lanes = costs.shape[1:]
    half = rows // 2
    from_start = np.arange(half)
    row = np.stack([from_start, rows - 1 - from_start], 1)  # [half, 2]
    # [half, 2, state before, state after, lanes] with the state that is reached last but one.
    steps = costs.reshape(-1, lanes).take(
        row[:, :, None, None] + rows * np.stack([_TRANSITION, _TRANSITION.T]), 0
    )
    steps.transpose(0, 1, 4, 2, 3)[(np.arange(rows)[:, None] >= payload)[row]] = _STAY
    steps |= np.arange(STATES // 2, dtype=np.int32)[:, None, None]
    path_costs = np.zeros((2, STATES // 2, lanes), np.int32)
    path_costs[0, 1:] = IMPOSSIBLE
    best = np.empty((half, *path_costs.shape), np.int32)
    for step, cheapest in zip(steps, best, strict=True):
        step += path_costs[:, :, None]
        np.minimum.reduce(step, 1, out=cheapest)
        path_costs = cheapest & ~STATE_BITS
    # Trace back from the cheapest meeting point to both ends.
    meeting = path_costs.sum(0).argmin(0)
    base = np.arange(lanes) + np.array([[0], [path_costs[0].size]])
    previous = lanes * (best & STATE_BITS).astype(np.int64) + base[:, None]
    path = np.empty((half, 2, lanes), np.int64)
    at = lanes * meeting + base
    for n in range(half - 1, -1, -1):
        path[n] = at = previous[n].take(at)
    path = (path - base) // lanes
    states = np.concatenate([path[:, 0], meeting[None], path[::-1, 1]])
    sums: Int = states[:-1] ^ 2 * states[1:]
    return sums
