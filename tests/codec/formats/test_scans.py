"""Every scan obeys the law of `Scan`: arrays, NIfTI files, MGH files, stacks of DICOM files."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import Any

import dicom_files
import nibabel as nib
import numpy as np
import pydicom
import pytest
from laws import check_scan
from nifti_files import single, smooth, voxels, write_pair
from numpy.typing import NDArray
from paths import DICOM

from mricodec.codec.dicom.stack_scan import StackScan
from mricodec.codec.dicom.stacks import find_series, stacks_of
from mricodec.codec.formats import nifti, nifti_header
from mricodec.codec.formats.free_text import ScanWithoutFreeText
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, ArrayScan, Envelope, Volume

FILE_TYPES = [name for name in DTYPES if name not in ("bool", "float16")]
# A scan that is far larger than the memory that reading it may take.
LARGE = (80, 128, 256)


def check_file(path: Path, expected: NDArray[Any], envelope: Envelope | None = None) -> None:
    with contextlib.closing(open_scan(path)) as scan:
        check_scan(scan, expected, envelope=envelope)


def parsed_envelope(raw: bytes, **around: bytes) -> Envelope:
    """The envelope of a file that begins with this header."""
    parsed = nifti_header.parse(raw, "header")
    return Envelope(
        affine=parsed.affine,
        spacing_mm=parsed.spacing_mm,
        slope=parsed.slope,
        inter=parsed.inter,
        **around,
    )


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5), (2, 3, 4, 5), (2, 1, 3, 2, 2)])
def test_arrays(name: str, shape: tuple[int, ...]) -> None:
    array = voxels(np.random.default_rng(2), name, shape)
    volume = Volume.from_array(array, spacing_mm=(3.0, 2.0, 1.0), affine=np.eye(4), slope=2.0)
    check_scan(ArrayScan(volume), array, envelope=volume.envelope)
    swapped = Volume.from_array(array.astype(array.dtype.newbyteorder(">")))
    check_scan(ArrayScan(swapped), array)


@pytest.mark.parametrize("name", FILE_TYPES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_of_every_type(tmp_path: Path, name: str, order: str) -> None:
    array = voxels(np.random.default_rng(2), name, (3, 4, 5))
    raw = single(array.astype(array.dtype.newbyteorder(order)), trailer=b"more")
    path = tmp_path / "scan.nii"
    path.write_bytes(raw)
    with contextlib.closing(open_scan(path)) as scan:
        assert scan.envelope.trailer == b"", "the trailer is read after the voxels"
        assert scan.dtype == array.dtype.newbyteorder(order)
        envelope = parsed_envelope(raw, header=raw[:352], trailer=b"more")
        check_scan(scan, array, envelope=envelope)


@pytest.mark.parametrize("ndim", range(1, 8))
@pytest.mark.parametrize("gz", [False, True])
def test_nifti_of_every_number_of_axes(tmp_path: Path, ndim: int, gz: bool) -> None:
    array = np.arange(3 * 2 ** (ndim - 1), dtype=np.int16).reshape((3, *(2,) * (ndim - 1)))
    path = tmp_path / "scan.nii"
    path.write_bytes(gzip.compress(single(array)) if gz else single(array))
    check_file(path, array)


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("form", ["sform", "qform", "neither"])
def test_nifti_as_nibabel_reads_it(
    tmp_path: Path, image_class: Any, byte_order: str, form: str
) -> None:
    data = np.random.default_rng(1).integers(-900, 900, (7, 6, 5, 2)).astype("i2")
    rotation = nib.eulerangles.euler2mat(0.3, 0.2, 0.1)
    affine = nib.affines.from_matvec(rotation @ np.diag([-0.9, 1.1, 3.0]), [10, -20, 30])
    header = image_class.header_class(endianness=byte_order)
    image = image_class(data.astype(byte_order + "i2"), affine, header)
    image.header["xyzt_units"] = 2
    image.set_data_dtype(byte_order + "i2")
    image.set_sform(affine if form == "sform" else None, 1 if form == "sform" else 0)
    image.set_qform(affine if form == "qform" else None, 1 if form == "qform" else 0)
    image.header.set_slope_inter(2.5, -3)
    path = tmp_path / "scan.nii.gz"
    image.to_filename(path)

    known = nib.load(path)
    raw = gzip.decompress(path.read_bytes())
    with contextlib.closing(open_scan(path)) as scan:
        # Without a form nibabel centres the volume and flips its i axis; the standard does not.
        expected = Envelope(
            header=raw[: len(raw) - data.nbytes],
            affine=scan.envelope.affine if form == "neither" else known.affine,
            spacing_mm=tuple(map(float, known.header.get_zooms()[2::-1])),
            slope=known.dataobj.slope,
            inter=known.dataobj.inter,
        )
        assert scan.dtype == np.dtype(byte_order + "i2")
        check_scan(scan, known.dataobj.get_unscaled().T, envelope=expected)


@pytest.mark.parametrize("suffix", [".hdr", ".img"])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_nifti_pair_from_either_name(tmp_path: Path, suffix: str, gz: str) -> None:
    array = smooth((4, 9, 8))
    header, image = write_pair(tmp_path, array, lead=b"sixteen bytes...")
    raw = header.read_bytes()
    if gz:
        for file in (header, image):
            file.with_name(file.name + gz).write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    envelope = parsed_envelope(raw, header=raw, lead=b"sixteen bytes...")
    check_file(tmp_path / f"scan{suffix}{gz}", array, envelope)


def test_nifti_from_a_file_object() -> None:
    array = smooth((4, 9, 8))
    raw = single(array)
    for data in (raw, gzip.compress(raw)):
        scan = open_scan(io.BytesIO(data))
        check_scan(scan, array, envelope=parsed_envelope(raw, header=raw[:352]))
        scan.close()


def test_nifti_without_free_text(tmp_path: Path) -> None:
    array = smooth((4, 9, 8))
    raw = single(array, b"\1\0\0\0" + b"\x20\0\0\0\6\0\0\0" + b"Jane Roe".ljust(24), b"trailer")
    path = tmp_path / "scan.nii"
    path.write_bytes(raw)
    scan = ScanWithoutFreeText(open_scan(path))
    envelope = parsed_envelope(raw, header=scan.envelope.header)
    assert b"Jane" not in scan.envelope.header
    check_scan(scan, array, envelope=envelope)
    scan.close()


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_mgh(tmp_path: Path, dtype: str) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype)
    affine = np.diag([1.5, 2.0, 2.5, 1.0])
    envelope = Envelope(affine=affine, spacing_mm=(2.5, 2.0, 1.5))
    for name in ("scan.mgz", "scan.mgh"):
        nib.MGHImage(array.T, affine).to_filename(tmp_path / name)
        check_file(tmp_path / name, array, envelope)


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "array"])
def test_large_scans(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "KEPT_BYTES", 1 << 22)
    array = np.arange(np.prod(LARGE), dtype=np.int32).reshape(LARGE) % 4096
    if kind == "array":
        check_scan(ArrayScan(Volume.from_array(array)), array)
        return
    path = tmp_path / f"scan.{kind}"
    path.write_bytes(gzip.compress(single(array), 1) if kind == "nii.gz" else single(array))
    check_file(path, array)


def test_a_small_compressed_scan_is_decompressed_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    array = smooth((6, 32, 40))
    path.write_bytes(gzip.compress(single(array) + b"trailer"))
    with contextlib.closing(open_scan(path)) as scan:
        passes = [list(scan.blocks(Tiling(scan.shape, 0, 4))) for _ in range(2)]
        assert all(first is again for first, again in zip(*passes, strict=True))
        assert np.array_equal(np.concatenate(passes[0]), array)
        assert scan.envelope.trailer == b"trailer"
        other = list(scan.blocks(Tiling(scan.shape, 0, 3)))
        assert np.array_equal(np.concatenate(other), array)


def stack_of(folder: Path) -> StackScan:
    (series,) = find_series(folder)
    (stack,) = stacks_of(series)
    return StackScan(stack, "series")


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_dicom_stack(tmp_path: Path, dtype: str) -> None:
    array = (dicom_files.volume() // (16 if dtype == "u1" else 1)).astype(dtype)
    datasets = dicom_files.series(array, RescaleSlope=2, RescaleIntercept=-1000)
    affine = [[-0.8, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 2.5, 2.5], [0, 0, 0, 1.0]]
    envelope = Envelope(
        affine=np.array(affine), spacing_mm=(2.5, 0.9, 0.8), slope=2.0, inter=-1000.0
    )
    check_scan(stack_of(dicom_files.write(datasets, tmp_path)), array, envelope=envelope)


def test_dicom_stack_of_padded_slices(tmp_path: Path) -> None:
    array = dicom_files.volume()
    scan = stack_of(dicom_files.write(dicom_files.series(array), tmp_path))
    scan.replace_padding((190, 200), 7)
    padded = (array >= 190) & (array <= 200)
    assert padded.any()
    check_scan(scan, np.where(padded, 7, array).astype(array.dtype))


def test_dicom_stack_of_a_mosaic(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(1, 999, (4, 20, 20)).astype(np.uint16)
    tiles[3] = 0  # Of four tiles three are slices.
    mosaic = tiles.reshape(2, 2, 20, 20).swapaxes(1, 2).reshape(40, 40)
    dataset = dicom_files.instance(mosaic, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    dataset.add_new(0x0019100A, "US", 3)
    check_scan(stack_of(dicom_files.write([dataset], tmp_path)), tiles[:3])


@pytest.mark.parametrize("name", ["prostate_t2w", "dwi_enhanced"])
def test_dicom_stack_of_a_real_series(name: str) -> None:
    """The slices are those of pydicom, in the order of their positions."""
    scan = stack_of(DICOM / name)
    frames = {}
    for path in (DICOM / name).iterdir():
        pixels = pydicom.dcmread(path).pixel_array
        for n, frame in enumerate(pixels.reshape(-1, *pixels.shape[-2:])):
            frames[path.name, n] = frame
    slices = [frames[instance.name, n] for instance, n in scan.stack.slices]
    check_scan(scan, np.stack(slices).reshape(scan.shape))


def test_large_dicom_stack(tmp_path: Path) -> None:
    shape = (40, 256, 256)
    array = (np.arange(np.prod(shape)).reshape(shape) % 4096).astype(np.uint16)
    check_scan(stack_of(dicom_files.write(dicom_files.series(array), tmp_path)), array)
