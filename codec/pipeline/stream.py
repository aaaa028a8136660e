"""An opened stream: its header checked against itself, and its description without decoding."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import (
    BASE,
    DICM,
    ERRORS,
    GOAL,
    GZIP,
    META,
    ORIG,
    PADV,
    PREVIEW,
    SUMS,
)
from mricodec.bitstream.container import ContainerReader, Span
from mricodec.bitstream.errors import FormatError, LimitExceeded
from mricodec.bitstream.header import LEARNED_INEXACT, PREDICTIVE, STORE, Flags, Limits, Mode
from mricodec.bitstream.sections import unpack_meta, unpack_orig
from mricodec.bitstream.series_chunks import FileTable, unpack_padding
from mricodec.codec.formats import gzip_recipe, nifti_header
from mricodec.codec.formats.dicom.elements import PREFIX_SIZE
from mricodec.codec.formats.dicom.wrapped import may_wrap, stream_span
from mricodec.codec.settings import Target
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, Envelope, is_big_endian
from mricodec.codec.voxels.preview import reduced_shape

from .heads import ERRORS_BYTES, Distortion, LossyHead, PredictiveHead

# Voxels of the largest slab that is coded or decoded.
MAX_SLAB_VOXELS = 1 << 28
# Layers below the finest one of a stream.
MAX_LAYERS = 2

Source = bytes | str | os.PathLike[str] | BinaryIO | Span
Progress = Callable[[float], None]  # It is called with the fraction that is done.


@dataclass(frozen=True)
class StreamInfo:
    """The description of a stream, without decoding it.

    shape: slowest axis first; spacing_mm: (k, j, i).
    mode: "lossless", "lossy" or "bounded"; coder: "store", "predictive" or "learned".
    model_id: hexadecimal; "" for none.
    slab_axis: "k", "j" or "i"; slab_slices: slices of that axis in a slab.
    sections: type and bytes of every kind of chunk, framing included.
    original_bytes: of the scan, uncompressed, with its header.
    fidelity: of a lossy or bounded stream.
    exact: whether every machine decodes to the same voxels.
    sha256: of the original bytes (lossless), or the first half of that of the decoded voxels.
    files: of a series; 0 for a scan that was one file.
    target: the PSNR or size that was asked for.
    max_error: of a bounded stream, in stored units: no voxel differs by more.
    layers: modes of the streams inside that this one refines, the coarsest first.
    preview: whether a reduced version is inside that decodes alone.
    gzip: how the identical .nii.gz is made again; None if there is no recipe.
    """

    shape: tuple[int, ...]
    dtype: str
    big_endian: bool
    spacing_mm: tuple[float, float, float]
    mode: str
    coder: str
    model_id: str
    slabs: int
    slab_axis: str
    slab_slices: int
    sections: tuple[tuple[str, int], ...]
    stream_bytes: int
    original_bytes: int
    fidelity: Distortion | None
    exact: bool
    sha256: str
    files: int = 0
    target: Target | None = None
    max_error: float | None = None
    layers: tuple[str, ...] = ()
    preview: bool = False
    gzip: str | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the scan over those of the stream."""
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
        """Bits of the whole stream per voxel."""
        return 8 * self.stream_bytes / max(1, math.prod(self.shape))


class Stream:
    """A stream opened and checked, nothing decoded. FormatError if it contradicts itself."""

    def __init__(
        self,
        source: bytes | BinaryIO | Span,
        limits: Limits,
        *,
        salvage: bool = False,
        depth: int = 0,
    ) -> None:
        """salvage: accept a damaged file; depth: the number of streams that enclose this one."""
        self.reader = ContainerReader(source, limits, salvage=salvage)
        head = self.reader.header
        self.mode = head.mode
        self.coder = head.coder
        self.model_id = head.model_id
        self.params = head.params
        self.has_background = bool(head.flags & Flags.BACKGROUND)
        self.shape = head.shape
        self.native = DTYPES[head.dtype]
        self.dtype = self.native.newbyteorder(">" if head.flags & Flags.BIG_ENDIAN else "<")
        self.tiling = Tiling(head.shape, head.slab_axis, head.slab_slices)
        table = self.reader.chunk(DICM)
        self.table = None if table is None else FileTable.unpack(table, limits)
        self._check_slabs()
        self.envelope = self._read_envelope(limits)
        self.base = self._open_base(limits, depth)

    def _check_slabs(self) -> None:
        if 0 in self.shape:
            if self.table is None or self.table.tiles or self.reader.slab_count:
                raise FormatError(
                    f"expected at least one voxel, found shape {self.shape} in HEAD: "
                    "the file is damaged"
                )
            return
        if self.reader.slab_count != self.tiling.slabs and not self.reader.damaged:
            raise FormatError(
                f"expected {self.tiling.slabs} slabs for shape {self.shape}, "
                f"found {self.reader.slab_count}: the file is damaged"
            )
        voxels = math.prod(self.tiling.slab_shape(0))
        if voxels > MAX_SLAB_VOXELS:
            raise LimitExceeded(
                f"expected at most {MAX_SLAB_VOXELS} voxels in a slab, found {voxels}"
            )

    def _read_envelope(self, limits: Limits) -> Envelope:
        """From ORIG, or from META where the scan had no header."""
        orig = self.reader.chunk(ORIG)
        around, trailer = b"", b""
        if orig is not None:
            around, trailer = unpack_orig(orig, limits.max_metadata_bytes)
        if not around:
            meta = self.reader.chunk(META)
            return self._geometry(
                {} if meta is None else unpack_meta(meta, limits.max_metadata_bytes), trailer
            )
        parsed = nifti_header.parse(around, "ORIG")
        if (parsed.shape, parsed.dtype) != (self.shape, self.dtype):
            raise FormatError(
                f"expected a header of {self.reader.header.dtype} {self.shape} in ORIG, found "
                f"{parsed.dtype} {parsed.shape}: the file is damaged"
            )
        lead = parsed.vox_offset if parsed.pair else 0
        needed = parsed.size + lead if parsed.pair else parsed.vox_offset
        if len(around) < needed or (not parsed.pair and len(around) > needed):
            raise FormatError(
                f"expected {needed} bytes of header in ORIG, found {len(around)}: "
                "the file is damaged"
            )
        split = len(around) - lead
        return Envelope(
            around[:split],
            around[split:],
            trailer,
            parsed.affine,
            parsed.spacing_mm,
            parsed.slope,
            parsed.inter,
        )

    def _geometry(self, meta: dict[str, Any], trailer: bytes) -> Envelope:
        try:
            affine = meta.get("affine")
            k, j, i = (float(v) for v in meta.get("spacing_mm", self.reader.header.spacing_mm))
            return Envelope(
                trailer=trailer,
                affine=None if affine is None else np.array(affine, np.float64).reshape(4, 4),
                spacing_mm=(k, j, i),
                slope=float(meta.get("slope", 1.0)),
                inter=float(meta.get("inter", 0.0)),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"expected a geometry in META, found damage ({error})") from error

    def padding(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """(padding value, bits of the voxels that have it [frames, bytes]) of a series."""
        if 0 in self.shape:
            return []
        _, j, i = self.tiling.volume_shape
        frames, limit = math.prod(self.shape) // (j * i), self.reader.limits.max_metadata_bytes
        values = [
            unpack_padding(payload, frames, j * i, limit) for payload in self.reader.chunks(PADV)
        ]
        for value, _ in values:
            if (
                self.native.kind not in "iu"
                or not np.iinfo(self.native).min <= value <= np.iinfo(self.native).max
            ):
                raise FormatError(
                    f"expected a padding value of {self.native} in PADV, found {value}: "
                    "the file is damaged"
                )
        return values

    def predictive_head(self) -> PredictiveHead:
        """HEAD.params of a stream of the predictive coder."""
        return PredictiveHead.unpack(self.params, self.mode, self.native)

    def lossy_head(self) -> LossyHead:
        """HEAD.params of a stream of a learned coder."""
        return LossyHead.unpack(self.params, self.native)

    def _open_base(self, limits: Limits, depth: int) -> Stream | None:
        """The stream that this one refines."""
        inside = self.reader.embedded(BASE)
        if inside is None:
            return None
        if depth == MAX_LAYERS or self.coder != PREDICTIVE:
            raise FormatError(
                f"expected at most {MAX_LAYERS} layers under a predictive coder, found more: "
                "the file is damaged"
            )
        base = Stream(inside, limits, depth=depth + 1)
        if (base.shape, base.native, base.tiling) != (self.shape, self.native, self.tiling):
            raise FormatError(
                f"expected the layer in BASE to be of {self.native} {self.shape} in the same "
                f"slabs, found {base.native} {base.shape}: the file is damaged"
            )
        return base

    def within(self, outer: Stream) -> Stream:
        """This layer of another stream, in the envelope of that one."""
        layer = copy.copy(self)
        layer.envelope = outer.envelope
        return layer

    def preview(self, limits: Limits) -> Stream | None:
        """The reduced scan inside. FormatError if it is not one of this scan."""
        inside = self.reader.embedded(PREVIEW)
        if inside is None:
            return None
        preview = Stream(inside, limits)
        shape = reduced_shape(self.tiling)
        if (preview.shape, preview.native) != (shape, self.native):
            raise FormatError(
                f"expected a preview of {self.native} {shape}, found {preview.native} "
                f"{preview.shape}: the file is damaged"
            )
        return preview

    def sums(self) -> NDArray[np.uint32] | None:
        """CRC-32 of the decoded voxels of every slab; None if the stream has none."""
        chunk = SUMS if self.mode is Mode.LOSSLESS else ERRORS
        payload = self.reader.chunk(chunk)
        if payload is None:
            return None
        if self.mode is not Mode.LOSSLESS:
            payload = payload[ERRORS_BYTES:]
            if not payload and self.coder == LEARNED_INEXACT:
                return None
        if len(payload) != 4 * self.tiling.slabs:
            raise FormatError(
                f"expected {self.tiling.slabs} checksums in {chunk.decode()}, "
                f"found {len(payload)} bytes: the file is damaged"
            )
        return np.frombuffer(payload, "<u4").astype(np.uint32)

    def info(self) -> StreamInfo:
        """The description of the stream. FormatError if a chunk of it is damaged."""
        sizes: dict[str, int] = {}
        for section in self.reader.sections():
            sizes[section.type] = sizes.get(section.type, 0) + section.size
        original = self.envelope.size + math.prod(self.shape) * self.dtype.itemsize
        if self.table is not None:
            original = sum(file.size for file in self.table.files)
        goal = self.reader.chunk(GOAL)
        return StreamInfo(
            shape=self.shape,
            dtype=self.reader.header.dtype,
            big_endian=is_big_endian(self.dtype),
            spacing_mm=self.envelope.spacing_mm,
            mode=self.mode.name.lower(),
            coder={STORE: "store", PREDICTIVE: "predictive"}.get(self.coder, "learned"),
            model_id=self.model_id.hex() if any(self.model_id) else "",
            slabs=self.reader.slab_count,
            slab_axis="kji"[self.tiling.axis],
            slab_slices=self.tiling.slices,
            sections=tuple(sizes.items()),
            stream_bytes=self.reader.size,
            original_bytes=original,
            fidelity=self._fidelity(),
            exact=self.coder != LEARNED_INEXACT,
            sha256=self.reader.digest.hex(),
            files=0 if self.table is None else len(self.table.files),
            target=None if goal is None else Target.unpack(goal),
            max_error=self.predictive_head().bound if self.mode is Mode.BOUNDED else None,
            layers=self._layers(),
            preview=self.reader.has(PREVIEW),
            gzip=self._gzip(),
        )

    def _layers(self) -> tuple[str, ...]:
        return () if self.base is None else (*self.base._layers(), self.base.mode.name.lower())

    def _gzip(self) -> str | None:
        payload = self.reader.chunk(GZIP)
        return None if payload is None else str(gzip_recipe.GzipRecipe.unpack(payload))

    def _fidelity(self) -> Distortion | None:
        errors = self.reader.chunk(ERRORS)
        if self.mode is Mode.LOSSLESS or errors is None:
            return None
        head = self.predictive_head() if self.mode is Mode.BOUNDED else self.lossy_head()
        return head.fidelity(errors)


def geometry_meta(envelope: Envelope, name: str) -> dict[str, Any]:
    """The content of META for a scan without header: what HEAD can't hold or is not the default.

    ValueError if a number of it is not finite; `name` is that of the scan in its message.
    """
    affine = np.zeros((4, 4)) if envelope.affine is None else envelope.affine
    if not np.isfinite([envelope.slope, envelope.inter, *affine.flat]).all():
        raise ValueError(
            f"{name}: expected a finite affine, slope and inter, found NaN or infinity; "
            "leave them out"
        )
    meta: dict[str, Any] = {}
    if envelope.affine is not None:
        meta["affine"] = envelope.affine.tolist()
    if np.array(envelope.spacing_mm, np.float32).tolist() != list(envelope.spacing_mm):
        meta["spacing_mm"] = list(envelope.spacing_mm)
    if (envelope.slope, envelope.inter) != (1.0, 0.0):
        meta["slope"], meta["inter"] = envelope.slope, envelope.inter
    return meta


@contextlib.contextmanager
def opened(source: Source) -> Iterator[bytes | BinaryIO | Span]:
    """The bytes, a seekable file, or the stream in a DICOM object that wraps it.

    FormatError for a DICOM object without a stream.
    """
    if isinstance(source, Span):
        yield source
    elif isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            yield stream_span(file) or file
    elif isinstance(source, (bytes, bytearray, memoryview)):
        prefix = bytes(source[:PREFIX_SIZE])
        yield (stream_span(io.BytesIO(source)) if may_wrap(prefix) else None) or source
    else:
        with seekable(source) as file:
            yield stream_span(file) or file


@contextlib.contextmanager
def seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, or a temporary copy of a pipe."""
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.seek(0)
        yield file
