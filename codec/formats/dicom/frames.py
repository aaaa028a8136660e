"""What the slices of a DICOM object say of themselves: position, kind, order in time, rescale.

Enhanced objects say it in functional groups (PS3.3 C.7.6.16), others in the data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .elements import (
    binary_numbers,
    first_item,
    functional_groups,
    numbers,
    raw_element,
    text,
)
from .geometry import ImagePlane, plane_of, spacing
from .values import UNSCALED, rescale

if TYPE_CHECKING:
    from pydicom import Dataset

# DimensionIndexPointers that say where a frame is, not when.
_SPATIAL_POINTERS = {
    0x00209056,  # StackID
    0x00209057,  # InStackPositionNumber
    0x00200032,  # ImagePositionPatient
    0x00209301,  # ImagePositionVolume
    0x00201041,  # SliceLocation
}
# Of these, those by which the significance of dimensions is told (see `_dimension_order`).
_POSITION_POINTERS = {0x00209057, 0x00200032}
# Private attributes of Philips: the item of a frame, and of an image the number of its diffusion
# volume, of its b-value and of its gradient, the b-value, and the gradient as three components.
_PHILIPS_FRAME = 0x2005140F
_PHILIPS_VOLUME, _PHILIPS_B_NUMBER, _PHILIPS_GRADIENT_NUMBER = 0x20051596, 0x20051412, 0x20051413
_PHILIPS_B_VALUE, _PHILIPS_GRADIENT = 0x20011003, (0x200510B0, 0x200510B1, 0x200510B2)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A slice of an object.

    kind: frames of one volume have it in common. spacing_mm: of slices, rows and columns; 0 where
    unknown. order: that of the frames at one position. number: InstanceNumber where it counts
    slices, else -1. numbered: whether order is the number that Philips gives a volume. derived: an
    isotropic image or map that Philips computes into a diffusion series.
    """

    plane: ImagePlane | None
    kind: tuple[Any, ...]
    spacing_mm: tuple[float, float, float]
    order: tuple[float, ...]
    number: float = -1.0
    numbered: bool = False
    derived: bool = False
    rescale: tuple[float, float] = UNSCALED


def whole_object(dataset: Dataset, planes: tuple[ImagePlane | None, ...]) -> tuple[Frame, ...]:
    """The slices of an object without functional groups; planes: of each of them."""
    is_philips = _is_philips(dataset)
    volume = numbers(dataset, _PHILIPS_VOLUME)[:1] if is_philips else []
    instance = _instance_order(dataset)
    diffusion = volume or (_diffusion_numbers(dataset) if is_philips else [])
    echo = text(dataset, "EchoNumbers") or text(dataset, "EchoTime")
    spacing_mm = spacing(dataset)
    derived = is_philips and _is_isotropic(dataset, dataset)
    return tuple(
        Frame(
            plane=plane,
            kind=(_orientation(plane), *spacing_mm[1:], echo),
            spacing_mm=spacing_mm,
            order=(*instance[:2], *diffusion),
            number=instance[2],
            numbered=bool(volume),
            derived=derived,
            rescale=rescale(dataset) or UNSCALED,
        )
        for plane in planes
    )


def enhanced_frames(dataset: Dataset, count: int) -> tuple[Frame, ...]:
    """The frames of an object with functional groups."""
    shared, per_frame = functional_groups(dataset)
    groups = [_Groups(dataset, shared, group) for group in per_frame[:count]]
    groups += [_Groups(dataset, shared, None)] * (count - len(groups))
    dimensions = _dimension_order(dataset, groups)
    instance = _instance_order(dataset)
    is_philips = _is_philips(dataset)
    return tuple(
        Frame(
            plane=(plane := group.plane()),
            kind=(_orientation(plane), *(spacing_mm := group.spacing_mm())[1:], *group.kind()),
            spacing_mm=spacing_mm,
            order=(*instance, *order),
            derived=is_philips and group.isotropic(),
            rescale=group.rescale(),
        )
        for group, order in zip(groups, dimensions, strict=True)
    )


@dataclass(frozen=True)
class _Groups:
    """The functional groups of one frame: its own, else those that all frames share."""

    dataset: Dataset
    shared: Dataset | None
    per_frame: Dataset | None

    def item(self, tag: str | int) -> Dataset | None:
        return first_item(self.per_frame, tag) or first_item(self.shared, tag)

    def plane(self) -> ImagePlane | None:
        position = numbers(self.item("PlanePositionSequence"), "ImagePositionPatient")
        orientation = numbers(self.item("PlaneOrientationSequence"), "ImageOrientationPatient")
        return plane_of(position, orientation)

    def kind(self) -> tuple[Any, ...]:
        """Echo time and complex component."""
        frame_type = self.item("MRImageFrameTypeSequence")
        return (
            *binary_numbers(self.item("MREchoSequence"), "EffectiveEchoTime", "d"),
            text(frame_type, "ComplexImageComponent"),
        )

    def spacing_mm(self) -> tuple[float, float, float]:
        return spacing(self.dataset, self.item("PixelMeasuresSequence"))

    def rescale(self) -> tuple[float, float]:
        item = self.item("PixelValueTransformationSequence")
        return rescale(item) or rescale(self.dataset) or UNSCALED

    def isotropic(self) -> bool:
        return _is_isotropic(self.item("MRDiffusionSequence"), self.item(_PHILIPS_FRAME))

    def dimension_indices(self) -> list[float]:
        return binary_numbers(self.item("FrameContentSequence"), "DimensionIndexValues", "I")

    def fallback_order(self) -> tuple[float, ...]:
        content = self.item("FrameContentSequence")
        time = binary_numbers(content, "TemporalPositionIndex", "I")
        return tuple(time[:1]) or (0.0,)

    def philips_volume(self) -> list[float]:
        return numbers(self.item(_PHILIPS_FRAME), _PHILIPS_VOLUME)[:1]


def _dimension_order(dataset: Dataset, groups: list[_Groups]) -> list[tuple[float, ...]]:
    """The order of each frame at its position, by DimensionIndexValues without those of space.

    Vendors disagree which dimension is the most significant. As in dcm2niix it is the last where
    the position within the stack is not the last one that varies, else the first.
    """
    volumes = [group.philips_volume() for group in groups]
    if all(volumes):
        return [(volume[0],) for volume in volumes]
    indices = [group.dimension_indices() for group in groups]
    pointers = _dimension_pointers(dataset)
    if not indices[0] or any(len(values) != len(indices[0]) for values in indices):
        return [group.fallback_order() for group in groups]
    varying = [n for n, values in enumerate(zip(*indices, strict=True)) if len(set(values)) > 1]
    positions = [n for n, pointer in enumerate(pointers) if pointer in _POSITION_POINTERS]
    reverse = (positions[-1] if positions else 0) < (varying[-1] if varying else 0)
    chosen = [n for n in varying if n >= len(pointers) or pointers[n] not in _SPATIAL_POINTERS]
    if not chosen:
        return [group.fallback_order() for group in groups]
    step = -1 if reverse else 1
    return [tuple(values[n] for n in chosen[::step]) for values in indices]


def _dimension_pointers(dataset: Dataset) -> list[int]:
    """The attributes that the dimensions are indices of; 0 for a damaged one."""
    if "DimensionIndexSequence" not in dataset:
        return []
    pointers = []
    for item in dataset["DimensionIndexSequence"].value or ():
        element = raw_element(item, "DimensionIndexPointer")
        value = getattr(element, "value", None)
        if isinstance(value, bytes) and len(value) == 4:
            order = "little" if element.is_little_endian else "big"
            halves = [int.from_bytes(value[n : n + 2], order) for n in (0, 2)]  # type: ignore[arg-type]
            pointers.append(halves[0] << 16 | halves[1])
        else:
            pointers.append(int(value) if isinstance(value, int) else 0)
    return pointers


def _orientation(plane: ImagePlane | None) -> tuple[float, ...]:
    return () if plane is None else plane.orientation


def _instance_order(dataset: Dataset) -> tuple[float, float, float]:
    """AcquisitionNumber, TemporalPositionIdentifier, InstanceNumber; -1 where one is missing."""
    keywords = ("AcquisitionNumber", "TemporalPositionIdentifier", "InstanceNumber")
    values = [numbers(dataset, keyword) for keyword in keywords]
    known = [value[0] if value and math.isfinite(value[0]) else -1.0 for value in values]
    return known[0], known[1], known[2]


def _is_philips(dataset: Dataset) -> bool:
    return text(dataset, "Manufacturer").lower().startswith("philips")


def _diffusion_numbers(dataset: Dataset) -> list[float]:
    """The numbers that Philips gives the b-value and the gradient."""
    tags = (_PHILIPS_B_NUMBER, _PHILIPS_GRADIENT_NUMBER)
    return [number for tag in tags for number in numbers(dataset, tag)[:1]]


def _is_isotropic(diffusion: Dataset | None, private: Dataset | None) -> bool:
    """Whether an image is weighted, but in no direction.

    diffusion: what has the standard's attributes; private: what has those of Philips.
    """
    if text(diffusion, "DiffusionDirectionality") == "ISOTROPIC":
        return True
    weight = binary_numbers(diffusion, "DiffusionBValue", "d") or binary_numbers(
        private, _PHILIPS_B_VALUE, "f"
    )
    if not weight or weight[0] == 0:
        return False
    directions = first_item(diffusion, "DiffusionGradientDirectionSequence") or diffusion
    gradient = binary_numbers(directions, "DiffusionGradientOrientation", "d")
    for tag in _PHILIPS_GRADIENT if not gradient else ():
        gradient += binary_numbers(private, tag, "f")
    return not any(gradient)
