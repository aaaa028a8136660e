"""De-identification: no byte of an identity is left, and the voxels are the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import dicom_files
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from nifti_files import single, smooth, write_pair
from paths import DICOM
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.tag import Tag
from pydicom.uid import UID, generate_uid

from mricodec import codec
from mricodec.cli import main
from mricodec.codec import loading
from mricodec.codec.dicom.deidentify import METHOD
from mricodec.codec.dicom.ps3_15 import ACTIONS

SECRETS = [
    b"Doe",
    b"Jane",
    b"4711",
    b"Mercy",
    b"Meyer",
    b"19700101",
    b"20240229",
    b"SECRET",
    b"GE_SECRET",
    b"72.5",
    b"IM0",
]


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(main.cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def identified(series: str = "a", **attributes: Any) -> list[Any]:
    """A series full of identities."""
    instances = dicom_files.series(dicom_files.volume(4, 12, 10), series=series, **attributes)
    for n, dataset in enumerate(instances):
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = (
            "Doe^Jane",
            "4711",
            "19700101",
        )
        dataset.PatientWeight, dataset.PatientAge, dataset.PatientSex = "72.5", "054Y", "F"
        dataset.InstitutionName, dataset.ReferringPhysicianName = "Mercy", "Meyer^M"
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = (
            "20240229"
        )
        dataset.StudyDescription, dataset.SeriesDescription, dataset.ProtocolName = (
            "SECRET",
            "SECRET",
            "SECRET",
        )
        dataset.RequestAttributesSequence = [item(ScheduledProcedureStepDescription="SECRET")]
        dataset.ReferencedImageSequence = [
            item(
                ReferencedSOPClassUID=dataset.SOPClassUID,
                ReferencedSOPInstanceUID=instances[(n + 1) % 4].SOPInstanceUID,
            )
        ]
        nested = item(
            RequestingPhysician="Meyer^M",
            CodeMeaning="kept",
            ReferencedSOPInstanceUID=dataset.SOPInstanceUID,
        )
        nested.private_block(0x0019, "GE_SECRET", create=True).add_new(1, "LO", "SECRET")
        dataset.AnatomicRegionSequence = [nested]
        dataset.private_block(0x0009, "GE_SECRET", create=True).add_new(1, "LO", "SECRET")
        dataset.add_new(0x60000010, "US", 12)
        dataset.add_new(0x60003000, "OW", b"SECRET")
        dataset.add_new(0x00181999, "LO", "SECRET")  # not in the dictionary
        dataset.preamble = b"SECRET".ljust(128, b"\0")
        dataset.file_meta.SourceApplicationEntityTitle = "SECRET"
    return instances


def datasets(stream: bytes) -> list[Dataset]:
    return sorted(codec.decode_series(stream), key=lambda dataset: int(dataset.InstanceNumber))


def test_nothing_is_left_in_the_bytes(tmp_path: Path) -> None:
    folder = dicom_files.write(identified(), tmp_path / "Doe")
    (folder / "SECRET.txt").write_text("SECRET")
    originals = [
        dcmread(path)
        for path in sorted(folder.glob("IM*"), key=lambda p: int(dcmread(p).InstanceNumber))
    ]
    stream = codec.encode_series(folder, lossless=True, deidentify=codec.Deidentifier())
    assert stream is not None
    restored = list(codec.series_files(stream))
    assert len(restored) == 4
    for name, data in [*restored, ("", stream)]:
        for secret in SECRETS:
            assert secret not in data and secret.decode() not in name, (secret, name)
    for clean, original in zip(datasets(stream), originals, strict=True):
        assert np.array_equal(clean.pixel_array, original.pixel_array)
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "Rows",
            "Modality",
        ):
            assert clean[keyword].value == original[keyword].value
        assert clean.AnatomicRegionSequence[0].CodeMeaning == "kept"
        assert clean.PatientIdentityRemoved == "YES" and clean.DeidentificationMethod == METHOD
        assert clean.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert clean.LongitudinalTemporalInformationModified == "REMOVED"


def test_every_action_of_the_table() -> None:
    """As the standard's actions say, for one attribute of each."""
    dataset = identified()[0]
    dataset.ContrastBolusAgent = dataset.StationName = "SECRET"
    dataset.FrameAcquisitionDateTime = "20240229120000"
    dataset.ContentSequence = [
        item(
            ValueType="TEXT",
            TextValue="SECRET",
            ConceptNameCodeSequence=[item(CodeMeaning="SECRET")],
        )
    ]
    dataset.IrradiationEventUID = [generate_uid(), dataset.SOPInstanceUID]
    old = dataset.SOPInstanceUID
    remover = codec.Deidentifier(b"key")
    remover.dataset(dataset)
    for keyword in ("PatientWeight", "StudyDescription", "RequestAttributesSequence"):
        assert keyword not in dataset  # X
    assert (
        dataset.StudyDate == "" and dataset.ReferringPhysicianName == "" and "StudyDate" in dataset
    )  # Z
    assert dataset.FrameAcquisitionDateTime == "19000101000000"  # D
    assert dataset.AcquisitionDate == ""  # X/Z
    assert (
        dataset.ProtocolName == dataset.ContrastBolusAgent == dataset.StationName == "ANONYMIZED"
    )  # X/D, Z/D, X/Z/D
    assert dataset.SeriesDate == dataset.ContentDate == "19000101"
    assert dataset.SOPInstanceUID == remover.uid(old) == dataset.IrradiationEventUID[1] != old  # U
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert dataset.ReferencedImageSequence[0].ReferencedSOPClassUID == dataset.SOPClassUID  # X/Z/U*
    assert (
        "SECRET" not in str(dataset.ContentSequence)
        and dataset.ContentSequence[0].TextValue == "ANONYMIZED"
    )  # D
    assert "SECRET" not in str(dataset)


def test_the_table_is_that_of_the_standard() -> None:
    """Attributes that everybody knows, and how many there are."""
    known = {
        "PatientName": "Z",
        "PatientID": "Z/D",
        "PatientBirthDate": "Z",
        "PatientAge": "X",
        "AccessionNumber": "Z",
        "InstitutionName": "X/Z/D",
        "SeriesDescription": "X",
        "ProtocolName": "X/D",
        "SOPInstanceUID": "U",
        "StudyInstanceUID": "U",
        "ReferencedImageSequence": "X/Z/U*",
        "ContentSequence": "D",
        "AcquisitionDate": "X/Z",
        "MediaStorageSOPInstanceUID": "U",
        "SeriesDate": "X/D",
        "StationName": "X/Z/D",
        "RequestAttributesSequence": "X",
    }
    assert {keyword: ACTIONS[int(Tag(keyword))] for keyword in known} == known
    assert len(ACTIONS) == 652 and 0x00280010 not in ACTIONS and 0x7FE00010 not in ACTIONS


def test_uids_stay_consistent_and_are_new(tmp_path: Path) -> None:
    remover = codec.Deidentifier()
    streams = [
        codec.encode_series(identified(series), lossless=True, deidentify=remover)
        for series in "ab"
    ]
    cleaned = [datasets(stream or b"") for stream in streams]
    assert len({dataset.StudyInstanceUID for series in cleaned for dataset in series}) == 1
    assert len({dataset.FrameOfReferenceUID for series in cleaned for dataset in series}) == 1
    assert len({dataset.SeriesInstanceUID for series in cleaned for dataset in series}) == 2
    assert len({dataset.PatientID for series in cleaned for dataset in series}) == 1
    for n in range(4):
        uids = {dataset.SOPInstanceUID for dataset in cleaned[0]}
        assert cleaned[0][n].ReferencedImageSequence[0].ReferencedSOPInstanceUID in uids
    originals = {str(dataset.SOPInstanceUID) for dataset in identified()}
    assert len(uids) == 4 and not uids & originals and all(UID(uid).is_valid for uid in uids)
    again = datasets(
        codec.encode_series(identified(), lossless=True, deidentify=codec.Deidentifier()) or b""
    )
    assert not {dataset.SOPInstanceUID for dataset in again} & uids  # another key
    assert codec.Deidentifier(b"k").uid("1.2.3") == codec.Deidentifier(b"k").uid("1.2.3") != "1.2.3"
    with pytest.raises(ValueError, match="key"):
        codec.Deidentifier(b"")


def test_patients_stay_apart() -> None:
    remover = codec.Deidentifier()
    ids = set()
    for patient in ("4711", "4712", "4711"):
        dataset = identified()[0]
        dataset.PatientID = patient
        remover.dataset(dataset)
        ids.add(dataset.PatientID)
    assert len(ids) == 2


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "image_dfl", "MR_small_bigendian", "MR_small_implicit", "rtdose"]
)
def test_other_encodings(name: str) -> None:
    """Compressed, deflated, big-endian, implicit: the pixels are the same."""
    path = get_testdata_file(f"{name}.dcm")
    assert path is not None
    original = dcmread(path)
    stream = codec.encode_series([path], lossless=True, deidentify=codec.Deidentifier())
    [clean] = codec.decode_series(stream or b"")
    assert clean.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    assert np.array_equal(clean.pixel_array, original.pixel_array)
    assert clean.PatientName == "" and clean.SOPInstanceUID != original.SOPInstanceUID


def test_real_series() -> None:
    for folder in sorted(DICOM.iterdir()):
        stream = codec.encode_series(folder, lossless=True, deidentify=codec.Deidentifier()) or b""
        plain = codec.encode_series(folder, lossless=True) or b""
        assert np.array_equal(codec.decode(stream).array, codec.decode(plain).array)
        affine = codec.decode(plain).affine
        assert affine is not None and np.allclose(codec.decode(stream).affine, affine)
        names = {finding.name.rpartition(".")[2] for finding in codec.identifying(stream)}
        assert "private attributes" not in names and not names & {
            "StudyDescription",
            "SeriesDescription",
            "StudyTime",
        }
        assert names <= {
            finding.name.rpartition(".")[2] for finding in codec.identifying(plain)
        } | {"file name"}


def test_lossy_series_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_model import FakeModel

    fake = FakeModel()
    monkeypatch.setattr(loading, "open_model", lambda name, device: fake)
    stream = codec.encode_series(identified(), quality=30, deidentify=codec.Deidentifier()) or b""
    for _, data in codec.series_files(stream):
        assert not [secret for secret in SECRETS if secret in data]


def test_files_that_cannot_be_cleaned_are_left_out(tmp_path: Path) -> None:
    folder = dicom_files.write(identified(), tmp_path / "in")
    (folder / "notes.txt").write_text("Doe")
    whole = (folder / "IM0000").read_bytes()
    (folder / "broken").write_bytes(whole[:132] + b"\x08\0\x05\0XX" + bytes(40))
    (folder / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR") or "").read_bytes())
    result = run("encode", folder, "-o", tmp_path / "out.mrc", "--lossless", "--deidentify")
    assert result.exit_code == 1
    for name in ("notes.txt: no DICOM file", "broken: ", "DICOMDIR: a DICOMDIR"):
        assert f"left out, as it can't be de-identified: {name}" in result.stderr
    assert codec.info(tmp_path / "out.mrc").files == 4
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a").write_bytes((folder / "DICOMDIR").read_bytes())
    with pytest.raises(ValueError, match="found none"):
        codec.encode_series(tmp_path / "none", lossless=True, deidentify=codec.Deidentifier())


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ({"BurnedInAnnotation": "YES"}, "is YES"),
        ({"Modality": "US"}, "look at them"),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, ""),
    ],
)
def test_burned_in_text_is_warned_of(attributes: dict[str, str], part: str, tmp_path: Path) -> None:
    folder = dicom_files.write(identified(**attributes), tmp_path / "in")
    result = run("encode", folder, "-o", tmp_path / "out.mrc", "--lossless", "--deidentify")
    assert result.exit_code == 0 and (
        "the pixels" in result.stderr or "their pixels" in result.stderr
    ) == bool(part)
    assert part in result.stderr


def test_names_of_outputs_are_neutral(tmp_path: Path) -> None:
    for series in "ab":
        dicom_files.write(identified(series), tmp_path / "in" / series)
    result = run("encode", tmp_path / "in", "-o", tmp_path / "out", "--lossless", "--deidentify")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["7.mrc", "7_2.mrc"]
    assert "SECRET" not in result.stderr


def nifti_header(size: int) -> bytes:
    """A small scan with something in every text, an extension and bytes after the voxels."""
    array = smooth((4, 6, 5))
    if size == 348:
        raw = bytearray(
            single(
                array, struct.pack("<4B2i", 1, 0, 0, 0, 16, 4) + b"SECRET\0\0", trailer=b"SECRET"
            )
        )
        places = {4: 10, 14: 18, 148: 80, 228: 24, 328: 16}
    else:
        image = nib.Nifti2Image(array.T, np.diag([1.0, 2, 3, 1]))
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET"))
        raw = bytearray(image.to_bytes() + b"SECRET")
        places = {240: 80, 320: 24, 508: 16}
    for offset, length in places.items():
        raw[offset : offset + length] = b"SECRET".ljust(length, b"\0")
    return bytes(raw)


@pytest.mark.parametrize("size", [348, 540])
def test_nifti(size: int, tmp_path: Path) -> None:
    (tmp_path / "Doe.nii").write_bytes(nifti_header(size))
    result = run(
        "encode", tmp_path / "Doe.nii", "-o", tmp_path / "out.mrc", "--lossless", "--deidentify"
    )
    assert result.exit_code == 0
    assert run("decode", tmp_path / "out.mrc", "-o", tmp_path / "back.nii").exit_code == 0
    back = (tmp_path / "back.nii").read_bytes()
    assert b"SECRET" not in back and b"Doe" not in (tmp_path / "out.mrc").read_bytes()
    before, after = nib.load(tmp_path / "Doe.nii"), nib.load(tmp_path / "back.nii")
    assert np.array_equal(before.get_fdata(), after.get_fdata()) and np.array_equal(
        before.affine, after.affine
    )
    assert before.header.get_zooms() == after.header.get_zooms() and not after.header.extensions
    assert codec.identifying(tmp_path / "out.mrc") == []
    assert codec.verify(tmp_path / "out.mrc", deep=True).mode == "lossless"


def test_nifti_pair_and_array(tmp_path: Path) -> None:
    hdr, _ = write_pair(tmp_path, smooth((4, 6, 5)), lead=b"SECRET".ljust(16, b"\0"))
    codec.Encoder(lossless=True, deidentify=codec.Deidentifier()).encode(
        hdr, out=tmp_path / "out.mrc"
    )
    codec.decode_file(tmp_path / "out.mrc", tmp_path / "back.hdr")
    assert b"SECRET" not in (tmp_path / "back.img").read_bytes()
    assert np.array_equal(nib.load(tmp_path / "back.hdr").get_fdata(), smooth((4, 6, 5)).T)
    stream = codec.Encoder(lossless=True, deidentify=codec.Deidentifier()).encode(smooth((4, 6, 5)))
    assert codec.identifying(stream or b"") == []


def test_never_by_default(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(nifti_header(348))
    folder = dicom_files.write(identified(), tmp_path / "in")
    assert (
        run("encode", tmp_path / "scan.nii", "-o", tmp_path / "scan.mrc", "--lossless").exit_code
        == 0
    )
    assert run("decode", tmp_path / "scan.mrc", "-o", tmp_path / "back.nii").exit_code == 0
    assert (tmp_path / "back.nii").read_bytes() == (tmp_path / "scan.nii").read_bytes()
    assert run("encode", folder, "-o", tmp_path / "series.mrc", "--lossless").exit_code == 0
    assert run("decode", tmp_path / "series.mrc", "-o", tmp_path / "back").exit_code == 0
    assert dicom_files.contents(tmp_path / "back") == dicom_files.contents(folder)


def test_identifying_attributes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(nifti_header(348))
    codec.encode(tmp_path / "scan.nii", lossless=True, out=tmp_path / "scan.mrc")
    shown = run("info", "--phi", tmp_path / "scan.mrc").stdout
    for name in (
        "data_type",
        "db_name",
        "descrip",
        "aux_file",
        "intent_name",
        "extensions",
        "bytes after the voxels",
    ):
        assert f"{name} " in shown
    assert shown.count("SECRET") == 7
    codec.encode_series(identified(), lossless=True, out=tmp_path / "series.mrc")
    listed = {
        entry["name"]: entry
        for entry in json.loads(run("info", "--phi", "--json", tmp_path / "series.mrc").stdout)
    }
    assert listed["PatientName"] == {"name": "PatientName", "values": ["Doe^Jane"], "count": 1}
    assert listed["SOPInstanceUID"]["count"] == 4 and len(listed["SOPInstanceUID"]["values"]) == 3
    assert listed["RequestAttributesSequence.ScheduledProcedureStepDescription"]["values"] == [
        "SECRET"
    ]
    assert listed["AnatomicRegionSequence.RequestingPhysician"]["values"] == ["Meyer^M"]
    assert "GE_SECRET (0009,xx01)" in listed["private attributes"]["values"]
    assert (
        listed["overlays and curves"]["values"] == ["group 6000"]
        and listed["file name"]["count"] == 4
    )
    assert "Rows" not in listed
    text = run("info", "--phi", tmp_path / "series.mrc").stdout
    assert "Doe^Jane" in text and "(4 in all)" in text
    codec.encode(smooth((4, 6, 5)), lossless=True, out=tmp_path / "array.mrc")
    assert run("info", "--phi", tmp_path / "array.mrc").stdout == "nothing found that identifies\n"


def test_listing_of_damaged_streams(tmp_path: Path) -> None:
    stream = codec.encode_series(identified(), lossless=True) or b""
    for size in (3, len(stream) // 2, len(stream) - 1):
        with pytest.raises(codec.FormatError):
            codec.identifying(stream[:size])
