"""The lossy models on slices at work: the hyperprior, the factorized prior and the autoencoders of the study."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.models.study.autoencoder import Autoencoder

from .codec_base import (
    STEP_BITS,
    SYMBOL_MAX,
    Params,
    integer_step,
    padded,
)
from .hyperprior import ScaleHyperprior, TransformCoder

Z_MAX = 127


class _Symbols:
    """Tensors to and from the coder."""

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder = coder

    def code(self, tables: ProbabilityTables, index: Tensor, values: Tensor | None) -> Tensor:
        """index, values [S, n] integer-valued tensors -> values, float32 on the same device."""
        rows = index.to(torch.uint8).cpu().numpy()
        given = None if values is None else values.to(torch.int32).cpu().numpy()
        got = self._coder.code(tables, rows, given)
        return torch.from_numpy(np.clip(got, -SYMBOL_MAX, SYMBOL_MAX - 1).astype(np.float32)).to(
            index.device
        )


class TransformLossy:
    """Codecs of slices, those of the study too: the same latents everywhere, samples up to float rounding."""

    exact_samples = False
    by_id = False

    def __init__(
        self,
        name: str,
        model_id: bytes,
        network: TransformCoder | Autoencoder,
        tables: dict[str, ProbabilityTables],
        device: str,
    ) -> None:
        self.name, self.model_id, self.tables = name, model_id, tables
        self.network = self._network = network
        self._device = device

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give, the same shape."""
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
        gain = self._network.gain(
            torch.tensor(
                [math.log2(max(peak / step, 4.0))], dtype=torch.float32, device=self._device
            )
        )
        symbols = _Symbols(coder)
        stride = self._network.stride
        size = (-(-height // 8) * 8 // stride, -(-width // 8) * 8 // stride)
        octave = (
            (max(params.peak, 1) << STEP_BITS) // integer_step(params)
        ).bit_length() - 1  # of peak / step, exact
        for t in range(k):
            y = None
            if x is not None:
                flat = padded(x[:, t])[:, None].to(self._device) / peak
                y = self._network.g_a(flat) * gain
            y_hat = self._latents(s, size, y, octave, symbols)
            samples = self._network.g_s(y_hat / gain)[:, 0, :height, :width] * peak
            out[:, t] = samples.round().clamp(-(2.0**30), 2.0**30).cpu().numpy().astype(np.int32)
        return out

    def _latents(
        self, s: int, size: tuple[int, int], y: Tensor | None, octave: int, symbols: _Symbols
    ) -> Tensor:
        network = self._network
        planes = (s, network.latent, *size)
        tables = self.tables[network.table_set(octave)]
        if isinstance(network, ScaleHyperprior):
            small = (-(-size[0] // 2), -(-size[1] // 2))
            given = (
                None
                if y is None
                else network.analyse_hyper(y).round().clamp(-Z_MAX, Z_MAX).reshape(s, -1)
            )
            channel = torch.arange(32, device=self._device).repeat_interleave(small[0] * small[1])
            z = symbols.code(self.tables["z"], channel.expand(s, -1), given).reshape(s, 32, *small)
            index = network.scale_index(z, size).reshape(s, -1)
        else:
            index = (
                torch.arange(network.latent, device=self._device)
                .repeat_interleave(size[0] * size[1])
                .expand(s, -1)
            )
        given = None if y is None else y.round().clamp(-SYMBOL_MAX, SYMBOL_MAX - 1).reshape(s, -1)
        return symbols.code(tables, index, given).reshape(planes)
