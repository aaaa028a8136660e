"""A stream as a DICOM object that any PACS stores and forwards: Raw Data Storage (PS3.3 A.37).

The object has the patient and the study of the encoded series and is a separate series of that
study, so that it never mixes with the images. The stream is the value of a private element:

    (7FDF,0010) LO  MRICODEC
    (7FDF,1000) UL  bytes of the stream
    (7FDF,1001) OB  the stream, padded to even length
"""

from __future__ import annotations

import datetime
import hashlib
import io
import uuid
from typing import TYPE_CHECKING

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.header import DEFAULT_LIMITS
from mricodec.codec.formats.dicom.elements import is_dicom, quiet_pydicom
from mricodec.codec.formats.dicom.wrapped import CREATOR, GROUP, LENGTH, STREAM, stream_span
from mricodec.codec.pipeline.series import series_headers
from mricodec.codec.pipeline.stream import Stream

if TYPE_CHECKING:
    from pydicom import Dataset

# The longest stream: the even length of an element has 32 bits, and all ones mean an undefined one.
MAX_STREAM_SIZE = (1 << 32) - 2
# Raw Data Storage.
_RAW_DATA_CLASS = "1.2.840.10008.5.1.4.1.1.66"
# Explicit VR Little Endian.
_TRANSFER_SYNTAX = "1.2.840.10008.1.2.1"
# CreatorVersionUID of objects with a stream of version 1.
_CREATOR_VERSION = uuid.UUID("6d726963-6f64-5563-8000-000000000001")
# Attributes that are copied from the first instance that has a study and a series.
_COPIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Modality",
    "BodyPartExamined",
    "Laterality",
    "PatientPosition",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
)
# Attributes of type 2: required, and empty where nothing is known.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Manufacturer",
    "SeriesNumber",
)


def wrap(stream: bytes) -> bytes:
    """The DICOM file with a stream in it, with the same UIDs for the same stream.

    ValueError beyond 4 GiB, FormatError if it is no stream.
    """
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    if len(stream) > MAX_STREAM_SIZE:
        raise ValueError(
            f"expected a stream of at most {MAX_STREAM_SIZE} bytes for a DICOM element, "
            f"found {len(stream)}"
        )
    dataset = _dataset(stream, _first_header(stream))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(_TRANSFER_SYNTAX)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    file = io.BytesIO()
    with quiet_pydicom():
        dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _dataset(stream: bytes, source: Dataset) -> Dataset:
    """source: the header of the series, or an empty data set."""
    from pydicom import Dataset

    digest = hashlib.sha256(stream).digest()
    dataset = Dataset()
    for keyword in _TYPE_2:
        setattr(dataset, keyword, None)
    dataset.Modality = "OT"
    dataset.StudyInstanceUID = _uid(digest, "study")
    with quiet_pydicom():
        for keyword in _COPIED:
            if keyword in source:
                dataset[keyword] = source[keyword]
        dataset.SeriesNumber = source.get("SeriesNumber", None)
        description = source.get("SeriesDescription", "") or ""
        dataset.SeriesDescription = f"{description} (mricodec)".strip()[:64]
        now = datetime.datetime.now()
        dataset.ContentDate = (
            source.get("SeriesDate") or source.get("StudyDate") or now.strftime("%Y%m%d")
        )
        dataset.ContentTime = (
            source.get("SeriesTime") or source.get("StudyTime") or now.strftime("%H%M%S")
        )
    dataset.SOPClassUID = _RAW_DATA_CLASS
    dataset.SOPInstanceUID = _uid(digest, "instance")
    dataset.SeriesInstanceUID = _uid(digest, "series")
    dataset.InstanceNumber = 1
    dataset.AcquisitionContextSequence = []
    dataset.CreatorVersionUID = f"2.25.{_CREATOR_VERSION.int}"
    block = dataset.private_block(GROUP, CREATOR, create=True)
    block.add_new(LENGTH, "UL", len(stream))
    block.add_new(STREAM, "OB", stream + bytes(len(stream) % 2))
    return dataset


def unwrap(data: bytes) -> bytes:
    """The stream in a DICOM file, or in its data set without preamble. FormatError if none."""
    span = stream_span(io.BytesIO(data))
    if span is None:
        raise FormatError("expected a DICOM file with an mricodec stream in it, found no DICOM")
    return span.read(0, span.size)


def _first_header(stream: bytes) -> Dataset:
    """The first header with a study and a series, or an empty data set for another scan."""
    from pydicom import Dataset, dcmread

    if Stream(stream, DEFAULT_LIMITS).table:
        for _, header in series_headers(stream):
            if is_dicom(header):
                with quiet_pydicom():
                    dataset: Dataset = dcmread(io.BytesIO(header), stop_before_pixels=True)
                if dataset.get("StudyInstanceUID") and dataset.get("SeriesInstanceUID"):
                    return dataset
    return Dataset()


def _uid(digest: bytes, entity: str) -> str:
    """A UID derived from the SHA-256 of the stream (PS3.5 B.2)."""
    value = hashlib.sha256(b"mricodec wrap\0" + digest + entity.encode()).digest()
    return f"2.25.{uuid.UUID(bytes=value[:16], version=5).int}"
