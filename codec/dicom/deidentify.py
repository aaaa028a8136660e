"""Taking identities out of scans before they are encoded, and listing what a stream still says.

DICOM: the Basic Application Level Confidentiality Profile (PS3.15 E.1 to E.3, Table E.1-1 in ps3_15.py), applied to data sets
at any depth. Stricter where the profile leaves a choice: private attributes, overlays, unknown attributes and file names go,
names of persons that the table does not know are emptied, and a file that can't be parsed is left out. NIfTI: descrip,
aux_file, intent_name, db_name, data_type, extensions, and whatever stands after the voxels.

What is in the pixels stays: burned-in text (noted where an object admits it), and faces. Voxels are never changed.
"""

from __future__ import annotations

import hmac
import io
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.codec.formats.free_text import ScanWithoutFreeText, list_free_text
from mricodec.codec.pipeline.stream import Source, Stream, opened
from mricodec.codec.volume import Scan

from . import files as dicom
from .ps3_15 import ACTIONS
from .series import series_headers

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

METHOD = "PS3.15 Basic Application Level Confidentiality Profile"
METHOD_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")  # PS3.16 CID 7050
MAX_SHOWN = 100  # characters of a value that are listed
MAX_VALUES = 3  # different values of an attribute that are listed
_DUMMIES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **{
        "AS": "000Y",
        "DA": "19000101",
        "TM": "000000",
        "DT": "19000101000000",
        "UR": "http://anonymized.invalid",
    },
    **dict.fromkeys(("DS", "IS"), "0"),
}
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
)
_PATIENT_ID, _PIXEL_DATA = 0x00100020, 0x7FE00010
_OTHER_UIDS = "1.2.840.10008."  # of the standard itself: classes, transfer syntaxes


class Deidentifier:
    """Settings of `Encoder(deidentify=...)`.

    key: a secret from which new UIDs and PatientIDs are made: equal ones stay equal, and nobody without the key can tell which
    they were. By default a random one, so that what is encoded with one object stays consistent and nothing else.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key
        if not self._key:
            raise ValueError("key: expected bytes, found none; leave it out for a random one")

    def scan(self, scan: Scan) -> Scan:
        """The same voxels, and a header without free text."""
        return ScanWithoutFreeText(scan)

    def series(self, series: dicom.Series) -> dicom.Series:
        """The same files, cleaned, under neutral names; what can't be cleaned is left out, with a note on the first file."""
        sources: list[dicom.Source] = []
        left_out: list[str] = []
        notes: dict[str, str] = {}
        damaged = False
        for instance in series.instances:
            data = instance.source.read(0, instance.source.size)
            if not (dicom.accept(data) or dicom.looks_bare(data)):
                left_out.append(f"{instance.name}: no DICOM file")
                continue
            try:
                clean, pixels, note = self._file(data)
            except MemoryError:
                raise
            except Exception as error:  # pydicom lets all kinds through
                damaged = True
                left_out.append(
                    f"{instance.name}: {' '.join(str(error).split()) or type(error).__name__}"
                )
                continue
            name = f"{len(sources) + 1:05d}.dcm"
            sources.append(_CleanSource(instance.source, name, clean, pixels))
            if note:
                notes[name] = note
        if not sources:
            raise ValueError(
                f"expected a DICOM file that can be de-identified, found none: {'; '.join(left_out[:3])}"
            )
        [found] = dicom.find_series(sources)
        for instance in found.instances:
            instance.notes += [notes[instance.name]] if instance.name in notes else []
        first = found.instances[0]
        first.notes += [f"left out, as it can't be de-identified: {note}" for note in left_out]
        first.damaged = first.damaged or damaged
        return found

    def dataset(self, dataset: Dataset) -> None:
        """Apply the profile in place, file meta information and preamble included."""
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset

        meta = FileMetaDataset()
        for tag in (0x00020002, 0x00020003, 0x00020010):
            if tag in getattr(dataset, "file_meta", ()):
                meta.add(dataset.file_meta[tag])
        if "MediaStorageSOPInstanceUID" in meta:
            meta["MediaStorageSOPInstanceUID"].value = self.uid(
                str(meta.MediaStorageSOPInstanceUID)
            )
        self._clean(dataset)
        dataset.file_meta = meta
        dataset.preamble = bytes(128)
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = METHOD
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = METHOD_CODE
        dataset.DeidentificationMethodCodeSequence = [code]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"  # PS3.15 E.3.6

    def uid(self, old: str) -> str:
        """A UID in place of another, always the same with one key (PS3.5 B.2: 2.25 and a 128-bit number)."""
        if not old or old.startswith(_OTHER_UIDS):
            return old
        return f"2.25.{int.from_bytes(self._digest('UID', old)[:16], 'big')}"

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(
            self._key, f"{kind} {value}".encode("utf-8", "surrogateescape"), "sha256"
        )

    def _file(self, data: bytes) -> tuple[bytes, tuple[int, bytes], str | None]:
        """A DICOM file, cleaned; where PixelData stood in it; a warning about its pixels. Whatever pydicom raises."""
        from pydicom import dcmread
        from pydicom.uid import UID

        with dicom.quiet_pydicom():
            dataset = dcmread(io.BytesIO(data), force=not dicom.accept(data))
            if "DirectoryRecordSequence" in dataset:
                raise ValueError("a DICOMDIR, which lists other files")
            note = _burned_in(dataset)
            element: Any = dataset.get_item(_PIXEL_DATA)
            pixels = (
                (0, b"") if element is None else (int(element.value_tell), element.value or b"")
            )
            if data[pixels[0] : pixels[0] + len(pixels[1])] != pixels[1]:
                pixels = 0, b""
            self.dataset(dataset)
            buffer = io.BytesIO()
            implicit, little = dataset.original_encoding
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = UID(
                    _IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN
                )
            dataset.save_as(buffer)  # what was missing in the file stays missing
        return buffer.getvalue(), pixels, note

    def _clean(self, dataset: Dataset) -> None:
        from pydicom.datadict import dictionary_has_tag, dictionary_VR

        for tag in list(dataset.keys()):
            action = ACTIONS.get(int(tag))
            known = dictionary_has_tag(tag) or action is not None
            is_overlay = tag.group & 0xFF00 in (0x5000, 0x6000)
            # the length of a group, a retired element, would be wrong now
            if action == "X" or tag.is_private or is_overlay or not known or tag.element == 0:
                del dataset[tag]
            elif action is not None or (dataset.get_item(tag).VR or dictionary_VR(tag)) in (
                "SQ",
                "PN",
                "UN",
            ):
                self._apply(dataset, dataset[tag], action)

    def _apply(self, dataset: Dataset, element: DataElement, action: str | None) -> None:
        if element.VR == "SQ":
            if action == "Z":
                element.value = []
            elif action in ("X/D", "X/Z", "X/Z/D"):
                del dataset[element.tag]
            else:  # D; X/Z/U* and unlisted: what the items say is cleaned
                for item in element.value:
                    if action == "D":
                        self._replace_all(item)
                    self._clean(item)
        elif action in ("U", "X/Z/U*"):
            uids = element.value if element.VM > 1 else [element.value or ""]
            element.value = [self.uid(str(uid)) for uid in uids]
        elif action in ("Z", "X/Z") or (action is None and element.VR == "PN"):
            element.clear()
        elif action is not None and not element.is_empty:
            element.value = self._dummy(element)

    def _dummy(self, element: DataElement) -> Any:
        if element.tag == _PATIENT_ID:  # different patients stay different
            return f"ANON-{self._digest('PatientID', str(element.value))[:6].hex().upper()}"
        if element.VR in _DUMMIES:
            return _DUMMIES[element.VR]
        return (
            0 if element.VR in ("FD", "FL", "SS", "US", "SL", "UL", "SV", "UV", "AT") else bytes(2)
        )

    def _replace_all(self, item: Dataset) -> None:
        """Text, times and bytes at any depth; numbers and the standard's own UIDs stay."""
        for element in item:
            if element.VR == "SQ":
                for inner in element.value:
                    self._replace_all(inner)
            elif element.VR == "UI":
                element.value = self.uid(str(element.value or ""))
            elif not element.is_empty and (
                element.VR in _DUMMIES or element.VR in ("OB", "OW", "UN")
            ):
                element.value = self._dummy(element)


class _CleanSource(dicom.MemorySource):
    """A cleaned file: what surrounds PixelData in memory, its value where it was, in the source."""

    def __init__(
        self, source: dicom.Source, name: str, clean: bytes, pixels: tuple[int, bytes]
    ) -> None:
        offset, value = pixels
        at = clean.find(value) if value else -1
        if at < 0:  # deflated, or none
            at, value = len(clean), b""
        self.name = name
        self.path = source.path
        self.size = len(clean)
        self._source = source
        self._offset, self._length = offset, len(value)
        self._head, self._tail = clean[:at], clean[at + len(value) :]

    def read(self, offset: int, size: int) -> bytes:
        stop = offset + size
        before, after = len(self._head), len(self._head) + self._length
        start, end = max(offset, before), min(stop, after)
        body = self._source.read(self._offset + start - before, end - start) if end > start else b""
        return (
            self._head[offset:stop]
            + body
            + self._tail[max(0, offset - after) : max(0, stop - after)]
        )


@dataclass(frozen=True)
class Finding:
    """Something in a stream that may identify a person, and its values in the files of the stream."""

    name: str  # a keyword of DICOM, a field of NIfTI
    values: tuple[str, ...]  # the first few that differ
    count: int  # of different ones


def identifying(source: Source, *, limits: Limits | None = None) -> list[Finding]:
    """What a stream carries beside its voxels that may identify a person; nothing is decoded.

    DICOM: the attributes of PS3.15 Table E.1-1 that have a value, names of persons, private attributes by their creator,
    overlays, and the names of the files. NIfTI: free text, extensions and bytes after the voxels. FormatError if the stream is
    damaged.
    """
    found: dict[str, dict[str, None]] = {}

    def add(name: str, value: str) -> None:
        found.setdefault(name, {})[
            value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + " ..."
        ] = None

    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        if stream.table is None:
            for name, value in list_free_text(stream.envelope):
                add(name, value)
        else:
            for name, record in series_headers(file, limits=limits):
                add("file name", name)
                _list_file(name, record, add)
    return [
        Finding(name, tuple(values)[:MAX_VALUES], len(values)) for name, values in found.items()
    ]


def _list_file(name: str, record: bytes, add: Callable[[str, str], None]) -> None:
    from pydicom import dcmread

    if not record:
        add("kept as a whole, not looked into", name)
        return
    try:
        with dicom.quiet_pydicom():
            dataset = dcmread(
                io.BytesIO(record), stop_before_pixels=True, force=not dicom.accept(record)
            )
            _list_dataset(dataset.file_meta, "", add)
            _list_dataset(dataset, "", add)
    except MemoryError:
        raise
    except Exception as error:  # pydicom lets all kinds through
        add("not readable as DICOM", f"{name}: {' '.join(str(error).split())}")


def _list_dataset(dataset: Dataset, path: str, add: Callable[[str, str], None]) -> None:
    for element in dataset:
        name = path + (element.keyword or f"({element.tag.group:04X},{element.tag.element:04X})")
        if element.tag.is_private:
            if not element.tag.is_private_creator:
                creator = element.private_creator or "unknown"
                add(
                    "private attributes",
                    f"{creator} ({element.tag.group:04X},xx{element.tag.element & 0xFF:02X})",
                )
        elif element.tag.group & 0xFF00 in (0x5000, 0x6000):
            add("overlays and curves", f"group {element.tag.group:04X}")
        elif element.VR == "SQ":
            for item in element.value:
                _list_dataset(item, f"{name}.", add)
        elif not element.is_empty and (int(element.tag) in ACTIONS or element.VR == "PN"):
            value = element.value
            add(name, f"{len(value)} bytes" if isinstance(value, bytes) else str(value))


def _burned_in(dataset: Dataset) -> str | None:
    """PS3.3 C.7.6.1.1.5 and C.8.6: whether the object admits text in its pixels, or is of a kind that often has some."""
    said = str(dataset.get("BurnedInAnnotation", "")).upper()
    if said == "YES":
        return "BurnedInAnnotation is YES: the pixels hold text that identifies, which stays"
    if said != "NO" and (
        dataset.get("Modality") in ("US", "OT", "SC", "XC", "ES") or "ConversionType" in dataset
    ):
        return "pictures of this kind often have text in their pixels, which stays; look at them"
    return None
