"""What the restoration filter learns from: slabs as the default model decodes them, and the slabs.

A training slab is cut, varied as in `models/training/loop.py`, and coded with the shipped encoder
at a quality drawn from QUALITIES, so that depths, RDOQ and sign hiding are those of the product.
Kept is a window of the result over all slices: v, the output of the synthesis in 1/256 of a step
before its last rounding, and error = original - v in the same unit. A validation slab is coded
whole at each quality of VALIDATION_QUALITIES and kept whole.

The files of a folder are `00000.safetensors` and so on, one for each pair: "v" int32 and "error"
int16 [K, H, W], and the fields of `PairInfo` as JSON in the metadata. Pair n of a seed is the same
whenever it is made, so an interrupted run goes on where it ended.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from mricodec.bitstream.range_coder import EntropyEncoder
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.coders.base import LossyParams
from mricodec.codec.voxels import noise, quality
from mricodec.models.lossy import lapped_transform as transform
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.context_model import rate_class
from mricodec.models.lossy.params import Params
from mricodec.models.training.loop import zero_fill

from .cache import Slab

# Units of v and error in a step.
UNITS = 256
# Qualities of training pairs, drawn evenly: steps are drawn log-uniformly.
QUALITIES = (5.0, 70.0)
# Qualities at which a validation slab is coded: its curve from about 0.03 to 1 bit per voxel.
VALIDATION_QUALITIES = (14.0, 22.0, 30.0, 38.0, 46.0, 54.0, 62.0)
# Shares of the pairs by geometry; near-isotropic scans are where the codec is furthest behind.
GEOMETRY_SHARES = {"near-isotropic": 0.45, "thick": 0.25, "body": 0.18, "dwi": 0.12}
# Weight of scans of 8 bits, which their publishers scaled and often stripped of the skull.
EIGHT_BIT_WEIGHT = 0.35
# Voxels and rows and columns of a slab that is coded for a training pair, at most.
CODED_VOXELS = 1_300_000
CODED_SIDE = 256
# Rows and columns of the window that is kept of it, a multiple of the block.
KEPT_SIDE = 128
# Slices of a coded slab: one of these, or all where there are fewer.
SLICES = (8, 16, 24, 40)
# Share of pairs with a given variation of the voxels.
VARIED = 0.12
# Share of the pairs of near-isotropic scans with more noise: few of those scans are raw, and noise
# is what a filter must not take for detail.
NOISY = 0.45
# The largest range of samples: scans of a wider one are rare, and their steps are as wide.
MAX_SAMPLE = 1 << 16


@dataclass(frozen=True)
class PairInfo:
    """How a pair was coded.

    depth: of the transform across; rate: the rate class; ratio: slice spacing over that in the
    slices; step in samples; bits per voxel of the coded slab; mse: of the coded slab in steps^2,
    unfiltered, samples not below 0; row, column: of the window in the slab.
    """

    name: str
    geometry: str
    quality: float
    depth: int
    rate: int
    ratio: float
    step: float
    peak: int
    bits: float
    mse: float
    row: int = 0
    column: int = 0


@dataclass(frozen=True)
class Pair:
    """v int32 and error int16 [K, H, W] in 1 / UNITS of a step, whole blocks; how they came."""

    v: NDArray[np.int32]
    error: NDArray[np.int16]
    info: PairInfo


class CapturingCodec(ContextLossy):
    """The default model, which keeps the bands and the depth of the last slab instead of voxels."""

    bands: Tensor
    depth: int

    def _synthesise(
        self, y_hat: Tensor, out: Iterable[NDArray[np.int32]], depth: int, params: Params
    ) -> None:
        self.bands, self.depth = y_hat[0], depth

    def samples(self, slices: int) -> NDArray[np.int32]:
        """v [K, H, W] of the last slab, over whole blocks.

        From the synthesis in floating point: at most a few units from the integer one.
        """
        y = transform.synthesis_across_float(self.bands[None], self.depth)[0, :slices]
        scaled = transform.synthesis_float(y) * (UNITS / 16)
        limit = float((1 << 31) - 128)
        return scaled.clamp_(-limit, limit).round_().to(torch.int32).numpy()


def capturing(model: ContextLossy) -> CapturingCodec:
    """The same model on the CPU as a `CapturingCodec`."""
    return CapturingCodec(model.name, model.model_id, model.network, model.tables, "cpu")


def code_pair(
    model: CapturingCodec, slab: Slab, x: NDArray[np.int32], level: float, ratio: float
) -> Pair:
    """Samples x [K, H, W] of a slab, from 0 up, coded at a quality `level`; the pair is whole."""
    peak = int(x.max())
    step = quality.step(level, noise.sigma_hat(x), peak)
    params = LossyParams(step, peak, (ratio, 1.0, 1.0))
    stream = EntropyEncoder()
    model.encode(x[None], params.step, SlabStreams([stream]), params)
    bits = 8 * len(stream.finish()) / x.size
    v = model.samples(len(x))
    pad = [(0, m - n) for n, m in zip(x.shape, v.shape, strict=True)]
    original = np.pad(x, pad, mode="edge") * (UNITS / np.float32(step))
    mse = float(np.square((original - np.maximum(v, 0))[:, : x.shape[1], : x.shape[2]]).mean())
    error = np.clip(np.round(original - v), -(1 << 15), (1 << 15) - 1).astype(np.int16)
    rate = rate_class(round(step * 65536), peak)
    info = PairInfo(
        slab.name, slab.geometry, level, model.depth, rate, ratio, step, peak, bits,
        mse / UNITS**2,
    )  # fmt: skip
    return Pair(v, error, info)


# -- training pairs --------------------------------------------------------------------------------


def training_pair(model: CapturingCodec, slabs: Sequence[Slab], seed: int, n: int) -> Pair:
    """Pair n of a seed, from the slabs of the training split."""
    rng = np.random.default_rng([seed, n])
    weights = _weights(slabs)
    while True:
        slab = slabs[rng.choice(len(slabs), p=weights)]
        x, ratio = _varied(slab, rng)
        if x.max() >= 16:
            break
    pair = code_pair(model, slab, x, float(rng.uniform(*QUALITIES)), ratio)
    return _window(pair, rng)


def _weights(slabs: Sequence[Slab]) -> NDArray[np.float64]:
    """Probabilities: scans of a geometry by the fourth root of their size, its slabs evenly."""
    size: dict[str, int] = {}
    count: dict[str, int] = {}
    for slab in slabs:
        size[slab.name] = size.get(slab.name, 0) + slab.voxels.size
        count[slab.name] = count.get(slab.name, 0) + 1
    weights = np.array([size[slab.name] ** 0.25 / count[slab.name] for slab in slabs])
    weights *= [EIGHT_BIT_WEIGHT if slab.voxels.itemsize == 1 else 1.0 for slab in slabs]
    kinds = np.array([slab.geometry for slab in slabs])
    for kind in set(kinds):
        weights[kinds == kind] *= GEOMETRY_SHARES[kind] / weights[kinds == kind].sum()
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _varied(slab: Slab, rng: np.random.Generator) -> tuple[NDArray[np.int32], float]:
    """Samples [K, H, W] of a part of a slab, varied, and its ratio of spacings."""
    x = np.moveaxis(slab.voxels, slab.axis, 0)
    spacing = list(slab.spacing_mm)
    spacing.insert(0, spacing.pop(slab.axis))
    if slab.geometry == "near-isotropic" and rng.random() < 0.5:
        axes = rng.permutation(3)
        x, spacing = x.transpose(axes), [spacing[axis] for axis in axes]
    if rng.random() < 0.5:
        x, spacing = x.transpose(0, 2, 1), [spacing[0], spacing[2], spacing[1]]
    # Slices that are averaged: a thick slice of thin ones.
    deep = 1
    if slab.geometry == "near-isotropic" and rng.random() < 2 * VARIED:
        deep = int(rng.integers(2, 5))
    part = _part(x, deep, rng).astype(np.float32)
    part -= part.min()
    if deep > 1:
        part = part[: len(part) // deep * deep].reshape(-1, deep, *part.shape[1:]).mean(1)
    if rng.random() < VARIED and min(part.shape[1:]) >= 64:
        part = zero_fill(part, rng)
    scale = float(np.percentile(part, 99.9))
    if rng.random() < (NOISY if slab.geometry == "near-isotropic" else VARIED):
        sigma = scale * 2.0 ** rng.uniform(-7, -4)
        part = np.hypot(
            part + sigma * rng.standard_normal(part.shape), sigma * rng.standard_normal(part.shape)
        )
    flips = tuple(slice(None, None, 1 if rng.random() < 0.5 else -1) for _ in range(3))
    samples = np.round(np.minimum(part[flips], MAX_SAMPLE)).astype(np.int32)
    return np.ascontiguousarray(samples - samples.min()), deep * spacing[0] / min(spacing[1:])


def _part(x: NDArray[Any], deep: int, rng: np.random.Generator) -> NDArray[Any]:
    """A part of a slab x [K, H, W] that is coded quickly, the emptiest of three avoided."""
    height, width = (min(n, CODED_SIDE) for n in x.shape[1:])
    deepest = max(1, CODED_VOXELS // (height * width))
    slices = min(int(rng.choice(SLICES)), deepest) * deep
    parts = []
    for _ in range(3):
        start = [
            int(rng.integers(0, max(n - m, 0) + 1))
            for n, m in zip(x.shape, (slices, height, width), strict=True)
        ]
        k, j, i = start
        parts.append(x[k : k + slices, j : j + height, i : i + width])
    return max(parts[:2], key=lambda part: float(part[:, ::4, ::4].mean()))


def _window(pair: Pair, rng: np.random.Generator) -> Pair:
    """A window of KEPT_SIDE rows and columns of a pair, the one of four with the largest error."""
    height, width = pair.v.shape[1:]
    blocks = [max(0, n - KEPT_SIDE) // transform.BLOCK for n in (height, width)]
    candidates = []
    for _ in range(4):
        row, column = (int(rng.integers(0, n + 1)) * transform.BLOCK for n in blocks)
        kept = (slice(None), slice(row, row + KEPT_SIDE), slice(column, column + KEPT_SIDE))
        error = float(np.abs(pair.error[kept][:, ::4, ::4].astype(np.float32)).mean())
        candidates.append((error, row, column, kept))
    _, row, column, kept = max(candidates, key=lambda candidate: candidate[0])
    info = PairInfo(**{**asdict(pair.info), "row": row, "column": column})
    return Pair(np.ascontiguousarray(pair.v[kept]), np.ascontiguousarray(pair.error[kept]), info)


# -- validation pairs ------------------------------------------------------------------------------


def validation_slabs(slabs: Sequence[Slab], held_out: Sequence[str]) -> list[Slab]:
    """The middle slab of the second volume, or of the only one, of each scan to choose by."""
    chosen = []
    scans = {slab.name: None for slab in slabs if slab.split == "validation"}
    for name in [*scans, *held_out]:
        mine = [slab for slab in slabs if slab.name == name]
        volume = min(1, max(slab.volume for slab in mine))
        mine = [slab for slab in mine if slab.volume == volume]
        chosen.append(mine[len(mine) // 2])
    return chosen


def validation_pair(model: CapturingCodec, slabs: Sequence[Slab], n: int) -> Pair | None:
    """Pair n of the validation slabs, slab by slab at all qualities; None after the last."""
    slab, level = divmod(n, len(VALIDATION_QUALITIES))
    if slab >= len(slabs):
        return None
    item = slabs[slab]
    x = np.moveaxis(item.voxels, item.axis, 0).astype(np.int32)
    x = np.ascontiguousarray(x - x.min())
    spacing = list(item.spacing_mm)
    ratio = spacing.pop(item.axis) / min(spacing)
    return code_pair(model, item, x, VALIDATION_QUALITIES[level], ratio)


# -- files -----------------------------------------------------------------------------------------


def write_pairs(
    folder: Path, make: Callable[[int], Pair | None], count: int, report: Callable[[str], None]
) -> None:
    """Write the pairs that are missing of `count`, or up to the first None."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        path = folder / f"{n:05d}.safetensors"
        if path.exists():
            continue
        pair = make(n)
        if pair is None:
            return
        metadata = {"pair": json.dumps(asdict(pair.info))}
        part = path.with_suffix(".part")
        save_file({"v": pair.v, "error": pair.error}, part, metadata)
        os.replace(part, path)
        report(f"{path.name}: {math.prod(pair.v.shape)} voxels, {pair.info}")


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder, in order."""
    pairs = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            info = PairInfo(**json.loads(file.metadata()["pair"]))
            pairs.append(Pair(file.get_tensor("v"), file.get_tensor("error"), info))
    return pairs
