"""Label maps of the C core: what is coded comes back, by every backend, and damage is named."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.codec.native import functions, label_map, library

Samples = NDArray[np.int32]


@pytest.fixture(params=library.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that this CPU runs."""
    if request.param not in library.backends():
        pytest.skip(f"no {request.param} here")
    library.use_backend(request.param)
    yield request.param
    library.use_backend(None)


def blobs(shape: tuple[int, int, int], labels: int, seed: int = 0) -> Samples:
    """Regions around random centres, in a background of 0."""
    rng = np.random.default_rng(seed)
    k, j, i = np.indices(shape)
    out = np.zeros(shape, np.int32)
    for label in range(1, labels):
        centre = rng.random(3) * shape
        radius = rng.random() * min(shape[1:]) / 3 + 1
        distance = (k - centre[0]) ** 2 + (j - centre[1]) ** 2 + (i - centre[2]) ** 2
        out[distance < radius**2] = label
    return out


def check_round_trip(samples: Samples, peak: int) -> bytes:
    run = label_map.encode(samples, peak)
    decoded = label_map.decode(run, samples.shape, peak)  # type: ignore[arg-type]
    assert decoded.dtype == np.int32 and np.array_equal(decoded, samples)
    return run


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 1, 9), (1, 9, 1), (9, 1, 1), (2, 3, 5), (3, 40, 41), (1, 2, 500)],
)
@pytest.mark.parametrize("labels", [1, 2, 5, 300])
def test_round_trip(shape: tuple[int, int, int], labels: int, backend: str) -> None:
    check_round_trip(blobs(shape, labels), labels)
    rng = np.random.default_rng(labels)
    check_round_trip(rng.integers(0, labels, shape).astype(np.int32), labels - 1)


def test_backends_write_the_same_bytes() -> None:
    samples = blobs((6, 50, 60), 40)
    runs = set()
    for name in library.backends():
        library.use_backend(name)
        runs.add(label_map.encode(samples, 40))
    library.use_backend(None)
    assert len(runs) == 1


@pytest.mark.parametrize("values", [[0], [65535], [0, 65535], [3, 4, 70, 40000]])
def test_palettes(values: list[int]) -> None:
    rng = np.random.default_rng(1)
    samples = rng.choice(values, (2, 20, 30)).astype(np.int32)
    check_round_trip(samples, label_map.MAX_PEAK)


def test_every_value_once() -> None:
    samples = np.random.default_rng(2).permutation(1 << 16).astype(np.int32).reshape(4, 128, 128)
    run = check_round_trip(samples, label_map.MAX_PEAK)
    assert len(run) < 1.1 * 2 * samples.size


def test_plain_maps_cost_next_to_nothing() -> None:
    samples = np.zeros((20, 200, 200), np.int32)
    assert len(check_round_trip(samples, 255)) <= 24
    samples[10, 100, 100] = 1
    assert len(check_round_trip(samples, 255)) <= 60


def test_regions_cost_their_borders() -> None:
    samples = blobs((16, 96, 96), 12)
    borders = (np.diff(samples, axis=-1) != 0).sum() + (np.diff(samples, axis=-2) != 0).sum()
    assert 8 * len(check_round_trip(samples, 12)) < 1.5 * borders


def test_slices_alike_cost_nothing() -> None:
    one = blobs((1, 64, 64), 9)
    first = len(check_round_trip(one, 9))
    assert len(check_round_trip(np.repeat(one, 20, 0), 9)) < 2 * first


def test_damaged_runs_are_refused_or_decoded(backend: str) -> None:
    samples = blobs((3, 30, 31), 6)
    run = label_map.encode(samples, 6)
    for damaged in (run[:-1], run[:-4], run + b"\1\2\3\4" * 2, b"", b"\xff" * 8):
        with pytest.raises(FormatError):
            label_map.decode(damaged, (3, 30, 31), 6)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(60):
        content = np.frombuffer(run, np.uint8).copy()
        content[rng.integers(0, content.size)] ^= rng.integers(1, 256)
        try:
            decoded = label_map.decode(content.tobytes(), (3, 30, 31), 6)
            assert decoded.min() >= 0 and decoded.max() <= 6
        except FormatError:
            refused += 1
    assert refused >= 40


def test_a_palette_beyond_the_peak_is_refused() -> None:
    run = label_map.encode(blobs((2, 9, 9), 300), 299)
    with pytest.raises(FormatError):
        label_map.decode(run, (2, 9, 9), 2)


def test_cancelled_work_ends() -> None:
    samples, flag = blobs((2, 9, 9), 3), np.ones(1, np.int32)
    with pytest.raises(functions.Cancelled):
        label_map.encode(samples, 3, flag)
    with pytest.raises(functions.Cancelled):
        label_map.decode(label_map.encode(samples, 3), (2, 9, 9), 3, flag)


@pytest.mark.parametrize("peak", [-1, 1 << 16])
def test_peaks_out_of_range_are_refused(peak: int) -> None:
    with pytest.raises(ValueError, match="65535"):
        label_map.encode(np.zeros((1, 2, 2), np.int32), peak)
    with pytest.raises(ValueError, match="65535"):
        label_map.decode(b"", (1, 2, 2), peak)


def test_samples_out_of_range_are_refused() -> None:
    for sample in (-1, 4):
        with pytest.raises(ValueError, match="arguments"):
            label_map.encode(np.full((1, 2, 2), sample, np.int32), 3)


def test_memory_is_bounded() -> None:
    slab = functions.Slab(64, 256, 256, 65535, 1, 1, 1, None, 0, None)
    assert 0 < library.load().mrc_label_map_bytes(ctypes.byref(slab), True) < 40_000_000
