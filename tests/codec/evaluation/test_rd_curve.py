"""`rd-curve`: figures are those of the files, it resumes, takes any codec, reports failures."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel
from numpy.typing import NDArray

from mricodec import codec
from mricodec.cli.main import cli
from mricodec.codec.evaluation import codecs as measurable
from mricodec.codec.evaluation import page, plots, report, still, video
from mricodec.codec.evaluation.codecs import (
    BASELINES,
    Mricodec,
    MricodecLossless,
    available_baselines,
    load_codec,
    spread_qualities,
)
from mricodec.codec.evaluation.points import PointFile
from mricodec.codec.evaluation.rate_distortion import Codec, Point, Source
from mricodec.codec.evaluation.still import jpeg2000
from mricodec.codec.voxels import metrics

pytest.importorskip("imagecodecs", reason="rd-curve needs the extra bench")
pytest.importorskip("matplotlib", reason="rd-curve needs the extra bench")


class Quantiser(Codec):
    """A codec: uniform steps, zlib."""

    suffix = ".q"
    version = "1"

    def __init__(self, name: str = "quantiser") -> None:
        self.name = name
        self.encoded = 0

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return spread_qualities(count)

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


def write_scan(
    path: Path, voxels: NDArray[Any], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(voxels.T, np.diag((*spacing_mm, 1.0))).to_filename(path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.nii", smooth())


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take a second; most tests are not about them."""
    monkeypatch.setattr(plots, "draw", lambda samples, points, folder: [])
    monkeypatch.setattr(page, "pictures", lambda source, decoded: b"")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "rd.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measure(
    scans: list[Path], folder: Path, *codecs: Codec, baselines: Any = None, **settings: Any
) -> report.RdReport:
    baselines = [jpeg2000()] if baselines is None else baselines
    return report.rd_curve(
        scans, folder, codecs, baselines, settings=report.RdSettings(points=8, **settings)
    )


@pytest.mark.usefixtures("unplotted")
def test_the_progress_is_a_fraction_and_what_comes_next(scan: Path, tmp_path: Path) -> None:
    steps: list[tuple[float, str]] = []
    report.rd_curve(
        [scan],
        tmp_path / "out",
        [Quantiser()],
        [jpeg2000()],
        settings=report.RdSettings(points=8),
        progress=lambda fraction, label: steps.append((fraction, label)),
    )
    assert [fraction for fraction, _ in steps] == [n / 16 for n in range(17)]
    assert [label for _, label in (steps[0], steps[-1])] == ["scan: quantiser 0", "report"]


def test_all_files_are_written_and_the_figures_are_theirs(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = measure([scan], folder, Quantiser())
    pictures = ["rd.png", "rd.svg", "rd-error.png", "rd-error.svg"]
    assert [path.name for path in result.files] == [
        "rd.json",
        "rd.csv",
        "bd-rate.csv",
        *pictures,
        "rd.html",
    ]
    for name in pictures:
        start = (folder / name).read_bytes()[:200]
        assert start.startswith(b"\x89PNG") or b"<?xml" in start
    assert not result.failures

    source = Source.of_file(scan)
    codecs = {"quantiser": Quantiser(), "jpeg2000": jpeg2000()}
    rows = rows_of(folder)
    assert [row["codec"] for row in rows] == ["quantiser"] * 8 + ["jpeg2000"] * 8
    for row in rows:
        path = folder / row["file"]
        decoded = codecs[row["codec"]].decode(source, path)
        expected = metrics.compare(smooth(), decoded)
        assert int(row["nbytes"]) == path.stat().st_size
        assert float(row["bpv"]) == pytest.approx(8 * path.stat().st_size / smooth().size)
        assert float(row["psnr"]) == expected.psnr
        assert float(row["ssim"]) == expected.ssim
        assert float(row["rmse"]) == expected.rmse
        assert float(row["maxerr"]) == expected.max_error
        assert float(row["peak"]) == np.ptp(smooth().astype(float))
        assert float(row["rmse_noise"]) == pytest.approx(expected.rmse / source.sigma_hat)
        assert float(row["psnr_narrow"]) == metrics.psnr_in_window(
            smooth(), decoded, source.windows.narrow
        )
        assert math.isnan(float(row["ms_ssim"]))  # slices below 176 voxels
        assert math.isnan(float(row["kmac_dec"]))  # no networks
    content = json.loads((folder / "rd.json").read_text())
    assert [Point.from_row(row).to_row() for row in content["points"]] == [
        point.to_row() for point in result.points
    ]
    (row,) = content["bd_rate"]
    assert (row["codec"], row["reference"]) == ("quantiser", "jpeg2000")
    assert row["low_db"] >= 25
    assert row["few_points"] == int(row["points"] < 8)
    with (folder / "bd-rate.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line == {name: str(value) for name, value in row.items()}
    assert {row["class"] for row in content["mean_psnr"]} == {"all", "near-isotropic"}


def test_the_page_needs_nothing_else(scan: Path, tmp_path: Path) -> None:
    thick = write_scan(tmp_path / "thick.nii", smooth()[:4], (1.0, 1.0, 5.0))
    measure([scan, thick], tmp_path / "out", Quantiser("<quantiser>"), Quantiser("other"))
    text = (tmp_path / "out" / "rd.html").read_text()
    assert "http" not in re.sub(r"data:image/[^']*", "", text)
    assert "<quantiser>" not in text
    assert "&lt;quantiser&gt;" in text
    assert text.count("data:image/svg+xml") == 3
    assert text.count("data:image/png") == 2  # a picture of each volume
    for word in ("near-isotropic", "thick slices", "95 % bootstrap", "MS-SSIM", "1/16", "worst"):
        assert word in text
    parser = Balanced()
    parser.feed(text)
    assert not parser.open


class Balanced(HTMLParser):
    """Knows which elements are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("unplotted")
def test_jpeg2000_covers_the_same_psnrs(scan: Path, tmp_path: Path) -> None:
    result = measure([scan], tmp_path / "out", Quantiser())
    ours = [p.psnr for p in result.points if p.codec == "quantiser"]
    targets = [p.param for p in result.points if p.codec == "jpeg2000"]
    assert min(targets) == pytest.approx(max(25, min(ours)), abs=0.1)
    assert max(targets) == pytest.approx(min(58, max(ours)), abs=0.1)


@pytest.mark.usefixtures("unplotted")
def test_a_second_run_measures_only_what_is_missing(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = measure([scan], folder, Quantiser())
    assert first.points
    again = Quantiser()
    assert rows_of(folder) == [
        {key: str(value) for key, value in vars(point).items()} for point in first.points
    ]
    before = rows_of(folder)
    measure([scan], folder, again)
    assert rows_of(folder) == before
    assert again.encoded == 0

    (folder / first.points[0].file).unlink()
    (folder / first.points[1].file).write_bytes(b"changed")
    assert len(measure([scan], folder, again).points) == len(first.points)
    assert again.encoded == 2

    other = Quantiser("other")
    assert (
        len(measure([scan], folder, other).points) >= len(first.points) + 8
    )  # the curves there are kept

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


@pytest.mark.usefixtures("unplotted")
def test_a_folder_with_other_things_is_left_alone(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "thesis.txt"
    other.write_text("all of it")
    with pytest.raises(FileExistsError, match="--force"):
        measure([scan], tmp_path / "out", Quantiser())
    assert other.read_text() == "all of it"
    (tmp_path / "out" / "points.jsonl").write_text('{"else": 1}\n')
    with pytest.raises(ValueError, match=r"line 1: expected a point.*--force"):
        measure([scan], tmp_path / "out", Quantiser())


@pytest.mark.usefixtures("unplotted")
def test_what_fails_is_named_and_the_rest_is_finished(scan: Path, tmp_path: Path) -> None:
    constant = write_scan(tmp_path / "constant.nii.gz", np.full((4, 9, 9), 7, np.int16))
    text = tmp_path / "text.nii"
    text.write_text("not a scan")
    result = measure(
        [text, constant, scan, tmp_path / "absent.nii"],
        tmp_path / "out",
        Broken(),
        Quantiser("good"),
    )
    assert [(entry.volume, entry.codec) for entry in result.failures] == [
        ("text", ""),
        ("constant", ""),
        ("scan", "quantiser"),
        ("absent", ""),
    ]
    assert "expected symbols" in result.failures[2].reason
    assert {point.codec for point in result.points} == {"good", "jpeg2000"}


@pytest.mark.usefixtures("unplotted")
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
    peer = jpeg2000()
    for psnr in (30.0, 45.0):
        peer.encode(source, psnr, tmp_path / "file")
        decoded = peer.decode(source, tmp_path / "file")
        assert (decoded.shape, decoded.dtype) == (voxels.shape, voxels.dtype)
        targets = source.peak * 10 ** (-psnr / 20)
        rounding = 0.5 * still.Samples.of(voxels, source.limits).step
        assert metrics.rmse(voxels, decoded) <= 1.3 * targets + rounding


def test_a_slice_costs_four_bytes_and_its_codestream(tmp_path: Path) -> None:
    source = Source.of_array("volume", codec.Volume.from_array(smooth()))
    jpeg2000().encode(source, 40, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    pictures = still.unpack(data, 6)
    assert len(data) == 4 * 6 + sum(map(len, pictures))
    assert all(picture.startswith(b"\xff\x4f\xff\x51") for picture in pictures)
    for damaged in (data[:-1], data + b"x", data[:10]):
        with pytest.raises(ValueError, match="expected"):
            still.unpack(damaged, 6)


@pytest.mark.usefixtures("unplotted")
def test_a_model_object_takes_part(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = measure([scan], folder, Mricodec(FakeModel()))
    assert not result.failures
    points = [point for point in result.points if point.codec == "mricodec-fake"]
    assert len(points) == 8
    for point in points:
        stream = folder / point.file
        assert codec.verify(stream).mode == "lossy"
        decoded = codec.Decoder(model=FakeModel()).decode(stream)
        assert metrics.psnr(smooth(), decoded.array) == point.psnr
        assert decoded.header == scan.read_bytes()[:352]


@pytest.mark.usefixtures("unplotted")
def test_what_only_goes_without_loss_has_no_curve(tmp_path: Path) -> None:
    labels = write_scan(tmp_path / "labels.nii", (smooth() > 0).astype(np.uint8))
    result = measure([labels], tmp_path / "out", Mricodec(FakeModel()))
    (entry,) = result.failures
    assert entry.codec == "mricodec-fake"
    assert "without loss" in entry.reason


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["rd-curve", *map(str, arguments)])


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def test_no_plots_without_matplotlib(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("matplotlib", monkeypatch)
    result = invoke(scan, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "expected the package matplotlib" in result.stderr
    assert "mricodec[bench]" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unplotted")
def test_peers_that_are_not_installed(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("imagecodecs", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    available, missing = available_baselines(tuple(BASELINES))
    assert not available
    assert set(missing) == set(BASELINES)
    arguments = (scan, "-o", tmp_path / "out", "--model", "factorized", "--points", "8")
    assert invoke(*arguments).exit_code == 0  # by default those that are there
    asked = invoke(*arguments, "--live", "x265", "--live", "jpeg2000")
    assert asked.exit_code == 1
    assert "left out: x265: ffmpeg is not installed" in asked.stderr
    assert "left out: jpeg2000: JPEG codecs: expected the package imagecodecs" in asked.stderr
    assert (
        len(rows_of(tmp_path / "out")) == 8 + len(measurable.MAX_ERRORS) + 1
    )  # bounded errors, lossless


def fake_ffmpeg(folder: Path, script: str) -> None:
    program = folder / "ffmpeg"
    cases = (
        "*-version*) echo ffmpeg version 0;;",
        "*-encoders*) echo libx265 libsvtav1;;",
        f"*) {script};;",
    )
    program.write_text('#!/bin/sh\ncase "$*" in ' + " ".join(cases) + " esac\n")
    program.chmod(0o755)


@pytest.mark.usefixtures("unplotted")
@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for ffmpeg")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "cat >/dev/null; echo broken pipe of dreams >&2; exit 3",
            r"exit code 3\): broken pipe of dreams",
        ),
        ("kill -SEGV $$", r"signal 11"),
        ("cat >/dev/null", "wrote nothing"),
        ("cat >/dev/null; echo x", r"expected 6 frames of .* bytes from ffmpeg, found 2 bytes"),
    ],
)
def test_a_peer_that_crashes_is_named(
    script: str, reason: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(video, "_encoder_version", video._encoder_version.__wrapped__)
    result = measure(
        [scan],
        tmp_path / "out",
        Quantiser(),
        baselines=[video.x265("medium"), video.svtav1(), jpeg2000()],
    )
    assert [entry.codec for entry in result.failures] == ["x265-medium", "svtav1-p5"]
    assert re.search(reason, result.failures[0].reason)
    assert {point.codec for point in result.points} == {"quantiser", "jpeg2000"}


@pytest.mark.parametrize("name", list(BASELINES))
def test_live_peers_come_close_at_their_best(name: str, tmp_path: Path) -> None:
    (peer, *_), missing = (
        available_baselines([name])
        if available_baselines([name])[0]
        else ([None], {name: "not here"})
    )
    if peer is None:
        pytest.skip(missing[name])
    voxels = np.tile(smooth(), (1, 2, 2))[:, :66, :71]
    source = Source.of_array("volume", codec.Volume.from_array(voxels))
    parameters = peer.parameters(8, [30.0, 55.0])
    assert len(parameters) == 8
    psnrs = []
    for parameter in (parameters[0], parameters[-1]):
        peer.encode(source, parameter, tmp_path / "file")
        decoded = peer.decode(source, tmp_path / "file")
        assert (decoded.shape, decoded.dtype) == (voxels.shape, voxels.dtype)
        psnrs.append(metrics.psnr(voxels, decoded))
    assert max(psnrs) > 45
    assert min(psnrs) < 37


def test_too_few_points_are_wrong_usage(scan: Path, tmp_path: Path) -> None:
    assert invoke(scan, "-o", tmp_path / "out", "--points", "7").exit_code == 2
    with pytest.raises(ValueError, match="at least 8"):
        report.RdSettings(points=3)


@pytest.mark.parametrize("model", ["default", "hyperprior", "factorized"])
def test_the_command_with_a_trained_model(
    model: str, scan: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if model != "default":
        request.getfixturevalue("unplotted")
    folder = tmp_path / "out"
    result = invoke(scan, "-o", folder, "--model", model, "--points", "8", "-q", "--live", "none")
    assert result.exit_code == 0, result.output
    name = "mricodec" if model == "default" else f"mricodec-{model}"
    rows = [row for row in rows_of(folder) if row["codec"] == name]
    assert len(rows) == 8
    for row in rows:
        path = folder / row["file"]
        expected = metrics.compare(smooth(), codec.decode(path).array)
        assert math.isclose(float(row["bpv"]), 8 * path.stat().st_size / smooth().size)
        assert math.isclose(float(row["psnr"]), expected.psnr)
        assert math.isclose(float(row["ssim"]), expected.ssim)
        assert 1 < float(row["kmac_dec"]) < 500
        assert 1e5 < float(row["parameters"]) < 1e8
    (lossless,) = (row for row in rows_of(folder) if row["codec"] == "mricodec-lossless")
    assert (float(lossless["psnr"]), lossless["maxerr"]) == (math.inf, "0.0")
    again = invoke(scan, "-o", folder, "--model", model, "--points", "8", "-q", "--live", "none")
    assert again.exit_code == 0
    assert [row for row in rows_of(folder) if row["codec"] == name] == rows


MINE = """
import zlib
import numpy as np

class Mine:
    name = "mine"
    parameters = [2, 4, 8, 16, 32, 64, 128, 256]

    def encode(self, voxels, parameter):
        symbols = np.rint(voxels / parameter).astype("<i4")
        return bytes([parameter.bit_length()]) + zlib.compress(symbols.tobytes())

    def decode(self, data, shape, dtype):
        symbols = np.frombuffer(zlib.decompress(data[1:]), "<i4").reshape(shape)
        return (symbols * 2 ** (data[0] - 1)).astype(dtype)

class Failing(Mine):
    name = "failing"

    def encode(self, voxels, parameter):
        raise KeyError("no such step")

class Half(Mine):
    name = "half"

    def decode(self, data, shape, dtype):
        return super().decode(data, shape, dtype)[1:]

class Short(Mine):
    parameters = [1, 2]
"""


@pytest.mark.usefixtures("unplotted")
def test_anyone_s_codec_takes_part(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_codecs.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [
        item for name in ("Mine", "Failing", "Half") for item in ("--codec", f"my_codecs:{name}")
    ]
    folder = tmp_path / "out"
    result = invoke(
        scan, "-o", folder, "--model", "factorized", "--points", "8", "--live", "none", *arguments
    )
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 2
    for expected in (
        "scan with failing: encode: KeyError: 'no such step'",
        "scan with half: expected decoded voxels of shape (6, 40, 44), found (5, 40, 44)",
    ):
        assert any(expected in line for line in lines), expected
    rows = [row for row in rows_of(folder) if row["codec"] == "mine"]
    assert [float(row["maxerr"]) for row in rows] == sorted(
        (float(row["maxerr"]) for row in rows), reverse=True
    )
    assert [float(row["param"]) for row in rows] == [256, 128, 64, 32, 16, 8, 4, 2]
    assert (
        re.search(r"scan: mricodec-factorized against mine: [+-]\d", result.stdout) is None
    )  # "mine" is no baseline.


def test_what_is_no_codec_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong_syntax.py").write_text("def encode(:\n")
    (tmp_path / "short_codec.py").write_text(MINE)
    for where, reason in (
        ("nowhere", "expected module:object"),
        ("sys:", "expected module:object"),
        ("no_such_module:x", "No module named"),
        ("math:pi", "missing: name, parameters"),
        ("wrong_syntax:Codec", "SyntaxError"),
        ("short_codec:Absent", "AttributeError"),
        ("short_codec:Short", "expected at least 8 parameters"),
    ):
        with pytest.raises(ValueError, match=re.escape(where)) as caught:
            load_codec(where)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_codec_that_cannot_be_imported_is_reported_before_anything_runs(
    scan: Path, tmp_path: Path
) -> None:
    result = invoke(scan, "-o", tmp_path / "out", "--codec", "no_such_module:Codec")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "no_such_module" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_installed_precedes_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local_codec.py").write_text("import colorsys\n" + MINE)
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('not the library')\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = list(sys.path)
    assert load_codec("local_codec:Mine").name == "mine"
    assert sys.path == before


@pytest.mark.usefixtures("unplotted")
def test_peers_from_csv(scan: Path, tmp_path: Path) -> None:
    psnrs = [24.0, 28, 32, 36, 40, 44, 48, 52]
    lines = [f"scan,full,6x40x44,rival,{0.05 * 1.5**n:.4f},{psnr}" for n, psnr in enumerate(psnrs)]
    good, mixed, foreign, wrong = (
        tmp_path / f"{name}.csv" for name in ("good", "mixed", "foreign", "wrong")
    )
    head = "volume,roi,shape,codec,bpv,psnr"
    good.write_text("\n".join([head, *lines, "another,full,1x2x3,rival,1,40"]))
    odd = [
        "scan,full,6x40x44,x,one,2",
        "scan,full,7x40x44,third,1,40",
        "scan,full,7x40x44,third,2,50",
        "scan,full,,y,-1,40",
    ]
    mixed.write_text("\n".join([head, lines[0].replace("rival", "second"), *odd]))
    foreign.write_text("\n".join([head, "another,full,1x2x3,rival,1,40"]))
    wrong.write_text("volume,codec,bpv\nscan,x,1\n")
    absent = tmp_path / "absent.csv"
    result = measure(
        [scan],
        tmp_path / "out",
        Quantiser(),
        baselines=(),
        csvs=[good, mixed, foreign, wrong, absent],
    )
    (against,) = (row for row in result.bd_rates if row.reference == "rival")
    assert against.result is not None
    assert {sample.codec for sample in result.others} == {"rival", "second"}
    reasons = "\n".join(str(entry) for entry in result.failures)
    assert len(result.failures) == 6
    for expected in (
        "mixed.csv, line 3: expected numbers",
        "mixed.csv, line 4: scan full is 6x40x44 here, 7x40x44 there",
        "mixed.csv, line 6: expected a codec, bpv above 0",
        "foreign.csv: expected points of the volumes measured",
        "wrong.csv: expected the columns volume, roi, codec, bpv, psnr; missing: roi, psnr",
        "absent.csv",
    ):
        assert expected in reasons, expected


@pytest.mark.usefixtures("unplotted")
def test_the_central_slices_as_a_bare_array(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.nii.gz", smooth((45, 20, 24))[None].repeat(2, 0))
    result = measure(
        [path], tmp_path / "out", Quantiser(), MricodecLossless(), baselines=(), central=40
    )
    assert {(point.roi, point.shape) for point in result.points} == {("slab40", "40x20x24")}
    (lossless,) = (point for point in result.points if point.codec == "mricodec-lossless")
    decoded = codec.decode(tmp_path / "out" / lossless.file)
    assert np.array_equal(decoded.array, smooth((45, 20, 24))[2:42])
    assert lossless.peak == np.ptp(smooth((45, 20, 24)).astype(float))


def test_points_of_an_earlier_release_are_measured_again(tmp_path: Path) -> None:
    known = tmp_path / "points.jsonl"
    known.write_text(json.dumps({"volume": "a", "codec": "b", "file_sha256": ""}) + "\n")
    assert PointFile(known, dict).points == []
