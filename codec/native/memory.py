"""Working memory that is used again: what the system must clear first takes long."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Bytes that are kept for the next call: what two slabs of 64 slices of 256 x 256 need.
KEPT_BYTES = 1 << 28


class Memory:
    """Buffers for the C core, which threads share. Up to KEPT_BYTES stay when all are free."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def buffer(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """At least so many bytes of any content."""
        with self._lock:
            fitting = [free for free in self._free if size <= free.nbytes]
            taken = min(fitting, key=lambda free: free.nbytes) if fitting else None
            self._free = [free for free in self._free if free is not taken]
        if taken is None:
            taken = np.empty(size, np.uint8)
        try:
            yield taken
        finally:
            with self._lock:
                if sum(free.nbytes for free in self._free) + taken.nbytes <= KEPT_BYTES:
                    self._free.append(taken)

    @contextlib.contextmanager
    def samples(self, shape: tuple[int, ...]) -> Iterator[NDArray[np.int32]]:
        """Samples of this shape, of any value."""
        size = 4 * math.prod(shape)
        with self.buffer(size) as buffer:
            yield buffer[:size].view(np.int32).reshape(shape)
