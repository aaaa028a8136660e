"""Generation: pictures that BAGAN draws from a class, beside pictures of test subjects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mricodec.models.study.perceptual import ContrastNet, energy_distance, mean_distance

from .corpus import CONTRASTS, Picture
from .measures import mean_gradient
from .study import Study

# Pictures of a class by which a generator is measured.
DRAWN = 64
# Pictures of a class in the figure.
SHOWN = 8
# Measures of generated pictures, in the order of the table.
COLUMNS = ("energy_distance", "diversity", "sharpness", "recognised", "novelty")
TRAINING_PICTURES = "training pictures"


def generation(study: Study) -> list[dict[str, Any]]:
    """A row for each source of pictures and contrast: their distance to those of test subjects."""
    x, classes = study.networks.labelled("train")
    test_x, test_classes = study.networks.labelled("test")
    features = study.networks.contrast_net()
    start, bagan = study.networks.bagan("bagan", x, classes)
    rows = []
    for n, contrast in enumerate(CONTRASTS):
        train, test = x[classes == n], test_x[test_classes == n]
        if len(train) < 2 or len(test) < 2:
            continue
        labels = torch.full((DRAWN,), n)
        sources = {
            TRAINING_PICTURES: train[:: -(-len(train) // DRAWN)],
            "initialisation": start.sample(labels, torch.Generator().manual_seed(n)),
            "BAGAN": bagan.sample(labels, torch.Generator().manual_seed(n)),
        }
        for source, pictures in sources.items():
            row = {"source": source, "contrast": contrast, "pictures": len(pictures)}
            row |= _measure(features, pictures, train, test, n)
            if source != TRAINING_PICTURES:
                row["novelty"] = _novelty(pictures, train)
            rows.append(row)
    _report_means(study, rows)
    return rows


def _measure(
    features: ContrastNet,
    pictures: torch.Tensor,
    train: torch.Tensor,
    test: torch.Tensor,
    label: int,
) -> dict[str, float]:
    """Measures of generated pictures [n, 1, H, W] of a class."""
    scale = features.statistics(train)
    centre, spread = scale.mean(0), scale.std(0) + 1e-6
    drawn = (features.statistics(pictures) - centre) / spread
    real = (features.statistics(test) - centre) / spread
    with torch.no_grad():
        predictions = features(pictures).argmax(1)
    return {
        "energy_distance": energy_distance(drawn, real),
        "diversity": mean_distance(drawn) / mean_distance(real),
        "sharpness": mean_gradient(pictures) / mean_gradient(train),
        "recognised": float((predictions == label).double().mean()),
    }


def _novelty(pictures: torch.Tensor, train: torch.Tensor) -> float:
    """Mean over pictures of the distance to the nearest training picture, mirrored or not."""
    both = torch.cat([train, train.flip(-1)])[:, 0]
    squared = [float((both - picture).square().mean((1, 2)).min()) for picture in pictures]
    return 255 * float(np.sqrt(squared).mean())


def _report_means(study: Study, rows: list[dict[str, Any]]) -> None:
    """A line for each source, means over the contrasts."""
    for source in dict.fromkeys(str(row["source"]) for row in rows):
        of_source = [row for row in rows if row["source"] == source]
        means = {
            key: np.mean([row[key] for row in of_source]) for key in COLUMNS if key in of_source[0]
        }
        study.report(
            f"{source}: " + ", ".join(f"{key} {value:.4g}" for key, value in means.items())
        )


def shown_samples(study: Study) -> Picture:
    """For the figure: pictures [contrasts, SHOWN, H, W], unselected."""
    _, bagan = study.networks.bagan("bagan", *study.networks.labelled("train"))
    labels = torch.arange(len(CONTRASTS)).repeat_interleave(SHOWN)
    samples = bagan.sample(labels, torch.Generator().manual_seed(0))
    pictures: Picture = samples.reshape(len(CONTRASTS), SHOWN, *samples.shape[2:]).numpy()
    return pictures
