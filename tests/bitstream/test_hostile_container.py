"""Damaged and malicious streams end in a FormatError of one line, soon and in little memory."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from mricodec.bitstream import sections
from mricodec.bitstream.chunks import META, ORIG
from mricodec.bitstream.container import ContainerReader, ContainerWriter
from mricodec.bitstream.errors import (
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    Truncated,
    UnsupportedVersion,
)
from mricodec.bitstream.fields import ByteReader
from mricodec.bitstream.header import Flags, Limits, Mode, StreamHeader
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import ProbabilityTables

START = b"\x89MRC\r\n\x1a\n\x01\x00"
LIMIT = 1 << 20
TABLES = ProbabilityTables(np.array([[1 << 22] * 4] * 9, np.uint32), -1, 8)
INDEX = np.arange(60, dtype=np.uint8)
VALUES = np.where(INDEX > 0, np.arange(60) * 7 % 23 - 11, 0)


def lossless_stream() -> bytes:
    """Store coder, header and trailer of the source, two slabs."""
    file = io.BytesIO()
    head = StreamHeader(
        mode=Mode.LOSSLESS,
        coder=0,
        dtype="int16",
        shape=(2, 3, 4),
        slab_axis=0,
        flags=Flags.BIG_ENDIAN,
    )
    writer = ContainerWriter(file, head)
    writer.chunk(ORIG, sections.pack_orig(sections.ORIG_PREFIX, b"trailer"))
    writer.chunk(META, sections.pack_meta({"affine": [1, 0, 0]}))
    for k in range(2):
        writer.slab(sections.pack_store(np.arange(12 * k, 12 * k + 12, dtype="<i2").tobytes(), 2))
    writer.finish(bytes(range(32)))
    return file.getvalue()


def lossy_stream() -> bytes:
    """Entropy-coded slabs, one of them empty; ancillary chunks before and after."""
    file = io.BytesIO()
    head = StreamHeader(
        mode=Mode.LOSSY,
        coder=2,
        dtype="uint8",
        shape=(3, 20),
        model_id=b"weights!",
        params=b"\x01\x02",
    )
    writer = ContainerWriter(file, head)
    writer.chunk(b"noTe", b"by hand")
    encoder = EntropyEncoder()
    encoder.code(TABLES, INDEX, VALUES)
    for payload in (encoder.finish(), b"", encoder.finish()):
        writer.slab(payload)
    writer.chunk(b"lAYR", b"refinement")
    writer.finish(bytes(range(16)))
    return file.getvalue()


def empty_stream() -> bytes:
    """An empty array has no slabs."""
    file = io.BytesIO()
    ContainerWriter(
        file, StreamHeader(mode=Mode.LOSSLESS, coder=0, dtype="float32", shape=(0, 5))
    ).finish(bytes(32))
    return file.getvalue()


STREAMS = {stream.__name__: stream() for stream in (lossless_stream, lossy_stream, empty_stream)}


def content(data: bytes, *, as_file: bool = False) -> tuple[Any, ...]:
    """All there is in a stream, as far as the container goes and a bit further."""
    reader = ContainerReader(
        io.BytesIO(data) if as_file else data, Limits(max_metadata_bytes=LIMIT)
    )
    reader.verify()
    orig, meta = reader.chunk(ORIG), reader.chunk(META)
    slabs: list[Any] = []
    for i in range(reader.slab_count):
        slab = reader.slab(i)
        if reader.header.coder == 0:
            slabs.append(sections.unpack_store(slab, 24, 2))
        elif slab:
            decoder = EntropyDecoder(slab)
            slabs.append(decoder.code(TABLES, INDEX).tolist())
            decoder.finish()
    return (
        reader.header,
        reader.digest,
        orig and sections.unpack_orig(orig, LIMIT),
        meta and sections.unpack_meta(meta, LIMIT),
        reader.chunk(b"noTe"),
        reader.chunk(b"lAYR"),
        slabs,
    )


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def refuse(
    data: bytes, error: type[FormatError] = FormatError, match: str = "", **limits: int
) -> None:
    """Both ways of reading refuse, with one line, at once, and without allocating."""
    for source in (data, io.BytesIO(data)):
        tracemalloc.start()
        started = time.perf_counter()
        try:
            with pytest.raises(error, match=match) as caught:
                ContainerReader(source, Limits(**limits)).verify()
            assert time.perf_counter() - started < 2
            assert tracemalloc.get_traced_memory()[1] < (1 << 20) + 4 * len(data)
        finally:
            tracemalloc.stop()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("as_file", [False, True])
def test_every_truncation_and_every_bit_flip(name: str, as_file: bool) -> None:
    data = STREAMS[name]
    expected = content(data, as_file=as_file)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            content(data[:length], as_file=as_file)
    for damaged in flips(data):
        try:
            assert content(damaged, as_file=as_file) == expected
        except FormatError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", STREAMS)
def test_truncation_is_called_so(name: str) -> None:
    data = STREAMS[name]
    for length in range(10, len(data)):
        refuse(data[:length], Truncated, "expected")


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("extra", [b"\0", b"trailing bytes", START, bytes(100)])
def test_nothing_follows_the_end(name: str, extra: bytes) -> None:
    refuse(STREAMS[name] + extra, FormatError, "expected the file to end with the chunk ENDX")


@settings(deadline=None, max_examples=300)
@examples(st.sampled_from(sorted(STREAMS)), st.data())
def test_bursts_of_damage(name: str, draw: st.DataObject) -> None:
    data = bytearray(STREAMS[name])
    at = draw.draw(st.integers(0, len(data)))
    data[at : at + draw.draw(st.integers(0, 30))] = draw.draw(st.binary(max_size=30))
    try:
        assert content(bytes(data)) == content(STREAMS[name])
    except FormatError as error:
        assert "\n" not in str(error)


@settings(deadline=None)
@examples(st.binary(max_size=300))
def test_any_bytes_after_the_magic(data: bytes) -> None:
    with pytest.raises(FormatError):
        ContainerReader(START + data)


def chunk(kind: bytes, payload: bytes, *, length: int | None = None) -> bytes:
    start = kind + struct.pack("<I", len(payload) if length is None else length)
    return start + payload + struct.pack("<I", zlib.crc32(start + payload))


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


def end(*lengths: int, count: int | None = None) -> bytes:
    index = (
        bytes(32)
        + varint(len(lengths) if count is None else count)
        + b"".join(map(varint, lengths))
    )
    return chunk(b"ENDX", index + struct.pack("<I", len(index) + 4))


FIELDS = {
    "mode": 0, "coder": 0, "dtype": 4, "flags": 0, "ndim": 3, "dims": b"\x02\x03\x04",
    "slab_axis": 0, "slab_slices": b"\x01", "model_id": bytes(8), "spacing": (1, 1, 1),
    "params": b"\x00",
}  # fmt: skip


def head(**changed: Any) -> bytes:
    """The chunk HEAD of sound fields, but for those that are changed."""
    packed = b""
    for value in {**FIELDS, **changed}.values():
        if isinstance(value, int):
            packed += bytes((value,))
        else:
            packed += value if isinstance(value, bytes) else struct.pack("<3f", *value)
    return chunk(b"HEAD", packed)


SLAB = chunk(b"SLAB", b"slab")


def test_the_builders_build_a_sound_stream() -> None:
    reader = ContainerReader(START + head() + SLAB + SLAB + end(4, 4))
    assert reader.header.shape == (2, 3, 4)
    reader.verify()


@pytest.mark.parametrize(
    ("chunks", "error", "match"),
    [
        # order and number of chunks
        (SLAB + end(4), FormatError, "HEAD at byte 10, found SLAB"),
        (head() + head() + end(), FormatError, "found HEAD"),
        (head() + chunk(b"META", b"") * 2 + end(), FormatError, "found META"),
        (head() + chunk(b"META", b"") + chunk(b"ORIG", b"") + end(), FormatError, "found ORIG"),
        (head() + SLAB + chunk(b"META", b"") + end(4), FormatError, "found META"),
        (head() + SLAB + chunk(b"noTe", b"") + SLAB + end(4, 4), FormatError, "chunk type"),
        (head() + end() + end(), FormatError, "one chunk ENDX"),
        (head() + chunk(b"LAYR", b"") + end(), UnsupportedVersion, "critical chunk LAYR .* update"),
        (head() + chunk(b"NoTe", b"") + end(), UnsupportedVersion, "critical chunk NoTe"),
        (head() + chunk(b"no1e", b"") + end(), FormatError, "chunk type"),
        (head() + chunk(b"\xffoTe", b"") + end(), FormatError, "chunk type"),
        # an index that lies
        (head() + SLAB + end(), FormatError, "SLAB"),
        (head() + end(4), FormatError, "1 slabs"),
        (head() + SLAB + SLAB + end(4), FormatError, "SLAB"),
        (head() + SLAB + end(4, 4), FormatError, "SLAB"),
        (head() + SLAB + SLAB + end(4, 3), FormatError, "expected"),
        (head() + SLAB + SLAB + end(3, 5), FormatError, "expected"),
        (head() + SLAB + SLAB + end(20), FormatError, "expected"),
        (head() + SLAB + end(1 << 31), LimitExceeded, "max_chunk_bytes"),
        (head() + SLAB + end(1 << 62), LimitExceeded, "max_chunk_bytes"),
        (head() + SLAB + end(count=1 << 40), FormatError, "lengths of 1099511627776 slabs"),
        (head() + SLAB + end(4, count=2), FormatError, "lengths of 2 slabs"),
        (head() + SLAB + end(4, 4, count=1), FormatError, "end of ENDX"),
        (head() + chunk(b"ENDX", bytes(36)), FormatError, "ENDX"),
        (head() + chunk(b"ENDX", bytes(33) + struct.pack("<I", 38)), FormatError, "ENDX"),
        (head() + chunk(b"ENDX", bytes(33) + struct.pack("<I", 1 << 31)), FormatError, "ENDX"),
        # lengths that lie
        (
            chunk(b"HEAD", b"", length=0xFFFFFFFF) + end(),
            Truncated,
            "4294967295 bytes in the chunk HEAD",
        ),
        (head() + chunk(b"META", b"", length=0x7FFFFFFF) + end(), Truncated, "2147483647 bytes"),
        (
            head() + chunk(b"SLAB", b"slab", length=0x7FFFFFFF) + end(4),
            Truncated,
            "2147483647 bytes",
        ),
        (head() + chunk(b"SLAB", b"slab", length=3) + end(4), FormatError, "expected"),
        (head() + chunk(b"META", b"abcd", length=3) + end(), FormatError, "expected"),
        # a header that lies
        (head(mode=3) + end(), UnsupportedVersion, "mode"),
        (head(dtype=0) + end(), UnsupportedVersion, "voxel type"),
        (head(dtype=99) + end(), UnsupportedVersion, "voxel type"),
        (head(flags=4) + end(), UnsupportedVersion, "flags"),
        (head(flags=128) + end(), UnsupportedVersion, "flags"),
        (head(ndim=0, dims=b"") + end(), FormatError, "dimensions"),
        (head(ndim=255) + end(), LimitExceeded, "max_dims"),
        (head(ndim=16) + end(), FormatError, "HEAD|varint"),
        (head(dims=varint(1 << 62) + b"\x03\x04") + end(), LimitExceeded, "max_voxels"),
        (head(dims=varint(1 << 62) + b"\x00\x04") + end(), LimitExceeded, "max_voxels"),
        (head(dims=varint(1 << 12) * 3) + end(), LimitExceeded, "max_voxels"),
        (head(dims=varint(1 << 63) + b"\x03\x04") + end(), FormatError, "varint"),
        (head(dims=b"\xff" * 9 + b"\x01\x03\x04") + end(), FormatError, "varint"),
        (head(dims=b"\x80" * 12 + b"\x01\x03\x04") + end(), FormatError, "varint"),
        (head(dims=b"\x82\x00\x03\x04") + end(), FormatError, "varint"),
        (head(slab_axis=3) + end(), FormatError, "axis"),
        (head(slab_slices=b"\x00") + end(), FormatError, "0 slices"),
        (head(spacing=(1, float("nan"), 1)) + end(), FormatError, "spacings"),
        (head(spacing=(1, float("inf"), 1)) + end(), FormatError, "spacings"),
        (head(spacing=(1, 1, -1)) + end(), FormatError, "spacings"),
        (head(params=b"\x05abc") + end(), Truncated, "5 bytes at byte .* of HEAD"),
        (head(params=varint(1 << 62)) + end(), Truncated, "HEAD"),
        (head(params=b"\x01ab") + end(), FormatError, "end of HEAD"),
        (head(params=b"") + end(), Truncated, "HEAD"),
        (chunk(b"HEAD", b"") + end(), Truncated, "HEAD"),
    ],
)
def test_lies_with_correct_checksums(chunks: bytes, error: type[FormatError], match: str) -> None:
    refuse(START + chunks, error, match)


def test_a_newer_version() -> None:
    refuse(START[:8] + b"\x02\x00" + head() + end(), UnsupportedVersion, "version 2: update")


def test_checksums_are_called_so() -> None:
    data = bytearray(START + head() + SLAB + end(4))
    data[-14] ^= 1  # within the digest and index
    refuse(bytes(data), FormatError, "ENDX")
    data = bytearray(START + head() + SLAB + end(4))
    data[len(START + head()) + 9] ^= 1
    reader = ContainerReader(bytes(data))
    for check in (lambda: reader.slab(0), reader.verify):
        with pytest.raises(ChecksumMismatch, match="SLAB"):
            check()


def test_many_chunks_and_slabs_are_refused_soon() -> None:
    refuse(START + head() + chunk(b"noTe", b"") * 5000 + end(), LimitExceeded, "max_chunks")
    empty = chunk(b"SLAB", b"")
    many = START + head() + empty * 3000 + end(*[0] * 3000)
    refuse(many, LimitExceeded, "max_slabs", max_slabs=2999)
    assert ContainerReader(many).slab_count == 3000
    refuse(START + head() + empty * 200_000, Truncated, "ENDX")


def test_a_file_that_shrinks_while_it_is_read() -> None:
    file = io.BytesIO(STREAMS["lossless_stream"])
    reader = ContainerReader(file)
    file.truncate(len(STREAMS["lossless_stream"]) - 100)
    with pytest.raises(Truncated, match="changed while read"):
        reader.slab(1)


def test_varints_of_any_length_are_read_in_bounded_time() -> None:
    with pytest.raises(FormatError, match="varint"):
        ByteReader(b"\xff" * (1 << 20), "test").varint()


def zstd_lie(size: int) -> bytes:
    """A frame that declares ``size`` bytes and holds none of them."""
    return struct.pack("<IBQ", 0xFD2FB528, 0b11100000, size) + b"\x01\x00\x00"


@pytest.mark.parametrize(
    ("frame", "error", "match"),
    [
        (zstd_lie(1 << 40), FormatError, "content size"),
        (zstd_lie(LIMIT), FormatError, "content size"),
        (zstd_lie(1 << 17), FormatError, "zstd"),
        (
            zstandard.ZstdCompressor().compress(bytes(LIMIT + 1)),
            LimitExceeded,
            "at most 1048576 bytes",
        ),
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 9),
            FormatError,
            "content size",
        ),
        (zstandard.ZstdCompressor().compress(b"abc") * 2, FormatError, "expected"),
        (zstandard.ZstdCompressor().compress(b"abc") + b"x", FormatError, "expected"),
        (zstandard.ZstdCompressor().compress(b"abc")[:-1], FormatError, "expected"),
        (struct.pack("<II", 0x184D2A50, 4) + b"skip", FormatError, "zstd"),
        (b"", FormatError, "zstd"),
        (b"not zstd", FormatError, "zstd"),
    ],
)
def test_zstd_that_lies(frame: bytes, error: type[FormatError], match: str) -> None:
    for unpack in (
        lambda: sections.unpack_orig(b"\x00" + frame, LIMIT),
        lambda: sections.unpack_meta(frame, LIMIT),
        lambda: sections.unpack_store(b"\x00" + frame, LIMIT, 1),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(error, match=match) as caught:
                unpack()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1, 2]",
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1',
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_meta_that_is_no_json_object(text: bytes) -> None:
    with pytest.raises(FormatError, match="META"):
        sections.unpack_meta(sections.compress(text), LIMIT)


def test_orig_that_lies() -> None:
    with pytest.raises(FormatError, match="4 bytes of header in ORIG, found 3"):
        sections.unpack_orig(b"\x04" + sections.compress(b"abc"), LIMIT)
    for payload in (b"", b"\x80", b"\x80\x00", b"\xff" * 10):
        with pytest.raises(FormatError, match="ORIG"):
            sections.unpack_orig(payload, LIMIT)


def test_stored_slab_that_lies() -> None:
    payload = sections.pack_store(bytes(24), 2)
    for nbytes in (0, 22, 26, 2400):
        with pytest.raises(FormatError):
            sections.unpack_store(payload, nbytes, 2)
    for first in (b"", b"\x06", b"\xff"):
        with pytest.raises(FormatError, match="filter"):
            sections.unpack_store(first + payload[1:] if first else b"", 24, 2)
    with pytest.raises(FormatError, match="voxels of 2 bytes"):
        sections.unpack_store(b"\x04" + payload[1:], 24, 2)
