"""The chunks of a series: what is packed comes back, and the reference decoder reads it too."""

from __future__ import annotations

from typing import Any

import dicom_files
import numpy as np
import pytest
import zstandard
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from reference_decoder import series as reference_series

from mricodec import codec
from mricodec.bitstream.chunks import DICM
from mricodec.bitstream.container import ContainerReader
from mricodec.bitstream.errors import FormatError, LimitExceeded
from mricodec.bitstream.header import Limits
from mricodec.bitstream.series_chunks import (
    BYTES,
    VOXELS,
    BytePieces,
    FileEntry,
    FileTable,
    pack_bytes,
    pack_padding,
    pack_records,
    unpack_padding,
    unpack_records,
)

LIMIT = 1 << 20
RECORDS = st.lists(
    st.dictionaries(st.integers(0, 6), st.binary(max_size=12), max_size=5), max_size=6
)


@examples(RECORDS)
@settings(max_examples=150, deadline=None)
def test_records(records: list[dict[int, bytes]]) -> None:
    payload = pack_records([sorted(record.items()) for record in records])
    expected = [b"".join(piece for _, piece in sorted(record.items())) for record in records]
    assert unpack_records(payload, LIMIT, len(records)) == expected
    assert reference_series.read_records(payload) == expected
    if records:
        with pytest.raises(FormatError, match="at most"):
            unpack_records(payload, LIMIT, len(records) - 1)


@examples(RECORDS, st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_records(records: list[dict[int, bytes]], data: Any) -> None:
    """Right zstd around wrong content."""
    content = bytearray(
        zstandard.decompress(pack_records([sorted(record.items()) for record in records]))
    )
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        unpacked = unpack_records(zstandard.compress(bytes(content)), LIMIT, 10)
    except FormatError:
        return
    assert sum(map(len, unpacked)) <= LIMIT


def table() -> FileTable:
    names = ["a", "b/c.dcm", "ü", "\udcff odd"]  # the last is a byte that is not UTF-8
    files = [
        FileEntry(
            name=names[0],
            size=100,
            sha256=bytes(range(32)),
            kind=VOXELS,
            head=10,
            tail=2,
            slots=(1, 0),
        ),
        FileEntry(name=names[1], size=1 << 40, sha256=bytes(32), kind=VOXELS, stack=1, slots=(5,)),
        FileEntry(name=names[2], size=7, sha256=bytes(32), head=7),
        FileEntry(name=names[3], size=0, sha256=bytes(32), kind=BYTES),
    ]
    return FileTable(files=tuple(files), tiles=(0, 3))


def test_table() -> None:
    assert FileTable.unpack(table().pack(), Limits()) == table()
    assert FileTable.unpack(FileTable(files=()).pack(), Limits()) == FileTable(files=())
    with pytest.raises(LimitExceeded, match="max_files"):
        FileTable.unpack(table().pack(), Limits(max_files=3))
    content = zstandard.decompress(table().pack())
    for length in range(len(content)):
        with pytest.raises(FormatError):
            FileTable.unpack(zstandard.compress(content[:length]), Limits())


def test_claims_are_not_believed() -> None:
    """Counts without bytes behind them."""
    many = b"\xff\xff\xff\xff\x07"
    for content in (many + b"\0", b"\0" + many, b"\x01" + many):
        with pytest.raises(FormatError):
            FileTable.unpack(zstandard.compress(content), Limits(max_files=1 << 40))
    for content in (many + b"\0", b"\x02" + many, b"\x02\x01" + many, b"\x02\x01\0" + many):
        with pytest.raises(FormatError):
            unpack_records(zstandard.compress(content), LIMIT, 1 << 18)


def test_bytes_and_padding() -> None:
    pieces = BytePieces(iter([pack_bytes(b"abc"), pack_bytes(b""), pack_bytes(b"defg")]), LIMIT)
    assert b"".join(pieces.take(5)) == b"abcde"
    assert b"".join(pieces.take(0)) == b""
    with pytest.raises(FormatError, match="more bytes"):
        pieces.end()
    assert b"".join(pieces.take(2)) == b"fg"
    pieces.end()
    with pytest.raises(FormatError, match="1 bytes more"):
        b"".join(pieces.take(1))
    masks = np.random.default_rng(0).random((3, 5, 5)) < 0.5
    value, bits = unpack_padding(pack_padding(-2000, masks), 3, 25, LIMIT)
    assert value == -2000
    assert np.array_equal(np.unpackbits(bits, axis=1, count=25).reshape(3, 5, 5), masks)
    with pytest.raises(FormatError, match="masks"):
        unpack_padding(pack_padding(-2000, masks), 4, 25, LIMIT)


def test_the_reference_decoder_gives_the_files_back() -> None:
    datasets = dicom_files.series(np.arange(48, dtype=np.uint16).reshape(3, 4, 4))
    datasets.append(dicom_files.instance(np.ones((5, 5), np.int16), 9))
    datasets.append(dicom_files.instance(np.ones((5, 5), np.uint16), 10, PixelData=b"\1\2"))
    stream = codec.encode_series(datasets, lossless=True)
    assert stream is not None
    tiles, entries = reference_series.read_table(next(ContainerReader(stream).chunks(DICM)))
    assert tiles == [0, 0] and {entry.kind for entry in entries} == {BYTES, VOXELS}
    files = {name.decode(): content for name, content in reference_series.files(stream)}
    assert files == dict(codec.series_files(stream))
