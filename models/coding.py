"""The lossy models at work: codes in, symbols through a coder, the decoder's samples out. One run for both directions.

A `coder` has `code(table_set, index [S, n], values [S, n] | None) -> values`: S slabs side by side, each its own stream;
values are given when encoding and None when decoding; and `of(slabs)`, the same for some of the slabs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from . import entropy, hiding, transform
from .autoencoder import Autoencoder
from .context import (
    CHANNELS,
    INDEX_SKIP,
    PASSES,
    RDO_LAMBDA,
    SIGNS,
    Code,
    ContextCodec,
    Layout,
    bits_to_grow,
    choose_depths,
    coded_channels,
    column_inputs,
    columns,
    grown,
    joined,
    quantise,
    rate_class,
)
from .hyperprior import ScaleHyperprior, TransformCoder

STEP_BITS = 16  # the step is an integer number of 2**-16 codes
STEP_RANGE = (2.0**-12, 2.0**20)
FINEST = 2.0**-15  # of the largest code: the finest step that the integer arithmetic has room for
SYMBOL_MAX = 1 << 19
SAMPLE_MAX = float(1 << 26)
EXACT_STEP = 1 << 25  # times SAMPLE_MAX: exact in float64, codes in int32
ERROR_MAX = 255.0  # sixteenths of a step: exact sums in float32
Z_MAX = 127
MANY_BLOCKS = 512  # of a slice: a sixteenth of them tell the depth as well as a quarter
ANALYSED_AT_ONCE = 8  # slices
TUNINGS = 5  # trials of `ContextLossy._tuned`
BURDEN_MAX = 4.0  # bits a step
SAMPLES_AT_ONCE = 1 << 18  # that the synthesis handles together: tensors that fit a cache


@dataclass(frozen=True)
class TableSet:
    """Integer probability tables [rows, bins + 1], sum 2**24 a row; see `entropy`."""

    weights: NDArray[np.uint32]
    low: int
    octave: int


class Params(Protocol):
    """What a volume tells its model."""

    @property
    def step(self) -> float: ...
    @property
    def peak(self) -> int: ...


class SlabsCoder(Protocol):
    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[Any]: ...


class SymbolCoder(SlabsCoder, Protocol):
    def of(self, slabs: Sequence[int]) -> SymbolCoder: ...


def integer_step(params: Params) -> int:
    """The step in 2**-16 codes. ValueError if it is out of range."""
    step = max(float(np.float32(params.step)), FINEST * params.peak)
    if not STEP_RANGE[0] <= step <= STEP_RANGE[1]:
        raise ValueError(f"step: expected {STEP_RANGE[0]:g} to {STEP_RANGE[1]:g} codes, found {step:g}")
    return round(step * (1 << STEP_BITS))


def _searches(params: Params) -> bool:
    return getattr(params, "effort", "default") == "high"


def padded(x: NDArray[np.int32]) -> Tensor:
    """[K, H, W] -> float32, sides up to multiples of 8, the border repeated."""
    h, w = x.shape[1:]
    whole = torch.from_numpy(x.astype(np.float32))
    return whole if h % 8 == w % 8 == 0 else F.pad(whole, (0, -w % 8, 0, -h % 8), mode="replicate")


class _Unwritten:
    """A coder that writes nothing."""

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[Any]:
        assert values is not None
        return values


@dataclass(frozen=True)
class _Lengths:
    """A coder that writes nothing and sums up what each slab's symbols would take, about."""

    bits: NDArray[np.float64]

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[Any]:
        assert values is not None
        if table_set == SIGNS:
            self.bits[:] += index.sum(1)
            return values
        sent = index > 0
        sigma = entropy.sigma_of(torch.from_numpy(index[sent]))
        magnitudes = torch.from_numpy(values[sent])
        lengths = (entropy.laplace_bits(magnitudes, sigma) - (magnitudes > 0).float()).numpy()
        self.bits[:] += np.bincount(np.nonzero(sent)[0], lengths, len(index))
        return values


class _Targets:
    """What the coefficients of planes [N, h, w, 64] should become, given what came of those coded before; encoder only.

    The transform is not orthogonal: coefficients that are coded later can make good for the errors of those before. A step
    of Jacobi's iteration to the least squares for them gained 0.7 % of the rate on three validation scans, two steps no more.
    """

    def __init__(self, wanted: Tensor, layout: Layout) -> None:
        """wanted: in 1/16 step."""
        self._shape = wanted.shape
        self._wanted = [wanted.flatten(1).index_select(1, where) for where in layout.where]
        self._error: Tensor | None = None  # see `columns`

    def of(self, p: int) -> Tensor:
        """Of pass p, [N, n]."""
        if self._error is None:
            return self._wanted[p]
        shared = []
        for near, (kernel, norms) in zip(columns(self._error, cross=True), _shared(p), strict=True):
            shared.append((near @ kernel.to(near.device)).div_(norms.to(near.device)))
        return self._wanted[p] - joined(shared, self._shape[0]).flatten(1)

    def coded(self, p: int, y_hat: Tensor) -> None:
        """What came of pass p. In integers, so that it does not matter which planes are coded together."""
        if p < PASSES - 1:
            error = (y_hat - self._wanted[p]).round_().clamp_(-ERROR_MAX, ERROR_MAX)
            self._error = grown(self._error, error, *self._shape[1:3])


@lru_cache
@torch.inference_mode(False)
def _shared(p: int) -> list[tuple[Tensor, Tensor]]:
    """Of the blocks of each parity what the coefficients of pass p have in common with those known of the block and of the
    four beside it: float32 [inputs, m], integers in 1 / GRAM, and GRAM times the norms of those coefficients [m]."""
    kernel, norms = transform.gram()
    return [
        (kernel[wanted].flatten(1)[:, column_inputs(p, parity, cross=True)].T.contiguous(), norms[wanted] * transform.GRAM)
        for parity, wanted in enumerate(coded_channels(p))
    ]


class _Symbols:
    """Tensors to and from the coder."""

    def __init__(self, coder: SlabsCoder) -> None:
        self._coder = coder

    def code(self, name: str, index: Tensor, values: Tensor | None) -> Tensor:
        """index, values [S, n] integer-valued tensors -> values, float32 on the same device."""
        rows = index.to(torch.uint8).cpu().numpy()
        given = None if values is None else values.to(torch.int32).cpu().numpy()
        got = self._coder.code(name, rows, given)
        return torch.from_numpy(np.clip(got, -SYMBOL_MAX, SYMBOL_MAX - 1).astype(np.float32)).to(index.device)


class ContextLossy:
    """The default model. Decodes to the same integers everywhere."""

    exact_samples = True
    by_id = False

    def __init__(
        self, name: str, model_id: bytes, network: ContextCodec, tables: dict[str, TableSet], device: str
    ) -> None:
        self.name, self.model_id, self.tables = name, model_id, tables
        self._network = network
        self._device = device
        self._hiding = network.hiding.numpy()
        self._costs = RDO_LAMBDA * bits_to_grow().numpy()

    @torch.inference_mode()
    def encode(self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give, the same shape."""
        s, k, height, width = x.shape
        sixteenth = integer_step(params) / (1 << STEP_BITS + 4)
        y = torch.empty((s, k, -(-height // 8), -(-width // 8), CHANNELS), device=self._device)
        for slab, coefficients in zip(x, y, strict=True):  # the streams must not depend on which are coded together
            for start in range(0, k, ANALYSED_AT_ONCE):
                part = slice(start, start + ANALYSED_AT_ONCE)
                transform.analysis(padded(slab[part]).div_(sixteenth).to(self._device), coefficients[part])
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
            y_hat = self._planes(x.shape, transform.analysis_across(y, depth), depth, lengths, params)
            made = np.empty(x.shape, np.int32)
            self._samples(y_hat, made, depth, params)
            error = (made - x) / params.step
            costs.append(np.square(error).sum((1, 2, 3)) + RDO_LAMBDA * lengths.bits)
        return [transform.DEPTHS[i] for i in np.argmin(costs, 0).tolist()]

    def _tuned(self, shape: tuple[int, ...], y: Tensor, depth: int, params: Params) -> Tensor:
        """Planes [S, K', h, w, 64] to code instead of y: less of what makes others dear, more of what makes them cheap.

        Coefficients are moved to where squared error + RDO_LAMBDA bits is least if every step of theirs costs others as much
        as on the mean of TUNINGS trials and 0. (The gradients of one trial are noisy: symbols are integers.)
        """
        rate = torch.tensor([self._rate_class(params)], device=self._device)
        burden, wanted = torch.zeros_like(y), y
        for n in range(TUNINGS):
            y_hat = self._planes(shape, wanted, depth, _Unwritten(), params)
            for mean, coded, slab in zip(burden, y_hat, y, strict=True):
                found = self._network.burden(coded, slab, depth, rate).clamp_(-BURDEN_MAX, BURDEN_MAX)
                mean += found.sub_(mean).div_(n + 2)
            wanted = y - 8 * RDO_LAMBDA * burden
        return wanted

    @torch.inference_mode()
    def decode(self, shape: tuple[int, int, int, int], params: Params, coder: SymbolCoder) -> NDArray[np.int32]:
        return self._run(shape, None, None, coder, params)

    def _run(
        self, shape: tuple[int, ...], y: Tensor | None, depths: list[int] | None, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        """y [S, K, h, w, 64] of slices, in 1/16 step, and the depth of every slab, to encode."""
        s = shape[0]
        given = None if depths is None else np.array([[transform.DEPTHS.index(depth)] for depth in depths])
        got = np.clip(coder.code("depth", np.zeros((s, 1), np.uint8), given)[:, 0], 0, len(transform.DEPTHS) - 1)
        out = np.empty(shape, np.int32)
        for choice in sorted(set(got.tolist())):
            slabs = np.flatnonzero(got == choice).tolist()
            depth = transform.DEPTHS[choice]
            planes = None if y is None else transform.analysis_across(y if len(slabs) == s else y[slabs], depth)
            several = (len(slabs), *shape[1:])
            if planes is not None and _searches(params):
                planes = self._tuned(several, planes, depth, params)
            y_hat = self._planes(several, planes, depth, coder.of(slabs), params)
            self._samples(y_hat, [out[slab] for slab in slabs], depth, params)
        return out

    def _rate_class(self, params: Params) -> int:
        return rate_class(integer_step(params), params.peak)

    def _planes(
        self, shape: tuple[int, ...], y: Tensor | None, depth: int, coder: SlabsCoder, params: Params
    ) -> Tensor:
        """Planes [S, K', h, w, 64] of slabs of one depth, decoded (and coded, if y, their planes in 1/16 step, is given)."""
        s, k, height, width = shape
        size = (-(-height // 8), -(-width // 8))
        device = self._device
        layout = Layout.of(*size, device)

        def coder_of(planes: Sequence[int]) -> Code:
            wanted = None if y is None else y[:, list(planes)].flatten(0, 1)
            targets: list[_Targets] = []  # of each part

            def code(p: int, means: Sequence[Tensor], indices: Sequence[Tensor]) -> Sequence[Tensor]:
                sizes = [len(mu) for mu in means]
                if wanted is not None and not targets:
                    targets.extend(_Targets(part, layout) for part in wanted.split(sizes))
                symbols = self._pass(p, means, indices, [target.of(p) for target in targets], s, coder)
                parts: tuple[Tensor, ...] = torch.from_numpy(symbols).to(device).split(sizes)
                for target, q, mu in zip(targets, parts, means, strict=False):
                    target.coded(p, 16 * q + mu)
                return parts

            return code

        rate = torch.full((s,), self._rate_class(params), device=device)
        y_hat = torch.empty((s, -(-k // depth) * depth, *size, CHANNELS), device=device)
        return self._network.run(y_hat, depth, rate, layout, coder_of)

    def _pass(
        self, p: int, means: Sequence[Tensor], indices: Sequence[Tensor], wanted: Sequence[Tensor], s: int, coder: SlabsCoder
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
                q = quantise(e, row, INDEX_SKIP).clamp_(1 - SYMBOL_MAX, SYMBOL_MAX - 1)
                error[part], found[part] = e.cpu(), q.cpu()
        index *= index >= INDEX_SKIP
        cells = hiding.Cells.of(index, self._hiding, s)
        if wanted:
            found, at = hiding.hide(cells, found, error, self._costs, index)
            size = np.abs(found)
            coder.code(f"pass{p}", index.reshape(s, -1), size.reshape(s, -1))
        else:
            got = coder.code(f"pass{p}", index.reshape(s, -1), None)
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
            coder.code(SIGNS, rows, negative)
            return found.astype(np.float32)
        symbols: NDArray[np.float32] = size.astype(np.float32)
        flat = symbols.reshape(-1)
        for places, signs in ((at, hidden), (sent, coder.code(SIGNS, rows, None)[filled])):
            negative = places[signs == 1]
            flat[negative] = -flat[negative]
        return symbols.reshape(shape)

    def _samples(self, y_hat: Tensor, out: Iterable[NDArray[np.int32]], depth: int, params: Params) -> None:
        """Planes [S, K', h, w, 64] -> codes [K, H, W] of each slab: (16ths of a step * step + 2**19) >> 20."""
        step = integer_step(params)
        half = 1 << (STEP_BITS + 3)
        many = max(1, SAMPLES_AT_ONCE // y_hat[0, 0].numel())
        for slab, planes in zip(out, y_hat, strict=True):
            k, height, width = slab.shape
            ends = sorted({0, k, *range(depth // 2, k, max(depth, many // depth * depth))})  # boundaries of groups lie within
            for start, stop in itertools.pairwise(ends):
                slices = transform.synthesis_across(planes.flatten(1), depth, slice(start, stop)).unflatten(1, planes.shape[1:])
                samples = transform.synthesis(slices).clamp_(-SAMPLE_MAX, SAMPLE_MAX)[:, :height, :width]
                if step < EXACT_STEP:  # faster
                    codes = samples.mul_(step / (1 << STEP_BITS + 4)).add_(0.5).floor_()
                else:
                    codes = (samples.to(torch.int64).mul_(step).add_(half) >> STEP_BITS + 4).clamp_(-(1 << 31), (1 << 31) - 1)
                slab[start:stop] = codes.cpu()


class TransformLossy:
    """Codecs of slices, those of the study too: the same latents everywhere, samples up to float rounding."""

    exact_samples = False
    by_id = False

    def __init__(
        self, name: str, model_id: bytes, network: TransformCoder | Autoencoder, tables: dict[str, TableSet], device: str
    ) -> None:
        self.name, self.model_id, self.tables = name, model_id, tables
        self.network = self._network = network
        self._device = device

    def encode(self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: Params) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give, the same shape."""
        return self._run(x.shape, x, coder, params)

    def decode(self, shape: tuple[int, int, int, int], params: Params, coder: SymbolCoder) -> NDArray[np.int32]:
        return self._run(shape, None, coder, params)

    @torch.inference_mode()
    def _run(
        self, shape: tuple[int, ...], x: NDArray[np.int32] | None, coder: SymbolCoder, params: Params
    ) -> NDArray[np.int32]:
        s, k, height, width = shape
        out = np.empty(shape, np.int32)
        peak = max(float(params.peak), 1.0)
        step = integer_step(params) / (1 << STEP_BITS)
        gain = self._network.gain(torch.tensor([math.log2(max(peak / step, 4.0))], dtype=torch.float32, device=self._device))
        symbols = _Symbols(coder)
        stride = self._network.stride
        size = (-(-height // 8) * 8 // stride, -(-width // 8) * 8 // stride)
        octave = ((max(params.peak, 1) << STEP_BITS) // integer_step(params)).bit_length() - 1  # of peak / step, exact
        for t in range(k):
            y = None
            if x is not None:
                flat = padded(x[:, t])[:, None].to(self._device) / peak
                y = self._network.g_a(flat) * gain
            y_hat = self._latents(s, size, y, octave, symbols)
            samples = self._network.g_s(y_hat / gain)[:, 0, :height, :width] * peak
            out[:, t] = samples.round().clamp(-(2.0**30), 2.0**30).cpu().numpy().astype(np.int32)
        return out

    def _latents(self, s: int, size: tuple[int, int], y: Tensor | None, octave: int, symbols: _Symbols) -> Tensor:
        network = self._network
        planes = (s, network.latent, *size)
        tables = network.table_set(octave)
        if isinstance(network, ScaleHyperprior):
            small = (-(-size[0] // 2), -(-size[1] // 2))
            given = None if y is None else network.analyse_hyper(y).round().clamp(-Z_MAX, Z_MAX).reshape(s, -1)
            channel = torch.arange(32, device=self._device).repeat_interleave(small[0] * small[1])
            z = symbols.code("z", channel.expand(s, -1), given).reshape(s, 32, *small)
            index = network.scale_index(z, size).reshape(s, -1)
        else:
            index = torch.arange(network.latent, device=self._device).repeat_interleave(size[0] * size[1]).expand(s, -1)
        given = None if y is None else y.round().clamp(-SYMBOL_MAX, SYMBOL_MAX - 1).reshape(s, -1)
        return symbols.code(tables, index, given).reshape(planes)
