"""DICOM files, read and never re-serialised: head | pixel data | tail.

Only native pixel data is cut out; a file whose pixel data is compressed or can't be coded, and a
file that is no DICOM, is kept as the bytes it is. No pixel decoder is needed. Terms: PS3.5, PS3.10.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mricodec.codec.formats.dicom.elements import (
    PREFIX_SIZE,
    decoded_text,
    is_bare_dataset,
    is_dicom,
    quiet_pydicom,
    raw_element,
    text,
)
from mricodec.codec.formats.dicom.pixels import PixelData, read_pixel_data
from mricodec.codec.formats.dicom.wrapped import is_wrapped

from .sources import Source, SourceReader

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

# Endings of the names of files that are damaged if they are no DICOM.
SUFFIXES = (".dcm", ".dicom", ".ima")
# Bytes of head and tail up to which they are kept apart from the pixel data.
MAX_HEADER_BYTES = 32 << 20
# Bytes of a file that are hashed at a time.
HASH_PIECE_BYTES = 1 << 24
# Transfer syntaxes with native (uncompressed) pixel data (PS3.5 A.1, A.2, A.3).
NATIVE_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
)
# Deflated Explicit VR Little Endian (PS3.5 A.5).
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
# Media Storage Directory Storage, the SOP class of a DICOMDIR.
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
# The tag of PixelData.
PIXEL_DATA = 0x7FE00010
# The length of an element that ends with a delimiter.
_UNDEFINED_LENGTH = 0xFFFFFFFF
# Characters of an error message that a note quotes.
_MAX_REASON = 200


@dataclass(eq=False)
class Instance:
    """One file of a series: its identity, its cuts, and its pixel data if that can be coded."""

    source: Source
    sha256: bytes
    # UIDs, "" where the file has none.
    series_uid: str = ""
    sop_uid: str = ""
    # Bytes before and after the pixel data.
    head: int = 0
    tail: int = 0
    # (tag, offset) of the elements of head and tail, both rising, which cut them for compression.
    elements: tuple[tuple[int, int], ...] = ()
    pixels: PixelData | None = None
    # What is unusual about the file, and therefore kept as bytes.
    notes: list[str] = field(default_factory=list)
    damaged: bool = False
    # The file is a DICOM object that wraps a stream.
    wrapped: bool = False
    series_description: str = ""
    series_number: str = ""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def body(self) -> int:
        """Bytes between head and tail."""
        return self.source.size - self.head - self.tail

    def record(self) -> list[tuple[int, bytes]]:
        """Head and tail cut into (tag, bytes) of each element, tags rising."""
        if not self.elements:
            return []
        head = self.source.read(0, self.head)
        tail = self.source.read(self.source.size - self.tail, self.tail)
        after = self.head + self.body
        starts = [offset for _, offset in self.elements]
        pieces = []
        for (tag, start), stop in zip(self.elements, [*starts[1:], self.source.size], strict=True):
            piece = head[start:stop]
            if stop > after:
                piece += tail[max(0, start - after) : stop - after]
            pieces.append((tag, piece))
        return pieces

    def keep_as_bytes(self, note: str, *, damaged: bool = False) -> None:
        """Keep the pixel data as bytes instead of coding it."""
        self.pixels = None
        self.notes.append(note)
        self.damaged = self.damaged or damaged

    def drop_cuts(self) -> None:
        """Keep the file as one piece."""
        self.head = self.tail = 0
        self.elements = ()


def read_instance(source: Source) -> Instance:
    """Describe a file. Only OSError is raised: a damaged file or no DICOM is kept as one piece."""
    prefix = source.read(0, min(source.size, PREFIX_SIZE))
    bare = is_bare_dataset(prefix)
    instance = Instance(source, _sha256(source))
    if not is_dicom(prefix) and not bare:
        instance.notes.append("no DICOM file (no DICM at byte 128)" if prefix else "an empty file")
        instance.damaged = source.name.lower().endswith(SUFFIXES)
        return instance
    if bare:
        instance.notes.append("no preamble: expected DICM at byte 128")
    try:
        with quiet_pydicom():
            from pydicom import dcmread

            file = io.BufferedReader(SourceReader(source), 1 << 16)
            _describe(instance, dcmread(file, force=bare, defer_size=MAX_HEADER_BYTES))
    except MemoryError:
        raise
    except Exception as error:  # pydicom passes on struct.error, EOFError, KeyError and others.
        instance.drop_cuts()
        instance.keep_as_bytes(f"damaged ({error_text(error)}); kept as it is", damaged=True)
    return instance


def error_text(error: Exception) -> str:
    """The message of an error in one line, else its type."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


def _sha256(source: Source) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, source.size, HASH_PIECE_BYTES):
        digest.update(source.read(offset, min(HASH_PIECE_BYTES, source.size - offset)))
    return digest.digest()


def _describe(instance: Instance, dataset: FileDataset) -> None:
    """Set identity, cuts and pixel data from the data set."""
    instance.series_uid = text(dataset, "SeriesInstanceUID")
    instance.sop_uid = text(dataset, "SOPInstanceUID")
    instance.series_description = decoded_text(dataset, "SeriesDescription")
    instance.series_number = text(dataset, "SeriesNumber")
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if syntax == DEFLATED_SYNTAX:
        instance.keep_as_bytes("a deflated data set; kept as it is")
        return
    element = raw_element(dataset, PIXEL_DATA)
    if is_wrapped(dataset):
        instance.wrapped, instance.series_uid = True, ""  # It goes with the images next to it.
        instance.notes.append("an mricodec stream in a DICOM object; kept as it is")
        return
    if element is None:
        what = "a DICOMDIR" if _is_dicomdir(dataset) else "no PixelData"
        instance.notes.append(f"{what}; kept as it is")
        _cut(instance, dataset, instance.source.size, instance.source.size)
        return
    start, length = int(element.value_tell), int(element.length)
    if length == _UNDEFINED_LENGTH or (syntax and syntax not in NATIVE_SYNTAXES):
        if _cut(instance, dataset, start, instance.source.size):
            instance.notes.append(
                f"compressed already (transfer syntax {syntax or 'unknown'}); kept as it is"
            )
        return
    if _cut(instance, dataset, start, min(instance.source.size, start + length)):
        _describe_native(instance, dataset, start, length)


def _describe_native(instance: Instance, dataset: FileDataset, start: int, length: int) -> None:
    """Set the native pixel data of `length` bytes from `start` on, if it can be coded."""
    source = instance.source
    if start + length > source.size:
        instance.keep_as_bytes(
            f"cut short: expected {length} bytes of PixelData, found {source.size - start}",
            damaged=True,
        )
        return

    def read(offset: int, size: int) -> bytes:
        return source.read(offset, max(0, min(size, source.size - offset)))

    _, little_endian = dataset.original_encoding
    pixels = read_pixel_data(dataset, read, start, not little_endian)
    if isinstance(pixels, str):
        instance.notes.append(f"{pixels}; kept as it is")
        return
    difference = (
        f"expected {pixels.size} bytes of PixelData for its rows and columns, found {length}"
    )
    if length < pixels.size:
        instance.keep_as_bytes(f"{difference}; kept as it is", damaged=True)
        return
    # A value is padded to an even length (PS3.5 7.1.1).
    if length > pixels.size + pixels.size % 2:
        instance.notes.append(difference)
        instance.damaged = True
    instance.tail = source.size - start - pixels.size
    if not _check_header_bytes(instance):
        return
    instance.pixels = pixels
    if None in pixels.planes:
        instance.notes.append("no position or orientation: its position in the volume is unknown")


def _is_dicomdir(dataset: FileDataset) -> bool:
    classes = text(dataset, "SOPClassUID"), text(dataset.file_meta, "MediaStorageSOPClassUID")
    return DICOMDIR_CLASS in classes


def _cut(instance: Instance, dataset: FileDataset, start: int, stop: int) -> bool:
    """Cut a file around its bytes [start, stop); False if too many are left."""
    instance.head, instance.tail = start, instance.source.size - stop
    instance.elements = _element_offsets(dataset, stop)
    return _check_header_bytes(instance)


def _check_header_bytes(instance: Instance) -> bool:
    """Whether head and tail are short enough to be kept apart; else the file stays one piece."""
    if instance.head + instance.tail <= MAX_HEADER_BYTES:
        return True
    instance.drop_cuts()
    instance.keep_as_bytes(f"more than {MAX_HEADER_BYTES} bytes around its voxels; kept as it is")
    return False


def _element_offsets(dataset: FileDataset, after: int) -> tuple[tuple[int, int], ...]:
    """(tag, offset) of the elements, both rising; `after`: of all elements behind the pixel data.

    Offsets are those of an explicit VR with a 16-bit length; they only help the compression.
    """
    offsets = [(0, 0)]
    groups: tuple[Dataset, ...] = (dataset.file_meta, dataset)
    for elements in groups:
        for tag in map(int, sorted(elements.keys())):
            if tag == PIXEL_DATA:
                continue
            element = raw_element(elements, tag)
            value = getattr(element, "value_tell", None) or getattr(element, "file_tell", None)
            offset = after if tag > PIXEL_DATA else (value or 0) - 8
            if offset > offsets[-1][1] and tag > offsets[-1][0]:
                offsets.append((tag, offset))
    return tuple(offsets)
