"""Files that appear under their name only when they are complete.

Until then a file has a temporary name, .NAME.XXXXXXXX.part, in the same folder, and is locked. What
a killed process left behind is unlocked: the next one that writes into the folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Seconds after which an unlocked temporary file is stale: another process may just have made it.
STALE_AFTER = 60.0
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part", re.DOTALL)
_cleaned: set[Path] = set()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well and vanishes when it does not.

    It is written under a temporary name in the same folder, synced to the disk and renamed. It
    keeps the permissions of the file that it replaces. What is not a regular file (a device, a
    pipe) is written to directly. Raises OSError.
    """
    target = _resolved(Path(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the name of a file", str(path))
    if target.exists() and not target.is_file():
        with named_errors(path), open(target, "wb") as file:
            yield file
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.parent))
    remove_stale(target.parent)
    # Names are limited to 255 bytes.
    part = target.with_name(f".{target.name[:32]}.{secrets.token_hex(4)}.part")
    try:
        with named_errors(path, part), open(part, "xb") as file:
            _try_lock(file)
            if target.exists():
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _resolved(path: Path) -> Path:
    """The file that a link stands for. OSError for links that lead to one another."""
    try:
        return path.resolve() if path.is_symlink() else path
    except RuntimeError as error:  # Until Python 3.12.
        raise OSError(errno.ELOOP, "its links lead to one another", str(path)) from error


def remove_stale(folder: Path) -> None:
    """Remove temporary files of processes that were killed; once in a process for each folder."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for part in [Path(entry) for entry in entries if _PART.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), open(part, "rb") as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                if age > STALE_AFTER and _try_lock(file):
                    part.unlink()


def _try_lock(file: BinaryIO) -> bool:
    """Lock an open file for as long as it is open; False where that is not possible."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
