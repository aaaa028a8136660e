"""The file: magic, version, chunks, and an index of the slabs at its end (FORMAT.md, "Container").

    magic 8 | version u16 | HEAD | ORIG? | META? | DICM? ... | BASE? | SLAB ... | ENDX

The reader checks everything but the slabs when it opens a stream, and each slab when it is asked
for. Nothing is allocated from a number in the stream that has not been held against ``Limits`` and
against the bytes that are there.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .chunks import BASE, CHUNKS, END, FRAMING, HEAD, SLAB, ChunkSequence, Order, is_ancillary
from .errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated, UnsupportedVersion
from .fields import ByteReader, pack_varint
from .header import DEFAULT_LIMITS, Limits, Mode, StreamHeader, digest_bytes

MAGIC = b"\x89MRC\r\n\x1a\n"
VERSION = 1

# A CRC-32 is computed over pieces of this many bytes.
_CRC_PIECE = 1 << 20
# Bytes of ENDX: a digest of at least 16 bytes, and the length of the payload.
_ENDX_FIXED = 16 + 4
# Critical chunks that are taken from a file without an index; files of a series are not restored
# from a part.
_SALVAGED = [name for name, row in CHUNKS.items() if row.order is Order.TABLE and name != END]
# How many chunks of a file without an end are read to tell what is wrong with it.
_DIAGNOSED_CHUNKS = 10_000


@dataclass(frozen=True, slots=True)
class Span:
    """A stream inside another: a part of its bytes."""

    # (offset, size) in the whole file -> bytes.
    fetch: Callable[[int, int], bytes]
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

    ``chunk``, ``embed`` and ``slab`` in the order that the table of chunks asks for, then
    ``finish``. ValueError on any other order.
    """

    def __init__(self, file: BinaryIO, header: StreamHeader) -> None:
        payload = header.pack()
        self._file = file
        self._digest_bytes = digest_bytes(header.mode)
        self._sequence = ChunkSequence()
        self._lengths: list[int] = []
        # Bytes written so far.
        self.size = 0
        self._write(MAGIC + struct.pack("<H", VERSION))
        self._write_chunk(HEAD, payload)

    def chunk(self, type: bytes, payload: bytes) -> None:
        """A chunk of the table, or an ancillary one (first letter lower case)."""
        if len(type) != 4 or not type.isalpha():
            raise ValueError(f"expected a chunk type of four ASCII letters, found {type!r}")
        if type in (BASE, SLAB, END) or not (type in CHUNKS or is_ancillary(type)):
            raise ValueError(
                "expected a chunk type of the table or an ancillary one (lower case first), "
                f"found {type.decode()}: BASE, SLAB and ENDX are for embed, slab and finish"
            )
        self._write_chunk(type, payload)

    def embed(self, stream: BinaryIO, size: int) -> None:
        """BASE: a whole stream of `size` bytes, read from where the file stands."""
        start = self._start(BASE, size)
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
        self._write_chunk(SLAB, payload)
        self._lengths.append(len(payload))

    def finish(self, digest: bytes) -> None:
        """digest: SHA-256 of the original file's bytes if lossless; else the first half of that of
        the decoded voxels."""
        if len(digest) != self._digest_bytes:
            raise ValueError(
                f"expected a digest of {self._digest_bytes} bytes, found {len(digest)}"
            )
        index = b"".join(
            (digest, pack_varint(len(self._lengths)), *map(pack_varint, self._lengths))
        )
        self._write_chunk(END, index + struct.pack("<I", len(index) + 4))

    def _start(self, type: bytes, size: int) -> bytes:
        """What stands before the payload of the next chunk; ValueError if it may not stand here."""
        if size >= 1 << 32:
            raise ValueError(
                f"expected a payload below 4 GiB, found {size} bytes for {type.decode()}"
            )
        expected = self._sequence.add(type)
        if expected is not None:
            raise ValueError(f"expected {expected}, found a chunk {type.decode()}")
        return type + struct.pack("<I", size)

    def _write_chunk(self, type: bytes, payload: bytes) -> None:
        start = self._start(type, len(payload))
        self._write(start)
        self._write(payload)
        self._write(struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class ContainerReader:
    """Reads a stream that is complete: bytes, or a seekable binary file.

    Opening reads and checks all of it except the slabs; a slab is read and checked when asked for.
    Threads may share a reader. FormatError (one of errors.py) on bad bytes.

    salvage: a file that is cut short or whose index is damaged is read as far as its chunks go, and
    a damaged chunk other than HEAD and the slabs counts as missing; then `damaged` is true, and
    slabs may be fewer than they should be.
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
        section = self._only(type)
        return None if section is None else self._payload(section)

    def chunks(self, type: bytes) -> Iterator[bytes]:
        """The payloads of all chunks of this type, in file order, each read when asked for."""
        name = type.decode("ascii")
        for section in self._sections:
            if section.type == name:
                yield self._payload(section)

    def has(self, type: bytes) -> bool:
        """Whether there is a chunk of this type."""
        return any(section.type == type.decode() for section in self._sections)

    def embedded(self, type: bytes) -> Span | None:
        """The stream that the one chunk of this type holds, or None; its CRC is checked already."""
        section = self._only(type)
        if section is None:
            return None
        return Span(self._fetch, section.offset + 8, section.size - FRAMING)

    def _only(self, type: bytes) -> Section | None:
        sections = [section for section in self._sections if section.type == type.decode()]
        if len(sections) > 1:
            raise FormatError(
                f"expected one chunk {type.decode()}, found {len(sections)}: the file is damaged"
            )
        return sections[0] if sections else None

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
        raise self._diagnosed()

    def _diagnosed(self) -> FormatError:
        """What is wrong with a file that does not end with ENDX."""
        offset = len(MAGIC) + 2
        for _ in range(_DIAGNOSED_CHUNKS):
            if offset == self.size:
                break
            section = self._chunk_at(offset)
            offset += section.size
            if section.type == "ENDX":
                return FormatError(
                    f"expected the file to end with the chunk ENDX at byte {offset}, found "
                    f"{self.size - offset} bytes more or a wrong length in it: the file is damaged"
                )
        return Truncated(
            f"expected the chunk ENDX at the end, found none in {self.size} bytes: "
            "the file is cut short; get it again"
        )

    def _walk(self, head: Section, lengths: list[int], end: Section) -> list[Section]:
        """All chunks in order; checks order, index, and the CRC of all but the slabs."""
        sections, slabs = [head], list[Section]()
        sequence = ChunkSequence()
        sequence.add(HEAD)
        offset = head.offset + head.size
        while offset < end.offset:
            section = self._chunk_at(offset)
            if section.type == "SLAB" and not slabs:
                slabs = _slab_run(offset, lengths, end)
                sequence.add(SLAB)
                sections += slabs
                offset += sum(slab.size for slab in slabs)
                continue
            self._check_order(section, sequence, lengths, end)
            # The chunks that are not slabs, with HEAD, this one and ENDX.
            if len(sections) - len(slabs) + 2 > self.limits.max_chunks:
                raise LimitExceeded(
                    f"expected at most {self.limits.max_chunks} chunks other than slabs, found "
                    "more: "
                    "if you trust the file, raise Limits.max_chunks"
                )
            try:
                self._check_crc(section)
                sections.append(section)
            except ChecksumMismatch:
                if not self._salvage:
                    raise
                self.damaged = True
            offset += section.size
        if offset != end.offset or len(slabs) != len(lengths):
            raise FormatError(
                f"expected {len(lengths)} slabs and the chunk ENDX at byte {end.offset}, as the "
                "index "
                f"says, found that the chunks end at byte {offset}: the file is damaged"
            )
        return [*sections, end]

    def _check_order(
        self, section: Section, sequence: ChunkSequence, lengths: list[int], end: Section
    ) -> None:
        """FormatError if the chunk may not stand here."""
        type = section.type.encode()
        if type == END:
            expected = f"one chunk ENDX, at byte {end.offset}"
        elif type == SLAB:
            expected = f"{len(lengths)} slabs in one run, as the index says"
        elif type not in CHUNKS and not is_ancillary(type):
            raise UnsupportedVersion(
                f"expected chunks that this version knows, found the critical chunk {section.type} "
                f"at byte {section.offset}: update mricodec"
            )
        else:
            expected = sequence.add(type) or ""
        if expected:
            raise FormatError(
                f"expected {expected}, found {section.type} at byte {section.offset}: "
                "the file is damaged"
            )

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
            type = section.type.encode()
            if type == SLAB:
                sections.append(section)
            elif is_ancillary(type) or type in _SALVAGED:
                with contextlib.suppress(FormatError):
                    self._check_crc(section)
                    sections.append(section)
        return sections

    def _chunk_at(self, offset: int) -> Section:
        """The chunk at ``offset``, its type and its length checked, its payload not read."""
        if offset + FRAMING > self.size:
            raise Truncated(
                f"expected a chunk at byte {offset}, found the end of the file at byte "
                f"{self.size}: "
                "the file is cut short; get it again"
            )
        type, length = struct.unpack("<4sI", self._read(offset, 8))
        if not type.isalpha():
            raise FormatError(
                f"expected a chunk type at byte {offset}, found {type!r}: the file is damaged"
            )
        if offset + FRAMING + length > self.size:
            raise Truncated(
                f"expected {length} bytes in the chunk {type.decode()} at byte {offset}, found "
                f"{self.size - offset - FRAMING}: the file is cut short; get it again"
            )
        if length > self.limits.max_chunk_bytes and type != BASE:
            raise LimitExceeded(
                f"expected at most {self.limits.max_chunk_bytes} bytes in a chunk, found {length} "
                "in "
                f"{type.decode()} at byte {offset}: if you trust the file, raise "
                "Limits.max_chunk_bytes"
            )
        return Section(type.decode(), offset, length + FRAMING)

    def _payload(self, section: Section) -> bytes:
        """The payload of a chunk; checks its CRC, and its type and length against the section."""
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
        actual = self._read(section.offset, 8)
        if actual != start:
            raise _start_error(section, actual)
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
                f"expected {size} bytes at byte {offset}, found {len(data)}: the file changed "
                "while read"
            )
        return data


def _fetcher(
    source: bytes | bytearray | memoryview | BinaryIO | Span,
) -> tuple[Callable[[int, int], bytes], int]:
    """A function (offset, size) -> bytes that threads may share, and the size of the source."""
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
    """FormatError that names what it is, unless ``start`` (up to 1024 bytes) begins a stream."""
    if start[:8] != MAGIC:
        raise FormatError(f"expected an mricodec stream, found {_recognise(start)}")
    if len(start) < 10:
        raise Truncated(
            f"expected a version at byte 8, found the end of the file at byte {len(start)}: get it "
            "again"
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
        return (
            "one changed by a transfer as text (line ends, high bits): get it again in binary mode"
        )
    if start[208:212] == b"MAP ":
        return (
            "a cryo-EM map (MRC/CCP4), which shares only the extension: "
            "open it with the mrcfile package"
        )
    if start[128:132] == b"DICM":
        return "a DICOM file: it is not compressed with mricodec"
    if start[:2] == b"\x1f\x8b":
        return "a gzip file, perhaps .nii.gz: compress it first with 'mricodec encode'"
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "a NIfTI file: compress it first with 'mricodec encode'"
    return f"bytes that begin with {start[:8]!r}: another kind of file, or its start is damaged"


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
            f"expected at most {limits.max_chunk_bytes} bytes in a slab, found {max(lengths)} in "
            "the index: "
            "if you trust the file, raise Limits.max_chunk_bytes"
        )
    return digest, lengths


def _slab_run(offset: int, lengths: list[int], end: Section) -> list[Section]:
    """The slabs of the index, of which the first begins at ``offset``."""
    size = sum(lengths) + FRAMING * len(lengths)
    if not lengths or offset + size > end.offset:
        raise FormatError(
            f"expected {len(lengths)} slabs of {size} bytes in one run, as the index says, "
            f"found another chunk SLAB at byte {offset}: the file is damaged"
        )
    slabs = []
    for length in lengths:
        slabs.append(Section("SLAB", offset, length + FRAMING))
        offset += length + FRAMING
    return slabs


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(0, size, _CRC_PIECE):
        yield offset + at, min(_CRC_PIECE, size - at)


def _start_error(section: Section, actual: bytes) -> FormatError:
    return FormatError(
        f"expected the chunk {section.type} of {section.size - FRAMING} bytes at byte "
        f"{section.offset}, "
        f"found {actual!r}: the file is damaged; get it again"
    )


def _crc_error(section: Section) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"expected the chunk {section.type} at byte {section.offset} to match its CRC-32, found a "
        "mismatch: "
        "the file is damaged; get it again"
    )
