"""Values of DICOM data elements as they are stored, read without any conversion that could fail.

A tag is a keyword of PS3.6 ("Rows") or, for a private element, a number.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

# pydicom's warnings are filtered for the whole process, so by one thread at a time.
_pydicom_warnings = threading.RLock()


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Suppress pydicom's warnings about unusual values, which are kept as they are."""
    with _pydicom_warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


def numbers(dataset: Dataset | None, tag: str | int) -> list[float]:
    """The values of a decimal or integer string (DS, IS); [] if absent or not numeric."""
    try:
        return [float(part) for part in text(dataset, tag).split("\\") if part.strip()]
    except ValueError:
        return []


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


@functools.cache
def _tag(tag: str | int) -> BaseTag:
    from pydicom.tag import Tag

    return Tag(tag)
