"""Encoding and decoding for users: scans, models and streams are joined here.

    scan --pipeline.encoding--> stream        reads the scan twice
    stream --pipeline.decoding--> array or file

Both hold a batch of slabs at a time (one volume, where slabs are not cut along k).
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import UnknownModel
from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.pipeline.decoding import (
    Layered,
    Range,
    Salvage,
    Selection,
    blocks,
    decode_volume,
    part_of,
)
from mricodec.codec.pipeline.nifti_output import decode_to_nifti, write_nifti
from mricodec.codec.pipeline.series import View, first_view, further_views
from mricodec.codec.pipeline.stream import Progress, Source, Stream, StreamInfo, opened, seekable
from mricodec.codec.voxels import preview as previews
from mricodec.models import zoo
from mricodec.models.weights_file import SUFFIX, is_file_name

from . import loading
from .atomic import replacing
from .loading import DEFAULT_MODEL, LazyModel
from .release import release
from .settings import EncodeOptions, EncodeSettings
from .tiling import Tiling
from .volume import ArrayScan, Envelope, Scan, Volume, is_big_endian

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mricodec.codec.dicom.deidentify import Deidentifier
    from mricodec.codec.pipeline.writing import EncodeReport

Scannable = NDArray[Any] | Volume | Scan | str | os.PathLike[str] | BinaryIO
Path = str | os.PathLike[str]


class LosslessFallback(UserWarning):
    """A scan was coded without loss though loss was asked for; the message says why."""


class TargetMissed(UserWarning):
    """A stream misses the PSNR or size that was asked for; the message says why."""


def encode(
    source: Scannable,
    *,
    model: Path | LossyModel | None = None,
    out: Path | BinaryIO | None = None,
    progress: Progress | None = None,
    **options: Unpack[EncodeOptions],
) -> bytes | None:
    """Encode an array [..., k, j, i], a `Volume` or a scan file.

    The options are those of `Encoder`. The result is the stream, or None if it was written to
    `out`: a path, which is replaced at the end, or a binary file.
    """
    return Encoder(model=model, **options).encode(source, out=out, progress=progress)


def decode(
    source: Source,
    *,
    slices: Range = None,
    volumes: Range = None,
    layer: int | None = None,
    preview: bool = False,
    limits: Limits | None = None,
) -> Volume:
    """Decode a stream (bytes, path or binary file), or a part of it; see `Decoder.decode`."""
    return Decoder(limits=limits).decode(
        source, slices=slices, volumes=volumes, layer=layer, preview=preview
    )


def decode_file(
    source: Source,
    destination: Path | BinaryIO,
    *,
    slices: Range = None,
    volumes: Range = None,
    layer: int | None = None,
    preview: bool = False,
    salvage: Salvage | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> StreamInfo:
    """Decode a stream into a NIfTI file; see `Decoder.decode_file`."""
    return Decoder(limits=limits).decode_file(
        source,
        destination,
        slices=slices,
        volumes=volumes,
        layer=layer,
        preview=preview,
        salvage=salvage,
        progress=progress,
    )


def further_volumes(source: Source, *, limits: Limits | None = None) -> Iterator[Volume]:
    """The volumes of a DICOM series besides the one that `decode` gives, the largest first."""
    return Decoder(limits=limits).further_volumes(source)


def version(model: Path | None = None) -> str:
    """The release and the id of the model's weights, which determine the bytes of a stream."""
    return f"{release()} {loading.open_model(model or DEFAULT_MODEL, 'auto').model_id.hex()}"


class Encoder:
    """Options, and a model that stays loaded, for many scans. Threads may share it.

    quality: 0 to 100, fidelity relative to the noise of the scan, so that a number means the same
        on every scan; 10 more halve the quantiser's step. At the default of 50 the error stays
        below the noise.
    psnr (dB, within 0.1; peak = maximum - minimum), bpv (bits per voxel of the whole file, within
        2 %), ratio (bytes of the stored voxels over those of the file, within 2 %): one of them
        instead of quality. The quantiser is searched for it, in most cases in two or three times
        the time. Where no quantiser reaches it: the nearest one, and the warning `TargetMissed`.
    lossless: every bit of the file is restored.
    max_error: no voxel differs by more, in stored units; or a part of the noise: "0.5sigma".
    layers: with lossless or max_error, the coarser fidelities are streams inside that decode alone:
        a lossy one (of `quality`, 25 by default), and with both of them the bounded one.
    effort: "fast", "default" or "high": how long the encoder searches; decoding is the same.
    gzip: without loss, look for the recipe of the .nii.gz, which takes as long as to compress it.
    model: a name of `models.names()`, a weights file (*.safetensors), or a model object.
    device: "auto" (a GPU where there is one), "cpu", "cuda", ...
    deidentify: take identities out of the headers first; the cleaned scan is what decodes.

    What loss can't represent (RGB, complex, NaN, label maps) is coded without loss, with a warning
    `LosslessFallback`. ValueError for options that exclude one another. The default model keeps up
    to 256 MB of its working memory for the next call, for as long as this object lives.
    """

    def __init__(
        self,
        *,
        model: Path | LossyModel | None = None,
        device: str = "auto",
        deidentify: Deidentifier | None = None,
        **options: Unpack[EncodeOptions],
    ) -> None:
        self._settings = EncodeSettings.of(options, model=model)
        self._model = LazyModel(model or DEFAULT_MODEL, device, self._settings.effort)
        self.deidentify = deidentify

    @property
    def lossless(self) -> bool:
        """Whether every bit of a file is restored."""
        return self._settings.lossless

    def encode(
        self,
        source: Scannable,
        *,
        out: Path | BinaryIO | None = None,
        progress: Progress | None = None,
    ) -> bytes | None:
        """The stream, or None if it was written to `out`.

        ValueError: an array that no stream can hold. OSError, FormatError: an unreadable file.
        """
        buffer = io.BytesIO()
        report = self.encode_file(source, buffer if out is None else out, progress=progress)
        if report.reason is not None:
            warnings.warn(f"coded without loss: {report.reason}", LosslessFallback, stacklevel=2)
        if report.missed is not None:
            warnings.warn(report.missed, TargetMissed, stacklevel=2)
        return buffer.getvalue() if out is None else None

    def encode_file(
        self, source: Scannable, out: Path | BinaryIO, *, progress: Progress | None = None
    ) -> EncodeReport:
        """As `encode`, with a report and without the warnings."""
        from mricodec.codec.pipeline.encoding import encode_scan  # No decoder waits for it.

        with _scan_of(source) as scan, writable(out) as file:
            if self.deidentify is not None:
                scan = self.deidentify.scan(scan)
            return encode_scan(scan, file, self._settings, self._model.get, progress or _silent)


class Decoder:
    """Limits, and the models of the streams decoded so far. Threads may share it.

    The default model keeps up to 256 MB of its working memory for the next call.

    model: of streams whose model is not shipped, its weights file (*.safetensors) or an object;
        files in the folders of the environment variable MRICODEC_MODELS need not be named.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        model: Path | LossyModel | None = None,
        device: str = "auto",
    ) -> None:
        self._limits = limits or DEFAULT_LIMITS
        self._device = device
        self._lock = threading.Lock()
        self._models: dict[bytes, LossyModel] = {}
        self._file = model if isinstance(model, (str, os.PathLike)) else None
        if self._file is not None and not is_file_name(self._file):
            raise ValueError(f"model: expected a file {SUFFIX}, found {self._file!r}")
        if model is not None and not isinstance(model, (str, os.PathLike)):
            self._models[model.model_id] = model

    @property
    def limits(self) -> Limits:
        """What a stream may ask for."""
        return self._limits

    def decode(
        self,
        source: Source,
        *,
        slices: Range = None,
        volumes: Range = None,
        layer: int | None = None,
        preview: bool = False,
        salvage: Salvage | None = None,
        progress: Progress | None = None,
    ) -> Volume:
        """The scan, or a part of it, for which only the slabs that hold it are decoded.

        slices: along k, the third NIfTI axis, as a slice or (start, stop).
        volumes: along the leading axes, counted as one.
        layer: how many layers of a stream that has some, 1 for the coarsest alone; by default all.
        preview: instead of the scan, means of 4 x 4 voxels of its slices, to about the noise.
        salvage: of a damaged file decode what is good. The rest is zeros, and `salvage` is called
            with a line for each slab that is lost.

        FormatError if the stream is damaged or its model unknown, ValueError for a range beyond the
        scan. Of a DICOM series it is the largest volume, with the values that its samples stand
        for (BitsStored, HighBit; float32 where slices differ in RescaleSlope).
        """
        with opened(source) as file:
            outer = Stream(file, self._limits, salvage=salvage is not None)
            view, stream = first_view(outer, salvage), self._chosen(outer, layer)
            if preview:
                _check_preview_alone(slices, volumes, salvage)
                return self._preview(stream, view, progress or _silent)
            if view.part is not None:
                return self._part(stream, view, (slices, volumes), progress or _silent, salvage)
            selection = Selection.of(stream, slices, volumes, view)
            return decode_volume(self.layered(stream), selection, progress or _silent, salvage)

    def decode_file(
        self,
        source: Source,
        destination: Path | BinaryIO,
        *,
        slices: Range = None,
        volumes: Range = None,
        layer: int | None = None,
        preview: bool = False,
        salvage: Salvage | None = None,
        progress: Progress | None = None,
    ) -> StreamInfo:
        """Decode into .nii, .nii.gz or .hdr/.img, by the name; a binary file gets a .nii.

        Memory is bounded. A path is replaced when all is written and the digest is right. Errors as
        in `decode`, and OSError. Warning `GzipDiffers` if a .nii.gz should be the one that was
        encoded and is not.
        """
        with opened(source) as file:
            outer = Stream(file, self._limits, salvage=salvage is not None)
            view, stream = first_view(outer, salvage), self._chosen(outer, layer)
            info = stream.info()  # First, as damage must be known before there is a file.
            if preview:
                _check_preview_alone(slices, volumes, salvage)
                write_nifti(self._preview(stream, view, progress or _silent), destination)
            elif view.part is not None:
                chosen = slices, volumes
                part = self._part(stream, view, chosen, progress or _silent, salvage)
                write_nifti(part, destination)
            else:
                selection = Selection.of(stream, slices, volumes, view)
                decode_to_nifti(
                    self.layered(stream), selection, destination, progress or _silent, salvage
                )
            return info

    def further_volumes(self, source: Source) -> Iterator[Volume]:
        """The volumes of a DICOM series besides the one that `decode` gives, the largest first."""
        with opened(source) as file:
            for stream, view in further_views(Stream(file, self._limits)):
                if view.part is not None:
                    yield self._part(stream, view, (None, None), _silent)
                else:
                    selection = Selection.of(stream, None, None, view)
                    yield decode_volume(self.layered(stream), selection, _silent)

    def decode_further(self, source: Source, path_of: Callable[[int], Path]) -> Iterator[Path]:
        """Write each of `further_volumes` into a NIfTI file, and yield its path.

        path_of: the path of volume 2, 3, ..., asked for before it is decoded.
        """
        with opened(source) as file:
            for number, (stream, view) in enumerate(further_views(Stream(file, self._limits)), 2):
                path = path_of(number)
                if view.part is not None:
                    write_nifti(self._part(stream, view, (None, None), _silent), path)
                else:
                    selection = Selection.of(stream, None, None, view)
                    decode_to_nifti(self.layered(stream), selection, path, _silent)
                yield path

    def verify(self, stream: Stream, progress: Progress | None = None) -> None:
        """Decode the voxels, and compare their digest. FormatError if they are damaged or the
        model is unknown."""
        for _ in blocks(
            self.layered(stream), Selection.of(stream, None, None), progress or _silent
        ):
            pass

    def layered(self, stream: Stream) -> Layered:
        """The stream with its coder and those of its layers, their models loaded."""
        return Layered.of(stream, self._model_of)

    def _chosen(self, stream: Stream, layer: int | None) -> Stream:
        """The stream, or a layer of it in the envelope of the whole."""
        if layer is None:
            return stream
        streams = [stream]
        while streams[0].base is not None:
            streams.insert(0, streams[0].base)
        if not 1 <= layer <= len(streams):
            raise ValueError(f"layer: expected a number from 1 to {len(streams)}, found {layer}")
        return streams[layer - 1].within(stream)

    def _preview(self, stream: Stream, view: View, progress: Progress) -> Volume:
        """The preview inside the stream, or else the whole scan reduced."""
        inside = stream.preview(self._limits)
        if view.part is not None:
            whole = self._part(stream, view, (None, None), progress)
            tiling = Tiling(whole.array.shape, 0, 1)
            array, envelope = previews.reduced_scan(whole.array, tiling), whole.envelope
        elif inside is not None and view.values.are_samples(stream.native):
            tiling, envelope = stream.tiling, view.envelope(stream.envelope)
            array = decode_volume(
                self.layered(inside), Selection.of(inside, None, None), progress
            ).array
        else:
            tiling = stream.tiling
            selection = Selection.of(stream, None, None, view)
            whole = decode_volume(self.layered(stream), selection, progress)
            array, envelope = previews.reduced_scan(whole.array, tiling), whole.envelope
        reduced = Envelope(
            affine=previews.reduced_affine(envelope.affine, tiling),
            spacing_mm=previews.reduced_spacing(envelope.spacing_mm, tiling),
            slope=envelope.slope,
            inter=envelope.inter,
        )
        return Volume(array, reduced, is_big_endian(stream.dtype))

    def _part(
        self,
        stream: Stream,
        view: View,
        chosen: tuple[Range, Range],
        progress: Progress,
        salvage: Salvage | None = None,
    ) -> Volume:
        """A volume that is a part of a stack, or the chosen (slices, volumes) of it."""
        selection = Selection.of(stream, None, None)
        whole = decode_volume(self.layered(stream), selection, progress, salvage)
        return part_of(whole, view, chosen)

    def _model_of(self, model_id: bytes) -> LossyModel:
        with self._lock:
            if model_id not in self._models:
                self._models[model_id] = self._load(model_id)
            return self._models[model_id]

    def _load(self, model_id: bytes) -> LossyModel:
        """A shipped model, that of the named file, or one from the folders of MRICODEC_MODELS."""
        if self._file is None or zoo.is_shipped(model_id):
            return loading.open_model(model_id, self._device)
        model = loading.open_model(self._file, self._device)
        if model.model_id == model_id:
            return model
        try:
            return loading.open_model(model_id, self._device)
        except UnknownModel as error:
            file = os.fspath(self._file)
            raise UnknownModel(f"{error}; {file} is the model {model.model_id.hex()}") from error


def _check_preview_alone(*others: object) -> None:
    if any(other is not None for other in others):
        raise ValueError(
            "preview: expected neither slices nor volumes nor salvage with it; leave them out"
        )


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
            raise TypeError(
                "expected an array, a Volume, a path or a binary file, "
                f"found {type(source).__name__}"
            )
        else:
            scan = open_scan(stack.enter_context(seekable(source)))
        stack.callback(scan.close)
        yield scan


@contextlib.contextmanager
def writable(out: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file for the output: a path is replaced when it is complete."""
    if isinstance(out, (str, os.PathLike)):
        with replacing(out) as file:
            yield file
    else:
        yield out


def _silent(_: float) -> None:
    pass
