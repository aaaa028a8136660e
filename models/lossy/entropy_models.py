"""Entropy models: factorized bottleneck, conditional Laplace and Gaussian, their integer tables.

Scale index (uint8): 0 = the symbol is zero and is not coded; i >= 1: sigma = 0.05 * 2**(i / 8). The
first 60 indices have a row of their own in tables of signed values (sigma up to 9), the first 68 in
tables of magnitudes; above, the last 8 rows are used on value >> k, as the range coder does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mricodec.bitstream.symbols import TOTAL, normalised

# Scale indices per octave of sigma.
OCTAVE = 8
# Rows of tables of signed values -32 .. 32: sigma up to 9.
ROWS = 60
# Rows of tables of magnitudes 0 .. 64: sigma up to 18.
MAGNITUDE_ROWS = 68
# sigma of scale index 0, in steps.
SIGMA_0 = 0.05
# Least value of the tables of signed values.
LOW = -32
# Values of a table; one more column is the escape.
BINS = 65
# Likelihoods count as at least this, so that bits stay finite.
LIKELIHOOD_FLOOR = 2.0**-24


def sigma_of(index: Tensor) -> Tensor:
    """Standard deviation, in steps, of a scale index."""
    return SIGMA_0 * torch.exp2(index / OCTAVE)


def laplace_bits(value: Tensor, sigma: Tensor) -> Tensor:
    """-log2 P(value - 1/2 < X < value + 1/2), X Laplace with mean 0 and standard deviation sigma.

    Differentiable in both.
    """
    b = sigma / math.sqrt(2)
    a = value.abs()
    outer = 0.5 * torch.exp(-(a - 0.5).clamp(min=0) / b) * -torch.expm1(-1 / b)
    inner = 1 - 0.5 * (
        torch.exp(-(0.5 + a).clamp(max=1.5) / b) + torch.exp(-(0.5 - a).clamp(min=0) / b)
    )
    return -torch.log2(torch.where(a >= 0.5, outer, inner).clamp(min=LIKELIHOOD_FLOOR))


class _CodedBits(torch.autograd.Function):
    """The function of `coded_bits` with gradients in closed form; k = sqrt(2) / sigma.

    P(0) = 1 - exp(-k / 2) and P(+-a) = exp(-(a - 1/2) k) (1 - exp(-k)) / 2 for a > 0.
    """

    @staticmethod
    def forward(ctx: Any, index: Tensor, error: Tensor, q: Tensor, noise: Tensor) -> Tensor:
        k = math.sqrt(2) / sigma_of(index.clamp(min=1))
        a, tail = q.abs(), torch.expm1(k)
        coded = a > 0
        nats = torch.where(
            coded, math.log(2) + (a + 0.5) * k - torch.log(tail), -torch.log(-torch.expm1(-k / 2))
        )
        slope = torch.where(coded, a - 0.5 - 1 / tail, -0.5 / torch.expm1(k / 2))
        floor = -math.log(LIKELIHOOD_FLOOR)
        # d k / d index = -k ln 2 / OCTAVE
        by_index = (-k / OCTAVE) * slope.masked_fill_((nats > floor) | (index < 1), 0)
        noisy = error + noise
        a = noisy.abs()
        below, above = (0.5 * torch.exp(-k * side) for side in ((0.5 - a).clamp_(min=0), 0.5 + a))
        by_error = torch.where(a >= 0.5, k, k * (below - above) / (1 - below - above))
        by_error.masked_fill_(k * (a - 0.5) - torch.log(-torch.expm1(-k)) + math.log(2) > floor, 0)
        ctx.save_for_backward(by_index, by_error.mul_(torch.sign(noisy)).div_(math.log(2)))
        return nats.clamp_(max=floor).div_(math.log(2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_index, by_error = ctx.saved_tensors
        return gradient * by_index, gradient * by_error, None, None


def coded_bits(index: Tensor, error: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """`laplace_bits` of the symbols q under the scale index.

    q is the rounding of `error`, whose gradient is that of the bits of error + noise, noise uniform
    in -1/2 .. 1/2 (the relaxation of Balle, Laparra & Simoncelli 2016, arXiv:1611.01704).
    """
    bits: Tensor = _CodedBits.apply(index, error, q, noise)  # type: ignore[no-untyped-call]
    return bits


def gaussian_bits(value: Tensor, sigma: Tensor) -> Tensor:
    """-log2 P(value - 1/2 < X < value + 1/2), X Gaussian (Balle et al. 2018, eq. 9 with mean 0)."""
    a = value.abs()
    upper = 0.5 * torch.erfc((a - 0.5) / (sigma * math.sqrt(2)))
    lower = 0.5 * torch.erfc((a + 0.5) / (sigma * math.sqrt(2)))
    return -torch.log2((upper - lower).clamp(min=LIKELIHOOD_FLOOR))


class EntropyBottleneck(nn.Module):
    """Fully factorized prior (Balle et al. 2018, arXiv:1802.01436, appendix 6.1).

        z [N, C, ...] --(z_c -+ 1/2)--> monotone MLP of channel c, 1-3-3-3-3-1 --> logits
                      --sigmoid--> cumulative --difference--> likelihoods [N, C, ...]

    Parameters are laid out as in CompressAI's EntropyBottleneck with filters (3, 3, 3, 3), so that
    one can be checked by the other.
    """

    FILTERS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int, init_scale: float = 10.0) -> None:
        super().__init__()
        self.channels = channels
        scale = init_scale ** (1 / (len(self.FILTERS) - 1))
        self.matrices, self.biases, self.factors = (
            nn.ParameterList(),
            nn.ParameterList(),
            nn.ParameterList(),
        )
        for i, (inputs, outputs) in enumerate(zip(self.FILTERS, self.FILTERS[1:], strict=False)):
            start = math.log(math.expm1(1 / scale / outputs))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)))
            if i < len(self.FILTERS) - 2:
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    def _logits(self, x: Tensor) -> Tensor:
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(matrix) @ x + bias
            if i < len(self.factors):
                x = x + torch.tanh(self.factors[i]) * torch.tanh(x)
        return x

    def likelihood(self, z: Tensor) -> Tensor:
        """P of unit bins centred at z; z [N, C, ...], same shape out."""
        flat = z.transpose(0, 1).reshape(self.channels, 1, -1)
        lower, upper = self._logits(flat - 0.5), self._logits(flat + 0.5)
        sign = -torch.sign(lower + upper).detach()
        p = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        return p.reshape(self.channels, z.shape[0], *z.shape[2:]).transpose(0, 1)

    def bits(self, z: Tensor) -> Tensor:
        """-log2 of the likelihoods, at most 24 bits."""
        return -torch.log2(self.likelihood(z).clamp(min=LIKELIHOOD_FLOOR))

    @torch.no_grad()
    def tables(self, low: int = LOW, bins: int = BINS) -> Tensor:
        """Integer tables int64 [C, bins + 1], rows of sum 2**24; the last column is the escape."""
        values = torch.arange(low, low + bins, dtype=torch.float32)
        p = self.likelihood(values.expand(1, self.channels, bins))[0].double()
        return integer_tables(torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp(min=1e-7)], 1))


def integer_tables(p: Tensor) -> Tensor:
    """Probabilities [rows, n] -> integer weights >= 1, int64, rows of sum 2**24 (`normalised`)."""
    return torch.from_numpy(normalised(p.detach().double().numpy()).astype(np.int64))


def scale_tables(distribution: str = "laplace") -> Tensor:
    """Tables of a "laplace" or "gaussian" at 60 scales, int64 [60, 66]; row 0 is unused."""
    values = torch.arange(LOW, LOW + BINS, dtype=torch.float64)[None]
    bits = {"laplace": laplace_bits, "gaussian": gaussian_bits}[distribution]
    p = torch.exp2(-bits(values, sigma_of(torch.arange(ROWS, dtype=torch.float64))[:, None]))
    return integer_tables(torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp(min=1e-6)], 1))


def magnitude_tables() -> Tensor:
    """Tables of magnitudes of Laplace symbols at 68 scales, int64 [68, 66]; row 0 is unused."""
    values = torch.arange(BINS, dtype=torch.float64)[None]
    sigma = sigma_of(torch.arange(MAGNITUDE_ROWS, dtype=torch.float64))[:, None]
    p = torch.exp2(-laplace_bits(values, sigma)) * torch.where(values > 0, 2, 1)
    return integer_tables(torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp(min=1e-6)], 1))


def fitted_tables(counts: Tensor, prior: Tensor, weight: float = 2000.0) -> Tensor:
    """Tables from histograms of coded tokens [rows, 66] and `weight` virtual draws from the prior.

    Histograms of signed values (60 rows) are made symmetric.
    """
    counts = counts.double()
    if len(counts) == ROWS:
        body = counts[:, :BINS]
        counts = torch.cat([(body + body.flip(1)) / 2, counts[:, BINS:]], 1)
    return integer_tables(counts + weight * prior.double() / TOTAL)
