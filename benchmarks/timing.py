"""Subjects whose encoders and decoders are timed side by side, one call after the other.

CPU seconds and memory are those of a process and its helpers, read from /proc (Linux).
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.coders.workers import cores
from mricodec.codec.evaluation.still import Samples, StillPicture

# A checkout of this project as it is asked line by line to encode or decode, and answers with the
# seconds; the first line that it writes is the length of the stream.
_SERVER = """
import json, sys, time
import numpy as np
from mricodec import codec
voxels = np.load(sys.argv[1])
encoder, decoder = codec.Encoder(**json.loads(sys.argv[2])), codec.Decoder()
stream = encoder.encode(voxels)
decoder.decode(stream)
print(len(stream), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    if line.strip() == "encode":
        encoder.encode(voxels)
    else:
        decoder.decode(stream)
    print(time.perf_counter() - start, flush=True)
"""
WAYS = ("encode", "decode")
# Of a codec with a parameter: how many are tried, on so many slices, to find the nearest rate.
TRIED_PARAMETERS, TRIED_SLICES = 17, 12


@dataclass
class Subject:
    """What is timed; `call` encodes or decodes and returns the seconds of the wall clock."""

    name: str
    pid: int
    call: Callable[[str], float]
    # Of the coded voxels.
    size: int
    # (wall, CPU) seconds of each run.
    times: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {way: [] for way in WAYS}
    )

    def run(self) -> None:
        """Encode and decode once; before that decode, as memory that was idle is slow at first."""
        self.call("decode")
        for way in WAYS:
            before = cpu_seconds(self.pid)
            wall = self.call(way)
            self.times[way].append((wall, cpu_seconds(self.pid) - before))

    def row(self, voxels: NDArray[Any]) -> dict[str, Any]:
        """Medians, in seconds; bits per voxel; MB/s of the stored voxels; GB at the most."""
        row: dict[str, Any] = {"name": self.name, "bpv": round(8 * self.size / voxels.size, 3)}
        for way, times in self.times.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            row[f"{way}_s"], row[f"{way}_cpu_s"] = round(wall, 3), round(cpu, 3)
            row[f"{way}_mb_per_s"] = round(voxels.nbytes / 1e6 / wall, 2)
        if self.pid != os.getpid():
            row["memory_gb"] = round(peak_memory(self.pid), 2)
        return row


@dataclass(frozen=True)
class Checkout:
    """A checkout of this project, and how it is run."""

    name: str
    folder: Path
    backend: str = ""
    threads: int = 0

    def environment(self) -> dict[str, str]:
        """Variables of its processes."""
        variables = os.environ | {"PYTHONPATH": _importable(self.folder).name}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)  # An installed package has its bytecode.
        if self.backend:
            variables["MRICODEC_BACKEND"] = self.backend
        if self.threads:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables


@functools.cache
def _importable(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder in which a checkout of any name is called mricodec, for as long as this runs."""
    parent = tempfile.TemporaryDirectory()
    (Path(parent.name) / "mricodec").symlink_to(folder, target_is_directory=True)
    return parent


class Server:
    """A process that encodes and decodes with a checkout, its model loaded."""

    def __init__(self, checkout: Checkout, voxels: Path, **options: Any) -> None:
        """voxels: a .npy file; options: of the Encoder. RuntimeError if it does not start."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(voxels), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=checkout.environment(),
        )
        self.subject = Subject(checkout.name, self._process.pid, self._call, int(self._answer()))

    def _call(self, way: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{way}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a process that was to be timed ended ({self._process.wait()})")
        return line

    def __enter__(self) -> Subject:
        return self.subject

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def local(name: str, encode: Callable[[], bytes], decode: Callable[[bytes], object]) -> Subject:
    """A codec in this process."""
    stream = encode()

    def call(way: str) -> float:
        start = time.perf_counter()
        if way == "encode":
            encode()
        else:
            decode(stream)
        return time.perf_counter() - start

    return Subject(name, os.getpid(), call, len(stream))


def pictures(codec: StillPicture, voxels: NDArray[Any], bpv: float) -> Subject:
    """A codec of pictures near a rate, a thread for each core, a picture at a time."""
    samples = Samples.of(voxels, (float(voxels.min()), float(voxels.max())))
    slices = samples.from_values(voxels)
    pool = ThreadPoolExecutor(cores())

    def encode(part: NDArray[np.uint16], parameter: float) -> list[bytes]:
        starts = range(len(part))
        coded = pool.map(
            lambda n: codec.encode_slices(part[n : n + 1], samples.peak, parameter), starts
        )
        return [picture for (picture,) in coded]

    def distance(parameter: float) -> float:
        part = slices[:: max(1, len(slices) // TRIED_SLICES)]
        return abs(8 * sum(map(len, encode(part, parameter))) / part.size - bpv)

    chosen = min(codec.parameters(TRIED_PARAMETERS, []), key=distance)
    coded = encode(slices, chosen)
    return local(
        f"{codec.name} ({codec.version}), {chosen:g}",
        lambda: b"".join(encode(slices, chosen)),
        lambda _: list(pool.map(codec.decode_slice, coded)),
    )


def alternate(subjects: Sequence[Subject], runs: int) -> None:
    """Run each of the subjects, and this so many times.

    In changing order: a subject is slower after one that takes long or much memory.
    """
    for seed in range(runs):
        for subject in random.Random(seed).sample(subjects, len(subjects)):
            subject.run()


def command(arguments: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a whole process. RuntimeError if it fails."""
    before, start = _cpu_of_ended(), time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {ended.stderr.strip()}")
    return wall, _cpu_of_ended() - before


def _cpu_of_ended() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[Path]:
    """Folders in /proc of a process and its helpers."""
    process = Path("/proc") / str(pid)
    helpers = [
        helper for file in process.glob("task/*/children") for helper in file.read_text().split()
    ]
    return [process, *(Path("/proc") / helper for helper in helpers)]


def cpu_seconds(pid: int) -> float:
    """Of a process and its helpers since each began; of this process alone if it is this one."""
    if pid == os.getpid():
        return time.process_time()
    ticks = 0
    for process in _family(pid):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # Its time, and that of its children that ended.
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """GB of a process and its helpers together, since each began."""
    states = [(process / "status").read_text() for process in _family(pid)]
    return sum(int(re.findall(r"VmHWM:\s+(\d+) kB", state)[0]) for state in states) / 1e6
