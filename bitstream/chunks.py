"""Every chunk type of the format in one table, and the order that it asks for (FORMAT.md, "Chunk").

A chunk is a type (four ASCII letters), the length of its payload, the payload and a CRC-32. As in
PNG, a type that begins with an upper-case letter is critical: a reader that does not know it must
refuse the stream. One that begins with a lower-case letter is ancillary: a reader skips it unless
it knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Bytes of a chunk beyond its payload: type, length, CRC.
FRAMING = 12


class Order(Enum):
    """Where chunks of a type may stand."""

    TABLE = "in the order of the table"
    LEAD = "anywhere before the slabs"
    FREE = "anywhere after HEAD, but not between two slabs"


@dataclass(frozen=True, slots=True)
class ChunkType:
    """A row of the table.

    once: whether a stream has at most one.
    duty: what a reader does with the payload.
    """

    name: bytes
    order: Order
    once: bool
    duty: str


CHUNKS: dict[bytes, ChunkType] = {}


def _row(name: bytes, order: Order, once: bool, duty: str) -> bytes:
    CHUNKS[name] = ChunkType(name, order, once, duty)
    return name


ONCE, REPEATED = True, False
# fmt: off
HEAD = _row(b"HEAD", Order.TABLE, ONCE, "Hold it against the limits; refuse unknown codes.")
ORIG = _row(b"ORIG", Order.TABLE, ONCE, "Put these bytes of the source file around the voxels.")
META = _row(b"META", Order.TABLE, ONCE, "Take from it what no header has, such as the affine.")
BASE = _row(b"BASE", Order.TABLE, ONCE, "Decode this layer: its samples are references.")
DICM = _row(b"DICM", Order.LEAD, ONCE, "Restore the files of this table; refuse unsafe names.")
DHDR = _row(b"DHDR", Order.LEAD, REPEATED, "Put these bytes around the voxels of the files.")
DRAW = _row(b"DRAW", Order.LEAD, REPEATED, "Write these bytes of files without coded voxels.")
STCK = _row(b"STCK", Order.LEAD, REPEATED, "Decode this stream: a further stack of the series.")
PADV = _row(b"PADV", Order.LEAD, REPEATED, "Put this value where its masks say so.")
SLAB = _row(b"SLAB", Order.TABLE, REPEATED, "Decode it when its slices are asked for.")
END = _row(b"ENDX", Order.TABLE, ONCE, "Hold its index and digest against the slabs.")
ERRORS = _row(b"eRRS", Order.FREE, ONCE, "Report these errors; verify slabs by its CRC-32s.")
GOAL = _row(b"gOAL", Order.FREE, ONCE, "Report this target of the encoder.")
SUMS = _row(b"sUMS", Order.FREE, ONCE, "Verify slabs by these CRC-32s.")
PREVIEW = _row(b"pREV", Order.FREE, ONCE, "Decode this stream for a preview.")
GZIP = _row(b"gZIP", Order.FREE, ONCE, "Compress the restored file by this recipe.")
# fmt: on

_RANK = {name: rank for rank, name in enumerate(CHUNKS)}


def is_ancillary(name: bytes) -> bool:
    return name[:1].islower()


class ChunkSequence:
    """Holds the chunks of a stream, one after the other, against the table."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._last = b""
        # The last type that stands in the order of the table.
        self._ordered = b""

    def add(self, name: bytes) -> str | None:
        """Adds the next chunk and returns None, or returns what is expected in its stead.

        It is for the caller to refuse a critical type that is not in the table.
        """
        expected = self._expected(name)
        if expected is None:
            self._seen.add(name)
            self._last = name
            if name in CHUNKS and CHUNKS[name].order is Order.TABLE:
                self._ordered = name
        return expected

    def _expected(self, name: bytes) -> str | None:
        if (name == HEAD) != (not self._seen):
            return "the chunk HEAD once, at the start"
        if END in self._seen:
            return "nothing after ENDX"
        if name == SLAB and SLAB in self._seen and self._last != SLAB:
            return "all chunks SLAB in one run"
        if name not in CHUNKS:
            return None
        row = CHUNKS[name]
        if _RANK[name] < _RANK[SLAB] and SLAB in self._seen:
            return f"{name.decode()} before the slabs"
        if row.once and name in self._seen:
            return f"at most one chunk {name.decode()}"
        if row.order is Order.TABLE and self._ordered and _RANK[name] < _RANK[self._ordered]:
            return f"{name.decode()} before {self._ordered.decode()}"
        return None
