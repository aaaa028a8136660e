"""The networks of a study: shipped, trained before, or trained when they are first asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load_file

from mricodec.models import zoo
from mricodec.models.loader import load_model
from mricodec.models.study.adversarial import Acai, Bagan, SmallAutoencoder
from mricodec.models.study.perceptual import Classification, ContrastNet
from mricodec.models.training import export
from mricodec.models.training import study as training

from .corpus import CONTRASTS, Corpus, Picture
from .measures import halved, psnr
from .settings import Config

if TYPE_CHECKING:
    from mricodec.models.study.autoencoder import Autoencoder

Feed = Callable[[np.random.Generator], Any]
Report = Callable[[str], None]

# Largest difference in height of two slices that are mixed.
MAX_HEIGHT_DIFFERENCE_MM = 8.0
# Validation slices by which networks are chosen.
VALIDATION_SLICES = 12
# Pictures of a batch of the classifier behind the feature distance.
FEATURES_BATCH = 32


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, and how long."""

    config: Config
    # Whether shipped networks are used as they are.
    use_shipped: bool = True
    # Wall time of each training instead of the steps of the configuration.
    minutes: float | None = None


class Networks:
    """The networks of a study in the folder `out`/models; each is loaded or trained once."""

    def __init__(self, corpus: Corpus, out: Path, plan: TrainingPlan, report: Report) -> None:
        self.files: dict[str, dict[str, Any]] = {}  # SHA-256 and size of the codecs' weights
        self._corpus = corpus
        self._folder = out / "models"
        self._plan = plan
        self._report = report
        self._networks: dict[str, Autoencoder] = {}
        self._tables: dict[str, dict[str, torch.Tensor]] = {}
        self._shipped_logs: dict[str, Path] = {}
        self._validation_psnr: dict[str, float] = {}

    def autoencoder(self, name: str) -> Autoencoder:
        """An autoencoder (the VAE too), its weights rounded as they are stored."""
        if name not in self._networks:
            torch.manual_seed(0)
            network: Any = zoo.network(name).build()
            if self._plan.use_shipped and name in zoo.names():
                self._load_shipped(name)
            else:
                self._train(name, network)
        return self._networks[name]

    def tables(self, name: str) -> dict[str, torch.Tensor]:
        """The probability tables of an autoencoder by name, sums 2**24, from training slices."""
        self.autoencoder(name)
        return self._tables[name]

    def acai(self, start: str) -> Autoencoder:
        """The autoencoder `start`, trained on with a critic on mixed pictures."""
        name = f"acai-{start}"
        if name not in self._networks:
            torch.manual_seed(0)
            network: Any = zoo.network(start).build()
            network.load_state_dict(self.autoencoder(start).state_dict())
            self._fit(Acai(network), self._mixable, name)
            self._networks[name] = network
        return self._networks[name]

    def contrast_net(self) -> ContrastNet:
        """The classifier of contrasts behind the feature distance."""
        torch.manual_seed(0)
        network = ContrastNet(len(CONTRASTS))
        feed = balanced_batches(*self.labelled("train"), FEATURES_BATCH)
        self._fit(Classification(network), feed, "features")
        return network

    def bagan(self, name: str, x: torch.Tensor, classes: torch.Tensor) -> tuple[Bagan, Bagan]:
        """BAGAN as its autoencoder initialised it, and after its adversarial training."""
        torch.manual_seed(0)
        feed = balanced_batches(x, classes, self._plan.config.recipe("bagan").batch)
        autoencoder = SmallAutoencoder()
        self._fit(autoencoder, feed, f"{name}-start")
        start, bagan = Bagan(len(CONTRASTS)), Bagan(len(CONTRASTS))
        for each in (start, bagan):
            each.start_from(autoencoder, x, classes)
        for network in start.networks.values():
            network.eval().requires_grad_(False)
        self._fit(bagan, feed, name)
        return start, bagan

    def labelled(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [n, 1, 64, 64] and classes [n] of a split."""
        classes = [CONTRASTS.index(item.contrast) for item in self._corpus.slices[split]]
        return halved(self._corpus.grid[split]), torch.tensor(classes)

    def validation_psnr(self, name: str) -> float:
        """Mean PSNR of validation slices, dB, by which networks are chosen."""
        if name not in self._validation_psnr:
            self._validation_psnr[name] = self._validate(self.autoencoder(name))
        return self._validation_psnr[name]

    def best(self, names: Sequence[str]) -> str:
        """The network with the highest PSNR on validation slices."""
        return max(names, key=self.validation_psnr)

    def trainings(self) -> dict[str, dict[str, Any]]:
        """Recipe, size, time and last losses of every training, from the logs."""
        rows = {}
        shipped = (path for path in self._shipped_logs.values() if path.exists())
        logs = [*self._folder.glob("*.jsonl"), *shipped]
        for path in sorted(logs, key=lambda path: path.name):
            log = [json.loads(line) for line in path.read_text().splitlines()]
            head = next(row for row in log if "recipe" in row)
            rows[path.stem] = {**head, "minutes": head.get("minutes"), **log[-1]}
        return rows

    def _fit(
        self,
        task: training.Task,
        feed: Feed,
        name: str,
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Train, or load what was trained."""
        path = self._folder / f"{name}.safetensors"
        if path.exists():
            training.load_trained(task, path)
        else:
            recipe = self._plan.config.recipe(name)
            run = training.Run(self._folder, name, self._plan.minutes, self._report)
            training.fit(task, feed, recipe, run, validate)
        for network in task.networks.values():
            network.eval().requires_grad_(False)

    def _train(self, name: str, network: Any) -> None:
        """Train an autoencoder on crops, and write its file for `--model` beside the others."""
        slices, config = self._corpus.slices["train"], self._plan.config
        pixels, scans = [item.pixels for item in slices], [item.scan for item in slices]
        feed = training.crops(pixels, scans, config.recipe(name))
        calibration = pixels[:: max(1, len(pixels) // config.calibrate)]
        if name == "vae":
            self._fit(training.RateDistortion(network), feed, name)
            tensors = training.vae_tensors(network, calibration)
        else:
            task = training.Reconstruction(network)
            self._fit(task, feed, name, lambda: {"psnr": self._validate(network)})
            tensors = training.file_tensors(network, calibration)
        path, sha256 = export.write_weights(self._folder, name, tensors)
        self._add(name, network, tensors, {"sha256": sha256, "bytes": path.stat().st_size})

    def _load_shipped(self, name: str) -> None:
        entry = zoo.find(name)
        self._shipped_logs[name] = entry.path.with_name(f"{name}.jsonl")
        network = cast(Any, load_model(name)).network
        file = {"sha256": entry.sha256, "bytes": entry.path.stat().st_size}
        self._add(name, network, load_file(entry.path), file)

    def _add(
        self,
        name: str,
        network: Autoencoder,
        tensors: dict[str, torch.Tensor],
        file: dict[str, Any],
    ) -> None:
        tables = {key: value for key, value in tensors.items() if key.startswith("tables.")}
        self._networks[name], self._tables[name], self.files[name] = network, tables, file

    def _validate(self, network: Autoencoder) -> float:
        slices = self._corpus.slices["validation"]
        pictures = [item.pixels for item in slices[:: max(1, len(slices) // VALIDATION_SLICES)]]
        return float(np.mean([psnr(x, reconstruction(network, x)) for x in pictures]))

    def _mixable(self, rng: np.random.Generator) -> torch.Tensor:
        """A batch of whole pictures of one contrast and height."""
        slices = self._corpus.slices["train"]
        contrasts = sorted({item.contrast for item in slices})
        contrast = contrasts[rng.integers(len(contrasts))]
        alike = [n for n, item in enumerate(slices) if item.contrast == contrast]
        height = slices[alike[rng.integers(len(alike))]].height_mm
        near = [n for n in alike if abs(slices[n].height_mm - height) <= MAX_HEIGHT_DIFFERENCE_MM]
        chosen = rng.choice(near, self._plan.config.mix_batch)
        return torch.from_numpy(self._corpus.grid["train"][chosen])[:, None]


def reconstruction(network: Autoencoder, picture: Picture) -> Picture:
    """A picture through an autoencoder, clipped to 0 ... 1."""
    clipped: Picture = np.clip(training.reconstruct(network, picture), 0, 1)
    return clipped


def balanced_batches(x: torch.Tensor, classes: torch.Tensor, batch: int) -> Feed:
    """Classes are drawn with equal probability; batches are mirrored at random."""
    members = [np.flatnonzero((classes == n).numpy()) for n in classes.unique().tolist()]

    def feed(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [rng.choice(members[rng.integers(len(members))]) for _ in range(batch)]
        return _mirrored(x, classes, chosen, rng)

    return feed


def uniform_batches(x: torch.Tensor, classes: torch.Tensor, batch: int) -> Feed:
    """Pictures are drawn with equal probability; batches are mirrored at random."""

    def feed(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return _mirrored(x, classes, list(rng.integers(0, len(x), batch)), rng)

    return feed


def _mirrored(
    x: torch.Tensor, classes: torch.Tensor, chosen: list[Any], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = x[chosen]
    return (pictures.flip(-1) if rng.random() < 0.5 else pictures), classes[chosen]
