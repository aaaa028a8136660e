"""What is written is what is read, at the promised price."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from mricodec.bitstream import container, sections
from mricodec.bitstream.chunks import FRAMING, META, ORIG
from mricodec.bitstream.container import (
    MAGIC,
    ContainerReader,
    ContainerWriter,
    Section,
    check_magic,
)
from mricodec.bitstream.errors import FormatError, LimitExceeded
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.header import DTYPES, PREDICTIVE, STORE, Flags, Limits, Mode, StreamHeader

DIGEST = hashlib.sha256(b"voxels").digest()[:16]
UNLIMITED = Limits(max_voxels=1 << 1100)


def header(**fields: Any) -> StreamHeader:
    defaults: dict[str, Any] = {
        "mode": Mode.LOSSY,
        "coder": 2,
        "dtype": "int16",
        "shape": (192, 256, 256),
    }
    return StreamHeader(**{**defaults, **fields})


def write(
    slabs: list[bytes],
    *,
    head: StreamHeader | None = None,
    before: dict[bytes, bytes] | None = None,
    after: dict[bytes, bytes] | None = None,
) -> bytes:
    file = io.BytesIO()
    writer = ContainerWriter(file, head or header())
    for kind, payload in (before or {}).items():
        writer.chunk(kind, payload)
    for payload in slabs:
        writer.slab(payload)
    for kind, payload in (after or {}).items():
        writer.chunk(kind, payload)
    writer.finish(DIGEST)
    assert writer.size == len(file.getvalue())
    return file.getvalue()


spacings = st.floats(0, 1e6, width=32)
headers = st.builds(
    StreamHeader,
    mode=st.sampled_from(Mode),
    coder=st.integers(0, 255),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=16).map(tuple),
    slab_axis=st.integers(0, 2),
    slab_slices=st.integers(1, 2**63 - 1),
    flags=st.sampled_from([Flags(n) for n in range(4)]),
    model_id=st.binary(min_size=8, max_size=8),
    spacing_mm=st.tuples(spacings, spacings, spacings),
    params=st.binary(max_size=300),
)


@examples(headers)
def test_header_round_trip(head: StreamHeader) -> None:
    assert StreamHeader.unpack(head.pack(), UNLIMITED) == head


@examples(st.integers(0, 2**63 - 1))
def test_varint_round_trip(value: int) -> None:
    packed = pack_varint(value)
    assert len(packed) == max(1, -(-value.bit_length() // 7))
    fields = ByteReader(packed, "test")
    assert fields.varint() == value
    fields.end()


@settings(deadline=None)
@examples(
    st.lists(st.binary(max_size=200), max_size=6),
    st.dictionaries(st.sampled_from([b"abCd", b"zzZZ", b"priv"]), st.binary(max_size=50)),
    st.dictionaries(st.sampled_from([b"abCd", b"lAYR"]), st.binary(max_size=50)),
    st.booleans(),
)
def test_stream_round_trip(
    slabs: list[bytes], before: dict[bytes, bytes], after: dict[bytes, bytes], as_file: bool
) -> None:
    before = {b"ORIG": b"o", **before, b"META": b"m"}
    data = write(slabs, before=before, after=after)
    reader = ContainerReader(io.BytesIO(data) if as_file else data)
    reader.verify()
    assert reader.header == header()
    assert reader.digest == DIGEST
    assert reader.size == len(data)
    assert [reader.slab(i) for i in range(reader.slab_count)] == slabs
    for kind in {*before, *after, b"none"}:
        contents = [chunks[kind] for chunks in (before, after) if kind in chunks]
        if len(contents) < 2:
            assert reader.chunk(kind) == (contents[0] if contents else None)
        else:
            with pytest.raises(FormatError, match="one chunk abCd, found 2"):
                reader.chunk(kind)
    names = [kind.decode() for kind in before]
    names = ["HEAD", *names, *["SLAB"] * len(slabs), *(kind.decode() for kind in after), "ENDX"]
    assert [section.type for section in reader.sections()] == names
    assert sum(section.size for section in reader.sections()) + 10 == len(data)
    for index in (-1, len(slabs)):
        with pytest.raises(IndexError):
            reader.slab(index)


def test_sources() -> None:
    data = write([b"one", b"two"])
    for source in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).data):
        slab = ContainerReader(source).slab(1)
        assert slab == b"two" and type(slab) is bytes


def test_overhead_of_a_bare_array() -> None:
    coded = [b"x" * 100_000]
    head = header(shape=(4, 192, 256, 256), spacing_mm=(1.0, 1.0, 1.0), params=bytes(32))
    assert len(write(coded, head=head)) - 100_000 <= 160
    further = len(write(coded * 50, head=head)) - len(write(coded * 49, head=head)) - 100_000
    assert further <= 24


def test_random_access_reads_little() -> None:
    class CountingFile(io.BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.bytes_read += len(data)
            return data

    file = CountingFile(write([bytes(10_000)] * 100))
    reader = ContainerReader(file)
    reader.slab(57)
    assert file.bytes_read < 13_000


def test_writer_never_seeks_and_reader_needs_no_name() -> None:
    class Pipe:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def write(self, data: bytes) -> int:
            self.parts.append(bytes(data))
            return len(data)

    pipe = Pipe()
    writer = ContainerWriter(pipe, header())  # type: ignore[arg-type]
    writer.slab(b"slab")
    writer.finish(DIGEST)
    assert ContainerReader(b"".join(pipe.parts)).slab(0) == b"slab"


def test_threads_share_a_reader(tmp_path: Path) -> None:
    slabs = [bytes([i]) * 5000 for i in range(64)]
    path = tmp_path / "stream.mrc"
    path.write_bytes(write(slabs))
    with path.open("rb") as file:
        reader = ContainerReader(file)
        failures: list[int] = []

        def read(first: int) -> None:
            order = np.random.default_rng(first).permutation(64).tolist()
            failures.extend(i for i in order if reader.slab(i) != slabs[i])

        threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_writer_refuses_a_wrong_order() -> None:
    writer = ContainerWriter(io.BytesIO(), header())
    for kind in (
        b"HEAD",
        b"SLAB",
        b"ENDX",
        b"LAYR",
        b"abc",
        b"ab1d",
        b"abcde",
        "örig".encode("latin-1"),
    ):
        with pytest.raises(ValueError, match="expected"):
            writer.chunk(kind, b"")
    writer.chunk(META, b"")
    for kind in (META, ORIG):
        with pytest.raises(ValueError, match=r"at most one chunk META|ORIG before META"):
            writer.chunk(kind, b"")
    writer.chunk(b"text", b"")
    writer.slab(b"")
    writer.slab(b"")
    with pytest.raises(ValueError, match="before the slabs"):
        writer.chunk(META, b"")
    writer.chunk(b"text", b"")
    with pytest.raises(ValueError, match="in one run"):
        writer.slab(b"")
    with pytest.raises(ValueError, match="16 bytes"):
        writer.finish(b"short")
    writer.finish(DIGEST)
    with pytest.raises(ValueError, match="nothing after ENDX"):
        writer.chunk(b"text", b"")
    with pytest.raises(ValueError, match="nothing after ENDX"):
        writer.finish(DIGEST)


@pytest.mark.parametrize(
    "fields",
    [
        {"coder": 256},
        {"dtype": "int24"},
        {"shape": ()},
        {"shape": (3, -1)},
        {"shape": (1 << 63,)},
        {"slab_axis": 3},
        {"slab_slices": 0},
        {"flags": Flags(4)},
        {"model_id": b"short"},
        {"spacing_mm": (1.0, float("nan"), 1.0)},
        {"spacing_mm": (1.0, -1.0, 1.0)},
        {"spacing_mm": (1.0, 1.0, 1e39)},
    ],
)
def test_header_refuses_what_it_cannot_say(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        header(**fields).pack()


def test_dtype_table_is_append_only() -> None:
    """Codes are on disk: a line may be added, none may change."""
    assert [(name, *entry) for name, entry in DTYPES.items()] == [
        ("uint8", 1, 1),
        ("int8", 2, 1),
        ("uint16", 3, 2),
        ("int16", 4, 2),
        ("uint32", 5, 4),
        ("int32", 6, 4),
        ("uint64", 7, 8),
        ("int64", 8, 8),
        ("float32", 9, 4),
        ("float64", 10, 8),
        ("float128", 11, 16),
        ("complex64", 12, 8),
        ("complex128", 13, 16),
        ("complex256", 14, 32),
        ("rgb24", 15, 3),
        ("rgba32", 16, 4),
        ("bool", 17, 1),
        ("float16", 18, 2),
    ]
    assert (STORE, PREDICTIVE) == (0, 1)


def padded(at: int, text: bytes) -> bytes:
    return (bytes(at) + text).ljust(1024, b"\0")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (padded(208, b"MAP "), "cryo-EM"),
        (padded(128, b"DICM"), "DICOM"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (padded(344, b"n+1\0"), "NIfTI"),
        (padded(344, b"ni1\0"), "NIfTI"),
        (padded(4, b"n+2\0\r\n\x1a\n"), "NIfTI"),
        (b"\x89MRC\n\x1a\n" + bytes(50), "transfer as text"),
        (b"\x09MRC\r\n\x1a\n" + bytes(50), "transfer as text"),
        (b"", "no bytes"),
        (MAGIC[:5], "first 5 bytes"),
        (b"GIF89a", "GIF89a"),
    ],
)
def test_other_files_are_named(start: bytes, name: str) -> None:
    for refuse in (check_magic, ContainerReader, lambda data: ContainerReader(io.BytesIO(data))):
        with pytest.raises(FormatError, match=name) as error:
            refuse(start)
        assert "\n" not in str(error.value)


def test_our_magic_is_nobody_elses() -> None:
    start = write([bytes(1000)])
    assert start[:8] == b"\x89MRC\r\n\x1a\n"
    assert start[208:212] != b"MAP "
    check_magic(start)


def typical_nifti(**changes: tuple[int, bytes]) -> bytes:
    data = bytearray(sections.ORIG_PREFIX)
    for at, field in changes.values():
        data[at : at + len(field)] = field
    return bytes(data)


def test_a_nifti_header_costs_little() -> None:
    """An oblique scan with every float different, a full description and an auxiliary file."""
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=3).astype("<f4").tobytes()
    rotation = rng.normal(size=(3, 3)).astype("<f4")
    matrix = b"".join(rotation[i].tobytes() + offsets[4 * i : 4 * i + 4] for i in range(3))
    nifti = typical_nifti(
        dim=(42, struct.pack("<3h", 217, 311, 87)),
        pixdim=(80, rng.random(4).astype("<f4").tobytes()),
        slope=(112, rng.random(2).astype("<f4").tobytes()),
        descrip=(148, b"Philips Medical Systems Achieva 3T, TE=97.3"),
        quaternion=(256, rng.normal(size=3).astype("<f4").tobytes() + offsets),
        matrix=(280, matrix),
    )
    bare = len(write([b"x"]))
    assert len(write([b"x"], before={ORIG: sections.pack_orig(nifti, b"")})) - bare <= 220


@examples(st.binary(max_size=500), st.binary(max_size=100))
def test_orig_round_trip(before: bytes, after: bytes) -> None:
    assert sections.unpack_orig(sections.pack_orig(before, after), 600) == (before, after)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
)


@examples(st.dictionaries(st.text(max_size=9), json_values, max_size=5))
def test_meta_round_trip(meta: dict[str, Any]) -> None:
    assert sections.unpack_meta(sections.pack_meta(meta), 1 << 20) == meta


def test_meta_says_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        sections.pack_meta({"slope": float("nan")})


@examples(
    st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_store_round_trip(itemsize: int, n: int, seed: int, smooth: bool) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 256, n * itemsize, np.uint8)
    data = (np.cumsum(voxels & 3) if smooth else voxels).astype(np.uint8).tobytes()
    assert sections.unpack_store(sections.pack_store(data, itemsize), len(data), itemsize) == data


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("itemsize", [1, 2, 3, 4, 8, 16])
def test_every_filter_is_undone(kind: int, itemsize: int) -> None:
    data = np.random.default_rng(kind).integers(0, 256, 50 * itemsize, np.uint8)
    if itemsize % sections._DIFFERENCE.get(kind, 1):
        with pytest.raises(FormatError, match="filter"):
            sections.unpack_store(bytes((kind,)), data.size, itemsize)
        return
    payload = bytes((kind,)) + sections.compress(
        sections._filtered(data.reshape(-1, itemsize), kind)
    )
    assert sections.unpack_store(payload, data.size, itemsize) == data.tobytes()


def test_store_picks_a_filter_that_helps() -> None:
    rng = np.random.default_rng(0)
    ramp = np.cumsum(rng.integers(-3, 4, 300_000)).astype("<i4")
    payload = sections.pack_store(ramp.tobytes(), 4)
    assert payload[0] in (2, 3, 4)
    assert len(payload) < 0.3 * ramp.nbytes
    assert sections.unpack_store(payload, ramp.nbytes, 4) == ramp.tobytes()


def test_sections_say_where_they_are() -> None:
    data = write([b"first", b"second"], before={META: b"meta"})
    for section in ContainerReader(data).sections():
        assert isinstance(section, Section)
        assert data[section.offset : section.offset + 4].decode() == section.type
        assert struct.unpack_from("<I", data, section.offset + 4)[0] == section.size - FRAMING


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(max_voxels=192 * 256 * 256 - 1), "max_voxels"),
        (Limits(max_dims=2), "max_dims"),
        (Limits(max_slabs=2), "max_slabs"),
        (Limits(max_chunk_bytes=999), "max_chunk_bytes"),
        (Limits(max_chunks=3), "max_chunks"),
    ],
)
def test_limits(limits: Limits, name: str) -> None:
    data = write([bytes(1000)] * 3, before={b"abCd": b"", META: b""})
    ContainerReader(data)
    with pytest.raises(LimitExceeded, match=name):
        ContainerReader(data, limits).verify()


def test_the_example_of_format_md() -> None:
    page = Path(container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ){1,16})", page, re.MULTILINE)
    data = bytes.fromhex("".join(line for _, line in lines))
    assert [int(offset, 16) for offset, _ in lines] == list(range(0, len(data), 16))
    voxels = np.arange(6, dtype="<i2").tobytes()
    reader = ContainerReader(data)
    reader.verify()
    assert reader.digest == hashlib.sha256(voxels).digest()
    assert sections.unpack_store(reader.slab(0), 12, 2) == voxels
    file = io.BytesIO()
    head = StreamHeader(
        mode=Mode.LOSSLESS, coder=STORE, dtype="int16", shape=(1, 2, 3), spacing_mm=(5.0, 1.0, 1.0)
    )
    writer = ContainerWriter(file, head)
    writer.slab(reader.slab(0))
    writer.finish(reader.digest)
    assert file.getvalue() == data


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from mricodec.bitstream import container, range_coder, sections; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
