"""DICOM files grouped into series, and the slices of a series into stacks.

A stack is a volume [k, j, i] or several [t, k, j, i]: slices of equal kind, ordered by their
position along the slice normal, then by acquisition.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mricodec.codec.formats.dicom.arrangement import Part, arrange, in_sequence
from mricodec.codec.formats.dicom.frames import Frame
from mricodec.codec.formats.dicom.pixels import PixelData
from mricodec.codec.formats.dicom.values import SliceValues

from .files import Instance, read_instance
from .sources import Source, Unreadable, find_sources

# Stacks of one series that are coded; the slices of further ones are kept as bytes.
MAX_STACKS = 1024
# Files that may share a slice; further duplicates are kept as bytes.
MAX_SHARING = 8

# Classes of images whose slices have a position in the patient: CT, MR, PET, their enhanced
# variants, segmentations and RT doses.
SPATIAL_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.3",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.128.1",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.481.2",
}


@dataclass(eq=False)
class Series:
    """The files that go into one stream: those of a SeriesInstanceUID, and others near them."""

    uid: str
    instances: list[Instance]
    left_out: list[Unreadable] = field(default_factory=list)

    @property
    def title(self) -> str:
        """SeriesNumber and SeriesDescription, as far as they exist, in printable characters."""
        for instance in self.instances:
            if instance.series_uid and instance.series_uid == self.uid:
                text = f"{instance.series_number} {instance.series_description}"
                return " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(instance.source.size for instance in self.instances)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(file, what is unusual about it)"""
        left_out = [(file.name, f"left out: {file.reason}") for file in self.left_out]
        return left_out + [
            (instance.name, note) for instance in self.instances for note in instance.notes
        ]

    @property
    def damaged(self) -> bool:
        """Whether a file is damaged or could not be read."""
        return bool(self.left_out) or any(instance.damaged for instance in self.instances)


@dataclass(eq=False)
class Stack:
    """Slices that are coded as one array [k, j, i] or [t, k, j, i].

    slices: (instance, index in its pixel data), those of one part after another. parts: the
    volumes; one, except that frames of an enhanced object may be of several kinds. slots: (id of
    an instance, index in its pixel data) -> index in `slices`; duplicates share one.
    """

    members: list[Instance]
    slices: list[tuple[Instance, int]]
    parts: list[Part]
    slots: dict[tuple[int, int], int]

    @property
    def first(self) -> PixelData:
        return _pixels(self.slices[0][0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Parts of one shape are further volumes, others one volume of all their slices."""
        shapes = {part.shape for part in self.parts}
        first = self.parts[0]
        volumes, depth = first.volumes * len(self.parts), first.depth
        if len(shapes) > 1:
            volumes, depth = 1, len(self.slices)
        return (*((volumes,) if volumes > 1 else ()), depth, self.first.rows, self.first.columns)

    @property
    def evenly_spaced(self) -> bool:
        return all(part.evenly_spaced for part in self.parts)

    @property
    def faults(self) -> list[str]:
        """Why slices of a scan can't be placed in a volume."""
        if self.first.sop_class not in SPATIAL_CLASSES:
            return []
        return [part.fault for part in self.parts if part.fault is not None]

    @property
    def rescales(self) -> list[set[tuple[float, float]]]:
        """Of each part the (slope, intercept) of its slices."""
        return [{self._frame(n).rescale for n in part.slices} for part in self.parts]

    @property
    def values(self) -> SliceValues:
        """What the samples of the first part stand for."""
        rescales = [self._frame(n).rescale for n in self.parts[0].slices]
        return SliceValues.of(self.first.bits, rescales)

    def _frame(self, n: int) -> Frame:
        instance, index = self.slices[n]
        return _pixels(instance).frames[index]


def find_series(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Series]:
    """The series in files and folders (searched to any depth); every file is in exactly one.

    Files that belong to no series (DICOMDIR, reports, notes) join the series most common in their
    folder. ValueError if there is no file.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    return series_of(find_sources(paths))


def series_of(sources: Iterable[Source | Unreadable]) -> list[Series]:
    """Read every file and group them by series, as `find_series` does."""
    instances: list[Instance] = []
    left_out: list[Unreadable] = []
    for source in sources:
        if isinstance(source, Unreadable):
            left_out.append(source)
        else:
            instances.append(read_instance(source))
    series = _by_series_uid(instances)
    if left_out and not series:
        raise ValueError(f"{left_out[0].name}: {left_out[0].reason}")
    if series:
        series[0].left_out.extend(left_out)
    return series


def _by_series_uid(instances: list[Instance]) -> list[Series]:
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_uid[instance.series_uid].append(instance)
    others = by_uid.pop("", [])
    if not by_uid:
        return [Series("", others)] if others else []
    folders = {
        uid: Counter(instance.folder for instance in members) for uid, members in by_uid.items()
    }
    for other in others:
        near = max(by_uid, key=lambda uid: (folders[uid][other.folder], len(by_uid[uid])))
        by_uid[near].append(other)
    return [Series(uid, members) for uid, members in by_uid.items()]


def stacks_of(series: Series) -> list[Stack]:
    """The stacks of a series, the largest first; instances in none are kept as bytes."""
    by_key: dict[tuple[Any, ...], list[Instance]] = defaultdict(list)
    for instance in series.instances:
        if instance.pixels is not None:
            by_key[instance.pixels.stack_key].append(instance)
    stacks = sorted(
        (_stack(members) for members in by_key.values()), key=lambda stack: -math.prod(stack.shape)
    )
    for stack in stacks[MAX_STACKS:]:
        for instance, _ in stack.slices:
            instance.keep_as_bytes(
                f"more than {MAX_STACKS} kinds of slices in its series; kept as it is"
            )
    return stacks[:MAX_STACKS]


def _stack(members: list[Instance]) -> Stack:
    members = sorted(members, key=lambda member: (_pixels(member).order, member.name))
    originals = _duplicates(members)
    slices = [
        (instance, n)
        for instance in members
        if id(instance) not in originals
        for n in range(_pixels(instance).slices)
    ]
    parts = arrange([_pixels(instance).frames[n] for instance, n in slices])
    slices = [slices[n] for part in parts for n in part.slices]
    parts = in_sequence(parts)
    slots = {(id(instance), n): slot for slot, (instance, n) in enumerate(slices)}
    for instance in members:
        original = originals.get(id(instance))
        if original is not None:
            for n in range(_pixels(instance).slices):
                slots[id(instance), n] = slots[id(original), n]
    return Stack(members, slices, parts, slots)


def _duplicates(members: Sequence[Instance]) -> dict[int, Instance]:
    """id of an instance -> an earlier one of the same SOPInstanceUID and pixel data; adds notes."""
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    originals: dict[int, Instance] = {}
    for instance in members:
        earlier = by_uid[instance.sop_uid] if instance.sop_uid else []
        for other in earlier:
            same_file = instance.sha256 == other.sha256
            if same_file or _pixel_bytes(instance) == _pixel_bytes(other):
                what = "the same file as" if same_file else "the voxels and the SOPInstanceUID of"
                instance.notes.append(f"a duplicate: {what} {other.name}")
                originals[id(instance)] = other
                break
        else:
            if earlier:
                instance.notes.append(f"the SOPInstanceUID of {earlier[0].name}, but other voxels")
            earlier.append(instance)
    return originals


def _pixel_bytes(instance: Instance) -> bytes:
    pixels = _pixels(instance)
    return instance.source.read(pixels.offset, pixels.size)


def _pixels(instance: Instance) -> PixelData:
    assert instance.pixels is not None
    return instance.pixels
