"""A tree of scans -> a mirrored tree of streams, and back, over processes or a Dask cluster.

    in/sub-01/anat/sub-01_T1w.nii.gz   ->  out/sub-01/anat/sub-01_T1w.nii.gz.mrc
    in/sub-01/anat/sub-01_T1w.json     ->  out/sub-01/anat/sub-01_T1w.json    (copied: no scan)
    in/sub-01/dicom/*                  ->  out/sub-01/dicom/4_t2_tse.mrc      (one per series)
    every finished file                ->  a line of out/mricodec-batch.jsonl (the ledger)

`run` goes through three steps:

    plan.py    walks the tree and makes a `Job` of every file, the largest first
    pool.py    runs the jobs in processes or on a cluster, and replaces processes that die
    job.py     does one job, or skips it, and never raises: an `Outcome` says what became of it
    ledger.py  keeps the outcomes, from which the next run knows what it may skip

One bad file never stops the rest. A second run does only what is missing, has changed, or is no
longer what the ledger says was written. Files are written in out/.mricodec-batch, which is removed
at the end, and moved to their names when they are complete.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mricodec.codec.coders.workers import cores

from .job import STAGING, Job, Outcome, encoder_of, run_job
from .ledger import LEDGER, Ledger
from .plan import plan
from .pool import in_processes, on_cluster

__all__ = [
    "LEDGER",
    "STAGING",
    "Job",
    "Ledger",
    "Outcome",
    "Progress",
    "Report",
    "Summary",
    "Totals",
    "in_processes",
    "on_cluster",
    "run",
    "run_job",
]


@dataclass
class Totals:
    """Files of one kind in a run, by what became of them; of DICOM, folders."""

    done: int = 0
    damaged: int = 0
    skipped: int = 0
    failed: int = 0
    # Bytes of the sources and of the outputs of those that did not fail.
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def files(self) -> int:
        return self.done + self.damaged + self.skipped + self.failed

    @property
    def ratio(self) -> float:
        return self.bytes_in / self.bytes_out if self.bytes_out else 1.0


@dataclass
class Summary:
    """The result of a run: totals by kind, and what failed or was damaged."""

    totals: dict[str, Totals] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)
    damages: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        totals = self.totals.setdefault(outcome.kind, Totals())
        setattr(totals, outcome.status, getattr(totals, outcome.status) + 1)
        if outcome.status == "failed":
            self.failures.append(outcome)
            return
        if outcome.status == "damaged":
            self.damages.append(outcome)
        totals.bytes_in += outcome.bytes_in
        totals.bytes_out += outcome.bytes_out


@dataclass
class Progress:
    """How far a run is: finished files and their bytes, of how many."""

    total_files: int
    total_bytes: int
    files: int = 0
    bytes: int = 0

    @property
    def fraction(self) -> float:
        """By bytes, where there are any: they decide how long the rest takes."""
        if self.total_bytes:
            return self.bytes / self.total_bytes
        return self.files / self.total_files if self.total_files else 1.0


# Called with the outcome of a file as soon as it is known, and how far the run is.
Report = Callable[[Outcome, Progress], None]


def run(
    in_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    decode: bool = False,
    settings: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    report: Report | None = None,
) -> Summary:
    """Encode every scan below `in_dir` into `out_dir`, or restore them (`decode`); copy the rest.

    settings: keyword arguments of `Encoder`. jobs: processes, by default one per core.
    scheduler: the address of a Dask scheduler, instead of processes; its workers must see the two
    folders under the same paths.

    ValueError: wrong settings, or folders that are the same. OSError: `in_dir` can't be read, the
    ledger can't be written, or another run holds it. All else is in the summary.
    """
    chosen = tuple(sorted((settings or {}).items()))
    if decode and chosen:
        names = ", ".join(name for name, _ in chosen)
        raise ValueError(f"settings: expected none with decode, found {names}")
    if not decode:
        encoder_of(chosen)  # ValueError if they are wrong.
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected 1 or more, found {jobs}")
    source, destination = _folders(in_dir, out_dir)
    summary = Summary()
    with Ledger(destination / LEDGER, {"decode": decode, **dict(chosen)}) as ledger:
        shutil.rmtree(destination / STAGING, ignore_errors=True)  # Left by a run that was killed.
        planned, failures = plan(source, destination, decode, chosen, ledger)
        if scheduler is None:
            outcomes = in_processes(run_job, planned, min(jobs or cores(), max(1, len(planned))))
        else:
            outcomes = on_cluster(run_job, planned, scheduler)
        sizes = {(job.kind, job.source): job.size for job in planned}
        progress = Progress(len(failures) + len(planned), sum(sizes.values()))
        for outcome in itertools.chain(failures, outcomes):
            ledger.write(outcome)
            summary.add(outcome)
            progress.files += 1
            progress.bytes += sizes.get((outcome.kind, outcome.source), 0)
            if report is not None:
                report(outcome, progress)
        shutil.rmtree(destination / STAGING, ignore_errors=True)
    return summary


def _folders(in_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Both folders resolved; that of the output is made."""
    source, destination = Path(in_dir).resolve(), Path(out_dir).resolve()
    if source == destination:
        raise ValueError(f"{out_dir}: expected another folder than that of the input; choose one")
    with os.scandir(source):  # OSError if it can't be read.
        pass
    destination.mkdir(parents=True, exist_ok=True)
    return source, destination
