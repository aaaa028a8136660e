"""The order in which the coefficients of the default model are coded: steps of planes, passes of a plane, and what each pass knows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import lapped_transform as transform

CHANNELS = 64
PASSES = 4
PASS_OF_TURN = (0, 2, 1, 3, 2, 3, 3, 3)  # the passes code 1/8, 1/8, 1/4, 1/2 of a plane
PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))  # rows and columns of blocks, modulo 2
ANCHOR = 8


def frequency_neighbours() -> Tensor:
    """float [64, 64], zigzag order: weight 2 between frequencies that differ by one along an axis, 1 diagonally."""
    order = torch.tensor(transform.zigzag())
    u, v = order // transform.BLOCK, order % transform.BLOCK
    du, dv = (u[:, None] - u).abs(), (v[:, None] - v).abs()
    return torch.where((du <= 1) & (dv <= 1) & (du + dv > 0), 3 - du - dv, 0).float()


def _smooth(x: Tensor) -> Tensor:
    """x [N, h, w, C] filtered by (1, 2, 1) along h and w, zeros beyond the border."""
    p = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = (p[:, :-2] + p[:, 2:]).add_(p[:, 1:-1], alpha=2)
    return (rows[:, :, :-2] + rows[:, :, 2:]).add_(rows[:, :, 1:-1], alpha=2)


@dataclass(frozen=True)
class Layout:
    """Which coefficients each pass codes, and where they lie in [h, w, 64] flattened: int64 tensors, one per pass.

    Parity of a block: its number in PARITIES; coefficient c is coded in pass PASS_OF_TURN[(2 parity + c) % 8]. A pass has the
    blocks of each parity one after another, in raster order, coefficients rising within a block. So the block means of
    parity p are coded in pass p.
    """

    where: list[Tensor]  # flat positions in [h, w, 64]
    channel: list[Tensor]  # and their coefficients
    spatial: list[
        Tensor
    ]  # float [n]: a sixteenth of the weight of the known neighbouring blocks, which is at least 1
    spectral: list[Tensor]  # float [n]: of that of the known neighbouring frequencies, at least 1
    level: list[Tensor]  # which of the n entries are block means (coefficient 0)
    block: list[Tensor]  # and their blocks, flat in [h, w]

    @staticmethod
    def of(h: int, w: int, device: torch.device | str = "cpu") -> Layout:
        places = torch.arange(h * w * CHANNELS).view(h, w, CHANNELS)
        where, known = [], torch.zeros(PASSES, h, w, CHANNELS)
        for p in range(PASSES):
            turns = zip(PARITIES, coded_channels(p), strict=True)
            where.append(
                torch.cat([places[r::2, c::2, wanted].flatten() for (r, c), wanted in turns])
            )
            known[p + 1 :].view(-1, places.numel())[:, where[p]] = 1
        channel = [n % CHANNELS for n in where]
        counts = [_smooth(known), known @ frequency_neighbours()]
        spatial, spectral = (
            [count[p].flatten()[n].clamp(min=1) / 16 for p, n in enumerate(where)]
            for count in counts
        )
        level = [(n % CHANNELS == 0).nonzero()[:, 0] for n in where]
        block = [n[i] // CHANNELS for n, i in zip(where, level, strict=True)]
        return Layout(
            *(
                [part.to(device) for part in parts]
                for parts in (where, channel, spatial, spectral, level, block)
            )
        )


@lru_cache
@torch.inference_mode(False)
def coded_channels(p: int) -> list[Tensor]:
    """Of each parity the coefficients of a block that pass p codes, int64."""
    turns = [(2 * parity + torch.arange(CHANNELS)) % 8 for parity in range(4)]
    return [(torch.tensor(PASS_OF_TURN)[turn] == p).nonzero()[:, 0] for turn in turns]


@lru_cache
@torch.inference_mode(False)
def _spectra(p: int) -> list[Tensor]:
    """`frequency_neighbours` of what pass p codes of the blocks of each parity, [64, m]."""
    return [frequency_neighbours()[:, wanted] for wanted in coded_channels(p)]


@lru_cache
@torch.inference_mode(False)
def column_inputs(p: int, parity: int, *, cross: bool = False) -> Tensor:
    """Which inputs of a convolution 3 x 3 the `columns` of pass p are for blocks of a parity, int64: flat in [64, 3, 3]."""
    r, c = PARITIES[parity]
    inputs = []
    for tap in (3, 4, 5, 1, 7) if cross else range(9):
        other = PARITIES.index(((r + tap // 3 - 1) % 2, (c + tap % 3 - 1) % 2))
        inputs += [9 * coded_channels(before)[other] + tap for before in range(p)]
    return torch.cat(inputs)


def columns(known: Tensor, *, cross: bool = False) -> list[Tensor]:
    """What is known of the blocks of each parity and the blocks around them: known [N, h + 2, w + 2, m] -> [blocks, 9 * m].

    m are the coefficients of earlier passes, of each block its own, one pass after another; zeros beyond the border.
    cross: without the blocks at the corners, [blocks, 5 * m]: before, itself, after, above, below.
    """
    n, height, width, m = known.shape
    plane, row, block, _ = known.stride()
    out = []
    for r, c in PARITIES:
        shape = (n, (height - 1 - r) // 2, (width - 1 - c) // 2, 3, 3 * m)
        near = known.as_strided(
            shape, (plane, 2 * row, 2 * block, row, 1), known.storage_offset() + r * row + c * block
        )
        if cross:
            middle = slice(m, 2 * m)
            near = torch.cat([near[..., 1, :], near[..., 0, middle], near[..., 2, middle]], -1)
        out.append(near.reshape(-1, near.shape[3:].numel()))
    return out


def grown(known: Tensor | None, new: Tensor, h: int, w: int) -> Tensor:
    """`known` of `columns` with what another pass coded, new [N, n]."""
    before, m = 0 if known is None else known.shape[-1], new.shape[1] // (h * w)
    out = new.new_zeros(len(new), h + 2, w + 2, before + m)
    if known is not None:
        out[..., :before] = known
    start = 0
    for r, c in PARITIES:
        place = out[:, 1 + r : h + 1 : 2, 1 + c : w + 1 : 2, before:]
        place.copy_(new[:, start : (start := start + place[0].numel())].view(place.shape))
    return out


def joined(parts: Sequence[Tensor], n: int) -> Tensor:
    """What belongs to the blocks of each parity [blocks, m] of n planes -> [n, blocks of all, m], in the order of a pass."""
    return torch.cat([part.unflatten(0, (n, len(part) // n)) for part in parts], 1)


@dataclass(frozen=True)
class Step:
    """Groups whose planes f = 0 are coded side by side: `before` and `after` are the coded ones around (-1: none)."""

    groups: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def places(self) -> list[int]:
        """Place of each: 0 nothing to lean on, 1 a group before, 2 3 4 between two, the farther 3 or more, 2, 1 away."""
        out = []
        for t, a, b in zip(self.groups, self.before, self.after, strict=True):
            out.append(0 if a < 0 else 1 if b < 0 else 5 - min(max(t - a, b - t), 3))
        return out


def steps(groups: int) -> list[Step]:
    """Order of the planes f = 0: every eighth group and the last one after another, then the middles between coded ones."""
    anchors = sorted({*range(0, groups, ANCHOR), groups - 1})
    out = [Step((t,), (anchors[i - 1] if i else -1,), (-1,)) for i, t in enumerate(anchors)]
    gaps = [(a, b) for a, b in itertools.pairwise(anchors) if b - a > 1]
    while gaps:
        before, after = zip(*gaps, strict=True)
        middle = tuple((a + b) // 2 for a, b in gaps)
        out.append(Step(middle, before, after))
        halves = [half for (a, b), t in zip(gaps, middle, strict=True) for half in ((a, t), (t, b))]
        gaps = [(a, b) for a, b in halves if b - a > 1]
    return out
