"""How a .nii.gz was compressed, so that the identical file can be written again from the .nii.

zlib gives the same bytes for the same level and memory level; the gzip header is kept. A file that
another program compressed (GNU gzip, pigz, several members) does not match; then only the .nii
inside it is restored.
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

from mricodec.bitstream.chunks import GZIP
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader

# The longest gzip header that is kept.
MAX_HEADER_SIZE = 1 << 16
# Memory levels of zlib that are tried: its default, and its maximum.
_MEMORY_LEVELS = (8, 9)
# Bytes of a gzip file that are read at a time.
_PIECE = 1 << 18
# Decompressed bytes that are compared at a time.
_CONTENT_PIECE = 1 << 22
# The level that XFL of the gzip header (RFC 1952) hints at; 6, the default, for other values.
_LEVEL_BY_XFL = {2: 9, 4: 1}
# Bits of FLG in the gzip header (RFC 1952).
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 2, 4, 8, 16


class GzipDiffers(UserWarning):
    """The restored .nii is identical, its .nii.gz is not: this zlib compresses otherwise."""


@dataclass(frozen=True)
class GzipRecipe:
    """What restores a .nii.gz from its content."""

    level: int
    memory_level: int
    # SHA-256 of the .nii.gz.
    digest: bytes
    # The gzip header.
    header: bytes

    def __str__(self) -> str:
        return f"zlib level {self.level}"

    def pack(self) -> bytes:
        """u8 level | u8 memory level | SHA-256 of the .nii.gz | its gzip header."""
        return bytes((self.level, self.memory_level)) + self.digest + self.header

    @classmethod
    def unpack(cls, payload: bytes) -> GzipRecipe:
        """The recipe in a chunk; FormatError if it is damaged."""
        fields = ByteReader(payload, GZIP.decode())
        level, memory_level = fields.take(2)
        recipe = cls(level, memory_level, fields.take(32), fields.take(fields.left))
        if not (
            1 <= level <= 9
            and 1 <= memory_level <= 9
            and _header_size(recipe.header) == len(recipe.header)
        ):
            raise FormatError(
                f"expected zlib's levels and a gzip header in {GZIP.decode()}, found others: "
                "the file is damaged"
            )
        return recipe

    def compressor(self) -> zlib._Compress:
        return zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, self.memory_level)

    @contextlib.contextmanager
    def compressing(self, file: BinaryIO, name: str) -> Iterator[BinaryIO]:
        """A file whose content is compressed into `file`; warning `GzipDiffers` if that differs."""
        writer = _GzipWriter(file, self.compressor(), self.header)
        with io.BufferedWriter(writer, _PIECE) as buffer:
            yield cast(BinaryIO, buffer)
        if writer.digest() != self.digest:
            message = (
                f"{name}: the .nii inside is identical, the .nii.gz around it is not (another zlib)"
            )
            warnings.warn(message, GzipDiffers, stacklevel=3)


def find_recipe(file: BinaryIO) -> GzipRecipe | None:
    """The recipe of a .nii.gz, verified to its last byte; None if zlib can't write it again.

    The position of `file` is restored. OSError.
    """
    position = file.tell()
    try:
        file.seek(0)
        header = file.read(MAX_HEADER_SIZE)
        header = header[: _header_size(header)]
        if not header:
            return None
        likely = _LEVEL_BY_XFL.get(header[8], 6)
        levels = [likely, *(level for level in range(9, 0, -1) if level != likely)]
        for memory_level in _MEMORY_LEVELS:
            for level in levels:  # A wrong one differs from the first deflate block on.
                recipe = GzipRecipe(level, memory_level, bytes(32), header)
                if _restores(recipe, file):
                    return replace(recipe, digest=_digest(file))
        return None
    finally:
        file.seek(position)


def _restores(recipe: GzipRecipe, file: BinaryIO) -> bool:
    """Compress the content again, in pieces, and compare it with the file."""
    file.seek(len(recipe.header))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    deflate = recipe.compressor()
    # Bytes of the file that are not compared yet.
    expected = bytearray()
    crc = size = 0
    try:
        done = False
        while not done:
            piece = inflate.unconsumed_tail or file.read(_PIECE)
            content = inflate.decompress(piece, _CONTENT_PIECE)
            done = inflate.eof
            if not (piece or content or done):
                return False
            unused = len(inflate.unconsumed_tail) + len(inflate.unused_data)
            expected += piece[: len(piece) - unused]
            crc, size = zlib.crc32(content, crc), size + len(content)
            compressed = deflate.compress(content) + (deflate.flush() if done else b"")
            if not expected.startswith(compressed):
                return False
            del expected[: len(compressed)]
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
    """Bytes of the gzip header (RFC 1952, 2.3) that `raw` begins with; 0 if none is complete."""
    if len(raw) < 10 or raw[:3] != b"\x1f\x8b\x08":
        return 0
    flags, size = raw[3], 10
    if flags & _FEXTRA:
        size += 2 + int.from_bytes(raw[size : size + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            size = raw.find(b"\0", size) + 1
            if size == 0:
                return 0
    size += 2 if flags & _FHCRC else 0
    return size if size <= len(raw) else 0


class _GzipWriter(io.RawIOBase):
    """Writes a gzip file from its content."""

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
