"""What a run has to do: a `Job` for every file of a tree, and what can't be done."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mricodec.bitstream.errors import FormatError, error_text
from mricodec.codec.filenames import STREAM_ENDINGS, ends_with, is_stream, scan_path
from mricodec.codec.formats.dicom.elements import PREFIX_SIZE, is_dicom
from mricodec.codec.formats.gzip_input import open_decompressed, peek
from mricodec.codec.formats.nifti import pair_paths
from mricodec.codec.formats.nifti_header import is_nifti

from .job import STAGING, Job, Outcome, Settings
from .ledger import LEDGER, Ledger


def plan(
    source: Path, destination: Path, decode: bool, settings: Settings, ledger: Ledger
) -> tuple[list[Job], list[Outcome]]:
    """The jobs, the largest first, and the failures of what can't be read or has no name."""
    planner = _Planner(source, destination, decode, settings, ledger)
    for folder, folders, names in os.walk(source, onerror=planner.unreadable):
        here = Path(folder)
        for name in folders:
            if (here / name).is_symlink():
                planner.fail(
                    here / name,
                    "expected a folder, found a link to one, which is not followed; "
                    "give its target as input",
                )
        folders[:] = sorted(
            name for name in folders if name != STAGING and here / name != destination
        )
        planner.add_folder(here, [here / name for name in sorted(names)])
    return sorted(planner.jobs.values(), key=lambda job: -job.size), planner.failures


class _Planner:
    """The jobs so far, by the names of their outputs."""

    def __init__(
        self, source: Path, destination: Path, decode: bool, settings: Settings, ledger: Ledger
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.failures: list[Outcome] = []
        self._source, self._destination = source, destination
        self._decode = decode
        self._settings = settings
        self._ledger = ledger

    def unreadable(self, error: OSError) -> None:
        """For `os.walk`: a folder that can't be listed."""
        self.fail(Path(str(error.filename)), error_text(error))

    def fail(self, path: Path, reason: str) -> None:
        self.failures.append(Outcome("file", self._relative(path), "failed", reason=reason))

    def add_folder(self, folder: Path, paths: Sequence[Path]) -> None:
        """The files of one folder; its DICOM files are one job."""
        seconds = {second for path in paths if (second := _second_of_pair(path)) is not None}
        dicom_files = []
        for path in paths:
            if path.name == LEDGER or path in seconds:
                continue
            relative = self._relative(path)
            try:
                kind, target = _kind(path, relative, self._decode)
                if kind == "series":
                    path.stat()
                    dicom_files.append(path)
                else:
                    second = _second_of_pair(path)
                    self._add(kind, relative, target, [path] if second is None else [path, second])
            except OSError as error:
                self.fail(path, error_text(error))
        if dicom_files:
            relative = self._relative(folder)
            self._add("series", relative, f"{relative}/*{STREAM_ENDINGS[0]}", dicom_files)

    def _add(self, kind: str, relative: str, target: str, paths: Sequence[Path]) -> None:
        if target in self.jobs:
            reason = (
                f"expected a name of its own, found that {self.jobs[target].source} "
                f"gives {target} too; rename it"
            )
            self.failures.append(Outcome(kind, relative, "failed", reason=reason))
            return
        stats = [(path.name, path.stat()) for path in paths]
        state = ",".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)
        if len(stats) > 2:
            state = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()
        written, is_current = self._ledger.previous(kind, relative, state)
        self.jobs[target] = Job(
            kind,
            relative,
            target,
            str(self._source),
            str(self._destination),
            size=sum(stat.st_size for _, stat in stats),
            state=state,
            settings=self._settings,
            previous=written,
            is_current=is_current,
            files=tuple(map(self._relative, paths)) if kind == "series" else (),
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._source).as_posix()


def _kind(path: Path, relative: str, decode: bool) -> tuple[str, str]:
    """The kind of a file, and the name of its output. OSError if it can't be read."""
    if not path.is_file():
        path.stat()
        raise OSError(
            errno.EINVAL,
            "expected a file or a folder, found a device, a pipe or a socket",
            str(path),
        )
    if decode:
        if not ends_with(path, STREAM_ENDINGS) or not is_stream(path):
            return "file", relative
        return "stream", scan_path(Path(relative)).as_posix()
    if ends_with(path, (".nii", ".nii.gz")) or _second_of_pair(path) is not None:
        return "scan", relative + STREAM_ENDINGS[0]
    with open(path, "rb") as file:
        if path.name.lower() != "dicomdir" and is_dicom(file.read(PREFIX_SIZE)):
            return "series", ""
    return "file", relative


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
