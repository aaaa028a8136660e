"""What all lossy models share: the parameters of a volume and the integer step. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np

# The table set of signs.
SIGNS = "sign"
# Fraction bits of the integer step, which is a number of 2**-16 samples.
STEP_BITS = 16
# Least and largest step, in samples.
STEP_RANGE = (2.0**-12, 2.0**20)
# The finest step as a share of the largest sample, for which the integer arithmetic has room.
MIN_STEP_OF_PEAK = 2.0**-15
# Largest magnitude of a symbol.
SYMBOL_MAX = 1 << 19


class Params(Protocol):
    """Parameters of a volume: the quantisation step and the largest sample."""

    @property
    def step(self) -> float: ...
    @property
    def peak(self) -> int: ...


def integer_step(params: Params) -> int:
    """The step in 2**-16 samples. ValueError if it is out of range."""
    step = max(float(np.float32(params.step)), MIN_STEP_OF_PEAK * params.peak)
    if not STEP_RANGE[0] <= step <= STEP_RANGE[1]:
        raise ValueError(
            f"step: expected {STEP_RANGE[0]:g} to {STEP_RANGE[1]:g} samples, found {step:g}"
        )
    return round(step * (1 << STEP_BITS))
