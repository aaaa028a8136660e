"""Transform coders on slices: the factorized prior of Balle 2016 and the scale hyperprior of Balle 2018.

    x [N, 1, H, W] --g_a--> y [N, 128, H/8, W/8] --* gain(step), round--> y_hat --/ gain, g_s--> x_hat
    factorized   p(y_hat) = prod_c p_c(y_hat_c)                       (Balle, Laparra & Simoncelli 2016, arXiv:1611.01704)
    hyperprior   z = h_a(|y|), sigma = h_s(z), p(y_hat | z) = N(0, sigma^2)  (Balle et al. 2018, arXiv:1802.01436)

Two values of y per sample, so the latent is not undercomplete. One model serves every rate: a gain per channel,
interpolated in log2 of the step, scales y before rounding (gain units, Cui et al. 2021, arXiv:2003.02012). h_s is integer
arithmetic, so that every machine decodes the same latents; g_a and g_s are floating point: samples may differ in the
last unit between machines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import entropy_models as entropy
from .layers import GDN, IntegerConv2d, clamp8, relu8, round_through

LATENT = 128
HYPER = 32
NODES = 10  # gains at log2(scale / step) = 2, 3, ... 11
FIRST_NODE = 2.0
INDEX_ORIGIN = 35


class TransformCoder(nn.Module):
    """g_a, g_s and the gains that both codecs share. `width`: channels of the hidden layers."""

    latent = LATENT
    stride = 8

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.g_a: nn.Module = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2), GDN(width), nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, LATENT, 5, 2, 2),
        )  # fmt: skip
        self.g_s: nn.Module = nn.Sequential(
            nn.Conv2d(LATENT, 4 * width, 3, padding=1), nn.PixelShuffle(2), GDN(width, inverse=True),
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), GDN(width, inverse=True),
            nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        self.gains = nn.Parameter(
            (FIRST_NODE + torch.arange(NODES))[:, None].repeat(1, LATENT)
        )  # log2

    def gain(self, level: Tensor) -> Tensor:
        """level [N] = log2(scale / step) -> gains [N, 128, 1, 1]."""
        position = (level - FIRST_NODE).clamp(0, NODES - 1.001)
        low = position.floor().long()
        part = (position - low)[:, None]
        return torch.exp2((1 - part) * self.gains[low] + part * self.gains[low + 1])[
            :, :, None, None
        ]

    def table_set(self, octave: int) -> str:
        """The tables of y; the same at every step, to which the gains adapt."""
        return "y"

    def latent_bits(self, y: Tensor, y_hat: Tensor) -> dict[str, Tensor]:
        """Bits [N, ...] of y (and z) under the prior."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, K, H, W] in steps -> bits per sample [B], squared error per sample [B] in steps^2."""
        b, k, h, w = x.shape
        peak = x.reshape(b, -1).amax(1) * torch.exp2(
            1.5 * torch.rand_like(x[:, 0, 0, 0])
        )  # a volume's is larger
        level = torch.log2(peak.clamp(min=2.0**FIRST_NODE)).repeat_interleave(k)
        scale = torch.exp2(level)[:, None, None, None]
        gain = self.gain(level)
        y = self.g_a(x.reshape(b * k, 1, h, w) / scale) * gain
        bits = self.latent_bits(y, y + torch.rand_like(y) - 0.5)
        x_hat = self.g_s(round_through(y) / gain) * scale
        error = ((x_hat.reshape(b, k, h, w) - x) ** 2).mean((1, 2, 3))
        return {key: v.reshape(b, -1).sum(1) / (k * h * w) for key, v in bits.items()} | {
            "mse": error
        }


class FactorizedPrior(TransformCoder):
    """Balle 2016 with the entropy bottleneck as prior."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.bottleneck = entropy.EntropyBottleneck(LATENT)

    def latent_bits(self, y: Tensor, y_hat: Tensor) -> dict[str, Tensor]:
        return {"y": self.bottleneck.bits(y_hat)}


class ScaleHyperprior(TransformCoder):
    """Balle 2018: zero-mean Gaussians, their scales from z [N, 32, H/16, W/16]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.h_a = nn.Sequential(
            nn.Conv2d(LATENT, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, HYPER, 3, padding=1),
        )  # fmt: skip
        self.bottleneck_z = entropy.EntropyBottleneck(HYPER)
        self.h_s_first = IntegerConv2d(HYPER, width)
        self.h_s_second = IntegerConv2d(width, 4 * width)
        self.h_s_head = IntegerConv2d(width, LATENT, gain=0.3)

    def analyse_hyper(self, y: Tensor) -> Tensor:
        z: Tensor = self.h_a(torch.log2(1 + y.abs()))
        return z

    def scale_index(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """Integer z -> scale indices [N, 128, h, w] in integers."""
        a = relu8(self.h_s_first(clamp8(8 * z)))
        a = relu8(F.pixel_shuffle(self.h_s_second(a), 2)[..., : size[0], : size[1]])
        index: Tensor = self.h_s_head(a) + INDEX_ORIGIN
        return index.clamp(1, 207)

    def latent_bits(self, y: Tensor, y_hat: Tensor) -> dict[str, Tensor]:
        z = self.analyse_hyper(y)
        index = self.scale_index(round_through(z), (y.shape[2], y.shape[3]))
        bits_z = self.bottleneck_z.bits(z + torch.rand_like(z) - 0.5)
        return {"y": entropy.gaussian_bits(y_hat, entropy.sigma_of(index)), "z": bits_z}
