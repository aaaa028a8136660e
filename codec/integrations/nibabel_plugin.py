"""Streams in nibabel, and so in what reads through it (MONAI's NibabelReader, TorchIO, nilearn).

    from mricodec.codec import nibabel_plugin

    nibabel_plugin.register()                       # once: nibabel then knows .mrc and .mric
    image = nib.load("scan.mrc")                    # reads the header only
    image.dataobj[..., 90]                          # decodes the slabs that hold slice 90
    nib.save(image, "copy.mrc")                     # lossless
    nib.save(image, "small.mrc", quality=50)        # lossy, as in codec.encode

Nothing happens on import. The images are NIfTI images backed by a stream: header, extensions,
affine and scaling are those of the scan; of a DICOM series it is the largest stack.
`nib.save(image, "scan.nii.gz")` converts.

nibabel: https://nipy.org/nibabel/devel/register_me.html (images), nibabel_images.html (proxies).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel import imageclasses
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.fileslice import canonical_slicers
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.header import DEFAULT_LIMITS
from mricodec.codec.api import Decoder, Encoder
from mricodec.codec.atomic import replacing
from mricodec.codec.filenames import STREAM_ENDINGS, ends_with
from mricodec.codec.formats import nifti_header
from mricodec.codec.pipeline.series import View, first_view
from mricodec.codec.pipeline.stream import Stream, opened
from mricodec.codec.tiling import Tiling

# Largest part that is kept after decoding, in voxels: reading a scan slice by slice decodes every
# slab once.
MAX_CACHED_VOXELS = 13_000_000


def register() -> None:
    """Make `nib.load` and `nib.save` know .mrc and .mric. Calling it again changes nothing."""
    if MricodecImage not in imageclasses.all_image_classes:
        imageclasses.all_image_classes.append(MricodecImage)
        imageclasses.KNOWN_SPATIAL_FIRST += (MricodecImage, MricodecNifti2Image)


class StreamProxy:
    """The voxels of a stream as an array proxy of nibabel: [i, j, k, ...], decoded on demand.

    Slicing decodes the slabs that hold the slices of the volumes asked for. Values are
    slope * stored + inter, or of the stored type where there is no scaling; `get_unscaled` gives
    the stored ones. FormatError where the stream is damaged.
    """

    is_proxy = True

    def __init__(
        self, source: str | os.PathLike[str] | BinaryIO, stream: Stream, view: View
    ) -> None:
        shape, envelope = view.shape(stream), view.envelope(stream.envelope)
        self._source = source
        self._tiling = stream.tiling if view.part is None else Tiling(shape, 0, shape[-3])
        self.shape: tuple[int, ...] = shape[::-1]
        self.dtype: np.dtype[Any] = view.values.dtype(stream.native)
        self.slope, self.inter = envelope.slope, envelope.inter
        self._cached: tuple[tuple[int, int, int], NDArray[Any]] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def get_unscaled(self) -> NDArray[Any]:
        """The stored values."""
        return self._stored(())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(
                "expected copy to be None or True, found False: the voxels must be decoded"
            )
        array = self._scaled(())
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, chosen: Any) -> NDArray[Any]:
        return self._scaled(chosen)

    def reshape(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """All voxels in another shape, in the order of a file (i fastest), as nibabel's proxies."""
        return np.asanyarray(self).reshape(shape, order="F")

    def _scaled(self, chosen: Any) -> NDArray[Any]:
        scaled: NDArray[Any] = apply_read_scaling(self._stored(chosen), self.slope, self.inter)
        return scaled

    def _stored(self, chosen: Any) -> NDArray[Any]:
        """The stored values of a basic index, which is all that nibabel's proxies take."""
        index: tuple[Any, ...] = canonical_slicers(chosen, self.shape)
        axes = [item for item in index if item is not None]  # One for every axis.
        positions = [
            range(n)[item] if isinstance(item, slice) else [item]
            for item, n in zip(axes, self.shape, strict=True)
        ]
        whole = all(len(taken) == n for taken, n in zip(positions, self.shape, strict=True))
        if whole or self.ndim < 3:
            with _naming(self._source):
                array: NDArray[Any] = _decoder().decode(self._source).array.T[index]
                return array
        array = np.empty([len(taken) for taken in positions], self.dtype)
        if array.size:
            first, stop = min(positions[2]), max(positions[2]) + 1
            within = np.ix_(positions[0], positions[1], [k - first for k in positions[2]])
            for numbered in itertools.product(*map(enumerate, positions[3:])):
                volume = self._volume(self._volume_number([at for _, at in numbered]), first, stop)
                into: Any = (..., *(n for n, _ in numbered))
                array[into] = volume.T[within]
        kept: Any = tuple(
            slice(None) if isinstance(item, slice) else None if item is None else 0
            for item in index
        )
        return np.asarray(array[kept])

    def _volume_number(self, positions: list[int]) -> int:
        """The number in the file of the volume at these positions along the fourth axis and on."""
        number = 0
        for n, at in zip(self.shape[:2:-1], positions[::-1], strict=True):
            number = number * n + at
        return number

    def _volume(self, number: int, first: int, stop: int) -> NDArray[Any]:
        """Slices [k, j, i] of a volume. Whole slabs are decoded, and kept if they are small."""
        tiling = self._tiling
        start, end = 0, tiling.volume_shape[0]
        if tiling.axis == 0 and first < stop:
            slabs = tiling.covering(first, stop)
            start, end = tiling.span(slabs[0])[0], tiling.span(slabs[-1])[1]
        cached = self._cached
        if (
            cached is None
            or cached[0][0] != number
            or not cached[0][1] <= start < end <= cached[0][2]
        ):
            with _naming(self._source):
                part = (
                    _decoder()
                    .decode(self._source, slices=(start, end), volumes=(number, number + 1))
                    .array
                )
            cached = (number, start, end), part.reshape(end - start, *tiling.volume_shape[1:])
            if part.size <= MAX_CACHED_VOXELS:
                self._cached = cached
        return cached[1][first - cached[0][1] : stop - cached[0][1]]


class _Streamed:
    """What an image of a stream has beyond a NIfTI image."""

    valid_exts = STREAM_ENDINGS
    files_types = (("image", STREAM_ENDINGS[0]),)
    _compressed_suffixes = ()
    plain: type[nib.Nifti1Pair]

    @classmethod
    def path_maybe_image(
        cls, filename: Any, sniff: Any = None, sniff_max: int = 1024
    ) -> tuple[bool, Any]:
        """By the ending: what is no stream (a cryo-EM map) gets an error that names it."""
        return ends_with(filename, STREAM_ENDINGS), sniff

    @classmethod
    def filespec_to_file_map(cls, filespec: Any) -> dict[str, FileHolder]:
        """One file, with either ending."""
        path = os.fspath(filespec)
        if not ends_with(path, STREAM_ENDINGS):
            raise ImageFileError(f"{path}: expected a name with {' or '.join(STREAM_ENDINGS)}")
        return {"image": FileHolder(filename=path)}

    @classmethod
    def from_file_map(
        cls, file_map: dict[str, FileHolder], *, mmap: Any = True, keep_file_open: Any = None
    ) -> nib.Nifti1Pair:
        """Read the header; nibabel's `mmap` and `keep_file_open` have no effect.

        FormatError if it is no stream.
        """
        holder: Any = file_map["image"]
        source = holder.filename if holder.fileobj is None else holder.fileobj
        with _naming(source), opened(source) as file:
            stream = Stream(file, DEFAULT_LIMITS)
            if 0 in stream.shape:
                raise FormatError(
                    "expected voxels, found a DICOM series without any; "
                    "restore its files with 'mricodec decode'"
                )
            raw, view = stream.envelope.header, first_view(stream)
            if not raw:
                raw = nifti_header.make_header(
                    view.shape(stream),
                    view.values.dtype(stream.dtype),
                    view.envelope(stream.envelope),
                )
            elif nifti_header.parse(raw, "ORIG").pair:
                raw = nifti_header.single_file_header(raw)
        kind = MricodecImage if nifti_header.parse(raw, "ORIG").size == 348 else MricodecNifti2Image
        header = kind.header_class.from_fileobj(io.BytesIO(raw), check=False)
        image = kind(StreamProxy(source, stream, view), None, header, file_map=file_map)
        image._affine = header.get_best_affine()
        return image

    @classmethod
    def from_image(cls, image: Any) -> Any:
        """Any nibabel image; one with a NIfTI-2 header keeps it."""
        kind = MricodecNifti2Image if isinstance(image.header, nib.Nifti2Header) else MricodecImage
        return super(_Streamed, kind).from_image.__func__(kind, image)  # type: ignore[misc]

    def to_file_map(
        self,
        file_map: dict[str, FileHolder] | None = None,
        dtype: Any = None,
        *,
        quality: float | None = None,
        model: str | None = None,
    ) -> None:
        """Write the stream: lossless, every byte of the .nii that nibabel would write.

        With a `quality` or `model` lossy, as `codec.Encoder`.
        """
        files = self.file_map if file_map is None else file_map  # type: ignore[attr-defined]
        holder: Any = files["image"]
        plain = self._as_nifti(dtype)
        encoder = _encoder(quality, model)
        with tempfile.TemporaryFile() as scan:
            plain.to_stream(scan, **({} if dtype is None else {"dtype": dtype}))
            scan.seek(0)
            if holder.fileobj is not None:
                encoder.encode(scan, out=holder.fileobj)
            else:
                with replacing(holder.filename) as out:
                    encoder.encode(scan, out=out)

    def _as_nifti(self, dtype: Any) -> Any:
        """A plain image of the same voxels; without a `dtype`, the same stored values."""
        image: Any = self
        proxy, header = image.dataobj, image.header
        if dtype is not None or not isinstance(proxy, (StreamProxy, nib.arrayproxy.ArrayProxy)):
            return self.plain.from_image(image)
        same = header.get_data_dtype().newbyteorder("=") == proxy.dtype.newbyteorder("=")
        if not same or header.get_slope_inter() != (None, None):
            return self.plain.from_image(image)
        plain = self.plain(proxy.get_unscaled(), image.affine, header)
        plain.header.set_slope_inter(proxy.slope, proxy.inter)
        return plain


class MricodecImage(_Streamed, nib.Nifti1Image):  # type: ignore[misc]
    """A stream with a NIfTI-1 header, or without any."""

    plain = nib.Nifti1Image


class MricodecNifti2Image(_Streamed, nib.Nifti2Image):  # type: ignore[misc]
    """A stream with a NIfTI-2 header."""

    plain = nib.Nifti2Image


@functools.cache
def _decoder() -> Decoder:
    """One decoder for all images: it keeps the models loaded."""
    return Decoder()


@functools.lru_cache(4)
def _encoder(quality: float | None, model: str | None) -> Encoder:
    return Encoder(lossless=quality is None and model is None, quality=quality, model=model)


@contextlib.contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Put the path in front of the message of a `FormatError`."""
    try:
        yield
    except FormatError as error:
        name = (
            os.fspath(source)
            if isinstance(source, (str, os.PathLike))
            else getattr(source, "name", "stream")
        )
        raise type(error)(f"{name}: {error}") from error
