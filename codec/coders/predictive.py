"""Coder 1: integers predicted from their neighbours, without loss or within a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, UnsupportedVersion
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.sections import pack_store, unpack_store
from mricodec.codec.volume import to_file_order
from mricodec.codec.voxels.mappings import AffineMap, BitOrderMap, SampleMap

from .base import BATCH_VOXELS, References, Shape
from .store import StoreCoder
from .workers import Task, Workers, processes

PREDICTED, STORED = 0, 1  # first byte of a slab of coder 1
STORE_SAMPLE = 1 << 14  # voxels by which zstd is tried, in a hurry ...
STORE_RUNS = 16
STORE_HASTE = 0.8  # ... which makes more of them than this
STORE_LEVEL = 1
STORE_GAIN = 0.98  # from which zstd is worth its time for the lower bits of numbers
LOW_PART = 1 << 20  # of these numbers, packed at once; a multiple of 8
STORE_MARGIN = 64  # bytes by which a short sample may be off


PART_VOXELS = (
    1 << 20
)  # from twice as many on a slab that is coded alone is cut in two parts, of PART_SLICES at least ...
FAST_PART_VOXELS = (
    1 << 18
)  # ... if it is to be fast: then there are no filters that a part would have to teach anew
PART_SLICES = 8
MIN_SHARED = 1 << 19  # voxels from which on starting a process is worth it


class PredictiveCoder:
    """Coder 1: numbers as integer codes, predicted from their neighbours; without loss or within a bound.

    Slabs, or parts of one, are coded side by side, in several processes.
    """

    batch_voxels = BATCH_VOXELS
    exact = True

    def __init__(
        self,
        codes: SampleMap,
        dtype: np.dtype[Any],
        max_error: int = 0,
        *,
        base: tuple[SampleMap, int] | None = None,
        effort: str = "default",
    ) -> None:
        """dtype: native; max_error: in codes; base: map and largest error of the bounded layer that is refined;
        effort: a name of `EFFORTS`, for encoding."""
        self._within = _within(codes, *base) if base is not None and max_error == 0 else 0
        _check_tables(self._within)
        self._map = codes
        self._dtype = dtype
        self._store = StoreCoder(dtype)
        self._max_error = max_error
        self.samples = codes.samples  # of values, also of other slabs
        self._settings = {"max_error": max_error, "within": self._within}
        self._effort = effort
        self._workers = Workers.shared(predictive_part)

    def encode(
        self, slabs: Sequence[NDArray[Any]], beside: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        tasks: list[Task] = []
        owners = []
        for n, slab in enumerate(slabs):
            codes = self.samples(slab)
            # several slabs are work enough for several processes, and parts cost time and size
            halved = (
                len(slabs) == 1
                and slab.size >= _min_halved(self._effort)
                and len(slab) >= 2 * PART_SLICES
            )
            for part in parts(len(slab), 2 if halved else 1):
                tasks.append(
                    (
                        {**self._settings, "effort": self._effort},
                        [codes[part], *(one[part] for one in beside)],
                    )
                )
                owners.append(n)
        found = self._run(tasks, sum(slab.size for slab in slabs))
        coded = []
        for n, slab in enumerate(slabs):
            own = [k for k in range(len(tasks)) if owners[k] == n]
            decoded = [(found[k][1:] or tasks[k][1])[0] for k in own]
            coded.append(self._finished(slab, [found[k][0].tobytes() for k in own], decoded))
        return coded

    def _run(self, tasks: Sequence[Task], voxels: int) -> list[list[NDArray[Any]]]:
        if len(tasks) > 1 and voxels >= MIN_SHARED and processes() > 1:
            return self._workers.run(tasks)
        return [predictive_part(*task) for task in tasks]

    def _finished(
        self, slab: NDArray[Any], streams: list[bytes], decoded: Sequence[NDArray[Any]]
    ) -> tuple[bytes, NDArray[Any]]:
        """The payload, and what it decodes to."""
        sizes = b"".join(
            map(pack_varint, (len(streams), *(len(stream) for stream in streams[:-1])))
        )
        payload = bytes((PREDICTED,)) + self._pack_low(slab) + sizes + b"".join(streams)
        if self._may_be_longer(payload, slab):
            stored = bytes((STORED,)) + self._store.encode([slab])[0][0]
            if len(stored) < len(payload):
                return stored, slab
        return payload, slab if self._max_error == 0 and self._map.exact else self._map.values(
            np.concatenate(decoded)
        )

    def _pack_low(self, slab: NDArray[Any]) -> bytes:
        if not isinstance(self._map, BitOrderMap) or self._map.low_bits == 0:
            return b""
        return pack_low(self._map.low(slab).reshape(-1), self._map.low_bits)

    def _may_be_longer(self, payload: bytes, slab: NDArray[Any]) -> bool:
        """Whether zstd promises to be shorter, by runs of the voxels from all over the slab."""
        flat = slab.reshape(-1)
        run = STORE_SAMPLE // STORE_RUNS
        if flat.size > STORE_SAMPLE:
            places = (
                (2 * n + 1) * (flat.size - run) // (2 * STORE_RUNS) for n in range(STORE_RUNS)
            )
            flat = np.concatenate([flat[at : at + run] for at in places])
        stored = len(
            pack_store(
                bytes(to_file_order(flat, self._store.stored)), slab.dtype.itemsize, STORE_LEVEL
            )
        )
        return STORE_HASTE * stored * slab.size < (len(payload) + STORE_MARGIN) * flat.size

    def decode(
        self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: References = ()
    ) -> list[NDArray[Any]]:
        tasks: list[Task] = []
        owners = []
        decoded: list[NDArray[Any] | None] = [None] * len(payloads)
        lows: list[NDArray[np.uint64] | None] = [None] * len(payloads)
        for n, (payload, shape) in enumerate(zip(payloads, shapes, strict=True)):
            fields = ByteReader(payload, "SLAB")
            method = fields.take(1)[0]
            if method == STORED:
                decoded[n] = self._store.decode([fields.take(fields.left)], [shape])[0]
                continue
            if method != PREDICTED:
                raise UnsupportedVersion(
                    f"expected a slab predicted (0) or stored (1), found {method}: update mricodec"
                )
            lows[n] = self._unpack_low(fields, shape)
            count = fields.varint()
            if not 1 <= count <= shape[0]:
                raise FormatError(
                    f"expected a slab of 1 to {shape[0]} parts, found {count}: the file is damaged"
                )
            spans = parts(shape[0], count)
            sizes = [fields.varint() for _ in spans[1:]]
            streams = [*(fields.take(size) for size in sizes), fields.take(fields.left)]
            for span, stream in zip(spans, streams, strict=True):
                settings = {**self._settings, "shape": [span.stop - span.start, *shape[1:]]}
                tasks.append(
                    (settings, [np.frombuffer(stream, np.uint8), *(one[span] for one in beside)])
                )
                owners.append(n)
        found = self._run(tasks, sum(math.prod(shape) for shape in shapes))
        for n in sorted(set(owners)):
            codes = np.concatenate([found[k][0] for k in range(len(tasks)) if owners[k] == n])
            decoded[n] = self._map.values(codes, lows[n])
        return [slab for slab in decoded if slab is not None]

    def _unpack_low(self, fields: ByteReader, shape: Shape) -> NDArray[np.uint64] | None:
        if self._map.low_bits == 0:
            return None
        return unpack_low(fields, math.prod(shape), self._map.low_bits).reshape(shape)


def _min_halved(effort: str) -> int:
    """Voxels of a slab from which on it is cut in two, if it is coded alone."""
    return 2 * (FAST_PART_VOXELS if effort == "fast" else PART_VOXELS)


def helpers(voxels: int, slabs: int, effort: str = "default") -> Workers:
    """For the predictive coder of a scan; started already, if there will be work for them as long as this is kept."""
    workers = Workers.shared(predictive_part)
    if voxels >= MIN_SHARED and (slabs > 1 or voxels >= _min_halved(effort)):
        workers.start(max(slabs, 2))
    return workers


def parts(slices: int, count: int) -> list[slice]:
    """How a slab is cut into parts that are coded each on its own, of about even depth."""
    return [slice(n * slices // count, (n + 1) * slices // count) for n in range(count)]


def predictive_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Codes [K, H, W] and references -> the stream and, if they are others, the codes that it decodes to; with
    "shape" in the settings a stream and references -> codes."""
    from mricodec.models.lossless import slab_coder

    within, references = settings["within"], arrays[1:]
    options = {"max_error": settings["max_error"], "references": references, "within": within}
    if "shape" in settings:
        reader = EntropyDecoder(arrays[0].tobytes())
        codes = slab_coder.decode_slab(tuple(settings["shape"]), reader, **options)
        reader.finish()
        return [codes]
    stream = EntropyEncoder()
    effort = {"fast": slab_coder.FAST, "default": slab_coder.DEFAULT, "high": slab_coder.HIGH}[
        settings["effort"]
    ]
    codes = slab_coder.encode_slab(arrays[0], stream, effort=effort, **options)
    return [np.frombuffer(stream.finish(), np.uint8), *([codes] if settings["max_error"] else [])]


def _check_tables(within: int) -> None:
    """FormatError if the shipped tables can't be loaded."""
    from mricodec.models.lossless import tables
    from mricodec.models.lossless.fronts import shipped

    try:
        shipped()
        if within:
            tables.within_tables(within)
    except OSError as error:
        raise FormatError(
            f"cannot read {error.filename} ({error.strerror}): install mricodec again"
        ) from error
    except ValueError as error:
        raise FormatError(str(error)) from error


def _within(codes: SampleMap, base: SampleMap, max_error: int) -> int:
    """How far the codes are from those of a bounded layer at most; 0 where that is not used."""
    from mricodec.models.lossless.tables import MAX_WITHIN

    return (
        max_error
        if codes.exact
        and base == codes
        and isinstance(codes, AffineMap)
        and max_error <= MAX_WITHIN
        else 0
    )


def pack_low(low: NDArray[np.uint64], bits: int) -> bytes:
    """Integers [n] of so many bits: 0 and the bits as they are, or 1 and a slab of the store coder where that is shorter."""
    size = -(-bits // 8)
    planes = low.astype("<u8").reshape(-1, 1).view(np.uint8)[:, :size]
    if len(pack_store(planes[:STORE_SAMPLE].tobytes(), size)) * 8 < STORE_GAIN * bits * min(
        low.size, STORE_SAMPLE
    ):
        packed = pack_store(planes.tobytes(), size)
        return b"\1" + pack_varint(len(packed)) + packed
    parts = []
    for first in range(0, low.size, LOW_PART):
        there = np.unpackbits(
            planes[first : first + LOW_PART], axis=1, count=bits, bitorder="little"
        )
        parts.append(np.packbits(there, bitorder="little").tobytes())
    return b"\0" + b"".join(parts)


def unpack_low(fields: ByteReader, count: int, bits: int) -> NDArray[np.uint64]:
    """The inverse: [count]."""
    size = -(-bits // 8)
    planes = np.zeros((count, 8), np.uint8)
    if fields.take(1) == b"\1":
        content = unpack_store(fields.take(fields.varint()), count * size, size)
        planes[:, :size] = np.frombuffer(content, np.uint8).reshape(count, size)
    else:
        content = fields.take(-(-count * bits // 8))
        for first in range(0, count, LOW_PART):
            part = planes[first : first + LOW_PART]
            start = first * bits // 8  # whole, as parts are
            there = np.frombuffer(content, np.uint8, -(-len(part) * bits // 8), start)
            there = np.unpackbits(there, count=len(part) * bits, bitorder="little").reshape(
                -1, bits
            )
            part[:, :size] = np.packbits(there, axis=1, bitorder="little")
    found: NDArray[np.uint64] = planes.view("<u8").reshape(-1).astype(np.uint64) & np.uint64(
        (1 << bits) - 1
    )
    return found
