"""Which arithmetic of this machine computes integer convolutions exactly, and fastest.

Every candidate is compared, for every kernel shape of the model, with float64 sums (exact below 2**53) on random integers
of full range; candidates that differ in one bit are dropped (TF32, Winograd and FFT convolutions would be), the rest raced.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import PlaneNet
from .layers import SIGNED, UNSIGNED, IntegerConv2d, convolve

HIDDEN = (torch.float32, torch.bfloat16, torch.float64)
OUTPUT = (torch.float32, torch.float64)
Shape = tuple[int, int, int]


def integer_sums(x: Tensor, weight: Tensor) -> Tensor:
    """The sums of a convolution as float64 integers: unfold and one product."""
    n, _, h, w = x.shape
    columns = F.unfold(x.double(), weight.shape[-1], padding=weight.shape[-1] // 2)
    return (weight.double().flatten(1) @ columns).reshape(n, -1, h, w)


def _probe(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Random activations and weights of full range whose sums stay below 2**24."""
    outputs, inputs, kernel = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-SIGNED, UNSIGNED + 1, (2, inputs, 16, 16), generator=generator)
    weight = torch.randint(-SIGNED, SIGNED + 1, (outputs, inputs, kernel, kernel), generator=generator)
    share = (1 << 24) / (UNSIGNED * SIGNED) / (inputs * kernel * kernel)
    weight = weight * (torch.rand(weight.shape, generator=generator) < share)
    last = torch.channels_last
    return x.to(device).contiguous(memory_format=last), weight.to(device).contiguous(memory_format=last)


@lru_cache(maxsize=32)
def fastest_exact(shapes: tuple[Shape, ...], device: str) -> tuple[torch.dtype, torch.dtype]:
    """dtypes for hidden layers (sums rounded to bfloat16) and output layers (exact sums) of these kernel shapes."""
    probes = [(x, w, integer_sums(x, w)) for x, w in (_probe(shape, device) for shape in shapes)]
    seconds: dict[torch.dtype, float] = {}
    for candidate in HIDDEN:
        total = 0.0
        for x, weight, sums in probes:
            a, b = x.to(candidate), weight.to(candidate)
            convolve(a, b)  # warm
            begin = time.perf_counter()
            y = convolve(a, b).bfloat16().double()
            total += time.perf_counter() - begin
            if total > min(seconds.values(), default=total) or not torch.equal(y, sums.bfloat16().double()):
                break
        else:
            seconds[candidate] = total
    exact = [
        candidate
        for candidate in OUTPUT
        if all(torch.equal(convolve(x, w.to(candidate)).double(), sums) for x, w, sums in probes)
    ]
    if not seconds or not exact:
        raise RuntimeError(f"no exact convolution on device {device!r}: decode on the CPU")
    return min(seconds, key=lambda candidate: seconds[candidate]), exact[0]


def choose_backend(model: nn.Module, device: str) -> tuple[torch.dtype, torch.dtype]:
    """Set the fastest exact arithmetic for the integer convolutions of `model`; RuntimeError if nothing here is exact."""
    layers = [layer for layer in model.modules() if isinstance(layer, IntegerConv2d)]
    shapes = {(layer.weight.shape[0], layer.weight.shape[1], layer.weight.shape[2]) for layer in layers}
    shapes |= {shape for module in model.modules() if isinstance(module, PlaneNet) for shape in module.part_shapes()}
    hidden, output = fastest_exact(tuple(sorted(shapes)), device)
    set_backend(model, hidden, output)
    return hidden, output


def set_backend(model: nn.Module, hidden: torch.dtype, output: torch.dtype = torch.float32) -> None:
    for layer in model.modules():
        if isinstance(layer, IntegerConv2d):
            layer.compute_in(output if layer.exact else hidden)
