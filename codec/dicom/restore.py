"""The files of a DICOM series out of its stream: identical ones, or derived ones where it is lossy.

Files come in the order in which their last slice is decoded, then those kept as bytes. Each is
compared with its SHA-256.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import DRAW
from mricodec.bitstream.errors import ChecksumMismatch, FormatError
from mricodec.bitstream.header import Mode
from mricodec.bitstream.series_chunks import BytePieces, FileEntry, FileTable
from mricodec.codec.api import Decoder
from mricodec.codec.formats.dicom.elements import is_bare_dataset, is_dicom, quiet_pydicom
from mricodec.codec.pipeline.decoding import Selection, blocks
from mricodec.codec.pipeline.series import entries_with_headers, file_table, stack_streams
from mricodec.codec.pipeline.stream import Progress, Source, Stream, opened
from mricodec.codec.volume import to_file_order

from . import derived
from .files import error_text
from .stack_scan import join_mosaic
from .stacks import MAX_SHARING

if TYPE_CHECKING:
    from pydicom import Dataset

# Characters that no file name may have on Windows.
_WINDOWS_RESERVED = frozenset('\\:*?"<>|')
# Characters of a folder's name that the name of its temporary folder repeats.
_TEMPORARY_NAME_LENGTH = 32

# The name of a file and its bytes in pieces; reading them to the end checks the SHA-256.
RestoredFile = tuple[str, Iterator[bytes]]


def decode_series(source: Source, *, decoder: Decoder | None = None) -> Iterator[Dataset]:
    """The Datasets of a stream as they decode, slice by slice, then those without coded voxels.

    `dataset.filename` is the name of the file. What pydicom can't read is left out: `series_files`
    has every file. FormatError if the stream is damaged, ChecksumMismatch if a file differs.
    """
    from pydicom import dcmread

    for name, data in series_files(source, decoder=decoder):
        bare = is_bare_dataset(data)
        if not is_dicom(data) and not bare:
            continue
        try:
            with quiet_pydicom():
                dataset = dcmread(io.BytesIO(data), force=bare)
        except Exception:  # The file was damaged before it was encoded.
            continue
        dataset.filename = name
        yield dataset


def series_files(
    source: Source, *, decoder: Decoder | None = None, progress: Progress | None = None
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file of a stream, in the order in which they decode, each checked.

    decoder: one with its models and limits, kept for many streams.
    """
    decoder = decoder or Decoder()
    with opened(source) as file:
        stream = Stream(file, decoder.limits)
        for name, pieces in _restored_files(stream, decoder, progress or _no_progress):
            yield name, b"".join(pieces)


def restore_series(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    decoder: Decoder | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write the files of a stream into a folder, created if absent: all or none. Their names, which
    of derived instances are not those of the originals: a.dcm -> a_lossy.dcm.

    FileExistsError if one exists and not `force`. FormatError if the stream is damaged, or names a
    file outside the folder.
    """
    target = Path(folder)
    decoder = decoder or Decoder()
    with opened(source) as file:
        stream = Stream(file, decoder.limits)
        names = [*_names(file_table(stream), list(stack_streams(stream))).values()]
        _check_targets(target, names, force)
        parent = target if target.is_dir() else target.absolute().parent
        if not parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(parent))
        prefix = target.absolute().name[:_TEMPORARY_NAME_LENGTH]
        temporary = parent / f".{prefix}.{secrets.token_hex(4)}.part"
        temporary.mkdir()
        try:
            for name, pieces in _restored_files(stream, decoder, progress or _no_progress):
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as restored:
                    for piece in pieces:
                        restored.write(piece)
            _move_into(temporary, target, names)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return names


def verify_series(stream: Stream, decoder: Decoder, progress: Progress) -> None:
    """Decode every file and compare its SHA-256; ChecksumMismatch if it differs."""
    for _, pieces in _restored_files(stream, decoder, progress):
        for _ in pieces:
            pass


def _restored_files(stream: Stream, decoder: Decoder, progress: Progress) -> Iterator[RestoredFile]:
    table = file_table(stream)
    streams = list(stack_streams(stream))
    derivations, names = _derivations(stream, streams, table), _names(table, streams)
    files = entries_with_headers(stream)
    total = sum(math.prod(stack.shape) for stack in streams)
    done = 0.0
    for number, (stack, derivation) in enumerate(zip(streams, derivations, strict=True)):
        share = math.prod(stack.shape) / total

        def part(fraction: float, done: float = done, share: float = share) -> None:
            progress(done + share * fraction)

        members = [entry for entry in table.files if entry.slots and entry.stack == number]
        bodies = _bodies(stack, decoder, members, table.tiles[number], part)
        coded = _coded_files(stack, derivation, zip(members, bodies, strict=True), files)
        yield from ((names[entry.name], pieces) for entry, pieces in coded)
        done += share
    yield from ((entry.name, pieces) for entry, pieces in _raw_files(stream, files))


def _names(table: FileTable, streams: list[Stream]) -> dict[str, str]:
    """The name of every file -> that of the restored one, which is another where it is derived."""
    names = {entry.name: entry.name for entry in table.files}
    taken = set(names)
    for entry in table.files:
        if entry.slots and streams[entry.stack].mode is not Mode.LOSSLESS:
            names[entry.name] = derived.derived_name(entry.name, taken)
            taken.add(names[entry.name])
    return names


def _coded_files(
    stack: Stream,
    derivation: derived.Derivation | None,
    bodies: Iterable[tuple[FileEntry, NDArray[Any]]],
    files: Iterator[tuple[FileEntry, bytes]],
) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
    """The files whose pixel data is in a stack; bodies: (entry, voxels) as they decode."""
    for member, voxels in bodies:
        entry, header = next(files)
        if entry is not member:
            raise FormatError(
                "expected the files of DICM in the order of their voxels, "
                f"found {entry.name} earlier"
            )
        pieces = [
            header[: entry.head],
            bytes(to_file_order(voxels, stack.dtype)),
            header[entry.head :],
        ]
        if derivation is None:
            yield entry, _checked(entry, pieces)
        else:
            yield entry, iter([_derived_file(entry, b"".join(pieces), voxels, derivation)])


def _raw_files(
    stream: Stream, files: Iterator[tuple[FileEntry, bytes]]
) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
    """The files that are kept as bytes, which are the rest of the table."""
    pieces = BytePieces(stream.reader.chunks(DRAW), stream.reader.limits.max_metadata_bytes)
    for entry, header in files:
        if entry.slots:
            raise FormatError(
                f"expected the voxels of {entry.name} before other files: the file is damaged"
            )
        head, tail = [header[: entry.head]], [header[entry.head :]]
        yield entry, _checked(entry, itertools.chain(head, pieces.take(entry.body), tail))
    pieces.end()


def _checked(entry: FileEntry, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces; ChecksumMismatch at their end if they are not the file."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.digest() != entry.sha256:
        raise ChecksumMismatch(
            f"expected SHA-256 {entry.sha256.hex()} of {entry.name}, found {digest.hexdigest()}: "
            "the file is damaged or this decoder is not exact here; do not use the result"
        )


def _derived_file(
    entry: FileEntry, original: bytes, voxels: NDArray[Any], derivation: derived.Derivation
) -> bytes:
    """original: the file with its decoded voxels, before it is marked as derived."""
    try:
        return derived.derive(original, voxels, derivation)
    except MemoryError:
        raise
    except Exception as error:  # The encoder has tried it, so the stream is damaged.
        raise FormatError(
            f"expected a data set in {entry.name}, found damage ({error_text(error)})"
        ) from error


def _derivations(
    stream: Stream, streams: list[Stream], table: FileTable
) -> list[derived.Derivation | None]:
    """Of each stack, None where it is lossless."""
    lossy = [stack.mode is not Mode.LOSSLESS for stack in streams]
    if not any(lossy):
        return [None] * len(streams)
    digest = hashlib.sha256()
    for stack in streams:
        digest.update(stack.reader.header.pack() + stack.reader.digest)
    for entry in table.files:
        digest.update(entry.sha256)
    heads = [
        header[: entry.head]
        for entry, header in entries_with_headers(stream)
        if entry.slots and entry.stack < len(streams) and lossy[entry.stack]
    ]
    try:
        identities = [derived.identity(head) for head in heads]
    except Exception as error:
        raise FormatError(
            f"expected DICM heads, found damage ({type(error).__name__}): the file is damaged"
        ) from error
    series = {series_uid for _, series_uid in identities}
    return [
        derived.Derivation(
            encoding=digest.digest(),
            ratio=_ratio(stack),
            description=_description(stack),
            sop_uids=frozenset(sop_uid for sop_uid, _ in identities if sop_uid),
            series_uid=next(iter(series)) if len(series) == 1 else "",
        )
        if is_lossy
        else None
        for stack, is_lossy in zip(streams, lossy, strict=True)
    ]


def _ratio(stack: Stream) -> float:
    """Bytes of the voxels over bytes of their slabs."""
    coded = sum(section.size for section in stack.reader.sections() if section.type == "SLAB")
    return math.prod(stack.shape) * stack.dtype.itemsize / coded


def _description(stack: Stream) -> str:
    """DerivationDescription: the same whenever a stream is decoded."""
    info = stack.info()
    text = f"Lossy compression by mricodec, coder {stack.coder}, {_ratio(stack):.1f}:1"
    if info.model_id:
        text += f", model {info.model_id}"
    if info.fidelity is not None:
        text += (
            f", RMSE {info.fidelity.rmse:.3g}, "
            f"largest error {info.fidelity.max_error:.3g} stored units"
        )
    return text


def _bodies(
    stack: Stream, decoder: Decoder, members: list[FileEntry], tiles: int, progress: Progress
) -> Iterator[NDArray[Any]]:
    """The voxels of each member as its pixel data has them; members: by their last slot, rising."""
    rows, columns = (1, 1, *stack.shape)[-2:]
    users = _users_of_slots(stack, members, tiles)
    incomplete: dict[str, NDArray[Any]] = {}
    waiting = iter(members)
    next_member = next(waiting, None)
    slot = 0
    for block in blocks(decoder.layered(stack), Selection.of(stack, None, None), progress):
        for voxels in block.reshape(-1, rows, columns):
            for entry, n in users.get(slot, ()):
                if entry.name not in incomplete:
                    shape = (tiles**2 or len(entry.slots), rows, columns)
                    incomplete[entry.name] = np.zeros(shape, stack.dtype)
                incomplete[entry.name][n] = voxels
            while next_member is not None and max(next_member.slots) <= slot:
                body = incomplete.pop(next_member.name)
                yield join_mosaic(body, tiles) if tiles else body
                next_member = next(waiting, None)
            slot += 1


def _users_of_slots(
    stack: Stream, members: list[FileEntry], tiles: int
) -> dict[int, list[tuple[FileEntry, int]]]:
    """Slot -> the files that have its slice, and where in their pixel data. FormatError."""
    rows, columns = (1, 1, *stack.shape)[-2:]
    slices = math.prod(stack.shape) // (rows * columns)
    users: dict[int, list[tuple[FileEntry, int]]] = defaultdict(list)
    for entry in members:
        count = len(entry.slots)
        size = rows * columns * stack.dtype.itemsize * (tiles**2 or count)
        if entry.body != size or (tiles and count > tiles**2) or max(entry.slots) >= slices:
            raise FormatError(
                f"expected {size} bytes of voxels in {entry.name}, found {entry.body}: "
                "the file is damaged"
            )
        for n, slot in enumerate(entry.slots):
            users[slot].append((entry, n))
    if max(map(len, users.values()), default=0) > MAX_SHARING:
        raise FormatError(
            f"expected a slice in at most {MAX_SHARING} files, found one in more: "
            "the file is damaged"
        )
    return users


def _check_targets(target: Path, names: list[str], force: bool) -> None:
    """Raise if a file can't be written, or would replace another."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file, expected the name of a folder", str(target)
        )
    for name in names:
        if os.name == "nt" and (
            set(name) & _WINDOWS_RESERVED or name.split("/")[-1].endswith((".", " "))
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


def _move_into(temporary: Path, target: Path, names: list[str]) -> None:
    if not os.path.lexists(target):
        os.replace(temporary, target)
        return
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / name, path)


def _no_progress(_: float) -> None:
    pass
