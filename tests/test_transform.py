from __future__ import annotations

import pytest
import torch

from mricodec.models import transform


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 16, 8), (1, 40, 72)])
def test_orthonormal(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    y = transform.analysis(x)
    assert y.shape == (shape[0], 64, shape[1] // 8, shape[2] // 8)
    torch.testing.assert_close((y**2).sum(), (x**2).sum())
    torch.testing.assert_close(transform.synthesis_float(y), x)


@pytest.mark.parametrize("amplitude", [1.0, 1e3, 1e6])
def test_integer_synthesis_is_close_to_the_real_one(amplitude: float) -> None:
    torch.manual_seed(0)
    y = (amplitude * torch.randn(2, 64, 5, 9, dtype=torch.float64)).round()
    x = transform.synthesis(y)
    assert torch.equal(x, x.round())
    real = transform.synthesis_float(y)
    assert float((x - real).abs().max()) <= 0.75 + 2.0**-14 * float(y.abs().max()) * 4


def test_smooth_pictures_are_compact() -> None:
    i = torch.arange(64, dtype=torch.float64)
    x = torch.sin(i / 20)[None, :, None] * torch.cos(i / 15)[None, None]
    y = transform.analysis(x)
    assert float((y[:, :6] ** 2).sum() / (y**2).sum()) > 0.995
