"""A folder of scans to train on: which files belong to which split, and which are left out and why.

    DATA/train/*.nii.gz  DATA/validation/*.nii.gz  DATA/test/*.nii.gz  DATA/MANIFEST.csv

MANIFEST.csv is optional; its columns are file ("train/scan.nii.gz"), licence and, optionally,
subject, contrast and body_part. Where it exists, a training scan is used only if its licence allows
training. A folder without any of the three sub-folders is a training split by itself. Other
sub-folders, such as maps/ with derived maps and labels, are never read; to use one, name it as the
data folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "validation", "test")

_ALLOWED = re.compile(
    r"\bCC[ -]?BY\b(?![ -]?(NC|ND|SA))|\bCC[0O]\b|\bMIT\b|\bBSD\b|\bPDDL\b|\bApache\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"not stated|no separate data licence|GPL", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """A file or sub-folder that is not used."""

    file: str
    reason: str


@dataclass(frozen=True)
class ScanFile:
    """One NIfTI file of a split."""

    path: Path
    name: str  # relative to the data folder, as in MANIFEST.csv
    split: str
    manifest: dict[str, str] = field(default_factory=dict)  # its row, by column; empty without one


@dataclass(frozen=True)
class DataFolder:
    """The scans of a data folder in the order of their names, and what is left out."""

    path: Path
    scans: tuple[ScanFile, ...]
    left_out: tuple[LeftOut, ...]
    has_manifest: bool

    def of(self, split: str) -> list[ScanFile]:
        return [scan for scan in self.scans if scan.split == split]


def read_data_folder(folder: Path) -> DataFolder:
    """List the scans of `folder`; no scan is opened.

    OSError for a folder that can't be read, ValueError without a scan that may be trained on.
    """
    manifest_path = folder / "MANIFEST.csv"
    has_manifest = manifest_path.exists()
    manifest = read_manifest(manifest_path) if has_manifest else {}
    children = sorted(folder.iterdir())
    splits = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    scans: list[ScanFile] = []
    left_out: list[LeftOut] = []
    for split, split_folder in (splits or {"train": folder}).items():
        for path in sorted(split_folder.iterdir()):
            if not _is_nifti(path):
                continue
            name = path.relative_to(folder).as_posix()
            row = manifest.get(name)
            refusal = None
            if has_manifest and split == "train":
                refusal = licence_refusal(row["licence"] if row else None)
            if refusal is None:
                scans.append(ScanFile(path, name, split, row or {}))
            else:
                left_out.append(LeftOut(name, refusal))
    left_out += [
        LeftOut(f"{child.name}/", _other_folder(child))
        for child in children
        if child.is_dir() and child.name not in splits
    ]
    if not any(scan.split == "train" for scan in scans):
        where = folder / "train" if "train" in splits else folder
        raise ValueError(
            f"{where}: expected at least one NIfTI scan (.nii, .nii.gz) to train on, found none"
            + _summary_of(left_out)
        )
    return DataFolder(folder, tuple(scans), tuple(left_out), has_manifest)


def read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a MANIFEST.csv by their column `file`; ValueError without file and licence."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "licence"} <= rows[0].keys():
        raise ValueError(f"{path}: expected a table with the columns file and licence")
    return {row["file"]: row for row in rows}


def licence_refusal(licence: str | None) -> str | None:
    """The reason not to train on data under this licence, or None."""
    if licence is None:
        return "not in MANIFEST.csv, so its licence is unknown"
    if _REFUSED.search(licence) or not _ALLOWED.search(licence):
        return f"licence not on the list of those that allow training: {licence}"
    return None


def left_out_lines(left_out: Iterable[LeftOut]) -> list[str]:
    """One line for each reason, with all files that it applies to."""
    files: dict[str, list[str]] = {}
    for item in left_out:
        files.setdefault(item.reason, []).append(item.file)
    return [
        f"left out: {', '.join(names)}: {reason}"
        if len(names) == 1
        else f"left out ({len(names)}): {', '.join(names)}: {reason}"
        for reason, names in files.items()
    ]


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _other_folder(folder: Path) -> str:
    count = sum(map(_is_nifti, folder.iterdir()))
    if folder.name == "maps":
        return f"derived maps and labels ({count} files) are no scans to train on"
    return "expected the scans in train/, validation/ and test/; other folders are not read"


def _summary_of(left_out: list[LeftOut]) -> str:
    """ " (left out: …)", or nothing where nothing was left out."""
    files = [item for item in left_out if not item.file.endswith("/")]
    if not files:
        return ""
    return f"; left out: {len(files)}, the first {files[0].file} ({files[0].reason})"
