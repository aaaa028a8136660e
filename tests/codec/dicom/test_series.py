"""DICOM series: every file is restored byte for byte; a damaged one is named, and kept."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import dicom_files
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from forged import reseal
from numpy.typing import NDArray
from paths import DICOM, ROOT

from mricodec import codec
from mricodec.bitstream.chunks import DICM, DRAW, STCK
from mricodec.bitstream.container import ContainerReader
from mricodec.bitstream.series_chunks import VOXELS, FileTable
from mricodec.cli.main import cli
from mricodec.codec.coders import predictive
from mricodec.codec.dicom import encode as encode_module
from mricodec.codec.dicom import files as files_module
from mricodec.codec.dicom import stacks as stacks_module
from mricodec.codec.dicom.stacks import Stack, stacks_of

SECONDS = 20.0  # for one damaged stream


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def restored(stream: bytes) -> dict[str, bytes]:
    return dict(codec.series_files(stream))


def encode(source: Any, **settings: Any) -> bytes:
    stream = codec.encode_series(source, **(settings or {"lossless": True}))
    assert stream is not None
    return stream


def stacks(folder: Path) -> list[Stack]:
    (series,) = codec.find_series(folder)
    return stacks_of(series)


@pytest.fixture(params=["prostate_t2w", "dwi_enhanced"])
def real(request: pytest.FixtureRequest) -> Path:
    """A real series: classic single-frame T2, enhanced multi-frame 4-D diffusion."""
    return DICOM / str(request.param)


def test_real_series(real: Path, tmp_path: Path) -> None:
    files = dicom_files.contents(real)
    stream = encode(real)
    assert restored(stream) == files
    assert codec.info(stream).original_bytes == sum(map(len, files.values()))
    assert len(stream) < 0.4 * sum(map(len, files.values()))
    assert codec.verify(stream, deep=True).files == len(files)
    assert sorted(codec.restore_series(stream, tmp_path / "out")) == sorted(files)
    assert dicom_files.contents(tmp_path / "out") == files


@pytest.mark.parametrize("source", ["pydicom", "nibabel"])
def test_every_odd_file(source: str, tmp_path: Path) -> None:
    """The test files of pydicom and nibabel: compressed, deflated, big-endian, RGB, DICOMDIR ..."""
    folder = dicom_files.PYDICOM
    if source == "nibabel":
        import nibabel

        folder = tmp_path / "nibabel"
        shutil.copytree(Path(nibabel.__file__).parent / "nicom" / "tests" / "data", folder)
        for packed in folder.glob("*.dcm.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    files = dicom_files.contents(folder)
    collected: dict[str, bytes] = {}
    for series in codec.find_series(folder):
        part = restored(encode(series))
        assert collected.keys().isdisjoint(part)
        collected.update(part)
    assert collected == files
    assert len(files) > 10


def test_mosaic_is_split_into_slices(tmp_path: Path) -> None:
    """Siemens: two mosaics of 48 slices are a 4-D volume with the geometry of the slices."""
    nibabel = pytest.importorskip("nibabel")
    data = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
    for name in ("siemens_dwi_0.dcm", "siemens_dwi_1000.dcm"):
        (tmp_path / name).write_bytes(gzip.decompress((data / f"{name}.gz").read_bytes()))
    stream = encode(tmp_path)
    assert restored(stream) == dicom_files.contents(tmp_path)
    volume = codec.decode(stream)
    assert volume.array.shape == (2, 48, 128, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its reader experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_file

    expected = (
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ wrapper_from_file(tmp_path / "siemens_dwi_0.dcm").affine
    )
    assert volume.affine is not None
    # nibabel has rows and columns of the file the other way round: compare the corners.
    corners = np.array([[0, 0, 0, 1], [127, 0, 0, 1], [0, 127, 0, 1], [0, 0, 47, 1]]).T
    swapped = corners[[1, 0, 2, 3]]
    assert np.allclose((volume.affine @ corners)[:3], (expected @ swapped)[:3], atol=0.01)


def test_mosaic_with_unused_tiles_that_are_not_zero_is_one_slice(tmp_path: Path) -> None:
    mosaic = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    dataset = dicom_files.instance(mosaic, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    dataset.add_new(0x0019100A, "US", 3)
    dicom_files.write([dataset], tmp_path)
    assert codec.decode(encode(tmp_path)).array.shape == (1, 40, 40)
    mosaic[20:, 20:] = 0
    dataset.PixelData = mosaic.tobytes()
    dicom_files.write([dataset], tmp_path)
    stream = encode(tmp_path)
    assert codec.decode(stream).array.shape == (3, 20, 20)
    assert restored(stream) == dicom_files.contents(tmp_path)


def test_slices_are_ordered_by_position(tmp_path: Path) -> None:
    voxels = dicom_files.volume()
    folder = dicom_files.write(dicom_files.series(voxels), tmp_path)
    stream = encode(folder)
    volume = codec.decode(stream)
    assert np.array_equal(volume.array, voxels)
    assert volume.spacing_mm == (2.5, 0.9, 0.8)
    expected = [[-0.8, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 2.5, 2.5], [0, 0, 0, 1]]
    assert volume.affine is not None and np.allclose(volume.affine, expected)
    datasets = list(codec.decode_series(stream))
    assert [int(dataset.InstanceNumber) for dataset in datasets] == list(range(1, len(voxels) + 1))
    assert all(
        np.array_equal(dataset.pixel_array, slice_)
        for dataset, slice_ in zip(datasets, voxels, strict=True)
    )
    names = dict(codec.series_headers(stream))
    assert {
        name: pydicom.dcmread(io.BytesIO(head)).InstanceNumber for name, head in names.items()
    } == {dataset.filename: dataset.InstanceNumber for dataset in datasets}


def test_time_points_and_uneven_stacks(tmp_path: Path) -> None:
    voxels = np.stack([dicom_files.volume() + np.uint16(t) for t in range(3)])
    datasets = [
        dicom_files.instance(
            pixels, 100 * t + k, AcquisitionNumber=t + 1, ImagePositionPatient=[0, 0, 3 * k]
        )
        for t, volume in enumerate(voxels)
        for k, pixels in enumerate(volume)
    ]
    folder = dicom_files.write(datasets, tmp_path / "four")
    assert np.array_equal(codec.decode(encode(folder)).array, voxels)

    uneven = dicom_files.write(
        [*dicom_files.series(), dicom_files.instance(voxels[0, 0], 99)], tmp_path / "uneven"
    )
    (stack,) = stacks(uneven)
    assert (stack.shape, stack.evenly_spaced) == ((13, 40, 36), False)
    assert restored(encode(uneven)) == dicom_files.contents(uneven)

    short = dicom_files.write(datasets[:-1], tmp_path / "short")
    (stack,) = stacks(short)
    assert stack.shape == (35, 40, 36)  # no volumes of one shape
    assert restored(encode(short)) == dicom_files.contents(short)


def test_frames_in_any_order(tmp_path: Path) -> None:
    """An enhanced object with frames shuffled within each volume: same volume, same file."""
    source = pydicom.dcmread(DICOM / "dwi_enhanced" / "3000.dcm")
    frames, groups = source.pixel_array, list(source.PerFrameFunctionalGroupsSequence)
    rng = np.random.default_rng(4)
    order = np.concatenate([8 * t + rng.permutation(8) for t in range(3)])
    source.PerFrameFunctionalGroupsSequence = [groups[n] for n in order]
    source.PixelData = frames[order].tobytes()
    dicom_files.write([source], tmp_path)
    stream = encode(tmp_path)
    assert restored(stream) == dicom_files.contents(tmp_path)
    assert np.array_equal(codec.decode(stream).array, frames.reshape(3, 8, 48, 48))


def test_a_localizer_mixes_orientations(tmp_path: Path) -> None:
    orientations = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]]
    datasets = dicom_files.series()
    for n, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = orientations[n % 3]
        dataset.ImagePositionPatient = [5 * n, 5 * n, 5 * n]
    folder = dicom_files.write(datasets, tmp_path / "in")
    assert [stack.shape for stack in stacks(folder)] == [(4, 40, 36)] * 3
    stream = encode(folder)
    assert restored(stream) == dicom_files.contents(folder)
    further = [codec.decode(part).array for part in codec.further_stacks(stream)]
    assert [array.shape for array in further] == [(4, 40, 36)] * 2
    (tmp_path / "s.mrc").write_bytes(stream)
    assert run("decode", tmp_path / "s.mrc", "-o", tmp_path / "v.nii").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*.nii")) == ["v.nii", "v_2.nii", "v_3.nii"]


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (stacks_module, "MAX_STACKS", 1),
        (files_module, "MAX_HEADER_BYTES", 500),
        (files_module, "HASH_PIECE_BYTES", 100),
        (encode_module, "HEADER_CHUNK_BYTES", 3000),
        (encode_module, "RAW_CHUNK_BYTES", 1000),
    ],
)
def test_beyond_the_bounds(
    module: ModuleType, name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More stacks, longer headers and more bytes than one chunk holds: all files are restored."""
    monkeypatch.setattr(module, name, value)
    datasets = dicom_files.series()
    datasets += [
        dicom_files.instance(dicom_files.volume()[0, :20], 50),
        dicom_files.instance(SIGNED, 51),
    ]
    folder = dicom_files.write(datasets, tmp_path)
    shutil.copy(dicom_files.PYDICOM / "JPEG2000.dcm", folder)
    (series,) = [one for one in codec.find_series(folder) if len(one.instances) > 1]
    stream = encode(series)
    files = dicom_files.contents(folder)
    del files["JPEG2000.dcm"]
    assert restored(stream) == files
    counts = [section.type for section in ContainerReader(stream).sections()]
    assert name != "HEADER_CHUNK_BYTES" or counts.count("DHDR") > 2
    assert name != "MAX_STACKS" or (counts.count("STCK"), counts.count("DRAW")) == (0, 1)


SIGNED = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)


@pytest.mark.parametrize(
    ("pixels", "attributes", "coded"),
    [
        (SIGNED, {}, True),
        (SIGNED.view(np.uint16), {"BitsStored": 12, "HighBit": 11}, True),  # bits beyond BitsStored
        (SIGNED, {"BitsStored": 10, "HighBit": 13}, True),
        (SIGNED.astype(np.uint8), {}, True),
        (SIGNED.astype(np.int8), {}, True),
        (SIGNED[:, :39].astype(np.uint8)[:29], {}, True),  # an odd number of bytes
        (SIGNED.astype(np.int32), {}, True),
        (
            SIGNED[:, :30].astype(np.uint8),
            {"SamplesPerPixel": 3, "Columns": 10, "PhotometricInterpretation": "RGB"},
            True,
        ),
        (
            SIGNED[:, :30].astype(np.uint8),
            {
                "SamplesPerPixel": 3,
                "Columns": 10,
                "PhotometricInterpretation": "RGB",
                "PlanarConfiguration": 1,
            },
            True,
        ),
        (SIGNED.astype(np.uint8), {"PhotometricInterpretation": "PALETTE COLOR"}, True),
        (SIGNED.astype(np.uint8), {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, False),
        (SIGNED, {"BitsAllocated": 12}, False),
        (SIGNED, {"ImagePositionPatient": None}, True),
        (SIGNED, {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, True),
        (SIGNED, {"PixelSpacing": None, "SliceThickness": None}, True),
        (SIGNED, {"PixelSpacing": ["0", "0"]}, True),
    ],
)
def test_every_sample_format(
    pixels: NDArray[Any], attributes: dict[str, Any], coded: bool, tmp_path: Path
) -> None:
    dataset = dicom_files.instance(pixels, **{k: v for k, v in attributes.items()})
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\x07"
    dicom_files.write([dataset], tmp_path)
    stream = encode(tmp_path)
    assert restored(stream) == dicom_files.contents(tmp_path)
    assert bool(codec.info(stream).slabs) == coded


def test_header_bytes(tmp_path: Path) -> None:
    """A private header of 100 kB in each of 64 slices, 2 % of it varying: 400 bytes a slice."""
    headers = [dicom_files.long_header(n) for n in range(64)]
    differing = [
        np.mean(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))
        for a, b in pairwise(headers)
    ]
    assert 0.018 < np.mean(differing) < 0.03
    datasets = dicom_files.series(np.zeros((64, 8, 8), np.uint16))
    for dataset, header in zip(datasets, headers, strict=True):
        dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        dataset.add_new(0x00291010, "OB", header)
    folder = dicom_files.write(datasets, tmp_path)
    stream = encode(folder)
    assert restored(stream) == dicom_files.contents(folder)
    assert len(stream) - dict(codec.info(stream).sections)["SLAB"] < 400 * 64


def test_smaller_than_dicom_with_other_codecs(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecodecs", reason="the peers need the extra bench")
    monkeypatch.syspath_prepend(ROOT)
    stream = encode(real)
    sizes = importlib.import_module("benchmarks.dicom").sizes(sorted(real.iterdir()))
    assert set(sizes) == {"JPEG-LS", "JPEG 2000", "JPEG XL e7"}
    assert all(len(stream) < size for size in sizes.values()), (len(stream), sizes)


def test_speed_beyond_the_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder to stream and back takes at most 1 s besides coding 96 slices of 256 x 256."""
    voxels = np.zeros((96, 256, 256), np.uint16)
    voxels[:, 100, 100] = 1
    folder = dicom_files.write(dicom_files.series(voxels), tmp_path / "in")
    coding = []

    def timed(code: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            start = time.process_time()
            try:
                return code(*arguments)
            finally:
                coding.append(time.process_time() - start)

        return wrapped

    for way in ("encode", "decode"):
        monkeypatch.setattr(
            predictive.PredictiveCoder, way, timed(getattr(predictive.PredictiveCoder, way))
        )
    start = time.process_time()
    codec.encode_series(folder, lossless=True, out=tmp_path / "s.mrc")
    codec.restore_series(tmp_path / "s.mrc", tmp_path / "out")
    whole = time.process_time() - start
    assert coding and 0 < whole - sum(coding) < 1.0
    assert dicom_files.contents(tmp_path / "out") == dicom_files.contents(folder)


def test_datasets_threads_and_processes(tmp_path: Path) -> None:
    datasets = dicom_files.series()
    decoded = list(codec.decode_series(encode(datasets)))
    assert [dataset.SOPInstanceUID for dataset in decoded] == [
        dataset.SOPInstanceUID for dataset in datasets
    ]
    assert decoded[3] == datasets[3]
    folder = dicom_files.write(datasets, tmp_path)
    files = dicom_files.contents(folder)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(dicom_files.encode_decode, [folder] * 4)) == [files] * 4
    import multiprocessing

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(dicom_files.encode_decode, folder).result() == files
    with pytest.raises(TypeError, match="Datasets"):
        codec.encode_series([1, 2])


def flips(affine: NDArray[Any], expected: NDArray[Any]) -> list[slice]:
    """Which axes of a voxel grid to flip for another grid of the same points in space."""
    change = np.linalg.inv(expected) @ affine
    signs = np.sign(np.diag(change[:3, :3]))
    assert np.allclose(change[:3, :3], np.diag(signs), atol=1e-3), change
    return [slice(None, None, int(sign)) for sign in signs]


@pytest.mark.parametrize("name", ["prostate_t2w", "dwi_enhanced", "mosaic"])
def test_geometry_is_that_of_dcm2niix(name: str, tmp_path: Path) -> None:
    """Voxel by voxel and in space, except that dcm2niix flips the rows."""
    nibabel = pytest.importorskip("nibabel")
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("dcm2niix is not installed")
    folder = DICOM / name
    if name == "mosaic":
        folder = tmp_path / "in"
        folder.mkdir()
        data = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
        for part in ("siemens_dwi_0.dcm", "siemens_dwi_1000.dcm"):
            (folder / part).write_bytes(gzip.decompress((data / f"{part}.gz").read_bytes()))
    arguments = [program, "-z", "n", "-b", "n", "-f", "theirs", "-o", str(tmp_path), str(folder)]
    subprocess.run(arguments, check=True, capture_output=True)
    codec.encode_series(folder, lossless=True, out=tmp_path / "s.mrc")
    assert run("decode", tmp_path / "s.mrc", "-o", tmp_path / "ours.nii").exit_code == 0
    ours, theirs = nibabel.load(tmp_path / "ours.nii"), nibabel.load(tmp_path / "theirs.nii")
    assert ours.shape == theirs.shape
    flipped = flips(ours.affine, theirs.affine)
    assert flipped == [slice(None, None, 1), slice(None, None, -1), slice(None, None, 1)]
    assert np.array_equal(np.asarray(ours.dataobj)[tuple(flipped)], np.asarray(theirs.dataobj))
    last = np.array([0, ours.shape[1] - 1, 0, 1])
    assert np.allclose(ours.affine @ last, theirs.affine[:, 3], atol=0.01)
    assert np.allclose(ours.header.get_zooms()[:3], theirs.header.get_zooms()[:3], atol=1e-3)


def test_rescale_belongs_to_the_nifti(tmp_path: Path) -> None:
    """A slope of all slices becomes that of the NIfTI; where it varies, slope is 1."""
    import nibabel

    datasets = dicom_files.series(RescaleSlope="2.5", RescaleIntercept="-10")
    stream = encode(dicom_files.write(datasets, tmp_path / "one"))
    volume = codec.decode(stream)
    assert (volume.slope, volume.inter) == (2.5, -10.0)
    codec.decode_file(stream, tmp_path / "one.nii")
    image = nibabel.load(tmp_path / "one.nii")
    assert np.allclose(np.asarray(image.dataobj).T, dicom_files.volume() * 2.5 - 10)
    datasets[3].RescaleSlope = "3"
    volume = codec.decode(encode(dicom_files.write(datasets, tmp_path / "several")))
    assert (volume.slope, volume.inter) == (1.0, 0.0)


def deflated(dataset: pydicom.Dataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    return dicom_files.to_bytes(dataset)


def big_endian(dataset: pydicom.Dataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def long_length(data: bytes) -> bytes:
    """PixelData that claims 4 GB."""
    at = data.rindex(b"\xe0\x7f\x10\x00OW") + 8
    return data[:at] + struct.pack("<I", 0xFFFFFFF0) + data[at + 4 :]


def shorter(dataset: pydicom.Dataset) -> bytes:
    dataset.PixelData = dataset.PixelData[:1000]
    return dicom_files.to_bytes(dataset)


def longer(dataset: pydicom.Dataset) -> bytes:
    dataset.PixelData += bytes(1000)
    return dicom_files.to_bytes(dataset)


def nested(data: bytes) -> bytes:
    """A sequence of undefined length that never ends."""
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    return (
        data[:at]
        + (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 200
    )


good = dicom_files.to_bytes
DAMAGE = {
    "cut in the voxels": (lambda d: good(d)[:-700], "cut short", 1),
    "cut in the header": (lambda d: good(d)[:600], "", None),
    "cut in the preamble": (lambda d: good(d)[:100], "no DICM", 0),
    "wrong preamble": (lambda d: good(d)[:128] + b"DICX" + good(d)[132:], "no DICM", 0),
    "no preamble": (lambda d: good(d)[132:], "no preamble", 0),
    "empty": (lambda d: b"", "an empty file", 0),
    "text": (lambda d: b"notes of the day\n" * 20, "no DICM", 0),
    "fewer voxels": (shorter, "expected 2880 bytes of PixelData", 1),
    "more voxels": (longer, "expected 2880 bytes of PixelData", 1),
    "other rows": (lambda d: good(set_(d, Rows=999)), "bytes of PixelData", 1),
    "no rows": (lambda d: good(set_(d, Rows=0)), "0 rows", 0),
    "no bits": (lambda d: good(set_(d, BitsAllocated=None)), "(0028,0100)", 1),
    "no position": (lambda d: good(set_(d, ImagePositionPatient=None)), "no position", 0),
    "deflated": (deflated, "deflated", 0),
    "big-endian": (big_endian, None, 0),
    "hostile length": (lambda d: long_length(good(d)), "", 1),
    "endless sequence": (lambda d: nested(good(d)), "", None),
    "noise": (lambda d: good(d)[:140] + np.random.default_rng(2).bytes(5000), "", None),
}


def set_(dataset: pydicom.Dataset, **attributes: Any) -> pydicom.Dataset:
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_kept(kind: str, tmp_path: Path) -> None:
    make, line, exit_code = DAMAGE[kind]
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    bad = folder / "sub" / "BAD"
    bad.parent.mkdir()
    bad.write_bytes(make(dicom_files.instance(dicom_files.volume()[4], 77)))
    files = dicom_files.contents(folder)
    result = run("encode", folder, "-o", tmp_path / "s.mrc", "--lossless")
    assert result.exit_code in ({0, 1} if exit_code is None else {exit_code}), result.output
    if line is not None:
        named = [text for text in result.stderr.splitlines() if text.startswith("sub/BAD")]
        assert named and any(line in text for text in named), result.stderr
    assert run("verify", "--deep", tmp_path / "s.mrc").exit_code == 0
    assert run("decode", tmp_path / "s.mrc", "-o", tmp_path / "out").exit_code == 0
    assert dicom_files.contents(tmp_path / "out") == files


def test_file_named_dcm_that_is_no_dicom(tmp_path: Path) -> None:
    """A text among the images is kept as bytes; one that is named .dcm is damaged too."""
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    (folder / "notes").write_text("x")
    assert run("encode", folder, "-o", tmp_path / "s.mrc", "--lossless").exit_code == 0
    (folder / "notes.dcm").write_text("x")
    result = run("encode", folder, "-o", tmp_path / "s.mrc", "--lossless", "-f")
    assert result.exit_code == 1 and "no DICOM file" in result.stderr
    assert restored((tmp_path / "s.mrc").read_bytes()) == dicom_files.contents(folder)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """Dangling links, links to folders, pipes: a line each, exit code 1, the rest is encoded."""
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    os.rename(os.fsencode(folder / "IM0007"), os.fsencode(folder) + b"/\xff \xe9\n\\")
    files = dicom_files.contents(folder)
    os.symlink(tmp_path / "none", folder / "gone")
    os.symlink(tmp_path, folder / "folder")
    os.mkfifo(folder / "pipe")
    result = run("encode", folder, "-o", tmp_path / "s.mrc", "--lossless")
    assert result.exit_code == 1
    for line in (
        "gone: left out: can't be read",
        "folder: left out: a link",
        "pipe: left out: a device",
    ):
        assert line in result.stderr
    assert run("decode", tmp_path / "s.mrc", "-o", tmp_path / "out").exit_code == 0
    assert dicom_files.contents(tmp_path / "out") == files


def test_duplicates(tmp_path: Path) -> None:
    """The voxels of a duplicate are stored once."""
    voxels = dicom_files.volume()
    folder = dicom_files.write(dicom_files.series(voxels), tmp_path / "in")
    alone = encode(folder)
    (folder / "copy").mkdir()
    for path in list(folder.glob("IM*")):
        shutil.copy(path, folder / "copy")
    changed = dicom_files.instance(voxels[0], 1, PatientName="Other")
    (folder / "other header").write_bytes(dicom_files.to_bytes(changed))
    stream = encode(folder)
    assert restored(stream) == dicom_files.contents(folder)
    assert codec.decode(stream).array.shape == voxels.shape
    assert len(stream) < len(alone) + 1500
    (series,) = codec.find_series(folder)
    stacks_of(series)
    assert sum("duplicate" in note for _, note in series.notes) == len(voxels) + 1
    for n in range(20):  # no file may be decoded without end
        (folder / "copy" / f"again{n}").write_bytes(dicom_files.to_bytes(changed))
    assert restored(encode(folder)) == dicom_files.contents(folder)


def test_two_series_and_other_files(tmp_path: Path) -> None:
    """One stream per series; a DICOMDIR, a report and a text go with their neighbours."""
    for name in ("a", "b"):
        dicom_files.write(dicom_files.series(series=name), tmp_path / "in" / "deep" / name)
    (tmp_path / "in" / "deep" / "b" / "notes.txt").write_text("x")
    report = dicom_files.instance(
        dicom_files.volume()[0], series="b", PixelData=None, Rows=None, Columns=None
    )
    (tmp_path / "in" / "report").write_bytes(dicom_files.to_bytes(report))
    shutil.copy(dicom_files.PYDICOM / "dicomdirtests" / "DICOMDIR", tmp_path / "in" / "DICOMDIR")
    files = dicom_files.contents(tmp_path / "in")
    result = run("encode", tmp_path / "in", "-o", tmp_path / "s.mrc", "--lossless")
    assert (
        result.exit_code == 2 and "2 series" in result.stderr and not (tmp_path / "s.mrc").exists()
    )
    result = run("encode", tmp_path / "in", "-o", tmp_path / "streams", "--lossless")
    assert result.exit_code == 0, result.output
    streams = sorted((tmp_path / "streams").iterdir())
    assert [path.name for path in streams] == ["7_t1_a.mrc", "7_t1_b.mrc"]
    assert "12 files, 36x40x12" in result.stderr and "notes.txt: no DICOM file" in result.stderr
    for stream in streams:
        assert run("decode", stream, "-o", tmp_path / "out", "-q").exit_code == 0
    assert dicom_files.contents(tmp_path / "out") == files
    with pytest.raises(ValueError, match="found 2"):
        codec.encode_series(tmp_path / "in", lossless=True)


def test_files_without_a_series(tmp_path: Path) -> None:
    assert run("encode", tmp_path, "-o", tmp_path / "s.mrc").exit_code == 2
    (tmp_path / "notes").write_text("x")
    result = run("encode", tmp_path, "-o", tmp_path / "s.mrc")
    assert result.exit_code == 2 and "expected DICOM files" in result.stderr
    stream = encode(tmp_path)
    assert restored(stream) == {"notes": b"x"}
    assert codec.info(stream).shape == (0,)
    assert codec.verify(stream, deep=True).files == 1
    with pytest.raises(codec.FormatError, match="without voxels"):
        codec.decode(stream)


def test_command_line(tmp_path: Path) -> None:
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    files = dicom_files.contents(folder)
    stream = tmp_path / "s.mrc"
    assert run("encode", *sorted(folder.iterdir()), "-o", stream, "--lossless").exit_code == 0
    assert "12, a DICOM series" in run("info", stream).stdout
    out = tmp_path / "out"
    assert run("decode", stream, "-o", out).exit_code == 0
    assert dicom_files.contents(out) == files
    again = run("decode", stream, "-o", out)
    assert again.exit_code == 1 and "exists" in again.stderr
    (out / "mine").write_text("x")
    assert run("decode", stream, "-o", out, "-f").exit_code == 0
    assert dicom_files.contents(out) == {**files, "mine": b"x"}
    assert run("decode", stream, "-o", tmp_path / "v.nii.gz").exit_code == 0
    assert (
        run(
            "decode", stream, "-o", tmp_path / "all.nii", "--format", "nifti", "--slices", "2:4"
        ).exit_code
        == 0
    )
    assert (
        run(
            "decode", stream, "-o", tmp_path / "x", "--format", "dicom", "--slices", "2:4"
        ).exit_code
        == 2
    )
    assert run("encode", folder, "-o", folder / "IM0000", "-f", "--lossless").exit_code == 2
    assert run("encode", folder, "-", "-o", tmp_path / "t.mrc").exit_code == 2
    assert run("encode", folder, "-o", tmp_path / "none" / "t.mrc").exit_code == 2
    assert dicom_files.contents(folder) == files
    scan = codec.encode(dicom_files.volume(), lossless=True, out=tmp_path / "scan.mrc")
    assert scan is None
    result = run("decode", tmp_path / "scan.mrc", "-o", tmp_path / "y", "--format", "dicom")
    assert result.exit_code == 1 and "DICOM series" in result.stderr
    assert not list(tmp_path.glob(".*"))


def test_compare(tmp_path: Path) -> None:
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    codec.encode_series(folder, lossless=True, out=tmp_path / "s.mrc")
    result = run("compare", folder, tmp_path / "s.mrc")
    assert result.exit_code == 0 and "PSNR inf" in result.stdout, result.output


def forged(table: FileTable) -> bytes:
    """The stream of a series with another table."""
    stream = encode(dicom_files.series(np.zeros((2, 6, 6), np.uint16)))
    reader = ContainerReader(stream)
    (section,) = [section for section in reader.sections() if section.type == "DICM"]
    payload = table.pack()
    chunk = DICM + struct.pack("<I", len(payload)) + payload + bytes(4)
    return reseal(
        bytearray(stream[: section.offset] + chunk + stream[section.offset + section.size :])
    )


def table_of(stream: bytes) -> FileTable:
    payload = ContainerReader(stream).chunk(DICM)
    assert payload is not None
    return FileTable.unpack(payload, codec.Limits())


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "/etc/escape",
        "a/../../escape",
        "",
        ".",
        "..",
        "a//b",
        "a/./b",
        "/",
        "a\0b",
        "a/",
    ],
)
def test_names_never_lead_outside(name: str, tmp_path: Path) -> None:
    from dataclasses import replace

    table = table_of(encode(dicom_files.series(np.zeros((2, 6, 6), np.uint16))))
    stream = forged(replace(table, files=(replace(table.files[0], name=name), *table.files[1:])))
    with pytest.raises(codec.FormatError, match="relative path"):
        codec.restore_series(stream, tmp_path / "in" / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(codec.FormatError, match="relative path"):
        codec.restore_series(stream, tmp_path / "in" / "out", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in" / "sub")
    stream = encode(folder.parent)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "sub")
    with pytest.raises(FileExistsError, match="leads out"):
        codec.restore_series(stream, tmp_path / "out", force=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_forged_tables() -> None:
    """Tables that contradict the voxels, themselves, or would have much written from little."""
    from dataclasses import replace

    table = table_of(encode(dicom_files.series(np.zeros((2, 6, 6), np.uint16))))
    first, second = table.files
    assert first.kind == VOXELS
    cases = [
        (replace(first, slots=(5,)), second),
        (replace(first, slots=(0, 1)), second),
        (replace(first, slots=()), second),
        (replace(first, size=first.size + 1), second),
        (replace(first, head=first.size + 1), second),
        (replace(first, head=first.head + 1, tail=first.tail), second),
        (replace(first, sha256=bytes(32)), second),
        (replace(first, name=second.name), second),
        (second, first),
        (replace(first, kind=0, slots=()), second),
        (first,),
        (first, second, replace(second, name="more")),
        tuple(replace(second, name=str(n)) for n in range(5000)),
        (replace(first, size=1 << 60, slots=tuple(range(2)) * 1000), second),
    ]
    for files in cases:
        stream = forged(replace(table, files=tuple(files)))
        start = time.monotonic()
        with pytest.raises(codec.FormatError):
            restored(stream)
        assert time.monotonic() - start < SECONDS
    with pytest.raises(codec.FormatError):
        restored(forged(replace(table, tiles=(0, 0))))
    with pytest.raises(codec.FormatError):
        restored(forged(replace(table, tiles=(1 << 40,))))


@pytest.fixture(scope="module")
def small() -> bytes:
    """Two stacks, a file kept as bytes, further files."""
    datasets = dicom_files.series(np.arange(48, dtype=np.uint16).reshape(3, 4, 4))
    datasets.append(dicom_files.instance(np.ones((5, 5), np.uint16), 9))
    datasets.append(dicom_files.instance(np.ones((5, 5), np.uint16), 10, PixelData=b"\1\2"))
    return encode(datasets)


def outcome(stream: bytes) -> dict[str, bytes] | None:
    start = time.monotonic()
    try:
        return restored(stream)
    except codec.FormatError as error:
        assert str(error) and "\n" not in str(error)
        return None
    finally:
        assert time.monotonic() - start < SECONDS


def test_damaged_streams(small: bytes) -> None:
    types = {section.type.encode() for section in ContainerReader(small).sections()}
    assert {DICM, DRAW, STCK} <= types
    files = restored(small)
    for length in range(0, len(small), 7):
        assert outcome(small[:length]) is None
    rng = np.random.default_rng(1)
    for bit in rng.choice(8 * len(small), 400, replace=False):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << int(bit % 8)
        assert outcome(bytes(damaged)) in (None, files), bit


def test_forged_streams(small: bytes) -> None:
    """With right checksums too, no other file passes for one of the series."""
    files = restored(small)
    rng = np.random.default_rng(3)
    for bit in rng.choice(8 * len(small), 600, replace=False):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << int(bit % 8)
        forgery = outcome(reseal(damaged))
        if forgery is not None and forgery != files:  # Other names, or marked as derived.
            for data in forgery.values():
                assert data in files.values() or b"MRICODEC" in data, bit


def test_nothing_is_left_of_a_damaged_stream(small: bytes, tmp_path: Path) -> None:
    damaged = bytearray(small)
    damaged[-100] ^= 1
    with pytest.raises(codec.FormatError):
        codec.restore_series(reseal(damaged), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        codec.restore_series(small, tmp_path / "none" / "out")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    folder = dicom_files.write(dicom_files.series(), tmp_path / "in")
    (series,) = codec.find_series(folder)
    (folder / "IM0007").write_bytes(b"gone")
    with pytest.raises(OSError, match="changed"):
        codec.encode_series(series, lossless=True, out=tmp_path / "s.mrc")
    assert not (tmp_path / "s.mrc").exists()
