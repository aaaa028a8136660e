"""Axial slices of the head from a corpus: what the representation study looks at.

A corpus is a folder with train/, validation/ and test/ and, where there is one, MANIFEST.csv (columns file, licence,
subject, contrast, body_part). Pixels are stored values mapped to 0 ... 1 by the minimum and maximum of their volume, rows
from anterior to posterior, columns from the patient's right to the left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.evaluation.rate_distortion import scan_name
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.tiling import SLAB_SLICES, Tiling
from mricodec.codec.training.cache import LeftOut, licence_refusal, read_manifest

CONTRASTS = ("T1", "T2", "FLAIR", "DWI")
SPLITS = ("train", "validation", "test")
VOLUMES = 3  # of a 4-D scan: further ones show the same anatomy
HEIGHTS_MM = (20.0, 110.0)  # below the vertex: the brain, without the neck
MIN_GAP_MM = 3.0  # between slices of one volume: thinner ones repeat each other
SQUARE = (
    1.5  # largest ratio of the pixel's sides: other volumes have no axial slices worth the name
)
FOREGROUND = 0.1  # of the 99.5th percentile
GRID = 128  # pixels a side of the common grid
GRID_MM = 1.75  # side of its pixels: 224 mm hold a head
_KINDS = ((r"FLAIR", "FLAIR"), (r"DWI|EPI|BOLD", "DWI"), (r"T2", "T2"), (r"T1", "T1"))


@dataclass(frozen=True, eq=False)
class Slice:
    """One axial slice."""

    scan: str  # name of its file
    subject: str
    contrast: str  # one of CONTRASTS
    split: str
    height_mm: float  # below the vertex
    pixels: NDArray[np.float32]  # [rows, columns], 0 ... 1 is the range of the volume
    pixel_mm: tuple[float, float]
    span: float  # maximum - minimum of the volume, stored units


def read_corpus(
    folder: Path, split: str, *, every: int = 1, scans: int | None = None
) -> tuple[list[Slice], list[LeftOut]]:
    """The slices of `folder/split`, every n-th of each volume, of the first `scans` scans; and what was left out, and why.

    From train/ only scans whose licence allows training are taken, where there is a MANIFEST.csv. OSError without the
    folder, FormatError for a file that is no scan.
    """
    manifest = read_manifest(folder / "MANIFEST.csv")
    found: list[Slice] = []
    left_out: list[LeftOut] = []
    taken = 0
    for path in sorted((folder / split).iterdir()):
        if not path.name.endswith((".nii", ".nii.gz")) or (scans is not None and taken >= scans):
            continue
        row = manifest.get(f"{split}/{path.name}", {})
        reason = None
        if manifest and split == "train":
            reason = licence_refusal(row.get("licence"))
        if not row.get("body_part", "head").startswith(("head", "brain")):
            reason = f"no brain: {row['body_part']}"
        contrast = contrast_of(row.get("contrast") or path.name)
        if reason is None and contrast is None:
            reason = "contrast none of " + ", ".join(CONTRASTS)
        if reason is None:
            slices = _slices_of(
                path, split, row.get("subject") or scan_name(path), contrast or "", every
            )
            reason = None if slices else "no axial slices with square pixels"
            found += slices
            taken += bool(slices)
        if reason is not None:
            left_out.append(LeftOut(f"{split}/{path.name}", reason))
    return found, left_out


def contrast_of(text: str) -> str | None:
    """The class of a manifest's contrast, or of a file name; None if it is none of CONTRASTS."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, text, re.IGNORECASE)), None)


def read_volumes(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Stored values [t, k, j, i] of at most VOLUMES volumes, and the affine (voxel (i, j, k) -> RAS+ mm)."""
    with closing(open_scan(path)) as scan:
        tiling = Tiling(scan.shape, 0, SLAB_SLICES)
        wanted = min(VOLUMES, tiling.volumes) * tiling.slabs_per_volume
        slabs = [slab for _, slab in zip(range(wanted), scan.blocks(tiling), strict=False)]
        spacing = np.diag([*scan.envelope.spacing_mm[::-1], 1.0])
        affine = scan.envelope.affine if scan.envelope.affine is not None else spacing
    return np.concatenate(slabs).reshape(-1, *tiling.volume_shape), affine


def axial(
    volume: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """volume [k, j, i] -> [slices from the vertex down, rows from anterior, columns from the right], spacings in mm.

    Axes are turned and flipped, nothing is resampled: oblique slices stay as they are.
    """
    matrix = affine[:3, :3]
    size = np.linalg.norm(matrix, axis=0)
    cosines = np.abs(matrix / np.where(size > 0, size, 1))
    axes = [0, 0, 0]  # voxel axis (i, j, k) of the world axes R, A, S
    for _ in range(3):
        world, voxel = np.unravel_index(int(np.argmax(cosines)), (3, 3))
        axes[world] = int(voxel)
        cosines[world], cosines[:, voxel] = -1, -1
    r, a, s = axes
    turned = volume.transpose(2 - s, 2 - a, 2 - r)
    down = tuple(
        slice(None, None, -1 if matrix[world, axes[world]] > 0 else 1) for world in (2, 1, 0)
    )
    return turned[down], (float(size[s]), float(size[a]), float(size[r]))


def read_scan(path: Path) -> list[Slice]:
    """The slices of one scan, whatever it shows; none where they have no square pixels."""
    return _slices_of(path, "", scan_name(path), contrast_of(path.name) or "", 1)


def _slices_of(path: Path, split: str, subject: str, contrast: str, every: int) -> list[Slice]:
    volumes, affine = read_volumes(path)
    out = []
    for volume in volumes:
        turned, (gap, row_mm, column_mm) = axial(volume, affine)
        if max(row_mm, column_mm) > SQUARE * min(row_mm, column_mm):
            continue
        low, high = float(turned.min()), float(turned.max())
        if not low < high:
            continue
        scaled = ((turned.astype(np.float32) - low) / (high - low)).astype(np.float32)
        areas = foreground(scaled).sum((1, 2))
        top = int(np.argmax(areas >= 0.05 * areas.max()))
        step = max(1, round(MIN_GAP_MM / gap)) * every
        first = top + round(HEIGHTS_MM[0] / gap)
        for n in range(first, min(len(scaled), top + int(HEIGHTS_MM[1] / gap) + 1), step):
            pixels = np.ascontiguousarray(scaled[n])
            height = (n - top) * gap
            out.append(
                Slice(
                    scan_name(path),
                    subject,
                    contrast,
                    split,
                    height,
                    pixels,
                    (row_mm, column_mm),
                    high - low,
                )
            )
    return out


def foreground(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What is not air, roughly: above a tenth of the 99.5th percentile."""
    mask: NDArray[np.bool_] = pixels > FOREGROUND * np.percentile(pixels, 99.5)
    return mask


def on_grid(slices: Sequence[Slice]) -> NDArray[np.float32]:
    """[n, GRID, GRID]: every slice at GRID_MM, its head in the middle, its 99.5th percentile at 0.8.

    Scans differ in how bright their brightest voxel is; here they must look alike, to be mixed and compared.
    """
    import torch
    import torch.nn.functional as F

    out = np.zeros((len(slices), GRID, GRID), np.float32)
    for n, item in enumerate(slices):
        height, width = (
            max(1, round(m * mm / GRID_MM))
            for m, mm in zip(item.pixels.shape, item.pixel_mm, strict=True)
        )
        picture = torch.from_numpy(item.pixels)[None, None]
        small = F.interpolate(
            picture, (height, width), mode="bilinear", antialias=True, align_corners=False
        )[0, 0].numpy()
        small = np.clip(small * (0.8 / max(float(np.percentile(small, 99.5)), 1e-6)), 0, 1)
        rows, columns = (np.flatnonzero(foreground(small).mean(axis) > 0.05) for axis in (1, 0))
        start = [(int(m[0] + m[-1]) - GRID) // 2 if len(m) else 0 for m in (rows, columns)]
        stop = [s + GRID for s in start]
        inside = tuple(slice(max(s, 0), max(e, 0)) for s, e in zip(start, stop, strict=True))
        part = small[inside]
        top, left = (max(-s, 0) for s in start)
        out[n, top : top + part.shape[0], left : left + part.shape[1]] = part
    return out
