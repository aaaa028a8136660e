"""Packages that only some uses need: they come with extras of the installation."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an extra is needed and can't be imported; the message names the extra."""


def require(module: str, extra: str, use: str) -> Any:
    """The imported module. MissingExtra if it can't be imported.

    use: what needs it, the beginning of the message.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"{use}: expected the package {package}, which can't be imported ({error}); "
            f'pip install "mricodec[{extra}]"'
        ) from error


def require_torch(use: str) -> Any:
    """torch, of the extra `models`: networks in training, for research, and on a GPU."""
    return require("torch", "models", use)
