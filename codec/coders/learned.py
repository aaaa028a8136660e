"""Coders 2 and 3: the learned lossy models."""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.voxels import background
from mricodec.codec.voxels.intensity import Intensity

from .base import BATCH_VOXELS, LossyModel, LossyParams, References, Shape
from .workers import Task, Workers, processes

MIN_SHARED_LOSSY = 1 << 21  # the same, of one that loads a model
MIN_AWAITED_LOSSY = 1 << 23  # the same, where none is ready: coding takes longer than its start


class LearnedCoder:
    """Coders 2 and 3: a learned model on integer codes."""

    batch_voxels = BATCH_VOXELS

    def __init__(
        self, model: LossyModel, intensity: Intensity, params: LossyParams, has_background: bool
    ) -> None:
        self.exact = model.exact_samples
        self._model = model
        self._settings = {
            "model": model.model_id.hex(), **asdict(params),
            "intensity": intensity.pack().hex(), "dtype": intensity.dtype.str, "background": has_background,
        }  # fmt: skip
        self._workers = helpers_of(model)

    def encode(
        self, slabs: Sequence[NDArray[Any]], beside: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        groups, helpers = self._split([slab.shape for slab in slabs])
        found: dict[int, tuple[bytes, NDArray[Any]]] = {}
        tasks = [(self._settings, [np.stack([slabs[n] for n in group])]) for group in groups]
        for group, (decoded, *payloads) in zip(groups, self._run(tasks, helpers), strict=True):
            found.update(
                zip(
                    group,
                    zip((payload.tobytes() for payload in payloads), decoded, strict=True),
                    strict=True,
                )
            )
        return [found[n] for n in range(len(slabs))]

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: References = ()
    ) -> list[NDArray[Any]]:
        groups, helpers = self._split(shapes)
        tasks: list[Task] = [
            (
                {**self._settings, "shape": shapes[group[0]]},
                [np.frombuffer(payloads[n], np.uint8) for n in group],
            )
            for group in groups
        ]
        found: dict[int, NDArray[Any]] = {}
        for group, (decoded,) in zip(groups, self._run(tasks, helpers), strict=True):
            found.update(zip(group, decoded, strict=True))
        return [found[n] for n in range(len(payloads))]

    def _split(self, shapes: Sequence[Shape]) -> tuple[list[list[int]], Workers | None]:
        """Numbers of slabs of one shape that are coded side by side in one process, and helpers if it is worth it."""
        groups: dict[Shape, list[int]] = {}
        for n, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(n)
        voxels = sum(map(math.prod, shapes))
        if self._workers is None or voxels < MIN_SHARED_LOSSY:
            return list(groups.values()), None
        count = min(len(shapes), processes())
        if voxels < MIN_AWAITED_LOSSY:
            count = 1 + self._workers.ready(count - 1)
        # not halves: slabs beside one another take about as long, and those at the ends of a scan the least
        return [
            group[n::count] for group in groups.values() for n in range(min(count, len(group)))
        ], self._workers

    def _run(self, tasks: Sequence[Task], helpers: Workers | None) -> list[list[NDArray[Any]]]:
        here = functools.partial(_learned_part, self._model)
        if helpers is not None and len(tasks) > 1:
            return helpers.run(tasks, here, _one_thread)
        return [here(*task) for task in tasks]


_helpers: weakref.WeakKeyDictionary[LossyModel, Workers] = (
    weakref.WeakKeyDictionary()
)  # as long as their model is kept


def lossy_helpers(voxels: int = 0) -> Workers:
    """For a lossy coder; started already, if there will be work for them in a scan of so many voxels."""
    workers = Workers.shared(learned_part, "mricodec.models.loader")
    if voxels >= MIN_SHARED_LOSSY:
        workers.start(processes())
    return workers


def helpers_of(model: LossyModel) -> Workers | None:
    """Those that are kept as long as the model; None if they could not work for it."""
    if model.by_id and model not in _helpers:
        _helpers[model] = lossy_helpers()
    return _helpers.get(model)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Helpers have a core each: threads of this process would be in their way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learned_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """`_learned_part` with the model of the id in the settings."""
    return _learned_part(_model_of(settings["model"]), settings, arrays)


@functools.lru_cache(2)
def _model_of(model_id: str) -> LossyModel:
    from mricodec.models.loader import load_model

    return load_model(bytes.fromhex(model_id))


def _learned_part(
    model: LossyModel,
    settings: dict[str, Any],
    arrays: Sequence[NDArray[Any]],
) -> list[NDArray[Any]]:
    """Slabs [S, K, H, W] -> what they decode to, and the payload of each; with "shape" in the settings payloads -> slabs."""
    params = LossyParams(
        settings["step"], settings["peak"], tuple(settings["spacing_mm"]), settings["effort"]
    )
    intensity = Intensity.unpack(
        ByteReader(bytes.fromhex(settings["intensity"]), "HEAD"), np.dtype(settings["dtype"])
    )
    masks = [b""] * len(arrays)
    if "shape" in settings:
        payloads = [payload.tobytes() for payload in arrays]
        if settings["background"]:
            masks, payloads = map(list, zip(*map(_split_mask, payloads), strict=True))
        readers = [EntropyDecoder(payload) for payload in payloads]
        decoded = model.decode((len(readers), *settings["shape"]), params, SlabStreams(readers))
        for reader in readers:
            reader.finish()
        return [
            np.stack(
                [
                    intensity.values(background.restore(*pair))
                    for pair in zip(decoded, masks, strict=True)
                ]
            )
        ]
    codes = intensity.samples(arrays[0])
    streams = [EntropyEncoder() for _ in codes]
    decoded = model.encode(codes, params.step, SlabStreams(streams), params)
    np.clip(decoded, 0, params.peak, out=decoded)
    values, payloads = (
        np.empty(decoded.shape, intensity.dtype),
        [stream.finish() for stream in streams],
    )
    for n, slab in enumerate(decoded):
        if settings["background"]:
            mask = background.mask_for(codes[n], slab, len(payloads[n]))
            slab = background.restore(slab, mask)
            payloads[n] = pack_varint(len(mask)) + mask + payloads[n]
        values[n] = intensity.values(slab)
    return [values, *(np.frombuffer(payload, np.uint8) for payload in payloads)]


def _split_mask(payload: bytes) -> tuple[bytes, bytes]:
    fields = ByteReader(payload, "SLAB")
    return fields.take(fields.varint()), fields.take(fields.left)
