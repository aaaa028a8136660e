"""Coders 2 and 3: the learned lossy models.

The default model codes slab by slab in the C core, each in a thread of its own. Other models run in
torch and code slabs of one shape together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.native.model import NativeModel, Workspace
from mricodec.codec.voxels import background
from mricodec.codec.voxels.intensity import Intensity

from .base import (
    BATCH_VOXELS,
    LossyModel,
    LossyParams,
    Outputs,
    References,
    Shape,
    SymbolModel,
)
from .threads import in_threads
from .workers import processes

# Voxels of slabs that torch codes together, at most: tensors hold 30 times as many bytes.
TOGETHER_VOXELS = 6_500_000

Samples = NDArray[np.int32]
# The payload of a slab, and the values that it decodes to.
Coded = tuple[bytes, NDArray[Any]]


@dataclass(frozen=True)
class Payloads:
    """Slabs of stored values <-> payloads, around the runs of a model.

    has_background: whether payloads begin with a mask of tiles that are exactly background.
    """

    params: LossyParams
    intensity: Intensity
    has_background: bool

    def pack(self, samples: Samples, run: bytes, decoded: Samples) -> Coded:
        """Samples [K, H, W] of a slab, its run, and the samples that the run decodes to."""
        decoded = np.clip(decoded, 0, self.params.peak, out=decoded)
        if self.has_background:
            mask = background.mask_for(samples, decoded, len(run))
            decoded = background.restore(decoded, mask)
            run = pack_varint(len(mask)) + mask + run
        return run, self.intensity.values(decoded)

    def split(self, payload: bytes) -> tuple[bytes, bytes]:
        """Mask and run. FormatError."""
        if not self.has_background:
            return b"", payload
        fields = ByteReader(payload, "SLAB")
        return fields.take(fields.varint()), fields.take(fields.left)

    def values(
        self, mask: bytes, decoded: Samples, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The stored values of decoded samples [K, H, W], in `out` if it is given. FormatError."""
        return self.intensity.values(background.restore(decoded, mask), out)


class LearnedCoder:
    """A learned model on integer samples."""

    batch_voxels = BATCH_VOXELS

    def __init__(
        self, model: LossyModel, intensity: Intensity, params: LossyParams, has_background: bool
    ) -> None:
        self.exact = model.exact_samples
        payloads = Payloads(params, intensity, has_background)
        self._slabs: _NativeSlabs | _SymbolSlabs
        if isinstance(model, NativeModel):
            self._slabs = _NativeSlabs(model, payloads)
        else:
            self._slabs = _SymbolSlabs(cast(SymbolModel, model), payloads)

    def encode(self, slabs: Sequence[NDArray[Any]], references: References = ()) -> list[Coded]:
        return self._slabs.encode(slabs)

    def decode(
        self,
        payloads: Sequence[bytes],
        shapes: Sequence[Shape],
        references: References = (),
        outputs: Outputs = (),
    ) -> list[NDArray[Any]]:
        return self._slabs.decode(payloads, shapes, outputs or [None] * len(payloads))


@dataclass(frozen=True)
class _NativeSlabs:
    """Slabs in the C core, which holds no lock of the interpreter: a thread for each core."""

    model: NativeModel
    payloads: Payloads

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[Coded]:
        return self._in_threads([functools.partial(self._encode, slab) for slab in slabs])

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], outputs: Outputs
    ) -> list[NDArray[Any]]:
        tasks = [
            functools.partial(self._decode, *slab)
            for slab in zip(payloads, shapes, outputs, strict=True)
        ]
        return self._in_threads(tasks)

    def _encode(self, slab: NDArray[Any], workspace: Workspace) -> Coded:
        memory = workspace.memory
        with memory.samples(slab.shape) as samples, memory.samples(slab.shape) as decoded:
            self.payloads.intensity.samples(slab, out=samples)
            run, _ = self.model.encode_slab(samples, self.payloads.params, workspace, decoded)
            return self.payloads.pack(samples, run, decoded)

    def _decode(
        self, payload: bytes, shape: Shape, out: NDArray[Any] | None, workspace: Workspace
    ) -> NDArray[Any]:
        mask, run = self.payloads.split(payload)
        with workspace.memory.samples(shape) as decoded:
            self.model.decode_slab(run, shape, self.payloads.params, workspace, decoded)
            return self.payloads.values(mask, decoded, out)

    def _in_threads(self, tasks: Sequence[Callable[[Workspace], Any]]) -> list[Any]:
        """A slab for each core at a time; more cores than slabs share the work of each."""
        side_by_side = max(1, min(len(tasks), processes()))
        workspace = Workspace(processes() // side_by_side, self.model.memory)
        return in_threads(
            [functools.partial(task, workspace) for task in tasks], side_by_side, workspace.cancel
        )


@dataclass(frozen=True)
class _SymbolSlabs:
    """Slabs of a model that hands its symbols to an entropy coder; those of one shape together."""

    model: SymbolModel
    payloads: Payloads

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[Coded]:
        from mricodec.bitstream.range_coder import EntropyEncoder

        params, coded = self.payloads.params, dict[int, Coded]()
        for group in _by_shape([slab.shape for slab in slabs]):
            samples = self.payloads.intensity.samples(np.stack([slabs[n] for n in group]))
            streams = [EntropyEncoder() for _ in group]
            decoded = self.model.encode(samples, params.step, SlabStreams(streams), params)
            for n, *parts in zip(group, samples, streams, decoded, strict=True):
                part, stream, slab = parts
                coded[n] = self.payloads.pack(part, stream.finish(), slab)
        return [coded[n] for n in range(len(slabs))]

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], outputs: Outputs
    ) -> list[NDArray[Any]]:
        from mricodec.bitstream.range_coder import EntropyDecoder

        values: dict[int, NDArray[Any]] = {}
        for group in _by_shape(shapes):
            masks, runs = zip(*[self.payloads.split(payloads[n]) for n in group], strict=True)
            streams = [EntropyDecoder(run) for run in runs]
            shape = (len(group), *shapes[group[0]])
            decoded = self.model.decode(shape, self.payloads.params, SlabStreams(streams))
            for stream in streams:
                stream.finish()
            for n, mask, samples in zip(group, masks, decoded, strict=True):
                values[n] = self.payloads.values(mask, samples, outputs[n])
        return [values[n] for n in range(len(payloads))]


def _by_shape(shapes: Sequence[Shape]) -> list[list[int]]:
    """Numbers of slabs of one shape that are coded together."""
    groups: dict[Shape, list[int]] = {}
    for n, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(n)
    return [
        group[start : start + size]
        for shape, group in groups.items()
        for size in [max(1, TOGETHER_VOXELS // math.prod(shape))]
        for start in range(0, len(group), size)
    ]
