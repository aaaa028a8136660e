"""How near targets are met and what that takes: `python -m benchmarks.targets DATA`, on an otherwise idle machine.

Of every volume of over a million voxels (of a 4-D scan the first): PSNR and size as measured on the file and what decodes from
it; the time beside that of the default quality, each once, after a run that loads what is kept.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import click

from mricodec import codec
from mricodec.codec import metrics
from mricodec.codec.rate_distortion import Source

from .run import scans

LEAST_VOXELS = 1_000_000
TARGETS = (("psnr", 32.0), ("psnr", 44.0), ("bpv", 0.2), ("bpv", 1.0), ("ratio", 8.0), ("ratio", 40.0))


def timed(encoder: codec.Encoder, source: Source) -> tuple[float, bytes]:
    """Seconds, and the stream."""
    start = time.perf_counter()
    stream = encoder.encode(source.voxels)
    assert stream is not None
    return time.perf_counter() - start, stream


def reached(kind: str, source: Source, stream: bytes) -> float:
    if kind == "psnr":
        return metrics.psnr(source.voxels, codec.decode(stream).array)
    return 8 * len(stream) / source.voxels.size if kind == "bpv" else source.voxels.nbytes / len(stream)


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(data: tuple[Path, ...]) -> None:
    """Encode the scans of DATA with targets and print how near each is met, and the worst of all."""
    worst: dict[str, float] = {}
    slowest, missed, count = 0.0, 0, 0
    for path in scans(data):
        source = Source.bare(path)
        if source.voxels.size < LEAST_VOXELS:
            continue
        plain = codec.Encoder()
        plain.encode(source.voxels)
        usual, _ = timed(plain, source)
        for kind, wanted in TARGETS:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", codec.TargetMissed)
                seconds, stream = timed(codec.Encoder(**{kind: wanted}), source)  # type: ignore[arg-type]
            found = reached(kind, source, stream)
            error = abs(found - wanted) if kind == "psnr" else abs(found / wanted - 1)
            told = any(issubclass(each.category, codec.TargetMissed) for each in said)
            count, missed, slowest = count + 1, missed + told, max(slowest, seconds / usual)
            if not told:
                worst[kind] = max(worst.get(kind, 0.0), error)
            note = ", missed with a warning" if told else ""
            click.echo(f"{source.name} {kind} {wanted:g}: {found:.4g}, {seconds / usual:.1f} times {usual:.1f} s{note}")
    errors = ", ".join(f"{kind} {error:.2f} dB" if kind == "psnr" else f"{kind} {error:.1%}" for kind, error in worst.items())
    click.echo(f"{count} targets, {missed} missed with a warning; worst of the others: {errors}; at most {slowest:.1f} times")


if __name__ == "__main__":
    main()
