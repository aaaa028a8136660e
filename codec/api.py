"""Encoding and decoding: where scans, models and streams are joined.

    scan --blocks--> statistics, noise --> coder --slabs--> container        encoding.py; reads the scan twice
    container --slabs--> coder --> voxels in file order --> array or file    decoding.py

Both hold a batch of slabs at a time (one volume, where slabs are not cut along k), never the whole scan.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.container import DEFAULT_LIMITS, LATTICE, STORE, Limits
from mricodec.bitstream.errors import FormatError, UnknownModel, UnsupportedVersion

from . import fidelity
from .decoding import Range, Selection, blocks, decode_to_nifti, decode_volume
from .encoding import EncodeReport, encode_scan
from .formats import open_scan
from .output import replacing
from .rate_control import EFFORTS, Effort, target_of
from .slabcoding import LEARNED, LEARNED_INEXACT, Lattice, Lossy, LossyModel, LossyParams, SlabCoder, Store
from .stream import Progress, Source, Stream, StreamInfo, opened, seekable
from .volume import ArrayScan, Scan, Volume

if TYPE_CHECKING:
    from .deidentify import Deidentifier

DEFAULT_MODEL = "default"

Scannable = NDArray[Any] | Volume | Scan | str | os.PathLike[str] | BinaryIO
Path = str | os.PathLike[str]


class LosslessFallback(UserWarning):
    """A scan was coded without loss though loss was asked for; the message says why."""


class TargetMissed(UserWarning):
    """A stream is not of the PSNR or size that was asked for but the nearest found; the message says why."""


def encode(
    source: Scannable,
    *,
    quality: float | None = None,
    psnr: float | None = None,
    bpv: float | None = None,
    ratio: float | None = None,
    lossless: bool = False,
    model: str | None = None,
    effort: Effort = "default",
    out: Path | BinaryIO | None = None,
    progress: Progress | None = None,
) -> bytes | None:
    """Encode an array [..., k, j, i], a `Volume` or a scan file; see `Encoder` for the settings.

    The stream, or None if it was written to `out`: a path, which is replaced at the end, or a binary file.
    """
    encoder = Encoder(
        quality=quality, psnr=psnr, bpv=bpv, ratio=ratio, lossless=lossless, model=model, effort=effort
    )
    return encoder.encode(source, out=out, progress=progress)


def decode(source: Source, *, slices: Range = None, volumes: Range = None, limits: Limits | None = None) -> Volume:
    """Decode a stream (bytes, path or binary file), or a part of it; see `Decoder.decode`."""
    return Decoder(limits=limits).decode(source, slices=slices, volumes=volumes)


def decode_file(
    source: Source,
    destination: Path | BinaryIO,
    *,
    slices: Range = None,
    volumes: Range = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> StreamInfo:
    """Decode a stream into a NIfTI file; see `Decoder.decode_file`."""
    decoder = Decoder(limits=limits)
    return decoder.decode_file(source, destination, slices=slices, volumes=volumes, progress=progress)


def info(source: Source, *, limits: Limits | None = None) -> StreamInfo:
    """What a stream says of itself; needs neither torch nor weights. FormatError if it is none or damaged."""
    with opened(source) as file:
        return Stream(file, limits or DEFAULT_LIMITS).info()


def verify(
    source: Source,
    *,
    deep: bool = False,
    limits: Limits | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> StreamInfo:
    """Check every checksum of a stream, without torch; `deep` decodes it too and compares the digest.

    FormatError (ChecksumMismatch, Truncated, ...) if it is damaged.
    """
    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        stream.reader.verify()
        if deep and stream.table is not None:
            from .series import verify_series

            verify_series(stream, Decoder(limits=limits, device=device), progress or _silent)
        elif deep:
            coder = Decoder(limits=limits, device=device).coder_of(stream)
            for _ in blocks(stream, coder, Selection.of(stream, None, None), progress or _silent):
                pass
        return stream.info()


def model_name(model_id: str) -> str | None:
    """The name of the model with the id of a `StreamInfo`, or None if its weights are not here; no torch."""
    from importlib import resources

    # weights are named <name>-<first 8 digits of their SHA-256>.safetensors
    ending = f"-{model_id[:8]}.safetensors"
    folder = resources.files("mricodec.models") / "weights"
    files = folder.iterdir() if folder.is_dir() else ()
    return next((file.name.removesuffix(ending) for file in files if file.name.endswith(ending)), None)


def version(model: str | None = None) -> str:
    """What decides the bytes of a stream: the release, and the id of the model's weights."""
    return f"{release()} {_load(model or DEFAULT_MODEL, 'auto').model_id.hex()}"


def release() -> str:
    """The version of the installed package, or "source" in a source tree."""
    from importlib import metadata

    try:
        return metadata.version("mricodec")
    except metadata.PackageNotFoundError:
        return "source"


class Encoder:
    """Settings, and a model that stays loaded, for many scans. Threads may share it.

    quality: 0 to 100, fidelity relative to the noise of the scan, so that a number means the same on every
        scan; by default `fidelity.DEFAULT_QUALITY`, where the error stays below the noise.
    psnr (dB, within 0.1; peak = maximum - minimum), bpv (bits per voxel of the whole file, within 2 %), ratio (bytes
        of the stored voxels over those of the file, within 2 %): one of them instead of quality; the quantiser is
        searched for it, in up to four times the time. Where none reaches it: the nearest, warning `TargetMissed`.
    lossless: every bit of the file is restored.
    model: a name in models/zoo.py, or a model object; device: auto (a GPU where there is one), cpu, cuda, ...
    deidentify: take identities out of the headers first; what decodes is the cleaned scan (deidentify.py).
    effort: "high" searches longer for a smaller file, where the model knows how; decoding is the same.

    What loss can't represent (RGB, complex, NaN, label maps) is coded without: warning `LosslessFallback`.
    """

    def __init__(
        self,
        *,
        quality: float | None = None,
        psnr: float | None = None,
        bpv: float | None = None,
        ratio: float | None = None,
        lossless: bool = False,
        model: str | LossyModel | None = None,
        effort: Effort = "default",
        device: str = "auto",
        deidentify: Deidentifier | None = None,
    ) -> None:
        self._target = target_of(psnr, bpv, ratio)
        if self._target is not None and (lossless or quality is not None):
            other = "lossless" if lossless else "quality"
            raise ValueError(f"expected {other} or {self._target.kind}, found both: leave one out")
        if lossless and (quality is not None or model is not None or effort != "default"):
            raise ValueError("expected lossless, or a quality, a model and an effort; found both: leave one out")
        if effort not in EFFORTS:
            raise ValueError(f"effort: expected {' or '.join(EFFORTS)}, found {effort}")
        self._effort = effort
        self._quality = fidelity.DEFAULT_QUALITY if quality is None else float(quality)
        fidelity.step(self._quality, 1.0, 1.0)  # ValueError if it is out of range
        self._lossless = lossless
        self._model = _Loaded(model or DEFAULT_MODEL, device)
        self.deidentify = deidentify

    @property
    def lossless(self) -> bool:
        return self._lossless

    def encode(
        self, source: Scannable, *, out: Path | BinaryIO | None = None, progress: Progress | None = None
    ) -> bytes | None:
        """The stream, or None if it was written to `out`.

        ValueError: an array that no stream can hold. OSError, FormatError: a file that can't be read.
        """
        buffer = io.BytesIO()
        report = self.encode_file(source, buffer if out is None else out, progress=progress)
        if report.reason is not None:
            warnings.warn(f"coded without loss: {report.reason}", LosslessFallback, stacklevel=2)
        if report.missed is not None:
            warnings.warn(report.missed, TargetMissed, stacklevel=2)
        return buffer.getvalue() if out is None else None

    def encode_file(self, source: Scannable, out: Path | BinaryIO, *, progress: Progress | None = None) -> EncodeReport:
        """As `encode`, with a report and without the warnings."""
        quality = None if self._lossless else self._quality
        with _scan_of(source) as scan, writable(out) as file:
            if self.deidentify is not None:
                scan = self.deidentify.scan(scan)
            return encode_scan(
                scan, file, quality, self._model.get, progress or _silent, target=self._target, effort=self._effort
            )


class Decoder:
    """Limits, and the models of the streams decoded so far. Threads may share it.

    model: an object for streams of weights that models/zoo.py does not list.
    """

    def __init__(self, *, limits: Limits | None = None, model: LossyModel | None = None, device: str = "auto") -> None:
        self._limits = limits or DEFAULT_LIMITS
        self._device = device
        self._lock = threading.Lock()
        self._models = {} if model is None else {model.model_id: model}

    @property
    def limits(self) -> Limits:
        return self._limits

    def decode(
        self, source: Source, *, slices: Range = None, volumes: Range = None, progress: Progress | None = None
    ) -> Volume:
        """The scan, or a part of it that is decoded alone: `slices` along k (the third NIfTI axis), `volumes`
        along the leading axes, counted as one. Each is a slice or (start, stop).

        FormatError if the stream is damaged or its model unknown, ValueError for a range beyond the scan.
        """
        with opened(source) as file:
            stream = Stream(file, self._limits)
            selection = Selection.of(stream, slices, volumes)
            return decode_volume(stream, self.coder_of(stream), selection, progress or _silent)

    def decode_file(
        self,
        source: Source,
        destination: Path | BinaryIO,
        *,
        slices: Range = None,
        volumes: Range = None,
        progress: Progress | None = None,
    ) -> StreamInfo:
        """Decode into .nii, .nii.gz or .hdr/.img, by the name; a binary file gets a .nii. Bounded memory.

        A path is replaced when all is written and the digest is right. Errors as in `decode`, and OSError.
        """
        with opened(source) as file:
            stream = Stream(file, self._limits)
            selection = Selection.of(stream, slices, volumes)
            found = stream.info()  # first: what is wrong with it must be known before the file is there
            decode_to_nifti(stream, self.coder_of(stream), selection, destination, progress or _silent)
            return found

    def coder_of(self, stream: Stream) -> SlabCoder:
        """The coder of a stream, its model loaded."""
        if stream.coder == STORE:
            return Store(stream.native)
        if stream.coder == LATTICE:
            return Lattice(stream.intensity())
        if stream.coder not in (LEARNED, LEARNED_INEXACT):
            raise UnsupportedVersion(f"expected coder 0 to 3 in HEAD, found {stream.coder}: update mricodec")
        head = stream.lossy_head()
        params = LossyParams(head.step, head.intensity.peak, stream.tiling.turned(stream.reader.header.spacing_mm))
        return Lossy(self._model_of(stream.model_id), head.intensity, params, stream.has_background)

    def _model_of(self, model_id: bytes) -> LossyModel:
        with self._lock:
            if model_id not in self._models:
                self._models[model_id] = _load(model_id, self._device)
            return self._models[model_id]


class _Loaded:
    """A model that is loaded when it is first needed."""

    def __init__(self, model: str | LossyModel, device: str) -> None:
        self._model = model
        self._device = device
        self._lock = threading.Lock()

    def get(self) -> LossyModel:
        with self._lock:
            if isinstance(self._model, str):
                self._model = _load(self._model, self._device)
            return self._model


def _load(model: str | bytes, device: str) -> LossyModel:
    """By name (ValueError if there is no such) or by id (UnknownModel). FormatError for damaged weights."""
    import torch

    from mricodec.models import zoo

    gpu = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if gpu else "cpu"
    if device != "cpu" and not (gpu and device.startswith("cuda")):
        raise ValueError(f"device: expected auto, cpu{' or cuda' if gpu else ' (there is no GPU)'}, found {device}")
    try:
        return zoo.load_model(model, device=device)
    except zoo.UnknownModelError as error:
        raise (UnknownModel if isinstance(model, bytes) else ValueError)(str(error)) from error
    except zoo.WeightsError as error:
        raise FormatError(str(error)) from error


@contextlib.contextmanager
def _scan_of(source: Scannable) -> Iterator[Scan]:
    if isinstance(source, np.ndarray):
        source = Volume.from_array(source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, Volume):
            scan: Scan = ArrayScan(source)
        elif isinstance(source, (str, os.PathLike)):
            scan = open_scan(source)
        elif hasattr(source, "blocks"):
            scan = cast(Scan, source)
        elif not hasattr(source, "read"):
            raise TypeError(f"expected an array, a Volume, a path or a binary file, found {type(source).__name__}")
        else:
            scan = open_scan(stack.enter_context(seekable(source)))
        stack.callback(scan.close)
        yield scan


@contextlib.contextmanager
def writable(out: Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(out, (str, os.PathLike)):
        with replacing(out) as file:
            yield file
    else:
        yield out


def _silent(_: float) -> None:
    pass
