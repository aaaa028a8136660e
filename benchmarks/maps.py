"""Derived maps, labels and masks without loss: sizes beside xz, zstd and JPEG XL.

From the root of the repository, with the extra `bench` installed:

    python -m benchmarks.maps DATA -o maps.csv

DATA is a data folder with maps/, train/ and validation/. The maps of maps/ whose names begin with
`--prefix` are measured, and those that `derived_maps.py` makes of the scans. The same command again
measures only what is missing. Every result is decoded and compared.
"""

from __future__ import annotations

import csv
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import click
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mricodec.codec import api

from . import derived_maps
from .derived_maps import Map

# Committed points of the other codecs.
PEERS = Path(__file__).parent / "peers" / "maps.csv"
PROJECT = "mricodec-default"
# The strongest settings of the general compressors.
XZ_PRESET = 9 | lzma.PRESET_EXTREME
ZSTD_LEVEL = 19
JXL_EFFORT = 7
# Bytes that the length of a picture takes where every slice is one.
BYTES_OF_LENGTH = 4

Array = NDArray[Any]
# The bytes of an array, or None where a codec doesn't take its type.
Size = Callable[[Array], int | None]


@dataclass(frozen=True)
class Row:
    """A map coded by a codec: a line of the CSV."""

    volume: str
    dtype: str
    shape: str
    nvox: int
    codec: str
    nbytes: int
    bpv: float


def unsigned(array: Array) -> Array:
    """The bits of an array as little-endian unsigned integers."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.view(f"<u{array.dtype.itemsize}")


def compare(codec: str, decoded: bytes, data: bytes) -> None:
    """ValueError unless a codec returned what it was given."""
    if decoded != data:
        raise ValueError(f"{codec}: expected the array again, found another one")


def xz(array: Array) -> int:
    """LZMA2 of the bytes as they lie in memory."""
    data = unsigned(array).tobytes()
    coded = lzma.compress(data, preset=XZ_PRESET)
    compare("xz", lzma.decompress(coded), data)
    return len(coded)


def zstd(data: bytes) -> int:
    """Zstandard of bytes."""
    coded = imagecodecs.zstd_encode(data, ZSTD_LEVEL)
    compare("zstd", imagecodecs.zstd_decode(coded, out=len(data)), data)
    return len(coded)


def shuffled(values: Array) -> bytes:
    """The first bytes of all unsigned integers, then the second ones, and so on."""
    return values.reshape(-1, 1).view(np.uint8).T.tobytes()


def bit_shuffled(values: Array) -> bytes:
    """As `shuffled`, but bit by bit."""
    bits = np.unpackbits(values.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(np.ascontiguousarray(bits.T).reshape(-1), bitorder="little").tobytes()


def differences(values: Array) -> Array:
    """Unsigned integers less the ones before them in their rows."""
    return np.diff(values, axis=-1, prepend=np.zeros_like(values[..., :1]))


def jpeg_xl(array: Array) -> int | None:
    """JPEG XL, each slice a picture and 4 bytes for its length; integers of at most 16 bits."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        return None
    above = array.astype(np.int32) - int(array.min())
    pictures = above.astype(np.uint8 if above.max() < 256 else np.uint16)
    size = 0
    for picture in pictures.reshape(-1, *array.shape[-2:]):
        coded = imagecodecs.jpegxl_encode(picture, effort=JXL_EFFORT, lossless=True)
        compare("JPEG XL", imagecodecs.jpegxl_decode(coded).tobytes(), picture.tobytes())
        size += len(coded) + BYTES_OF_LENGTH
    return size


def project(array: Array) -> int:
    """This codec without loss, as a bare array."""
    coded = api.encode(array, lossless=True) or b""
    compare("mricodec", api.decode(coded).array.tobytes(), array.tobytes())
    return len(coded)


# Other codecs by the names they have in the CSV.
CODECS: dict[str, Size] = {
    "xz-9e": xz,
    "zstd-19": lambda array: zstd(unsigned(array).tobytes()),
    "shuffle+zstd-19": lambda array: zstd(shuffled(unsigned(array))),
    "delta+shuffle+zstd-19": lambda array: zstd(shuffled(differences(unsigned(array)))),
    "bitshuffle+zstd-19": lambda array: zstd(bit_shuffled(unsigned(array))),
    "jxl-e7": jpeg_xl,
}


def read(path: Path) -> list[Row]:
    """The rows of a CSV; none if it doesn't exist. ValueError for other columns."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames != [field.name for field in fields(Row)]:
            raise ValueError(f"{path}: expected a CSV of maps, found columns {lines.fieldnames}")
        return [
            Row(
                line["volume"], line["dtype"], line["shape"], int(line["nvox"]), line["codec"],
                int(line["nbytes"]), float(line["bpv"]),
            )
            for line in lines
        ]  # fmt: skip


def append(path: Path, row: Row) -> None:
    """Add a row to a CSV, which is made if it doesn't exist."""
    exists = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not exists:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerow(astuple(row))


def measure(one: Map, codec: str, size: Size) -> Row | None:
    """The row of a map and a codec; None where the codec doesn't take its type."""
    count = size(one.array)
    if count is None:
        return None
    shape, voxels = "x".join(map(str, one.array.shape)), one.array.size
    bits = round(8 * count / voxels, 5)
    return Row(one.name, one.array.dtype.name, shape, voxels, codec, count, bits)


def table(rows: Sequence[Row], codec: str = PROJECT) -> str:
    """Maps with their best other codec and the ratio to it; means of integers and of floats."""
    sizes: dict[Row, dict[str, int]] = {}
    for row in rows:
        key = Row(row.volume, row.dtype, row.shape, row.nvox, "", 0, 0)
        sizes.setdefault(key, {})[row.codec] = row.nbytes
    lines = [
        "| map | type | best of the others | bytes | this codec | ratio |",
        "|---|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {"integers": [], "floats": []}
    for one, by_codec in sizes.items():
        others = {name: by_codec[name] for name in CODECS if name in by_codec}
        if not others or codec not in by_codec:
            continue
        best = min(others, key=others.__getitem__)
        ratio = by_codec[codec] / others[best]
        ratios["floats" if one.dtype.startswith("float") else "integers"].append(ratio)
        cells = (one.volume, one.dtype, best, others[best], by_codec[codec], f"{ratio:.3f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for kind, values in ratios.items():
        if values:
            mean, worst = math.fsum(values) / len(values), max(values)
            lines.append(
                f"| {len(values)} {kind}, mean (worst) | | | | | {mean:.3f} ({worst:.3f}) |"
            )
    return "\n".join(lines)


def chosen(data: Path, prefix: str) -> Iterator[Map]:
    """The maps of a data folder, and those made of its scans."""
    yield from derived_maps.existing(data, prefix)
    yield from derived_maps.derived(data)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--prefix", default="train_", show_default=True, help="Of names in maps/.")
@click.option(
    "--peers/--no-peers", default=False, help=f"Measure the codecs of {PEERS.name} again."
)
def main(data: Path, output: Path, prefix: str, peers: bool) -> None:
    """Measure the maps of DATA, and print a table of them."""
    rows = read(output) + ([] if peers else read(PEERS))
    known = {(row.volume, row.codec) for row in rows}
    codecs = {**(CODECS if peers else {}), PROJECT: project}
    for one in chosen(data, prefix):
        for name, size in codecs.items():
            if (one.name, name) in known or (row := measure(one, name, size)) is None:
                continue
            append(output, row)
            rows.append(row)
            click.echo(f"{row.volume} {row.codec}: {row.nbytes} bytes", err=True)
    click.echo(table(rows))


if __name__ == "__main__":
    main()
