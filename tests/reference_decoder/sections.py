"""FORMAT.md, "Sections": ORIG, slabs of the store coder, sample maps."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from .container import PREDICTIVE, Fields

# Offset, layout and values of the fields of a typical NIfTI-1 header that are not zero.
TYPICAL_HEADER = (
    (0, "i", (348,)), (38, "2s", (b"r9",)), (40, "8h", (3, 256, 256, 192, 1, 1, 1, 1)),
    (70, "2h", (4, 16)), (76, "8f", (-1, 1, 1, 1, 1, 0, 0, 0)), (108, "2f", (352, 1)),
    (123, "B", (10,)), (148, "30s", (b"TE=2.5;Time=120000.000;phase=1",)), (252, "2h", (1, 1)),
    (344, "4s", (b"n+1\0",)),
)  # fmt: skip


def decompress(data: bytes, dictionary: bytes = b"") -> bytes:
    """The content of one zstd frame."""
    known = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(
        dict_data=known if dictionary else None, max_window_size=1 << 23
    )
    return decompressor.decompress(data, allow_extra_data=False)


def source_file(payload: bytes | None) -> tuple[bytes, bytes]:
    """ORIG -> what stood before and after the voxels in the source file."""
    if payload is None:
        return b"", b""
    dictionary = bytearray(352)
    for offset, layout, values in TYPICAL_HEADER:
        struct.pack_into("<" + layout, dictionary, offset, *values)
    fields = Fields(payload)
    header_bytes = fields.varint()
    content = decompress(fields.rest(), bytes(dictionary))
    return content[:header_bytes], content[header_bytes:]


def byte_planes(content: bytes, size: int) -> NDArray[np.uint8]:
    """Byte 0 of every voxel, byte 1 of every voxel, ... -> bytes [voxels, size]."""
    return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(size, -1).T)


def store_slab(payload: bytes, voxels: int, size: int) -> bytes:
    """A slab of the store coder -> `voxels` little-endian voxels of `size` bytes each."""
    kind, content = payload[0], decompress(payload[1:])
    if kind > 5 or len(content) != voxels * size:
        raise ValueError(f"expected a filter 0 to 5 and {voxels * size} bytes of content")
    if kind == 0:
        return content
    planes = byte_planes(content, size)
    if kind >= 2:
        unit = 1 << (kind - 2)
        planes = np.add.accumulate(planes.view(f"<u{unit}"), axis=0, dtype=f"<u{unit}")
    return planes.tobytes()


def ordered_values(voxels: NDArray[Any]) -> list[int]:
    """Unsigned integers that rise with the voxels."""
    size = voxels.dtype.itemsize
    top = 1 << (8 * size - 1)
    bits = [int(n) for n in np.ascontiguousarray(voxels).view(f"<u{size}").reshape(-1)]
    if voxels.dtype.kind == "u":
        return bits
    if voxels.dtype.kind == "i":
        return [n ^ top for n in bits]
    return [(2 * top - 1 - n) if n & top else (n ^ top) for n in bits]


def from_ordered(ordered: list[int], voxel_type: str) -> NDArray[Any]:
    """The inverse of `ordered_values`."""
    dtype = np.dtype(voxel_type)
    top = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind == "i":
        ordered = [n ^ top for n in ordered]
    elif dtype.kind == "f":
        ordered = [(n ^ top) if n & top else (2 * top - 1 - n) for n in ordered]
    return np.array(ordered, f"<u{dtype.itemsize}").view(dtype.newbyteorder("<"))


@dataclass(frozen=True)
class SampleMap:
    """One of the kinds 0 to 5; minimum, maximum and scale as the kind has them."""

    kind: int
    voxel_type: str
    peak: int
    minimum: Any = 0
    maximum: Any = 0
    scale: Any = 1
    palette: tuple[int, ...] = ()
    low_bits: int = 0

    def voxels(self, samples: NDArray[np.int64], low: list[int] | None = None) -> NDArray[Any]:
        """Samples, and with kind 5 the low bits of each -> voxels of the same shape."""
        x = np.clip(samples.astype(np.int64), 0, self.peak)
        dtype = np.dtype(self.voxel_type)
        if self.kind <= 1:
            return np.minimum(self.minimum + x * self.scale, self.maximum).astype(dtype)
        if self.kind <= 3:
            voxels = self.minimum + x * np.float64(self.scale)
            if self.kind == 2:
                voxels = np.minimum(voxels, self.maximum)
            return voxels.astype(dtype)
        if self.kind == 4:
            ordered = [self.palette[n] for n in x.reshape(-1)]
        else:
            first = self.minimum >> self.low_bits
            low = low or [0] * x.size
            pairs = zip(x.reshape(-1), low, strict=True)
            ordered = [((int(n) + first) << self.low_bits) | bits for n, bits in pairs]
        return from_ordered(ordered, self.voxel_type).reshape(x.shape)

    def samples(self, voxels: NDArray[Any]) -> NDArray[np.int64]:
        """The samples of decoded voxels, as references have them (format/predictive.md)."""
        if self.kind <= 1:
            above = np.clip(voxels, self.minimum, self.maximum).astype(np.int64) - self.minimum
            samples = (above + self.scale // 2) // self.scale
        elif self.kind == 3:
            samples = np.rint((voxels.astype(np.float64) - self.minimum) / self.scale)
        elif self.kind == 4:
            samples = np.searchsorted(np.array(self.palette, object), ordered_values(voxels))
        else:
            first = self.minimum >> self.low_bits
            samples = np.array([(n >> self.low_bits) - first for n in ordered_values(voxels)])
        return np.clip(samples, 0, self.peak).astype(np.int64).reshape(voxels.shape)


def read_sample_map(fields: Fields, voxel_type: str, coder: int) -> SampleMap:
    kind = fields.u8()
    dtype = np.dtype(voxel_type)
    if kind <= 1:
        minimum = fields.signed()
        maximum = minimum + fields.varint()
        steps = (1 << 24) - 1 if coder == PREDICTIVE else 65535
        scale = max(1, -(-(maximum - minimum) // steps)) if kind == 1 else 1
        peak = -(-(maximum - minimum) // scale)
        return SampleMap(kind, voxel_type, peak, minimum, maximum, scale)
    if kind == 2:
        low, high = fields.numbers("2d" if dtype.itemsize >= 8 else "2f")
        return SampleMap(kind, voxel_type, 65535, low, high, (high - low) / 65535)
    if kind == 3:
        low, scale = fields.numbers("2d")
        return SampleMap(kind, voxel_type, fields.varint(), low, scale=scale)
    if kind == 4:
        entries = fields.varint()
        content = decompress(fields.take(fields.varint()))
        if len(content) != entries * dtype.itemsize:
            raise ValueError(f"expected a palette of {entries} values, found {len(content)} bytes")
        palette, last = [], 0
        for step in byte_planes(content, dtype.itemsize):
            last += int.from_bytes(step.tobytes(), "little")
            palette.append(last)
        return SampleMap(kind, voxel_type, entries - 1, palette=tuple(palette))
    if kind != 5:
        raise ValueError(f"expected a sample map of kind 0 to 5, found {kind}")
    low, high = (int.from_bytes(fields.take(8), "little") for _ in range(2))
    low_bits = max(0, (high - low).bit_length() - 24)
    while (high >> low_bits) - (low >> low_bits) >= 1 << 24:
        low_bits += 1
    peak = (high >> low_bits) - (low >> low_bits)
    return SampleMap(kind, voxel_type, peak, low, high, low_bits=low_bits)
