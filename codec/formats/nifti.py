"""NIfTI-1 and NIfTI-2 scans, read in blocks and never re-serialised.

The header and whatever else surrounds the voxels are kept as the bytes they are; only a stream without a
header, a selection of slices or volumes, and a pair written as one file get a header made or changed here.

Field offsets: nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, dtype_name, is_big_endian

MAX_AROUND = 64 << 20  # bytes of header, extensions or trailer; more means that the header lies
MAX_DEFLATE_RATIO = 1040  # deflate can't expand a byte further (zlib's technical notes: 1032)
MAX_SPACING = float(np.finfo(np.float32).max)  # in mm: what a stream holds
INTENT_LABEL = 1002
PAIR_SUFFIXES = (".hdr", ".img")

DATATYPES = {  # code -> name of the stored type
    2: "uint8",
    4: "int16",
    8: "int32",
    16: "float32",
    32: "complex64",
    64: "float64",
    128: "rgb24",
    256: "int8",
    512: "uint16",
    768: "uint32",
    1024: "int64",
    1280: "uint64",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "rgba32",
}
FREE_TEXT = {  # size of the header -> name: (offset, bytes)
    348: {
        "data_type": (4, 10),
        "db_name": (14, 18),
        "descrip": (148, 80),
        "aux_file": (228, 24),
        "intent_name": (328, 16),
    },
    540: {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)},
}
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: metre, millimetre, micrometre


def _layout(itemsize: int, fields: dict[str, tuple[str, int]]) -> np.dtype[Any]:
    names, places = list(fields), list(fields.values())
    spec = {
        "names": names,
        "formats": [kind for kind, _ in places],
        "offsets": [offset for _, offset in places],
        "itemsize": itemsize,
    }
    return np.dtype(spec)  # type: ignore[call-overload, no-any-return]


_NIFTI1 = _layout(
    348,
    {
        "sizeof_hdr": ("i4", 0),
        "regular": ("S1", 38),
        "dim": ("(8,)i2", 40),
        "intent_code": ("i2", 68),
        "datatype": ("i2", 70),
        "bitpix": ("i2", 72),
        "pixdim": ("(8,)f4", 76),
        "vox_offset": ("f4", 108),
        "scl_slope": ("f4", 112),
        "scl_inter": ("f4", 116),
        "xyzt_units": ("u1", 123),
        "qform_code": ("i2", 252),
        "sform_code": ("i2", 254),
        "quatern": ("(3,)f4", 256),
        "qoffset": ("(3,)f4", 268),
        "srow": ("(3,4)f4", 280),
        "magic": ("S4", 344),
    },
)
_NIFTI2 = _layout(
    540,
    {
        "sizeof_hdr": ("i4", 0),
        "magic": ("V8", 4),
        "datatype": ("i2", 12),
        "bitpix": ("i2", 14),
        "dim": ("(8,)i8", 16),
        "pixdim": ("(8,)f8", 104),
        "vox_offset": ("i8", 168),
        "scl_slope": ("f8", 176),
        "scl_inter": ("f8", 184),
        "qform_code": ("i4", 344),
        "sform_code": ("i4", 348),
        "quatern": ("(3,)f8", 352),
        "qoffset": ("(3,)f8", 376),
        "srow": ("(3,4)f8", 400),
        "xyzt_units": ("i4", 500),
        "intent_code": ("i4", 504),
    },
)
_LAYOUTS = {348: _NIFTI1, 540: _NIFTI2}
_MAGIC2_TAIL = b"\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI header says, checked."""

    size: int  # 348 (NIfTI-1) or 540 (NIfTI-2)
    big_endian: bool
    pair: bool
    shape: tuple[int, ...]  # slowest axis first
    dtype: np.dtype[Any]  # in the byte order of the file
    vox_offset: int
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]  # (k, j, i)
    slope: float
    inter: float
    labels: bool


def accept(prefix: bytes) -> bool:
    """Whether decompressed bytes begin with the header size of NIfTI-1 or NIfTI-2 in either byte order."""
    return len(prefix) >= 4 and _recognise(prefix) is not None


def parse(raw: bytes, name: str) -> Header:
    """Read the header at the beginning of `raw`; raises FormatError with `name` in the message."""
    kind = _recognise(raw)
    if kind is None:
        found = raw[:4].hex(" ") or "nothing"
        raise FormatError(
            f"{name}: expected a NIfTI header (first 4 bytes 348 or 540), found {found}; is it a NIfTI file?"
        )
    size, big_endian = kind
    if len(raw) < size:
        raise Truncated(
            f"{name}: expected a header of {size} bytes, found {len(raw)}; get the file again"
        )
    fields = np.frombuffer(raw, _LAYOUTS[size].newbyteorder(">" if big_endian else "<"), 1)[0]
    magic = bytes(fields["magic"].tobytes())
    if magic[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2") or (
        size == 540 and magic[4:] != _MAGIC2_TAIL
    ):
        raise FormatError(
            f"{name}: expected the NIfTI magic n+1, ni1, n+2 or ni2, found {magic!r}; "
            "an Analyze 7.5 file must be converted to NIfTI first"
        )
    code = int(fields["datatype"])
    if code not in DATATYPES:
        raise FormatError(
            f"{name}: expected a NIfTI datatype code ({', '.join(map(str, DATATYPES))}), found {code} in the "
            "header; convert the scan to one of them"
        )
    pair = magic[:2] == b"ni"
    return Header(
        size,
        big_endian,
        pair,
        _shape(fields["dim"], name),
        DTYPES[DATATYPES[code]].newbyteorder(">" if big_endian else "<"),
        _vox_offset(float(fields["vox_offset"]), size, pair, name),
        _affine(fields),
        _spacing(fields),
        *_scaling(float(fields["scl_slope"]), float(fields["scl_inter"])),
        labels=int(fields["intent_code"]) == INTENT_LABEL,
    )


class NiftiScan:
    """A .nii, .nii.gz or .hdr/.img pair as a `volume.Scan`; one slab in memory at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float]
    slope: float
    inter: float
    header: bytes
    lead: bytes
    declared_labels: bool
    chunks: Iterable[tuple[bytes, bytes]] = ()

    def __init__(self, source: str | os.PathLike[str] | BinaryIO, name: str) -> None:
        self.name = name
        self._files: list[BinaryIO] = []
        self._trailer = b""
        try:
            if isinstance(source, (str, os.PathLike)):
                self._open_path(Path(source))
            else:
                self._open_file(open_decompressed(source), _stored_size(source))
        except BaseException:
            self.close()
            raise

    def _open_path(self, path: Path) -> None:
        first, second = pair_paths(path) or (path, None)
        header_file = self._open(first)
        if second is None or not parse(peek(header_file, 540, self.name), self.name).pair:
            self._open_file(header_file, first.stat().st_size, path)
            return
        whole = _read_up_to(header_file, MAX_AROUND + 1, self.name)
        if len(whole) > MAX_AROUND:
            raise FormatError(
                f"{first}: expected a header, found more than {MAX_AROUND} bytes; is it the .hdr file?"
            )
        self._set(whole, parse(whole, str(first)))
        self._voxels = self._open(second)
        self.lead = _read_exactly(self._voxels, self._parsed.vox_offset, str(second))
        self._check_size(second.stat().st_size, self._voxels)

    def _open_file(self, file: BinaryIO, stored_size: int, path: Path | None = None) -> None:
        parsed = parse(peek(file, 540, self.name), self.name)
        if parsed.pair:
            where = (
                "give the path of its .hdr file"
                if path is None
                else "name the two files .hdr and .img"
            )
            raise FormatError(
                f"{self.name}: expected a single file, found the header of a .hdr/.img pair; {where}"
            )
        self._set(_read_exactly(file, parsed.vox_offset, self.name), parsed)
        self._voxels = file
        self._check_size(stored_size, file)

    def _open(self, path: Path) -> BinaryIO:
        file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._files.append(file)
        return open_decompressed(file)

    def _set(self, header: bytes, parsed: Header) -> None:
        self._parsed = parsed
        self.header, self.lead = header, b""
        self.shape, self.dtype = parsed.shape, parsed.dtype
        self.affine, self.spacing_mm = parsed.affine, parsed.spacing_mm
        self.slope, self.inter = parsed.slope, parsed.inter
        self.declared_labels = parsed.labels

    def _check_size(self, stored_size: int, file: BinaryIO) -> None:
        """Refuse a header that promises more than the file can hold, before anything is allocated from it."""
        needed = self._parsed.vox_offset + math.prod(self.shape) * self.dtype.itemsize
        gzipped = isinstance(file, gzip.GzipFile)
        if needed > stored_size * (MAX_DEFLATE_RATIO if gzipped else 1):
            raise Truncated(
                f"{self.name}: expected {needed} bytes for {'x'.join(map(str, self.shape[::-1]))} voxels of "
                f"{self.dtype.name}, found {stored_size}{' compressed' if gzipped else ''}; "
                "the header lies or the file is cut short"
            )

    @property
    def trailer(self) -> bytes:
        return self._trailer

    def gzip_file(self) -> BinaryIO | None:
        """The file as it is stored, if it is one .nii.gz."""
        return (
            None if self._parsed.pair else getattr(self._voxels, "fileobj", None)
        )  # of a GzipFile alone

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        _seek(self._voxels, self._parsed.vox_offset, self.name)
        per_volume = [tiling.slab_shape(n) for n in range(tiling.slabs_per_volume)]
        for _ in range(tiling.volumes):
            if tiling.axis == 0:
                for shape in per_volume:
                    yield self._read(shape)
            else:
                yield from tiling.cut(self._read(tiling.volume_shape))
        self._trailer = _read_up_to(self._voxels, MAX_AROUND + 1, self.name)
        if len(self._trailer) > MAX_AROUND:
            raise FormatError(
                f"{self.name}: expected the end of the file after the voxels of the header's dimensions, "
                f"found more than {MAX_AROUND} further bytes; the header lies about the dimensions"
            )

    def _read(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        array = np.empty(shape, self.dtype)
        _read_into(self._voxels, array.reshape(-1).view(np.uint8).data, self.name)
        return array.astype(self.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        for file in self._files:
            file.close()


def make_header(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    spacing_mm: tuple[float, float, float],
    affine: NDArray[np.float64] | None,
    slope: float,
    inter: float,
) -> bytes:
    """A new header for voxels that came without one: NIfTI-1, or NIfTI-2 where an axis is longer than 32767.

    Raises ValueError for a type or a number of axes that NIfTI does not have.
    """
    if len(shape) > 7:
        raise ValueError(
            f"expected at most 7 axes for NIfTI, found {len(shape)}; reshape the array"
        )
    name = "uint8" if dtype.kind == "b" else dtype_name(dtype)
    if name not in DATATYPES.values():
        raise ValueError(
            f"expected a type that NIfTI has, found {name}; decode it in Python and convert it"
        )
    code = next(code for code, known in DATATYPES.items() if known == name)
    layout = _NIFTI1 if max(shape) <= 32767 else _NIFTI2
    fields = np.zeros(1, layout.newbyteorder(">" if is_big_endian(dtype) else "<"))
    header = fields[0]
    header["sizeof_hdr"] = layout.itemsize
    header["dim"] = 1
    header["dim"][: len(shape) + 1] = (len(shape), *shape[::-1])
    header["datatype"], header["bitpix"] = code, 8 * dtype.itemsize
    header["pixdim"] = 1.0
    header["pixdim"][1:4] = spacing_mm[::-1]
    header["vox_offset"] = layout.itemsize + 4
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["xyzt_units"] = 2
    if affine is not None:
        header["sform_code"] = 1  # NIFTI_XFORM_SCANNER_ANAT
        header["srow"] = affine[:3]
    if layout is _NIFTI1:
        header["regular"] = b"r"
        header["magic"] = b"n+1"
    else:
        header["magic"] = np.void(b"n+2\0" + _MAGIC2_TAIL)
    return fields.tobytes() + bytes(4)


def crop_header(header: bytes, shape: tuple[int, ...], first_slice: int) -> bytes:
    """The header of a selection: the dimensions of `shape`, the origin moved by `first_slice` along k."""
    parsed = parse(header, "header")
    raw = bytearray(header)
    layout = _LAYOUTS[parsed.size].newbyteorder(">" if parsed.big_endian else "<")
    fields = np.frombuffer(raw, layout, 1)[0]
    fields["dim"] = 1
    fields["dim"][: len(shape) + 1] = (len(shape), *shape[::-1])
    if int(fields["qform_code"]) > 0:
        fields["qoffset"] += _qform(fields)[:3, 2] * first_slice
    if int(fields["sform_code"]) > 0:
        fields["srow"][:, 3] += fields["srow"][:, 2] * first_slice
    return bytes(raw)


def bare_header(header: bytes) -> bytes:
    """The header without free text and without extensions."""
    parsed = parse(header, "header")
    raw = bytearray(header[: parsed.size]) + bytes(4)
    for offset, size in FREE_TEXT[parsed.size].values():
        raw[offset : offset + size] = bytes(size)
    fields = np.frombuffer(
        raw, _LAYOUTS[parsed.size].newbyteorder(">" if parsed.big_endian else "<"), 1
    )[0]
    fields["vox_offset"] = 0 if parsed.pair else len(raw)
    return bytes(raw)


def single_file_header(header: bytes) -> bytes:
    """The header of a pair as that of one file: other magic, the voxels right behind it."""
    parsed = parse(header, "header")
    raw = bytearray(header)
    if len(raw) == parsed.size:
        raw += bytes(4)  # no extensions
    raw += bytes(-len(raw) % 16)
    fields = np.frombuffer(
        raw, _LAYOUTS[parsed.size].newbyteorder(">" if parsed.big_endian else "<"), 1
    )[0]
    fields["vox_offset"] = len(raw)
    place = 344 if parsed.size == 348 else 4
    raw[place + 1 : place + 2] = b"+"
    return bytes(raw)


def open_decompressed(file: BinaryIO) -> BinaryIO:
    """The file itself, or its decompressed content if it is gzip; seekable either way."""
    start = file.tell()
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(start)
    return gzip.GzipFile(fileobj=file, mode="rb") if gzipped else file  # type: ignore[return-value]


def _recognise(raw: bytes) -> tuple[int, bool] | None:
    for size in _LAYOUTS:
        for big_endian in (False, True):
            if raw[:4] == size.to_bytes(4, "big" if big_endian else "little"):
                return size, big_endian
    return None


def _shape(dim: NDArray[Any], name: str) -> tuple[int, ...]:
    ndim = int(dim[0])
    if not 1 <= ndim <= 7:
        raise FormatError(
            f"{name}: expected 1 to 7 dimensions, found {ndim} in the header; the header is damaged"
        )
    lengths = [int(n) for n in dim[1 : ndim + 1]]
    if min(lengths) < 1:
        raise FormatError(
            f"{name}: expected dimensions of at least 1, found {'x'.join(map(str, lengths))} in the header; "
            "there are no voxels to code"
        )
    return tuple(lengths[::-1])


def _vox_offset(value: float, size: int, pair: bool, name: str) -> int:
    least = 0 if pair else size + 4
    if value == 0:  # "unset" in files of some writers
        return least
    if not (math.isfinite(value) and value == int(value) and least <= value <= MAX_AROUND):
        raise FormatError(
            f"{name}: expected the voxels between byte {least} and {MAX_AROUND}, found vox_offset "
            f"{value:g} in the header; the header lies"
        )
    return int(value)


def _scaling(slope: float, inter: float) -> tuple[float, float]:
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if math.isfinite(inter) else 0.0


def _unit(fields: np.void) -> float:
    return _UNIT_MM.get(int(fields["xyzt_units"]) & 7, 1.0)


def _spacing(fields: np.void) -> tuple[float, float, float]:
    values = [abs(float(v)) * _unit(fields) for v in fields["pixdim"][1:4]]
    i, j, k = (v if 0 < v <= MAX_SPACING else 1.0 for v in values)
    return k, j, i


def _affine(fields: np.void) -> NDArray[np.float64]:
    """sform, else qform, else the voxel sizes (nifti1.h, methods 3, 2 and 1), in millimetres."""
    if int(fields["sform_code"]) > 0:
        affine = np.eye(4)
        affine[:3] = fields["srow"]
    elif int(fields["qform_code"]) > 0:
        affine = _qform(fields)
    else:
        affine = np.diag([*np.asarray(fields["pixdim"][1:4], np.float64), 1.0])
    affine[:3] *= _unit(fields)
    return affine


def _qform(fields: np.void) -> NDArray[np.float64]:
    b, c, d = (float(v) for v in fields["quatern"])
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    pixdim = np.asarray(fields["pixdim"], np.float64)
    affine = np.eye(4)
    affine[:3, :3] = rotation * (pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1])
    affine[:3, 3] = fields["qoffset"]
    return affine


def header_path(path: str | os.PathLike[str]) -> Path:
    """The file with the header: the .hdr file of a pair given either, else the path itself."""
    return (pair_paths(Path(path)) or (Path(path),))[0]


def pair_paths(path: Path) -> tuple[Path, Path] | None:
    """The .hdr and .img files of a pair, given either; None for another name."""
    stem, gz = (path.with_suffix(""), path.suffix) if path.suffix.lower() == ".gz" else (path, "")
    if stem.suffix.lower() not in PAIR_SUFFIXES:
        return None
    hdr, img = (".HDR", ".IMG") if stem.suffix.isupper() else (".hdr", ".img")
    return stem.with_suffix(hdr + gz), stem.with_suffix(img + gz)


def _stored_size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size - here


def peek(file: BinaryIO, count: int, name: str) -> bytes:
    """The next bytes, up to `count`, without moving on; FormatError for damaged gzip data."""
    start = file.tell()
    data = _read_up_to(file, count, name)
    _seek(file, start, name)
    return data


def _seek(file: BinaryIO, position: int, name: str) -> None:
    try:
        file.seek(position)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from error


def _read_up_to(file: BinaryIO, count: int, name: str) -> bytes:
    parts: list[bytes] = []
    try:
        while count > 0 and (part := file.read(min(count, 1 << 20))):
            parts.append(part)
            count -= len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from error
    return b"".join(parts)


def _read_exactly(file: BinaryIO, count: int, name: str) -> bytes:
    data = _read_up_to(file, count, name)
    if len(data) < count:
        raise Truncated(
            f"{name}: expected {count} bytes before the voxels, found {len(data)}; "
            "the header lies or the file is cut short"
        )
    return data


def _read_into(file: BinaryIO, view: memoryview, name: str) -> None:
    done = 0
    try:
        while done < len(view) and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += count
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from error
    if done < len(view):
        raise Truncated(
            f"{name}: expected {len(view) - done} further bytes of voxels, found the end of the file; "
            "the header lies or the file is cut short"
        )


def _damaged(name: str, error: Exception) -> FormatError:
    if isinstance(error, EOFError):
        return Truncated(
            f"{name}: expected the end of the gzip data, found the end of the file; get the file again"
        )
    return FormatError(
        f"{name}: expected sound gzip data, found damage ({error}); get the file again"
    )
