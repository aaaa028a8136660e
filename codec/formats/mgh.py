"""FreeSurfer .mgz and .mgh scans, read through nibabel."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

import numpy as np

from mricodec.bitstream.errors import FormatError
from mricodec.codec.volume import ArrayScan, Scan, Volume

from .nifti import open_decompressed

_VERSION = (1).to_bytes(4, "big")


def accept(prefix: bytes) -> bool:
    """Whether decompressed bytes begin with version 1 and a type that MGH has (bytes 0-3 and 20-23)."""
    return prefix[:4] == _VERSION and prefix[20:23] == bytes(3) and prefix[23:24] <= b"\x0a"


def open_scan(source: str | os.PathLike[str] | BinaryIO, name: str) -> Scan:
    """The whole scan in memory; the voxels and the geometry are kept, not the bytes of the header."""
    from nibabel.freesurfer.mghformat import MGHImage

    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return open_scan(file, name)
    try:
        image = MGHImage.from_stream(cast(io.IOBase, open_decompressed(source)))
        array = np.asarray(image.dataobj).T
        affine = np.asarray(image.affine, np.float64)
        i, j, k = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(name, error) from error
    except Exception as error:  # nibabel lets the errors of numpy, struct and zlib through
        raise _damaged(name, error) from error
    volume = Volume.from_array(np.ascontiguousarray(array), spacing_mm=(k, j, i), affine=affine)
    return ArrayScan(volume, name)


def _damaged(name: str, error: Exception) -> FormatError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FormatError(
        f"{name}: expected a FreeSurfer MGH volume, found damage ({reason}); get the file again"
    )
