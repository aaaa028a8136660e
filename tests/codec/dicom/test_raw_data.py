"""A stream in a Raw Data object: it has patient and study, and gives the identical stream."""

from __future__ import annotations

import io
from pathlib import Path

import dicom_files
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from paths import DICOM

from mricodec import codec
from mricodec.cli.main import cli


@pytest.fixture
def stream() -> bytes:
    stream = codec.encode_series(DICOM / "prostate_t2w", lossless=True)
    assert stream is not None
    return stream


def test_wrapping(stream: bytes) -> None:
    wrapped = codec.wrap(stream)
    assert codec.unwrap(wrapped) == stream
    assert codec.wrap(stream) == wrapped
    assert len(wrapped) < len(stream) + 2000
    wrapper = pydicom.dcmread(io.BytesIO(wrapped))
    source = pydicom.dcmread(DICOM / "prostate_t2w" / "1-06.dcm")
    for name in (
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "Modality",
        "FrameOfReferenceUID",
        "StudyDate",
    ):
        assert wrapper[name] == source[name]
    assert wrapper.SeriesInstanceUID != source.SeriesInstanceUID and wrapper.SOPInstanceUID.is_valid
    assert wrapper.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    bare = wrapped[132:]  # Some archives leave out the preamble.
    assert codec.unwrap(bare) == stream


def test_a_scan_without_identity() -> None:
    scan = codec.encode(np.arange(60, dtype=np.int16).reshape(3, 4, 5), lossless=True)
    assert scan is not None
    for stream in (
        scan,
        codec.encode_series(dicom_files.series(np.zeros((1, 3, 3), np.uint8)), lossless=True)
        or b"",
    ):
        assert codec.unwrap(codec.wrap(stream)) == stream


def test_what_is_not_wrapped(stream: bytes) -> None:
    wrapped = codec.wrap(stream)
    with pytest.raises(codec.FormatError, match="mricodec stream"):
        codec.wrap(b"no stream")
    for data in (
        b"",
        stream,
        wrapped[:2000],
        wrapped[:-8],
        dicom_files.to_bytes(dicom_files.series()[0]),
    ):
        with pytest.raises(codec.FormatError):
            codec.unwrap(data)
    other = bytearray(wrapped)
    other[wrapped.index(codec.MAGIC)] ^= 1
    with pytest.raises(codec.FormatError, match="other bytes"):
        codec.unwrap(bytes(other))


def test_command_line(stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.mrc").write_bytes(stream)

    def run(*arguments: object) -> int:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments]).exit_code

    assert run("wrap", tmp_path / "s.mrc", "-o", tmp_path / "s.dcm") == 0
    assert run("wrap", tmp_path / "s.mrc", "-o", tmp_path / "s.dcm") == 2
    assert run("unwrap", tmp_path / "s.dcm", "-o", tmp_path / "again.mrc") == 0
    assert (tmp_path / "again.mrc").read_bytes() == stream
    assert run("unwrap", tmp_path / "s.mrc", "-o", tmp_path / "x.mrc") == 1
    assert not (tmp_path / "x").exists()
