"""Layers: coarser streams of the same scan inside a finer one, each of which decodes alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from numpy.typing import NDArray

from mricodec.bitstream.header import DEFAULT_LIMITS
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.settings import EncodeSettings

from . import decoding
from .stream import Stream
from .writing import EncodeReport, Layer


def coarser(settings: EncodeSettings) -> EncodeSettings | None:
    """What the layer below the finest is to hold; None if there is none."""
    if not settings.layers:
        return None
    below = replace(settings, lossless=False, preview=False, gzip=False)
    if settings.lossless and settings.bound is not None:
        return below
    return replace(below, bound=None, layers=False)


def written_layer(
    file: BinaryIO, report: EncodeReport, load_model: Callable[[], LossyModel]
) -> Layer:
    """The layer in a file that was just written. ValueError if its model is not exact."""
    if report.mode == "lossy" and not load_model().exact_samples:
        raise ValueError(
            "layers: expected a model that decodes to the same samples everywhere, "
            "such as the default one"
        )
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    stream = Stream(file, DEFAULT_LIMITS)
    head = stream.predictive_head() if report.mode == "bounded" else None
    file.seek(0)

    def slabs() -> Iterator[NDArray[Any]]:
        opened = Stream(file, DEFAULT_LIMITS)
        layered = decoding.Layered.of(opened, lambda _: load_model())
        for _, voxels in decoding.decoded_slabs(layered, range(opened.tiling.slabs)):
            yield voxels

    return Layer(file, size, (*report.layers, report.mode), head, slabs)
