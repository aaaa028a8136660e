"""The representation study: train what is missing, measure it on test subjects, write figures and a page.

Every measure is defined in `MEASURES`; pictures are those of `slices`, in 0 ... 1 of their volume, or on its common grid.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.atomic import replacing
from mricodec.codec.evaluation import extras
from mricodec.codec.evaluation.report import environment
from mricodec.codec.voxels import metrics

from .corpus import CONTRASTS, GRID, SPLITS, Slice, on_grid, read_corpus

if TYPE_CHECKING:
    import torch

    from mricodec.models.study.adversarial import Bagan
    from mricodec.models.study.autoencoder import Autoencoder
    from mricodec.models.study.perceptual import ContrastNet, Lpips
    from mricodec.models.training.study import Recipe, Task
    from mricodec.models.weights_file import Entry


Report = Callable[[str], None]
Picture = NDArray[np.float32]

CNNS = ("cnn8", "cnn16", "cnn32")
UNETS = ("unet", "unet-wide", "unet-2level")
CODECS = (*CNNS, "unet", "unet-2level", "vae")
DEEP = UNETS[
    :2
]  # those whose latents are mixed: at half the resolution that is close to mixing pixels
PARTS = ("cnn", "unet", "vae", "interpolation", "bagan", "augmentation")
METHODS = ("none", "repetition", "pixel blending", "interpolation", "acai", "bagan")
MIXED = (
    "ssim",
    "feature_distance",
    "lpips",
    "novelty",
    "nearest",
    "sharpness",
    "mesh",
    "psnr",
)  # of interpolants
DRAWN = 64  # pictures of a class by which a generator is measured
GENERATED = ("energy_distance", "diversity", "sharpness", "recognised", "novelty")  # of BAGAN
FEW = {"T1": 40, "T2": 20, "FLAIR": 10, "DWI": 5}  # pictures of the unbalanced subset
NEAR_MM = 8.0  # largest difference in height of slices that are mixed
T_95 = {5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # Student's t, two-sided, by the number of seeds
MEASURES = {
    "PSNR": "per slice, dB, peak = maximum − minimum of its volume",
    "MSE": "per slice, of pixels in 0 … 1 of their volume",
    "SSIM": "Wang et al. 2004, window 7 × 7, range that of the volume; of interpolants, to both parents, the mean",
    "feature distance": "LPIPS's construction on a contrast classifier trained here, all weights 1, to both parents, the mean; "
    "not LPIPS",
    "LPIPS": "LPIPS 0.1, AlexNet, to both parents, the mean; only where its weights are given",
    "nearest": "feature distance to the nearest training picture of the contrast: small is plausible",
    "novelty": "root mean squared difference of pixels on the common grid to the nearest training picture of any contrast, "
    "on the scale 0 … 255",
    "sharpness": "mean absolute gradient over that of the parents: below 1 is blurred, above 1 has edges of its own",
    "mesh": "mean absolute gradient of rows (columns) by their place in a period of 8 pixels: standard deviation over mean; "
    "what strides leave behind, large where sharpness is a texture",
    "PSNR of the parents": "of their reconstructions on the common grid: what ACAI costs",
}


@dataclass(frozen=True)
class Config:
    """How much is read, trained and measured."""

    steps: dict[str, int]  # by how the network's name begins
    batch: int = 4
    size: int = 64  # of the crops, pixels
    scans: int | None = None
    every: int = 1
    test_every: int = 3
    pairs: int = 24
    seeds: int = 5
    mix_batch: int = 4
    calibrate: int = 24  # pictures for the codec's tables

    def recipe(self, name: str) -> Recipe:
        from mricodec.models.training.study import Recipe

        steps = self.steps[max((kind for kind in self.steps if name.startswith(kind)), key=len)]
        if name.startswith(("unet", "vae")):
            return Recipe(steps, self.batch, 1e-3, self.size)
        if name.startswith("cnn"):
            return Recipe(steps, self.batch, 2e-3, self.size)
        if name.startswith("acai"):
            return Recipe(steps, self.mix_batch, 1e-3, GRID)
        if name.startswith("bagan"):
            rate, momentum = (1e-3, 0.9) if name.endswith("-start") else (4e-4, 0.5)
            return Recipe(steps, 4 * self.mix_batch, rate, GRID // 2, momentum=momentum)
        return Recipe(steps, 32, 2e-3, GRID // 2)


STEPS = {
    "cnn": 2500, "unet": 1200, "unet-wide": 600, "vae": 3000, "acai-cnn": 600, "acai-unet": 300,
    "bagan-start": 2000, "bagan": 3000, "bagan-few-start": 600, "bagan-few": 800, "features": 1500, "classifier": 600,
}  # fmt: skip
CONFIGS = {
    "default": Config(STEPS),
    "debug": Config(
        dict.fromkeys(STEPS, 2), 2, 32, scans=4, every=12, test_every=4, pairs=3, mix_batch=2, calibrate=2,
    ),
}  # fmt: skip


class Study:
    """The corpus, the models trained so far and what was found, in a folder `out`."""

    def __init__(
        self, data: Path, out: Path, *, config: str = "default", minutes: float | None = None, retrain: bool = False,
        lpips: Path | None = None, report: Report = lambda line: None,
    ) -> None:  # fmt: skip
        """minutes: a budget for every model instead of the configuration's steps; without it, and without `retrain`, the
        shipped models are used as they are. ValueError without usable slices."""
        self.out, self.config, self.report, self.minutes = out, CONFIGS[config], report, minutes
        self.shipped = config == "default" and minutes is None and not retrain
        self.results: dict[str, Any] = {
            "config": config, "minutes": minutes, "environment": environment(), "measures": MEASURES,
        }  # fmt: skip
        self.slices: dict[str, list[Slice]] = {}
        left_out = []
        for split in SPLITS:
            self.slices[split], gone = read_corpus(
                data, split, every=self.config.every, scans=self.config.scans
            )
            left_out += gone
            if not self.slices[split]:
                raise ValueError(
                    f"{data / split}: expected axial slices of heads, found none that can be used"
                )
        self.results["left_out"] = [[item.file, item.reason] for item in left_out]
        self.results["data"] = [
            {"split": split, "contrast": contrast, "scans": len({s.scan for s in own}),
             "subjects": len({s.subject for s in own}), "slices": len(own)}
            for split in SPLITS
            for contrast in CONTRASTS
            if (own := [s for s in self.slices[split] if s.contrast == contrast])
        ]  # fmt: skip
        self.grid = {split: on_grid(self.slices[split]) for split in SPLITS}
        self.lpips: Lpips | None = None
        if lpips is not None:
            from mricodec.models.study.perceptual import Lpips

            self.lpips = Lpips(lpips)
        self.measured = self.slices["test"][:: self.config.test_every]
        self._networks: dict[str, Autoencoder] = {}
        self._tables: dict[str, dict[str, torch.Tensor]] = {}
        self._logs: dict[str, Path] = {}  # of shipped models
        self._validated: dict[str, float] = {}

    # trainings

    def _fit(
        self,
        task: Task,
        feed: Callable[[np.random.Generator], Any],
        name: str,
        validate: Any = None,
    ) -> None:
        """Train, or load what was trained."""
        from mricodec.models.training import study as training

        path = self.out / "models" / f"{name}.safetensors"
        if path.exists():
            training.load_trained(task, path)
        else:
            training.fit(
                task, feed, self.config.recipe(name), path.parent, name,
                validate=validate, minutes=self.minutes, report=self.report,
            )  # fmt: skip
        for network in task.networks.values():
            network.eval().requires_grad_(False)

    def network(self, name: str) -> Autoencoder:
        """An autoencoder, its weights rounded as they are stored: shipped, or trained and its file written beside."""
        from mricodec.models import zoo
        from mricodec.models.training import study as training

        if name not in self._networks:
            import torch

            torch.manual_seed(0)
            network: Any = zoo.network(name).build()
            if self.shipped and name in zoo.names():
                self._take(name, zoo.find(name))
                return self._networks[name]
            train = self.slices["train"]
            feed = training.crops(
                [s.pixels for s in train], [s.scan for s in train], self.config.recipe(name)
            )
            some = [s.pixels for s in train[:: max(1, len(train) // self.config.calibrate)]]
            if name == "vae":
                self._fit(training.RateDistortion(network), feed, name)
                tensors = training.vae_tensors(network, some)
            else:
                self._fit(
                    training.Reconstruction(network),
                    feed,
                    name,
                    lambda: {"psnr": self.validation(network)},
                )
                tensors = training.file_tensors(network, some)
            self._export(name, tensors)
            self._tables[name] = {
                key: value for key, value in tensors.items() if key.startswith("tables.")
            }
            self._networks[name] = network
        return self._networks[name]

    def _take(self, name: str, entry: Entry) -> None:
        """A shipped model."""
        from safetensors.torch import load_file

        from mricodec.models.loader import load_model

        self._networks[name] = cast(Any, load_model(name)).network
        self._tables[name] = {
            key: value for key, value in load_file(entry.path).items() if key.startswith("tables.")
        }
        self._logs[name] = entry.path.with_name(f"{name}.jsonl")
        self.results.setdefault("files", {})[name] = {
            "sha256": entry.sha256,
            "bytes": entry.path.stat().st_size,
        }

    def _export(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save

        data = save(tensors)
        sha = hashlib.sha256(data).hexdigest()
        with replacing(self.out / "models" / f"{name}-{sha[:8]}.safetensors") as file:
            file.write(data)
        self.results.setdefault("files", {})[name] = {"sha256": sha, "bytes": len(data)}

    def chosen_by(self, name: str) -> float:
        """`validation` of a trained network, measured once."""
        if name not in self._validated:
            self._validated[name] = self.validation(self.network(name))
        return self._validated[name]

    def validation(self, network: Autoencoder) -> float:
        """Mean PSNR of 12 validation slices, dB: what models are chosen by."""
        pictures = self.slices["validation"][:: max(1, len(self.slices["validation"]) // 12)]
        return float(np.mean([_psnr(s.pixels, _through(network, s.pixels)) for s in pictures]))

    def best(self, names: Sequence[str]) -> str:
        return max(names, key=self.chosen_by)

    def acai(self, start: str) -> Autoencoder:
        """The autoencoder `start`, trained on with a critic on mixed pictures of one contrast and height."""
        name = f"acai-{start}"
        if name not in self._networks:
            import torch

            from mricodec.models import zoo
            from mricodec.models.study import adversarial

            torch.manual_seed(0)
            network: Any = zoo.network(start).build()
            network.load_state_dict(self.network(start).state_dict())
            self._fit(adversarial.Acai(network), self._mixable, name)
            self._networks[name] = network
        return self._networks[name]

    def _mixable(self, rng: np.random.Generator) -> torch.Tensor:
        """Whole pictures of one contrast and height."""
        import torch

        train = self.slices["train"]
        contrasts = sorted({s.contrast for s in train})
        contrast = contrasts[rng.integers(len(contrasts))]
        own = [n for n, s in enumerate(train) if s.contrast == contrast]
        height = train[own[rng.integers(len(own))]].height_mm
        near = [n for n in own if abs(train[n].height_mm - height) <= NEAR_MM]
        return torch.from_numpy(self.grid["train"][rng.choice(near, self.config.mix_batch)])[
            :, None
        ]

    def labelled(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [n, 1, 64, 64] and classes [n]."""
        import torch

        return _small(self.grid[split]), torch.tensor(
            [CONTRASTS.index(s.contrast) for s in self.slices[split]]
        )

    def contrast_net(self) -> ContrastNet:
        """The network of the feature distance."""
        import torch

        from mricodec.models.study.perceptual import Classification, ContrastNet

        torch.manual_seed(0)
        network = ContrastNet(len(CONTRASTS))
        task = Classification(network)
        self._fit(task, _balanced(*self.labelled("train"), 32), "features")
        return network

    def bagan(self, name: str, x: torch.Tensor, classes: torch.Tensor) -> tuple[Bagan, Bagan]:
        """As its autoencoder started it, and trained."""
        import torch

        from mricodec.models.study.adversarial import Bagan, SmallAutoencoder

        torch.manual_seed(0)
        feed = _balanced(x, classes, self.config.recipe("bagan").batch)
        autoencoder = SmallAutoencoder()
        self._fit(autoencoder, feed, f"{name}-start")
        start, bagan = Bagan(len(CONTRASTS)), Bagan(len(CONTRASTS))
        for each in (start, bagan):
            each.start_from(autoencoder, x, classes)
        for network in start.networks.values():
            network.eval().requires_grad_(False)
        self._fit(bagan, feed, name)
        return start, bagan

    # measurements

    def reconstructions(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each model: PSNR, MSE, SSIM per slice of the test subjects."""
        rows = []
        for name in names:
            network = self.network(name)
            found = []
            for item in self.measured:
                x_hat = _through(network, item.pixels)
                ssim = metrics.ssim(item.pixels, x_hat, limits=(0.0, 1.0))
                found.append((_psnr(item.pixels, x_hat), metrics.mse(item.pixels, x_hat), ssim))
            psnr, mse, ssim = np.array(found).T
            by_contrast = {
                c: float(psnr[own].mean())
                for c in CONTRASTS
                if (own := [s.contrast == c for s in self.measured]) and any(own)
            }
            rows.append({
                "model": name, "values_per_pixel": network.values_per_pixel,
                "parameters": sum(p.numel() for p in network.parameters()), "slices": len(psnr),
                "psnr_min": psnr.min(), "psnr_max": psnr.max(), "psnr": psnr.mean(), "psnr_sd": psnr.std(ddof=1),
                "mse": mse.mean(), "ssim": ssim.mean(), "ssim_sd": ssim.std(ddof=1), "psnr_by_contrast": by_contrast,
                "validation_psnr": self.chosen_by(name),
            })  # fmt: skip
            self.report(
                f"{name}: {psnr.mean():.2f} ± {psnr.std(ddof=1):.2f} dB on {len(psnr)} test slices"
            )
        return rows

    def rates(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each model and octave of peak / step: its entropy and PSNR, every sixth measured test slice."""
        import torch

        from mricodec.models.training.study import padded

        rows = []
        octaves = range(3, 9)
        for name in names:
            network: Any = self.network(name)
            found: dict[int, list[tuple[float, float]]] = {octave: [] for octave in octaves}
            for item in self.measured[::6]:
                h, w = item.pixels.shape
                with torch.no_grad():
                    latents = network.g_a(padded(item.pixels, 8))
                for octave in octaves:
                    gain = network.gain(torch.tensor([float(octave)]))
                    y = (latents * gain).round()
                    with torch.no_grad():
                        x_hat = network.g_s(y / gain)[0, 0, :h, :w].clamp(0, 1).numpy()
                    weights = self._tables[name][
                        f"tables.{network.table_set(octave)}"
                    ]  # of values around 0, the last: beyond
                    costs = 24 - torch.log2(weights.double())
                    column = (
                        (y[0].flatten(1) + (costs.shape[1] - 1) // 2)
                        .long()
                        .clamp(0, costs.shape[1] - 1)
                    )
                    found[octave].append(
                        (float(costs.gather(1, column).sum()) / (h * w), _psnr(item.pixels, x_hat))
                    )
            for octave, points in found.items():
                bits, psnr = np.mean(points, 0)
                rows.append(
                    {
                        "model": name,
                        "octave": octave,
                        "bits": bits,
                        "psnr": psnr,
                        "slices": len(points),
                    }
                )
        return rows

    def pairs(self) -> list[tuple[int, int]]:
        """Test slices of one contrast and height of different subjects, at random, contrasts in turn."""
        test = self.slices["test"]
        every = [
            [(a, b) for a, s in enumerate(test) for b, t in enumerate(test)
             if s.contrast == t.contrast == contrast and s.subject < t.subject and abs(s.height_mm - t.height_mm) <= NEAR_MM]
            for contrast in CONTRASTS
        ]  # fmt: skip
        every = [found for found in every if found]
        rng = np.random.default_rng(0)
        turns = [every[n % len(every)] for n in range(self.config.pairs)] if every else []
        return [found[rng.integers(len(found))] for found in turns]

    def mixers(self) -> dict[str, Mixer]:
        """Ways to mix pictures [n, 1, H, W] with weights."""
        cnn, unet = self.best(CNNS), self.best(DEEP)
        return {
            "pixel blending": _blend,
            cnn: _latent(self.network(cnn)),
            f"acai-{cnn}": _latent(self.acai(cnn)),
            unet: _latent(self.network(unet)),
            f"acai-{unet}": _latent(self.acai(unet)),
        }

    def interpolations(self) -> list[dict[str, Any]]:
        """A row for each way to mix: measures of the middle between two test slices."""
        import torch

        features = self.contrast_net()
        train = self.grid["train"].reshape(len(self.grid["train"]), -1)
        rows: list[dict[str, Any]] = []
        pairs = self.pairs()
        if not pairs:
            self.report(
                "no two test subjects have slices of one contrast and height: nothing to interpolate"
            )
            return []
        for name, mix in self.mixers().items():
            found: list[dict[str, float]] = []
            middles = []
            for a, b in pairs:
                parents = torch.from_numpy(self.grid["test"][[a, b]])[:, None]
                middle = mix(parents, [0.5, 0.5])
                middles.append(middle)
                picture = middle[0, 0].numpy()
                both = [p[0].numpy() for p in parents]
                row: dict[str, float] = {
                    "ssim": float(
                        np.mean([metrics.ssim(p, picture, limits=(0.0, 1.0)) for p in both])
                    ),
                    "feature_distance": float(
                        features.distance(parents, middle.expand(2, -1, -1, -1)).mean()
                    ),
                    "novelty": 255
                    * math.sqrt(float(((train - picture.ravel()) ** 2).mean(1).min())),
                    "sharpness": _gradient(picture) / float(np.mean([_gradient(p) for p in both])),
                }
                row["mesh"] = _mesh(picture)
                if name != "pixel blending":
                    again = [
                        mix(parents, weights)[0, 0].numpy() for weights in ([1.0, 0.0], [0.0, 1.0])
                    ]
                    row["psnr"] = float(
                        np.mean([_psnr(p, q) for p, q in zip(both, again, strict=True)])
                    )
                if self.lpips is not None:
                    row["lpips"] = float(self.lpips(parents, middle.expand(2, -1, -1, -1)).mean())
                found.append(row)
            nearest = self._nearest(
                features, torch.cat(middles), [self.slices["test"][a].contrast for a, _ in pairs]
            )
            if all(map(math.isfinite, nearest)):
                for row, distance in zip(found, nearest, strict=True):
                    row["nearest"] = distance
            summary = {
                key: _summary([row[key] for row in found]) for key in MIXED if key in found[0]
            }
            rows.append({"method": name, "pairs": len(found)} | summary)
            self.report(
                f"{name}: "
                + ", ".join(f"{key} {value['mean']:.4g}" for key, value in summary.items())
            )
        return rows

    def _nearest(
        self, features: ContrastNet, pictures: torch.Tensor, contrasts: Sequence[str]
    ) -> list[float]:
        """Feature distance of pictures [n, 1, H, W] to the nearest training picture of their contrast; inf without one."""
        import torch

        from mricodec.models.study.perceptual import unit_distance

        out = [math.inf] * len(pictures)
        with torch.no_grad():
            for contrast in set(contrasts):
                own = [n for n, s in enumerate(self.slices["train"]) if s.contrast == contrast]
                mine = {
                    n: features.features(pictures[n : n + 1])
                    for n, c in enumerate(contrasts)
                    if c == contrast
                }
                for part in torch.from_numpy(self.grid["train"][own])[:, None].split(32):
                    real = features.features(part)
                    for n, made in mine.items():
                        out[n] = min(out[n], float(unit_distance(real, made).min()))
        return out

    def generation(self) -> list[dict[str, Any]]:
        """A row for every source and contrast: how its pictures lie to those of test subjects and of training."""
        import torch

        from mricodec.models.study.perceptual import energy_distance, mean_distance

        x, classes = self.labelled("train")
        test_x, test_classes = self.labelled("test")
        features = self.contrast_net()
        start, bagan = self.bagan("bagan", x, classes)
        rows = []
        for n, contrast in enumerate(CONTRASTS):
            train, real = x[classes == n], test_x[test_classes == n]
            if len(train) < 2 or len(real) < 2:
                continue
            asked = torch.full((DRAWN,), n)
            sources = {
                "training pictures": train[:: -(-len(train) // DRAWN)],
                "initialisation": start.sample(asked, torch.Generator().manual_seed(n)),
                "BAGAN": bagan.sample(asked, torch.Generator().manual_seed(n)),
            }
            known = torch.cat([train, train.flip(-1)])[:, 0]
            scale = features.statistics(train)
            centre, spread = scale.mean(0), scale.std(0) + 1e-6
            theirs = (features.statistics(real) - centre) / spread
            for source, made in sources.items():
                with torch.no_grad():
                    guess = features(made).argmax(1)
                mine = (features.statistics(made) - centre) / spread
                row = {
                    "source": source, "contrast": contrast, "pictures": len(made),
                    "energy_distance": energy_distance(mine, theirs),
                    "diversity": mean_distance(mine) / mean_distance(theirs),
                    "sharpness": _sharpness(made) / _sharpness(train), "recognised": float((guess == n).double().mean()),
                }  # fmt: skip
                if source != "training pictures":
                    squared = [
                        float((known - picture).square().mean((1, 2)).min()) for picture in made
                    ]
                    row["novelty"] = 255 * float(np.sqrt(squared).mean())
                rows.append(row)
        for source in dict.fromkeys(str(row["source"]) for row in rows):
            own = [row for row in rows if row["source"] == source]
            said = {key: np.mean([row[key] for row in own]) for key in GENERATED if key in own[0]}
            self.report(
                f"{source}: " + ", ".join(f"{key} {value:.4g}" for key, value in said.items())
            )
        return rows

    def subset(self) -> list[int]:
        """Training slices: FEW of every contrast, evenly spread."""
        chosen: list[int] = []
        for contrast, count in FEW.items():
            own = [n for n, s in enumerate(self.slices["train"]) if s.contrast == contrast]
            count = min(count, len(own))
            chosen += [own[i * len(own) // count] for i in range(count)]
        return chosen

    def augmentation(self) -> list[dict[str, Any]]:
        """Balanced accuracy on test of a classifier trained on `subset`, filled up by every method to equal classes."""
        import torch

        from mricodec.models.study.perceptual import Classification, ContrastNet
        from mricodec.models.training import study as training

        chosen = self.subset()
        pictures = torch.from_numpy(self.grid["train"][chosen])[:, None]
        x, classes = (t[chosen] for t in self.labelled("train"))
        test_x, test_classes = self.labelled("test")
        cnn = self.best(CNNS)
        _, bagan = self.bagan("bagan-few", x, classes)
        mixers = {
            "pixel blending": _blend,
            "interpolation": _latent(self.network(cnn)),
            "acai": _latent(self.acai(cnn)),
        }
        most = int(torch.bincount(classes).max())
        rows = []
        for method in METHODS:
            scores = []
            for seed in range(self.config.seeds):
                rng = np.random.default_rng(seed)
                more, labels = [x], [classes]
                for n in classes.unique().tolist():
                    own = torch.nonzero(classes == n)[:, 0]
                    missing = most - len(own)
                    if method == "none" or missing <= 0:
                        continue
                    if method == "repetition":  # what balance alone is worth
                        made = x[own[rng.integers(0, len(own), missing)]]
                    elif method == "bagan":
                        made = bagan.sample(
                            torch.full((missing,), n), torch.Generator().manual_seed(seed)
                        )
                    else:
                        parts = []
                        for _ in range(missing):
                            a, b = rng.choice(len(own), 2, replace=len(own) < 2)
                            alpha = float(rng.uniform(0.2, 0.8))
                            parts.append(
                                mixers[method](pictures[own[[a, b]]], [alpha, 1 - alpha])[
                                    0, 0
                                ].numpy()
                            )
                        made = _small(np.stack(parts))
                    more.append(made)
                    labels.append(torch.full((missing,), n))
                torch.manual_seed(seed)
                network = ContrastNet(len(CONTRASTS))
                recipe = replace(self.config.recipe("classifier"), seed=seed)
                # every picture alike, so that the classes are as unbalanced as the method leaves them
                feed = _uniform(torch.cat(more), torch.cat(labels), recipe.batch)
                training.train_briefly(Classification(network), feed, recipe)
                with torch.no_grad():
                    guess = torch.cat([network(part).argmax(1) for part in test_x.split(64)])
                recalls = [
                    float((guess[test_classes == n] == n).float().mean())
                    for n in test_classes.unique().tolist()
                ]
                scores.append(float(np.mean(recalls)))
            mean, half = (
                float(np.mean(scores)),
                T_95[len(scores)] * float(np.std(scores, ddof=1)) / math.sqrt(len(scores)),
            )
            rows.append(
                {
                    "method": method,
                    "balanced_accuracy": mean,
                    "half_interval_95": half,
                    "scores": scores,
                }
            )
            self.report(f"augmentation, {method}: balanced accuracy {mean:.3f} ± {half:.3f}")
        self.results["subset"] = dict(Counter(self.slices["train"][n].contrast for n in chosen))
        return rows

    def trainings(self) -> dict[str, dict[str, Any]]:
        """What was run, from the logs."""
        out = {}
        logs = [
            *(self.out / "models").glob("*.jsonl"),
            *(path for path in self._logs.values() if path.exists()),
        ]
        for path in sorted(logs, key=lambda path: path.name):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            head = next(row for row in rows if "recipe" in row)
            out[path.stem] = {**head, "minutes": head.get("minutes"), **rows[-1]}
        return out


Mixer = Callable[["torch.Tensor", list[float]], "torch.Tensor"]


def run(
    data: Path, out: Path, *, only: Sequence[str] = PARTS, config: str = "default", minutes: float | None = None,
    retrain: bool = False, lpips: Path | None = None, report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Do the `only` parts of the study: `out`/study.json, figures/ and study.html; returns the page's path.

    Repeating it trains only what is missing; parts measured before are kept in study.json. ValueError for wrong names,
    OSError, MissingExtra without matplotlib.
    """
    if unknown := [name for name in only if name not in PARTS]:
        raise ValueError(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    if config not in CONFIGS:
        raise ValueError(f"--config: expected one of {', '.join(CONFIGS)}, found {config}")
    extras.require("matplotlib.figure")
    from . import page as study_page

    (out / "models").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    study = Study(
        data, out, config=config, minutes=minutes, retrain=retrain, lpips=lpips, report=report
    )
    before = out / "study.json"
    kept: dict[str, Any] = json.loads(before.read_text()) if before.exists() else {}
    results = study.results
    figures = study_page.Figures(out / "figures")
    figures.contact_sheet(study.slices["train"], study.grid["train"])
    if "cnn" in only:
        results["cnn"] = study.reconstructions(CNNS)
        _show(study, figures, "cnn", CNNS)
    if "unet" in only:
        results["unet"] = study.reconstructions(UNETS)
        _show(study, figures, "unet", UNETS[:2])
    if "vae" in only:
        results["vae"] = study.rates(CODECS)
        figures.rates(results["vae"])
    if "interpolation" in only:
        results["interpolation"] = study.interpolations()
        _show_mixed(study, figures)
    if "bagan" in only:
        import torch

        _, bagan = study.bagan("bagan", *study.labelled("train"))
        classes = torch.arange(len(CONTRASTS)).repeat_interleave(8)
        samples = bagan.sample(classes, torch.Generator().manual_seed(0))
        made = samples.reshape(len(CONTRASTS), 8, *samples.shape[2:]).numpy()
        figures.samples(made, study.grid["train"], study.slices["train"])
        results["bagan"] = study.generation()
    if "augmentation" in only:
        results["augmentation"] = study.augmentation()
        figures.accuracies(results["augmentation"])
    results["trainings"] = study.trainings()
    files = {**kept.get("files", {}), **results.get("files", {})}
    results = {
        **{key: value for key, value in kept.items() if key in (*PARTS, "subset")},
        **results,
        "files": files,
    }
    with replacing(before) as file:
        file.write((json.dumps(results, indent=1, default=float) + "\n").encode())
    page = out / "study.html"
    with replacing(page) as file:
        file.write(study_page.render(results, out / "figures").encode())
    return page


def _show(study: Study, figures: Any, name: str, models: Sequence[str]) -> None:
    """Reconstructions, errors and surfaces of one test slice of each contrast at most."""
    middle: dict[str, Slice] = {}
    for item in study.measured:
        if item.contrast not in middle or abs(item.height_mm - 55) < abs(
            middle[item.contrast].height_mm - 55
        ):
            middle[item.contrast] = item
    shown = [middle[contrast] for contrast in CONTRASTS if contrast in middle][:3]
    rows = [
        (item, [_through(study.network(model), item.pixels) for model in models]) for item in shown
    ]
    figures.reconstructions(name, models, rows)
    figures.surfaces(name, models, *rows[0])


def _show_mixed(study: Study, figures: Any) -> None:
    import torch

    pairs = study.pairs()
    if not pairs:
        return
    a, b = pairs[0]
    parents = torch.from_numpy(study.grid["test"][[a, b]])[:, None]
    alphas = [n / 6 for n in range(7)]
    mixers = study.mixers()
    strips = {
        name: [mix(parents, [1 - t, t])[0, 0].numpy() for t in alphas]
        for name, mix in mixers.items()
    }
    figures.strips(strips, alphas)
    test = study.slices["test"]
    first = test[a]
    others = [n for n, s in enumerate(test) if s.subject not in (first.subject, test[b].subject)]
    third = [n for n in others if test[n].contrast == first.contrast] or others
    if not third:
        return
    c = min(third, key=lambda n: abs(test[n].height_mm - first.height_mm))
    three = torch.from_numpy(study.grid["test"][[a, b, c]])[:, None]
    corners = [(i / 4, j / 4, (4 - i - j) / 4) for i in range(5) for j in range(5 - i)]
    name = next(key for key in mixers if key.startswith("acai-cnn"))
    figures.simplex(name, [(w, mixers[name](three, list(w))[0, 0].numpy()) for w in corners])


def _through(network: Autoencoder, picture: Picture) -> Picture:
    from mricodec.models.training.study import reconstruct

    out: Picture = np.clip(reconstruct(network, picture), 0, 1)
    return out


def _psnr(x: Picture, y: Picture) -> float:
    return metrics.psnr(x, y, limits=(0.0, 1.0))


def _blend(pictures: torch.Tensor, weights: list[float]) -> torch.Tensor:
    import torch

    return torch.einsum("n,nchw->chw", torch.tensor(weights), pictures)[None]


def _latent(network: Autoencoder) -> Mixer:
    import torch

    from mricodec.models.study.adversarial import interpolate

    @torch.no_grad()
    def mix(pictures: torch.Tensor, weights: list[float]) -> torch.Tensor:
        return interpolate(network, pictures, weights).clamp(0, 1)

    return mix


def _sharpness(pictures: torch.Tensor) -> float:
    """Mean absolute gradient of [n, 1, H, W]."""
    return float(np.mean([_gradient(picture) for picture in pictures[:, 0].numpy()]))


def _gradient(picture: Picture) -> float:
    return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())


def _mesh(picture: Picture) -> float:
    spreads = []
    for axis in (0, 1):
        gradient = np.abs(np.diff(picture, axis=axis)).mean(1 - axis)
        places = [float(gradient[n::8].mean()) for n in range(8)]
        spreads.append(np.std(places) / max(float(np.mean(places)), 1e-9))
    return float(np.mean(spreads))


def _summary(values: Sequence[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    found = {"mean": float(np.mean(values)), "sd": sd, "min": min(values), "max": max(values)}
    return {**found, "values": [float(f"{value:.4g}") for value in values]}


def _small(pictures: Picture) -> torch.Tensor:
    """[n, 128, 128] -> [n, 1, 64, 64], means of 2 x 2."""
    import torch

    half = pictures.reshape(len(pictures), GRID // 2, 2, GRID // 2, 2).mean((2, 4))
    return torch.from_numpy(np.ascontiguousarray(half, np.float32))[:, None]


Feed = Callable[[np.random.Generator], "tuple[torch.Tensor, torch.Tensor]"]


def _balanced(x: torch.Tensor, classes: torch.Tensor, batch: int) -> Feed:
    """Classes drawn alike, mirrored at random."""
    own = [np.flatnonzero((classes == n).numpy()) for n in classes.unique().tolist()]
    return lambda rng: _mirrored(
        x, classes, [rng.choice(own[rng.integers(len(own))]) for _ in range(batch)], rng
    )


def _uniform(x: torch.Tensor, classes: torch.Tensor, batch: int) -> Feed:
    """Pictures drawn alike, mirrored at random."""
    return lambda rng: _mirrored(x, classes, list(rng.integers(0, len(x), batch)), rng)


def _mirrored(
    x: torch.Tensor, classes: torch.Tensor, chosen: list[Any], rng: np.random.Generator
) -> tuple[Any, Any]:
    pictures = x[chosen]
    return (pictures.flip(-1) if rng.random() < 0.5 else pictures), classes[chosen]
