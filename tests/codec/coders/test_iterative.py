"""Effort "high": gradients of torch, coded by the C core."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.codec import loading
from mricodec.codec.coders import iterative
from mricodec.codec.coders.base import LossyParams
from mricodec.codec.coders.iterative import IterativeModel
from mricodec.codec.native.model import NativeModel, Workspace


@pytest.fixture(scope="module")
def model() -> IterativeModel:
    loaded = loading.open_searching("default", "cpu")
    assert isinstance(loaded, IterativeModel)
    return loaded


@pytest.fixture(scope="module")
def scan() -> NDArray[np.int32]:
    k, j, i = np.indices((8, 64, 72))
    wave = 500 + 300 * np.sin(j / 7 + k / 9) * np.cos(i / 9) + 120 * (j > 20) * (i > 14)
    noise = np.random.default_rng(0).normal(0, 8, wave.shape)
    return np.clip(np.rint(wave + noise), 0, 1000).astype(np.int32)


def coded(model: NativeModel, scan: NDArray[np.int32], step: float) -> tuple[float, float]:
    """Logarithms of the squared error and of the bits; the decoder needs no search."""
    params = LossyParams(step, int(scan.max()), (1.0, 1.0, 1.0))
    run, decoded = model.encode_slab(scan, params, Workspace())
    k, h, w = scan.shape
    assert np.array_equal(model.decode_slab(run, (k, h, w), params, Workspace()), decoded)
    return math.log(np.square(decoded - scan).mean()), math.log(len(run))


@pytest.mark.parametrize("step", [20.0, 40.0])
def test_iterative_rdo_takes_fewer_bits(
    model: IterativeModel,
    scan: NDArray[np.int32],
    step: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Than without it at the same error."""
    monkeypatch.setattr(IterativeModel, "_depth_by_trial", lambda *_: 2)
    error, bits = coded(model, scan, step)
    monkeypatch.setattr(iterative, "RDO_ITERATIONS", 0)
    plain = sorted(coded(model, scan, factor * step) for factor in (0.9, 1.0, 1.1))
    assert plain[0][0] < error < plain[-1][0]
    assert bits < np.interp(error, *zip(*plain, strict=True)) - 0.005


def test_targets_of_the_samples_are_those_of_the_encoder(
    model: IterativeModel, scan: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without iterations the search gives the bands that the C core computes, but for rounding."""
    monkeypatch.setattr(iterative, "RDO_ITERATIONS", 0)
    params = LossyParams(20.0, int(scan.max()), (1.0, 1.0, 1.0))
    for depth in (1, 2, 4, 8):
        targets = model._targets(scan, params, Workspace(), depth)
        searched, decoded, _ = model.encode_bands(scan, params, Workspace(), depth, targets)
        plain, other, _ = model.encode_bands(scan, params, Workspace(), depth)
        assert abs(len(searched) - len(plain)) <= 0.002 * len(plain) + 8
        assert np.abs(decoded - other).mean() < 0.05
