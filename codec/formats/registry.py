"""The scan formats that can be read: one line each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from mricodec.bitstream.errors import FormatError
from mricodec.codec.volume import Scan

from . import mgh, nifti

_PREFIX = 352  # bytes by which a format is recognised


@dataclass(frozen=True)
class Format:
    name: str
    accept: Callable[[bytes], bool]  # by the first bytes, decompressed
    open: Callable[[str | os.PathLike[str] | BinaryIO, str], Scan]


FORMATS = (
    Format("NIfTI", nifti.accept, nifti.NiftiScan),
    Format("MGH", mgh.accept, mgh.open_scan),
)


def open_scan(source: str | os.PathLike[str] | BinaryIO) -> Scan:
    """Open a scan by its content; a file object is read from its beginning and must be seekable.

    Raises OSError if it can't be read, FormatError if it is in none of the formats or damaged.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with open(nifti.header_path(source), "rb") as file:
            prefix = nifti.peek(nifti.open_decompressed(file), _PREFIX, name)
    else:
        name = str(getattr(source, "name", "input"))
        source.seek(0)
        prefix = nifti.peek(nifti.open_decompressed(source), _PREFIX, name)
        source.seek(0)
    for entry in FORMATS:
        if entry.accept(prefix):
            return entry.open(source, name)
    expected = " or ".join(entry.name for entry in FORMATS)
    raise FormatError(f"{name}: expected {expected}, found {_describe(prefix)}")


def _describe(prefix: bytes) -> str:
    if not prefix:
        return "an empty file"
    if prefix[:8] == b"\x89MRC\r\n\x1a\n":
        return "an mricodec stream, which is encoded already; use 'decode' to restore the scan"
    if prefix[128:132] == b"DICM":
        return "a DICOM file; convert the series to NIfTI first, for example with dcm2niix"
    if prefix[208:212] == b"MAP ":
        return "a cryo-EM map (MRC/CCP4), which is no MRI scan; open it with the mrcfile package"
    if prefix[:4] == b"NRRD":
        return "an NRRD file; convert it to NIfTI first"
    return f"neither in its first bytes ({prefix[:8].hex(' ')}); convert the scan to NIfTI first"
