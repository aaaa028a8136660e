"""`mricodec batch`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import byte_count as _bytes

if TYPE_CHECKING:
    from mricodec.codec.integrations.batch import Outcome, Summary

NAMES = {
    "scan": "NIfTI scans",
    "series": "DICOM folders",
    "stream": "streams",
    "file": "other files",
}
SECONDS_BETWEEN = 0.2  # updates of the progress


@click.command()
@click.argument("in_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--decode", is_flag=True, help="Restore the tree from its streams.")
@click.option("--quality", type=click.FloatRange(0, 100), help="As for encode; default: 50.")
@click.option("--lossless", is_flag=True, help="Restore every bit.")
@click.option("--model", help="As for encode.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; default: one per core.")
@click.option(
    "--scheduler", metavar="tcp://HOST:PORT", help="A Dask scheduler, instead of processes."
)
@click.option("--device", help="As for encode.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print every file.")
def batch(
    in_dir: Path,
    out_dir: Path,
    decode: bool,
    jobs: int | None,
    scheduler: str | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Encode the tree IN_DIR into the tree OUT_DIR, or restore it with --decode.

    NIfTI scans become streams (scan.nii.gz -> scan.nii.gz.mrc), and so does every DICOM series of a folder; all else is copied.
    Run again, it goes on where it was stopped: what is there, unchanged and sound, is skipped. OUT_DIR/mricodec-batch.jsonl
    says what became of every file.
    """
    from mricodec.codec.integrations import batch as batches

    settings = {name: value for name, value in options.items() if value not in (None, False)}
    if decode and settings:
        raise click.UsageError(f"--decode takes no --{next(iter(settings))}")
    if options["lossless"] and len(settings.keys() - {"device"}) > 1:
        raise click.UsageError("--lossless takes neither --quality nor --model")
    if jobs is not None and scheduler is not None:
        raise click.UsageError("--jobs or --scheduler, not both: a scheduler has its own workers")
    shown = _Progress(quiet, verbose)
    start = time.perf_counter()
    summary = batches.run(
        in_dir,
        out_dir,
        decode=decode,
        settings=settings,
        jobs=jobs,
        scheduler=scheduler,
        report=shown.report,
    )
    shown.clear()
    if not quiet:
        click.echo(_table(summary, time.perf_counter() - start), err=True)
    if summary.failures or summary.damages:
        raise click.exceptions.Exit(1)


class _Progress:
    """A line that is written over, on a terminal; failures as they come where no table will name them."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self._quiet, self._verbose = quiet, verbose and not quiet
        self._alive = not quiet and sys.stderr.isatty()
        self._last = 0.0
        self._failed = self._bytes_in = self._bytes_out = 0

    def report(self, outcome: Outcome, number: int, total: int) -> None:
        if outcome.status == "failed":
            self._failed += 1
            if self._quiet or self._verbose:
                self.clear()
                click.echo(f"{outcome.source}: {outcome.reason}", err=True)
        else:
            self._bytes_in += outcome.bytes_in
            self._bytes_out += outcome.bytes_out
            if self._verbose:
                self.clear()
                note = f" ({outcome.reason})" if outcome.reason else ""
                sizes = f"{_bytes(outcome.bytes_in)} -> {_bytes(outcome.bytes_out)}"
                click.echo(
                    f"{outcome.source}: {outcome.status}, {sizes}, {outcome.seconds:.1f} s{note}",
                    err=True,
                )
        if self._alive and time.monotonic() - self._last > SECONDS_BETWEEN:
            self._last = time.monotonic()
            sizes = f"{_bytes(self._bytes_in)} -> {_bytes(self._bytes_out)}"
            failed = f", {self._failed} failed" if self._failed else ""
            click.echo(f"\r\033[K{number} of {total} files, {sizes}{failed} ", nl=False, err=True)

    def clear(self) -> None:
        if self._alive:
            click.echo("\r\033[K", nl=False, err=True)


def _table(summary: Summary, seconds: float) -> str:
    rows = [("", "files", "skipped", "failed", "in", "out", "ratio")]
    for kind, totals in sorted(summary.totals.items(), key=lambda item: list(NAMES).index(item[0])):
        counts = (str(totals.files), str(totals.skipped), str(totals.failed))
        rows.append(
            (
                NAMES[kind],
                *counts,
                _bytes(totals.bytes_in),
                _bytes(totals.bytes_out),
                f"{totals.ratio:.2f}",
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells))
    lines.append(f"{seconds:.1f} s")
    for name, outcomes in (
        ("damaged, kept as they are", summary.damages),
        ("failed", summary.failures),
    ):
        if outcomes:
            lines.append(f"{name} ({len(outcomes)}):")
            lines += [f"  {outcome.source}: {outcome.reason}" for outcome in outcomes]
    return "\n".join(lines)
