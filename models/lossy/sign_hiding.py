"""Signs that are not sent: the parities of magnitudes say them.

Sign data hiding (Clare, Henry & Jung 2011, JCTVC-G271; HEVC, clause 7.3.8.11) gives up one sign for the parity of a group of
coefficients, and changes one of them where it is wrong. Here the parities say signs through a convolutional code, and the
encoder finds cheap changes with Viterbi's algorithm: the syndrome-trellis codes of Filler, Judas & Fridrich 2011 ("Minimizing
additive distortion in steganography using syndrome-trellis codes"). It gains what trellis-coded quantisation does, and yet
all magnitudes of a pass are coded in one call.

    the symbols j of a plane in a pass, in the order in which they are coded, weigh w_j = weights[index_j]: about how many
    signs they can say; those of weight > 0 are carriers
    C = sum of w; before_j = w_0 + .. + w_(j-1); T = sum of C over the planes of the slab in this pass
    G = floor(C / S + 1/2) cells, S = min(CELL, floor(sqrt(EDGE T)))
    cell c = 0 .. G - 1 of the plane has the symbols of e(c) <= before_j < e(c + 1), e(c) = ceil(c C / G)
    the cells of all these planes are one sequence; every cell but each CHAIN-th, from the first on, says the signs of the
    first carriers of the one before it that are not zero, at most
        M = floor((e(c + 1) - e(c)) / SHARE)
    a carrier j in it has to do with sign b + k, if that is below M, for each bit k that is set in
        PATTERNS[floor(40503 j / 2**8) mod 4],   b = floor(M (before_j - e(c)) / (e(c + 1) - e(c)))
    a sign is negative if the sum of the magnitudes that have to do with it is odd

At its ends a cell wastes about as much as EDGE / UNIT weighs, and the first of a chain is not used: S makes up between them.
The encoder goes along the chains: the signs of cell c - 1 are settled when carriers of cell c are changed. Of those with the
same b and pattern only the cheapest can be; as w_j <= UNIT < SHARE there is one for each b.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 1024  # weight of a symbol of a large scale
CELL = 160 * UNIT  # 240 in one at most, and as many bits as fit an int64
EDGE = 8 * UNIT
SHARE = 4 * UNIT
CHAIN = 8
HEIGHT = 4
LANES = 256  # chains that the encoder works on together
PATTERNS = np.array([9, 13, 11, 15], np.int64)  # of HEIGHT bits; all have bit 0
STATES = 1 << HEIGHT
PRICE = (
    1 << 14
)  # one squared step, for the encoder: int32 sums of the prices of 63 changes, and of as many that can't be
MAX_COST = 4 * PRICE
NEVER = 1 << 25
FROM = (
    STATES // 2 - 1
)  # these bits of a sum are not of the price: they say from which state it is reached
_REACHED = (
    np.arange(STATES) ^ PATTERNS[:, None]
)  # [4, STATES]: the state that a change of each pattern leads to
_OTHER = np.arange(STATES) ^ 1
_CHANGE = np.arange(STATES // 2)[:, None] ^ 2 * np.arange(
    STATES // 2
)  # [before, after]: what sum leads there
_STAY = np.where(np.eye(STATES // 2, dtype=bool), 0, NEVER).astype(np.int32)

Int = NDArray[np.int64]


def _divided(a: Int, b: Int) -> Int:
    """floor(a / b) of a >= 0 and b > 0 below 2**53, faster than of integers: a quotient that is none is farther from it than
    float64 rounds."""
    quotient: Int = (a / b).astype(np.int64)
    return quotient


@dataclass(frozen=True)
class SignGroups:
    """Of the symbols [N, n] of the planes of slabs; cells are numbered through. One entry a carrier, unless said otherwise."""

    at: Int  # flat positions, rising
    plane: Int
    before: Int
    symbols: int  # n
    count: Int  # G of each plane
    total: Int  # C of each plane, at least 1
    width: Int  # of each cell: e(c + 1) - e(c)
    start: Int  # of each cell: e(c)
    turn: Int  # of each cell: its place in its chain

    @staticmethod
    def of(index: NDArray[np.uint8], weights: NDArray[np.int32], slabs: int) -> SignGroups:
        """index [N, n]: scale indices of the planes of so many slabs, slab after slab, 0 for symbols that are not sent;
        weights int32 [256], at most UNIT."""
        n = max(index.shape[1], 1)
        carries = np.frombuffer(index.tobytes().translate((weights > 0).tobytes()), bool)
        at = np.flatnonzero(carries)
        plane = at // n
        upto = np.cumsum(np.take(weights, index.reshape(-1)[at]), dtype=np.int64)
        ends = np.searchsorted(plane, np.arange(len(index) + 1))
        sums = np.append(0, upto)[ends]
        before = np.append(0, upto[:-1])[: len(at)] - sums[plane]
        total = np.diff(sums)
        cell = (
            np.sqrt(EDGE * total.reshape(slabs, -1).sum(1))
            .astype(np.int64)
            .clip(1, CELL)
            .repeat(len(index) // slabs)
        )
        count = (2 * total + cell) // (2 * cell)
        total = np.maximum(total, 1)
        if not count.all():
            inside = count[plane] > 0
            at, plane, before = at[inside], plane[inside], before[inside]
        owner = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
        start, end = (-(-c * total[owner] // count[owner]) for c in (number, number + 1))
        of_slab = count.reshape(slabs, -1).sum(1)
        turn = (np.arange(len(owner)) - np.repeat(np.cumsum(of_slab) - of_slab, of_slab)) % CHAIN
        return SignGroups(at, plane, before, n, count, total, end - start, start, turn)

    def kept(self, which: NDArray[Any]) -> SignGroups:
        """With some of the carriers."""
        return replace(self, at=self.at[which], plane=self.plane[which], before=self.before[which])

    @cached_property
    def cell(self) -> Int:
        place = _divided(self.before * self.count[self.plane], self.total[self.plane])
        place += (np.cumsum(self.count) - self.count)[self.plane]
        return place

    @cached_property
    def offset(self) -> Int:
        """before_j - e(c)."""
        offset: Int = self.before - self.start[self.cell]
        return offset

    @cached_property
    def pattern(self) -> Int:
        """Which of PATTERNS."""
        number: Int = 40503 * (self.at - self.plane * self.symbols) >> 8 & 3
        return number

    @cached_property
    def told(self) -> Int:
        """M of every cell, 0 of those that begin a chain."""
        told: Int = np.where(self.turn == 0, 0, self.width // SHARE)
        return told

    @cached_property
    def first(self) -> Int:
        """The first sign b that a carrier has to do with."""
        return _divided(self.told[self.cell] * self.offset, self.width[self.cell])


def syndrome(pattern: Int, first: Int, owner: Int, count: int) -> Int:
    """Of so many cells the bits 0 .. M - 1: whether the sum of the magnitudes that have to do with that sign of it is odd.

    Of the carriers of odd magnitude: their patterns, first signs and cells. Higher bits have no meaning.
    """
    sums = np.zeros(count, np.int64)
    np.bitwise_xor.at(sums, owner, PATTERNS[pattern] << first)
    return sums


def hidden(cells: SignGroups, magnitude: NDArray[Any]) -> tuple[Int, Int]:
    """Flat positions of the symbols whose signs are not sent, and the signs (1: negative); magnitudes [N, n]."""
    if not cells.told.any():
        return cells.at[:0], cells.at[:0]
    values = magnitude.reshape(-1)[cells.at]
    nonzero = np.flatnonzero(values)
    cells, values = cells.kept(nonzero), values[nonzero]
    odd = np.flatnonzero(values & 1)
    sums = syndrome(cells.pattern[odd], cells.first[odd], cells.cell[odd], len(cells.width))
    rank = (
        np.arange(len(values))
        - np.searchsorted(cells.cell, np.arange(len(cells.width)))[cells.cell]
    )
    inside = np.flatnonzero(rank < np.append(cells.told[1:], 0)[cells.cell])
    return cells.at[inside], sums[cells.cell[inside] + 1] >> rank[inside] & 1


def hide(
    cells: SignGroups,
    q: NDArray[Any],
    error: NDArray[np.float32],
    costs: NDArray[Any],
    index: NDArray[np.uint8],
) -> tuple[NDArray[Any], Int]:
    """Symbols q [N, n], integers, with cheap changes that make `hidden` true, and the positions that it gives; encoder only.

    error [N, n]: what q is the rounding of, in steps, and has the sign of. costs [2, 256]: by scale index the squared error
    (steps^2) that 1 is worth instead of 0 in bits, and n + 1 instead of n.
    """
    flat, hidden = q.reshape(-1).copy(), [cells.at[:0]]
    # chains side by side, long ones first: of so many together first the cells that begin them, then the ones after, and so on
    chain = np.cumsum(cells.turn == 0) - 1
    lanes = np.empty(chain.max(initial=-1) + 1, np.int64)
    lanes[np.argsort(-np.bincount(chain), kind="stable")] = np.arange(len(lanes))
    lane = lanes[chain]
    start = np.searchsorted(cells.cell, np.arange(len(lane) + 1))
    for first in range(0, len(lanes), LANES):
        chosen = np.flatnonzero((lane >= first) & (lane < first + LANES))
        order = chosen[np.lexsort((lane[chosen], cells.turn[chosen]))]
        size = (start[1:] - start[:-1])[order]
        ends = np.append(0, np.cumsum(size))
        which = np.arange(ends[-1]) + np.repeat(start[order] - ends[:-1], size)
        at = cells.at[which]
        value = flat[at]
        chains = _Chains(
            value,
            *_changes(value, error.reshape(-1)[at], costs[:, index.reshape(-1)[at]]),
            np.repeat(np.arange(len(order)), size),
            cells.pattern[which],
            cells.first[which],
            cells.told[order],
            ends,
            np.append(0, np.cumsum(np.bincount(cells.turn[order]))).tolist(),
        )
        hidden.append(at[chains.embed()])
        flat[at] = value
    return flat.reshape(q.shape), np.concatenate(hidden)


def _changes(
    value: NDArray[Any], given: NDArray[np.float32], costs: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """What it costs to change each symbol by one, in 1 / PRICE, and what it becomes; costs [2, n]."""
    n = np.abs(value)
    twice = 2 * (np.abs(given) - n.astype(np.float32))
    first, later = costs
    up = 1 - twice + np.where(n > 0, later, first)
    down = np.where(n > 0, 1 + twice - np.where(n > 1, later, first), np.inf)
    price = np.minimum(PRICE * np.minimum(up, down), MAX_COST).astype(np.int32) & ~FROM
    return price, value + (1 - 2 * ((up <= down) == (given < 0)))


@dataclass(frozen=True)
class _Chains:
    """Chains of cells side by side, the longest first, in order of their turns; first their carriers."""

    value: NDArray[Any]
    price: NDArray[np.int32]  # of a change
    changed: NDArray[Any]
    owner: Int  # the cell
    pattern: Int
    first: Int
    told: Int  # of every cell: M
    ends: Int  # of the carriers of every cell, after 0
    turns: list[int]  # where the cells of each turn begin, and their number

    def embed(self) -> Int:
        """Changes values so that cells say the signs of the cells before them; which carriers these are the signs of."""
        cells, longest = len(self.told), 2 * ((int(self.told.max()) + 1) // 2)
        if longest == 0:
            return self.ends[:0]
        odd = np.flatnonzero(self.value & 1)
        sums = syndrome(
            self.pattern[odd], self.first[odd], self.owner[odd], cells
        )  # what they say as they are
        # the cheapest change of each pattern and sign, and one carrier whose it is
        best = np.full((len(PATTERNS), longest, cells), NEVER, np.int32)
        key = (self.pattern * longest + self.first) * cells + self.owner
        np.minimum.at(best.reshape(-1), key, self.price)
        taken = np.flatnonzero(self.price == best.reshape(-1)[key])
        one = np.empty(best.size, np.int64)
        one[key[taken]] = taken
        taken = taken[one[key[taken]] == taken]
        # the cheapest changes of the patterns of a sign whose sum is x, and which they are
        spent = np.full((STATES, longest, cells), NEVER, np.int32)
        spent[0] = 0
        other = np.empty_like(spent)
        choice = np.empty((len(PATTERNS), *spent.shape), bool)
        for reached, price, better in zip(_REACHED, best, choice, strict=True):
            np.take(spent, reached, 0, other, "clip")
            other += price
            np.less(other, spent, out=better)
            np.minimum(spent, other, out=spent)
        hidden = [taken[:0]]
        picked = np.empty(best.shape, bool)
        for last, begin, end in zip(self.turns, self.turns[1:], self.turns[2:], strict=False):
            lanes, here = end - begin, slice(begin, end)
            told = self.told[here]
            start = self.ends[last]
            before = self.value[start : self.ends[last + lanes]]
            nonzero = np.flatnonzero(before)
            lane = self.owner[start:][nonzero] - last
            counts = np.bincount(lane, minlength=lanes)
            rank = np.arange(len(lane)) - (np.cumsum(counts) - counts)[lane]
            inside = np.flatnonzero(rank < told[lane])
            hidden.append(nonzero[inside] + start)
            minus = inside[before[nonzero[inside]] < 0]
            signs = np.zeros(lanes, np.int64)
            np.bitwise_or.at(signs, lane[minus], 1 << rank[minus])
            # what has to change; what they say of no sign may stay
            signs = (signs ^ sums[here]) & (1 << np.minimum(counts, told)) - 1
            want = signs >> np.arange(longest)[:, None] & 1
            change = (
                _cheapest(np.where(want, spent[_OTHER, :, here], spent[:, :, here]), told) ^ want
            )
            places = np.arange(longest)[:, None] * cells + np.arange(begin, end)
            for p in range(len(PATTERNS) - 1, -1, -1):
                chosen = choice[p].reshape(-1).take(change * (longest * cells) + places)
                picked[p, :, here] = chosen & (np.arange(longest)[:, None] < told)
                change ^= chosen * PATTERNS[p]
            able = taken[slice(*np.searchsorted(taken, self.ends[[begin, end]]))]
            able = able[picked.reshape(-1)[key[able]]]
            self.value[able] = self.changed[able]
        return np.concatenate(hidden)


def _cheapest(spent: NDArray[np.int32], told: Int) -> Int:
    """The sums x [longest, lanes] of signs that lead from state 0 on at the least cost; spent [STATES, longest, lanes].

    Lanes stay where they are from their last sign on. From the first sign on and from the last one back side by side.
    """
    longest, lanes = spent.shape[1:]
    half = longest // 2
    there = np.arange(half)
    sign = np.stack([there, longest - 1 - there], 1)  # [half, 2]
    # from state to state: the state that is reached is the last axis but one
    ways = spent.reshape(-1, lanes).take(
        sign[:, :, None, None] + longest * np.stack([_CHANGE, _CHANGE.T]), 0
    )
    ways.transpose(0, 1, 4, 2, 3)[(np.arange(longest)[:, None] >= told)[sign]] = _STAY
    ways |= np.arange(STATES // 2, dtype=np.int32)[:, None, None]
    costs = np.zeros((2, STATES // 2, lanes), np.int32)
    costs[0, 1:] = NEVER
    least = np.empty((half, *costs.shape), np.int32)
    for way, sums in zip(ways, least, strict=True):
        way += costs[:, :, None]
        np.minimum.reduce(way, 1, out=sums)
        costs = sums & ~FROM
    # and back from where they meet at the least cost to both ends
    middle = costs.sum(0).argmin(0)
    place = np.arange(lanes) + np.array([[0], [costs[0].size]])
    come = lanes * (least & FROM).astype(np.int64) + place[:, None]
    along = np.empty((half, 2, lanes), np.int64)
    at = lanes * middle + place
    for n in range(half - 1, -1, -1):
        along[n] = at = come[n].take(at)
    along = (along - place) // lanes
    states = np.concatenate([along[:, 0], middle[None], along[::-1, 1]])
    found: Int = states[:-1] ^ 2 * states[1:]
    return found
