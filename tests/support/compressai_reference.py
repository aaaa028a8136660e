"""CompressAI, the reference of the entropy models, imported with or without torchvision.

CompressAI imports `torchvision.transforms` for image augmentation only. The torchvision of PyPI is
built for CUDA and can't be imported with a CPU torch; an empty module then stands in for it during
the import and no longer.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from functools import cache
from importlib.util import find_spec

import pytest


@cache
def _import() -> types.ModuleType:
    stand_ins: dict[str, types.ModuleType] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch-geometric
        try:
            importlib.import_module("torchvision.transforms")
        except (ImportError, RuntimeError, AttributeError):  # absent, or built for another torch
            stand_ins = {
                name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms")
            }
            vars(stand_ins["torchvision"])["transforms"] = stand_ins["torchvision.transforms"]
            sys.modules.update(stand_ins)
        try:
            return importlib.import_module("compressai")
        finally:
            for name in stand_ins:
                del sys.modules[name]


def import_compressai() -> types.ModuleType:
    """The module `compressai`; skips the calling test where it is not installed."""
    if find_spec("compressai") is None:
        pytest.skip("needs CompressAI: pip install --no-deps -c constraints.txt compressai")
    return _import()
