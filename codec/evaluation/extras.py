"""Packages of the extra `bench`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package that only measuring and plotting need is not installed."""


def require(module: str) -> Any:
    """The imported module; MissingExtra, with what to install, if it can't be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f"{package} is needed here and cannot be imported ({error})"
        raise MissingExtra(f"{message}; pip install 'mricodec[bench]'") from error
