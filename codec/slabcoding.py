"""Slabs of stored values <-> payloads: one class per coder of the format."""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.entropycoder import EntropyDecoder, EntropyEncoder, Tables
from mricodec.bitstream.errors import FormatError, UnsupportedVersion
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.sections import pack_store, unpack_store

from . import background
from .codemaps import CodeMap, Exact, Ordered
from .intensity import Intensity
from .tiling import Tiling
from .volume import to_file_order
from .workers import Task, Workers, processes

if TYPE_CHECKING:
    from mricodec.models.wavefront import TableSet as LatticeTables

PREDICTED, STORED = 0, 1  # first byte of a slab of coder 1
STORE_SAMPLE = 1 << 14  # voxels by which zstd is tried, in a hurry ...
STORE_RUNS = 16
STORE_HASTE = 0.8  # ... which makes more of them than this
STORE_LEVEL = 1
STORE_GAIN = 0.98  # from which zstd is worth its time for the lower bits of numbers
LOW_PART = 1 << 20  # of these numbers, packed at once; a multiple of 8
STORE_MARGIN = 64  # bytes by which a short sample may be off
Effort = Literal["fast", "default", "high"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "high")
BATCH_VOXELS = 13_000_000  # coded side by side
PART_VOXELS = 1 << 20  # from twice as many on a slab that is coded alone is cut in two parts, of PART_SLICES at least ...
FAST_PART_VOXELS = 1 << 18  # ... if it is to be fast: then there are no filters that a part would have to teach anew
PART_SLICES = 8
LEAST_SHARED = 1 << 19  # voxels from which on starting a process is worth it
LEAST_SHARED_LOSSY = 1 << 21  # the same, of one that loads a model
LEAST_AWAITED_LOSSY = 1 << 23  # the same, where none is ready: coding takes longer than its start

Shape = tuple[int, int, int]
Beside = Sequence[NDArray[np.int32]]  # codes that the decoder has already, of the shape of the one slab that is coded
T = TypeVar("T")


class TableSet(Protocol):
    """What a model ships: see `entropycoder.Tables`."""

    @property
    def weights(self) -> NDArray[np.uint32]: ...
    @property
    def low(self) -> int: ...
    @property
    def octave(self) -> int: ...


class SymbolCoder(Protocol):
    """What a model codes its symbols with; slabs side by side, each its own stream."""

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[np.int64]:
        """index [S, n] of tables, values [S, n] to encode or None to decode -> the values."""

    def of(self, slabs: Sequence[int]) -> SymbolCoder:
        """The coder of some of the slabs."""


@dataclass(frozen=True)
class LossyParams:
    """What a lossy model is told of a volume, in both directions; `effort` in encoding alone."""

    step: float  # quantiser step in codes, a float32
    peak: int  # the largest code
    spacing_mm: tuple[float, float, float]  # of the axes of a slab: across the slices first
    effort: str = "default"  # "high": the encoder may search longer, for the same decoder; a model may ignore it


class LossyModel(Protocol):
    """A learned model of models/zoo.py. Stateless: threads may share it."""

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> bytes:
        """First 8 bytes of the SHA-256 of its weights."""

    @property
    def tables(self) -> Mapping[str, TableSet]: ...
    @property
    def exact_samples(self) -> bool:
        """Whether every machine decodes to the same samples."""

    @property
    def by_id(self) -> bool:
        """Whether `zoo.load_model` gives the same of its id, on a CPU: other processes can work for it."""

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: LossyParams
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give."""

    def decode(
        self, shape: tuple[int, int, int, int], params: LossyParams, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W]."""


class Chain:
    """The slabs of volumes that are coded beside the same slab of earlier volumes of a 4-D scan."""

    def __init__(self, tiling: Tiling, length: int) -> None:
        """length: volumes in a chain; 0: none is coded so."""
        self._slabs = tiling.slabs_per_volume
        self._length = length
        self._last: dict[int, NDArray[np.int32]] = {}
        self._sum: dict[int, NDArray[np.int32]] = {}

    def beside(self, slab: int) -> list[NDArray[np.int32]]:
        """What slab number `slab` is coded beside: the codes of the same slab of the volume before, and the mean
        over all of the chain before, rounded down, if these are several."""
        volume, part = divmod(slab, self._slabs)
        place = volume % self._length if self._length else 0
        if place == 0:
            return []
        return [self._last[part], *([self._sum[part] // place] if place > 1 else [])]

    def add(self, slab: int, codes: NDArray[np.int32]) -> None:
        """The codes of a slab, in order."""
        volume, part = divmod(slab, self._slabs)
        self._last[part] = codes
        self._sum[part] = self._sum[part] + codes if volume % self._length else codes


def checksum(slab: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """CRC-32 of the voxels of a slab in its order and the byte order of the type."""
    return zlib.crc32(to_file_order(slab, dtype))


class SlabCoder(Protocol):
    """Stored values of slabs, [n, h, w] each <-> payloads; `beside` belongs to the only one."""

    batch_voxels: int  # how many it wants at once, at most
    exact: bool  # whether every machine decodes to the same values

    def encode(self, slabs: Sequence[NDArray[Any]], beside: Beside = ()) -> list[tuple[bytes, NDArray[Any]]]:
        """The payload of each slab, and the values that it decodes to."""

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: Beside = ()) -> list[NDArray[Any]]:
        """Values in native byte order; FormatError if a payload is damaged."""


def windows(slabs: Iterable[T], voxels: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Consecutive slabs of at most `most` voxels together, but at least one."""
    window: list[T] = []
    held = 0
    for slab in slabs:
        if window and held + voxels(slab) > most:
            yield window
            window, held = [], 0
        window.append(slab)
        held += voxels(slab)
    if window:
        yield window


class Store:
    """Coder 0: zstd, for every type."""

    batch_voxels = 1
    exact = True

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self.stored = dtype.newbyteorder("<")

    def encode(self, slabs: Sequence[NDArray[Any]], beside: Beside = ()) -> list[tuple[bytes, NDArray[Any]]]:
        itemsize = self._dtype.itemsize
        return [(pack_store(bytes(to_file_order(slab, self.stored)), itemsize), slab) for slab in slabs]

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: Beside = ()) -> list[NDArray[Any]]:
        return [self._decode(payload, shape) for payload, shape in zip(payloads, shapes, strict=True)]

    def _decode(self, payload: bytes, shape: Shape) -> NDArray[Any]:
        data = unpack_store(payload, math.prod(shape) * self._dtype.itemsize, self._dtype.itemsize)
        return np.frombuffer(data, self.stored).astype(self._dtype, copy=False).reshape(shape)


class Lattice:
    """Coder 1: numbers as integer codes, predicted from their neighbours; without loss or within a bound.

    Slabs, or parts of one, are coded side by side, in several processes.
    """

    batch_voxels = BATCH_VOXELS
    exact = True

    def __init__(
        self,
        codes: CodeMap,
        dtype: np.dtype[Any],
        max_error: int = 0,
        *,
        base: tuple[CodeMap, int] | None = None,
        effort: str = "default",
    ) -> None:
        """dtype: native; max_error: in codes; base: map and largest error of the bounded layer that is refined;
        effort: a name of `EFFORTS`, for encoding."""
        self._within = _within(codes, *base) if base is not None and max_error == 0 else 0
        _lattice_tables(self._within)  # FormatError now if they are not there
        self._map = codes
        self._dtype = dtype
        self._store = Store(dtype)
        self._max_error = max_error
        self.codes = codes.codes  # of values, also of other slabs
        self._settings = {"max_error": max_error, "within": self._within}
        self._effort = effort
        self._workers = Workers.shared(lattice_part)

    def encode(self, slabs: Sequence[NDArray[Any]], beside: Beside = ()) -> list[tuple[bytes, NDArray[Any]]]:
        tasks: list[Task] = []
        owners = []
        for n, slab in enumerate(slabs):
            codes = self.codes(slab)
            # several slabs are work enough for several processes, and parts cost time and size
            halved = len(slabs) == 1 and slab.size >= _least_halved(self._effort) and len(slab) >= 2 * PART_SLICES
            for part in parts(len(slab), 2 if halved else 1):
                tasks.append(({**self._settings, "effort": self._effort}, [codes[part], *(one[part] for one in beside)]))
                owners.append(n)
        found = self._run(tasks, sum(slab.size for slab in slabs))
        coded = []
        for n, slab in enumerate(slabs):
            own = [k for k in range(len(tasks)) if owners[k] == n]
            decoded = [(found[k][1:] or tasks[k][1])[0] for k in own]
            coded.append(self._finished(slab, [found[k][0].tobytes() for k in own], decoded))
        return coded

    def _run(self, tasks: Sequence[Task], voxels: int) -> list[list[NDArray[Any]]]:
        if len(tasks) > 1 and voxels >= LEAST_SHARED and processes() > 1:
            return self._workers.run(tasks)
        return [lattice_part(*task) for task in tasks]

    def _finished(
        self, slab: NDArray[Any], streams: list[bytes], decoded: Sequence[NDArray[Any]]
    ) -> tuple[bytes, NDArray[Any]]:
        """The payload, and what it decodes to."""
        sizes = b"".join(map(pack_varint, (len(streams), *(len(stream) for stream in streams[:-1]))))
        payload = bytes((PREDICTED,)) + self._pack_low(slab) + sizes + b"".join(streams)
        if self._may_be_longer(payload, slab):
            stored = bytes((STORED,)) + self._store.encode([slab])[0][0]
            if len(stored) < len(payload):
                return stored, slab
        return payload, slab if self._max_error == 0 and self._map.exact else self._map.values(np.concatenate(decoded))

    def _pack_low(self, slab: NDArray[Any]) -> bytes:
        if not isinstance(self._map, Ordered) or self._map.low_bits == 0:
            return b""
        return pack_low(self._map.low(slab).reshape(-1), self._map.low_bits)

    def _may_be_longer(self, payload: bytes, slab: NDArray[Any]) -> bool:
        """Whether zstd promises to be shorter, by runs of the voxels from all over the slab."""
        flat = slab.reshape(-1)
        run = STORE_SAMPLE // STORE_RUNS
        if flat.size > STORE_SAMPLE:
            places = ((2 * n + 1) * (flat.size - run) // (2 * STORE_RUNS) for n in range(STORE_RUNS))
            flat = np.concatenate([flat[at : at + run] for at in places])
        stored = len(pack_store(bytes(to_file_order(flat, self._store.stored)), slab.dtype.itemsize, STORE_LEVEL))
        return STORE_HASTE * stored * slab.size < (len(payload) + STORE_MARGIN) * flat.size

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: Beside = ()) -> list[NDArray[Any]]:
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
                raise UnsupportedVersion(f"expected a slab predicted (0) or stored (1), found {method}: update mricodec")
            lows[n] = self._unpack_low(fields, shape)
            count = fields.varint()
            if not 1 <= count <= shape[0]:
                raise FormatError(f"expected a slab of 1 to {shape[0]} parts, found {count}: the file is damaged")
            spans = parts(shape[0], count)
            sizes = [fields.varint() for _ in spans[1:]]
            streams = [*(fields.take(size) for size in sizes), fields.take(fields.left)]
            for span, stream in zip(spans, streams, strict=True):
                settings = {**self._settings, "shape": [span.stop - span.start, *shape[1:]]}
                tasks.append((settings, [np.frombuffer(stream, np.uint8), *(one[span] for one in beside)]))
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


def _least_halved(effort: str) -> int:
    """Voxels of a slab from which on it is cut in two, if it is coded alone."""
    return 2 * (FAST_PART_VOXELS if effort == "fast" else PART_VOXELS)


def helpers(voxels: int, slabs: int, effort: str = "default") -> Workers:
    """For the lattice coder of a scan; started already, if there will be work for them as long as this is kept."""
    workers = Workers.shared(lattice_part)
    if voxels >= LEAST_SHARED and (slabs > 1 or voxels >= _least_halved(effort)):
        workers.start(max(slabs, 2))
    return workers


def parts(slices: int, count: int) -> list[slice]:
    """How a slab is cut into parts that are coded each on its own, of about even depth."""
    return [slice(n * slices // count, (n + 1) * slices // count) for n in range(count)]


def lattice_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Codes [K, H, W] and references -> the stream and, if they are others, the codes that it decodes to; with
    "shape" in the settings a stream and references -> codes."""
    from mricodec.models import lossless

    within, references = settings["within"], arrays[1:]
    options = {"max_error": settings["max_error"], "references": references, "within": within}
    if "shape" in settings:
        reader = EntropyDecoder(arrays[0].tobytes())
        coder = _SideBySide(_lattice_tables(within), [reader])
        codes = lossless.decode_slab(tuple(settings["shape"]), coder, **options)
        reader.finish()
        return [codes]
    stream = EntropyEncoder()
    coder = _SideBySide(_lattice_tables(within), [stream])
    effort = {"fast": lossless.FAST, "default": lossless.DEFAULT, "high": lossless.HIGH}[settings["effort"]]
    codes = lossless.encode_slab(arrays[0], coder, effort=effort, **options)
    return [np.frombuffer(stream.finish(), np.uint8), *([codes] if settings["max_error"] else [])]


@functools.lru_cache(4)
def _lattice_tables(within: int) -> dict[str, Tables]:
    """FormatError if they can't be loaded."""
    from mricodec.models import lossless

    try:
        sets = dict(lossless.TABLES)
        return _tables(sets | {"within": lossless.within_tables(within)} if within else sets)
    except OSError as error:
        raise FormatError(f"cannot read {error.filename} ({error.strerror}): install mricodec again") from error
    except ValueError as error:
        raise FormatError(str(error)) from error


def _within(codes: CodeMap, base: CodeMap, max_error: int) -> int:
    """How far the codes are from those of a bounded layer at most; 0 where that is not used."""
    from mricodec.models.lossless import WITHIN_MOST

    return max_error if codes.exact and base == codes and isinstance(codes, Exact) and max_error <= WITHIN_MOST else 0


def pack_low(low: NDArray[np.uint64], bits: int) -> bytes:
    """Integers [n] of so many bits: 0 and the bits as they are, or 1 and a slab of the store coder where that is shorter."""
    size = -(-bits // 8)
    planes = low.astype("<u8").reshape(-1, 1).view(np.uint8)[:, :size]
    if len(pack_store(planes[:STORE_SAMPLE].tobytes(), size)) * 8 < STORE_GAIN * bits * min(low.size, STORE_SAMPLE):
        packed = pack_store(planes.tobytes(), size)
        return b"\1" + pack_varint(len(packed)) + packed
    parts = []
    for first in range(0, low.size, LOW_PART):
        there = np.unpackbits(planes[first : first + LOW_PART], axis=1, count=bits, bitorder="little")
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
            there = np.unpackbits(there, count=len(part) * bits, bitorder="little").reshape(-1, bits)
            part[:, :size] = np.packbits(there, axis=1, bitorder="little")
    found: NDArray[np.uint64] = planes.view("<u8").reshape(-1).astype(np.uint64) & np.uint64((1 << bits) - 1)
    return found


class Lossy:
    """Coders 2 and 3: a learned model on integer codes."""

    batch_voxels = BATCH_VOXELS

    def __init__(
        self, model: LossyModel, intensity: Intensity, params: LossyParams, has_background: bool
    ) -> None:
        self.exact = model.exact_samples
        self._model = model
        self._tables = _tables(model.tables)
        self._settings = {
            "model": model.model_id.hex(), **asdict(params),
            "intensity": intensity.pack().hex(), "dtype": intensity.dtype.str, "background": has_background,
        }  # fmt: skip
        self._workers = helpers_of(model)

    def encode(self, slabs: Sequence[NDArray[Any]], beside: Beside = ()) -> list[tuple[bytes, NDArray[Any]]]:
        groups, helpers = self._split([slab.shape for slab in slabs])
        found: dict[int, tuple[bytes, NDArray[Any]]] = {}
        tasks = [(self._settings, [np.stack([slabs[n] for n in group])]) for group in groups]
        for group, (decoded, *payloads) in zip(groups, self._run(tasks, helpers), strict=True):
            found.update(zip(group, zip((payload.tobytes() for payload in payloads), decoded, strict=True), strict=True))
        return [found[n] for n in range(len(slabs))]

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape], beside: Beside = ()) -> list[NDArray[Any]]:
        groups, helpers = self._split(shapes)
        tasks: list[Task] = [
            ({**self._settings, "shape": shapes[group[0]]}, [np.frombuffer(payloads[n], np.uint8) for n in group])
            for group in groups
        ]
        found: dict[int, NDArray[Any]] = {}
        for group, (decoded,) in zip(groups, self._run(tasks, helpers), strict=True):
            found.update(zip(group, decoded, strict=True))
        return [found[n] for n in range(len(payloads))]

    def _split(self, shapes: Sequence[Shape]) -> tuple[list[list[int]], Workers | None]:
        """Numbers of slabs of one shape that are coded side by side in one process, and helpers if it is worth it."""
        groups: dict[Shape, list[int]] = {}
        for n, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(n)
        voxels = sum(map(math.prod, shapes))
        if self._workers is None or voxels < LEAST_SHARED_LOSSY:
            return list(groups.values()), None
        count = min(len(shapes), processes())
        if voxels < LEAST_AWAITED_LOSSY:
            count = 1 + self._workers.ready(count - 1)
        # not halves: slabs beside one another take about as long, and those at the ends of a scan the least
        return [group[n::count] for group in groups.values() for n in range(min(count, len(group)))], self._workers

    def _run(self, tasks: Sequence[Task], helpers: Workers | None) -> list[list[NDArray[Any]]]:
        here = functools.partial(_lossy_part, self._model, self._tables)
        if helpers is not None and len(tasks) > 1:
            return helpers.run(tasks, here, _one_thread)
        return [here(*task) for task in tasks]


_helpers: weakref.WeakKeyDictionary[LossyModel, Workers] = weakref.WeakKeyDictionary()  # as long as their model is kept


def lossy_helpers(voxels: int = 0) -> Workers:
    """For a lossy coder; started already, if there will be work for them in a scan of so many voxels."""
    workers = Workers.shared(lossy_part, "mricodec.models.zoo")
    if voxels >= LEAST_SHARED_LOSSY:
        workers.start(processes())
    return workers


def helpers_of(model: LossyModel) -> Workers | None:
    """Those that are kept as long as the model; None if they could not work for it."""
    if model.by_id and model not in _helpers:
        _helpers[model] = lossy_helpers()
    return _helpers.get(model)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Helpers have a core each: threads of this process would be in their way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lossy_part(settings: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """`_lossy_part` with the model of the id in the settings."""
    return _lossy_part(*_model_of(settings["model"]), settings, arrays)


@functools.lru_cache(2)
def _model_of(model_id: str) -> tuple[LossyModel, dict[str, Tables]]:
    from mricodec.models import zoo

    model = zoo.load_model(bytes.fromhex(model_id))
    return model, _tables(model.tables)


def _lossy_part(
    model: LossyModel, tables: Mapping[str, Tables], settings: dict[str, Any], arrays: Sequence[NDArray[Any]]
) -> list[NDArray[Any]]:
    """Slabs [S, K, H, W] -> what they decode to, and the payload of each; with "shape" in the settings payloads -> slabs."""
    params = LossyParams(settings["step"], settings["peak"], tuple(settings["spacing_mm"]), settings["effort"])
    intensity = Intensity.unpack(ByteReader(bytes.fromhex(settings["intensity"]), "HEAD"), np.dtype(settings["dtype"]))
    masks = [b""] * len(arrays)
    if "shape" in settings:
        payloads = [payload.tobytes() for payload in arrays]
        if settings["background"]:
            masks, payloads = map(list, zip(*map(_split_mask, payloads), strict=True))
        readers = [EntropyDecoder(payload) for payload in payloads]
        decoded = model.decode((len(readers), *settings["shape"]), params, _SideBySide(tables, readers))
        for reader in readers:
            reader.finish()
        return [np.stack([intensity.values(background.restore(*pair)) for pair in zip(decoded, masks, strict=True)])]
    codes = intensity.codes(arrays[0])
    streams = [EntropyEncoder() for _ in codes]
    decoded = model.encode(codes, params.step, _SideBySide(tables, streams), params)
    np.clip(decoded, 0, params.peak, out=decoded)
    values, payloads = np.empty(decoded.shape, intensity.dtype), [stream.finish() for stream in streams]
    for n, slab in enumerate(decoded):
        if settings["background"]:
            mask = background.mask_for(codes[n], slab, len(payloads[n]))
            slab = background.restore(slab, mask)
            payloads[n] = pack_varint(len(mask)) + mask + payloads[n]
        values[n] = intensity.values(slab)
    return [values, *(np.frombuffer(payload, np.uint8) for payload in payloads)]


class _SideBySide:
    """The `SymbolCoder` over one entropy coder per slab."""

    def __init__(
        self, tables: Mapping[str, Tables], streams: Sequence[EntropyEncoder | EntropyDecoder]
    ) -> None:
        self._tables = tables
        self._streams = streams

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[Any]:
        tables = self._tables[table_set]
        if values is None:
            return np.stack([stream.code(tables, index[s], None) for s, stream in enumerate(self._streams)])  # type: ignore[arg-type]
        for s, stream in enumerate(self._streams):
            stream.code(tables, index[s], values[s])
        return values

    def code_calls(self, table_set: str, index: NDArray[Any], values: NDArray[Any], sizes: Sequence[int]) -> None:
        """index [n], values [n] to encode, of the only slab: the first so many in a call of their own, and so on."""
        stream = self._streams[0]
        assert isinstance(stream, EntropyEncoder)
        stream.code_calls(self._tables[table_set], index, values, sizes)

    def add(self, table_set: str, tables: LatticeTables) -> None:
        self._tables = {**self._tables, table_set: Tables(tables.weights, tables.low, tables.octave, tables.variants)}

    def of(self, slabs: Sequence[int]) -> _SideBySide:
        return _SideBySide(self._tables, [self._streams[s] for s in slabs])


class UncodedSymbols:
    """A `SymbolCoder` that writes nothing: it remembers what it was given, for a decoder in the same process."""

    def __init__(self, values: Sequence[NDArray[np.int64]] = ()) -> None:
        self._kept = list(values)
        self._next = 0

    def of(self, slabs: Sequence[int]) -> UncodedSymbols:
        return self  # the calls come in the same order

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[np.int64]:
        if values is not None:
            self._kept.append(np.asarray(values, np.int64))
            return self._kept[-1]
        self._next += 1
        return self._kept[self._next - 1]

    def replay(self) -> UncodedSymbols:
        """The same symbols again, from the first on."""
        return UncodedSymbols(self._kept)


def _tables(sets: Mapping[str, TableSet]) -> dict[str, Tables]:
    return {name: Tables(tables.weights, tables.low, tables.octave) for name, tables in sets.items()}


def _split_mask(payload: bytes) -> tuple[bytes, bytes]:
    fields = ByteReader(payload, "SLAB")
    return fields.take(fields.varint()), fields.take(fields.left)
