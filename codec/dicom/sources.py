"""Where the bytes of DICOM files come from: files on disk, found in folders, or memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class FileSource:
    """The bytes of a file on disk; OSError if it changes while it is encoded."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.path = path
        self._state = self._size_and_time(os.stat(path))
        self.size = self._state[0]

    @staticmethod
    def _size_and_time(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_size, stat.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            if self._size_and_time(os.fstat(file.fileno())) == self._state:
                file.seek(offset)
                data = file.read(size)
                if len(data) == size:
                    return data
        raise OSError(f"{self.path} changed while it was read; encode it again")


class MemorySource:
    """The bytes of a file in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.path = Path()
        self.size = len(data)
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


Source = FileSource | MemorySource


@dataclass(frozen=True)
class Unreadable:
    """A path that can't be read, and why."""

    name: str
    reason: str


class SourceReader(io.RawIOBase):
    """A source as a binary file."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}
        self._position = origins[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._source.size - self._position))
        data = self._source.read(self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def find_sources(paths: Iterable[str | os.PathLike[str]]) -> list[Source | Unreadable]:
    """Every file of the paths, folders searched to any depth; named relative to a common folder.

    Links to folders are not followed. OSError for a path that does not exist, ValueError if there
    is no file at all.
    """
    roots = [Path(path) for path in paths]
    files: list[Path] = []
    reasons: dict[str, str] = {}

    def not_listed(error: OSError) -> None:
        files.append(Path(error.filename))
        reasons[os.path.abspath(error.filename)] = f"can't be listed ({error.strerror})"

    for root in roots:
        if root.is_dir():
            for folder, folders, names in os.walk(root, onerror=not_listed):
                folders.sort()
                links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
                files += [Path(folder, name) for name in sorted(names + links)]
        else:
            os.stat(root)
            files.append(root)
    if not files:
        raise ValueError(f"expected files, found none in {', '.join(map(str, roots)) or 'nothing'}")
    folders_of_roots = [root if root.is_dir() else root.parent for root in roots]
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders_of_roots])
    unique = dict.fromkeys(os.path.abspath(path) for path in files)
    return [
        _open(Path(path), Path(os.path.relpath(path, common)).as_posix(), reasons.get(path))
        for path in unique
    ]


def _open(path: Path, name: str, reason: str | None) -> Source | Unreadable:
    if reason is None and path.is_dir():
        reason = "a link to a folder"
    elif reason is None and path.exists() and not path.is_file():
        reason = "a device, pipe or socket"
    if reason is not None:
        return Unreadable(name, reason)
    try:
        source = FileSource(path, name)
        source.read(0, min(1, source.size))
    except OSError as error:
        return Unreadable(name, f"can't be read ({error.strerror or error})")
    return source
