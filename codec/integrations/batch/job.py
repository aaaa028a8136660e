"""One job of a run: encode, decode or copy one file, or skip it because that has been done."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import filecmp
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mricodec.bitstream.errors import FormatError, error_text
from mricodec.codec import api, inspection
from mricodec.codec.dicom.encode import encode_series_file
from mricodec.codec.dicom.restore import restore_series
from mricodec.codec.dicom.stacks import find_series
from mricodec.codec.filenames import STREAM_ENDINGS, is_stream, series_stem

# Folder in the output folder for files that are not complete yet.
STAGING = ".mricodec-batch"
# Attempts at a file whose process died, or where the disk or memory failed.
MAX_ATTEMPTS = 3
# Seconds before the second attempt; doubled after each.
WAIT_SECONDS = 0.5
# Errors of the system that another attempt doesn't change.
_PERMANENT_ERRORS = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EINVAL),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
}

# Keyword arguments of `Encoder`.
Settings = tuple[tuple[str, Any], ...]
# Files written: path in the output folder, SHA-256.
Written = tuple[tuple[str, str], ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One file, pair or folder of DICOM files; paths are relative to the two folders."""

    # "scan", "series" (all DICOM files of a folder), "stream" or "file".
    kind: str
    source: str
    # Of a series, and of the stream of one, only the folder counts.
    destination: str
    in_dir: str
    out_dir: str
    # Bytes of the source.
    size: int
    # Names, sizes and times of the source: another state is another content.
    state: str
    settings: Settings
    # What an earlier run wrote; None if there is no record of it.
    previous: Written | None
    # Whether that was of the same state, with the same settings.
    is_current: bool
    # The files of a series.
    files: tuple[str, ...] = ()

    @property
    def destination_path(self) -> Path:
        return Path(self.out_dir, self.destination)


@dataclass(frozen=True)
class Outcome:
    """What became of one file; a line of the ledger."""

    kind: str
    source: str
    # "done"; "damaged": done, but the source is not what it should be; "skipped": done earlier,
    # and verified; "failed".
    status: str
    outputs: Written = ()
    bytes_in: int = 0
    bytes_out: int = 0
    # State of the source, see `Job`.
    state: str = ""
    # Why it failed or is damaged, or why a scan was coded without loss though loss was asked for.
    reason: str | None = None
    seconds: float = 0.0


def run_job(job: Job) -> Outcome:
    """Do one job; errors are outcomes. Outputs appear under their names when they are complete."""
    start = time.perf_counter()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            outcome = _skipped(job) or _convert(job)
            break
        except Exception as error:
            if attempt < MAX_ATTEMPTS and _may_pass(error):
                _log.info("%s: attempt %d: %s", job.source, attempt, error_text(error))
                time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
                continue
            outcome = failed(job, error_text(error))
            break
    return dataclasses.replace(outcome, seconds=round(time.perf_counter() - start, 3))


def failed(job: Job, reason: str) -> Outcome:
    """The outcome of a job that failed."""
    return Outcome(
        job.kind, job.source, "failed", bytes_in=job.size, state=job.state, reason=reason
    )


def _convert(job: Job) -> Outcome:
    """Write the outputs into a temporary folder, move them, remove those of an earlier run."""
    staging = Path(job.out_dir, STAGING)
    staging.mkdir(exist_ok=True)
    parent = job.destination_path.parent
    with tempfile.TemporaryDirectory(dir=staging) as name:
        folder = Path(name)
        status, note = _write(job, folder)
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
        for path in paths:
            _move(folder / path, parent / path, job)
    written = [parent / path for path in paths]
    for old, _ in job.previous or ():
        if Path(job.out_dir, old) not in written:
            Path(job.out_dir, old).unlink(missing_ok=True)
    return _outcome(job, status, written, note)


def _write(job: Job, folder: Path) -> tuple[str, str | None]:
    """Write what becomes of the source into a folder; status and note of the outcome."""
    source, target = Path(job.in_dir, job.source), folder / job.destination_path.name
    if job.kind == "scan":
        return "done", encoder_of(job.settings).encode_file(source, target).reason
    if job.kind == "series":
        return _encode_folder(job, folder)
    if job.kind == "file":
        shutil.copyfile(source, target)
        shutil.copystat(source, target)
    elif inspection.info(source).files:
        restore_series(source, folder, force=True)
    else:
        _decoder().decode_file(source, target)
    return "done", None


def _encode_folder(job: Job, folder: Path) -> tuple[str, str | None]:
    """Write a stream for each series of the DICOM files."""
    names: set[str] = set()
    notes, damaged = [], False
    for one in find_series(Path(job.in_dir, file) for file in job.files):
        plain = name = series_stem(one.title)
        while name.lower() in names:
            name = f"{plain}_{len(names) + 1}"
        names.add(name.lower())
        report = encode_series_file(
            one, folder / (name + STREAM_ENDINGS[0]), encoder_of(job.settings)
        )
        damaged = damaged or report.damaged
        notes += [f"{file}: {note}" for file, note in report.notes]
    more = f" (and {len(notes) - 1} notes more)" if len(notes) > 1 else ""
    return "damaged" if damaged else "done", notes[0] + more if notes else None


def _move(source: Path, target: Path, job: Job) -> None:
    """Move an output to its name.

    The files of a series have names of their own: they replace nothing but what this job wrote.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {path for path, _ in job.previous or ()} | {job.destination}
    if job.kind in ("series", "stream") and target.relative_to(job.out_dir).as_posix() not in (
        written
    ):
        with contextlib.suppress(OSError):
            os.link(source, target)  # Fails if another process has just written that name.
            return
        is_old = job.kind == "series" and target.exists() and is_stream(target)
        if target.exists() and not is_old and not filecmp.cmp(source, target, shallow=False):
            raise FileExistsError(
                errno.EEXIST, "is there already, with other content; move it away", str(target)
            )
    os.replace(source, target)


def _skipped(job: Job) -> Outcome | None:
    """The outcome if an earlier run did the job and its outputs are still the same."""
    if job.previous is None:
        return _skipped_without_record(job)
    paths = [Path(job.out_dir, path) for path, _ in job.previous]
    if not job.is_current or not all(path.is_file() for path in paths):
        return None
    outcome = _outcome(job, "skipped", paths)
    return outcome if outcome.outputs == job.previous else None


def _skipped_without_record(job: Job) -> Outcome | None:
    """Without a record only an identical copy or a sound stream counts as done."""
    target = job.destination_path
    if not target.is_file():
        return None
    if job.kind == "file":
        same = filecmp.cmp(Path(job.in_dir, job.source), target, shallow=False)
    else:
        same = job.kind == "scan" and _is_sound(target, dict(job.settings).get("lossless", False))
    return _outcome(job, "skipped", [target]) if same else None


def _is_sound(stream: Path, lossless: bool) -> bool:
    try:
        return inspection.verify(stream).mode == "lossless" or not lossless
    except FormatError:
        return False


def _outcome(job: Job, status: str, written: Sequence[Path], note: str | None = None) -> Outcome:
    outputs = tuple((path.relative_to(job.out_dir).as_posix(), _sha256(path)) for path in written)
    size = sum(path.stat().st_size for path in written)
    return Outcome(job.kind, job.source, status, outputs, job.size, size, job.state, note)


@functools.lru_cache(4)
def encoder_of(settings: Settings) -> api.Encoder:
    """An encoder, which keeps its model for the next job. ValueError for wrong settings."""
    return api.Encoder(**dict(settings))


@functools.cache
def _decoder() -> api.Decoder:
    return api.Decoder()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may help: a disk or network that fails, memory that others hold."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno not in _PERMANENT_ERRORS
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
