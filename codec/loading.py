"""Lossy models by name, id or weights file, loaded when they are first needed."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from mricodec.bitstream.errors import FormatError, UnknownModel
from mricodec.codec.coders import learned
from mricodec.codec.coders.base import LossyModel
from mricodec.models import zoo
from mricodec.models.extras import require_torch
from mricodec.models.weights_file import WeightsError, is_file_name

# The model of an encoder that names none.
DEFAULT_MODEL = "default"
_log = logging.getLogger(__name__)
Path = str | os.PathLike[str]


class LazyModel:
    """A model that is loaded when it is first needed."""

    def __init__(self, model: Path | LossyModel, device: str) -> None:
        self._model = model
        self._device = device
        self._lock = threading.Lock()

    def get(self, voxels: int) -> LossyModel:
        """voxels: of the scan that it is needed for."""
        with self._lock:
            if isinstance(self._model, (str, os.PathLike)):
                if is_file_name(self._model):
                    self._model = open_model(self._model, self._device)
                else:
                    self._model = load_with_helpers(str(self._model), self._device, voxels)
            return self._model


def load_with_helpers(model: str | bytes, device: str, voxels: int) -> LossyModel:
    """As `open_model`, while helper processes start that a scan of so many voxels has work for."""
    early = learned.lossy_helpers(voxels if device in ("auto", "cpu") else 0)
    loaded = open_model(model, device)
    learned.helpers_of(loaded)
    del early  # They are kept with the model from here on.
    return loaded


def open_model(model: Path | bytes, device: str) -> LossyModel:
    """By name (ValueError if there is no such), id (UnknownModel) or file (OSError).

    FormatError for weights that are damaged or fit no network of this version, MissingExtra without
    torch.
    """
    try:
        use = f"the model {_shown(model)}" if device in ("auto", "cpu") else f"device {device}"
        device = _device(require_torch(use), device)
        from mricodec.models.loader import load_model

        loaded = load_model(model, device=device)
    except zoo.UnknownModelError as error:
        raise (UnknownModel if isinstance(model, bytes) else ValueError)(str(error)) from error
    except WeightsError as error:
        raise FormatError(str(error)) from error
    _log.debug("model %s (%s) on %s", loaded.name, loaded.model_id.hex(), device)
    return loaded


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


def _shown(model: Path | bytes) -> str:
    """The name or file of a model, for a message. zoo.UnknownModelError."""
    if isinstance(model, bytes):
        return str((None if zoo.is_shipped(model) else zoo.locate(model)) or zoo.find(model).name)
    return os.fspath(model) if is_file_name(model) else zoo.find(str(model)).name
