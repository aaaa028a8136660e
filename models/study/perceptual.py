"""Distances in the features of a network, as in LPIPS (Zhang et al. 2018, arXiv:1801.03924).

    d(x, y) = sum over layers of the mean over positions of sum_c w_c (x_c / |x| - y_c / |y|)^2

`Lpips` has the published weights, read from a file. `ContrastNet` is a small classifier of
contrasts trained here; the same construction on it, all w_c = 1, is called *feature distance*:
other numbers, another scale, never to be called LPIPS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .autoencoder import channels_last

# AlexNet's convolutions: number in torchvision's `features`, stride, padding.
_ALEXNET = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
# The convolutions that follow a 3 x 3 / 2 maximum.
_POOLED = (3, 6)
# Mean and standard deviation by which LPIPS normalises RGB.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def unit_distance(
    x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Features [N, C, H, W] of each layer -> distances [N]; weights [C] of each layer, or 1."""
    total = torch.zeros(len(x[0]))
    for n, (a, b) in enumerate(zip(x, y, strict=True)):
        a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        squared = (a - b) ** 2
        if weights is not None:
            squared = squared * weights[n][:, None, None]
        total = total + squared.sum(1).mean((1, 2))
    return total


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of samples [n, d] and [m, d] (Szekely & Rizzo 2013),
    unbiased: 0 if they are alike.
    """
    return float(2 * torch.cdist(x, y).mean()) - mean_distance(x) - mean_distance(y)


def mean_distance(x: Tensor) -> float:
    """Of two different rows of [n, d], n >= 2."""
    return float(torch.cdist(x, x).sum()) / (len(x) * (len(x) - 1))


class Lpips:
    """LPIPS 0.1 with AlexNet from a safetensors file: `features.{0,3,6,8,10}.{weight,bias}` as
    torchvision names them and `lin{0..4}.model.1.weight` as the published package does. Both
    publishers' files are pickles, which are not read here: convert them once. ValueError if tensors
    are missing or do not fit.
    """

    def __init__(self, path: Path) -> None:
        try:
            tensors = load_file(path)
            self._layers = [
                (tensors[f"features.{n}.weight"], tensors[f"features.{n}.bias"])
                for n, _, _ in _ALEXNET
            ]
            self._weights = [
                tensors[f"lin{n}.model.1.weight"].flatten() for n in range(len(_ALEXNET))
            ]
        except (KeyError, SafetensorError) as error:
            raise ValueError(
                f"{path}: expected weights of LPIPS with AlexNet in safetensors, found {error}"
            ) from error
        inputs = 3
        for (weight, bias), lin in zip(self._layers, self._weights, strict=True):
            if (
                weight.ndim != 4
                or weight.shape[1] != inputs
                or bias.shape != weight.shape[:1]
                or lin.shape != bias.shape
            ):
                raise ValueError(
                    f"{path}: layers do not fit: {tuple(weight.shape)} after {inputs} channels"
                )
            inputs = weight.shape[0]

    def features(self, x: Tensor) -> list[Tensor]:
        """x [N, 1, H, W] in 0 ... 1, shown as grey -> activations of the five layers."""
        a = (2 * x - 1).expand(-1, 3, -1, -1)
        a = (a - torch.tensor(_SHIFT)[:, None, None]) / torch.tensor(_SCALE)[:, None, None]
        out = []
        for (n, stride, padding), (weight, bias) in zip(_ALEXNET, self._layers, strict=True):
            if n in _POOLED:
                a = F.max_pool2d(a, 3, 2)
            a = torch.relu(F.conv2d(a, weight.float(), bias.float(), stride, padding))
            out.append(a)
        return out

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, 1, H, W] in 0 ... 1, sides of at least 64 -> distances [N]."""
        return unit_distance(self.features(x), self.features(y), self._weights)


class ContrastNet(nn.Module):
    """x [N, 1, 64, 64] -> logits [N, classes]; three levels of 16, 32, 64 channels, the maxima of
    one in the next.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(1 if n == 0 else width << (n - 1), width << n, 3, 1 if n else 2, 1)
            for n in range(3)
        )
        self.head = nn.Linear(width << 2, classes)

    def features(self, x: Tensor) -> list[Tensor]:
        out = []
        for n, level in enumerate(self.levels):
            x = torch.relu(level(F.max_pool2d(x, 2) if n else x))
            out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x)[-1].mean((2, 3)))
        return logits

    @torch.no_grad()
    def statistics(self, x: Tensor) -> Tensor:
        """Pictures [N, 1, H, W] -> [N, 224]: mean and standard deviation of every feature over the
        picture.
        """
        return torch.cat([g for f in self.features(x) for g in (f.mean((2, 3)), f.std((2, 3)))], 1)

    @torch.no_grad()
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Feature distance [N] of pictures [N, 1, H, W]."""
        return unit_distance(self.features(x), self.features(y))


class Classification:
    """Cross entropy; batch (pictures, classes)."""

    def __init__(self, network: ContrastNet) -> None:
        self.networks: dict[str, nn.Module] = {"": channels_last(network)}
        self._network = network

    def losses(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
        x, classes = batch
        yield "", F.cross_entropy(self._network(x), classes)
