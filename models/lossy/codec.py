"""The default lossy model as a codec: codes -> symbols through a symbol coder -> decoded codes.

Encoder and decoder are one run of the same context model, so the encoder returns what the decoder
will give. S slabs are coded side by side, each with a stream of its own; no stream depends on which
slabs are coded together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.models.strings import DEFAULT_LEVEL, compress_volumes, decompress_volumes

from . import lapped_transform as transform
from .coding_order import CHANNELS, Layout
from .context_model import ContextCodec, rate_class
from .params import STEP_BITS, Params, integer_step
from .pass_symbols import PassSymbols
from .rdo import choose_depths
from .tensors import padded

# Largest magnitude of a sample of the synthesis, in 1/16 of a step.
SAMPLE_MAX = float(1 << 26)
# Integer steps below this times SAMPLE_MAX are exact in float64, and the codes fit an int32.
EXACT_STEP = 1 << 25
# Blocks of a slice from which on the depth is chosen by a sixteenth of them, else by a quarter.
MANY_BLOCKS = 512
# Slices that one call of the analysis transforms.
ANALYSED_SLICES = 8
# Samples that one call of the synthesis gives: its tensors fit a cache.
SYNTHESISED_SAMPLES = 1 << 18


class ContextLossy:
    """The default model; decodes to the same integers everywhere.

    codes [S, K, H, W] --analysis--> y --depth, RDO--> bands [S, K', h, w, 64]
      --ContextCodec.run--> y_hat, symbols coded --synthesis, * step--> codes [S, K, H, W]
    """

    exact_samples = True

    def __init__(
        self,
        name: str,
        model_id: bytes,
        network: ContextCodec,
        tables: dict[str, ProbabilityTables],
        device: str,
    ) -> None:
        self.name, self.model_id, self.tables = name, model_id, tables
        self.network = network
        self.sign_weights = network.hiding.numpy()  # See sign_hiding.py.
        self._device = device

    @torch.inference_mode()
    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        """Code codes x [S, K, H, W]; returns what the decoder will give, the same shape."""
        s, k, height, width = x.shape
        sixteenth = integer_step(params) / (1 << STEP_BITS + 4)
        shape = (s, k, -(-height // 8), -(-width // 8), CHANNELS)
        y = torch.empty(shape, dtype=torch.float32, device=self._device)
        for slab, coefficients in zip(x, y, strict=True):
            for start in range(0, k, ANALYSED_SLICES):
                part = slice(start, start + ANALYSED_SLICES)
                transform.analysis(
                    padded(slab[part]).div_(sixteenth).to(self._device), coefficients[part]
                )
        return self._run(x.shape, y, self.depths(y), coder, params)

    @torch.inference_mode()
    def decode(
        self, shape: tuple[int, int, int, int], params: Params, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W]."""
        return self._run(shape, None, None, coder, params)

    def compress(self, x: Tensor, level: float = DEFAULT_LEVEL) -> dict[str, Any]:
        """x [K, H, W] or [S, K, H, W] in 0 .. 1 -> {"strings": [[one per volume]], "shape": of x}.

        level: log2 of the range of x over the quantisation step, 2 to 12.
        """
        return compress_volumes(self, x, level)

    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], level: float = DEFAULT_LEVEL
    ) -> dict[str, Any]:
        """Strings and shape as `compress` returns them -> {"x_hat": float32 of that shape}.

        FormatError if the strings are damaged.
        """
        return decompress_volumes(self, strings, shape, level)

    def depths(self, y: Tensor) -> list[int]:
        """The depth of the transform across for each slab.

        From its coefficients y [S, K, h, w, 64] in 1/16 of a step.
        """
        every = 4 if y.shape[2] * y.shape[3] >= MANY_BLOCKS else 2
        return [choose_depths(slab[None, :, ::every, ::every] / 16)[0] for slab in y]

    # -- what encoder and decoder share ----------------------------------------------------------

    def _run(
        self,
        shape: tuple[int, ...],
        y: Tensor | None,
        depths: list[int] | None,
        coder: SymbolCoder,
        params: Params,
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W]; to encode, y [S, K, h, w, 64] in 1/16 of a step and depths."""
        choices = self._code_depths(shape[0], depths, coder)
        out = np.empty(shape, np.int32)
        for choice in sorted(set(choices)):
            depth = transform.DEPTHS[choice]
            slabs = [n for n, other in enumerate(choices) if other == choice]
            part = (len(slabs), *shape[1:])
            bands = None
            if y is not None:
                bands = transform.analysis_across(y if len(slabs) == len(y) else y[slabs], depth)
            y_hat = self._code_bands(part, bands, depth, coder.of(slabs), params)
            self._synthesise(y_hat, [out[slab] for slab in slabs], depth, params)
        return out

    def _code_depths(self, slabs: int, depths: list[int] | None, coder: SymbolCoder) -> list[int]:
        """For each slab the number of its depth in DEPTHS, coded from `depths` or decoded."""
        values = None
        if depths is not None:
            values = np.array([[transform.DEPTHS.index(depth)] for depth in depths])
        coded = coder.code(self.tables["depth"], np.zeros((slabs, 1), np.uint8), values)[:, 0]
        choices: list[int] = np.clip(coded, 0, len(transform.DEPTHS) - 1).tolist()
        return choices

    def _rate_class(self, params: Params) -> int:
        return rate_class(integer_step(params), params.peak)

    def _code_bands(
        self,
        shape: tuple[int, ...],
        y: Tensor | None,
        depth: int,
        coder: SymbolCoder,
        params: Params,
    ) -> Tensor:
        """y_hat [S, K', h, w, 64] of slabs [S, K, H, W] of one depth, coded or decoded.

        y: the bands to code, in 1/16 of a step; None to decode.
        """
        s, k, height, width = shape
        size = (-(-height // 8), -(-width // 8))
        device = self._device
        layout = Layout.of(*size, device)
        symbols = PassSymbols(s, coder, self.tables, self.sign_weights)
        coder_of = symbols.decoder if y is None else partial(symbols.encoder, y, layout)
        rate = torch.full((s,), self._rate_class(params), device=device)
        planes = (s, -(-k // depth) * depth, *size, CHANNELS)
        y_hat = torch.empty(planes, dtype=torch.float32, device=device)
        return self.network.run(y_hat, depth, rate, layout, coder_of)

    def _synthesise(
        self, y_hat: Tensor, out: Iterable[NDArray[np.int32]], depth: int, params: Params
    ) -> None:
        """Bands [S, K', h, w, 64] -> codes [K, H, W] of each slab, written into `out`."""
        at_once = max(1, SYNTHESISED_SAMPLES // y_hat[0, 0].numel())
        for codes, bands in zip(out, y_hat, strict=True):
            k, height, width = codes.shape
            # Parts end amid groups, where they need the fewest bands.
            inner = range(depth // 2, k, max(depth, at_once // depth * depth))
            for start, stop in itertools.pairwise(sorted({0, k, *inner})):
                slices = transform.synthesis_across(
                    bands.flatten(1), depth, slice(start, stop)
                ).unflatten(1, bands.shape[1:])
                samples = transform.synthesis(slices).clamp_(-SAMPLE_MAX, SAMPLE_MAX)
                codes[start:stop] = _codes_of(samples[:, :height, :width], integer_step(params))


def _codes_of(samples: Tensor, step: int) -> NDArray[Any]:
    """Samples in 1/16 of a step -> codes: (samples * step + 2**19) >> 20; step in 2**-16 codes."""
    if step < EXACT_STEP:  # Faster in float64.
        codes = samples.mul_(step / (1 << STEP_BITS + 4)).add_(0.5).floor_()
    else:
        products = samples.to(torch.int64).mul_(step).add_(1 << STEP_BITS + 3)
        codes = (products >> STEP_BITS + 4).clamp_(-(1 << 31), (1 << 31) - 1)
    return codes.cpu().numpy()
