"""DICOM files for tests: synthetic series, and the real ones that pydicom ships."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from mricodec import codec

PYDICOM = Path(pydicom.data.__file__).parent / "test_files"
ROOT = "1.2.826.0.1.3680043.8.498."


def uid(*parts: object) -> str:
    return str(generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts]))


def instance(
    pixels: NDArray[Any], number: int = 1, *, series: str = "a", **attributes: Any
) -> FileDataset:
    """A classic MR image [rows, columns]; `attributes` are set last, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(series, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = uid("study")
    dataset.SeriesInstanceUID = uid("series", series)
    dataset.FrameOfReferenceUID = uid("frame")
    dataset.Modality = "MR"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "0815"
    dataset.StudyDate, dataset.StudyTime = "20240229", "120000"
    dataset.SeriesNumber = 7
    dataset.SeriesDescription = f"t1 {series}"
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.ImagePositionPatient = [-20, -30, 2.5 * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.9, 0.8]
    dataset.SliceThickness = 2.5
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def volume(slices: int = 12, rows: int = 40, columns: int = 36) -> NDArray[np.uint16]:
    """A noisy ball, 12 bits."""
    k, j, i = np.mgrid[-1 : 1 : slices * 1j, -1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    inside = k**2 + j**2 + i**2 < 0.8
    noise = np.random.default_rng(5).normal(0, 15, inside.shape)
    return np.clip(200 + inside * (900 + 200 * np.sin(6 * i) * j) + noise, 0, 4095).astype(
        np.uint16
    )


def series(voxels: NDArray[Any] | None = None, **attributes: Any) -> list[FileDataset]:
    """One instance per slice, the first one lowest."""
    voxels = volume() if voxels is None else voxels
    return [instance(pixels, n + 1, **attributes) for n, pixels in enumerate(voxels)]


def to_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(datasets: list[FileDataset], folder: Path) -> Path:
    """Names that sort otherwise than the slices, without extension."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, dataset in enumerate(datasets):
        (folder / f"IM{7 * n % 997:04d}").write_bytes(to_bytes(dataset))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def long_header(number: int, size: int = 100_000) -> bytes:
    """Protocol text of private elements; about 2 % of its bytes change from slice to slice.

    60 quantities count up, each in several lines; 17 others are random in every slice.
    """
    rng = np.random.default_rng(11)
    names = [
        f"sSliceArray.asSlice[{n}].sPosition.d{axis}"
        for n in range(40)
        for axis in ("Sag", "Cor", "Tra")
    ]
    steps = rng.integers(1, 4000, 60) / 1000
    offsets = rng.integers(0, 8000, 60) / 8
    lines: list[str] = []
    written = 0
    while written < size:
        name = names[int(rng.integers(len(names)))]
        value, which = float(rng.integers(1000)) / 8, int(rng.integers(60))
        if len(lines) % 4 == 0:
            value = offsets[which] + number * steps[which]
        if len(lines) % 100 == 50:
            value = float(np.random.default_rng([number, len(lines)]).integers(1e6)) / 1000
        lines.append(f"{name} = {value:012.6f}\n")
        written += len(lines[-1])
    return "".join(lines).encode()[:size]


def encode_decode(folder: Path) -> dict[str, bytes]:
    """What comes back of a folder; here, so that other processes can import it."""
    stream = codec.encode_series(folder, lossless=True)
    assert stream is not None
    return dict(codec.series_files(stream))
