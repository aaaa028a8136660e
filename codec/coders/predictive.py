"""Coder 1: integers predicted from their neighbours, without loss or within a bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, UnsupportedVersion
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.sections import pack_store
from mricodec.codec.volume import to_file_order
from mricodec.codec.voxels.mappings import AffineMap, BitOrderMap, SampleMap

from .base import BATCH_VOXELS, Outputs, References, Shape
from .low_bits import pack_low, unpack_low
from .store import StoreCoder
from .workers import Task, Workers, processes

# Methods of a slab, its first byte.
PREDICTED, STORED = 0, 1
# Voxels by which the store coder is tried, in runs from all over the slab ...
STORE_SAMPLE = 1 << 14
STORE_RUNS = 16
# ... at a fast level, which takes about this much more than the best one ...
STORE_HASTE = 0.8
STORE_LEVEL = 1
# ... give or take these bytes of a sample.
STORE_MARGIN = 64
# A slab that is coded alone is cut in two from twice as many voxels on.
PART_VOXELS = 1 << 20
# The same at effort fast, which has no filters that each part would have to train anew.
FAST_PART_VOXELS = 1 << 18
# Slices of a part, at least.
PART_SLICES = 8
# Voxels from which on helper processes are worth their start.
MIN_SHARED = 1 << 19


@dataclass(frozen=True)
class PartSettings:
    """What both directions need for a part of a slab.

    max_error: in samples. within: largest difference from the first reference; 0: unknown.
    """

    max_error: int
    within: int
    effort: str = "default"

    def encode(
        self, samples: NDArray[np.int32], references: References
    ) -> tuple[bytes, NDArray[np.int32]]:
        """Samples [K, H, W] -> the stream, and the samples that it decodes to."""
        from mricodec.bitstream.range_coder import EntropyEncoder
        from mricodec.models.lossless import slab_coder

        efforts = {
            "fast": slab_coder.FAST,
            "default": slab_coder.DEFAULT,
            "high": slab_coder.HIGH,
        }
        stream = EntropyEncoder()
        decoded = slab_coder.encode_slab(
            samples,
            stream,
            max_error=self.max_error,
            references=references,
            within=self.within,
            effort=efforts[self.effort],
        )
        return stream.finish(), decoded

    def decode(self, stream: bytes, shape: Shape, references: References) -> NDArray[np.int32]:
        """The samples of a stream. FormatError if it is damaged."""
        from mricodec.bitstream.range_coder import EntropyDecoder
        from mricodec.models.lossless import slab_coder

        reader = EntropyDecoder(stream)
        samples = slab_coder.decode_slab(
            shape, reader, max_error=self.max_error, references=references, within=self.within
        )
        reader.finish()
        return samples


def predictive_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """The work of a helper: encode samples, or decode a stream if the settings have its shape.

    References follow. The stream comes with the decoded samples only if these are others.
    """
    part = PartSettings(settings["max_error"], settings["within"], settings["effort"])
    first, *references = arrays
    if "decoded_shape" in settings:
        k, h, w = settings["decoded_shape"]
        return [part.decode(first.tobytes(), (k, h, w), references)]
    stream, decoded = part.encode(first, references)
    return [np.frombuffer(stream, np.uint8), *([decoded] if part.max_error else [])]


class _Tasks:
    """Parts of slabs to be coded, each by itself, and the slab that each belongs to."""

    def __init__(self, settings: PartSettings) -> None:
        self._settings = asdict(settings)
        self._tasks: list[Task] = []
        self._slabs: list[int] = []

    def add(
        self,
        slab: int,
        arrays: list[NDArray[Any]],
        decoded_shape: Shape | None = None,
    ) -> None:
        shape = {} if decoded_shape is None else {"decoded_shape": decoded_shape}
        self._tasks.append(({**self._settings, **shape}, arrays))
        self._slabs.append(slab)

    def run(self, workers: Workers, voxels: int) -> dict[int, list[list[NDArray[Any]]]]:
        """The results of every slab, part by part; what is not returned did not change."""
        if len(self._tasks) > 1 and voxels >= MIN_SHARED and processes() > 1:
            results = workers.run(self._tasks)
        else:
            results = [predictive_part(*task) for task in self._tasks]
        by_slab: dict[int, list[list[NDArray[Any]]]] = {}
        for slab, (_, arrays), result in zip(self._slabs, self._tasks, results, strict=True):
            by_slab.setdefault(slab, []).append([*result, *arrays[:1]][:2])
        return by_slab


class PredictiveCoder:
    """Numbers as integer samples, predicted from their neighbours.

    Slabs, or parts of one, are coded in several processes.
    """

    batch_voxels = BATCH_VOXELS
    exact = True

    def __init__(
        self,
        sample_map: SampleMap,
        dtype: np.dtype[Any],
        max_error: int = 0,
        *,
        base: tuple[SampleMap, int] | None = None,
        effort: str = "default",
    ) -> None:
        """FormatError if the shipped tables can't be loaded.

        dtype: native. max_error: in samples. base: map and largest error of the bounded layer that
        is refined. effort: of an encoder.
        """
        refines = base is not None and max_error == 0
        within = _within(sample_map, *base) if refines and base is not None else 0
        _check_tables(within)
        self._map = sample_map
        self._dtype = dtype
        self._store = StoreCoder(dtype)
        self._settings = PartSettings(max_error, within, effort)
        self._workers = Workers.shared(predictive_part)

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values -> samples, of any slab."""
        return self._map.samples(values)

    def encode(
        self, slabs: Sequence[NDArray[Any]], references: References = ()
    ) -> list[tuple[bytes, NDArray[Any]]]:
        tasks = _Tasks(self._settings)
        for n, slab in enumerate(slabs):
            samples = self.samples(slab)
            # Several slabs are work enough for several processes, and parts cost time and size.
            halved = (
                len(slabs) == 1
                and slab.size >= _min_halved(self._settings.effort)
                and len(slab) >= 2 * PART_SLICES
            )
            for part in parts(len(slab), 2 if halved else 1):
                tasks.add(n, [samples[part], *(reference[part] for reference in references)])
        results = tasks.run(self._workers, sum(slab.size for slab in slabs))
        return [self._payload(slab, results[n]) for n, slab in enumerate(slabs)]

    def _payload(
        self, slab: NDArray[Any], coded: list[list[NDArray[Any]]]
    ) -> tuple[bytes, NDArray[Any]]:
        """The payload, predicted or stored, and the values that it decodes to.

        coded: stream and decoded samples of every part.
        """
        streams = [stream.tobytes() for stream, _ in coded]
        sizes = (len(streams), *(len(stream) for stream in streams[:-1]))
        payload = bytes((PREDICTED,)) + self._pack_low(slab) + b"".join(map(pack_varint, sizes))
        payload += b"".join(streams)
        if self._may_be_longer(payload, slab):
            stored = bytes((STORED,)) + self._store.encode([slab])[0][0]
            if len(stored) < len(payload):
                return stored, slab
        if self._settings.max_error == 0 and self._map.exact:
            return payload, slab
        return payload, self._map.values(np.concatenate([decoded for _, decoded in coded]))

    def _pack_low(self, slab: NDArray[Any]) -> bytes:
        if not isinstance(self._map, BitOrderMap) or self._map.low_bits == 0:
            return b""
        return pack_low(self._map.low(slab).reshape(-1), self._map.low_bits)

    def _may_be_longer(self, payload: bytes, slab: NDArray[Any]) -> bool:
        """Whether the store coder may be shorter, by runs of the voxels from all over the slab."""
        flat = slab.reshape(-1)
        run = STORE_SAMPLE // STORE_RUNS
        if flat.size > STORE_SAMPLE:
            starts = [
                (2 * n + 1) * (flat.size - run) // (2 * STORE_RUNS) for n in range(STORE_RUNS)
            ]
            flat = np.concatenate([flat[start : start + run] for start in starts])
        content = bytes(to_file_order(flat, self._store.stored))
        stored = len(pack_store(content, slab.dtype.itemsize, STORE_LEVEL))
        return STORE_HASTE * stored * slab.size < (len(payload) + STORE_MARGIN) * flat.size

    def decode(
        self,
        payloads: Sequence[bytes],
        shapes: Sequence[Shape],
        references: References = (),
        outputs: Outputs = (),
    ) -> list[NDArray[Any]]:
        tasks = _Tasks(self._settings)
        decoded: dict[int, NDArray[Any]] = {}
        low_bits: dict[int, NDArray[np.uint64] | None] = {}
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
            low_bits[n] = self._unpack_low(fields, shape)
            for part, stream in _split_parts(fields, shape[0]):
                arrays: list[NDArray[Any]] = [np.frombuffer(stream, np.uint8)]
                arrays += [reference[part] for reference in references]
                tasks.add(n, arrays, (part.stop - part.start, *shape[1:]))
        results = tasks.run(self._workers, sum(map(math.prod, shapes)))
        for n, coded in results.items():
            samples = np.concatenate([result[0] for result in coded])
            decoded[n] = self._map.values(samples, low_bits[n])
        return [decoded[n] for n in range(len(payloads))]

    def _unpack_low(self, fields: ByteReader, shape: Shape) -> NDArray[np.uint64] | None:
        if self._map.low_bits == 0:
            return None
        return unpack_low(fields, math.prod(shape), self._map.low_bits).reshape(shape)


def _split_parts(fields: ByteReader, slices: int) -> Iterator[tuple[slice, bytes]]:
    """(slices, stream) of each part of a payload. FormatError if there are too many."""
    count = fields.varint()
    if not 1 <= count <= slices:
        raise FormatError(
            f"expected a slab of 1 to {slices} parts, found {count}: the file is damaged"
        )
    spans = parts(slices, count)
    sizes = [fields.varint() for _ in spans[1:]]
    streams = [*(fields.take(size) for size in sizes), fields.take(fields.left)]
    return zip(spans, streams, strict=True)


def parts(slices: int, count: int) -> list[slice]:
    """A slab cut into parts of about even depth."""
    return [slice(n * slices // count, (n + 1) * slices // count) for n in range(count)]


def _min_halved(effort: str) -> int:
    """Voxels from which on a slab that is coded alone is cut in two."""
    return 2 * (FAST_PART_VOXELS if effort == "fast" else PART_VOXELS)


def helpers(voxels: int, slabs: int, effort: str = "default") -> Workers:
    """Helpers for a scan; started already if there will be work for them while this is kept."""
    workers = Workers.shared(predictive_part)
    if voxels >= MIN_SHARED and (slabs > 1 or voxels >= _min_halved(effort)):
        workers.start(max(slabs, 2))
    return workers


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


def _within(sample_map: SampleMap, base: SampleMap, max_error: int) -> int:
    """Largest difference of samples from those of a bounded layer; 0 where that is not used."""
    from mricodec.models.lossless.tables import MAX_WITHIN

    comparable = sample_map.exact and base == sample_map and isinstance(sample_map, AffineMap)
    return max_error if comparable and max_error <= MAX_WITHIN else 0
