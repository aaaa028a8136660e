"""Signs hidden in parities: the encoder hides them where a decoder finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_decoder import learned

from mricodec.models.lossy import entropy_models as entropy
from mricodec.models.lossy import sign_hiding
from mricodec.models.lossy.context_model import INDEX_SKIP
from mricodec.models.lossy.rdo import RDO_LAMBDA, hiding_weights, increment_bits, rdo_quantise

WEIGHTS = hiding_weights().numpy()
COSTS = RDO_LAMBDA * increment_bits().numpy()


def symbols(
    bands: int, count: int, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, errors and their quantised values [bands, count]."""
    rng = np.random.default_rng(bands * count + low)
    index = rng.integers(low, high, (bands, count)).astype(np.uint8)
    index[index < INDEX_SKIP] = 0
    error = (rng.laplace(size=index.shape) * 0.05 * 2 ** (index / 8) / 2**0.5).astype(np.float32)
    q = (
        rdo_quantise(torch.from_numpy(error), torch.from_numpy(index.astype(np.float32)))
        .numpy()
        .astype(np.int64)
    )
    q[index == 0] = 0
    return index, error, q


def cost(index: np.ndarray, error: np.ndarray, q: np.ndarray) -> float:
    """Squared error + lambda bits, signs included."""
    sigma = entropy.sigma_of(torch.from_numpy(index.astype(np.float64)).clamp(min=1))
    bits = (
        entropy.laplace_bits(torch.from_numpy(q.astype(np.float64)), sigma).numpy()[index > 0].sum()
    )
    return float(((error - q) ** 2)[index > 0].sum() + RDO_LAMBDA * bits)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (4, 64), (5, 3000)])
@pytest.mark.parametrize("scales", [(0, 8), (0, 30), (10, 60), (40, 207)])
def test_parities_are_the_hidden_signs(shape: tuple[int, int], scales: tuple[int, int]) -> None:
    index, error, q = symbols(*shape, *scales)
    groups = sign_hiding.SignGroups.of(index, WEIGHTS, 1)
    changed, hidden = sign_hiding.hide_signs(groups, q, error, COSTS, index)
    at, negative = sign_hiding.hidden_signs(groups, np.abs(changed))
    assert np.array_equal(np.sort(hidden), at)
    assert ((changed.reshape(-1)[at] < 0) == (negative == 1)).all()
    assert np.abs(changed - q).max() <= 1 and not changed[index == 0].any()
    if scales == (10, 60) and shape[1] == 3000:
        assert len(at) > 1000 and 0.25 * len(at) < (changed != q).sum() < 0.5 * len(at)
        assert cost(index, error, changed) - RDO_LAMBDA * len(at) < 0.985 * cost(index, error, q)


def test_signs_are_hidden_where_the_reference_decoder_finds_them() -> None:
    index, _, q = symbols(8, 6000, 0, 50)
    index[2] = 0  # Nothing is sent.
    index[3, 100:] = 0  # Too little for a sign group.
    index[4:, 600:] = 0  # A slab of smaller sign groups.
    q[index == 0] = 0
    expected = []
    for start in (0, 4):
        bands = slice(start, start + 4)
        magnitudes = np.abs(q[bands]).tolist()
        signs = learned.hidden_signs(WEIGHTS.tolist(), index[bands].tolist(), magnitudes)
        expected += [(6000 * (start + band) + m, sign) for band, m, sign in signs]
    groups = sign_hiding.SignGroups.of(index, WEIGHTS, 2)
    at, negative = sign_hiding.hidden_signs(groups, np.abs(q))
    assert list(zip(at.tolist(), negative.tolist(), strict=True)) == expected
    assert len(expected) > 100
    assert not {2, 3} & {at // 6000 for at, _ in expected}
