"""An opened stream: its header checked against itself, and what it says of the scan."""

from __future__ import annotations

import contextlib
import copy
import math
import os
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
from mricodec.codec.settings import Target
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, Scan, is_big_endian
from mricodec.codec.voxels.preview import reduced_shape

from .heads import ERRORS_BYTES, Distortion, LossyHead, PredictiveHead

MAX_SLAB_VOXELS = 1 << 28
MAX_LAYERS = 2  # below the finest

Source = bytes | str | os.PathLike[str] | BinaryIO
Progress = Callable[[float], None]  # called with the fraction done


@dataclass(frozen=True)
class StreamInfo:
    """What a stream says of itself without being decoded."""

    shape: tuple[int, ...]
    dtype: str
    big_endian: bool
    spacing_mm: tuple[float, float, float]  # (k, j, i)
    mode: str  # "lossless", "lossy" or "bounded"
    coder: str  # "store", "predictive" or "learned"
    model_id: str  # hexadecimal; "" for none
    slabs: int
    slab_axis: str  # "k", "j" or "i"
    slab_slices: int
    sections: tuple[tuple[str, int], ...]  # type and bytes of every kind of chunk, framing included
    stream_bytes: int
    original_bytes: int  # of the scan, uncompressed, with its header
    fidelity: Distortion | None  # of a lossy or bounded stream
    exact: bool  # every machine decodes to the same voxels
    sha256: str  # of the original bytes (lossless); of the decoded voxels, its first half (lossy, bounded)
    files: int = 0  # of a series; 0 for a scan that was one file
    target: Target | None = None  # PSNR or size that was asked for
    max_error: float | None = None  # of a bounded stream, in stored units: no voxel differs by more
    layers: tuple[
        str, ...
    ] = ()  # modes of the streams inside that this one refines, the coarsest first
    preview: bool = False  # there is a reduced version that decodes alone
    gzip: str | None = (
        None  # how the .nii.gz that it was is made again, None if it was none or can't be
    )

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
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
        """salvage: take what is there of a damaged file; depth: how many streams this one is inside of."""
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
        orig = self.reader.chunk(ORIG)
        around, self.trailer = (
            unpack_orig(orig, limits.max_metadata_bytes) if orig is not None else (b"", b"")
        )
        if around:
            parsed = nifti_header.parse(around, "ORIG")
            if (parsed.shape, parsed.dtype) != (self.shape, self.dtype):
                raise FormatError(
                    f"expected a header of {head.dtype} {head.shape} in ORIG, found "
                    f"{parsed.dtype} {parsed.shape}: the file is damaged"
                )
            lead = parsed.vox_offset if parsed.pair else 0
            least = parsed.size + lead if parsed.pair else parsed.vox_offset
            if len(around) < least or (not parsed.pair and len(around) > least):
                raise FormatError(
                    f"expected {least} bytes of header in ORIG, found {len(around)}: the file is damaged"
                )
            self.header, self.lead = around[: len(around) - lead], around[len(around) - lead :]
            self.affine: NDArray[np.float64] | None = parsed.affine
            self.spacing_mm, self.slope, self.inter = parsed.spacing_mm, parsed.slope, parsed.inter
        else:
            self.header = self.lead = b""
            meta = self.reader.chunk(META)
            self._set_geometry(
                unpack_meta(meta, limits.max_metadata_bytes) if meta is not None else {}
            )
        self.base = self._open_base(limits, depth)

    def _check_slabs(self) -> None:
        if 0 in self.shape and (self.table is None or self.table.tiles or self.reader.slab_count):
            raise FormatError(
                f"expected at least one voxel, found shape {self.shape} in HEAD: the file is damaged"
            )
        slabs_there = self.reader.slab_count == self.tiling.slabs or self.reader.damaged
        if 0 not in self.shape and not slabs_there:
            raise FormatError(
                f"expected {self.tiling.slabs} slabs for shape {self.shape}, found {self.reader.slab_count}: "
                "the file is damaged"
            )
        voxels = 0 if 0 in self.shape else math.prod(self.tiling.slab_shape(0))
        if voxels > MAX_SLAB_VOXELS:
            raise LimitExceeded(
                f"expected at most {MAX_SLAB_VOXELS} voxels in a slab, found {voxels}"
            )

    def _set_geometry(self, meta: dict[str, Any]) -> None:
        try:
            affine = meta.get("affine")
            self.affine = None if affine is None else np.array(affine, np.float64).reshape(4, 4)
            k, j, i = (float(v) for v in meta.get("spacing_mm", self.reader.header.spacing_mm))
            self.spacing_mm = k, j, i
            self.slope, self.inter = float(meta.get("slope", 1.0)), float(meta.get("inter", 0.0))
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"expected a geometry in META, found damage ({error})") from error

    def padding(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """(value, bits of the voxels that have it) of each value that stands for no data: [pictures, bytes]."""
        if 0 in self.shape:
            return []
        _, j, i = self.tiling.volume_shape
        pictures, limit = math.prod(self.shape) // (j * i), self.reader.limits.max_metadata_bytes
        found = [
            unpack_padding(payload, pictures, j * i, limit) for payload in self.reader.chunks(PADV)
        ]
        for value, _ in found:
            if (
                self.native.kind not in "iu"
                or not np.iinfo(self.native).min <= value <= np.iinfo(self.native).max
            ):
                raise FormatError(
                    f"expected a padding value of {self.native} in PADV, found {value}: the file is damaged"
                )
        return found

    def predictive_head(self) -> PredictiveHead:
        """Of a stream of the predictive coder."""
        return PredictiveHead.unpack(self.params, self.mode, self.native)

    def _open_base(self, limits: Limits, depth: int) -> Stream | None:
        """The stream that this one refines."""
        inside = self.reader.embedded(BASE)
        if inside is None:
            return None
        if depth == MAX_LAYERS or self.coder != PREDICTIVE:
            raise FormatError(
                f"expected at most {MAX_LAYERS} layers under a predictive coder, found more: the file is damaged"
            )
        base = Stream(inside, limits, depth=depth + 1)
        if (base.shape, base.native, base.tiling) != (self.shape, self.native, self.tiling):
            raise FormatError(
                f"expected the layer in BASE to be of {self.native} {self.shape} in the same slabs, found "
                f"{base.native} {base.shape}: the file is damaged"
            )
        return base

    def within(self, outer: Stream) -> Stream:
        """This layer of another stream, with what that one says of the scan around the voxels."""
        found = copy.copy(self)
        for name in ("header", "lead", "trailer", "affine", "spacing_mm", "slope", "inter"):
            setattr(found, name, getattr(outer, name))
        return found

    def preview(self, limits: Limits) -> Stream | None:
        """The reduced scan inside. FormatError if it is not one of this scan."""
        inside = self.reader.embedded(PREVIEW)
        if inside is None:
            return None
        found = Stream(inside, limits)
        shape = reduced_shape(self.tiling)
        if (found.shape, found.native) != (shape, self.native):
            raise FormatError(
                f"expected a preview of {self.native} {shape}, found {found.native} {found.shape}: the file is damaged"
            )
        return found

    def sums(self) -> NDArray[np.uint32] | None:
        """CRC-32 of the decoded voxels of every slab, if they are there."""
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
                f"expected {self.tiling.slabs} checksums in {chunk.decode()}, found {len(payload)} bytes: "
                "the file is damaged"
            )
        return np.frombuffer(payload, "<u4").astype(np.uint32)

    def lossy_head(self) -> LossyHead:
        """Of a stream of a learned coder."""
        return LossyHead.unpack(self.params, self.native)

    def info(self) -> StreamInfo:
        sizes: dict[str, int] = {}
        for section in self.reader.sections():
            sizes[section.type] = sizes.get(section.type, 0) + section.size
        original = len(self.header) + len(self.lead) + len(self.trailer)
        original += math.prod(self.shape) * self.dtype.itemsize
        if self.table is not None:
            original = sum(file.size for file in self.table.files)
        return StreamInfo(
            shape=self.shape,
            dtype=self.reader.header.dtype,
            big_endian=is_big_endian(self.dtype),
            spacing_mm=self.spacing_mm,
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
            target=None if (goal := self.reader.chunk(GOAL)) is None else Target.unpack(goal),
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
        return (
            self.predictive_head().fidelity(errors)
            if self.mode is Mode.BOUNDED
            else self.lossy_head().fidelity(errors)
        )


def geometry_meta(scan: Scan) -> dict[str, Any]:
    """What META must say of a scan without header: whatever HEAD can't, or is not the default."""
    numbers = [scan.slope, scan.inter, *([] if scan.affine is None else scan.affine.flat)]
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{scan.name}: expected a finite affine, slope and inter, found NaN or infinity; leave them out"
        )
    meta: dict[str, Any] = {}
    if scan.affine is not None:
        meta["affine"] = scan.affine.tolist()
    if np.array(scan.spacing_mm, np.float32).tolist() != list(scan.spacing_mm):
        meta["spacing_mm"] = list(scan.spacing_mm)
    if (scan.slope, scan.inter) != (1.0, 0.0):
        meta["slope"], meta["inter"] = scan.slope, scan.inter
    return meta


@contextlib.contextmanager
def opened(source: Source) -> Iterator[bytes | BinaryIO]:
    """Bytes, or a seekable file."""
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            yield file
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield source
    else:
        with seekable(source) as file:
            yield file


@contextlib.contextmanager
def seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, or a temporary copy of a pipe."""
    if source.seekable():
        yield source
        return
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.seek(0)
        yield file
