"""Round trips through the public API: types, shapes, file forms, selections, limits, damage."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st
from nifti_files import header, single, smooth, voxels, write_pair
from numpy.typing import NDArray
from paths import DATA

from mricodec import codec
from mricodec.bitstream.container import ContainerReader, ContainerWriter
from mricodec.bitstream.header import Flags, Mode, StreamHeader, digest_bytes
from mricodec.codec import atomic as output
from mricodec.codec import loading
from mricodec.codec.coders import learned
from mricodec.codec.volume import DTYPES, Envelope
from mricodec.models import weights_file, zoo
from mricodec.models.lossless import fronts

# Bytes of a stream of an array besides its slabs and its preview.
MAX_OVERHEAD = 190
# Bytes of framing for each further slab.
MAX_SLAB_OVERHEAD = 28


def encode(source: Any, **settings: Any) -> bytes:
    stream = codec.encode(source, **settings)
    assert stream is not None
    return stream


def restored(stream: bytes) -> bytes:
    """The bytes of the .nii."""
    out = io.BytesIO()
    codec.decode_file(stream, out)
    return out.getvalue()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (5, 6), (3, 9, 11), (1, 1, 1), (2, 3, 4, 5), (2, 1, 3, 2, 2)]
)
def test_lossless_arrays_of_every_type(name: str, shape: tuple[int, ...]) -> None:
    for order in "<>":
        array = voxels(np.random.default_rng(4), name, shape)
        array = array.astype(array.dtype.newbyteorder(order))
        volume = codec.decode(encode(array, lossless=True))
        assert volume.dtype == array.dtype and volume.array.dtype.isnative
        assert volume.array.shape == shape
        assert volume.array.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


@settings(max_examples=100, deadline=None)
@examples(SHAPES, st.sampled_from(list(DTYPES)), st.integers(0, 3), st.data())
def test_lossless_anything(
    shape: tuple[int, ...], name: str, seed: int, data: st.DataObject
) -> None:
    array = voxels(np.random.default_rng(seed), name, shape)
    if array.dtype.kind == "f":
        odd = data.draw(st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, 1e-40]))
        array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = odd
        array = np.rint(array) if data.draw(st.booleans()) else array
    spacing = data.draw(st.tuples(*[st.floats(0.125, 9)] * 3))
    volume = codec.Volume.from_array(array, spacing_mm=spacing)
    again = codec.decode(encode(volume, lossless=True))
    assert again.array.tobytes() == array.tobytes() and again.array.shape == shape
    assert again.spacing_mm == spacing


def test_lossless_real_scans(scan_path: Path) -> None:
    stream = encode(scan_path, lossless=True)
    raw = gzip.decompress(scan_path.read_bytes())
    assert restored(stream) == raw
    info = codec.info(stream)
    assert info.sha256 == hashlib.sha256(raw).hexdigest()
    assert (info.original_bytes, info.stream_bytes) == (len(raw), len(stream))
    assert info.ratio > 1.2 and sum(size for _, size in info.sections) + 10 == len(stream)
    codec.verify(stream, deep=True)


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in ("bool", "float16")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_lossless_files_of_every_type(tmp_path: Path, name: str, order: str) -> None:
    array = voxels(np.random.default_rng(5), name, (2, 3, 5, 4))
    array = array.astype(array.dtype.newbyteorder(order))
    raw = single(array, b"\1\0\0\0" + bytes(range(28)), b"trailing bytes", slope=np.nan, inter=3.0)
    path = tmp_path / "scan.nii"
    path.write_bytes(raw)
    stream = encode(path, lossless=True)
    assert restored(stream) == raw
    volume = codec.decode(stream)
    assert (
        volume.header == raw[:380]
        and volume.trailer == b"trailing bytes"
        and volume.dtype == array.dtype
    )
    assert restored(encode(volume, lossless=True)) == raw


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in ("bool", "float16")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_lossless_files_of_any_bits(name: str, order: str) -> None:
    """Signalling NaN, padding of long doubles, whatever the bytes are."""
    size = 6 * 7 * 8 * DTYPES[name].itemsize
    noise = np.random.default_rng(7).integers(0, 256, size, np.uint8).tobytes()
    header_ = single(np.zeros((6, 7, 8), DTYPES[name].newbyteorder(order)), order=order)[:352]
    raw = header_ + noise
    assert restored(encode(io.BytesIO(raw), lossless=True)) == raw
    volume = codec.decode(encode(io.BytesIO(raw), lossless=True))
    assert restored(encode(volume, lossless=True)) == raw


def test_lossless_integers_at_the_limits() -> None:
    """A span of 2**24 and more, and -0.0, go another way; both come back."""
    for array in (
        np.array([[[0, 1 << 24]]], "i4"),
        np.array([[[0, (1 << 24) - 1]]], "i4"),
        np.array([[[-(2**63), 2**63 - 1]]], "i8"),
        np.array([[[2**64 - 1, 2**64 - 9]]], "u8"),
        np.array([[[0.0, -0.0, 3.0]]], "f4"),
        np.array([[[0.0, 2.0**23, 3.0]]], "f4"),
    ):
        assert codec.decode(encode(array, lossless=True)).array.tobytes() == array.tobytes()


def test_pair_comes_back_as_a_pair_or_as_one_file(tmp_path: Path) -> None:
    array = smooth((5, 12, 11))
    hdr, img = write_pair(tmp_path, array, lead=b"sixteen bytes...")
    stream = encode(img, lossless=True)
    out = tmp_path / "out"
    out.mkdir()
    codec.decode_file(stream, out / "scan.img")
    assert (out / "scan.hdr").read_bytes() == hdr.read_bytes()
    assert (out / "scan.img").read_bytes() == img.read_bytes()
    codec.decode_file(stream, out / "packed.hdr.gz")
    assert gzip.decompress((out / "packed.hdr.gz").read_bytes()) == hdr.read_bytes()
    assert gzip.decompress((out / "packed.img.gz").read_bytes()) == img.read_bytes()
    codec.decode_file(stream, out / "scan.nii.gz")
    np.testing.assert_array_equal(nib.load(out / "scan.nii.gz").dataobj.get_unscaled().T, array)
    codec.decode_file(stream, out / "part.hdr", slices=(1, 3))
    np.testing.assert_array_equal(nib.load(out / "part.hdr").dataobj.get_unscaled().T, array[1:3])
    codec.verify(stream, deep=True)
    with pytest.raises(ValueError, match="one file"):
        codec.decode_file(encode(array, lossless=True), out / "scan.hdr")


def test_mgz_becomes_nifti(tmp_path: Path) -> None:
    array = smooth((6, 7, 8)).astype(np.float32)
    affine = np.array([[0, 0, 3, 1], [2, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1.0]])
    nib.MGHImage(array.T, affine).to_filename(tmp_path / "scan.mgz")
    codec.decode_file(encode(tmp_path / "scan.mgz", lossless=True), tmp_path / "scan.nii")
    image = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_arrays_become_nifti(tmp_path: Path) -> None:
    array = smooth((6, 7, 8)).astype(">i2")
    volume = codec.Volume.from_array(
        array, spacing_mm=(3.0, 0.7, 0.7), affine=np.diag([0.7, 0.7, 3.0, 1.0])
    )
    again = codec.decode(encode(volume, lossless=True))
    assert again.spacing_mm == (3.0, 0.7, 0.7) and again.big_endian and again.header == b""
    np.testing.assert_array_equal(again.affine, volume.affine)
    codec.decode_file(encode(volume, lossless=True), tmp_path / "scan.nii")
    image = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)
    assert image.get_data_dtype() == np.dtype(">i2") and image.header.get_zooms() == (0.7, 0.7, 3.0)
    flags = np.arange(60).reshape(3, 4, 5) % 3 == 0
    codec.decode_file(encode(flags, lossless=True), tmp_path / "flags.nii")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "flags.nii").dataobj).T, flags)


def test_scaled_values() -> None:
    array = smooth((2, 3, 4))
    volume = codec.Volume.from_array(array, slope=2.0, inter=-1.0)
    again = codec.decode(encode(volume, lossless=True))
    np.testing.assert_array_equal(again.scaled(), array * 2.0 - 1.0)


def test_arrays_that_no_stream_can_hold() -> None:
    for bad in (
        np.zeros((0, 3)),
        np.zeros(()),
        np.zeros(3, "M8[s]"),
        np.array([{}]),
        np.array(["text"]),
    ):
        with pytest.raises(ValueError, match="expected"):
            codec.encode(bad, lossless=True)
    with pytest.raises(ValueError, match="native byte order"):
        codec.Volume(np.zeros(3, ">i2"))
    with pytest.raises(ValueError, match="4x4"):
        codec.Volume.from_array(np.zeros(3), affine=np.eye(3))
    volume = codec.decode(encode(io.BytesIO(single(smooth((3, 8, 8)))), lossless=True))
    for other in (volume.array[1:], volume.array.astype("i4")):
        with pytest.raises(ValueError, match="as the header says"):
            codec.encode(dataclasses.replace(volume, array=other))
    with pytest.raises(ValueError, match="trailer"):
        codec.encode(codec.Volume(smooth((3, 8, 8)), Envelope(trailer=b"more")))
    with pytest.raises(ValueError, match="finite affine"):
        codec.encode(
            codec.Volume.from_array(smooth((3, 8, 8)), affine=np.full((4, 4), np.nan)),
            lossless=True,
        )
    for no_scan in ([1, 2], b"bytes", None):
        with pytest.raises(TypeError, match="expected an array, a Volume, a path"):
            codec.encode(no_scan, lossless=True)  # type: ignore[call-overload, unused-ignore]


@pytest.fixture(params=[(1.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0)], ids=["k", "j", "i"])
def series(request: pytest.FixtureRequest) -> codec.Volume:
    """4-D, with slabs along each axis in turn."""
    rng = np.random.default_rng(6)
    array = smooth((3, 70, 40, 36)) + rng.integers(0, 9, (3, 70, 40, 36), np.int16)
    return codec.Volume.from_array(
        array, spacing_mm=request.param, affine=np.diag([1.0, 2.0, 3.0, 1.0])
    )


@pytest.mark.parametrize(
    ("slices", "volumes"),
    [
        ((0, 1), None),
        ((30, 50), (1, 2)),
        (slice(-5, None), slice(None, -1)),
        (None, (2, 3)),
        ((69, 70), (0, 3)),
    ],
)
def test_parts(series: codec.Volume, slices: Any, volumes: Any) -> None:
    part = codec.decode(encode(series, lossless=True), slices=slices, volumes=volumes)
    k = slices if isinstance(slices, slice) else slice(*(slices or (None,)))
    t = volumes if isinstance(volumes, slice) else slice(*(volumes or (None,)))
    np.testing.assert_array_equal(part.array, series.array[t, k])
    assert part.affine is not None and series.affine is not None
    first = range(70)[k][0]
    np.testing.assert_array_equal(part.affine[:3, 3], series.affine[:3, 2] * first)


@pytest.mark.parametrize("bad", [(0, 71), (5, 5), (6, 5), (-71, 3), slice(0, 10, 2), (70, None)])
def test_parts_beyond_the_scan(series: codec.Volume, bad: Any) -> None:
    stream = encode(series, lossless=True)
    with pytest.raises(ValueError, match="slices: expected a range"):
        codec.decode(stream, slices=bad)


def test_only_the_slabs_of_the_part_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encode(smooth((3, 96, 16, 16)), lossless=True)
    asked: list[int] = []
    plain = ContainerReader.slab
    monkeypatch.setattr(ContainerReader, "slab", lambda self, i: asked.append(i) or plain(self, i))
    codec.decode(stream, slices=(50, 60), volumes=(1, 2))
    assert asked == [1, 3]  # the volume before is coded without another


def test_part_of_a_file_has_a_header_of_its_own(tmp_path: Path) -> None:
    array = smooth((2, 40, 12, 11))
    affine = nib.affines.from_matvec(np.diag([1, 2, 3.0]), [4, 5, 6])
    image = nib.Nifti1Image(array.T, affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    image.to_filename(tmp_path / "scan.nii.gz")
    stream = encode(tmp_path / "scan.nii.gz", lossless=True)
    codec.decode_file(stream, tmp_path / "part.nii.gz", slices=(10, 35), volumes=(1, 2))
    part = nib.load(tmp_path / "part.nii.gz")
    np.testing.assert_array_equal(part.dataobj.get_unscaled().T, array[1:2, 10:35])
    np.testing.assert_allclose(part.affine, image.slicer[:, :, 10:35].affine)
    assert part.header.extensions[0].get_content() == b"kept"
    volume = codec.decode(stream, slices=(10, 35))
    np.testing.assert_allclose(volume.affine, part.affine)


def test_parts_of_few_and_of_many_axes() -> None:
    plane = smooth((1, 9, 8))[0]
    stream = encode(plane, lossless=True)
    np.testing.assert_array_equal(codec.decode(stream, slices=(0, 1), volumes=(0, 1)).array, plane)
    many = smooth((2, 3, 4, 9, 8))
    stream = encode(many, lossless=True)
    np.testing.assert_array_equal(
        codec.decode(stream, volumes=(1, 5)).array, many.reshape(6, 4, 9, 8)[1:5]
    )
    np.testing.assert_array_equal(codec.decode(stream, slices=(1, 2)).array, many[:, :, 1:2])


def test_lossy_round_trip(model: FakeModel, scan_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.mrc"
    report = codec.Encoder(quality=60).encode_file(scan_path, out)
    assert report.mode == "lossy" and report.model == "fake" and report.reason is None
    assert report.stream_bytes == out.stat().st_size
    volume = codec.decode(out)
    raw = gzip.decompress(scan_path.read_bytes())
    original = np.frombuffer(raw[len(volume.header) :], volume.dtype).reshape(volume.array.shape)
    assert volume.header == raw[: len(volume.header)]
    assert original.min() <= volume.array.min() and volume.array.max() <= original.max()
    difference = volume.array.astype(np.float64) - original
    stated = report.fidelity
    assert stated is not None
    rmse = np.sqrt((difference**2).mean())
    assert rmse <= stated.rmse <= rmse * 1.002
    assert np.abs(difference).max() <= stated.max_error <= np.abs(difference).max() * 1.002
    assert stated.psnr == pytest.approx(20 * np.log10(np.ptp(original) / rmse), abs=0.02)
    info = codec.verify(out, deep=True)
    assert info.fidelity == stated and info.exact
    assert (
        info.sha256 == hashlib.sha256(volume.array.astype(volume.dtype).tobytes()).hexdigest()[:32]
    )
    assert out.read_bytes() == encode(scan_path, quality=60)


def test_quality_is_monotone_and_relative_to_the_noise(model: FakeModel) -> None:
    reports = {}
    for noise in (3.0, 12.0):
        scan = smooth((16, 64, 64), noise)
        for quality in (20, 50, 80):
            reports[noise, quality] = codec.Encoder(quality=quality).encode_file(scan, io.BytesIO())
    for noise in (3.0, 12.0):
        errors = [reports[noise, quality].fidelity.rmse for quality in (20, 50, 80)]
        assert errors == sorted(errors, reverse=True)
        assert reports[noise, 50].fidelity.rmse <= noise
    quiet, loud = reports[3.0, 80].fidelity, reports[12.0, 80].fidelity
    assert loud.rmse / loud.sigma_hat == pytest.approx(quiet.rmse / quiet.sigma_hat, rel=0.25)


def test_exact_background(model: FakeModel) -> None:
    """The fake model rounds to steps: make it miss the background, and see it restored."""
    scan = smooth((8, 64, 64)) + np.int16(3)
    plain = model._run

    def blurred(shape: Any, q: Any, params: Any, coder: Any) -> NDArray[np.int32]:
        return plain(shape, q, params, coder) + 2

    model._run = blurred  # type: ignore[method-assign]
    stream = encode(scan, quality=70)
    assert ContainerReader(stream).header.flags == Flags.BACKGROUND
    decoded = codec.decode(stream).array
    tiles = scan.reshape(8, 8, 8, 8, 8)
    background = (tiles == 3).all((2, 4))
    assert background.mean() > 0.2
    assert (decoded.reshape(8, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4)[background] == 3).all()
    codec.verify(stream, deep=True)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8, 8), (5, 9, 7), (33, 20, 10), (2, 3, 17, 31)])
def test_lossy_types_and_shapes(model: FakeModel, kind: str, shape: tuple[int, ...]) -> None:
    scan = (
        smooth((1, *shape)).reshape(shape) // 4 + np.arange(np.prod(shape)).reshape(shape) % 3
    ).astype(kind)
    scan = scan * np.array(0.37, kind) if kind[0] == "f" else scan
    report = codec.Encoder(quality=95).encode_file(scan, buffer := io.BytesIO())
    decoded = codec.decode(buffer.getvalue())
    assert decoded.array.dtype == scan.dtype and decoded.array.shape == shape
    assert scan.min() <= decoded.array.min() and decoded.array.max() <= scan.max()
    error = np.abs(decoded.array.astype(np.float64) - scan).max()
    assert error == 0 if report.fidelity is None else error <= report.fidelity.max_error


def test_slabs_of_equal_shape_are_coded_together(model: FakeModel) -> None:
    """5 volumes of 70 slices: slabs of 40 and 30."""
    stream = encode(smooth((5, 70, 12, 10)))
    assert sorted(model.batches) == [(5, 30, 12, 10), (5, 40, 12, 10)]
    model.batches.clear()
    codec.decode(stream, slices=(0, 24), volumes=(1, 4))
    assert model.batches == [(3, 40, 12, 10)]


def test_lossy_parts_are_parts_of_the_whole(model: FakeModel, series: codec.Volume) -> None:
    stream = encode(series)
    whole = codec.decode(stream).array
    part = codec.decode(stream, slices=(20, 45), volumes=(1, 3)).array
    np.testing.assert_array_equal(part, whole[1:3, 20:45])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 8, 8), "u1"), "constant"),
        (smooth((4, 32, 32)) // 300, "label map"),
        (np.where(smooth((4, 32, 32)) > 9, smooth((4, 32, 32)), np.nan), "NaN"),
        (smooth((4, 32, 32)).astype("c8"), "complex"),
        (voxels(np.random.default_rng(0), "rgb24", (4, 8, 8)), "RGB"),
        (smooth((4, 32, 32)).astype("longdouble"), "64 bits"),
        (smooth((4, 32, 32)).astype("u8") << 53, "too wide"),
        (smooth((4, 32, 32)) * 1e300 / 7, "too wide"),
        (smooth((4, 32, 32)) * 1e-300 / 7, "too narrow"),
    ],
)
def test_what_loss_cannot_represent(array: NDArray[Any], reason: str) -> None:
    """No model is loaded, and the caller is told."""
    with pytest.warns(codec.LosslessFallback, match=reason):
        stream = encode(array, quality=30)
    assert codec.info(stream).mode == "lossless"
    assert codec.decode(stream).array.tobytes() == array.tobytes()
    report = codec.Encoder().encode_file(array, io.BytesIO())
    assert report.mode == "lossless" and reason in str(report.reason) and report.fidelity is None


def test_declared_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii"
    path.write_bytes(single(smooth((4, 16, 16)), intent=1002))
    with pytest.warns(codec.LosslessFallback, match="label map"):
        assert restored(encode(path)) == path.read_bytes()


def test_tables_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = encode(smooth((2, 16, 16)), lossless=True)
    for failure in (
        FileNotFoundError(2, "No such file", "tables"),
        ValueError("tables are damaged: install again"),
    ):

        def shipped(failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(fronts, "shipped", shipped)
        with pytest.raises(codec.FormatError, match=r"tables.*install"):
            encode(smooth((2, 16, 16)), lossless=True)
        with pytest.raises(codec.FormatError, match=r"tables.*install"):
            codec.decode(stream)


def test_unknown_model(model: FakeModel) -> None:
    stream = bytearray(encode(smooth((2, 32, 32))))
    model.model_id = b"someelse"
    with pytest.raises(codec.UnknownModel):
        codec.decode(bytes(stream))
    assert codec.info(bytes(stream)).model_id == b"fakefake".hex()
    codec.verify(bytes(stream))


def test_names_of_models_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = zoo.find("cnn8")
    assert codec.model_name(entry.model_id.hex()) == "cnn8"
    assert codec.model_name("00" * 8) is None
    monkeypatch.setattr(weights_file, "WEIGHTS", tmp_path)
    assert codec.model_name(entry.model_id.hex()) is None


def test_model_objects() -> None:
    fake = FakeModel()
    stream = codec.Encoder(model=fake).encode(smooth((2, 32, 32)))
    assert stream is not None
    assert codec.Decoder(model=fake).decode(stream).array.shape == (2, 32, 32)


def test_wrong_samples_are_noticed(model: FakeModel) -> None:
    stream = encode(smooth((8, 32, 32)))
    plain = model._run
    model._run = lambda *arguments: plain(*arguments) + 1  # type: ignore[method-assign]
    with pytest.raises(codec.ChecksumMismatch, match="decoder"):
        codec.decode(stream)
    codec.verify(stream)
    with pytest.raises(codec.ChecksumMismatch):
        codec.verify(stream, deep=True)


def test_a_model_with_inexact_samples(model: FakeModel) -> None:
    """Rounding may differ between machines: the digest is not compared, and `info` states it."""
    model.exact_samples = False
    stream = encode(smooth((8, 32, 32)))
    assert not codec.info(stream).exact
    plain = model._run
    model._run = lambda *arguments: plain(*arguments) + 1  # type: ignore[method-assign]
    codec.decode(stream)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("lossless", [True, False])
def test_overhead(model: FakeModel, kind: str, lossless: bool) -> None:
    array = smooth((150, 66, 65)).astype(kind)
    array = array * np.array(0.37, kind) if kind[0] == "f" else array // (4 if kind == "u1" else 1)
    settings_: dict[str, Any] = {"lossless": True} if lossless else {"quality": 40}
    stream = encode(array, **settings_)
    reader = ContainerReader(stream)
    payload = sum(len(reader.slab(i)) for i in range(reader.slab_count))
    payload += sum(section.size for section in reader.sections() if section.type == "pREV")
    assert reader.slab_count == 4
    assert len(stream) - payload <= MAX_OVERHEAD + (reader.slab_count - 1) * MAX_SLAB_OVERHEAD
    assert len(stream) - payload - (reader.slab_count - 1) * 19 <= MAX_OVERHEAD


@pytest.mark.parametrize("lossy", [False, True])
def test_memory_is_bounded(
    model: FakeModel, tmp_path: Path, lossy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """59 MB of 4-D scan take a quarter of that memory; lossless ones are complex: zstd is fast."""
    volumes, datatype = (100, 16) if lossy else (50, 32)
    monkeypatch.setattr(learned.LearnedCoder, "batch_voxels", 300_000)
    rng = np.random.default_rng(0)
    one = smooth((16, 96, 96)).astype(np.float32) + rng.random((16, 96, 96), np.float32)
    path = tmp_path / "scan.nii"
    dim = (4, 96, 96, 16, volumes, 1, 1, 1)
    with open(path, "wb") as file:
        file.write(header(dim=dim, datatype=datatype) + bytes(4))
        for _ in range(volumes):
            file.write(one.astype(np.float32 if lossy else np.complex64).tobytes())
    out, back = tmp_path / "scan.mrc", tmp_path / "back.nii"
    settings_: dict[str, Any] = {} if lossy else {"lossless": True}
    tracemalloc.start()
    try:
        codec.encode(path, out=out, **settings_)
        codec.decode_file(out, back)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 58_000_000
    assert peak < path.stat().st_size / 4
    assert back.stat().st_size == path.stat().st_size
    if not lossy:
        assert back.read_bytes() == path.read_bytes()


def test_limits() -> None:
    stream = encode(smooth((4, 16, 16)), lossless=True)
    with pytest.raises(codec.LimitExceeded):
        codec.decode(stream, limits=codec.Limits(max_voxels=100))
    with pytest.raises(codec.LimitExceeded):
        codec.info(stream, limits=codec.Limits(max_dims=2))


def test_nothing_under_the_name_after_a_failure(model: FakeModel, tmp_path: Path) -> None:
    good = tmp_path / "scan.mrc"
    good.write_bytes(b"what was there")
    path = tmp_path / "scan.nii"
    path.write_bytes(single(smooth((4, 16, 16)))[:-1])
    with pytest.raises(codec.Truncated):
        codec.encode(path, out=good, lossless=True)
    assert good.read_bytes() == b"what was there"
    stream = bytearray(encode(smooth((4, 16, 16))))
    plain = model._run
    model._run = lambda *arguments: plain(*arguments) + 1  # type: ignore[method-assign]
    with pytest.raises(codec.ChecksumMismatch):
        codec.decode_file(bytes(stream), tmp_path / "out.nii.gz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.mrc", "scan.nii"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        codec.encode(smooth((4, 16, 16)), out=tmp_path / "none" / "scan.mrc", lossless=True)
    with pytest.raises(IsADirectoryError):
        codec.encode(smooth((4, 16, 16)), out=tmp_path, lossless=True)
    with pytest.raises(ValueError, match=r"\.nii"):
        codec.decode_file(encode(smooth((4, 16, 16)), lossless=True), tmp_path / "scan.txt")
    damaged = encode(smooth((4, 16, 16))).replace(b"eRRS\10\0\0\0", b"eRRS\3\0\0\0")
    with pytest.raises(codec.FormatError):
        codec.decode_file(damaged, tmp_path / "out.nii")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.mrc", "scan.nii"]


@pytest.mark.parametrize("errors", [(np.nan, 1), (-1, 1), (1, np.nan)])
def test_errors_that_are_none(
    model: FakeModel, tmp_path: Path, errors: tuple[float, float]
) -> None:
    """Damage behind a sound checksum; found before there is a file."""
    stream = bytearray(encode(smooth((4, 16, 16))))
    at = stream.index(b"eRRS")
    stream[at + 8 : at + 12] = np.array(errors, "<f2").tobytes()  # and a checksum of 4 bytes
    stream[at + 16 : at + 20] = zlib.crc32(stream[at : at + 16]).to_bytes(4, "little")
    with pytest.raises(codec.FormatError, match="eRRS"):
        codec.decode_file(bytes(stream), tmp_path / "out.nii")
    assert not list(tmp_path.iterdir())


def test_fidelity_without_bounds() -> None:
    assert codec.Distortion(1, 1, 0, 0, 9).psnr == np.inf
    assert (
        codec.Distortion(1, 1, np.inf, np.inf, 9).psnr
        == codec.Distortion(1, 1, 2, 2, 0).psnr
        == -np.inf
    )


def test_temporary_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest name has a temporary one too, which is in no message."""
    longest = tmp_path / ("n" * 251 + ".mrc")
    codec.encode(smooth((2, 8, 8)), lossless=True, out=longest)
    assert [file.name for file in tmp_path.iterdir()] == [longest.name]

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(output, "open", refuse, raising=False)
    with pytest.raises(PermissionError) as raised:
        codec.encode(smooth((2, 8, 8)), lossless=True, out=tmp_path / "x.mrc")
    assert raised.value.filename == str(tmp_path / "x.mrc")


def test_streams_from_bytes_path_and_file(tmp_path: Path) -> None:
    array = smooth((4, 16, 16))
    path = tmp_path / "scan.mrc"
    assert codec.encode(array, out=path, lossless=True) is None
    data = path.read_bytes()
    buffer = io.BytesIO()
    assert codec.encode(array, out=buffer, lossless=True) is None
    assert buffer.getvalue() == data == encode(array, lossless=True)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    for source in (data, path, str(path), io.BytesIO(data), Pipe(data)):
        np.testing.assert_array_equal(codec.decode(source).array, array)
        assert codec.info(source if not isinstance(source, io.BytesIO) else Pipe(data)).shape == (
            4,
            16,
            16,
        )
    with open(path, "rb") as file:
        codec.verify(file, deep=True)


def test_threads_share_an_encoder_and_a_decoder(model: FakeModel) -> None:
    scans = [smooth((8, 32, 32), noise) for noise in (3.0, 5.0, 8.0, 13.0)]
    encoder, decoder = codec.Encoder(quality=60), codec.Decoder()
    alone = [encode(scan, quality=60) for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encoder.encode, scans * 4)) == alone * 4
        together = list(pool.map(lambda stream: decoder.decode(stream).array.tobytes(), alone * 4))
    assert together == [codec.decode(stream).array.tobytes() for stream in alone] * 4


def test_a_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    barrier = threading.Barrier(3)

    def load(name: str | bytes, device: str) -> FakeModel:
        loaded.append(name)
        return FakeModel()

    monkeypatch.setattr(loading, "open_model", load)
    encoder, decoder = codec.Encoder(), codec.Decoder()

    def both(_: int) -> None:
        barrier.wait()
        stream = encoder.encode(smooth((2, 32, 32)))
        assert stream is not None
        decoder.decode(stream)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(both, range(3)))
    assert loaded == ["default", b"fakefake"]


def test_progress(model: FakeModel, tmp_path: Path) -> None:
    for settings_ in ({"lossless": True}, {"quality": 50.0}):
        done: list[float] = []
        stream = encode(smooth((3, 40, 16, 16)), progress=done.append, **settings_)
        assert done == sorted(done) and done[-1] == pytest.approx(1) and len(done) > 3
        done.clear()
        codec.decode_file(stream, tmp_path / "scan.nii", progress=done.append)
        assert done == sorted(done) and done[-1] == pytest.approx(1)


def small_streams() -> dict[str, bytes]:
    scan = smooth((3, 16, 16))
    raw = single(scan)
    return {
        "store": encode(scan * np.float32(0.37), lossless=True),
        "predictive": encode(io.BytesIO(raw), lossless=True),
        "lossy": codec.Encoder(model=FakeModel(), quality=30).encode(
            codec.Volume.from_array(scan, affine=np.eye(4))
        )
        or b"",
    }


@pytest.mark.parametrize("kind", ["store", "predictive", "lossy"])
def test_every_truncation(model: FakeModel, kind: str) -> None:
    stream = small_streams()[kind]
    for size in range(len(stream)):
        with pytest.raises(codec.FormatError):
            codec.decode(stream[:size])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@examples(st.sampled_from(["store", "predictive", "lossy"]), st.data())
def test_damage_behind_sound_checksums(model: FakeModel, kind: str, data: st.DataObject) -> None:
    """Changed fields behind sound checksums are a FormatError or some volume; nothing else."""
    stream = _STREAMS.setdefault(kind, small_streams()[kind])
    reader = ContainerReader(stream)
    head = reader.header
    fields = {
        "coder": data.draw(st.integers(0, 5)),
        "dtype": data.draw(
            st.sampled_from(["uint8", "int16", "float32", "rgb24", "bool", head.dtype])
        ),
        "mode": data.draw(st.sampled_from(list(Mode))),
        "shape": data.draw(
            st.sampled_from(
                [head.shape, head.shape[::-1], (3, 16, 17), (1,), (0, 2), (2, 3, 16, 16)]
            )
        ),
        "slab_axis": data.draw(st.integers(0, 2)),
        "slab_slices": data.draw(st.sampled_from([1, 3, 16, 1 << 40])),
        "flags": Flags(data.draw(st.integers(0, 3))),
        "params": data.draw(st.one_of(st.just(head.params), st.binary(max_size=20))),
    }
    kept = data.draw(st.sets(st.sampled_from(list(fields)), max_size=3))
    changed = {name: fields[name] if name in kept else getattr(head, name) for name in fields}
    out = io.BytesIO()
    writer = ContainerWriter(
        out, StreamHeader(**changed, model_id=head.model_id, spacing_mm=head.spacing_mm)
    )
    for type_ in (b"ORIG", b"META"):
        if (payload := reader.chunk(type_)) is not None:
            writer.chunk(type_, _flipped(payload, data))
    for i in range(reader.slab_count):
        writer.slab(_flipped(reader.slab(i), data))
    writer.finish(reader.digest.ljust(32)[: digest_bytes(changed["mode"])])
    try:
        codec.decode(out.getvalue())
    except codec.FormatError as error:
        assert "\n" not in str(error)


_STREAMS: dict[str, bytes] = {}


def _flipped(payload: bytes, data: st.DataObject) -> bytes:
    if not payload or not data.draw(st.booleans()):
        return payload
    changed = bytearray(payload)
    changed[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    return bytes(changed)


def test_effort_high_of_the_default_model() -> None:
    """The cost of squared error and bits together falls; the decoder needs no option."""
    volume = DATA / "thick_flair.nii.gz"
    prices = []
    for effort in ("default", "high"):
        stream = encode(volume, quality=40, effort=effort)
        fidelity = codec.verify(stream, deep=True).fidelity
        assert fidelity is not None
        voxels = codec.decode(stream).array.size
        prices.append((fidelity.rmse / fidelity.step) ** 2 * voxels + 0.1155 * 8 * len(stream))
    assert prices[1] < 0.99 * prices[0]


def test_names_that_are_imported_later() -> None:
    assert set(dir(codec)) == set(codec.__all__)
    assert all(getattr(codec, name) is not None for name in codec.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        codec.no_such_name  # noqa: B018
