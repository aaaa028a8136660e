"""The step of the quantiser for a quality: the distortion is relative to the noise of the scan."""

from __future__ import annotations

import math

from mricodec.codec.settings import DEFAULT_QUALITY, check_quality

# Step at the default quality, as a multiple of the noise sigma. The RMSE is at most about 0.32
# steps, so that it stays below the noise.
STEP_AT_DEFAULT = 3.0
# The step is halved for every 10 points of quality: from 32 times to 1/32 of the default's.
QUALITY_PER_OCTAVE = 10.0
# Standard deviation of rounding to whole samples; the noise is never taken to be smaller.
ROUNDING = 1 / math.sqrt(12)
# The smallest and the largest step, in samples, that every model accepts.
STEP_RANGE = (2.0**-12, 2.0**20)
# The smallest noise, as a share of the range of a scan: a PSNR of 78 dB.
NOISELESS = 1 / 8192


def step(quality: float, sigma: float, peak: float) -> float:
    """The step, in samples, for a quality from 0 to 100.

    sigma: noise, in samples; peak: the largest sample. ValueError for a quality out of range.
    """
    check_quality(quality)
    noise = max(sigma, ROUNDING, NOISELESS * peak)
    factor = STEP_AT_DEFAULT * 2 ** ((DEFAULT_QUALITY - quality) / QUALITY_PER_OCTAVE)
    return min(max(factor * noise, STEP_RANGE[0]), STEP_RANGE[1])
