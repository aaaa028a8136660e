"""NIfTI files for tests, written byte by byte where a library would refuse."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.formats import nifti_header
from mricodec.codec.volume import DTYPES

# Fields of a header that a test does not set.
DEFAULTS: dict[str, Any] = {
    "dim": (3, 5, 4, 3, 1, 1, 1, 1),
    "datatype": 4,
    "vox_offset": 352,
    "magic": b"n+1\0",
    "intent": 0,
    "slope": 1.0,
    "inter": 0.0,
}


def header(order: str = "<", **fields: Any) -> bytes:
    """348 bytes of NIfTI-1 with these fields, some of `DEFAULTS`; wrong values are written, too."""
    assert fields.keys() <= DEFAULTS.keys(), fields
    fields = {**DEFAULTS, **fields}
    raw = bytearray(348)
    struct.pack_into(order + "i", raw, 0, 348)
    struct.pack_into(order + "8h", raw, 40, *fields["dim"])
    struct.pack_into(order + "3h", raw, 68, fields["intent"], fields["datatype"], 0)
    struct.pack_into(order + "8f", raw, 76, 1, 0.5, 0.75, 2.5, 1, 1, 1, 1)
    scaling = (fields["vox_offset"], fields["slope"], fields["inter"])
    struct.pack_into(order + "3f", raw, 108, *scaling)
    struct.pack_into("4s", raw, 344, fields["magic"])
    return bytes(raw)


def single(
    array: NDArray[Any], extension: bytes = bytes(4), trailer: bytes = b"", **fields: Any
) -> bytes:
    """A .nii of an array [..., k, j, i] in the byte order of its type."""
    order = ">" if array.dtype.byteorder == ">" else "<"
    name = next(name for name, dtype in DTYPES.items() if dtype == array.dtype.newbyteorder("="))
    code = next(code for code, known in nifti_header.DATATYPES.items() if known == name)
    dim = (array.ndim, *array.shape[::-1], *[1] * (7 - array.ndim))
    fields = {
        "dim": dim,
        "datatype": code,
        "vox_offset": 348 + len(extension),
        "order": order,
        **fields,
    }
    return header(**fields) + extension + np.ascontiguousarray(array).tobytes() + trailer


def write_pair(
    folder: Path, array: NDArray[Any], lead: bytes = b"", **fields: Any
) -> tuple[Path, Path]:
    """scan.hdr and scan.img."""
    whole = single(array, b"", magic=b"ni1\0", **{"vox_offset": len(lead), **fields})
    hdr, img = folder / "scan.hdr", folder / "scan.img"
    hdr.write_bytes(whole[:348])
    img.write_bytes(lead + whole[348:])
    return hdr, img


def voxels(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Values of a stored type that use all of its bytes."""
    dtype = DTYPES[name]
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.normal(0, 9, shape) + 1j * rng.normal(0, 9, shape)).astype(dtype)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return np.ascontiguousarray(raw).view(dtype)[..., 0]


def smooth(shape: tuple[int, ...], noise: float = 5.0, top: float = 1000.0) -> NDArray[np.int16]:
    """A scan: a smooth body with noise before an exactly zero background."""
    rng = np.random.default_rng(0)
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[-3:]), indexing="ij")
    radius = k**2 / 2 + j**2 + i**2
    body = top * np.clip(0.9 - radius, 0, None) * (1 + 0.2 * np.cos(5 * i))
    noisy = body + rng.normal(0, noise, shape) * (body > 0)
    return np.clip(np.rint(noisy), 0, None).astype(np.int16)
