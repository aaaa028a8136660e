"""Coder 0: bytes as they are, under zstd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.sections import pack_store, unpack_store
from mricodec.codec.volume import to_file_order

from .base import Outputs, References, Shape


class StoreCoder:
    """Coder 0: zstd, for every type."""

    batch_voxels = 1
    exact = True

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self.stored = dtype.newbyteorder("<")

    def encode(
        self, slabs: Sequence[NDArray[Any]], references: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        itemsize = self._dtype.itemsize
        return [
            (pack_store(bytes(to_file_order(slab, self.stored)), itemsize), slab) for slab in slabs
        ]

    def decode(
        self,
        payloads: Sequence[bytes],
        shapes: Sequence[Shape],
        references: References = (),
        outputs: Outputs = (),
    ) -> list[NDArray[Any]]:
        return [
            self._decode(payload, shape) for payload, shape in zip(payloads, shapes, strict=True)
        ]

    def _decode(self, payload: bytes, shape: Shape) -> NDArray[Any]:
        data = unpack_store(payload, math.prod(shape) * self._dtype.itemsize, self._dtype.itemsize)
        return np.frombuffer(data, self.stored).astype(self._dtype, copy=False).reshape(shape)
