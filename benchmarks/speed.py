"""Times of the default model beside other codecs, and beside another checkout of this project.

    python -m benchmarks.speed -o benchmarks/speed.json
    python -m benchmarks.speed -o benchmarks/speed.json --against BEFORE --only volume

Parts, which --only chooses from; all figures are medians of runs in which the subjects alternate:

phases    ns of CPU time per voxel in each phase of the C core, in one thread
volume    a whole volume at the default quality, the model loaded; other codecs near its rate
lossless  the same without loss, and tomoz
commands  whole processes with README's sample, start-up included
busy      the volume while a process keeps each core busy, with all threads and with one

The volume is README's sample, or a scan of your own: the central 256 x 256 voxels of 192 slices,
repeated backwards and forwards, with a little noise, where it has fewer. The output keeps parts
that are not measured again.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.codec.coders.workers import cores
from mricodec.codec.evaluation import still
from mricodec.codec.evaluation.rate_distortion import Source
from mricodec.codec.evaluation.report import environment
from mricodec.codec.native import library
from mricodec.models.extras import require

from .native import phases
from .timing import Checkout, Server, Subject, alternate, command, local, pictures

# The package as this process imports it: installed, or a checkout.
PACKAGE = Path(library.__file__).resolve().parents[2]
SAMPLE = PACKAGE / "codec" / "sample" / "brain_t1w.nii.gz"
# (k, j, i) of the volume.
SHAPE = (192, 256, 256)
RUNS = 5


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often."""

    voxels: NDArray[Any]
    # The same as a .npy file, in a folder for other files.
    file: Path
    backends: list[str]
    against: Path | None
    runs: int

    @property
    def current(self) -> Checkout:
        """This package with the first of the backends."""
        return Checkout(f"mricodec, {self.backends[0]}", PACKAGE, self.backends[0])

    @property
    def before(self) -> list[Checkout]:
        """The other checkout, if there is one."""
        return [] if self.against is None else [Checkout("mricodec before", self.against)]

    def phases(self) -> list[dict[str, Any]]:
        return phases.measure(self.voxels, self.backends, self.runs)

    def volume(self) -> list[dict[str, Any]]:
        current = [Checkout(f"mricodec, {name}", PACKAGE, name) for name in self.backends]
        one = replace(self.current, name=f"{self.current.name}, one thread", threads=1)
        with self._servers([*current, one, *self.before]) as subjects:
            bpv = 8 * subjects[0].size / self.voxels.size
            peers = [pictures(make(), self.voxels, bpv) for make in (still.jpeg2000, still.jpegxl)]
            return self._rows([*subjects, *peers])

    def lossless(self) -> list[dict[str, Any]]:
        tomoz = require("tomoz", "bench", "tomoz")
        with self._servers([self.current, *self.before], lossless=True) as subjects:
            encode = partial(tomoz.encode, self.voxels)
            peer = local(f"tomoz ({tomoz.__version__})", encode, tomoz.decode)
            return self._rows([*subjects, peer])

    def commands(self) -> list[dict[str, Any]]:
        commands = [("Python alone", self.current, ["-c", "pass"])]
        for checkout in (self.current, *self.before):
            for arguments in self._command_lines():
                name = f"{checkout.name}: {arguments[0]}"
                commands.append((name, checkout, ["-m", "mricodec.cli", *arguments]))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in commands}
        for _ in range(self.runs + 1):  # The first one is not counted.
            for name, checkout, arguments in commands:
                times[name].append(command(arguments, checkout.environment()))
        rows = []
        for name, pairs in times.items():
            wall, cpu = map(statistics.median, zip(*pairs[1:], strict=True))
            rows.append({"name": name, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)})
        return rows

    def _command_lines(self) -> list[list[str]]:
        coded, decoded = (str(self.file.with_name(f"sample.{kind}")) for kind in ("mrc", "nii.gz"))
        return [
            ["--help"],
            ["encode", str(SAMPLE), "-o", coded, "--force", "--quiet"],
            ["decode", coded, "-o", decoded, "--force", "--quiet"],
        ]

    def busy(self) -> list[dict[str, Any]]:
        one = replace(self.current, name=f"{self.current.name}, one thread", threads=1)
        with self._servers([self.current, one]) as subjects, busy_cores():
            return self._rows(subjects)

    @contextlib.contextmanager
    def _servers(self, checkouts: list[Checkout], **options: Any) -> Iterator[list[Subject]]:
        with contextlib.ExitStack() as stack:
            servers = (Server(checkout, self.file, **options) for checkout in checkouts)
            yield [stack.enter_context(server) for server in servers]

    def _rows(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        alternate(subjects, self.runs)
        return [subject.row(self.voxels) for subject in subjects]


PARTS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "phases": Bench.phases,
    "volume": Bench.volume,
    "lossless": Bench.lossless,
    "commands": Bench.commands,
    "busy": Bench.busy,
}


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """A process that computes all the time, for each core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def fitted(voxels: NDArray[Any]) -> NDArray[Any]:
    """SHAPE of a volume [k, j, i]: the shortest axis becomes k; cut in the middle, or repeated.

    In slices that repeat others, what is not background differs by -1, 0 or 1 at random: a codec
    without loss would otherwise copy them.
    """
    voxels = np.moveaxis(voxels, int(np.argmin(voxels.shape)), 0)
    background, unlike = voxels.min(), np.random.default_rng(0)
    for axis, length in enumerate(SHAPE):
        start = max(0, (voxels.shape[axis] - length) // 2)
        voxels = np.take(voxels, range(start, min(start + length, voxels.shape[axis])), axis)
    present = len(voxels)
    missing = [(0, length - have) for length, have in zip(SHAPE, voxels.shape, strict=True)]
    voxels = np.pad(voxels, missing, mode="symmetric")
    repeated = voxels[present:]
    change = unlike.integers(-1, 2, repeated.shape, np.int8)
    np.add(repeated, change, out=repeated, where=repeated > background, casting="unsafe")
    return np.ascontiguousarray(voxels)


# Endings of columns, and what a reader sees.
HEADINGS = {"_mb_per_s": ", MB/s", "_cpu_s": ", CPU s", "_s": ", s", "_gb": ", GB"}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of a part as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    headings = [
        next(
            (key.removesuffix(end) + text for end, text in HEADINGS.items() if key.endswith(end)),
            key,
        )
        for key in columns
    ]
    lines = [headings, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.argument(
    "scan", default=SAMPLE, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON of the results.")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Another checkout of this project, its C core built.",
)
@click.option("--backend", "backends", multiple=True, help="Of the C core; default: all.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Default: all.")
@click.option("--runs", default=RUNS, show_default=True, type=click.IntRange(min=1))
def main(
    scan: Path,
    output: Path | None,
    against: Path | None,
    backends: tuple[str, ...],
    only: tuple[str, ...],
    runs: int,
) -> None:
    """Time the coding of SCAN, cut or repeated to 256 x 256 x 192 voxels; default: the sample."""
    try:
        voxels = fitted(Source.bare(scan).voxels)
    except ValueError as error:
        raise click.ClickException(f"{scan}: {error}") from error
    results = json.loads(output.read_text()) if output and output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "voxels.npy"
        np.save(file, voxels)
        bench = Bench(voxels, file, list(backends) or library.backends(), against, runs)
        for name in only or PARTS:
            rows = PARTS[name](bench)
            results[name] = {"environment": environment() | {"scan": scan.name}, "rows": rows}
            click.echo(f"{name}\n\n{table(rows)}\n")
            if output:
                output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
