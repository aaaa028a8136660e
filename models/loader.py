"""Weights files to models at work: tensors checked, integer layers frozen, an exact arithmetic
chosen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from mricodec.bitstream.symbols import ProbabilityTables
from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy.band_networks import GATE, BandNet
from mricodec.models.lossy.bit_exact import choose_backend
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.context_model import ContextCodec
from mricodec.models.lossy.layers import UNSIGNED, IntegerConv2d
from mricodec.models.lossy.params import SIGNS
from mricodec.models.lossy.slice_coder import SliceCoder
from mricodec.models.lossy.transform_codec import TransformLossy

from . import zoo
from .strings import LEVEL_RANGE
from .weights_file import ID_BYTES, WeightsError

LossyModel = ContextLossy | TransformLossy
# Sums of an integer convolution stay below this, so that float32 is exact.
EXACT_SUM = 1 << 24
# Tensors of an integer convolution.
_LAYER_PARTS = ("weight", "bias", "shift")
# Tensors of the default network that are integers in the file and floats in its state.
_INTEGER_PARTS = (".place", ".rate")


def load_model(
    model: str | bytes | os.PathLike[str] = zoo.DEFAULT, *, device: str = "cpu"
) -> LossyModel:
    """The model of a name, of the id in a stream, or of a file (*.safetensors).

    zoo.UnknownModelError, OSError, WeightsError.
    """
    return build(zoo.read(model), device=device)


def build(weights: zoo.Weights, *, device: str) -> LossyModel:
    """The model of weights. WeightsError if they do not fit their network."""
    if weights.path is None:
        return assemble(weights.name, weights.network.build, weights.data, device)
    try:
        loaded = assemble(weights.name, weights.network.build, weights.data, device)
        _check_round_trip(loaded)
    except WeightsError as error:
        raise WeightsError(f"{weights.path}: {error}") from error
    return loaded


def assemble(name: str, network: Callable[[], nn.Module], data: bytes, device: str) -> LossyModel:
    """A model from the bytes of a weights file. WeightsError if they do not fit the network."""
    try:
        tensors = load_tensors(data)
        tables = {
            key.removeprefix("tables."): _table(key.removeprefix("tables."), value)
            for key, value in tensors.items()
            if key.startswith("tables.")
        }
        built = network().float()  # Whatever torch's default type is in this program.
        _fill(built, tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"the weights do not fit the network {name}: {reason}") from error
    built.requires_grad_(False).eval().to(device)
    choose_backend(built, device)
    model_id = hashlib.sha256(data).digest()[:ID_BYTES]
    if isinstance(built, ContextCodec):
        return ContextLossy(name, model_id, built, tables, device)
    assert isinstance(built, SliceCoder)
    return TransformLossy(name, model_id, built, tables, device)


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Tensors of a weights file into the network. KeyError, ValueError or RuntimeError if they do
    not fit.
    """
    floats = {
        key: value.float()
        for key, value in tensors.items()
        if value.dtype in (torch.float32, torch.bfloat16)
    }
    floats |= {key: value / GATE for key, value in tensors.items() if key.endswith(".energies")}
    if isinstance(network, ContextCodec):
        _fill_lookups(network, tensors)
        floats |= {
            key: value.float() for key, value in tensors.items() if key.endswith(_INTEGER_PARTS)
        }
    integer = {
        prefix: layer
        for prefix, layer in network.named_modules()
        if isinstance(layer, IntegerConv2d)
    }
    for prefix, layer in integer.items():
        integers = {key: tensors[f"{prefix}.{key}"] for key in _LAYER_PARTS}
        _check_integers(prefix, layer, integers)
        layer.freeze(integers)
    missing, unexpected = network.load_state_dict(floats, strict=False)
    lost = [
        key
        for key in missing
        if key.rpartition(".")[0] not in integer and not key.startswith("bottleneck")
    ]
    if lost or unexpected:
        raise ValueError(f"missing {lost[:3]}, unexpected {unexpected[:3]}")
    if isinstance(network, ContextCodec):
        for name, net in (("low", network.low), ("detail", network.detail)):
            _check_int16(name, net, tensors)


def _fill_lookups(network: ContextCodec, tensors: dict[str, Tensor]) -> None:
    """The lookup tables of the default network, which have the shapes of those that it starts
    with.
    """
    lookups = {"lut": tensors["lut"].float(), "levels": tensors["levels"].float()}
    for name, value in (lookups | {"hiding": tensors["hiding"]}).items():
        expected = getattr(network, name)
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ValueError(f"{name}: expected {list(expected.shape)}, found {list(value.shape)}")
        setattr(network, name, value)


def _check_int16(name: str, net: BandNet, tensors: dict[str, Tensor]) -> None:
    """ValueError if a value between the layers might not fit int16, which the C core keeps."""

    def largest(layer: str) -> int:
        weight, bias, shift = (tensors[f"{name}.{layer}.{key}"] for key in _LAYER_PARTS)
        sums = weight.long().abs().flatten(1).sum(1) * UNSIGNED + bias.long().abs()
        return int((sums >> shift.long()).max()) + 1

    trunk = UNSIGNED + sum(largest(f"mix.{n}.second") for n in range(len(net.mix)))
    sources = sum(largest(f"sources.{n}") for n in range(len(net.sources)))
    sources += sum(int(tensors[f"{name}.{key}"].long().abs().max()) for key in ("place", "rate"))
    known = max(largest(f"passes.{p}.known") for p in range(1, len(net.passes)))
    layers = [
        key.removeprefix(f"{name}.").removesuffix(".shift")
        for key in tensors
        if key.startswith(f"{name}.") and key.endswith(".shift")
    ]
    if max(trunk + known, sources, *map(largest, layers)) >= 1 << 15:
        raise ValueError(f"{name}: weights too large for values of 16 bits between the layers")


def _check_integers(prefix: str, layer: IntegerConv2d, integers: dict[str, Tensor]) -> None:
    """ValueError unless they have the shapes and types of the layer, and its sums are exact in
    float32.
    """
    outputs = layer.weight.shape[:1]
    expected = {
        "weight": (layer.weight.shape, torch.int8),
        "bias": (outputs, torch.int32),
        "shift": (outputs, torch.uint8),
    }
    for key, (shape, dtype) in expected.items():
        if integers[key].shape != shape or integers[key].dtype != dtype:
            raise ValueError(
                f"{prefix}.{key}: expected {dtype} {list(shape)}, "
                f"found {integers[key].dtype} {list(integers[key].shape)}"
            )
    sums = integers["weight"].long().abs().flatten(1).sum(1) * UNSIGNED
    if int((sums + integers["bias"].long().abs()).max()) >= EXACT_SUM:
        raise ValueError(f"{prefix}: weights too large for exact sums in float32")


def _table(name: str, weights: Tensor) -> ProbabilityTables:
    magnitudes = weights.shape[0] == entropy.MAGNITUDE_ROWS
    scales = weights.shape[0] == entropy.ROWS or magnitudes or name == SIGNS
    octave = entropy.OCTAVE if scales else 0
    low = 0 if magnitudes or name in ("depth", SIGNS) else -((weights.shape[1] - 1) // 2)
    return ProbabilityTables(weights.numpy().astype(np.uint32), low, octave, name=name)


def _check_round_trip(model: LossyModel) -> None:
    """WeightsError unless a small picture is decoded as it was encoded: a file made elsewhere may
    lack anything.
    """
    ramp = torch.linspace(0, 1, 24 * 24).reshape(1, 1, 24, 24)
    coder = model.network if isinstance(model, TransformLossy) else model
    for level in LEVEL_RANGE:
        try:
            coded = coder.compress(ramp, level)
            decoded = coder.decompress(coded["strings"], coded["shape"], level)["x_hat"]
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise WeightsError(f"the weights do not code a picture: {error}") from error
        if not torch.isfinite(decoded).all() or decoded.shape != ramp.shape:
            raise WeightsError("the weights do not code a picture: samples are not finite")
