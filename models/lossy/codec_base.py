"""What all lossy models share: the parameters of a volume, the integer step, padding."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# The table set of signs.
SIGNS = "sign"
# Fraction bits of the integer step, which is a number of 2**-16 codes.
STEP_BITS = 16
# Least and largest step, in codes.
STEP_RANGE = (2.0**-12, 2.0**20)
# The finest step as a share of the largest code, for which the integer arithmetic has room.
MIN_STEP_OF_PEAK = 2.0**-15
# Largest magnitude of a symbol.
SYMBOL_MAX = 1 << 19


class Params(Protocol):
    """Parameters of a volume: the quantisation step and the largest code."""

    @property
    def step(self) -> float: ...
    @property
    def peak(self) -> int: ...


def integer_step(params: Params) -> int:
    """The step in 2**-16 codes. ValueError if it is out of range."""
    step = max(float(np.float32(params.step)), MIN_STEP_OF_PEAK * params.peak)
    if not STEP_RANGE[0] <= step <= STEP_RANGE[1]:
        raise ValueError(
            f"step: expected {STEP_RANGE[0]:g} to {STEP_RANGE[1]:g} codes, found {step:g}"
        )
    return round(step * (1 << STEP_BITS))


def padded(x: NDArray[np.int32]) -> Tensor:
    """x [K, H, W] -> float32, sides extended to multiples of 8 by repeating the border."""
    h, w = x.shape[1:]
    samples = torch.from_numpy(x.astype(np.float32))
    if h % 8 == w % 8 == 0:
        return samples
    return F.pad(samples, (0, -w % 8, 0, -h % 8), mode="replicate")
