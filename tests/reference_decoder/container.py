"""FORMAT.md, "Container": chunks, HEAD, the division into slabs, ENDX."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

MAGIC = b"\x89MRC\r\n\x1a\n"
LOSSLESS, LOSSY, BOUNDED = 0, 1, 2
STORE, PREDICTIVE, LEARNED = 0, 1, 2

# Voxel type on the wire -> numpy type; V: bytes that no arithmetic touches.
VOXEL_TYPES = {
    1: "u1", 2: "i1", 3: "u2", 4: "i2", 5: "u4", 6: "i4", 7: "u8", 8: "i8", 9: "f4", 10: "f8",
    11: "V16", 12: "c8", 13: "c16", 14: "V32", 15: "V3", 16: "V4", 17: "?", 18: "f2",
}  # fmt: skip
KNOWN = {"HEAD", "ORIG", "META", "DICM", "DHDR", "DRAW", "STCK", "PADV", "BASE", "SLAB", "ENDX"}


class Fields:
    """Reads the fields of a payload from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise ValueError(f"expected {count} bytes more, found the end of the payload")
        self.position += count
        return self.data[self.position - count : self.position]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)

    def end(self) -> None:
        if self.position != len(self.data):
            raise ValueError(f"expected the end, found {len(self.data) - self.position} bytes more")

    def u8(self) -> int:
        return self.take(1)[0]

    def numbers(self, layout: str) -> tuple[float, ...]:
        """Little-endian numbers by their letters in `struct`."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.u8()
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift > 0:
                    break
                return value
        raise ValueError("expected a varint below 2**63 in as few bytes as possible")

    def signed(self) -> int:
        """A varint that is the zigzag of a number."""
        return unzigzag(self.varint())


def unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


@dataclass(frozen=True)
class Header:
    """The fields of HEAD."""

    mode: int
    coder: int
    voxel_type: str
    flags: int
    shape: tuple[int, ...]
    slab_axis: int
    slab_slices: int
    model_id: bytes
    spacing_mm: tuple[float, ...]
    params: bytes

    @property
    def stored_type(self) -> str:
        """The numpy type with the byte order of the source."""
        return (">" if self.flags & 1 else "<") + self.voxel_type

    @property
    def volume_shape(self) -> tuple[int, ...]:
        return (1, 1, 1, *self.shape)[-3:]

    @property
    def volumes(self) -> int:
        return math.prod(self.shape[:-3])

    def slab_shapes(self) -> list[tuple[int, int, int]]:
        """[K, J, I] of the slabs of one volume, in order."""
        length = self.volume_shape[self.slab_axis]
        rows, columns = (n for axis, n in enumerate(self.volume_shape) if axis != self.slab_axis)
        count = -(-length // self.slab_slices)
        if 0 in self.volume_shape:
            return []
        slices = [self.slab_slices] * (count - 2)
        if count >= 2:
            rest = length - (count - 2) * self.slab_slices
            slices.append(min(self.slab_slices, 8 * -(-rest // 16)))
        if count >= 1:
            slices.append(length - sum(slices))
        return [(n, rows, columns) for n in slices]


def read_header(payload: bytes) -> Header:
    fields = Fields(payload)
    mode, coder, voxel_type, flags, dimensions = fields.take(5)
    if mode > BOUNDED or voxel_type not in VOXEL_TYPES or flags > 3 or dimensions == 0:
        raise ValueError(f"expected a known mode, voxel type and flags, found {payload[:5].hex()}")
    header = Header(
        mode,
        coder,
        VOXEL_TYPES[voxel_type],
        flags,
        tuple(fields.varint() for _ in range(dimensions)),
        fields.u8(),
        fields.varint(),
        fields.take(8),
        fields.numbers("3f"),
        fields.take(fields.varint()),
    )
    fields.end()
    if header.slab_axis > 2 or header.slab_slices < 1:
        raise ValueError("expected slabs of at least one slice along axis 0, 1 or 2")
    return header


@dataclass(frozen=True)
class Stream:
    """What is in a stream: HEAD, the payloads by type in file order, the digest."""

    header: Header
    chunks: dict[str, list[bytes]]
    digest: bytes

    @property
    def slabs(self) -> list[bytes]:
        return self.chunks.get("SLAB", [])

    def only(self, kind: str) -> bytes | None:
        payloads = self.chunks.get(kind, [])
        if len(payloads) > 1:
            raise ValueError(f"expected at most one chunk {kind}, found {len(payloads)}")
        return payloads[0] if payloads else None


def read_chunks(data: bytes) -> list[tuple[str, bytes]]:
    """Type and payload of every chunk, each CRC checked."""
    if data[:10] != MAGIC + b"\1\0":
        raise ValueError("expected the magic of an mricodec stream of version 1")
    position, chunks = 10, []
    while position < len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"expected {length} bytes in {kind!r}, found the end of the file")
        if zlib.crc32(data[position:end]) != struct.unpack_from("<I", data, end)[0]:
            raise ValueError(f"expected the chunk {kind!r} to match its CRC, found a difference")
        chunks.append((kind.decode("ascii"), data[position + 8 : end]))
        position = end + 4
    return chunks


def read_stream(data: bytes) -> Stream:
    chunks = read_chunks(data)
    kinds = [kind for kind, _ in chunks]
    unknown = [kind for kind in kinds if kind[0].isupper() and kind not in KNOWN]
    if unknown:
        raise ValueError(f"expected critical chunks of version 1, found {unknown[0]}")
    if kinds[0] != "HEAD" or kinds[-1] != "ENDX" or kinds.count("HEAD") + kinds.count("ENDX") != 2:
        raise ValueError(f"expected HEAD first and ENDX last, found {kinds}")
    first, last = [*kinds, "SLAB"].index("SLAB"), len(kinds) - 1
    if kinds[first : first + kinds.count("SLAB")].count("SLAB") != kinds.count("SLAB"):
        raise ValueError("expected the slabs in one run, found a chunk between them")
    header = read_header(chunks[0][1])
    index = Fields(chunks[last][1])
    digest = index.take(32 if header.mode == LOSSLESS else 16)
    sizes = [index.varint() for _ in range(index.varint())]
    if index.numbers("I") != (len(chunks[last][1]),):
        raise ValueError("expected the length of ENDX at its end, found another")
    index.end()
    by_kind: dict[str, list[bytes]] = {}
    for kind, payload in chunks:
        by_kind.setdefault(kind, []).append(payload)
    if sizes != [len(payload) for payload in by_kind.get("SLAB", [])]:
        raise ValueError("expected the slabs that ENDX lists, found others")
    return Stream(header, by_kind, digest)
