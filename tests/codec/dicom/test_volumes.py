"""The volumes of a series: values by their bits and rescale, frames in their order and kinds."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dicom_files
import nibabel
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRBigEndian

from mricodec import codec
from mricodec.cli.main import cli
from mricodec.codec.filenames import MAX_TITLE_BYTES, series_stem

AXIAL, CORONAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)


def dcm2niix() -> str | None:
    """The program, or None where it is not installed."""
    return shutil.which("dcm2niix") or shutil.which("dcm2niix", path=Path(sys.executable).parent)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def encoded(datasets: list[FileDataset], folder: Path) -> tuple[bytes, codec.SeriesReport]:
    """The stream of a series, whose files it restores."""
    dicom_files.write(datasets, folder / "in")
    (series,) = codec.find_series(folder / "in")
    report = codec.encode_series_file(series, folder / "s.mrc", codec.Encoder(lossless=True))
    stream = (folder / "s.mrc").read_bytes()
    assert dict(codec.series_files(stream)) == dicom_files.contents(folder / "in")
    return stream, report


def words(values: NDArray[Any], stored: int, high: int, others: int = 0) -> NDArray[np.uint16]:
    """16-bit words that have `values` in their bits up to `high`, and `others` in the rest."""
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    placed = (values.astype(np.int64) << (high + 1 - stored)) & mask
    return (placed | (others & ~mask)).astype(np.uint16)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("stored", "high", "others"),
    [
        (12, 11, 0),
        (12, 11, 0xFFFF),
        (12, 11, 0x5000),
        (12, 15, 0x0005),
        (10, 12, 0xFFFF),
        (16, 15, 0),
    ],
)
def test_samples_are_the_bits_stored(
    signed: bool, stored: int, high: int, others: int, tmp_path: Path
) -> None:
    low = -(1 << stored - 1) if signed else 0
    values = np.random.default_rng(1).integers(low, low + (1 << stored), (4, 9, 11))
    attributes = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    datasets = dicom_files.series(words(values, stored, high, others), **attributes)
    stream, report = encoded(datasets, tmp_path)
    volume = codec.decode(stream)
    assert volume.array.dtype == (np.int16 if signed else np.uint16)
    assert np.array_equal(volume.array, values)
    assert np.array_equal(codec.decode(stream, slices=(2, 4)).array, values[2:4])
    codec.decode_file(stream, tmp_path / "v.nii")
    assert np.array_equal(nibabel.load(tmp_path / "v.nii").get_fdata().T, values)
    assert run("compare", tmp_path / "in", tmp_path / "s.mrc").stdout.startswith("PSNR inf")
    assert not report.notes
    if high == stored - 1:
        pixels = [dataset.pixel_array for dataset in codec.decode_series(stream)]
        assert np.array_equal(np.stack(pixels), values)


def test_samples_of_big_endian_files(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-2048, 2048, (3, 9, 11))
    datasets = dicom_files.series(
        words(values, 12, 11).byteswap(), BitsStored=12, HighBit=11, PixelRepresentation=1
    )
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    folder = tmp_path / "in"
    folder.mkdir()
    for n, dataset in enumerate(datasets):
        pydicom.dcmwrite(folder / str(n), dataset, enforce_file_format=True)
    stream = codec.encode_series(folder, lossless=True)
    assert stream is not None
    assert dict(codec.series_files(stream)) == dicom_files.contents(folder)
    assert np.array_equal(codec.decode(stream).array, values)
    codec.decode_file(stream, tmp_path / "v.nii")
    assert np.array_equal(nibabel.load(tmp_path / "v.nii").get_fdata().T, values)


def test_preview_has_the_values(tmp_path: Path) -> None:
    values = np.full((3, 16, 16), -5)
    datasets = dicom_files.series(
        words(values, 12, 11), BitsStored=12, HighBit=11, PixelRepresentation=1
    )
    stream, _ = encoded(datasets, tmp_path)
    assert (codec.decode(stream, preview=True).array == -5).all()


def test_rescale_that_differs_between_slices(tmp_path: Path) -> None:
    """PET: the volume has scaled values, as dcm2niix writes them; a note says it."""
    voxels = dicom_files.volume()
    datasets = dicom_files.series(voxels)
    scales = [(1 + 0.3 * n, -7.0 * n) for n in range(len(datasets))]
    for dataset, (slope, intercept) in zip(datasets, scales, strict=True):
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.2f}", f"{intercept:.1f}"
    stream, report = encoded(datasets, tmp_path)
    assert ["differ in RescaleSlope" in note for _, note in report.notes] == [True]
    assert not report.misplaced
    pairs = np.array([[float(f"{slope:.2f}"), intercept] for slope, intercept in scales])
    expected = (voxels * pairs[:, :1, None] + pairs[:, 1:, None]).astype(np.float32)
    volume = codec.decode(stream)
    assert (volume.slope, volume.inter, volume.array.dtype) == (1.0, 0.0, np.float32)
    assert np.array_equal(volume.array, expected)
    assert np.array_equal(codec.decode(stream, slices=(3, 7)).array, expected[3:7])
    codec.decode_file(stream, tmp_path / "v.nii", slices=(3, 7))
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "v.nii").dataobj).T, expected[3:7])
    assert run("compare", tmp_path / "in", tmp_path / "s.mrc").stdout.startswith("PSNR inf")


def test_images_of_nibabel_have_the_values(tmp_path: Path) -> None:
    voxels = dicom_files.volume()
    datasets = dicom_files.series(voxels, RescaleIntercept="0")
    for n, dataset in enumerate(datasets):
        dataset.RescaleSlope = str(n + 1)
    encoded(datasets, tmp_path)
    image = codec.nibabel_plugin.MricodecImage.from_filename(tmp_path / "s.mrc")
    expected = (voxels * np.arange(1, len(voxels) + 1)[:, None, None]).T
    assert image.get_data_dtype() == np.float32 and image.dataobj.dtype == np.float32
    assert np.array_equal(image.dataobj[..., 4], expected[..., 4])
    assert np.array_equal(image.get_fdata(), expected)


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def enhanced(
    frames: list[dict[str, Any]],
    pointers: tuple[int, ...] = (0x00209056, 0x00209057, 0x00209128),
    **attributes: Any,
) -> FileDataset:
    """frames: pixels, position, orientation, indices and echo, component, slope of each."""
    dataset = dicom_files.instance(
        np.concatenate([frame["pixels"] for frame in frames]).astype(np.uint16),
        Rows=frames[0]["pixels"].shape[0], NumberOfFrames=len(frames),
        ImagePositionPatient=None, ImageOrientationPatient=None, **attributes,
    )  # fmt: skip
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    groups = []
    for frame in frames:
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=list(frame["position"]))],
            PlaneOrientationSequence=[
                item(ImageOrientationPatient=list(frame.get("orientation", AXIAL)))
            ],
            FrameContentSequence=[item(DimensionIndexValues=list(frame["indices"]))],
        )
        if "echo" in frame:
            group.MREchoSequence = [item(EffectiveEchoTime=frame["echo"])]
        if "component" in frame:
            frame_type = item(ComplexImageComponent=frame["component"])
            group.MRImageFrameTypeSequence = [frame_type]
        if "slope" in frame:
            scale = item(RescaleSlope=frame["slope"], RescaleIntercept="0")
            group.PixelValueTransformationSequence = [scale]
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = [Dataset()]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.DimensionIndexSequence = [item(DimensionIndexPointer=tag) for tag in pointers]
    return dataset


VOLUME = dicom_files.volume(6, 10, 12)


def test_frames_whose_times_stand_in_another_order_per_slice(tmp_path: Path) -> None:
    order = [(k, t) for k in range(6) for t in ((0, 1, 2) if k % 2 else (2, 0, 1))]
    frames = [
        {"pixels": VOLUME[k] + 100 * t, "position": (0, 0, 2 * k), "indices": (1, k + 1, t + 1)}
        for k, t in order
    ]
    stream, report = encoded([enhanced(frames)], tmp_path)
    expected = np.stack([VOLUME + np.uint16(100 * t) for t in range(3)])
    assert np.array_equal(codec.decode(stream).array, expected)
    assert not report.notes and not report.misplaced


@pytest.mark.parametrize("position_last", [False, True])
def test_the_significance_of_dimensions_is_that_of_dcm2niix(
    position_last: bool, tmp_path: Path
) -> None:
    """Philips has the position before the other dimensions, Canon and Bruker behind them."""
    frames, b_value, gradient = [], 0x00189087, 0x00189089
    for n, (b, g) in enumerate(itertools.product(range(2), range(3))):
        for k in range(6):
            indices = (b + 1, g + 1, k + 1) if position_last else (k + 1, b + 1, g + 1)
            frames.append(
                {"pixels": VOLUME[k] + 100 * n, "position": (0, 0, 2 * k), "indices": indices}
            )
    rng = np.random.default_rng(3)
    pointers = (b_value, gradient, 0x00209057) if position_last else (0x00209057, b_value, gradient)
    shuffled = [frames[n] for n in rng.permutation(len(frames))]
    stream, _ = encoded([enhanced(shuffled, pointers)], tmp_path)
    means = codec.decode(stream).array.mean((1, 2, 3)) - VOLUME.mean()
    expected = [0, 100, 200, 300, 400, 500] if position_last else [0, 300, 100, 400, 200, 500]
    assert np.allclose(means, expected)


def test_frames_of_several_orientations_are_a_volume_each(tmp_path: Path) -> None:
    axial = [
        {"pixels": VOLUME[k], "position": (0, 0, 2 * k), "indices": (1, k + 1, 1)} for k in range(6)
    ]
    coronal = [
        {
            "pixels": VOLUME[k] + 500, "position": (0, 3 * k, 0), "orientation": CORONAL,
            "indices": (2, k + 1, 1),
        }
        for k in range(4)
    ]  # fmt: skip
    mixed = [frame for pair in itertools.zip_longest(coronal, axial) for frame in pair if frame]
    stream, report = encoded([enhanced(mixed)], tmp_path)
    assert ["2 kinds" in note for _, note in report.notes] == [True]
    first, (second,) = codec.decode(stream), codec.further_volumes(stream)
    assert np.array_equal(first.array, VOLUME)
    assert np.array_equal(second.array, VOLUME[:4] + 500)
    assert first.affine is not None and second.affine is not None
    assert first.affine.tolist() == [[-0.8, 0, 0, 0], [0, -0.9, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
    assert np.allclose(second.affine[:3, 2], [0, -3, 0]) and second.spacing_mm == (3.0, 0.9, 0.8)
    part = codec.decode(stream, slices=(2, 4))
    assert np.array_equal(part.array, VOLUME[2:4]) and part.affine is not None
    assert part.affine[:3, 3].tolist() == [0, 0, 4]
    assert codec.decode(stream, preview=True).array.shape == (6, 3, 3)
    with pytest.raises(ValueError, match="slices"):
        codec.decode(stream, slices=(0, 7))
    assert run("decode", tmp_path / "s.mrc", "-o", tmp_path / "v.nii").exit_code == 0
    further = nibabel.load(tmp_path / "v_2.nii")
    assert np.array_equal(np.asarray(further.dataobj).T, second.array)
    assert np.allclose(further.affine, second.affine)
    image = codec.nibabel_plugin.MricodecImage.from_filename(tmp_path / "s.mrc")
    assert np.array_equal(image.dataobj[..., 3], VOLUME[3].T)
    assert np.array_equal(image.get_fdata().T, VOLUME)


def test_echoes_and_components_are_a_volume_each(tmp_path: Path) -> None:
    """With the slope of each: no volume is scaled into floats for the sake of another."""
    kinds = [("MAGNITUDE", 5.0, "2"), ("PHASE", 5.0, "0.5"), ("MAGNITUDE", 9.0, "2")]
    frames = [
        {
            "pixels": VOLUME[k] + 100 * n, "position": (0, 0, 2 * k), "indices": (1, k + 1, n + 1),
            "component": component, "echo": echo, "slope": slope,
        }
        for k in range(6)
        for n, (component, echo, slope) in enumerate(kinds)
    ]  # fmt: skip
    stream, _ = encoded([enhanced(frames)], tmp_path)
    assert codec.info(stream).shape == (3, 6, 10, 12)  # coded as one array
    volumes = [codec.decode(stream), *codec.further_volumes(stream)]
    for n, volume in enumerate(volumes):
        assert np.array_equal(volume.array, VOLUME + np.uint16(100 * n))
        assert (volume.slope, volume.inter) == (float(kinds[n][2]), 0.0)


def test_rt_dose(tmp_path: Path) -> None:
    """pydicom's grid: planes by GridFrameOffsetVector, values by DoseGridScaling."""
    path = dicom_files.PYDICOM / "rtdose.dcm"
    dataset = pydicom.dcmread(path)
    stream = codec.encode_series([path], lossless=True)
    assert stream is not None
    volume = codec.decode(stream)
    assert np.allclose(volume.scaled(), dataset.pixel_array * float(dataset.DoseGridScaling))
    offsets = [float(offset) for offset in dataset.GridFrameOffsetVector]
    x, y, z = (float(value) for value in dataset.ImagePositionPatient)
    assert volume.affine is not None
    for k, offset in enumerate(offsets):
        assert np.allclose(volume.affine @ [0, 0, k, 1], [-x, -y, z + offset - offsets[0], 1])


@pytest.mark.parametrize(
    ("offsets", "orientation", "last"),
    [
        ((0, 2, 4), AXIAL, (1, 2, 7)),  # relative to the first plane
        ((3, 5, 7), AXIAL, (1, 2, 7)),  # z coordinates
        ((0, -2, -4), AXIAL, (1, 2, -1)),
        ((0, 2, 4), (1, 0, 0, 0, -1, 0), (1, 2, -1)),  # along the normal
        ((0, 2, 4), CORONAL, (1, 6, 3)),
    ],
)
def test_planes_of_a_dose_grid(
    offsets: tuple[float, ...], orientation: Any, last: Any, tmp_path: Path
) -> None:
    dataset = dicom_files.instance(
        np.arange(90, dtype=np.uint16).reshape(9, 10), Rows=3, NumberOfFrames=3,
        GridFrameOffsetVector=list(offsets), ImagePositionPatient=[1, 2, 3],
        ImageOrientationPatient=list(orientation), DoseGridScaling="0.5",
    )  # fmt: skip
    stream, _ = encoded([dataset], tmp_path)
    volume = codec.decode(stream)
    assert volume.slope == 0.5 and volume.affine is not None
    ends = [(volume.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1] for k in (0, 2)]
    assert any(np.allclose(end, last) for end in ends)
    frame = int(np.argmin([np.abs(end - last).sum() for end in ends])) * 2
    assert np.array_equal(volume.array[frame], np.arange(60, 90).reshape(3, 10))


# b-value, direction, and Philips' numbers of the b-value and of the gradient: the fourth volume is
# an isotropic one that the scanner derives.
DIFFUSION: list[tuple[int, tuple[int, int, int] | None, int, int]] = [
    (0, None, 1, 1), (1000, (1, 0, 0), 2, 1), (1000, (0, 1, 0), 2, 2), (1000, (0, 0, 0), 2, 4),
    (1000, (0, 0, 1), 2, 3), (2000, (1, 0, 0), 3, 1), (2000, (0, 1, 0), 3, 2),
]  # fmt: skip
# Philips' numbers of the volumes (in scanners from release 5.6 on).
VOLUME_NUMBERS = (1, 3, 2, 7, 4, 6, 5)
PERMUTED = (4, 0, 6, 2, 1, 5, 3)
COUNT = len(DIFFUSION)
# InstanceNumber of slice k of volume t.
NUMBERS = {
    "slice by slice": lambda t, k: 6 * t + k + 1,
    "volume by volume": lambda t, k: COUNT * k + t + 1,
    "slice by slice, volumes permuted": lambda t, k: 6 * PERMUTED[t] + k + 1,
    "volume by volume, permuted": lambda t, k: COUNT * k + PERMUTED[t] + 1,
    "interleaved slices": lambda t, k: 6 * t + (0, 3, 1, 4, 2, 5)[k] + 1,
}


def philips(number: Any, *, numbered: bool, per_slice: bool) -> list[FileDataset]:
    """A classic diffusion series; numbered: with the numbers of the volumes.

    per_slice: with other orders of InstanceNumber in every second slice.
    """
    datasets = []
    for t, (b_value, gradient, b_number, gradient_number) in enumerate(DIFFUSION):
        for k in range(6):
            dataset = dicom_files.instance(
                VOLUME[k] + np.uint16(100 * t), 10 * t + k, Manufacturer="Philips Medical Systems",
                ImagePositionPatient=[0, 0, 2.5 * k], EchoTime="80", RepetitionTime="3000",
                ProtocolName="DTI", AcquisitionNumber=1, PatientPosition="HFS",
            )  # fmt: skip
            dataset.InstanceNumber = number(COUNT - 1 - t if per_slice and k % 2 else t, k)
            kind = "ISOTROPIC" if gradient and not any(gradient) else "DIRECTIONAL"
            dataset.add_new(0x00189075, "CS", kind if b_value else "NONE")
            dataset.add_new(0x00189087, "FD", float(b_value))
            vector = [float(part) for part in gradient or (0, 0, 0)]
            if gradient:
                dataset.add_new(0x00189089, "FD", vector)
            dataset.add_new(0x20010010, "LO", "Philips Imaging DD 001")
            dataset.add_new(0x20011003, "FL", float(b_value))
            dataset.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
            dataset.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
            dataset.add_new(0x20050015, "LO", "Philips MR Imaging DD 006")
            for tag, part in zip((0x200510B0, 0x200510B1, 0x200510B2), vector, strict=True):
                dataset.add_new(tag, "FL", part)
            dataset.add_new(0x20051412, "IS", b_number)
            dataset.add_new(0x20051413, "IS", gradient_number)
            if numbered:
                dataset.add_new(0x20051596, "IS", VOLUME_NUMBERS[t])
            datasets.append(dataset)
    return datasets


def volumes_in(array: NDArray[Any]) -> list[int]:
    """Which of the volumes of `philips` [t, k, j, i] stand where."""
    offsets = array.astype(int) - VOLUME
    assert all(np.ptp(offset) == 0 for offset in offsets)
    return [int(offset.flat[0]) // 100 for offset in offsets]


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_volumes_of_a_diffusion_series_of_philips(
    numbers: str, numbered: bool, tmp_path: Path
) -> None:
    """In the order of dcm2niix's .bval; the derived volume, which that lacks, is the last."""
    folder = dicom_files.write(
        philips(NUMBERS[numbers], numbered=numbered, per_slice=False), tmp_path / "in"
    )
    stream = codec.encode_series(folder, lossless=True)
    assert stream is not None
    ours = volumes_in(codec.decode(stream).array)
    by_number = sorted(range(COUNT), key=VOLUME_NUMBERS.__getitem__)
    counted = sorted(range(COUNT), key=lambda t: NUMBERS[numbers](t, 0))
    order = by_number if numbered and not numbers.startswith("slice") else counted
    assert ours == [t for t in order if t != 3] + [3]
    program = dcm2niix()
    if program is None:
        return
    arguments = [program, "-f", "theirs", "-o", str(tmp_path), str(folder)]
    subprocess.run(arguments, check=True, capture_output=True)
    theirs = np.asarray(nibabel.load(tmp_path / "theirs.nii").dataobj).T[:, :, ::-1]
    assert volumes_in(theirs) == ours[:-1]
    weights = [float(word) for word in (tmp_path / "theirs.bval").read_text().split()]
    assert weights == [DIFFUSION[t][0] for t in ours[:-1]]


def test_the_order_of_gradients_where_numbers_do_not_tell(tmp_path: Path) -> None:
    """InstanceNumber in opposite order in every second slice: no volume is of two gradients."""
    datasets = philips(NUMBERS["volume by volume"], numbered=False, per_slice=True)
    stream, _ = encoded(datasets, tmp_path)
    assert volumes_in(codec.decode(stream).array) == [0, 1, 2, 4, 5, 6, 3]


def test_an_isotropic_image_beside_one_other_keeps_its_position(tmp_path: Path) -> None:
    datasets = philips(NUMBERS["slice by slice"], numbered=False, per_slice=False)
    pair = [dataset for t in (3, 4) for dataset in datasets[6 * t : 6 * t + 6]]
    stream, _ = encoded(pair, tmp_path)
    assert volumes_in(codec.decode(stream).array) == [3, 4]


TITLES = {
    "ISO_IR 100": "Kopf süß/axial",
    "ISO_IR 144": "Голова 3D",
    "ISO_IR 192": "頭部 T1 ©",
    "GB18030": "头部平扫",
    "\\ISO 2022 IR 87": "頭部",
    "\\ISO 2022 IR 149": "두부",
}


@pytest.mark.parametrize("character_set", TITLES)
def test_titles_are_in_their_character_set(character_set: str, tmp_path: Path) -> None:
    title = TITLES[character_set]
    datasets = dicom_files.series(
        VOLUME, SpecificCharacterSet=character_set.split("\\"), SeriesDescription=title
    )
    folder = dicom_files.write(datasets, tmp_path / "in")
    (series,) = codec.find_series(folder)
    assert series.title == f"7 {title}"
    assert run("encode", folder, "-o", f"{tmp_path}/out/", "--lossless").exit_code == 0
    (stream,) = (tmp_path / "out").iterdir()
    assert stream.name == f"{series_stem(series.title)}.mrc"
    assert set(stream.stem) - set("_7") <= set(title)
    assert dict(codec.series_files(stream)) == dicom_files.contents(folder)


@pytest.mark.parametrize("character_set", ["", "ISO_IR 999", "ISO 2022 IR 87", "ISO_IR 192"])
def test_titles_in_no_character_set(character_set: str, tmp_path: Path) -> None:
    (dataset,) = dicom_files.series(VOLUME[:1], SpecificCharacterSet="ISO 2022 IR 13")
    data = dicom_files.to_bytes(dataset).replace(b"t1 a", b"\xff\x1b$\xe4")
    (tmp_path / "a").write_bytes(data.replace(b"ISO 2022 IR 13", character_set.encode().ljust(14)))
    (series,) = codec.find_series(tmp_path)
    assert series.title.startswith("7") and series_stem(series.title)


def test_names_of_titles_are_short_and_plain() -> None:
    assert series_stem("4 t2_tse, a") == "4_t2_tse_a"
    assert series_stem("../..") == "series"
    assert series_stem("คอ: พื้น") == "คอ_พื้น"
    assert len(series_stem("頭" * 100).encode()) <= MAX_TITLE_BYTES


def test_what_has_no_place_is_noted(tmp_path: Path) -> None:
    """Slices without position, or that are no volumes of one shape: a note and exit code 1."""
    placed = dicom_files.series()
    times = [
        dicom_files.instance(VOLUME[k], 10 * t + k, ImagePositionPatient=[0, 0, 3 * k])
        for t in range(3)
        for k in range(6)
    ]
    cases = {
        "missing": (dicom_files.series(ImagePositionPatient=None), "position or orientation"),
        "short": (times[:-1], "2 to 3 slices share a position"),
        "placed": (placed, None),
        "times": (times, None),
    }
    for name, (datasets, reason) in cases.items():
        folder = dicom_files.write(datasets, tmp_path / name)
        result = run("encode", folder, "-o", tmp_path / f"{name}.mrc", "--lossless")
        assert result.exit_code == (reason is not None), name
        assert reason is None or ("can't be placed" in result.stderr and reason in result.stderr)
        assert dict(codec.series_files(tmp_path / f"{name}.mrc")) == dicom_files.contents(folder)


def test_pictures_have_no_place_to_miss(tmp_path: Path) -> None:
    """Ultrasound in time: no volume, and nothing wrong."""
    ultrasound = "1.2.840.10008.5.1.4.1.1.3.1"
    dataset = dicom_files.instance(
        VOLUME.reshape(-1, 12), Rows=10, NumberOfFrames=6, SOPClassUID=ultrasound,
        ImagePositionPatient=None, ImageOrientationPatient=None,
    )  # fmt: skip
    folder = dicom_files.write([dataset], tmp_path / "in")
    result = run("encode", folder, "-o", tmp_path / "s.mrc", "--lossless")
    assert result.exit_code == 0 and "can't be placed" not in result.stderr
    assert np.array_equal(codec.decode(tmp_path / "s.mrc").array, VOLUME)
