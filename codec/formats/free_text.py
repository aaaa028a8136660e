"""Free text in NIfTI scans, which may identify a person: removed before encoding, or listed.

Free text is in data_type, db_name, descrip, aux_file and intent_name, in the extensions of the
header, and in whatever surrounds the voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from mricodec.codec.volume import Envelope, Scan

from .nifti_header import LAYOUTS, clear_fields, field_span, parse

# Fields of free text in either version of the header.
FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
# Printable characters of binary data that are listed come from its first bytes.
_LISTED_BYTES = 400


def free_text_fields(size: int) -> tuple[str, ...]:
    """The fields of free text of a header of `size` bytes."""
    return tuple(name for name in FIELDS if name in (LAYOUTS[size].names or ()))


def without_free_text(header: bytes) -> bytes:
    """The header without free text and without extensions."""
    return clear_fields(header, free_text_fields(parse(header, "header").size))


def list_free_text(envelope: Envelope) -> Iterator[tuple[str, str]]:
    """(name, value) of the free text around the voxels that is not empty."""
    header = envelope.header
    if header:
        parsed = parse(header, "ORIG")
        for name in free_text_fields(parsed.size):
            text = header[field_span(parsed.size, name)].split(b"\0")[0]
            if text.strip():
                yield name, text.decode("utf-8", "replace")
        extensions = header[parsed.size + 4 :]
        if any(extensions):
            yield "extensions", _summary(extensions)
    for name, raw in (
        ("bytes before the voxels", envelope.lead),
        ("bytes after the voxels", envelope.trailer),
    ):
        if any(raw):
            yield name, _summary(raw)


def _summary(raw: bytes) -> str:
    """The number of bytes, and their printable characters."""
    text = "".join(chr(byte) if 32 <= byte < 127 else " " for byte in raw[:_LISTED_BYTES])
    return f"{len(raw)} bytes: {' '.join(text.split())}"


class ScanWithoutFreeText:
    """A scan with the same voxels and geometry, its header without free text, nothing around it."""

    def __init__(self, scan: Scan) -> None:
        self.name, self.shape, self.dtype = scan.name, scan.shape, scan.dtype
        envelope = scan.envelope
        header = without_free_text(envelope.header) if envelope.header else b""
        self.envelope = replace(envelope, header=header, lead=b"", trailer=b"")
        self.declared_labels = scan.declared_labels
        self.chunks = scan.chunks
        self.blocks = scan.blocks
        self.close = scan.close

    def gzip_file(self) -> BinaryIO | None:
        return None
