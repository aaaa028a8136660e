"""Training of the lossy codecs: one loop, torch, numpy and safetensors only.

The corpus is a cache file of slabs. A sample is a crop of a few slices, seen at a random
quantisation step, so that one model learns every rate; the loss weighs every volume and rate alike,
as a BD-rate does:

    loss = mean over crops of  log(bits per sample + 0.003)                                                 (default)
    loss = mean over crops of  log(bits per sample + 6 * squared error in steps^2)                         (transform coders)

Checkpoints (safetensors: weights, moving average, optimiser moments, step) are written every few
minutes; a run that finds one goes on from it. The log is one JSON object a line.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mricodec.models.lossy.bit_exact import choose_backend
from mricodec.models.lossy.context_model import ContextCodec, rate_class
from mricodec.models.lossy.hyperprior import FIRST_GAIN_NODE, FactorizedPrior, ScaleHyperprior
from mricodec.models.lossy.lapped_transform import DEPTHS, analysis
from mricodec.models.lossy.rdo import choose_depths
from mricodec.models.lossy.slice_coder import SliceCoder


@dataclass(frozen=True)
class Config:
    """A named recipe. `start`: the config whose result the weights start from, if it lies
    beside.
    """

    model: str
    steps: int
    shapes: tuple[
        tuple[int, int, int], ...
    ]  # crops of a batch, slices, samples along each side; the first where depth is 1
    learning_rate: float
    steps_range: tuple[float, ...] = (
        1.0,
        5.5,
        10.5,
    )  # the step is 2**-u of the slab's 99.9th percentile, u uniform
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


LOW_RATES = 0.85  # share of the draws below the middle of `steps_range`
DEPTH_SHARES = (0.44, 0.08, 0.2, 0.28)  # of the batches, by depth 1, 2, 4, 8
# Smallest 99.9th percentile of the values of a slab: below it is too little to learn from.
MIN_SCALE = 16
UNSUITED = 0.06  # share of crops that are taken though another depth suits them better
PRIOR_RATE = (
    10.0  # learning rate of the factorized priors: they start wide, and narrow slowly otherwise
)


@dataclass(frozen=True)
class Item:
    """A slab as the sampler wants it: voxels [k, j, i] float32, the least 0. Geometries weigh
    alike, slabs of one by the square root of their size.
    """

    voxels: NDArray[np.float32]
    scale: float
    peak: float
    geometry: str
    isotropic: bool
    weight: float


def items(slabs: list[Any], split: str) -> list[Item]:
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


def _zero_fill(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
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
    """Crops [B, slices, size, size] in steps, how many octaves of steps each one's volume has, the
    depth of the transform.
    """

    x: Tensor
    rate: Tensor
    depth: int


def _in_planes(config: Config) -> bool:
    """Whether slices are transformed together."""
    return config.model.startswith("default")


def octaves(config: Config, rng: np.random.Generator) -> float:
    """u of `Config.steps_range`: of three numbers, LOW_RATES of the draws lie between the first
    two.
    """
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
    deep = (
        2 if augment and rng.random() < 0.12 and len(x) >= 2 * slices else 1
    )  # thicker slices: means of two
    shrink = 2 if augment and rng.random() < 0.12 and min(x.shape[1:]) >= 2 * size else 1
    want = (slices * deep, size * shrink, size * shrink)
    for _ in range(4):  # empty corners teach little
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
            part = _zero_fill(part, rng)
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
    """Crops drawn by weight; those of a batch of the default model are ones that its depth suits,
    most of them best.

    Where slices are taken together, some batches have as many slices as the codec's slabs.
    """
    while True:
        depth = int(rng.choice(DEPTHS, p=DEPTH_SHARES)) if _in_planes(config) else 1
        count, slices, size = config.shapes[0 if depth == 1 else rng.integers(len(config.shapes))]
        first = slices == config.shapes[0][1]
        p = np.array([item.weight * (first or len(item.voxels) >= slices) for item in pool])
        if not p.any():
            continue
        crops: list[tuple[NDArray[np.float32], int]] = []
        while len(crops) < count:
            item = pool[rng.choice(len(pool), p=p / p.sum())]
            x, rate = crop(item, config, slices, size, rng, augment=augment)
            suited = not _in_planes(config) or suits(x, depth) or rng.random() < UNSUITED
            if suited:
                crops.append((x, rate))
        yield Batch(
            torch.from_numpy(np.stack([x for x, _ in crops])),
            torch.tensor([rate for _, rate in crops]),
            depth,
        )


def suits(x: NDArray[np.float32], depth: int) -> bool:
    """Whether this is the depth that the encoder would choose for a crop [K, H, W] in steps, by
    half of it.
    """
    half = np.ascontiguousarray(x[:, : x.shape[1] // 16 * 8])
    y = analysis(torch.from_numpy(half)).permute(0, 2, 3, 1).unsqueeze(0)
    return choose_depths(y)[0] == depth


def loss_of(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
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
    """x [B, K, H, W] in steps -> bits per sample of y (and z) [B], "mse": squared error per sample
    [B] in steps^2.

    The peak of the volume is not known of a crop: it is drawn up to 2^1.5 times that of the crop.
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
    """Train CONFIGS[name] on the slabs of a cache: the file of averaged float weights,
    `out/name.safetensors`.

    `minutes`: stop (resumably) after so long; None if there are steps left then. Determined by the
    config's seed up to the device's arithmetic. `report` gets the fraction done after every step,
    and the row of the log where one is written. ValueError without a slab to train on.
    """
    config = CONFIGS[name]
    out.mkdir(parents=True, exist_ok=True)
    final, state_file, log = (
        out / f"{name}.safetensors",
        out / f"{name}.checkpoint.safetensors",
        out / f"{name}.jsonl",
    )
    torch.manual_seed(config.seed)
    model = MODELS[config.model]().to(device)
    choose_backend(model, device)
    if config.start and (out / f"{config.start}.safetensors").exists():
        start_from(model, load_file(out / f"{config.start}.safetensors"))
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    priors = [value for key, value in parameters.items() if "bottleneck" in key]
    others = [value for key, value in parameters.items() if "bottleneck" not in key]
    groups = [{"params": others, "scale": 1.0}, {"params": priors, "scale": PRIOR_RATE}]
    optimiser = torch.optim.AdamW(
        groups, config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4
    )
    step = _resume(state_file, model, average, optimiser, parameters, device)
    pools = {split: items(slabs, split) for split in ("train", "validation")}
    if not pools["train"]:
        raise ValueError(
            f"expected training scans with values of {MIN_SCALE} and more above their smallest, "
            f"found none in {len(slabs)} slabs"
        )
    feed = batches(pools["train"], config, np.random.default_rng([config.seed, step]), augment=True)
    begin = saved = time.monotonic()
    recent: list[tuple[float, float, float]] = []
    if step == 0:
        _log(
            log,
            {
                "config": asdict(config),
                "name": name,
                "slabs": {key: len(pool) for key, pool in pools.items()},
            },
        )
    while step < config.steps:
        rate = min(1.0, (step + 1) / 200) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        )
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate * group["scale"]
        loss, parts = loss_of(model, _on(next(feed), device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.998, step / (step + 10))
        for key, value in model.state_dict().items():
            average[key].lerp_(value.detach(), 1 - decay)
        recent.append((float(loss.detach()), parts["bits"], parts["mse"]))
        over = minutes is not None and time.monotonic() - begin > 60 * minutes
        last = step == config.steps or over
        row: dict[str, Any] | None = None
        if step % 100 == 0 or last:
            mean = np.mean(recent, 0)
            row = {
                "step": step,
                "loss": mean[0],
                "bits": mean[1],
                "mse": mean[2],
                "lr": rate,
            }
            recent.clear()
            if (step % 1000 == 0 or last) and pools["validation"]:
                kept = {key: value.clone() for key, value in model.state_dict().items()}
                model.load_state_dict(average)
                row["validation"] = validate(
                    model, pools["validation"], config, min(24, config.steps)
                )
                model.load_state_dict(kept)
            row["seconds"] = round(time.monotonic() - begin, 1)
            _log(log, row)
        done = step / config.steps
        if minutes:
            done = max(done, (time.monotonic() - begin) / (60 * minutes))
        report(min(done, 1.0), row)
        if time.monotonic() - saved > 120 or last:
            _save(state_file, model, average, optimiser, parameters, step)
            _write(final, average)
            saved = time.monotonic()
        if over:
            break
    return final if step >= config.steps else None


def start_from(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take the weights that the model has too; of kernels that are larger, the centre, of channels
    the first.
    """
    own = model.state_dict()
    for key in tensors.keys() & own.keys():
        value, size = tensors[key], own[key].shape
        if value.dim() == 4 and value.shape[-1] > size[-1]:
            edge = (value.shape[-1] - size[-1]) // 2
            value = value[..., edge : edge + size[-2], edge : edge + size[-1]]
        value = value[tuple(slice(n) for n in size)]
        if value.shape == size:
            own[key].copy_(value)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    part = path.with_suffix(".part")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, part)
    os.replace(part, path)


def _log(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _save(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter], step: int,
) -> None:  # fmt: skip
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    for key, parameter in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[parameter]:
                tensors[f"{moment}.{key}"] = optimiser.state[parameter][moment]
    tensors["step"] = torch.tensor(step)
    _write(path, tensors)


def _resume(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter], device: str,
) -> int:  # fmt: skip
    if not path.exists():
        return 0
    tensors = load_file(path, device=device)
    step = int(tensors["step"])
    model.load_state_dict(
        {key[6:]: value for key, value in tensors.items() if key.startswith("model.")}
    )
    for key in average:
        average[key].copy_(tensors[f"average.{key}"])
    for key, parameter in parameters.items():
        if f"exp_avg.{key}" in tensors:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg.{key}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{key}"],
            }
    return step
