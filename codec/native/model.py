"""The default lossy model in the C core: slabs of samples <-> runs of the entropy coder.

The networks are interpreted from the weights file. A model is read-only memory that threads share;
a slab is coded by one call, which needs an arena to work in.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mricodec.models.lossy.params import Params, integer_step
from mricodec.models.weights_file import ID_BYTES, WeightsError

from . import functions, library
from .memory import Memory

# Bytes of a run per sample at first, and at most: a symbol has 24 bits for its token, at most as
# many for its length and its bits, and 24 for its sign.
USUAL_BYTES, MAX_BYTES = 2, 12
# Threads that can work on a slab, as in mrc.h.
MAX_THREADS = 64
# Bytes of a run that do not depend on the samples.
SMALL_RUN = 1 << 16

Samples = NDArray[np.int32]
Bands = NDArray[np.int32]


class Workspace:
    """What a call works with: memory, threads, and a flag that ends all work.

    threads: that work on each slab. The slabs of a workspace may be coded side by side.
    """

    def __init__(self, threads: int = 1, memory: Memory | None = None) -> None:
        self.threads = min(threads, MAX_THREADS)
        self.memory = Memory() if memory is None else memory
        self._cancel = np.zeros(1, np.int32)

    def cancel(self) -> None:
        """End all work within milliseconds; it raises `functions.Cancelled`."""
        self._cancel[0] = 1

    @property
    def flag(self) -> int:
        """Address of the flag."""
        return int(self._cancel.ctypes.data)

    def run(self, arena: int) -> int:
        """Do all tasks of the slab whose work lies at this address; the status of mrc.h."""
        if self.threads == 1:
            return _Tasks(arena).run()
        tasks = _Tasks(arena, threading.Barrier(self.threads))
        helpers = [
            threading.Thread(target=tasks.help, args=(n,), daemon=True)
            for n in range(1, self.threads)
        ]
        try:
            for helper in helpers:
                helper.start()
            return tasks.run()
        finally:
            tasks.end()
            for helper in helpers:
                if helper.ident is not None:  # It was started.
                    helper.join()


class _Tasks:
    """The tasks of a slab, phase by phase; threads that meet at a barrier before and after each."""

    def __init__(self, arena: int, barrier: threading.Barrier | None = None) -> None:
        self._core = library.load()
        self._arena = arena
        self._barrier = barrier
        self._lock = threading.Lock()
        self._left: Iterator[int] = iter(())

    def run(self) -> int:
        """The first thread: begins each phase and does tasks until none is left."""
        count = ctypes.c_int32()
        while True:
            status = int(self._core.mrc_next_tasks(self._arena, ctypes.byref(count)))
            if status != library.OK or count.value == 0:
                return status
            self._left = iter(range(count.value))
            if self._barrier is None or count.value == 1:
                self._work(0)
                continue
            self._barrier.wait()
            self._work(0)
            self._barrier.wait()

    def help(self, thread: int) -> None:
        """Another thread; if it fails, the others do not wait for it."""
        assert self._barrier is not None
        try:
            while True:
                self._barrier.wait()
                self._work(thread)
                self._barrier.wait()
        except threading.BrokenBarrierError:
            return
        finally:
            self._barrier.abort()

    def end(self) -> None:
        """Send the helpers home."""
        assert self._barrier is not None
        self._barrier.abort()

    def _work(self, thread: int) -> None:
        while True:
            with self._lock:  # A task that two threads do is done wrong.
                task = next(self._left, None)
            if task is None:
                return
            self._core.mrc_run_task(self._arena, task, thread)


class NativeModel:
    """A model of the architecture "default". Threads share it."""

    exact_samples = True

    def __init__(self, name: str, data: bytes) -> None:
        """data: of a weights file. WeightsError if it does not fit the network."""
        self.name = name
        self.model_id = hashlib.sha256(data).digest()[:ID_BYTES]
        try:
            self._weights = _initialised(load_tensors(data))
        except (SafetensorError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"the weights do not fit the network {name}: {reason}") from error
        self._model = self._weights.ctypes.data
        self.memory = Memory()

    def encode_slab(
        self, samples: Samples, params: Params, workspace: Workspace, out: Samples | None = None
    ) -> tuple[bytes, Samples]:
        """Samples [K, H, W] in 0 ... peak -> the run of a slab, and what it decodes to.

        out: where to put that, an array in C order.
        """
        return self._encode(samples, params, workspace, None, out)

    def encode_bands(
        self,
        samples: Samples,
        params: Params,
        workspace: Workspace,
        depth: int,
        targets: NDArray[np.float32] | None = None,
        out: Samples | None = None,
    ) -> tuple[bytes, Samples, Bands]:
        """As `encode_slab` with the decisions of a search; what the bands are coded as comes last.

        Bands and targets, in 1/16 of the step: [ceil(K / depth) depth, ceil(H/8), ceil(W/8), 64],
        at 8 u + w. targets: what they should approximate instead of the samples.
        """
        k, h, w = samples.shape
        shape = (-(-k // depth) * depth, -(-h // 8), -(-w // 8), functions.CHANNELS)
        bands = np.empty(shape, np.int32)
        address = None
        if targets is not None:
            targets = np.ascontiguousarray(targets, np.float32)
            if targets.shape != shape:
                raise ValueError(f"targets: expected {list(shape)}, found {list(targets.shape)}")
            address = targets.ctypes.data
        search = functions.Search(depth, address, bands.ctypes.data, bands.size)
        run, decoded = self._encode(samples, params, workspace, search, out)
        return run, decoded, bands

    def _encode(
        self,
        samples: Samples,
        params: Params,
        workspace: Workspace,
        search: functions.Search | None,
        out: Samples | None = None,
    ) -> tuple[bytes, Samples]:
        samples = np.ascontiguousarray(samples, np.int32)
        decoded = np.empty(samples.shape, np.int32) if out is None else out
        depth = max_depth(len(samples)) if search is None else search.depth
        padded = len(samples) * -(-samples.shape[1] // 8) * -(-samples.shape[2] // 8) * 64
        for bytes_of_sample in (USUAL_BYTES, MAX_BYTES):
            run = np.empty(SMALL_RUN + bytes_of_sample * padded, np.uint8)
            size = ctypes.c_size_t()
            with self._slab(samples.shape, params, workspace, depth, encoding=True) as slab:
                status = library.load().mrc_start_encoding(
                    self._model,
                    ctypes.byref(slab),
                    samples.ctypes.data,
                    samples.size,
                    None if search is None else ctypes.byref(search),
                    run.ctypes.data,
                    run.nbytes,
                    ctypes.byref(size),
                    decoded.ctypes.data,
                )
                if status == library.OK:
                    status = workspace.run(slab.arena)
            if status != functions.ERROR_CAPACITY:
                break
        functions.check(status)
        return run[: size.value].tobytes(), decoded

    def decode_slab(
        self,
        run: bytes,
        shape: tuple[int, int, int],
        params: Params,
        workspace: Workspace,
        out: Samples | None = None,
    ) -> Samples:
        """The samples [K, H, W] of a slab; out: as in `encode_slab`.

        FormatError if the run is damaged.
        """
        content = np.frombuffer(run, np.uint8)
        depth = library.load().mrc_depth_of_run(self._model, content.ctypes.data, content.nbytes)
        if depth == 0:
            functions.check(
                functions.ERROR_TRUNCATED if content.nbytes % 4 else functions.ERROR_DAMAGED
            )
        with self._slab(shape, params, workspace, depth, encoding=False) as slab:
            samples = np.empty(shape, np.int32) if out is None else out
            functions.check(
                library.load().mrc_start_decoding(
                    self._model,
                    ctypes.byref(slab),
                    content.ctypes.data,
                    content.nbytes,
                    samples.ctypes.data,
                    samples.size,
                )
            )
            functions.check(workspace.run(slab.arena))
        return samples

    @contextlib.contextmanager
    def _slab(
        self,
        shape: tuple[int, ...],
        params: Params,
        workspace: Workspace,
        depth: int,
        *,
        encoding: bool,
    ) -> Iterator[functions.Slab]:
        step, threads = integer_step(params), workspace.threads
        slab = functions.Slab(*shape, params.peak, step, threads, depth, None, 0, workspace.flag)
        size = library.load().mrc_slab_bytes(self._model, ctypes.byref(slab), encoding)
        if size == 0:
            raise ValueError(f"expected a slab of at most 2**31 samples, found {shape}")
        with workspace.memory.buffer(size) as arena:
            slab.arena, slab.arena_size = arena.ctypes.data, arena.nbytes
            yield slab


def max_depth(slices: int) -> int:
    """The largest depth that an encoder tries for a slab: more would transform repeated slices."""
    return next((depth for depth in (1, 2, 4) if depth >= slices), 8)


def _initialised(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """The memory of a model. ValueError, KeyError."""
    names, blocks = tensor_names(tensors)
    structures, kept = functions.tensors_of([tensors[name] for name in names])
    counts = (ctypes.c_int32 * 2)(*blocks)
    core = library.load()
    size = core.mrc_model_bytes(structures, len(kept), counts)
    if size == 0:
        functions.check(functions.ERROR_WEIGHTS)
    memory = np.empty(size, np.uint8)
    functions.check(
        core.mrc_model_init(memory.ctypes.data, memory.nbytes, structures, len(kept), counts)
    )
    return memory


def tensor_names(tensors: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Names of tensors in the order of `mrc_model_init`, and the residual blocks of each network.

    lut, levels, hiding; the tables depth, pass0 ... pass3, sign; then for the networks low and
    detail: sources, place, rate, residual blocks, passes.
    """
    names = ["lut", "levels", "hiding", "tables.depth"]
    names += [*(f"tables.pass{p}" for p in range(4)), "tables.sign"]
    blocks = []
    for network, sources in (("low", 2), ("detail", 3)):
        count = 0
        while f"{network}.mix.{count}.first.weight" in tensors:
            count += 1
        blocks.append(count)
        layers = [f"sources.{n}" for n in range(sources)]
        names += _parts(network, layers)
        names += [f"{network}.place", f"{network}.rate"]
        layers = [f"mix.{n}.{part}" for n in range(count) for part in ("first", "middle", "second")]
        names += _parts(network, layers)
        for p in range(4):
            known = [f"passes.{p}.known"] if p else []
            names += _parts(network, [*known, f"passes.{p}.middle", f"passes.{p}.head"])
            names.append(f"{network}.passes.{p}.energies")
    return names, blocks


def _parts(network: str, layers: list[str]) -> list[str]:
    return [f"{network}.{layer}.{part}" for layer in layers for part in ("weight", "bias", "shift")]
