"""Training of the representation study's models: one loop for all of them.

A task has networks and, for every batch, losses, each of one network: an autoencoder has one, an
adversarial task several in turn. Checkpoints, moving averages and logs are those of `state`.
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
from mricodec.models.study.autoencoder import (
    FIRST_OCTAVE,
    LAST_OCTAVE,
    Autoencoder,
    channels_last,
    octave_tables,
)
from mricodec.models.study.vae import ResidualVAE

from .loop import slice_rates
from .state import TrainingState, append_row, write_tensors

# Added to the squared error before its logarithm: beyond 60 dB nothing is gained.
MSE_FLOOR = 1e-6
# Lowest value of the probability tables, and how many they have.
TABLE_LOW = -128
TABLE_BINS = 257
# Virtual draws from a Laplacian by which histograms are smoothed.
TABLE_PRIOR = 200.0
# Steps of the linear start of the learning rate.
WARM_UP_STEPS = 100
# Largest decay of the moving average of the weights.
MAX_DECAY = 0.99
# Steps between the rows of the log.
LOG_STEPS = 100
# Seconds between checkpoints.
SAVE_SECONDS = 60


@dataclass(frozen=True)
class Recipe:
    """How long and at which rate a model is trained, on which crops."""

    steps: int
    batch: int
    learning_rate: float
    # Side of the crops, pixels.
    size: int = 96
    seed: int = 0
    momentum: float = 0.9


class Task(Protocol):
    """What is trained."""

    networks: dict[str, nn.Module]

    def losses(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        """(network, its loss) in turn: each is updated before the next loss is computed."""


class RateDistortion:
    """log(bits + 6 squared error in steps^2 + 0.01), with steps of 2^-3 to 2^-8.5 of the peak."""

    def __init__(self, network: FactorizedPrior) -> None:
        self.networks: dict[str, nn.Module] = {"": channels_last(network)}
        self._network = network

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        steps = torch.exp2(3 + 5.5 * torch.rand(len(batch)))[:, None, None, None]
        out = slice_rates(self._network, batch * steps)
        yield "", torch.log(out["y"] + 6 * out["mse"] + 0.01).mean()


class Reconstruction:
    """log of the squared error of every picture: what the mean PSNR measures."""

    def __init__(self, network: Autoencoder) -> None:
        self.networks: dict[str, nn.Module] = {"": channels_last(network)}
        self._network = network

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        x_hat = self._network.reconstruct(batch)
        yield "", torch.log(((x_hat - batch) ** 2).mean((1, 2, 3)) + MSE_FLOOR).mean()


@dataclass(frozen=True)
class Run:
    """Where and how long a training runs."""

    folder: Path
    # Of its files: NAME.safetensors, NAME.checkpoint.safetensors, NAME.jsonl.
    name: str
    # A budget of wall time that may end the training before the recipe's steps.
    minutes: float | None = None
    report: Callable[[str], None] = lambda line: None

    def file(self, ending: str) -> Path:
        """A file of the training."""
        return self.folder / f"{self.name}{ending}"

    def done(self, step: int, steps: int, seconds: float) -> float:
        """The part of the training that is done, by steps or by time."""
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(step / steps, by_time)


def fit(
    task: Task,
    feed: Callable[[np.random.Generator], Any],
    recipe: Recipe,
    run: Run,
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train; afterwards the networks hold the averaged weights, and the file of the run too.

    feed: a batch from a random generator. A training that was interrupted goes on from its
    checkpoint; the learning rate falls with what is done.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = run.file(".checkpoint.safetensors"), run.file(".jsonl")
    state = TrainingState(task.networks, recipe.learning_rate, recipe.momentum)
    step, seconds_before = state.resume(checkpoint)
    torch.manual_seed(recipe.seed + step)
    rng = np.random.default_rng([recipe.seed, step])
    begin = saved = time.monotonic()
    recent: dict[str, list[float]] = {}
    if step == 0:
        append_row(log, _first_row(task, recipe, run))
    done = 0.0
    while done < 1:
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        rate = min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * cosine)
        for key, loss in task.losses(feed(rng)):
            state.descend(key, loss, rate)
            recent.setdefault(key or "loss", []).append(float(loss.detach()))
        step += 1
        state.average_in(step, MAX_DECAY)
        seconds = seconds_before + time.monotonic() - begin
        done = run.done(step, recipe.steps, seconds)
        if step % LOG_STEPS == 0 or done >= 1:
            row: dict[str, Any] = {"step": step}
            row |= {key: float(np.mean(values)) for key, values in recent.items()}
            recent.clear()
            if done >= 1 and validate is not None:
                state.load(state.average)
                row["validation"] = validate()
            row["seconds"] = round(seconds, 1)
            append_row(log, row)
            run.report(f"{run.name}: {json.dumps(row)}")
        if time.monotonic() - saved > SAVE_SECONDS:
            state.save(checkpoint, step, seconds)
            saved = time.monotonic()
    state.load(state.average)
    write_tensors(run.file(".safetensors"), state.average)
    checkpoint.unlink(missing_ok=True)


def _first_row(task: Task, recipe: Recipe, run: Run) -> dict[str, Any]:
    sizes = {
        key or run.name: sum(p.numel() for p in network.parameters())
        for key, network in task.networks.items()
    }
    budget = {} if run.minutes is None else {"minutes": run.minutes}
    head = {"name": run.name, "recipe": asdict(recipe), **budget}
    return head | {"parameters": sizes, "threads": torch.get_num_threads()}


def load_trained(task: Task, path: Path) -> None:
    """Load weights that `fit` left. OSError, or ValueError if they are of another model."""
    tensors = load_file(path)
    state = TrainingState(task.networks, learning_rate=0.0)
    if tensors.keys() != state.weights().keys():
        raise ValueError(
            f"{path}: expected the weights of this model, found others; "
            "remove the file to train it again"
        )
    state.load(tensors)


def crops(
    pictures: Sequence[NDArray[np.float32]], groups: Sequence[str], recipe: Recipe
) -> Callable[[np.random.Generator], Tensor]:
    """A feed of crops [batch, 1, size, size] of pictures [rows, columns] in 0 ... 1.

    Groups (scans) have equal weight.

    Mirrored and turned at random, and darkened by up to 2^-1.5: volumes differ in how bright their
    brightest voxel is.
    """
    names, where = np.unique(np.asarray(groups), return_inverse=True)
    weight = (1 / np.bincount(where))[where] / len(names)
    size = recipe.size

    def one(rng: np.random.Generator) -> NDArray[np.float32]:
        picture = pictures[int(rng.choice(len(pictures), p=weight))]
        for _ in range(4):  # Empty corners teach little.
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

    -> "tables.y<octave>", int32 [latent, bins + 1] of sum 2**24; see study/autoencoder.py.
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
    """Latents y [channels, n] -> "tables.y<octave>"; scaled(y, level [n]) scales as the codec."""
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
    """As `file_tensors`, of the VAE: its gains are trained. Rounds the network."""
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
    """The tensors of a weights file: bfloat16 weights, float32 offset and sensitivity, tables.

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
