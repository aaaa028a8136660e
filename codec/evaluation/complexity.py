"""What a lossy model costs to run: multiply-accumulates per voxel and parameters, counted, not claimed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mricodec.codec.coders.base import LossyModel, LossyParams, UncodedSymbols

SHAPE = (1, 32, 128, 128)  # one slab: what a border adds is small, and it takes a second
STEP = 12.0  # codes
NOISE = 4.0  # codes


@dataclass(frozen=True)
class Complexity:
    """nan where nothing is known."""

    kmac_encode: float = math.nan  # thousand multiply-accumulates of the networks per voxel
    kmac_decode: float = math.nan
    parameters: float = math.nan  # of the networks, those of the encoder included


UNKNOWN = Complexity()


def of_model(model: LossyModel, effort: str = "default") -> Complexity:
    """Counted by torch while the model encodes and decodes a small volume: convolutions and matrix products.

    It works for every model whose networks are torch modules in its attributes and run in this thread; others give
    `UNKNOWN`.
    """
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    networks = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    if not networks:
        return UNKNOWN
    k, j, i = np.indices(SHAPE[1:])
    wave = 400 + 200 * np.sin(j / 9) * np.cos(i / 11 + k / 20)
    x = np.rint(wave + np.random.default_rng(0).normal(0, NOISE, SHAPE[1:])).astype(np.int32)[None]
    params = LossyParams(STEP, int(x.max()), (1.0, 1.0, 1.0), effort)
    symbols = UncodedSymbols()
    with FlopCounterMode(display=False) as encoding:
        model.encode(x, STEP, symbols, params)
    with FlopCounterMode(display=False) as decoding:
        model.decode(SHAPE, params, symbols.replay())
    macs = [counter.get_total_flops() / 2 / x.size / 1000 for counter in (encoding, decoding)]
    modules = {id(module): module for network in networks for module in network.modules()}
    weights = {
        id(p): p.numel() for module in modules.values() for p in module.parameters(recurse=False)
    }
    return Complexity(macs[0], macs[1], float(sum(weights.values())))
