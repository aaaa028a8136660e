"""PSNR, SSIM and MS-SSIM against their definitions and published values."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.codec.voxels import metrics


def noisy(
    dtype: type, shape: tuple[int, ...] = (3, 20, 24), seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A smooth volume and the same with noise, both within the type."""
    rng = np.random.default_rng(seed)
    smooth = np.cos(np.linspace(0, 7, shape[-1])) * np.sin(np.linspace(0, 5, shape[-2]))[:, None]
    volume = np.broadcast_to(smooth * 900 + 1000, shape) + rng.normal(0, 5, shape)
    other = volume + rng.normal(0, 60, shape)
    if np.issubdtype(dtype, np.integer):
        volume, other = (np.clip(np.rint(a), 0, 4095) for a in (volume, other))
    return volume.astype(dtype), other.astype(dtype)


def ssim_by_definition(x: NDArray[Any], y: NDArray[Any], low: float, peak: float) -> float:
    """Every window on its own."""
    means = []
    for a, b in zip(x.astype(np.float64) - low, y.astype(np.float64) - low, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view
        a, b = (windows(image, (7, 7)).reshape(-1, 49) for image in (a, b))
        mean_a, mean_b = a.mean(1), b.mean(1)
        covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).sum(1) / 48
        c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        value /= (mean_a**2 + mean_b**2 + c1) * (a.var(1, ddof=1) + b.var(1, ddof=1) + c2)
        means.append(value.mean())
    return float(np.mean(means))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_ssim_is_its_definition(dtype: type) -> None:
    x, y = noisy(dtype)
    low, high = metrics.value_range(x)
    assert metrics.ssim(x, y) == pytest.approx(ssim_by_definition(x, y, low, high - low), abs=1e-12)


def test_ssim_equals_scikit_image() -> None:
    # structural_similarity(x - 80, y - 80, win_size=7, data_range=3325) of scikit-image 0.26.
    k, j, i = np.indices((3, 20, 24))
    x = 1000 + 300 * k + 5 * j * j - 40 * i + j * i % 97
    y = x + (37 * i + 11 * j * j + 53 * k) % 120 - 60
    assert metrics.value_range(x) == (80, 3405)
    assert metrics.ssim(x, y) == pytest.approx(0.984693365010448, abs=1e-12)


def test_identical_volumes_are_perfect() -> None:
    x, _ = noisy(np.int16)
    distortion = metrics.compare(x, x.copy())
    assert (
        distortion.ssim,
        distortion.psnr,
        distortion.mse,
        distortion.rmse,
        distortion.max_error,
    ) == (
        1.0,
        math.inf,
        0.0,
        0.0,
        0.0,
    )


def test_psnr_of_known_errors() -> None:
    x = np.zeros((4, 10, 10), np.int16)
    x[0, 0, 0], x[1, 1, 1] = -100, 900  # peak 1000
    y = x.copy()
    y[2] += 10
    distortion = metrics.compare(x, y)
    assert distortion.peak == 1000
    assert distortion.mse == pytest.approx(25)
    assert distortion.rmse == pytest.approx(5)
    assert distortion.psnr == pytest.approx(20 * math.log10(1000 / 5))
    assert distortion.max_error == 10
    assert metrics.psnr(x, y) == distortion.psnr
    assert metrics.psnr(x, y, limits=(0, 10000)) == pytest.approx(distortion.psnr + 20)


def test_psnr_of_gaussian_noise() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1000, (8, 64, 64))
    y = x + rng.normal(0, 10, x.shape)
    assert metrics.psnr(x, y, limits=(0, 1000)) == pytest.approx(40, abs=0.1)


def test_unsigned_differences_do_not_wrap() -> None:
    x, y = np.zeros((2, 8, 8), np.uint8), np.full((2, 8, 8), 255, np.uint8)
    assert metrics.mse(x, y) == 255**2
    assert metrics.max_error(x, y) == 255


def test_a_part_is_measured_with_the_range_of_the_whole() -> None:
    x, y = noisy(np.uint16, (6, 20, 24))
    whole = metrics.value_range(x)
    parts = [metrics.compare(x[n : n + 2], y[n : n + 2], limits=whole) for n in (0, 2, 4)]
    distortion = metrics.compare(x, y)
    assert np.mean([part.mse for part in parts]) == pytest.approx(distortion.mse)
    assert np.mean([part.ssim for part in parts]) == pytest.approx(distortion.ssim)


def test_the_axes_in_front_do_not_matter() -> None:
    x, y = noisy(np.uint16, (6, 20, 24))
    assert metrics.compare(x.reshape(2, 3, 20, 24), y.reshape(2, 3, 20, 24)) == metrics.compare(
        x, y
    )


def test_slices_smaller_than_the_window_have_no_ssim() -> None:
    x, y = noisy(np.uint16, (5, 6, 24))
    distortion = metrics.compare(x, y)
    assert math.isnan(distortion.ssim)
    assert math.isfinite(distortion.psnr)
    with pytest.raises(ValueError, match="7 x 7"):
        metrics.ssim(x, y)


@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (2, 1, 1)])
def test_any_shape_has_a_psnr(shape: tuple[int, ...]) -> None:
    assert metrics.compare(np.ones(shape), np.zeros(shape), limits=(0, 10)).psnr == pytest.approx(
        20
    )


def test_a_constant_volume_has_no_psnr() -> None:
    x = np.full((3, 8, 8), 7, np.int16)
    with pytest.raises(ValueError, match="differ"):
        metrics.psnr(x, x)


def test_shapes_have_to_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        metrics.mse(np.zeros((2, 8, 8)), np.zeros((2, 8, 9)))


def test_memory_is_that_of_a_few_slices() -> None:
    x = np.zeros((60, 100, 100), np.int16)
    x[::2] = 5
    y = x.copy()
    y[3] += 1
    tracemalloc.start()
    metrics.compare(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * 100 * 100 * 8  # the whole volume as float64: 60


@pytest.mark.parametrize("shape", [(2, 192, 176), (1, 208, 240)])
def test_ms_ssim_is_that_of_the_paper(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    rng = np.random.default_rng(3)
    original = np.cumsum(np.cumsum(rng.normal(0, 1, shape), 1), 2)
    decoded = original + rng.normal(0, 4, shape)
    low, high = metrics.value_range(original)
    tensors = (torch.from_numpy(a - low)[:, None] for a in (original, decoded))
    expected = reference.ms_ssim(*tensors, data_range=high - low, size_average=True)
    assert metrics.ms_ssim(original, decoded) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.ms_ssim(original, original) == pytest.approx(1)
    with pytest.raises(ValueError, match="176"):
        metrics.ms_ssim(original[:, :170], decoded[:, :170])


def test_display_windows() -> None:
    voxels = np.concatenate([np.zeros(1000), np.arange(100, 1101)]).reshape(3, 23, 29)
    windows = metrics.display_windows(voxels)
    foreground = voxels[voxels > 0.5 * voxels.mean()]
    assert windows.narrow == pytest.approx(np.percentile(foreground, (25, 75)))
    assert windows.bright == pytest.approx(np.percentile(foreground, (75, 99.5)))
    assert windows.full == pytest.approx(np.percentile(voxels, (0.5, 99.5)))


def test_psnr_in_a_window_is_that_of_what_is_displayed() -> None:
    original = np.array([[0.0, 10, 20, 30], [40, 50, 60, 70]])
    decoded = original + np.array([[5.0, 1, 0, -2], [0, 0, 30, 9]])
    # Inside 10 ... 60 the errors are 1, 0, -2, 0, 0 and 0, as 90 is displayed as 60.
    expected = 20 * math.log10(50) - 10 * math.log10((1 + 4) / 6)
    assert metrics.psnr_in_window(original, decoded, (10, 60)) == pytest.approx(expected)
    assert metrics.psnr_in_window(original, decoded, (35, 55)) == math.inf
    assert math.isnan(metrics.psnr_in_window(original, decoded, (5, 5)))
    assert math.isnan(metrics.psnr_in_window(original, decoded, (71, 80)))
