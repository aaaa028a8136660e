"""`rd-curve`: its figures are those of its files, it resumes, and it says what it leaves out."""

from __future__ import annotations

import csv
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel
from numpy.typing import NDArray

from mricodec import codec
from mricodec.cli.main import cli
from mricodec.codec import metrics, peers, report
from mricodec.codec.rate_distortion import (
    Jpeg2000,
    Mricodec,
    Point,
    Source,
    spread_qualities,
)

pytest.importorskip("imagecodecs", reason="rd-curve needs the extra bench")
pytest.importorskip("matplotlib", reason="rd-curve needs the extra bench")


class Quantiser:
    """A codec: uniform steps, zlib."""

    suffix = ".q"
    version = "1"

    def __init__(self, name: str = "quantiser") -> None:
        self.name = name
        self.encoded = 0

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        self.encoded += 1
        step = np.float64(2 ** ((115 - parameter) / 12.5))
        symbols = np.rint(source.voxels / step).astype("<i4")
        path.write_bytes(step.tobytes() + zlib.compress(symbols.tobytes()))

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        data = path.read_bytes()
        symbols = np.frombuffer(zlib.decompress(data[8:]), "<i4").reshape(source.voxels.shape)
        return np.rint(symbols * np.frombuffer(data[:8])).astype(source.voxels.dtype)


class Broken(Quantiser):
    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        raise codec.FormatError("expected symbols, found none")


def smooth(shape: tuple[int, ...] = (6, 40, 44)) -> NDArray[np.int16]:
    k, j, i = np.indices(shape)
    rng = np.random.default_rng(0)
    wave = 800 * np.sin(j / 7) * np.cos(i / 9 + k / 5) + 200 * np.sin(i * j / 150)
    return np.asarray(np.rint(wave + rng.normal(0, 20, shape)), np.int16)


def write_scan(path: Path, voxels: NDArray[Any]) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(voxels.T, np.eye(4)).to_filename(path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.nii", smooth())


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "rd.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measure(scans: list[Path], folder: Path, *contenders: Any, **options: Any) -> report.RdReport:
    return report.rd_curve(scans, folder, contenders=contenders, qualities=spread_qualities(8), **options)


def test_all_files_are_written_and_the_figures_are_theirs(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    labels: list[str] = []
    result = measure([scan], folder, Quantiser(), progress=labels.append)
    assert [path.name for path in result.files] == ["rd.json", "rd.csv", "rd.png", "rd.svg"]
    assert (folder / "rd.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "rd.svg").read_bytes()
    assert not result.left_out
    assert len(labels) == 16

    source = Source.of_file(scan)
    contenders = {"quantiser": Quantiser(), "jpeg2000": Jpeg2000()}
    rows = rows_of(folder)
    assert [row["codec"] for row in rows] == ["quantiser"] * 8 + ["jpeg2000"] * 8
    for row in rows:
        path = folder / row["file"]
        decoded = contenders[row["codec"]].decode(source, path)
        found = metrics.compare(smooth(), decoded)
        assert int(row["nbytes"]) == path.stat().st_size
        assert float(row["bpv"]) == pytest.approx(8 * path.stat().st_size / smooth().size)
        assert float(row["psnr"]) == found.psnr
        assert float(row["ssim"]) == found.ssim
        assert float(row["rmse"]) == found.rmse
        assert float(row["maxerr"]) == found.max_error
        assert float(row["peak"]) == np.ptp(smooth().astype(float))
    content = json.loads((folder / "rd.json").read_text())
    assert [Point.from_row(row) for row in content["points"]] == list(result.points)
    (comparison,) = content["bd_rate"]
    assert comparison["codec"] == "quantiser"
    assert comparison["result"]["low"] >= 25


def test_jpeg2000_covers_the_same_psnrs(scan: Path, tmp_path: Path) -> None:
    result = measure([scan], tmp_path / "out", Quantiser())
    ours = [p.psnr for p in result.points if p.codec == "quantiser"]
    aimed_at = [p.param for p in result.points if p.codec == "jpeg2000"]
    assert min(aimed_at) == pytest.approx(max(25, min(ours)), abs=0.1)
    assert max(aimed_at) == pytest.approx(min(58, max(ours)), abs=0.1)


def test_a_second_run_measures_only_what_is_missing(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = measure([scan], folder, Quantiser())
    assert first.points
    again = Quantiser()
    assert measure([scan], folder, again).points == first.points
    assert again.encoded == 0

    (folder / first.points[0].file).unlink()
    (folder / first.points[1].file).write_bytes(b"changed")
    assert len(measure([scan], folder, again).points) == len(first.points)
    assert again.encoded == 2

    other = Quantiser("other")
    assert len(measure([scan], folder, other).points) >= len(first.points) + 8  # the curves there are kept

    newer = Quantiser()
    newer.version = "2"
    measure([scan], folder, newer)
    assert newer.encoded == 8

    write_scan(scan, smooth() + 1)
    result = measure([scan], folder, again)
    assert again.encoded == 2 + 8
    assert {point.codec for point in result.points} == {"quantiser", "jpeg2000"}  # none of the old

    measure([scan], folder, again, force=True)
    assert again.encoded == 2 + 8 + 8


def test_a_folder_with_other_things_is_left_alone(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "thesis.txt"
    other.write_text("all of it")
    with pytest.raises(FileExistsError, match="--force"):
        measure([scan], tmp_path / "out", Quantiser())
    assert other.read_text() == "all of it"
    (tmp_path / "out" / "rd.json").write_text("{}")
    with pytest.raises(ValueError, match="points of an earlier run"):
        measure([scan], tmp_path / "out", Quantiser())


def test_what_fails_is_named_and_the_rest_is_finished(scan: Path, tmp_path: Path) -> None:
    constant = write_scan(tmp_path / "constant.nii.gz", np.full((4, 9, 9), 7, np.int16))
    text = tmp_path / "text.nii"
    text.write_text("not a scan")
    result = measure(
        [text, constant, scan, tmp_path / "absent.nii"], tmp_path / "out", Broken(), Quantiser("good")
    )
    assert [(entry.volume, entry.codec) for entry in result.left_out] == [
        ("text", ""),
        ("constant", ""),
        ("scan", "quantiser"),
        ("absent", ""),
    ]
    assert "expected symbols" in result.left_out[2].reason
    assert {point.codec for point in result.points} == {"good", "jpeg2000"}


def test_scans_of_the_same_name_are_told_apart(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write_scan(tmp_path / "other" / "scan.nii.gz", smooth() // 2)
    result = measure([scan, twin], tmp_path / "out", Quantiser())
    assert {point.volume for point in result.points} == {"scan", "scan-2"}


@pytest.mark.parametrize(
    "voxels",
    [
        pytest.param(smooth().astype(np.float32) / 7, id="float"),
        pytest.param(smooth().astype(np.int32) * 1000, id="wide"),
        pytest.param((smooth() // 16 + 128).clip(0, 255).astype(np.uint8), id="bytes"),
        pytest.param((smooth() > 0).astype(np.uint8) * 3, id="two bits"),
        pytest.param(smooth().astype(np.int16) - 9000, id="negative"),
        pytest.param(smooth()[None].repeat(2, 0), id="4-D"),
        pytest.param(smooth()[0], id="2-D"),
    ],
)
def test_jpeg2000_takes_every_volume(voxels: NDArray[Any], tmp_path: Path) -> None:
    source = Source.of_array("volume", codec.Volume.from_array(voxels))
    jpeg2000 = Jpeg2000()
    for psnr in (30.0, 45.0):
        jpeg2000.encode(source, psnr, tmp_path / "file")
        decoded = jpeg2000.decode(source, tmp_path / "file")
        assert (decoded.shape, decoded.dtype) == (voxels.shape, voxels.dtype)
        aimed_at = source.peak * 10 ** (-psnr / 20)
        rounding = 0.5 * peers.Samples.of(voxels, source.limits).step
        assert metrics.rmse(voxels, decoded) <= 1.3 * aimed_at + rounding


def test_jpeg2000_costs_four_bytes_a_slice_beside_its_codestreams() -> None:
    samples = smooth().astype(np.int32)
    shifted = (samples - samples.min()).astype(np.uint16)
    data = peers.encode_jpeg2000(shifted, int(shifted.max()), 40)
    pictures = peers.unpack(data, 6)
    assert len(data) == 4 * 6 + sum(map(len, pictures))
    assert all(picture.startswith(b"\xff\x4f\xff\x51") for picture in pictures)
    for damaged in (data[:-1], data + b"x", data[:10]):
        with pytest.raises(ValueError, match="expected"):
            peers.unpack(damaged, 6)


def test_a_model_object_takes_part(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = measure([scan], folder, Mricodec(FakeModel()))
    assert not result.left_out
    points = [point for point in result.points if point.codec == "mricodec-fake"]
    assert len(points) == 8
    for point in points:
        stream = folder / point.file
        assert codec.verify(stream).mode == "lossy"
        decoded = codec.Decoder(model=FakeModel()).decode(stream)
        assert metrics.psnr(smooth(), decoded.array) == point.psnr
        assert decoded.header == scan.read_bytes()[:352]


def test_what_only_goes_without_loss_has_no_curve(tmp_path: Path) -> None:
    labels = write_scan(tmp_path / "labels.nii", (smooth() > 0).astype(np.uint8))
    result = measure([labels], tmp_path / "out", Mricodec(FakeModel()))
    (entry,) = result.left_out
    assert entry.codec == "mricodec-fake"
    assert "without loss" in entry.reason


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["rd-curve", *map(str, arguments)])


@pytest.mark.parametrize("missing", ["imagecodecs", "matplotlib"])
def test_a_missing_extra_is_one_line(
    missing: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [missing, *(name for name in sys.modules if name.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    result = invoke(scan, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{missing} is needed" in result.stderr
    assert "mricodec[bench]" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_too_few_points_are_wrong_usage(scan: Path, tmp_path: Path) -> None:
    assert invoke(scan, "-o", tmp_path / "out", "--points", "7").exit_code == 2
    with pytest.raises(ValueError, match="at least 8"):
        report.rd_curve([scan], tmp_path / "out", contenders=[Quantiser()], qualities=[1, 2, 3])


@pytest.mark.parametrize("model", ["default", "hyperprior", "factorized"])
def test_the_command_with_a_trained_model(model: str, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = invoke(scan, "-o", folder, "--model", model, "--points", "8", "-q")
    assert result.exit_code == 0, result.output
    name = "mricodec" if model == "default" else f"mricodec-{model}"
    rows = [row for row in rows_of(folder) if row["codec"] == name]
    assert len(rows) == 8
    for row in rows:
        path = folder / row["file"]
        found = metrics.compare(smooth(), codec.decode(path).array)
        assert math.isclose(float(row["bpv"]), 8 * path.stat().st_size / smooth().size)
        assert math.isclose(float(row["psnr"]), found.psnr)
        assert math.isclose(float(row["ssim"]), found.ssim)
    again = invoke(scan, "-o", folder, "--model", model, "--points", "8", "-q")
    assert again.exit_code == 0
    assert [row for row in rows_of(folder) if row["codec"] == name] == rows
