"""Times and memory of a whole volume, on an otherwise idle machine.

    python -m benchmarks.speed SCAN

Best and median of five runs, after a first that loads the model. With `--profile`, the share of
each part of the default model in the time of one process instead.
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
from numpy.typing import NDArray

from mricodec import codec
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.codec.evaluation.rate_distortion import Source

# Timed runs.
RUNS = 5


def peak_memory() -> float:
    """GB, this process and its helpers together, since each began (Linux)."""
    process = Path("/proc") / str(os.getpid())
    helpers = [pid for file in process.glob("task/*/children") for pid in file.read_text().split()]
    states = [(Path("/proc") / pid / "status").read_text() for pid in (process.name, *helpers)]
    return sum(int(re.findall(r"VmHWM:\s+(\d+) kB", state)[0]) for state in states) / 1e6


def timed_parts() -> dict[str, float]:
    """CPU seconds in each part of the default model from now on; no part calls another."""
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

    for part, functions in parts.items():
        for owner, name in functions:
            wrapped = timed(part, getattr(owner, name))
            setattr(
                owner,
                name,
                staticmethod(wrapped) if isinstance(vars(owner)[name], staticmethod) else wrapped,
            )
    return spent


def shares(work: Callable[[], object], spent: dict[str, float]) -> str:
    """CPU seconds, and the share of each part."""
    spent.update(dict.fromkeys(spent, 0.0))
    start = time.process_time()
    work()
    total = time.process_time() - start
    rest = {"rest": total - sum(spent.values())}
    return f"{total:.1f} s: " + ", ".join(
        f"{part} {time / total:.0%}" for part, time in (spent | rest).items()
    )


def profile(voxels: NDArray[Any]) -> None:
    """Print where the time of one process goes at the default quality."""
    # torch and the helper processes read it.
    os.environ["OMP_NUM_THREADS"] = "1"
    encoder, decoder = codec.Encoder(), codec.Decoder()
    stream = encoder.encode(voxels) or b""
    decoder.decode(stream)
    spent = timed_parts()
    click.echo(f"encode {shares(lambda: encoder.encode(voxels), spent)}")
    click.echo(f"decode {shares(lambda: decoder.decode(stream), spent)}")


def measure(name: str, encoder: codec.Encoder, voxels: NDArray[Any]) -> None:
    """Print times, rate and memory of one setting."""
    decoder = codec.Decoder()
    decoder.decode(encoder.encode(voxels) or b"")
    stream = b""
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(RUNS):
        start = time.perf_counter()
        stream = encoder.encode(voxels) or b""
        encoded = time.perf_counter()
        decoder.decode(stream)
        times["encode"].append(encoded - start)
        times["decode"].append(time.perf_counter() - encoded)
    memory = peak_memory()
    rate = 8 * len(stream) / voxels.size
    text = ", ".join(
        f"{direction} {min(seconds):.1f} s (median {statistics.median(seconds):.1f})"
        for direction, seconds in times.items()
    )
    click.echo(f"{name}: {text}, {rate:.3f} bpv, peak {memory:.2f} GB")


@click.command()
@click.argument("scan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--profile", "profiled", is_flag=True, help="Print where the time goes instead.")
def main(scan: Path, profiled: bool) -> None:
    """Encode and decode the voxels of SCAN; slices are taken along i where that axis is shorter."""
    try:
        voxels = Source.of_file(scan).voxels
    except ValueError as error:
        raise click.ClickException(f"{scan}: {error}") from error
    if voxels.shape[-1] < voxels.shape[0]:
        voxels = np.ascontiguousarray(np.moveaxis(voxels, -1, 0))
    click.echo(f"{voxels.shape} {voxels.dtype}, {voxels.nbytes / 1e6:.1f} MB")
    if profiled:
        profile(voxels)
        return
    measure("lossless", codec.Encoder(lossless=True), voxels)
    measure("default quality", codec.Encoder(), voxels)


if __name__ == "__main__":
    main()
