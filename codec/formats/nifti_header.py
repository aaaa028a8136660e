"""NIfTI-1 and NIfTI-2 headers as tables of fields: parsed, cropped, and written.

A header that came with a scan is kept byte for byte. Only a selection of slices or volumes, and a
.hdr/.img pair written as a single file, get a changed copy of it; voxels without a header get a
new one.

Fields: nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.codec.volume import DTYPES, Envelope, dtype_name, is_big_endian

# Bytes before or after the voxels that are accepted; more means that the header is wrong.
MAX_ENVELOPE = 64 << 20
# The largest voxel size in mm that a stream can hold.
MAX_SPACING = float(np.finfo(np.float32).max)
# The longest axis that fits the 16-bit dim of NIfTI-1.
MAX_NIFTI1_LENGTH = 32767
# NIFTI_INTENT_LABEL: the values are indices of labels.
INTENT_LABEL = 1002

# Data type codes of NIfTI and the names of the stored types.
DATATYPES = {
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
# Millimetres per unit of length, by the lowest three bits of xyzt_units.
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}

# Every field of a NIfTI-1 header in file order; quatern, qoffset and srow each join three fields.
_NIFTI1 = np.dtype(
    [
        ("sizeof_hdr", "i4"),
        ("data_type", "S10"),
        ("db_name", "S18"),
        ("extents", "i4"),
        ("session_error", "i2"),
        ("regular", "S1"),
        ("dim_info", "u1"),
        ("dim", "i2", (8,)),
        ("intent_p", "f4", (3,)),
        ("intent_code", "i2"),
        ("datatype", "i2"),
        ("bitpix", "i2"),
        ("slice_start", "i2"),
        ("pixdim", "f4", (8,)),
        ("vox_offset", "f4"),
        ("scl_slope", "f4"),
        ("scl_inter", "f4"),
        ("slice_end", "i2"),
        ("slice_code", "u1"),
        ("xyzt_units", "u1"),
        ("cal_max", "f4"),
        ("cal_min", "f4"),
        ("slice_duration", "f4"),
        ("toffset", "f4"),
        ("glmax", "i4"),
        ("glmin", "i4"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "i2"),
        ("sform_code", "i2"),
        ("quatern", "f4", (3,)),
        ("qoffset", "f4", (3,)),
        ("srow", "f4", (3, 4)),
        ("intent_name", "S16"),
        ("magic", "S4"),
    ]
)
# Every field of a NIfTI-2 header in file order.
_NIFTI2 = np.dtype(
    [
        ("sizeof_hdr", "i4"),
        ("magic", "S4"),
        ("eol_check", "S4"),
        ("datatype", "i2"),
        ("bitpix", "i2"),
        ("dim", "i8", (8,)),
        ("intent_p", "f8", (3,)),
        ("pixdim", "f8", (8,)),
        ("vox_offset", "i8"),
        ("scl_slope", "f8"),
        ("scl_inter", "f8"),
        ("cal_max", "f8"),
        ("cal_min", "f8"),
        ("slice_duration", "f8"),
        ("toffset", "f8"),
        ("slice_start", "i8"),
        ("slice_end", "i8"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "i4"),
        ("sform_code", "i4"),
        ("quatern", "f8", (3,)),
        ("qoffset", "f8", (3,)),
        ("srow", "f8", (3, 4)),
        ("slice_code", "i4"),
        ("xyzt_units", "i4"),
        ("intent_code", "i4"),
        ("intent_name", "S16"),
        ("dim_info", "u1"),
        ("unused_str", "S15"),
    ]
)
# The tables by sizeof_hdr, the first field of both.
LAYOUTS = {layout.itemsize: layout for layout in (_NIFTI1, _NIFTI2)}
# Bytes of the longest header.
MAX_HEADER_SIZE = max(LAYOUTS)
# The eol_check of NIfTI-2, damaged where a transfer has converted line ends.
_EOL_CHECK = b"\r\n\x1a\n"
# The four bytes behind the header of a single file that has no extensions.
_NO_EXTENSIONS = bytes(4)


@dataclass(frozen=True, eq=False)
class Header:
    """The checked fields of a NIfTI header."""

    # 348 (NIfTI-1) or 540 (NIfTI-2) bytes.
    size: int
    big_endian: bool
    # The voxels are in an .img file.
    pair: bool
    # Slowest axis first.
    shape: tuple[int, ...]
    # The stored type in the byte order of the file.
    dtype: np.dtype[Any]
    vox_offset: int
    affine: NDArray[np.float64]
    # Voxel size along (k, j, i).
    spacing_mm: tuple[float, float, float]
    slope: float
    inter: float
    # The intent code is that of a label map.
    labels: bool


def is_nifti(prefix: bytes) -> bool:
    """Whether decompressed bytes begin with the sizeof_hdr of NIfTI, in either byte order."""
    return _size_and_order(prefix) is not None


def parse(raw: bytes, name: str) -> Header:
    """Parse the header at the beginning of `raw`; FormatError with `name` in the message."""
    size_and_order = _size_and_order(raw)
    if size_and_order is None:
        raise FormatError(
            f"{name}: expected a NIfTI header (first 4 bytes 348 or 540), "
            f"found {raw[:4].hex(' ') or 'nothing'}; is it a NIfTI file?"
        )
    size, big_endian = size_and_order
    if len(raw) < size:
        raise Truncated(
            f"{name}: expected a header of {size} bytes, found {len(raw)}; get the file again"
        )
    fields = _fields(raw, size, big_endian)
    pair = _is_pair(fields, name)
    code = int(fields["datatype"])
    if code not in DATATYPES:
        raise FormatError(
            f"{name}: expected a NIfTI datatype code ({', '.join(map(str, DATATYPES))}), "
            f"found {code} in the header; convert the scan to one of them"
        )
    slope, inter = _scaling(float(fields["scl_slope"]), float(fields["scl_inter"]))
    return Header(
        size=size,
        big_endian=big_endian,
        pair=pair,
        shape=_shape(fields["dim"], name),
        dtype=DTYPES[DATATYPES[code]].newbyteorder(">" if big_endian else "<"),
        vox_offset=_vox_offset(float(fields["vox_offset"]), 0 if pair else size + 4, name),
        affine=_affine(fields),
        spacing_mm=_spacing(fields),
        slope=slope,
        inter=inter,
        labels=int(fields["intent_code"]) == INTENT_LABEL,
    )


def make_header(shape: tuple[int, ...], dtype: np.dtype[Any], envelope: Envelope) -> bytes:
    """A header for voxels that have none: NIfTI-1, or NIfTI-2 where an axis is longer than 32767.

    It has the geometry and the scaling of the envelope. ValueError for a type or a number of axes
    that NIfTI does not have.
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
    layout = _NIFTI1 if max(shape) <= MAX_NIFTI1_LENGTH else _NIFTI2
    header = np.zeros(1, layout.newbyteorder(">" if is_big_endian(dtype) else "<"))
    fields = header[0]
    fields["sizeof_hdr"] = layout.itemsize
    fields["magic"] = b"n+1" if layout is _NIFTI1 else b"n+2"
    if layout is _NIFTI1:
        fields["regular"] = b"r"
    else:
        fields["eol_check"] = _EOL_CHECK
    _set_dim(fields, shape)
    fields["datatype"] = next(code for code, known in DATATYPES.items() if known == name)
    fields["bitpix"] = 8 * dtype.itemsize
    fields["pixdim"] = 1.0
    fields["pixdim"][1:4] = envelope.spacing_mm[::-1]
    fields["vox_offset"] = layout.itemsize + len(_NO_EXTENSIONS)
    fields["scl_slope"], fields["scl_inter"] = envelope.slope, envelope.inter
    fields["xyzt_units"] = 2  # NIFTI_UNITS_MM
    if envelope.affine is not None:
        fields["sform_code"] = 1  # NIFTI_XFORM_SCANNER_ANAT
        fields["srow"] = envelope.affine[:3]
    return header.tobytes() + _NO_EXTENSIONS


def crop_header(header: bytes, shape: tuple[int, ...], first_slice: int) -> bytes:
    """The header of a selection: dimensions `shape`, the origin moved by `first_slice` along k."""
    parsed = parse(header, "header")
    raw = bytearray(header)
    fields = _fields(raw, parsed.size, parsed.big_endian)
    _set_dim(fields, shape)
    if int(fields["qform_code"]) > 0:
        fields["qoffset"] += _qform(fields)[:3, 2] * first_slice
    if int(fields["sform_code"]) > 0:
        fields["srow"][:, 3] += fields["srow"][:, 2] * first_slice
    return bytes(raw)


def single_file_header(header: bytes) -> bytes:
    """The .hdr of a pair as the header of a .nii: another magic, the voxels right behind it."""
    parsed = parse(header, "header")
    raw = bytearray(header)
    if len(raw) == parsed.size:
        raw += _NO_EXTENSIONS
    raw += bytes(-len(raw) % 16)
    _fields(raw, parsed.size, parsed.big_endian)["vox_offset"] = len(raw)
    magic = field_span(parsed.size, "magic").start
    raw[magic + 1] = ord("+")
    return bytes(raw)


def clear_fields(header: bytes, names: tuple[str, ...]) -> bytes:
    """The header without extensions, the named fields zero."""
    parsed = parse(header, "header")
    raw = bytearray(header[: parsed.size]) + _NO_EXTENSIONS
    for name in names:
        span = field_span(parsed.size, name)
        raw[span] = bytes(span.stop - span.start)
    fields = _fields(raw, parsed.size, parsed.big_endian)
    fields["vox_offset"] = 0 if parsed.pair else len(raw)
    return bytes(raw)


def field_span(size: int, name: str) -> slice:
    """The bytes of a field in a header of `size` bytes; KeyError if it has none of that name."""
    fields = LAYOUTS[size].fields
    assert fields is not None
    dtype, offset = fields[name][:2]
    return slice(offset, offset + dtype.itemsize)


def _size_and_order(raw: bytes) -> tuple[int, bool] | None:
    """(sizeof_hdr, big_endian), or None if it is no NIfTI header."""
    for size in LAYOUTS:
        for big_endian in (False, True):
            if raw[:4] == size.to_bytes(4, "big" if big_endian else "little"):
                return size, big_endian
    return None


def _fields(raw: bytes | bytearray, size: int, big_endian: bool) -> np.void:
    """The fields of a header; assigning to those of a bytearray changes it."""
    layout = LAYOUTS[size].newbyteorder(">" if big_endian else "<")
    fields: np.void = np.frombuffer(raw, layout, 1)[0]
    return fields


def _is_pair(fields: np.void, name: str) -> bool:
    """Whether the magic is that of a .hdr/.img pair; FormatError for one that NIfTI lacks."""
    magic = bytes(fields["magic"])
    names = fields.dtype.names or ()
    eol_check = bytes(fields["eol_check"]) if "eol_check" in names else _EOL_CHECK
    if magic[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2") or eol_check != _EOL_CHECK:
        raise FormatError(
            f"{name}: expected the NIfTI magic n+1, ni1, n+2 or ni2, found {magic!r}; "
            "an Analyze 7.5 file must be converted to NIfTI first"
        )
    return magic[:2] == b"ni"


def _set_dim(fields: np.void, shape: tuple[int, ...]) -> None:
    fields["dim"] = 1
    fields["dim"][: len(shape) + 1] = (len(shape), *shape[::-1])


def _shape(dim: NDArray[Any], name: str) -> tuple[int, ...]:
    ndim = int(dim[0])
    if not 1 <= ndim <= 7:
        raise FormatError(
            f"{name}: expected 1 to 7 dimensions, found {ndim} in the header; the header is damaged"
        )
    lengths = [int(n) for n in dim[1 : ndim + 1]]
    if min(lengths) < 1:
        raise FormatError(
            f"{name}: expected dimensions of at least 1, found {'x'.join(map(str, lengths))} "
            "in the header; it has no voxels"
        )
    return tuple(lengths[::-1])


def _vox_offset(value: float, minimum: int, name: str) -> int:
    if value == 0:  # Some writers leave it unset.
        return minimum
    if not (math.isfinite(value) and value == int(value) and minimum <= value <= MAX_ENVELOPE):
        raise FormatError(
            f"{name}: expected a vox_offset from {minimum} to {MAX_ENVELOPE}, found {value:g} "
            "in the header; the header is damaged"
        )
    return int(value)


def _scaling(slope: float, inter: float) -> tuple[float, float]:
    """(scl_slope, scl_inter), or (1, 0) where they are unset."""
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if math.isfinite(inter) else 0.0


def _unit_mm(fields: np.void) -> float:
    return _UNIT_MM.get(int(fields["xyzt_units"]) & 7, 1.0)


def _spacing(fields: np.void) -> tuple[float, float, float]:
    """(k, j, i) in mm; 1 where pixdim is no size."""
    sizes = [abs(float(size)) * _unit_mm(fields) for size in fields["pixdim"][1:4]]
    i, j, k = (size if 0 < size <= MAX_SPACING else 1.0 for size in sizes)
    return k, j, i


def _affine(fields: np.void) -> NDArray[np.float64]:
    """Voxel (i, j, k) -> RAS+ mm: sform, else qform, else pixdim (nifti1.h, methods 3, 2, 1)."""
    if int(fields["sform_code"]) > 0:
        affine = np.eye(4)
        affine[:3] = fields["srow"]
    elif int(fields["qform_code"]) > 0:
        affine = _qform(fields)
    else:
        affine = np.diag([*np.asarray(fields["pixdim"][1:4], np.float64), 1.0])
    affine[:3] *= _unit_mm(fields)
    return affine


def _qform(fields: np.void) -> NDArray[np.float64]:
    """The affine of the quaternion a + bi + cj + dk, pixdim and qoffset, in the header's units."""
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
    # pixdim[0] is qfac: -1 reverses the k axis.
    affine[:3, :3] = rotation * (pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1])
    affine[:3, 3] = fields["qoffset"]
    return affine
