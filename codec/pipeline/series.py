"""The table of files and the DICOM headers in the stream of a series; no voxel is decoded.

Stacks have samples as they are stored in the files. What these stand for, and which slices are a
volume where a stack has several kinds of them, the headers say: a `View` of the stack.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mricodec.bitstream.chunks import DHDR, STCK
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.bitstream.series_chunks import FileEntry, FileTable, unpack_records
from mricodec.codec.formats.dicom.arrangement import Part, arrange
from mricodec.codec.formats.dicom.elements import element_bytes, is_enhanced, quiet_pydicom
from mricodec.codec.formats.dicom.frames import Frame, enhanced_frames
from mricodec.codec.formats.dicom.pixels import ImagePixelModule
from mricodec.codec.formats.dicom.values import UNSCALED, SliceValues, StoredBits, rescale
from mricodec.codec.volume import Envelope

from .stream import Source, Stream, opened

if TYPE_CHECKING:
    from pydicom import Dataset

Salvage = Callable[[str], None]  # It is called with a line for what is lost.
# RescaleIntercept, RescaleSlope and DoseGridScaling.
_SCALE_TAGS = (0x00281052, 0x00281053, 0x3004000E)


def series_headers(source: Source, *, limits: Limits | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, bytes around the pixel data) of every file of a stream; nothing is decoded.

    The bytes are for `pydicom.dcmread(..., stop_before_pixels=True)`; b"" where a file is kept as
    one piece. FormatError if the stream is damaged.
    """
    with opened(source) as file:
        for entry, header in entries_with_headers(Stream(file, limits or DEFAULT_LIMITS)):
            yield entry.name, header


def further_stacks(source: Source, *, limits: Limits | None = None) -> Iterator[bytes]:
    """The stacks of a series besides the largest: streams of samples as they are in the files.

    `further_volumes` has the values that these stand for.
    """
    with opened(source) as file:
        yield from Stream(file, limits or DEFAULT_LIMITS).reader.chunks(STCK)


def file_table(stream: Stream) -> FileTable:
    """The table of files; FormatError if it is the stream of another scan."""
    if stream.table is None:
        raise FormatError(
            "expected the stream of a DICOM series, found that of another scan: "
            "decode it into a .nii"
        )
    return stream.table


def entries_with_headers(stream: Stream) -> Iterator[tuple[FileEntry, bytes]]:
    """(entry, head + tail) of every file in the order of the table. FormatError."""
    for entry, header in zip(file_table(stream).files, _records(stream), strict=True):
        if len(header) != entry.head + entry.tail:
            raise FormatError(
                f"expected {entry.head + entry.tail} bytes around the voxels of {entry.name}, "
                f"found {len(header)}: the file is damaged"
            )
        yield entry, header


def _records(stream: Stream) -> Iterator[bytes]:
    """Head and tail of every file, exactly one for each entry of the table."""
    missing = len(file_table(stream).files)
    for payload in stream.reader.chunks(DHDR):
        for record in unpack_records(payload, stream.reader.limits.max_metadata_bytes, missing):
            missing -= 1
            yield record
    if missing:
        raise FormatError(
            f"expected a record of every file in DHDR, found {missing} too few: the file is damaged"
        )


# Samples that are values.
AS_STORED = SliceValues()


@dataclass(frozen=True, eq=False)
class View:
    """A volume of a series within the stream of a stack.

    values: of its samples. part: its slices; None where it is the stack as it stands. rescale:
    (slope, intercept) where these are not those of the stack.
    """

    values: SliceValues = AS_STORED
    part: Part | None = None
    rescale: tuple[float, float] | None = None

    def shape(self, stream: Stream) -> tuple[int, ...]:
        """stream: that of the stack."""
        return stream.shape if self.part is None else (*self.part.shape, *stream.shape[-2:])

    def envelope(self, envelope: Envelope) -> Envelope:
        """envelope: that of the stack."""
        if self.part is not None:
            part = self.part
            envelope = replace(envelope, affine=part.affine, spacing_mm=part.spacing_mm)
        slope, inter = self.rescale or (envelope.slope, envelope.inter)
        if self.values.scales is not None:
            slope, inter = UNSCALED
        return replace(envelope, slope=slope, inter=inter)


def stack_streams(stream: Stream) -> Iterator[Stream]:
    """The stream of each stack of a series. FormatError if they are not those of its table."""
    table = file_table(stream)
    count = 0
    if table.tiles:
        count += 1
        yield stream
    for payload in stream.reader.chunks(STCK):
        count += 1
        inner = Stream(payload, stream.reader.limits)
        if inner.table is not None or 0 in inner.shape:
            raise FormatError("expected a volume in STCK, found a series: the file is damaged")
        yield inner
    if count != len(table.tiles):
        raise FormatError(f"expected {len(table.tiles)} stacks, found {count}: the file is damaged")


def first_view(stream: Stream, salvage: Salvage | None = None) -> View:
    """How the largest volume is seen in a stream: of a series, or of a scan that was one file.

    With `salvage`, which is called with a line, damaged headers only mean that samples stay as
    they are stored. Else FormatError.
    """
    if stream.table is None or not stream.table.tiles:
        return View()
    try:
        return next(views(stream))[1]
    except FormatError as error:
        if salvage is None:
            raise
        salvage(f"the headers, so that values are as they are stored: {error}")
        return View()


def further_views(stream: Stream) -> Iterator[tuple[Stream, View]]:
    """The volumes of a series besides the largest, each in the stream of its stack. FormatError."""
    return itertools.islice(views(stream), 1, None) if stream.table is not None else iter(())


def views(stream: Stream) -> Iterator[tuple[Stream, View]]:
    """The volumes of a series, each in the stream of its stack. FormatError."""
    headers: dict[int, list[tuple[FileEntry, bytes]]] = {}
    for entry, header in entries_with_headers(stream):
        if entry.slots:
            headers.setdefault(entry.stack, []).append((entry, header))
    for number, stack in enumerate(stack_streams(stream)):
        files = headers.get(number, [])
        slices = math.prod(stack.shape[:-2])
        if any(max(entry.slots) >= slices for entry, _ in files):
            raise FormatError(f"expected {slices} slices in DICM, found more: the file is damaged")
        try:
            with quiet_pydicom():
                views_of_stack = _views_of(stack, files, slices)
        except (MemoryError, FormatError):
            raise
        except Exception as error:  # pydicom passes on errors of many types.
            raise FormatError(
                f"expected DICOM headers in DHDR, found damage ({type(error).__name__}): "
                "the file is damaged"
            ) from error
        for view in views_of_stack:
            yield stack, view


def _views_of(stack: Stream, files: list[tuple[FileEntry, bytes]], slices: int) -> list[View]:
    """The volumes of a stack, from its files and their headers."""
    if stack.native.kind not in "iu" or not files:
        return [View()]
    first = _dataset(files[0][1])
    bits = ImagePixelModule.of(first).bits
    if is_enhanced(first) and len(files[0][0].slots) > 1:
        frames = _enhanced_frames(files, slices)
        return [View(SliceValues(bits))] if frames is None else _parts(stack, frames, bits)
    if len({_scale_bytes(header) for _, header in files}) == 1:
        return [View(SliceValues(bits))]
    rescales = [UNSCALED] * slices
    for entry, header in files:
        pair = rescale(_dataset(header)) or UNSCALED
        for slot in entry.slots:
            rescales[slot] = pair
    return [View(SliceValues.of(bits, rescales))]


def _enhanced_frames(files: list[tuple[FileEntry, bytes]], slices: int) -> list[Frame] | None:
    """The frame in each slice of a stack; None if one is missing."""
    frames: dict[int, Frame] = {}
    for entry, header in files:
        frames.update(
            zip(entry.slots, enhanced_frames(_dataset(header), len(entry.slots)), strict=True)
        )
    return [frames[slot] for slot in range(slices)] if len(frames) == slices else None


def _parts(stack: Stream, frames: list[Frame], bits: StoredBits) -> list[View]:
    """The volumes of a stack of enhanced frames."""
    parts = arrange(frames)
    views_of_parts: list[View] = []
    for part in parts:
        rescales = [frames[n].rescale for n in part.slices]
        values = SliceValues.of(bits, rescales)
        in_order = part.slices == tuple(range(len(frames)))  # So it is the only one.
        if in_order and part.shape == stack.shape[:-2]:
            return [View(values)]
        views_of_parts.append(View(values, part, rescales[0]))
    return views_of_parts


def _scale_bytes(header: bytes) -> tuple[bytes, ...]:
    """What a header has of RescaleSlope and the like, as bytes."""
    return tuple(piece for tag in _SCALE_TAGS for piece in element_bytes(header, tag))


def _dataset(header: bytes) -> Dataset:
    from pydicom import dcmread

    is_bare = header[128:132] != b"DICM"
    return dcmread(io.BytesIO(header), stop_before_pixels=True, force=is_bare)
