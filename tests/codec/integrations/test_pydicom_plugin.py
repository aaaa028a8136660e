"""Frames under the transfer syntax of mricodec: the same pixels, whatever pydicom does."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import smooth
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.hooks import hooks
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from mricodec import codec
from mricodec.codec.integrations import pydicom_plugin
from mricodec.codec.integrations.pydicom_plugin import MRICODEC_LOSSLESS


@pytest.fixture(autouse=True)
def registered() -> None:
    pydicom_plugin.register()
    pydicom_plugin.register()


def dataset_of(
    frames: NDArray[Any], stored: int, *, planar: int = 0, allocated: int | None = None
) -> Dataset:
    """Grey [n, rows, columns] or colours [n, rows, columns, 3], if planar [n, 3, ...]."""
    colours = frames.ndim == 4
    rows, columns = frames.shape[2:] if planar else frames.shape[1:3]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 3 if colours else 1
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        dataset.PlanarConfiguration = planar
    dataset.BitsAllocated = allocated or 8 * frames.itemsize
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    dataset.PixelRepresentation = int(frames.dtype.kind == "i")
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    data = frames.astype(frames.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    return dataset


def saved(dataset: Dataset) -> FileDataset:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return dcmread(io.BytesIO(buffer.getvalue()))


def pictures(stored: int, signed: bool, count: int) -> NDArray[Any]:
    """Smooth frames that use all values of their bits."""
    lowest = -(1 << (stored - 1)) if signed else 0
    top = lowest + (1 << stored) - 1
    frames = smooth((count, 21, 17)).astype(np.int64) * 3 % (top - lowest + 1) + lowest
    frames[:, 0, :2] = lowest, top
    return frames.astype(f"{'iu'[not signed]}{1 if stored <= 8 else 2}")


@pytest.mark.parametrize("count", [1, 3], ids=["single", "multi"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("stored", [8, 10, 12, 16])
def test_there_and_back(stored: int, signed: bool, count: int) -> None:
    frames = pictures(stored, signed, count)
    dataset = dataset_of(frames, stored)
    pixels, uid = dataset.PixelData, dataset.SOPInstanceUID
    dataset.compress(MRICODEC_LOSSLESS, generate_instance_uid=False)
    assert np.array_equal(dataset.pixel_array, frames.squeeze())
    read = saved(dataset)
    assert read.file_meta.TransferSyntaxUID == MRICODEC_LOSSLESS and read.SOPInstanceUID == uid
    assert np.array_equal(read.pixel_array, frames.squeeze())
    read.decompress(generate_instance_uid=False)
    assert read.PixelData == pixels and read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(saved(read).pixel_array, frames.squeeze())


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("source", ["bytes", "array"])
def test_colours(planar: int, source: str) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 9, 7) if planar else (2, 9, 7, 3), np.uint8)
    seen = np.moveaxis(frames, 1, -1) if planar else frames
    dataset = dataset_of(frames, 8, planar=planar)
    pixels = dataset.PixelData
    dataset.compress(
        MRICODEC_LOSSLESS, **({} if source == "bytes" else {"arr": np.ascontiguousarray(seen)})
    )
    read = saved(dataset)
    assert np.array_equal(read.pixel_array, seen)
    if not planar:
        read.decompress()
        assert read.PixelData == pixels


@pytest.mark.parametrize("signed", [False, True])
def test_few_bits_in_wide_words(signed: bool) -> None:
    """pydicom hands over 8 of the 16 bits; what it drops must be what is put back."""
    frames = pictures(8, signed, 2).astype("i2" if signed else "u2")
    dataset = dataset_of(frames, 8)
    pixels = dataset.PixelData
    dataset.compress(MRICODEC_LOSSLESS)
    read = saved(dataset)
    assert np.array_equal(read.pixel_array, frames)
    read.decompress()
    assert read.PixelData == pixels
    frames[1, 3, 3] ^= 0x4000  # something above the bits stored
    with pytest.raises(RuntimeError, match="above 8 Bits Stored"):
        dataset_of(frames, 8).compress(MRICODEC_LOSSLESS)


def test_bits_above_those_stored_are_kept() -> None:
    """Overlays of old are in the stream; pydicom masks them, as in native data."""
    frames = pictures(12, False, 1)
    frames[0, 5:9] |= 0x8000
    dataset = dataset_of(frames, 12)
    native = dataset.pixel_array.copy()
    dataset.compress(MRICODEC_LOSSLESS)
    assert np.array_equal(dataset.pixel_array, native)
    [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
    assert np.array_equal(codec.decode(pydicom_plugin._unpadded(frame)).array, frames[0])


def test_every_frame_is_a_stream(scan_path: Path) -> None:
    array = codec.decode(codec.encode(scan_path, lossless=True) or b"").array.astype(np.int16)
    frames = array.reshape(-1, *array.shape[-2:])[:4]
    dataset = dataset_of(frames, 16)
    dataset.compress(MRICODEC_LOSSLESS)
    coded = list(generate_frames(dataset.PixelData, number_of_frames=len(frames)))
    assert len(coded) == len(frames) and all(len(frame) % 2 == 0 for frame in coded)
    for frame, picture in zip(coded, frames, strict=True):
        assert np.array_equal(codec.decode(pydicom_plugin._unpadded(frame)).array, picture)


def test_what_is_damaged_or_of_another_image_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    dataset = dataset_of(pictures(12, False, 1), 12)
    dataset.compress(MRICODEC_LOSSLESS)
    whole = dataset.PixelData
    dataset.PixelData = whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]
    with pytest.raises(RuntimeError, match="mricodec: "):
        dataset.pixel_array  # noqa: B018
    dataset.PixelData = whole
    for keyword, value in {"Rows": 20, "PixelRepresentation": 1, "BitsAllocated": 32}.items():
        before = getattr(dataset, keyword)
        setattr(dataset, keyword, value)
        with pytest.raises(RuntimeError, match="expected a frame of"):
            dataset.pixel_array  # noqa: B018
        setattr(dataset, keyword, before)
    assert dataset.pixel_array.shape == (21, 17)


def test_what_is_no_image_of_grey_or_colours_is_refused() -> None:
    dataset = dataset_of(np.zeros((1, 8, 8), np.uint64), 64)
    with pytest.raises(RuntimeError, match="expected 1 sample of 8, 16 or 32 bits"):
        dataset.compress(MRICODEC_LOSSLESS)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_other_callbacks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = hooks.raw_element_value
    called: list[int] = []

    def theirs(raw: Any, data: dict[str, Any], **kwargs: Any) -> None:
        called.append(raw.tag)
        ours(raw, data, **kwargs)

    monkeypatch.setattr(hooks, "raw_element_value", theirs)
    pydicom_plugin.register()
    dataset = dataset_of(pictures(12, False, 1), 12)
    dataset.compress(MRICODEC_LOSSLESS)
    saved(dataset).decompress()
    assert 0x00020010 in called


def test_without_the_plugin_it_stays_readable_and_savable(tmp_path: Path) -> None:
    dataset = dataset_of(pictures(12, False, 3), 12)
    dataset.PatientName = "Doe^Jane"
    dataset.compress(MRICODEC_LOSSLESS, generate_instance_uid=False)
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    code = f"""
import pydicom
dataset = pydicom.dcmread({str(tmp_path / "image.dcm")!r})
assert dataset.PatientName == "Doe^Jane" and dataset.Rows == 21
try:
    dataset.pixel_array
except (NotImplementedError, AttributeError, RuntimeError, ValueError):
    pass
else:
    raise AssertionError("decoded without the plug-in")
dataset.PatientName = "Roe^Jane"
dataset.save_as({str(tmp_path / "again.dcm")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = dcmread(tmp_path / "again.dcm")
    assert again.PatientName == "Roe^Jane" and again.PixelData == dataset.PixelData
    assert np.array_equal(again.pixel_array, dataset.pixel_array)


def test_nothing_happens_on_import() -> None:
    code = (
        "import mricodec.codec.integrations.pydicom_plugin as p, pydicom.uid as u;"
        "from pydicom.pixels.decoders import base as d;"
        "assert not u.PrivateTransferSyntaxes;"
        "assert p.MRICODEC_LOSSLESS not in d._PIXEL_DATA_DECODERS; p.register();"
        "assert p.MRICODEC_LOSSLESS in d._PIXEL_DATA_DECODERS"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
