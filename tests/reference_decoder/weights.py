"""The weights files: tensors by name."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

FOLDER = Path(__file__).resolve().parents[2] / "models" / "weights"
PREDICTIVE = "c67fe647400be973411d6f6e7f54cb37db62eba20d9188a096ed499d62b8186b"


@cache
def tensors(digest: str) -> dict[str, NDArray[np.int64]]:
    """Tensors of the file whose SHA-256 begins with `digest`, integers as int64."""
    for path in sorted(FOLDER.glob("*.safetensors")):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest().startswith(digest):
            return {
                name: value.astype(np.int64) if value.dtype.kind in "iu" else value
                for name, value in load(data).items()
            }
    raise ValueError(f"expected a weights file of SHA-256 {digest} in {FOLDER}, found none")
