"""The file: magic, version, chunks, and an index of the slabs at its end (FORMAT.md, "Container").

    magic 8 | version u16 | HEAD | ORIG? | META? | DICM? ... | BASE? | SLAB ... | ENDX

A chunk is a type (four letters), a length, the payload and a CRC-32. The reader checks everything but the
slabs when it opens a stream, and each slab when it is asked for. Nothing is allocated from a number in the
stream that has not been held against ``Limits`` and against the bytes that are there.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import BinaryIO

from .errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated, UnsupportedVersion
from .fields import ByteReader, pack_varint

MAGIC = b"\x89MRC\r\n\x1a\n"
VERSION = 1
FRAMING = 12  # bytes of a chunk beyond its payload: type, length, CRC

HEAD, ORIG, META, BASE, SLAB, END = b"HEAD", b"ORIG", b"META", b"BASE", b"SLAB", b"ENDX"
_ONCE_BEFORE_SLABS = (HEAD, ORIG, META, BASE)  # in this order
# of a series of files: their table, what surrounds the voxels, other bytes, further stacks, padding voxels
DICM, DHDR, DRAW, STCK, PADV = b"DICM", b"DHDR", b"DRAW", b"STCK", b"PADV"
_SERIES = (DICM, DHDR, DRAW, STCK, PADV)  # any number of them, in any order, before the slabs

STORE = 0  # coder: byte planes and zstd
PREDICTIVE = 1  # coder: prediction from neighbours, without loss or within a bound
LEARNED = 2  # coder: the learned lossy models; which one, the model id says
LEARNED_INEXACT = 3  # the same, but samples (not latents) may differ by rounding between machines

# name -> (code on the wire, bytes per voxel). Append only.
DTYPES = MappingProxyType(
    {
        "uint8": (1, 1),
        "int8": (2, 1),
        "uint16": (3, 2),
        "int16": (4, 2),
        "uint32": (5, 4),
        "int32": (6, 4),
        "uint64": (7, 8),
        "int64": (8, 8),
        "float32": (9, 4),
        "float64": (10, 8),
        "float128": (11, 16),
        "complex64": (12, 8),
        "complex128": (13, 16),
        "complex256": (14, 32),
        "rgb24": (15, 3),
        "rgba32": (16, 4),
        "bool": (17, 1),
        "float16": (18, 2),
    }
)
_DTYPE_NAMES = {code: name for name, (code, _) in DTYPES.items()}

_CRC_PIECE = 1 << 20
_MAX_SPACING = 3.4e38  # fits a float32; not NaN, not infinite
_ENDX_FIXED = 16 + 4  # digest of at least 16 bytes, and payload length
_DIAGNOSED_CHUNKS = 10_000  # how far a file without an end is searched for what is wrong


class Mode(IntEnum):
    LOSSLESS = 0
    LOSSY = 1
    BOUNDED = 2  # lossy, with a largest error


class Flags(IntFlag):
    BIG_ENDIAN = 1  # the source file's voxels were big-endian
    BACKGROUND = 2  # a background value is restored exactly


_NO_FLAGS = Flags(0)
_ALL_FLAGS = int(Flags.BIG_ENDIAN | Flags.BACKGROUND)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reader takes on. The defaults are beyond any scan, yet within a workstation's reach."""

    max_voxels: int = 1 << 34  # 32 GiB of 16-bit voxels
    max_dims: int = 16
    max_slabs: int = 1 << 18
    max_chunk_bytes: int = 1 << 30
    max_chunks: int = 4096  # other than slabs
    max_metadata_bytes: int = 1 << 27  # ORIG, META or a chunk of a series, decompressed
    max_files: int = 1 << 18  # of a series; 16 times as many pictures


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class StreamHeader:
    """The HEAD chunk.

    mode: lossless or lossy.
    coder: STORE, PREDICTIVE or the number of a learned coder.
    dtype: a name of ``DTYPES``, the voxels as stored in the source.
    shape: slowest axis first, so that the last three are [k, j, i].
    slab_axis: which of [k, j, i] slabs cut; a shape of fewer axes is filled up in front with 1.
    slab_slices: slices of that axis in a slab, at least 1.
    model_id: first 8 bytes of the SHA-256 of the weights; zero for none.
    spacing_mm: of k, j, i; 0 where unknown; kept as float32.
    params: belong to the coder.
    """

    mode: Mode
    coder: int
    dtype: str
    shape: tuple[int, ...]
    slab_axis: int = 0
    slab_slices: int = 1
    flags: Flags = _NO_FLAGS
    model_id: bytes = bytes(8)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    params: bytes = b""

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per voxel."""
        return DTYPES[self.dtype][1]

    def pack(self) -> bytes:
        """The payload of HEAD. ValueError if a field has a value that the format cannot say."""
        self._check(ValueError)
        return b"".join(
            (
                bytes((self.mode, self.coder, DTYPES[self.dtype][0], self.flags, len(self.shape))),
                *map(pack_varint, self.shape),
                bytes((self.slab_axis,)),
                pack_varint(self.slab_slices),
                self.model_id,
                struct.pack("<3f", *self.spacing_mm),
                pack_varint(len(self.params)),
                self.params,
            )
        )

    @classmethod
    def unpack(cls, payload: bytes, limits: Limits = DEFAULT_LIMITS) -> StreamHeader:
        """FormatError if the payload is not a header; LimitExceeded if it is one beyond ``limits``."""
        fields = ByteReader(payload, "HEAD")
        mode, coder, dtype_code, flags, ndim = fields.take(5)
        if mode not in tuple(Mode):
            raise UnsupportedVersion(f"expected mode 0 to 2, found {mode} in HEAD: update mricodec")
        if dtype_code not in _DTYPE_NAMES:
            raise UnsupportedVersion(
                f"expected a voxel type 1 to {len(DTYPES)}, found {dtype_code}: update mricodec"
            )
        if flags & ~_ALL_FLAGS:
            raise UnsupportedVersion(
                f"expected flags below 4, found {flags} in HEAD: update mricodec"
            )
        if ndim > limits.max_dims:
            raise LimitExceeded(
                f"expected at most {limits.max_dims} dimensions, found {ndim}: raise Limits.max_dims"
            )
        shape = tuple(fields.varint() for _ in range(ndim))
        header = cls(
            mode=Mode(mode),
            coder=coder,
            dtype=_DTYPE_NAMES[dtype_code],
            shape=shape,
            slab_axis=fields.take(1)[0],
            slab_slices=fields.varint(),
            flags=Flags(flags),
            model_id=fields.take(8),
            spacing_mm=struct.unpack("<3f", fields.take(12)),
            params=fields.take(fields.varint()),
        )
        fields.end()
        if math.prod(max(n, 1) for n in shape) > limits.max_voxels:  # an axis of 0 hides nothing
            raise LimitExceeded(
                f"expected at most {limits.max_voxels} voxels, found a shape of {shape}: "
                "if you trust the file, raise Limits.max_voxels"
            )
        header._check(FormatError)
        return header

    def _check(self, error: type[ValueError]) -> None:
        if int(self.flags) & ~_ALL_FLAGS:
            raise error(f"expected flags of {list(Flags)}, found {self.flags!r}")
        if not 0 <= self.coder <= 255 or len(self.model_id) != 8:
            raise error(
                f"expected coder 0..255 and 8 bytes of model id, found {self.coder}, {self.model_id!r}"
            )
        if self.dtype not in DTYPES:
            raise error(f"expected a voxel type of {', '.join(DTYPES)}, found {self.dtype}")
        if not 1 <= len(self.shape) <= 255 or min(self.shape) < 0 or max(self.shape) >= 1 << 63:
            raise error(f"expected 1 to 255 dimensions, none negative, found shape {self.shape}")
        if self.slab_axis not in (0, 1, 2) or not 1 <= self.slab_slices < 1 << 63:
            raise error(
                f"expected slabs along axis 0..2, found {self.slab_slices} slices of axis {self.slab_axis}"
            )
        if not all(0 <= s <= _MAX_SPACING for s in self.spacing_mm):
            raise error(f"expected three spacings in mm, zero or positive, found {self.spacing_mm}")


@dataclass(frozen=True, slots=True)
class Span:
    """A stream inside another: a part of its bytes."""

    fetch: Callable[[int, int], bytes]  # (offset, size) of the whole
    offset: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the part, fewer at its end."""
        return self.fetch(self.offset + offset, max(0, min(size, self.size - offset)))


@dataclass(frozen=True, slots=True)
class Section:
    """A chunk in a file: where it begins and how many bytes it takes, framing included."""

    type: str
    offset: int
    size: int


class ContainerWriter:
    """Writes a stream from front to back; never seeks.

    Order: ``chunk`` ORIG, META, those of a series, ``embed`` BASE (all but the series' at most once), ``slab`` ...,
    ancillary ``chunk`` s before or after the slabs, ``finish``. ValueError on any other order.
    """

    def __init__(self, file: BinaryIO, header: StreamHeader) -> None:
        payload = header.pack()
        self._file = file
        self._digest_bytes = digest_bytes(header.mode)
        self._lengths: list[int] = []
        self._last_ordered = 0  # index in _ONCE_BEFORE_SLABS
        self._after_slabs = False
        self._finished = False
        self.size = 0  # bytes written so far
        self._write(MAGIC + struct.pack("<H", VERSION))
        self._write_chunk(HEAD, payload)

    def chunk(self, type: bytes, payload: bytes) -> None:
        """ORIG, META, a chunk of a series or an ancillary one (first letter lower case)."""
        if len(type) != 4 or not type.isalpha():
            raise ValueError(f"expected a chunk type of four ASCII letters, found {type!r}")
        if type in (ORIG, META):
            position = _ONCE_BEFORE_SLABS.index(type)
            if position <= self._last_ordered or self._lengths:
                raise ValueError(
                    f"expected ORIG, then META, once each and before the slabs, found {type.decode()}"
                )
            self._last_ordered = position
        elif type in _SERIES:
            if self._lengths:
                raise ValueError(f"expected {type.decode()} before the slabs, found it after them")
        elif not _is_ancillary(type):
            raise ValueError(
                "expected ORIG, META, a chunk of a series or an ancillary one (lower case first), "
                f"found {type.decode()}"
            )
        self._write_chunk(type, payload)
        self._after_slabs = bool(self._lengths)

    def embed(self, stream: BinaryIO, size: int) -> None:
        """BASE: a whole stream of `size` bytes, read from where the file stands."""
        if self._last_ordered >= _ONCE_BEFORE_SLABS.index(BASE) or self._lengths or size >= 1 << 32:
            raise ValueError(
                f"expected one BASE below 4 GiB before the slabs, found another or {size} bytes"
            )
        self._last_ordered = _ONCE_BEFORE_SLABS.index(BASE)
        start = BASE + struct.pack("<I", size)
        crc = zlib.crc32(start)
        self._write(start)
        for _, count in _pieces(0, size):
            piece = stream.read(count)
            if len(piece) != count:
                raise ValueError(
                    f"expected a stream of {size} bytes for BASE, found its end before"
                )
            crc = zlib.crc32(piece, crc)
            self._write(piece)
        self._write(struct.pack("<I", crc))

    def slab(self, payload: bytes) -> None:
        """The next slab."""
        if self._after_slabs:
            raise ValueError("expected all slabs in one run, found a chunk between them")
        self._write_chunk(SLAB, payload)
        self._lengths.append(len(payload))

    def finish(self, digest: bytes) -> None:
        """digest: SHA-256 of the original file's bytes if lossless; of the decoded voxels, its first half, if not."""
        if len(digest) != self._digest_bytes:
            raise ValueError(
                f"expected a digest of {self._digest_bytes} bytes, found {len(digest)}"
            )
        index = b"".join(
            (digest, pack_varint(len(self._lengths)), *map(pack_varint, self._lengths))
        )
        self._write_chunk(END, index + struct.pack("<I", len(index) + 4))
        self._finished = True

    def _write_chunk(self, type: bytes, payload: bytes) -> None:
        if self._finished:
            raise ValueError(f"expected nothing after finish(), found a chunk {type.decode()}")
        if len(payload) >= 1 << 32:
            raise ValueError(
                f"expected a payload below 4 GiB, found {len(payload)} bytes for {type.decode()}"
            )
        start = type + struct.pack("<I", len(payload))
        self._write(start)
        self._write(payload)
        self._write(struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class ContainerReader:
    """Reads a stream that is complete: bytes, or a seekable binary file.

    Opening reads and checks all of it except the slabs; a slab is read and checked when asked for. Threads
    may share a reader. FormatError (one of errors.py) on bad bytes.

    salvage: a file that is cut short or whose index is damaged is read as far as its chunks go, and a damaged chunk
    beside HEAD and the slabs counts as missing; then `damaged` is true, and slabs may be fewer than they should be.
    """

    def __init__(
        self,
        source: bytes | bytearray | memoryview | BinaryIO | Span,
        limits: Limits = DEFAULT_LIMITS,
        *,
        salvage: bool = False,
    ) -> None:
        self.limits = limits
        self._fetch, self.size = _fetcher(source)
        start = len(MAGIC) + 2
        check_magic(self._read(0, min(self.size, 1024)))

        head = self._chunk_at(start)
        if head.type != "HEAD":
            raise FormatError(
                f"expected the chunk HEAD at byte {start}, found {head.type}: the file is damaged"
            )
        self.header = StreamHeader.unpack(self._payload(head), limits)
        self.damaged = False
        self._salvage = salvage
        try:
            end = self._find_end()
            self.digest, lengths = _unpack_index(self._payload(end), self.header.mode, limits)
            self._sections = self._walk(head, lengths, end)
        except FormatError:
            if not salvage:
                raise
            self.damaged, self.digest = True, bytes(digest_bytes(self.header.mode))
            self._sections = self._walk_as_far_as_possible(head)
        self._slabs = [section for section in self._sections if section.type == "SLAB"]

    @property
    def slab_count(self) -> int:
        return len(self._slabs)

    def slab(self, i: int) -> bytes:
        """The payload of slab i. IndexError beyond ``slab_count``."""
        if not 0 <= i < len(self._slabs):
            raise IndexError(f"expected a slab below {len(self._slabs)}, found {i}")
        return self._payload(self._slabs[i])

    def chunk(self, type: bytes) -> bytes | None:
        """The payload of the one chunk of this type, or None. FormatError if there are several."""
        name = type.decode("ascii")
        found = [section for section in self._sections if section.type == name]
        if len(found) > 1:
            raise FormatError(f"expected one chunk {name}, found {len(found)}: the file is damaged")
        return self._payload(found[0]) if found else None

    def chunks(self, type: bytes) -> Iterator[bytes]:
        """The payloads of all chunks of this type, in file order, each read when it is asked for."""
        name = type.decode("ascii")
        for section in self._sections:
            if section.type == name:
                yield self._payload(section)

    def has(self, type: bytes) -> bool:
        """Whether there is a chunk of this type."""
        return any(section.type.encode() == type for section in self._sections)

    def embedded(self, type: bytes) -> Span | None:
        """The stream that the one chunk of this type holds, or None. Its CRC was checked when this one was opened."""
        found = [section for section in self._sections if section.type.encode() == type]
        if len(found) > 1:
            raise FormatError(
                f"expected one chunk {type.decode()}, found {len(found)}: the file is damaged"
            )
        return Span(self._fetch, found[0].offset + 8, found[0].size - FRAMING) if found else None

    def sections(self) -> list[Section]:
        """Every chunk in file order. Their sizes and the 10 bytes in front add up to ``size``."""
        return list(self._sections)

    def verify(self) -> None:
        """Checks every byte of the container, slabs included; decodes nothing."""
        for section in self._slabs:
            self._check_crc(section)

    def _find_end(self) -> Section:
        """ENDX, from the length in front of the file's last CRC."""
        length = struct.unpack("<I", self._read(self.size - 8, 4))[0]
        offset = self.size - FRAMING - length
        first = len(MAGIC) + 2 + FRAMING
        if length >= _ENDX_FIXED + 1 and offset >= first and self._read(offset, 4) == END:
            end = self._chunk_at(offset)
            if end.offset + end.size == self.size:
                return end
        # There is no end where it should be. Walk the chunks to say what is wrong.
        offset = len(MAGIC) + 2
        for _ in range(_DIAGNOSED_CHUNKS):
            if offset == self.size:
                break
            section = self._chunk_at(offset)
            offset += section.size
            if section.type == "ENDX":
                raise FormatError(
                    f"expected the file to end with the chunk ENDX at byte {offset}, found "
                    f"{self.size - offset} bytes more or a wrong length in it: the file is damaged"
                )
        raise Truncated(
            f"expected the chunk ENDX at the end, found none in {self.size} bytes: "
            "the file is cut short; get it again"
        )

    def _walk(self, head: Section, lengths: list[int], end: Section) -> list[Section]:
        """All chunks in order; checks order, index, and the CRC of all but the slabs."""
        slab_bytes = sum(lengths) + FRAMING * len(lengths)
        sections = [head]
        others = 2  # HEAD and ENDX
        ordered = 0
        slabs_seen = False
        offset = head.offset + head.size
        while offset < end.offset:
            section = self._chunk_at(offset)
            kind = section.type.encode()
            if kind == SLAB:
                if slabs_seen or not lengths or offset + slab_bytes > end.offset:
                    raise FormatError(
                        f"expected {len(lengths)} slabs of {slab_bytes} bytes in one run, as the index says, "
                        f"found another chunk SLAB at byte {offset}: the file is damaged"
                    )
                slabs_seen = True
                for length in lengths:
                    sections.append(Section("SLAB", offset, length + FRAMING))
                    offset += length + FRAMING
                continue
            if kind in _ONCE_BEFORE_SLABS:
                position = _ONCE_BEFORE_SLABS.index(kind)
                if position <= ordered or slabs_seen:
                    raise FormatError(
                        f"expected HEAD, ORIG, META, BASE, once each and before the slabs, found {section.type} "
                        f"at byte {offset}: the file is damaged"
                    )
                ordered = position
            elif kind in _SERIES:
                if slabs_seen:
                    raise FormatError(
                        f"expected {section.type} before the slabs, found it at byte {offset}, after them: "
                        "the file is damaged"
                    )
            elif kind == END:
                raise FormatError(
                    f"expected one chunk ENDX, at byte {end.offset}, found another at byte {offset}: "
                    "the file is damaged"
                )
            elif not _is_ancillary(kind):
                raise UnsupportedVersion(
                    f"expected chunks that this version knows, found the critical chunk {section.type} "
                    f"at byte {offset}: update mricodec"
                )
            sections.append(section)
            others += 1
            if others > self.limits.max_chunks:
                raise LimitExceeded(
                    f"expected at most {self.limits.max_chunks} chunks beside slabs, found more: "
                    "if you trust the file, raise Limits.max_chunks"
                )
            try:
                self._check_crc(section)
            except ChecksumMismatch:
                if not self._salvage:
                    raise
                self.damaged = True
                sections.pop()
            offset += section.size
        if offset != end.offset or (lengths and not slabs_seen):
            raise FormatError(
                f"expected {len(lengths)} slabs and the chunk ENDX at byte {end.offset}, as the index says, "
                f"found that the chunks end at byte {offset}: the file is damaged"
            )
        sections.append(end)
        return sections

    def _walk_as_far_as_possible(self, head: Section) -> list[Section]:
        """The chunks from HEAD on until one makes no sense."""
        sections = [head]
        offset = head.offset + head.size
        while len(sections) < self.limits.max_slabs + self.limits.max_chunks:
            try:
                section = self._chunk_at(offset)
            except FormatError:
                break
            offset += section.size
            kind = section.type.encode()
            if kind == SLAB:
                sections.append(section)
            elif kind in _ONCE_BEFORE_SLABS or _is_ancillary(kind):
                with contextlib.suppress(FormatError):
                    self._check_crc(section)
                    sections.append(section)
        return sections

    def _chunk_at(self, offset: int) -> Section:
        """The chunk that begins at ``offset``: a sound type, a length that the file and the limits allow."""
        if offset + FRAMING > self.size:
            raise Truncated(
                f"expected a chunk at byte {offset}, found the end of the file at byte {self.size}: "
                "the file is cut short; get it again"
            )
        kind, length = struct.unpack("<4sI", self._read(offset, 8))
        if not kind.isalpha():
            raise FormatError(
                f"expected a chunk type at byte {offset}, found {kind!r}: the file is damaged"
            )
        if offset + FRAMING + length > self.size:
            raise Truncated(
                f"expected {length} bytes in the chunk {kind.decode()} at byte {offset}, found "
                f"{self.size - offset - FRAMING}: the file is cut short; get it again"
            )
        if length > self.limits.max_chunk_bytes and kind != BASE:  # which is never read as a whole
            raise LimitExceeded(
                f"expected at most {self.limits.max_chunk_bytes} bytes in a chunk, found {length} in "
                f"{kind.decode()} at byte {offset}: if you trust the file, raise Limits.max_chunk_bytes"
            )
        return Section(kind.decode(), offset, length + FRAMING)

    def _payload(self, section: Section) -> bytes:
        """The payload of a chunk, its CRC checked, and its type and length compared with the section."""
        data = self._read(section.offset, section.size)
        start = section.type.encode() + struct.pack("<I", section.size - FRAMING)
        if data[:8] != start:
            raise _start_error(section, data[:8])
        if zlib.crc32(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise _crc_error(section)
        return data[8:-4]

    def _check_crc(self, section: Section) -> None:
        """As ``_payload``, in pieces and without keeping any."""
        start = section.type.encode() + struct.pack("<I", section.size - FRAMING)
        found = self._read(section.offset, 8)
        if found != start:
            raise _start_error(section, found)
        crc = zlib.crc32(start)
        for offset, size in _pieces(section.offset + 8, section.size - FRAMING):
            crc = zlib.crc32(self._read(offset, size), crc)
        if crc != struct.unpack("<I", self._read(section.offset + section.size - 4, 4))[0]:
            raise _crc_error(section)

    def _read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        data = self._fetch(offset, size)
        if len(data) != size:
            raise Truncated(
                f"expected {size} bytes at byte {offset}, found {len(data)}: the file changed while read"
            )
        return data


def _fetcher(
    source: bytes | bytearray | memoryview | BinaryIO | Span,
) -> tuple[Callable[[int, int], bytes], int]:
    """A function (offset, size) -> bytes that threads may share, and the size of the source in bytes."""
    if isinstance(source, Span):
        return source.read, source.size
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source).cast("B")
        return lambda offset, size: bytes(view[offset : offset + size]), len(view)
    file, lock = source, threading.Lock()

    def fetch(offset: int, size: int) -> bytes:
        with lock:
            file.seek(offset)
            return file.read(size)

    return fetch, file.seek(0, os.SEEK_END)


def check_magic(start: bytes) -> None:
    """FormatError, saying what it is instead, unless ``start`` (up to 1024 bytes) begins a stream."""
    if start[:8] != MAGIC:
        raise FormatError(f"expected an mricodec stream, found {_recognise(start)}")
    if len(start) < 10:
        raise Truncated(
            f"expected a version at byte 8, found the end of the file at byte {len(start)}: get it again"
        )
    version = struct.unpack("<H", start[8:10])[0]
    if version != VERSION:
        raise UnsupportedVersion(
            f"expected format version {VERSION}, found version {version}: update mricodec"
        )


def _recognise(start: bytes) -> str:
    """What a file is that is not ours, and what to do."""
    if not start:
        return "no bytes at all: get the file again"
    if MAGIC.startswith(start):
        return f"only its first {len(start)} bytes: the file is cut short; get it again"
    if start[:4] in (b"\x89MRC", b"\x09MRC"):
        return "one changed by a transfer as text (line ends or high bits): get it again in binary mode"
    if start[208:212] == b"MAP ":
        return "a cryo-EM map (MRC/CCP4), which shares only the extension: open it with the mrcfile package"
    if start[128:132] == b"DICM":
        return "a DICOM file: it is not compressed with mricodec"
    if start[:2] == b"\x1f\x8b":
        return "a gzip file, perhaps .nii.gz: compress it first with 'mricodec encode'"
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "a NIfTI file: compress it first with 'mricodec encode'"
    return f"bytes that begin with {start[:8]!r}: this is another kind of file, or its start is damaged"


def digest_bytes(mode: Mode) -> int:
    """In ENDX: all of the SHA-256 of a file that is to come back whole, the first half of that of decoded voxels."""
    return 32 if mode is Mode.LOSSLESS else 16


def _unpack_index(payload: bytes, mode: Mode, limits: Limits) -> tuple[bytes, list[int]]:
    """ENDX -> digest, payload length of each slab."""
    fields = ByteReader(payload[:-4], "ENDX")
    digest = fields.take(digest_bytes(mode))
    count = fields.varint()
    if count > fields.left:  # a length takes at least one byte
        raise FormatError(
            f"expected the lengths of {count} slabs in ENDX, found {fields.left} bytes of them"
        )
    if count > limits.max_slabs:
        raise LimitExceeded(
            f"expected at most {limits.max_slabs} slabs, found {count}: "
            "if you trust the file, raise Limits.max_slabs"
        )
    lengths = [fields.varint() for _ in range(count)]
    fields.end()
    if max(lengths, default=0) > limits.max_chunk_bytes:
        raise LimitExceeded(
            f"expected at most {limits.max_chunk_bytes} bytes in a slab, found {max(lengths)} in the index: "
            "if you trust the file, raise Limits.max_chunk_bytes"
        )
    return digest, lengths


def _is_ancillary(type: bytes) -> bool:
    return type[:1].islower()


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(0, size, _CRC_PIECE):
        yield offset + at, min(_CRC_PIECE, size - at)


def _start_error(section: Section, found: bytes) -> FormatError:
    return FormatError(
        f"expected the chunk {section.type} of {section.size - FRAMING} bytes at byte {section.offset}, "
        f"found {found!r}: the file is damaged; get it again"
    )


def _crc_error(section: Section) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"expected the chunk {section.type} at byte {section.offset} to match its CRC-32, found a mismatch: "
        "the file is damaged; get it again"
    )
