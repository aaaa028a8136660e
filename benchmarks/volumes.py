"""The volumes that the committed results were measured on, and the scans of a data folder.

    python -m benchmarks.volumes DATA

compares DATA (folders test/, validation/, maps/, dicom/) with `volumes.csv`: source repository,
commit, licence and SHA-256 of every volume. The digest of a folder of DICOM files is that of
`cd FOLDER && LC_ALL=C sha256sum * | sha256sum`.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from mricodec.codec.evaluation.rate_distortion import scan_name, sha256_of_file

LIST = Path(__file__).parent / "volumes.csv"
# Folders of a data folder that hold scans; the first is the one that is measured by default.
SPLITS = ("test", "validation", "maps", "train")
SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ListedVolume:
    """A row of volumes.csv."""

    # Path in a data folder, such as "test/saganon_1449c1d_T1w.nii.gz".
    file: str
    repository: str
    commit: str
    licence: str
    sha256: str

    @property
    def split(self) -> str:
        return self.file.partition("/")[0]

    @property
    def name(self) -> str:
        return scan_name(self.file)


def listed() -> list[ListedVolume]:
    """Every row of volumes.csv."""
    with LIST.open(newline="", encoding="utf-8") as file:
        return [ListedVolume(**row) for row in csv.DictReader(file)]


def scans(data: Sequence[Path], split: str = SPLITS[0]) -> list[Path]:
    """Scans themselves, those in a folder, or those in the folder `split` of a data folder.

    ValueError if a folder holds none.
    """
    paths: list[Path] = []
    for path in data:
        if path.is_file():
            paths.append(path)
            continue
        inside = _nifti_files(path) or _nifti_files(path / split)
        if not inside:
            raise ValueError(f"{path}: expected NIfTI scans in it or in {path / split}, found none")
        paths += inside
    return paths


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def differences(paths: Sequence[Path], split: str = SPLITS[0]) -> list[str]:
    """What separates the scans `paths` from the volumes of a split: other bytes, or none at all.

    Scans that are not listed don't matter, and nothing is missing if no scan is a listed one.
    """
    by_name = {volume.name: volume for volume in listed() if volume.split == split}
    present = {scan_name(path): path for path in paths if scan_name(path) in by_name}
    lines = [
        f"{path}: SHA-256 differs from {LIST.name}: not the volume of the committed results"
        for name, path in present.items()
        if digest(path) != by_name[name].sha256
    ]
    if len(present) > 1:
        lines += [_missing(volume) for name, volume in by_name.items() if name not in present]
    return lines


def _missing(volume: ListedVolume) -> str:
    return f"{volume.file}: missing; from {volume.repository} at {volume.commit}"


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its listing of digests and names."""
    if path.is_file():
        return sha256_of_file(path)
    lines = [f"{sha256_of_file(file)}  {file.name}\n" for file in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(data: Path) -> None:
    """Compare the data folder DATA with volumes.csv; exit code 1 if a volume differs or lacks."""
    faults = 0
    for volume in listed():
        path = data / volume.file
        if not path.exists():
            line = _missing(volume)
        elif digest(path) != volume.sha256:
            line = f"{volume.file}: SHA-256 differs"
        else:
            click.echo(f"{volume.file}: as listed")
            continue
        faults += 1
        click.echo(line)
    if faults:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
