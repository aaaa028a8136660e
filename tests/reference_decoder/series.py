"""format/series.md: the files of a series, in mode 0."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .container import Fields, read_stream
from .sections import decompress
from .stream import decode


@dataclass(frozen=True)
class FileEntry:
    """A row of the table."""

    name: bytes
    kind: int
    size: int
    head: int
    tail: int
    stack: int
    slots: tuple[int, ...]
    sha256: bytes


def read_table(payload: bytes) -> tuple[list[int], list[FileEntry]]:
    """DICM -> tiles of each stack, and the files."""
    fields = Fields(decompress(payload))
    files, stacks = fields.varint(), fields.varint()
    tiles = [fields.varint() for _ in range(stacks)]
    kinds = list(fields.take(files))
    lengths = [fields.varint() for _ in range(files)]
    names = [fields.take(length) for length in lengths]
    sizes, heads, tails, owners, pictures = (
        [fields.varint() for _ in range(files)] for _ in range(5)
    )
    following = [0] * stacks
    slots: list[tuple[int, ...]] = []
    for stack, count in zip(owners, pictures, strict=True):
        numbers = []
        for _ in range(count):
            numbers.append(following[stack] + fields.signed())
            following[stack] = numbers[-1] + 1
        slots.append(tuple(numbers))
    digests = [fields.take(32) for _ in range(files)]
    fields.end()
    for name in names:
        if len(set(names)) != files or {b"", b".", b".."} & set(name.split(b"/")) or b"\0" in name:
            raise ValueError(f"expected distinct relative names, found {name!r}")
    columns = zip(names, kinds, sizes, heads, tails, owners, slots, digests, strict=True)
    return tiles, [FileEntry(*row) for row in columns]


def read_records(payload: bytes) -> list[bytes]:
    """DHDR -> the records of the next files."""
    fields = Fields(decompress(payload))
    count, pieces = fields.varint(), fields.varint()
    lengths: list[int | list[int]] = []
    for _ in range(pieces):
        length = fields.varint()
        lengths.append(length - 1 if length else [fields.varint() for _ in range(count)])
    width = sum(length for length in lengths if isinstance(length, int))
    rows = [bytearray(first) for first in [fields.take(width)] * count]
    mask = fields.take(-(-width // 8))
    for position in range(width):
        if mask[position // 8] >> (7 - position % 8) & 1:
            for row in rows[1:]:
                row[position] = fields.u8()
    records = [b""] * count
    position = 0
    for length in lengths:
        for r in range(count):
            if isinstance(length, int):
                records[r] += bytes(rows[r][position : position + length])
            else:
                records[r] += fields.take(length[r])
        position += length if isinstance(length, int) else 0
    fields.end()
    return records


def picture(volume: NDArray[Any], entry: FileEntry, tiles: int) -> bytes:
    """The body of a file of voxels."""
    pictures = volume.reshape(-1, *volume.shape[-2:])
    if tiles == 0:
        return b"".join(pictures[slot].tobytes() for slot in entry.slots)
    rows, columns = volume.shape[-2:]
    mosaic = np.zeros((tiles * rows, tiles * columns), volume.dtype)
    for m, slot in enumerate(entry.slots):
        row, column = m // tiles * rows, m % tiles * columns
        mosaic[row : row + rows, column : column + columns] = pictures[slot]
    return mosaic.tobytes()


def files(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every file of a lossless series; ValueError if a SHA-256 differs."""
    stream = read_stream(data)
    table = stream.only("DICM")
    if table is None:
        raise ValueError("expected a series of files, found no chunk DICM")
    tiles, entries = read_table(table)
    records = [record for part in stream.chunks.get("DHDR", []) for record in read_records(part)]
    raw = b"".join(map(decompress, stream.chunks.get("DRAW", [])))
    volumes = [decode(part) for part in [data, *stream.chunks.get("STCK", [])]]
    for entry, record in zip(entries, records, strict=True):
        size = entry.size - entry.head - entry.tail
        if entry.kind == 1:
            body = picture(volumes[entry.stack], entry, tiles[entry.stack])
        else:
            body, raw = raw[:size], raw[size:]
        content = record[: entry.head] + body + record[entry.head :]
        if len(body) != size or hashlib.sha256(content).digest() != entry.sha256:
            raise ValueError(f"expected {entry.name!r} to match its SHA-256, found a difference")
        yield entry.name, content
    if raw:
        raise ValueError(f"expected the end of DRAW, found {len(raw)} bytes more")
