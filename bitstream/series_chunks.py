"""Payloads of the chunks of a series of files (format/series.md).

file = head | voxels of a stack  | tail        kind VOXELS
file = head | bytes as they were | tail        kind BYTES; head and tail are empty where nothing
could be told apart
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, LimitExceeded
from .fields import ByteReader, pack_varint
from .header import Limits
from .sections import compress, decompress
from .symbols import unzigzag, zigzag

# Kinds of files, by what stands between head and tail.
BYTES, VOXELS = 0, 1
# Bytes of a SHA-256.
DIGEST = 32
# Pictures of a file, on average over the series, at most.
PICTURES_PER_FILE = 16
# Bytes of records up to which the best compression takes less than a second.
_BEST_BYTES = 1 << 20
# The largest size of a file, and the largest slot.
_MAX_SIZE = 1 << 62


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a series.

    name: relative path, "/" between its parts.
    size: in bytes.
    sha256: of the whole file.
    kind: BYTES or VOXELS, by what stands between head and tail.
    head, tail: bytes before and after that.
    stack, slots: of a file of kind VOXELS: its stack, and the position there of each picture of the
        file, in the order of the file; a picture of a stack [..., k, j, i] is one [j, i], counted
        in C order.
    """

    name: str
    size: int
    sha256: bytes
    kind: int = BYTES
    head: int = 0
    tail: int = 0
    stack: int = 0
    slots: tuple[int, ...] = ()

    @property
    def body(self) -> int:
        """Bytes between head and tail."""
        return self.size - self.head - self.tail


@dataclass(frozen=True, kw_only=True)
class FileTable:
    """The chunk DICM.

    tiles: of each stack the tiles per side, 0 where a frame of a file is one picture. Else a frame
    is a mosaic of tiles x tiles pictures in raster order, of which a file has as many as it has
    slots; the rest is 0.
    """

    files: tuple[FileEntry, ...]
    tiles: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """Column by column, which compresses best."""
        names = [file.name.encode("utf-8", "surrogateescape") for file in self.files]
        out = [pack_varint(len(self.files)), pack_varint(len(self.tiles))]
        out += [*map(pack_varint, self.tiles), bytes(file.kind for file in self.files)]
        out += [*map(pack_varint, map(len, names)), *names]
        for column in ("size", "head", "tail", "stack"):
            out += [pack_varint(getattr(file, column)) for file in self.files]
        out += [pack_varint(len(file.slots)) for file in self.files]
        following = [0] * len(self.tiles)
        for file in self.files:
            for slot in file.slots:
                out.append(pack_varint(zigzag(slot - following[file.stack])))
                following[file.stack] = slot + 1
        out += [file.sha256 for file in self.files]
        return compress(b"".join(out))

    @classmethod
    def unpack(cls, payload: bytes, limits: Limits) -> FileTable:
        """FormatError if it is damaged or contradicts itself; its stacks are not known here."""
        fields = ByteReader(decompress(payload, limits.max_metadata_bytes, "DICM"), "DICM")
        count, stacks = fields.varint(), fields.varint()
        if max(count, stacks) > limits.max_files:
            raise LimitExceeded(
                f"expected at most {limits.max_files} files, found {max(count, stacks)} in DICM: "
                "if you trust the file, raise Limits.max_files"
            )
        if count * (DIGEST + 7) + stacks > fields.left:
            raise FormatError(
                f"expected {count} files and {stacks} stacks in DICM, found {fields.left} bytes of "
                "them"
            )
        tiles = tuple(fields.varint() for _ in range(stacks))
        kinds = fields.take(count)
        lengths = [fields.varint() for _ in range(count)]
        names = [_name(fields.take(length)) for length in lengths]
        sizes, heads, tails, stack = ([fields.varint() for _ in range(count)] for _ in range(4))
        pictures = [fields.varint() for _ in range(count)]
        if sum(pictures) > PICTURES_PER_FILE * limits.max_files:
            raise LimitExceeded(
                f"expected at most {PICTURES_PER_FILE * limits.max_files} pictures, found "
                f"{sum(pictures)} in DICM: "
                "if you trust the file, raise Limits.max_files"
            )
        slots = _slots(fields, pictures, stack, stacks)
        files = tuple(
            FileEntry(
                name=names[n], size=sizes[n], sha256=fields.take(DIGEST), kind=kinds[n],
                head=heads[n], tail=tails[n], stack=stack[n], slots=slots[n],
            )
            for n in range(count)
        )  # fmt: skip
        fields.end()
        for file in files:
            if file.kind not in (BYTES, VOXELS) or file.size > _MAX_SIZE or file.body < 0:
                raise FormatError(
                    f"expected a file of kind 0 or 1 and its sizes in DICM, found {file}"
                )
            if (file.kind == VOXELS) != bool(file.slots):
                raise FormatError(
                    f"expected pictures of {file.name} in DICM where it has voxels, found otherwise"
                )
        if len(set(names)) != count:
            raise FormatError(
                "expected a name of its own for every file in DICM, found one twice: the file is "
                "damaged"
            )
        return cls(files=files, tiles=tiles)


def _slots(
    fields: ByteReader, counts: list[int], stack: list[int], stacks: int
) -> list[tuple[int, ...]]:
    if sum(counts) > fields.left:
        raise FormatError(
            f"expected {sum(counts)} pictures in DICM, found {fields.left} bytes of them"
        )
    following = [0] * stacks
    slots = []
    for n, count in enumerate(counts):
        if count and stack[n] >= stacks:
            raise FormatError(
                f"expected a stack below {stacks} in DICM, found {stack[n]}: the file is damaged"
            )
        slots_of_file = []
        for _ in range(count):
            slot = following[stack[n]] + unzigzag(fields.varint())
            if not 0 <= slot < _MAX_SIZE:
                raise FormatError(
                    f"expected a picture from 0 on in DICM, found {slot}: the file is damaged"
                )
            following[stack[n]] = slot + 1
            slots_of_file.append(slot)
        slots.append(tuple(slots_of_file))
    return slots


def _name(raw: bytes) -> str:
    """A relative path that leads nowhere else, whatever the system; FormatError for another."""
    name = raw.decode("utf-8", "surrogateescape")
    if not safe_name(name):
        raise FormatError(
            f"expected a relative path within the folder in DICM, found {name[:200]!r}: do not "
            "trust this file"
        )
    return name


def safe_name(name: str) -> bool:
    """Whether a name stays within the folder that it is taken relative to."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def pack_records(records: Sequence[Sequence[tuple[int, bytes]]]) -> bytes:
    """DHDR: byte strings that resemble each other, each cut into pieces (key, bytes), keys rising.

    Pieces of one key stand together. Those of equal length are kept as the first one, a mask of the
    bytes that
    ever change, and these byte by byte over all strings: what counts up or repeats is then next to
    itself.
    """
    keys = sorted({key for record in records for key, _ in record})
    pieces = [dict(record) for record in records]
    count = len(records)
    # Of each key: 1 + the length that all pieces have, or 0 and every length.
    lengths: list[bytes] = []
    fixed: list[list[bytes]] = [[] for _ in records]
    varying: list[bytes] = []
    for key in keys:
        column = [piece.get(key, b"") for piece in pieces]
        if len(set(map(len, column))) == 1:
            lengths.append(pack_varint(1 + len(column[0])))
            for n, piece in enumerate(column):
                fixed[n].append(piece)
        else:
            lengths += [pack_varint(0), *(pack_varint(len(piece)) for piece in column)]
            varying += column
    out = [pack_varint(count), pack_varint(len(keys)), *lengths]
    if records:
        width = sum(map(len, fixed[0]))
        rows = np.frombuffer(b"".join(map(b"".join, fixed)), np.uint8).reshape(count, width)
        changes = (rows != rows[0]).any(0)
        out += [
            rows[0].tobytes(),
            np.packbits(changes).tobytes(),
            rows[1:, changes].T.tobytes(),
            *varying,
        ]
    return compress(b"".join(out), best_bytes=_BEST_BYTES)


def unpack_records(payload: bytes, limit: int, count_limit: int) -> list[bytes]:
    """The byte strings of DHDR: at most ``count_limit``, of at most ``limit`` bytes together.

    FormatError if they are damaged.
    """
    content = decompress(payload, limit, "DHDR")
    fields = ByteReader(content, "DHDR")
    count, keys = fields.varint(), fields.varint()
    if keys > fields.left or count > count_limit:
        raise FormatError(
            f"expected at most {count_limit} records in DHDR, found {count} of {keys} pieces: "
            "the file is damaged"
        )
    lengths: list[int | list[int]] = []
    for _ in range(keys):
        fixed = fields.varint()
        if fixed:
            lengths.append(fixed - 1)
        elif count > fields.left:
            raise FormatError(
                f"expected {count} lengths in DHDR, found {fields.left} bytes of them"
            )
        else:
            lengths.append([fields.varint() for _ in range(count)])
    if not count:
        fields.end()
        return []
    width = sum(length for length in lengths if isinstance(length, int))
    total = count * width + sum(sum(length) for length in lengths if isinstance(length, list))
    if total > limit:
        raise FormatError(
            f"expected at most {limit} bytes of records in DHDR, found {total}: the file is damaged"
        )
    rows = np.empty((count, width), np.uint8)
    rows[:] = np.frombuffer(fields.take(width), np.uint8)
    mask = np.frombuffer(fields.take(-(-width // 8)), np.uint8)
    changes = np.unpackbits(mask, count=width).astype(bool)
    changed = int(changes.sum())
    columns = np.frombuffer(fields.take(changed * (count - 1)), np.uint8)
    rows[1:, changes] = columns.reshape(changed, count - 1).T
    records = _joined(rows, lengths, fields)
    fields.end()
    return records


def _joined(
    rows: NDArray[np.uint8], lengths: list[int | list[int]], fields: ByteReader
) -> list[bytes]:
    records: list[list[bytes]] = [[] for _ in rows]
    whole = [row.tobytes() for row in rows]
    at = 0
    for length in lengths:
        if isinstance(length, int):
            for record, row in zip(records, whole, strict=True):
                record.append(row[at : at + length])
            at += length
        else:
            for record, size in zip(records, length, strict=True):
                record.append(fields.take(size))
    return [b"".join(record) for record in records]


class BytePieces:
    """The bytes of DRAW, from front to back.

    Every payload is a zstd frame of at most ``limit`` bytes.
    """

    def __init__(self, payloads: Iterator[bytes], limit: int) -> None:
        self._payloads = payloads
        self._limit = limit
        self._held = b""

    def take(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes, in pieces. FormatError if there are fewer."""
        while size > 0:
            if not self._held:
                payload = next(self._payloads, None)
                if payload is None:
                    raise FormatError(
                        f"expected {size} bytes more in DRAW, found its end: the file is damaged"
                    )
                self._held = decompress(payload, self._limit, "DRAW")
            piece, self._held = self._held[:size], self._held[size:]
            size -= len(piece)
            yield piece

    def end(self) -> None:
        """FormatError if anything is left."""
        if self._held or next(self._payloads, None) is not None:
            raise FormatError("expected the end of DRAW, found more bytes: the file is damaged")


def pack_bytes(data: bytes) -> bytes:
    """A payload of DRAW."""
    return compress(data)


def pack_padding(value: int, masks: Iterable[NDArray[np.bool_]]) -> bytes:
    """PADV: which voxels of every picture hold a value that stands for no data."""
    return pack_varint(zigzag(value)) + compress(
        b"".join(np.packbits(mask).tobytes() for mask in masks)
    )


def unpack_padding(
    payload: bytes, pictures: int, size: int, limit: int
) -> tuple[int, NDArray[np.uint8]]:
    """PADV -> the value, and packed masks [pictures, bytes] of pictures of `size` voxels."""
    fields = ByteReader(payload, "PADV")
    value = unzigzag(fields.varint())
    bits = decompress(fields.take(fields.left), limit, "PADV")
    if len(bits) != pictures * -(-size // 8):
        raise FormatError(
            f"expected {pictures} masks of {size} voxels in PADV, found {len(bits)} bytes: the "
            "file is damaged"
        )
    return value, np.frombuffer(bits, np.uint8).reshape(pictures, -1)
