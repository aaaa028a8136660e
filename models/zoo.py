"""The shipped models: a frozen table from model id to class, configuration and weights. Append only from 0.1.0 on.

A weights file is safetensors: int8 weights, int32 biases and uint8 shifts of the integer layers, float32 of encoder-only
layers (bfloat16 of the study's models), int32 probability tables "tables.<set>". Its SHA-256 stands here and is checked
when it is loaded; the first 8 bytes are the model id in a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from mricodec.bitstream.symbols import ProbabilityTables
from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy.bit_exact import choose_backend
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.codec_base import SIGNS
from mricodec.models.lossy.context_model import GATE, ContextCodec
from mricodec.models.lossy.hyperprior import FactorizedPrior, ScaleHyperprior
from mricodec.models.lossy.layers import IntegerConv2d
from mricodec.models.lossy.slice_coder import SliceCoder
from mricodec.models.lossy.transform_codec import TransformLossy
from mricodec.models.study import unet
from mricodec.models.study.autoencoder import MinimalCNN
from mricodec.models.study.vae import ResidualVAE

WEIGHTS = Path(__file__).parent / "weights"
LossyModel = ContextLossy | TransformLossy


class WeightsError(RuntimeError):
    """Shipped weights that are missing, unreadable or not the ones of the registry."""


class UnknownModelError(KeyError):
    """No model of this name or id."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Entry:
    name: str
    network: Callable[[], nn.Module]
    sha256: str

    @property
    def model_id(self) -> bytes:
        return bytes.fromhex(self.sha256)[:8]

    @property
    def path(self) -> Path:
        return WEIGHTS / f"{self.name}-{self.sha256[:8]}.safetensors"


REGISTRY: tuple[Entry, ...] = (
    Entry(
        "hyperprior",
        ScaleHyperprior,
        "9b65e38e47004fd2676c3574a53645d0aaa327613c41dd34905421a363ba65b0",
    ),
    Entry(
        "factorized",
        FactorizedPrior,
        "5ed9ddaab508222216f9ee1cbce13dbd3bb472488db2aeea1ceb14ba2b897070",
    ),
    Entry(
        "cnn8",
        partial(MinimalCNN, 8),
        "5b1aaf3f4ae42a851c1991cd97d90f0d648e197b4205ca774369af78a7582434",
    ),
    Entry(
        "cnn16",
        partial(MinimalCNN, 16),
        "65ebe9b9466c34fbe9498db35bb71be3a0838494c2f052ae4ac10c67566514f8",
    ),
    Entry(
        "cnn32",
        partial(MinimalCNN, 32),
        "677c241d0b948c2cc978e79e23d902cf4e9ca3415a7ae6d4f5f081b803a41cfe",
    ),
    Entry("unet", unet.UNet, "ecf179570aedac2642775092199a5b78992fa7263bd201cc1420e6f5dc06e7c2"),
    Entry(
        "unet-2level",
        partial(unet.UNet, unet.TWO_LEVELS),
        "dc19e8f130674e69aa97ae94e5957399c2697fcd849f9aac5f8be878a4dc7095",
    ),
    Entry("vae", ResidualVAE, "b5a30a905c551bd47472bb403a0ff2a0e56cac340151add80e52c63715f31b06"),
    Entry(
        "default", ContextCodec, "c8bc7683114c1138db43f99258f610049baa6c997b3ea8fd87f5da0c13954183"
    ),
)


def names() -> list[str]:
    return sorted({entry.name for entry in REGISTRY})


def find(model: str | bytes) -> Entry:
    """Entry of a name (the latest) or of the 8 bytes in a stream. UnknownModelError."""
    for entry in reversed(REGISTRY):
        if model in (entry.name, entry.model_id):
            return entry
    shown = model if isinstance(model, str) else model.hex()
    known = ", ".join(f"{entry.name} ({entry.model_id.hex()})" for entry in REGISTRY)
    raise UnknownModelError(
        f"unknown model {shown}: this version has {known}; a later version may know it"
    )


def load_model(model: str | bytes = "default", *, device: str = "cpu") -> LossyModel:
    """The model, its weights checked and its arithmetic chosen. UnknownModelError, WeightsError."""
    entry = find(model)
    try:
        data = entry.path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"weights of {entry.name}: cannot read {entry.path} ({error.strerror}): reinstall"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise WeightsError(
            f"weights of {entry.name}: expected SHA-256 {entry.sha256[:16]}, found {digest[:16]} in {entry.path}: reinstall"
        )
    loaded = assemble(entry.name, entry.network, data, device)
    loaded.by_id = device == "cpu"
    return loaded


def assemble(name: str, network: Callable[[], nn.Module], data: bytes, device: str) -> LossyModel:
    """A model from the bytes of a weights file. WeightsError if they do not fit."""
    try:
        tensors = load(data)
        tables = {
            key[7:]: _table(key[7:], value)
            for key, value in tensors.items()
            if key.startswith("tables.")
        }
        built = network()
        floats = {key: value for key, value in tensors.items() if value.dtype == torch.float32}
        floats |= {
            key: value.float() for key, value in tensors.items() if value.dtype == torch.bfloat16
        }
        floats |= {key: value / GATE for key, value in tensors.items() if key.endswith(".energies")}
        if isinstance(built, ContextCodec):
            built.lut, built.levels = tensors["lut"].float(), tensors["levels"].float()
            built.hiding = tensors["hiding"]
            floats |= {
                key: value.float()
                for key, value in tensors.items()
                if key.endswith((".place", ".rate"))
            }
        for prefix, layer in built.named_modules():
            if isinstance(layer, IntegerConv2d):
                layer.freeze(
                    {key: tensors[f"{prefix}.{key}"] for key in ("weight", "bias", "shift")}
                )
        missing, unexpected = built.load_state_dict(floats, strict=False)
        integer = [
            prefix for prefix, layer in built.named_modules() if isinstance(layer, IntegerConv2d)
        ]
        lost = [
            key
            for key in missing
            if key.rpartition(".")[0] not in integer and not key.startswith("bottleneck")
        ]
        if lost or unexpected:
            raise WeightsError(f"weights of {name}: missing {lost}, unexpected {unexpected}")
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise (
            error
            if isinstance(error, WeightsError)
            else WeightsError(f"weights of {name}: {error}")
        ) from error
    built.requires_grad_(False).eval().to(device)
    choose_backend(built, device)
    model_id = hashlib.sha256(data).digest()[:8]
    if isinstance(built, ContextCodec):
        return ContextLossy(name, model_id, built, tables, device)
    assert isinstance(built, SliceCoder)
    return TransformLossy(name, model_id, built, tables, device)


def _table(name: str, weights: torch.Tensor) -> ProbabilityTables:
    magnitudes = weights.shape[0] == entropy.MAGNITUDE_ROWS
    octave = (
        entropy.OCTAVE if weights.shape[0] == entropy.ROWS or magnitudes or name == SIGNS else 0
    )
    low = 0 if magnitudes or name in ("depth", SIGNS) else -((weights.shape[1] - 1) // 2)
    return ProbabilityTables(weights.numpy().astype(np.uint32), low, octave, name=name)


STUDY: dict[str, Callable[[], SliceCoder]] = {
    "cnn8": partial(MinimalCNN, 8),
    "cnn16": partial(MinimalCNN, 16),
    "cnn32": partial(MinimalCNN, 32),
    "unet": unet.UNet,
    "unet-wide": partial(unet.UNet, unet.V2),
    "unet-2level": partial(unet.UNet, unet.TWO_LEVELS),
    "vae": ResidualVAE,
}  # the representation study's
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "default": ContextCodec,
    "factorized": FactorizedPrior,
    "hyperprior": ScaleHyperprior,
}
