"""A restoration filter after the synthesis: what quantisation took, guessed from what it left.

After convolutional in-loop filters of video coders (Park & Kim 2016, "CNN-based in-loop filtering
for coding efficiency improvement"; Dai, Liu & Wu 2017, VRCNN, arXiv:1608.06690), in the arithmetic
of `models/lossy/layers.py`. One unit is 1/256 of a step.

    slices t - 1, t, t + 1 of v [N, 3, H, W] -- minus their means of 9 x 9 --> u
    u of slice t --mean of 3 x 3--> middle band;  u - middle band = fine band
    both bands, clamped to half a step and as a signed logarithm, and the differences of u of the
      other slices from it, clamped; unshuffled 2 x 2 --> [N, 24, H/2, W/2]
      --conv 3x3 + phase in the block + classes--> trunk h [N, C, H/2, W/2]
    h --relu8--> conv 3x3 + classes --(+)--> h      three times
    h --relu8--> conv 3x3 to 4, shuffled 2 x 2--> correction of slice t [N, H, W]

The classes are the rate class, the depth with the position of the slice in its group, and the
ratio of spacings: numbers that a decoder has. 5.4 kMAC a sample. After 500 steps, the two bands
and the differences saved 6.6 % of the bits on the mean of validation slabs and rates; u of all
slices alone, each clamped and as a logarithm, saved 4.4 %, because u is many steps large at high
rates.

It is trained on pairs of decoded and original slabs for the error of a crop relative to that of
its slab: the gradient of the mean logarithm of the errors of slabs, whose PSNR is to rise. (The
logarithm of the error of each crop saved a third less after as many steps.) Weights and activations
are rounded from the first step on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mricodec.models.lossy.band_networks import RATES
from mricodec.models.lossy.lapped_transform import BLOCK, DEPTHS
from mricodec.models.lossy.layers import (
    SIGNED,
    UNSIGNED,
    IntegerConv2d,
    clamp8,
    lookup,
    round_ste,
)

from .state import TrainingState, append_row, write_tensors

# Side of the square whose mean is taken off.
MEAN_SIDE = 9
# Side of the square whose mean is the middle band.
FINE_SIDE = 3
# Magnitudes that have a logarithm: 16 steps and more are alike.
LOG_SIZE = 4096
# Magnitude from which on the signed logarithm is more like one than linear.
LOG_LINEAR = 12
# Samples of a slice that share a position after unshuffling: FACTOR x FACTOR.
FACTOR = 2
# Blocks have so many positions after unshuffling, along each side.
PHASES = BLOCK // FACTOR
# Ratios of spacings at which the next class begins.
RATIO_LIMITS = (1.25, 2.0, 4.0, 6.0)
# One unit of a parameter that is added to activations, so that it learns as fast as weights.
BIAS_SCALE = 64.0
# Units of the gain of a slab: corrections are multiplied by 0 to GAIN / GAIN.
GAIN = 64


@dataclass(frozen=True)
class Conditions:
    """Classes of N slices with their neighbours, int64 [N] each."""

    rate: Tensor
    position: Tensor  # of `position_class`
    ratio: Tensor  # of `ratio_class`


def position_class(depth: int, t: int) -> int:
    """The class of slice t of a slab whose transform across has this depth: of 1 + 2 + 4 + 8."""
    return depth - 1 + t % depth


def ratio_class(ratio: float) -> int:
    """The class of a ratio of the spacing of slices to that of samples in them."""
    return sum(ratio >= limit for limit in RATIO_LIMITS)


def log_table() -> Tensor:
    """float32 [LOG_SIZE], integer-valued: magnitude -> 0 .. 127, logarithmic."""
    m = torch.arange(LOG_SIZE, dtype=torch.float64)
    scale = SIGNED / math.log2(1 + (LOG_SIZE - 1) / LOG_LINEAR)
    return (scale * torch.log2(1 + m / LOG_LINEAR)).round().float()


def without_mean(v: NDArray[np.int32]) -> NDArray[np.int16]:
    """v [K, H, W] minus the rounded mean of the square around every sample, the border repeated.

    Clipped to 16 bits: the filter does not distinguish larger magnitudes.
    """
    half = MEAN_SIDE // 2
    padded = np.pad(v.astype(np.int64), ((0, 0), (half + 1, half), (half + 1, half)), "edge")
    padded[:, 0] = padded[:, :, 0] = 0
    sums = padded.cumsum(1).cumsum(2)
    low, high = slice(None, -MEAN_SIDE), slice(MEAN_SIDE, None)
    total = sums[:, high, high] - sums[:, low, high] - sums[:, high, low] + sums[:, low, low]
    limits = np.iinfo(np.int16)
    u: NDArray[np.int16] = (v - np.rint(total / MEAN_SIDE**2)).clip(limits.min, limits.max)
    return u.astype(np.int16)


def least_squares_gain(correction: Tensor, error: Tensor) -> int:
    """The gain of a slab, in 1 / GAIN, at which correction * gain is nearest to the error."""
    energy = float(correction.square().sum())
    share = float((correction * error).sum()) / energy if energy > 0 else 0.0
    return min(max(round(GAIN * share), 0), GAIN)


def _relu8(x: Tensor) -> Tensor:
    """`relu8`, never in place: the trunk keeps its values."""
    return F.hardtanh(x, 0, UNSIGNED)


class RestorationFilter(nn.Module):
    """u [N, 3, H, W] integer-valued, sides multiples of 8 -> correction of the middle slices.

    integer: weights and activations are rounded, as in a decoder; else only the input is.
    """

    log: Tensor

    def __init__(self, width: int = 24, layers: int = 3, *, integer: bool = False) -> None:
        super().__init__()
        self.integer = integer
        self.first = IntegerConv2d(3 * 2 * FACTOR**2, width)
        self.body: Sequence[IntegerConv2d] = nn.ModuleList(  # type: ignore[assignment]
            [IntegerConv2d(width, width, gain=0.3) for _ in range(layers)]
        )
        self.last = IntegerConv2d(width, FACTOR**2, gain=0.05)
        self.phase = nn.Parameter(torch.zeros(width, PHASES, PHASES))
        stages = (1 + layers) * width
        self.rate = nn.Parameter(torch.zeros(RATES, stages))
        self.position = nn.Parameter(torch.zeros(sum(DEPTHS), stages))
        self.ratio = nn.Parameter(torch.zeros(len(RATIO_LIMITS) + 1, stages))
        self.register_buffer("log", log_table(), persistent=False)

    def features(self, u: Tensor) -> Tensor:
        """u [N, 3, H, W] -> activations [N, 24, H/2, W/2], 8 bits each."""
        here = u[:, 1:2]
        edge = FINE_SIDE // 2
        padded = F.pad(here, (edge, edge, edge, edge), mode="replicate")
        middle = F.avg_pool2d(padded, FINE_SIDE, 1).round()
        bands = torch.cat([middle, here - middle], 1)
        logs = lookup(self.log, bands.abs().clamp_(max=LOG_SIZE - 1)).copysign_(bands)
        pairs = torch.stack([clamp8(bands), logs], 2).flatten(1, 2)
        differences = clamp8(u[:, ::2] - here)
        return F.pixel_unshuffle(torch.cat([pairs, differences], 1), FACTOR)

    def forward(self, u: Tensor, conditions: Conditions) -> Tensor:
        x = self.features(u)
        classes = (
            self.rate[conditions.rate]
            + self.position[conditions.position]
            + self.ratio[conditions.ratio]
        )
        stages = (1 + len(self.body), -1, 1, 1)
        biases = self._rounded(classes * BIAS_SCALE).unflatten(1, stages).unbind(1)
        phase = self._rounded(self.phase * BIAS_SCALE)
        phase = phase.repeat(1, x.shape[2] // PHASES, x.shape[3] // PHASES)
        trunk = self._convolve(self.first, x) + phase + biases[0]
        for layer, bias in zip(self.body, biases[1:], strict=True):
            trunk = trunk + self._convolve(layer, _relu8(trunk)) + bias
        out = self._convolve(self.last, _relu8(trunk))
        return F.pixel_shuffle(out, FACTOR).squeeze(1)

    def _rounded(self, x: Tensor) -> Tensor:
        return round_ste(x) if self.integer else x

    def _convolve(self, layer: IntegerConv2d, x: Tensor) -> Tensor:
        if self.integer:
            y: Tensor = layer(x)
            return y
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


# -- training --------------------------------------------------------------------------------------

# Crops of a batch, their rows and columns, and the rows and columns at their edges whose errors do
# not count, because the filter sees less around them.
CROPS = 16
CROP_SIDE = 72
MARGIN = 4
# Steps of the linear start of the learning rate, and the share of the steps of its linear fall.
WARM_UP_STEPS = 200
FALL = 0.3
# Largest decay of the moving average of the weights.
MAX_DECAY = 0.998
# Steps between the rows of the log, and seconds between checkpoints.
LOG_STEPS = 200
SAVE_SECONDS = 120
# The smallest mean squared error of a slab that errors are relative to, in units^2.
MIN_ERROR = 4.0
# Units of v and error in a step.
UNITS = 256


@dataclass(frozen=True)
class Recipe:
    """How to train, by name."""

    steps: int
    learning_rate: float
    integer: bool
    seed: int = 0


RECIPES = {
    "restoration": Recipe(25_000, 2e-3, integer=True),
    # What rounding costs: the same with floats.
    "restoration-float": Recipe(25_000, 2e-3, integer=False),
    "debug": Recipe(3, 1e-3, integer=True),
}


@dataclass(frozen=True)
class Example:
    """A pair as the training takes it: int16 [K, H, W] each, and its classes.

    error: original - v; shown: v clipped to 16 bits, as decoded samples are not below 0.
    mse: of the slab, unfiltered, in units^2.
    """

    u: NDArray[np.int16]
    shown: NDArray[np.int16]
    error: NDArray[np.int16]
    depth: int
    rate: int
    ratio: float
    mse: float


@dataclass(frozen=True)
class Batch:
    """Crops: u [N, 3, S, S], shown and error [N, S, S], and the error [N] of their slabs."""

    u: Tensor
    shown: Tensor
    error: Tensor
    conditions: Conditions
    mse: Tensor


def examples(pairs: Sequence[Any]) -> list[Example]:
    """Pairs of `codec/training/restoration_pairs.py` that are large enough for a crop."""
    limits = np.iinfo(np.int16)
    return [
        Example(
            without_mean(pair.v),
            pair.v.clip(limits.min, limits.max).astype(np.int16),
            pair.error,
            pair.info.depth,
            pair.info.rate,
            pair.info.ratio,
            max(pair.info.mse * UNITS**2, MIN_ERROR),
        )
        for pair in pairs
        if min(pair.v.shape[1:]) >= CROP_SIDE
    ]


def neighbours(t: int, slices: int) -> list[int]:
    """Slices t - 1, t, t + 1 of a slab, the nearest where there is none."""
    return [max(t - 1, 0), t, min(t + 1, slices - 1)]


def _crop(example: Example, rng: np.random.Generator) -> tuple[list[NDArray[np.int16]], int]:
    """A crop of u, shown and error in one of eight orientations, and its slice."""
    slices, height, width = example.u.shape
    t = int(rng.integers(slices))
    row, column = (BLOCK * int(rng.integers((n - CROP_SIDE) // BLOCK + 1)) for n in (height, width))
    at = (slice(row, row + CROP_SIDE), slice(column, column + CROP_SIDE))
    parts = [example.u[(neighbours(t, slices), *at)], example.shown[t][at], example.error[t][at]]
    if rng.random() < 0.5:
        parts = [part[..., ::-1, :] for part in parts]
    if rng.random() < 0.5:
        parts = [part[..., ::-1] for part in parts]
    if rng.random() < 0.5:
        parts = [part.swapaxes(-1, -2) for part in parts]
    return parts, t


def draw(pool: Sequence[Example], rng: np.random.Generator) -> Batch:
    """A batch of crops, the examples drawn evenly. The transform is symmetric, so crops may be."""
    chosen = [pool[n] for n in rng.integers(len(pool), size=CROPS)]
    crops, slices = zip(*(_crop(example, rng) for example in chosen), strict=True)
    u, shown, error = (
        torch.from_numpy(np.stack(parts).astype(np.float32)) for parts in zip(*crops, strict=True)
    )
    positions = [position_class(e.depth, t) for e, t in zip(chosen, slices, strict=True)]
    conditions = Conditions(
        torch.tensor([e.rate for e in chosen]),
        torch.tensor(positions),
        torch.tensor([ratio_class(e.ratio) for e in chosen]),
    )
    return Batch(u, shown, error, conditions, torch.tensor([e.mse for e in chosen]))


def loss_of(network: RestorationFilter, batch: Batch) -> tuple[Tensor, float]:
    """The mean error of crops relative to that of their slabs, and the same unfiltered."""
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    original = batch.shown + batch.error

    def relative(decoded: Tensor) -> Tensor:
        errors = (decoded.clamp(min=0) - original)[inner].square().mean((1, 2))
        return (errors / batch.mse).mean()

    corrected = relative(batch.shown + network(batch.u, batch.conditions))
    return corrected, float(relative(batch.shown))


def learning_rate(step: int, steps: int) -> float:
    """Of the recipe's: a linear start, and a linear fall to 1 % at the end."""
    fall = min(1.0, (steps - step) / (FALL * steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * fall)


def train_filter(
    pool: Sequence[Example], out: Path, name: str,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Path:  # fmt: skip
    """Train RECIPES[name]: the path of the averaged float weights, beside its log.

    Resumes from a checkpoint in `out`. ValueError without an example.
    """
    if not pool:
        raise ValueError(f"expected pairs of {CROP_SIDE} x {CROP_SIDE} samples or more, found none")
    recipe = RECIPES[name]
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = RestorationFilter(integer=recipe.integer)
    state = TrainingState({"": network}, recipe.learning_rate)
    checkpoint = out / f"{name}.checkpoint.safetensors"
    step, before = state.resume(checkpoint)
    rng = np.random.default_rng([recipe.seed, step])
    begin = saved = time.monotonic()
    recent: list[tuple[float, float]] = []
    while step < recipe.steps:
        loss, unfiltered = loss_of(network, draw(pool, rng))
        state.descend("", loss, learning_rate(step, recipe.steps))
        step += 1
        state.average_in(step, MAX_DECAY)
        recent.append((float(loss.detach()), unfiltered))
        seconds = before + time.monotonic() - begin
        if step % LOG_STEPS == 0 or step == recipe.steps:
            loss_mean, unfiltered_mean = np.mean(recent, 0).tolist()
            row = {"step": step, "loss": loss_mean, "ratio": loss_mean / unfiltered_mean}
            row |= {"seconds": round(seconds, 1)}
            append_row(out / f"{name}.jsonl", row)
            report(row)
            recent.clear()
        if time.monotonic() - saved > SAVE_SECONDS or step == recipe.steps:
            saved = time.monotonic()
            state.save(checkpoint, step, seconds)
            write_tensors(out / f"{name}.safetensors", state.average)
    return out / f"{name}.safetensors"
