"""Times and memory of a whole volume, best of three: `python -m benchmarks.speed SCAN`, on an otherwise idle machine."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import click
import numpy as np

from mricodec import codec
from mricodec.codec.rate_distortion import Source

RUNS = 3


def peak_memory() -> float:
    """GB, this process and its helpers together, since each began (Linux)."""
    own = Path("/proc") / str(os.getpid())
    helpers = [pid for file in own.glob("task/*/children") for pid in file.read_text().split()]
    states = [(Path("/proc") / pid / "status").read_text() for pid in (own.name, *helpers)]
    return sum(int(re.findall(r"VmHWM:\s+(\d+) kB", state)[0]) for state in states) / 1e6


@click.command()
@click.argument("scan", type=click.Path(exists=True, path_type=Path))
def main(scan: Path) -> None:
    """Encode and decode the voxels of SCAN; the slices are taken along i where that axis is shorter than k."""
    voxels = Source.of_file(scan).voxels
    if voxels.shape[-1] < voxels.shape[0]:
        voxels = np.ascontiguousarray(np.moveaxis(voxels, -1, 0))
    click.echo(f"{voxels.shape} {voxels.dtype}, {voxels.nbytes / 1e6:.1f} MB")
    for name, encoder in (("lossless", codec.Encoder(lossless=True)), ("default quality", codec.Encoder())):
        decoder = codec.Decoder()
        stream = b""
        encoding, decoding = [], []
        for _ in range(RUNS):
            start = time.perf_counter()
            stream = encoder.encode(voxels) or b""
            encoding.append(time.perf_counter() - start)
            start = time.perf_counter()
            decoder.decode(stream)
            decoding.append(time.perf_counter() - start)
        memory = peak_memory()
        rate = 8 * len(stream) / voxels.size
        click.echo(f"{name}: encode {min(encoding):.1f} s, decode {min(decoding):.1f} s, {rate:.3f} bpv, peak {memory:.2f} GB")


if __name__ == "__main__":
    main()
