"""The quantiser's step for a quality: fidelity relative to the noise of the volume."""

from __future__ import annotations

import math

from mricodec.codec.settings import DEFAULT_QUALITY, check_quality

# Step at the default quality, in sigma_hat; the RMSE is at most about 0.32 steps, below the noise.
STEP_AT_DEFAULT = 3.0
# Qualities 0 to 100: the step goes from 32 times to 1/32 of the default's.
QUALITY_PER_OCTAVE = 10.0
# Standard deviation of rounding to whole samples: no scan has less noise.
ROUNDING = 1 / math.sqrt(12)
# Steps in samples that every model takes.
STEP_RANGE = (2.0**-12, 2.0**20)
# Noise of a volume in which none is measured, as a part of its range: 78 dB.
NOISELESS = 1 / 8192


def step(quality: float, sigma: float, peak: float) -> float:
    """The step in samples for a quality from 0 to 100.

    sigma: the noise; peak: the largest sample. ValueError for a quality out of range.
    """
    check_quality(quality)
    noise = max(sigma, ROUNDING, NOISELESS * peak)
    factor = STEP_AT_DEFAULT * 2 ** ((DEFAULT_QUALITY - quality) / QUALITY_PER_OCTAVE)
    return min(max(factor * noise, STEP_RANGE[0]), STEP_RANGE[1])
