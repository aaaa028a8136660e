"""A stream in a Raw Data object: it has patient and study, and gives the identical stream."""

from __future__ import annotations

import io
from pathlib import Path

import dicom_files
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
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


def test_a_wrapped_stream_is_opened_as_it_is(stream: bytes, tmp_path: Path) -> None:
    """`info`, `verify`, `decode` and `compare` take the DICOM object, from files, bytes, stdin."""
    (tmp_path / "s.dcm").write_bytes(codec.wrap(stream))
    expected = codec.decode(stream)
    for source in (tmp_path / "s.dcm", codec.wrap(stream), io.BytesIO(codec.wrap(stream)[132:])):
        assert codec.info(source).sha256 == codec.info(stream).sha256
        assert codec.verify(source, deep=True).files == 8
        assert np.array_equal(codec.decode(source, slices=(3, 5)).array, expected.array[3:5])
        assert dict(codec.series_files(source)).keys() == dict(codec.series_headers(stream)).keys()
        assert codec.identifying(source)

    def run(*arguments: object, **options: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)

    assert "8, a DICOM series" in run("info", tmp_path / "s.dcm").stdout
    assert run("verify", "-t", tmp_path / "s.dcm").exit_code == 0
    assert run("decode", tmp_path / "s.dcm").exit_code == 0
    assert dicom_files.contents(tmp_path / "s") == dicom_files.contents(DICOM / "prostate_t2w")
    assert run("decode", tmp_path / "s.dcm", "-o", tmp_path / "v.nii").exit_code == 0
    assert run("decode", "-", "-o", tmp_path / "w.nii", input=codec.wrap(stream)).exit_code == 0
    assert (tmp_path / "v.nii").read_bytes() == (tmp_path / "w.nii").read_bytes()
    compared = run("compare", DICOM / "prostate_t2w", tmp_path / "s.dcm")
    assert compared.stdout.startswith("PSNR inf"), compared.output
    scan = codec.encode(expected.array, lossless=True)
    assert scan is not None
    (tmp_path / "scan.dcm").write_bytes(codec.wrap(scan))
    assert run("decode", tmp_path / "scan.dcm").exit_code == 0
    assert (tmp_path / "scan.nii.gz").exists()


def test_a_wrapped_stream_in_implicit_vr(stream: bytes) -> None:
    """As an archive may transcode it: the elements are of unknown VR then."""
    dataset = pydicom.dcmread(io.BytesIO(codec.wrap(stream)))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    assert codec.unwrap(buffer.getvalue()) == stream


def test_damaged_wrapped_streams(stream: bytes) -> None:
    wrapped = codec.wrap(stream)
    image = dicom_files.to_bytes(dicom_files.series()[0])
    for data in (wrapped[:-2], wrapped[: len(wrapped) // 2], wrapped[:200], image):
        for read in (codec.info, codec.decode):
            with pytest.raises(codec.FormatError, match="DICOM"):
                read(data)


def test_wrapped_objects_among_images(stream: bytes, tmp_path: Path) -> None:
    """They are no series: kept as they are, in the stream of their neighbours, and not alone."""
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    for name in ("wrapped", "b.dcm"):
        (folder / name).write_bytes(codec.wrap(stream))
    files = dicom_files.contents(folder)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    for options in (["--lossless"], ["--quality", "50"]):
        result = run("encode", folder, "-o", tmp_path / "s.mrc", "-f", *options)
        assert result.exit_code == 0 and "an mricodec stream in a DICOM object" in result.stderr
        restored = dict(codec.series_files(tmp_path / "s.mrc"))
        assert restored["wrapped"] == files["wrapped"] and restored["b.dcm"] == files["b.dcm"]
        assert len(restored) == len(files)
    assert dict(codec.series_files(tmp_path / "s.mrc")) != files
    result = run("encode", folder, "-o", tmp_path / "d.mrc", "--lossless", "--deidentify")
    assert result.exit_code == 1 and "not looked into" in result.stderr
    assert codec.info(tmp_path / "d.mrc").files == len(files) - 2
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "s.dcm").write_bytes(codec.wrap(stream))
    for path in (tmp_path / "alone", tmp_path / "alone" / "s.dcm"):
        result = run("encode", path, "-o", tmp_path / "again.mrc", "--lossless")
        assert result.exit_code == 2 and "encoded already" in result.stderr
    assert not (tmp_path / "again.mrc").exists()
