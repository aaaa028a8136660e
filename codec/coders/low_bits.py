"""The low bits of numbers that are too wide for prediction: stored as they are, or under zstd."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.sections import pack_store, unpack_store

# Numbers by which zstd is tried.
SAMPLE = 1 << 14
# Size relative to the bits as they are from which on zstd is worth its time.
MIN_GAIN = 0.98
# Numbers that are packed at once; a multiple of 8, so that parts begin at whole bytes.
PART = 1 << 20
_AS_THEY_ARE, _STORED = b"\0", b"\1"


def pack_low(low: NDArray[np.uint64], bits: int) -> bytes:
    """Integers [n] below 2**bits: 0 and their bits, or 1 and a slab of the store coder."""
    size = -(-bits // 8)
    planes = low.astype("<u8").reshape(-1, 1).view(np.uint8)[:, :size]
    sampled = len(pack_store(planes[:SAMPLE].tobytes(), size))
    if 8 * sampled < MIN_GAIN * bits * min(low.size, SAMPLE):
        packed = pack_store(planes.tobytes(), size)
        return _STORED + pack_varint(len(packed)) + packed
    parts = []
    for first in range(0, low.size, PART):
        part = planes[first : first + PART]
        flags = np.unpackbits(part, axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(flags, bitorder="little").tobytes())
    return _AS_THEY_ARE + b"".join(parts)


def unpack_low(fields: ByteReader, count: int, bits: int) -> NDArray[np.uint64]:
    """The inverse of `pack_low`: [count]. FormatError if the bytes are damaged."""
    size = -(-bits // 8)
    planes = np.zeros((count, 8), np.uint8)
    if fields.take(1) == _STORED:
        content = unpack_store(fields.take(fields.varint()), count * size, size)
        planes[:, :size] = np.frombuffer(content, np.uint8).reshape(count, size)
    else:
        content = fields.take(-(-count * bits // 8))
        for first in range(0, count, PART):
            part = planes[first : first + PART]
            raw = np.frombuffer(content, np.uint8, -(-len(part) * bits // 8), first * bits // 8)
            flags = np.unpackbits(raw, count=len(part) * bits, bitorder="little")
            part[:, :size] = np.packbits(flags.reshape(-1, bits), axis=1, bitorder="little")
    numbers: NDArray[np.uint64] = planes.view("<u8").reshape(-1).astype(np.uint64)
    return numbers & np.uint64((1 << bits) - 1)
