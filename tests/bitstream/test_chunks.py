"""The table of chunks is that of FORMAT.md, and orders are accepted and refused by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from mricodec.bitstream import chunks
from mricodec.bitstream.chunks import CHUNKS, ChunkSequence, Order, is_ancillary

WHERE = {
    "first": Order.TABLE,
    "before META and the slabs": Order.TABLE,
    "before the slabs, after ORIG and META": Order.TABLE,
    "one run, nothing in between": Order.TABLE,
    "last": Order.TABLE,
    "as ancillary": Order.FREE,
}


def accepted(names: list[bytes]) -> bool:
    sequence = ChunkSequence()
    return all(sequence.add(name) is None for name in names)


def test_the_table_is_that_of_the_page() -> None:
    page = Path(chunks.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
    section = page[page.index("### Chunk\n") : page.index("### HEAD\n")]
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    seen = set()
    for names, often, where in rows:
        for name in re.findall(r"`(\w{4})`", names):
            row = CHUNKS[name.encode()]
            seen.add(row.name)
            assert row.once == ("once" in often), name
            if where != "before the slabs":
                assert row.order is WHERE[where], name
            else:
                assert row.order is Order.LEAD or name == "META"
    assert seen == set(CHUNKS)
    assert all(re.fullmatch(r"[A-Z][^.]*\.", row.duty) for row in CHUNKS.values())
    assert all(is_ancillary(row.name) == (row.order is Order.FREE) for row in CHUNKS.values())


@examples(
    st.permutations([b"DICM", b"DHDR", b"DHDR", b"PADV", b"ORIG", b"META", b"BASE", b"eRRS"]),
    st.integers(0, 3),
    st.permutations([b"gOAL", b"pREV", b"xyZZ", b"xyZZ"]),
)
def test_any_order_that_the_table_allows(lead: list[bytes], slabs: int, tail: list[bytes]) -> None:
    ordered = [name for name in lead if CHUNKS[name].order is Order.TABLE]
    rest = iter(sorted(ordered, key=list(CHUNKS).index))
    lead = [next(rest) if name in ordered else name for name in lead]
    assert accepted([b"HEAD", *lead, *[b"SLAB"] * slabs, *tail, b"ENDX"])


@pytest.mark.parametrize("name", CHUNKS)
def test_once_is_once(name: bytes) -> None:
    lead = [] if name == b"HEAD" else [b"HEAD"]
    assert accepted([*lead, name])
    assert accepted([*lead, name, name]) != CHUNKS[name].once


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([b"SLAB"], "HEAD once, at the start"),
        ([b"HEAD", b"HEAD"], "HEAD once, at the start"),
        ([b"HEAD", b"META", b"ORIG"], "ORIG before META"),
        ([b"HEAD", b"BASE", b"META"], "META before BASE"),
        ([b"HEAD", b"SLAB", b"DICM"], "DICM before the slabs"),
        ([b"HEAD", b"SLAB", b"META"], "META before the slabs"),
        ([b"HEAD", b"SLAB", b"noTe", b"SLAB"], "SLAB in one run"),
        ([b"HEAD", b"SLAB", b"gOAL", b"gOAL"], "at most one chunk gOAL"),
        ([b"HEAD", b"ENDX", b"noTe"], "nothing after ENDX"),
    ],
)
def test_wrong_orders(names: list[bytes], expected: str) -> None:
    sequence = ChunkSequence()
    assert [sequence.add(name) for name in names[:-1]] == [None] * (len(names) - 1)
    assert expected in (sequence.add(names[-1]) or "")
