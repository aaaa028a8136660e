"""Lossy DICOM: what PS3.3 C.7.6.1.1.5, C.12.4 and C.7.6.16.2.6 require of derived instances."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicom_files
import numpy as np
import pydicom
import pytest
from paths import DICOM
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mricodec import codec
from mricodec.codec.dicom.derived import derived_name
from mricodec.codec.dicom.stack_scan import series_voxels
from mricodec.codec.formats.dicom.elements import quiet_pydicom

QUALITY = 45.0


@pytest.fixture(scope="module")
def encoder() -> codec.Encoder:
    return codec.Encoder(quality=QUALITY)


@pytest.fixture(scope="module")
def decoder() -> codec.Decoder:
    return codec.Decoder()


def encode(source: Any, encoder: codec.Encoder) -> tuple[bytes, codec.SeriesReport]:
    buffer = io.BytesIO()
    report = codec.encode_series_file(source, buffer, encoder)
    return buffer.getvalue(), report


def read(data: bytes) -> FileDataset:
    with quiet_pydicom():
        return pydicom.dcmread(io.BytesIO(data))


def items(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from items(item)


# Attributes that lossy encoding changes, adds or removes; every other one stays as it was.
CHANGED = {
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "ImageType",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "DerivationDescription",
    "DerivationCodeSequence",
    "SourceImageSequence",
    "PixelData",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "ReferencedImageSequence",
}
# The same of an enhanced object.
CHANGED_ENHANCED = CHANGED | {
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SourceImageEvidenceSequence",
    "EchoPulseSequence",
    "PulseSequenceName",
    "MRAcquisitionType",
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
    "NumberOfKSpaceTrajectories",
}


def check_rules(source: FileDataset, decoded: FileDataset, changed: set[str]) -> None:
    """Rules that hold for every derived instance."""
    check_identity(source, decoded)
    assert [*decoded.ImageType] == ["DERIVED", *source.ImageType[1:]]
    assert decoded.LossyImageCompression == "01"
    assert "LossyImageCompressionRatio" not in source
    assert float(decoded.LossyImageCompressionRatio) > 1
    assert decoded.LossyImageCompressionMethod == "MRICODEC"
    check_derivation(source, decoded)
    check_pixels(source, decoded)
    assert "SmallestPixelValueInSeries" not in decoded
    assert "DigitalSignaturesSequence" not in decoded
    same = {element.tag for element in source if element.keyword not in changed}
    assert same <= set(decoded.keys())
    for tag in same:
        assert decoded[tag] == source[tag]
    assert {element.keyword for element in decoded if element.tag not in source} <= changed


def check_identity(source: FileDataset, decoded: FileDataset) -> None:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = decoded[keyword].value
        assert uid not in ("", source[keyword].value) and UID(uid).is_valid
    assert decoded.file_meta.MediaStorageSOPInstanceUID == decoded.SOPInstanceUID
    assert decoded.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert decoded.StudyInstanceUID == source.StudyInstanceUID
    assert decoded.SeriesNumber == source.SeriesNumber + 10_000
    description, ratio = decoded.SeriesDescription.rsplit(" lossy ", 1)
    assert source.SeriesDescription.startswith(description) and ratio.endswith(":1")
    assert len(decoded.SeriesDescription) <= 64


def check_derivation(source: FileDataset, decoded: FileDataset) -> None:
    """Description, code and source of the derivation: of the object, or of its frames."""
    dataset = decoded
    if "SharedFunctionalGroupsSequence" in decoded:
        dataset = decoded.SharedFunctionalGroupsSequence[0].DerivationImageSequence[-1]
        frame_types = [item.FrameType[0] for item in items(decoded) if "FrameType" in item]
        assert frame_types and set(frame_types) == {"DERIVED"}
        evidence = decoded.SourceImageEvidenceSequence[-1].ReferencedSeriesSequence[0]
        assert evidence.SeriesInstanceUID == source.SeriesInstanceUID
        assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "mricodec" in dataset.DerivationDescription
    assert len(dataset.DerivationDescription) <= 1024
    code = dataset.DerivationCodeSequence[-1]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113040", "DCM")
    reference = dataset.SourceImageSequence[-1]
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121320"


def check_pixels(source: FileDataset, decoded: FileDataset) -> None:
    pixels = decoded.pixel_array
    assert pixels.shape == source.pixel_array.shape and pixels.dtype == source.pixel_array.dtype
    extremes = {"SmallestImagePixelValue": pixels.min(), "LargestImagePixelValue": pixels.max()}
    for keyword, value in extremes.items():
        assert (keyword in decoded) == (keyword in source)
        assert keyword not in decoded or decoded[keyword].value == value


@pytest.mark.parametrize(
    ("name", "changed"), [("prostate_t2w", CHANGED), ("dwi_enhanced", CHANGED_ENHANCED)]
)
def test_rules(
    name: str, changed: set[str], encoder: codec.Encoder, decoder: codec.Decoder, tmp_path: Path
) -> None:
    folder = DICOM / name
    stream, report = encode(folder, encoder)
    assert report.mode == "lossy" and not report.notes
    assert codec.verify(stream, deep=True).mode == "lossy"
    files = dict(codec.series_files(stream, decoder=decoder))
    originals = dicom_files.contents(folder)
    assert files.keys() == {derived_name(name, ()) for name in originals}
    for file, data in originals.items():
        check_rules(read(data), read(files[derived_name(file, ())]), changed)
    # the voxels are those of the volume
    volume = codec.decode(stream).array
    source = series_voxels(codec.find_series(folder)[0])
    assert 0 < np.abs(volume.astype(int) - source).max() < 200
    codec.restore_series(stream, tmp_path / "out", decoder=decoder)
    assert np.array_equal(series_voxels(codec.find_series(tmp_path / "out")[0]), volume)


@pytest.mark.parametrize("name", ["prostate_t2w", "dwi_enhanced"])
def test_dciodvfy_finds_no_further_error(
    name: str, encoder: codec.Encoder, decoder: codec.Decoder, tmp_path: Path
) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")

    def errors(path: Path) -> set[str]:
        run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        return {line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")}

    folder = DICOM / name
    stream, _ = encode(folder, encoder)
    for file in codec.restore_series(stream, tmp_path / "out", decoder=decoder):
        original = folder / file.replace("_lossy", "")
        assert errors(tmp_path / "out" / file) <= errors(original)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_uids_depend_on_the_old_ones_and_on_the_encoding(
    syntax: UID, encoder: codec.Encoder, decoder: codec.Decoder
) -> None:
    datasets = dicom_files.series()
    # Each refers to the next one, and to one of another series.
    for n, dataset in enumerate(datasets):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.SmallestImagePixelValue = 0
        other = datasets[(n + 1) % len(datasets)]
        dataset.ReferencedImageSequence = [Dataset(), Dataset()]
        dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = other.SOPInstanceUID
        dataset.ReferencedImageSequence[1].ReferencedSOPInstanceUID = dicom_files.uid("elsewhere")
    stream, _ = encode(datasets, encoder)
    assert encode(datasets, encoder)[0] == stream
    decoded = list(codec.decode_series(stream, decoder=decoder))
    again = list(codec.decode_series(stream, decoder=decoder))
    assert decoded == again
    uids = [dataset.SOPInstanceUID for dataset in decoded]
    assert len(set(uids)) == len(datasets)
    assert len({dataset.SeriesInstanceUID for dataset in decoded}) == 1
    for n, dataset in enumerate(decoded):
        assert dataset.SmallestImagePixelValue == dataset.pixel_array.min()
        references = [item.ReferencedSOPInstanceUID for item in dataset.ReferencedImageSequence]
        assert references == [uids[(n + 1) % len(uids)], dicom_files.uid("elsewhere")]
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == datasets[n].SOPInstanceUID
    coarser, _ = encode(datasets, codec.Encoder(quality=QUALITY - 1))
    others = list(codec.decode_series(coarser, decoder=decoder))
    assert not {dataset.SOPInstanceUID for dataset in others} & set(uids)
    assert others[0].SeriesInstanceUID != decoded[0].SeriesInstanceUID


@pytest.mark.parametrize(
    ("name", "taken", "expected"),
    [
        ("a/IM01.dcm", (), "a/IM01_lossy.dcm"),
        ("1.2.840.5", (), "1.2.840.5_lossy"),
        ("x.IMA", ("x_lossy.IMA",), "x_lossy_2.IMA"),
        (".dcm", (), ".dcm_lossy"),
        ("a/" + "n" * 251 + ".dcm", (), "a/" + "n" * 245 + "_lossy.dcm"),
    ],
)
def test_names_of_derived_files(name: str, taken: tuple[str, ...], expected: str) -> None:
    assert derived_name(name, taken) == expected


def test_series_of_derived_instances_is_another(
    encoder: codec.Encoder, decoder: codec.Decoder
) -> None:
    """Description and number differ, whatever they were; the description in its characters."""
    cases: list[tuple[str | None, int | None, str, int]] = [
        ("頭部 " + "x" * 61, 7, "頭部 xxx", 10_007),
        (None, None, "lossy", 10_000),
        ("", (1 << 31) - 1, "lossy", (1 << 31) - 10_001),
    ]
    for description, number, begin, expected in cases:
        datasets = dicom_files.series(
            SpecificCharacterSet="ISO_IR 192", SeriesDescription=description, SeriesNumber=number
        )
        stream, _ = encode(datasets, encoder)
        decoded = next(codec.decode_series(stream, decoder=decoder))
        assert decoded.SeriesDescription.startswith(begin)
        assert "lossy" in decoded.SeriesDescription and len(decoded.SeriesDescription) <= 64
        assert decoded.SeriesNumber == expected


def test_a_second_loss_is_added_to_the_first(
    encoder: codec.Encoder, decoder: codec.Decoder
) -> None:
    datasets = dicom_files.series()
    for dataset in datasets:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = "7.5"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
        dataset.DerivationDescription = "Denoised"
        dataset.SourceImageSequence = [Dataset()]
        dataset.SourceImageSequence[0].ReferencedSOPInstanceUID = dicom_files.uid("before")
        dataset.add_new(0x00280108, "US", 0)
        dataset.add_new(0x00280106, "US", 0)
    decoded = next(codec.decode_series(encode(datasets, encoder)[0], decoder=decoder))
    assert list(decoded.LossyImageCompressionMethod) == ["ISO_10918_1", "MRICODEC"]
    assert (
        float(decoded.LossyImageCompressionRatio[0]) == 7.5
        and decoded["LossyImageCompressionRatio"].VM == 2
    )
    assert decoded.DerivationDescription.startswith("Denoised; ")
    assert len(decoded.SourceImageSequence) == 2
    assert (
        0x00280108 not in decoded and decoded.SmallestImagePixelValue == decoded.pixel_array.min()
    )


@pytest.mark.parametrize("limit", [None, 3])
def test_padding_is_restored_exactly(
    limit: int | None, encoder: codec.Encoder, decoder: codec.Decoder
) -> None:
    """Voxels of the padding value stay, no other becomes one; NIfTI and files agree."""
    voxels = dicom_files.volume() + np.uint16(100)
    k, j, i = np.mgrid[-1 : 1 : len(voxels) * 1j, -1:1:40j, -1:1:36j]
    outside = j**2 + i**2 > 0.9
    voxels[outside] = 0
    if limit is not None:
        voxels[outside & (k > 0)] = 2
    datasets = dicom_files.series(voxels)
    for dataset in datasets:
        dataset.add_new(0x00280120, "US", 0)
        if limit is not None:
            dataset.add_new(0x00280121, "US", limit)
    stream, report = encode(datasets, encoder)
    assert report.mode == "lossy"
    decoded = codec.decode(stream).array
    assert np.array_equal(decoded[outside], voxels[outside])
    assert (decoded[~outside] >= 100).all()
    assert np.array_equal(codec.decode(stream, slices=(5, 9)).array, decoded[5:9])
    files = list(codec.decode_series(stream, decoder=decoder))
    assert np.array_equal(np.stack([dataset.pixel_array for dataset in files]), decoded)
    assert np.abs(decoded.astype(int) - voxels).max() < 300


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BitsStored": 10, "HighBit": 9}, "BitsStored"),
        ({"BitsStored": 12, "HighBit": 15}, "BitsStored"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "segmentation"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"PixelPaddingValue": 500}, "lies among"),
    ],
)
def test_lossless_where_loss_is_unsuitable(
    attributes: dict[str, Any],
    reason: str,
    encoder: codec.Encoder,
    decoder: codec.Decoder,
    tmp_path: Path,
) -> None:
    datasets = dicom_files.series()
    for dataset in datasets:
        for name, value in attributes.items():
            if name == "PixelPaddingValue":
                dataset.add_new(0x00280120, "US", value)
            else:
                setattr(dataset, name, value)
    folder = dicom_files.write(datasets, tmp_path)
    stream, report = encode(folder, encoder)
    assert report.mode == "lossless"
    assert any(reason in note for _, note in report.notes), report.notes
    assert dict(codec.series_files(stream, decoder=decoder)) == dicom_files.contents(folder)


def test_other_files_of_the_series_are_identical(
    encoder: codec.Encoder, decoder: codec.Decoder, tmp_path: Path
) -> None:
    """Files without coded voxels are restored byte for byte, next to the derived instances."""
    folder = dicom_files.write(dicom_files.series(), tmp_path)
    (folder / "notes.txt").write_text("x")
    damaged = dicom_files.to_bytes(dicom_files.instance(dicom_files.volume()[0], 50))[:-99]
    (folder / "damaged").write_bytes(damaged)
    shutil.copy(dicom_files.PYDICOM / "JPEG2000.dcm", folder / "compressed")
    (series,) = [one for one in codec.find_series(folder) if len(one.instances) > 1]
    stream, report = encode(series, encoder)
    assert report.damaged and report.mode == "lossy"
    files = dict(codec.series_files(stream, decoder=decoder))
    assert files["damaged"] == damaged and files["notes.txt"] == b"x"
    assert read(files["IM0000_lossy"]).LossyImageCompression == "01"
    assert "IM0000" not in files and codec.restore_series(stream, tmp_path / "out") == [*files]
    assert dicom_files.contents(tmp_path / "out").keys() == files.keys()


def test_references_of_every_stack_follow_the_series(
    encoder: codec.Encoder, decoder: codec.Decoder
) -> None:
    """Two stacks of one series: references to the series by its UID follow in both."""
    datasets = dicom_files.series()
    datasets += [
        dicom_files.instance(slice_[:20], 100 + n) for n, slice_ in enumerate(dicom_files.volume())
    ]
    for dataset in datasets:
        dataset.ReferencedSeriesSequence = [Dataset()]
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = dataset.SeriesInstanceUID
    stream, report = encode(datasets, encoder)
    assert report.mode == "lossy" and len(report.shapes) == 2
    decoded = list(codec.decode_series(stream, decoder=decoder))
    assert len({dataset.SeriesInstanceUID for dataset in decoded}) == 1
    for dataset in decoded:
        reference = dataset.ReferencedSeriesSequence[0]
        assert reference.SeriesInstanceUID == dataset.SeriesInstanceUID
