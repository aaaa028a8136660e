"""The coders of slices as lossy models of the codec: integer volumes, slice by slice."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder

from .params import STEP_BITS, Params, integer_step
from .slice_coder import SliceCoder, TensorSymbols
from .tensors import padded


class TransformLossy:
    """A coder of slices; every machine decodes the same latents, and samples up to float rounding.

    codes [S, K, H, W], slice by slice / peak --g_a, * gain--> y --round--> y_hat, coded
    y_hat --/ gain, g_s--> * peak, rounded: codes [S, K, H, W]
    """

    exact_samples = False

    def __init__(
        self,
        name: str,
        model_id: bytes,
        network: SliceCoder,
        tables: dict[str, ProbabilityTables],
        device: str,
    ) -> None:
        self.name, self.model_id, self.tables = name, model_id, tables
        self.network = network
        network.tables = tables
        self._device = device

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        """Integers [S, K, H, W] in 0 ... peak -> what the decoder reconstructs, the same shape."""
        return self._run(x.shape, x, coder, params)

    def decode(
        self, shape: tuple[int, int, int, int], params: Params, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        return self._run(shape, None, coder, params)

    @torch.inference_mode()
    def _run(
        self,
        shape: tuple[int, ...],
        x: NDArray[np.int32] | None,
        coder: SymbolCoder,
        params: Params,
    ) -> NDArray[np.int32]:
        s, k, height, width = shape
        out = np.empty(shape, np.int32)
        peak = max(float(params.peak), 1.0)
        step = integer_step(params) / (1 << STEP_BITS)
        level = [math.log2(max(peak / step, 4.0))]
        gain = self.network.gain(torch.tensor(level, dtype=torch.float32, device=self._device))
        symbols = TensorSymbols(coder)
        size = (s, *self.network.latent_size(height, width))
        # The integer part of log2(peak / step), exact.
        octave = ((max(params.peak, 1) << STEP_BITS) // integer_step(params)).bit_length() - 1
        for t in range(k):
            y = None
            if x is not None:
                flat = padded(x[:, t])[:, None].to(self._device) / peak
                y = self.network.g_a(flat) * gain
            y_hat = self.network.code_latents(size, y, octave, symbols)
            samples = self.network.g_s(y_hat / gain)[:, 0, :height, :width] * peak
            out[:, t] = samples.round().clamp(-(2.0**30), 2.0**30).cpu().numpy().astype(np.int32)
        return out
