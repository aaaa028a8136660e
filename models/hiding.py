"""Signs that are not sent: the parities of magnitudes say them.

Sign data hiding (Clare, Henry & Jung 2011, JCTVC-G271; HEVC, clause 7.3.8.11) gives up one sign for the parity of a group of
coefficients, and changes one of them where it is wrong. Here the parities say signs through a convolutional code, and the
encoder finds cheap changes with Viterbi's algorithm: the syndrome-trellis codes of Filler, Judas & Fridrich 2011 ("Minimizing
additive distortion in steganography using syndrome-trellis codes"). It gains what trellis-coded quantisation does, and yet
all magnitudes of a pass are coded in one call.

    the symbols j of a plane in a pass, in the order in which they are coded, weigh w_j = weights[index_j]: about how many
    signs they can say; those of weight > 0 are carriers
    C = sum of w; G = floor(C / CELL + 1/2) cells, none if G < 2; before_j = w_0 + .. + w_(j-1)
    cell c = 0 .. G - 1 has the symbols of e(c) <= before_j < e(c + 1), e(c) = ceil(c C / G); c is a multiple of CHAIN, or the
    cell says the signs of the first M carriers of cell c - 1 that are not zero,
        M = min(their number, floor((e(c + 1) - e(c)) / SHARE))
    a carrier j in it has to do with sign b + k, if that is below M, for each bit k that is set in
        PATTERNS[floor(40503 j / 2**8) mod 8],   b = floor(M (before_j - e(c)) / (e(c + 1) - e(c)))
    a sign is negative if the sum of the magnitudes that have to do with it is odd

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
CELL = 40 * UNIT
SHARE = 4 * UNIT
CHAIN = 16
HEIGHT = 5
LANES = 4096  # cells that the encoder works on together
PATTERNS = np.array([19, 29, 23, 5, 27, 13, 31, 9], np.int64)  # of HEIGHT bits; all have bit 0
STATES = 1 << HEIGHT
_REACHED = np.arange(STATES) ^ PATTERNS[:, None]  # [8, STATES]: the state that a change of each pattern leads to
_CHANGE = np.arange(STATES // 2)[:, None] ^ 2 * np.arange(STATES // 2)  # [before, after]: what sum leads there

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Of the symbols [N, n] of N planes; cells are numbered through all planes. One entry a carrier, unless said otherwise."""

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
    def of(index: NDArray[np.uint8], weights: NDArray[np.int32]) -> Cells:
        """index [N, n]: scale indices, 0 for symbols that are not sent; weights int32 [256], at most UNIT."""
        n = max(index.shape[1], 1)
        at = np.flatnonzero(np.take(weights > 0, index))
        plane = at // n
        upto = np.cumsum(np.take(weights, index.reshape(-1)[at]), dtype=np.int64)
        ends = np.searchsorted(plane, np.arange(len(index) + 1))
        sums = np.append(0, upto)[ends]
        before = np.append(0, upto[:-1])[: len(at)] - sums[plane]
        total = np.maximum(np.diff(sums), 1)
        count = (2 * total + CELL) // (2 * CELL)
        count[count < 2] = 0
        if not count.all():
            inside = count[plane] > 0
            at, plane, before = at[inside], plane[inside], before[inside]
        owner = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
        start, end = (-(-c * total[owner] // np.maximum(count[owner], 1)) for c in (number, number + 1))
        return Cells(at, plane, before, n, count, total, end - start, start, number % CHAIN)

    def kept(self, which: NDArray[Any]) -> Cells:
        """With some of the carriers."""
        return replace(self, at=self.at[which], plane=self.plane[which], before=self.before[which])

    @cached_property
    def cell(self) -> Int:
        place: Int = self.before * self.count[self.plane] // self.total[self.plane]
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
        number: Int = 40503 * (self.at % self.symbols) >> 8 & 7
        return number

    def first(self, which: Int, told: Int) -> Int:
        """The first sign b that carriers have to do with; told: M of every cell."""
        cell = self.cell[which]
        sign: Int = told[cell] * self.offset[which] // self.width[cell]
        return sign

    def said(self, nonzero: Int) -> Int:
        """M of every cell; nonzero: which carriers are not zero."""
        counts = np.bincount(self.cell[nonzero], minlength=len(self.width))
        told = np.minimum(np.append(0, counts[:-1]), self.width // SHARE)
        told[self.turn == 0] = 0
        return np.asarray(told, np.int64)


def syndrome(cells: Cells, odd: Int, first: Int, owner: Int, count: int) -> Int:
    """Of so many cells the bits 0 .. M - 1: whether the sum of the magnitudes that have to do with that sign of it is odd.

    odd: the carriers of odd magnitude, `first` of them, and the cells that they are in. Higher bits have no meaning.
    """
    sums = np.zeros(count, np.int64)
    np.bitwise_xor.at(sums, owner, PATTERNS[cells.pattern[odd]] << first)
    return sums


def hidden(cells: Cells, magnitude: NDArray[Any]) -> tuple[Int, Int]:
    """Flat positions of the symbols whose signs are not sent, and the signs (1: negative); magnitudes [N, n]."""
    values = magnitude.reshape(-1)[cells.at]
    nonzero = np.flatnonzero(values)
    cells, values = cells.kept(nonzero), values[nonzero]
    told = cells.said(np.arange(len(values))) if len(cells.width) else cells.width
    if not told.any():
        return cells.at[:0], cells.at[:0]
    odd = np.flatnonzero(values & 1)
    words = np.repeat(syndrome(cells, odd, cells.first(odd, told), cells.cell[odd], len(told)), told)
    signs = words >> np.arange(len(words)) - np.repeat(np.cumsum(told) - told, told) & 1
    begins = np.searchsorted(cells.cell, np.arange(len(told)))
    rank = np.arange(len(values)) - begins[cells.cell]
    return cells.at[rank < np.append(told, 0)[cells.cell + 1]], signs


def hide(
    cells: Cells, q: NDArray[Any], error: NDArray[np.float32], costs: NDArray[Any], index: NDArray[np.uint8]
) -> NDArray[Any]:
    """Symbols q [N, n], integers, with cheap changes that make `hidden` true; encoder only.

    error [N, n]: what q is the rounding of, in steps. costs [2, 256]: by scale index the squared error (steps^2) that 1 is
    worth instead of 0 in bits, and n + 1 instead of n.
    """
    if not len(cells.width):
        return q
    value, given, row = q.reshape(-1)[cells.at].astype(np.int64), error.reshape(-1)[cells.at], index.reshape(-1)[cells.at]
    n = np.abs(value)
    a = np.where(value != 0, given * np.sign(value), np.abs(given)) - n
    up = 1 - 2 * a + costs[(n > 0).astype(np.int64), row]
    down = np.where(n > 0, 1 + 2 * a - costs[(n > 1).astype(np.int64), row], np.inf)
    price = np.minimum(up, down).astype(np.float32)
    sign = np.where(value != 0, value < 0, given < 0)
    changed = value + np.where(up <= down, 1, -1) * np.where(sign, -1, 1)
    start = np.searchsorted(cells.cell, np.arange(len(cells.width) + 1))
    for turn in range(1, CHAIN):
        chosen = np.flatnonzero(cells.turn == turn)
        for part in np.split(chosen, range(LANES, len(chosen), LANES)):
            which = _embed(cells, value, part, start, price)
            value[which] = changed[which]
    flat = q.reshape(-1).copy()
    flat[cells.at] = value
    return flat.reshape(q.shape)


def _ranges(start: Int, cells: Int) -> tuple[Int, Int]:
    """The carriers of some cells, and which of these cells each is in."""
    sizes = start[cells + 1] - start[cells]
    owner = np.repeat(np.arange(len(cells)), sizes)
    found: Int = np.arange(len(owner)) + (start[cells] - (np.cumsum(sizes) - sizes))[owner]
    return found, owner


def _embed(cells: Cells, value: Int, chosen: Int, start: Int, price: NDArray[np.float32]) -> Int:
    """Which carriers to change so that the chosen cells say the signs of the cells before them."""
    which, lane = _ranges(start, chosen - 1)
    nonzero = value[which] != 0
    which, lane = which[nonzero], lane[nonzero]
    counts = np.bincount(lane, minlength=len(chosen))
    bits = np.minimum(counts, cells.width[chosen] // SHARE)
    order = np.argsort(-bits, kind="stable")[: np.count_nonzero(bits)]  # lanes by falling length
    if not len(order):
        return np.zeros(0, np.int64)
    rank = np.arange(len(lane)) - (np.cumsum(counts) - counts)[lane]
    told = rank < bits[lane]
    longest, lanes = int(bits.max()), len(order)
    signs = np.zeros(len(chosen), np.int64)
    np.bitwise_or.at(signs, lane[told], (value[which[told]] < 0).astype(np.int64) << rank[told])
    # what the cells say as they are
    which, lane = _ranges(start, chosen)
    first = bits[lane] * cells.offset[which] // cells.width[chosen][lane]
    odd = np.flatnonzero(value[which] & 1)
    signs ^= syndrome(cells, which[odd], first[odd], lane[odd], len(chosen))
    want = signs[order] >> np.arange(longest)[:, None] & 1
    # the cheapest change of each sign and pattern
    place = np.full(len(chosen), -1)
    place[order] = np.arange(lanes)
    inside = place[lane] >= 0
    which, lane, first = which[inside], place[lane[inside]], first[inside]
    best = np.full((len(PATTERNS), longest, lanes), np.inf, np.float32)
    key = (cells.pattern[which] * longest + first) * lanes + lane
    np.minimum.at(best.reshape(-1), key, price[which])
    bits = bits[order]
    # the cheapest changes of the patterns of a sign whose sum with `want` is x, and which they are
    spent = np.full((STATES, longest, lanes), np.inf, np.float32)
    spent[0][want == 0] = spent[1][want == 1] = 0
    other = np.empty_like(spent)
    choice = np.empty((len(PATTERNS), *spent.shape), bool)
    for reached, price_of, better in zip(_REACHED, best, choice, strict=True):
        np.take(spent, reached, 0, other, "clip")
        other += price_of
        np.less(other, spent, out=better)
        np.minimum(spent, other, out=spent)
    costs = np.full((longest + 1, STATES // 2, lanes), np.inf, np.float32)
    costs[0, 0] = 0
    active = np.searchsorted(-bits, -np.arange(longest), "left").tolist()  # the lanes with bits > b
    for b, m in enumerate(active):
        ways = spent[:, b, :m].take(_CHANGE, 0)
        ways += costs[b, :, None, :m]
        ways.min(0, out=costs[b + 1, :, :m])
    everyone = np.arange(lanes)
    state = costs[bits, :, everyone].argmin(1)
    sums = np.zeros(want.shape, np.int64)
    for b in range(longest - 1, -1, -1):
        m = active[b]
        change = _CHANGE.take(state[:m], 1)
        ways = spent[:, b][change, everyone[:m]]
        ways += costs[b, :, :m]
        state[:m] = before = ways.argmin(0)
        sums[b, :m] = change[before, everyone[:m]]
    picked = np.empty(best.shape, bool)
    places = np.arange(longest * lanes).reshape(longest, lanes)
    for change, chose, pattern in zip(picked[::-1], choice[::-1], PATTERNS[::-1], strict=True):
        np.take(chose.reshape(-1), sums * places.size + places, out=change)
        sums ^= change * pattern
    taken = np.flatnonzero(picked.reshape(-1)[key] & (price[which] == best.reshape(-1)[key]))
    _, once = np.unique(key[taken], return_index=True)  # of equally cheap ones the first
    found: Int = which[taken[once]]
    return found
