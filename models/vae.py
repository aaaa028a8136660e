"""The VAE codec of the study: residual blocks, trained for rate and distortion together.

In the manner of Liu et al. 2022 (doi 10.1155/2022/7088137), who compress medical images with a variational autoencoder of
residual blocks: uniform noise is the posterior, a factorized prior the rate (Balle, Laparra & Simoncelli 2016).

    x [N, 1, H, W] - 5x5/2 -> 64 - residual - 3x3/2 -> 96 - residual - 3x3/2 -> 128 -> y [N, 128, H/8, W/8]
    y * gain, rounded, / gain - 3x3 -> 128 - residual - shuffle -> 96 - residual - shuffle -> 48 - shuffle -> x_hat

Gains, prior, loss and coding are those of `hyperprior.FactorizedPrior`; cut against the paper: one residual block a level
and neither attention nor hyperprior.
"""

from __future__ import annotations

from torch import nn

from .autoencoder import Residual
from .hyperprior import LATENT, FactorizedPrior

WIDTHS = (48, 96, 128)


class ResidualVAE(FactorizedPrior):
    """2 values per pixel, most of which the rate makes zero; 1.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.g_a = nn.Sequential(
            nn.Conv2d(1, fine, 5, 2, 2), nn.ReLU(), nn.Conv2d(fine, middle, 3, 2, 1), Residual(middle), nn.ReLU(),
            nn.Conv2d(middle, coarse, 3, 2, 1), Residual(coarse), nn.Conv2d(coarse, LATENT, 1),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            nn.Conv2d(LATENT, coarse, 1), Residual(coarse),
            nn.Conv2d(coarse, 4 * middle, 1), nn.PixelShuffle(2), Residual(middle), nn.ReLU(),
            nn.Conv2d(middle, 4 * fine, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            nn.Conv2d(fine, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
