"""Streams as nibabel images: voxels, header and indexing of the scan, decoded on demand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicom_files
import nibabel as nib
import numpy as np
import pytest
from fake_model import FakeModel
from nibabel import imageclasses
from nifti_files import single, smooth, voxels, write_pair
from pydicom.data import get_testdata_file

from mricodec import codec
from mricodec.codec import loading
from mricodec.codec.integrations import nibabel_plugin

INDICES: list[Any] = [
    np.s_[...],
    np.s_[..., 1],
    np.s_[3],
    np.s_[:, :, 5],
    np.s_[:, :, -2:],
    np.s_[::2, ::-1, 2:9:3],
    np.s_[:, :, 6:1:-2],
    np.s_[:, None, ..., -1],
    np.s_[5:5],
    np.s_[..., ::-2],
    np.s_[1, 2, 3, 1],
    np.s_[..., 1, :, None],
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registered during a test, twice, and never after it."""
    monkeypatch.setattr(imageclasses, "KNOWN_SPATIAL_FIRST", imageclasses.KNOWN_SPATIAL_FIRST)
    before = list(imageclasses.all_image_classes)
    nibabel_plugin.register()
    nibabel_plugin.register()
    assert len(imageclasses.all_image_classes) == len(before) + 1
    yield
    imageclasses.all_image_classes[:] = before


def write(folder: Path, data: bytes) -> tuple[Any, Any]:
    """The image of a .nii, and that of its stream."""
    (folder / "scan.nii").write_bytes(data)
    codec.encode(folder / "scan.nii", lossless=True, out=folder / "scan.mrc")
    return nib.load(folder / "scan.nii"), nib.load(folder / "scan.mrc")


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_any_index_gives_what_the_scan_gives(index: Any, tmp_path: Path) -> None:
    scan, image = write(tmp_path, single(smooth((2, 3, 9, 8, 7))))
    assert image.shape == scan.shape and image.header == scan.header
    assert np.array_equal(image.affine, scan.affine)
    if index == np.s_[1, 2, 3, 1]:
        index = (*index, 0)
    expected, decoded = scan.dataobj[index], image.dataobj[index]
    assert decoded.shape == expected.shape and decoded.dtype == expected.dtype
    assert np.array_equal(decoded, expected)


def test_real_scans(scan_path: Path, tmp_path: Path) -> None:
    scan = nib.load(scan_path)
    nib.save(scan, tmp_path / "scan.mrc")
    image = nib.load(tmp_path / "scan.mrc")
    assert isinstance(image, nib.Nifti1Image) and nib.is_proxy(image.dataobj)
    assert image.header == scan.header and np.array_equal(image.affine, scan.affine)
    assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(scan.dataobj))
    assert np.array_equal(image.get_fdata(), scan.get_fdata())
    for name in ("back.nii.gz", "again.mric"):
        nib.save(image, tmp_path / name)
        assert np.array_equal(nib.load(tmp_path / name).get_fdata(), scan.get_fdata())
    part = image.slicer[2:8, :, 1:4]
    assert np.array_equal(part.get_fdata(), scan.get_fdata()[2:8, :, 1:4])


def test_slicing_decodes_only_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, image = write(tmp_path, single(smooth((3, 100, 8, 9))))  # slabs of 56 and 44 slices
    asked: list[tuple[Any, Any]] = []
    decode = codec.Decoder.decode

    def spy(self: Any, source: Any, *, slices: Any = None, volumes: Any = None, **rest: Any) -> Any:
        asked.append((slices, volumes))
        return decode(self, source, slices=slices, volumes=volumes, **rest)

    monkeypatch.setattr(codec.Decoder, "decode", spy)
    depth = codec.info(tmp_path / "scan.mrc").slab_slices
    assert depth == 56
    for k in range(100):  # slice by slice: every slab once
        assert np.array_equal(image.dataobj[..., k, 1], scan.dataobj[..., k, 1])
    assert asked == [((0, 56), (1, 2)), ((56, 100), (1, 2))]
    asked.clear()
    assert np.array_equal(image.dataobj[:, :, 69, ::2], scan.dataobj[:, :, 69, ::2])
    assert [volumes for _, volumes in asked] == [(0, 1), (2, 3)]
    asked.clear()
    np.asanyarray(image.dataobj)
    assert asked == [(None, None)]


@pytest.mark.parametrize(
    "name", ["uint8", "int16", "uint16", "int32", "float32", "float64", "complex64", "rgb24"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_stored_types(name: str, order: str, tmp_path: Path) -> None:
    array = voxels(np.random.default_rng(0), name, (4, 5, 6))
    array = array.astype(array.dtype.newbyteorder(order))
    scan, image = write(tmp_path, single(array))
    assert image.header == scan.header
    assert np.array_equal(np.asanyarray(image.dataobj[..., 2]), np.asanyarray(scan.dataobj[..., 2]))
    nib.save(image, tmp_path / "again.mrc")
    assert np.array_equal(
        np.asanyarray(nib.load(tmp_path / "again.mrc").dataobj), np.asanyarray(scan.dataobj)
    )


@pytest.mark.parametrize("shape", [(7,), (6, 7), (1, 6, 7), (5, 6, 1)])
def test_few_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    scan, image = write(tmp_path, single(smooth((2, 3, *shape))[0, 0]))
    assert image.shape == scan.shape
    for index in (np.s_[...], np.s_[-1], np.s_[1:]):
        assert np.array_equal(image.dataobj[index], scan.dataobj[index])


def test_scaling_and_extensions_survive_saving(tmp_path: Path) -> None:
    """nibabel alone would scale the integers anew."""
    extension = b"\1\0\0\0" + (16).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"comment\0"
    scan, image = write(tmp_path, single(smooth((3, 8, 9)), extension, slope=0.37, inter=-5.0))
    assert (image.dataobj.slope, image.dataobj.inter) == (scan.dataobj.slope, scan.dataobj.inter)
    assert np.array_equal(image.get_fdata(), scan.get_fdata())
    assert [e.get_content() for e in image.header.extensions] == [
        e.get_content() for e in scan.header.extensions
    ]
    for source in (scan, image):
        nib.save(source, tmp_path / "again.mrc")
        codec.decode_file(tmp_path / "again.mrc", tmp_path / "again.nii")
        again, whole = (tmp_path / "again.nii").read_bytes(), (tmp_path / "scan.nii").read_bytes()
        assert again[74:] == whole[74:] and again[:72] == whole[:72]  # nibabel fills in bitpix


def test_other_images_are_saved(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5) / 7
    for kind in (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage, nib.Nifti1Pair):
        image = kind(array, np.diag([1.0, 2, 3, 1]))
        nib.save(image, tmp_path / "scan.mrc")
        decoded = nib.load(tmp_path / "scan.mrc")
        assert np.array_equal(decoded.get_fdata(), image.get_fdata()) and np.array_equal(
            decoded.affine, image.affine
        )
        assert isinstance(decoded, nib.Nifti2Image) == (kind is nib.Nifti2Image)
    image.set_data_dtype(np.float64)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.mrc", dtype=np.float64)
    assert codec.info(tmp_path / "scan.mrc").dtype == "float64"
    nib.save(nib.load(tmp_path / "scan.mrc"), tmp_path / "scan.mrc")  # over the file that is read
    assert np.array_equal(nib.load(tmp_path / "scan.mrc").get_fdata(dtype=np.float32), array)


def test_streams_without_a_nifti_header(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 2.5, 1], [0, 3, 0, 2], [4, 0, 0, 3], [0, 0, 0, 1]])
    volume = codec.Volume.from_array(smooth((5, 6, 7)), affine=affine, spacing_mm=(2.5, 3.0, 4.0))
    codec.encode(volume, lossless=True, out=tmp_path / "array.mrc")
    image = nib.load(tmp_path / "array.mrc")
    assert np.array_equal(image.get_fdata(), volume.array.T) and np.array_equal(
        image.affine, affine
    )
    assert image.header.get_zooms() == (4.0, 3.0, 2.5)
    hdr, _ = write_pair(tmp_path, volume.array, lead=bytes(32))
    codec.encode(hdr, lossless=True, out=tmp_path / "pair.mrc")
    assert np.array_equal(nib.load(tmp_path / "pair.mrc").get_fdata(), volume.array.T)


def test_dicom_series(tmp_path: Path) -> None:
    """The largest stack; without one a clear error."""
    series = dicom_files.series()
    codec.encode_series(series, lossless=True, out=tmp_path / "series.mrc")
    image, volume = nib.load(tmp_path / "series.mrc"), codec.decode(tmp_path / "series.mrc")
    assert volume.affine is not None and np.allclose(image.affine, volume.affine, atol=1e-5)
    assert np.array_equal(image.dataobj[..., 3], series[3].pixel_array.T)
    codec.encode_series(
        [get_testdata_file("reportsi.dcm")], lossless=True, out=tmp_path / "report.mrc"
    )
    with pytest.raises(codec.FormatError, match=r"report\.mrc: expected voxels"):
        nib.load(tmp_path / "report.mrc")


def test_lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModel()
    monkeypatch.setattr(loading, "open_model", lambda name, device: fake)
    nibabel_plugin._encoder.cache_clear()
    nibabel_plugin._decoder.cache_clear()
    array = smooth((40, 40, 32))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.mrc", quality=40)
    decoded = codec.info(tmp_path / "scan.mrc")
    assert decoded.mode == "lossy" and decoded.fidelity is not None
    error = np.abs(np.asanyarray(nib.load(tmp_path / "scan.mrc").dataobj).astype(int) - array).max()
    assert 0 < error <= decoded.fidelity.max_error * 1.001
    nibabel_plugin._encoder.cache_clear()
    nibabel_plugin._decoder.cache_clear()


def test_from_bytes(tmp_path: Path) -> None:
    scan, image = write(tmp_path, single(smooth((3, 8, 9))))
    again = nibabel_plugin.MricodecImage.from_bytes(image.to_bytes())
    assert np.array_equal(again.dataobj[..., 1], scan.dataobj[..., 1])


def test_what_is_no_stream_gets_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "map.mrc"
    path.write_bytes(bytes(208) + b"MAP " + bytes(2000))
    with pytest.raises(codec.FormatError, match=r"map\.mrc: .*cryo-EM.*mrcfile"):
        nib.load(path)
    write(tmp_path, single(smooth((3, 8, 9))))
    whole = (tmp_path / "scan.mrc").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(codec.FormatError, match=r"map\.mrc: "):
        nib.load(path)
    damaged = bytearray(whole)
    damaged[whole.index(b"SLAB") + 20] ^= 1
    path.write_bytes(damaged)
    image = nib.load(path)  # the header is sound
    for index in (np.s_[...], np.s_[..., 1]):
        with pytest.raises(codec.ChecksumMismatch, match=r"map\.mrc: "):
            image.dataobj[index]
    with pytest.raises(ValueError, match="fancy"):
        image.dataobj[[1, 2]]
    with pytest.raises(FileNotFoundError):
        nib.load(tmp_path / "missing.mrc")


def test_a_failing_save_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "scan.mrc"
    path.write_bytes(b"kept")
    with pytest.raises(ValueError, match="quality"):
        nib.save(nib.Nifti1Image(smooth((3, 8, 9)), np.eye(4)), path, quality=1000)
    assert path.read_bytes() == b"kept" and list(tmp_path.iterdir()) == [path]


def test_nothing_happens_on_import() -> None:
    code = (
        "import nibabel.imageclasses as c, mricodec.codec.integrations.nibabel_plugin as p;"
        "assert p.MricodecImage not in c.all_image_classes; p.register();"
        "assert p.MricodecImage in c.all_image_classes"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore")  # of MONAI's and TorchIO's own imports
def test_monai(scan_path: Path, tmp_path: Path) -> None:
    monai_data = pytest.importorskip("monai.data", reason="MONAI is not installed")
    transforms = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
    nib.save(nib.load(scan_path), tmp_path / "scan.mrc")
    load = transforms.LoadImage(reader=monai_data.NibabelReader())
    expected, decoded = load(scan_path), load(tmp_path / "scan.mrc")
    assert decoded.shape == expected.shape and bool((decoded == expected).all())
    assert bool((decoded.affine == expected.affine).all())


@pytest.mark.filterwarnings("ignore")
def test_torchio(scan_path: Path, tmp_path: Path) -> None:
    torchio = pytest.importorskip("torchio", reason="TorchIO is not installed")
    nib.save(nib.load(scan_path), tmp_path / "scan.mrc")
    expected = torchio.ScalarImage(scan_path)
    decoded = torchio.ScalarImage(tmp_path / "scan.mrc")  # its reader tries SimpleITK, then nibabel
    assert decoded.shape == expected.shape and bool((decoded.data == expected.data).all())
    assert np.allclose(decoded.affine, expected.affine)
