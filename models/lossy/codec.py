"""The lossy models at work: codes in, symbols through a coder, the decoder's samples out. One run for both directions.

The coder of symbols has S slabs, each a stream of its own (`bitstream.symbols`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder
from mricodec.models.strings import DEFAULT_LEVEL, compress_volumes, decompress_volumes

from . import lapped_transform as transform
from . import sign_hiding as hiding
from .codec_base import (
    SIGNS,
    STEP_BITS,
    SYMBOL_MAX,
    Params,
    integer_step,
    padded,
)
from .coding_order import CHANNELS, Layout
from .context_model import INDEX_SKIP, Code, ContextCodec, rate_class
from .rdo import (
    RDO_LAMBDA,
    _Lengths,
    _Targets,
    _Unwritten,
    bits_to_grow,
    choose_depths,
    rdo_quantise,
)

SAMPLE_MAX = float(1 << 26)
EXACT_STEP = 1 << 25  # times SAMPLE_MAX: exact in float64, codes in int32


MANY_BLOCKS = 512  # of a slice: a sixteenth of them tell the depth as well as a quarter
ANALYSED_AT_ONCE = 8  # slices
RDO_ITERATIONS = 5  # trials of `ContextLossy._iterative_rdo`
MAX_RATE_GRADIENT = 4.0  # bits a step
SAMPLES_AT_ONCE = 1 << 18  # that the synthesis handles together: tensors that fit a cache


def _searches(params: Params) -> bool:
    return getattr(params, "effort", "default") == "high"


class ContextLossy:
    """The default model. Decodes to the same integers everywhere."""

    exact_samples = True
    by_id = False

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
        self._device = device
        self._hiding = network.hiding.numpy()
        self._costs = RDO_LAMBDA * bits_to_grow().numpy()

    @torch.inference_mode()
    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give, the same shape."""
        s, k, height, width = x.shape
        sixteenth = integer_step(params) / (1 << STEP_BITS + 4)
        y = torch.empty((s, k, -(-height // 8), -(-width // 8), CHANNELS), device=self._device)
        for slab, coefficients in zip(
            x, y, strict=True
        ):  # the streams must not depend on which are coded together
            for start in range(0, k, ANALYSED_AT_ONCE):
                part = slice(start, start + ANALYSED_AT_ONCE)
                transform.analysis(
                    padded(slab[part]).div_(sixteenth).to(self._device), coefficients[part]
                )
        return self._run(x.shape, y, self.depths(x, y, params), coder, params)

    def depths(self, x: NDArray[np.int32], y: Tensor, params: Params) -> list[int]:
        """Of the transform, for each slab, from its codes [S, K, H, W] and slices y [S, K, h, w, 64] in 1/16 step."""
        if _searches(params):
            return self._tried_depths(x, y, params)
        every = 4 if y.shape[2] * y.shape[3] >= MANY_BLOCKS else 2
        return [choose_depths(slab[None, :, ::every, ::every] / 16)[0] for slab in y]

    def _tried_depths(self, x: NDArray[np.int32], y: Tensor, params: Params) -> list[int]:
        """For each slab the depth of the least squared error + RDO_LAMBDA bits, both from coding it that way."""
        costs = []
        for depth in transform.DEPTHS:
            lengths = _Lengths(np.zeros(len(x)))
            y_hat = self._planes(
                x.shape, transform.analysis_across(y, depth), depth, lengths, params
            )
            made = np.empty(x.shape, np.int32)
            self._samples(y_hat, made, depth, params)
            error = (made - x) / params.step
            costs.append(np.square(error).sum((1, 2, 3)) + RDO_LAMBDA * lengths.bits)
        return [transform.DEPTHS[i] for i in np.argmin(costs, 0).tolist()]

    def _iterative_rdo(
        self, shape: tuple[int, ...], y: Tensor, depth: int, params: Params
    ) -> Tensor:
        """Planes [S, K', h, w, 64] to code instead of y: less of what makes others dear, more of what makes them cheap.

        Coefficients are moved to where squared error + RDO_LAMBDA bits is least if every step of theirs costs others as much
        as on the mean of RDO_ITERATIONS trials and 0. (The gradients of one trial are noisy: symbols are integers.)
        """
        rate = torch.tensor([self._rate_class(params)], device=self._device)
        dependent_rate_gradient, wanted = torch.zeros_like(y), y
        for n in range(RDO_ITERATIONS):
            y_hat = self._planes(shape, wanted, depth, _Unwritten(), params)
            for mean, coded, slab in zip(dependent_rate_gradient, y_hat, y, strict=True):
                found = self.network.dependent_rate_gradient(coded, slab, depth, rate).clamp_(
                    -MAX_RATE_GRADIENT, MAX_RATE_GRADIENT
                )
                mean += found.sub_(mean).div_(n + 2)
            wanted = y - 8 * RDO_LAMBDA * dependent_rate_gradient
        return wanted

    @torch.inference_mode()
    def decode(
        self, shape: tuple[int, int, int, int], params: Params, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        return self._run(shape, None, None, coder, params)

    def _run(
        self,
        shape: tuple[int, ...],
        y: Tensor | None,
        depths: list[int] | None,
        coder: SymbolCoder,
        params: Params,
    ) -> NDArray[np.int32]:
        """y [S, K, h, w, 64] of slices, in 1/16 step, and the depth of every slab, to encode."""
        s = shape[0]
        given = (
            None
            if depths is None
            else np.array([[transform.DEPTHS.index(depth)] for depth in depths])
        )
        got = np.clip(
            coder.code(self.tables["depth"], np.zeros((s, 1), np.uint8), given)[:, 0],
            0,
            len(transform.DEPTHS) - 1,
        )
        out = np.empty(shape, np.int32)
        for choice in sorted(set(got.tolist())):
            slabs = np.flatnonzero(got == choice).tolist()
            depth = transform.DEPTHS[choice]
            planes = (
                None
                if y is None
                else transform.analysis_across(y if len(slabs) == s else y[slabs], depth)
            )
            several = (len(slabs), *shape[1:])
            if planes is not None and _searches(params):
                planes = self._iterative_rdo(several, planes, depth, params)
            y_hat = self._planes(several, planes, depth, coder.of(slabs), params)
            self._samples(y_hat, [out[slab] for slab in slabs], depth, params)
        return out

    def compress(self, x: Tensor, level: float = DEFAULT_LEVEL) -> dict[str, Any]:
        """x [K, H, W] or [S, K, H, W] in 0 ... 1 -> {"strings": [[one of each volume]], "shape": that of x}.

        level: log2 of the range of x over the quantiser's step, 2 to 12.
        """
        return compress_volumes(self, x, level)

    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], level: float = DEFAULT_LEVEL
    ) -> dict[str, Any]:
        """Strings and shape as `compress` returns them -> {"x_hat": float32 of that shape}. FormatError if damaged."""
        return decompress_volumes(self, strings, shape, level)

    def _rate_class(self, params: Params) -> int:
        return rate_class(integer_step(params), params.peak)

    def _planes(
        self,
        shape: tuple[int, ...],
        y: Tensor | None,
        depth: int,
        coder: SymbolCoder,
        params: Params,
    ) -> Tensor:
        """Planes [S, K', h, w, 64] of slabs of one depth, decoded (and coded, if y, their planes in 1/16 step, is given)."""
        s, k, height, width = shape
        size = (-(-height // 8), -(-width // 8))
        device = self._device
        layout = Layout.of(*size, device)

        def coder_of(planes: Sequence[int]) -> Code:
            wanted = None if y is None else y[:, list(planes)].flatten(0, 1)
            targets: list[_Targets] = []  # of each part

            def code(
                p: int, means: Sequence[Tensor], indices: Sequence[Tensor]
            ) -> Sequence[Tensor]:
                sizes = [len(mu) for mu in means]
                if wanted is not None and not targets:
                    targets.extend(_Targets(part, layout) for part in wanted.split(sizes))
                symbols = self._pass(
                    p, means, indices, [target.of(p) for target in targets], s, coder
                )
                parts: tuple[Tensor, ...] = torch.from_numpy(symbols).to(device).split(sizes)
                for target, q, mu in zip(targets, parts, means, strict=False):
                    target.coded(p, 16 * q + mu)
                return parts

            return code

        rate = torch.full((s,), self._rate_class(params), device=device)
        y_hat = torch.empty((s, -(-k // depth) * depth, *size, CHANNELS), device=device)
        return self.network.run(y_hat, depth, rate, layout, coder_of)

    def _pass(
        self,
        p: int,
        means: Sequence[Tensor],
        indices: Sequence[Tensor],
        wanted: Sequence[Tensor],
        s: int,
        coder: SymbolCoder,
    ) -> NDArray[np.float32]:
        """Symbols [N, n] of a pass from means and scale indices [.., n] of parts of its planes; to encode, of what is wanted.

        Magnitudes first, then the signs that parities do not say (hiding.py).
        """
        shape = (sum(map(len, means)), means[0].shape[1])
        index = np.empty(shape, np.uint8)
        error = np.empty(shape if wanted else 0, np.float32)
        found: NDArray[Any] = np.empty(error.shape, np.int32)
        start = 0
        for n, (mu, row) in enumerate(zip(means, indices, strict=True)):
            part = slice(start, start := start + len(mu))
            index[part] = row.to(torch.uint8).cpu()
            if wanted:
                e = (wanted[n] - mu).div_(16)
                q = rdo_quantise(e, row, INDEX_SKIP).clamp_(1 - SYMBOL_MAX, SYMBOL_MAX - 1)
                error[part], found[part] = e.cpu(), q.cpu()
        index *= index >= INDEX_SKIP
        cells = hiding.SignGroups.of(index, self._hiding, s)
        if wanted:
            found, at = hiding.hide(cells, found, error, self._costs, index)
            size = np.abs(found)
            coder.code(self.tables[f"pass{p}"], index.reshape(s, -1), size.reshape(s, -1))
        else:
            got = coder.code(self.tables[f"pass{p}"], index.reshape(s, -1), None)
            size = np.clip(got, 0, SYMBOL_MAX)
            at, hidden = hiding.hidden(cells, size)
        told = size.reshape(-1) > 0
        told[at] = False
        sent = np.flatnonzero(told)
        # slabs have the same number of symbols for the coder, so rows of signs are filled up
        counts = np.diff(np.searchsorted(sent, np.arange(s + 1) * (told.size // s)))
        rows = (np.arange(counts.max()) < counts[:, None]).astype(np.uint8)
        filled = rows > 0
        if wanted:
            negative = np.zeros(rows.shape, np.uint8)
            negative[filled] = found.reshape(-1)[sent] < 0
            coder.code(self.tables[SIGNS], rows, negative)
            return found.astype(np.float32)
        symbols: NDArray[np.float32] = size.astype(np.float32)
        flat = symbols.reshape(-1)
        for places, signs in (
            (at, hidden),
            (sent, coder.code(self.tables[SIGNS], rows, None)[filled]),
        ):
            negative = places[signs == 1]
            flat[negative] = -flat[negative]
        return symbols.reshape(shape)

    def _samples(
        self, y_hat: Tensor, out: Iterable[NDArray[np.int32]], depth: int, params: Params
    ) -> None:
        """Planes [S, K', h, w, 64] -> codes [K, H, W] of each slab: (16ths of a step * step + 2**19) >> 20."""
        step = integer_step(params)
        half = 1 << (STEP_BITS + 3)
        many = max(1, SAMPLES_AT_ONCE // y_hat[0, 0].numel())
        for slab, planes in zip(out, y_hat, strict=True):
            k, height, width = slab.shape
            ends = sorted(
                {0, k, *range(depth // 2, k, max(depth, many // depth * depth))}
            )  # boundaries of groups lie within
            for start, stop in itertools.pairwise(ends):
                slices = transform.synthesis_across(
                    planes.flatten(1), depth, slice(start, stop)
                ).unflatten(1, planes.shape[1:])
                samples = transform.synthesis(slices).clamp_(-SAMPLE_MAX, SAMPLE_MAX)[
                    :, :height, :width
                ]
                if step < EXACT_STEP:  # faster
                    codes = samples.mul_(step / (1 << STEP_BITS + 4)).add_(0.5).floor_()
                else:
                    codes = (samples.to(torch.int64).mul_(step).add_(half) >> STEP_BITS + 4).clamp_(
                        -(1 << 31), (1 << 31) - 1
                    )
                slab[start:stop] = codes.cpu()
