"""The table of files and the DICOM headers in the stream of a series; no voxel is decoded."""

from __future__ import annotations

from collections.abc import Iterator

from mricodec.bitstream.chunks import DHDR, STCK
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.bitstream.series_chunks import FileEntry, FileTable, unpack_records

from .stream import Source, Stream, opened


def series_headers(source: Source, *, limits: Limits | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, bytes around the pixel data) of every file of a stream; nothing is decoded.

    The bytes are for `pydicom.dcmread(..., stop_before_pixels=True)`; b"" where a file is kept as
    one piece. FormatError if the stream is damaged.
    """
    with opened(source) as file:
        for entry, header in entries_with_headers(Stream(file, limits or DEFAULT_LIMITS)):
            yield entry.name, header


def further_stacks(source: Source, *, limits: Limits | None = None) -> Iterator[bytes]:
    """The stacks of a series besides the one that `decode` gives: streams, each for `decode`."""
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
