"""Lossy models by name, id or weights file, loaded when they are first needed.

The default model runs in the C core; torch is imported for the others, for a GPU, and for the
search of effort "high", which needs gradients.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, cast

from mricodec.bitstream.errors import FormatError, UnknownModel
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.native.model import NativeModel
from mricodec.models import zoo
from mricodec.models.extras import require_torch
from mricodec.models.weights_file import WeightsError

from .settings import Effort

# The model of an encoder that names none.
DEFAULT_MODEL = "default"
# Devices on which the C core runs.
_CPU = ("auto", "cpu")
_log = logging.getLogger(__name__)
Path = str | os.PathLike[str]


class LazyModel:
    """A model that is loaded when it is first needed."""

    def __init__(self, model: Path | LossyModel, device: str, effort: Effort = "default") -> None:
        self._model = model
        self._device = device
        self._effort = effort
        self._lock = threading.Lock()

    def get(self) -> LossyModel:
        """The model; raises what `open_model` raises."""
        with self._lock:
            if isinstance(self._model, (str, os.PathLike)):
                load = open_searching if self._effort == "high" else open_model
                self._model = load(self._model, self._device)
            return self._model


def open_model(model: Path | bytes, device: str) -> LossyModel:
    """By name (ValueError if there is no such), id (UnknownModel) or file (OSError).

    FormatError for weights that are damaged or fit no network of this version, MissingExtra without
    torch where it is needed.
    """
    try:
        weights = zoo.read(model)
        if not weights.is_default or device not in _CPU:
            use = f"the model {weights.shown}" if device in _CPU else f"device {device}"
            return _in_torch(weights, device, use)
        loaded = NativeModel(weights.name, weights.data)
    except (zoo.UnknownModelError, WeightsError) as error:
        raise _translated(error, model) from error
    return _logged(loaded, "the C core")


def open_searching(model: Path, device: str) -> LossyModel:
    """As `open_model`, for an encoder of effort "high"."""
    try:
        weights = zoo.read(model)
        if not weights.is_default:
            return open_model(model, device)
        device = _device(require_torch("effort high with loss"), device)
        from mricodec.models import loader

        from .coders.iterative import IterativeModel

        network = cast(Any, loader.build(weights, device=device).network)
        loaded = IterativeModel(weights.name, weights.data, network, device)
    except (zoo.UnknownModelError, WeightsError) as error:
        raise _translated(error, model) from error
    return _logged(loaded, f"the C core, gradients on {device}")


def _in_torch(weights: zoo.Weights, device: str, use: str) -> LossyModel:
    """use: what needs torch, for a message."""
    device = _device(require_torch(use), device)
    from mricodec.models import loader

    return _logged(loader.build(weights, device=device), device)


def _translated(error: zoo.UnknownModelError | WeightsError, model: Path | bytes) -> Exception:
    """The error of this package for one of models."""
    if isinstance(error, WeightsError):
        return FormatError(str(error))
    return (UnknownModel if isinstance(model, bytes) else ValueError)(str(error))


def _logged(model: LossyModel, device: str) -> LossyModel:
    _log.debug("model %s (%s) on %s", model.name, model.model_id.hex(), device)
    return model


def _device(torch: Any, device: str) -> str:
    """The device without "auto". ValueError if it is not there."""
    gpu = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if gpu else "cpu"
    if device != "cpu" and not (gpu and device.startswith("cuda")):
        raise ValueError(
            f"device: expected auto, cpu{' or cuda' if gpu else ' (there is no GPU)'}, "
            f"found {device}"
        )
    return device
