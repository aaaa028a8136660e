"""A DICOM series as one stream (bitstream/format/series.md).

    files --> stacks --StackScan, Encoder--> slabs of the largest stack; STCK: streams of others
      +-----> DICM: table of files; DHDR: heads and tails; DRAW: what is kept as bytes

So `decode`, `info` and `verify` take such a stream like any other. The files of a stack are listed
in the order in which their last slice is decoded: restoring needs one slab, and the files that are
not complete yet, at a time.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mricodec.bitstream.chunks import DHDR, DICM, DRAW, PADV, STCK
from mricodec.bitstream.container import ContainerWriter
from mricodec.bitstream.header import DEFAULT_LIMITS, STORE, Mode, StreamHeader
from mricodec.bitstream.series_chunks import (
    BYTES,
    PICTURES_PER_FILE,
    VOXELS,
    FileEntry,
    FileTable,
    pack_bytes,
    pack_padding,
    pack_records,
)
from mricodec.codec.api import Encoder, writable
from mricodec.codec.pipeline.stream import Progress
from mricodec.codec.pipeline.writing import EncodeReport

from . import derived
from .files import Instance
from .sources import MemorySource
from .stack_scan import StackScan
from .stacks import MAX_SHARING, Series, Stack, find_series, series_of, stacks_of

# Bytes of heads and tails that one chunk DHDR collects.
HEADER_CHUNK_BYTES = 16 << 20
# Bytes of files that one chunk DRAW collects.
RAW_CHUNK_BYTES = 16 << 20
# Different padding values that a lossy stack may have.
MAX_PADDING_VALUES = 8
# SOP classes whose values are no samples of an image, so that no error is acceptable.
LOSSLESS_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "it is a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "it is a label map",
    "1.2.840.10008.5.1.4.1.1.481.2": "it is an RT dose",
}

SeriesSource = Series | str | os.PathLike[str] | Iterable[Any]


@dataclass(frozen=True)
class SeriesReport:
    """The result of encoding one series.

    shapes: of its stacks, the largest first. mode: "lossless", or the mode of the stacks that are
    not. notes: (file, what is unusual about it). damaged: some file is damaged, and kept as it is.
    misplaced: slices of a scan could not be placed in a volume; files are restored all the same.
    """

    files: int
    shapes: tuple[tuple[int, ...], ...]
    mode: str
    original_bytes: int
    stream_bytes: int
    notes: tuple[tuple[str, str], ...]
    damaged: bool
    misplaced: bool = False

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes


def encode_series(
    source: SeriesSource,
    *,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> bytes | None:
    """Encode one series: a folder, files, pydicom Datasets, or one of `find_series`.

    settings: those of `Encoder` (lossless=True, quality=50, ...). Lossless, every file is restored
    byte for byte with its name (Datasets: as pydicom writes them); lossy, every instance as a
    derived one with new UIDs.

    The stream, or None if it was written to `out`, a path or a binary file. ValueError if there are
    several series.
    """
    buffer = io.BytesIO()
    encode_series_file(
        source, buffer if out is None else out, Encoder(**settings), progress=progress
    )
    return buffer.getvalue() if out is None else None


def encode_series_file(
    source: SeriesSource,
    out: str | os.PathLike[str] | BinaryIO,
    encoder: Encoder,
    *,
    progress: Progress | None = None,
) -> SeriesReport:
    """As `encode_series`, with a report."""
    series = _one_series(source)
    if encoder.deidentify is not None:
        series = encoder.deidentify.series(series)
    stacks = stacks_of(series)
    _limit_sharing(stacks)
    _check_limits(series, stacks)
    notes: list[tuple[str, str]] = []
    scans = [StackScan(stack, series.title or "series") for stack in stacks]
    encoders = [_encoder_for(scan, encoder, notes) for scan in scans]
    modes, further = [], []
    for scan, scan_encoder in zip(scans[1:], encoders[1:], strict=True):
        buffer = io.BytesIO()
        modes.append(_encode_stack(scan, buffer, scan_encoder, notes).mode)
        further.append(buffer.getvalue())
    table, instances = _file_table(series, stacks)
    chunks = _chunks(table, instances, further)
    with writable(out) as file:
        if scans:
            scans[0].chunks = itertools.chain(chunks, scans[0].chunks)
            report = _encode_stack(scans[0], file, encoders[0], notes, progress)
            modes.append(report.mode)
            size = report.stream_bytes
        else:
            size = _write_without_voxels(file, chunks)
    return SeriesReport(
        files=len(series.instances),
        shapes=tuple(stack.shape for stack in stacks),
        mode=min((mode for mode in modes if mode != "lossless"), default="lossless"),
        original_bytes=series.size,
        stream_bytes=size,
        notes=tuple(series.notes + notes),
        damaged=series.damaged,
        misplaced=any(stack.faults for stack in stacks),
    )


def _one_series(source: SeriesSource) -> Series:
    if isinstance(source, Series):
        return source
    if isinstance(source, (str, os.PathLike)):
        candidates = find_series(source)
    else:
        items = list(source)
        if all(isinstance(item, (str, os.PathLike)) for item in items):
            candidates = find_series(items)
        else:
            candidates = series_of(_dataset_source(item, n) for n, item in enumerate(items))
    if len(candidates) != 1:
        names = ", ".join(
            f"{series.title or series.uid} ({len(series.instances)} files)" for series in candidates
        )
        raise ValueError(
            f"expected one series, found {len(candidates)}: {names or 'no files'}; "
            "encode each of find_series"
        )
    return candidates[0]


def _dataset_source(dataset: Any, number: int) -> MemorySource:
    """A Dataset as the file that pydicom writes."""
    from pydicom import Dataset

    if not isinstance(dataset, Dataset):
        raise TypeError(f"expected paths or pydicom Datasets, found {type(dataset).__name__}")
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    uid = str(dataset.get("SOPInstanceUID", "") or number)
    return MemorySource(buffer.getvalue(), f"{number:04d}_{uid}.dcm")


def _limit_sharing(stacks: list[Stack]) -> None:
    """Leave at most `MAX_SHARING` files to a slice."""
    for stack in stacks:
        users: dict[int, int] = defaultdict(int)
        for key, slot in list(stack.slots.items()):
            users[slot] += 1
            if users[slot] > MAX_SHARING:
                del stack.slots[key]


def _check_limits(series: Series, stacks: list[Stack]) -> None:
    """ValueError for a series that no decoder accepts."""
    if len({instance.name for instance in series.instances}) != len(series.instances):
        raise ValueError("expected a different name of every file of a series, found one twice")
    slices = sum(len(stack.slots) for stack in stacks)
    if max(len(series.instances), slices // PICTURES_PER_FILE) > DEFAULT_LIMITS.max_files:
        raise ValueError(
            f"expected a series of at most {DEFAULT_LIMITS.max_files} files, "
            f"found {len(series.instances)}"
        )


def _encoder_for(scan: StackScan, encoder: Encoder, notes: list[tuple[str, str]]) -> Encoder:
    """The encoder, or a lossless one where the stack requires it; adds notes."""
    reason = None if encoder.lossless else _lossless_reason(scan)
    if reason is not None:
        notes.append((scan.file_name, f"coded without loss: {reason}"))
    notes += [(scan.file_name, note) for note in _volume_notes(scan.stack)]
    return encoder if reason is None else Encoder(lossless=True)


def _volume_notes(stack: Stack) -> Iterator[str]:
    """What is unusual about the volumes of a stack."""
    for fault in stack.faults:
        yield f"its slices can't be placed in a volume, and stand in the order of files: {fault}"
    if not stack.faults and not stack.evenly_spaced:
        yield "its slices are unevenly spaced; a NIfTI of them has their mean distance"
    if any(len(rescales) > 1 for rescales in stack.rescales):
        yield "its slices differ in RescaleSlope; a NIfTI of them has scaled values in float32"
    if len(stack.parts) > 1:
        yield f"its frames are of {len(stack.parts)} kinds, and a volume of each kind"


def _encode_stack(
    scan: StackScan,
    file: BinaryIO,
    encoder: Encoder,
    notes: list[tuple[str, str]],
    progress: Progress | None = None,
) -> EncodeReport:
    report = encoder.encode_file(scan, file, progress=progress)
    if report.reason is not None:
        notes.append((scan.file_name, f"coded without loss: {report.reason}"))
    return report


def _lossless_reason(scan: StackScan) -> str | None:
    """Why a stack must be coded losslessly; None if not, and then its padding has been replaced."""
    first = scan.stack.first
    if first.sop_class in LOSSLESS_CLASSES:
        return LOSSLESS_CLASSES[first.sop_class]
    if first.palette:
        return "its values are indices of a palette"
    if scan.dtype.kind not in "iu":
        return None  # The encoder knows what loss can represent.
    paddings = {
        instance.pixels.padding for instance, _ in scan.stack.slices if instance.pixels is not None
    }
    if len(paddings) > 1:
        return "its instances differ in PixelPaddingValue"
    padding = paddings.pop()
    values = _Values.of(scan, padding)
    if values is None:
        return "bits beyond BitsStored are in use"
    for instance in scan.stack.members:
        reason = derived.obstacle(instance.source.read(0, instance.source.size))
        if reason is not None:
            return f"{instance.name} can't be written again ({reason})"
    return None if padding is None else _replace_padding(scan, padding, values)


@dataclass(frozen=True)
class _Values:
    """The stored values of a stack: padding values, and the range of the others, None if empty."""

    padding: tuple[int, ...]
    range: tuple[int, int] | None

    @classmethod
    def of(cls, scan: StackScan, padding: tuple[int, int] | None) -> _Values | None:
        """padding: (smallest, largest) padding value. None if a value exceeds BitsStored."""
        limits = scan.stack.first.value_range()
        padding_values: set[int] = set()
        extremes: list[int] = []
        for voxels in scan.slices():
            if limits is None or voxels.min() < limits[0] or voxels.max() > limits[1]:
                return None
            if padding is not None:
                is_padding = (voxels >= padding[0]) & (voxels <= padding[1])
                padding_values.update(np.unique(voxels[is_padding]).tolist())
                voxels = voxels[~is_padding]
            if voxels.size:
                extremes = [int(voxels.min()), int(voxels.max()), *extremes]
                extremes = [min(extremes), max(extremes)]
        value_range = (extremes[0], extremes[1]) if extremes else None
        return cls(tuple(sorted(padding_values)), value_range)


def _replace_padding(scan: StackScan, padding: tuple[int, int], values: _Values) -> str | None:
    """Store where padding is, and code the nearest other value in its stead; or why that fails."""
    if values.range is None:
        return None
    if len(values.padding) > MAX_PADDING_VALUES:
        return "it has many padding values"
    smallest, largest = values.range
    if smallest < padding[0] and largest > padding[1]:
        return "its padding value lies among the other values"
    scan.chunks = [(PADV, _padding_mask(scan, value)) for value in values.padding]
    scan.replace_padding(padding, smallest if padding[1] < smallest else largest)
    return None


def _padding_mask(scan: StackScan, value: int) -> bytes:
    return pack_padding(value, (voxels == value for voxels in scan.slices()))


def _file_table(series: Series, stacks: list[Stack]) -> tuple[FileTable, list[Instance]]:
    """The table of files, and the instances in its order."""
    slots_of: dict[int, tuple[int, tuple[int, ...]]] = {}
    for number, stack in enumerate(stacks):
        slots: dict[int, list[int]] = defaultdict(list)
        for (key, _), slot in sorted(stack.slots.items(), key=lambda item: item[0][1]):
            slots[key].append(slot)
        slots_of.update((key, (number, tuple(of_file))) for key, of_file in slots.items())

    def completed(instance: Instance) -> tuple[int, int]:
        """(stack, slot) after which a file is complete; after all stacks if it has none."""
        stack, slots = slots_of.get(id(instance), (len(stacks), (0,)))
        return stack, max(slots)

    entries = []
    instances = sorted(series.instances, key=completed)
    for instance in instances:
        stack_number, file_slots = slots_of.get(id(instance), (0, ()))
        entries.append(
            FileEntry(
                name=instance.name,
                size=instance.source.size,
                sha256=instance.sha256,
                kind=VOXELS if file_slots else BYTES,
                head=instance.head,
                tail=instance.tail,
                stack=stack_number,
                slots=file_slots,
            )
        )
    tiles = tuple(stack.first.tiles for stack in stacks)
    return FileTable(files=tuple(entries), tiles=tiles), instances


def _chunks(
    table: FileTable, instances: list[Instance], further: list[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    yield DICM, table.pack()
    yield from _header_chunks(instances)
    yield from _raw_chunks(table, instances)
    for stream in further:
        yield STCK, stream


def _header_chunks(instances: list[Instance]) -> Iterator[tuple[bytes, bytes]]:
    records: list[list[tuple[int, bytes]]] = []
    size = 0
    for instance in instances:
        records.append(instance.record())
        size += instance.head + instance.tail
        if size >= HEADER_CHUNK_BYTES:
            yield DHDR, pack_records(records)
            records, size = [], 0
    if records:
        yield DHDR, pack_records(records)


def _raw_chunks(table: FileTable, instances: list[Instance]) -> Iterator[tuple[bytes, bytes]]:
    pending = b""
    for entry, instance in zip(table.files, instances, strict=True):
        if entry.kind != BYTES:
            continue
        for start in range(0, entry.body, RAW_CHUNK_BYTES):
            size = min(RAW_CHUNK_BYTES, entry.body - start)
            pending += instance.source.read(entry.head + start, size)
            if len(pending) >= RAW_CHUNK_BYTES:
                yield DRAW, pack_bytes(pending)
                pending = b""
    if pending:
        yield DRAW, pack_bytes(pending)


def _write_without_voxels(file: BinaryIO, chunks: Iterator[tuple[bytes, bytes]]) -> int:
    """The stream of a series without a stack; its size."""
    writer = ContainerWriter(
        file, StreamHeader(mode=Mode.LOSSLESS, coder=STORE, dtype="uint8", shape=(0,))
    )
    for chunk_type, payload in chunks:
        writer.chunk(chunk_type, payload)
    writer.finish(hashlib.sha256().digest())
    return writer.size
