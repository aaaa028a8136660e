"""A stream in a DICOM object (Raw Data Storage, codec/dicom/raw_data.py): where it is in the file.

(7FDF,0010) LO  MRICODEC
(7FDF,1000) UL  bytes of the stream
(7FDF,1001) OB  the stream, padded to even length
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, BinaryIO

from mricodec.bitstream.container import MAGIC, Span
from mricodec.bitstream.errors import FormatError

from .elements import (
    PREFIX_SIZE,
    binary_numbers,
    is_bare_dataset,
    is_dicom,
    quiet_pydicom,
    raw_element,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# The private creator of the elements.
CREATOR = "MRICODEC"
# The private group, and the offsets of its elements in the creator's block.
GROUP, LENGTH, STREAM = 0x7FDF, 0x00, 0x01
# Bytes of elements that are not read when the stream is looked for.
_DEFERRED_BYTES = 1 << 16


def is_wrapped(dataset: Dataset) -> bool:
    """Whether a data set holds a stream."""
    try:
        return LENGTH in dataset.private_block(GROUP, CREATOR)
    except KeyError:
        return False


def may_wrap(prefix: bytes) -> bool:
    """Whether a file that begins so is DICOM, and so may hold a stream."""
    return not prefix.startswith(MAGIC) and (is_dicom(prefix) or is_bare_dataset(prefix))


def holds_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM object that wraps a stream."""
    try:
        with open(path, "rb") as file:
            return stream_span(file) is not None
    except FormatError:
        return False


def stream_span(file: BinaryIO) -> Span | None:
    """The stream in a DICOM file, with or without preamble; None if the file is no DICOM.

    FormatError for a DICOM file without a stream, or a damaged one.
    """
    file.seek(0)
    prefix = file.read(PREFIX_SIZE)
    if not may_wrap(prefix):
        return None
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    offset, length = _element(file, is_bare_dataset(prefix))
    if offset + length > size:
        raise FormatError(
            f"expected a stream of {length} bytes in the DICOM file, found {size - offset}: "
            "it is damaged"
        )

    lock = threading.Lock()

    def fetch(at: int, count: int) -> bytes:
        with lock:
            file.seek(at)
            return file.read(count)

    span = Span(fetch, offset, length)
    if span.read(0, len(MAGIC)) != MAGIC:
        raise FormatError("expected an mricodec stream in the DICOM file, found other bytes")
    return span


def _element(file: BinaryIO, bare: bool) -> tuple[int, int]:
    """(offset, length) of the stream in a DICOM file. FormatError if there is none."""
    from pydicom import dcmread

    try:
        with quiet_pydicom():
            dataset = dcmread(file, force=bare, defer_size=_DEFERRED_BYTES)
            block = dataset.private_block(GROUP, CREATOR)
            lengths = binary_numbers(dataset, block.get_tag(LENGTH), "I")
            padded = raw_element(dataset, block.get_tag(STREAM))
            offset, stored = int(padded.value_tell), int(padded.length)
    except (KeyError, ValueError, AttributeError, EOFError, NotImplementedError, OSError) as error:
        raise FormatError(
            f"expected a DICOM file with an mricodec stream in it, found none ({error})"
        ) from error
    except Exception as error:  # pydicom passes on errors of many types.
        raise FormatError(
            f"expected a DICOM file, found damage ({type(error).__name__})"
        ) from error
    length = int(lengths[0]) if lengths else -1
    if stored != length + length % 2:
        raise FormatError(
            f"expected a stream of {length} bytes in the DICOM file, found {stored}: it is damaged"
        )
    return offset, length
