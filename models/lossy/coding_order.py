"""The order in which the default model codes coefficients: steps of bands, passes of a band.

A band [h, w, 64] holds the 64 coefficients of every 8 x 8 block of one frequency across the slices
of a group. A block belongs to one of four parities, by its row and column modulo 2 (PARITIES), and
coefficient c of a block of parity n has the phase (2 n + c) mod 8, which decides the pass:

    phase   0    1    2    3    4    5    6    7        the passes 0, 1, 2, 3 code
    pass    0    2    1    3    2    3    3    3        1/8, 1/8, 1/4 and 1/2 of a band

Each pass sees what the earlier ones coded, of the block itself and of its 3 x 3 neighbourhood, so a
coefficient has known neighbours in space and in frequency (Li et al. 2023, DCVC-DC,
arXiv:2302.14402: four passes over groups of channels and 2 x 2 parities). The DC coefficients of
parity p are coded in pass p.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import lapped_transform as transform

# Coefficients of a block.
CHANNELS = 64
# Passes that code a band.
PASSES = 4
# The pass that codes each phase of the coefficients.
PASS_OF_PHASE = (0, 2, 1, 3, 2, 3, 3, 3)
# Rows and columns of blocks modulo 2; the number of a pair is the parity of the block.
PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
# Every so many groups one low band is coded from the past alone, as an anchor of a hierarchy.
ANCHOR_DISTANCE = 8
# Classes of low bands by the distance of their references, see `CodingStep.reference_classes`.
REFERENCE_CLASSES = 5


def frequency_neighbours() -> Tensor:
    """float [64, 64], zigzag order: weight 2 between neighbours along an axis, 1 diagonally."""
    order = torch.tensor(transform.zigzag())
    u, v = order // transform.BLOCK, order % transform.BLOCK
    du, dv = (u[:, None] - u).abs(), (v[:, None] - v).abs()
    return torch.where((du <= 1) & (dv <= 1) & (du + dv > 0), 3 - du - dv, 0).float()


def binomial_sum(x: Tensor) -> Tensor:
    """x [N, h, w, C] filtered by (1, 2, 1) along h and w, zeros beyond the border."""
    p = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = (p[:, :-2] + p[:, 2:]).add_(p[:, 1:-1], alpha=2)
    return (rows[:, :, :-2] + rows[:, :, 2:]).add_(rows[:, :, 1:-1], alpha=2)


@dataclass(frozen=True)
class Layout:
    """Where the n coefficients of each pass lie in a band [h, w, 64]: lists with a tensor per pass.

    A pass has the blocks of each parity one after another, in raster order, and within a block the
    coefficients in ascending order.
    """

    where: list[Tensor]  # int64 [n]: flat positions in [h, w, 64].
    channel: list[Tensor]  # int64 [n]: which of the 64 coefficients each is.
    # float [n]: a sixteenth of the weight of the known neighbouring blocks in `binomial_sum`, which
    # counts as 1 at least.
    spatial: list[Tensor]
    # float [n]: the same of the known neighbouring frequencies in `frequency_neighbours`.
    spectral: list[Tensor]
    dc: list[Tensor]  # int64 [m]: which of the n are DC coefficients.
    dc_block: list[Tensor]  # int64 [m]: the blocks of these, flat in [h, w].

    @staticmethod
    def of(h: int, w: int, device: torch.device | str = "cpu") -> Layout:
        positions = torch.arange(h * w * CHANNELS).view(h, w, CHANNELS)
        where, known = [], torch.zeros(PASSES, h, w, CHANNELS, dtype=torch.float32)
        for p in range(PASSES):
            parities = zip(PARITIES, coded_channels(p), strict=True)
            where.append(
                torch.cat(
                    [positions[r::2, c::2, channels].flatten() for (r, c), channels in parities]
                )
            )
            known[p + 1 :].view(-1, positions.numel())[:, where[p]] = 1
        weights = [binomial_sum(known), known @ frequency_neighbours()]
        spatial, spectral = (
            [weight[p].flatten()[n].clamp(min=1) / 16 for p, n in enumerate(where)]
            for weight in weights
        )
        dc = [(n % CHANNELS == 0).nonzero()[:, 0] for n in where]
        dc_block = [n[i] // CHANNELS for n, i in zip(where, dc, strict=True)]
        channel = [n % CHANNELS for n in where]
        lists = (where, channel, spatial, spectral, dc, dc_block)
        return Layout(*([part.to(device) for part in parts] for parts in lists))


@lru_cache
@torch.inference_mode(False)
def coded_channels(p: int) -> list[Tensor]:
    """By parity: the coefficients of a block that pass p codes, int64 in ascending order."""
    phases = [(2 * parity + torch.arange(CHANNELS)) % 8 for parity in range(4)]
    return [(torch.tensor(PASS_OF_PHASE)[phase] == p).nonzero()[:, 0] for phase in phases]


@lru_cache
@torch.inference_mode(False)
def frequency_kernels(p: int) -> list[Tensor]:
    """By parity: the columns of `frequency_neighbours` that pass p codes, float [64, m]."""
    return [frequency_neighbours()[:, channels] for channels in coded_channels(p)]


@lru_cache
@torch.inference_mode(False)
def context_inputs(p: int, parity: int, *, cross: bool = False) -> Tensor:
    """The inputs of a 3 x 3 convolution that `context_columns` gives to pass p and a parity.

    int64, flat in [64, 3, 3]; the coefficients that are unknown in pass p are left out.
    """
    r, c = PARITIES[parity]
    inputs = []
    for tap in (3, 4, 5, 1, 7) if cross else range(9):
        neighbour = PARITIES.index(((r + tap // 3 - 1) % 2, (c + tap % 3 - 1) % 2))
        inputs += [9 * coded_channels(earlier)[neighbour] + tap for earlier in range(p)]
    return torch.cat(inputs)


def context_columns(known: Tensor, *, cross: bool = False) -> list[Tensor]:
    """By parity: im2col of what is known of each block and its neighbours.

    known [N, h + 2, w + 2, m] -> [blocks, 9 m]. The m values are the coefficients of the earlier
    passes, each block's own, one pass after another; zeros beyond the border. cross: without the
    diagonal neighbours, [blocks, 5 m]: left, itself, right, above, below.
    """
    n, height, width, m = known.shape
    band, row, block, _ = known.stride()
    out = []
    for r, c in PARITIES:
        shape = (n, (height - 1 - r) // 2, (width - 1 - c) // 2, 3, 3 * m)
        near = known.as_strided(
            shape, (band, 2 * row, 2 * block, row, 1), known.storage_offset() + r * row + c * block
        )
        if cross:
            centre = slice(m, 2 * m)
            near = torch.cat([near[..., 1, :], near[..., 0, centre], near[..., 2, centre]], -1)
        out.append(near.reshape(-1, near.shape[3:].numel()))
    return out


def append_pass(known: Tensor | None, coded: Tensor, h: int, w: int) -> Tensor:
    """`known` of `context_columns` and the coefficients of one more pass, coded [N, n]."""
    before, m = 0 if known is None else known.shape[-1], coded.shape[1] // (h * w)
    out = coded.new_zeros(len(coded), h + 2, w + 2, before + m)
    if known is not None:
        out[..., :before] = known
    start = 0
    for r, c in PARITIES:
        blocks = out[:, 1 + r : h + 1 : 2, 1 + c : w + 1 : 2, before:]
        blocks.copy_(coded[:, start : (start := start + blocks[0].numel())].view(blocks.shape))
    return out


def join_parities(parts: Sequence[Tensor], n: int) -> Tensor:
    """Values by parity [blocks of n bands, m] -> [n, all blocks, m], in the order of a pass."""
    return torch.cat([part.unflatten(0, (n, len(part) // n)) for part in parts], 1)


@dataclass(frozen=True)
class CodingStep:
    """Groups whose low bands are coded side by side, and the groups that each refers to.

    `before` and `after` are numbers of coded groups on either side of each group, -1 for none: the
    reference pictures of a hierarchical B picture.
    """

    groups: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def reference_classes(self) -> list[int]:
        """The class of each group by its references, 0 .. REFERENCE_CLASSES - 1.

        0: no reference. 1: one before. 2, 3, 4: on both sides, the farther one 3 or more, 2 or 1
        groups away.
        """
        classes = []
        for t, a, b in zip(self.groups, self.before, self.after, strict=True):
            classes.append(0 if a < 0 else 1 if b < 0 else 5 - min(max(t - a, b - t), 3))
        return classes


def coding_steps(groups: int) -> list[CodingStep]:
    """Order of the low bands: the anchors one by one, then by bisection the groups between them.

    Anchors are every eighth group and the last one; each refers to the anchor before it.
    """
    anchors = sorted({*range(0, groups, ANCHOR_DISTANCE), groups - 1})
    out = [CodingStep((t,), (anchors[i - 1] if i else -1,), (-1,)) for i, t in enumerate(anchors)]
    gaps = [(a, b) for a, b in itertools.pairwise(anchors) if b - a > 1]
    while gaps:
        before, after = zip(*gaps, strict=True)
        middles = tuple((a + b) // 2 for a, b in gaps)
        out.append(CodingStep(middles, before, after))
        halves = [
            half for (a, b), t in zip(gaps, middles, strict=True) for half in ((a, t), (t, b))
        ]
        gaps = [(a, b) for a, b in halves if b - a > 1]
    return out
