"""FreeSurfer .mgz and .mgh scans, read through nibabel."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

import numpy as np

from mricodec.bitstream.errors import FormatError
from mricodec.codec.volume import ArrayScan, Scan, Volume

from .gzip_input import open_decompressed

# The version field of every MGH header, bytes 0 to 3.
_VERSION = (1).to_bytes(4, "big")
# The largest code of a data type, bytes 20 to 23.
_MAX_TYPE = 10


def is_mgh(prefix: bytes) -> bool:
    """Whether decompressed bytes begin with version 1 and have a data type of MGH."""
    return prefix[:4] == _VERSION and int.from_bytes(prefix[20:24], "big") <= _MAX_TYPE


def open_scan(source: str | os.PathLike[str] | BinaryIO, name: str) -> Scan:
    """The whole scan in memory; voxels and geometry are kept, the bytes of the header are not."""
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
    except Exception as error:  # nibabel passes on the errors of numpy, struct and zlib.
        raise _damaged(name, error) from error
    volume = Volume.from_array(np.ascontiguousarray(array), spacing_mm=(k, j, i), affine=affine)
    return ArrayScan(volume, name)


def _damaged(name: str, error: Exception) -> FormatError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FormatError(
        f"{name}: expected a FreeSurfer MGH volume, found damage ({reason}); get the file again"
    )
