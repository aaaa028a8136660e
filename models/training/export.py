"""Trained networks as weights files: integer layers, and tables fitted on training crops.

A file names its network in its metadata and is called after its SHA-256, which is its id.
"""

from __future__ import annotations

import hashlib
import os
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
from mricodec.models import zoo
from mricodec.models.loader import assemble
from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy.band_networks import BandNet, ContextPass
from mricodec.models.lossy.coding_order import PASSES
from mricodec.models.lossy.context_model import ContextCodec
from mricodec.models.lossy.hyperprior import FactorizedPrior, ScaleHyperprior
from mricodec.models.lossy.layers import IntegerConv2d
from mricodec.models.lossy.params import SIGNS
from mricodec.models.lossy.slice_coder import SliceCoder
from mricodec.models.strings import StepParams
from mricodec.models.weights_file import NETWORK_KEY, file_name

from .loop import CONFIGS, DEPTH_SHARES, Config, Item, items, octaves

# Training crops on which the tables are fitted.
CROPS = 160
# Their shape: slices, rows, columns.
CROP = (12, 160, 160)


@dataclass
class Histogram(SymbolCoder):
    """Writes nothing; counts the tokens of every row of the table sets in `counts`."""

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


def file_tensors(network: nn.Module, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a weights file: integer layers, the other parameters, and the tables."""
    integer = {
        prefix: layer
        for prefix, layer in network.named_modules()
        if isinstance(layer, IntegerConv2d)
    }
    tensors: dict[str, Tensor] = {}
    for prefix, layer in integer.items():
        tensors |= {f"{prefix}.{key}": value for key, value in layer.integers().items()}
    for key, value in network.state_dict().items():
        if key.rpartition(".")[0] not in integer and not key.startswith("bottleneck"):
            tensors[key] = value.float()
    if isinstance(network, ContextCodec):
        tensors |= _context_tensors(network)
    tensors |= {f"tables.{name}": table.to(torch.int32) for name, table in tables.items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _context_tensors(network: ContextCodec) -> dict[str, Tensor]:
    """The integers of the default network beside its layers, and its tables without statistics."""
    signs = torch.tensor([[0.5, 0.5, 1e-9]]).expand(9, 3)
    depths = torch.tensor([[*DEPTH_SHARES, 1e-6]])
    tensors = {
        "lut": network.lut.to(torch.int8),
        "levels": network.levels.to(torch.int8),
        "hiding": network.hiding,
        f"tables.{SIGNS}": entropy.integer_tables(signs).to(torch.int32),
        "tables.depth": entropy.integer_tables(depths).to(torch.int32),
    }
    for key, module in network.named_modules():
        if isinstance(module, ContextPass):
            tensors[f"{key}.energies"] = module.energy_weights().to(torch.int8)
        if isinstance(module, BandNet):
            tensors[f"{key}.place"] = module.class_bias.round().to(torch.int16)
            tensors[f"{key}.rate"] = module.rate.round().to(torch.int16)
    return tensors


def trained_network(name: str, path: Path) -> nn.Module:
    """The network of a name with the float weights that `loop.train` wrote."""
    network: nn.Module = zoo.network(name).build()
    network.load_state_dict(load_file(path))
    return network


def export(
    name: str,
    network: nn.Module,
    slabs: list[Any],
    folder: Path,
    *,
    crops: int = CROPS,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Path, str]:
    """Write a trained network of `zoo.network(name)`; the path of its file, and its SHA-256.

    network: one that `loop.train` trained, or one of `models.load` that was trained further.
    slabs: of a cache file; the tables are fitted on `crops` crops of its training scans.
    """
    fixed, priors = _starting_tables(network)
    if priors:
        counts = _counts(name, network, fixed | priors, items(slabs, "train"), crops, report)
        if isinstance(network, ContextCodec):
            total = sum((counts[key] for key in priors), torch.zeros(()))
            shared = entropy.fitted_tables(total, next(iter(priors.values())))
            priors = dict.fromkeys(priors, shared)
        priors = {key: entropy.fitted_tables(counts[key], prior) for key, prior in priors.items()}
    return write_weights(folder, name, file_tensors(network, fixed | priors))


def write_weights(folder: Path, name: str, tensors: dict[str, Tensor]) -> tuple[Path, str]:
    """Write a weights file that names its network; its path and SHA-256."""
    data = save(tensors, metadata={NETWORK_KEY: name})
    sha256 = hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(name, sha256)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)
    return path, sha256


def _starting_tables(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tables that are kept, from trained priors, and those that counting starts from."""
    if isinstance(network, ContextCodec):
        return {}, {f"pass{p}": entropy.magnitude_tables() for p in range(PASSES)}
    assert isinstance(network, SliceCoder)
    if network.tables:
        loaded = network.tables.items()
        return {}, {key: torch.from_numpy(t.weights.astype(np.int64)) for key, t in loaded}
    if isinstance(network, ScaleHyperprior):
        return {"z": network.bottleneck_z.tables()}, {"y": entropy.scale_tables("gaussian")}
    assert isinstance(network, FactorizedPrior)
    return {"y": network.bottleneck.tables()}, {}


def _counts(
    name: str,
    network: nn.Module,
    tables: dict[str, Tensor],
    pool: list[Item],
    crops: int,
    report: Callable[[str], None],
) -> dict[str, Tensor]:
    """Histograms of the tokens of training crops, coded by the network as it will be shipped."""
    data = save(file_tensors(network, tables))
    model = assemble(name, zoo.network(name).build, data, "cpu")
    histogram = Histogram({key: np.zeros(table.shape) for key, table in tables.items()})
    rng = np.random.default_rng(2)
    for n in range(crops):
        x, params = _codes(pool[n % len(pool)], CONFIGS.get(name, CONFIGS["factorized"]), rng)
        model.encode(x, params.step, histogram, params)
        if n % 20 == 0:
            report(f"{name}: tables from {n} of {crops} crops")
    return {key: torch.from_numpy(counts) for key, counts in histogram.counts.items()}


def _codes(
    item: Item, config: Config, rng: np.random.Generator
) -> tuple[NDArray[np.int32], StepParams]:
    """A crop [1, K, H, W] of integer samples and a step for it, as in training."""
    voxels = item.voxels
    start = [
        int(rng.integers(0, max(n - m, 0) + 1)) for n, m in zip(voxels.shape, CROP, strict=True)
    ]
    part = voxels[tuple(slice(s, s + m) for s, m in zip(start, CROP, strict=True))]
    step = max(item.scale * 2.0 ** -octaves(config, rng), 1.0)
    return part.astype(np.int32)[None], StepParams(step, int(voxels.max()))
