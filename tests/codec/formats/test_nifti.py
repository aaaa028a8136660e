"""NIfTI and MGH headers: geometry as in nibabel; a wrong header is an error that names it."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_files import header, single, smooth, write_pair
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.codec.formats import free_text, nifti_header
from mricodec.codec.formats.registry import open_scan
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Envelope, Scan


def read(scan: Scan) -> NDArray[Any]:
    """The voxels of a 3-D scan, read in slabs along k."""
    return np.concatenate(list(scan.blocks(Tiling(scan.shape, 0, 3))))


def read_file(path: Path) -> NDArray[Any]:
    with contextlib.closing(open_scan(path)) as scan:
        return read(scan)


def test_single_file_named_hdr(tmp_path: Path) -> None:
    path = tmp_path / "scan.hdr"
    path.write_bytes(single(smooth((4, 9, 8))))
    with pytest.raises(FileNotFoundError):
        open_scan(tmp_path / "none.hdr")
    np.testing.assert_array_equal(read_file(path), smooth((4, 9, 8)))


@pytest.mark.parametrize(("units", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_of_length(units: int, factor: float) -> None:
    raw = bytearray(header())
    raw[123] = units
    parsed = nifti_header.parse(bytes(raw), "scan")
    assert parsed.spacing_mm == pytest.approx((2.5 * factor, 0.75 * factor, 0.5 * factor))
    assert np.diag(parsed.affine) == pytest.approx([0.5 * factor, 0.75 * factor, 2.5 * factor, 1])


@pytest.mark.parametrize(
    ("slope", "known"), [(0.0, (1.0, 0.0)), (np.nan, (1.0, 0.0)), (2.0, (2.0, 7.0))]
)
def test_unset_slope(slope: float, known: tuple[float, float]) -> None:
    parsed = nifti_header.parse(header(slope=slope, inter=7.0), "scan")
    assert (parsed.slope, parsed.inter) == known


BAD_HEADERS = {
    "not nifti": (b"something else entirely" * 20, "found"),
    "empty": (b"", "empty file"),
    "short header": (header()[:200], "cut short|get the file"),
    "no magic": (header(magic=b"\0\0\0\0"), "magic"),
    "unknown type": (header(datatype=1) + bytes(500), "datatype"),
    "zero dimensions": (header(dim=(0, 5, 4, 3, 1, 1, 1, 1)) + bytes(500), "1 to 7 dimensions"),
    "eight dimensions": (header(dim=(8, 5, 4, 3, 1, 1, 1, 1)) + bytes(500), "1 to 7 dimensions"),
    "empty dimension": (header(dim=(3, 5, 0, 3, 1, 1, 1, 1)) + bytes(500), "at least 1"),
    "negative dimension": (header(dim=(3, 5, 4, -3, 1, 1, 1, 1)) + bytes(500), "at least 1"),
    "offset in header": (header(vox_offset=100) + bytes(500), "vox_offset"),
    "offset beyond": (header(vox_offset=1e12) + bytes(500), "vox_offset"),
    "offset nan": (header(vox_offset=np.nan) + bytes(500), "vox_offset"),
    "offset of a fraction": (header(vox_offset=352.5) + bytes(500), "vox_offset"),
    "offset after the end": (header(vox_offset=4000) + bytes(500), "bytes"),
    "few voxels": (header() + bytes(4 + 119), "header is wrong"),
    "giant": (header(dim=(7, *[30000] * 7)) + bytes(500), "header is wrong"),
    "half a pair": (header(magic=b"ni1\0") + bytes(500), r"\.hdr"),
    "dicom": (bytes(128) + b"DICM" + bytes(500), "DICOM"),
    "stream": (b"\x89MRC\r\n\x1a\n" + bytes(500), "decode"),
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
@pytest.mark.parametrize("gz", [False, True])
def test_bad_input_is_named(tmp_path: Path, kind: str, gz: bool) -> None:
    raw, reason = BAD_HEADERS[kind]
    path = tmp_path / "scan.nii"
    path.write_bytes(gzip.compress(raw) if gz else raw)
    with pytest.raises(FormatError, match=reason) as caught:
        read_file(path)
    assert "scan.nii" in str(caught.value) and "\n" not in str(caught.value)


def test_header_of_a_smaller_volume_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    with open(path, "wb") as file:
        file.write(single(smooth((2, 4, 4))))
        file.truncate(100 << 20)
    with pytest.raises(FormatError, match="dimensions in the header are wrong"):
        read_file(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(single(smooth((8, 32, 32)))))
    path = tmp_path / "scan.nii.gz"
    for cut in (1, 5, 100, len(packed) - 3):
        path.write_bytes(packed[:cut])
        with pytest.raises(FormatError):
            read_file(path)
    packed[len(packed) // 2] ^= 255
    path.write_bytes(packed)
    with pytest.raises(FormatError, match="gzip"):
        read_file(path)


def test_extensions_are_part_of_the_header(tmp_path: Path) -> None:
    image = nib.Nifti1Image(smooth((4, 9, 8)).T, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept byte for byte"))
    image.to_filename(tmp_path / "scan.nii")
    scan = open_scan(tmp_path / "scan.nii")
    assert b"kept byte for byte" in scan.envelope.header
    np.testing.assert_array_equal(read(scan), smooth((4, 9, 8)))
    scan.close()


def test_new_header_is_read_by_nibabel() -> None:
    array = smooth((4, 9, 8))
    affine = np.array([[0, 0, 3, 1], [2, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1.0]])
    envelope = Envelope(affine=affine, spacing_mm=(3.0, 1.0, 2.0), slope=2.0, inter=5.0)
    raw = nifti_header.make_header(array.shape, array.dtype, envelope)
    image = nib.Nifti1Image.from_bytes(raw + array.tobytes())
    np.testing.assert_array_equal(image.dataobj.get_unscaled().T, array)
    np.testing.assert_allclose(image.affine, affine)
    assert image.header.get_zooms() == (2.0, 1.0, 3.0)
    assert (image.dataobj.slope, image.dataobj.inter) == (2.0, 5.0)

    long = np.zeros((1, 1, 40000), np.dtype(">u1"))
    raw = nifti_header.make_header(long.shape, np.dtype(">f4"), Envelope())
    image = nib.Nifti2Image.from_bytes(raw + bytes(4 * 40000))
    assert image.shape == (40000, 1, 1) and image.get_data_dtype() == np.dtype(">f4")
    with pytest.raises(ValueError, match="7 axes"):
        nifti_header.make_header((1,) * 8, np.dtype("i2"), Envelope())
    with pytest.raises(ValueError, match="float16"):
        nifti_header.make_header((1,), np.dtype("f2"), Envelope())


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_cropped_header_is_where_nibabel_puts_it(image_class: Any, forms: tuple[int, int]) -> None:
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([1, 2, 3.0]), [4, 5, 6]
    )
    data = np.arange(6 * 5 * 8, dtype=np.int16).reshape(6, 5, 8)
    image = image_class(data, affine)
    image.set_sform(affine, forms[0])
    image.set_qform(affine, forms[1])
    buffer = io.BytesIO(image.to_bytes())
    raw = buffer.getvalue()[: len(buffer.getvalue()) - data.nbytes]
    cropped = nifti_header.crop_header(raw, (3, 5, 6), 2)
    parsed = nifti_header.parse(cropped, "cropped")
    assert parsed.shape == (3, 5, 6) and len(cropped) == len(raw)
    if forms != (0, 0):
        np.testing.assert_allclose(parsed.affine, image.slicer[:, :, 2:5].affine, atol=1e-5)


def test_pair_becomes_a_single_file(tmp_path: Path) -> None:
    array = smooth((4, 9, 8))
    hdr, _ = write_pair(tmp_path, array)
    single_header = nifti_header.single_file_header(hdr.read_bytes())
    image = nib.Nifti1Image.from_bytes(single_header + array.tobytes())
    np.testing.assert_array_equal(image.dataobj.get_unscaled().T, array)


def test_damaged_mgz(tmp_path: Path) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(np.float32)
    path = tmp_path / "scan.mgz"
    nib.MGHImage(array.T, np.diag([1.5, 2.0, 2.5, 1.0])).to_filename(path)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:300]))
    with pytest.raises(FormatError, match="MGH"):
        open_scan(path)


@pytest.mark.parametrize("size", [0.0, -2.0, 3e38, float("inf"), float("nan")])
def test_unset_voxel_size(size: float) -> None:
    """In metres 3e38 is more than a stream holds."""
    raw = bytearray(header())
    struct.pack_into("<f", raw, 80, size)
    raw[123] = 1
    assert nifti_header.parse(bytes(raw), "scan").spacing_mm[2] == (2000.0 if size == -2.0 else 1.0)


def test_declared_labels() -> None:
    assert nifti_header.parse(header(intent=1002), "scan").labels
    assert not nifti_header.parse(header(intent=1001), "scan").labels


def test_nothing_is_allocated_for_a_wrong_header(tmp_path: Path) -> None:
    """10**13 voxels in the header are refused before memory for them is allocated."""
    path = tmp_path / "scan.nii"
    path.write_bytes(header(dim=(3, 32767, 32767, 9999, 1, 1, 1, 1)) + bytes(100))
    with pytest.raises(Truncated, match="header is wrong"):
        open_scan(path)
    path.write_bytes(gzip.compress(struct.pack("<i", 348) + path.read_bytes()[4:]))
    with pytest.raises(Truncated, match="compressed"):
        open_scan(path)


@pytest.mark.parametrize(
    ("size", "known"), [(348, nib.nifti1.header_dtype), (540, nib.nifti2.header_dtype)]
)
def test_header_table_is_that_of_nibabel(size: int, known: np.dtype[Any]) -> None:
    """A joined field (quatern, qoffset, srow, intent_p) has the offset of its first part."""
    firsts = {
        "quatern": "quatern_b",
        "qoffset": "qoffset_x",
        "srow": "srow_x",
        "intent_p": "intent_p1",
    }
    layout = nifti_header.LAYOUTS[size]
    assert layout.itemsize == size
    for name in layout.names or ():
        offset = known.fields[firsts.get(name, name)][1]
        assert nifti_header.field_span(size, name).start == offset, name


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_header_without_free_text(image_class: Any, byte_order: str) -> None:
    """Free text and extensions are removed and listed; every other field stays."""
    header_class = image_class.header_class
    image = image_class(smooth((4, 9, 8)).T, np.eye(4), header_class(endianness=byte_order))
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = field.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Roe"))
    raw = image.to_bytes()[: -4 * 9 * 8 * 2]
    bare = free_text.without_free_text(raw)
    cleaned = header_class(bare[: nifti_header.parse(bare, "scan").size])
    expected = header_class(raw[: nifti_header.parse(raw, "scan").size])
    for field in ("descrip", "aux_file", "intent_name"):
        expected[field] = b""
    expected["vox_offset"] = len(bare)
    assert cleaned == expected
    assert not list(free_text.list_free_text(Envelope(bare, trailer=bytes(7))))
    listed = dict(free_text.list_free_text(Envelope(raw, b"lead", b"trailer")))
    assert [*listed][:3] == ["descrip", "aux_file", "intent_name"]
    assert (
        "Jane Roe" in listed["extensions"]
        and listed["bytes after the voxels"] == "7 bytes: trailer"
    )
