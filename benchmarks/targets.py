"""How near targets are met and how long that takes, on an otherwise idle machine.

    python -m benchmarks.targets DATA...

Of every volume of more than a million voxels (of a 4-D scan the first): PSNR and size as measured
on the file and on what it decodes to; the time relative to that of the quality that the search ends
at, each once, after a run that loads the model.
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import click

from mricodec import codec
from mricodec.codec.evaluation.rate_distortion import Source
from mricodec.codec.pipeline.writing import EncodeReport
from mricodec.codec.voxels import metrics
from mricodec.codec.voxels.quality import DEFAULT_QUALITY, QUALITY_PER_OCTAVE, STEP_AT_DEFAULT

from . import run

# Smaller volumes are over too soon to be timed.
MIN_VOXELS = 1_000_000
# Kind and value of each target; PSNR in dB, bpv in bits per voxel.
TARGETS: tuple[tuple[str, float], ...] = (
    ("psnr", 32.0),
    ("psnr", 44.0),
    ("bpv", 0.2),
    ("bpv", 1.0),
    ("ratio", 8.0),
    ("ratio", 40.0),
)


def timed(encoder: codec.Encoder, source: Source) -> tuple[float, bytes, EncodeReport]:
    """Seconds, the stream and its report."""
    buffer, start = io.BytesIO(), time.perf_counter()
    report = encoder.encode_file(source.voxels, buffer)
    return time.perf_counter() - start, buffer.getvalue(), report


def same_quality(report: EncodeReport) -> codec.Encoder:
    """An encoder with the quantiser step of a stream."""
    assert report.fidelity is not None
    octaves = math.log2(report.fidelity.step / (STEP_AT_DEFAULT * report.fidelity.sigma_hat))
    quality = DEFAULT_QUALITY - QUALITY_PER_OCTAVE * octaves
    return codec.Encoder(quality=min(max(quality, 0.0), 100.0))


def reached(kind: str, source: Source, stream: bytes) -> float:
    """What the stream has of the kind of a target."""
    if kind == "psnr":
        return metrics.psnr(source.voxels, codec.decode(stream).array)
    if kind == "bpv":
        return 8 * len(stream) / source.voxels.size
    return source.voxels.nbytes / len(stream)


class Summary:
    """The largest deviations and times of all targets."""

    def __init__(self) -> None:
        self._errors: dict[str, float] = {}
        self._slowest, self._missed, self._count = 0.0, 0, 0

    def measure(self, kind: str, target: float, source: Source) -> str:
        """Encode with one target; a line about it."""
        settings: dict[str, Any] = {kind: target}
        seconds, stream, report = timed(codec.Encoder(**settings), source)
        usual, _, _ = timed(same_quality(report), source)
        value = reached(kind, source, stream)
        error = abs(value - target) if kind == "psnr" else abs(value / target - 1)
        self._count += 1
        self._slowest = max(self._slowest, seconds / usual)
        note = ""
        if report.missed is None:
            self._errors[kind] = max(self._errors.get(kind, 0.0), error)
        else:
            self._missed += 1
            note = f", {report.missed}"
        line = f"{source.name} {kind} {target:g}: {value:.4g}, "
        return line + f"{seconds / usual:.1f} times {usual:.1f} s{note}"

    def __str__(self) -> str:
        errors = ", ".join(
            f"{kind} {error:.2f} dB" if kind == "psnr" else f"{kind} {error:.1%}"
            for kind, error in self._errors.items()
        )
        return (
            f"{self._count} targets, {self._missed} missed with a warning; largest deviation of "
            f"the others: {errors or '-'}; at most {self._slowest:.1f} times as long"
        )


@click.command()
@run.DATA
@run.SPLIT
def main(data: tuple[Path, ...], split: str) -> None:
    """Encode the scans of DATA with targets, print how near each is met, and the largest deviation.

    DATA: scans, folders of scans, or a data folder with test/ (or another --split).
    """
    summary, failures = Summary(), 0
    for path in run.scans_of(data, split):
        try:
            source = Source.bare(path)
        except (ValueError, OSError) as error:
            failures += 1
            click.echo(f"left out: {path}: {error}", err=True)
            continue
        if source.voxels.size < MIN_VOXELS:
            continue
        encoder = codec.Encoder()  # While it lives, the model and its processes are kept.
        encoder.encode(source.voxels)
        for kind, target in TARGETS:
            click.echo(summary.measure(kind, target, source))
    click.echo(str(summary))
    if failures:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
