"""Coders 2 and 3: the learned lossy models."""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.voxels import background
from mricodec.codec.voxels.intensity import Intensity

from .base import BATCH_VOXELS, LossyModel, LossyParams, References, Shape
from .workers import Task, Workers, processes

# Voxels from which on helper processes are worth their start, as each loads a model.
MIN_SHARED_LOSSY = 1 << 21
# Voxels from which on it is worth to wait for a helper that is not ready.
MIN_AWAITED_LOSSY = 1 << 23


@dataclass(frozen=True)
class LearnedSettings:
    """What both directions of a learned coder need beside the model.

    has_background: whether payloads begin with a mask of tiles that are exactly background.
    """

    params: LossyParams
    intensity: Intensity
    has_background: bool

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return {
            **asdict(self.params),
            "intensity": self.intensity.pack().hex(),
            "dtype": self.intensity.dtype.str,
            "background": self.has_background,
        }

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> LearnedSettings:
        """The inverse of `to_json`."""
        k, h, w = settings["spacing_mm"]
        params = LossyParams(settings["step"], settings["peak"], (k, h, w), settings["effort"])
        fields = ByteReader(bytes.fromhex(settings["intensity"]), "HEAD")
        intensity = Intensity.unpack(fields, np.dtype(settings["dtype"]))
        return cls(params, intensity, settings["background"])

    def encode(self, model: LossyModel, slabs: NDArray[Any]) -> list[NDArray[Any]]:
        """Slabs [S, K, H, W] -> the values that they decode to, then the payload of each."""
        from mricodec.bitstream.range_coder import EntropyEncoder

        samples = self.intensity.samples(slabs)
        streams = [EntropyEncoder() for _ in samples]
        decoded = model.encode(samples, self.params.step, SlabStreams(streams), self.params)
        np.clip(decoded, 0, self.params.peak, out=decoded)
        payloads = [stream.finish() for stream in streams]
        values = np.empty(decoded.shape, self.intensity.dtype)
        for n, slab in enumerate(decoded):
            if self.has_background:
                mask = background.mask_for(samples[n], slab, len(payloads[n]))
                slab = background.restore(slab, mask)
                payloads[n] = pack_varint(len(mask)) + mask + payloads[n]
            values[n] = self.intensity.values(slab)
        return [values, *(np.frombuffer(payload, np.uint8) for payload in payloads)]

    def decode(self, model: LossyModel, payloads: list[bytes], shape: Shape) -> NDArray[Any]:
        """Payloads of slabs of one shape -> their values [S, K, H, W]."""
        from mricodec.bitstream.range_coder import EntropyDecoder

        masks = [b""] * len(payloads)
        if self.has_background:
            masks, payloads = map(list, zip(*map(_split_mask, payloads), strict=True))
        streams = [EntropyDecoder(payload) for payload in payloads]
        decoded = model.decode((len(streams), *shape), self.params, SlabStreams(streams))
        for stream in streams:
            stream.finish()
        restored = map(background.restore, decoded, masks)
        return np.stack([self.intensity.values(slab) for slab in restored])


def _split_mask(payload: bytes) -> tuple[bytes, bytes]:
    fields = ByteReader(payload, "SLAB")
    return fields.take(fields.varint()), fields.take(fields.left)


class LearnedCoder:
    """A learned model on integer samples; slabs of one shape are coded together."""

    batch_voxels = BATCH_VOXELS

    def __init__(
        self, model: LossyModel, intensity: Intensity, params: LossyParams, has_background: bool
    ) -> None:
        self.exact = model.exact_samples
        self._model = model
        settings = LearnedSettings(params, intensity, has_background)
        self._settings = {"model": model.model_id.hex(), **settings.to_json()}
        self._workers = helpers_of(model)

    def encode(
        self, slabs: Sequence[NDArray[Any]], references: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        groups, helpers = self._split([slab.shape for slab in slabs])
        tasks = [(self._settings, [np.stack([slabs[n] for n in group])]) for group in groups]
        coded: dict[int, tuple[bytes, NDArray[Any]]] = {}
        for group, (values, *payloads) in zip(groups, self._run(tasks, helpers), strict=True):
            for n, slab, payload in zip(group, values, payloads, strict=True):
                coded[n] = payload.tobytes(), slab
        return [coded[n] for n in range(len(slabs))]

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], references: References = ()
    ) -> list[NDArray[Any]]:
        groups, helpers = self._split(shapes)
        tasks: list[Task] = []
        for group in groups:
            settings = {**self._settings, "decoded_shape": shapes[group[0]]}
            tasks.append((settings, [np.frombuffer(payloads[n], np.uint8) for n in group]))
        decoded: dict[int, NDArray[Any]] = {}
        for group, (values,) in zip(groups, self._run(tasks, helpers), strict=True):
            decoded.update(zip(group, values, strict=True))
        return [decoded[n] for n in range(len(payloads))]

    def _split(self, shapes: Sequence[Shape]) -> tuple[list[list[int]], Workers | None]:
        """Numbers of slabs of one shape that a process codes together, and helpers if worth it."""
        groups: dict[Shape, list[int]] = {}
        for n, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(n)
        voxels = sum(map(math.prod, shapes))
        if self._workers is None or voxels < MIN_SHARED_LOSSY:
            return list(groups.values()), None
        count = min(len(shapes), processes())
        if voxels < MIN_AWAITED_LOSSY:
            count = 1 + self._workers.ready(count - 1)
        # Interleaved, as neighbouring slabs take about as long, and those at the ends less.
        split = [group[n::count] for group in groups.values() for n in range(count)]
        return [group for group in split if group], self._workers

    def _run(self, tasks: Sequence[Task], helpers: Workers | None) -> list[list[NDArray[Any]]]:
        here = functools.partial(_code, self._model)
        if helpers is not None and len(tasks) > 1:
            return helpers.run(tasks, here, _one_thread)
        return [here(*task) for task in tasks]


# Helpers are kept as long as their model.
_helpers: weakref.WeakKeyDictionary[LossyModel, Workers] = weakref.WeakKeyDictionary()


def lossy_helpers(voxels: int = 0) -> Workers:
    """Helpers of a lossy coder; started already if a scan of so many voxels has work for them."""
    workers = Workers.shared(learned_part, "mricodec.models.loader")
    if voxels >= MIN_SHARED_LOSSY:
        workers.start(processes())
    return workers


def helpers_of(model: LossyModel) -> Workers | None:
    """The helpers that are kept as long as the model; None if they can't load it."""
    if model.by_id and model not in _helpers:
        _helpers[model] = lossy_helpers()
    return _helpers.get(model)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Helpers have a core each, which more threads of this process would take from them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learned_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """The work of a helper: as `_code`, with the model of the id in the settings."""
    return _code(_model_of(settings["model"]), settings, arrays)


@functools.lru_cache(2)
def _model_of(model_id: str) -> LossyModel:
    from mricodec.models.loader import load_model

    return load_model(bytes.fromhex(model_id))


def _code(
    model: LossyModel, settings: dict[str, Any], arrays: Sequence[NDArray[Any]]
) -> list[NDArray[Any]]:
    """Encode slabs [S, K, H, W]; with a decoded shape in the settings, decode payloads."""
    learned = LearnedSettings.from_json(settings)
    if "decoded_shape" in settings:
        k, h, w = settings["decoded_shape"]
        return [learned.decode(model, [array.tobytes() for array in arrays], (k, h, w))]
    return learned.encode(model, arrays[0])
