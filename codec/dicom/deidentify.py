"""Taking identities out of scans before they are encoded.

DICOM: the Basic Application Level Confidentiality Profile (PS3.15 E.1 to E.3), with the actions of
Table E.1-1 in ps3_15.py, applied to data sets at any depth. Stricter where the profile leaves a
choice: private attributes, overlays, curves, unknown attributes and file names are removed, names
of persons that the table does not list are emptied, and a file that can't be parsed is left out.
NIfTI: see formats/free_text.py.

Voxels are never changed, so burned-in text (noted where an object declares it) and faces stay.
"""

from __future__ import annotations

import hmac
import io
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mricodec.codec.formats.dicom.elements import is_bare_dataset, is_dicom, quiet_pydicom
from mricodec.codec.formats.free_text import ScanWithoutFreeText
from mricodec.codec.volume import Scan

from .files import PIXEL_DATA, error_text
from .ps3_15 import ACTIONS, is_overlay_or_curve
from .sources import MemorySource, Source
from .stacks import Series, series_of

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

# DeidentificationMethod.
METHOD = "PS3.15 Basic Application Level Confidentiality Profile"
# DeidentificationMethodCodeSequence: value, scheme and meaning of PS3.16 CID 7050.
METHOD_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")
# VRs whose dummy value is a number.
_NUMBER_VRS = ("FD", "FL", "SS", "US", "SL", "UL", "SV", "UV", "AT")
# VRs whose dummy value is two zero bytes.
_BYTE_VRS = ("OB", "OW", "UN")
# Dummy values by VR.
_DUMMIES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("DS", "IS"), "0"),
    "AS": "000Y",
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "UR": "http://anonymized.invalid",
}
# (implicit VR, little endian) -> transfer syntax, for a file that does not name its own.
_SYNTAXES = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
# Elements of the file meta information that stay.
_KEPT_META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
# UIDs of the standard itself (SOP classes, transfer syntaxes) begin so; they stay.
_STANDARD_UIDS = "1.2.840.10008."
# Modalities whose images often show text.
_MODALITIES_WITH_TEXT = ("US", "OT", "SC", "XC", "ES")
# Files that are named in the error if none can be de-identified.
_MAX_NAMED = 3


class Deidentifier:
    """Settings of `Encoder(deidentify=...)`.

    key: a secret from which new UIDs and PatientIDs are derived: equal ones stay equal, and nobody
    without the key can tell which they were. By default a random one, so that everything encoded
    with one object is consistent, and nothing else.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key
        if not self._key:
            raise ValueError("key: expected bytes, found none; leave it out for a random one")

    def scan(self, scan: Scan) -> Scan:
        """The same voxels, with a header without free text."""
        return ScanWithoutFreeText(scan)

    def series(self, series: Series) -> Series:
        """The same files, de-identified, under neutral names.

        What can't be de-identified is left out, with a note on the first file; ValueError if that
        is every file.
        """
        files = _CleanedFiles()
        for instance in series.instances:
            if instance.wrapped:
                files.leave_out(instance.name, "an mricodec stream, which is not looked into")
            else:
                files.add(instance.name, instance.source, self)
        if not files.sources:
            raise ValueError(
                "expected a DICOM file that can be de-identified, found none: "
                f"{'; '.join(files.left_out[:_MAX_NAMED])}"
            )
        [cleaned] = series_of(files.sources)
        for instance in cleaned.instances:
            instance.notes += files.notes.get(instance.name, [])
        first = cleaned.instances[0]
        first.notes += [
            f"left out, as it can't be de-identified: {note}" for note in files.left_out
        ]
        first.damaged = first.damaged or files.damaged
        return cleaned

    def dataset(self, dataset: Dataset) -> None:
        """Apply the profile in place, to the file meta information and the preamble too."""
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset

        meta = FileMetaDataset()
        for keyword in _KEPT_META:
            if keyword in getattr(dataset, "file_meta", ()):
                meta.add(dataset.file_meta[keyword])
        if "MediaStorageSOPInstanceUID" in meta:
            uid = self.uid(str(meta.MediaStorageSOPInstanceUID))
            meta["MediaStorageSOPInstanceUID"].value = uid
        self._clean(dataset)
        dataset.file_meta = meta
        dataset.preamble = bytes(128)
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = METHOD
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = METHOD_CODE
        dataset.DeidentificationMethodCodeSequence = [code]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"  # PS3.15 E.3.6

    def uid(self, uid: str) -> str:
        """The new UID for another, always the same with one key (PS3.5 B.2: 2.25 and 128 bits)."""
        if not uid or uid.startswith(_STANDARD_UIDS):
            return uid
        return f"2.25.{int.from_bytes(self._digest('UID', uid)[:16], 'big')}"

    def file(self, data: bytes) -> tuple[bytes, tuple[int, bytes], str | None]:
        """(de-identified DICOM file, (offset, value) of PixelData in `data`, warning about pixels).

        Raises whatever pydicom raises for a damaged file.
        """
        from pydicom import dcmread
        from pydicom.uid import UID

        with quiet_pydicom():
            dataset = dcmread(io.BytesIO(data), force=not is_dicom(data))
            if "DirectoryRecordSequence" in dataset:
                raise ValueError("a DICOMDIR, which lists other files")
            warning = burned_in_warning(dataset)
            element: Any = dataset.get_item(PIXEL_DATA)
            offset, value = 0, b""
            if element is not None:
                offset, value = int(element.value_tell), element.value or b""
            if data[offset : offset + len(value)] != value:
                offset, value = 0, b""
            self.dataset(dataset)
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little_endian = map(bool, dataset.original_encoding)
                dataset.file_meta.TransferSyntaxUID = UID(_SYNTAXES[implicit, little_endian])
            buffer = io.BytesIO()
            dataset.save_as(buffer)  # Required elements that were missing stay missing.
        return buffer.getvalue(), (offset, value), warning

    def _digest(self, kind: str, value: str) -> bytes:
        message = f"{kind} {value}".encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, message, "sha256")

    def _clean(self, dataset: Dataset) -> None:
        from pydicom.datadict import dictionary_has_tag, dictionary_VR

        for tag in list(dataset.keys()):
            action = ACTIONS.get(int(tag))
            known = dictionary_has_tag(tag) or action is not None
            # A group length (element 0, retired) would be wrong afterwards.
            removed = tag.is_private or is_overlay_or_curve(tag) or not known or tag.element == 0
            if action == "X" or removed:
                del dataset[tag]
                continue
            vr = dataset.get_item(tag).VR or (None if action else dictionary_VR(tag))
            if action is not None or vr in ("SQ", "PN", "UN"):
                self._apply(dataset, dataset[tag], action)

    def _apply(self, dataset: Dataset, element: DataElement, action: str | None) -> None:
        """Apply an action of Table E.1-1; None for an unlisted sequence or person's name."""
        if element.VR == "SQ":
            self._apply_to_sequence(dataset, element, action)
        elif action in ("U", "X/Z/U*"):
            uids = element.value if element.VM > 1 else [element.value or ""]
            element.value = [self.uid(str(uid)) for uid in uids]
        elif action in ("Z", "X/Z") or (action is None and element.VR == "PN"):
            element.clear()
        elif action is not None and not element.is_empty:
            element.value = self._dummy(element)

    def _apply_to_sequence(
        self, dataset: Dataset, element: DataElement, action: str | None
    ) -> None:
        if action == "Z":
            element.value = []
        elif action in ("X/D", "X/Z", "X/Z/D"):
            del dataset[element.tag]
        else:  # D and X/Z/U* keep the items, as do unlisted sequences.
            for item in element.value:
                if action == "D":
                    self._replace_all(item)
                self._clean(item)

    def _dummy(self, element: DataElement) -> Any:
        if element.keyword == "PatientID":  # Different patients stay different.
            return f"ANON-{self._digest('PatientID', str(element.value))[:6].hex().upper()}"
        if element.VR in _DUMMIES:
            return _DUMMIES[element.VR]
        return 0 if element.VR in _NUMBER_VRS else bytes(2)

    def _replace_all(self, item: Dataset) -> None:
        """Replace text, times and bytes at any depth; numbers and the standard's UIDs stay."""
        for element in item:
            if element.VR == "SQ":
                for nested in element.value:
                    self._replace_all(nested)
            elif element.VR == "UI":
                element.value = self.uid(str(element.value or ""))
            elif not element.is_empty and (element.VR in _DUMMIES or element.VR in _BYTE_VRS):
                element.value = self._dummy(element)


@dataclass
class _CleanedFiles:
    """The files of a series so far: de-identified ones with notes by name, and those left out."""

    sources: list[Source] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    damaged: bool = False

    def leave_out(self, name: str, reason: str) -> None:
        self.damaged = True
        self.left_out.append(f"{name}: {reason}")

    def add(self, name: str, source: Source, deidentifier: Deidentifier) -> None:
        data = source.read(0, source.size)
        if not (is_dicom(data) or is_bare_dataset(data)):
            self.left_out.append(f"{name}: no DICOM file")
            return
        try:
            cleaned, pixel_data, warning = deidentifier.file(data)
        except MemoryError:
            raise
        except Exception as error:  # pydicom passes on errors of many types.
            self.leave_out(name, error_text(error))
            return
        neutral_name = f"{len(self.sources) + 1:05d}.dcm"
        self.sources.append(_CleanedSource(source, neutral_name, cleaned, pixel_data))
        if warning:
            self.notes[neutral_name] = [warning]


class _CleanedSource(MemorySource):
    """A de-identified file: what surrounds PixelData in memory, its value in the original."""

    def __init__(
        self, source: Source, name: str, cleaned: bytes, pixel_data: tuple[int, bytes]
    ) -> None:
        offset, value = pixel_data
        start = cleaned.find(value) if value else -1
        if start < 0:  # Deflated, or without PixelData.
            start, value = len(cleaned), b""
        self.name = name
        self.path = source.path
        self.size = len(cleaned)
        self._source = source
        self._offset, self._length = offset, len(value)
        self._head, self._tail = cleaned[:start], cleaned[start + len(value) :]

    def read(self, offset: int, size: int) -> bytes:
        stop = offset + size
        before, after = len(self._head), len(self._head) + self._length
        start, end = max(offset, before), min(stop, after)
        body = self._source.read(self._offset + start - before, end - start) if end > start else b""
        tail = self._tail[max(0, offset - after) : max(0, stop - after)]
        return self._head[offset:stop] + body + tail


def burned_in_warning(dataset: Dataset) -> str | None:
    """Whether an object declares text in its pixels, or is of a kind that often has some.

    PS3.3 C.7.6.1.1.5 (Burned In Annotation) and C.8.6 (Secondary Capture).
    """
    annotation = str(dataset.get("BurnedInAnnotation", "")).upper()
    if annotation == "YES":
        return "BurnedInAnnotation is YES: the pixels hold text that identifies, which stays"
    if annotation != "NO" and (
        dataset.get("Modality") in _MODALITIES_WITH_TEXT or "ConversionType" in dataset
    ):
        return "images of this kind often have text in their pixels, which stays; look at them"
    return None
