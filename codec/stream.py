"""An opened stream: its header checked against itself, and what it says of the scan."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.container import (
    BASE,
    DICM,
    LATTICE,
    LEARNED_INEXACT,
    META,
    ORIG,
    PADV,
    STORE,
    ContainerReader,
    Flags,
    Limits,
    Mode,
    Span,
)
from mricodec.bitstream.errors import FormatError, LimitExceeded
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.files import FileTable, unpack_padding
from mricodec.bitstream.sections import unpack_meta, unpack_orig

from . import gzipping, nifti
from .codemaps import CodeMap, Exact, Grid, unpack_map
from .fidelity import STEP_RANGE
from .intensity import EXACT_SPAN, Intensity
from .preview import reduced_shape
from .rate_control import Target
from .tiling import Tiling
from .volume import DTYPES, Scan, is_big_endian

ERRORS = b"eRRS"  # ancillary: what the voxels of a stream that is not lossless differ by, and what SUMS holds elsewhere
ERRORS_BYTES = 4
GOAL = b"gOAL"  # ancillary: the PSNR or size that was asked for
SUMS = b"sUMS"  # ancillary: CRC-32 of the decoded voxels of every slab of a lossless stream
PREVIEW = b"pREV"  # ancillary: a stream of the scan, reduced in its slices
MAX_SLAB_VOXELS = 1 << 28
MAX_LAYERS = 2  # below the finest

Source = bytes | str | os.PathLike[str] | BinaryIO
Progress = Callable[[float], None]  # called with the fraction done


@dataclass(frozen=True)
class Fidelity:
    """How far a lossy stream is from the scan, in stored units."""

    sigma_hat: float  # estimated noise of the scan
    step: float  # quantiser step
    rmse: float
    max_error: float
    peak: float  # maximum - minimum of the scan

    @property
    def psnr(self) -> float:
        """dB, with the range of the scan as peak; infinite if no voxel differs."""
        ratio = self.peak / self.rmse if self.rmse > 0 else math.inf
        return 20 * math.log10(ratio) if ratio > 0 else -math.inf


@dataclass(frozen=True)
class StreamInfo:
    """What a stream says of itself without being decoded."""

    shape: tuple[int, ...]
    dtype: str
    big_endian: bool
    spacing_mm: tuple[float, float, float]  # (k, j, i)
    mode: str  # "lossless", "lossy" or "bounded"
    coder: str  # "store", "lattice" or "learned"
    model_id: str  # hexadecimal; "" for none
    slabs: int
    slab_axis: str  # "k", "j" or "i"
    slab_slices: int
    sections: tuple[tuple[str, int], ...]  # type and bytes of every kind of chunk, framing included
    stream_bytes: int
    original_bytes: int  # of the scan, uncompressed, with its header
    fidelity: Fidelity | None  # of a lossy or bounded stream
    exact: bool  # every machine decodes to the same voxels
    sha256: str  # of the original bytes (lossless); of the decoded voxels, its first half (lossy, bounded)
    files: int = 0  # of a series; 0 for a scan that was one file
    target: Target | None = None  # PSNR or size that was asked for
    max_error: float | None = None  # of a bounded stream, in stored units: no voxel differs by more
    layers: tuple[str, ...] = ()  # modes of the streams inside that this one refines, the coarsest first
    preview: bool = False  # there is a reduced version that decodes alone
    gzip: str | None = None  # how the .nii.gz that it was is made again, None if it was none or can't be

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
        return 8 * self.stream_bytes / max(1, math.prod(self.shape))


@dataclass(frozen=True)
class LatticeHead:
    """HEAD.params of the lattice coder: map | chain varint | if bounded: error varint, bound f64, sigma_hat f32.

    chain: a volume whose number is no multiple of it is coded beside the ones before; 0: none is.
    """

    codes: CodeMap
    chain: int = 0
    max_error: int = 0  # in codes
    bound: float = 0.0  # what was asked for, in stored units
    sigma: float = 0.0

    def pack(self, mode: Mode) -> bytes:
        head = self.codes.pack() + pack_varint(self.chain)
        if mode is Mode.BOUNDED:
            head += pack_varint(self.max_error) + struct.pack("<df", self.bound, self.sigma)
        return head

    @classmethod
    def unpack(cls, params: bytes, mode: Mode, dtype: np.dtype[Any]) -> LatticeHead:
        fields = ByteReader(params, "HEAD")
        codes, chain = unpack_map(fields, dtype), fields.varint()
        if mode is Mode.LOSSLESS:
            head = cls(codes, chain)
        else:
            head = cls(codes, chain, fields.varint(), *struct.unpack("<df", fields.take(12)))
            sound = 0 < head.bound < math.inf and 0 <= head.sigma < math.inf and head.max_error < EXACT_SPAN
            if mode is not Mode.BOUNDED or not sound:
                raise FormatError("expected a largest error and a noise in HEAD, found none: the file is damaged")
        fields.end()
        return head

    @property
    def peak(self) -> float:
        """Maximum - minimum of the scan, or just beyond."""
        if isinstance(self.codes, Exact):
            return float(self.codes.intensity.maximum - self.codes.intensity.minimum)
        return self.codes.peak * self.codes.scale if isinstance(self.codes, Grid) else 0.0

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in units of the bound."""
        return _half(rmse / self.bound) + _half(max_error / self.bound)

    def fidelity(self, errors: bytes) -> Fidelity:
        """Of a bounded stream, from the payload of the chunk ERRORS."""
        rmse, max_error = _errors(errors, self.bound)
        step = (2 * self.max_error + 1) * self.peak / self.codes.peak if self.codes.peak else 0.0
        return Fidelity(self.sigma, step, rmse, max_error, self.peak)


@dataclass(frozen=True)
class LossyHead:
    """HEAD.params of a learned coder: step f32 (codes) | sigma_hat f16 (steps) | map of intensities."""

    step: float
    sigma: float  # in stored units
    intensity: Intensity

    def pack(self) -> bytes:
        scale = float(self.intensity.scale)
        return struct.pack("<f", self.step) + _half(self.sigma / (self.step * scale)) + self.intensity.pack()

    @classmethod
    def unpack(cls, params: bytes, dtype: np.dtype[Any]) -> LossyHead:
        fields = ByteReader(params, "HEAD")
        step, sigma = struct.unpack("<fe", fields.take(6))
        least, largest = STEP_RANGE
        if not (least <= step <= largest and sigma >= 0):
            raise FormatError(
                f"expected a step from {least:g} to {largest:g} and a noise in HEAD, "
                f"found {step:g} and {sigma:g}: the file is damaged"
            )
        intensity = Intensity.unpack(fields, dtype)
        fields.end()
        return cls(step, sigma * step * float(intensity.scale), intensity)

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in steps."""
        unit = self.step * float(self.intensity.scale)
        return _half(rmse / unit) + _half(max_error / unit)

    def fidelity(self, errors: bytes) -> Fidelity:
        """In stored units, from the payload of the chunk ERRORS."""
        unit = self.step * float(self.intensity.scale)
        peak = float(self.intensity.maximum - self.intensity.minimum)
        return Fidelity(self.sigma, unit, *_errors(errors, unit), peak)


class Stream:
    """A stream opened and checked, nothing decoded. FormatError if it contradicts itself."""

    def __init__(self, source: bytes | BinaryIO | Span, limits: Limits, *, salvage: bool = False, depth: int = 0) -> None:
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
            parsed = nifti.parse(around, "ORIG")
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
            self._set_geometry(unpack_meta(meta, limits.max_metadata_bytes) if meta is not None else {})
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
            raise LimitExceeded(f"expected at most {MAX_SLAB_VOXELS} voxels in a slab, found {voxels}")

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
        found = [unpack_padding(payload, pictures, j * i, limit) for payload in self.reader.chunks(PADV)]
        for value, _ in found:
            if self.native.kind not in "iu" or not np.iinfo(self.native).min <= value <= np.iinfo(self.native).max:
                raise FormatError(f"expected a padding value of {self.native} in PADV, found {value}: the file is damaged")
        return found

    def lattice_head(self) -> LatticeHead:
        """Of a stream of the lattice coder."""
        return LatticeHead.unpack(self.params, self.mode, self.native)

    def _open_base(self, limits: Limits, depth: int) -> Stream | None:
        """The stream that this one refines."""
        inside = self.reader.embedded(BASE)
        if inside is None:
            return None
        if depth == MAX_LAYERS or self.coder != LATTICE:
            raise FormatError(f"expected at most {MAX_LAYERS} layers under a lattice coder, found more: the file is damaged")
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
            coder={STORE: "store", LATTICE: "lattice"}.get(self.coder, "learned"),
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
            max_error=self.lattice_head().bound if self.mode is Mode.BOUNDED else None,
            layers=self._layers(),
            preview=self.reader.has(PREVIEW),
            gzip=self._gzip(),
        )

    def _layers(self) -> tuple[str, ...]:
        return () if self.base is None else (*self.base._layers(), self.base.mode.name.lower())

    def _gzip(self) -> str | None:
        payload = self.reader.chunk(gzipping.CHUNK)
        return None if payload is None else str(gzipping.Wrapper.unpack(payload))

    def _fidelity(self) -> Fidelity | None:
        errors = self.reader.chunk(ERRORS)
        if self.mode is Mode.LOSSLESS or errors is None:
            return None
        return self.lattice_head().fidelity(errors) if self.mode is Mode.BOUNDED else self.lossy_head().fidelity(errors)


def _errors(payload: bytes, unit: float) -> tuple[float, float]:
    """Root mean square and largest error from the chunk ERRORS, in stored units."""
    if len(payload) < ERRORS_BYTES:
        raise FormatError(f"expected two errors in {ERRORS.decode()}, found {len(payload)} bytes: the file is damaged")
    rmse, max_error = struct.unpack("<ee", payload[:ERRORS_BYTES])
    if not (rmse >= 0 and max_error >= 0):
        raise FormatError(
            f"expected two errors from 0 on in {ERRORS.decode()}, found {rmse:g} and {max_error:g}: "
            "the file is damaged"
        )
    return rmse * unit, max_error * unit


def _half(value: float) -> bytes:
    """float16, rounded up: an error is never understated. Infinite where float16 ends."""
    half = np.float16(min(value, float(np.finfo(np.float16).max)))
    if float(half) < value:
        half = np.nextafter(half, np.float16(np.inf))
    return struct.pack("<e", half)


def geometry_meta(scan: Scan) -> dict[str, Any]:
    """What META must say of a scan without header: whatever HEAD can't, or is not the default."""
    numbers = [scan.slope, scan.inter, *([] if scan.affine is None else scan.affine.flat)]
    if not np.isfinite(numbers).all():
        raise ValueError(f"{scan.name}: expected a finite affine, slope and inter, found NaN or infinity; leave them out")
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
