"""Listing what a stream carries besides its voxels that may identify a person (PHI)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.codec.formats.dicom.elements import is_dicom, quiet_pydicom
from mricodec.codec.formats.free_text import list_free_text
from mricodec.codec.pipeline.series import series_headers
from mricodec.codec.pipeline.stream import Source, Stream, opened

from .ps3_15 import ACTIONS, is_overlay_or_curve

if TYPE_CHECKING:
    from pydicom import Dataset

# Characters of a value that are listed.
MAX_SHOWN = 100
# Different values of an attribute that are listed.
MAX_VALUES = 3


@dataclass(frozen=True)
class Finding:
    """An attribute that may identify a person, and its values in the files of a stream.

    name: a keyword of DICOM, a field of NIfTI. values: the first few different ones. count: of all
    different ones.
    """

    name: str
    values: tuple[str, ...]
    count: int


def identifying(source: Source, *, limits: Limits | None = None) -> list[Finding]:
    """What a stream carries besides its voxels that may identify a person; nothing is decoded.

    DICOM: the attributes of PS3.15 Table E.1-1 that have a value, names of persons, private
    attributes by their creator, overlays, and the names of the files. NIfTI: free text, extensions,
    and bytes around the voxels. FormatError if the stream is damaged.
    """
    listing = _Listing()
    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        if stream.table is None:
            for name, value in list_free_text(stream.envelope):
                listing.add(name, value)
        else:
            for name, header in series_headers(file, limits=limits):
                listing.add("file name", name)
                listing.add_file(name, header)
    return listing.findings()


class _Listing:
    """The different values of every attribute, in the order in which they were added."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, None]] = {}

    def findings(self) -> list[Finding]:
        return [
            Finding(name, tuple(values)[:MAX_VALUES], len(values))
            for name, values in self._values.items()
        ]

    def add(self, name: str, value: str) -> None:
        shown = value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + " ..."
        self._values.setdefault(name, {})[shown] = None

    def add_file(self, name: str, header: bytes) -> None:
        """header: the bytes around the pixel data, b"" if the file is kept as one piece."""
        from pydicom import dcmread

        if not header:
            self.add("kept as a whole, not looked into", name)
            return
        try:
            with quiet_pydicom():
                dataset = dcmread(
                    io.BytesIO(header), stop_before_pixels=True, force=not is_dicom(header)
                )
                self._add_dataset(dataset.file_meta, "")
                self._add_dataset(dataset, "")
        except MemoryError:
            raise
        except Exception as error:  # pydicom passes on errors of many types.
            self.add("not readable as DICOM", f"{name}: {' '.join(str(error).split())}")

    def _add_dataset(self, dataset: Dataset, path: str) -> None:
        for element in dataset:
            tag = element.tag
            name = path + (element.keyword or f"({tag.group:04X},{tag.element:04X})")
            if tag.is_private:
                if not tag.is_private_creator:
                    creator = element.private_creator or "unknown"
                    number = f"({tag.group:04X},xx{tag.element & 0xFF:02X})"
                    self.add("private attributes", f"{creator} {number}")
            elif is_overlay_or_curve(tag):
                self.add("overlays and curves", f"group {tag.group:04X}")
            elif element.VR == "SQ":
                for item in element.value:
                    self._add_dataset(item, f"{name}.")
            elif not element.is_empty and (int(tag) in ACTIONS or element.VR == "PN"):
                value = element.value
                self.add(name, f"{len(value)} bytes" if isinstance(value, bytes) else str(value))
