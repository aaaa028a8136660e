"""Iterative RDO of the default model's encoder: what a coefficient costs the symbols after it.

RDOQ (rdo.py) weighs a coefficient's error against its own bits alone. But it is also context: its
value changes the means and scales of coefficients that are coded later. Effort "high" measures this
by coding the bands several times and moves coefficients against the gradient of the bits that
depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import entropy_models as entropy
from .band_networks import BandNet
from .coding_order import CodingStep, Layout
from .context_model import (
    INDEX_SKIP,
    BandState,
    ContextCodec,
    ReferencePair,
    bands_at_once,
    select,
)
from .layers import straight_through
from .rdo import RDO_LAMBDA


@torch.inference_mode(False)
@torch.enable_grad()
def dependent_rate_gradient(
    network: ContextCodec, y_hat: Tensor, y: Tensor, depth: int, rate: Tensor
) -> Tensor:
    """Bits per step that each coefficient of coded bands costs the symbols that depend on it.

    The derivative by y_hat [K', h, w, 64], the coded bands of a slab in 1/16 of a step, of the bits
    of other symbols and of the squared errors (in RDO_LAMBDA) of those that are 0; same shape. y:
    the coefficients that y_hat approximates; rate int64 [1].
    """
    layout = Layout.of(y.shape[1], y.shape[2], y.device)
    slab = _CodedSlab(network, y_hat.clone(), y.clone(), depth, rate.clone(), layout)
    total = torch.zeros_like(y_hat)
    for step in network.order(len(y_hat) // depth):
        slab.add_low_gradients(step, total)
    for f in range(1, depth):
        slab.add_detail_gradients(f, total)
    return total.mul_(16)


@dataclass(frozen=True)
class _CodedSlab:
    """The coded bands of a slab; arguments as in `dependent_rate_gradient`."""

    network: ContextCodec
    y_hat: Tensor
    y: Tensor
    depth: int
    rate: Tensor
    layout: Layout

    def add_low_gradients(self, step: CodingStep, total: Tensor) -> None:
        """Add the gradients of the bits of a step's low bands to `total` [K', h, w, 64]."""
        depth, network = self.depth, self.network
        count = self._bands_at_once()
        for start in range(0, len(step.groups), count):
            part = CodingStep(
                *(each[start : start + count] for each in (step.groups, step.before, step.after))
            )
            groups = list(part.groups)
            coded = self.y_hat[::depth][groups].requires_grad_()
            bands = {
                g: self.y_hat[::depth][[g]].requires_grad_()
                for g in {*part.before, *part.after} - {-1}
            }
            references = {g: network.low_reference(band) for g, band in bands.items()}
            references[-1] = network.low_reference(torch.zeros_like(self.y_hat[:1]))
            pairs = [
                ReferencePair(references[a], references[b], b >= 0)
                for a, b in zip(part.before, part.after, strict=True)
            ]
            (state,) = network.low_states(pairs, part, depth, self.rate.expand(len(groups)))
            bits = self._bits(network.low, state, coded, self.y[::depth][groups]).sum()
            first, *others = torch.autograd.grad(bits, [coded, *bands.values()])
            total[::depth][groups] += first
            for g, gradient in zip(bands, others, strict=True):
                total[g * depth] += gradient[0]

    def add_detail_gradients(self, f: int, total: Tensor) -> None:
        """Add the gradients of the bits of the bands f > 0 to `total` [K', h, w, 64]."""
        depth, network = self.depth, self.network
        count = self._bands_at_once()
        for start in range(0, len(self.y_hat) // depth, count):
            # The energies of a band depend on the groups before and after it, too.
            near = slice(max(start - 1, 0), start + count + 1)
            bands = {
                n: self.y_hat[n::depth][near].clone().requires_grad_()
                for n in (0, max(f - 2, 0), f - 1, f)
            }
            references = {n: network.detail_reference(y, n) for n, y in bands.items() if n < f}
            chosen = references[f - 1], references[max(f - 2, 0)], references[0]
            (state,) = network.detail_states(f, chosen, depth, self.rate)
            bits = self._bits(network.detail, state, bands[f], self.y[f::depth][near])
            bits = bits[start - near.start :][:count].sum()
            gradients = torch.autograd.grad(bits, list(bands.values()))
            for n, gradient in zip(bands, gradients, strict=True):
                total[n::depth][near] += gradient

    def _bands_at_once(self) -> int:
        return bands_at_once(self.y.shape[1] * self.y.shape[2])

    def _bits(self, net: BandNet, state: BandState, y_hat: Tensor, y: Tensor) -> Tensor:
        """Bits [N] of coded bands, and errors of zeros in RDO_LAMBDA; y_hat, y [N, h, w, 64].

        Their gradient is that of other symbols: a symbol's own bits do not count.
        """
        sums = []

        def code(p: int, means: Sequence[Tensor], indices: Sequence[Tensor]) -> Sequence[Tensor]:
            (mu,), (index,) = means, indices
            where = self.layout.where[p]
            coded, target = select(y_hat, where), select(y, where)
            q, e = ((coded - mu).detach() / 16).round(), (target - mu) / 16
            bits = entropy.coded_bits(index, e, q, (q - e).detach())
            bits = bits * (index >= INDEX_SKIP) + e.square() * (q == 0) / RDO_LAMBDA
            sums.append(bits.sum(1))
            return [straight_through(coded, lambda _: q, coded.new_tensor(1 / 16))]

        self.network.code_passes(net, [state], self.layout, code)
        return torch.stack(sums).sum(0)
