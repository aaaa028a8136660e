"""The study's adversarial models: ACAI, and BAGAN on small pictures.

ACAI (Berthelot, Raffel, Roy & Goodfellow 2018, arXiv:1807.07543), of an autoencoder f, g and a
critic d, alpha in [0, 0.5]:

    autoencoder  UNIT |x - g(f(x))|^2 + WEIGHT d(g(alpha f(x1) + (1 - alpha) f(x2)))^2
    critic       (d(g(alpha f(x1) + (1 - alpha) f(x2))) - alpha)^2
                 + d(GAMMA x + (1 - GAMMA) g(f(x)))^2

BAGAN (Mariani et al. 2018, arXiv:1803.09655): an autoencoder of all classes starts generator and
discriminator; z is drawn from a Gaussian fitted to the latents of the class; the discriminator
has an output for each class and one for "fake"; the generator is trained to draw the class that it
is conditioned on. Classes have equal weight, whatever their number of pictures.

Changes to the paper, which diverged here within 500 steps: a gradient penalty (as in Huang & Jafari
2021, arXiv:2103.12140), centred at zero, on pictures between real and fake (Thanh-Tung et al. 2019,
arXiv:1902.03984); pictures moved and brightened at random before the discriminator, which a few
hundred of them need (Zhao et al. 2020, arXiv:2006.10738); and the generator's loss is the log odds
of the class against "fake" plus the reconstruction error, in place of the cross entropy. Smaller
than in the paper: 64 x 64 pixels, 64 latents, full covariances shrunk towards their diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Autoencoder, channels_last

# ACAI's lambda: the weight of the critic in the autoencoder's loss.
WEIGHT = 0.5
# ACAI's gamma: the part of the picture in the critic's regulariser.
GAMMA = 0.2
# Factor of the squared error, which is about 0.015 in the paper and 2.5e-4 (36 dB) here: the critic
# then has the paper's weight.
UNIT = 60.0
# Side of BAGAN's pictures, pixels.
SIDE = 64
# Number of BAGAN's latents.
CODES = 64
# Weight of the squared gradient of the log odds of the class against "fake".
PENALTY = 0.05
# Weight of the squared error of pictures through the autoencoder's encoder and the generator.
ANCHOR = 100.0
# Pixels by which pictures are moved before the discriminator.
SHIFT = 4
# Part by which a covariance is shrunk towards its diagonal.
SHRINK = 0.1


class Critic(nn.Module):
    """x [N, 1, H, W] -> alpha [N]: strided convolutions, then the mean, as in the paper."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for level in range(4):
            layers += [nn.Conv2d(channels, width << min(level, 2), 3, 2, 1), nn.LeakyReLU(0.2)]
            channels = width << min(level, 2)
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        alpha: Tensor = self.layers(x).float().mean((1, 2, 3))
        return alpha


class Acai:
    """batch: pictures [N, 1, H, W] of one kind, so that they can be mixed with each other."""

    def __init__(self, network: Autoencoder) -> None:
        self._network = channels_last(network)
        self._critic = channels_last(Critic())
        self.networks: dict[str, nn.Module] = {"autoencoder": network, "critic": self._critic}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        alpha = 0.5 * torch.rand(len(batch))
        z = self._network.encode(batch)
        mixed = self._network.decode(torch.lerp(z.roll(1, 0), z, alpha[:, None, None, None]))
        x_hat = self._network.decode(z)
        guess = self._critic(mixed)
        yield "autoencoder", UNIT * ((x_hat - batch) ** 2).mean() + WEIGHT * (guess**2).mean()
        mixed, x_hat = mixed.detach(), x_hat.detach()
        guess, real = self._critic(mixed), self._critic(torch.lerp(x_hat, batch, GAMMA))
        yield "critic", ((guess - alpha) ** 2).mean() + (real**2).mean()


def interpolate(network: Autoencoder, pictures: Tensor, weights: list[float]) -> Tensor:
    """pictures [n, 1, H, W], n >= 2 -> the picture [1, 1, H, W] of z = sum(weights * z_n).
    ValueError for other weights.
    """
    check_weights(weights, len(pictures))
    z = network.encode(pictures)
    return network.decode(
        torch.einsum("n,nchw->chw", torch.tensor(weights, dtype=z.dtype), z)[None]
    )


def check_weights(weights: list[float], count: int) -> None:
    """ValueError unless there are `count` >= 2 weights in 0 ... 1 of sum 1."""
    if len(weights) != count or count < 2:
        raise ValueError(
            f"expected at least two scans and a weight for each, found {count} scans and "
            f"{len(weights)} weights"
        )
    if not all(0 <= weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"weights: expected numbers in 0 ... 1 of sum 1, found {shown}")


def _convolutions(width: int) -> nn.Sequential:
    """[N, 1, 64, 64] -> [N, 4 * width, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.LeakyReLU(0.2),
    )  # fmt: skip


class Generator(nn.Module):
    """z [N, 64] -> x [N, 1, 64, 64] in 0 ... 1."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self._width = width
        self.first = nn.Linear(CODES, 4 * width * 64)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1),
            nn.ReLU(), nn.Conv2d(width // 2, 1, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.layers(self.first(z).reshape(len(z), 4 * self._width, 8, 8))
        return x.float()


class Discriminator(nn.Module):
    """x [N, 1, 64, 64] -> logits [N, outputs]; with `CODES` outputs, the autoencoder's encoder."""

    def __init__(self, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.layers = _convolutions(width)
        self.head = nn.Linear(4 * width * 64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).flatten(1))
        return logits.float()


def _moved(x: Tensor) -> Tensor:
    """Shifted by up to SHIFT pixels, mirrored and brighter or darker by up to a fifth, every
    picture on its own.
    """
    n, _, h, w = x.shape
    mirrored = torch.where((torch.rand(n) < 0.5)[:, None, None, None], x.flip(-1), x)
    edge = F.pad(mirrored, [SHIFT] * 4)
    down, right = torch.randint(2 * SHIFT + 1, (2, n))
    rows = (down[:, None] + torch.arange(h))[:, :, None]
    columns = (right[:, None] + torch.arange(w))[:, None, :]
    return edge[torch.arange(n)[:, None, None], 0, rows, columns][:, None] * (
        0.8 + 0.4 * torch.rand(n, 1, 1, 1)
    )


class SmallAutoencoder:
    """BAGAN's first task: the autoencoder; batch (pictures, classes)."""

    def __init__(self) -> None:
        self.encoder = channels_last(Discriminator(CODES))
        self.decoder = channels_last(Generator())
        self.networks: dict[str, nn.Module] = {
            "": nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        }

    def losses(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
        x, _ = batch
        x_hat = self.decoder(self.encoder(x))
        yield "", 100 * ((x_hat - x) ** 2).mean()


class Bagan:
    """BAGAN's second task; batch (pictures [N, 1, 64, 64], classes [N])."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.generator = channels_last(Generator())
        self.discriminator = channels_last(Discriminator(classes + 1))
        self._encoder = Discriminator(CODES)
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
        }
        self.generator.register_buffer("mean", torch.zeros(classes, CODES))
        self.generator.register_buffer("factor", torch.eye(CODES).repeat(classes, 1, 1))

    @torch.no_grad()
    def start_from(self, trained: SmallAutoencoder, pictures: Tensor, classes: Tensor) -> None:
        """Weights of the autoencoder, and the Gaussian of every class from its pictures."""
        self.generator.load_state_dict(trained.decoder.state_dict(), strict=False)
        self.discriminator.layers.load_state_dict(trained.encoder.layers.state_dict())
        self._encoder = trained.encoder
        z = trained.encoder(pictures)
        everything = torch.cov(z.T)
        for n in range(self._classes):
            latents = z[classes == n]
            covariance = torch.cov(latents.T) if len(latents) > 1 else everything
            diagonal = torch.diag(covariance.diagonal())
            covariance = torch.lerp(
                covariance, diagonal, SHRINK
            ) + 1e-4 * everything.diagonal().mean() * torch.eye(CODES)
            self.generator.get_buffer("mean")[n] = latents.mean(0) if len(latents) else z.mean(0)
            self.generator.get_buffer("factor")[n] = torch.linalg.cholesky(covariance)

    def sample(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """classes [N] -> pictures [N, 1, 64, 64]."""
        noise = torch.randn(len(classes), CODES, generator=generator)
        mean, factor = self.generator.get_buffer("mean"), self.generator.get_buffer("factor")
        x: Tensor = self.generator(mean[classes] + (factor[classes] @ noise[:, :, None])[:, :, 0])
        return x

    @staticmethod
    def _odds(logits: Tensor, classes: Tensor) -> Tensor:
        """Log odds of its class against "fake" for every picture."""
        return logits.gather(1, classes[:, None])[:, 0] - logits[:, -1]

    def _steepness(self, x: Tensor, fake: Tensor, classes: Tensor) -> Tensor:
        mixed = torch.lerp(x, fake, torch.rand(len(x), 1, 1, 1)).requires_grad_()
        odds = self._odds(self.discriminator(mixed), classes)
        (gradient,) = torch.autograd.grad(odds.sum(), mixed, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    def losses(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        x, classes = batch
        count = max(1, len(x) // 2)
        target = torch.cat([classes, torch.full((count,), self._classes)])
        with torch.no_grad():
            fake = self.sample(torch.randint(self._classes, (count,)))
            z = self._encoder(x[:count])
        moved, fake = _moved(x), _moved(fake)
        logits = self.discriminator(torch.cat([moved, fake]))
        steepness = self._steepness(moved[:count], fake, classes[:count])
        yield "discriminator", F.cross_entropy(logits, target) + PENALTY * steepness
        wanted = torch.randint(self._classes, (count,))
        odds = self._odds(self.discriminator(_moved(self.sample(wanted))), wanted)
        again = ((self.generator(z) - x[:count]) ** 2).mean()
        yield "generator", F.softplus(-odds).mean() + ANCHOR * again
