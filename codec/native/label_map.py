"""Labels, masks and maps of few values: slabs of samples <-> runs of the C core."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import library
from .functions import ERROR_CAPACITY, Slab, check

# Largest sample of a map.
MAX_PEAK = (1 << 16) - 1
# Room for a run: a share of the voxels, and what does not depend on them.
SMALL_RUN = 1 << 12
# Bytes of a voxel at most, whose 16 bits the encoder expects less than anything else.
BYTES_OF_VOXEL = 24


def encode(samples: NDArray[np.int32], peak: int, cancel: NDArray[np.int32] | None = None) -> bytes:
    """The run of samples [k, j, i] from 0 to peak, which is at most `MAX_PEAK`.

    cancel: an array of one number; other than 0 it ends the work. ValueError, Cancelled.
    """
    samples = np.ascontiguousarray(samples, np.int32)
    slab, arena = _slab(samples.shape, peak, cancel, encoding=True)
    size = ctypes.c_size_t()
    capacity = samples.size + SMALL_RUN
    while True:
        out = np.empty(capacity, np.uint8)
        status = library.load().mrc_encode_label_map(
            ctypes.byref(slab),
            samples.ctypes.data,
            samples.size,
            out.ctypes.data,
            out.nbytes,
            ctypes.byref(size),
        )
        if status != ERROR_CAPACITY:
            break
        capacity = BYTES_OF_VOXEL * samples.size + (1 << 20)
    check(status)
    del arena
    return out[: size.value].tobytes()


def decode(
    data: bytes,
    shape: tuple[int, int, int],
    peak: int,
    cancel: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Samples [k, j, i] of a run, from 0 to peak. FormatError, ValueError, Cancelled."""
    samples = np.empty(shape, np.int32)
    slab, arena = _slab(shape, peak, cancel, encoding=False)
    content = np.frombuffer(data, np.uint8)
    check(
        library.load().mrc_decode_label_map(
            ctypes.byref(slab),
            content.ctypes.data,
            content.nbytes,
            samples.ctypes.data,
            samples.size,
        )
    )
    del arena
    return samples


def _slab(
    shape: tuple[int, ...], peak: int, cancel: NDArray[np.int32] | None, *, encoding: bool
) -> tuple[Slab, NDArray[Any]]:
    """The slab of a map, and its arena, which must outlive it. ValueError for what no map has."""
    if len(shape) != 3 or min(shape) < 1 or not 0 <= peak <= MAX_PEAK:
        raise ValueError(
            f"expected a map [k, j, i] of samples up to {MAX_PEAK}, found {shape} up to {peak}"
        )
    flag = None if cancel is None else cancel.ctypes.data
    slab = Slab(*shape, peak, 1 << 16, 1, 1, None, 0, flag)
    size = library.load().mrc_label_map_bytes(ctypes.byref(slab), encoding)
    arena = np.empty(size, np.uint8)
    slab.arena, slab.arena_size = arena.ctypes.data, arena.nbytes
    return slab, arena
