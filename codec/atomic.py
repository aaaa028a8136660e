"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

# Level of gzip, nibabel's default too: level 6 takes four times as long for 4 % of an MR scan.
GZIP_LEVEL = 1


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well and vanishes when it does not.

    It is written under a temporary name in the same folder. What is not a regular file (a device,
    a pipe) is written to directly. Raises OSError.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the name of a file", str(path))
    if target.exists() and not target.is_file():
        with named_errors(path), open(target, "wb") as file:
            yield file
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.parent))
    # Names are limited to 255 bytes.
    part = target.with_name(f".{target.name[:32]}.{secrets.token_hex(4)}.part")
    try:
        with named_errors(path, part), open(part, "xb") as file:
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def gzipped(file: BinaryIO) -> Iterator[BinaryIO]:
    """Compress what is written into `file`; the same bytes every time (no name, no date)."""
    packed = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0)
    with packed, io.BufferedWriter(cast(io.RawIOBase, packed), 1 << 20) as buffer:
        yield cast(BinaryIO, buffer)


@contextlib.contextmanager
def named_errors(path: str | os.PathLike[str], part: Path | None = None) -> Iterator[None]:
    """Name the file in an error of a full disk, and instead of the temporary one (`part`)."""
    try:
        yield
    except OSError as error:
        full = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or (part is not None and error.filename == str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
