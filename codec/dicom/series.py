"""A DICOM series in one stream, and the identical files out of it (format/series.md).

    files --dicom.py--> stacks of pictures --Encoder--> slabs       the largest stack is the volume of the stream,
      |                                                             further ones are streams of their own in it
      +---> table of files, heads and tails, other bytes            bitstream/files.py

So `decode`, `info` and `verify` take such a stream like any other; here are the files. The files of a stack stand in the
order in which their last picture is decoded: restoring needs one slab, and the files begun, at a time.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import math
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import DHDR, DICM, DRAW, PADV, STCK
from mricodec.bitstream.container import ContainerWriter
from mricodec.bitstream.errors import ChecksumMismatch, FormatError
from mricodec.bitstream.header import DEFAULT_LIMITS, STORE, Limits, Mode, StreamHeader
from mricodec.bitstream.series_chunks import (
    BYTES,
    PICTURES_PER_FILE,
    VOXELS,
    BytePieces,
    FileEntry,
    FileTable,
    pack_bytes,
    pack_padding,
    pack_records,
    unpack_records,
)
from mricodec.codec.api import Decoder, Encoder, writable
from mricodec.codec.pipeline.decoding import Selection, blocks
from mricodec.codec.pipeline.stream import Progress, Source, Stream, opened
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import DTYPES, Envelope, to_file_order

from . import derived
from . import files as dicom
from .files import Instance, Series, Stack

if TYPE_CHECKING:
    from pydicom import Dataset

HEADS_AT_ONCE = 16 << 20  # bytes of heads and tails in one chunk
BYTES_AT_ONCE = 16 << 20
MAX_TWINS = 8  # files that may share a picture
MAX_PADDING = 8  # different values that stand for no data
EXACT_CLASSES = {  # SOP classes whose values are no samples of a picture
    "1.2.840.10008.5.1.4.1.1.66.4": "it is a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "it is a label map",
    "1.2.840.10008.5.1.4.1.1.481.2": "it is an RT dose",
}

SeriesSource = Series | str | os.PathLike[str] | Iterable[Any]


@dataclass(frozen=True)
class SeriesReport:
    """What came out of encoding one series."""

    files: int
    shapes: tuple[tuple[int, ...], ...]  # of its stacks, the largest first
    mode: str  # "lossless", or what the stacks are that are not
    original_bytes: int
    stream_bytes: int
    notes: tuple[tuple[str, str], ...]  # (file, what is unusual about it)
    damaged: bool  # some file is not what it should be; it is kept as it is

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes


def find_series(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Series]:
    """The series in files and folders (searched to any depth), each with its files; every file is in exactly one.

    Files that belong to no series (DICOMDIR, reports, notes) go with their neighbours. ValueError if there is no file.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    return dicom.find_series(dicom.find_sources(paths))


def encode_series(
    source: SeriesSource,
    *,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> bytes | None:
    """Encode one series: a folder, files, pydicom Datasets, or one of `find_series`.

    settings: those of `Encoder` (lossless=True, quality=50, ...). Without loss every file comes back byte for byte
    with its name (Datasets: as pydicom writes them); with loss every instance as a derived one with new UIDs.

    The stream, or None if it was written to `out`, a path or a binary file. ValueError if there are several series.
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
    stacks = dicom.stacks_of(series)
    _leave_out_twins(stacks)
    if len({found.name for found in series.instances}) != len(series.instances):
        raise ValueError("expected a name of its own for every file of a series, found one twice")
    pictures = sum(len(stack.slots) for stack in stacks)
    if max(len(series.instances), pictures // PICTURES_PER_FILE) > DEFAULT_LIMITS.max_files:
        raise ValueError(
            f"expected a series of at most {DEFAULT_LIMITS.max_files} files, found {len(series.instances)}"
        )
    notes: list[tuple[str, str]] = []
    lossless = Encoder(lossless=True)
    scans, encoders = [], []
    for stack in stacks:
        scan, reason = _StackScan(stack, series.title or "series"), None
        if not encoder.lossless:
            reason = _lossless_reason(scan)
        if reason is not None:
            notes.append((stack.pictures[0][0].name, f"coded without loss: {reason}"))
        if not stack.even:
            notes.append(
                (
                    scan.file_name,
                    "its slices stand at uneven distances; a NIfTI of them has their mean distance",
                )
            )
        scans.append(scan)
        encoders.append(encoder if reason is None else lossless)
    further = []
    for scan, how in zip(scans[1:], encoders[1:], strict=True):
        buffer = io.BytesIO()
        report = how.encode_file(scan, buffer)
        further.append((buffer.getvalue(), report))
        if report.reason is not None:
            notes.append((scan.file_name, f"coded without loss: {report.reason}"))
    table, ordered = _table(series, stacks)
    chunks = _chunks(table, ordered, [stream for stream, _ in further])
    with writable(out) as file:
        if stacks:
            scans[0].chunks = itertools.chain(chunks, scans[0].chunks)
            report = encoders[0].encode_file(scans[0], file, progress=progress)
            size = report.stream_bytes
            if report.reason is not None:
                notes.append((scans[0].file_name, f"coded without loss: {report.reason}"))
        else:
            size = _write_without_voxels(file, chunks)
    modes = {found.mode for _, found in further} | ({report.mode} if stacks else set())
    modes.discard("lossless")
    return SeriesReport(
        files=len(series.instances),
        shapes=tuple(stack.shape for stack in stacks),
        mode=min(modes, default="lossless"),
        original_bytes=series.size,
        stream_bytes=size,
        notes=tuple(series.notes + notes),
        damaged=series.damaged,
    )


def decode_series(source: Source, *, decoder: Decoder | None = None) -> Iterator[Dataset]:
    """The Datasets of a stream as they decode, slice after slice, then those without coded voxels.

    `dataset.filename` is the name of the file. What pydicom can't read is left out: `series_files` has every file.
    FormatError if the stream is damaged, ChecksumMismatch if a file does not come back as it was.
    """
    from pydicom import dcmread

    for name, data in series_files(source, decoder=decoder):
        bare = dicom.looks_bare(data)
        if not dicom.accept(data) and not bare:
            continue
        try:
            with dicom.quiet_pydicom():
                dataset = dcmread(io.BytesIO(data), force=bare)
        except Exception:  # as it was before it was encoded
            continue
        dataset.filename = name
        yield dataset


def series_files(
    source: Source, *, decoder: Decoder | None = None, progress: Progress | None = None
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file of a stream, in the order in which they decode; each is checked when it is complete.

    decoder: one that is kept, with its models and limits, for many streams.
    """
    decoder = decoder or Decoder()
    with opened(source) as file:
        for entry, pieces in _restored(Stream(file, decoder.limits), decoder, progress or _silent):
            yield entry.name, b"".join(pieces)


def series_headers(source: Source, *, limits: Limits | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, bytes around the voxels) of every file, nothing decoded; for `pydicom.dcmread(..., stop_before_pixels=True)`.

    b"" where a file is kept as a whole. FormatError if the stream is damaged.
    """
    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        table = _table_of(stream)
        for entry, record in zip(table.files, _records(stream), strict=True):
            _check_record(entry, record)
            yield entry.name, record


def restore_series(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    decoder: Decoder | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write the files of a stream into a folder, made if it is not there; all of them or none. Their names.

    FileExistsError if one is there already and not `force`. FormatError if the stream is damaged, or names a file
    outside the folder.
    """
    target = Path(folder)
    decoder = decoder or Decoder()
    with opened(source) as file:
        stream = Stream(file, decoder.limits)
        names = [entry.name for entry in _table_of(stream).files]
        _check_targets(target, names, force)
        beside = target if target.is_dir() else target.absolute().parent
        if not beside.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(beside))
        part = beside / f".{target.absolute().name[:32]}.{secrets.token_hex(4)}.part"
        part.mkdir()
        try:
            for entry, pieces in _restored(stream, decoder, progress or _silent):
                path = part / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as restored:
                    for piece in pieces:
                        restored.write(piece)
            _move_into(part, target, names)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return names


def further_stacks(source: Source, *, limits: Limits | None = None) -> Iterator[bytes]:
    """The stacks of a series beyond the one that `decode` gives: streams of their own, each for `decode`."""
    with opened(source) as file:
        yield from Stream(file, limits or DEFAULT_LIMITS).reader.chunks(STCK)


def series_voxels(series: Series) -> NDArray[Any]:
    """The stored values of the largest stack of a series, [k, j, i] or [t, k, j, i]. ValueError if there is none."""
    stacks = dicom.stacks_of(series)
    if not stacks:
        raise ValueError(
            f"expected voxels in the series {series.title or series.uid}, found none that can be told apart"
        )
    return np.stack(list(_StackScan(stacks[0], series.title).pictures())).reshape(stacks[0].shape)


def verify_series(stream: Stream, decoder: Decoder, progress: Progress) -> None:
    """Decode every file and compare its digest; ChecksumMismatch if it differs."""
    for _, pieces in _restored(stream, decoder, progress):
        for _ in pieces:
            pass


class _StackScan:
    """A stack as a `volume.Scan`: pictures are read from their files when they are asked for."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        self.chunks: Iterable[tuple[bytes, bytes]] = ()
        self.shape = stack.shape
        self.dtype = DTYPES[stack.first.dtype].newbyteorder(">" if stack.first.big_endian else "<")
        affine, spacing_mm = stack.geometry()
        slope, inter = stack.rescale
        self.envelope = Envelope(affine=affine, spacing_mm=spacing_mm, slope=slope, inter=inter)
        self.declared_labels = False
        self.stack = stack
        self._mosaic: tuple[int, NDArray[Any]] | None = None
        self._padding: tuple[tuple[int, int], int] | None = (
            None  # values that stand for no data, and what for them
        )

    @property
    def file_name(self) -> str:
        """The first of its files."""
        return self.stack.pictures[0][0].name

    def replace_padding(self, padding: tuple[int, int], stand_in: int) -> None:
        """Read voxels within a range as another value."""
        self._padding = padding, stand_in

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        per_volume = tiling.volume_shape[0]
        for volume in range(tiling.volumes):
            first = volume * per_volume
            if tiling.axis == 0:
                for slab in range(tiling.slabs_per_volume):
                    start, stop = tiling.span(slab)
                    yield self._read(first + start, first + stop)
            else:
                yield from tiling.cut(self._read(first, first + per_volume))

    def pictures(self) -> Iterator[NDArray[Any]]:
        """Every [j, i], in order."""
        for n in range(len(self.stack.pictures)):
            yield self._read(n, n + 1)[0]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pictures = [self._picture(*self.stack.pictures[n]) for n in range(start, stop)]
        block = np.stack(pictures).astype(self.dtype.newbyteorder("="), copy=False)
        if self._padding is not None:
            (least, largest), stand_in = self._padding
            block = np.where(
                (block >= least) & (block <= largest), block.dtype.type(stand_in), block
            )
        return block

    def _picture(self, instance: Instance, n: int) -> NDArray[Any]:
        pixels = instance.pixels
        assert pixels is not None
        if not pixels.tiles:
            raw = instance.source.read(pixels.offset + n * pixels.frame_bytes, pixels.frame_bytes)
            return np.frombuffer(raw, self.dtype).reshape(pixels.rows, pixels.columns)
        if self._mosaic is None or self._mosaic[0] != id(instance):
            raw = instance.source.read(pixels.offset, pixels.frame_bytes)
            self._mosaic = (
                id(instance),
                _tiles(np.frombuffer(raw, self.dtype), pixels.tiles, pixels.rows, pixels.columns),
            )
        picture: NDArray[Any] = self._mosaic[1][n]
        return picture

    def gzip_file(self) -> BinaryIO | None:
        return None

    def close(self) -> None:
        pass


def _tiles(mosaic: NDArray[Any], side: int, rows: int, columns: int) -> NDArray[Any]:
    """A mosaic in file order -> its pictures [n, rows, columns]."""
    return mosaic.reshape(side, rows, side, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def _lossless_reason(scan: _StackScan) -> str | None:
    """Why a stack must be coded without loss, or None: then its padding has been taken care of."""
    first = scan.stack.first
    if first.sop_class in EXACT_CLASSES:
        return EXACT_CLASSES[first.sop_class]
    if first.palette:
        return "its values are indices of a palette"
    if scan.dtype.kind not in "iu":
        return None  # for the encoder to say
    paddings = {
        instance.pixels.padding
        for instance, _ in scan.stack.pictures
        if instance.pixels is not None
    }
    if len(paddings) > 1:
        return "its instances differ in PixelPaddingValue"
    padding = paddings.pop()
    limits = first.value_range()
    least, largest, values = None, None, set()
    for picture in scan.pictures():
        if limits is None or picture.min() < limits[0] or picture.max() > limits[1]:
            return "bits beyond BitsStored are in use"
        if padding is not None:
            marked = (picture >= padding[0]) & (picture <= padding[1])
            values.update(np.unique(picture[marked]).tolist())
            picture = picture[~marked]
        if picture.size:
            least = int(picture.min()) if least is None else min(least, int(picture.min()))
            largest = int(picture.max()) if largest is None else max(largest, int(picture.max()))
    for instance in scan.stack.members:
        reason = derived.obstacle(instance.source.read(0, instance.source.size))
        if reason is not None:
            return f"{instance.name} can't be written again ({reason})"
    if padding is None or least is None or largest is None:
        return None
    if len(values) > MAX_PADDING:
        return "it has many values that stand for no data"
    if least < padding[0] and largest > padding[1]:
        return "the value that stands for no data lies among the others"
    scan.chunks = [(PADV, _padding_mask(scan, value)) for value in sorted(values)]
    scan.replace_padding(padding, least if padding[1] < least else largest)
    return None


def _padding_mask(scan: _StackScan, value: int) -> bytes:
    return pack_padding(value, (picture == value for picture in scan.pictures()))


def _one_series(source: SeriesSource) -> Series:
    if isinstance(source, Series):
        return source
    if isinstance(source, (str, os.PathLike)):
        found = find_series(source)
    else:
        given = list(source)
        if all(isinstance(item, (str, os.PathLike)) for item in given):
            found = find_series(given)
        else:
            found = dicom.find_series(_written(item, n) for n, item in enumerate(given))
    if len(found) != 1:
        names = ", ".join(
            f"{series.title or series.uid} ({len(series.instances)} files)" for series in found
        )
        raise ValueError(
            f"expected one series, found {len(found)}: {names or 'no files'}; encode each of find_series"
        )
    return found[0]


def _written(dataset: Any, number: int) -> dicom.MemorySource:
    """A Dataset as the file that pydicom writes of it."""
    from pydicom import Dataset

    if not isinstance(dataset, Dataset):
        raise TypeError(f"expected paths or pydicom Datasets, found {type(dataset).__name__}")
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    uid = str(dataset.get("SOPInstanceUID", "") or number)
    return dicom.MemorySource(buffer.getvalue(), f"{number:04d}_{uid}.dcm")


def _leave_out_twins(stacks: list[Stack]) -> None:
    """A picture serves `MAX_TWINS` files at most."""
    for stack in stacks:
        users: dict[int, int] = defaultdict(int)
        for key, slot in list(stack.slots.items()):
            users[slot] += 1
            if users[slot] > MAX_TWINS:
                del stack.slots[key]


def _table(series: Series, stacks: list[Stack]) -> tuple[FileTable, list[Instance]]:
    """The table, and the instances in its order."""
    placed: dict[int, tuple[int, tuple[int, ...]]] = {}
    for number, stack in enumerate(stacks):
        slots: dict[int, list[int]] = defaultdict(list)
        for (key, _), slot in sorted(stack.slots.items(), key=lambda item: item[0][1]):
            slots[key].append(slot)
        placed.update((key, (number, tuple(found))) for key, found in slots.items())
    after = len(stacks), (0,)
    entries = []
    ordered = sorted(series.instances, key=lambda found: _last(placed.get(id(found), after)))
    for instance in ordered:
        stack_number, pictures = placed.get(id(instance), (0, ()))
        entries.append(
            FileEntry(
                name=instance.name,
                size=instance.source.size,
                sha256=instance.sha256,
                kind=VOXELS if pictures else BYTES,
                head=instance.head,
                tail=instance.tail,
                stack=stack_number,
                slots=pictures,
            )
        )
    return FileTable(
        files=tuple(entries), tiles=tuple(stack.first.tiles for stack in stacks)
    ), ordered


def _last(place: tuple[int, tuple[int, ...]]) -> tuple[int, int]:
    return place[0], max(place[1])


def _chunks(
    table: FileTable, ordered: list[Instance], further: list[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    yield DICM, table.pack()
    held: list[list[tuple[int, bytes]]] = []
    size = 0
    for instance in ordered:
        held.append(instance.record())
        size += instance.head + instance.tail
        if size >= HEADS_AT_ONCE:
            yield DHDR, pack_records(held)
            held, size = [], 0
    if held:
        yield DHDR, pack_records(held)
    pending = b""
    for entry, instance in zip(table.files, ordered, strict=True):
        if entry.kind != BYTES:
            continue
        for start in range(0, entry.body, BYTES_AT_ONCE):
            pending += instance.source.read(
                entry.head + start, min(BYTES_AT_ONCE, entry.body - start)
            )
            if len(pending) >= BYTES_AT_ONCE:
                yield DRAW, pack_bytes(pending)
                pending = b""
    if pending:
        yield DRAW, pack_bytes(pending)
    for stream in further:
        yield STCK, stream


def _write_without_voxels(file: BinaryIO, chunks: Iterator[tuple[bytes, bytes]]) -> int:
    writer = ContainerWriter(
        file, StreamHeader(mode=Mode.LOSSLESS, coder=STORE, dtype="uint8", shape=(0,))
    )
    for type, payload in chunks:
        writer.chunk(type, payload)
    writer.finish(hashlib.sha256().digest())
    return writer.size


def _table_of(stream: Stream) -> FileTable:
    if stream.table is None:
        raise FormatError(
            "expected the stream of a DICOM series, found that of another scan: decode it into a .nii"
        )
    return stream.table


def _records(stream: Stream) -> Iterator[bytes]:
    """Head and tail of every file, in the order of the table."""
    left = len(_table_of(stream).files)
    for payload in stream.reader.chunks(DHDR):
        for record in unpack_records(payload, stream.reader.limits.max_metadata_bytes, left):
            left -= 1
            yield record
    if left:
        raise FormatError(
            f"expected a record of every file in DHDR, found {left} too few: the file is damaged"
        )


def _check_record(entry: FileEntry, record: bytes) -> None:
    if len(record) != entry.head + entry.tail:
        raise FormatError(
            f"expected {entry.head + entry.tail} bytes around the voxels of {entry.name}, found {len(record)}: "
            "the file is damaged"
        )


def _restored(
    stream: Stream, decoder: Decoder, progress: Progress
) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
    """Every file in pieces; its digest is compared at the end of them."""
    table = _table_of(stream)
    streams = [stream] if table.tiles else []
    for payload in stream.reader.chunks(STCK):
        streams.append(Stream(payload, stream.reader.limits))
        if streams[-1].table is not None or 0 in streams[-1].shape:
            raise FormatError("expected a volume in STCK, found a series: the file is damaged")
    if len(streams) != len(table.tiles):
        raise FormatError(
            f"expected {len(table.tiles)} stacks, found {len(streams)}: the file is damaged"
        )
    total = sum(math.prod(found.shape) for found in streams)
    derivations = _derivations(stream, streams, table)
    records = _records(stream)
    entries = iter(table.files)
    done = 0.0
    for number, found in enumerate(streams):
        share = math.prod(found.shape) / total
        members = [entry for entry in table.files if entry.slots and entry.stack == number]
        start = done

        def part(fraction: float, start: float = start, share: float = share) -> None:
            progress(start + share * fraction)

        bodies = _bodies(found, decoder, members, table.tiles[number], part)
        for member, body in zip(members, bodies, strict=True):
            entry, record = next(entries), next(records)
            if entry is not member:
                raise FormatError(
                    f"expected the files of DICM in the order of their voxels, found {entry.name} earlier"
                )
            _check_record(entry, record)
            whole = [
                record[: entry.head],
                bytes(to_file_order(body, found.dtype)),
                record[entry.head :],
            ]
            derivation = derivations[number]
            if derivation is None:
                yield entry, _checked(entry, whole)
            else:
                yield entry, iter([_derived(entry, b"".join(whole), body, derivation)])
        done += share
    pieces = BytePieces(stream.reader.chunks(DRAW), stream.reader.limits.max_metadata_bytes)
    for entry in entries:
        record = next(records)
        _check_record(entry, record)
        if entry.slots:
            raise FormatError(
                f"expected the voxels of {entry.name} before other files: the file is damaged"
            )
        yield (
            entry,
            _checked(
                entry, _chain(record[: entry.head], pieces.take(entry.body), record[entry.head :])
            ),
        )
    next(records, None)  # too many of them are an error
    pieces.end()


def _derivations(
    stream: Stream, streams: list[Stream], table: FileTable
) -> list[derived.Derivation | None]:
    """Of each stack, None where it is lossless."""
    if all(found.mode is Mode.LOSSLESS for found in streams):
        return [None] * len(streams)
    digest = hashlib.sha256()
    for found in streams:
        digest.update(found.reader.header.pack() + found.reader.digest)
    for entry in table.files:
        digest.update(entry.sha256)
    heads = [
        record[: entry.head]
        for entry, record in zip(table.files, _records(stream), strict=True)
        if entry.slots
        and entry.stack < len(streams)
        and streams[entry.stack].mode is not Mode.LOSSLESS
    ]
    try:
        identities = [derived.identity(head) for head in heads]
    except Exception as error:
        raise FormatError(
            f"expected DICM heads, found damage ({type(error).__name__}): the file is damaged"
        ) from error
    series = {uid for _, uid in identities}
    return [
        None
        if found.mode is Mode.LOSSLESS
        else derived.Derivation(
            encoding=digest.digest(),
            ratio=_ratio(found),
            description=_description(found),
            sop_uids=frozenset(uid for uid, _ in identities if uid),
            series_uid=series.pop() if len(series) == 1 else "",
        )
        for found in streams
    ]


def _ratio(stream: Stream) -> float:
    """Of the voxels alone."""
    coded = sum(section.size for section in stream.reader.sections() if section.type == "SLAB")
    return math.prod(stream.shape) * stream.dtype.itemsize / coded


def _description(stream: Stream) -> str:
    """The same every time."""
    info = stream.info()
    text = f"Lossy compression by mricodec, coder {stream.coder}, {_ratio(stream):.1f}:1"
    if info.model_id:
        text += f", model {info.model_id}"
    if info.fidelity is not None:
        text += f", RMSE {info.fidelity.rmse:.3g}, largest error {info.fidelity.max_error:.3g} stored units"
    return text


def _derived(
    entry: FileEntry, source: bytes, voxels: NDArray[Any], derivation: derived.Derivation
) -> bytes:
    try:
        return derived.derive(source, voxels, derivation)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # pydicom lets many kinds through; it was tried when the file was encoded
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(
            f"expected a data set in {entry.name}, found damage ({reason})"
        ) from error


def _chain(head: bytes, body: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    yield from body
    yield tail


def _checked(entry: FileEntry, pieces: Iterable[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.digest() != entry.sha256:
        raise ChecksumMismatch(
            f"expected SHA-256 {entry.sha256.hex()} of {entry.name}, found {digest.hexdigest()}: the file is damaged or "
            "this decoder is not exact here; do not use the result"
        )


def _bodies(
    stream: Stream, decoder: Decoder, members: list[FileEntry], tiles: int, progress: Progress
) -> Iterator[NDArray[Any]]:
    """The voxels of the files of a stack as they stand in them, in the order of `members`, that of their last slots."""
    rows, columns = (1, 1, *stream.shape)[-2:]
    pictures = math.prod(stream.shape) // (rows * columns)
    users: dict[int, list[tuple[FileEntry, int]]] = defaultdict(list)
    for entry in members:
        count = len(entry.slots)
        size = rows * columns * stream.dtype.itemsize * (tiles**2 if tiles else count)
        if entry.body != size or (tiles and count > tiles**2) or max(entry.slots) >= pictures:
            raise FormatError(
                f"expected {size} bytes of voxels in {entry.name}, found {entry.body}: the file is damaged"
            )
        for n, slot in enumerate(entry.slots):
            users[slot].append((entry, n))
    if max(map(len, users.values()), default=0) > MAX_TWINS:
        raise FormatError(
            f"expected a picture in at most {MAX_TWINS} files, found one in more: the file is damaged"
        )
    begun: dict[str, NDArray[Any]] = {}
    waiting = iter(members)
    following = next(waiting, None)
    slot = 0
    for block in blocks(decoder.layered(stream), Selection.of(stream, None, None), progress):
        for picture in block.reshape(-1, rows, columns):
            for entry, n in users.get(slot, ()):
                if entry.name not in begun:
                    begun[entry.name] = np.zeros(
                        (tiles**2 or len(entry.slots), rows, columns), stream.dtype
                    )
                begun[entry.name][n] = picture
            while following is not None and max(following.slots) <= slot:
                body = begun.pop(following.name)
                if tiles:
                    body = body.reshape(tiles, tiles, rows, columns).swapaxes(1, 2)
                yield body
                following = next(waiting, None)
            slot += 1


def _check_targets(target: Path, names: list[str], force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file, expected the name of a folder", str(target)
        )
    for name in names:
        if os.name == "nt" and (
            set(name) & set('\\:*?"<>|') or name.split("/")[-1].endswith((".", " "))
        ):
            raise FormatError(f"expected file names that this system has, found {name!r}")
        path = target / name
        if target.exists() and not path.parent.resolve().is_relative_to(target.resolve()):
            raise FileExistsError(
                errno.EEXIST, "leads out of the folder by a link; remove it first", str(path.parent)
            )
        if os.path.lexists(path) and (not force or path.is_dir()):
            raise FileExistsError(
                errno.EEXIST, "exists; choose another folder, or overwrite it by force", str(path)
            )


def _move_into(part: Path, target: Path, names: list[str]) -> None:
    if not os.path.lexists(target):
        os.replace(part, target)
        return
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, path)


def _silent(_: float) -> None:
    pass
