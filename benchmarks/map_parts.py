"""What the parts of the coder of maps gain: kernels of the C core alone, without a stream around.

    python -m benchmarks.map_parts DATA -o map_parts.csv

Every map of `benchmarks.maps`, as one slab, by each way that suits its type; the same command again
measures only what is missing. Palettes are charged as their zlib-compressed gaps, all else as its
bytes; every result is decoded and compared.

| name | way |
|---|---|
| label | equality decisions alone |
| predictive | the predictive coder alone |
| skip-1, skip-2 | the one or two most frequent values as classes, the rest predicted |
| ranks, ranks-1, ranks-2 | the same of ranks in a palette |
| cells | floats: special values, cells, bits; cells-fast: at effort fast |
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mricodec.codec.native import float_cells, label_map, predictive

from . import maps
from .maps import Row

Array = NDArray[Any]
# More distinct values than this are never labels.
MAX_LABELS = 1 << 12
# Ranks are tried where a palette leaves out so much of the range, or of all voxels.
MAX_SHARE = 0.9
# Integers of a type that predictions take, and ranks of floats.
MAX_SPAN = predictive.MAX_SPAN


def slab_of(array: Array) -> Array:
    """[..., k, j, i] as one slab."""
    return np.ascontiguousarray(array.reshape(-1, *array.shape[-2:]))


def palette_bytes(values: Array) -> int:
    """Rising integers: their gaps, in byte planes, by zlib."""
    gaps = np.diff(values, prepend=values[:1]).astype("<u8").view(np.uint8)
    return len(zlib.compress(gaps.reshape(-1, 8).T.tobytes(), 9)) + 16


def coded_labels(samples: Array) -> int:
    """Bytes of samples as a label map."""
    peak = int(samples.max())
    run = label_map.encode(samples, peak)
    decoded = label_map.decode(run, samples.shape, peak)
    maps.compare("label map", decoded.tobytes(), samples.tobytes())
    return len(run)


def coded_numbers(samples: Array, classes: Array | None = None, effort: str = "default") -> int:
    """Bytes of samples by prediction, and of the classes of those that are left out."""
    size = coded_labels(classes.astype(np.int32)) if classes is not None else 0
    run = predictive.encode(samples, effort, skipped=classes)
    decoded = predictive.decode(run, samples.shape, skipped=classes)
    kept = np.ones(samples.shape, bool) if classes is None else classes == 0
    maps.compare("predictive", decoded[kept].tobytes(), samples[kept].tobytes())
    return size + len(run)


def ways_of_integers(samples: Array) -> dict[str, Callable[[], int]]:
    """Ways to code int32 samples [k, j, i] from 0 on, by name."""
    values, ranks, counts = np.unique(samples, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(samples.shape).astype(np.int32)
    frequent = np.argsort(-counts, kind="stable")
    palette = palette_bytes(values)

    def skipping(count: int, source: Array, extra: int) -> Callable[[], int]:
        classes = np.zeros(samples.shape, np.uint8)
        for n in range(count):
            classes[ranks == frequent[n]] = n + 1
        return lambda: coded_numbers(source, classes if count else None) + extra

    ways: dict[str, Callable[[], int]] = {}
    if values.size <= MAX_LABELS:
        ways["label"] = lambda: coded_labels(ranks) + palette
    ways["predictive"] = skipping(0, samples, 0)
    for count in range(1, min(3, values.size - 1)):
        ways[f"skip-{count}"] = skipping(count, samples, 0)
    if values.size < MAX_SHARE * (int(values[-1]) + 1):
        for count in range(min(3, values.size - 1)):
            ways[f"ranks-{count}" if count else "ranks"] = skipping(count, ranks, palette)
    return ways


def cells(slab: Array, effort: str) -> int:
    """Bytes of floats as special values, cells and bits."""
    chosen = float_cells.choose(slab)
    if chosen is None:
        raise ValueError("expected floats that cells suit, found others")
    parts = float_cells.split(slab, chosen)
    joined = float_cells.join(parts, chosen, slab.dtype)
    maps.compare("cells", joined.tobytes(), slab.tobytes())
    classes = parts.classes if chosen.specials else None
    head = 8 + slab.itemsize * len(chosen.specials)
    return coded_numbers(parts.samples, classes, effort) + len(parts.bits) + head


def ways_of(array: Array) -> dict[str, Callable[[], int]]:
    """Ways to code a map, by name."""
    slab = slab_of(array)
    if slab.dtype.kind != "f":
        return ways_of_integers((slab.astype(np.int64) - int(slab.min())).astype(np.int32))
    ways = {"cells": lambda: cells(slab, "default"), "cells-fast": lambda: cells(slab, "fast")}
    values, ranks = np.unique(slab.view(f"u{slab.itemsize}"), return_inverse=True)
    order = np.argsort(values.view(slab.dtype), kind="stable")
    rank_of = np.empty(order.size, np.int32)
    rank_of[order] = np.arange(order.size, dtype=np.int32)
    if values.size < MAX_SHARE * slab.size / 2 and values.size <= MAX_SPAN:
        extra = palette_bytes(values)
        of_ranks = ways_of_integers(rank_of[ranks].reshape(slab.shape))
        for name, way in of_ranks.items():
            of_palette = name.replace("predictive", "ranks").replace("skip", "ranks")
            ways[of_palette] = lambda way=way: way() + extra  # type: ignore[misc]
    return ways


def table(rows: Sequence[Row], peers: Sequence[Row]) -> str:
    """The bytes of every way by those of the best other codec."""
    best: dict[str, int] = {}
    for row in peers:
        best[row.volume] = min(row.nbytes, best.get(row.volume, row.nbytes))
    names = list(dict.fromkeys(row.codec for row in rows))
    lines = [f"| map | best of the others | {' | '.join(names)} | smallest |"]
    lines.append("|---" * (len(names) + 3) + "|")
    smallest: dict[str, list[float]] = {"integers": [], "floats": []}
    for volume in dict.fromkeys(row.volume for row in rows):
        ways = {row.codec: row for row in rows if row.volume == volume}
        ratios = {name: row.nbytes / best[volume] for name, row in ways.items()}
        cell = [f"{ratios[name]:.3f}" if name in ratios else "" for name in names]
        smallest_way = min(ratios, key=ratios.__getitem__)
        lines.append(f"| {volume} | {best[volume]} | {' | '.join(cell)} | {smallest_way} |")
        kind = "floats" if ways[smallest_way].dtype.startswith("float") else "integers"
        smallest[kind].append(ratios[smallest_way])
    for kind, values in smallest.items():
        if values:
            mean = f"{math.fsum(values) / len(values):.3f} ({max(values):.3f})"
            empty = " |" * (len(names) + 1)
            lines.append(f"| {kind}: mean (worst) of the smallest |{empty} {mean} |")
    return "\n".join(lines)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--prefix", default="train_", show_default=True, help="Of names in maps/.")
def main(data: Path, output: Path, prefix: str) -> None:
    """Measure every way on the maps of DATA, and print a table of them."""
    rows = maps.read(output)
    known = {(row.volume, row.codec) for row in rows}
    for one in maps.chosen(data, prefix):
        for name, way in ways_of(one.array).items():
            if (one.name, name) in known:
                continue
            row = maps.measure(one, name, lambda _, way=way: way())  # type: ignore[misc]
            if row is not None:
                maps.append(output, row)
                rows.append(row)
    click.echo(table(rows, maps.read(maps.PEERS)))


if __name__ == "__main__":
    main()
