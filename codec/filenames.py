"""Names of files: those of streams, and of the scans that are encoded to and decoded from them."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from mricodec.bitstream.container import MAGIC

# Endings of streams; .mric is the alias where .mrc collides with the density maps of cryo-EM.
STREAM_ENDINGS = (".mrc", ".mric")
# Endings of NIfTI files, the longest first.
NIFTI_ENDINGS = (".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img")
# Endings of FreeSurfer scans, which are read but not written.
MGH_ENDINGS = (".mgh.gz", ".mgz", ".mgh")
# Endings of DICOM files, which may have any name.
DICOM_ENDINGS = (".dicom", ".dcm", ".ima")
# Characters, and bytes in UTF-8, of the longest name that is made of the title of a DICOM series.
MAX_TITLE = 80
MAX_TITLE_BYTES = 200


def ends_with(name: str | os.PathLike[str], endings: tuple[str, ...]) -> bool:
    """Whether a name has one of the endings, in any case."""
    return os.fspath(name).lower().endswith(endings)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a stream does."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def stream_path(source: Path) -> Path:
    """Where the stream of a scan, DICOM file or folder goes by default: scan.nii.gz -> scan.mrc."""
    if source.is_dir():
        source = source if source.name not in ("", "..") else source.resolve()
        return source.with_name(source.name + STREAM_ENDINGS[0])
    stem = without_ending(source.name, (*NIFTI_ENDINGS, *MGH_ENDINGS, *DICOM_ENDINGS))
    return source.with_name(stem + STREAM_ENDINGS[0])


def scan_path(stream: Path) -> Path:
    """Where a decoded scan goes by default: scan.mrc -> scan.nii.gz, scan.nii.mrc -> scan.nii."""
    stem = without_ending(stream.name, (*STREAM_ENDINGS, *DICOM_ENDINGS))
    return stream.with_name(stem if ends_with(stem, NIFTI_ENDINGS) else stem + NIFTI_ENDINGS[0])


def folder_path(stream: Path) -> Path:
    """The folder to which the files of a series are restored by default: series.mrc -> series."""
    stem = without_ending(stream.name, (*STREAM_ENDINGS, *DICOM_ENDINGS))
    return stream.with_name(stem if stem != stream.name else stem + "_files")


def series_stem(title: str) -> str:
    """The title of a DICOM series as the name of a file without its ending: 4_t2_tse.

    Letters of every script stay.
    """
    composed = unicodedata.normalize("NFC", title)
    kept = "".join(character if _in_names(character) else "_" for character in composed)
    short = re.sub("_+", "_", kept).strip("_.")[:MAX_TITLE].encode()[:MAX_TITLE_BYTES]
    return short.decode(errors="ignore") or "series"


def _in_names(character: str) -> bool:
    """Whether a character is a letter, a digit, a mark on a letter, or one of . + -"""
    return character.isalnum() or character in ".+-" or unicodedata.category(character)[0] == "M"


def without_ending(name: str, endings: tuple[str, ...]) -> str:
    """A name without the first of the endings that it has."""
    for ending in endings:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name
