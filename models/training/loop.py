"""Training of the lossy codecs: one loop, torch, numpy and safetensors only.

The corpus is a cache file of slabs. A sample is a crop of a few slices, seen at a random
quantisation step, so that one model learns every rate; the loss weighs every volume and rate alike,
as a BD-rate does:

    default          loss = mean over crops of log(bits per sample + 0.003)
    slice coders     loss = mean over crops of log(bits per sample + 6 squared error in steps^2
                                                   + 0.01)

Checkpoints (safetensors: weights, moving average, optimiser moments, step) are written every few
minutes; a run that finds one goes on from it. The log is one JSON object a line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from mricodec.models.lossy.bit_exact import choose_backend
from mricodec.models.lossy.context_model import ContextCodec, rate_class
from mricodec.models.lossy.hyperprior import FIRST_GAIN_NODE, FactorizedPrior, ScaleHyperprior
from mricodec.models.lossy.lapped_transform import DEPTHS, analysis
from mricodec.models.lossy.rdo import choose_depths
from mricodec.models.lossy.slice_coder import SliceCoder

from .state import TrainingState, append_row, write_tensors


@dataclass(frozen=True)
class Config:
    """A named recipe."""

    # A name of `MODELS`.
    model: str
    steps: int
    # Crops of a batch, slices, samples along each side; the first shape where the depth is 1.
    shapes: tuple[tuple[int, int, int], ...]
    learning_rate: float
    # The step is 2**-u of the slab's 99.9th percentile, with u in this range; see `octaves`.
    steps_range: tuple[float, ...] = (1.0, 5.5, 10.5)
    # The config whose result the weights start from, if it is in the same folder.
    start: str | None = None
    seed: int = 0
    # Scans of each split that are packed from a data folder, the smallest files; None: all.
    scans: int | None = None


SHAPES = ((2, 16, 96), (1, 32, 96), (1, 48, 80))
CONFIGS: dict[str, Config] = {
    "default-first": Config("default-wide", steps=6_600, shapes=SHAPES, learning_rate=8e-4),
    "default-wide": Config(
        "default-wide",
        steps=11_000,
        shapes=SHAPES,
        learning_rate=6e-4,
        start="default-first",
        seed=1,
    ),
    "default-base": Config(
        "default-base", steps=4_500, shapes=SHAPES, learning_rate=6e-4, start="default-wide", seed=2
    ),
    "default-narrow": Config(
        "default", steps=4_500, shapes=SHAPES, learning_rate=6e-4, start="default-base", seed=3
    ),
    "default": Config(
        "default", steps=5_000, shapes=SHAPES, learning_rate=6e-4, start="default-narrow", seed=4
    ),
    "factorized": Config(
        "factorized", steps=6_000, shapes=((8, 1, 96),), learning_rate=1e-3, steps_range=(3, 8.5)
    ),
    "hyperprior": Config(
        "hyperprior",
        steps=3_500,
        shapes=((8, 1, 96),),
        learning_rate=7e-4,
        steps_range=(3, 8.5),
        start="factorized",
    ),
    "debug": Config("default", steps=12, shapes=((2, 8, 48),), learning_rate=1e-3, scans=4),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "default": ContextCodec,
    "default-wide": partial(ContextCodec, 128, base=True, wide=True),
    "default-base": partial(ContextCodec, 128, base=True),
    "factorized": FactorizedPrior,
    "hyperprior": ScaleHyperprior,
}


# Share of the draws of u below the middle of `steps_range`.
LOW_RATES = 0.85
# Shares of the batches by the depth of the transform: 1, 2, 4, 8.
DEPTH_SHARES = (0.44, 0.08, 0.2, 0.28)
# Smallest 99.9th percentile of the values of a slab: below it is too little to learn from.
MIN_SCALE = 16
# Share of crops that are taken though another depth suits them better.
UNSUITED = 0.06
# Steps of the linear start of the learning rate.
WARM_UP_STEPS = 200
# Largest decay of the moving average of the weights.
MAX_DECAY = 0.998
# Steps between the rows of the log, and between validations.
LOG_STEPS = 100
VALIDATION_STEPS = 1000
# Batches of a validation.
VALIDATION_BATCHES = 24
# Seconds between checkpoints.
SAVE_SECONDS = 120


@dataclass(frozen=True)
class Item:
    """A slab to draw crops from: voxels [k, j, i] float32, their minimum 0.

    Geometries have equal weight, slabs of one geometry the square root of their size.
    """

    voxels: NDArray[np.float32]
    scale: float
    peak: float
    geometry: str
    isotropic: bool
    weight: float


def items(slabs: list[Any], split: str) -> list[Item]:
    """The slabs of a split with enough range to learn from."""
    out = []
    for slab in slabs:
        if slab.split != split:
            continue
        voxels = slab.voxels.astype(np.float32)
        voxels -= voxels.min()
        scale = float(np.percentile(voxels, 99.9))
        spacing = slab.spacing_mm
        if scale >= MIN_SCALE:
            isotropic = max(spacing) < 1.2 * min(spacing)
            out.append(
                Item(
                    voxels,
                    scale,
                    float(voxels.max()),
                    slab.geometry,
                    isotropic,
                    math.sqrt(voxels.size),
                )
            )
    total = {
        kind: sum(item.weight for item in out if item.geometry == kind)
        for kind in {item.geometry for item in out}
    }
    return [replace(item, weight=item.weight / total[item.geometry]) for item in out]


def zero_fill(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Scanner interpolation: in-plane spectrum padded with zeros, magnitude kept."""
    k, h, w = x.shape
    factor = rng.uniform(1.1, 1.7)
    height, width = (
        int(h / factor) // 2 * 2,
        (int(w / factor) // 2 * 2 if rng.random() < 0.5 else w),
    )
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    spectrum = np.fft.fftshift(
        np.fft.fft2(x[:, top : top + height, left : left + width]), axes=(1, 2)
    )
    padded = np.zeros((k, h, w), np.complex64)
    a, b = (h - height) // 2, (w - width) // 2
    padded[:, a : a + height, b : b + width] = spectrum
    scale = h * w / (height * width)
    picture: NDArray[np.float32] = (
        np.abs(np.fft.ifft2(np.fft.ifftshift(padded, axes=(1, 2)))) * scale
    ).astype(np.float32)
    return picture


@dataclass(frozen=True)
class Batch:
    """Crops x [B, slices, size, size] in steps, their rate classes [B], the transform's depth."""

    x: Tensor
    rate: Tensor
    depth: int


def _codes_volumes(config: Config) -> bool:
    """Whether the model transforms slices together."""
    return config.model.startswith("default")


def octaves(config: Config, rng: np.random.Generator) -> float:
    """A draw of u; LOW_RATES of the draws lie below the middle number of `steps_range`."""
    low, *middle, high = config.steps_range
    if not middle:
        return float(rng.uniform(low, high))
    return float(
        rng.uniform(low, middle[0]) if rng.random() < LOW_RATES else rng.uniform(middle[0], high)
    )


def crop(
    item: Item, config: Config, slices: int, size: int, rng: np.random.Generator, *, augment: bool
) -> tuple[NDArray[np.float32], int]:
    """One crop [slices, size, size] in steps, and its rate class."""
    x = item.voxels
    if augment and item.isotropic:
        x = x.transpose(rng.permutation(3))
    # Thicker slices: means of two.
    deep = 2 if augment and rng.random() < 0.12 and len(x) >= 2 * slices else 1
    shrink = 2 if augment and rng.random() < 0.12 and min(x.shape[1:]) >= 2 * size else 1
    want = (slices * deep, size * shrink, size * shrink)
    for _ in range(4):  # Empty corners teach little.
        start = [
            int(rng.integers(0, max(n - m, 0) + 1)) for n, m in zip(x.shape, want, strict=True)
        ]
        part = x[tuple(slice(s, s + m) for s, m in zip(start, want, strict=True))]
        if part.mean() > 0.03 * item.scale or rng.random() < 0.1:
            break
    part = np.pad(part, [(0, m - n) for n, m in zip(part.shape, want, strict=True)], mode="edge")
    if deep > 1:
        part = part.reshape(slices, deep, *part.shape[1:]).mean(1)
    if shrink > 1:
        k, h, w = part.shape
        part = part.reshape(k, h // 2, 2, w // 2, 2).mean((2, 4))
    if augment:
        if rng.random() < 0.12:
            part = zero_fill(part, rng)
        if rng.random() < 0.15:
            sigma = item.scale * 2.0 ** rng.uniform(-8, -4)
            part = np.hypot(
                part + sigma * rng.standard_normal(part.shape),
                sigma * rng.standard_normal(part.shape),
            )
        part = part[:: 1 if rng.random() < 0.5 else -1, :: 1 if rng.random() < 0.5 else -1]
        if rng.random() < 0.5:
            part = part.transpose(0, 2, 1)
        if rng.random() < 0.5:
            part = part[:, :, ::-1]
        part = np.round(part)
    step = max(item.scale * 2.0 ** -octaves(config, rng), 1.0)
    rate = rate_class(round(step * 65536), int(item.peak))
    return np.ascontiguousarray(part / step, dtype=np.float32), rate


def batches(
    pool: list[Item], config: Config, rng: np.random.Generator, *, augment: bool
) -> Iterator[Batch]:
    """Crops drawn by weight. For the default model most crops of a batch suit its depth best.

    Where slices are transformed together, some batches have as many slices as the codec's slabs.
    """
    while True:
        depth = int(rng.choice(DEPTHS, p=DEPTH_SHARES)) if _codes_volumes(config) else 1
        count, slices, size = config.shapes[0 if depth == 1 else rng.integers(len(config.shapes))]
        first = slices == config.shapes[0][1]
        p = np.array([item.weight * (first or len(item.voxels) >= slices) for item in pool])
        if not p.any():
            continue
        crops: list[tuple[NDArray[np.float32], int]] = []
        while len(crops) < count:
            item = pool[rng.choice(len(pool), p=p / p.sum())]
            x, rate = crop(item, config, slices, size, rng, augment=augment)
            suited = not _codes_volumes(config) or suits(x, depth) or rng.random() < UNSUITED
            if suited:
                crops.append((x, rate))
        yield Batch(
            torch.from_numpy(np.stack([x for x, _ in crops])),
            torch.tensor([rate for _, rate in crops]),
            depth,
        )


def suits(x: NDArray[np.float32], depth: int) -> bool:
    """Whether the encoder would choose this depth for a crop [K, H, W] in steps, by half of it."""
    half = np.ascontiguousarray(x[:, : x.shape[1] // 16 * 8])
    y = analysis(torch.from_numpy(half)).permute(0, 2, 3, 1).unsqueeze(0)
    return choose_depths(y)[0] == depth


def loss_of(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch; its mean bits per sample and squared error in steps^2."""
    if isinstance(model, ContextCodec):
        out = model(batch.x, batch.depth, batch.rate)
        bits = out["y"]
        loss = torch.log(bits + 0.003).mean()
    else:
        assert isinstance(model, SliceCoder)
        out = slice_rates(model, batch.x)
        bits = out["y"] + out["z"] if "z" in out else out["y"]
        loss = torch.log(bits + 6 * out["mse"] + 0.01).mean()
    return loss, {"bits": float(bits.detach().mean()), "mse": float(out["mse"].detach().mean())}


def slice_rates(network: SliceCoder, x: Tensor) -> dict[str, Tensor]:
    """x [B, K, H, W] in steps -> bits per sample of y (and z) [B]; "mse" [B] in steps^2.

    A crop does not show the peak of its volume: it is drawn up to 2^1.5 times that of the crop.
    """
    b, k, h, w = x.shape
    peak = x.reshape(b, -1).amax(1) * torch.exp2(1.5 * torch.rand_like(x[:, 0, 0, 0]))
    level = torch.log2(peak.clamp(min=2.0**FIRST_GAIN_NODE)).repeat_interleave(k)
    scale = torch.exp2(level)[:, None, None, None]
    slices = x.reshape(b * k, 1, h, w)
    out = network(slices / scale, level)
    samples = k * h * w
    error = ((out["x_hat"] * scale - slices) ** 2).reshape(b, -1).sum(1) / samples
    likelihoods: dict[str, Tensor] = out["likelihoods"]
    bits = {key: -torch.log2(p).reshape(b, -1).sum(1) / samples for key, p in likelihoods.items()}
    return bits | {"mse": error}


def _on(batch: Batch, device: str) -> Batch:
    return Batch(batch.x.to(device), batch.rate.to(device), batch.depth)


@torch.no_grad()
def validate(model: nn.Module, pool: list[Item], config: Config, count: int) -> dict[str, float]:
    """Mean loss on the same `count` batches each time."""
    rng, state = np.random.default_rng(1), torch.get_rng_state()
    torch.manual_seed(1)
    rows = []
    for _, batch in zip(range(count), batches(pool, config, rng, augment=False), strict=False):
        loss, parts = loss_of(model, _on(batch, str(next(model.parameters()).device)))
        rows.append({"loss": float(loss.detach()), **parts})
    torch.set_rng_state(state)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def train(
    slabs: list[Any], out: Path, name: str, *, device: str = "cpu", minutes: float | None = None,
    report: Callable[[float, dict[str, Any] | None], None] = lambda done, row: None,
) -> Path | None:  # fmt: skip
    """Train CONFIGS[name] on the slabs of a cache: the path of averaged float weights.

    minutes: stop (resumably) after so long; None if there are steps left then. Determined by the
    config's seed up to the device's arithmetic. `report` gets the fraction done after every step,
    and the row of the log where one is written. ValueError without a slab to train on.
    """
    config = CONFIGS[name]
    out.mkdir(parents=True, exist_ok=True)
    final, checkpoint, log = (
        out / f"{name}{end}" for end in (".safetensors", ".checkpoint.safetensors", ".jsonl")
    )
    pools = _pools(slabs)
    state = TrainingState({"": _network(config, out, device)}, config.learning_rate)
    step, seconds_before = state.resume(checkpoint)
    if step == 0:
        sizes = {key: len(pool) for key, pool in pools.items()}
        append_row(log, {"config": asdict(config), "name": name, "slabs": sizes})
    feed = batches(pools["train"], config, np.random.default_rng([config.seed, step]), augment=True)
    begin = saved = time.monotonic()
    recent: list[tuple[float, float, float]] = []
    while step < config.steps:
        rate = _learning_rate(step, config.steps)
        loss, parts = loss_of(state.networks[""], _on(next(feed), device))
        state.descend("", loss, rate)
        step += 1
        state.average_in(step, MAX_DECAY)
        recent.append((float(loss.detach()), parts["bits"], parts["mse"]))
        seconds = time.monotonic() - begin
        over = minutes is not None and seconds > 60 * minutes
        last = step == config.steps or over
        row = None
        if step % LOG_STEPS == 0 or last:
            row = _row(step, recent, rate)
            if (step % VALIDATION_STEPS == 0 or last) and pools["validation"]:
                row["validation"] = _validate_average(state, pools["validation"], config)
            row["seconds"] = round(seconds_before + time.monotonic() - begin, 1)
            append_row(log, row)
            recent.clear()
        report(min(max(step / config.steps, seconds / (60 * minutes) if minutes else 0), 1), row)
        if time.monotonic() - saved > SAVE_SECONDS or last:
            saved = time.monotonic()
            state.save(checkpoint, step, seconds_before + saved - begin)
            write_tensors(final, state.average)
        if over:
            break
    return final if step >= config.steps else None


def _pools(slabs: list[Any]) -> dict[str, list[Item]]:
    """Training and validation slabs. ValueError without one to train on."""
    pools = {split: items(slabs, split) for split in ("train", "validation")}
    if not pools["train"]:
        raise ValueError(
            f"expected training scans with values of {MIN_SCALE} and more above their smallest, "
            f"found none in {len(slabs)} slabs"
        )
    return pools


def _network(config: Config, out: Path, device: str) -> nn.Module:
    """The network of a config with its first weights."""
    torch.manual_seed(config.seed)
    network = MODELS[config.model]().to(device)
    choose_backend(network, device)
    if config.start and (out / f"{config.start}.safetensors").exists():
        start_from(network, load_file(out / f"{config.start}.safetensors"))
    return network


def _learning_rate(step: int, steps: int) -> float:
    """Of the config's: a linear start, then half a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * cosine)


def _row(step: int, recent: list[tuple[float, float, float]], rate: float) -> dict[str, Any]:
    loss, bits, mse = np.mean(recent, 0)
    return {"step": step, "loss": loss, "bits": bits, "mse": mse, "lr": rate}


def _validate_average(state: TrainingState, pool: list[Item], config: Config) -> dict[str, float]:
    """`validate` with the averaged weights; the networks keep theirs."""
    kept = {key: value.clone() for key, value in state.weights().items()}
    state.load(state.average)
    result = validate(state.networks[""], pool, config, min(VALIDATION_BATCHES, config.steps))
    state.load(kept)
    return result


def start_from(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take over the weights that the network has too.

    Of larger kernels the centre is taken, of more channels the first.
    """
    state = network.state_dict()
    for key in tensors.keys() & state.keys():
        value, size = tensors[key], state[key].shape
        if value.dim() == 4 and value.shape[-1] > size[-1]:
            edge = (value.shape[-1] - size[-1]) // 2
            value = value[..., edge : edge + size[-2], edge : edge + size[-1]]
        value = value[tuple(slice(n) for n in size)]
        if value.shape == size:
            state[key].copy_(value)
