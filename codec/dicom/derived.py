"""A DICOM instance with decoded voxels: what PS3.3 C.7.6.1.1.5 (lossy compression) and C.12.4 ask of a derived one.

Its values keep their meaning (rescale, bits, padding, windows are left alone), its identity changes: new UIDs that
depend on the old ones and on the encoding, the same every time it is decoded; references within the series follow.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import files as dicom

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset
    from pydicom.tag import BaseTag

METHOD = "MRICODEC"  # LossyImageCompressionMethod has no defined term for it
LONGEST_TEXT = 1024  # characters of an ST
_CONCATENATION = 0x00209161
_OF_SERIES = (
    0x00280108,
    0x00280109,
)  # Smallest/LargestPixelValueInSeries: optional, of other voxels
# Of an enhanced MR image, "required if ImageType value 1 is ORIGINAL or MIXED" and not allowed else (C.8.13.4)
_MR_PULSE_SEQUENCE = (
    0x00180023, 0x00189005, 0x00189008, 0x00189011, 0x00189012, 0x00189014, 0x00189015, 0x00189017, 0x00189018, 0x00189024,
    0x00189025, 0x00189029, 0x00189032, 0x00189033, 0x00189034, 0x00189092, 0x00189093, 0x00189094, 0x00189250,
)  # fmt: skip
_ENHANCED_MR = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.3")
_SIGNATURES = (0x4FFE0001, 0xFFFAFFFA)  # of other bytes


@dataclass(frozen=True)
class Derivation:
    """What the instances of an encoded stack have in common.

    encoding: digest of all that decides the decoded voxels, and of the source. sop_uids: of all instances of the
    stream that are derived; with `series_uid` they are replaced wherever they are referred to.
    """

    encoding: bytes
    ratio: float
    description: str
    sop_uids: frozenset[str]
    series_uid: str

    def uid(self, old: str) -> str:
        """A UUID-derived UID (PS3.5 B.2) for an old one."""
        digest = hashlib.sha256(
            b"\0".join((b"mricodec", self.encoding, old.encode("latin-1", "replace")))
        ).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"

    def replaces(self, uid: str) -> bool:
        return uid in self.sop_uids or (uid == self.series_uid and uid != "")


def identity(head: bytes) -> tuple[str, str]:
    """SOPInstanceUID and SeriesInstanceUID of a file, from the bytes in front of its voxels."""
    from pydicom import dcmread

    tags: list[Any] = ["SOPInstanceUID", "SeriesInstanceUID"]
    with dicom.quiet_pydicom():
        dataset = dcmread(io.BytesIO(head), force=True, specific_tags=tags, stop_before_pixels=True)
        return str(dataset.get("SOPInstanceUID", "") or ""), str(
            dataset.get("SeriesInstanceUID", "") or ""
        )


def obstacle(source: bytes) -> str | None:
    """Why a file can't be made a derived one, or None."""
    try:
        derive(source, np.zeros(1, np.uint8), Derivation(b"", 1.0, "", frozenset(), ""))
    except MemoryError:
        raise
    except Exception as error:  # pydicom lets many kinds through
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def derive(source: bytes, voxels: NDArray[Any], derivation: Derivation) -> bytes:
    """The derived file of `source`, whose PixelData is decoded already; `voxels` for the least and largest value.

    Whatever pydicom raises if the data set can't be written again.
    """
    from pydicom import dcmread

    bare = dicom.looks_bare(source)
    with dicom.quiet_pydicom():
        dataset = dcmread(io.BytesIO(source), force=bare)
        enhanced = 0x52009229 in dataset or 0x52009230 in dataset
        reference, evidence = _reference(dataset), _evidence(dataset)
        _replace_uids(dataset, derivation)
        _mark(dataset, derivation)
        if enhanced:
            _mark_frames(dataset, reference, derivation)
            dataset.SourceImageEvidenceSequence = [
                *(dataset.get("SourceImageEvidenceSequence", None) or ()),
                evidence,
            ]
            for tag in _MR_PULSE_SEQUENCE if dataset.get("SOPClassUID") in _ENHANCED_MR else ():
                dataset.pop(tag, None)
        else:
            _explain(dataset, reference, derivation)
        _set_extremes(dataset, voxels)
        for tag in (*_OF_SERIES, *_SIGNATURES):
            dataset.pop(tag, None)
        if not bare:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=not bare)
    return out.getvalue()


def _reference(dataset: Dataset) -> Dataset:
    """An item of SourceImageSequence that names the instance itself."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = dataset.get("SOPClassUID", "")
    item.ReferencedSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    item.PurposeOfReferenceCodeSequence = [_code("121320", "Uncompressed predecessor")]
    return item


def _evidence(dataset: Dataset) -> Dataset:
    """An item of SourceImageEvidenceSequence (table C.17-3) that names the instance itself."""
    from pydicom import Dataset

    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = dataset.get("SOPClassUID", "")
    instance.ReferencedSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    series.SeriesInstanceUID = dataset.get("SeriesInstanceUID", "")
    series.ReferencedSOPSequence = [instance]
    study.StudyInstanceUID = dataset.get("StudyInstanceUID", "")
    study.ReferencedSeriesSequence = [series]
    return study


def _code(value: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item


def _replace_uids(dataset: FileDataset, derivation: Derivation) -> None:
    """Elements of another kind are not interpreted, so that they are written as they were read."""
    own = (0x00080018, 0x0020000E, _CONCATENATION)
    for item in _items(dataset):
        for tag in list(item.keys()):
            if _kind(item, tag) == "UI":
                value = item[tag].value
                several = not isinstance(value, str)
                uids = list(value or ()) if several else [value]
                mine = item is dataset and tag in own
                new = [
                    derivation.uid(uid) if uid and (mine or derivation.replaces(str(uid))) else uid
                    for uid in uids
                ]
                if new != uids:
                    item[tag].value = new if several else new[0]


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and every item of its sequences."""
    yield dataset
    for tag in list(dataset.keys()):
        if _kind(dataset, tag) in ("SQ", "UN"):
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value or ():
                    yield from _items(item)


def _kind(dataset: Dataset, tag: BaseTag) -> str:
    """The VR of an element, which an implicit syntax leaves to the dictionary; "" if it is unknown."""
    from pydicom.datadict import dictionary_VR

    vr = dicom.raw_element(dataset, tag).VR
    if vr is not None:
        return str(vr)
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _mark(dataset: Dataset, derivation: Derivation) -> None:
    kinds = _listed(dataset.get("ImageType")) or ["", "PRIMARY"]
    dataset.ImageType = ["DERIVED", *kinds[1:]]
    dataset.LossyImageCompression = "01"
    ratios = _listed(dataset.get("LossyImageCompressionRatio"))
    dataset.LossyImageCompressionRatio = [*ratios, f"{derivation.ratio:.4g}"]
    methods = _listed(dataset.get("LossyImageCompressionMethod"))
    dataset.LossyImageCompressionMethod = [*methods, METHOD]


def _explain(at: Dataset, reference: Dataset, derivation: Derivation) -> None:
    """DerivationDescription, its code, and the source, beside what there is."""
    said = str(at.get("DerivationDescription", "") or "")
    text = f"{said}; {derivation.description}" if said else derivation.description
    at.DerivationDescription = text[-LONGEST_TEXT:]
    codes = list(at.get("DerivationCodeSequence", None) or ())
    at.DerivationCodeSequence = [*codes, _code("113040", "Lossy Compression")]
    at.SourceImageSequence = [*(at.get("SourceImageSequence", None) or ()), reference]


def _mark_frames(dataset: Dataset, reference: Dataset, derivation: Derivation) -> None:
    """Of an enhanced object: FrameType, and the macro Derivation Image (C.7.6.16.2.6) for all frames or each."""
    from pydicom import Dataset

    for item in _items(dataset):
        if 0x00089007 in item:
            kinds = _listed(item.get("FrameType")) or [""]
            item.FrameType = ["DERIVED", *kinds[1:]]
    groups = [
        group
        for group in dataset.get("PerFrameFunctionalGroupsSequence", None) or ()
        if 0x00089124 in group
    ]
    if not groups:
        shared = list(dataset.get("SharedFunctionalGroupsSequence", None) or ())
        if not shared:
            shared = [Dataset()]
            dataset.SharedFunctionalGroupsSequence = shared
        groups = shared[:1]
    for group in groups:
        item = Dataset()
        _explain(item, reference, derivation)
        group.DerivationImageSequence = [*(group.get("DerivationImageSequence", None) or ()), item]


def _set_extremes(dataset: Dataset, voxels: NDArray[Any]) -> None:
    """Smallest/LargestImagePixelValue, where the source has them."""
    signed = bool(dataset.get("PixelRepresentation", 0))
    for tag, of in ((0x00280106, np.min), (0x00280107, np.max)):
        if tag not in dataset:
            continue
        if voxels.dtype.itemsize > 2:
            del dataset[tag]
        else:
            dataset[tag].VR = "SS" if signed else "US"
            dataset[tag].value = int(of(voxels))


def _listed(value: Any) -> list[str]:
    """The values of an element that may have none, one or several."""
    if value is None or value == "":
        return []
    if isinstance(value, (str, int, float)):
        return [str(value)]
    return [str(part) for part in value]
