"""What all coders of slices share: CompressAI's interface, and the symbols of their latents.

    x [N, 1, H, W] in 0 .. 1 --g_a--> y [N, C, h, w] --* gain(level), round--> y_hat
    y_hat --/ gain(level)--> --g_s--> x_hat [N, 1, H, W]

`level` is log2 of the range of x over the quantisation step: at level 8 the step is 1/256. One
network serves every level from 2 to 12, so `level` takes the place of the quality with which
CompressAI chooses among networks. It is an argument of `forward`, `compress` and `decompress`,
which must agree on it; without one they take the attribute `level`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mricodec.bitstream.symbols import TOTAL, ProbabilityTables, SymbolCoder
from mricodec.models.strings import DEFAULT_LEVEL, LEVEL_RANGE, StringDecoder, StringEncoder

from .entropy_models import LIKELIHOOD_FLOOR, EntropyBottleneck
from .layers import round_ste
from .params import SYMBOL_MAX

# Sides are padded to multiples of this, whatever the stride of the network.
BLOCK = 8
# Bits that an escaped value takes to name its bit length.
ESCAPE_BITS = 7


class TensorSymbols:
    """A symbol coder for integer-valued tensors."""

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder = coder

    def code(self, tables: ProbabilityTables, index: Tensor, values: Tensor | None) -> Tensor:
        """index, values [N, n] (values None: decode) -> values, float32 on the same device."""
        rows = index.to(torch.uint8).cpu().numpy()
        integers = None if values is None else values.to(torch.int32).cpu().numpy()
        coded = self._coder.code(tables, rows, integers)
        clipped = np.clip(coded, -SYMBOL_MAX, SYMBOL_MAX - 1).astype(np.float32)
        return torch.from_numpy(clipped).to(index.device)


class SliceCoder(nn.Module):
    """A network that codes slices, in CompressAI's conventions (this module has a drawing).

    y has `latent` channels at 1/`stride` of the resolution; `tables` come with the weights.
    """

    latent: int
    stride: int
    g_a: Callable[[Tensor], Tensor]
    g_s: Callable[[Tensor], Tensor]
    bottleneck: EntropyBottleneck

    def __init__(self) -> None:
        super().__init__()
        self.level = DEFAULT_LEVEL
        self.tables: dict[str, ProbabilityTables] = {}

    def gain(self, level: Tensor) -> Tensor:
        """level [N] -> factors [N, C, 1, 1] of the latents before rounding."""
        raise NotImplementedError

    def table_set(self, octave: int) -> str:
        """The tables of y at a level whose integer part is `octave`."""
        raise NotImplementedError

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of y for a slice of this size."""
        return -(-height // BLOCK) * BLOCK // self.stride, -(-width // BLOCK) * BLOCK // self.stride

    def code_latents(
        self, shape: tuple[int, int, int], y: Tensor | None, octave: int, symbols: TensorSymbols
    ) -> Tensor:
        """y [N, C, h, w] to encode or None to decode -> y_hat; shape (N, h, w).

        The prior is factorized by channel.
        """
        n, h, w = shape
        device = next(self.parameters()).device
        index = torch.arange(self.latent, device=device).repeat_interleave(h * w).expand(n, -1)
        values = None if y is None else quantised(y).reshape(n, -1)
        coded = symbols.code(self.tables[self.table_set(octave)], index, values)
        return coded.reshape(n, self.latent, h, w)

    def likelihoods(self, y: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Probability of every symbol of the scaled latents y [N, C, h, w] at level [N]."""
        return {"y": self.factorized_likelihood(self.relaxed(y), level)}

    def factorized_likelihood(self, y: Tensor, level: Tensor) -> Tensor:
        """From the tables of the channels at each level, or the bottleneck without tables."""
        if not self.tables:
            if not hasattr(self, "bottleneck"):
                raise ValueError("expected probability tables, found none: load weights first")
            likelihood = self.bottleneck.likelihood(y)
            return likelihood.clamp(min=LIKELIHOOD_FLOOR)
        octaves = level.detach().floor().int().tolist()
        names = [self.table_set(octave) for octave in octaves]
        parts = [table_likelihood(self.tables[name], y[n]) for n, name in enumerate(names)]
        return torch.stack(parts)

    def relaxed(self, y: Tensor) -> Tensor:
        """The symbols of y, in training with noise instead of rounding (Balle et al. 2016)."""
        return y + torch.rand_like(y) - 0.5 if self.training else quantised(y)

    def forward(self, x: Tensor, level: float | Tensor | None = None) -> dict[str, Any]:
        """x [N, 1, H, W] in 0 .. 1 -> {"x_hat": [N, 1, H, W], "likelihoods": {"y": [N, C, h, w]}}.

        level: one for all, or [N]. A hyperprior adds the likelihoods "z". In evaluation mode x_hat
        is what `decompress` returns; in training the likelihoods see uniform noise and g_s sees
        rounded latents with the gradient of the identity.
        """
        levels = self._levels(x, level)
        gain = self.gain(levels)
        y = self.g_a(padded_slices(x)) * gain
        x_hat = self.g_s(quantised(y) / gain)[..., : x.shape[2], : x.shape[3]]
        return {"x_hat": x_hat, "likelihoods": self.likelihoods(y, levels)}

    @torch.inference_mode()
    def compress(self, x: Tensor, level: float | None = None) -> dict[str, Any]:
        """x [N, 1, H, W] in 0 .. 1 -> {"strings": [[y of each slice], [z]], "shape": (H, W)}."""
        levels = self._levels(x, level)
        y = self.g_a(padded_slices(x)) * self.gain(levels)
        octave = int(levels[0].floor())
        coder = StringEncoder(len(x), self._group_of())
        size = (len(x), *self.latent_size(*x.shape[2:]))
        self.code_latents(size, y, octave, TensorSymbols(coder))
        return {"strings": coder.finish(), "shape": tuple(x.shape[2:])}

    @torch.inference_mode()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], level: float | None = None
    ) -> dict[str, Any]:
        """Strings and shape as `compress` returns them -> {"x_hat": [N, 1, H, W]}.

        FormatError if the strings are damaged.
        """
        coder = StringDecoder(strings, self._group_of())
        height, width = shape
        count = len(strings[0])
        device = next(self.parameters()).device
        levels = self._levels(torch.empty((count, 1, height, width), device=device), level)
        octave = int(levels[0].floor())
        size = (count, *self.latent_size(height, width))
        y_hat = self.code_latents(size, None, octave, TensorSymbols(coder))
        coder.finish()
        return {"x_hat": self.g_s(y_hat / self.gain(levels))[..., :height, :width]}

    def update(self, scale_table: Any = None, force: bool = False) -> bool:
        """False: tables come with the weights. For code that calls it on CompressAI's networks."""
        return False

    def _group_of(self) -> dict[str, int]:
        """The list of strings to which the symbols of a table set go: y first, then z."""
        return {name: int(name == "z") for name in self.tables}

    def _levels(self, x: Tensor, level: float | Tensor | None) -> Tensor:
        """Levels [N] of slices x [N, 1, H, W]; ValueError for other shapes or out of range."""
        if x.dim() != 4 or x.shape[1] != 1:
            raise ValueError(f"x: expected [N, 1, H, W], found {list(x.shape)}")
        if isinstance(level, Tensor):
            return level.to(x.device, torch.float32).expand(len(x))
        value = self.level if level is None else level
        low, high = LEVEL_RANGE
        if not low <= value <= high:
            raise ValueError(f"level: expected {low:g} to {high:g}, found {value:g}")
        return torch.full((len(x),), value, dtype=torch.float32, device=x.device)


def quantised(y: Tensor) -> Tensor:
    """The symbols of y, with the gradient of the identity."""
    return round_ste(y).clamp(-SYMBOL_MAX, SYMBOL_MAX - 1)


def padded_slices(x: Tensor) -> Tensor:
    """[N, 1, H, W], sides up to multiples of 8, the border repeated."""
    h, w = x.shape[2:]
    return F.pad(x, (0, -w % BLOCK, 0, -h % BLOCK), mode="replicate")


def table_likelihood(tables: ProbabilityTables, values: Tensor) -> Tensor:
    """Probability of values [C, ...] under the table row of their channel, escapes included.

    Between integers it is interpolated linearly, which is the density of the tables' masses spread
    over unit triangles: differentiable in the values.
    """
    masses = torch.from_numpy((tables.weights / TOTAL).astype(np.float32)).to(values.device)
    bins = masses.shape[1] - 1
    flat = values.reshape(len(values), -1)
    below = flat.detach().floor()

    def mass(integers: Tensor) -> Tensor:
        column = integers - tables.low
        inside = (column >= 0) & (column < bins)
        width = torch.log2(2 * integers.abs() + 1).ceil() - 1
        escape = torch.exp2(-ESCAPE_BITS - width.clamp(min=0))
        probability = masses.gather(1, torch.where(inside, column, bins).long())
        return torch.where(inside, probability, probability * escape)

    likelihood = torch.lerp(mass(below), mass(below + 1), flat - below)
    return likelihood.reshape(values.shape)
