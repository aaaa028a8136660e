"""Volumes of samples as tensors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def padded(x: NDArray[np.int32]) -> Tensor:
    """x [K, H, W] -> float32, sides extended to multiples of 8 by repeating the border."""
    h, w = x.shape[1:]
    samples = torch.from_numpy(x.astype(np.float32))
    if h % 8 == w % 8 == 0:
        return samples
    return F.pad(samples, (0, -w % 8, 0, -h % 8), mode="replicate")
