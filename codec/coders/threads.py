"""Tasks in threads: the C core holds no lock of the interpreter while it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(
    tasks: Sequence[Callable[[], T]], threads: int, cancel: Callable[[], None]
) -> list[T]:
    """The results, in order. What a task raises, or Ctrl-C here, ends the others.

    cancel: ends the tasks that run, soon.
    """
    with ThreadPoolExecutor(max(1, min(len(tasks), threads))) as pool:
        pending = [pool.submit(task) for task in tasks]
        try:
            return [future.result() for future in pending]
        except BaseException:
            cancel()
            for future in pending:
                future.cancel()
            raise
