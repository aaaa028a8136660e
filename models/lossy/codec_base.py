"""What every lossy model is given: the quantiser's step as an integer, samples as tensors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIGNS = "sign"  # table set

STEP_BITS = 16  # the step is an integer number of 2**-16 codes
STEP_RANGE = (2.0**-12, 2.0**20)
FINEST = 2.0**-15  # of the largest code: the finest step that the integer arithmetic has room for
SYMBOL_MAX = 1 << 19


class Params(Protocol):
    """What a volume tells its model."""

    @property
    def step(self) -> float: ...
    @property
    def peak(self) -> int: ...


def integer_step(params: Params) -> int:
    """The step in 2**-16 codes. ValueError if it is out of range."""
    step = max(float(np.float32(params.step)), FINEST * params.peak)
    if not STEP_RANGE[0] <= step <= STEP_RANGE[1]:
        raise ValueError(
            f"step: expected {STEP_RANGE[0]:g} to {STEP_RANGE[1]:g} codes, found {step:g}"
        )
    return round(step * (1 << STEP_BITS))


def padded(x: NDArray[np.int32]) -> Tensor:
    """[K, H, W] -> float32, sides up to multiples of 8, the border repeated."""
    h, w = x.shape[1:]
    whole = torch.from_numpy(x.astype(np.float32))
    return whole if h % 8 == w % 8 == 0 else F.pad(whole, (0, -w % 8, 0, -h % 8), mode="replicate")
