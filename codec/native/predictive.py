"""The predictive coder of the C core: integer samples to bytes and back, without loss.

Arrays are made contiguous here, outputs are allocated here, and the interpreter's lock is free
while a block is coded. FormatError for bytes that no encoder writes, ValueError for arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import library
from .functions import check
from .memory import Memory

# Efforts of the encoder, as mrc_predictive_encode takes them.
EFFORTS = {"fast": 0, "default": 1}
# Samples of a block are at most this far apart.
MAX_SPAN = (1 << 24) - 1
# Bytes of a sample at most: the symbol of an escape and 24 bits.
BYTES_OF_SAMPLE = 6
# Bytes of a block that do not depend on its samples: its head and the coefficients.
BYTES_OF_BLOCK = 4096


class Block(ctypes.Structure):
    """mrc_block of mrc.h."""

    _fields_ = [
        ("slices", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("arena", ctypes.c_void_p),
        ("arena_size", ctypes.c_size_t),
        ("cancel", ctypes.c_void_p),
        ("skipped", ctypes.c_void_p),
    ]


# Arenas of blocks, for all threads.
_memory = Memory()


@contextlib.contextmanager
def _block(
    shape: tuple[int, ...],
    cancel: NDArray[np.int32] | None,
    skipped: NDArray[np.uint8] | None,
    *,
    encoding: bool,
) -> Iterator[Any]:
    """The address of a block of a shape, with its arena. ValueError."""
    if skipped is not None and skipped.shape != shape:
        raise ValueError(f"expected samples that are skipped {shape}, found {skipped.shape}")
    if len(shape) != 3:
        raise ValueError(f"expected samples [k, j, i], found a shape {shape}")
    kept = None if skipped is None else np.ascontiguousarray(skipped, np.uint8)
    block = Block(*shape, None, 0, None if cancel is None else cancel.ctypes.data)
    block.skipped = None if kept is None else kept.ctypes.data
    size = library.load().mrc_predictive_bytes(ctypes.byref(block), int(encoding))
    if size == 0:
        raise ValueError(f"expected a block of 1 to 2**31 samples, found {shape}")
    with _memory.buffer(size) as arena:
        block.arena, block.arena_size = arena.ctypes.data, arena.nbytes
        yield ctypes.byref(block)


def encode(
    samples: NDArray[np.int32],
    effort: str = "default",
    *,
    cancel: NDArray[np.int32] | None = None,
    skipped: NDArray[np.uint8] | None = None,
) -> bytes:
    """Samples [k, j, i], less than 2**24 apart, as bytes.

    cancel: an array of one number; other than 0 it ends the work. skipped: as the samples, other
    than 0 where a sample is not coded; a decoder must be given the same. ValueError, Cancelled.
    """
    samples = np.ascontiguousarray(samples, np.int32)
    if effort not in EFFORTS:
        raise ValueError(f"expected an effort of {', '.join(EFFORTS)}, found {effort}")
    with _block(samples.shape, cancel, skipped, encoding=True) as block:
        coded = samples if skipped is None else samples[skipped == 0]
        if coded.size and int(coded.max()) - int(coded.min()) > MAX_SPAN:
            raise ValueError(
                f"expected samples less than 2**24 apart, found {coded.min()} to {coded.max()}"
            )
        out = np.empty(BYTES_OF_SAMPLE * samples.size + BYTES_OF_BLOCK, np.uint8)
        size = ctypes.c_size_t()
        status = library.load().mrc_predictive_encode(
            block,
            EFFORTS[effort],
            samples.ctypes.data,
            samples.size,
            out.ctypes.data,
            out.nbytes,
            ctypes.byref(size),
        )
    check(status)
    return out[: size.value].tobytes()


def decode(
    data: bytes,
    shape: tuple[int, int, int],
    *,
    cancel: NDArray[np.int32] | None = None,
    skipped: NDArray[np.uint8] | None = None,
) -> NDArray[np.int32]:
    """The samples [k, j, i] that `encode` made bytes of; those that it skipped mean nothing.

    FormatError, ValueError, Cancelled.
    """
    content = np.frombuffer(data, np.uint8)
    with _block(shape, cancel, skipped, encoding=False) as block:
        samples = np.empty(shape, np.int32)
        status = library.load().mrc_predictive_decode(
            block, content.ctypes.data, content.nbytes, samples.ctypes.data, samples.size
        )
    check(status)
    return samples
