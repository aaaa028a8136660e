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

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.formats.dicom.geometry import stack_geometry
from mricodec.codec.formats.dicom.pixels import PixelData

from .files import Instance, read_instance
from .sources import Source, Unreadable, find_sources

# Stacks of one series that are coded; the slices of further ones are kept as bytes.
MAX_STACKS = 1024
# Files that may share a slice; further duplicates are kept as bytes.
MAX_SHARING = 8
# Deviation of slice distances, relative to their mean, up to which they are evenly spaced.
MAX_UNEVENNESS = 0.02
# Distance in mm up to which two slices have the same position.
SAME_POSITION_MM = 1e-3


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
    """Slices that form a volume [k, j, i] or several of them [t, k, j, i].

    slices: (instance, index in its pixel data) in C order of the volumes. slots: (id of an
    instance, index in its pixel data) -> index in `slices`; duplicates share one.
    """

    members: list[Instance]
    slices: list[tuple[Instance, int]]
    volumes: int
    evenly_spaced: bool
    slots: dict[tuple[int, int], int]

    @property
    def first(self) -> PixelData:
        return _pixels(self.slices[0][0])

    @property
    def shape(self) -> tuple[int, ...]:
        volume = (self._depth, self.first.rows, self.first.columns)
        return volume if self.volumes == 1 else (self.volumes, *volume)

    @property
    def _depth(self) -> int:
        return len(self.slices) // self.volumes

    def geometry(self) -> tuple[NDArray[np.float64] | None, tuple[float, float, float]]:
        """(affine: voxel (i, j, k) -> RAS+ mm or None if unknown, spacing of k, j, i in mm)."""
        first, last = (
            _pixels(instance).planes[n]
            for instance, n in (self.slices[0], self.slices[self._depth - 1])
        )
        return stack_geometry(first, last, self._depth, self.first.spacing_mm)

    @property
    def rescale(self) -> tuple[float, float]:
        """(slope, intercept) that all slices have in common, else (1, 0)."""
        pairs = {_pixels(instance).rescale for instance, _ in self.slices}
        return (pairs.pop() if len(pairs) == 1 else None) or (1.0, 0.0)


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
    slices, volumes, evenly_spaced = _by_position(slices)
    slots = {(id(instance), n): slot for slot, (instance, n) in enumerate(slices)}
    for instance in members:
        original = originals.get(id(instance))
        if original is not None:
            for n in range(_pixels(instance).slices):
                slots[id(instance), n] = slots[id(original), n]
    return Stack(members, slices, volumes, evenly_spaced, slots)


def _by_position(
    slices: list[tuple[Instance, int]],
) -> tuple[list[tuple[Instance, int]], int, bool]:
    """(slices ordered by position, number of volumes, whether they are evenly spaced).

    Where every position has equally many slices, the n-th of each are volume n.
    """
    planes = [_pixels(instance).planes[n] for instance, n in slices]
    known = [plane for plane in planes if plane is not None]
    if len(known) < len(planes):
        return slices, 1, len(slices) == 1
    distances = np.array([plane.position for plane in known]) @ known[0].normal
    positions = _equal_positions(distances)
    counts = {len(indices) for indices in positions}
    if len(counts) > 1:
        return [slices[n] for indices in positions for n in indices], 1, False
    volumes = counts.pop()
    ordered = [slices[indices[t]] for t in range(volumes) for indices in positions]
    gaps = np.diff([distances[indices[0]] for indices in positions])
    evenly_spaced = len(gaps) < 2 or float(
        np.abs(gaps - gaps.mean()).max()
    ) <= MAX_UNEVENNESS * float(gaps.mean())
    return ordered, volumes, evenly_spaced


def _equal_positions(distances: NDArray[np.float64]) -> list[list[int]]:
    """Indices of slices grouped by distance along the normal, rising; each group in given order."""
    groups: list[list[int]] = []
    last = -math.inf
    for n in np.argsort(distances, kind="stable").tolist():
        if distances[n] - last > SAME_POSITION_MM:
            groups.append([])
        last = distances[n]
        groups[-1].append(n)
    return [sorted(group) for group in groups]


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
