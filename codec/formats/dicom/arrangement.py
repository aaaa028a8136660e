"""The slices of a stack put into volumes: by kind, by position along the normal, then by time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frames import Frame
from .geometry import stack_geometry

# Deviation of slice distances, relative to their mean, up to which they are evenly spaced.
MAX_UNEVENNESS = 0.02
# Distance in mm up to which two slices have the same position.
SAME_POSITION_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Part:
    """Slices of one kind: a volume [k, j, i], or several [t, k, j, i].

    slices: their numbers in the stack, in C order of the volumes. evenly_spaced: whether all
    distances are alike. fault: why they are no volumes, None if they are.
    """

    slices: tuple[int, ...]
    volumes: int
    evenly_spaced: bool
    fault: str | None
    affine: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float]

    @property
    def depth(self) -> int:
        return len(self.slices) // self.volumes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the axes before j and i."""
        return (self.depth,) if self.volumes == 1 else (self.volumes, self.depth)


def arrange(frames: Sequence[Frame]) -> list[Part]:
    """The parts of a stack, the largest first; every slice is in exactly one."""
    by_kind: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for n, frame in enumerate(frames):
        by_kind[frame.kind].append(n)
    groups = sorted(by_kind.values(), key=len, reverse=True)
    return [_part(frames, group) for group in groups]


def in_sequence(parts: list[Part]) -> list[Part]:
    """The parts when their slices stand one after another in the stack."""
    ends = np.cumsum([len(part.slices) for part in parts]).tolist()
    return [
        replace(part, slices=tuple(range(end - len(part.slices), end)))
        for part, end in zip(parts, ends, strict=True)
    ]


def _part(frames: Sequence[Frame], group: list[int]) -> Part:
    """The part of the slices of one group, which come in the order of the stack."""
    planes = [plane for n in group if (plane := frames[n].plane) is not None]
    if len(planes) < len(group):
        fault = "position or orientation is missing" if len(group) > 1 else None
        return _finished(frames, group, 1, len(group) == 1, fault)
    distances = np.array([plane.position for plane in planes]) @ planes[0].normal
    positions = _equal_positions(distances)
    ordered = _by_time(frames, [[group[n] for n in position] for position in positions])
    counts = {len(position) for position in positions}
    if len(counts) > 1:
        fault = f"{min(counts)} to {max(counts)} slices share a position, not equally many"
        flat = [n for position in ordered for n in position]
        return _finished(frames, flat, 1, False, fault)
    volumes = counts.pop()
    gaps = np.diff([distances[position[0]] for position in positions])
    evenly_spaced = len(gaps) < 2 or float(
        np.abs(gaps - gaps.mean()).max()
    ) <= MAX_UNEVENNESS * float(gaps.mean())
    flat = [position[t] for t in range(volumes) for position in ordered]
    return _finished(frames, flat, volumes, evenly_spaced, None)


def _finished(
    frames: Sequence[Frame], slices: list[int], volumes: int, evenly_spaced: bool, fault: str | None
) -> Part:
    depth = len(slices) // volumes
    first, last = frames[slices[0]], frames[slices[depth - 1]]
    affine, spacing_mm = stack_geometry(first.plane, last.plane, depth, first.spacing_mm)
    return Part(tuple(slices), volumes, evenly_spaced, fault, affine, spacing_mm)


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


def _by_time(frames: Sequence[Frame], positions: list[list[int]]) -> list[list[int]]:
    """The slices at each position in the order of their volumes.

    That of InstanceNumber, if it makes volumes of one time each; else that of the attributes of
    time and diffusion. So does dcm2niix order the volumes of a diffusion series, which its .bval
    lists, and where Philips numbers them it follows InstanceNumber only if that counts slice by
    slice. What Philips derives comes last.
    """
    derived_last = min(sum(not frames[n].derived for n in position) for position in positions) > 1

    def last(n: int) -> bool:
        return derived_last and frames[n].derived

    counted = [
        sorted(position, key=lambda n: (last(n), frames[n].number)) for position in positions
    ]
    if _is_counted(frames, counted):
        return counted
    return [
        sorted(position, key=lambda n: (last(n), frames[n].order, frames[n].number))
        for position in positions
    ]


def _is_counted(frames: Sequence[Frame], positions: list[list[int]]) -> bool:
    """Whether InstanceNumber tells the volumes apart, each of which has one time."""
    numbers = [[frames[n].number for n in position] for position in positions]
    count = len(numbers[0])
    if any(len(set(at)) < count or len(at) != count or min(at) < 0 for at in numbers):
        return False
    volumes = zip(*positions, strict=True)
    if any(len({frames[n].order for n in volume}) > 1 for volume in volumes):
        return False
    return not frames[positions[0][0]].numbered or _slice_by_slice(np.sort(numbers))


def _slice_by_slice(numbers: NDArray[np.float64]) -> bool:
    """Whether numbers [position, volume] rise along the slices of a volume, then by volume."""
    steps = np.diff(numbers, axis=0)
    in_volumes = (steps > 0).all() or (steps < 0).all()
    return bool(in_volumes and (numbers[:, :-1].max(0) < numbers[:, 1:].min(0)).all())
