"""The VAE codec of the study: residual blocks, trained for rate and distortion together.

In the manner of Liu et al. 2022 (doi 10.1155/2022/7088137), who compress medical images with a
variational autoencoder of residual blocks: uniform noise is the posterior, a factorized prior the
rate (Balle, Laparra & Simoncelli 2016).

    x [N, 1, H, W] - 5x5/2 -> 48 - 3x3/2 -> 96 - residual - 3x3/2 -> 128 - residual - 1x1 --+
    x - 8x8/8 ------------------------------------------------------------------------------+
                                                                     y [N, 128, H/8, W/8] <-+
    y_hat - 1x1 -> 128 - residual - shuffle -> 96 - residual - shuffle -> 48 - shuffle --+
    y_hat - 8x8/8 transposed ------------------------------------------------------------+
                                                                 x_hat [N, 1, H, W] <----+

The linear paths start as the 8 x 8 cosine transform and its inverse (64 of the channels), so that
minutes of training are spent on what the blocks add, not on learning to copy. Gains, prior and loss
are those of `hyperprior.FactorizedPrior`; the probability tables are measured after the training,
as those of `autoencoder`. Smaller than in the paper: one residual block a level, and neither
attention nor hyperprior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mricodec.models.lossy.hyperprior import LATENT, FactorizedPrior

from .autoencoder import Residual, octave_tables

# Channels of the three levels.
WIDTHS = (48, 96, 128)
# Side of the blocks of the linear paths.
SIDE = 8


class _Sum(nn.Module):
    """linear(x) + layers(x)."""

    def __init__(
        self, linear: nn.Conv2d | nn.ConvTranspose2d, layers: nn.Sequential, last: nn.Conv2d
    ) -> None:
        super().__init__()
        self.linear, self.layers = linear, layers
        with torch.no_grad():
            for layer in (linear, last):
                layer.weight.mul_(0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            n = torch.arange(SIDE)
            cosine = torch.cos(math.pi / SIDE * (n + 0.5) * n[:, None]) * math.sqrt(2 / SIDE)
            cosine[0] /= math.sqrt(2)
            basis = torch.einsum("ui,vj->uvij", cosine, cosine).reshape(SIDE**2, 1, SIDE, SIDE)
            linear.weight[: SIDE**2].copy_(basis)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.layers(x)
        return y


class ResidualVAE(FactorizedPrior):
    """2 values per pixel, most of which the rate makes zero; 1.3 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        to_latent, to_pixels = nn.Conv2d(coarse, LATENT, 1), nn.Conv2d(fine, 4, 3, padding=1)
        analysis = nn.Sequential(
            nn.Conv2d(1, fine, 5, 2, 2), nn.ReLU(),
            nn.Conv2d(fine, middle, 3, 2, 1), Residual(middle), nn.ReLU(),
            nn.Conv2d(middle, coarse, 3, 2, 1), Residual(coarse), to_latent,
        )  # fmt: skip
        synthesis = nn.Sequential(
            nn.Conv2d(LATENT, coarse, 1), Residual(coarse),
            nn.Conv2d(coarse, 4 * middle, 1), nn.PixelShuffle(2), Residual(middle), nn.ReLU(),
            nn.Conv2d(middle, 4 * fine, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            to_pixels, nn.PixelShuffle(2),
        )  # fmt: skip
        self.g_a = _Sum(nn.Conv2d(1, LATENT, SIDE, SIDE), analysis, to_latent)
        self.g_s = _Sum(nn.ConvTranspose2d(LATENT, 1, SIDE, SIDE), synthesis, to_pixels)

    def table_set(self, octave: int) -> str:
        return octave_tables(octave)
