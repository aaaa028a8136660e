"""The file of outcomes in the output folder: what earlier runs wrote, and the lines of this one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mricodec.bitstream.series_chunks import safe_name

from .job import Outcome, Written

LEDGER = "mricodec-batch.jsonl"


class Ledger:
    """Lines of JSON objects: the fields of `Outcome`, `settings`, `time` (seconds since 1970).

    Torn and damaged lines are ignored, so that their files are done again. OSError if another run
    has the file open.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._settings = json.loads(json.dumps(settings))
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._lock(path)
        self._file.seek(0)
        text = self._file.read()
        if text and not text.endswith("\n"):
            self._file.write("\n")
        for line in text.splitlines():
            record = _record(line)
            if record is not None:
                self._records[record["kind"], record["source"]] = record

    def _lock(self, path: Path) -> None:
        """Only one run at a time, where the system has such locks."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise OSError(
                error.errno, "another run is writing into this folder; wait for it", str(path)
            ) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def previous(self, kind: str, source: str, state: str) -> tuple[Written | None, bool]:
        """What the last run wrote for a file, and whether its state and settings are the same.

        None where there is no record of it.
        """
        record = self._records.get((kind, source))
        if record is None:
            return None, False
        same = (record.get("state"), record.get("settings")) == (state, self._settings)
        written = tuple(
            (path, digest) for path, digest in record.get("outputs", ()) if safe_name(path)
        )
        return written, same and record.get("status") != "failed"

    def write(self, outcome: Outcome) -> None:
        """Append a line."""
        record = {**asdict(outcome), "settings": self._settings, "time": round(time.time(), 3)}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def _record(line: str) -> dict[str, Any] | None:
    """The object of a line; None if it is none that a run writes."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    outputs = record.get("outputs", [])
    if not all(isinstance(record.get(key), str) for key in ("kind", "source")):
        return None
    if not isinstance(outputs, list) or not all(map(_is_output, outputs)):
        return None
    return record


def _is_output(output: object) -> bool:
    return (
        isinstance(output, list)
        and len(output) == 2
        and all(isinstance(part, str) for part in output)
    )
