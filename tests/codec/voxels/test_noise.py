"""The noise estimate against noise that is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.codec.voxels.noise import median, sigma_hat

SIZE = 192


def phantom(size: int) -> NDArray[np.float64]:
    """A smooth body in an empty background, [8, size, size]."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = 1000 * np.exp(-3 * (x**2 / 0.6 + y**2)) * (1 + 0.2 * np.cos(5 * x) * np.sin(4 * y))
    return body[None].repeat(8, 0)


def complex_noise(shape: tuple[int, ...], sigma: float) -> NDArray[np.complex128]:
    rng = np.random.default_rng(3)
    return rng.normal(0, sigma, shape) + 1j * rng.normal(0, sigma, shape)


def zero_filled(sigma: float, factor: float) -> NDArray[np.float64]:
    """Magnitude images reconstructed at `factor` times the acquired resolution."""
    acquired = int(SIZE / factor) // 2 * 2
    image = phantom(acquired) + complex_noise((8, acquired, acquired), sigma)
    k_space = np.fft.fftshift(np.fft.fft2(image), axes=(1, 2))
    padded = np.zeros((8, SIZE, SIZE), complex)
    edge = (SIZE - acquired) // 2
    padded[:, edge : edge + acquired, edge : edge + acquired] = k_space
    return np.abs(np.fft.ifft2(np.fft.ifftshift(padded, axes=(1, 2)))) * (SIZE / acquired) ** 2


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 7), (5, 1000), (1001,)])
def test_the_median_is_that_of_numpy(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(5).normal(0, 1e3, shape)
    assert np.array_equal(median(values), np.median(values, axis=-1))


@pytest.mark.parametrize("sigma", [2.0, 5.0, 20.0])
@pytest.mark.parametrize("kind", ["f4", "i2"])
def test_gaussian_noise(sigma: float, kind: str) -> None:
    image = phantom(SIZE) + np.random.default_rng(1).normal(0, sigma, (8, SIZE, SIZE))
    image = np.rint(image) if kind == "i2" else image
    assert sigma_hat(image.astype(kind)) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("sigma", [5.0, 20.0])
def test_magnitude_images(sigma: float) -> None:
    image = np.abs(phantom(SIZE) + complex_noise((8, SIZE, SIZE), sigma))
    assert sigma_hat(image) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("sigma", [5.0, 20.0])
@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0])
def test_zero_filled_k_space(sigma: float, factor: float) -> None:
    """The finest band is almost empty: there a plain estimate is 2 to 20 times too low."""
    assert sigma_hat(np.rint(zero_filled(sigma, factor)).astype(np.int16)) == pytest.approx(
        sigma, rel=0.25
    )


def test_interpolated_along_one_axis() -> None:
    image = np.abs(phantom(SIZE) + complex_noise((8, SIZE, SIZE), 10.0))
    spectrum = np.fft.rfft(image, axis=2)
    wide = np.fft.irfft(spectrum, SIZE * 3 // 2, axis=2) * 1.5
    assert sigma_hat(wide) == pytest.approx(10.0, rel=0.2)
    assert sigma_hat(wide.transpose(0, 2, 1)) == pytest.approx(10.0, rel=0.2)


def test_exactly_zero_background_does_not_count() -> None:
    image = phantom(SIZE) + np.random.default_rng(1).normal(0, 5.0, (8, SIZE, SIZE))
    image[phantom(SIZE) < 100] = 0
    assert (image == 0).mean() > 0.4
    assert sigma_hat(np.rint(image).astype(np.int16)) == pytest.approx(5.0, rel=0.1)


def test_offset_and_scale() -> None:
    image = phantom(SIZE) + np.random.default_rng(1).normal(0, 5.0, (8, SIZE, SIZE))
    assert sigma_hat(image * 1e-6 - 3) == pytest.approx(1e-6 * sigma_hat(image), rel=0.01)


def test_more_slices_change_little() -> None:
    image = phantom(SIZE).repeat(5, 0) + np.random.default_rng(1).normal(0, 5.0, (40, SIZE, SIZE))
    assert sigma_hat(image) == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (5, 1, 1), (1, 1, 9), (1, 9, 1), (1, 2, 2), (3, 5, 7), (1, 33, 2), (2, 64, 1)],
)
def test_small_and_flat(shape: tuple[int, int, int]) -> None:
    assert sigma_hat(np.zeros(shape, np.int16)) == 0.0
    noisy = np.random.default_rng(1).normal(100, 5, shape)
    sigma = sigma_hat(noisy)
    assert 0.0 <= sigma < 50.0
    if np.prod(shape) > 60:
        assert sigma == pytest.approx(5.0, rel=0.5)


def test_constant_and_noiseless() -> None:
    assert sigma_hat(np.full((4, 64, 64), 17, np.uint8)) == 0.0
    assert sigma_hat(phantom(SIZE)) < 1.0
