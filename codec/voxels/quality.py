"""Quality: fidelity relative to the noise of the volume, so that a number means the same on every scan."""

from __future__ import annotations

import math

DEFAULT_QUALITY = 50.0
STEP_AT_DEFAULT = 3.0  # sigma_hat; RMSE is at most about 0.32 steps: below the noise
QUALITY_PER_OCTAVE = 10.0  # 0 .. 100: the step goes from 32 times to 1/32 of the default's
ROUNDING = 1 / math.sqrt(12)  # standard deviation of rounding to whole codes: no scan has less
STEP_RANGE = (2.0**-12, 2.0**20)  # codes; every model takes these
NOISELESS = 1 / 8192  # of the range: the noise of a volume in which none is found; 78 dB


def step(quality: float, sigma: float, peak: float) -> float:
    """Quantiser step for a quality from 0 to 100; `sigma` the noise, `peak` the largest code, all in codes.

    ValueError for a quality out of range.
    """
    if not 0 <= quality <= 100:
        raise ValueError(f"quality: expected a number from 0 to 100, found {quality:g}")
    noise = max(sigma, ROUNDING, NOISELESS * peak)
    factor = STEP_AT_DEFAULT * 2 ** ((DEFAULT_QUALITY - quality) / QUALITY_PER_OCTAVE)
    return min(max(factor * noise, STEP_RANGE[0]), STEP_RANGE[1])
