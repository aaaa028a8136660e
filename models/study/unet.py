"""The study's U-Net without skip connections, after Ronneberger et al. 2015 (arXiv:1505.04597).

Everything that the decoder knows passes through the latent at the lowest resolution, so that
latents can be mixed and drawn; with skips a U-Net would copy its input.

    x [N, 1, H, W] - 3x3 -> w0 - relu, 3x3/2 -> w1 at 1/2 - ... - relu, 3x3/2 -> wn at 1/2^n
      - residual* - 1x1 -> z
    z - 1x1 -> wn - residual* - relu, 2x2 transposed -> w(n-1) - relu, 3x3 -> w(n-1) - ...
      - relu, 3x3 -> x_hat

The original has two 3 x 3 convolutions a level; here it is one, strided instead of pooled on the
way down, and a residual block (*) of 256 hidden channels at the lowest level. The latent has half a
value per pixel at any depth.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder

# Channels of the levels, the finest first.
V1 = (64, 128, 256, 512)
# Channels of the block at the lowest level.
HIDDEN = 256


class Bottleneck(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(relu(x)))))): the block of He et al. 2016, its middle `HIDDEN` / 2
    channels wide.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = min(HIDDEN, channels) // 2
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.middle = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        with torch.no_grad():
            self.expand.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.expand(torch.relu(self.middle(torch.relu(self.reduce(torch.relu(x))))))
        return y


class UNet(Autoencoder):
    """widths (w0 ... wn), the stride is 2^n and the latent has 2^(2n - 1) channels: 32 at 1/8 (V1,
    V2), 2 at 1/2 (two levels).

    V1: 3.6 M parameters, V2 (1.5 times as wide): 7.5 M, two levels: 0.3 M; widths in registry.py.
    """

    def __init__(self, widths: tuple[int, ...] = V1) -> None:
        super().__init__()
        depth = len(widths) - 1
        self.stride = 2**depth
        self.latent = max(1, self.stride**2 // 2)
        down: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, padding=1)]
        for above, below in itertools.pairwise(widths):
            down += [nn.ReLU(), nn.Conv2d(above, below, 3, 2, 1)]
        self.encoder = nn.Sequential(
            *down, Bottleneck(widths[-1]), nn.Conv2d(widths[-1], self.latent, 1)
        )
        up: list[nn.Module] = [nn.Conv2d(self.latent, widths[-1], 1), Bottleneck(widths[-1])]
        for below, above in itertools.pairwise(widths[::-1]):
            up += [
                nn.ReLU(),
                nn.ConvTranspose2d(below, above, 2, 2),
                nn.ReLU(),
                nn.Conv2d(above, above, 3, padding=1),
            ]
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.Conv2d(widths[0], 1, 3, padding=1))
        self._for_coding()
