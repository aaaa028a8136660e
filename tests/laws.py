"""One law per contract, checked of every implementation of it.

A test makes an implementation and its inputs and calls the law; what is particular to an
implementation, such as its rate or its messages, has a test of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader
from mricodec.bitstream.symbols import TOTAL
from mricodec.codec import tiling as tilings
from mricodec.codec.coders.base import References, Shape, SlabCoder
from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import Envelope, Scan
from mricodec.codec.voxels.mappings import BitOrderMap, SampleMap, unpack_map
from mricodec.models.weights_file import ID_BYTES, NAME_DIGITS, Entry, network_name

# Payloads cut short, and payloads with a flipped bit, that are decoded.
DAMAGES = 12
# Slabs, or volumes where these are read whole, that a scan may hold in memory while it is read.
SCAN_SLABS = 4
# Bytes that a scan may hold besides its voxels: files are read in pieces of 1 MiB.
SCAN_OVERHEAD = 2 << 20

Array = NDArray[np.generic]


# Coders of slabs.


def check_slab_coder(
    coder: SlabCoder,
    slabs: Sequence[Array],
    *,
    max_error: float | None = 0,
    references: References = (),
) -> list[bytes]:
    """The contract of a `SlabCoder`; the payloads of the slabs.

    slabs: in native byte order, of any shapes. max_error: 0: bit by bit; None: no bound. With
    references there is one slab.
    """
    coded = coder.encode(slabs, references)
    payloads = [payload for payload, _ in coded]
    shapes = [_shape(slab) for slab in slabs]
    assert len(coded) == len(slabs)
    for slab, (_, values) in zip(slabs, coded, strict=True):
        assert values.dtype == slab.dtype and values.dtype.isnative and values.shape == slab.shape
        if max_error == 0:
            assert values.tobytes() == slab.tobytes()
        elif max_error is not None:
            difference = np.abs(values.astype(np.longdouble) - slab.astype(np.longdouble))
            assert difference.max() <= max_error

    _check_decoded(coder, payloads, shapes, [values for _, values in coded], references)
    for slab, payload in zip(slabs, payloads, strict=True):
        ((alone, _),) = coder.encode([slab], references)
        assert alone == payload, "a payload depends on the slabs that are coded together"
    smallest = min(range(len(slabs)), key=lambda n: len(payloads[n]))
    _check_damaged(coder, payloads[smallest], shapes[smallest], slabs[smallest].dtype, references)
    return payloads


def _shape(slab: Array) -> Shape:
    n, h, w = slab.shape
    return n, h, w


def _check_decoded(
    coder: SlabCoder,
    payloads: Sequence[bytes],
    shapes: Sequence[Shape],
    expected: Sequence[Array],
    references: References,
) -> None:
    """The decoder gives the values that the encoder announced: together, reversed and alone.

    Where it may put them, as in `decode_volume`, these are parts of one array.
    """
    order = list(range(len(payloads)))
    for chosen in (order, order[::-1], *([n] for n in order)):
        whole = np.zeros(sum(math.prod(shapes[n]) for n in chosen), expected[0].dtype)
        ends = np.cumsum([math.prod(shapes[n]) for n in chosen])
        outputs = [
            whole[end - math.prod(shapes[n]) : end].reshape(shapes[n])
            for n, end in zip(chosen, ends, strict=True)
        ]
        decoded = coder.decode(
            [payloads[n] for n in chosen],
            [shapes[n] for n in chosen],
            references,
            outputs if chosen == order else (),
        )
        for n, values in zip(chosen, decoded, strict=True):
            assert values.dtype == expected[n].dtype and values.shape == shapes[n]
            assert values.tobytes() == expected[n].tobytes()


def _check_damaged(
    coder: SlabCoder, payload: bytes, shape: Shape, dtype: np.dtype, references: References
) -> None:
    """Damage is a FormatError or other voxels, which checksums reveal; nothing else."""
    random = np.random.default_rng(0)
    lengths = [0, *random.integers(0, len(payload), DAMAGES).tolist()]
    damaged = [payload[:length] for length in lengths]
    for bit in random.integers(0, 8 * len(payload), DAMAGES).tolist():
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        try:
            (values,) = coder.decode([data], [shape], references)
        except FormatError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert values.dtype == dtype and values.shape == shape
    with pytest.raises(FormatError):
        coder.decode([payload + bytes(8)], [shape], references)


# Sample maps.


def check_sample_map(
    sample_map: SampleMap, values: Array, *, max_error: float | None = None
) -> None:
    """The contract of a `SampleMap` on values of its scan, in native byte order.

    max_error: the bound of a map that is not exact, in stored units.
    """
    _check_map_values(sample_map, values, max_error)
    packed = sample_map.pack()
    fields = ByteReader(packed, "HEAD")
    again = unpack_map(fields, values.dtype)
    fields.end()
    assert type(again) is type(sample_map) and again.pack() == packed
    assert (again.peak, again.exact, again.low_bits) == (
        sample_map.peak,
        sample_map.exact,
        sample_map.low_bits,
    )
    _check_map_values(again, values, max_error)
    assert (again.samples(values) == sample_map.samples(values)).all()

    for length in range(len(packed)):
        with pytest.raises(FormatError):
            fields = ByteReader(packed[:length], "HEAD")
            unpack_map(fields, values.dtype)
            fields.end()
    for unfit in ("c8", "c16", "V3", "S2"):
        with pytest.raises(FormatError):
            unpack_map(ByteReader(packed, "HEAD"), np.dtype(unfit))


def _check_map_values(sample_map: SampleMap, values: Array, max_error: float | None) -> None:
    samples = sample_map.samples(values)
    assert samples.dtype == np.int32 and samples.shape == values.shape
    assert samples.min() >= 0 and samples.max() <= sample_map.peak < 1 << 24
    low = sample_map.low(values) if isinstance(sample_map, BitOrderMap) else None
    assert sample_map.low_bits == 0 or low is not None
    restored = sample_map.values(samples, low)
    assert restored.dtype == values.dtype and restored.shape == values.shape
    if sample_map.exact:
        assert restored.tobytes() == values.tobytes()
    if max_error is not None:
        difference = np.abs(restored.astype(np.longdouble) - values.astype(np.longdouble))
        assert difference.max() <= max_error

    ends = np.array([0, sample_map.peak], np.int32)
    beyond = np.array([-1000, min(sample_map.peak + 1000, 2**31 - 1)], np.int32)
    assert sample_map.values(beyond).tobytes() == sample_map.values(ends).tobytes()


# Scans.


def check_scan(scan: Scan, expected: Array, *, envelope: Envelope | None = None) -> None:
    """The contract of a `Scan`: shape, voxels in every tiling, envelope, memory.

    expected: the stored values [..., k, j, i]. envelope: what surrounds the voxels, its trailer
    included; header, lead and trailer byte for byte. The scan stays open.
    """
    assert scan.shape == expected.shape
    assert scan.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
    assert isinstance(scan.declared_labels, bool) and scan.name
    for tiling in _tilings(scan):
        _check_blocks(scan, tiling, expected)
    _check_blocks(scan, tilings.choose(scan.shape, scan.envelope.spacing_mm), expected)
    _check_envelope(scan.envelope)
    if envelope is not None:
        _check_same_envelope(scan.envelope, envelope)
    _check_memory(scan)


def _tilings(scan: Scan) -> Iterator[Tiling]:
    """Slabs of one slice, of three and of all, along every axis."""
    lengths = Tiling(scan.shape, 0, 1).volume_shape
    for axis, length in enumerate(lengths):
        for slices in sorted({1, min(3, length), length}):
            yield Tiling(scan.shape, axis, slices)


def _check_blocks(scan: Scan, tiling: Tiling, expected: Array) -> None:
    volumes = expected.reshape(tiling.volumes, *tiling.volume_shape)
    cut = itertools.chain.from_iterable(tiling.cut(volume) for volume in volumes)
    order, blocks, count = FileOrder(tiling), [], 0
    for slab, same in itertools.zip_longest(scan.blocks(tiling), cut):
        assert slab is not None and same is not None, "too few or too many slabs"
        assert slab.dtype.isnative and slab.dtype == scan.dtype.newbyteorder("=")
        assert slab.shape == tiling.slab_shape(count) and slab.tobytes() == _native(same).tobytes()
        blocks += [np.array(block) for block in order.add(slab)]
        count += 1
    assert count == tiling.slabs
    whole = np.concatenate(blocks).reshape(expected.shape)
    assert whole.tobytes() == _native(expected).tobytes()


def _native(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_envelope(envelope: Envelope) -> None:
    assert all(math.isfinite(size) and size > 0 for size in envelope.spacing_mm)
    assert envelope.affine is None or np.isfinite(envelope.affine).all()
    assert envelope.size == len(envelope.header) + len(envelope.lead) + len(envelope.trailer)


def _check_same_envelope(envelope: Envelope, expected: Envelope) -> None:
    for name in ("header", "lead", "trailer", "slope", "inter"):
        assert getattr(envelope, name) == getattr(expected, name), name
    assert envelope.spacing_mm == pytest.approx(expected.spacing_mm)
    assert (envelope.affine is None) == (expected.affine is None)
    if envelope.affine is not None and expected.affine is not None:
        np.testing.assert_allclose(envelope.affine, expected.affine, atol=1e-5)


def _check_memory(scan: Scan) -> None:
    """No more than a few slabs along k exist at a time."""
    tiling = Tiling(scan.shape, 0, 1)
    slab_bytes = math.prod(tiling.slab_shape(0)) * scan.dtype.itemsize
    tracemalloc.start()
    try:
        for _ in scan.blocks(tiling):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= SCAN_SLABS * slab_bytes + SCAN_OVERHEAD


# Weights.


def check_weights(weights: Entry | Path, sha256: str | None = None) -> None:
    """The contract of a shipped weights file: bytes, parameters, tables; an entry loads by its id.

    sha256: of a file that is not an entry of a registry.
    """
    import torch
    from safetensors.torch import load

    from mricodec.models import loader

    path = weights.path if isinstance(weights, Entry) else weights
    expected = weights.sha256 if isinstance(weights, Entry) else sha256
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert digest == expected
    assert network_name(data) is None, "a shipped file has no metadata"
    tables = 0
    for name, tensor in load(data).items():
        if tensor.is_floating_point():
            assert torch.isfinite(tensor).all(), name
        if name.startswith("tables.") and tensor.ndim == 2 and name != "tables.place":
            tables += 1
            rows = tensor.long()
            assert (rows >= 1).all() and (rows.sum(1) == TOTAL).all(), name
    assert tables
    if isinstance(weights, Entry):
        assert path.stem == f"{weights.name}-{digest[:NAME_DIGITS]}"
        model = loader.load_model(weights.model_id)
        assert (model.name, model.model_id) == (weights.name, bytes.fromhex(digest)[:ID_BYTES])
