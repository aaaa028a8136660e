"""DICOM objects made for tests: a small MR series with the attributes that identify a patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nifti_files import smooth
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def uid(name: str) -> str:
    return generate_uid(entropy_srcs=[name])


def image(series: str = "a", number: int = 0, **attributes: Any) -> Dataset:
    """A slice of 12 x 10 voxels; equal arguments give equal objects."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(f"{series} {number}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID = MRImageStorage
    found.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    found.StudyInstanceUID, found.SeriesInstanceUID = uid("study"), uid(series)
    found.FrameOfReferenceUID = uid("frame of reference")
    found.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    found.Modality, found.SeriesNumber, found.InstanceNumber = "MR", 1 + ord(series) - ord("a"), number + 1
    found.SeriesDescription = f"t2 {series}"
    found.PatientName, found.PatientID = "Doe^Jane", "4711"
    found.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    found.ImagePositionPatient = [-5, -6, 2.5 * number]
    found.PixelSpacing, found.SliceThickness = [1.0, 1.0], 2.5
    found.Rows, found.Columns = 12, 10
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    found.PixelData = smooth((16, 12, 10))[number % 16].astype("<u2").tobytes()
    found["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(found, keyword, value)
    return found


def write_series(folder: Path, series: str = "a", count: int = 4, **attributes: Any) -> None:
    """IM-SERIES-NUMBER, without an extension."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image(series, number, **attributes).save_as(folder / f"IM-{series}-{number}", enforce_file_format=True)
