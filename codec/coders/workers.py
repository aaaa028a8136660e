"""Work in helper processes, as the entropy coder and small array operations hold the
interpreter's lock and threads would not help.

A helper is an interpreter of its own that reads tasks from a pipe; the program that uses the codec
needs no guard around its main module. A task is settings (JSON) and arrays, its result is arrays.
OMP_NUM_THREADS limits the number of processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

# Processes, this one included.
MAX_PROCESSES = 8
# Seconds between looks at whether a helper is ready.
POLL = 0.05
# Helpers keep freed memory (variables of the GNU C library): to get it anew took 4 % of their time.
_KEEP_MEMORY = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 32))
# The package itself would load all of the codec: a helper sees an empty package in the same folder.
# An isolated interpreter (-I) has no current folder on its path: no module next to the data runs.
_START = """
import gc, json, os, sys, types
gc.set_threshold(100_000)
root, sys.path[:] = sys.argv[3], json.loads(sys.argv[4])
for name, folder in (("mricodec", root), ("mricodec.codec", os.path.join(root, "codec"))):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from mricodec.codec.coders import workers
workers.serve()
os._exit(0)
"""

Task = tuple[dict[str, Any], Sequence[NDArray[Any]]]
Work = Callable[[dict[str, Any], Sequence[NDArray[Any]]], list[NDArray[Any]]]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """How many should work side by side."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores(), MAX_PROCESSES, int(limit) if limit.isdecimal() else MAX_PROCESSES))


class Workers:
    """Helper processes, started when first needed; they end with this object.

    Threads may share it.
    """

    _alive: ClassVar[weakref.WeakValueDictionary[str, Workers]] = weakref.WeakValueDictionary()

    @classmethod
    def shared(cls, work: Work) -> Workers:
        """The workers for this function that are alive, or others."""
        workers = cls._alive.get(work.__name__)
        if workers is None:
            workers = cls._alive[work.__name__] = cls(work)
        return workers

    def __init__(self, work: Work) -> None:
        """work: helpers import it by module and name."""
        self._work = work
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []

    def start(self, count: int) -> None:
        """Helpers for so many tasks, if they are free: it takes them a moment."""
        if self._lock.acquire(blocking=False):
            try:
                self._enough(count - 1)
            finally:
                self._lock.release()

    def run(self, tasks: Sequence[Task]) -> list[list[NDArray[Any]]]:
        """The results, in order. Raises what the work raises."""
        work = self._work
        queue = _Queue(tasks)
        threads, helpers = [], list[_Helper]()
        free = self._lock.acquire(blocking=False)  # Otherwise they work for another thread.
        try:
            helpers = self._enough(len(tasks) - 1) if free else []
            for helper in helpers:
                threads.append(threading.Thread(target=queue.serve, args=(helper,), daemon=True))
                threads[-1].start()
            while (n := queue.take()) is not None:
                queue.results[n] = work(*tasks[n])
        except BaseException:  # The work of the helpers is not needed any more, and may take long.
            for helper in helpers:
                helper.close()
            raise
        finally:
            queue.waiting.clear()
            for thread in threads:
                thread.join()
            if free:
                self._lock.release()
        # What failed in a helper fails here too, with its error, unless the helper died.
        results = queue.results
        return [results[n] if n in results else work(*task) for n, task in enumerate(tasks)]

    def _enough(self, count: int) -> list[_Helper]:
        self._helpers = [helper for helper in self._helpers if helper.alive]
        while len(self._helpers) < min(count, processes() - 1):
            try:
                helper = _Helper(self._work)
            except (
                OSError,
                ValueError,
            ):  # no room for a process, or no interpreter to start: it goes without
                break
            self._helpers.append(helper)
            weakref.finalize(self, helper.close)
        return self._helpers


class _Queue:
    """Tasks that wait, and results of those that are done; used by several threads."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        sizes = [sum(array.nbytes for array in arrays) for _, arrays in tasks]
        self.waiting = sorted(range(len(tasks)), key=sizes.__getitem__)
        self.results: dict[int, list[NDArray[Any]]] = {}

    def take(self) -> int | None:
        """The largest task first, so that none is left alone at the end."""
        try:
            return self.waiting.pop()
        except IndexError:
            return None

    def serve(self, helper: _Helper) -> None:
        """Let a helper do tasks until none is left, or one fails."""
        while self.waiting and not helper.ready.wait(POLL):
            pass
        while (n := self.take()) is not None:
            result = helper.ask(self._tasks[n])
            if result is None:
                return
            self.results[n] = result


class _Helper:
    def __init__(self, work: Work) -> None:
        import subprocess  # Only here: most programs never start a helper.

        path = [os.path.abspath(entry) for entry in sys.path if entry not in ("", ".")]
        environment = {**os.environ, **_KEEP_MEMORY, "OMP_NUM_THREADS": "1"}
        root = str(Path(__file__).resolve().parents[2])
        arguments = [work.__module__, work.__name__, root, json.dumps(path)]
        self._process = subprocess.Popen(
            [sys.executable or "python", "-I", "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.alive = True
        self.ready = threading.Event()
        threading.Thread(target=self._greeted, daemon=True).start()

    def _greeted(self) -> None:
        """It says once that it waits for tasks."""
        with contextlib.suppress(OSError, ValueError):
            _receive(self._process.stdout)
        self.ready.set()

    def ask(self, task: Task) -> list[NDArray[Any]] | None:
        """The result; None if it failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self.ready.wait()
        try:
            _send(self._process.stdin, *task)
            settings, arrays = _receive(self._process.stdout)
        except (OSError, ValueError):
            self.close()
            return None
        return arrays if settings.get("done") else None

    def close(self) -> None:
        """It holds nothing that could be lost."""
        self.alive = False
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()


def serve() -> None:
    """What a helper does until its input ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it decides
    work: Work = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    _send(sys.stdout.buffer, {}, [])
    while True:
        try:
            task = _receive(sys.stdin.buffer)
        except (OSError, ValueError):
            return
        try:
            done, arrays = True, work(*task)
        except Exception:  # done again by the one who asked, who sees why
            done, arrays = False, []
        _send(sys.stdout.buffer, {"done": done}, arrays)


def _send(pipe: Any, settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> None:
    """u32 size of a JSON text, the text, the arrays."""
    head = json.dumps([settings, [(array.dtype.str, array.shape) for array in arrays]]).encode()
    pipe.write(len(head).to_bytes(4, "little") + head)
    for array in arrays:
        pipe.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """ValueError at the end of the pipe."""
    settings, kinds = json.loads(_read(pipe, int.from_bytes(_read(pipe, 4), "little")))
    arrays = []
    for dtype, shape in kinds:
        array = np.empty(shape, dtype)
        if array.size:
            _read_into(pipe, array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return settings, arrays


def _read(pipe: Any, size: int) -> bytearray:
    data = bytearray(size)
    _read_into(pipe, memoryview(data))
    return data


def _read_into(pipe: Any, view: memoryview) -> None:
    while len(view):
        read = pipe.readinto(view)
        if not read:
            raise ValueError("the pipe has ended")
        view = view[read:]
