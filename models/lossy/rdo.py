"""Rate-distortion decisions of the lossy encoder: rounding (RDOQ), error compensation, depths.

No decoder needs this module. Costs are squared errors in steps^2 + RDO_LAMBDA * bits.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from . import entropy_models as entropy
from . import lapped_transform as transform
from . import sign_hiding
from .coding_order import (
    PASSES,
    Layout,
    append_pass,
    coded_channels,
    context_columns,
    context_inputs,
    join_parities,
)
from .layers import lookup

# Squared steps per bit: -dD/dR of a uniform quantiser at high rate, 2 ln 2 / 12.
RDO_LAMBDA = 0.1155
# Largest error that is compensated for, in 1/16 of a step: sums are exact in float32.
ERROR_MAX = 255.0
# Bits of a coefficient y, roughly, when depths are chosen: log2(1 + DEPTH_SLOPE * abs(y)).
DEPTH_SLOPE = 3.0
# Share by which the bits of depths above 1 are raised: slices predict one another, bands do not.
DEPTH_PENALTY = 0.04
# Symbols of lower scale indices (sigma below 0.2) carry no hidden signs.
INDEX_HIDING = 16


class ErrorCompensation:
    """Targets of the coefficients of N bands given the errors of those coded before; encoder only.

    The transform is not orthogonal, so coefficients that are coded later can make good for the
    errors of earlier ones. One Jacobi step towards the least-squares solution gained 0.7 % of the
    rate on three validation scans, two steps no more.
    """

    def __init__(self, y: Tensor, layout: Layout) -> None:
        """y: the coefficients [N, h, w, 64] to approximate, in 1/16 of a step."""
        self._shape = y.shape
        self._y = [y.flatten(1).index_select(1, where) for where in layout.where]
        self._error: Tensor | None = None  # Errors as `context_columns` takes them.

    def targets(self, p: int) -> Tensor:
        """What the coefficients of pass p should become, [N, n] in 1/16 of a step."""
        if self._error is None:
            return self._y[p]
        corrections = []
        for near, (kernel, norms) in zip(
            context_columns(self._error, cross=True), _correlations(p), strict=True
        ):
            corrections.append((near @ kernel.to(near.device)).div_(norms.to(near.device)))
        return self._y[p] - join_parities(corrections, self._shape[0]).flatten(1)

    def update(self, p: int, y_hat: Tensor) -> None:
        """Take note of the coded values y_hat [N, n] of pass p.

        Errors are rounded to integers, so that the result does not depend on which bands are coded
        together.
        """
        if p < PASSES - 1:
            error = (y_hat - self._y[p]).round_().clamp_(-ERROR_MAX, ERROR_MAX)
            self._error = append_pass(self._error, error, *self._shape[1:3])


@lru_cache
@torch.inference_mode(False)
def _correlations(p: int) -> list[tuple[Tensor, Tensor]]:
    """By parity: inner products of the basis functions of pass p with those coded earlier.

    The earlier ones are of the same block and its four edge neighbours: float32 [inputs, m],
    integers in 1 / GRAM_SCALE. With them the squared norms of the m times GRAM_SCALE, [m].
    """
    kernel, norms = transform.gram()
    return [
        (
            kernel[channels].flatten(1)[:, context_inputs(p, parity, cross=True)].T.contiguous(),
            norms[channels] * transform.GRAM_SCALE,
        )
        for parity, channels in enumerate(coded_channels(p))
    ]


def choose_depths(y: Tensor) -> list[int]:
    """For slabs of slices y [S, K, h, w, 64] in steps: the depths whose bands take the fewest bits.

    A rough estimate. On 29 training and validation scans at four rates, with all blocks, it chose
    the depth of least squared error + lambda bits.
    """
    costs = []
    for depth in transform.DEPTHS:
        bands = transform.analysis_across(y, depth)
        bits = torch.log2(1 + DEPTH_SLOPE * bands.abs()).flatten(1).sum(1)
        costs.append(bits * (1 + DEPTH_PENALTY * (depth > 1)))
    best = torch.stack(costs).argmin(0)
    return [transform.DEPTHS[i] for i in best.tolist()]


@lru_cache
def increment_bits() -> Tensor:
    """Bits of one more unit of magnitude by scale index, float32 [2, 256].

    Row 0: of a magnitude of 1 instead of 0; row 1: of n + 1 instead of n > 0.
    """
    sigma = entropy.sigma_of(torch.arange(256, dtype=torch.float64).clamp(min=1))
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    first = entropy.laplace_bits(one, sigma) - entropy.laplace_bits(zero, sigma)
    return torch.stack([first, 2**0.5 / (sigma * math.log(2))]).float()


def hiding_weights() -> Tensor:
    """Hidden signs per magnitude by scale index, relative to a large scale: int32 [256].

    In 1 / sign_hiding.WEIGHT_MAX. exp(-0.11 / sigma^2) fits the bound for payload-limited senders
    (Filler, Judas & Fridrich 2011, eq. 7) for the costs of changing Laplace symbols quantised as
    here, at RDO_LAMBDA a bit.
    """
    index = torch.arange(256)
    share = torch.exp(-0.11 / entropy.sigma_of(index.double()) ** 2)
    weights = (sign_hiding.WEIGHT_MAX * share).round()
    return torch.where(index < INDEX_HIDING, 0, weights).to(torch.int32)


def rdo_quantise(e: Tensor, index: Tensor, index_min: int = 0) -> Tensor:
    """Rate-distortion optimised quantisation (RDOQ) of e, in steps, under the Laplace of the index.

    Encoder only. A symbol n + 1 is preferred to n where it saves more squared error than RDO_LAMBDA
    times its additional bits. Symbols of scale indices below `index_min` are 0; in training there
    are none of these, lest small scales be a way to save bits.
    """
    table = 0.5 * RDO_LAMBDA * increment_bits().to(e.device)
    to_first = 0.5 + table[0].clamp(max=0.8)
    to_first[:index_min] = math.inf
    index = index.to(torch.int32)
    first, later = lookup(to_first, index), lookup(0.5 - table[1].clamp(max=0.4), index)
    a = e.abs()
    # The threshold of 1 is below 1.5 or infinite, so it decides between 0 and 1 only.
    n = (a + later).floor_().clamp_(min=1)
    return n.mul_(a.gt_(first)).copysign_(e)
