"""The C sources beside this module, their hash, and the names of what is built from them.

Imports the standard library alone: the build runs it before anything is installed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# The library, without the suffix of the platform.
LIBRARY = "libmrc"
# The hash of the sources that the library was built from, written beside it: an installed package
# comes without the sources.
RECORDED_HASH = "libmrc.hash"


def library_path() -> Path:
    """Where the library of the running system lies: beside this module."""
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return FOLDER / f"{LIBRARY}{suffix}"


def c_files() -> list[Path]:
    """Every C source and header, in the order of their names; none in an installed package."""
    files = [path for suffix in ("*.c", "*.h") for path in FOLDER.rglob(suffix)]
    return sorted(files, key=lambda path: path.relative_to(FOLDER).as_posix())


def source_hash() -> str | None:
    """16 hexadecimal digits of SHA-256 over names and contents; None without sources."""
    files = c_files()
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        name = path.relative_to(FOLDER).as_posix()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16] if files else None


def recorded_hash() -> str | None:
    """The hash that was written when the library was built; None if there is none."""
    try:
        return (FOLDER / RECORDED_HASH).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
