"""Augmentation: whether generated pictures help a classifier of contrasts with few examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mricodec.models.study.adversarial import Bagan
from mricodec.models.study.perceptual import Classification, ContrastNet
from mricodec.models.training import study as training

from .corpus import CONTRASTS
from .interpolation import Mixer, blend_pixels, latent_mixer
from .measures import halved
from .networks import uniform_batches
from .settings import CNNS
from .study import Study

METHODS = ("none", "repetition", "pixel blending", "interpolation", "acai", "bagan")
# Pictures of each contrast in the unbalanced training subset.
FEW = {"T1": 40, "T2": 20, "FLAIR": 10, "DWI": 5}
# Range of the weight of the first parent of a mixed picture.
WEIGHTS = (0.2, 0.8)
# Test pictures that are classified at once.
TEST_BATCH = 64
# Quantile 0.975 of Student's t for means of so many seeds.
T_95 = {5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}


@dataclass(frozen=True)
class _Few:
    """The unbalanced training subset, and what makes more pictures of it."""

    pictures: torch.Tensor  # [n, 1, GRID, GRID]
    x: torch.Tensor  # [n, 1, GRID / 2, GRID / 2]
    classes: torch.Tensor
    mixers: dict[str, Mixer]
    bagan: Bagan


def subset(study: Study) -> list[int]:
    """Indices of training slices: FEW of every contrast, evenly spread."""
    chosen: list[int] = []
    for contrast, limit in FEW.items():
        alike = [
            n for n, item in enumerate(study.corpus.slices["train"]) if item.contrast == contrast
        ]
        count = min(limit, len(alike))
        chosen += [alike[i * len(alike) // count] for i in range(count)]
    return chosen


def subset_counts(study: Study) -> dict[str, int]:
    """How many pictures of each contrast the subset has."""
    return dict(Counter(study.corpus.slices["train"][n].contrast for n in subset(study)))


def augmentation(study: Study) -> list[dict[str, Any]]:
    """A row for each method: balanced accuracy on test slices of a classifier that is trained on
    the subset, filled up to equal classes by the method."""
    few = _few(study)
    rows = []
    for method in METHODS:
        scores = [_score(study, few, method, seed) for seed in range(study.config.seeds)]
        mean = float(np.mean(scores))
        deviation = float(np.std(scores, ddof=1))
        half = T_95[len(scores)] * deviation / math.sqrt(len(scores))
        rows.append(
            {
                "method": method,
                "balanced_accuracy": mean,
                "half_interval_95": half,
                "scores": scores,
            }
        )
        study.report(f"augmentation, {method}: balanced accuracy {mean:.3f} ± {half:.3f}")
    return rows


def _few(study: Study) -> _Few:
    chosen = subset(study)
    x, classes = (values[chosen] for values in study.networks.labelled("train"))
    name = study.networks.best(CNNS)
    _, bagan = study.networks.bagan("bagan-few", x, classes)
    mixers = {
        "pixel blending": blend_pixels,
        "interpolation": latent_mixer(study.networks.autoencoder(name)),
        "acai": latent_mixer(study.networks.acai(name)),
    }
    pictures = torch.from_numpy(study.corpus.grid["train"][chosen])[:, None]
    return _Few(pictures, x, classes, mixers, bagan)


def _score(study: Study, few: _Few, method: str, seed: int) -> float:
    """Balanced accuracy of one classifier, over the contrasts that it was trained on."""
    x, classes = _filled_up(few, method, seed)
    torch.manual_seed(seed)
    network = ContrastNet(len(CONTRASTS))
    recipe = replace(study.config.recipe("classifier"), seed=seed)
    # Pictures are drawn uniformly: classes stay as unbalanced as the method leaves them.
    feed = uniform_batches(x, classes, recipe.batch)
    training.train_briefly(Classification(network), feed, recipe)
    test_x, test_classes = study.networks.labelled("test")
    with torch.no_grad():
        predictions = torch.cat([network(part).argmax(1) for part in test_x.split(TEST_BATCH)])
    trained = set(few.classes.unique().tolist())
    labels = [n for n in test_classes.unique().tolist() if n in trained]
    recalls = [float((predictions[test_classes == n] == n).float().mean()) for n in labels]
    return float(np.mean(recalls)) if recalls else math.nan


def _filled_up(few: _Few, method: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and classes: the subset, and what the method adds until all classes are equal."""
    rng = np.random.default_rng(seed)
    pictures, labels = [few.x], [few.classes]
    largest = int(torch.bincount(few.classes).max())
    more = _generators(few, rng, seed).get(method)
    for label in few.classes.unique().tolist():
        members = torch.nonzero(few.classes == label)[:, 0]
        missing = largest - len(members)
        if more is not None and missing > 0:
            pictures.append(more(members, label, missing))
            labels.append(torch.full((missing,), label))
    return torch.cat(pictures), torch.cat(labels)


def _generators(
    few: _Few, rng: np.random.Generator, seed: int
) -> dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]]:
    """By method: (indices of a class, its label, count) -> pictures [count, 1, H, W]."""

    def repeated(members: torch.Tensor, label: int, count: int) -> torch.Tensor:
        return few.x[members[rng.integers(0, len(members), count)]]

    def drawn(members: torch.Tensor, label: int, count: int) -> torch.Tensor:
        return few.bagan.sample(torch.full((count,), label), torch.Generator().manual_seed(seed))

    def mixed_by(mix: Mixer) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        def mixed(members: torch.Tensor, label: int, count: int) -> torch.Tensor:
            pictures = []
            for _ in range(count):
                a, b = rng.choice(len(members), 2, replace=len(members) < 2)
                weight = float(rng.uniform(*WEIGHTS))
                parents = few.pictures[members[[a, b]]]
                pictures.append(mix(parents, [weight, 1 - weight])[0, 0].numpy())
            return halved(np.stack(pictures))

        return mixed

    mixers = {name: mixed_by(mix) for name, mix in few.mixers.items()}
    return {"repetition": repeated, "bagan": drawn, **mixers}
