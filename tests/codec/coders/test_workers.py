"""Helper processes give what one process gives, and do without them where they fail."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec import codec
from mricodec.codec.coders import predictive, workers


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def scan(shape: tuple[int, ...]) -> NDArray[np.int16]:
    return np.random.default_rng(0).normal(500, 20, shape).astype(np.int16)


def tasks(count: int) -> list[workers.Task]:
    settings = {"max_error": 0, "within": 0, "effort": "fast"}
    return [(settings, [scan((2, 30, 30 + n)).astype(np.int32)]) for n in range(count)]


@pytest.mark.usefixtures("two")
def test_the_same_bytes_and_voxels_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "MIN_SHARED", 1)
    array = scan((100, 24, 20))
    stream = codec.encode(array, lossless=True)
    bounded = codec.encode(array, max_error=3)
    assert stream is not None and bounded is not None
    both = [codec.decode(one).array for one in (stream, bounded)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers.processes() == 1
    assert (
        codec.encode(array, lossless=True) == stream and codec.encode(array, max_error=3) == bounded
    )
    assert (both[0] == array).all() and (codec.decode(bounded).array == both[1]).all()


@pytest.mark.usefixtures("two")
def test_helpers_that_die_are_done_without() -> None:
    expected = [predictive.predictive_part(*task)[0].tobytes() for task in tasks(4)]
    team = workers.Workers(predictive.predictive_part)
    for _ in range(3):
        assert [result[0].tobytes() for result in team.run(tasks(4))] == expected
        (helper,) = team._helpers
        if helper.alive:
            os.kill(helper._process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("two")
def test_no_interpreter_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    team = workers.Workers(predictive.predictive_part)
    assert len(team.run(tasks(2))) == 2 and not team._helpers


@pytest.mark.usefixtures("two")
def test_errors_are_those_of_the_work() -> None:
    damaged: list[Any] = [
        (
            {"max_error": 0, "within": 0, "effort": "fast", "decoded_shape": [2, 30, 30]},
            [np.zeros(7, np.uint8)],
        )
    ] * 3
    with pytest.raises(codec.FormatError):
        workers.Workers(predictive.predictive_part).run(damaged)


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 64)
    for limit, expected in (
        ("3", 3),
        ("100", workers.MAX_PROCESSES),
        ("0", 1),
        ("4,2", workers.MAX_PROCESSES),
        ("", workers.MAX_PROCESSES),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
        assert workers.processes() == expected
