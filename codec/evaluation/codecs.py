"""Everything that can be measured: this codec, baselines where they are installed, anyone's.

Anyone's codec takes part as `--codec module:object`, where the object (or class) has

    name = "mine"
    version = "1"                  # optional; points of another version are measured again
    parameters = (1, 2, 3, ...)    # at least 8, spread over the rates of interest
    def encode(self, voxels, parameter) -> bytes    # voxels [..., k, j, i], stored values
    def decode(self, data, shape, dtype) -> voxels  # from the bytes alone

`encode` receives each of `parameters` as it stands there. The object may also be a
`mricodec.codec.coders.base.LossyModel`, which is then coded like the models of this project.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec import models
from mricodec.codec import api, loading
from mricodec.codec.atomic import replacing
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.release import release
from mricodec.codec.settings import Effort

from . import complexity, still, video
from .complexity import Complexity
from .rate_distortion import MIN_POINTS, Codec, Source

# Models that curves can be drawn of.
MODELS = tuple(models.names())
# Lowest and highest quality of a curve; above, lossless coding is not much larger.
QUALITIES = (0.0, 80.0)
# Largest errors of near-lossless points, stored units.
MAX_ERRORS = (1.0, 2.0, 4.0, 8.0, 16.0)


def spread_qualities(count: int) -> list[float]:
    """Evenly over QUALITIES."""
    return [round(float(quality), 2) for quality in np.linspace(*QUALITIES, count)]


class Mricodec(Codec):
    """This codec with one of `MODELS`, a weights file or a model object; parameter: `quality`.

    Times include reading the scan's file.
    """

    suffix = ".mrc"

    def __init__(
        self,
        model: str | LossyModel = loading.DEFAULT_MODEL,
        *,
        effort: Effort = "default",
        device: str = "auto",
        name: str | None = None,
    ) -> None:
        """ValueError without such a model or device, FormatError if its weights are damaged."""
        self._model = loading.LazyModel(model, device, effort).get()
        self._encoder = partial(api.Encoder, model=self._model, effort=effort)
        self._decoder = api.Decoder(model=self._model, device=device)
        default = self._model.name == loading.DEFAULT_MODEL
        plain = name or ("mricodec" if default else f"mricodec-{self._model.name}")
        self.name = plain if effort == "default" else f"{plain}-{effort}"
        suffix = "" if effort == "default" else f" effort {effort}"
        self.version = f"{release()} {self._model.model_id.hex()}{suffix}"

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return spread_qualities(count)

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        report = self._encoder(quality=parameter).encode_file(source.input, path)
        if report.reason is not None:
            raise ValueError(f"coded without loss: {report.reason}")

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        return self._decoder.decode(path).array

    def complexity(self) -> Complexity:
        return self._complexity

    @cached_property
    def _complexity(self) -> Complexity:
        return complexity.of_model(self._model)


class MricodecLossless(Codec):
    """This codec without loss; it has no parameter."""

    name = "mricodec-lossless"
    suffix = ".mrc"

    def __init__(self) -> None:
        self.version = api.version()

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return [0.0]

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        api.encode(source.input, lossless=True, out=path)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        return api.decode(path).array


class MricodecNearLossless(MricodecLossless):
    """This codec with a bound on every voxel's error; parameter: the bound, stored units."""

    name = "mricodec-near"

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return list(MAX_ERRORS)

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        api.encode(source.input, max_error=parameter, out=path)


# Codecs of others that can be run, by the name that `--live` takes.
BASELINES: dict[str, Callable[[], Codec]] = {
    "jpeg2000": still.jpeg2000,
    "htj2k": still.htj2k,
    "jxl": still.jpegxl,
    "x265": partial(video.x265, "medium"),
    "x265-veryslow": partial(video.x265, "veryslow"),
    "svtav1": video.svtav1,
}
# Baselines that run by default where they are installed.
DEFAULT_BASELINES = ("jpeg2000", "htj2k", "jxl", "x265", "svtav1")


def available_baselines(names: Sequence[str]) -> tuple[list[Codec], dict[str, str]]:
    """The named baselines that run here, and for the others why not."""
    available, missing = [], {}
    for name in dict.fromkeys(names):
        try:
            available.append(BASELINES[name]())
        except (ImportError, AttributeError, RuntimeError) as error:
            missing[name] = str(error)
    return available, missing


class ExternalCodec(Codec):
    """Anyone's codec, see above; whatever it raises becomes a RuntimeError."""

    def __init__(self, codec: Any) -> None:
        """ValueError if it is no codec."""
        interface = ("name", "parameters", "encode", "decode")
        missing = [name for name in interface if not hasattr(codec, name)]
        if missing:
            raise ValueError(
                f"a codec has name, parameters, encode and decode; missing: {', '.join(missing)}"
            )
        self._codec = codec
        self.name = str(codec.name)
        self.version = str(getattr(codec, "version", ""))
        try:
            self._parameters = list(codec.parameters)
            distinct = {float(parameter) for parameter in self._parameters}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: expected numbers as parameters ({error})") from error
        if len(distinct) < MIN_POINTS:
            raise ValueError(
                f"{self.name}: expected at least {MIN_POINTS} parameters, found {self._parameters}"
            )

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return self._parameters

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        with self._errors_of("encode"):
            data = bytes(self._codec.encode(source.voxels.copy(), parameter))
        with replacing(path) as file:
            file.write(data)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        data = path.read_bytes()
        with self._errors_of("decode"):
            voxels = np.asarray(self._codec.decode(data, source.voxels.shape, source.voxels.dtype))
        if voxels.dtype.kind not in "iuf" or not np.isfinite(voxels).all():
            raise RuntimeError(f"{self.name}: expected finite real voxels, found {voxels.dtype}")
        return voxels

    @contextmanager
    def _errors_of(self, method: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Whatever unknown code raises, the other codecs are measured.
            raise RuntimeError(f"{method}: {one_line(error)}") from error


def load_codec(where: str) -> Codec:
    """The codec `module:object`; the module is installed or lies in the current folder.

    What is installed takes precedence, and the current folder is searched only while the module is
    imported. ValueError, in one line, if it can't be imported or is no codec.
    """
    module, _, name = where.partition(":")
    if not (module and name):
        raise ValueError(f"expected module:object, found {where}")
    try:
        with _current_folder_importable():
            codec: Any = importlib.import_module(module)
            for part in name.split("."):
                codec = getattr(codec, part)
            if inspect.isclass(codec) or inspect.isfunction(codec):
                codec = codec()
    except Exception as error:
        raise ValueError(f"{where}: {one_line(error)}") from error
    try:
        if isinstance(codec, Codec):
            return codec
        return Mricodec(codec) if hasattr(codec, "model_id") else ExternalCodec(codec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def one_line(error: Exception) -> str:
    """Type and message of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
