"""Slabs of stored values <-> payloads: one class per coder of the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.entropycoder import EntropyDecoder, EntropyEncoder, Tables
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.sections import pack_store, unpack_store

from . import background
from .intensity import Intensity
from .volume import to_file_order

LEARNED = 2  # coder number of the learned lossy models; which one, the model id says
LEARNED_INEXACT = 3  # the same, but samples (not latents) may differ by rounding between machines
BATCH_VOXELS = 13_000_000  # coded side by side

Shape = tuple[int, int, int]
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

    def encode(
        self, x: NDArray[np.int32], step: float, coder: SymbolCoder, params: LossyParams
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W] -> what the decoder will give."""

    def decode(
        self, shape: tuple[int, int, int, int], params: LossyParams, coder: SymbolCoder
    ) -> NDArray[np.int32]:
        """Codes [S, K, H, W]."""


class SlabCoder(Protocol):
    """Stored values of slabs of equal shape, [n, h, w] each <-> payloads."""

    batch_voxels: int  # how many it wants at once, at most
    exact: bool  # whether every machine decodes to the same values

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[tuple[bytes, NDArray[Any]]]:
        """The payload of each slab, and the values that it decodes to."""

    def decode(self, payloads: Sequence[bytes], shape: Shape) -> list[NDArray[Any]]:
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


def encode_slabs(coder: SlabCoder, slabs: Sequence[NDArray[Any]]) -> list[tuple[bytes, NDArray[Any]]]:
    """(payload, what it decodes to) of each slab; those of one shape are coded together."""
    coded: dict[int, tuple[bytes, NDArray[Any]]] = {}
    for group in _by_shape([slab.shape for slab in slabs]):
        coded.update(zip(group, coder.encode([slabs[n] for n in group]), strict=True))
    return [coded[n] for n in range(len(slabs))]


def decode_slabs(coder: SlabCoder, payloads: Sequence[bytes], shapes: Sequence[Shape]) -> list[NDArray[Any]]:
    """The slabs of payloads; those of one shape are decoded together."""
    decoded: dict[int, NDArray[Any]] = {}
    for group in _by_shape(shapes):
        decoded.update(zip(group, coder.decode([payloads[n] for n in group], shapes[group[0]]), strict=True))
    return [decoded[n] for n in range(len(payloads))]


class Store:
    """Coder 0: zstd, for every type."""

    batch_voxels = 1
    exact = True

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._stored = dtype.newbyteorder("<")

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[tuple[bytes, NDArray[Any]]]:
        itemsize = self._dtype.itemsize
        return [(pack_store(bytes(to_file_order(slab, self._stored)), itemsize), slab) for slab in slabs]

    def decode(self, payloads: Sequence[bytes], shape: Shape) -> list[NDArray[Any]]:
        size = math.prod(shape) * self._dtype.itemsize
        stored = [unpack_store(payload, size, self._dtype.itemsize) for payload in payloads]
        return [
            np.frombuffer(data, self._stored).astype(self._dtype, copy=False).reshape(shape)
            for data in stored
        ]


class Lattice:
    """Coder 1: integers of a range below 2**24, predicted from their neighbours."""

    batch_voxels = 1
    exact = True

    def __init__(self, intensity: Intensity) -> None:
        from mricodec.models import lossless

        self._model = lossless
        try:
            self._tables = _tables(lossless.TABLES)
        except OSError as error:
            raise FormatError(f"cannot read {error.filename} ({error.strerror}): install mricodec again") from error
        except ValueError as error:
            raise FormatError(str(error)) from error
        self._intensity = intensity

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[tuple[bytes, NDArray[Any]]]:
        return [(self._encode(self._intensity.codes(slab)), slab) for slab in slabs]

    def _encode(self, codes: NDArray[np.int32]) -> bytes:
        stream = EntropyEncoder()
        self._model.encode_slab(codes, _SideBySide(self._tables, [stream]))
        return stream.finish()

    def decode(self, payloads: Sequence[bytes], shape: Shape) -> list[NDArray[Any]]:
        return [self._intensity.values(self._decode(payload, shape)) for payload in payloads]

    def _decode(self, payload: bytes, shape: Shape) -> NDArray[np.int32]:
        stream = EntropyDecoder(payload)
        codes: NDArray[np.int32] = self._model.decode_slab(shape, _SideBySide(self._tables, [stream]))
        stream.finish()
        return codes


class Lossy:
    """Coders 2 and 3: a learned model on integer codes."""

    batch_voxels = BATCH_VOXELS

    def __init__(
        self, model: LossyModel, intensity: Intensity, params: LossyParams, has_background: bool
    ) -> None:
        self.exact = model.exact_samples
        self._model = model
        self._tables = _tables(model.tables)
        self._intensity = intensity
        self._params = params
        self._has_background = has_background

    def encode(self, slabs: Sequence[NDArray[Any]]) -> list[tuple[bytes, NDArray[Any]]]:
        codes = np.stack([self._intensity.codes(slab) for slab in slabs])
        streams = [EntropyEncoder() for _ in slabs]
        coder = _SideBySide(self._tables, streams)
        decoded = self._model.encode(codes, self._params.step, coder, self._params)
        return [self._finished(codes[s], decoded[s], stream.finish()) for s, stream in enumerate(streams)]

    def _finished(
        self, codes: NDArray[np.int32], decoded: NDArray[np.int32], payload: bytes
    ) -> tuple[bytes, NDArray[Any]]:
        decoded = np.clip(decoded, 0, self._params.peak)
        if self._has_background:
            mask = background.mask_for(codes, decoded, len(payload))
            decoded = background.restore(decoded, mask)
            payload = pack_varint(len(mask)) + mask + payload
        return payload, self._intensity.values(decoded)

    def decode(self, payloads: Sequence[bytes], shape: Shape) -> list[NDArray[Any]]:
        masks = [b""] * len(payloads)
        if self._has_background:
            pairs = [_split_mask(payload) for payload in payloads]
            masks, payloads = [mask for mask, _ in pairs], [payload for _, payload in pairs]
        streams = [EntropyDecoder(payload) for payload in payloads]
        coder = _SideBySide(self._tables, streams)
        decoded = self._model.decode((len(payloads), *shape), self._params, coder)
        for stream in streams:
            stream.finish()
        clipped = (np.clip(slab, 0, self._params.peak) for slab in decoded)
        return [
            self._intensity.values(background.restore(slab, mask))
            for slab, mask in zip(clipped, masks, strict=True)
        ]


class _SideBySide:
    """The `SymbolCoder` over one entropy coder per slab."""

    def __init__(
        self, tables: Mapping[str, Tables], streams: Sequence[EntropyEncoder | EntropyDecoder]
    ) -> None:
        self._tables = tables
        self._streams = streams

    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[np.int64]:
        tables = self._tables[table_set]
        return np.stack(
            [
                stream.code(tables, index[s], None if values is None else values[s])  # type: ignore[arg-type]
                for s, stream in enumerate(self._streams)
            ]
        )


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


def _by_shape(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(n)
    return list(groups.values())


def _split_mask(payload: bytes) -> tuple[bytes, bytes]:
    fields = ByteReader(payload, "SLAB")
    return fields.take(fields.varint()), fields.take(fields.left)
