"""The step of the quantiser falls as the quality rises, relative to the noise."""

from __future__ import annotations

import pytest

from mricodec.codec.settings import DEFAULT_QUALITY
from mricodec.codec.voxels import quality


def test_step_of_a_quality() -> None:
    steps = [quality.step(value, 10.0, 4095) for value in range(0, 101, 10)]
    assert steps == sorted(steps, reverse=True)
    assert quality.step(DEFAULT_QUALITY, 10.0, 4095) == 10.0 * quality.STEP_AT_DEFAULT
    assert steps[0] / steps[-1] == pytest.approx(1024)
    assert 0 < quality.step(100, 0.0, 1) < quality.step(100, 0.0, 65535)
    for bad in (-1, 101, float("nan")):
        with pytest.raises(ValueError, match="quality"):
            quality.step(bad, 1.0, 100)
