"""Writing gzip files, pieces of which are compressed in threads."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

# Level of gzip, nibabel's default too: level 6 takes four times as long for 4 % of an MR scan.
LEVEL = 1
# Bytes that are compressed at a time.
PIECE = 1 << 20
# Bytes up to which deflate refers back.
_WINDOW = 1 << 15
# RFC 1952: no name, no date, the fastest level, an unknown system.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
# A last block of deflate without content.
_END = b"\x03\x00"


@contextlib.contextmanager
def gzipped(file: BinaryIO, threads: int) -> Iterator[BinaryIO]:
    """Compress what is written into `file`; the same bytes for any number of threads."""
    with ThreadPoolExecutor(threads) as pool:
        pieces = _Pieces(file, pool, 2 * threads)
        with io.BufferedWriter(pieces, PIECE) as buffer:
            yield cast(BinaryIO, buffer)
            buffer.flush()
            pieces.finish()


class _Pieces(io.RawIOBase):
    """Compresses each piece by itself; the window before it is its dictionary."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor, waiting: int) -> None:
        """waiting: pieces that may wait in memory."""
        self._file, self._pool, self._waiting = file, pool, waiting
        self._pending: deque[Future[bytes]] = deque()
        self._before = b""
        self._checksum = self._size = 0
        file.write(_HEADER)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = memoryview(data)
        for start in range(0, len(content), PIECE):
            piece = bytes(content[start : start + PIECE])
            self._pending.append(self._pool.submit(_deflate, piece, self._before))
            self._before = piece[-_WINDOW:]
            self._checksum = zlib.crc32(piece, self._checksum)
            self._write_done(self._waiting)
        self._size += len(content)
        return len(content)

    def finish(self) -> None:
        """Write what is left, the checksum and the size."""
        self._write_done(0)
        self._file.write(_END + self._checksum.to_bytes(4, "little"))
        self._file.write((self._size % 2**32).to_bytes(4, "little"))

    def _write_done(self, pending: int) -> None:
        """Write the first pieces until no more than so many are left."""
        while len(self._pending) > pending:
            self._file.write(self._pending.popleft().result())


def _deflate(piece: bytes, before: bytes) -> bytes:
    """Blocks of deflate that end at a whole byte."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=before)
    return packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
