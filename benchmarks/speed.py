"""Times and memory of a whole volume: `python -m benchmarks.speed SCAN`, on an otherwise idle machine.

Best and median of five, after a first that loads what is kept. `--profile` says instead where the time of one process goes.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from mricodec import codec
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.codec.evaluation.rate_distortion import Source

RUNS = 5


def peak_memory() -> float:
    """GB, this process and its helpers together, since each began (Linux)."""
    own = Path("/proc") / str(os.getpid())
    helpers = [pid for file in own.glob("task/*/children") for pid in file.read_text().split()]
    states = [(Path("/proc") / pid / "status").read_text() for pid in (own.name, *helpers)]
    return sum(int(re.findall(r"VmHWM:\s+(\d+) kB", state)[0]) for state in states) / 1e6


def timed_parts() -> dict[str, float]:
    """From now on the seconds of the processor in each part of the default model; none of the functions calls another."""
    from mricodec.models.lossy import lapped_transform as transform
    from mricodec.models.lossy import pass_symbols, rdo, sign_hiding
    from mricodec.models.lossy.band_networks import BandNet, ContextPass
    from mricodec.models.lossy.context_model import ContextCodec

    parts: dict[str, list[tuple[Any, str]]] = {
        "network": [(ContextCodec, "reference"), (BandNet, "base"), (ContextPass, "forward")],
        "hiding of signs": [
            (sign_hiding.SignGroups, "of"),
            (pass_symbols, "hide_signs"),
            (pass_symbols, "hidden_signs"),
        ],
        "entropy coding": [(EntropyEncoder, "code"), (EntropyDecoder, "code")],
        "transform": [
            (transform, f"{way}{axis}")
            for way in ("analysis", "synthesis")
            for axis in ("", "_across")
        ],
        "error compensation": [(rdo.ErrorCompensation, name) for name in ("targets", "update")],
    }
    spent = dict.fromkeys(parts, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                spent[part] += time.process_time() - start

        return wrapped

    for part, places in parts.items():
        for owner, name in places:
            wrapped = timed(part, getattr(owner, name))
            setattr(
                owner,
                name,
                staticmethod(wrapped) if isinstance(vars(owner)[name], staticmethod) else wrapped,
            )
    return spent


def shares(work: Callable[[], object], spent: dict[str, float]) -> str:
    """Seconds of the processor, and the share of each part."""
    spent.update(dict.fromkeys(spent, 0.0))
    start = time.process_time()
    work()
    total = time.process_time() - start
    rest = {"rest": total - sum(spent.values())}
    return f"{total:.1f} s: " + ", ".join(
        f"{part} {time / total:.0%}" for part, time in (spent | rest).items()
    )


@click.command()
@click.argument("scan", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--profile", is_flag=True, help="Of the default quality in one process, where the time goes."
)
def main(scan: Path, profile: bool) -> None:
    """Encode and decode the voxels of SCAN; the slices are taken along i where that axis is shorter than k."""
    voxels = Source.of_file(scan).voxels
    if voxels.shape[-1] < voxels.shape[0]:
        voxels = np.ascontiguousarray(np.moveaxis(voxels, -1, 0))
    click.echo(f"{voxels.shape} {voxels.dtype}, {voxels.nbytes / 1e6:.1f} MB")
    if profile:
        os.environ["OMP_NUM_THREADS"] = "1"  # of which torch and the helper processes take notice
        encoder, decoder = codec.Encoder(), codec.Decoder()
        stream = encoder.encode(voxels) or b""
        decoder.decode(stream)
        spent = timed_parts()
        click.echo(f"encode {shares(lambda: encoder.encode(voxels), spent)}")
        click.echo(f"decode {shares(lambda: decoder.decode(stream), spent)}")
        return
    for name, encoder in (
        ("lossless", codec.Encoder(lossless=True)),
        ("default quality", codec.Encoder()),
    ):
        decoder = codec.Decoder()
        decoder.decode(encoder.encode(voxels) or b"")
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
        ways = ", ".join(
            f"{way} {min(times):.1f} s (median {statistics.median(times):.1f})"
            for way, times in (("encode", encoding), ("decode", decoding))
        )
        click.echo(f"{name}: {ways}, {rate:.3f} bpv, peak {memory:.2f} GB")


if __name__ == "__main__":
    main()
