"""How a .nii.gz was compressed, so that the identical file can be made again from the .nii inside.

zlib gives the same bytes for the same level and memory; the gzip header is kept. What was compressed by something
else (GNU gzip, pigz, several members) is found not to match, and only the .nii is promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader

CHUNK = b"gZIP"  # ancillary: u8 level | u8 memory level | SHA-256 of the .nii.gz | its gzip header
MAX_HEADER = 1 << 16
_PIECE = 1 << 18
_LEVELS_BY_HINT = {2: 9, 4: 1}  # XFL of RFC 1952
_HCRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16  # FLG


class GzipDiffers(UserWarning):
    """The .nii.gz has the original .nii inside but other bytes outside, as this zlib compresses otherwise."""


@dataclass(frozen=True)
class Wrapper:
    """What makes the .nii.gz again."""

    level: int
    memory: int
    digest: bytes  # SHA-256 of the .nii.gz
    header: bytes

    def __str__(self) -> str:
        return f"zlib level {self.level}"

    def pack(self) -> bytes:
        return bytes((self.level, self.memory)) + self.digest + self.header

    @classmethod
    def unpack(cls, payload: bytes) -> Wrapper:
        """FormatError if it is none."""
        fields = ByteReader(payload, CHUNK.decode())
        level, memory = fields.take(2)
        wrapper = cls(level, memory, fields.take(32), fields.take(fields.left))
        if not (
            1 <= level <= 9
            and 1 <= memory <= 9
            and _header_size(wrapper.header) == len(wrapper.header)
        ):
            raise FormatError(
                f"expected how to make a .nii.gz in {CHUNK.decode()}, found damage: the file is damaged"
            )
        return wrapper

    def _compressor(self) -> zlib._Compress:
        return zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, self.memory)

    @contextlib.contextmanager
    def compressing(self, file: BinaryIO, name: str) -> Iterator[BinaryIO]:
        """Compress what is written into `file`; warning `GzipDiffers` if it comes out otherwise."""
        writer = _Writer(file, self._compressor(), self.header)
        with io.BufferedWriter(writer, _PIECE) as buffer:
            yield cast(BinaryIO, buffer)
        if writer.digest() != self.digest:
            message = (
                f"{name}: the .nii inside is identical, the .nii.gz around it is not (another zlib)"
            )
            warnings.warn(message, GzipDiffers, stacklevel=3)


def find_wrapper(file: BinaryIO) -> Wrapper | None:
    """How a .nii.gz was made, verified to its last byte; None if it can't be made again.

    The file is left where it was. OSError.
    """
    place = file.tell()
    try:
        file.seek(0)
        header = file.read(MAX_HEADER)
        header = header[: _header_size(header)]
        if not header:
            return None
        hint = _LEVELS_BY_HINT.get(header[8], 6)
        levels = [hint, *(level for level in range(9, 0, -1) if level != hint)]
        for memory in (8, 9):
            for level in levels:  # a wrong one differs from the first block of deflate on
                wrapper = Wrapper(level, memory, bytes(32), header)
                if _verified(file, wrapper):
                    return replace(wrapper, digest=_digest(file))
        return None
    finally:
        file.seek(place)


def _verified(file: BinaryIO, wrapper: Wrapper) -> bool:
    """Compress the content again and compare; in pieces."""
    file.seek(len(wrapper.header))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    deflate = wrapper._compressor()
    expected = bytearray()  # bytes of the file that are not compared yet
    crc = size = 0
    try:
        done = False
        while not done:
            piece = inflate.unconsumed_tail or file.read(_PIECE)
            content = inflate.decompress(piece, 1 << 22)
            done = inflate.eof
            if not (piece or content or done):
                return False
            expected += piece[
                : len(piece) - len(inflate.unconsumed_tail) - len(inflate.unused_data)
            ]
            crc, size = zlib.crc32(content, crc), size + len(content)
            made = deflate.compress(content) + (deflate.flush() if done else b"")
            if not expected.startswith(made):
                return False
            del expected[: len(made)]
    except zlib.error:
        return False
    trailer = inflate.unused_data + file.read(16)
    return not expected and trailer == struct.pack("<2I", crc, size & 0xFFFFFFFF)


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.digest()


def _header_size(raw: bytes) -> int:
    """Of a gzip header (RFC 1952, 2.3) at the start of `raw`; 0 for none or one that is not complete."""
    if len(raw) < 10 or raw[:3] != b"\x1f\x8b\x08":
        return 0
    flags, at = raw[3], 10
    if flags & _EXTRA:
        at += 2 + int.from_bytes(raw[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            at = raw.find(b"\0", at) + 1
            if at == 0:
                return 0
    at += 2 if flags & _HCRC else 0
    return at if at <= len(raw) else 0


class _Writer(io.RawIOBase):
    """The gzip file, from its content."""

    def __init__(self, file: BinaryIO, deflate: zlib._Compress, header: bytes) -> None:
        self._file = file
        self._deflate = deflate
        self._digest = hashlib.sha256()
        self._crc = self._size = 0
        self._put(header)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._crc, self._size = zlib.crc32(view, self._crc), self._size + view.nbytes
        self._put(self._deflate.compress(view))
        return view.nbytes

    def close(self) -> None:
        if not self.closed:
            self._put(
                self._deflate.flush() + struct.pack("<2I", self._crc, self._size & 0xFFFFFFFF)
            )
        super().close()

    def digest(self) -> bytes:
        return self._digest.digest()
