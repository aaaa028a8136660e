"""Which arithmetic of this machine computes integer convolutions exactly.

Each candidate is compared, for every kernel shape of the model, with float64 sums (exact below
2**53) on random integers of full range; one that differs in one bit is not used (TF32, Winograd and
FFT convolutions may differ).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .band_networks import BandNet
from .layers import SIGNED, UNSIGNED, IntegerConv2d, convolve

# The types of sums that are tried, the fastest first.
CANDIDATES = (torch.float32, torch.float64)
# Outputs, inputs and kernel size of a convolution.
Shape = tuple[int, int, int]


def integer_sums(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The sums of a convolution as float64 integers: im2col and one product."""
    n, _, h, w = x.shape
    columns = F.unfold(x.double(), weight.shape[-1], padding=weight.shape[-1] // 2)
    return (weight.double().flatten(1) @ columns + bias.double()[:, None]).reshape(n, -1, h, w)


def _probe(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random activations, weights and biases of full range whose sums stay below 2**24."""
    outputs, inputs, kernel = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-SIGNED, UNSIGNED + 1, (2, inputs, 16, 16), generator=generator)
    weight = torch.randint(
        -SIGNED, SIGNED + 1, (outputs, inputs, kernel, kernel), generator=generator
    )
    share = (1 << 24) / (UNSIGNED * SIGNED) / (inputs * kernel * kernel)
    weight = weight * (torch.rand(weight.shape, generator=generator) < share)
    bias = torch.randint(-(1 << 14), 1 << 14, (outputs,), generator=generator)
    last = torch.channels_last
    x, weight = (part.to(device).contiguous(memory_format=last) for part in (x, weight))
    return x, weight, bias.to(device)


@lru_cache(maxsize=32)
def exact_dtype(shapes: tuple[Shape, ...], device: str) -> torch.dtype:
    """The smallest dtype that is exact for these kernel shapes; RuntimeError if none is."""
    probes = [
        (*probe, integer_sums(*probe)) for probe in (_probe(shape, device) for shape in shapes)
    ]
    for candidate in CANDIDATES:
        if all(
            torch.equal(convolve(x, weight.to(candidate), bias.to(candidate)).double(), sums)
            for x, weight, bias, sums in probes
        ):
            return candidate
    raise RuntimeError(f"no exact convolution on device {device!r}: decode on the CPU")


def choose_backend(model: nn.Module, device: str) -> torch.dtype:
    """Set an exact arithmetic for the integer convolutions of `model`; RuntimeError if none is."""
    layers = [layer for layer in model.modules() if isinstance(layer, IntegerConv2d)]
    shapes = {
        (layer.weight.shape[0], layer.weight.shape[1], layer.weight.shape[2]) for layer in layers
    }
    shapes |= {
        shape
        for module in model.modules()
        if isinstance(module, BandNet)
        for shape in module.kernel_shapes()
    }
    dtype = exact_dtype(tuple(sorted(shapes)), device)
    set_backend(model, dtype)
    return dtype


def set_backend(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the type of the sums of all integer convolutions of `model`."""
    for layer in model.modules():
        if isinstance(layer, IntegerConv2d):
            layer.compute_in(dtype)
