"""ORIG, META and slabs of the store coder: payloads under zstd (FORMAT.md, "Sections").

Each is zstd with the content size declared, which is held against a limit before anything is
allocated.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, LimitExceeded, Truncated
from .fields import ByteReader, pack_varint

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The first bytes of a zstd frame; zstd also has frames that are skipped, and hold nothing.
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_BEST_LEVEL = 19
# The level for voxels: the best is 15 times as slow and gains 1 %.
_FAST_LEVEL = 9
# Bytes above which the best level would take seconds.
_BEST_BYTES = 1 << 18
# Binary logarithm of the window of the best level; no other has a larger one.
_MAX_WINDOW_LOG = 23
# A zstd block takes at least _MIN_BLOCK bytes and expands to at most _BLOCK bytes.
_BLOCK = 1 << 17
_MIN_BLOCK = 4

# Filters of the store coder: the voxels as they are; byte planes.
PLAIN, PLANES = 0, 1
# Filters that take differences and then byte planes -> bytes of the integers they differ.
_DIFFERENCE = {2: 1, 3: 2, 4: 4, 5: 8}
# Bytes of the voxels by which the filter is chosen.
_SAMPLE = 1 << 18


def _typical_nifti_header() -> bytes:
    """352 bytes: a 3-D int16 scan as dcm2niix writes it.

    It is the zstd prefix in ORIG, and part of the format.
    """
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)  # sizeof_hdr
    struct.pack_into("<2s", header, 38, b"r9")  # regular, dim_info
    struct.pack_into("<8h", header, 40, 3, 256, 256, 192, 1, 1, 1, 1)  # dim
    struct.pack_into("<2h", header, 70, 4, 16)  # datatype, bitpix
    struct.pack_into("<8f", header, 76, -1, 1, 1, 1, 1, 0, 0, 0)  # pixdim
    struct.pack_into("<2f", header, 108, 352, 1)  # vox_offset, scl_slope
    struct.pack_into("<B", header, 123, 10)  # xyzt_units: mm, s
    struct.pack_into("<30s", header, 148, b"TE=2.5;Time=120000.000;phase=1")  # descrip
    struct.pack_into("<2h", header, 252, 1, 1)  # qform_code, sform_code
    struct.pack_into("<4s", header, 344, b"n+1\0")  # magic
    return bytes(header)


ORIG_PREFIX = _typical_nifti_header()


def compress(
    data: bytes, level: int = _BEST_LEVEL, prefix: bytes = b"", best_bytes: int = _BEST_BYTES
) -> bytes:
    """One zstd frame with its content size; more than ``best_bytes`` are compressed faster."""
    if len(data) > best_bytes:
        level = min(level, _FAST_LEVEL)
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.dict_id_flag: 0,
    }
    return zstd.compress(data, options=options, zstd_dict=_dictionary(prefix))


def decompress(data: bytes, limit: int, name: str, prefix: bytes = b"") -> bytes:
    """The content of one zstd frame, at most ``limit`` bytes; ``name`` says where, in messages.

    FormatError if it is not exactly one frame; LimitExceeded if it declares more than the limit.
    """
    try:
        frame = zstd.get_frame_info(data)
    except zstd.ZstdError:
        frame = None
    if frame is None or not data.startswith(_FRAME_MAGIC):
        raise FormatError(
            f"expected a zstd frame in {name}, found {len(data)} other bytes: the file is damaged"
        )
    size = cast("int | None", frame.decompressed_size)  # None if the frame doesn't declare it.
    dictionary = frame.dictionary_id
    if size is None or size > (len(data) // _MIN_BLOCK + 1) * _BLOCK or dictionary != 0:
        raise FormatError(
            f"expected a zstd frame that declares its content size and no dictionary in {name}, "
            f"found size {size} and dictionary {dictionary} in {len(data)} bytes: the file is "
            "damaged"
        )
    if size > limit:
        raise LimitExceeded(
            f"expected at most {limit} bytes in {name} when decompressed, found {size}: "
            "the file is damaged, or the limit too low"
        )
    decompressor = zstd.ZstdDecompressor(
        zstd_dict=_dictionary(prefix),
        options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG},
    )
    try:
        content = decompressor.decompress(data, max_length=size + 1)
    except zstd.ZstdError as error:
        raise FormatError(
            f"expected {size} bytes in {name}, found damaged zstd data ({error})"
        ) from None
    if len(content) != size or not decompressor.eof or decompressor.unused_data:
        raise FormatError(
            f"expected one zstd frame of {size} bytes in {name}, found {len(content)} and "
            f"{len(decompressor.unused_data)} behind it: the file is damaged"
        )
    return content


def pack_orig(header: bytes, trailer: bytes) -> bytes:
    """ORIG: the source file's bytes before and after the voxels."""
    return pack_varint(len(header)) + compress(header + trailer, prefix=ORIG_PREFIX)


def unpack_orig(payload: bytes, limit: int) -> tuple[bytes, bytes]:
    """ORIG -> header, trailer; together at most ``limit`` bytes."""
    fields = ByteReader(payload, "ORIG")
    length = fields.varint()
    content = decompress(fields.take(fields.left), limit, "ORIG", ORIG_PREFIX)
    if length > len(content):
        raise FormatError(
            f"expected {length} bytes of header in ORIG, found {len(content)}: the file is damaged"
        )
    return content[:length], content[length:]


def pack_meta(meta: dict[str, Any]) -> bytes:
    """META: a JSON object. ValueError on NaN or infinity, TypeError on what is not JSON."""
    text = json.dumps(meta, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return compress(text.encode("utf-8", "surrogatepass"))


def unpack_meta(payload: bytes, limit: int) -> dict[str, Any]:
    """META -> the JSON object, at most ``limit`` bytes as text."""
    text = decompress(payload, limit, "META")
    try:
        meta = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise FormatError(
            f"expected JSON in META, found none ({kind}): the file is damaged"
        ) from None
    if not isinstance(meta, dict):
        raise FormatError(f"expected a JSON object in META, found {type(meta).__name__}")
    return meta


def pack_store(data: bytes, itemsize: int, level: int = _FAST_LEVEL) -> bytes:
    """A slab of the store coder: little-endian voxels of ``itemsize`` bytes, filtered, under zstd.

    The filter, one byte in front, is the best of all on a sample of the voxels.
    """
    if itemsize < 1 or len(data) % itemsize:
        raise ValueError(f"expected whole voxels of {itemsize} bytes, found {len(data)} bytes")
    voxels = np.frombuffer(data, np.uint8).reshape(-1, itemsize)
    sample = _sample(voxels)
    filters = [PLAIN, PLANES, *(f for f, unit in _DIFFERENCE.items() if itemsize % unit == 0)]
    best = min(filters, key=lambda f: len(compress(_filtered(sample, f), level)))
    return bytes((best,)) + compress(_filtered(voxels, best), level)


def unpack_store(payload: bytes, nbytes: int, itemsize: int) -> bytes:
    """Inverse of ``pack_store``; FormatError if there are not ``nbytes`` bytes of voxels."""
    if itemsize < 1 or nbytes % itemsize:
        raise ValueError(f"expected whole voxels of {itemsize} bytes, found {nbytes} bytes")
    if not payload:
        raise Truncated(
            "expected a filter byte in a stored slab, found no bytes: the file is damaged"
        )
    kind = payload[0]
    unit = _DIFFERENCE.get(kind, 1)
    if kind > max(_DIFFERENCE) or itemsize % unit:
        raise FormatError(
            f"expected a filter for voxels of {itemsize} bytes in a stored slab, found {kind}"
        )
    content = decompress(payload[1:], nbytes, "a stored slab")
    if len(content) != nbytes:
        raise FormatError(
            f"expected {nbytes} bytes in a stored slab, found {len(content)}: the file is damaged"
        )
    if kind == PLAIN:
        return content
    voxels = np.frombuffer(content, np.uint8).reshape(itemsize, -1).T.copy()
    if kind in _DIFFERENCE:
        integers = voxels.view(f"<u{unit}")
        np.add.accumulate(integers, axis=0, dtype=integers.dtype, out=integers)
    return voxels.tobytes()


def _filtered(voxels: NDArray[np.uint8], kind: int) -> bytes:
    """voxels [n, itemsize] -> bytes in the order of the filter."""
    if kind == PLAIN:
        return voxels.tobytes()
    if kind in _DIFFERENCE:
        integers = np.ascontiguousarray(voxels).view(f"<u{_DIFFERENCE[kind]}")
        difference = integers.copy()
        difference[1:] -= integers[:-1]
        voxels = difference.view(np.uint8)
    return voxels.T.tobytes()


def _sample(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to _SAMPLE bytes of voxels [n, itemsize], in four runs spread over all of them."""
    n, itemsize = voxels.shape
    run = _SAMPLE // itemsize // 4
    if n <= 4 * run:
        return voxels
    return np.concatenate(
        [voxels[start : start + run] for start in np.linspace(0, n - run, 4).astype(np.intp)]
    )


def _dictionary(prefix: bytes) -> zstd.ZstdDict | None:
    return zstd.ZstdDict(prefix, is_raw=True) if prefix else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
