"""Records calls of the C core for replay.c, and seeds for the fuzz targets, beside this file.

    python tests/native/record.py

To be run again when the ABI, the format or the weights change. Without a change it writes the same
bytes again.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from recorder import Recorder

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.symbols import ProbabilityTables, normalised
from mricodec.codec.native import float_cells, functions, label_map, library
from mricodec.codec.native.model import NativeModel, Workspace
from mricodec.models import zoo
from mricodec.models.lossy.params import integer_step

FOLDER = Path(__file__).resolve().parent
DATA = FOLDER.parent / "data"
RECORDING = FOLDER / "recording.bin"
SEEDS = FOLDER / "seeds"
# Slabs of scans: the file, the shape, and the step in samples as a share of the largest sample.
SLABS = [
    ("thick_flair", (3, 33, 41), 0.05),
    ("isotropic_t1w", (17, 20, 21), 0.02),
    ("prostate_t2w", (6, 40, 32), 0.01),
    ("dwi_4d", (1, 9, 70), 0.1),
    ("isotropic_t1w", (9, 16, 20), 0.002),
    ("thick_flair", (2, 8, 8), 0.3),
    ("prostate_t2w", (1, 1, 1), 0.03),
]
# Columns and rows of the table sets of the entropy coder, and the largest index.
COLUMNS, ROWS, INDICES = 34, 20, 60
# Of the scans the first voxel of a slab, so that there is tissue in it.
CORNER = (1, 20, 20)

# Calls whose status is recorded, whatever it is.
MAY_FAIL = contextlib.suppress(FormatError, functions.Cancelled)

Samples = NDArray[np.int32]


@dataclass(frozen=True)
class SlabParams:
    """Parameters of a slab, as the model takes them."""

    step: float
    peak: int


def slab_of(name: str, shape: tuple[int, int, int]) -> Samples:
    """Samples [k, j, i] from the middle of a scan, its edge repeated where the scan is smaller."""
    scan = np.asarray(nibabel.load(DATA / f"{name}.nii.gz").dataobj)  # type: ignore[attr-defined]
    volume = (scan[..., 0] if scan.ndim == 4 else scan).T.astype(np.int64)
    indices = [
        np.minimum(np.arange(size) + corner, length - 1)
        for size, corner, length in zip(shape, CORNER, volume.shape, strict=True)
    ]
    samples = volume[np.ix_(*indices)]
    return (samples - samples.min()).astype(np.int32)


def record_slabs(seeds: Path) -> None:
    """Slabs coded by the default model; some runs damaged, some work cancelled."""
    model = NativeModel("default", zoo.read("default").data)
    cancelled = Workspace()
    cancelled.cancel()
    for n, (name, shape, share) in enumerate(SLABS):
        samples = slab_of(name, shape)
        peak = max(int(samples.max()), 1)
        params, workspace = SlabParams(share * peak, peak), Workspace(threads=1 + n % 3)
        run, decoded = model.encode_slab(samples, params, workspace)
        assert np.array_equal(decoded, model.decode_slab(run, shape, params, workspace))
        for damaged in damages(run) if n in (1, 3) else []:
            with MAY_FAIL:
                model.decode_slab(damaged, shape, params, Workspace())
        if n == 3:
            record_search(model, samples, params)
            with MAY_FAIL:
                model.decode_slab(run, shape, params, cancelled)
            with MAY_FAIL:
                model.encode_slab(samples, params, cancelled)
        head = struct.pack("<BBBH", *(size - 1 for size in shape), peak)
        head += integer_step(params).to_bytes(5, "little")
        (seeds / f"slab{n}").write_bytes(head + run)


def record_search(model: NativeModel, samples: Samples, params: SlabParams) -> None:
    """A slab whose depth and targets a search has chosen."""
    for depth in (1, 2):
        _, _, bands = model.encode_bands(samples, params, Workspace(), depth)
        targets = bands + np.random.default_rng(depth).integers(-8, 9, bands.shape)
        model.encode_bands(samples, params, Workspace(), depth, targets.astype(np.float32))


def damages(run: bytes) -> list[bytes]:
    """A run cut short, too long, and with bytes that were changed."""
    rng = np.random.default_rng(len(run))
    changed = []
    for _ in range(2):
        content = np.frombuffer(run, np.uint8).copy()
        content[rng.integers(0, content.size, 2)] ^= rng.integers(1, 256, 2).astype(np.uint8)
        changed.append(content.tobytes())
    return [b"", run[:-1], run[:-4], run + b"\1\2\3\4", *changed]


def record_transforms() -> None:
    """Both lapped transforms: every depth, odd sizes, extreme values."""
    rng = np.random.default_rng(0)
    for shape in [(1, 8, 8), (2, 17, 30)]:
        functions.analysis(rng.integers(0, 4000, shape).astype(np.int32), 3.0)
    functions.analysis(rng.integers(-(1 << 20), 1 << 20, (1, 9, 16)).astype(np.int32), 0.37)
    for depth in (1, 2, 4, 8):
        shape = (5, 17, 30)
        bands = rng.integers(-(1 << 23), 1 << 23, (-(-5 // depth) * depth, 3, 4, 64))
        bands >>= rng.integers(0, 24, bands.shape)
        functions.synthesis(bands.astype(np.int32), shape, depth, 123_457)
    bands = rng.integers(-(1 << 31), 1 << 31, (2, 2, 1, 64))
    functions.synthesis(bands.astype(np.int32), (1, 16, 3), 2, 1 << 36)


def record_convolutions() -> None:
    """Both sizes of kernels, activations and weights at their limits, widths around the lanes."""
    rng = np.random.default_rng(1)
    for size, inputs, outputs, shape in [
        (3, 8, 50, (3, 7)), (1, 48, 50, (5, 21)), (3, 48, 17, (1, 1)), (3, 4, 3, (2, 33)),
    ]:  # fmt: skip
        for extreme in (False, True):
            x = rng.integers(-127, 256, (*shape, inputs)).astype(np.int16)
            weight = rng.integers(-127, 128, (outputs, inputs, size, size)).astype(np.int8)
            if extreme:
                x = np.where(x < 64, np.int16(-127), np.int16(255))
                weight = np.where(weight < 0, np.int8(-127), np.int8(127))
            bias = rng.integers(-(1 << 20), 1 << 20, outputs).astype(np.int32)
            shift = rng.integers(0, 15, outputs).astype(np.uint8)
            functions.convolution(x, weight, bias, shift)


def record_entropy(seeds: Path) -> None:
    """Calls by both kinds of tables: small values, escapes, raw bits; some runs damaged."""
    for octave in (0, 8):
        rng = np.random.default_rng(2 + octave)
        shares = rng.integers(1, 1 << 20, (ROWS, COLUMNS)) >> rng.integers(0, 20, (ROWS, COLUMNS))
        tables = ProbabilityTables(normalised(shares), 0 if octave else -16, octave)
        for n, largest in enumerate((1, 40, 1 << 30)):
            count = 151
            index = rng.integers(0, INDICES if octave else ROWS, count).astype(np.uint8)
            values = rng.integers(0 if octave else -largest, largest, count)
            values = (values >> rng.integers(0, 31, count)).astype(np.int32)
            if octave:
                values[index == 0] = 0
            sizes = [count // 2, count - count // 2]
            run = functions.entropy_encode(tables, index, values, sizes)
            for damaged in damages(run):
                with MAY_FAIL:
                    functions.entropy_decode(tables, index, damaged, sizes)
            assert np.array_equal(functions.entropy_decode(tables, index, run, sizes), values)
            head = struct.pack("<BH", octave, count)
            (seeds / f"entropy{octave}_{n}").write_bytes(head + index.tobytes() + run)


# Label maps: shape, the largest sample, and how it falls to labels.
LABEL_MAPS = [
    ((3, 9, 17), 1, 0.4),
    ((2, 13, 11), 5, 1.0),
    ((1, 5, 33), 65535, 0.02),
    ((1, 1, 1), 7, 1.0),
]


def labels_of(shape: tuple[int, int, int], peak: int, share: float) -> Samples:
    """A map with plain regions around regions of other values."""
    rng = np.random.default_rng(peak)
    k, j, i = np.indices(shape)
    regions = (i + 2 * j + k) // 6 % (peak + 1) * (i > 4)
    noisy = rng.integers(0, peak + 1, shape)
    return np.where(rng.random(shape) < share * (i > 10) / 4, noisy, regions).astype(np.int32)


def record_label_maps(seeds: Path) -> None:
    """Maps of few and of many values; some runs damaged, some work cancelled."""
    flag = np.ones(1, np.int32)
    for n, (shape, peak, share) in enumerate(LABEL_MAPS):
        samples = labels_of(shape, peak, share)
        run = label_map.encode(samples, peak)
        assert np.array_equal(label_map.decode(run, shape, peak), samples)
        for damaged in damages(run) if n == 1 else []:
            with MAY_FAIL:
                label_map.decode(damaged, shape, peak)
        if n == 0:
            with MAY_FAIL:
                label_map.encode(samples, peak, flag)
            with MAY_FAIL:
                label_map.decode(run, shape, peak, flag)
        head = struct.pack("<BBBH", *(size - 1 for size in shape), peak)
        (seeds / f"label_map{n}").write_bytes(head + run)


def record_floats() -> None:
    """Noise with a background, exact numbers, every exponent, odd values; some parts damaged."""
    rng = np.random.default_rng(4)
    noise = np.where(rng.random(200) < 0.3, 0, rng.normal(0, 1, 200))
    exact = rng.integers(-90, 90, 40) / 8
    bits = np.frombuffer(rng.bytes(400), np.float32)
    odd = np.array([np.nan, np.inf, -0.0, 5e-324, 1e-40, 0.1, 3e38])
    for values in (noise, exact, np.where(np.isfinite(bits), bits, 1), odd):
        for dtype in (np.float32, np.float64):
            array = values.astype(dtype)
            cells = float_cells.choose(array)
            if cells is None:
                continue
            parts = float_cells.split(array, cells)
            assert float_cells.join(parts, cells, array.dtype).tobytes() == array.tobytes()
            with MAY_FAIL:
                float_cells.join(replace(parts, bits=parts.bits[:-1]), cells, array.dtype)


def weights_seeds(seeds: Path) -> None:
    """Changes of tensors, of each kind, as fuzz_weights.c reads them."""
    rng = np.random.default_rng(3)
    for kind in range(8):
        changes = [
            struct.pack("<BBIh", tensor, kind, element, value)
            for tensor, element, value in zip(
                rng.integers(0, 130, 3), rng.integers(0, 1 << 16, 3), rng.integers(1, 99, 3),
                strict=True,
            )
        ]  # fmt: skip
        (seeds / f"weights{kind}").write_bytes(b"".join(changes))


def record() -> bytes:
    """Make all calls; the recording."""
    recorder = Recorder()
    load, library.load = library.load, lambda: recorder  # type: ignore[assignment,return-value]
    for name in ("slab", "entropy", "weights", "label_map"):
        (SEEDS / name).mkdir(parents=True, exist_ok=True)
    try:
        record_slabs(SEEDS / "slab")
        record_transforms()
        record_convolutions()
        record_entropy(SEEDS / "entropy")
        weights_seeds(SEEDS / "weights")
        record_floats()
        record_label_maps(SEEDS / "label_map")
    finally:
        library.load = load
    return recorder.recording()


if __name__ == "__main__":
    RECORDING.write_bytes(record())
    print(f"{RECORDING}: {RECORDING.stat().st_size / 1e6:.2f} MB")
