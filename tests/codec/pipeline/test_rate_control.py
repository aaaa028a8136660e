"""Rate control: a file has the PSNR or the size that was asked for, or is the nearest one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_model import FakeModel
from numpy.typing import NDArray
from paths import SAMPLE

from mricodec import codec
from mricodec.cli.main import cli
from mricodec.codec.pipeline import rate_control, target_search
from mricodec.codec.pipeline.rate_control import Aim, Extent, Search
from mricodec.codec.settings import Target
from mricodec.codec.voxels import metrics


class Recorder(FakeModel):
    """Records the voxels of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.coded = 0  # voxels

    def encode(
        self, x: NDArray[np.int32], step: float, coder: Any, params: Any
    ) -> NDArray[np.int32]:
        self.coded += x.size
        return super().encode(x, step, coder, params)


@pytest.fixture(scope="module")
def volume() -> NDArray[np.int16]:
    """64 slices, bright in the middle, noisy."""
    k, j, i = np.indices((64, 96, 96), dtype=np.float32)
    rng = np.random.default_rng(0)
    bright = 1 - ((k - 32) / 40) ** 2
    wave = bright * (900 + 400 * np.sin(j / 7) * np.cos(i / 9 + k / 5))
    return np.asarray(np.rint(wave + rng.normal(0, 12, k.shape)).clip(0), np.int16)


def measured(volume: NDArray[Any], stream: bytes, kind: str) -> float:
    if kind == "psnr":
        return metrics.psnr(volume, codec.Decoder(model=FakeModel()).decode(stream).array)
    return 8 * len(stream) / volume.size if kind == "bpv" else volume.nbytes / len(stream)


@pytest.mark.parametrize(
    ("kind", "value", "tolerance"),
    [
        ("psnr", 28.0, 0.1),
        ("psnr", 41.3, 0.1),
        ("psnr", 60.0, 0.1),
        ("bpv", 1.9, 0.038),
        ("bpv", 3.0, 0.06),
        ("ratio", 6.0, 0.12),
        ("ratio", 8.5, 0.17),
    ],
)
def test_the_file_is_what_was_asked_for(
    kind: str, value: float, tolerance: float, volume: NDArray[np.int16]
) -> None:
    model = Recorder()
    stream = codec.Encoder(model=model, **{kind: value}).encode(volume)
    assert stream is not None
    assert abs(measured(volume, stream, kind) - value) <= tolerance
    assert model.coded <= 5 * volume.size  # its rates are nothing like what is expected
    info = codec.info(stream)
    assert info.target == Target(kind, value)
    assert info.fidelity is not None
    assert codec.verify(stream) == info
    if kind == "psnr":
        assert abs(info.fidelity.psnr - value) <= tolerance


@pytest.mark.parametrize(
    ("kind", "value", "tolerance"), [("psnr", 38.0, 0.1), ("bpv", 0.3, 0.006), ("ratio", 20.0, 0.4)]
)
def test_the_default_model_takes_three_trials_at_most(
    kind: str, value: float, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    run = Search.run

    def counted(self: Search, *arguments: Any) -> tuple[float, float]:
        result = run(self, *arguments)
        trials.extend(self.points)
        return result

    monkeypatch.setattr(Search, "run", counted)
    stream = codec.Encoder(**{kind: value}).encode(SAMPLE)  # type: ignore[arg-type]
    assert stream is not None
    array = codec.decode(stream).array
    info = codec.info(stream)
    assert info.fidelity is not None
    size = len(stream)
    reached = {
        "psnr": info.fidelity.psnr,
        "bpv": 8 * size / array.size,
        "ratio": array.nbytes / size,
    }[kind]
    assert abs(reached - value) <= tolerance
    assert 1 <= len(trials) <= 3


def test_a_small_volume_too(volume: NDArray[np.int16]) -> None:
    small = volume[30:34]
    stream = codec.Encoder(model=FakeModel(), psnr=40).encode(small)
    assert stream is not None
    assert abs(measured(small, stream, "psnr") - 40) <= 0.1


@pytest.mark.parametrize(
    ("kind", "value"),
    [("psnr", 150.0), ("psnr", 0.5), ("bpv", 60.0), ("bpv", 1e-5), ("ratio", 1e5)],
)
def test_the_nearest_is_written_where_nothing_reaches_it(
    kind: str, value: float, volume: NDArray[np.int16]
) -> None:
    part = volume[20:40]
    encoder = codec.Encoder(model=FakeModel(), **{kind: value})
    with pytest.warns(
        codec.TargetMissed, match=r"asked for .*, the nearest found is .*: the quantiser goes no"
    ):
        stream = encoder.encode(part)
    assert stream is not None
    assert codec.Decoder(model=FakeModel()).decode(stream).array.shape == part.shape


def test_what_loss_cannot_represent_stays_lossless(volume: NDArray[np.int16]) -> None:
    labels = (volume > 700).astype(np.uint8)
    with pytest.warns(codec.LosslessFallback):
        stream = codec.Encoder(model=FakeModel(), psnr=30).encode(labels)
    assert stream is not None
    assert np.array_equal(codec.decode(stream).array, labels)


def test_large_streams_wait_on_disk(
    volume: NDArray[np.int16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_search, "MAX_IN_MEMORY", 1000)
    report = codec.Encoder(model=FakeModel(), psnr=40).encode_file(volume, tmp_path / "out.mrc")
    assert report.stream_bytes == (tmp_path / "out.mrc").stat().st_size
    assert report.target == Target("psnr", 40.0)
    assert report.missed is None
    assert [path.name for path in tmp_path.iterdir()] == ["out.mrc"]


def test_a_search_ends_on_curves_of_every_shape() -> None:
    curves = {
        "line": lambda x: 60 - 6 * x,
        "bend": lambda x: 60 - 6 * x + (3 * (x - 4) if x > 4 else 0),
        "exact below half a code": lambda x: 115.0 if x < 1 else 50 - 5 * x,
        "hollow": lambda x: 70 * 2 ** (-x / 3),
        "cliff": lambda x: 60 - 2 * x - 25 / (1 + math.exp(3 * (7 - x))),
    }
    for name, curve in curves.items():
        for goal in (20.0, 33.0, 41.0):
            tried: list[float] = []

            def measure(x: float, curve: Any = curve, tried: list[float] = tried) -> float:
                tried.append(x)
                return float(curve(x))

            octaves = np.linspace(-2, 12, 113)
            _, height = Search(goal, octaves, 70 - 5.5 * octaves).run(measure, 0.1, 9)
            assert abs(height - goal) <= 0.1, (name, goal, tried)
            assert len(tried) <= 8, (name, goal, tried)
            assert all(-2 <= x <= 12 for x in tried)


def test_between_two_points_the_search_goes_on_where_both_nearest_are_on_one_side() -> None:
    octaves = np.linspace(4, 12, 65)
    points = [(10.848, -3.098), (8.002, 1.696), (9.416, 0.797)]
    assert 9.6 < Search(-0.644, octaves, 9.0 - 0.9 * octaves, points).next() < 10.6


def test_what_is_expected_of_a_step() -> None:
    """For Laplacian coefficients the expectation is about what a quantiser of that step does.

    Larger values and steps give the same sizes.
    """
    rng = np.random.default_rng(0)
    y = rng.laplace(0, 20, 100_000).astype(np.float32)
    counts, twice = rate_control.magnitudes(y), rate_control.magnitudes(2 * y)
    assert counts.sum() == y.size
    extent = Extent(voxels=y.size, itemsize=2, peak=1000.0)
    psnr, bpv = (Aim(Target(kind, 1.0), extent) for kind in ("psnr", "bpv"))
    for octave in (1.0, 3.0, 5.0):
        quantised = np.rint(y / 2**octave) * 2**octave
        measured_psnr = 20 * math.log10(1000) - 10 * math.log10(
            float(np.square(y - quantised).mean())
        )
        assert abs(psnr.expected(octave, counts, 1.0) - measured_psnr) < 3
        assert psnr.expected(octave + 1, twice, 0.5) == pytest.approx(
            psnr.expected(octave, counts, 1.0)
        )
        assert bpv.expected(octave + 1, twice, 1.0) == pytest.approx(
            bpv.expected(octave, counts, 1.0), abs=1e-3
        )
        assert bpv.expected(octave + 1, counts, 1.0) < bpv.expected(octave, counts, 1.0) - 0.3


def test_units() -> None:
    extent = Extent(voxels=1000, itemsize=2, peak=100.0)
    trial = rate_control.Trial(nbytes=250, mse=1.0)
    assert Aim(Target("psnr", 40.0), extent).of(trial) == pytest.approx(40)
    assert 2 ** Aim(Target("bpv", 2.0), extent).of(trial) == pytest.approx(2)
    ratio = Aim(Target("ratio", 8.0), extent)
    assert ratio.value(ratio.of(trial)) == pytest.approx(8)
    assert ratio.height == pytest.approx(1)


def test_the_command(volume: NDArray[np.int16], tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    scan = tmp_path / "scan.nii"
    nibabel.Nifti1Image(volume[:24].T, np.eye(4)).to_filename(scan)
    out = tmp_path / "out.mrc"

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, [*arguments])

    done = run(
        "encode",
        str(scan),
        "-o",
        str(out),
        "--ratio",
        "9",
        "--model",
        "factorized",
        "--effort",
        "high",
    )
    assert done.exit_code == 0, done.output
    assert abs(volume[:24].nbytes / out.stat().st_size / 9 - 1) <= 0.02
    assert "asked for" in run("info", str(out)).output
    assert "ratio 9" in run("info", str(out)).output
    assert '"kind": "ratio"' in run("info", str(out), "--json").output
    both = run("encode", str(scan), "-o", str(out), "-f", "--psnr", "40", "--quality", "50")
    assert both.exit_code == 2
    assert "quality or psnr" in both.stderr
    missed = run(
        "encode", str(scan), "-o", str(out), "-f", "--psnr", "180", "--model", "factorized"
    )
    assert missed.exit_code == 0
    assert "asked for PSNR 180 dB, the nearest found is" in missed.stderr
