"""The codecs that can be measured: this one, peers that run where they are installed, and anyone's.

Anyone's codec takes part as `--codec module:object`, where the object (or class) has

    name = "mine"
    version = "1"                    # optional; another version is measured anew
    parameters = (1, 2, 3, ...)      # at least 8, spread over the rates of interest; passed to encode one by one
    def encode(self, voxels, parameter) -> bytes      # voxels [..., k, j, i], stored values
    def decode(self, data, shape, dtype) -> voxels    # from the bytes alone

or is a `slabcoding.LossyModel`, which is then coded like the models of this project.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec import api
from mricodec.codec.atomic import replacing
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.settings import Effort
from mricodec.codec.version import release

from . import complexity, video
from . import still as peers
from .complexity import Complexity
from .rate_distortion import MIN_POINTS, Contender, Source

MODELS = (
    "default",
    "hyperprior",
    "factorized",
    "cnn8",
    "cnn16",
    "cnn32",
    "unet",
    "unet-2level",
    "vae",
)
QUALITIES = (0.0, 80.0)  # beyond, lossless is not much larger
MAX_ERRORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # stored units, of near-lossless points
PEER_PSNRS = (
    25.0,
    58.0,
)  # dB; below, the 130 bytes of header of a JPEG 2000 slice are most of the file
JXL_DISTANCES = (0.03, 20.0)


def spread_qualities(count: int) -> list[float]:
    """Evenly over QUALITIES."""
    return [round(float(quality), 2) for quality in np.linspace(*QUALITIES, count)]


class Mricodec(Contender):
    """This codec with one of `MODELS` or a model object, loaded once; parameter: `quality`.

    Times include reading the scan's file.
    """

    suffix = ".mrc"

    def __init__(
        self, model: str | LossyModel = api.DEFAULT_MODEL, *, effort: Effort = "default", device: str = "auto",
        name: str | None = None,
    ) -> None:  # fmt: skip
        """ValueError without such a model or device, FormatError if its weights are damaged."""
        self._model = api._load(model, device) if isinstance(model, str) else model
        self._effort = effort
        self._encoder = partial(api.Encoder, model=self._model, effort=effort)
        self._decoder = api.Decoder(model=self._model, device=device)
        plain = name or (
            "mricodec" if self._model.name == api.DEFAULT_MODEL else f"mricodec-{self._model.name}"
        )
        self.name = plain if effort == "default" else f"{plain}-{effort}"
        trying = "" if effort == "default" else f" effort {effort}"
        self.version = f"{release()} {self._model.model_id.hex()}{trying}"

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
        return complexity.of_model(self._model, self._effort)


class MricodecLossless(Contender):
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
        bound: dict[str, Any] = {"max_error": parameter}
        api.encode(source.input, out=path, **bound)

    @staticmethod
    def supported() -> bool:
        return "max_error" in inspect.signature(api.encode).parameters


class StillPicture(Contender):
    """A codec of pictures, slice by slice (k): bare codestreams behind the table of their lengths."""

    suffix = ".slices"

    def __init__(
        self,
        name: str,
        version: str,
        spread: Callable[[int, Sequence[float]], list[float]],
        encode: Callable[[NDArray[np.uint16], int, float], bytes],
        decode: Callable[[bytes, int], NDArray[np.uint16]],
    ) -> None:
        """encode: (samples [slices, j, i], largest sample, parameter); decode: (bytes, number of slices)."""
        self.name, self.version = name, version
        self._spread, self._encode, self._decode = spread, encode, decode

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return self._spread(count, psnrs)

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        samples = peers.Samples.of(source.voxels, source.limits)
        data = self._encode(samples.from_values(source.voxels), samples.peak, parameter)
        with replacing(path) as file:
            file.write(data)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        samples = peers.Samples.of(source.voxels, source.limits)
        count = math.prod(source.voxels.shape[:-2])
        return samples.to_values(self._decode(path.read_bytes(), count), source.voxels.shape)


def spread_psnrs(count: int, psnrs: Sequence[float]) -> list[float]:
    """PSNRs (dB) to aim at: those of the other curves as far as they are usual."""
    usual = [min(max(psnr, PEER_PSNRS[0]), PEER_PSNRS[1]) for psnr in psnrs if math.isfinite(psnr)]
    low, high = min(usual, default=0.0), max(usual, default=0.0)
    if high - low < 1:  # dB: no curve
        low, high = PEER_PSNRS
    return [round(float(target), 1) for target in np.linspace(low, high, count)]


def jpeg2000() -> Contender:
    """JPEG 2000 9/7; parameter: PSNR aimed at in every slice. MissingExtra without imagecodecs."""
    return StillPicture(
        "jpeg2000",
        peers.jpeg2000_version(),
        spread_psnrs,
        peers.encode_jpeg2000,
        peers.decode_jpeg2000,
    )


def htj2k() -> Contender:
    """High-throughput JPEG 2000 9/7; parameter: the PSNR at which its step aims."""
    version = str(peers.require("imagecodecs").htj2k_version())
    return StillPicture("htj2k", version, spread_psnrs, peers.encode_htj2k, peers.decode_htj2k)


def jpegxl() -> Contender:
    """JPEG XL, libjxl effort 7; parameter: distance."""

    def spread(count: int, psnrs: Sequence[float]) -> list[float]:
        return [round(float(distance), 3) for distance in np.geomspace(*JXL_DISTANCES, count)]

    version = str(peers.require("imagecodecs").jpegxl_version())
    return StillPicture("jxl-e7", version, spread, peers.encode_jpegxl, peers.decode_jpegxl)


LIVE: dict[str, Callable[[], Contender]] = {
    "jpeg2000": jpeg2000,
    "htj2k": htj2k,
    "jxl": jpegxl,
    "x265": partial(video.x265, "medium"),
    "x265-veryslow": partial(video.x265, "veryslow"),
    "svtav1": video.svtav1,
}
USUAL = ("jpeg2000", "htj2k", "jxl", "x265", "svtav1")


def live(names: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """The peers of `LIVE` that run here, and for the others why not."""
    found, missing = [], {}
    for name in dict.fromkeys(names):
        try:
            found.append(LIVE[name]())
        except (ImportError, AttributeError, RuntimeError) as error:
            missing[name] = str(error)
    return found, missing


class Foreign(Contender):
    """Anyone's codec, see above; whatever it raises becomes a RuntimeError."""

    def __init__(self, codec: Any) -> None:
        """ValueError if it is none."""
        lacking = [
            name for name in ("name", "parameters", "encode", "decode") if not hasattr(codec, name)
        ]
        if lacking:
            raise ValueError(
                f"a codec has name, parameters, encode and decode; missing: {', '.join(lacking)}"
            )
        self._codec = codec
        self.name = str(codec.name)
        self.version = str(getattr(codec, "version", ""))
        try:
            self._parameters = [float(parameter) for parameter in codec.parameters]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: expected numbers as parameters ({error})") from error
        if len(set(self._parameters)) < MIN_POINTS:
            raise ValueError(
                f"{self.name}: expected at least {MIN_POINTS} parameters, found {self._parameters}"
            )

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return self._parameters

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        with self._named("encode"):
            data = bytes(self._codec.encode(source.voxels.copy(), parameter))
        with replacing(path) as file:
            file.write(data)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        data = path.read_bytes()
        with self._named("decode"):
            voxels = np.asarray(self._codec.decode(data, source.voxels.shape, source.voxels.dtype))
        if voxels.dtype.kind not in "iuf" or not np.isfinite(voxels).all():
            raise RuntimeError(f"{self.name}: expected finite real voxels, found {voxels.dtype}")
        return voxels

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a stranger's code does, the rest is finished
            raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error


def load(where: str) -> Contender:
    """The codec `module:object`, the module found as Python finds it or in the current folder.

    ValueError if there is no such thing or it is no codec.
    """
    module, _, name = where.partition(":")
    if not (module and name):
        raise ValueError(f"expected module:object, found {where}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if inspect.isclass(found) or inspect.isfunction(found):
            found = found()
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    try:
        if isinstance(found, Contender):
            return found
        return Mricodec(found) if hasattr(found, "model_id") else Foreign(found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
