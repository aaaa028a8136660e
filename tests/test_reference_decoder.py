"""The decoder that was written from the pages decodes what mricodec writes."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import zstandard
from numpy.typing import NDArray
from paths import ROOT, TESTS, VECTORS
from reference_decoder import learned, series
from reference_decoder.container import Fields, read_stream
from reference_decoder.entropy import RangeDecoder, Run, Tables
from reference_decoder.sections import read_sample_map
from reference_decoder.stream import decode

from mricodec import codec
from mricodec.models.lossy import codec as lossy_codec

PACKAGE = Path(reference_decoder.__file__).parent
MAY_IMPORT = {"numpy", "safetensors", "zstandard", *sys.stdlib_module_names}
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
# The others have as much in them, and take 15 s each.
SMALL_VECTORS = sorted(EXPECTED.keys() - {"lossless-thick", "bounded-isotropic"})


def test_it_imports_nothing_of_mricodec() -> None:
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(str(node.module))
            assert {name.partition(".")[0] for name in names} <= MAY_IMPORT, path


@pytest.mark.parametrize("name", SMALL_VECTORS)
def test_vectors(name: str) -> None:
    voxels = decode((VECTORS / f"{name}.mrc").read_bytes())
    little = voxels.astype(voxels.dtype.newbyteorder("<"))
    assert hashlib.sha256(little.tobytes()).hexdigest() == EXPECTED[name]


def scan(shape: tuple[int, ...], dtype: str = "int16", seed: int = 0) -> NDArray[Any]:
    """Smooth, with noise."""
    axes = np.meshgrid(*[np.linspace(0, 5, n) for n in shape], indexing="ij")
    smooth = 500 + sum(200 * np.sin(axis + n) for n, axis in enumerate(axes)) / len(shape)
    return (smooth + np.random.default_rng(seed).normal(0, 8, shape)).astype(dtype)


def check(array: NDArray[Any], **options: Any) -> bytes:
    """The stream, having checked that both decoders give the same voxels."""
    stream = codec.encode(array, **options)
    assert stream is not None
    again, voxels = codec.decode(stream).array, decode(stream)
    assert voxels.astype(voxels.dtype.newbyteorder("=")).tobytes() == again.tobytes()
    assert voxels.dtype.itemsize == again.dtype.itemsize and voxels.shape == again.shape
    return stream


def sample_map(stream: bytes) -> int:
    """The kind of the sample map of a stream of coder 1."""
    header = read_stream(stream).header
    return read_sample_map(Fields(header.params), header.voxel_type, header.coder).kind


@pytest.mark.parametrize("shape", [(7,), (3, 9), (2, 9, 11), (1, 1, 300), (2, 2, 5, 6)])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32"])
def test_lossless_shapes(shape: tuple[int, ...], dtype: str) -> None:
    check((scan(shape) / 4).astype(dtype), lossless=True)


def test_stored_types() -> None:
    for dtype in (np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.bool_):
        array = np.frombuffer(scan((3, 8, 8), "float32").tobytes()[:720], np.uint8)
        if dtype is np.bool_:
            array = array & 1
        check(array.view(dtype).reshape(3, -1), lossless=True)


def test_sample_maps() -> None:
    rng = np.random.default_rng(0)
    integers = scan((2, 18, 20))
    levels = rng.normal(0, 1, 20).astype(np.float32)
    levels[0] = np.nan
    streams = {
        0: check(integers, lossless=True),
        1: check(scan((2, 18, 20), "float64").astype(np.int32) << 20, max_error=1 << 18),
        3: check((integers * np.float32(0.1)).astype(np.float32), lossless=True),
        4: check(levels[np.sort(rng.integers(0, 20, (2, 18, 20)))], lossless=True),
        5: check(scan((2, 18, 20), "float64"), lossless=True),
    }
    assert {kind: sample_map(stream) for kind, stream in streams.items()} == {
        kind: kind for kind in streams
    }


def test_efforts_skewed_tables_and_labels() -> None:
    array = scan((4, 20, 22))
    for effort in ("fast", "high"):
        check(array, lossless=True, effort=effort)
    rayleigh = np.hypot(*np.random.default_rng(0).normal(0, 20, (2, 3, 50, 50)))
    check(np.rint(rayleigh).astype(np.int16), lossless=True)
    check((array // 100 * 50).astype(np.uint8), lossless=True)


def test_bounds_and_layers() -> None:
    array = scan((3, 20, 22))
    array[:, :, :6] = 0
    check(array, max_error=3)
    check(array, lossless=True, layers=True, max_error=3)
    check(np.stack([scan((2, 12, 13), seed=n) for n in range(4)]), lossless=True)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 13, 21), (19, 8, 17)])
def test_the_default_model(
    shape: tuple[int, int, int], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossy_codec, "choose_depths", lambda y: [depth] * len(y))
    array = scan(shape, "float32" if depth == 2 else "int16")
    array[:, :, 12:] = 0
    check(array, quality=50.0 if depth < 8 else 75.0)


def test_it_runs_alone(tmp_path: Path) -> None:
    array, out = scan((2, 9, 11)), tmp_path / "out.npy"
    stream = tmp_path / "scan.mrc"
    stream.write_bytes(check(array, lossless=True))
    command = [sys.executable, "-m", "reference_decoder", str(stream), "-o", str(out)]
    subprocess.run(command, cwd=TESTS, check=True)
    assert np.array_equal(np.load(out), array)


def test_wrong_bytes_are_refused() -> None:
    stream = check(scan((2, 9, 11)), lossless=True)
    for position in range(0, len(stream), 7):
        damaged = bytearray(stream)
        damaged[position] ^= 1
        with pytest.raises(ValueError, match="expected"):
            decode(bytes(damaged))


def page(name: str) -> str:
    return (ROOT / "bitstream" / name).read_text(encoding="utf-8")


def test_the_tables_of_the_page() -> None:
    printed = dict(re.findall(r"^(\w+):\n\n```\n([-\d \n]+)```$", page("format/learned.md"), re.M))
    tables = {
        **{f"D{'₀₁₂₃₄₅₆₇₈'[d]}": table for d, table in learned.INVERSE.items()},
        **{f"O{'₀₁₂₃₄₅₆₇₈'[d]}": table for d, table in learned.OVERLAP.items()},
        "P": learned.FILTER,
    }
    assert printed.keys() == tables.keys()
    for name, table in tables.items():
        assert np.array_equal(learned.matrix(printed[name]), table), name


def printed_bytes(name: str, number: int) -> bytes:
    """The bytes of a page's code block of hexadecimal lines, by its number from 0 on."""
    blocks = re.findall(r"^```\n((?:(?:[0-9a-f]{2} ?)+\n)+)```$", page(name), re.M)
    return bytes.fromhex(blocks[number])


def printed_rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading row of a page."""
    lines = page(name).partition(f"\n{heading}\n")[2].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


class Trace(RangeDecoder):
    """Notes every symbol."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.rows: list[list[str]] = []

    def symbol(self, cumulative: Sequence[int]) -> int:
        quantile = (self.point - self.lower) % 2**64 // (self.range >> 24)
        symbol = super().symbol(cumulative)
        columns = f"{len(cumulative) - 1} {quantile} {symbol} {self.lower:016x} {self.range:016x}"
        self.rows.append(columns.split())
        return symbol


def test_the_example_of_the_entropy_coder() -> None:
    run = Run(b"")
    run.coder = trace = Trace(bytes.fromhex("b8a46f59008038de"))
    tables = Tables([[1 << 22, 1 << 23, 1 << 20, 3 << 20]], -1)
    assert run.call(tables, [0] * 7) == [0, -1, 1, 0, 5, 0, -300]
    run.end()
    heading = "| symbol | quantile | meaning | lower after | range after |"
    rows = printed_rows("format/entropy.md", heading)
    for (kind, quantile, meaning, *state), coded in zip(rows, trace.rows, strict=True):
        size = {"token": 4, **{f"Uniform({bits})": 1 << bits for bits in (3, 7, 9)}}[kind]
        symbol = meaning.partition(":")[0]
        assert [str(size), quantile, symbol, *(number.strip("`") for number in state)] == coded


def test_the_examples_of_a_series() -> None:
    digests = [hashlib.sha256(bytes(n)).digest() for n in range(3)]
    table = printed_bytes("format/series.md", 0) + b"".join(digests)
    tiles, (first, second, third) = series.read_table(zstandard.compress(table))
    assert tiles == [0]
    assert first == series.FileEntry(b"a/1.dcm", 1, 200, 130, 6, 0, (0,), digests[0])
    assert second == series.FileEntry(b"a/2.dcm", 1, 200, 130, 6, 0, (1,), digests[1])
    assert third == series.FileEntry(b"n.txt", 0, 9, 0, 0, 0, (), digests[2])
    records = zstandard.compress(printed_bytes("format/series.md", 1))
    assert series.read_records(records) == [b"IM-1ab", b"IM-2c", b"IM-7"]


class Calls(Run):
    """Notes every call."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.calls: list[tuple[list[int], list[int]]] = []

    def call(self, tables: Tables, indices: Sequence[int]) -> list[int]:
        self.calls.append((list(indices), super().call(tables, indices)))
        return self.calls[-1][1]


def test_the_example_of_a_learned_slab() -> None:
    payload = printed_bytes("format/learned.md", 0)
    network = learned.Network(bytes.fromhex("c8bc7683114c1138"))
    run = Calls(payload)
    bands = learned.SlabDecoder(network, run, (1, 8, 8), 2).bands()
    run.end()
    rows = printed_rows("format/learned.md", "| call | coefficients | indices | values |")
    for (_, _, *columns), call in zip(rows, run.calls, strict=True):
        for column, numbers in zip(columns, call, strict=True):
            known = [int(n) for n in re.findall(r"\d+", column.partition(":")[0])]
            assert known == numbers[: len(known)] and not any(numbers[len(known) :])
    numbers = page("format/learned.md").partition("\n| c | 0 |")[2]
    columns = [re.findall(r"[−\d]+", line) for line in numbers.splitlines()]
    positions = [0, *map(int, columns[0])]
    expected = np.zeros(64, int)
    expected[positions] = [int(n.replace("−", "-")) for n in columns[3]]
    assert np.array_equal(bands[0, 0, 0, 0], expected)
    samples = learned.synthesis(learned.slices_of(bands, 1)[0])
    voxels = 58 + ((samples * 2076732 + 2**19) >> 20)
    assert page("format/learned.md").count(
        "\n".join(" ".join(f"{n:3d}" for n in r) for r in voxels)
    )
