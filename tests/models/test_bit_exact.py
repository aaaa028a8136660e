"""The default model gives the same symbols and samples on any arithmetic.

Threads, libraries, types of the sums, order of summation and order of slabs do not matter.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paths import SAMPLE
from symbol_streams import Params, Streams
from torch import Tensor

from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.models import loader
from mricodec.models.lossy import bit_exact as exact
from mricodec.models.lossy import codec as lossy_codec
from mricodec.models.lossy import context_model
from mricodec.models.lossy import lapped_transform as transform
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.lossy.coding_order import (
    CHANNELS,
    PARITIES,
    Layout,
    append_pass,
    context_columns,
    context_inputs,
    join_parities,
)
from mricodec.models.lossy.context_model import ContextCodec
from mricodec.models.lossy.iterative_rdo import dependent_rate_gradient
from mricodec.models.lossy.layers import IntegerConv2d
from mricodec.models.lossy.rdo import ErrorCompensation


def encode(
    model: loader.LossyModel, x: NDArray[np.int32], params: Params
) -> tuple[list[bytes], NDArray[np.int32], float]:
    streams = [EntropyEncoder() for _ in x]
    coder = Streams(streams)
    decoded = model.encode(x, params.step, coder, params)
    return [stream.finish() for stream in streams], decoded, sum(coder.counted)


def decode(
    model: loader.LossyModel, payloads: list[bytes], shape: tuple[int, ...], params: Params
) -> NDArray[np.int32]:
    streams = [EntropyDecoder(payload) for payload in payloads]
    size = (len(payloads), shape[1], shape[2], shape[3])
    decoded = model.decode(size, params, Streams(streams))
    for stream in streams:
        stream.finish()
    return decoded


def sample() -> NDArray[np.int32]:
    image: Any = nibabel.load(SAMPLE)  # type: ignore[attr-defined]
    return np.asarray(image.dataobj).T.astype(np.int32)


@pytest.fixture(scope="module")
def scan() -> NDArray[np.int32]:
    array = sample()
    return np.ascontiguousarray(
        np.stack([array[:6, 100:197, 90:205], array[8:14, 100:197, 90:205]])
    )


@pytest.fixture
def model() -> ContextLossy:
    loaded = loader.load_model("default")
    assert isinstance(loaded, ContextLossy)
    return loaded


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a flag for other hardware
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@pytest.fixture(params=[1, 2, 4, 8])
def depth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The transform across the slices that the encoder takes."""
    value: int = request.param
    monkeypatch.setattr(lossy_codec, "choose_depths", lambda y: [value] * len(y))
    return value


@pytest.mark.parametrize("step", [0.5, 8.0, 60.0])
def test_decoder_repeats_the_encoder(
    model: ContextLossy, scan: NDArray[np.int32], step: float, depth: int
) -> None:
    params = Params(step, int(scan.max()))
    payloads, decoded, _ = encode(model, scan, params)
    assert np.array_equal(decode(model, payloads, scan.shape, params), decoded)
    assert np.sqrt(np.mean((decoded - scan) ** 2.0)) < 0.5 * step + 0.5


@pytest.mark.parametrize("dtype", exact.CANDIDATES)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("onednn", [True, False])
def test_any_arithmetic_decodes_the_same(
    model: ContextLossy, scan: NDArray[np.int32], dtype: torch.dtype, number: int, onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    params = Params(6.0, int(scan.max()))
    x = np.ascontiguousarray(scan[:, :3, :64, :72])
    # Depth 4 has low and detail bands.
    monkeypatch.setattr(lossy_codec, "choose_depths", lambda y: [4] * len(y))
    payloads, decoded, _ = encode(model, x, params)
    other = loader.load_model("default")
    assert isinstance(other, ContextLossy)
    exact.set_backend(other.network, dtype)
    with threads(number), contextlib.nullcontext() if onednn else without_onednn():
        assert np.array_equal(decode(other, payloads, x.shape, params), decoded)


def test_samples_are_the_same_in_both_types(
    model: ContextLossy, scan: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0.3, 11.7, 300.0):
        params = Params(step, int(scan.max()))
        payloads, decoded, _ = encode(model, scan, params)
        with monkeypatch.context() as patch:
            patch.setattr(lossy_codec, "EXACT_STEP", 0)
            assert np.array_equal(decode(model, payloads, scan.shape, params), decoded)


def test_order_of_summation_does_not_matter(
    model: ContextLossy, scan: NDArray[np.int32], depth: int
) -> None:
    params = Params(6.0, int(scan.max()))
    payloads, decoded, _ = encode(model, scan, params)
    other = loader.load_model("default")
    assert isinstance(other, ContextLossy)
    permute_hidden_channels(other.network)
    assert np.array_equal(decode(other, payloads, scan.shape, params), decoded)


def permute_hidden_channels(network: ContextCodec) -> None:
    """The same function with all channels but inputs and outputs in another order."""
    generator = torch.Generator().manual_seed(5)

    def order(layer: IntegerConv2d) -> torch.Tensor:
        return torch.randperm(layer.weight.shape[0], generator=generator)

    def outputs(layer: IntegerConv2d, p: torch.Tensor) -> None:
        assert layer.frozen_weight is not None and layer.frozen_bias is not None
        layer.frozen_weight, layer.frozen_bias = layer.frozen_weight[p], layer.frozen_bias[p]

    def inputs(layer: IntegerConv2d, p: torch.Tensor) -> None:
        assert layer.frozen_weight is not None
        layer.frozen_weight = layer.frozen_weight[:, p]

    for net in (network.low, network.detail):
        p = order(net.sources[0])
        net.class_bias.data, net.rate.data = net.class_bias[:, p], net.rate[:, p]
        for layer in (
            *net.sources,
            *(block.second for block in net.mix),
            *(each.known for each in net.passes[1:]),
        ):
            outputs(layer, p)
        for layer in (*(block.first for block in net.mix), *(each.middle for each in net.passes)):
            inputs(layer, p)
    for each in (*network.low.passes, *network.detail.passes):
        p = order(each.middle)
        outputs(each.middle, p)
        inputs(each.head, p)
    for block in (*network.low.mix, *network.detail.mix):
        for layer, following in ((block.first, block.middle), (block.middle, block.second)):
            p = order(layer)
            outputs(layer, p)
            inputs(following, p)


@pytest.mark.parametrize("effort", ["default", "high"])
def test_slabs_stand_alone(model: ContextLossy, scan: NDArray[np.int32], effort: str) -> None:
    scan, params = scan[:, :4, :50, :45], Params(6.0, int(scan.max()), effort=effort)
    payloads, decoded, _ = encode(model, scan, params)
    assert np.array_equal(decode(model, payloads[::-1], scan.shape, params), decoded[::-1])
    assert np.array_equal(decode(model, payloads[1:], scan.shape, params), decoded[1:])
    assert encode(model, scan[1:], params)[0] == payloads[1:]


def test_chosen_arithmetic_is_exact(model: ContextLossy) -> None:
    assert exact.choose_backend(model.network, "cpu") in exact.CANDIDATES


def test_inexact_arithmetic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test bites: sums that are off by one unit are noticed."""

    def off(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = exact.integer_sums(x, weight, bias)
        y[0, 0, 0, 0] += 1
        return y

    monkeypatch.setattr(exact, "convolve", off)
    exact.exact_dtype.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="no exact convolution"):
            exact.exact_dtype(((4, 3, 3),), "cpu")
    finally:
        exact.exact_dtype.cache_clear()


SIZES = [(6, 8), (5, 7), (1, 2), (3, 1), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_parts_of_a_convolution_are_those_of_the_whole(
    model: ContextLossy, size: tuple[int, int]
) -> None:
    """With known inputs and chosen outputs alone, by the parity of the block."""
    generator = torch.Generator().manual_seed(0)
    net = model.network.low
    layout = Layout.of(*size)
    known = torch.zeros(2, *size, CHANNELS)
    padded: Tensor | None = None
    outputs = torch.tensor([3, 0, 90])
    for p, where in enumerate(layout.where):
        if p > 0:
            layer = net.passes[p].known
            assert isinstance(layer, IntegerConv2d) and padded is not None
            whole = layer(known.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[..., outputs]
            parts = []
            for parity, ((r, c), near) in enumerate(
                zip(PARITIES, context_columns(padded), strict=True)
            ):
                kernel = layer.kernel(parity, context_inputs(p, parity), outputs)
                parts.append(layer.product(near, kernel))
                assert torch.equal(parts[-1], whole[:, r::2, c::2].flatten(0, 2))
            in_order = [whole[:, r::2, c::2].flatten(1, 2) for r, c in PARITIES]
            assert torch.equal(join_parities(parts, 2), torch.cat(in_order, 1))
        coded = torch.randint(-127, 128, (2, len(where)), generator=generator).float()
        known.view(2, -1)[:, where] = coded
        padded = append_pass(padded, coded, *size)
    assert sorted(torch.cat(layout.where).tolist()) == list(range(known[0].numel()))


@pytest.mark.parametrize("size", SIZES)
def test_error_compensation_is_a_jacobi_step(size: tuple[int, int]) -> None:
    """On the Gram matrix of the transform without its diagonal neighbours, for later passes."""
    layout = Layout.of(*size)
    kernel, norms = transform.gram()
    edges = kernel[..., [0, 1, 1, 2], [1, 0, 2, 1]]
    assert kernel[..., ::2, ::2].square().sum() < 0.02 * edges.square().sum()
    kernel = kernel.clone()
    kernel[..., ::2, ::2] = 0
    y = 100 * torch.randn(2, *size, CHANNELS, generator=torch.Generator().manual_seed(0))
    compensation = ErrorCompensation(y, layout)
    error = torch.zeros_like(y)
    for p, where in enumerate(layout.where):
        products = torch.nn.functional.conv2d(error.permute(0, 3, 1, 2), kernel, padding=1)
        expected = y - products.permute(0, 2, 3, 1) / (norms * transform.GRAM_SCALE)
        targets = compensation.targets(p)
        assert torch.equal(targets, expected.flatten(1)[:, where])
        y_hat = 16 * (targets / 16).round()
        compensation.update(p, y_hat)
        error.view(2, -1)[:, where] = (y_hat - y.flatten(1)[:, where]).round()


def test_dependent_rate_gradient_in_parts(
    model: ContextLossy, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same in parts, and 0 where no other symbol depends on a coefficient."""
    torch.manual_seed(0)
    y_hat = (torch.randn(8 * depth, 6, 5, 64) * 100 / (1 + torch.arange(64))).round()
    y, rate = y_hat + 16 * torch.rand_like(y_hat) - 8, torch.tensor([6])
    whole = dependent_rate_gradient(model.network, y_hat, y, depth, rate)
    monkeypatch.setattr(context_model, "MAX_BLOCKS", 60)
    in_parts = dependent_rate_gradient(model.network, y_hat, y, depth, rate)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-4)
    layout = Layout.of(6, 5)
    last, first = whole[depth - 1 if depth > 1 else 2].flatten(), whole[0].flatten()
    assert not last[layout.where[3]].any()
    assert last[layout.where[0]].abs().mean() > 0.01
    assert first[layout.where[3]].abs().mean() > 0.01


def test_estimated_bits_are_the_file() -> None:
    array = sample()
    x = np.ascontiguousarray(array[None, :, 60:316, 30:230])
    assert x.size > 1_000_000
    model = loader.load_model("default")
    for step in (4.0, 25.0):
        payloads, _, bits = encode(model, x, Params(step, int(x.max())))
        assert 8 * len(payloads[0]) == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize(
    "name", ["factorized", "hyperprior", "cnn8", "cnn16", "cnn32", "unet", "unet-2level", "vae"]
)
def test_research_models_decode_the_same_latents(name: str, scan: NDArray[np.int32]) -> None:
    model = loader.load_model(name)
    params = Params(6.0, int(scan.max()))
    x = scan[:, :2]
    payloads, decoded, _ = encode(model, x, params)
    with threads(2), without_onednn():
        again = decode(loader.load_model(name), payloads, x.shape, params)
    assert int(np.abs(again - decoded).max()) <= 1
