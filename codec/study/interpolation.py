"""Interpolation: the pictures between two scans, by pixels, by latents and by ACAI's latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mricodec.models.study.adversarial import interpolate
from mricodec.models.study.perceptual import ContrastNet, unit_distance

from .corpus import CONTRASTS, Picture, Slice
from .measures import gradient, mesh, psnr, ssim, summary
from .networks import MAX_HEIGHT_DIFFERENCE_MM
from .settings import CNNS, DEEP_UNETS
from .study import Study

if TYPE_CHECKING:
    from mricodec.models.study.autoencoder import Autoencoder

# Mixes pictures [n, 1, H, W] by n weights to one [1, 1, H, W].
Mixer = Callable[[torch.Tensor, list[float]], torch.Tensor]

# Measures of interpolants, in the order of the table.
COLUMNS = (
    "ssim", "feature_distance", "lpips", "novelty", "nearest", "sharpness", "mesh", "psnr",
)  # fmt: skip
# Training pictures whose features are computed at once.
FEATURE_BATCH = 32
# Weights of the second scan in the figure of strips.
STRIP_WEIGHTS = tuple(n / 6 for n in range(7))
# Intervals along each side of the triangle of three scans.
SIMPLEX_STEPS = 4


def blend_pixels(pictures: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """The weighted mean of pictures."""
    return torch.einsum("n,nchw->chw", torch.tensor(weights), pictures)[None]


def latent_mixer(network: Autoencoder) -> Mixer:
    """Mixes the latents of an autoencoder."""

    @torch.no_grad()
    def mix(pictures: torch.Tensor, weights: list[float]) -> torch.Tensor:
        return interpolate(network, pictures, weights).clamp(0, 1)

    return mix


def mixers(study: Study) -> dict[str, Mixer]:
    """Pixel blending, the best CNN and the best deep U-Net, and both trained on with ACAI."""
    networks = study.networks
    named: dict[str, Mixer] = {"pixel blending": blend_pixels}
    for name in (networks.best(CNNS), networks.best(DEEP_UNETS)):
        named[name] = latent_mixer(networks.autoencoder(name))
        named[f"acai-{name}"] = latent_mixer(networks.acai(name))
    return named


def pairs_of(slices: Sequence[Slice]) -> list[list[tuple[int, int]]]:
    """For each contrast that has some: pairs of slices of one height and different subjects."""
    return [
        pairs
        for contrast in CONTRASTS
        if (
            pairs := [
                (a, b)
                for a, s in enumerate(slices)
                for b, t in enumerate(slices)
                if s.contrast == t.contrast == contrast
                and s.subject < t.subject
                and abs(s.height_mm - t.height_mm) <= MAX_HEIGHT_DIFFERENCE_MM
            ]
        )
    ]


def test_pairs(study: Study) -> list[tuple[int, int]]:
    """Random pairs of test slices, contrasts in rotation; none without two alike subjects."""
    pools = pairs_of(study.corpus.slices["test"])
    rng = np.random.default_rng(0)
    rotation = [pools[n % len(pools)] for n in range(study.config.pairs)] if pools else []
    return [pool[rng.integers(len(pool))] for pool in rotation]


def interpolations(study: Study) -> list[dict[str, Any]]:
    """A row for each mixer: measures of the middle between two test slices."""
    pairs = test_pairs(study)
    if not pairs:
        study.report("interpolation: no two test subjects have slices of one contrast and height")
        return []
    features = study.networks.contrast_net()
    contrasts = [study.corpus.slices["test"][a].contrast for a, _ in pairs]
    rows = []
    for name, mix in mixers(study).items():
        middles = []
        values: list[dict[str, float]] = []
        for pair in pairs:
            parents = torch.from_numpy(study.corpus.grid["test"][list(pair)])[:, None]
            middle = mix(parents, [0.5, 0.5])
            middles.append(middle)
            values.append(_measure(study, features, parents, middle))
            if name != "pixel blending":
                values[-1]["psnr"] = _psnr_of_parents(mix, parents)
        nearest = _nearest(study, features, torch.cat(middles), contrasts)
        if all(map(math.isfinite, nearest)):
            for row, distance in zip(values, nearest, strict=True):
                row["nearest"] = distance
        summaries = {
            key: summary([row[key] for row in values]) for key in COLUMNS if key in values[0]
        }
        rows.append({"method": name, "pairs": len(pairs)} | summaries)
        means = ", ".join(f"{key} {value['mean']:.4g}" for key, value in summaries.items())
        study.report(f"{name}: {means}")
    return rows


def _measure(
    study: Study, features: ContrastNet, parents: torch.Tensor, middle: torch.Tensor
) -> dict[str, float]:
    """The measures of an interpolant that need no other interpolant."""
    train = study.corpus.grid["train"]
    picture = middle[0, 0].numpy()
    both = [parent[0].numpy() for parent in parents]
    twice = middle.expand(2, -1, -1, -1)
    squared = ((train - picture) ** 2).reshape(len(train), -1).mean(1)
    values = {
        "ssim": float(np.mean([ssim(parent, picture) for parent in both])),
        "feature_distance": float(features.distance(parents, twice).mean()),
        "novelty": 255 * math.sqrt(float(squared.min())),
        "sharpness": gradient(picture) / float(np.mean([gradient(parent) for parent in both])),
        "mesh": mesh(picture),
    }
    if study.lpips is not None:
        values["lpips"] = float(study.lpips(parents, twice).mean())
    return values


def _psnr_of_parents(mix: Mixer, parents: torch.Tensor) -> float:
    """Mean PSNR of the parents' reconstructions, dB."""
    values = []
    for parent, weights in zip(parents, ([1.0, 0.0], [0.0, 1.0]), strict=True):
        values.append(psnr(parent[0].numpy(), mix(parents, weights)[0, 0].numpy()))
    return float(np.mean(values))


@torch.no_grad()
def _nearest(
    study: Study, features: ContrastNet, pictures: torch.Tensor, contrasts: Sequence[str]
) -> list[float]:
    """Feature distance of pictures [n, 1, H, W] to the nearest training picture of their contrast;
    infinite where there is none."""
    nearest = [math.inf] * len(pictures)
    slices, grid = study.corpus.slices["train"], study.corpus.grid["train"]
    for contrast in set(contrasts):
        alike = [n for n, item in enumerate(slices) if item.contrast == contrast]
        if not alike:
            continue
        mixed = {
            n: features.features(pictures[n : n + 1])
            for n, other in enumerate(contrasts)
            if other == contrast
        }
        for part in torch.from_numpy(grid[alike])[:, None].split(FEATURE_BATCH):
            real = features.features(part)
            for n, picture in mixed.items():
                nearest[n] = min(nearest[n], float(unit_distance(real, picture).min()))
    return nearest


def strips(study: Study) -> dict[str, list[Picture]]:
    """For the figure: from one test scan to another by STRIP_WEIGHTS, a strip for each mixer."""
    a, b = test_pairs(study)[0]
    parents = torch.from_numpy(study.corpus.grid["test"][[a, b]])[:, None]
    return {
        name: [mix(parents, [1 - t, t])[0, 0].numpy() for t in STRIP_WEIGHTS]
        for name, mix in mixers(study).items()
    }


def simplex(study: Study) -> tuple[str, list[tuple[tuple[float, ...], Picture]]] | None:
    """For the figure: mixtures of three test scans by the best CNN with ACAI, with their weights;
    None without a third subject."""
    slices, grid = study.corpus.slices["test"], study.corpus.grid["test"]
    a, b = test_pairs(study)[0]
    subjects = (slices[a].subject, slices[b].subject)
    others = [n for n, item in enumerate(slices) if item.subject not in subjects]
    alike = [n for n in others if slices[n].contrast == slices[a].contrast]
    third = min(
        alike or others,
        key=lambda n: abs(slices[n].height_mm - slices[a].height_mm),
        default=None,
    )
    if third is None:
        return None
    scans = torch.from_numpy(grid[[a, b, third]])[:, None]
    name = study.networks.best(CNNS)
    mix = latent_mixer(study.networks.acai(name))
    steps = SIMPLEX_STEPS
    corners: list[tuple[float, ...]] = [
        (i / steps, j / steps, (steps - i - j) / steps)
        for i in range(steps + 1)
        for j in range(steps + 1 - i)
    ]
    pictures = [(weights, mix(scans, list(weights))[0, 0].numpy()) for weights in corners]
    return f"acai-{name}", pictures
