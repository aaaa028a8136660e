"""How near targets are met and what that takes: `python -m benchmarks.targets DATA`, on an otherwise idle machine.

Of every volume of over a million voxels (of a 4-D scan the first): PSNR and size as measured on the file and what decodes from
it; the time beside that of the quality that it comes to, each once, after a run that loads what is kept.
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import click

from mricodec import codec
from mricodec.benchmarks.run import scans
from mricodec.codec.evaluation.rate_distortion import Source
from mricodec.codec.pipeline.writing import EncodeReport
from mricodec.codec.voxels import metrics
from mricodec.codec.voxels.quality import DEFAULT_QUALITY, QUALITY_PER_OCTAVE, STEP_AT_DEFAULT

MIN_VOXELS = 1_000_000
TARGETS = (
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
    """An encoder with the step of a stream."""
    assert report.fidelity is not None
    octaves = math.log2(report.fidelity.step / (STEP_AT_DEFAULT * report.fidelity.sigma_hat))
    return codec.Encoder(
        quality=min(max(DEFAULT_QUALITY - QUALITY_PER_OCTAVE * octaves, 0.0), 100.0)
    )


def reached(kind: str, source: Source, stream: bytes) -> float:
    if kind == "psnr":
        return metrics.psnr(source.voxels, codec.decode(stream).array)
    return (
        8 * len(stream) / source.voxels.size
        if kind == "bpv"
        else source.voxels.nbytes / len(stream)
    )


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(data: tuple[Path, ...]) -> None:
    """Encode the scans of DATA with targets and print how near each is met, and the worst of all."""
    worst: dict[str, float] = {}
    slowest, missed, count = 0.0, 0, 0
    for path in scans(data):
        source = Source.bare(path)
        if source.voxels.size < MIN_VOXELS:
            continue
        kept = codec.Encoder()  # and with it the model and its processes
        kept.encode(source.voxels)
        for kind, wanted in TARGETS:
            seconds, stream, report = timed(codec.Encoder(**{kind: wanted}), source)  # type: ignore[arg-type]
            usual, _, _ = timed(same_quality(report), source)
            found = reached(kind, source, stream)
            error = abs(found - wanted) if kind == "psnr" else abs(found / wanted - 1)
            count, slowest = count + 1, max(slowest, seconds / usual)
            if report.missed is None:
                worst[kind] = max(worst.get(kind, 0.0), error)
            else:
                missed += 1
            note = "" if report.missed is None else f", {report.missed}"
            click.echo(
                f"{source.name} {kind} {wanted:g}: {found:.4g}, {seconds / usual:.1f} times {usual:.1f} s{note}"
            )
    errors = ", ".join(
        f"{kind} {error:.2f} dB" if kind == "psnr" else f"{kind} {error:.1%}"
        for kind, error in worst.items()
    )
    click.echo(
        f"{count} targets, {missed} missed with a warning; worst of the others: {errors}; at most {slowest:.1f} times"
    )


if __name__ == "__main__":
    main()
