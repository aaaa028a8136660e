"""What can be wrong with a stream.

Every message is one line and says what was expected, what was found, where, and what to do about
it. Wrong arguments are ``ValueError``; trouble with the disk stays ``OSError``.
"""

from __future__ import annotations


class FormatError(ValueError):
    """The bytes are not a stream that this version can decode."""


class Truncated(FormatError):
    """The stream ends before it is complete."""


class ChecksumMismatch(FormatError):
    """A checksum or digest does not match the bytes it was taken of."""


class UnsupportedVersion(FormatError):
    """The stream needs a newer reader: its version, a critical chunk or a code is unknown here."""


class UnknownModel(FormatError):
    """The stream was made with a model whose weights are not at hand."""


class LimitExceeded(FormatError):
    """The stream asks for more than the caller's ``Limits`` allow."""


def error_text(error: BaseException) -> str:
    """What an error says, in one line; an OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
