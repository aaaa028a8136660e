"""Rate-distortion decisions of the lossy encoder: rounding, the depth of a slab, targets. No decoder needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder

from . import entropy_models as entropy
from . import lapped_transform as transform
from . import sign_hiding as hiding
from .codec_base import SIGNS
from .coding_order import PASSES, Layout, coded_channels, column_inputs, columns, grown, joined
from .layers import looked_up

ERROR_MAX = 255.0  # sixteenths of a step: exact sums in float32


class _Unwritten(SymbolCoder):
    """A coder that writes nothing."""

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        assert values is not None
        return values


@dataclass(frozen=True)
class _Lengths(SymbolCoder):
    """A coder that writes nothing and sums up what each slab's symbols would take, about."""

    bits: NDArray[np.float64]

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        assert values is not None
        if tables.name == SIGNS:
            self.bits[:] += index.sum(1)
            return values
        sent = index > 0
        sigma = entropy.sigma_of(torch.from_numpy(index[sent]))
        magnitudes = torch.from_numpy(values[sent])
        lengths = (entropy.laplace_bits(magnitudes, sigma) - (magnitudes > 0).float()).numpy()
        self.bits[:] += np.bincount(np.nonzero(sent)[0], lengths, len(index))
        return values


class _Targets:
    """What the coefficients of planes [N, h, w, 64] should become, given what came of those coded before; encoder only.

    The transform is not orthogonal: coefficients that are coded later can make good for the errors of those before. A step
    of Jacobi's iteration to the least squares for them gained 0.7 % of the rate on three validation scans, two steps no more.
    """

    def __init__(self, wanted: Tensor, layout: Layout) -> None:
        """wanted: in 1/16 step."""
        self._shape = wanted.shape
        self._wanted = [wanted.flatten(1).index_select(1, where) for where in layout.where]
        self._error: Tensor | None = None  # see `columns`

    def of(self, p: int) -> Tensor:
        """Of pass p, [N, n]."""
        if self._error is None:
            return self._wanted[p]
        shared = []
        for near, (kernel, norms) in zip(columns(self._error, cross=True), _shared(p), strict=True):
            shared.append((near @ kernel.to(near.device)).div_(norms.to(near.device)))
        return self._wanted[p] - joined(shared, self._shape[0]).flatten(1)

    def coded(self, p: int, y_hat: Tensor) -> None:
        """What came of pass p. In integers, so that it does not matter which planes are coded together."""
        if p < PASSES - 1:
            error = (y_hat - self._wanted[p]).round_().clamp_(-ERROR_MAX, ERROR_MAX)
            self._error = grown(self._error, error, *self._shape[1:3])


@lru_cache
@torch.inference_mode(False)
def _shared(p: int) -> list[tuple[Tensor, Tensor]]:
    """Of the blocks of each parity what the coefficients of pass p have in common with those known of the block and of the
    four beside it: float32 [inputs, m], integers in 1 / GRAM, and GRAM times the norms of those coefficients [m]."""
    kernel, norms = transform.gram()
    return [
        (
            kernel[wanted].flatten(1)[:, column_inputs(p, parity, cross=True)].T.contiguous(),
            norms[wanted] * transform.GRAM,
        )
        for parity, wanted in enumerate(coded_channels(p))
    ]


DEPTH_SLOPE, DEPTH_PRICE = (
    3.0,
    0.04,
)  # of `choose_depths`: slices apart predict one another, planes do not
INDEX_HIDING = 16  # lower ones (sigma below 0.2) say no signs


RDO_LAMBDA = (
    0.1155  # squared steps per bit: -dD/dR of a uniform quantiser at high rate, 2 ln 2 / 12
)


def choose_depths(y: Tensor) -> list[int]:
    """For slabs of slices y [S, K, h, w, 64] in steps: the depths whose planes take the fewest bits, roughly (encoder only).

    On 29 training and validation scans at four rates, with all blocks, it found the depth of the least squared error and rate.
    """
    costs = []
    for depth in transform.DEPTHS:
        planes = transform.analysis_across(y, depth)
        bits = torch.log2(1 + DEPTH_SLOPE * planes.abs()).flatten(1).sum(1)
        costs.append(bits * (1 + DEPTH_PRICE * (depth > 1)))
    best = torch.stack(costs).argmin(0)
    return [transform.DEPTHS[i] for i in best.tolist()]


@lru_cache
def bits_to_grow() -> Tensor:
    """float32 [2, 256]: by scale index, what a magnitude of 1 takes more than 0, and n + 1 more than n > 0."""
    sigma = entropy.sigma_of(torch.arange(256, dtype=torch.float64).clamp(min=1))
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    first = entropy.laplace_bits(one, sigma) - entropy.laplace_bits(zero, sigma)
    return torch.stack([first, 2**0.5 / (sigma * math.log(2))]).float()


def hiding_weights() -> Tensor:
    """int32 [256]: by scale index how many signs a magnitude can say, relative to one of a large scale, in 1 / `hiding.UNIT`.

    exp(-0.11 / sigma^2) fits what the bound for payload-limited senders (Filler, Judas & Fridrich 2011, eq. 7) gives for the
    costs of changing Laplace symbols quantised as here, at RDO_LAMBDA a bit.
    """
    index = torch.arange(256)
    share = torch.exp(-0.11 / entropy.sigma_of(index.double()) ** 2)
    return torch.where(index < INDEX_HIDING, 0, (hiding.UNIT * share).round()).to(torch.int32)


def rdo_quantise(e: Tensor, index: Tensor, least: int = 0) -> Tensor:
    """Rate-distortion optimised rounding of e (steps) under the Laplace of the scale index, 0 of lower ones; encoder only.

    A symbol n + 1 is preferred to n when it gains more squared error than RDO_LAMBDA times the bits it costs more. In
    training all are coded (not from INDEX_SKIP on), lest small scales be a way to save bits.
    """
    table = 0.5 * RDO_LAMBDA * bits_to_grow().to(e.device)
    to_first = 0.5 + table[0].clamp(max=0.8)
    to_first[:least] = math.inf
    index = index.to(torch.int32)
    first, later = looked_up(to_first, index), looked_up(0.5 - table[1].clamp(max=0.4), index)
    a = e.abs()
    n = (a + later).floor_().clamp_(min=1)  # first < 1.5 or infinite, so what it decides is 0 or 1
    return n.mul_(a.gt_(first)).copysign_(e)
