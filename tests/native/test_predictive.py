"""The predictive coder of the C core: exact, the same bytes everywhere, and no bytes harm it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import ROOT

from mricodec import codec
from mricodec.codec.native import compiler, functions, library, predictive, sources

Samples = NDArray[np.int32]
# Slices, rows and columns: one voxel, one row, one column, few slices, and odd sizes.
SHAPES = [
    (1, 1, 1),
    (1, 1, 70),
    (1, 70, 1),
    (40, 1, 1),
    (1, 2, 3),
    (2, 17, 33),
    (3, 31, 40),
    (5, 64, 65),
]


@pytest.fixture
def every_backend() -> Iterator[list[str]]:
    before = library.backend()
    yield library.backends()
    library.use_backend(before)


def scan(shape: tuple[int, int, int], peak: int = 1000, seed: int = 0) -> Samples:
    """Smooth shapes that change slowly from slice to slice, noise, and a dark background."""
    k, j, i = np.indices(shape)
    wave = 500 + 300 * np.sin(j / 7 + k / 11) * np.cos(i / 9) + 120 * (j > 20) * (i > 14)
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    samples = np.clip((wave * (i + j > 9) + noise) / 1000, 0, 1)
    return np.rint(samples * peak).astype(np.int32)


def same_everywhere(samples: Samples, effort: str, backends: list[str]) -> bytes:
    """The bytes of every backend, each decoded by another one."""
    data = set()
    for name in backends:
        library.use_backend(name)
        data.add(predictive.encode(samples, effort))
    assert len(data) == 1
    run = data.pop()
    shape = samples.shape
    assert len(shape) == 3
    for name in backends:
        library.use_backend(name)
        assert np.array_equal(predictive.decode(run, shape), samples)
    return run


@pytest.mark.parametrize("effort", predictive.EFFORTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_on_every_backend(
    shape: tuple[int, int, int], effort: str, every_backend: list[str]
) -> None:
    same_everywhere(scan(shape), effort, every_backend)


@pytest.mark.parametrize("effort", predictive.EFFORTS)
@pytest.mark.parametrize("bits", range(25))
def test_every_span(bits: int, effort: str, every_backend: list[str]) -> None:
    """Smooth samples, noise of the whole range, and two values that alternate at random."""
    peak = max((1 << bits) - 1, 1)
    rng = np.random.default_rng(bits)
    noise = rng.integers(0, peak, (2, 12, 19), endpoint=True).astype(np.int32)
    extremes = (rng.integers(0, 2, (2, 12, 19)) * peak).astype(np.int32)
    for samples in (scan((3, 24, 30), peak), noise, extremes):
        same_everywhere(samples, effort, every_backend)


@pytest.mark.parametrize("low", [-(1 << 31), -1, 0, (1 << 31) - 500])
def test_the_smallest_sample(low: int) -> None:
    samples = (scan((2, 9, 11), 499).astype(np.int64) + low).astype(np.int32)
    assert np.array_equal(predictive.decode(predictive.encode(samples), (2, 9, 11)), samples)


def test_a_constant_block_has_a_few_bytes() -> None:
    samples = np.full((3, 40, 50), -77, np.int32)
    data = predictive.encode(samples)
    assert len(data) <= 4
    assert np.array_equal(predictive.decode(data, (3, 40, 50)), samples)
    with pytest.raises(codec.FormatError):
        predictive.decode(data + b"\0", (3, 40, 50))


def test_samples_too_far_apart_are_refused() -> None:
    samples = np.array([[[0, 1 << 24]]], np.int32)
    with pytest.raises(ValueError, match="less than 2"):
        predictive.encode(samples)
    with pytest.raises(ValueError, match="an effort of fast, default"):
        predictive.encode(samples, "other")
    with pytest.raises(ValueError, match="a block of 1 to"):
        predictive.decode(b"", (0, 4, 4))


def test_noise_hardly_expands() -> None:
    """Even noise of 16 bits, which the distribution does not expect, takes at most 2 % more."""
    noise = np.random.default_rng(1).integers(0, 1 << 16, (4, 128, 128)).astype(np.int32)
    assert len(predictive.encode(noise)) <= 1.02 * 2 * noise.size


def test_filters_pay() -> None:
    """Effort default is smaller than effort fast, and near the entropy of the noise."""
    samples = scan((8, 96, 96))
    fast, default = (len(predictive.encode(samples, effort)) for effort in ("fast", "default"))
    assert default < 0.99 * fast
    assert 8 * default / samples.size < 1.1 * np.log2(6 * np.sqrt(2 * np.pi * np.e))


def test_the_same_bytes_without_optimisation(tmp_path: Path) -> None:
    try:
        suffix = compiler.find().suffix
    except compiler.CompilerError as error:
        pytest.skip(str(error))
    # An installed package has no C sources.
    script = ROOT / "codec" / "native" / "compiler.py"
    command = [sys.executable, str(script), "-o", str(tmp_path), "--", "-O0"]
    subprocess.run(command, check=True, capture_output=True)
    plain = ctypes.CDLL(str(tmp_path / f"{sources.LIBRARY}{suffix}"))
    library.declare(plain, list(library.PROTOTYPES))
    samples = scan((4, 40, 47))
    for name in library.runnable(plain):
        assert plain.mrc_use_backend(name.encode()) == library.OK
        for effort, number in predictive.EFFORTS.items():
            assert encoded_by(plain, samples, number) == predictive.encode(samples, effort)


def encoded_by(core: ctypes.CDLL, samples: Samples, effort: int) -> bytes:
    """Bytes of samples by another library."""
    block = predictive.Block(*samples.shape, None, 0, None)
    arena = np.empty(core.mrc_predictive_bytes(ctypes.byref(block), 1), np.uint8)
    block.arena, block.arena_size = arena.ctypes.data, arena.nbytes
    out, size = np.empty(8 * samples.size + 4096, np.uint8), ctypes.c_size_t()
    status = core.mrc_predictive_encode(
        ctypes.byref(block), effort, samples.ctypes.data, samples.size, out.ctypes.data,
        out.nbytes, ctypes.byref(size),
    )  # fmt: skip
    assert status == library.OK
    return out[: size.value].tobytes()


@pytest.mark.parametrize("effort", predictive.EFFORTS)
def test_damaged_bytes(effort: str, every_backend: list[str]) -> None:
    """They are refused or decode to the same samples everywhere."""
    samples = scan((2, 24, 31))
    data = predictive.encode(samples, effort)
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        outcomes = set()
        for name in every_backend:
            library.use_backend(name)
            try:
                outcomes.add(predictive.decode(bytes(damaged), (2, 24, 31)).tobytes())
            except codec.FormatError as error:
                outcomes.add(str(error).encode())
                refused += 1
        assert len(outcomes) == 1
    assert refused > 100


@pytest.mark.parametrize("effort", predictive.EFFORTS)
def test_bytes_cut_short_or_continued(effort: str) -> None:
    data = predictive.encode(scan((2, 24, 31)), effort)
    for size in [*range(12), *range(12, len(data), 97)]:
        with pytest.raises(codec.FormatError):
            predictive.decode(data[:size], (2, 24, 31))
    for more in (b"\0", b"\0" * 8, b"\xff" * 400):
        with pytest.raises(codec.FormatError):
            predictive.decode(data + more, (2, 24, 31))


def test_bytes_of_another_shape() -> None:
    data = predictive.encode(scan((2, 24, 31)))
    for shape in ((2, 24, 30), (1, 24, 31), (2, 200, 310)):
        with pytest.raises(codec.FormatError):
            predictive.decode(data, shape)


def test_random_bytes(every_backend: list[str]) -> None:
    rng = np.random.default_rng(6)
    for size in range(0, 400, 3):
        for effort in predictive.EFFORTS.values():
            data = bytes((effort | 16 * (size % 5),)) + rng.bytes(size)
            outcomes = set()
            for name in every_backend:
                library.use_backend(name)
                try:
                    outcomes.add(predictive.decode(data, (1, 12, 13)).tobytes())
                except codec.FormatError as error:
                    outcomes.add(str(error).encode())
            assert len(outcomes) == 1


def test_cancelled_work_ends() -> None:
    samples = scan((2, 24, 31))
    data = predictive.encode(samples)
    flag = np.zeros(1, np.int32)
    assert predictive.encode(samples, cancel=flag) == data
    flag[0] = 1
    with pytest.raises(functions.Cancelled):
        predictive.encode(samples, cancel=flag)
    with pytest.raises(functions.Cancelled):
        predictive.decode(data, (2, 24, 31), cancel=flag)


@pytest.mark.parametrize("effort", predictive.EFFORTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_skipped_samples_are_not_coded(
    shape: tuple[int, int, int], effort: str, every_backend: list[str]
) -> None:
    samples = scan(shape)
    rng = np.random.default_rng(1)
    skipped = ((samples < 100) | (rng.random(shape) < 0.1)).astype(np.uint8)
    data = set()
    for name in every_backend:
        library.use_backend(name)
        other = np.where(skipped, rng.integers(-(1 << 31), 1 << 31, shape), samples)
        data.add(predictive.encode(other.astype(np.int32), effort, skipped=skipped))
        for run in data:
            decoded = predictive.decode(run, shape, skipped=skipped)
            assert np.array_equal(decoded[skipped == 0], samples[skipped == 0])
    assert len(data) == 1


def test_a_skipped_background_costs_nothing() -> None:
    samples = scan((6, 60, 70))
    inside = np.zeros(samples.shape, bool)
    inside[:, 20:40, 20:50] = True
    part = np.ascontiguousarray(samples[:, 20:40, 20:50])
    size = len(predictive.encode(samples, skipped=(~inside).astype(np.uint8)))
    assert size < 1.05 * len(predictive.encode(part)) + 100
    everything = np.ones(samples.shape, np.uint8)
    assert len(predictive.encode(samples, skipped=everything)) <= 16


def test_skipped_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="skipped"):
        predictive.encode(scan((2, 9, 9)), skipped=np.zeros((2, 9, 8), np.uint8))
