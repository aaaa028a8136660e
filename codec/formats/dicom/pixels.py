"""The PixelData element of a DICOM object: where its samples are, their type, and the slices in it.

Samples stay as they are stored: neither RescaleSlope nor a mask of BitsStored is ever applied.
Terms: PS3.3 C.7.6.3 (Image Pixel).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mricodec.codec.volume import DTYPES

from . import geometry
from .elements import first_item, functional_groups, integer, is_enhanced, numbers, text
from .geometry import ImagePlane

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
    bits_stored: int
    high_bit: int
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
            bits_stored=stored,
            high_bit=integer(dataset, "HighBit", stored - 1),
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
    # What slices of one stack have in common besides type and size.
    kind: tuple[Any, ...]
    # The image plane of every slice.
    planes: tuple[ImagePlane | None, ...]
    # Distances of slices, rows and columns; 0 where unknown.
    spacing_mm: tuple[float, float, float]
    # RescaleSlope and RescaleIntercept, None if frames differ.
    rescale: tuple[float, float] | None
    # AcquisitionNumber, TemporalPositionIdentifier, InstanceNumber: the order at one position.
    order: tuple[float, ...]
    # The range of stored values that are padding: (smallest, largest).
    padding: tuple[int, int] | None = None
    bits_stored: int = 16
    high_bit: int = 15
    sop_class: str = ""
    palette: bool = False

    def value_range(self) -> tuple[int, int] | None:
        """(smallest, largest) value of BitsStored bits, None if these are not the lowest bits."""
        bits = self.bits_stored
        if self.high_bit != bits - 1 or not 0 < bits <= 8 * DTYPES[self.dtype].itemsize:
            return None
        if self.dtype.startswith("int"):
            return -(1 << bits - 1), (1 << bits - 1) - 1
        return 0, (1 << bits) - 1

    @property
    def stack_key(self) -> tuple[Any, ...]:
        """Slices with equal keys form a stack."""
        return self.dtype, self.big_endian, self.rows, self.columns, self.tiles, self.kind

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
    spacing_mm = geometry.spacing(dataset)
    planes = geometry.frame_planes(dataset, module.frames)
    tiles = 0
    if module.samples_per_pixel == 3 and module.planar:
        planes = (None,) * (3 * module.frames)
    elif count := _mosaic_slices(dataset, module, read, offset):
        tiles = geometry.tiles_per_side(count)
        rows, columns = rows // tiles, columns // tiles
        planes = geometry.mosaic_planes(dataset, planes[0], count, (rows, columns), spacing_mm)
    return PixelData(
        offset=offset,
        dtype=dtype,
        big_endian=big_endian and module.bits_allocated > 8,
        rows=rows,
        columns=columns,
        slices=len(planes),
        tiles=tiles,
        kind=_kind(dataset, module, planes[0], spacing_mm),
        planes=planes,
        spacing_mm=spacing_mm,
        rescale=_rescale(dataset),
        order=_order(dataset),
        padding=_padding(dataset, module.signed),
        bits_stored=module.bits_stored,
        high_bit=module.high_bit,
        sop_class=text(dataset, "SOPClassUID"),
        palette=module.photometric == "PALETTE COLOR",
    )


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


def _kind(
    dataset: Dataset,
    module: ImagePixelModule,
    plane: ImagePlane | None,
    spacing_mm: tuple[float, float, float],
) -> tuple[Any, ...]:
    """Sample format, echo, image type, orientation and spacing, which a stack's slices share."""
    echo = text(dataset, "EchoNumbers") or text(dataset, "EchoTime")
    image_type = text(dataset, "ImageType").split("\\")
    return (
        module.bits_allocated,
        module.bits_stored,
        module.high_bit,
        module.samples_per_pixel,
        module.planar,
        module.photometric,
        echo,
        tuple(image_type[2:3]),
        () if plane is None else plane.orientation,
        module.frames > 1,
        *spacing_mm[1:],
    )


def _rescale(dataset: Dataset) -> tuple[float, float] | None:
    """(RescaleSlope, RescaleIntercept) of the object or of its frames, None if these differ."""
    sources = [dataset]
    if is_enhanced(dataset):
        shared, per_frame = functional_groups(dataset)
        items = [
            first_item(group, "PixelValueTransformationSequence") for group in (shared, *per_frame)
        ]
        sources = [item for item in items if item is not None] or sources
    pairs = set()
    for source in sources:
        slope = numbers(source, "RescaleSlope")
        intercept = numbers(source, "RescaleIntercept")
        usable = len(slope) == 1 and len(intercept) == 1 and slope[0] != 0
        if usable and math.isfinite(slope[0] + intercept[0]):
            pairs.add((slope[0], intercept[0]))
    if not pairs:
        return 1.0, 0.0
    return pairs.pop() if len(pairs) == 1 else None


def _order(dataset: Dataset) -> tuple[float, ...]:
    """The order among instances of one position; -1 where a number is missing."""
    keywords = ("AcquisitionNumber", "TemporalPositionIdentifier", "InstanceNumber")
    values = [numbers(dataset, keyword) for keyword in keywords]
    return tuple(value[0] if value and math.isfinite(value[0]) else -1.0 for value in values)


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """PixelPaddingValue to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2) as (smallest, largest)."""
    if "PixelPaddingValue" not in dataset:
        return None
    value = integer(dataset, "PixelPaddingValue", 0, signed=signed)
    limit = integer(dataset, "PixelPaddingRangeLimit", value, signed=signed)
    return min(value, limit), max(value, limit)
