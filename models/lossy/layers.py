"""Building blocks: integer convolutions (the decoder's arithmetic), companding, generalised divisive normalisation.

Integer convolution. Activations are integers A; one unit is 1/16 of a quantisation step wherever they stand for samples
or coefficients. Weights are integers |W| <= 127 with a power of two 2**s per output channel; B is the integer bias.

    out = round((sum W * A + B) / 2**s)       ties to even

With |A| <= 255 and sum |W| * 255 + |B| < 2**24 every sum is exact in float32 in any order: the same on every backend.
Training runs the same arithmetic with weights W / 2**s and biases B / 2**s (a scaling by powers of two changes no rounding)
and straight-through gradients, so what is trained is what is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGNED = 127  # largest magnitude of a signed activation
UNSIGNED = 255  # largest activation after a ReLU
MAX_SHIFT = 14

Part = tuple[Tensor, Tensor]  # weights [outputs, inputs] and biases [outputs]


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, made: Callable[[Tensor], Tensor], slope: Tensor | None
    ) -> Tensor:
        ctx.slope = slope
        return made(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient if ctx.slope is None else gradient * ctx.slope, None, None


def through(x: Tensor, made: Callable[[Tensor], Tensor], slope: Tensor | None = None) -> Tensor:
    """made(x), with a gradient of so much (None: 1)."""
    y: Tensor = _Through.apply(x, made, slope)  # type: ignore[no-untyped-call]
    return y


def round_through(x: Tensor) -> Tensor:
    """Round to integers (ties to even), gradient of the identity."""
    return through(x, torch.round) if x.requires_grad else x.round()


def floor_through(x: Tensor) -> Tensor:
    """Round down, in place where no gradient is wanted; gradient of the identity."""
    return through(x, torch.floor) if x.requires_grad else x.floor_()


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """In place but in training; no gradient at the limits and beyond (fused, unlike `clamp`)."""
    return F.hardtanh(x, low, high, inplace=not torch.is_grad_enabled())


def relu8(x: Tensor) -> Tensor:
    """`clamped` to 0 .. 255."""
    return clamped(x, 0, UNSIGNED)


def clamp8(x: Tensor) -> Tensor:
    """Clamped to -127 .. 127; no gradient at the limits and beyond."""
    return F.hardtanh(x, -SIGNED, SIGNED)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Same-size convolution with zero padding, in the dtype of `weight`; 1 x 1 kernels as one matrix product."""
    x = x.to(weight.dtype)
    if weight.shape[-1] == 1:
        return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class IntegerConv2d(nn.Module):
    """Convolution [N, inputs, H, W] -> [N, outputs, H, W], integer-valued in and out, zero padding (see the module)."""

    frozen_weight: Tensor | None
    frozen_bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("frozen_weight", None, persistent=False)
        self.register_buffer("frozen_bias", None, persistent=False)
        self._dtype = torch.float32
        self._rounded: tuple[Tensor, Tensor] | None = None
        self._parts: dict[Hashable, tuple[Tensor, Part]] = {}
        nn.init.normal_(self.weight, std=gain * (2 / (inputs * kernel * kernel)) ** 0.5)

    def _shift(self) -> Tensor:
        largest = (
            self.weight.detach().abs().amax((1, 2, 3)).clamp(min=SIGNED * 2.0 ** -(MAX_SHIFT + 1))
        )
        return torch.floor(torch.log2(SIGNED / largest)).clamp(0, MAX_SHIFT)

    def forward(self, x: Tensor) -> Tensor:
        return self._rounded_sum(convolve(x, *self._weights()))

    def part(
        self, name: Hashable, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> Part:
        """A part of the convolution for `of_rows`; one that was shipped is kept by its name.

        inputs: which of [inputs, kernel, kernel], flattened, the columns are, all others being zero; outputs: which are wanted.
        """
        kept = self._parts.get(name)
        if kept is not None and kept[0] is self.frozen_weight:
            return kept[1]
        with torch.inference_mode(False):  # or it could not be used where there are gradients
            weight, bias = self._weights()
            rows, biases = weight.flatten(1), bias
            if inputs is not None:
                rows = rows[:, inputs.to(rows.device)]
            if outputs is not None:
                rows, biases = rows[outputs.to(rows.device)], biases[outputs.to(rows.device)]
        if self.frozen_weight is not None:
            self._parts[name] = self.frozen_weight, (rows, biases)
        return rows, biases

    def of_rows(self, x: Tensor, part: Part | None = None) -> Tensor:
        """The convolution, or a part of it, as a matrix product: rows [n, m] -> [n, outputs]."""
        weight, bias = part or self.part("whole")
        return self._rounded_sum(F.linear(x.to(weight.dtype), weight, bias))

    def _weights(self) -> tuple[Tensor, Tensor]:
        if self.frozen_weight is not None and self.frozen_bias is not None:
            return self.frozen_weight, self.frozen_bias
        weight, bias = self._rounded or self._round()
        return weight.to(self._dtype), bias.to(self._dtype)

    def _rounded_sum(self, y: Tensor) -> Tensor:
        y = y.float()
        return round_through(y) if y.requires_grad or self.frozen_weight is None else y.round_()

    def _round(self) -> tuple[Tensor, Tensor]:
        scale = torch.exp2(self._shift())
        each = scale[:, None, None, None]
        weight = round_through(self.weight.clamp(-SIGNED, SIGNED) * each) / each
        return weight, round_through(self.bias * scale) / scale

    def integers(self) -> dict[str, Tensor]:
        """What is shipped: weight int8 [o, i, k, k], bias int32 [o], shift uint8 [o]."""
        shift = self._shift()
        scale = torch.exp2(shift)
        weight = (self.weight.detach().clamp(-SIGNED, SIGNED) * scale[:, None, None, None]).round()
        bias = (self.bias.detach() * scale).round()
        if (weight.abs().sum((1, 2, 3)) * UNSIGNED + bias.abs()).max() >= 1 << 24:
            raise ValueError("weights too large for exact sums in float32")
        return {
            "weight": weight.to(torch.int8),
            "bias": bias.to(torch.int32),
            "shift": shift.to(torch.uint8),
        }

    def freeze(self, integers: dict[str, Tensor]) -> None:
        """Use shipped integers from now on."""
        scale = torch.exp2(integers["shift"].float())
        weight = integers["weight"].float() / scale[:, None, None, None]
        self.frozen_weight = weight.contiguous(memory_format=torch.channels_last)
        self.frozen_bias = integers["bias"].float() / scale

    def compute_in(self, dtype: torch.dtype) -> None:
        """The arithmetic of the sums; `exact.choose_backend` knows which is exact."""
        self._dtype = dtype
        if self.frozen_weight is not None and self.frozen_bias is not None:
            self.frozen_weight, self.frozen_bias = (
                self.frozen_weight.to(dtype),
                self.frozen_bias.to(dtype),
            )


@contextmanager
def rounded_once(model: nn.Module) -> Iterator[None]:
    """Within, layers in training round their weights once for all calls."""
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, IntegerConv2d) and layer.frozen_weight is None
    ]
    for layer in layers:
        layer._rounded = layer._round()
    try:
        yield
    finally:
        for layer in layers:
            layer._rounded = None


class IntegerResidual(nn.Module):
    """x + conv(relu8(conv(clamp8(x)))): the trunk keeps full integers, the branch sees 8 bits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(channels, channels)
        self.second = IntegerConv2d(channels, channels, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(relu8(self.first(clamp8(x))))
        return y.add_(x)


class IntegerBottleneck(nn.Module):
    """The same with a branch of half the channels, 1 x 1, 3 x 3 and 1 x 1 (He et al. 2016): 18 % of the operations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(channels, channels // 2, 1)
        self.middle = IntegerConv2d(channels // 2, channels // 2)
        self.second = IntegerConv2d(channels // 2, channels, 1, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(relu8(self.middle(relu8(self.first(clamp8(x))))))
        return y.add_(x)


# Companding: identity up to one step (16 units), then 16 units a doubling: 7 bits for magnitudes up to 124 steps.
COMPAND_SIZE = 2048


def compand_table() -> Tensor:
    """float32 [4095], integer-valued: -2047 .. 2047 sixteenths of a step -> activation -127 .. 127."""
    v = torch.arange(COMPAND_SIZE, dtype=torch.float64)
    log = 16 * (1 + torch.log2(v.clamp(min=16) / 16))
    half = torch.where(v <= 16, v, log).round().clamp(max=SIGNED).float()
    return torch.cat([-half[1:].flip(0), half])


def compand(x: Tensor, table: Tensor) -> Tensor:
    """x integer-valued -> table[clamp(x, -2047, 2047) + 2047]."""
    limit = COMPAND_SIZE - 1

    def made(x: Tensor) -> Tensor:
        return looked_up(table, x.clamp(-limit, limit) + limit)

    return (
        through(x, made, (16 / math.log(2) / x.detach().abs()).clamp_(max=1))
        if x.requires_grad
        else made(x)
    )


def looked_up(table: Tensor, x: Tensor) -> Tensor:
    """table[x], x integer-valued; a third of the time of indexing."""
    return table.index_select(0, x.flatten().to(torch.int32)).view(x.shape)


# Logarithm of a mean magnitude, in eighths of an octave as the scale index is.
LEVELS = 16 * (COMPAND_SIZE - 1) + 1


def level_table() -> Tensor:
    """float32 [32753], integer-valued: m -> round(8 log2(m / 256 + 0.04)), m the mean magnitude in 1/256 of a step."""
    m = torch.arange(LEVELS, dtype=torch.float64)
    return torch.round(8 * torch.log2(m / 256 + 0.04)).float()


def level_of(m: Tensor, table: Tensor) -> Tensor:
    """table[floor(m)], of `level_table`."""
    if m.requires_grad:
        return through(m, partial(looked_up, table), 8 / math.log(2) / (m.detach() + 256 * 0.04))
    return looked_up(table, m)


class GDN(nn.Module):
    """Generalised divisive normalisation, Balle, Laparra & Simoncelli 2016: y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)."""

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels) + 1e-3)
        self.inverse = inverse

    def forward(self, x: Tensor) -> Tensor:
        norm = F.conv2d(
            x * x,
            self.gamma.abs()[:, :, None, None].to(x.dtype),
            self.beta.abs().add(1e-6).to(x.dtype),
        )
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())
