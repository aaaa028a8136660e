"""Where DICOM slices lie in the patient: image planes, spacing, Siemens mosaics, the affine.

DICOM's axes are LPS (left, posterior, superior), in mm; an affine of this package is RAS+. Terms:
PS3.3 C.7.6.2 (Image Plane) and C.7.6.16.2 (its functional groups).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .elements import integer, numbers, raw_element, text

if TYPE_CHECKING:
    from pydicom import Dataset

# Lengths in mm from here on are no spacing.
MAX_SPACING = 1e6
# The most slices that a mosaic may have.
MAX_MOSAIC_SLICES = 1 << 12
# NumberOfImagesInMosaic of the group SIEMENS MR HEADER.
_NUMBER_OF_IMAGES_IN_MOSAIC = 0x0019100A
# The CSA image header, in each of the blocks that a private creator may reserve.
_CSA_IMAGE_HEADERS = (0x00291010, 0x00291110, 0x00291210)
# The most values of a CSA field that are read.
_MAX_CSA_ITEMS = 64


@dataclass(frozen=True)
class ImagePlane:
    """ImagePositionPatient and ImageOrientationPatient of a slice, in LPS and mm.

    position: centre of the first pixel. row, column: unit vectors along a row and along a column.
    """

    position: tuple[float, float, float]
    row: tuple[float, float, float]
    column: tuple[float, float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.row, self.column)

    @property
    def orientation(self) -> tuple[float, ...]:
        """Row and column vectors, rounded so that slices of one stack agree."""
        return tuple(round(float(v), 2) + 0.0 for v in (*self.row, *self.column))


def object_planes(dataset: Dataset, frames: int) -> tuple[ImagePlane | None, ...]:
    """The image plane of each frame of an object without functional groups; None if unknown."""
    orientation = numbers(dataset, "ImageOrientationPatient")
    first = plane_of(numbers(dataset, "ImagePositionPatient"), orientation)
    offsets = numbers(dataset, "GridFrameOffsetVector")
    if frames == 1:
        return (first,)
    if first is None or len(offsets) != frames or not np.isfinite(offsets).all():
        return (None,) * frames
    return _dose_planes(first, np.array(offsets))


def _dose_planes(first: ImagePlane, offsets: NDArray[np.float64]) -> tuple[ImagePlane, ...]:
    """The planes of an RT dose grid (PS3.3 C.8.8.3.2).

    Offsets are along the normal and relative to the first plane; of axial planes they may be their
    z coordinates instead, and then the first is not 0.
    """
    axial = first.row[2] == 0 and first.column[2] == 0
    direction = np.array([0.0, 0.0, 1.0]) if offsets[0] != 0 and axial else first.normal
    positions = (first.position + direction * offset for offset in offsets - offsets[0])
    return tuple(
        ImagePlane((float(x), float(y), float(z)), first.row, first.column) for x, y, z in positions
    )


def plane_of(position: list[float], orientation: list[float]) -> ImagePlane | None:
    """The plane of an ImagePositionPatient and an ImageOrientationPatient.

    None unless row and column are finite, about of unit length, and about perpendicular.
    """
    if (
        len(position) != 3
        or len(orientation) != 6
        or not np.isfinite([*position, *orientation]).all()
    ):
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(0.9 < length < 1.1 for length in lengths) or abs(row @ column) >= 0.1:
        return None
    x, y, z, *vectors = (*position, *orientation)
    return ImagePlane(
        (x, y, z), (vectors[0], vectors[1], vectors[2]), (vectors[3], vectors[4], vectors[5])
    )


def spacing(dataset: Dataset, measures: Dataset | None = None) -> tuple[float, float, float]:
    """Distances in mm of slices, rows and columns; 0 where unknown.

    measures: the item of PixelMeasuresSequence of an enhanced frame.
    """
    return (_slice_spacing(dataset, measures), *_pixel_spacing(dataset, measures))


def _pixel_spacing(dataset: Dataset, measures: Dataset | None) -> tuple[float, float]:
    """PixelSpacing, else ImagerPixelSpacing: distance of rows, of columns."""
    values = (
        numbers(dataset, "PixelSpacing")
        or numbers(measures, "PixelSpacing")
        or numbers(dataset, "ImagerPixelSpacing")
    )
    if len(values) == 2 and all(0 < value < MAX_SPACING for value in values):
        return values[0], values[1]
    return 0.0, 0.0


def _slice_spacing(dataset: Dataset, measures: Dataset | None) -> float:
    """SpacingBetweenSlices, else SliceThickness."""
    for source in (dataset, measures):
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            values = numbers(source, keyword)
            if len(values) == 1 and 0 < abs(values[0]) < MAX_SPACING:
                return abs(values[0])
    return 0.0


def stack_geometry(
    first: ImagePlane | None,
    last: ImagePlane | None,
    slices: int,
    spacing_mm: tuple[float, float, float],
) -> tuple[NDArray[np.float64] | None, tuple[float, float, float]]:
    """(affine, spacing of k, j, i in mm) of a stack between its first and last slice.

    affine: voxel (i, j, k) -> RAS+ mm by equation C.7.6.2.1-1 of PS3.3 with x and y negated, or
    None where a plane is unknown.
    """
    between, down, across = spacing_mm
    if first is None or last is None:
        return None, spacing_mm
    step = first.normal * (between or 1.0)
    if slices > 1:
        step = (np.array(last.position) - np.array(first.position)) / (slices - 1)
        between = float(np.linalg.norm(step)) or between
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.row) * (across or 1.0)
    affine[:3, 1] = np.array(first.column) * (down or 1.0)
    affine[:3, 2] = step if np.linalg.norm(step) else first.normal * (between or 1.0)
    affine[:3, 3] = first.position
    affine[:2] *= -1
    # Adding 0 turns -0 into 0.
    return affine + 0.0, (between, down, across)


def mosaic_slices(dataset: Dataset) -> int:
    """The number of slices in a Siemens mosaic, 0 if the object is none."""
    if "MOSAIC" not in text(dataset, "ImageType").split("\\"):
        return 0
    count = integer(dataset, _NUMBER_OF_IMAGES_IN_MOSAIC, 0)
    if not count:
        values = _csa_field(dataset, b"NumberOfImagesInMosaic")
        count = int(values[0]) if values else 0
    return count if 1 < count <= MAX_MOSAIC_SLICES else 0


def tiles_per_side(slices: int) -> int:
    """The rows, and columns, of tiles in a mosaic: the smallest square that holds the slices."""
    return math.isqrt(slices - 1) + 1


def is_mosaic(data: bytes, rows: int, columns: int, slices: int) -> bool:
    """Whether a frame divides evenly into tiles, all tiles beyond the slices being 0."""
    side = tiles_per_side(slices)
    if rows % side or columns % side or len(data) % (rows * columns):
        return False
    grid = np.frombuffer(data, np.uint8).reshape(side, rows // side, side, -1)
    tiles = grid.swapaxes(1, 2).reshape(side**2, -1)
    return not tiles[slices:].any()


def mosaic_planes(
    dataset: Dataset,
    frame: ImagePlane | None,
    slices: int,
    tile: tuple[int, int],
) -> tuple[ImagePlane | None, ...]:
    """The image planes of the slices of a mosaic; tile: rows and columns of one.

    The position of the frame is that of a slice as large as the whole mosaic and with the same
    centre as the real first slice.
    """
    between, down, across = spacing(dataset)
    if frame is None or not all((between, down, across)):
        return (None,) * slices
    rows, columns = tile
    gaps = tiles_per_side(slices) - 1
    row, column = np.array(frame.row), np.array(frame.column)
    first = np.array(frame.position)
    first = first + row * across * columns * gaps / 2 + column * down * rows * gaps / 2
    normal = frame.normal
    csa_normal = _csa_field(dataset, b"SliceNormalVector")
    if len(csa_normal) == 3 and np.array(csa_normal) @ normal < 0:
        normal = -normal
    positions = [(first + normal * between * n).tolist() for n in range(slices)]
    return tuple(ImagePlane((x, y, z), frame.row, frame.column) for x, y, z in positions)


def _csa_field(dataset: Dataset, name: bytes) -> list[float]:
    """Numbers of a field of the Siemens CSA image header; [] if it has none.

    Layout: nibabel.nicom.csareader.
    """
    header = b""
    for tag in _CSA_IMAGE_HEADERS:
        value = getattr(raw_element(dataset, tag), "value", None)
        if isinstance(value, bytes) and value[:4] == b"SV10":
            header = value
            break
    offset = header.find(name + b"\0") if header else -1
    if offset < 0 or offset + 84 > len(header):
        return []
    (items,) = struct.unpack_from("<i", header, offset + 76)
    offset += 84
    values: list[float] = []
    for _ in range(max(0, min(items, _MAX_CSA_ITEMS))):
        if offset + 16 > len(header):
            break
        length = max(0, struct.unpack_from("<i", header, offset + 4)[0])
        item = header[offset + 16 : offset + 16 + length].split(b"\0")[0].strip()
        try:
            values += [float(item)] if item else []
        except ValueError:
            return []
        # Items are padded to a multiple of four bytes.
        offset += 16 + (length + 3) // 4 * 4
    return values
