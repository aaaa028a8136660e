"""Axial slices of the head: what the representation study trains on and measures.

Pixels are stored values mapped to 0 ... 1 by the minimum and maximum of their volume; rows run from
anterior to posterior, columns from the patient's right to the left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mricodec.codec.evaluation.rate_distortion import scan_name
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.tiling import SLAB_SLICES, Tiling
from mricodec.codec.training.data_folder import (
    SPLITS,
    DataFolder,
    LeftOut,
    ScanFile,
    left_out_lines,
    read_data_folder,
)

Picture = NDArray[np.float32]

CONTRASTS = ("T1", "T2", "FLAIR", "DWI")
# Volumes of a 4-D scan that are used: further ones show the same anatomy.
MAX_VOLUMES = 3
# Heights below the vertex: the brain, without the neck.
HEIGHTS_MM = (20.0, 110.0)
# Smallest distance of two slices of a volume: closer ones are nearly the same picture.
MIN_GAP_MM = 3.0
# Largest ratio of the sides of a pixel: other volumes have no axial slices worth the name.
MAX_PIXEL_RATIO = 1.5
# Pixels above this part of the 99.5th percentile are foreground, the others air.
FOREGROUND = 0.1
# Share of the largest foreground area of a slice above which a slice belongs to the head.
HEAD_AREA = 0.05
# Sides of the common grid and of its pixels: 224 mm hold a head.
GRID = 128
GRID_MM = 1.75
# Value of the 99.5th percentile on the common grid.
GRID_BRIGHTNESS = 0.8

# The first pattern that a contrast of the manifest, or a file name, contains gives its class.
_CONTRAST_PATTERNS = (
    (r"FLAIR", "FLAIR"),
    (r"DWI|EPI|BOLD", "DWI"),
    (r"T2", "T2"),
    (r"T1", "T1"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One axial slice."""

    scan: str  # name of its file
    subject: str
    contrast: str  # one of CONTRASTS
    split: str
    height_mm: float  # below the vertex
    pixels: Picture  # [rows, columns], 0 ... 1 is the range of the volume
    pixel_mm: tuple[float, float]
    span: float  # maximum - minimum of the volume, stored units


@dataclass(frozen=True)
class Corpus:
    """The slices of every split, also on the common grid, and what was left out."""

    slices: dict[str, list[Slice]]
    grid: dict[str, Picture]  # [n, GRID, GRID]
    left_out: tuple[LeftOut, ...]
    # Splits without a usable slice, for which those of training stand in.
    substituted: tuple[str, ...]

    def notes(self) -> list[str]:
        """Lines on what is left out, and what the results can't show for lack of data."""
        lines = left_out_lines(self.left_out)
        if self.substituted:
            splits = " and ".join(self.substituted)
            lines.append(
                f"note: no usable slice in {splits}: training slices stand in, "
                "so the figures say nothing about other subjects"
            )
        return lines


def load_corpus(
    folder: Path,
    *,
    every: int = 1,
    scans_per_contrast: int | None = None,
    progress: Callable[[float, str], None] = lambda fraction, label: None,
) -> Corpus:
    """Every n-th slice of the scans of a data folder, or of so many scans of each contrast.

    Where validation or test has no usable slice, training slices stand in, which measures how well
    they are learned but not how well others are. See `read_data_folder` for the folder. OSError,
    FormatError for a damaged scan, ValueError without a usable training slice.
    """
    data = read_data_folder(folder)
    left_out = list(data.left_out)
    slices: dict[str, list[Slice]] = {}
    for n, split in enumerate(SPLITS):

        def report(fraction: float, name: str, n: int = n) -> None:
            progress((n + fraction) / len(SPLITS), name)

        slices[split], refused = read_split(
            data, split, every=every, scans_per_contrast=scans_per_contrast, progress=report
        )
        left_out += refused
    substituted = tuple(split for split in SPLITS if not slices[split])
    if "train" in substituted:
        reasons = "; ".join(sorted({item.reason for item in left_out}))
        raise ValueError(
            f"{folder}: expected axial slices of heads to train on, found none ({reasons})"
        )
    for split in substituted:
        slices[split] = slices["train"]
    grid = {split: on_grid(slices[split]) for split in SPLITS}
    return Corpus(slices, grid, tuple(left_out), substituted)


def read_split(
    data: DataFolder,
    split: str,
    *,
    every: int = 1,
    scans_per_contrast: int | None = None,
    progress: Callable[[float, str], None] = lambda fraction, label: None,
) -> tuple[list[Slice], list[LeftOut]]:
    """The slices of one split in the order of the file names, and which scans are not used."""
    left_out: list[LeftOut] = []
    slices: dict[str, list[Slice]] = {}
    candidates: dict[str, list[ScanFile]] = {contrast: [] for contrast in CONTRASTS}
    for file in data.of(split):
        refusal, contrast = _refusal(file), _contrast(file)
        if refusal is not None:
            left_out.append(LeftOut(file.name, refusal))
        elif contrast is not None:
            candidates[contrast].append(file)
    count, skipped, total = 0, 0, sum(map(len, candidates.values()))
    for contrast, files in candidates.items():
        subjects: set[str] = set()
        for file in files:
            count += 1
            subject = file.manifest.get("subject") or scan_name(file.path)
            if scans_per_contrast is not None and (
                len(subjects) == scans_per_contrast or subject in subjects
            ):
                skipped += 1
                continue
            pictures = _slices_of(file.path, split, subject, contrast, every)
            if pictures:
                subjects.add(subject)
                slices[file.name] = pictures
            else:
                left_out.append(LeftOut(file.name, "no axial slices of a brain with square pixels"))
            progress(count / total, file.name)
    if skipped:
        reason = (
            f"only {scans_per_contrast} scans of each contrast, of different subjects, are read"
        )
        left_out.append(LeftOut(f"{skipped} scans of {split}", reason))
    used = [item for name in sorted(slices) for item in slices[name]]
    return used, left_out


def _refusal(file: ScanFile) -> str | None:
    """The reason not to use a scan, as far as the manifest and the file name tell."""
    body_part = file.manifest.get("body_part") or "head"
    if not body_part.startswith(("head", "brain")):
        return f"no brain: {body_part}"
    if _contrast(file) is None:
        return "contrast none of " + ", ".join(CONTRASTS)
    return None


def _contrast(file: ScanFile) -> str | None:
    return contrast_of(file.manifest.get("contrast") or file.path.name)


def contrast_of(text: str) -> str | None:
    """The class of a manifest's contrast, or of a file name; None if it is none of CONTRASTS."""
    for pattern, contrast in _CONTRAST_PATTERNS:
        if re.search(pattern, text, re.IGNORECASE):
            return contrast
    return None


def read_volumes(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Stored values [t, k, j, i] of at most MAX_VOLUMES volumes, and voxel (i, j, k) -> RAS+ mm."""
    with closing(open_scan(path)) as scan:
        tiling = Tiling(scan.shape, 0, SLAB_SLICES)
        count = min(MAX_VOLUMES, tiling.volumes) * tiling.slabs_per_volume
        slabs = [slab for _, slab in zip(range(count), scan.blocks(tiling), strict=False)]
        spacing = np.diag([*scan.envelope.spacing_mm[::-1], 1.0])
        affine = scan.envelope.affine if scan.envelope.affine is not None else spacing
    return np.concatenate(slabs).reshape(-1, *tiling.volume_shape), affine


def axial(
    volume: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """volume [k, j, i] -> [slices from the vertex down, rows from anterior, columns from the
    patient's right], and the spacings of these axes in mm.

    Axes are permuted and flipped, nothing is resampled: oblique slices stay as they are.
    """
    matrix = affine[:3, :3]
    size = np.linalg.norm(matrix, axis=0)
    cosines = np.abs(matrix / np.where(size > 0, size, 1))
    voxel_axis = [0, 0, 0]  # of i, j, k: the one that runs along the world axes R, A, S
    for _ in range(3):
        world, voxel = np.unravel_index(int(np.argmax(cosines)), (3, 3))
        voxel_axis[world] = int(voxel)
        cosines[world], cosines[:, voxel] = -1, -1
    r, a, s = voxel_axis
    permuted = volume.transpose(2 - s, 2 - a, 2 - r)
    flips = tuple(
        slice(None, None, -1 if matrix[world, voxel_axis[world]] > 0 else 1) for world in (2, 1, 0)
    )
    return permuted[flips], (float(size[s]), float(size[a]), float(size[r]))


def read_scan(path: Path) -> list[Slice]:
    """The slices of one scan, whatever it shows; none where they have no square pixels."""
    return _slices_of(path, "", scan_name(path), contrast_of(path.name) or "", 1)


def _slices_of(path: Path, split: str, subject: str, contrast: str, every: int) -> list[Slice]:
    """Every n-th slice of the volumes of a scan."""
    volumes, affine = read_volumes(path)
    slices = []
    for volume in volumes:
        axials, (gap, row_mm, column_mm) = axial(volume, affine)
        if max(row_mm, column_mm) > MAX_PIXEL_RATIO * min(row_mm, column_mm):
            continue
        low, high = float(axials.min()), float(axials.max())
        if not low < high:
            continue
        scaled = ((axials.astype(np.float32) - low) / (high - low)).astype(np.float32)
        for n, height_mm in _brain_slices(scaled, gap)[::every]:
            slices.append(
                Slice(
                    scan=scan_name(path),
                    subject=subject,
                    contrast=contrast,
                    split=split,
                    height_mm=height_mm,
                    pixels=np.ascontiguousarray(scaled[n]),
                    pixel_mm=(row_mm, column_mm),
                    span=high - low,
                )
            )
    return slices


def _brain_slices(axials: Picture, gap_mm: float) -> list[tuple[int, float]]:
    """Index and height below the vertex of the slices of a head [slices, rows, columns]."""
    areas = foreground(axials).sum((1, 2))
    vertex = int(np.argmax(areas >= HEAD_AREA * areas.max()))
    first = vertex + round(HEIGHTS_MM[0] / gap_mm)
    stop = min(len(axials), vertex + int(HEIGHTS_MM[1] / gap_mm) + 1)
    step = max(1, round(MIN_GAP_MM / gap_mm))
    return [(n, (n - vertex) * gap_mm) for n in range(first, stop, step)]


def foreground(pixels: Picture) -> NDArray[np.bool_]:
    """What is not air, roughly."""
    mask: NDArray[np.bool_] = pixels > FOREGROUND * np.percentile(pixels, 99.5)
    return mask


def on_grid(slices: Sequence[Slice]) -> Picture:
    """[n, GRID, GRID]: every slice at GRID_MM, its head in the middle, at equal brightness.

    Scans differ in how bright their brightest voxel is; here they must look alike, to be mixed and
    compared.
    """
    grid = np.zeros((len(slices), GRID, GRID), np.float32)
    for n, item in enumerate(slices):
        picture = _resampled(item)
        rows, columns = (np.flatnonzero(foreground(picture).mean(axis) > 0.05) for axis in (1, 0))
        start = [(int(m[0] + m[-1]) - GRID) // 2 if len(m) else 0 for m in (rows, columns)]
        inside = tuple(slice(max(s, 0), max(s + GRID, 0)) for s in start)
        part = picture[inside]
        top, left = (max(-s, 0) for s in start)
        grid[n, top : top + part.shape[0], left : left + part.shape[1]] = part
    return grid


def _resampled(item: Slice) -> Picture:
    """A slice with pixels of GRID_MM, its 99.5th percentile at GRID_BRIGHTNESS."""
    height, width = (
        max(1, round(m * mm / GRID_MM))
        for m, mm in zip(item.pixels.shape, item.pixel_mm, strict=True)
    )
    small = F.interpolate(
        torch.from_numpy(item.pixels)[None, None],
        (height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0, 0].numpy()
    brightness = max(float(np.percentile(small, 99.5)), 1e-6)
    clipped: Picture = np.clip(small * (GRID_BRIGHTNESS / brightness), 0, 1)
    return clipped
