"""Reading scan files that may be gzip; damaged gzip data is a FormatError that names the file."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import BinaryIO

from mricodec.bitstream.errors import FormatError, Truncated

# What the gzip module raises for damaged data.
_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
# Bytes that are read at a time.
_PIECE = 1 << 20


def open_decompressed(file: BinaryIO) -> BinaryIO:
    """The file itself, or its decompressed content if it is gzip; seekable either way."""
    start = file.tell()
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(start)
    return gzip.GzipFile(fileobj=file, mode="rb") if gzipped else file  # type: ignore[return-value]


def stored_size(file: BinaryIO) -> int:
    """Bytes from the current position to the end, without moving it."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END) - position
    file.seek(position)
    return size


def peek(file: BinaryIO, count: int, name: str) -> bytes:
    """The next bytes, at most `count`, without moving the position."""
    start = file.tell()
    data = read_up_to(file, count, name)
    seek(file, start, name)
    return data


def seek(file: BinaryIO, position: int, name: str) -> None:
    try:
        file.seek(position)
    except _GZIP_ERRORS as error:
        raise _damaged(name, error) from error


def read_up_to(file: BinaryIO, count: int, name: str) -> bytes:
    """The next `count` bytes, or fewer at the end of the file."""
    pieces: list[bytes] = []
    try:
        while count > 0 and (piece := file.read(min(count, _PIECE))):
            pieces.append(piece)
            count -= len(piece)
    except _GZIP_ERRORS as error:
        raise _damaged(name, error) from error
    return b"".join(pieces)


def read_exactly(file: BinaryIO, count: int, name: str) -> bytes:
    """The next `count` bytes; Truncated if the file ends earlier."""
    data = read_up_to(file, count, name)
    if len(data) < count:
        raise Truncated(
            f"{name}: expected {count} bytes before the voxels, found {len(data)}; "
            "the header is wrong or the file is cut short"
        )
    return data


def read_into(file: BinaryIO, view: memoryview, name: str) -> None:
    """Fill `view` with voxels; Truncated if the file ends earlier."""
    done = 0
    try:
        readinto = file.readinto  # type: ignore[attr-defined]
        while done < len(view) and (count := readinto(view[done:])):
            done += count
    except _GZIP_ERRORS as error:
        raise _damaged(name, error) from error
    if done < len(view):
        raise Truncated(
            f"{name}: expected {len(view) - done} further bytes of voxels, found the end of the "
            "file; the header is wrong or the file is cut short"
        )


def _damaged(name: str, error: Exception) -> FormatError:
    if isinstance(error, EOFError):
        return Truncated(
            f"{name}: expected the end of the gzip data, found the end of the file; "
            "get the file again"
        )
    return FormatError(
        f"{name}: expected sound gzip data, found damage ({error}); get the file again"
    )
