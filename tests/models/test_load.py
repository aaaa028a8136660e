"""Models for researchers: CompressAI's conventions on real slices, networks to train further."""

from __future__ import annotations

import math
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from paths import DATA, ROOT
from torch import Tensor

from mricodec import models
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.symbols import ProbabilityTables, SlabStreams, SymbolCoder
from mricodec.models.loader import load_model
from mricodec.models.lossy.layers import IntegerConv2d
from mricodec.models.lossy.slice_coder import table_likelihood
from mricodec.models.strings import PEAK, StepParams

SLICE_CODERS = [name for name in models.names() if name != "default"]


def volume(name: str) -> Tensor:
    """A real scan [K, H, W] in 0 ... 1."""
    image: Any = nibabel.load(DATA / name)  # type: ignore[attr-defined]
    array = np.asarray(image.dataobj).T.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array / array.max()))


@pytest.fixture(scope="module")
def slices() -> Tensor:
    """Two real slices [2, 1, 93, 90]: no side is a multiple of 8."""
    return volume("thick_flair.nii.gz")[3:5, None, :93, :90].contiguous()


def string_bytes(coded: dict[str, Any]) -> int:
    return sum(len(string) for strings in coded["strings"] for string in strings)


@pytest.mark.parametrize("level", [3.0, 6.5, 10.0])
@pytest.mark.parametrize("name", SLICE_CODERS)
def test_slices(name: str, level: float, slices: Tensor) -> None:
    """decompress(compress(x)) is x_hat of forward, and the likelihoods are those of the strings."""
    net = models.load(name)
    assert isinstance(net, torch.nn.Module) and not net.training and net.update() is False
    with torch.no_grad():
        out = net(slices, level)
    coded = net.compress(slices, level)
    decoded = net.decompress(coded["strings"], coded["shape"], level)
    assert torch.equal(decoded["x_hat"], out["x_hat"])
    assert out["x_hat"].shape == slices.shape
    assert all(len(strings) == len(slices) for strings in coded["strings"])
    assert len(coded["strings"]) == len(out["likelihoods"])
    bits = sum(float(-torch.log2(p.double()).sum()) for p in out["likelihoods"].values())
    assert bits / 8 == pytest.approx(string_bytes(coded), rel=0.02)


@pytest.mark.parametrize("name", ["hyperprior", "factorized", "vae"])
def test_the_level_sets_the_quantiser(name: str, slices: Tensor) -> None:
    net = models.load(name)
    errors, sizes = [], []
    for level in (4.0, 6.0, 8.0):
        net.level = level
        coded = net.compress(slices)
        error = net.decompress(coded["strings"], coded["shape"])["x_hat"] - slices
        errors.append(float(error.square().mean().sqrt()))
        sizes.append(string_bytes(coded))
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2] and sizes == sorted(sizes)
    assert errors[1] < 2.0**-6
    for bad in (1.0, 13.0, math.nan):
        with pytest.raises(ValueError, match="level: expected 2 to 12"):
            net.compress(slices, bad)


def test_strings_of_a_slice_do_not_depend_on_the_others(slices: Tensor) -> None:
    net = models.load("factorized")
    both, alone = net.compress(slices, 5), net.compress(slices[1:], 5)
    assert [strings[1:] for strings in both["strings"]] == alone["strings"]


def test_wrong_arguments_and_damaged_strings(slices: Tensor) -> None:
    net = models.load("hyperprior")
    with pytest.raises(ValueError, match=r"x: expected \[N, 1, H, W\]"):
        net(slices[0])
    coded = net.compress(slices, 6)
    y, z = coded["strings"]
    for strings in ([y], [y, z[:1]], [y, z, z]):
        with pytest.raises(ValueError, match="strings: expected 2 lists"):
            net.decompress(strings, coded["shape"], 6)
    with pytest.raises(FormatError):
        net.decompress([[y[0][:-8], y[1]], z], coded["shape"], 6)
    with pytest.raises(ValueError, match="expected default, hyperprior"):
        models.load("nothing")


class _Bits(SymbolCoder):
    """Keeps what is coded with each set of tables."""

    def __init__(self, streams: SymbolCoder) -> None:
        self.streams = streams
        self.values: dict[str, Any] = {}

    def code(self, tables: ProbabilityTables, index: Any, values: Any) -> Any:
        self.values[tables.name] = values
        return self.streams.code(tables, index, values)


@pytest.mark.parametrize("name", ["hyperprior", "cnn8"])
def test_the_codec_runs_the_same_network(name: str, slices: Tensor) -> None:
    """A volume of integers coded by the codec's model has the samples of the network's forward."""
    model, net = load_model(name), models.load(name)
    samples = (slices[:, 0] * PEAK).round().to(torch.int32).numpy()[None]
    params = StepParams(PEAK * 2.0**-6, PEAK)
    coder = _Bits(SlabStreams([_Unwritten()]))
    decoded = model.encode(samples, params.step, coder, params)
    with torch.no_grad():
        x_hat = net(torch.from_numpy(samples[0].astype(np.float32) / PEAK)[:, None], 6.0)["x_hat"]
    assert set(coder.values) == ({"y", "z"} if name == "hyperprior" else {"y6"})
    assert np.abs(decoded[0] - x_hat[:, 0].numpy() * PEAK).max() <= 1


class _Unwritten(SymbolCoder):
    def code(self, tables: ProbabilityTables, index: Any, values: Any) -> Any:
        return values


@pytest.mark.parametrize("name", SLICE_CODERS)
def test_training_goes_on(name: str, slices: Tensor) -> None:
    """Gradients of rate and distortion reach every parameter that decoding or encoding uses."""
    net = models.load(name).train()
    out = net(slices, torch.tensor([4.0, 7.0]))
    bits = sum(-torch.log2(p).sum() for p in out["likelihoods"].values())
    (bits / slices.numel() + 1000 * (out["x_hat"] - slices).square().mean()).backward()
    gradients = [p.grad for key, p in net.named_parameters() if "bottleneck" not in key]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    # Branches of the shipped cnn8 and vae have no active unit, so that their gradients are zero.
    dead = {"cnn8": 3, "vae": 18}.get(name, 0)
    assert sum(not g.any() for g in gradients) <= dead


def test_training_starts_from_the_shipped_integers(slices: Tensor) -> None:
    """Back in evaluation without a step the network is the shipped one, though no longer frozen."""
    net = models.load("hyperprior")
    with torch.no_grad():
        before = net(slices, 7.0)
        after = net.train().eval()(slices, 7.0)
    assert torch.equal(before["x_hat"], after["x_hat"])
    assert all(
        torch.equal(p, after["likelihoods"][key]) for key, p in before["likelihoods"].items()
    )
    layers = [m for m in models.load().network.modules() if isinstance(m, IntegerConv2d)]
    frozen = [layer.frozen_weight for layer in layers]
    for layer, weight in zip(layers, frozen, strict=True):
        assert weight is not None and torch.equal(layer.weight, weight)
        layer.train()
        assert torch.equal(layer._weights()[0], weight)


def test_the_page_s_example() -> None:
    page = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], names)
    assert names["decoded"]["x_hat"].shape == (2, 1, 200, 256)


def test_interpolated_likelihoods_are_a_density() -> None:
    weights = np.full((2, 6), 1 << 20, np.uint32)
    weights[:, 2] = (1 << 24) - (5 << 20)
    tables = ProbabilityTables(weights, -2, 0, name="y")
    fine = torch.linspace(-40, 40, 80 * 64 + 1, dtype=torch.float32).expand(2, -1)
    density = table_likelihood(tables, fine)
    inside = density[0, (fine[0] > -2) & (fine[0] < 2)]
    assert (inside > 0).all() and float(density[0].sum() / 64) == pytest.approx(1, abs=0.1)
    assert float(table_likelihood(tables, torch.zeros(2, 1))[0]) == weights[0, 2] / (1 << 24)


@pytest.mark.parametrize("level", [4.0, 8.0])
def test_volumes(level: float) -> None:
    """The default model codes volumes; its network is there to train."""
    model = models.load()
    x = volume("isotropic_t1w.nii.gz")[:10, :44, :]
    coded = model.compress(x, level)
    decoded = model.decompress(coded["strings"], coded["shape"], level)["x_hat"]
    assert decoded.shape == x.shape and decoded.dtype == torch.float32
    assert float((decoded - x).square().mean().sqrt()) < 2.0**-level
    both = model.compress(torch.stack([x, x.flip(0)]), level)
    assert both["strings"][0][0] == coded["strings"][0][0]
    again = model.decompress(both["strings"], both["shape"], level)["x_hat"]
    assert torch.equal(again[0], decoded) and again.shape == (2, *x.shape)
    assert isinstance(model.network, torch.nn.Module)
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    with pytest.raises(ValueError, match=r"expected \[K, H, W\] or"):
        model.compress(x[0], level)
