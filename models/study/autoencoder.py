"""Autoencoders of slices: the minimal network of the study, and what all of them share as codecs.

    x [N, 1, H, W] in 0 ... 1 --encode--> z [N, latent, H/stride, W/stride]
    z --decode--> x_hat [N, 1, H, W]

Trained for reconstruction alone. As codecs their latents are centred, scaled by a gain per channel
and rounded: the gain is the channel's sensitivity (root of the squared error of the picture per
squared error of the channel) over the step, which is how a uniform error of the picture is spread
at high rates (reverse water-filling; Gersho & Gray 1992, chapter 8). Both are measured after the
training, as is the probability table of every channel at every octave of the step: a fully
factorized prior (Balle, Laparra & Simoncelli 2016, arXiv:1611.01704).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from mricodec.models.lossy.slice_coder import SliceCoder

# The octaves of peak / step that have tables of their own.
FIRST_OCTAVE, LAST_OCTAVE = 2, 12


Module = TypeVar("Module", bound=nn.Module)


def channels_last(network: Module) -> Module:
    """The network with its weights in the order that convolutions on CPUs prefer."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def octave_tables(octave: int) -> str:
    """The name of the tables of y for peak / step from 2**octave on."""
    return f"y{min(max(octave, FIRST_OCTAVE), LAST_OCTAVE)}"


class Autoencoder(SliceCoder):
    """An encoder and a decoder; `latent` channels at 1/`stride` of the resolution."""

    encoder: nn.Module
    decoder: nn.Module
    offset: Tensor
    sensitivity: Tensor

    def _for_coding(self) -> None:
        """Buffers of the codec, measured by `training.study.calibrate`."""
        self.register_buffer("offset", torch.zeros(self.latent))
        self.register_buffer("sensitivity", torch.ones(self.latent))

    @property
    def values_per_pixel(self) -> float:
        return self.latent / self.stride**2

    def encode(self, x: Tensor) -> Tensor:
        """x [N, 1, H, W], sides multiples of the stride -> z [N, latent, H/stride, W/stride]."""
        z: Tensor = self.encoder(x)
        return z.float()

    def decode(self, z: Tensor) -> Tensor:
        """z [N, latent, h, w] -> [N, 1, h * stride, w * stride]."""
        x: Tensor = self.decoder(z)
        return x.float()

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [N, 1, H, W], sides multiples of the stride -> the same through unquantised latents."""
        return self.decode(self.encode(x))

    def g_a(self, x: Tensor) -> Tensor:
        """Centred latents."""
        return self.encode(x) - self.offset[:, None, None]

    def g_s(self, y: Tensor) -> Tensor:
        """The inverse of `g_a`."""
        return self.decode(y + self.offset[:, None, None])

    def gain(self, level: Tensor) -> Tensor:
        """level [N] = log2(peak / step) -> gains [N, latent, 1, 1]."""
        return (torch.exp2(level)[:, None] * self.sensitivity)[:, :, None, None]

    def table_set(self, octave: int) -> str:
        return octave_tables(octave)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3 (He et al. 2016, arXiv:1603.05027), the last convolution
    small at first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(torch.relu(self.first(torch.relu(x))))
        return y


class MinimalCNN(Autoencoder):
    """The study's minimal convolutional autoencoder: latent at 1/4 resolution.

    x [N, 1, H, W] - 5x5/2 -> 32 - relu, 3x3/2 -> 96 - residual - 1x1 -> z [N, latent, H/4, W/4]
    z - 3x3 -> 96 - residual - relu, 3x3 -> 128 - shuffle -> 32 at 1/2
      - relu, 3x3 -> 4 - shuffle -> x_hat

    8, 16, 32 channels: 0.5, 1, 2 values per pixel, so only the first is undercomplete. 0.5 M
    parameters.
    """

    stride = 4

    def __init__(self, latent: int, width: int = 96) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width // 3, 5, 2, 2), nn.ReLU(),
            nn.Conv2d(width // 3, width, 3, 2, 1), Residual(width),
            nn.Conv2d(width, latent, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, width, 3, padding=1), Residual(width), nn.ReLU(),
            nn.Conv2d(width, 4 * (width // 3), 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            nn.Conv2d(width // 3, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        self._for_coding()
