"""Values of DICOM data elements as they are stored, read without any conversion that could fail.

A tag is a keyword of PS3.6 ("Rows") or, for a private element, a number.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

# Bytes that suffice to recognise a DICOM file: the preamble and "DICM" (PS3.10 7.1).
PREFIX_SIZE = 132
# Bytes of the longest value that `element_bytes` returns.
_MAX_TEXT = 64
# pydicom's warnings are filtered for the whole process, so by one thread at a time.
_pydicom_warnings = threading.RLock()


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Suppress pydicom's warnings about unusual values, which are kept as they are."""
    with _pydicom_warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(prefix: bytes) -> bool:
    """Whether a file begins with a preamble and "DICM" (PS3.10 7.1)."""
    return prefix[128:132] == b"DICM"


def is_bare_dataset(prefix: bytes) -> bool:
    """Whether a file begins with an element of group 2 or 8: a data set without preamble."""
    return (
        not is_dicom(prefix) and prefix[:2] in (b"\x02\0", b"\x08\0") and len(prefix) >= PREFIX_SIZE
    )


def raw_element(dataset: Dataset | None, tag: str | int) -> Any:
    """The element as it was read, its value unconverted unless it is a sequence; None if absent."""
    return None if dataset is None else dataset.get_item(_tag(tag), keep_deferred=True)


def text(dataset: Dataset | None, tag: str | int) -> str:
    """The value of an element without padding, several joined by a backslash; "" if absent."""
    value = getattr(raw_element(dataset, tag), "value", None)
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return "\\".join(str(part) for part in value)
    return str(value)


def decoded_text(dataset: Dataset, tag: str | int) -> str:
    """The value of a text element (LO, SH, ...) in the SpecificCharacterSet; "" if absent.

    Bytes that the character set lacks become replacement characters.
    """
    value = getattr(raw_element(dataset, tag), "value", None)
    if not isinstance(value, bytes) or (value.isascii() and b"\x1b" not in value):
        return text(dataset, tag)
    from pydicom.charset import convert_encodings, decode_bytes
    from pydicom.valuerep import TEXT_VR_DELIMS

    sets = text(dataset, "SpecificCharacterSet").split("\\")
    try:
        decoded: str = decode_bytes(value, convert_encodings(sets), TEXT_VR_DELIMS)
    except (LookupError, ValueError):  # An escape sequence of a character set that none has.
        return text(dataset, tag)
    return decoded.strip(" \0")


def numbers(dataset: Dataset | None, tag: str | int) -> list[float]:
    """The values of a decimal or integer string (DS, IS); [] if absent or not numeric."""
    try:
        return [float(part) for part in text(dataset, tag).split("\\") if part.strip()]
    except ValueError:
        return []


def binary_numbers(dataset: Dataset | None, tag: str | int, code: str) -> list[float]:
    """The values of a binary element; code: its type in struct (UL "I", FL "f", FD "d")."""
    element = raw_element(dataset, tag)
    value = getattr(element, "value", None)
    if isinstance(value, bytes):
        count = len(value) // struct.calcsize(f"={code}")
        byte_order = "<" if element.is_little_endian else ">"
        return [float(part) for part in struct.unpack_from(f"{byte_order}{count}{code}", value)]
    if isinstance(value, (int, float)):
        return [float(value)]
    return [] if value is None else [float(part) for part in value]


def integer(
    dataset: Dataset, tag: str | int, default: int | None = None, *, signed: bool = False
) -> int:
    """A 16-bit number (US, SS); ValueError if it is absent and there is no default."""
    element = raw_element(dataset, tag)
    value = getattr(element, "value", None)
    if isinstance(value, bytes) and len(value) >= 2:
        byte_order = "little" if element.is_little_endian else "big"
        return int.from_bytes(value[:2], byte_order, signed=signed)  # type: ignore[arg-type]
    if isinstance(value, int):
        return value
    if default is None:
        raise ValueError(f"no {_tag(tag)} ({tag})")
    return default


def first_item(dataset: Dataset | None, tag: str | int) -> Dataset | None:
    """The first item of a sequence, None if it has none."""
    if dataset is None or _tag(tag) not in dataset:
        return None
    items = dataset[_tag(tag)].value
    return items[0] if items else None


def functional_groups(dataset: Dataset) -> tuple[Dataset | None, list[Dataset]]:
    """(item of SharedFunctionalGroupsSequence, items of PerFrameFunctionalGroupsSequence)."""
    per_frame = _tag("PerFrameFunctionalGroupsSequence")
    items = dataset[per_frame].value if per_frame in dataset else []
    return first_item(dataset, "SharedFunctionalGroupsSequence"), list(items or [])


def is_enhanced(dataset: Dataset) -> bool:
    """Whether an object has functional groups (PS3.3 C.7.6.16)."""
    return any(
        _tag(keyword) in dataset
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )


def element_bytes(data: bytes, tag: int) -> list[bytes]:
    """What may be the elements of a tag in a data set of any syntax, at any depth, as bytes.

    Nothing is parsed: equal lists come from equal elements, and that is what they are for.
    """
    pieces = []
    for order in ("<", ">"):
        pattern = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        at = data.find(pattern)
        while at >= 0:
            fixed = data[at : at + 8].ljust(8, b"\0")
            explicit = fixed[4:6].isalpha()
            size = struct.unpack(
                f"{order}{'H' if explicit else 'I'}", fixed[6 if explicit else 4 :]
            )
            pieces.append(data[at : at + 8 + min(size[0], _MAX_TEXT)])
            at = data.find(pattern, at + 4)
    return pieces


@functools.cache
def _tag(tag: str | int) -> BaseTag:
    from pydicom.tag import Tag

    return Tag(tag)
