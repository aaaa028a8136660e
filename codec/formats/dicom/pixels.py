"""The PixelData element of a DICOM object: where its samples are, their type, and the slices in it.

Samples stay as they are stored; `values` says what they stand for. Terms: PS3.3 C.7.6.3 (Image
Pixel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mricodec.codec.volume import DTYPES

from . import geometry
from .elements import integer, is_enhanced, numbers, text
from .frames import Frame, enhanced_frames, whole_object
from .geometry import ImagePlane
from .values import StoredBits

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, kw_only=True)
class ImagePixelModule:
    """The attributes that describe the samples of PixelData."""

    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    planar: bool
    photometric: str
    bits_allocated: int
    bits: StoredBits
    signed: bool

    @classmethod
    def of(cls, dataset: Dataset) -> ImagePixelModule:
        """ValueError where a required attribute is missing."""
        allocated = integer(dataset, "BitsAllocated")
        stored = integer(dataset, "BitsStored", allocated)
        return cls(
            rows=integer(dataset, "Rows"),
            columns=integer(dataset, "Columns"),
            frames=int(text(dataset, "NumberOfFrames") or 1),
            samples_per_pixel=integer(dataset, "SamplesPerPixel", 1),
            planar=integer(dataset, "PlanarConfiguration", 0) != 0,
            photometric=text(dataset, "PhotometricInterpretation"),
            bits_allocated=allocated,
            bits=StoredBits(stored, integer(dataset, "HighBit", stored - 1)),
            signed=integer(dataset, "PixelRepresentation", 0) != 0,
        )

    def dtype(self, big_endian: bool) -> str | None:
        """The name of the stored type in volume.DTYPES, None if the samples can't be coded."""
        bits = self.bits_allocated
        if self.samples_per_pixel == 1 and bits in (8, 16, 32) and not (bits == 8 and big_endian):
            return f"{'int' if self.signed else 'uint'}{bits}"
        colours = self.photometric in ("RGB", "YBR_FULL")
        if self.samples_per_pixel == 3 and bits == 8 and not big_endian and colours:
            return "uint8" if self.planar else "rgb24"
        return None


@dataclass(frozen=True, kw_only=True)
class PixelData:
    """The PixelData of a file as slices [rows, columns], one after another or tiles of a mosaic."""

    # Bytes from the beginning of the file to the value of PixelData.
    offset: int
    # A name of volume.DTYPES.
    dtype: str
    big_endian: bool
    # Of one slice.
    rows: int
    columns: int
    slices: int
    # Tiles per side of a mosaic, 0 if there is none.
    tiles: int
    # What objects of one stack have in common besides type, size and the kinds of their frames.
    kind: tuple[Any, ...]
    # What is known of every slice.
    frames: tuple[Frame, ...]
    bits: StoredBits
    # The range of stored values that are padding: (smallest, largest).
    padding: tuple[int, int] | None = None
    sop_class: str = ""
    palette: bool = False

    def value_range(self) -> tuple[int, int] | None:
        """(smallest, largest) value of BitsStored bits, None if these are not the lowest bits."""
        bits = self.bits.stored
        if self.bits.high != bits - 1 or not 0 < bits <= 8 * DTYPES[self.dtype].itemsize:
            return None
        if self.dtype.startswith("int"):
            return -(1 << bits - 1), (1 << bits - 1) - 1
        return 0, (1 << bits) - 1

    @property
    def stack_key(self) -> tuple[Any, ...]:
        """Objects with equal keys form a stack."""
        kinds = frozenset(frame.kind for frame in self.frames)
        return self.dtype, self.big_endian, self.rows, self.columns, self.tiles, self.kind, kinds

    @property
    def planes(self) -> tuple[ImagePlane | None, ...]:
        """The image plane of every slice."""
        return tuple(frame.plane for frame in self.frames)

    @property
    def order(self) -> tuple[float, ...]:
        """That of objects: by their first frame."""
        return (*self.frames[0].order, self.frames[0].number)

    @property
    def slice_bytes(self) -> int:
        return self.rows * self.columns * DTYPES[self.dtype].itemsize

    @property
    def size(self) -> int:
        """Bytes of all slices, unused tiles included."""
        return self.slice_bytes * (self.tiles**2 or self.slices)


def read_pixel_data(
    dataset: Dataset, read: Callable[[int, int], bytes], offset: int, big_endian: bool
) -> PixelData | str:
    """Describe the native PixelData at `offset` of a file, or say why its samples can't be coded.

    read: (offset, size) -> at most that many bytes of the file.
    """
    module = ImagePixelModule.of(dataset)
    rows, columns = module.rows, module.columns
    if rows < 1 or columns < 1 or module.frames < 1:
        return f"{columns} columns, {rows} rows and {module.frames} frames"
    dtype = module.dtype(big_endian)
    if dtype is None:
        return (
            f"{module.samples_per_pixel} x {module.bits_allocated} bits, {module.photometric}: "
            "not taken for voxels"
        )
    tiles = 0
    if module.samples_per_pixel == 3 and module.planar:
        frames = whole_object(dataset, (None,) * (3 * module.frames))
    elif count := _mosaic_slices(dataset, module, read, offset):
        tiles = geometry.tiles_per_side(count)
        rows, columns = rows // tiles, columns // tiles
        (plane,) = geometry.object_planes(dataset, 1)
        planes = geometry.mosaic_planes(dataset, plane, count, (rows, columns))
        frames = whole_object(dataset, planes)
    else:
        frames = frames_of(dataset, module.frames)
    return PixelData(
        offset=offset,
        dtype=dtype,
        big_endian=big_endian and module.bits_allocated > 8,
        rows=rows,
        columns=columns,
        slices=len(frames),
        tiles=tiles,
        kind=_kind(dataset, module),
        frames=frames,
        padding=_padding(dataset, module.signed),
        bits=module.bits,
        sop_class=text(dataset, "SOPClassUID"),
        palette=module.photometric == "PALETTE COLOR",
    )


def frames_of(dataset: Dataset, count: int) -> tuple[Frame, ...]:
    """What is known of the frames of an object that is no mosaic."""
    placed_alone = count == 1 and numbers(dataset, "ImagePositionPatient")
    if is_enhanced(dataset) and not placed_alone:
        return enhanced_frames(dataset, count)
    return whole_object(dataset, geometry.object_planes(dataset, count))


def _mosaic_slices(
    dataset: Dataset, module: ImagePixelModule, read: Callable[[int, int], bytes], offset: int
) -> int:
    """The number of slices of a mosaic whose tiles agree with it, else 0."""
    if module.frames != 1 or module.samples_per_pixel != 1:
        return 0
    count = geometry.mosaic_slices(dataset)
    if not count:
        return 0
    frame = read(offset, module.rows * module.columns * module.bits_allocated // 8)
    return count if geometry.is_mosaic(frame, module.rows, module.columns, count) else 0


def _kind(dataset: Dataset, module: ImagePixelModule) -> tuple[Any, ...]:
    """Sample format and image type, which a stack's objects share."""
    image_type = text(dataset, "ImageType").split("\\")
    return (
        module.bits_allocated,
        module.bits,
        module.samples_per_pixel,
        module.planar,
        module.photometric,
        tuple(image_type[2:3]),
        module.frames > 1,
    )


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """PixelPaddingValue to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2) as (smallest, largest)."""
    if "PixelPaddingValue" not in dataset:
        return None
    value = integer(dataset, "PixelPaddingValue", 0, signed=signed)
    limit = integer(dataset, "PixelPaddingRangeLimit", value, signed=signed)
    return min(value, limit), max(value, limit)
