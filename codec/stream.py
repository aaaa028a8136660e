"""An opened stream: its header checked against itself, and what it says of the scan."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.container import (
    DICM,
    LATTICE,
    META,
    ORIG,
    PADV,
    STORE,
    ContainerReader,
    Flags,
    Limits,
    Mode,
)
from mricodec.bitstream.errors import FormatError, LimitExceeded
from mricodec.bitstream.fields import ByteReader
from mricodec.bitstream.files import FileTable, unpack_padding
from mricodec.bitstream.sections import unpack_meta, unpack_orig

from . import nifti
from .fidelity import STEP_RANGE
from .intensity import Intensity
from .rate_control import Target
from .slabcoding import LEARNED_INEXACT
from .tiling import Tiling
from .volume import DTYPES, Scan, is_big_endian

ERRORS = b"eRRS"  # ancillary: what a lossy stream's voxels differ by
GOAL = b"gOAL"  # ancillary: the PSNR or size that was asked for
MAX_SLAB_VOXELS = 1 << 28

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
    mode: str  # "lossless" or "lossy"
    coder: str  # "store", "lattice" or "learned"
    model_id: str  # hexadecimal; "" for none
    slabs: int
    slab_axis: str  # "k", "j" or "i"
    slab_slices: int
    sections: tuple[tuple[str, int], ...]  # type and bytes of every kind of chunk, framing included
    stream_bytes: int
    original_bytes: int  # of the scan, uncompressed, with its header
    fidelity: Fidelity | None  # of a lossy stream
    exact: bool  # every machine decodes to the same voxels
    sha256: str  # of the original bytes (lossless) or of the decoded voxels (lossy)
    files: int = 0  # of a series; 0 for a scan that was one file
    target: Target | None = None  # PSNR or size that was asked for

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
        return 8 * self.stream_bytes / max(1, math.prod(self.shape))


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
        """Payload of the chunk ERRORS, from stored units: two f16, in steps."""
        unit = self.step * float(self.intensity.scale)
        return _half(rmse / unit) + _half(max_error / unit)

    def fidelity(self, errors: bytes) -> Fidelity:
        """In stored units, from the payload of the chunk ERRORS."""
        if len(errors) != 4:
            raise FormatError(
                f"expected 4 bytes in {ERRORS.decode()}, found {len(errors)}: the file is damaged"
            )
        unit = self.step * float(self.intensity.scale)
        rmse, max_error = struct.unpack("<ee", errors)
        if not (rmse >= 0 and max_error >= 0):
            raise FormatError(
                f"expected two errors from 0 on in {ERRORS.decode()}, found {rmse:g} and {max_error:g}: "
                "the file is damaged"
            )
        peak = float(self.intensity.maximum - self.intensity.minimum)
        return Fidelity(self.sigma, unit, rmse * unit, max_error * unit, peak)


class Stream:
    """A stream opened and checked, nothing decoded. FormatError if it contradicts itself."""

    def __init__(self, source: bytes | BinaryIO, limits: Limits) -> None:
        self.reader = ContainerReader(source, limits)
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
        self.table = None if table is None else FileTable.unpack(table, limits.max_metadata_bytes)
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

    def _check_slabs(self) -> None:
        if 0 in self.shape and (self.table is None or self.table.tiles or self.reader.slab_count):
            raise FormatError(
                f"expected at least one voxel, found shape {self.shape} in HEAD: the file is damaged"
            )
        if 0 not in self.shape and self.reader.slab_count != self.tiling.slabs:
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

    def intensity(self) -> Intensity:
        """Of a stream of the lattice coder."""
        fields = ByteReader(self.params, "HEAD")
        intensity = Intensity.unpack(fields, self.native)
        fields.end()
        return intensity

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
        )

    def _fidelity(self) -> Fidelity | None:
        if self.mode is not Mode.LOSSY:
            return None
        errors = self.reader.chunk(ERRORS)
        return None if errors is None else self.lossy_head().fidelity(errors)


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
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.seek(0)
        yield file
