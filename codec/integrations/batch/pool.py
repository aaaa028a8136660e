"""Jobs in processes that may die, or on the workers of a Dask cluster."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mricodec.bitstream.errors import error_text
from mricodec.codec.coders.workers import cores
from mricodec.models.extras import require

from .job import MAX_ATTEMPTS, Job, Outcome, failed

Work = Callable[[Job], Outcome]

_log = logging.getLogger(__name__)


def in_processes(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    """The outcomes of `work`, as they come, from that many processes (spawned, not forked).

    A process that dies takes the pool with it: a new pool is started, and what was being worked on
    is tried again, each job alone, so that the one that kills its process fails (after
    `MAX_ATTEMPTS`) and the others don't.
    """
    waiting = collections.deque((job, 1) for job in jobs)
    suspects: collections.deque[tuple[Job, int]] = collections.deque()
    with _safe_path():
        while waiting or suspects:
            queue, size = (suspects, 1) if suspects else (waiting, workers)
            threads = max(1, cores() // workers)
            yield from _until_a_process_dies(work, queue, suspects, size, threads)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """New processes don't look for modules in the current folder until they have our path."""
    before = os.environ.get("PYTHONSAFEPATH")  # Python 3.11
    flags = multiprocessing.util._args_from_interpreter_flags  # type: ignore[attr-defined]
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):
        multiprocessing.util._args_from_interpreter_flags = lambda: [*flags(), "-I"]
    try:
        yield
    finally:
        multiprocessing.util._args_from_interpreter_flags = flags  # type: ignore[attr-defined]
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


Queue = collections.deque[tuple[Job, int]]  # Jobs, and which attempt at each is next.


def _until_a_process_dies(
    work: Work, queue: Queue, suspects: Queue, size: int, threads: int
) -> Iterator[Outcome]:
    """Work on `queue` in one pool. If it breaks, what was running goes to `suspects`."""
    context = multiprocessing.get_context("spawn")
    running: dict[Future[Outcome], tuple[Job, int]] = {}
    pool = ProcessPoolExecutor(size, context, initializer=_start, initargs=(threads,))
    try:
        while queue or running:
            while queue and len(running) < size:
                running[pool.submit(work, queue[0][0])] = queue[0]
                queue.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                job, attempt = running.pop(future)
                outcome = future.result() if error is None else failed(job, error_text(error))
                if attempt > 1 and outcome.status == "skipped":
                    # Its first attempt did the work, but the result was lost.
                    outcome = dataclasses.replace(outcome, status="done")
                yield outcome
    except BrokenProcessPool:
        for future, (job, attempt) in running.items():
            if future.exception() is None:  # Waits until the pool has given up.
                yield future.result()
            elif attempt < MAX_ATTEMPTS:
                _log.warning("%s: its process died, attempt %d", job.source, attempt)
                suspects.append((job, attempt + 1))
            else:
                yield failed(job, f"its process died {attempt} times; is there enough memory?")
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    """In a new process, before torch is imported: share the cores, end with a killed parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def on_cluster(work: Work, jobs: Sequence[Job], scheduler: str) -> Iterator[Outcome]:
    """The outcomes of `work`, as they come, from a Dask scheduler, which replaces dead workers.

    MissingExtra: the extra `cluster` is not installed. OSError: no scheduler at that address.
    """
    require("distributed", "cluster", "scheduler")
    from distributed import Client, as_completed

    with Client(scheduler) as client:
        futures = client.map(work, jobs, pure=False, retries=MAX_ATTEMPTS, batch_size=500)
        jobs_of = dict(zip(futures, jobs, strict=True))
        del futures
        for future in as_completed(list(jobs_of)):
            job = jobs_of.pop(future)  # The cluster forgets futures without references.
            try:
                outcome = future.result()
            except (Exception, CancelledError) as error:
                # A worker died too often, or the scheduler is lost.
                outcome = failed(job, error_text(error))
            yield outcome
