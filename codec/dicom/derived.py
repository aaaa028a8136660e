"""A DICOM instance with lossily decoded pixel data, marked as derived.

PS3.3 C.7.6.1.1.5 (lossy image compression) and C.12.4 require it. Rescale, bits, padding and
windows stay, so that values keep their meaning. The identity changes: new UIDs that depend on the
old ones and on the encoding, the same whenever a stream is decoded; references within the series
follow. Description and number of the series and names of files differ from those of the originals.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.filenames import DICOM_ENDINGS, without_ending
from mricodec.codec.formats.dicom.elements import (
    is_bare_dataset,
    is_enhanced,
    numbers,
    quiet_pydicom,
    raw_element,
)

from .files import error_text

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset
    from pydicom.tag import BaseTag

# LossyImageCompressionMethod, which has no defined term for this codec.
METHOD = "MRICODEC"
# The most characters of a short text (ST), which DerivationDescription is.
MAX_TEXT_LENGTH = 1024
# The most characters of a SeriesDescription (LO).
MAX_DESCRIPTION_LENGTH = 64
# What is added to a SeriesNumber: the derived series stands apart from those of the scanner.
SERIES_NUMBER_STEP = 10_000
# The largest SeriesNumber (IS).
MAX_SERIES_NUMBER = (1 << 31) - 1
# Bytes of the longest name of a file.
MAX_NAME_BYTES = 255
# What is added to the name of a file.
NAME_SUFFIX = "_lossy"
# UIDs of the instance itself, which always change.
_IDENTITY = ("SOPInstanceUID", "SeriesInstanceUID", "ConcatenationUID")
# Optional attributes that describe the original voxels of the whole series.
_SERIES_EXTREMES = ("SmallestPixelValueInSeries", "LargestPixelValueInSeries")
# Digital signatures, which would be those of other bytes.
_SIGNATURES = ("MACParametersSequence", "DigitalSignaturesSequence")
# Enhanced MR Image Storage and Enhanced MR Color Image Storage.
_ENHANCED_MR = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.3")
# Attributes of the MR Pulse Sequence module (C.8.13.4) that an enhanced MR image has only if
# value 1 of its ImageType is ORIGINAL or MIXED.
_MR_PULSE_SEQUENCE = (
    "MRAcquisitionType",
    "PulseSequenceName",
    "EchoPulseSequence",
    "MultipleSpinEcho",
    "MultiPlanarExcitation",
    "PhaseContrast",
    "TimeOfFlightContrast",
    "SteadyStatePulseSequence",
    "EchoPlanarPulseSequence",
    "SaturationRecovery",
    "SpectrallySelectedSuppression",
    "OversamplingPhase",
    "GeometryOfKSpaceTraversal",
    "SegmentedKSpaceTraversal",
    "RectilinearPhaseEncodeReordering",
    "VelocityEncodingAcquisitionSequence",
    "NumberOfKSpaceTrajectories",
    "CoverageOfKSpace",
    "ArterialSpinLabelingContrast",
)


@dataclass(frozen=True)
class Derivation:
    """What the derived instances of one stack have in common.

    encoding: digest of everything that decides the decoded voxels, and of the original files.
    sop_uids: those of all derived instances of the stream; they and `series_uid`, "" if instances
    differ in it, are replaced wherever they are referred to.
    """

    encoding: bytes
    ratio: float
    description: str
    sop_uids: frozenset[str]
    series_uid: str

    def uid(self, old: str) -> str:
        """The new UID for an old one, UUID-derived (PS3.5 B.2)."""
        digest = hashlib.sha256(
            b"\0".join((b"mricodec", self.encoding, old.encode("latin-1", "replace")))
        ).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"

    def replaces(self, uid: str) -> bool:
        return uid in self.sop_uids or (uid == self.series_uid and uid != "")


def derived_name(name: str, taken: Collection[str]) -> str:
    """The name of the derived file of an original one, none of those that are taken: a_lossy.dcm.

    An ending that DICOM files have stays one; other names may have dots anywhere.
    """
    folder, slash, base = name.rpartition("/")
    stem = without_ending(base, DICOM_ENDINGS)
    ending = base[len(stem) :]
    for number in itertools.count(1):
        suffix = NAME_SUFFIX + (f"_{number}" if number > 1 else "") + ending
        kept = os.fsencode(stem)[: MAX_NAME_BYTES - len(os.fsencode(suffix))]
        candidate = folder + slash + os.fsdecode(kept) + suffix
        if candidate not in taken:
            return candidate
    raise AssertionError("numbers end")


def identity(head: bytes) -> tuple[str, str]:
    """(SOPInstanceUID, SeriesInstanceUID) of a file, from the bytes before its pixel data."""
    from pydicom import dcmread

    tags: list[Any] = ["SOPInstanceUID", "SeriesInstanceUID"]
    with quiet_pydicom():
        dataset = dcmread(io.BytesIO(head), force=True, specific_tags=tags, stop_before_pixels=True)
        sop_uid, series_uid = (str(dataset.get(tag, "") or "") for tag in tags)
        return sop_uid, series_uid


def obstacle(original: bytes) -> str | None:
    """Why no derived file of an original one can be written, or None."""
    try:
        derive(original, np.zeros(1, np.uint8), Derivation(b"", 1.0, "", frozenset(), ""))
    except MemoryError:
        raise
    except Exception as error:  # pydicom passes on errors of many types.
        return error_text(error)
    return None


def derive(original: bytes, voxels: NDArray[Any], derivation: Derivation) -> bytes:
    """The derived file of an original one whose PixelData is already the decoded `voxels`.

    Raises whatever pydicom raises if the data set can't be written again.
    """
    from pydicom import dcmread

    bare = is_bare_dataset(original)
    with quiet_pydicom():
        dataset = dcmread(io.BytesIO(original), force=bare)
        enhanced = is_enhanced(dataset)
        reference, evidence = _reference(dataset), _evidence(dataset)
        _replace_uids(dataset, derivation)
        _name_series(dataset, derivation)
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
            _add_derivation(dataset, reference, derivation)
        _set_extremes(dataset, voxels)
        for keyword in (*_SERIES_EXTREMES, *_SIGNATURES):
            dataset.pop(keyword, None)
        if not bare:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=not bare)
    return out.getvalue()


def _reference(dataset: Dataset) -> Dataset:
    """An item of SourceImageSequence that refers to the original instance."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = dataset.get("SOPClassUID", "")
    item.ReferencedSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    item.PurposeOfReferenceCodeSequence = [_code("121320", "Uncompressed predecessor")]
    return item


def _evidence(dataset: Dataset) -> Dataset:
    """An item of SourceImageEvidenceSequence (Table C.17-3) for the original instance."""
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
    """Replace the identity and references to derived instances.

    Elements of other VRs are not converted, so that they are written as they were read.
    """
    for item in _items(dataset):
        for tag in list(item.keys()):
            if _vr(item, tag) != "UI":
                continue
            element = item[tag]
            several = not isinstance(element.value, str)
            uids = list(element.value or ()) if several else [element.value]
            is_identity = item is dataset and element.keyword in _IDENTITY
            replaced = [
                derivation.uid(uid)
                if uid and (is_identity or derivation.replaces(str(uid)))
                else uid
                for uid in uids
            ]
            if replaced != uids:
                element.value = replaced if several else replaced[0]


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and every item of its sequences."""
    yield dataset
    for tag in list(dataset.keys()):
        if _vr(dataset, tag) in ("SQ", "UN"):
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value or ():
                    yield from _items(item)


def _vr(dataset: Dataset, tag: BaseTag) -> str:
    """The VR of an element, from the dictionary in an implicit syntax; "" if it is unknown."""
    from pydicom.datadict import dictionary_VR

    vr = raw_element(dataset, tag).VR
    if vr is not None:
        return str(vr)
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _name_series(dataset: Dataset, derivation: Derivation) -> None:
    """A SeriesDescription that tells the loss, and a SeriesNumber that is another."""
    suffix = f"lossy {derivation.ratio:.3g}:1"
    before = str(dataset.get("SeriesDescription", "") or "")
    kept = before[: MAX_DESCRIPTION_LENGTH - 1 - len(suffix)]
    dataset.SeriesDescription = f"{kept} {suffix}".strip()
    numbers_before = numbers(dataset, "SeriesNumber")
    number = int(numbers_before[0]) if numbers_before else 0
    higher = number + SERIES_NUMBER_STEP
    dataset.SeriesNumber = higher if higher <= MAX_SERIES_NUMBER else number - SERIES_NUMBER_STEP


def _mark(dataset: Dataset, derivation: Derivation) -> None:
    image_type = _values(dataset.get("ImageType")) or ["", "PRIMARY"]
    dataset.ImageType = ["DERIVED", *image_type[1:]]
    dataset.LossyImageCompression = "01"
    ratios = _values(dataset.get("LossyImageCompressionRatio"))
    dataset.LossyImageCompressionRatio = [*ratios, f"{derivation.ratio:.4g}"]
    methods = _values(dataset.get("LossyImageCompressionMethod"))
    dataset.LossyImageCompressionMethod = [*methods, METHOD]


def _add_derivation(dataset: Dataset, reference: Dataset, derivation: Derivation) -> None:
    """Append to the description of the derivation, its codes, and the source images."""
    before = str(dataset.get("DerivationDescription", "") or "")
    text = f"{before}; {derivation.description}" if before else derivation.description
    dataset.DerivationDescription = text[-MAX_TEXT_LENGTH:]
    codes = dataset.get("DerivationCodeSequence", None) or ()
    dataset.DerivationCodeSequence = [*codes, _code("113040", "Lossy Compression")]
    images = dataset.get("SourceImageSequence", None) or ()
    dataset.SourceImageSequence = [*images, reference]


def _mark_frames(dataset: Dataset, reference: Dataset, derivation: Derivation) -> None:
    """Set FrameType and the Derivation Image macro (C.7.6.16.2.6) of enhanced frames."""
    from pydicom import Dataset

    for item in _items(dataset):
        if "FrameType" in item:
            frame_type = _values(item.get("FrameType")) or [""]
            item.FrameType = ["DERIVED", *frame_type[1:]]
    groups = [
        group
        for group in dataset.get("PerFrameFunctionalGroupsSequence", None) or ()
        if "DerivationImageSequence" in group
    ]
    if not groups:
        shared = list(dataset.get("SharedFunctionalGroupsSequence", None) or ())
        if not shared:
            shared = [Dataset()]
            dataset.SharedFunctionalGroupsSequence = shared
        groups = shared[:1]
    for group in groups:
        item = Dataset()
        _add_derivation(item, reference, derivation)
        group.DerivationImageSequence = [*(group.get("DerivationImageSequence", None) or ()), item]


def _set_extremes(dataset: Dataset, voxels: NDArray[Any]) -> None:
    """Update SmallestImagePixelValue and LargestImagePixelValue where they exist."""
    vr = "SS" if dataset.get("PixelRepresentation", 0) else "US"
    extremes = {"SmallestImagePixelValue": np.min, "LargestImagePixelValue": np.max}
    for keyword, extreme in extremes.items():
        if keyword not in dataset:
            continue
        if voxels.dtype.itemsize > 2:
            del dataset[keyword]
        else:
            dataset[keyword].VR = vr
            dataset[keyword].value = int(extreme(voxels))


def _values(value: Any) -> list[str]:
    """The values of an element that may have none, one or several."""
    if value is None or value == "":
        return []
    if isinstance(value, (str, int, float)):
        return [str(value)]
    return [str(part) for part in value]
