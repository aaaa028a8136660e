"""A scan as it is stored: voxels, geometry, and the bytes around the voxels.

Arrays are in C order, array[k, j, i] (3-D) or array[t, k, j, i] (4-D, further axes in front): the
NIfTI array transposed, i (x) varying fastest. Values are the stored ones; slope and inter are never
applied to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from .tiling import Tiling

_LONG = np.dtype("longdouble").itemsize == 16  # else 128-bit floats are kept as bytes

# The names of bitstream.header.DTYPES.
DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
    },
    **{
        name: np.dtype(name)
        for name in ("float32", "float64", "complex64", "complex128", "bool", "float16")
    },
    "float128": np.dtype("longdouble" if _LONG else "V16"),
    "complex256": np.dtype("clongdouble" if _LONG else "V32"),
    "rgb24": np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]),
    "rgba32": np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a stored type, whatever its byte order.

    ValueError for a type that no stream can hold.
    """
    native = dtype.newbyteorder("=")
    for name, known in DTYPES.items():
        if native == known:
            return name
    raise ValueError(f"expected voxels of {', '.join(DTYPES)}, found {dtype}; convert the array")


@dataclass(frozen=True, eq=False)
class Envelope:
    """What surrounds the voxels of a scan, and where they lie in space.

    header: the bytes before the voxels in a .nii, or the .hdr file of a pair; b"" if there is none.
    lead: the bytes before the voxels in the .img file of a pair.
    trailer: the bytes after the voxels.
    affine: voxel (i, j, k) -> RAS+ millimetres, 4 x 4, or None.
    spacing_mm: distances of voxels along the array axes (k, j, i).
    slope, inter: real-world value = stored value * slope + inter.
    """

    header: bytes = b""
    lead: bytes = b""
    trailer: bytes = b""
    affine: NDArray[np.float64] | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slope: float = 1.0
    inter: float = 0.0

    def __post_init__(self) -> None:
        if self.affine is not None and self.affine.shape != (4, 4):
            raise ValueError(f"affine: expected a 4x4 matrix, found shape {self.affine.shape}")
        if len(self.spacing_mm) != 3:
            raise ValueError(
                f"spacing_mm: expected 3 values (k, j, i), found {len(self.spacing_mm)}"
            )

    @property
    def size(self) -> int:
        """Bytes around the voxels."""
        return len(self.header) + len(self.lead) + len(self.trailer)


@dataclass(frozen=True, eq=False)
class Volume:
    """Stored voxels in native byte order with their envelope.

    Where there is a header, a stream keeps the geometry that the header states.
    """

    array: NDArray[Any]
    envelope: Envelope = Envelope()
    big_endian: bool = sys.byteorder == "big"

    def __post_init__(self) -> None:
        if not self.array.dtype.isnative:
            raise ValueError(
                f"array: expected native byte order, found {self.array.dtype}; "
                "use Volume.from_array"
            )

    @classmethod
    def from_array(
        cls,
        array: NDArray[Any],
        *,
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        affine: NDArray[np.float64] | None = None,
        slope: float = 1.0,
        inter: float = 0.0,
    ) -> Volume:
        """Wrap an array of any byte order; the order is remembered in `big_endian`."""
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        envelope = Envelope(affine=affine, spacing_mm=spacing_mm, slope=slope, inter=inter)
        return cls(native, envelope, is_big_endian(array.dtype))

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """Voxel (i, j, k) -> RAS+ millimetres, 4 x 4, or None."""
        return self.envelope.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances of voxels along the array axes (k, j, i)."""
        return self.envelope.spacing_mm

    @property
    def slope(self) -> float:
        """Real-world value = stored value * slope + inter."""
        return self.envelope.slope

    @property
    def inter(self) -> float:
        """Real-world value = stored value * slope + inter."""
        return self.envelope.inter

    @property
    def header(self) -> bytes:
        """The bytes before the voxels in a .nii, or the .hdr file of a pair."""
        return self.envelope.header

    @property
    def lead(self) -> bytes:
        """The bytes before the voxels in the .img file of a pair."""
        return self.envelope.lead

    @property
    def trailer(self) -> bytes:
        """The bytes after the voxels."""
        return self.envelope.trailer

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type with the byte order of the source."""
        return self.array.dtype.newbyteorder(">" if self.big_endian else "<")

    def scaled(self) -> NDArray[np.float64]:
        """Real-world values: stored value * slope + inter."""
        return np.asarray(self.array, np.float64) * self.slope + self.inter


class Scan(Protocol):
    """An opened scan, read in blocks as often as needed; it is never in memory as a whole."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """Stored type with the byte order of the source."""
    declared_labels: bool
    """The header declares the values to be labels."""
    chunks: Iterable[tuple[bytes, bytes]]
    """(type, payload) of further chunks for the stream, before its slabs; iterated once."""

    @property
    def envelope(self) -> Envelope:
        """What surrounds the voxels; the trailer is complete after the last block was read."""

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        """Every slab in the order of `tiling`: [n, h, w], slab axis first, native byte order."""

    def gzip_file(self) -> BinaryIO | None:
        """The file as it is stored, from its start, if it is one .nii.gz; its position is kept."""

    def close(self) -> None:
        """Release the file."""


class ArrayScan:
    """A `Volume` in memory behind the interface of a `Scan`."""

    declared_labels = False
    chunks: Iterable[tuple[bytes, bytes]] = ()

    def __init__(self, volume: Volume, name: str = "array") -> None:
        self.name = name
        self.shape = volume.array.shape
        self.dtype = volume.dtype
        self.envelope = volume.envelope
        self._array = volume.array

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        """The slabs, as views of the array."""
        for volume in self._array.reshape(tiling.volumes, *tiling.volume_shape):
            yield from tiling.cut(volume)

    def gzip_file(self) -> BinaryIO | None:
        """An array was no file."""
        return None

    def close(self) -> None:
        """An array holds nothing open."""


def to_file_order(array: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    """The bytes of `array` as they stand in a file: C order, the byte order of `dtype`."""
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


def is_big_endian(dtype: np.dtype[Any]) -> bool:
    """Whether voxels of this type stand in big-endian order; single bytes have none."""
    return dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big")
