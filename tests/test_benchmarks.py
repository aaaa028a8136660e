"""The benchmarks: peers lose nothing, curves are dense where they count, tables are right."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec import codec
from mricodec.codec.rate_distortion import QUALITIES, Point, Source

pytest.importorskip("imagecodecs", reason="the peers need the extra bench")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of benchmarks/, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def point(
    codec_name: str, param: float, bpv: float, psnr: float, volume: str = "mri10yr_a", roi: str = "full"
) -> Point:
    return Point(
        volume=volume,
        roi=roi,
        shape="1x1x1",
        codec=codec_name,
        param=param,
        nvox=1,
        nbytes=1,
        bpv=bpv,
        psnr=psnr,
        ssim=math.nan,
        maxerr=0,
        exact=int(psnr == math.inf),
        enc_wall=0,
        enc_cpu=0,
        dec_wall=0,
        dec_cpu=0,
        rmse=0,
        peak=1,
        version="",
        voxels="",
        file="",
        file_sha256="",
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_lossless_peers_lose_nothing(dtype: type, bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels: NDArray[Any] = rng.integers(3, 250, (5, 33, 40)).cumsum(2) % 240
    source = Source.of_array("volume", codec.Volume.from_array(voxels.astype(dtype)))
    for peer in bench("peers").lossless():
        path = tmp_path / peer.name
        peer.encode(source, 0.0, path)
        assert np.array_equal(peer.decode(source, path), source.voxels), peer.name


def test_lossless_peers_refuse_what_they_would_round(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    source = Source.of_array("volume", codec.Volume.from_array(np.linspace(0, 1, 640).reshape(1, 20, 32)))
    for peer in bench("peers").lossless():
        with pytest.raises(ValueError, match="integers"):
            peer.encode(source, 0.0, tmp_path / "file")


def test_qualities_become_dense_where_it_counts(bench: Callable[[str], ModuleType]) -> None:
    run = bench("run")
    points: list[Point] = []
    while (quality := run.next_quality(points)) is not None:
        points.append(point("mricodec", quality, 0.002 * 2 ** (quality / 9), 20 + quality / 3))
    rates = [p.bpv for p in points]
    assert len(set(p.param for p in points)) == len(points) <= run.MOST_POINTS
    low, high = run.DENSE_RATES
    assert sum(low <= rate <= high for rate in rates) == run.DENSE_POINTS
    assert set(QUALITIES) <= {p.param for p in points}


def test_a_curve_outside_the_rates_ends(bench: Callable[[str], ModuleType]) -> None:
    run = bench("run")
    points: list[Point] = []
    while (quality := run.next_quality(points)) is not None:
        points.append(point("mricodec", quality, 2 + quality, 20 + quality))
    assert len(points) == 8


def test_bd_rates_use_the_range_of_x265(bench: Callable[[str], ModuleType]) -> None:
    tables = bench("tables")
    rates = [0.02 * 2**n for n in range(8)]
    psnrs = [20.0 + 4 * n for n in range(8)]
    ours = [
        point("mricodec", n, rate / 2, psnr) for n, (rate, psnr) in enumerate(zip(rates, psnrs, strict=True))
    ]
    rivals = [
        tables.Sample("mri10yr_a", "full", name, factor * rate, psnr)
        for name, factor in (("x265-medium", 1.0), ("jpeg2000", 2.0), ("unlisted", 1.0))
        for rate, psnr in zip(rates, psnrs, strict=True)
    ]
    rivals += [tables.Sample("other", "full", "x265-medium", 1.0, 30.0)]
    x265, jpeg2000 = tables.bd_rates(tables.of_points(ours), rivals)
    assert (x265.codec, x265.reference) == ("mricodec", "x265-medium")
    assert x265.result.percent == pytest.approx(-50)
    assert x265.result.low == pytest.approx(20 + 4 * math.log2(0.05 / 0.02), abs=0.05)
    assert x265.result.high == pytest.approx(20 + 4 * math.log2(0.8 / 0.02), abs=0.05)
    assert jpeg2000.result.percent == pytest.approx(-75)
    assert jpeg2000.result.low == pytest.approx(max(25, x265.result.low))
    text = tables.summary(ours, rivals)
    assert "| mricodec | x265-medium | -50.0 | - | - | - | - | -50.0 | 1 |" in text


def test_lossless_table(bench: Callable[[str], ModuleType]) -> None:
    tables = bench("tables")
    ours = [
        point("mricodec-lossless", 0, rate, math.inf, volume) for volume, rate in (("a", 3.0), ("b", 5.0))
    ]
    rivals = [
        tables.Sample(volume, "full", "jxl-e7", rate, math.inf) for volume, rate in (("a", 4.0), ("b", 4.0))
    ]
    rivals += [
        tables.Sample("a", "full", "part", 1.0, math.inf),
        tables.Sample("a", "slab8", "jxl-e7", 9, math.inf),
    ]
    text = tables.summary(ours, rivals)
    assert "| mricodec-lossless | 4.000 | +0.0 % | 3.000 | 5.000 |" in text
    assert "part" not in text


def test_a_wrong_csv_is_named(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    tables = bench("tables")
    path = tmp_path / "peers.csv"
    path.write_text("volume,codec,bpv\na,b,1\n")
    with pytest.raises(ValueError, match=r"peers\.csv.*roi, psnr"):
        tables.read_csv(path)
    path.write_text("volume,roi,codec,bpv,psnr\na,full,b,one,2\n")
    with pytest.raises(ValueError, match=r"peers\.csv, line 2"):
        tables.read_csv(path)


def test_result_files_survive_an_interruption(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    run = bench("run")
    path = tmp_path / "results.jsonl"
    results = run.ResultFile(path)
    results.add(point("a", 1, 0.5, 30))
    results.add(point("a", 2, 0.7, math.inf))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    (kept,) = run.ResultFile(path).points
    assert kept.param == 1
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:2])
    assert list(json.loads(content.splitlines()[0])) == ["environment"]
    path.write_text('{"else": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        run.ResultFile(path)


def test_slabs_are_the_central_slices_with_the_range_of_the_whole(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    voxels = np.arange(2 * 45 * 8 * 9, dtype=np.int16).reshape(2, 45, 8, 9)
    nibabel.Nifti1Image(voxels.T, np.eye(4)).to_filename(tmp_path / "scan.nii.gz")
    whole, part = bench("run").sources(tmp_path / "scan.nii.gz")
    assert (whole.roi, part.roi) == ("full", "slab40")
    assert np.array_equal(whole.voxels, voxels[0])
    assert np.array_equal(part.voxels, voxels[0, 2:42])
    assert part.limits == whole.limits == (0, 45 * 72 - 1)
