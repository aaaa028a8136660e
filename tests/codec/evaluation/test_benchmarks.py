"""Benchmarks: baselines, dense curves, tables of the committed results, data folders, ablation."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from paths import DATA, ROOT

from mricodec import codec
from mricodec.codec.coders.base import LossyParams, UncodedSymbols
from mricodec.codec.evaluation import aggregate, still
from mricodec.codec.evaluation.codecs import QUALITIES
from mricodec.codec.evaluation.points import RdPoint, rd_points
from mricodec.codec.evaluation.rate_distortion import Codec, Point, Source
from mricodec.codec.voxels import metrics

pytest.importorskip("imagecodecs", reason="the peers need the extra bench")

RATES = [0.02 * 2**n for n in range(8)]
PSNRS = [20.0 + 4 * n for n in range(8)]

Bench = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A module of benchmarks/, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def point(
    codec_name: str, param: float, bpv: float, psnr: float, volume: str = "mri10yr_a", **others: Any
) -> Point:
    values: dict[str, Any] = {
        field.name: "" if field.type == "str" else 1 for field in fields(Point)
    }
    basic = {
        "codec": codec_name,
        "param": param,
        "bpv": bpv,
        "psnr": psnr,
        "volume": volume,
        "roi": "full",
    }
    return Point(**values | basic | others)


def curve(codec_name: str, factor: float, volume: str = "mri10yr_a", **others: Any) -> list[Point]:
    return [
        point(codec_name, n, factor * r, p, volume, **others)
        for n, (r, p) in enumerate(zip(RATES, PSNRS, strict=True))
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_lossless_peers_lose_nothing(dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels: NDArray[Any] = rng.integers(3, 250, (5, 33, 40)).cumsum(2) % 240
    source = Source.of_array("volume", codec.Volume.from_array(voxels.astype(dtype)))
    for peer in still.lossless():
        path = tmp_path / peer.name
        peer.encode(source, 0.0, path)
        assert np.array_equal(peer.decode(source, path), source.voxels), peer.name


def test_lossless_peers_refuse_what_they_would_round(bench: Bench, tmp_path: Path) -> None:
    source = Source.of_array(
        "volume", codec.Volume.from_array(np.linspace(0, 1, 640).reshape(1, 20, 32))
    )
    for peer in still.lossless():
        with pytest.raises(ValueError, match="integers"):
            peer.encode(source, 0.0, tmp_path / "file")


def drawn(
    schedule: Callable[[Sequence[Point]], float | None],
    bpv: Callable[[float], float],
    rmse: float = 0,
) -> list[Point]:
    """The points of a curve whose PSNR rises by 3 dB with ten of the quality."""
    points: list[Point] = []
    while (quality := schedule(points)) is not None:
        points.append(point("mricodec", quality, bpv(quality), 20 + 0.3 * quality, rmse=rmse))
    assert len({p.param for p in points}) == len(points)
    return points


@pytest.mark.parametrize("dense", [[((24.0, 33.0), 13), ((40.0, 41.0), 8)], [((30.0, 30.5), 8)]])
def test_curves_become_dense_where_they_are_compared(dense: list[Any], bench: Bench) -> None:
    run = bench("run")
    points = drawn(
        lambda points: run.next_quality(points, dense), lambda quality: 0.002 * 2 ** (quality / 9)
    )
    for (low, high), wanted in dense:
        assert sum(low <= p.psnr <= high for p in points) >= wanted
    assert len(points) <= run.MAX_POINTS
    assert {*QUALITIES, 50.0} <= {p.param for p in points}


def test_without_a_reference_a_curve_is_dense_at_its_own_rates(bench: Bench) -> None:
    run = bench("run")
    points = drawn(run.next_quality, lambda quality: 0.002 * 2 ** (quality / 9))
    assert sum(0.05 <= p.bpv <= 0.8 for p in points) == run.DENSE_POINTS
    assert len(drawn(run.next_quality, lambda quality: 2 + quality)) == 9  # it is not there


def test_a_slow_curve_covers_the_range_alone(bench: Bench) -> None:
    run = bench("run")
    points = [
        point("mricodec", quality, 0.002 * 2 ** (quality / 9), 20 + 0.3 * quality)
        for quality in range(0, 81, 2)
    ]
    qualities = run.covering(points, (29.0, 38.0))  # of qualities 30 .. 60
    assert len(qualities) == run.SLOW_POINTS
    assert (qualities[0], qualities[-1]) == (28, 62)
    assert max(b - a for a, b in itertools.pairwise(qualities)) <= 4
    assert run.covering(points, (50.0, 60.0)) == []


def test_a_curve_ends_at_the_finest_psnr_or_error(bench: Bench) -> None:
    run = bench("run")
    coarse = drawn(run.next_quality, lambda quality: 2 + quality, rmse=0.6)
    assert [p.param for p in coarse[-2:]] == [90, 100]
    assert (
        max(p.param for p in drawn(run.next_quality, lambda quality: 2 + quality, rmse=0.4)) == 80
    )


def test_bd_rates_use_the_range_of_x265(bench: Bench) -> None:
    lossy_tables = bench("lossy_tables")
    points = curve("mricodec", 0.5) + curve("mricodec", 1.5, "sctms_b")
    known = [
        sample
        for volume in ("mri10yr_a", "sctms_b")
        for name, factor in (("x265-medium", 1.0), ("jpeg2000", 2.0), ("unlisted", 1.0))
        for sample in rd_points(curve(name, factor, volume))
    ]
    rows = aggregate.bd_rows(rd_points(points), known, ["mricodec"], lossy_tables.REFERENCES)
    x265, jpeg2000 = (row for row in rows if row.volume == "mri10yr_a")
    assert x265.result is not None
    assert jpeg2000.result is not None
    assert x265.result.low == pytest.approx(20 + 4 * math.log2(0.05 / 0.02), abs=0.05)
    assert x265.result.high == pytest.approx(20 + 4 * math.log2(0.8 / 0.02), abs=0.05)
    assert jpeg2000.result.low == pytest.approx(max(25, x265.result.low))
    text = bench("run").summary(points, known)
    assert "| against | near-isotropic (1) | thick slices (1) | mean | volumes | worst" in text
    # Two volumes have no interval, and few points are marked everywhere.
    assert "| mricodec | x265-medium | -50.0* | +50.0* | +0.0* | 2 | sctms_b (+50.0*) |" in text
    assert "| mricodec | jpeg2000 | -75.0* | -25.0* | -50.0* | 2 | sctms_b (-25.0*) |" in text
    assert "* fewer than 8 points" in text
    assert "unlisted" not in text
    row = "| mri10yr_a | near-isotropic | 25.3 to 41.3 (4) | -50.0* | -75.0* | -75.0* | -75.0 at"
    assert row in text
    assert "More bits than jpeg2000 somewhere between 28 and 52 dB: nowhere" in text


def test_volumes_that_need_more_bits_than_jpeg2000_are_named(bench: Bench) -> None:
    text = bench("run").summary(curve("mricodec", 2.1) + curve("jpeg2000", 2.0))
    assert "+5.0 at" in text
    assert "28 and 52 dB: mri10yr_a" in text


def test_classes_are_those_of_the_names_and_else_of_the_geometry(bench: Bench) -> None:
    names = {
        "prostatex_0218_DWI4D": "4-D",
        "openms_p": "near-isotropic",
        "a": "4-D",
        "b": "thick slices",
    }
    classes = bench("lossy_tables").classes(
        point("mricodec", 0, 1, 30, name, group=group) for name, group in names.items()
    )
    assert list(classes.values()) == ["body", "thick slices", "diffusion", "thick slices"]


def test_the_default_quality_is_compared_at_its_psnr(bench: Bench) -> None:
    points = [
        point("mricodec", 50, 0.5, 40, "a", rmse_noise=0.6, group="x"),
        point("mricodec", 50, 1.5, 30, "b", rmse_noise=0.8, group="y"),
        point("mricodec", 40, 0.2, 20, "a", rmse_noise=2, group="x"),
    ]
    known = rd_points(curve("x265-medium", 1.0, "a"))
    text = bench("lossy_tables").LossyTables.of(points, known).default_quality()
    assert text.splitlines()[2:] == [
        "| a | x | 0.500 | 40.00 | 0.60 | 0.640 |",
        "| b | y | 1.500 | 30.00 | 0.80 | - |",
        "| mean; of the others the mean ratio (volumes) |  | 1.000 | 35.00 | 0.70 | × 1.28 (1) |",
    ]


def test_lossless_table(bench: Bench) -> None:
    points = [
        point("mricodec-lossless", 0, rate, math.inf, volume)
        for volume, rate in (("a", 3.0), ("b", 5.0))
    ]
    known = [
        RdPoint(volume, "full", "jxl-e7", rate, math.inf)
        for volume, rate in (("a", 4.0), ("b", 4.0), ("c", 1.0))
    ]
    known += [
        RdPoint("a", "full", "part", 1.0, math.inf),
        RdPoint("a", "slab8", "jxl-e7", 9, math.inf),
    ]
    text = bench("run").summary(points, known)
    assert "| mricodec-lossless | 4.000 | +0.0 % | 3.000 | 5.000 |" in text
    assert "part" not in text
    # Curves that end without loss are no lossless codecs.
    exact = [point("mricodec", 80, 6, math.inf, "a"), point("jpeg2000", 80, 6, math.inf, "a")]
    assert bench("run").summary(exact) == "no points"


def test_near_lossless_table_names_where_a_baseline_is_smaller(bench: Bench) -> None:
    points = [point("mricodec-near", 2.0, 1.0, 60, volume, exact=0) for volume in ("a", "b")]
    known = [
        RdPoint(volume, "full", codec_name, rate, 59, param=2)
        for volume in ("a", "b")
        for codec_name, rate in (("quant+jxl-e7", 1.25), ("sz3", 1.5 if volume == "a" else 0.9))
    ]
    text = bench("lossless_tables").near_lossless(points, known, "mricodec-near")
    assert "| 2 | 2 | 1.000 | 60.00 | 1.250 | 59.00 | 20.0 % | b (sz3) |" in text


def test_the_tables_of_the_readme_are_those_of_the_committed_results(bench: Bench) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    sections = dict(bench("tables").sections())
    assert len(sections) == 11
    for title, content in sections.items():
        assert "|" in content, title
        if title.startswith("Lossy, every test volume"):
            continue
        tables = [part for part in content.split("\n\n") if part.startswith("|")]
        if title == "Lossless, bits per voxel":  # The README leaves out the columns of volumes.
            tables = [" | ".join(line.split(" | ")[:3]) for line in content.splitlines()]
        if title == "Lossy, validation volumes":
            tables = tables[:1]
        for table in tables:
            assert table in text, title


def test_the_main_table_of_the_readme_has_the_figures_of_the_committed_results(
    bench: Bench,
) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text().replace("−", "-").replace("*", "")
    tables = bench("tables")
    points, known = tables.committed("results"), tables.peers(tables.LOSSY_PEERS)
    rows = bench("lossy_tables").LossyTables(points, known, ["mricodec"]).rows
    for label, reference in (
        ("JPEG 2000", "jpeg2000"),
        ("x265 medium", "x265-medium"),
        ("x265 veryslow", "x265-veryslow"),
        ("SVT-AV1 preset 5", "svtav1-p5"),
        ("VVenC medium", "vvenc-medium"),
    ):
        mean = aggregate.class_means(rows, ("mricodec", reference), [], {})[-1]
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
        assert f"| {mean.value:+.1f} % [" in line


def write_scan(path: Path, voxels: NDArray[Any]) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(voxels.T, np.eye(4)).to_filename(path)
    return path


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Laid out like the corpus: scans in folders by split."""
    for split in ("test", "validation"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        write_scan(tmp_path / "corpus" / split / f"{split}_x.nii", np.eye(9, dtype=np.uint8)[None])
    (tmp_path / "corpus" / "MANIFEST.csv").write_text("file\n")
    return tmp_path / "corpus"


def test_a_data_folder_a_scan_and_an_empty_folder(
    bench: Bench, data_folder: Path, tmp_path: Path
) -> None:
    scans = bench("volumes").scans
    first = data_folder / "test" / "test_x.nii"
    assert scans([data_folder]) == scans([data_folder / "test"]) == scans([first]) == [first]
    assert [path.name for path in scans([data_folder], "validation")] == ["validation_x.nii"]
    (tmp_path / "empty").mkdir()
    for name in ("run", "exact", "ablation", "targets", "dicom"):
        arguments = [str(tmp_path / "empty")]
        if name in ("run", "exact", "ablation"):
            arguments += ["-o", str(tmp_path / "results.jsonl")]
        result = CliRunner().invoke(bench(name).main, arguments)
        assert result.exit_code in (1, 2), name
        (line,) = (text for text in result.stderr.splitlines() if text.startswith("Error: "))
        assert "expected" in line, name
    assert not (tmp_path / "results.jsonl").exists()


def test_volumes_are_checked_by_their_digests(
    bench: Bench, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = bench("volumes")
    assert len({volume.file for volume in volumes.listed()}) == len(volumes.listed()) > 20
    assert all(len(volume.sha256) == 64 for volume in volumes.listed())
    good, lacking = data_folder / "test" / "test_x.nii", "test/other_y.nii"
    rows = [f"test/{good.name},a,b,c,{volumes.digest(good)}", f"{lacking},host/repo,abc,d,0"]
    (data_folder / "dicom" / "s").mkdir(parents=True)
    (data_folder / "dicom" / "s" / "1.dcm").write_bytes(b"x")
    rows.append("dicom/s,a,b,c," + volumes.digest(data_folder / "dicom" / "s"))
    (tmp_path / "list.csv").write_text("\n".join(["file,repository,commit,licence,sha256", *rows]))
    monkeypatch.setattr(volumes, "LIST", tmp_path / "list.csv")
    result = CliRunner().invoke(volumes.main, [str(data_folder)])
    assert result.exit_code == 1
    assert "test/test_x.nii: as listed" in result.output
    assert "dicom/s: as listed" in result.output
    assert f"{lacking}: missing; from host/repo at abc" in result.output
    assert not volumes.differences([good])
    good.write_bytes(b"changed")
    assert "SHA-256 differs" in volumes.differences([good])[0]
    assert (
        "test/test_x.nii: SHA-256 differs"
        in CliRunner().invoke(volumes.main, [str(data_folder)]).output
    )


def test_slabs_are_the_central_slices_with_the_range_of_the_whole(
    bench: Bench, tmp_path: Path
) -> None:
    voxels = np.arange(2 * 45 * 8 * 9, dtype=np.int16).reshape(2, 45, 8, 9)
    whole, part = bench("run").sources(write_scan(tmp_path / "scan.nii.gz", voxels))
    assert (whole.roi, part.roi) == ("full", "slab40")
    assert np.array_equal(whole.voxels, voxels[0])
    assert np.array_equal(part.voxels, voxels[0, 2:42])
    assert part.limits == whole.limits == (0, 45 * 72 - 1)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder with a small scan and a file that is none."""
    k, j, i = np.indices((3, 24, 32))
    voxels = (
        400
        + 300 * np.sin(j / 5) * np.cos(i / 7 + k / 5)
        + np.random.default_rng(0).normal(0, 5, k.shape)
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.nii").write_bytes(b"no scan")
    return write_scan(tmp_path / "data" / "sctms_x.nii", np.rint(voxels).astype(np.int16))


def test_one_command_measures_and_resumes(
    bench: Bench, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    low, high = 25.0, 40.0
    csv = tmp_path / "peers.csv"
    rows = [
        f"sctms_x,full,3x24x32,x265-medium,{r},{p}"
        for r, p in zip(RATES, np.linspace(low, high, 8), strict=True)
    ]
    rows += ["sctms_x,full,3x24x33,vvenc-medium,1,30", "elsewhere,full,1x1x1,x265-medium,1,30"]
    csv.write_text("\n".join(["volume,roi,shape,codec,bpv,psnr", *rows]))
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("volume,codec,bpv\na,b,1\n")
    output = tmp_path / "results.jsonl"
    arguments = [
        str(scan.parent),
        "-o",
        str(output),
        "--peers",
        str(csv),
        "--peers",
        str(wrong),
        "--peers",
        "none.csv",
    ]
    run = CliRunner().invoke(bench("run").main, arguments)
    assert run.exit_code == 1
    faults = ("broken.nii", "another volume", "wrong.csv: expected the columns", "none.csv")
    for named in faults:
        assert (
            sum(named in line for line in run.stderr.splitlines() if line.startswith("left out: "))
            == 1
        ), named
    assert "not run: x265: ffmpeg is not installed" in run.stderr
    assert "| mricodec | x265-medium |" in run.stdout
    assert "| mricodec-lossless |" in run.stdout
    assert "| sctms_x | thick slices |" in run.stdout
    content = output.read_bytes()
    points = bench("run").PointFile(output, dict).points
    lowest, highest = (np.interp(rate, RATES, np.linspace(low, high, 8)) for rate in (0.05, 0.8))
    assert sum(lowest <= p.psnr <= highest for p in points if p.codec == "mricodec") >= 8
    again = CliRunner().invoke(bench("run").main, arguments)
    assert again.stdout == run.stdout
    assert output.read_bytes() == content


class Shifted(Codec):
    """Stands for a video codec: all voxels, coarser with the parameter."""

    name = "x265-medium"
    version = "1"

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return [float(2**n) for n in range(7)]

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        path.write_bytes(bytes(int(64 / parameter) * source.voxels.size // 200))

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        step = 64 * source.voxels.size / 200 / path.stat().st_size
        return np.asarray(np.rint(source.voxels / step) * step, source.voxels.dtype)


def test_videos_run_where_the_csv_has_no_points(bench: Bench, scan: Path, tmp_path: Path) -> None:
    runs = bench("run").Bench([scan], tmp_path / "results.jsonl", [])
    ((_, part),) = runs.sources()
    assert runs.dense(part) == []
    runs.video_curves(part, [Shifted()])
    assert len(runs.points) == 7
    ((low, high), wanted), *_ = runs.dense(part)
    assert wanted == 13
    assert min(p.psnr for p in runs.points) <= low < high <= max(p.psnr for p in runs.points)
    runs.known = [RdPoint(part.name, part.roi, "x265-medium", 1, 30)]
    runs.video_curves(part, [Broken()])
    assert not runs.failures
    runs.known = []
    runs.video_curves(part, [Broken()])
    assert runs.failures == ["sctms_x with x265-medium: ffmpeg failed"]


class Broken(Shifted):
    version = "2"

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        raise RuntimeError("ffmpeg failed")


def test_parts_of_the_model_can_be_switched_off(bench: Bench) -> None:
    ablation = bench("ablation")
    source = Source.bare(DATA / "isotropic_t1w.nii.gz")
    sizes = []  # logarithms, where the error is 1
    for network in (ablation.SlicesAlone, ablation.ContextCodec, None):
        model = "default" if network is None else ablation.within_slices(network)
        points = []
        for quality in (70, 60):
            stream = codec.Encoder(quality=quality, model=model).encode(source.voxels)
            assert stream is not None
            decoded = codec.Decoder(model=None if network is None else model).decode(stream).array
            fidelity = codec.info(stream).fidelity  # of what the encoder saw
            assert fidelity is not None
            assert fidelity.rmse == pytest.approx(metrics.rmse(source.voxels, decoded), rel=2e-3)
            points.append((math.log(fidelity.rmse), math.log(len(stream))))
        assert points[0][0] < 0 < points[1][0]
        sizes.append(np.interp(0, *zip(*points, strict=True)))
    assert sizes[2] < sizes[1] < sizes[0]


def test_slices_alone_do_not_know_of_one_another(bench: Bench) -> None:
    ablation = bench("ablation")
    x = Source.bare(DATA / "isotropic_t1w.nii.gz").voxels[:5].astype(np.int32)[None]
    other = x.copy()
    other[:, 4] = 0
    params = LossyParams(20.0, int(x.max()), (1.0, 1.0, 1.0))
    for network, alone in ((ablation.SlicesAlone, True), (ablation.ContextCodec, False)):
        model = ablation.within_slices(network)
        # Signs are hidden in all bands of a pass together.
        model.sign_weights = np.zeros_like(model.sign_weights)
        first, second = (
            model.encode(codes, 20.0, UncodedSymbols(), params)[:, :4] for codes in (x, other)
        )
        assert np.array_equal(first, second) == alone


def test_the_ablation_compares_each_step_with_the_one_before(bench: Bench) -> None:
    points = [
        p for factor, name in ((2.0, "a"), (1.0, "b"), (0.5, "c")) for p in curve(name, factor)
    ]
    known = rd_points(curve("x265-medium", 1.0))
    text = bench("lossy_tables").ablation(points, known, ["a", "b", "c"])
    for row in (
        "| a | x265-medium | +100.0* |",
        "| b | a | -50.0* |",
        "| c | b | -50.0* |",
        "| c | x265-medium | -50.0* |",
    ):
        assert row in text


def test_the_encoders_of_the_c_core_and_of_torch_are_compared(bench: Bench, scan: Path) -> None:
    result = CliRunner().invoke(bench("native.parity").main, [str(scan.parent)])
    assert result.exit_code == 1 and "left out" in result.stderr  # One of the scans is broken.
    *_, row, _, summary = result.stdout.splitlines()
    assert row.startswith("| sctms_x |")
    figures = [float(cell) for cell in row.strip("|").split("|")[1:]]
    assert len(figures) == 6 and max(map(abs, figures)) < 5
    assert summary.startswith("mean ")


def test_speed_of_a_small_volume(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = bench("speed")
    monkeypatch.setattr(speed, "SHAPE", (16, 24, 40))
    output = tmp_path / "speed.json"
    for arguments in (["phases", "--only=volume", f"--against={speed.PACKAGE}"], ["commands"]):
        options = ["--runs=1", "--backend=scalar", "-o", str(output), "--only"]
        run = CliRunner().invoke(speed.main, [*options, *arguments])
        assert run.exit_code == 0, run.output
    results = {name: part["rows"] for name, part in json.loads(output.read_text()).items()}
    assert list(results) == ["phases", "volume", "commands"]
    for row in results["phases"]:
        assert row["all"] == pytest.approx(sum(row[phase] for phase in speed.phases.PHASES), 0.01)
        assert min(row[phase] for phase in ("predict", "code", "synthesise")) > 0
    one, _, before, *peers = results["volume"]
    assert one["bpv"] == before["bpv"] and len(peers) == 2
    assert all(row["encode_s"] > 0 and row["decode_mb_per_s"] > 0 for row in results["volume"])
    assert len(results["commands"]) == 4
    assert min(row["wall_s"] for row in results["commands"]) > 0


def test_the_volume_of_the_speed_is_cut_and_repeated(bench: Bench) -> None:
    """The shortest axis becomes k."""
    rows = np.indices((300, 256))[0] - 22
    voxels = np.stack([rows, rows + 1000], -1)
    fitted = bench("speed").fitted(voxels)
    assert fitted.shape == (192, 256, 256)
    assert np.array_equal(fitted[:2] % 1000, 2 * [np.indices((256, 256))[0]])
    assert (fitted[:6, 100, 0] // 1000).tolist() == [0, 1, 1, 0, 0, 1]
    assert set(np.unique(fitted[3] - fitted[0])) == {-1, 0, 1}


def test_the_tables_of_speed_are_those_of_the_committed_results(bench: Bench) -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks" / "speed.json").read_text(encoding="utf-8"))
    assert set(results) == set(bench("speed").PARTS)
    for part in results.values():
        assert bench("speed").table(part["rows"]) in readme
