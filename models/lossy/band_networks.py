"""The networks of the default model: features of reference bands, and the passes over a band.

    reference bands [N, 64, h, w] --conv--> features, summed --+--> base [N, h, w, width]
    class, rate [N] --------------------> biases --------------┘    (relu8, two residual blocks)

    base of a block ---------------------------------------------+
    y_hat of the block and its neighbours, as far as it is known |
      --conv 3x3 (im2col)--> [blocks, width] -------------------(+)--relu8--> 1x1 --relu8--> 1x1
                                                                        --> outputs [blocks, n]

`BandNet` has the first part and four `ContextPass`es of the second. The integers of a weights file
have the names of the state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .coding_order import (
    CHANNELS,
    PARITIES,
    PASSES,
    coded_channels,
    context_columns,
    context_inputs,
)
from .layers import SIGNED, IntegerBottleneck, IntegerConv2d, IntegerResidual, relu8, round_ste

# Classes of rates: octaves of the range of a volume in steps.
RATES = 16
# One unit of a gate, or of the weight of a log-energy, is 1 / GATE.
GATE = 64


@dataclass(frozen=True)
class BandKind:
    """What the bands that a `BandNet` predicts have in common."""

    kernels: tuple[int, ...]  # Size of the convolution of each reference.
    energies: int  # Log-energies of the references that scales depend on.
    classes: int  # Positions in the coding order that have biases and weights of their own.
    gates: bool  # Whether values are predicted linearly from the mean of the references, too.

    @property
    def outputs(self) -> int:
        """Of a block: means, scales (and gates) of 64 coefficients; two more gates of the DC."""
        return 3 * CHANNELS + 2 if self.gates else 2 * CHANNELS


class ContextPass(nn.Module):
    """One autoregressive pass over a band: Minnen, Balle & Toderici 2018, arXiv:1809.02736.

        base [blocks, width] ------------------(+)--relu8--> 1x1 --relu8--> 1x1 --> [blocks, n]
        known --3x3 on im2col columns-----------┘

    It computes the means, scales and gates of the coefficients that the pass codes, n numbers of
    the `BandKind.outputs` of a block. Scales also depend on log-energies of the context, two more
    in passes after the first. `base`: another layer on the base, in early stages of training.
    """

    def __init__(self, width: int, kind: BandKind, *, first: bool, base: bool) -> None:
        super().__init__()
        self.base = IntegerConv2d(width, width, 1) if base else None
        self.known = None if first else IntegerConv2d(CHANNELS, width)
        self.middle = IntegerConv2d(width, width, 1)
        self.head = IntegerConv2d(width, kind.outputs, 1, gain=0.3)
        count = kind.energies if first else kind.energies + 2
        self.energies = nn.Parameter(torch.full((kind.classes, count, CHANNELS), 0.75 / count))

    def energy_weights(self) -> Tensor:
        """[classes, energies, 64] integers, in 1 / GATE."""
        return round_ste((self.energies * GATE).clamp(-SIGNED, SIGNED))

    def forward(
        self, base: Sequence[Tensor], known: Tensor | None, p: int, outputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """By parity: base [blocks, width] -> the outputs of these numbers, [blocks, n].

        known: y_hat so far as `context_columns` takes it, None in pass 0. Only what is known is
        multiplied, and only what is coded is computed.
        """
        columns = [None] * len(base) if known is None else context_columns(known)
        out = []
        for parity, (features, near, numbers) in enumerate(
            zip(base, columns, outputs, strict=True)
        ):
            h = features.clone() if near is None or self.base is not None else features
            if self.base is not None:
                h = self.base.product(relu8(h))
            if self.known is not None and near is not None:
                kernel = self.known.kernel(parity, context_inputs(p, parity))
                h = self.known.product(near, kernel).add_(h)
            h = relu8(self.middle.product(relu8(h)))
            out.append(self.head.product(h, self.head.kernel(parity, outputs=numbers)))
        return out


class BandNet(nn.Module):
    """Context model of one kind of bands, in passes: Li et al. 2023, DCVC-DC, arXiv:2302.14402.

        references [N, 64, h, w] each, class [N], rate [N] --> base, by parity [blocks, width]
        base, y_hat so far --> `passes`[p] --> mean, scale (and gates) of what pass p codes

    The drawing of this module has the layers. `base` and `wide` are for early stages of training,
    see `ContextCodec`.
    """

    def __init__(self, width: int, kind: BandKind, *, wide: bool, base: bool) -> None:
        super().__init__()
        self.gates = kind.gates
        self.sources = nn.ModuleList(
            [IntegerConv2d(CHANNELS, width, 3 if wide else kernel) for kernel in kind.kernels]
        )
        # "place" is what weights files call the biases of the classes.
        self.register_parameter("place", nn.Parameter(torch.zeros(kind.classes, width)))
        self.rate = nn.Parameter(torch.zeros(RATES, width))
        self.mix = nn.ModuleList(
            [(IntegerResidual if wide else IntegerBottleneck)(width) for _ in range(2)]
        )
        self.passes: Sequence[ContextPass] = nn.ModuleList(  # type: ignore[assignment]
            [ContextPass(width, kind, first=p == 0, base=base) for p in range(PASSES)]
        )
        if kind.gates:
            with torch.no_grad():
                for each in self.passes:
                    each.head.bias[-1] = GATE

    @property
    def class_bias(self) -> nn.Parameter:
        """Biases [classes, width] of the features."""
        return self.get_parameter("place")

    def base(self, features: Sequence[Tensor], classes: Tensor, rate: Tensor) -> list[Tensor]:
        """Features of the references [N, h, w, width] -> base by parity [blocks, width].

        classes, rate: int64 [N] or [1].
        """
        biases = round_ste(self.class_bias)[classes] + round_ste(self.rate)[rate]
        total = biases[:, None, None] + features[0]
        for part in features[1:]:
            total += part
        total = relu8(total.permute(0, 3, 1, 2))
        for block in self.mix:
            total = block(total)
        total = total.permute(0, 2, 3, 1)
        return [total[:, r::2, c::2].flatten(0, 2) for r, c in PARITIES]

    def outputs(self, p: int) -> list[Tensor]:
        """By parity: the numbers of the outputs that pass p uses, int64.

        Means, then scales (then gates) of what it codes; for the parity whose DC it codes the two
        more gates.
        """
        groups = CHANNELS * torch.arange(3 if self.gates else 2)[:, None]
        numbers = [(groups + channels).flatten() for channels in coded_channels(p)]
        if self.gates:
            numbers[p] = torch.cat([numbers[p], 3 * CHANNELS + torch.arange(2)])
        return numbers

    def kernel_shapes(self) -> Iterator[tuple[int, int, int]]:
        """Outputs, inputs and kernel size of the parts of convolutions that the passes use."""
        for p, each in enumerate(self.passes):
            if each.known is not None:
                yield each.known.weight.shape[0], len(context_inputs(p, 0)), 1
            for numbers in self.outputs(p):
                yield len(numbers), each.head.weight.shape[1], 1
