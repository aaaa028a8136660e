"""From trained float weights to a shipped file: integer layers, tables fitted on training crops,
SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.models.loader import assemble
from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy.band_networks import BandNet, ContextPass
from mricodec.models.lossy.codec_base import SIGNS
from mricodec.models.lossy.coding_order import PASSES
from mricodec.models.lossy.context_model import ContextCodec
from mricodec.models.lossy.layers import IntegerConv2d
from mricodec.models.weights_file import NETWORK_KEY
from mricodec.models.zoo import network as network_of

from .loop import CONFIGS, DEPTH_SHARES, Config, Item, items, octaves

CROPS = 160
CROP = (12, 160, 160)


@dataclass
class Histogram(SymbolCoder):
    """Writes nothing; counts the tokens of every row, of the table sets that `counts` has."""

    counts: dict[str, NDArray[np.float64]]

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        assert values is not None
        counts = self.counts.get(tables.name)
        if counts is not None:
            positions, row, raw_bits = tables.locate(index.ravel())
            sent = values.ravel().astype(np.int64)
            sent = sent if positions is None else sent[positions]
            np.add.at(counts, (row, tables.columns(sent, raw_bits)), 1)
        return values


def file_tensors(model: nn.Module, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a weights file holds; tables: of symbols with a scale index, by their set."""
    tensors: dict[str, Tensor] = {}
    integer = {
        prefix: layer for prefix, layer in model.named_modules() if isinstance(layer, IntegerConv2d)
    }
    for prefix, layer in integer.items():
        tensors |= {f"{prefix}.{key}": value for key, value in layer.integers().items()}
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] not in integer and not key.startswith("bottleneck"):
            tensors[key] = value.float()
    for key, module in model.named_modules():
        if isinstance(module, ContextPass):
            tensors[f"{key}.energies"] = module.energy_weights().detach().to(torch.int8)
        if isinstance(module, BandNet):
            for part, value in (("place", module.class_bias), ("rate", module.rate)):
                tensors[f"{key}.{part}"] = value.detach().round().to(torch.int16)
        if isinstance(module, entropy.EntropyBottleneck):
            tensors[f"tables.{'z' if tables else 'y'}"] = module.tables().to(torch.int32)
    if isinstance(model, ContextCodec):
        tensors |= {
            "lut": model.lut.to(torch.int8),
            "levels": model.levels.to(torch.int8),
            "hiding": model.hiding,
        }
        tensors[f"tables.{SIGNS}"] = entropy.integer_tables(
            torch.tensor([[0.5, 0.5, 1e-9]]).expand(9, 3)
        ).to(torch.int32)
        tensors["tables.depth"] = entropy.integer_tables(torch.tensor([[*DEPTH_SHARES, 1e-6]])).to(
            torch.int32
        )
    tensors |= {f"tables.{name}": table.to(torch.int32) for name, table in tables.items()}
    return {key: value.contiguous() for key, value in tensors.items()}


def export(
    name: str,
    trained: Path,
    slabs: list[Any],
    folder: Path,
    *,
    crops: int = CROPS,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Path, str]:
    """Write `folder/<name>-<sha>.safetensors` from the float weights that `train` left; returns
    path and SHA-256.

    `crops`: how many training crops the tables are fitted on.
    """
    network = network_of(name).build
    model = network()
    model.load_state_dict(load_file(trained))
    sets = {"default": [f"pass{p}" for p in range(PASSES)], "hyperprior": ["y"]}.get(name, [])
    prior = entropy.magnitude_tables() if name == "default" else entropy.scale_tables("gaussian")
    metadata = {NETWORK_KEY: name}
    data = save(file_tensors(model, dict.fromkeys(sets, prior)), metadata)
    if sets:
        pool = items(slabs, "train")
        histogram = Histogram({key: np.zeros(prior.shape) for key in sets})
        coder = assemble(name, network, data, "cpu")
        rng = np.random.default_rng(2)
        for n in range(crops):
            x, params = _codes(pool[n % len(pool)], CONFIGS[name], rng)
            coder.encode(x, params.step, histogram, params)
            if n % 20 == 0:
                report(f"{name}: tables from {n} of {crops} crops")
        counts = {key: torch.from_numpy(found) for key, found in histogram.counts.items()}
        together = entropy.fitted_tables(sum(counts.values(), torch.zeros(())), prior)
        data = save(
            file_tensors(
                model,
                {key: entropy.fitted_tables(found, together) for key, found in counts.items()},
            ),
            metadata,
        )
    sha = hashlib.sha256(data).hexdigest()
    path = folder / f"{name}-{sha[:8]}.safetensors"
    path.write_bytes(data)
    return path, sha


@dataclass(frozen=True)
class CropParams:
    step: float
    peak: int


def _codes(
    item: Item, config: Config, rng: np.random.Generator
) -> tuple[NDArray[np.int32], CropParams]:
    """A crop in stored units and a step for it, as in training."""
    voxels = item.voxels
    start = [
        int(rng.integers(0, max(n - m, 0) + 1)) for n, m in zip(voxels.shape, CROP, strict=True)
    ]
    part = voxels[tuple(slice(s, s + m) for s, m in zip(start, CROP, strict=True))]
    step = max(item.scale * 2.0 ** -octaves(config, rng), 1.0)
    return part.astype(np.int32)[None], CropParams(step, int(voxels.max()))
