"""The likelihoods are CompressAI's, and the tables that are shipped are theirs in integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compressai_reference import import_compressai
from torch import Tensor

from mricodec.bitstream.symbols import TOTAL
from mricodec.models.lossy import entropy_models as entropy


def test_bottleneck_agrees_with_compressai() -> None:
    import_compressai()
    from compressai.entropy_models import EntropyBottleneck as Reference

    torch.manual_seed(0)
    reference = Reference(6)
    ours = entropy.EntropyBottleneck(6)
    with torch.no_grad():
        for i in range(5):
            for name, parameters in (
                ("matrix", ours.matrices),
                ("bias", ours.biases),
                ("factor", ours.factors),
            ):
                theirs = getattr(reference, f"_{name}{i}", None)
                if theirs is None:
                    theirs = getattr(
                        reference,
                        {"matrix": "matrices", "bias": "biases", "factor": "factors"}[name],
                        [],
                    )
                    theirs = theirs[i] if i < len(theirs) else None
                if theirs is not None and i < len(parameters):
                    theirs.add_(0.1 * torch.randn_like(theirs))
                    parameters[i].copy_(theirs)
    z = 4 * torch.randn(3, 6, 5, 7)
    rounded = z.round()
    _, expected = reference.eval()(z)
    medians = reference.quantiles[:, 0, 1].detach()
    assert torch.equal(medians, torch.zeros(6)), "the reference rounds around its medians"
    torch.testing.assert_close(ours.likelihood(rounded), expected, rtol=1e-4, atol=1e-7)


def test_gaussian_agrees_with_compressai() -> None:
    import_compressai()
    from compressai.entropy_models import GaussianConditional

    torch.manual_seed(0)
    sigma = torch.exp(torch.empty(2, 3, 8, 8).uniform_(-1.5, 3))
    y = (sigma * torch.randn_like(sigma)).round()
    _, expected = GaussianConditional(None).eval()(y, sigma)
    torch.testing.assert_close(
        torch.exp2(-entropy.gaussian_bits(y, sigma)), expected, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("bits", [entropy.laplace_bits, entropy.gaussian_bits])
def test_likelihoods_sum_to_one(bits: Callable[[Tensor, Tensor], Tensor]) -> None:
    values = torch.arange(-2000.0, 2001.0, dtype=torch.float64)
    for sigma in (0.3, 1.0, 7.0, 60.0):
        total = torch.exp2(-bits(values, torch.tensor(sigma, dtype=torch.float64)))
        assert float(total.sum()) == pytest.approx(1, abs=3e-4)  # each has the floor 2**-24


def test_laplace_is_the_integral_of_its_density() -> None:
    grid = torch.linspace(0.2, 1.2, 100_001, dtype=torch.float64)  # the bin of 0.7
    b = 0.9 / 2**0.5
    density = torch.exp(-grid.abs() / b) / (2 * b)
    expected = float(torch.trapezoid(density, grid))
    value, sigma = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    assert float(torch.exp2(-entropy.laplace_bits(value, sigma))) == pytest.approx(
        expected, rel=1e-6
    )


def test_tables_are_integers_of_the_right_sum() -> None:
    torch.manual_seed(1)
    sets = [
        entropy.EntropyBottleneck(5).tables(),
        entropy.scale_tables("laplace"),
        entropy.scale_tables("gaussian"),
    ]
    sets.append(
        entropy.fitted_tables(torch.randint(0, 50, (entropy.ROWS, entropy.BINS + 1)), sets[1])
    )
    for tables in sets:
        assert int(tables.min()) >= 1
        assert torch.equal(tables.sum(1), torch.full((len(tables),), TOTAL))


def test_scale_tables_cost_what_the_likelihood_says() -> None:
    tables = entropy.scale_tables("laplace").double() / TOTAL
    values = torch.arange(-8, 9)
    for row in (20, 35, 50):
        sigma = entropy.sigma_of(torch.tensor(float(row), dtype=torch.float64))
        expected = entropy.laplace_bits(values.double(), sigma)
        bits = -torch.log2(tables[row, values - entropy.LOW])
        close = expected < 16  # Beyond, one part in 2**24 counts.
        torch.testing.assert_close(bits[close], expected[close], rtol=0.02, atol=0.002)


def test_coded_bits() -> None:
    """Values are those of `laplace_bits` of the symbols, gradients also of the noisy errors."""
    rng = torch.Generator().manual_seed(1)
    index = (torch.rand(2000, generator=rng, dtype=torch.float64) * 150 - 3).requires_grad_()
    error = (3 * torch.randn(2000, generator=rng, dtype=torch.float64)).requires_grad_()
    noise = torch.rand(2000, generator=rng, dtype=torch.float64) - 0.5
    q = error.detach().round() * (torch.rand(2000, generator=rng) < 0.8)
    sigma = entropy.sigma_of(index.clamp(min=1))
    relaxed = entropy.laplace_bits(error + noise, sigma.detach())
    expected = entropy.laplace_bits(q, sigma) + relaxed - relaxed.detach()
    bits = entropy.coded_bits(index, error, q, noise)
    assert torch.allclose(bits, expected, rtol=1e-9)
    for ours, theirs in zip(
        *(torch.autograd.grad(part.sum(), (index, error)) for part in (bits, expected)), strict=True
    ):
        assert theirs.abs().max() > 1 and torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
