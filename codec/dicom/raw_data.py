"""A stream as a DICOM object that any PACS stores, finds and forwards: Raw Data Storage (PS3.3 A.37).

The object belongs to the patient and the study of the series; it is a series of its own in it, so that it never mixes with
the images. The stream is the value of a private element:

    (7FDF,0010) LO  MRICODEC      (7FDF,1000) UL  bytes of the stream      (7FDF,1001) OB  the stream, padded to even length
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

import datetime
import hashlib
import io
import uuid

from mricodec.bitstream.container import MAGIC
from mricodec.bitstream.errors import FormatError

from . import files as dicom
from .series import series_headers

CREATOR = "MRICODEC"
LARGEST = (1 << 32) - 2  # bytes of an element
_RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
_EXPLICIT = "1.2.840.10008.1.2.1"
_GROUP, _LENGTH, _STREAM = 0x7FDF, 0x00, 0x01
_CREATOR_VERSION = uuid.UUID("6d726963-6f64-5563-8000-000000000001")  # of stream version 1
_IDENTITY = (  # copied where the series has them
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName",
    "Modality", "BodyPartExamined", "Laterality", "PatientPosition", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "Manufacturer", "ManufacturerModelName", "PatientIdentityRemoved", "DeidentificationMethod",
)  # fmt: skip
_EMPTY = (  # type 2
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "Manufacturer", "SeriesNumber",
)  # fmt: skip


def wrap(stream: bytes) -> bytes:
    """The DICOM file around a stream, with the same UIDs every time. ValueError beyond 4 GiB, FormatError if it is none."""
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    if len(stream) > LARGEST:
        raise ValueError(
            f"expected a stream of at most {LARGEST} bytes for a DICOM element, found {len(stream)}"
        )
    source = _first_head(stream)
    digest = hashlib.sha256(stream).digest()
    wrapped = Dataset()
    for name in _EMPTY:
        setattr(wrapped, name, None)
    wrapped.Modality = "OT"
    wrapped.StudyInstanceUID = _uid(digest, "study")
    with dicom.quiet_pydicom():
        for name in _IDENTITY:
            if name in source:
                wrapped[name] = source[name]
        wrapped.SeriesNumber = source.get("SeriesNumber", None)
        wrapped.SeriesDescription = (
            f"{source.get('SeriesDescription', '') or ''} (mricodec)".strip()[:64]
        )
        now = datetime.datetime.now()
        wrapped.ContentDate = (
            source.get("SeriesDate") or source.get("StudyDate") or now.strftime("%Y%m%d")
        )
        wrapped.ContentTime = (
            source.get("SeriesTime") or source.get("StudyTime") or now.strftime("%H%M%S")
        )
    wrapped.SOPClassUID = UID(_RAW_DATA)
    wrapped.SOPInstanceUID = _uid(digest, "instance")
    wrapped.SeriesInstanceUID = _uid(digest, "series")
    wrapped.InstanceNumber = 1
    wrapped.AcquisitionContextSequence = []
    wrapped.CreatorVersionUID = UID(f"2.25.{_CREATOR_VERSION.int}")
    block = wrapped.private_block(_GROUP, CREATOR, create=True)
    block.add_new(_LENGTH, "UL", len(stream))
    block.add_new(_STREAM, "OB", stream + bytes(len(stream) % 2))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(_EXPLICIT)
    meta.MediaStorageSOPClassUID = wrapped.SOPClassUID
    meta.MediaStorageSOPInstanceUID = wrapped.SOPInstanceUID
    wrapped.file_meta = meta
    out = io.BytesIO()
    with dicom.quiet_pydicom():
        dcmwrite(out, wrapped, enforce_file_format=True)
    return out.getvalue()


def unwrap(data: bytes) -> bytes:
    """The stream in a DICOM file, or in the data set of one as a network peer sent it. FormatError if there is none."""
    from pydicom import dcmread

    try:
        with dicom.quiet_pydicom():
            dataset = dcmread(io.BytesIO(data), force=dicom.looks_bare(data))
            block = dataset.private_block(_GROUP, CREATOR)
            length, stream = block[_LENGTH].value, block[_STREAM].value
    except (KeyError, ValueError, AttributeError, EOFError, NotImplementedError, OSError) as error:
        raise FormatError(
            f"expected a DICOM file with an mricodec stream in it, found none ({error})"
        ) from error
    except Exception as error:  # pydicom lets many kinds through
        raise FormatError(
            f"expected a DICOM file, found damage ({type(error).__name__})"
        ) from error
    if (
        not isinstance(length, int)
        or not isinstance(stream, bytes)
        or len(stream) != length + length % 2
    ):
        raise FormatError(
            f"expected a stream of {length} bytes in the DICOM file, found another length: it is damaged"
        )
    if not stream.startswith(MAGIC):
        raise FormatError("expected an mricodec stream in the DICOM file, found other bytes")
    return stream[:length]


def _first_head(stream: bytes) -> Dataset:
    """What identifies the series: its first instance without the voxels, or nothing if the stream is of another scan."""
    from pydicom import Dataset, dcmread

    from mricodec.codec import inspection

    if inspection.info(stream).files:
        for _, head in series_headers(stream):
            if dicom.accept(head):
                with dicom.quiet_pydicom():
                    found: Dataset = dcmread(io.BytesIO(head), stop_before_pixels=True)
                if found.get("StudyInstanceUID") and found.get("SeriesInstanceUID"):
                    return found
    return Dataset()


def _uid(digest: bytes, what: str) -> str:
    """Derived from the stream (PS3.5 B.2)."""
    value = hashlib.sha256(b"mricodec wrap\0" + digest + what.encode()).digest()
    return f"2.25.{uuid.UUID(bytes=value[:16], version=5).int}"
