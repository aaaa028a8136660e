"""A tree of scans -> a mirrored tree of streams, and back, over processes or a Dask cluster.

    in/sub-01/anat/sub-01_T1w.nii.gz   ->  out/sub-01/anat/sub-01_T1w.nii.gz.mrc
    in/sub-01/anat/sub-01_T1w.json     ->  out/sub-01/anat/sub-01_T1w.json          carried along, as whatever is no scan
    in/sub-01/dicom/*                  ->  out/sub-01/dicom/4_t2_tse.mrc            a stream per DICOM series of a folder
    every finished file                ->  a line of out/mricodec-batch.jsonl       the ledger

One bad file never stops the rest: what goes wrong becomes the reason of its `Outcome`, a process that dies is replaced, and
what it was working on is tried again. A second run does only what is missing, has changed, or no longer is what the ledger says
was written. Files are made in out/.mricodec-batch, which is gone at the end, and moved to their places when they are complete.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import filecmp
import functools
import hashlib
import itertools
import json
import multiprocessing.util
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mricodec.bitstream.container import MAGIC
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.series_chunks import safe_name
from mricodec.codec import api, inspection
from mricodec.codec.coders.workers import cores
from mricodec.codec.dicom.encode import encode_series_file
from mricodec.codec.dicom.restore import restore_series
from mricodec.codec.dicom.sources import PREFIX_SIZE, is_dicom
from mricodec.codec.dicom.stacks import find_series
from mricodec.codec.formats.gzip_input import open_decompressed, peek
from mricodec.codec.formats.nifti import pair_paths
from mricodec.codec.formats.nifti_header import is_nifti

LEDGER = "mricodec-batch.jsonl"
WORKSHOP = ".mricodec-batch"  # folder of what is not complete yet
EXTENSIONS = (".mrc", ".mric")
ATTEMPTS = 3  # of a file, where its process died or the disk or memory failed
WAIT_SECONDS = 0.5  # before the second attempt; doubled after each
# what trying again doesn't change
_LASTING = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EINVAL),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
}

Settings = tuple[tuple[str, Any], ...]  # keyword arguments of `Encoder`
Written = tuple[tuple[str, str], ...]  # (path in the output folder, SHA-256)


@dataclass(frozen=True)
class Job:
    """One file (or pair, or the DICOM files of a folder) to work on; paths are relative to the two folders."""

    kind: str  # "scan", "series" (all DICOM files of a folder), "stream" or "file"
    source: str
    destination: str  # of a series and of the stream of one: its folder says where the outputs go
    in_dir: str
    out_dir: str
    size: int  # bytes of the source
    state: str  # of the source; another state is another content
    settings: Settings
    previous: Written | None  # what an earlier run wrote, None if there is no record of it
    fresh: bool  # whether that was of the same state, with the same settings
    files: tuple[str, ...] = ()  # of a series


@dataclass(frozen=True)
class Outcome:
    """What became of one file; a line of the ledger."""

    kind: str
    source: str
    status: str  # "done", "damaged" (done, but the source is not what it should be), "skipped" (was there, verified), "failed"
    outputs: Written = ()
    bytes_in: int = 0
    bytes_out: int = 0
    state: str = ""  # of the source
    reason: str | None = (
        None  # of a failure, of damage; of a scan coded without loss though loss was asked for
    )
    seconds: float = 0.0


@dataclass
class Totals:
    """Of one kind of files, over a run."""

    done: int = 0
    damaged: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_in: int = 0  # of those that did not fail
    bytes_out: int = 0

    @property
    def files(self) -> int:
        """Of DICOM, folders."""
        return self.done + self.damaged + self.skipped + self.failed

    @property
    def ratio(self) -> float:
        return self.bytes_in / self.bytes_out if self.bytes_out else 1.0


@dataclass
class Summary:
    """Of a run: totals by kind, and what failed or was damaged."""

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


Report = Callable[
    [Outcome, int, int], None
]  # called with what became of a file, files so far, files in all


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
    """Encode every scan below `in_dir` into `out_dir`, or with `decode` restore them; carry along all other files.

    settings: keyword arguments of `Encoder`. jobs: processes, by default one per core. scheduler: the address of a Dask
    scheduler, instead of processes; its workers must see the two folders under the same paths.

    ValueError: wrong settings, or folders that are the same. OSError: `in_dir` can't be read, the ledger can't be written or
    another run holds it. All else is in the summary.
    """
    given = tuple(sorted((settings or {}).items()))
    if decode and given:
        raise ValueError(
            f"settings: expected none with decode, found {', '.join(name for name, _ in given)}"
        )
    if not decode:
        _encoder(given)  # ValueError if they are wrong
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected 1 or more, found {jobs}")
    source, destination = Path(in_dir).resolve(), Path(out_dir).resolve()
    if source == destination:
        raise ValueError(f"{out_dir}: expected another folder than that of the input; choose one")
    with os.scandir(source):  # OSError
        pass
    destination.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    with Ledger(destination / LEDGER, {"decode": decode, **dict(given)}) as ledger:
        shutil.rmtree(destination / WORKSHOP, ignore_errors=True)  # of a run that was killed
        planned, bad = _plan(source, destination, decode, given, ledger)
        if scheduler is None:
            worked = in_processes(run_job, planned, min(jobs or cores(), max(1, len(planned))))
        else:
            worked = on_cluster(run_job, planned, scheduler)
        for number, outcome in enumerate(itertools.chain(bad, worked), 1):
            ledger.write(outcome)
            summary.add(outcome)
            if report is not None:
                report(outcome, number, len(bad) + len(planned))
        shutil.rmtree(destination / WORKSHOP, ignore_errors=True)
    return summary


class Ledger:
    """The file of outcomes in the output folder: what an earlier run wrote, and the lines of this one.

    A line is a JSON object: the fields of `Outcome`, `settings` and `time` (seconds since 1970). A torn last line is ignored.
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
            try:
                record = json.loads(line)
                self._records[record["kind"], record["source"]] = record
            except (ValueError, KeyError, TypeError):
                continue

    def _lock(self, path: Path) -> None:
        """For one run at a time, where the system can."""
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
        """What the last run wrote of a file, None if there is no record; and whether state and settings are the same."""
        record = self._records.get((kind, source))
        if record is None:
            return None, False
        same = (record.get("state"), record.get("settings")) == (state, self._settings)
        written = tuple(
            (str(path), str(digest))
            for path, digest in record.get("outputs", ())
            if safe_name(str(path))
        )
        return written, same and record.get("status") != "failed"

    def write(self, outcome: Outcome) -> None:
        record = {**asdict(outcome), "settings": self._settings, "time": round(time.time(), 3)}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def run_job(job: Job) -> Outcome:
    """Do one job, whatever happens; outputs appear under their names when they are complete."""
    start = time.perf_counter()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            outcome = _skipped(job) or _done(job)
            break
        except Exception as error:
            if attempt < ATTEMPTS and _may_pass(error):
                time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
                continue
            outcome = failed(job, _one_line(error))
            break
    return dataclasses.replace(outcome, seconds=round(time.perf_counter() - start, 3))


def failed(job: Job, reason: str) -> Outcome:
    return Outcome(
        job.kind, job.source, "failed", bytes_in=job.size, state=job.state, reason=reason
    )


def _done(job: Job) -> Outcome:
    source, destination = Path(job.in_dir, job.source), Path(job.out_dir, job.destination)
    workshop = Path(job.out_dir, WORKSHOP)
    workshop.mkdir(exist_ok=True)
    status, note = "done", None
    with tempfile.TemporaryDirectory(dir=workshop) as name:
        folder = Path(name)
        if job.kind == "scan":
            note = _encoder(job.settings).encode_file(source, folder / destination.name).reason
        elif job.kind == "series":
            status, note = _encode_folder(job, folder)
        elif job.kind == "file":
            shutil.copyfile(source, folder / destination.name)
            shutil.copystat(source, folder / destination.name)
        elif inspection.info(source).files:
            restore_series(source, folder, force=True)
        else:
            _decoder().decode_file(source, folder / destination.name)
        made = sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
        for path in made:
            _move(folder / path, destination.parent / path, job)
    written = [destination.parent / path for path in made]
    for old, _ in job.previous or ():
        if Path(job.out_dir, old) not in written:
            Path(job.out_dir, old).unlink(missing_ok=True)
    return _outcome(job, status, written, note)


def _encode_folder(job: Job, folder: Path) -> tuple[str, str | None]:
    """A stream for each series of the DICOM files; a status and a note."""
    names: set[str] = set()
    notes, damaged = [], False
    for found in find_series(Path(job.in_dir, file) for file in job.files):
        plain = name = re.sub(r"[^A-Za-z0-9.+-]+", "_", found.title).strip("_.")[:80] or "series"
        while name.lower() in names:
            name = f"{plain}_{len(names) + 1}"
        names.add(name.lower())
        report = encode_series_file(found, folder / (name + EXTENSIONS[0]), _encoder(job.settings))
        damaged = damaged or report.damaged
        notes += [f"{file}: {note}" for file, note in report.notes]
    more = f" (and {len(notes) - 1} notes more)" if len(notes) > 1 else ""
    return "damaged" if damaged else "done", notes[0] + more if notes else None


def _move(made: Path, place: Path, job: Job) -> None:
    """To its place. The files of a series have names of their own choice: they replace nothing but what this job wrote."""
    place.parent.mkdir(parents=True, exist_ok=True)
    ours = {path for path, _ in job.previous or ()} | {job.destination}
    if job.kind in ("series", "stream") and place.relative_to(job.out_dir).as_posix() not in ours:
        with contextlib.suppress(OSError):
            os.link(made, place)  # not if another file, of another process perhaps, is there
            return
        known = job.kind == "series" and place.exists() and is_stream(place)
        if place.exists() and not known and not filecmp.cmp(made, place, shallow=False):
            raise FileExistsError(
                errno.EEXIST, "is there already, with other content; move it away", str(place)
            )
    os.replace(made, place)


def _skipped(job: Job) -> Outcome | None:
    """Where an earlier run did the job and what it wrote is still the same."""
    destination = Path(job.out_dir, job.destination)
    if (
        job.previous is None
    ):  # no record: believe a sound stream and an identical copy, nothing else
        if not destination.is_file():
            return None
        if job.kind == "file":
            same = filecmp.cmp(Path(job.in_dir, job.source), destination, shallow=False)
        else:
            same = job.kind == "scan" and _is_sound(
                destination, dict(job.settings).get("lossless", False)
            )
        return _outcome(job, "skipped", [destination]) if same else None
    paths = [Path(job.out_dir, path) for path, _ in job.previous]
    if not job.fresh or not all(path.is_file() for path in paths):
        return None
    found = _outcome(job, "skipped", paths)
    return found if found.outputs == job.previous else None


def _is_sound(stream: Path, lossless: bool) -> bool:
    try:
        return inspection.verify(stream).mode == "lossless" or not lossless
    except FormatError:
        return False


def _outcome(job: Job, status: str, written: Sequence[Path], note: str | None = None) -> Outcome:
    outputs = tuple((path.relative_to(job.out_dir).as_posix(), _sha256(path)) for path in written)
    size = sum(path.stat().st_size for path in written)
    return Outcome(job.kind, job.source, status, outputs, job.size, size, job.state, note)


def in_processes(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], workers: int
) -> Iterator[Outcome]:
    """The outcomes of `work`, as they come, from that many processes (started afresh, not forked).

    A process that dies takes the pool with it: a new one is made, and what was being worked on is tried again, each job alone,
    so that the one that kills its process fails (after `ATTEMPTS`) and the others don't.
    """
    context = multiprocessing.get_context("spawn")
    with _safe_path():
        yield from _in_processes(context, work, jobs, workers)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """New processes don't look for modules in the current folder, before they have the path of this one."""
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


def _in_processes(
    context: Any, work: Callable[[Job], Outcome], jobs: Sequence[Job], workers: int
) -> Iterator[Outcome]:
    waiting = collections.deque((job, 1) for job in jobs)
    suspects: collections.deque[tuple[Job, int]] = collections.deque()
    while waiting or suspects:
        queue, size = (suspects, 1) if suspects else (waiting, workers)
        running: dict[Future[Outcome], tuple[Job, int]] = {}
        pool = ProcessPoolExecutor(
            size, context, initializer=_start, initargs=(max(1, cores() // workers),)
        )
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
                    outcome = future.result() if error is None else failed(job, _one_line(error))
                    if (
                        attempt > 1 and outcome.status == "skipped"
                    ):  # its result was lost, its work was not
                        outcome = replace(outcome, status="done")
                    yield outcome
        except BrokenProcessPool:
            for future, (job, attempt) in running.items():
                if future.exception() is None:  # waits until the pool has given up
                    yield future.result()
                elif attempt < ATTEMPTS:
                    suspects.append((job, attempt + 1))
                else:
                    yield failed(job, f"its process died {attempt} times; is there enough memory?")
        finally:
            pool.shutdown(cancel_futures=True)


def on_cluster(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], scheduler: str
) -> Iterator[Outcome]:
    """The outcomes of `work`, as they come, from the workers of a Dask scheduler, which replaces those that die.

    ValueError: the extra `cluster` is not installed. OSError: no scheduler answers at that address.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ValueError(
            "scheduler: expected the package distributed; pip install 'mricodec[cluster]'"
        ) from error
    with Client(scheduler) as client:
        futures = client.map(work, jobs, pure=False, retries=ATTEMPTS, batch_size=500)
        jobs_of = dict(zip(futures, jobs, strict=True))
        del futures
        for future in as_completed(list(jobs_of)):
            job = jobs_of.pop(future)  # and let the cluster forget it
            try:
                outcome = future.result()
            except (
                Exception,
                CancelledError,
            ) as error:  # a worker that died too often, a lost scheduler
                outcome = failed(job, _one_line(error))
            yield outcome


def _plan(
    source: Path, destination: Path, decode: bool, settings: Settings, ledger: Ledger
) -> tuple[list[Job], list[Outcome]]:
    """What is to be done, the largest first, and what can't be."""
    jobs: dict[str, Job] = {}
    bad: list[Outcome] = []

    def unreadable(error: OSError) -> None:
        name = Path(str(error.filename)).relative_to(source).as_posix()
        bad.append(Outcome("file", name, "failed", reason=_one_line(error)))

    def add(kind: str, relative: str, target: str, paths: Sequence[Path]) -> None:
        if target in jobs:
            reason = f"expected a name of its own, found that {jobs[target].source} gives {target} too; rename it"
            bad.append(Outcome(kind, relative, "failed", reason=reason))
            return
        found = [(path.name, path.stat()) for path in paths]
        state = ",".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in found)
        if len(found) > 2:
            state = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()
        size = sum(stat.st_size for _, stat in found)
        known = ledger.previous(kind, relative, state)
        files = (
            tuple(path.relative_to(source).as_posix() for path in paths) if kind == "series" else ()
        )
        jobs[target] = Job(
            kind,
            relative,
            target,
            str(source),
            str(destination),
            size,
            state,
            settings,
            *known,
            files,
        )

    for folder, folders, files in os.walk(source, onerror=unreadable):
        here = Path(folder)
        for name in [name for name in folders if (here / name).is_symlink()]:
            reason = "expected a folder, found a link to one, which is not followed; give its target as input"
            bad.append(
                Outcome(
                    "file", (here / name).relative_to(source).as_posix(), "failed", reason=reason
                )
            )
        folders[:] = sorted(
            name for name in folders if name != WORKSHOP and here / name != destination
        )
        seconds = {
            second for first in files if (second := _second_of_pair(here / first)) is not None
        }
        pictures = []
        for path in sorted(here / name for name in files):
            if path.name == LEDGER or path in seconds:
                continue
            relative = path.relative_to(source).as_posix()
            try:
                kind, target = _kind(path, relative, decode)
                if kind == "series":
                    path.stat()
                    pictures.append(path)
                else:
                    second = _second_of_pair(path)
                    add(kind, relative, target, [path] if second is None else [path, second])
            except OSError as error:
                bad.append(Outcome("file", relative, "failed", reason=_one_line(error)))
        if pictures:
            relative = here.relative_to(source).as_posix()
            add("series", relative, f"{relative}/*{EXTENSIONS[0]}", pictures)
    return sorted(jobs.values(), key=lambda job: -job.size), bad


def _kind(path: Path, relative: str, decode: bool) -> tuple[str, str]:
    """The kind of a file, and the name of what it becomes. OSError if it can't be read."""
    if not path.is_file():
        path.stat()
        raise OSError(
            errno.EINVAL,
            "expected a file or a folder, found a device, a pipe or a socket",
            str(path),
        )
    name = path.name.lower()
    if decode:
        if not name.endswith(EXTENSIONS) or not is_stream(path):
            return "file", relative
        inner = relative[: relative.rindex(".")]
        is_scan = inner.lower().endswith((".nii", ".nii.gz")) or pair_paths(Path(inner)) is not None
        return "stream", inner if is_scan else inner + ".nii.gz"
    if name.endswith((".nii", ".nii.gz")) or _second_of_pair(path) is not None:
        return "scan", relative + EXTENSIONS[0]
    with open(path, "rb") as file:
        if name != "dicomdir" and is_dicom(file.read(PREFIX_SIZE)):
            return "series", ""
    return "file", relative


def is_stream(path: Path) -> bool:
    """Whether a file begins as a stream does."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _second_of_pair(path: Path) -> Path | None:
    """The .img file of a NIfTI .hdr file, if it is one."""
    pair = pair_paths(path)
    if pair is None or pair[0] != path or not pair[1].is_file():
        return None
    try:
        with open(path, "rb") as file:
            recognised = is_nifti(peek(open_decompressed(file), 4, str(path)))
    except (OSError, FormatError):
        return None
    return pair[1] if recognised else None


def _start(threads: int) -> None:
    """In a new process, before torch is imported: share the cores, and don't outlive a parent that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@functools.lru_cache(4)
def _encoder(settings: Settings) -> api.Encoder:
    return api.Encoder(**dict(settings))


@functools.cache
def _decoder() -> api.Decoder:
    return api.Decoder()


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: a disk or network that fails, memory that others hold."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno not in _LASTING
    )


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
