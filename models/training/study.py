"""Trainings of the representation study: one loop for all its models; torch, numpy and safetensors
only.

A task has networks and, for every batch, losses, each for one of the networks: an autoencoder has
one, an adversarial task several in turn. Checkpoints, moving averages, schedule and log are those
of `training`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy.hyperprior import FactorizedPrior
from mricodec.models.study.autoencoder import FIRST_OCTAVE, LAST_OCTAVE, Autoencoder, octave_tables
from mricodec.models.study.vae import ResidualVAE

from .loop import PRIOR_RATE, slice_rates
from .loop import _log as append_row
from .loop import _write as write_tensors

MSE_FLOOR = 1e-6  # of the logarithm: 60 dB
TABLE_LOW = -128
TABLE_BINS = 257
TABLE_PRIOR = 200.0  # virtual draws from a Laplacian


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int
    learning_rate: float
    size: int = 96  # of the crops, pixels
    seed: int = 0
    momentum: float = 0.9


class Task(Protocol):
    """What is trained."""

    networks: dict[str, nn.Module]

    def losses(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        """(network, its loss), in turn: each network is updated before the next loss is
        computed.
        """


class RateDistortion:
    """log(bits + 6 * squared error in steps^2 + 0.01) of every picture, the step drawn between 2^-3
    and 2^-8.5 of the peak.
    """

    def __init__(self, network: FactorizedPrior) -> None:
        self.networks: dict[str, nn.Module] = {"": network.to(memory_format=torch.channels_last)}  # type: ignore[call-overload]
        self._network = network

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        steps = torch.exp2(3 + 5.5 * torch.rand(len(batch)))[:, None, None, None]
        out = slice_rates(self._network, batch * steps)
        yield "", torch.log(out["y"] + 6 * out["mse"] + 0.01).mean()


class Reconstruction:
    """log of the squared error of every picture: what the mean PSNR measures."""

    def __init__(self, network: Autoencoder) -> None:
        self.networks: dict[str, nn.Module] = {"": network.to(memory_format=torch.channels_last)}  # type: ignore[call-overload]
        self._network = network

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        x_hat = self._network.reconstruct(batch)
        yield "", torch.log(((x_hat - batch) ** 2).mean((1, 2, 3)) + MSE_FLOOR).mean()


def fit(
    task: Task, feed: Callable[[np.random.Generator], Any], recipe: Recipe, out: Path, name: str, *,
    validate: Callable[[], dict[str, float]] | None = None, minutes: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Train; afterwards the networks hold the averaged weights, which `out/name.safetensors` has
    too.

    feed: a batch from a random generator. A run that was interrupted goes on from
    `out/name.checkpoint.safetensors`. minutes: a budget of wall time instead of the recipe's steps,
    whichever ends first; the learning rate falls with it.
    """
    final, state_file, log = (
        out / f"{name}{end}" for end in (".safetensors", ".checkpoint.safetensors", ".jsonl")
    )
    out.mkdir(parents=True, exist_ok=True)
    optimisers = {
        key: torch.optim.AdamW(
            _groups(network), recipe.learning_rate, betas=(recipe.momentum, 0.98), weight_decay=1e-4
        )
        for key, network in task.networks.items()
    }
    average = {key: value.detach().clone() for key, value in _state(task).items()}
    step, spent = _resume(state_file, task, average, optimisers)
    torch.manual_seed(recipe.seed + step)
    rng = np.random.default_rng([recipe.seed, step])
    begin = saved = time.monotonic()
    recent: dict[str, list[float]] = {}
    if step == 0:
        size = {
            key or name: sum(p.numel() for p in network.parameters())
            for key, network in task.networks.items()
        }
        budget = {} if minutes is None else {"minutes": minutes}
        threads = torch.get_num_threads()
        append_row(
            log,
            {
                "name": name,
                "recipe": asdict(recipe),
                **budget,
                "parameters": size,
                "threads": threads,
            },
        )
    done = 0.0
    while done < 1:
        rate = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for key, loss in task.losses(feed(rng)):
            optimiser = optimisers[key]
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate * group["scale"]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            nn.utils.clip_grad_norm_(task.networks[key].parameters(), 1.0)
            optimiser.step()
            recent.setdefault(key or "loss", []).append(float(loss.detach()))
        step += 1
        decay = min(0.99, step / (step + 10))
        for key, value in _state(task).items():
            average[key].lerp_(value.detach(), 1 - decay)
        seconds = time.monotonic() - begin
        done = step / recipe.steps
        if minutes is not None:
            done = max(done, (spent + seconds) / (60 * minutes))
        last = done >= 1
        if step % 100 == 0 or last:
            row: dict[str, Any] = {"step": step} | {
                key: float(np.mean(values)) for key, values in recent.items()
            }
            recent.clear()
            if last and validate is not None:
                _load(task, average)
                row["validation"] = validate()
            row["seconds"] = round(spent + seconds, 1)
            append_row(log, row)
            report(f"{name}: {json.dumps(row)}")
        if time.monotonic() - saved > 60 or last:
            _save(state_file, task, average, optimisers, step, spent + seconds)
            saved = time.monotonic()
    _load(task, average)
    write_tensors(final, average)
    state_file.unlink(missing_ok=True)


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """Factorized priors start wide and narrow slowly otherwise; see training.PRIOR_RATE."""
    named = list(network.named_parameters())
    priors = [value for key, value in named if "bottleneck" in key]
    others = [value for key, value in named if "bottleneck" not in key]
    return [
        {"params": others, "scale": 1.0},
        *([{"params": priors, "scale": PRIOR_RATE}] if priors else []),
    ]


def _state(task: Task) -> dict[str, Tensor]:
    return {
        f"{name}.{key}" if name else key: value
        for name, network in task.networks.items()
        for key, value in network.state_dict().items()
    }


def _load(task: Task, tensors: dict[str, Tensor]) -> None:
    for name, network in task.networks.items():
        network.load_state_dict(
            {key: tensors[f"{name}.{key}" if name else key] for key in network.state_dict()}
        )


def load_trained(task: Task, path: Path) -> None:
    """Weights that `fit` left. OSError, or ValueError if they are of another model."""
    tensors = load_file(path)
    if tensors.keys() != _state(task).keys():
        raise ValueError(
            f"{path}: expected the weights of this model, found others; remove the file to train it again"
        )
    _load(task, tensors)


def _parameters(task: Task) -> Iterator[tuple[str, str, nn.Parameter]]:
    for name, network in task.networks.items():
        for key, parameter in network.named_parameters():
            yield name, f"{name}.{key}", parameter


def _save(
    path: Path,
    task: Task,
    average: dict[str, Tensor],
    optimisers: dict[str, torch.optim.AdamW],
    step: int,
    seconds: float,
) -> None:
    tensors = {f"state.{key}": value for key, value in _state(task).items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    for name, key, parameter in _parameters(task):
        moments = optimisers[name].state[parameter]
        tensors |= {
            f"{moment}.{key}": moments[moment]
            for moment in ("exp_avg", "exp_avg_sq")
            if moment in moments
        }
    write_tensors(path, tensors | {"step": torch.tensor(step), "seconds": torch.tensor(seconds)})


def _resume(
    path: Path, task: Task, average: dict[str, Tensor], optimisers: dict[str, torch.optim.AdamW]
) -> tuple[int, float]:
    """Step and seconds so far."""
    if not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    step = int(tensors["step"])
    _load(task, {key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    for key in average:
        average[key].copy_(tensors[f"average.{key}"])
    for name, key, parameter in _parameters(task):
        if f"exp_avg.{key}" in tensors:
            moments = {moment: tensors[f"{moment}.{key}"] for moment in ("exp_avg", "exp_avg_sq")}
            optimisers[name].state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step, float(tensors["seconds"])


def crops(
    pictures: Sequence[NDArray[np.float32]], groups: Sequence[str], recipe: Recipe
) -> Callable[[np.random.Generator], Tensor]:
    """A feed of crops [batch, 1, size, size] of pictures [rows, columns] in 0 ... 1: groups (scans)
    weigh alike.

    Mirrored and turned at random, and darkened by up to 2^-1.5: volumes differ in how bright their
    brightest voxel is.
    """
    names, where = np.unique(np.asarray(groups), return_inverse=True)
    weight = (1 / np.bincount(where))[where] / len(names)
    size = recipe.size

    def one(rng: np.random.Generator) -> NDArray[np.float32]:
        picture = pictures[int(rng.choice(len(pictures), p=weight))]
        for _ in range(4):  # empty corners teach little
            top, left = (int(rng.integers(0, max(n - size, 0) + 1)) for n in picture.shape)
            part = picture[top : top + size, left : left + size]
            if part.mean() > 0.7 * picture.mean() or rng.random() < 0.15:
                break
        part = np.pad(part, [(0, size - n) for n in part.shape], mode="edge")
        part = part[:: 1 if rng.random() < 0.5 else -1, :: 1 if rng.random() < 0.5 else -1]
        if rng.random() < 0.5:
            part = part.T
        return part * np.float32(2.0 ** -rng.uniform(0, 1.5))

    def feed(rng: np.random.Generator) -> Tensor:
        batch = torch.from_numpy(np.stack([one(rng) for _ in range(recipe.batch)]))[:, None]
        return batch.contiguous(memory_format=torch.channels_last)

    return feed


@torch.no_grad()
def reconstruct(network: Autoencoder, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """A whole picture [rows, columns] through an autoencoder."""
    rows, columns = picture.shape
    x = padded(picture, network.stride)
    out: NDArray[np.float32] = network.reconstruct(x)[0, 0, :rows, :columns].numpy()
    return out


def padded(picture: NDArray[np.float32], multiple: int) -> Tensor:
    """[rows, columns] -> [1, 1, ...], sides up to multiples, the border repeated."""
    edge = np.pad(picture, [(0, -n % multiple) for n in picture.shape], mode="edge")
    return torch.from_numpy(np.ascontiguousarray(edge))[None, None]


@torch.no_grad()
def calibrate(
    network: Autoencoder, pictures: Sequence[NDArray[np.float32]], seed: int = 0
) -> dict[str, Tensor]:
    """Measure offset and sensitivity of the latents, set them, and fit the probability tables.

    -> "tables.y<octave>", int32 [latent, bins + 1] of sum 2**24; see models/autoencoder.py.
    """
    latents = [network.encode(padded(picture, 8)) for picture in pictures]
    flat = torch.cat([z[0].flatten(1) for z in latents], 1)
    network.offset.copy_(flat.median(1).values)
    spread = flat.std(1)
    generator = torch.Generator().manual_seed(seed)
    squared = torch.zeros(network.latent)
    chosen = latents[:: max(1, len(latents) // 4)][:4]
    for z in chosen:
        middle = z[
            :, :, z.shape[2] // 4 : 3 * z.shape[2] // 4, z.shape[3] // 4 : 3 * z.shape[3] // 4
        ]
        x = network.decode(middle)
        for channel in range(network.latent):
            noise = torch.zeros_like(middle)
            sigma = 0.02 * float(spread[channel]) + 1e-6
            noise[:, channel] = sigma * torch.randn(middle[:, channel].shape, generator=generator)
            squared[channel] += (
                ((network.decode(middle + noise) - x) ** 2).mean() / sigma**2 / len(chosen)
            )
    network.sensitivity.copy_((squared * network.stride**2).sqrt().clamp(min=1e-3))
    sensitivity = network.sensitivity[:, None]
    return _octaves(
        flat - network.offset[:, None],
        generator,
        lambda y, level: y * torch.exp2(level) * sensitivity,
    )


def _octaves(
    y: Tensor, generator: torch.Generator, scaled: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Latents [channels, n], scaled(y, level [n]) as the codec does at peak / step = 2^level ->
    "tables.y<octave>".
    """
    tables = {}
    for octave in range(FIRST_OCTAVE, LAST_OCTAVE + 1):
        level = octave + torch.rand(y.shape[1], generator=generator)
        tables[f"tables.{octave_tables(octave)}"] = _tables(scaled(y, level).round()).to(
            torch.int32
        )
    return tables


def _tables(q: Tensor) -> Tensor:
    """Histograms of integers [channels, n], smoothed by a Laplacian of the same mean magnitude."""
    head = (q - TABLE_LOW).clamp(-1, TABLE_BINS)
    head = torch.where(head < 0, TABLE_BINS, head).long()
    counts = torch.stack([torch.bincount(row, minlength=TABLE_BINS + 1) for row in head]).double()
    sigma = (q.double().abs().mean(1, keepdim=True) * math.sqrt(2)).clamp(min=0.1)
    values = torch.arange(TABLE_LOW, TABLE_LOW + TABLE_BINS, dtype=torch.float64)[None]
    prior = torch.exp2(-entropy.laplace_bits(values, sigma))
    prior = torch.cat([prior, (1 - prior.sum(1, keepdim=True)).clamp(min=1e-6)], 1)
    return entropy.integer_tables(counts + TABLE_PRIOR * prior)


def rounded(network: nn.Module) -> None:
    """Weights to bfloat16 precision, as they are shipped."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16().float())


@torch.no_grad()
def vae_tensors(
    network: ResidualVAE, pictures: Sequence[NDArray[np.float32]], seed: int = 0
) -> dict[str, Tensor]:
    """The same of the VAE: bfloat16 weights, tables from its latents of `pictures`. Rounds the
    network.
    """
    rounded(network)
    weights = {
        key: value.detach().bfloat16().contiguous()
        for key, value in network.named_parameters()
        if not key.startswith("bottleneck")
    }
    y = torch.cat(
        [network.g_a(padded(picture, network.stride))[0].flatten(1) for picture in pictures], 1
    )
    generator = torch.Generator().manual_seed(seed)
    return {
        **weights,
        **_octaves(y, generator, lambda y, level: y * network.gain(level)[:, :, 0, 0].T),
    }


def file_tensors(
    network: Autoencoder, pictures: Sequence[NDArray[np.float32]]
) -> dict[str, Tensor]:
    """What a weights file holds: bfloat16 weights, float32 offset and sensitivity, int32 tables.
    Rounds the network.
    """
    rounded(network)
    network.eval().requires_grad_(False)
    tables = calibrate(network, pictures)
    weights = {key: value.bfloat16() for key, value in network.named_parameters()}
    buffers = {"offset": network.offset, "sensitivity": network.sensitivity}
    return {
        key: value.detach().contiguous() for key, value in {**weights, **buffers, **tables}.items()
    }


def train_briefly(task: Task, feed: Callable[[np.random.Generator], Any], recipe: Recipe) -> None:
    """`fit` without files, for the many small classifiers of one comparison."""
    rng = np.random.default_rng(recipe.seed)
    optimisers = {
        key: torch.optim.AdamW(network.parameters(), recipe.learning_rate)
        for key, network in task.networks.items()
    }
    for step in range(recipe.steps):
        for key, loss in task.losses(feed(rng)):
            for group in optimisers[key].param_groups:
                group["lr"] = (
                    recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
                )
            optimisers[key].zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimisers[key].step()
