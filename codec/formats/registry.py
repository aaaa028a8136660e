"""The scan formats that can be read, one line each, and opening a scan by its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from mricodec.bitstream.errors import FormatError
from mricodec.codec.volume import Scan

from .gzip_input import open_decompressed, peek
from .mgh import is_mgh
from .mgh import open_scan as open_mgh
from .nifti import NiftiScan, header_path
from .nifti_header import is_nifti

# Decompressed bytes from the beginning of a file that are enough to recognise its format.
PREFIX_SIZE = 352


@dataclass(frozen=True)
class Format:
    """A scan format: its name, what recognises its first bytes (decompressed), what opens it."""

    name: str
    matches: Callable[[bytes], bool]
    open: Callable[[str | os.PathLike[str] | BinaryIO, str], Scan]


FORMATS = (
    Format("NIfTI", is_nifti, NiftiScan),
    Format("MGH", is_mgh, open_mgh),
)


def open_scan(source: str | os.PathLike[str] | BinaryIO) -> Scan:
    """Open a scan by its content; a file object is read from its beginning and must be seekable.

    OSError if it can't be read, FormatError if it is in none of the formats or damaged.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with open(header_path(source), "rb") as file:
            prefix = peek(open_decompressed(file), PREFIX_SIZE, name)
    else:
        name = str(getattr(source, "name", "input"))
        source.seek(0)
        prefix = peek(open_decompressed(source), PREFIX_SIZE, name)
        source.seek(0)
    for entry in FORMATS:
        if entry.matches(prefix):
            return entry.open(source, name)
    expected = " or ".join(entry.name for entry in FORMATS)
    raise FormatError(f"{name}: expected {expected}, found {_describe(prefix)}")


def _describe(prefix: bytes) -> str:
    """What a file of no known format is, and what to do with it."""
    if not prefix:
        return "an empty file"
    if prefix[:8] == b"\x89MRC\r\n\x1a\n":
        return "an mricodec stream, which is encoded already; use 'decode' to restore the scan"
    if prefix[128:132] == b"DICM":
        return "a DICOM file; encode its series with 'encode FOLDER', or convert it to NIfTI first"
    if prefix[208:212] == b"MAP ":
        return (
            "a cryo-EM map (MRC/CCP4), which is no MRI scan; open it with the mrcfile package. "
            "Name mricodec streams .mric where both kinds are in use"
        )
    if prefix[:4] == b"NRRD":
        return "an NRRD file; convert it to NIfTI first"
    return f"neither in its first bytes ({prefix[:8].hex(' ')}); convert the scan to NIfTI first"
