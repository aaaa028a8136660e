"""The restoration filter: integers as a decoder computes them, classes, gain, and its training."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from mricodec.models.training import restoration
from mricodec.models.training.restoration import Conditions, RestorationFilter

Pair = namedtuple("Pair", "v error info")
Info = namedtuple("Info", "depth rate ratio mse")


def conditions(n: int = 1) -> Conditions:
    return Conditions(torch.arange(n) + 2, torch.arange(n) + 3, torch.arange(n) % 5)


def random_filter(*, integer: bool) -> RestorationFilter:
    torch.manual_seed(0)
    network = RestorationFilter(integer=integer)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("weight"):
                parameter.normal_(0, 0.1)
    return network


def test_mean_of_the_square_around_each_sample() -> None:
    v = np.random.default_rng(0).integers(-90_000, 90_000, (2, 16, 24)).astype(np.int32)
    padded = np.pad(v, ((0, 0), (4, 4), (4, 4)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), (1, 2))
    expected = np.clip(v - np.rint(windows.mean((3, 4))), -32768, 32767)
    assert np.array_equal(restoration.without_mean(v), expected)


def test_integer_filter_computes_integers_near_the_float_one() -> None:
    u = torch.randint(-300, 300, (2, 3, 16, 24), generator=torch.Generator().manual_seed(1)).float()
    exact, rounded = random_filter(integer=False), random_filter(integer=True)
    with torch.no_grad():
        expected, output = (network(u, conditions(2)) for network in (exact, rounded))
    assert output.shape == (2, 16, 24)
    assert torch.equal(output, output.round())
    assert (output - expected).std() < 0.1 * expected.std()
    assert expected.std() > 1


def test_the_same_with_and_without_gradients() -> None:
    u = torch.randint(-300, 300, (1, 3, 16, 16), generator=torch.Generator().manual_seed(2)).float()
    network = random_filter(integer=True)
    with torch.no_grad():
        without = network(u, conditions())
    assert torch.equal(network(u, conditions()).detach(), without)


def test_every_class_and_the_phase_matter() -> None:
    network, u = random_filter(integer=True), torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        here = network(u, Conditions(*(torch.tensor([1]) for _ in range(3))))
        for n in range(3):
            numbers = [1, 1, 1]
            numbers[n] = 2
            other = network(u, Conditions(*(torch.tensor([number]) for number in numbers)))
            assert not torch.equal(here, other)
        network.phase.zero_()
        assert len(network(u, conditions())[0, 6:10:2, 6:10:2].unique()) == 1


def test_positions_in_groups_are_classes() -> None:
    classes = [restoration.position_class(d, t) for d in (1, 2, 4, 8) for t in range(d)]
    assert classes == list(range(15))
    assert restoration.position_class(4, 9) == restoration.position_class(4, 1)
    assert [restoration.ratio_class(r) for r in (1, 1.3, 3.3, 5, 9)] == [0, 1, 2, 3, 4]


def test_slices_beyond_the_slab_are_the_nearest() -> None:
    assert restoration.neighbours(0, 3) == [0, 0, 1]
    assert restoration.neighbours(2, 3) == [1, 2, 2]
    assert restoration.neighbours(0, 1) == [0, 0, 0]


@pytest.mark.parametrize(("share", "gain"), [(0.5, 32), (-0.3, 0), (1.7, 64), (1.0, 64)])
def test_gain_is_that_of_least_error(share: float, gain: int) -> None:
    correction = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert restoration.least_squares_gain(correction, share * correction) == gain
    assert restoration.least_squares_gain(torch.zeros(2, 2), torch.ones(2, 2)) == 0


def test_training_lowers_the_error_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    # Errors that the filter can guess: a sixteenth of what stands out.
    v = (rng.normal(0, 60, (4, 80, 80)) + 3000).astype(np.int32)
    error = (-restoration.without_mean(v) // 4).astype(np.int16)
    mse = float(np.square(error / 256.0).mean())
    pool = restoration.examples([Pair(v, error, Info(1, 4, 3.0, mse))])
    recipe = restoration.Recipe(30, 1e-2, integer=True)
    monkeypatch.setitem(restoration.RECIPES, "debug", recipe)
    rows: list[dict[str, float]] = []
    monkeypatch.setattr(restoration, "LOG_STEPS", 10)
    path = restoration.train_filter(pool, tmp_path, "debug", rows.append)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["ratio"] < 0.9 < rows[0]["ratio"]
    weights = path.read_bytes()
    restoration.train_filter(pool, tmp_path, "debug", rows.append)
    assert len(rows) == 3 and path.read_bytes() == weights


def test_pairs_too_small_for_a_crop_are_left_out() -> None:
    small = np.zeros((2, 64, 80), np.int32)
    pairs = [Pair(small, small.astype(np.int16), Info(1, 4, 3.0, 0.1))]
    assert restoration.examples(pairs) == []
    with pytest.raises(ValueError, match="expected pairs of 72"):
        restoration.train_filter([], Path("unused"), "debug")
