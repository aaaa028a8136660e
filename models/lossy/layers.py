"""Building blocks: integer convolutions (the decoder's arithmetic), companding, GDN.

Integer convolution. Activations are integers A; one unit is 1/16 of a quantisation step wherever
they stand for samples or coefficients. Weights are integers |W| <= 127 with a power of two 2**s
per output channel; B is the integer bias.

    out = round((sum W * A + B) / 2**s)       ties to even

With |A| <= 255 and sum |W| * 255 + |B| < 2**24 every sum is exact in float32 in any order: the
same on every backend. Training runs the same arithmetic with weights W / 2**s and biases B / 2**s
(a scaling by powers of two changes no rounding) and straight-through gradients, so what is trained
is what is decoded (integer networks after Balle, Johnston & Minnen 2019, "Integer networks for
data compression with latent-variable models").
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

# Largest magnitude of a signed activation or weight.
SIGNED = 127
# Largest activation after a ReLU.
UNSIGNED = 255
# Largest exponent s of the power of two that divides the sums of an output channel.
MAX_SHIFT = 14
# Companding tables cover the magnitudes 0 .. COMPAND_SIZE - 1, in 1/16 of a step.
COMPAND_SIZE = 2048
# Mean magnitudes that have a log-energy: 0 .. 16 * (COMPAND_SIZE - 1), in 1/256 of a step.
LOG_ENERGY_SIZE = 16 * (COMPAND_SIZE - 1) + 1

Kernel = tuple[Tensor, Tensor]  # weights [outputs, inputs] and biases [outputs] of a product


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], slope: Tensor | None
    ) -> Tensor:
        ctx.slope = slope
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient if ctx.slope is None else gradient * ctx.slope, None, None


def straight_through(
    x: Tensor, function: Callable[[Tensor], Tensor], slope: Tensor | None = None
) -> Tensor:
    """function(x) whose gradient is taken for `slope` (None: 1): a straight-through estimator."""
    y: Tensor = _StraightThrough.apply(x, function, slope)  # type: ignore[no-untyped-call]
    return y


def round_ste(x: Tensor) -> Tensor:
    """Round to integers (ties to even), gradient of the identity."""
    return straight_through(x, torch.round) if x.requires_grad else x.round()


def floor_ste(x: Tensor) -> Tensor:
    """Round down, gradient of the identity; in place where no gradient is needed."""
    return straight_through(x, torch.floor) if x.requires_grad else x.floor_()


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp without gradient at the limits and beyond (fused, unlike `clamp`).

    In place unless gradients are enabled.
    """
    return F.hardtanh(x, low, high, inplace=not torch.is_grad_enabled())


def relu8(x: Tensor) -> Tensor:
    """Clamp to 0 .. 255 as `clamped` does."""
    return clamped(x, 0, UNSIGNED)


def clamp8(x: Tensor) -> Tensor:
    """Clamp to -127 .. 127, never in place; no gradient at the limits and beyond."""
    return F.hardtanh(x, -SIGNED, SIGNED)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Same-size convolution with zero padding in the dtype of `weight`; 1 x 1 as one product."""
    x = x.to(weight.dtype)
    if weight.shape[-1] == 1:
        return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class IntegerConv2d(nn.Module):
    """Integer convolution with zero padding, as this module's docstring defines it.

    x [N, inputs, H, W] -> [N, outputs, H, W], integer-valued in and out. Float parameters while it
    is trained, the shipped integers once `freeze` has been called.
    """

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
        self._kernels: dict[Hashable, tuple[Tensor, Kernel]] = {}
        nn.init.normal_(self.weight, std=gain * (2 / (inputs * kernel * kernel)) ** 0.5)

    def _shift(self) -> Tensor:
        largest = (
            self.weight.detach().abs().amax((1, 2, 3)).clamp(min=SIGNED * 2.0 ** -(MAX_SHIFT + 1))
        )
        return torch.floor(torch.log2(SIGNED / largest)).clamp(0, MAX_SHIFT)

    def forward(self, x: Tensor) -> Tensor:
        return self._rounded_sum(convolve(x, *self._weights()))

    def kernel(
        self, name: Hashable, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> Kernel:
        """The kernel, or a part of it, as a matrix for `product`; cached by name once frozen.

        inputs: int64, the positions in [inputs, kernel, kernel], flattened, that are not zero and
        that the columns consist of; outputs: int64, the output channels that are computed.
        """
        cached = self._kernels.get(name)
        if cached is not None and cached[0] is self.frozen_weight:
            return cached[1]
        # An inference tensor in the cache could not be used where gradients are computed.
        with torch.inference_mode(False):
            weight, bias = self._weights()
            rows, biases = weight.flatten(1), bias
            if inputs is not None:
                rows = rows[:, inputs.to(rows.device)]
            if outputs is not None:
                rows, biases = rows[outputs.to(rows.device)], biases[outputs.to(rows.device)]
        if self.frozen_weight is not None:
            self._kernels[name] = self.frozen_weight, (rows, biases)
        return rows, biases

    def product(self, columns: Tensor, kernel: Kernel | None = None) -> Tensor:
        """The convolution as a product with im2col columns [n, m] -> [n, outputs]."""
        weight, bias = kernel or self.kernel("whole")
        return self._rounded_sum(F.linear(columns.to(weight.dtype), weight, bias))

    def _weights(self) -> tuple[Tensor, Tensor]:
        if self.frozen_weight is not None and self.frozen_bias is not None:
            return self.frozen_weight, self.frozen_bias
        weight, bias = self._rounded or self._round()
        return weight.to(self._dtype), bias.to(self._dtype)

    def _rounded_sum(self, y: Tensor) -> Tensor:
        y = y.float()
        return round_ste(y) if y.requires_grad or self.frozen_weight is None else y.round_()

    def _round(self) -> tuple[Tensor, Tensor]:
        scale = torch.exp2(self._shift())
        each = scale[:, None, None, None]
        weight = round_ste(self.weight.clamp(-SIGNED, SIGNED) * each) / each
        return weight, round_ste(self.bias * scale) / scale

    def integers(self) -> dict[str, Tensor]:
        """The tensors of a weights file: weight int8 [o, i, k, k], bias int32 [o], shift uint8 [o].

        ValueError if a sum might not be exact in float32.
        """
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
        """Compute with these tensors of a weights file from now on, until training begins."""
        scale = torch.exp2(integers["shift"].float())
        weight = integers["weight"].float() / scale[:, None, None, None]
        self.frozen_weight = weight.contiguous(memory_format=torch.channels_last)
        self.frozen_bias = integers["bias"].float() / scale
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(self.frozen_bias)

    def train(self, mode: bool = True) -> IntegerConv2d:
        """Training forgets the frozen tensors: rounded, the parameters are the same integers."""
        if mode:
            self.frozen_weight = self.frozen_bias = None
        super().train(mode)
        return self

    def compute_in(self, dtype: torch.dtype) -> None:
        """Set the type of the sums; `bit_exact.choose_backend` knows which is exact here."""
        self._dtype = dtype
        if self.frozen_weight is not None and self.frozen_bias is not None:
            self.frozen_weight = self.frozen_weight.to(dtype)
            self.frozen_bias = self.frozen_bias.to(dtype)


@contextmanager
def rounded_once(model: nn.Module) -> Iterator[None]:
    """While this context lasts, layers in training round their weights once for all calls."""
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
    """Pre-activation residual block in integers (He et al. 2016, arXiv:1603.05027).

        x [N, C, h, w] --clamp8--> conv 3x3 --relu8--> conv 3x3 --(+)--> [N, C, h, w]
          └──────────────────────────────────────────────────────┘

    The trunk keeps full integers, the branch sees 8 bits.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(channels, channels)
        self.second = IntegerConv2d(channels, channels, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(relu8(self.first(clamp8(x))))
        return y.add_(x)


class IntegerBottleneck(nn.Module):
    """Bottleneck residual block in integers (He et al. 2016, arXiv:1512.03385).

        x [N, C, h, w] --clamp8--> 1x1 to C/2 --relu8--> 3x3 --relu8--> 1x1 to C --(+)--> same shape
          └──────────────────────────────────────────────────────────────────────────┘

    18 % of the operations of `IntegerResidual`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(channels, channels // 2, 1)
        self.middle = IntegerConv2d(channels // 2, channels // 2)
        self.second = IntegerConv2d(channels // 2, channels, 1, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(relu8(self.middle(relu8(self.first(clamp8(x))))))
        return y.add_(x)


def compand_table() -> Tensor:
    """float32 [4095], integer-valued: -2047 .. 2047 sixteenths of a step -> activation -127 .. 127.

    The identity up to one step (16 units), then 16 units an octave: 7 bits for magnitudes up to
    124 steps.
    """
    v = torch.arange(COMPAND_SIZE, dtype=torch.float64)
    log = 16 * (1 + torch.log2(v.clamp(min=16) / 16))
    half = torch.where(v <= 16, v, log).round().clamp(max=SIGNED).float()
    return torch.cat([-half[1:].flip(0), half])


def compand(x: Tensor, table: Tensor) -> Tensor:
    """x integer-valued -> table[clamp(x, -2047, 2047) + 2047], `table` of `compand_table`."""
    limit = COMPAND_SIZE - 1

    def companded(x: Tensor) -> Tensor:
        return lookup(table, x.clamp(-limit, limit) + limit)

    if not x.requires_grad:
        return companded(x)
    return straight_through(x, companded, (16 / math.log(2) / x.detach().abs()).clamp_(max=1))


def lookup(table: Tensor, x: Tensor) -> Tensor:
    """table[x] for integer-valued x; takes a third of the time of indexing."""
    return table.index_select(0, x.flatten().to(torch.int32)).view(x.shape)


def log_energy_table() -> Tensor:
    """float32 [32753], integer-valued: m -> round(8 log2(m / 256 + 0.04)).

    m is a mean magnitude in 1/256 of a step. The unit, an eighth of an octave, is that of the
    scale index.
    """
    m = torch.arange(LOG_ENERGY_SIZE, dtype=torch.float64)
    return torch.round(8 * torch.log2(m / 256 + 0.04)).float()


def log_energy(m: Tensor, table: Tensor) -> Tensor:
    """table[floor(m)], `table` of `log_energy_table`."""
    if not m.requires_grad:
        return lookup(table, m)
    slope = 8 / math.log(2) / (m.detach() + 256 * 0.04)
    return straight_through(m, partial(lookup, table), slope)


class GDN(nn.Module):
    """Generalised divisive normalisation (Balle, Laparra & Simoncelli 2016, arXiv:1511.06281).

        x [N, C, H, W] --> x_i / sqrt(beta_i + sum_j gamma_ij x_j^2) --> [N, C, H, W]

    `inverse`: multiplied by the root instead of divided, as decoders do.
    """

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
