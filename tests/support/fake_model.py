"""A lossy model without network: uniform quantisation, slices predicted by those before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import TOTAL, ProbabilityTables, normalised


def _two_sided(bins: int) -> NDArray[np.uint32]:
    weights = 2.0 ** -np.abs(np.arange(bins) - bins // 2)
    return normalised(np.append(weights / weights.sum(), 2**10 / TOTAL)[None])


class FakeModel:
    name = "fake"
    model_id = b"fakefake"
    exact_samples = True

    def __init__(self) -> None:
        self.tables = {"q": ProbabilityTables(_two_sided(33), -16, 0)}
        self.batches: list[tuple[int, ...]] = []  # shapes that were coded together

    def encode(
        self, x: NDArray[np.int32], step: float, coder: Any, params: Any
    ) -> NDArray[np.int32]:
        assert np.float32(step) == step == params.step
        assert 0 <= x.min() <= x.max() <= params.peak
        return self._run(x.shape, np.rint(x / step).astype(np.int32), params, coder)

    def decode(
        self, shape: tuple[int, int, int, int], params: Any, coder: Any
    ) -> NDArray[np.int32]:
        return self._run(shape, None, params, coder)

    def _run(
        self, shape: tuple[int, ...], q: NDArray[np.int32] | None, params: Any, coder: Any
    ) -> NDArray[np.int32]:
        self.batches.append(tuple(shape))
        slabs, depth = shape[:2]
        index = np.zeros((slabs, int(np.prod(shape[2:]))), np.uint8)
        previous = np.zeros(index.shape, np.int64)
        out = np.empty(shape, np.int32)
        for k in range(depth):
            residual = None if q is None else q[:, k].reshape(slabs, -1) - previous
            previous = previous + coder.code(self.tables["q"], index, residual)
            samples = np.clip(np.rint(previous * params.step), -(2**31), 2**31 - 1)
            out[:, k] = samples.reshape(slabs, *shape[2:])
        return out
