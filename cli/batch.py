"""`mricodec batch`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console

if TYPE_CHECKING:
    from mricodec.codec.integrations.batch import Outcome, Progress, Summary

# Kinds of files, in the order of the table, and their names in it.
_KINDS = {
    "scan": "NIfTI scans",
    "series": "DICOM folders",
    "stream": "streams",
    "file": "other files",
}


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
@console.quiet_option
@console.verbose_option
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

    NIfTI scans become streams (scan.nii.gz -> scan.nii.gz.mrc), and so does every DICOM series of
    a folder; all else is copied. The same command again goes on where it was stopped: what is
    there, unchanged and sound, is skipped. OUT_DIR/mricodec-batch.jsonl has a line for every file.
    """
    from mricodec.codec.integrations import batch as batches

    settings = {name: value for name, value in options.items() if value not in (None, False)}
    if decode and settings:
        raise click.UsageError(f"--decode takes no --{next(iter(settings))}")
    if jobs is not None and scheduler is not None:
        raise click.UsageError("--jobs or --scheduler, not both: a scheduler has its own workers")
    start = time.perf_counter()
    with console.Bar("decode" if decode else "encode", quiet=quiet) as bar:
        summary = batches.run(
            in_dir,
            out_dir,
            decode=decode,
            settings=settings,
            jobs=jobs,
            scheduler=scheduler,
            report=_Progress(bar, quiet, verbose).report,
        )
    if not quiet:
        console.say(_table(summary, time.perf_counter() - start))
    if summary.failures or summary.damages:
        raise click.exceptions.Exit(1)


class _Progress:
    """The bar; a line for every file if verbose, for failures if quiet."""

    def __init__(self, bar: console.Bar, quiet: bool, verbose: bool) -> None:
        self._bar, self._quiet, self._verbose = bar, quiet, verbose and not quiet
        self._failed = self._bytes_in = self._bytes_out = 0

    def report(self, outcome: Outcome, progress: Progress) -> None:
        failed = outcome.status == "failed"
        if failed:
            self._failed += 1
            if self._quiet or self._verbose:
                console.say(f"{outcome.source}: {outcome.reason}")
        else:
            self._bytes_in += outcome.bytes_in
            self._bytes_out += outcome.bytes_out
        if self._verbose and not failed:
            note = f" ({outcome.reason})" if outcome.reason else ""
            sizes = _sizes(outcome.bytes_in, outcome.bytes_out)
            console.say(
                f"{outcome.source}: {outcome.status}, {sizes}, {outcome.seconds:.1f} s{note}"
            )
        sizes = _sizes(self._bytes_in, self._bytes_out)
        detail = f"{progress.files} of {progress.total_files} files, {sizes}"
        if self._failed:
            detail += f", {self._failed} failed"
        self._bar.update(progress.fraction, detail)


def _sizes(bytes_in: int, bytes_out: int) -> str:
    return f"{console.byte_count(bytes_in)} -> {console.byte_count(bytes_out)}"


def _table(summary: Summary, seconds: float) -> str:
    rows = [("", "files", "skipped", "failed", "in", "out", "ratio")]
    for kind, title in _KINDS.items():
        if kind not in summary.totals:
            continue
        totals = summary.totals[kind]
        counts = (str(totals.files), str(totals.skipped), str(totals.failed))
        sizes = (console.byte_count(totals.bytes_in), console.byte_count(totals.bytes_out))
        rows.append((title, *counts, *sizes, f"{totals.ratio:.2f}"))
    lines = [console.columns(rows), f"{console.duration(seconds)} in all"]
    for title, outcomes in (
        ("damaged, kept as they are", summary.damages),
        ("failed", summary.failures),
    ):
        if outcomes:
            lines.append(f"{title} ({len(outcomes)}):")
            lines += [f"  {outcome.source}: {outcome.reason}" for outcome in outcomes]
    return "\n".join(lines)
