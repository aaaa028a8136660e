"""The version of the installed package."""

from __future__ import annotations


def release() -> str:
    """The version of the installed package, or "source" in a source tree."""
    from importlib import metadata

    try:
        return metadata.version("mricodec")
    except metadata.PackageNotFoundError:
        return "source"
