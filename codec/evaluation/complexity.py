"""Cost of the networks of a lossy model: multiply-accumulates per voxel, and parameters."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import cast

import numpy as np

from mricodec.codec.coders.base import LossyModel, LossyParams, SymbolModel, UncodedSymbols
from mricodec.codec.native.model import NativeModel
from mricodec.models.extras import MissingExtra, require_torch

# Shape of the volume on which operations are counted: one slab, large enough that padding at its
# borders adds little, small enough to take about a second.
SHAPE = (1, 32, 128, 128)
# Quantiser step of the counting run, in stored units.
STEP = 12.0
# Standard deviation of the noise in the counting volume, in stored units.
NOISE_SIGMA = 4.0


@dataclass(frozen=True)
class Complexity:
    """Cost of the networks of a codec; nan where it is unknown."""

    # Thousand multiply-accumulates per voxel in the encoder.
    kmac_encode: float = math.nan
    # Thousand multiply-accumulates per voxel in the decoder.
    kmac_decode: float = math.nan
    # Number of weights, those that only the encoder uses included.
    parameters: float = math.nan


UNKNOWN = Complexity()


def of_model(model: LossyModel) -> Complexity:
    """Operations counted by torch while the model encodes and decodes a small synthetic volume.

    Convolutions and matrix products count. It works for every model whose networks are torch
    modules in its attributes and run in this thread, and for the default model, which is run in
    torch here; others give `UNKNOWN`, as all do without torch.
    """
    if isinstance(model, NativeModel):
        try:
            require_torch("operations of a network")
        except MissingExtra:
            return UNKNOWN
        from mricodec.models.loader import load_model

        model = load_model(model.model_id)
    if "torch" not in sys.modules:
        return UNKNOWN
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    model = cast(SymbolModel, model)
    networks = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    if not networks:
        return UNKNOWN
    k, j, i = np.indices(SHAPE[1:])
    wave = 400 + 200 * np.sin(j / 9) * np.cos(i / 11 + k / 20)
    noise = np.random.default_rng(0).normal(0, NOISE_SIGMA, SHAPE[1:])
    x = np.rint(wave + noise).astype(np.int32)[None]
    params = LossyParams(STEP, int(x.max()), (1.0, 1.0, 1.0))
    symbols = UncodedSymbols()
    with FlopCounterMode(display=False) as encoding:
        model.encode(x, STEP, symbols, params)
    with FlopCounterMode(display=False) as decoding:
        model.decode(SHAPE, params, symbols.replay())
    kmacs = [counter.get_total_flops() / 2 / x.size / 1000 for counter in (encoding, decoding)]
    modules = {id(module): module for network in networks for module in network.modules()}
    weights = {
        id(p): p.numel() for module in modules.values() for p in module.parameters(recurse=False)
    }
    return Complexity(kmacs[0], kmacs[1], float(sum(weights.values())))
