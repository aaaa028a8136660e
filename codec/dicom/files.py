"""DICOM files, read and never re-serialised: where their voxels stand, and which of them form a volume.

A file is cut into head | PixelData value | tail; what can't be cut is kept whole. Instances of one series that are
alike become stacks, ordered by their position along the slice normal. Needs no pixel decoder. Values stay as stored:
neither RescaleSlope nor a mask of BitsStored is ever applied. Tags and terms: DICOM PS3.3 and PS3.5.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import struct
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.volume import DTYPES

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

SUFFIXES = (".dcm", ".dicom", ".ima")  # of files that claim to be DICOM
PREFIX = 132  # bytes by which a DICOM file is recognised
MAX_HEAD = 32 << 20  # bytes around the voxels; a file with more is kept whole
PIECE = 1 << 24  # bytes of other files read at a time
MAX_STACKS = 1024  # of one series; what does not fit any more is kept as bytes
EVEN = 0.02  # of the slice distance: slices closer to an even grid than this are a volume
SAME_PLACE = 1e-3  # mm; positions closer than this are one
RAW_SYNTAXES = {  # PS3.5 A.1, A.2, A.3: native PixelData. UID -> big-endian
    "1.2.840.10008.1.2": False,
    "1.2.840.10008.1.2.1": False,
    "1.2.840.10008.1.2.2": True,
}
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_pydicom_warnings = threading.RLock()


class FileSource:
    """The bytes of a file on the disk; OSError if it changes while it is encoded."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.path = path
        self._state = self._stat(os.stat(path))
        self.size = self._state[0]

    @staticmethod
    def _stat(found: os.stat_result) -> tuple[int, int]:
        return found.st_size, found.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            if self._stat(os.fstat(file.fileno())) == self._state:
                file.seek(offset)
                data = file.read(size)
                if len(data) == size:
                    return data
        raise OSError(f"{self.path} changed while it was read; encode it again")


class MemorySource:
    """The bytes of a file in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.path = Path()
        self.size = len(data)
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


@dataclass(frozen=True)
class Unreadable:
    """A file that can't be read, and why."""

    name: str
    reason: str


Source = FileSource | MemorySource


class _Reader(io.RawIOBase):
    """A source as a file."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        )
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(self._at, max(0, min(len(buffer), self._source.size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class Place:
    """Where a picture lies, in mm, DICOM's LPS axes: centre of its first pixel; directions of rows and columns."""

    position: tuple[float, float, float]
    row: tuple[float, float, float]
    column: tuple[float, float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.row, self.column)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The voxels of a file: `frames` pictures one after another, or mosaics of them, from byte `offset` on."""

    offset: int
    dtype: str  # a name of volume.DTYPES
    big_endian: bool
    rows: int  # of one picture
    columns: int
    pictures: int
    tiles: int  # per side of a mosaic; 0: a frame is one picture
    kind: tuple[Any, ...]  # what pictures of one stack have in common, beyond all of the above
    places: tuple[Place | None, ...]  # of each picture
    spacing_mm: tuple[float, float, float]  # slices, rows, columns; 0 where unknown
    rescale: tuple[float, float] | None  # slope and intercept; None if frames differ
    order: tuple[Any, ...]  # among instances at one position
    padding: tuple[int, int] | None = None  # least and largest stored value that mark no data
    stored_bits: tuple[int, int] = (16, 15)  # BitsStored, HighBit
    sop_class: str = ""
    palette: bool = False

    def value_range(self) -> tuple[int, int] | None:
        """Least and largest value that BitsStored allows, None if the bits do not stand lowest."""
        bits, high = self.stored_bits
        if high != bits - 1 or not 0 < bits <= 8 * DTYPES[self.dtype].itemsize:
            return None
        return (
            (-(1 << bits - 1), (1 << bits - 1) - 1)
            if self.dtype.startswith("int")
            else (0, (1 << bits) - 1)
        )

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * DTYPES[self.dtype].itemsize * max(1, self.tiles**2)

    @property
    def frames(self) -> int:
        return 1 if self.tiles else self.pictures

    @property
    def size(self) -> int:
        """In bytes."""
        return self.frame_bytes * self.frames


@dataclass(eq=False)
class Instance:
    """One file: what it is, where it is cut, and its voxels if it has any that can be coded."""

    source: Source
    sha256: bytes
    series_uid: str = ""  # "" where it has none
    sop_uid: str = ""
    head: int = 0
    tail: int = 0
    cuts: tuple[
        tuple[int, int], ...
    ] = ()  # (key, offset) of the elements of head and tail, for their compression
    pixels: Pixels | None = None
    notes: list[str] = field(default_factory=list)  # what is unusual, and so kept as bytes
    damaged: bool = False
    description: str = ""  # of its series
    number: str = ""  # of its series

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def body(self) -> int:
        return self.source.size - self.head - self.tail

    def record(self) -> list[tuple[int, bytes]]:
        """Head and tail in pieces (key, bytes), keys rising: an element each."""
        if not self.cuts:
            return []
        head = self.source.read(0, self.head)
        tail = self.source.read(self.source.size - self.tail, self.tail)
        bounds = [offset for _, offset in self.cuts]
        pieces = []
        for (key, start), stop in zip(self.cuts, [*bounds[1:], self.source.size], strict=True):
            whole = head[start:stop]
            if stop > self.head + self.body:
                whole += tail[max(0, start - self.head - self.body) : stop - self.head - self.body]
            pieces.append((key, whole))
        return pieces

    def keep_whole(self, note: str, *, damaged: bool = False) -> None:
        """Keep the voxels as bytes."""
        self.pixels = None
        self.notes.append(note)
        self.damaged = self.damaged or damaged


@dataclass(eq=False)
class Stack:
    """Pictures that form a volume [k, j, i] or several of them [t, k, j, i]; each is a (instance, picture)."""

    members: list[Instance]
    pictures: list[tuple[Instance, int]]
    volumes: int
    even: bool  # slices stand at even distances (or there is one)
    slots: dict[
        tuple[int, int], int
    ]  # (id of the instance, picture) -> its place in `pictures`; equal ones share it

    @property
    def first(self) -> Pixels:
        pixels = self.pictures[0][0].pixels
        assert pixels is not None
        return pixels

    @property
    def shape(self) -> tuple[int, ...]:
        slices = len(self.pictures) // self.volumes
        volume = (slices, self.first.rows, self.first.columns)
        return volume if self.volumes == 1 else (self.volumes, *volume)

    def geometry(self) -> tuple[NDArray[np.float64] | None, tuple[float, float, float]]:
        """(affine, spacing_mm): voxel (i, j, k) -> RAS+ mm, or None where a position is missing; spacing of k, j, i.

        PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, x and y negated: LPS -> RAS.
        """
        slices = len(self.pictures) // self.volumes
        between, down, across = self.first.spacing_mm
        ends = [self._place(n) for n in (0, slices - 1)]
        first, last = ends
        if first is None or last is None:
            return None, (between, down, across)
        step = np.array(first.normal) * (between or 1.0)
        if slices > 1:
            step = (np.array(last.position) - np.array(first.position)) / (slices - 1)
            between = float(np.linalg.norm(step)) or between
        affine = np.eye(4)
        affine[:3, 0] = np.array(first.row) * (across or 1.0)
        affine[:3, 1] = np.array(first.column) * (down or 1.0)
        affine[:3, 2] = step if np.linalg.norm(step) else np.array(first.normal) * (between or 1.0)
        affine[:3, 3] = first.position
        affine[:2] *= -1
        return affine + 0.0, (between, down, across)

    def _place(self, picture: int) -> Place | None:
        instance, n = self.pictures[picture]
        assert instance.pixels is not None
        return instance.pixels.places[n]

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept that all pictures have in common, else (1, 0)."""
        found = {
            instance.pixels.rescale for instance, _ in self.pictures if instance.pixels is not None
        }
        return next(iter(found)) or (1.0, 0.0) if len(found) == 1 else (1.0, 0.0)


@dataclass(eq=False)
class Series:
    """The files that go into one stream: those of a SeriesInstanceUID, and others that lie beside them."""

    uid: str
    instances: list[Instance]
    left_out: list[Unreadable] = field(default_factory=list)

    @property
    def title(self) -> str:
        """SeriesNumber and SeriesDescription, as far as there are any, in printable characters."""
        named = next(
            (
                found
                for found in self.instances
                if found.series_uid and found.series_uid == self.uid
            ),
            None,
        )
        text = "" if named is None else f"{named.number} {named.description}"
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    @property
    def size(self) -> int:
        return sum(found.source.size for found in self.instances)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(file, what is unusual about it)"""
        missing = [(found.name, f"left out: {found.reason}") for found in self.left_out]
        return missing + [(found.name, note) for found in self.instances for note in found.notes]

    @property
    def damaged(self) -> bool:
        """Some file is not what it should be, or could not be read."""
        return bool(self.left_out) or any(found.damaged for found in self.instances)


def accept(prefix: bytes) -> bool:
    """Whether a file begins as PS3.10 says."""
    return prefix[128:132] == b"DICM"


def find_sources(paths: Iterable[str | os.PathLike[str]]) -> list[Source | Unreadable]:
    """Every file of the paths, folders searched to any depth; names relative to the folder, or to what all share.

    Links to folders are not followed. OSError for a path that is not there; ValueError if there is no file at all.
    """
    given = [Path(path) for path in paths]
    found: list[Path] = []
    reasons: dict[str, str] = {}

    def not_listed(error: OSError) -> None:
        found.append(Path(error.filename))
        reasons[os.path.abspath(error.filename)] = f"can't be listed ({error.strerror})"

    for path in given:
        if path.is_dir():
            for folder, folders, names in os.walk(path, onerror=not_listed):
                folders.sort()
                linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
                found += [Path(folder, name) for name in sorted(names + linked)]
        else:
            os.stat(path)
            found.append(path)
    if not found:
        raise ValueError(f"expected files, found none in {', '.join(map(str, given)) or 'nothing'}")
    folders_of = [path if path.is_dir() else path.parent for path in given]
    root = os.path.commonpath([os.path.abspath(folder) for folder in folders_of])
    once = dict.fromkeys(os.path.abspath(path) for path in found)
    return [
        _source(Path(path), Path(os.path.relpath(path, root)).as_posix(), reasons.get(path))
        for path in once
    ]


def _source(path: Path, name: str, reason: str | None) -> Source | Unreadable:
    if reason is None and path.is_dir():
        reason = "a link to a folder"
    elif reason is None and path.exists() and not path.is_file():
        reason = "a device, pipe or socket"
    if reason is not None:
        return Unreadable(name, reason)
    try:
        source = FileSource(path, name)
        source.read(0, min(1, source.size))
    except OSError as error:
        return Unreadable(name, f"can't be read ({error.strerror or error})")
    return source


def find_series(sources: Iterable[Source | Unreadable]) -> list[Series]:
    """Read every file, and sort them by series; what belongs to none goes with its neighbours in the folder."""
    found = list(sources)
    series = _by_series(
        [read_instance(source) for source in found if not isinstance(source, Unreadable)]
    )
    left_out = [source for source in found if isinstance(source, Unreadable)]
    if left_out and not series:
        raise ValueError(f"{left_out[0].name}: {left_out[0].reason}")
    if series:
        series[0].left_out.extend(left_out)
    return series


def _by_series(instances: list[Instance]) -> list[Series]:
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_uid[instance.series_uid].append(instance)
    others = by_uid.pop("", [])
    if not by_uid:
        return [Series("", others)] if others else []
    folders = {uid: Counter(_folder(found) for found in members) for uid, members in by_uid.items()}
    for other in others:
        here = _folder(other)
        uid = max(by_uid, key=lambda uid: (folders[uid][here], len(by_uid[uid])))
        by_uid[uid].append(other)
    return [Series(uid, members) for uid, members in by_uid.items()]


def read_instance(source: Source) -> Instance:
    """What a file is. Nothing about it is an error but OSError: what is damaged or no DICOM is kept whole."""
    prefix = source.read(0, min(source.size, PREFIX))
    bare = looks_bare(prefix)
    if not accept(prefix) and not bare:
        instance = Instance(source, _digest(source))
        instance.notes.append("no DICOM file (no DICM at byte 128)" if prefix else "an empty file")
        instance.damaged = source.name.lower().endswith(SUFFIXES)
        return instance
    instance = Instance(source, _digest(source))
    if bare:
        instance.notes.append("no preamble: expected DICM at byte 128")
    try:
        with quiet_pydicom():
            from pydicom import dcmread

            file = io.BufferedReader(_Reader(source), 1 << 16)
            _describe(instance, dcmread(file, force=bare, defer_size=MAX_HEAD))
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # pydicom lets struct.error, EOFError, KeyError, NotImplementedError ... through
        instance.head = instance.tail = 0
        instance.cuts = ()
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        instance.keep_whole(f"damaged ({reason}); kept as it is", damaged=True)
    return instance


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's warnings: an odd value is no concern of one who keeps it as it is. One thread at a time."""
    with _pydicom_warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _digest(source: Source) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, source.size, PIECE):
        digest.update(source.read(offset, min(PIECE, source.size - offset)))
    return digest.digest()


def stacks_of(series: Series) -> list[Stack]:
    """The stacks of a series, the largest first. Instances that get into none keep their voxels as bytes."""
    alike: dict[tuple[Any, ...], list[Instance]] = defaultdict(list)
    for instance in series.instances:
        if instance.pixels is not None:
            p = instance.pixels
            alike[p.dtype, p.big_endian, p.rows, p.columns, p.tiles, p.kind].append(instance)
    stacks = sorted(
        (_stack(members) for members in alike.values()), key=lambda stack: -math.prod(stack.shape)
    )
    for stack in stacks[MAX_STACKS:]:
        for instance, _ in stack.pictures:
            instance.keep_whole(
                f"more than {MAX_STACKS} kinds of pictures in its series; kept as it is"
            )
    return stacks[:MAX_STACKS]


def _stack(members: list[Instance]) -> Stack:
    members = sorted(members, key=lambda found: (_pixels(found).order, found.name))
    twins = _twins(members)
    pictures = [
        (instance, n)
        for instance in members
        if id(instance) not in twins
        for n in range(_pixels(instance).pictures)
    ]
    volumes, even = 1, len(pictures) == 1
    places = [_pixels(instance).places[n] for instance, n in pictures]
    if all(place is not None for place in places):
        known = [place for place in places if place is not None]
        along = np.array([place.position for place in known]) @ known[0].normal
        groups = _groups(along)
        # pictures of one position follow each other in the order of their instances
        sizes = {len(group) for group in groups}
        if len(sizes) == 1:
            volumes = sizes.pop()
            pictures = [pictures[group[t]] for t in range(volumes) for group in groups]
            gaps = np.diff([along[group[0]] for group in groups])
            even = len(gaps) < 2 or float(np.abs(gaps - gaps.mean()).max()) <= EVEN * float(
                gaps.mean()
            )
        else:
            pictures = [pictures[n] for group in groups for n in group]
    slots = {(id(instance), n): slot for slot, (instance, n) in enumerate(pictures)}
    for instance in members:
        twin = twins.get(id(instance))
        if twin is not None:
            slots.update(
                ((id(instance), n), slots[id(twin), n]) for n in range(_pixels(instance).pictures)
            )
    return Stack(members, pictures, volumes, even, slots)


def _groups(along: NDArray[np.float64]) -> list[list[int]]:
    """Pictures by position along the normal, rising; those of one position in the order they came."""
    groups: list[list[int]] = []
    last = -math.inf
    for n in np.argsort(along, kind="stable").tolist():
        if along[n] - last > SAME_PLACE:
            groups.append([])
        last = along[n]
        groups[-1].append(n)
    return [sorted(group) for group in groups]


def _twins(members: Sequence[Instance]) -> dict[int, Instance]:
    """id of an instance -> an earlier one of the same SOPInstanceUID and voxels; noted on it."""
    first: dict[str, list[Instance]] = defaultdict(list)
    twins: dict[int, Instance] = {}
    for instance in members:
        earlier = first[instance.sop_uid] if instance.sop_uid else []
        for other in earlier:
            same_file = instance.sha256 == other.sha256
            if same_file or _voxels(instance) == _voxels(other):
                what = "the same file as" if same_file else "the voxels and the SOPInstanceUID of"
                instance.notes.append(f"a duplicate: {what} {other.name}")
                twins[id(instance)] = other
                break
        else:
            if earlier:
                instance.notes.append(f"the SOPInstanceUID of {earlier[0].name}, but other voxels")
            earlier.append(instance)
    return twins


def _voxels(instance: Instance) -> bytes:
    pixels = _pixels(instance)
    return instance.source.read(pixels.offset, pixels.size)


def _pixels(instance: Instance) -> Pixels:
    assert instance.pixels is not None
    return instance.pixels


def looks_bare(data: bytes) -> bool:
    """A data set without preamble: begins with an element of group 2 or 8."""
    return not accept(data) and data[:2] in (b"\x02\0", b"\x08\0") and len(data) >= PREFIX


def _describe(instance: Instance, dataset: FileDataset) -> None:
    """Fill in what the data set says."""
    size = instance.source.size
    syntax = _text(dataset.file_meta, 0x00020010)
    instance.series_uid = _text(dataset, 0x0020000E)
    instance.sop_uid = _text(dataset, 0x00080018)
    instance.description = _text(dataset, 0x0008103E)
    instance.number = _text(dataset, 0x00200011)
    if syntax == DEFLATED:
        instance.keep_whole("a deflated data set; kept as it is")
        return
    _, little = dataset.original_encoding
    element = raw_element(dataset, _PIXEL_DATA)
    if element is None:
        sop_class = _text(dataset, 0x00080016)
        what = (
            "a DICOMDIR" if DICOMDIR_CLASS in (sop_class, _media_class(dataset)) else "no PixelData"
        )
        instance.notes.append(f"{what}; kept as it is")
        instance.head = size
        instance.cuts = _cuts(dataset, size)
        _check_head(instance)
        return
    start, length = int(element.value_tell), int(element.length)
    compressed = length == _UNDEFINED or (syntax != "" and syntax not in RAW_SYNTAXES)
    end = size if compressed else min(size, start + length)
    instance.head, instance.tail = start, size - end
    instance.cuts = _cuts(dataset, end)
    if not _check_head(instance):
        return
    if compressed:
        instance.notes.append(
            f"compressed already (transfer syntax {syntax or 'unknown'}); kept as it is"
        )
        return
    if end != start + length:
        instance.keep_whole(
            f"cut short: expected {length} bytes of PixelData, found {end - start}", damaged=True
        )
        return
    pixels = _read_pixels(dataset, instance.source, start, not little)
    if isinstance(pixels, str):
        instance.notes.append(f"{pixels}; kept as it is")
        return
    if length < pixels.size:
        instance.keep_whole(
            f"expected {pixels.size} bytes of PixelData for its rows and columns, found {length}; kept as it is",
            damaged=True,
        )
        return
    if length > pixels.size + pixels.size % 2:
        instance.notes.append(
            f"expected {pixels.size} bytes of PixelData for its rows and columns, found {length}"
        )
        instance.damaged = True
    instance.tail = size - start - pixels.size
    if not _check_head(instance):
        return
    instance.pixels = pixels
    if None in pixels.places:
        instance.notes.append("no position or orientation: its place in the volume is unknown")


def _check_head(instance: Instance) -> bool:
    """Whether head and tail are short enough to be kept apart; else they are not."""
    if instance.head + instance.tail <= MAX_HEAD:
        return True
    instance.head = instance.tail = 0
    instance.cuts = ()
    instance.keep_whole(f"more than {MAX_HEAD} bytes around its voxels; kept as it is")
    return False


def _cuts(dataset: Dataset, after: int) -> tuple[tuple[int, int], ...]:
    """(tag, offset) where a cut is worth it: about where every element begins. Keys and offsets rise."""
    cuts = [(0, 0)]
    for elements in (dataset.file_meta, dataset):
        for tag in sorted(elements.keys()):
            element = raw_element(elements, int(tag))
            tell = getattr(element, "value_tell", None) or getattr(element, "file_tell", None)
            offset = after if tag > _PIXEL_DATA else (tell or 0) - 8
            if tag != _PIXEL_DATA and offset > cuts[-1][1] and int(tag) > cuts[-1][0]:
                cuts.append((int(tag), offset))
    return tuple(cuts)


def _read_pixels(dataset: Dataset, source: Source, offset: int, big_endian: bool) -> Pixels | str:
    """What PixelData holds, or why it is not taken for voxels."""
    rows, columns = _integer(dataset, 0x00280010), _integer(dataset, 0x00280011)
    bits, signed = _integer(dataset, 0x00280100), _integer(dataset, 0x00280103, 0)
    samples, planar = _integer(dataset, 0x00280002, 1), _integer(dataset, 0x00280006, 0)
    stored = _integer(dataset, 0x00280101, bits)
    high = _integer(dataset, 0x00280102, stored - 1)
    photometric = _text(dataset, 0x00280004)
    frames = int(_text(dataset, 0x00280008) or 1)
    if rows < 1 or columns < 1 or frames < 1:
        return f"{columns} columns, {rows} rows and {frames} frames"
    if samples == 1 and bits in (8, 16, 32) and not (bits == 8 and big_endian):
        dtype = f"{'int' if signed else 'uint'}{bits}"
    elif samples == 3 and bits == 8 and not big_endian and photometric in ("RGB", "YBR_FULL"):
        dtype = "uint8" if planar else "rgb24"
    else:
        return f"{samples} x {bits} bits, {photometric}: not taken for voxels"
    tiles, pictures = 0, frames
    places: tuple[Place | None, ...] = _places(dataset, frames)
    between = _between(dataset)
    down, across = _pixel_spacing(dataset)
    if samples == 3 and planar:
        pictures *= 3
        places = (None,) * pictures
    elif frames == 1 and samples == 1 and (count := _mosaic_count(dataset)):
        per_side = math.isqrt(count - 1) + 1
        mosaic = source.read(offset, max(0, min(rows * columns * bits // 8, source.size - offset)))
        if _is_mosaic(mosaic, rows, columns, per_side, count):
            tiles, pictures = per_side, count
            rows, columns = rows // tiles, columns // tiles
            places = _mosaic_places(
                places[0], tiles, count, (rows, columns), (between, down, across), dataset
            )
    echo = _text(dataset, 0x00180086) or _text(dataset, 0x00180081)
    image_type = _text(dataset, 0x00080008).split("\\")
    first = places[0]
    turned = (
        ()
        if first is None
        else tuple(round(float(v), 2) + 0.0 for v in (*first.row, *first.column))
    )
    kind = (
        bits,
        stored,
        high,
        samples,
        planar,
        photometric,
        echo,
        tuple(image_type[2:3]),
        turned,
        frames > 1,
        down,
        across,
    )
    return Pixels(
        offset=offset,
        dtype=dtype,
        big_endian=big_endian and bits > 8,
        rows=rows,
        columns=columns,
        pictures=pictures,
        tiles=tiles,
        kind=kind,
        places=places,
        spacing_mm=(between, down, across),
        rescale=_rescale(dataset),
        order=_order(dataset),
        padding=_padding(dataset, bool(signed)),
        stored_bits=(stored, high),
        sop_class=_text(dataset, 0x00080016),
        palette=photometric == "PALETTE COLOR",
    )


def _places(dataset: Dataset, frames: int) -> tuple[Place | None, ...]:
    if frames == 1 and 0x52009230 not in dataset:
        return (_place(_numbers(dataset, 0x00200032), _numbers(dataset, 0x00200037)),)
    shared, each = _groups_of(dataset)
    places = []
    common = _numbers(_item(shared, 0x00209116), 0x00200037)
    for n in range(frames):
        group = each[n] if n < len(each) else None
        position = _numbers(_item(group, 0x00209113), 0x00200032) or _numbers(
            _item(shared, 0x00209113), 0x00200032
        )
        places.append(_place(position, _numbers(_item(group, 0x00209116), 0x00200037) or common))
    return tuple(places)


def _place(position: list[float], orientation: list[float]) -> Place | None:
    if (
        len(position) != 3
        or len(orientation) != 6
        or not np.isfinite([*position, *orientation]).all()
    ):
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if not (
        0.9 < np.linalg.norm(row) < 1.1
        and 0.9 < np.linalg.norm(column) < 1.1
        and abs(row @ column) < 0.1
    ):
        return None
    return Place(tuple(position), tuple(orientation[:3]), tuple(orientation[3:]))  # type: ignore[arg-type]


def _groups_of(dataset: Dataset) -> tuple[Dataset | None, list[Dataset]]:
    """SharedFunctionalGroupsSequence, PerFrameFunctionalGroupsSequence."""
    shared = dataset[0x52009229].value if 0x52009229 in dataset else []
    each = dataset[0x52009230].value if 0x52009230 in dataset else []
    return (shared[0] if shared else None), list(each or [])


def _item(group: Dataset | None, tag: int) -> Dataset | None:
    """The first item of a sequence of a functional group."""
    if group is None or tag not in group:
        return None
    items = group[tag].value
    return items[0] if items else None


def _pixel_spacing(dataset: Dataset) -> tuple[float, float]:
    found = (
        _numbers(dataset, 0x00280030)
        or _numbers(_measures(dataset), 0x00280030)
        or _numbers(dataset, 0x00181164)
    )
    if len(found) == 2 and all(0 < value < 1e6 for value in found):
        return found[0], found[1]
    return 0.0, 0.0


def _between(dataset: Dataset) -> float:
    """SpacingBetweenSlices, else SliceThickness, in mm; 0 if unknown."""
    for where in (dataset, _measures(dataset)):
        for tag in (0x00180088, 0x00180050):
            found = _numbers(where, tag)
            if len(found) == 1 and 0 < abs(found[0]) < 1e6:
                return abs(found[0])
    return 0.0


def _measures(dataset: Dataset) -> Dataset | None:
    """The first PixelMeasuresSequence of an enhanced object."""
    shared, each = _groups_of(dataset)
    return _item(shared, 0x00289110) or (_item(each[0], 0x00289110) if each else None)


def _rescale(dataset: Dataset) -> tuple[float, float] | None:
    """RescaleSlope and RescaleIntercept; of an enhanced object those that all frames have, None if they differ."""
    places = [dataset]
    if 0x52009229 in dataset or 0x52009230 in dataset:
        shared, each = _groups_of(dataset)
        found = [_item(group, 0x00289145) for group in (shared, *each)]
        places = [group for group in found if group is not None] or places
    pairs = {
        (slope[0], inter[0])
        for slope, inter in ((_numbers(at, 0x00281053), _numbers(at, 0x00281052)) for at in places)
        if len(slope) == 1 and len(inter) == 1 and slope[0] and math.isfinite(slope[0] + inter[0])
    }
    return next(iter(pairs)) if len(pairs) == 1 else (1.0, 0.0) if not pairs else None


def _order(dataset: Dataset) -> tuple[Any, ...]:
    """Among instances of one position: acquisition, time point, instance."""
    numbers = [_numbers(dataset, tag) for tag in (0x00200012, 0x00200100, 0x00200013)]
    return tuple(found[0] if found and math.isfinite(found[0]) else -1.0 for found in numbers)


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit as a range of stored values (PS3.3 C.7.5.1.1.2)."""
    if 0x00280120 not in dataset:
        return None
    value = _integer(dataset, 0x00280120, 0, signed=signed)
    limit = _integer(dataset, 0x00280121, value, signed=signed)
    return min(value, limit), max(value, limit)


def _mosaic_count(dataset: Dataset) -> int:
    """Slices of a Siemens mosaic, 0 if it is none: NumberOfImagesInMosaic, else the CSA header's field of that name."""
    if "MOSAIC" not in _text(dataset, 0x00080008).split("\\"):
        return 0
    count = _integer(dataset, 0x0019100A, 0)
    if not count:
        found = _csa(dataset, b"NumberOfImagesInMosaic")
        count = int(found[0]) if found else 0
    return count if 1 < count <= 1 << 12 else 0


def _is_mosaic(data: bytes, rows: int, columns: int, per_side: int, count: int) -> bool:
    """Whether a frame divides into tiles, those beyond `count` being 0."""
    if rows % per_side or columns % per_side or len(data) % (rows * columns):
        return False
    tiles = (
        np.frombuffer(data, np.uint8)
        .reshape(per_side, rows // per_side, per_side, -1)
        .swapaxes(1, 2)
    )
    return not tiles.reshape(per_side**2, -1)[count:].any()


def _mosaic_places(
    corner: Place | None,
    tiles: int,
    count: int,
    tile: tuple[int, int],
    spacing_mm: tuple[float, float, float],
    dataset: Dataset,
) -> tuple[Place | None, ...]:
    """Of the slices: ImagePositionPatient is that of a slice as large as the mosaic, of the same centre."""
    between, down, across = spacing_mm
    if corner is None or not all(spacing_mm):
        return (None,) * count
    rows, columns = tile
    row, column = np.array(corner.row), np.array(corner.column)
    first = np.array(corner.position)
    first = (
        first + row * across * columns * (tiles - 1) / 2 + column * down * rows * (tiles - 1) / 2
    )
    normal = corner.normal
    found = _csa(dataset, b"SliceNormalVector")
    if len(found) == 3 and np.array(found) @ normal < 0:
        normal = -normal
    positions = [tuple((first + normal * between * n).tolist()) for n in range(count)]
    return tuple(Place(position, corner.row, corner.column) for position in positions)


def _csa(dataset: Dataset, name: bytes) -> list[float]:
    """Numbers of a field of the Siemens CSA image header (0029,xx10): layout of nibabel.nicom.csareader; [] if none."""
    raw = b""
    for tag in (0x00291010, 0x00291110, 0x00291210):
        value = getattr(raw_element(dataset, tag), "value", None)
        if isinstance(value, bytes) and value[:4] == b"SV10":
            raw = value
            break
    at = raw.find(name + b"\0") if raw else -1
    if at < 0 or at + 84 > len(raw):
        return []
    (items,) = struct.unpack_from("<i", raw, at + 76)
    at += 84
    found = []
    for _ in range(min(items, 64) if items > 0 else 0):
        if at + 16 > len(raw):
            break
        (length,) = struct.unpack_from("<i", raw, at + 4)
        text = raw[at + 16 : at + 16 + max(length, 0)].split(b"\0")[0].strip()
        try:
            found += [float(text)] if text else []
        except ValueError:
            return []
        at += 16 + (max(length, 0) + 3) // 4 * 4
    return found


def _media_class(dataset: Dataset) -> str:
    return _text(dataset.file_meta, 0x00020002)


def raw_element(dataset: Dataset | None, tag: int) -> Any:
    """An element as it was read, its value not interpreted unless it is a sequence; None if there is none."""
    return None if dataset is None else dataset.get_item(tag, keep_deferred=True)


def _text(dataset: Dataset | None, tag: int) -> str:
    """The value of an element as it stands in the file, without padding; "" if there is none."""
    value = getattr(raw_element(dataset, tag), "value", None)
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return "\\".join(str(part) for part in value)
    return str(value)


def _numbers(dataset: Dataset | None, tag: int) -> list[float]:
    """A decimal or integer string; [] if it is none."""
    try:
        return [float(part) for part in _text(dataset, tag).split("\\") if part.strip()]
    except ValueError:
        return []


def _integer(
    dataset: Dataset, tag: int, default: int | None = None, *, signed: bool = False
) -> int:
    """A binary number of 16 bits (US or SS); ValueError if it is missing and there is no default."""
    element = raw_element(dataset, tag)
    value = getattr(element, "value", None)
    if isinstance(value, bytes) and len(value) >= 2:
        return int.from_bytes(
            value[:2], "little" if element.is_little_endian else "big", signed=signed
        )
    if isinstance(value, int):
        return value
    if default is None:
        raise ValueError(f"no ({tag >> 16:04x},{tag & 0xFFFF:04x})")
    return default


def _folder(instance: Instance) -> str:
    return instance.name.rpartition("/")[0]
