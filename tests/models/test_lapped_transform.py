"""The lapped transform is invertible, its integer synthesis close to the real one."""

from __future__ import annotations

import pytest
import torch

from mricodec.models.lossy import lapped_transform as transform


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 16, 8), (1, 40, 72)])
def test_invertible(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    y = transform.analysis(x)
    assert y.shape == (shape[0], shape[1] // 8, shape[2] // 8, 64)
    torch.testing.assert_close(transform.synthesis_float(y), x)


@pytest.mark.parametrize("depth", transform.DEPTHS)
@pytest.mark.parametrize("slices", [1, 8, 13])
def test_invertible_across(slices: int, depth: int) -> None:
    torch.manual_seed(0)
    y = torch.randn(2, slices, 3, 5, dtype=torch.float64)
    bands = transform.analysis_across(y, depth)
    assert bands.shape[1] == -(-slices // depth) * depth
    torch.testing.assert_close(transform.synthesis_across_float(bands, depth)[:, :slices], y)
    integers = transform.synthesis_across((16 * bands[0]).round().flatten(1), depth)[:slices]
    assert float((integers / 256 - y[0].flatten(1)).abs().max()) < 0.25


def test_noise_is_not_amplified() -> None:
    """White quantisation noise in the coefficients stays about as large in the picture."""
    torch.manual_seed(0)
    noise = torch.randn(4, 8, 8, 64, dtype=torch.float64)
    assert 0.7 < float(transform.synthesis_float(noise).square().mean()) < 1.02


@pytest.mark.parametrize("amplitude", [1.0, 1e3, 1e6])
def test_integer_synthesis_is_close_to_the_real_one(amplitude: float) -> None:
    torch.manual_seed(0)
    y = (amplitude * torch.randn(2, 5, 9, 64, dtype=torch.float64)).round()
    x = transform.synthesis(16 * y)
    assert torch.equal(x, x.round())
    real = transform.synthesis_float(y)
    assert float((x - real).abs().max()) <= 0.75 + 2.0**-14 * float(y.abs().max()) * 4


def test_smooth_pictures_are_compact() -> None:
    i = torch.arange(64, dtype=torch.float64)
    x = torch.sin(i / 20)[None, :, None] * torch.cos(i / 15)[None, None]
    y = transform.analysis(x)
    assert float((y[..., :6] ** 2).sum() / (y**2).sum()) > 0.995
