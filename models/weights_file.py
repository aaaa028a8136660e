"""Weights files: which network one is for, and that its bytes are the expected ones. Safetensors
only; no torch.

A file holds int8 weights, int32 biases and uint8 shifts of the integer layers, float32 of layers
that only encode (bfloat16 of the study's models), int32 probability tables "tables.<set>", and in
its metadata the name of the network. Shipped files have no metadata: the registry knows them by
their SHA-256, whose first 8 bytes are the model id in a stream.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"
# Key of the metadata under which an exported file names its network.
NETWORK_KEY = "mricodec.network"
# Bytes of the SHA-256 that stand in a stream.
ID_BYTES = 8
# Hexadecimal digits of the SHA-256 in a file's name.
NAME_DIGITS = 8
# Files larger than this are refused unread; all shipped weights together stay under 40 MB.
MAX_FILE_BYTES = 1 << 28
# Bytes of the length that precedes the JSON header of a safetensors file.
_LENGTH_BYTES = 8


class WeightsError(ValueError):
    """A weights file that is damaged, of another network, or not the one that was expected."""


@dataclass(frozen=True)
class Network:
    """A network class by its location "module:class", and the arguments of its constructor."""

    location: str
    arguments: tuple[Any, ...] = ()

    def build(self) -> Any:
        """The network with random weights; imports its module."""
        module, _, name = self.location.partition(":")
        return getattr(importlib.import_module(module), name)(*self.arguments)


@dataclass(frozen=True)
class Entry:
    """A shipped weights file; `network` names its architecture."""

    name: str
    network: Network
    sha256: str

    @property
    def model_id(self) -> bytes:
        """The id of the model in a stream."""
        return bytes.fromhex(self.sha256)[:ID_BYTES]

    @property
    def path(self) -> Path:
        """The file in the package."""
        return WEIGHTS / file_name(self.name, self.sha256)


def is_file_name(model: str | os.PathLike[str]) -> bool:
    """Whether it names a weights file and not a model."""
    return not isinstance(model, str) or model.endswith(SUFFIX)


def file_name(name: str, sha256: str) -> str:
    """The name of a weights file: <name>-<first 8 digits of its SHA-256>.safetensors."""
    return f"{name}-{sha256[:NAME_DIGITS]}{SUFFIX}"


def read_file(path: Path) -> bytes:
    """The bytes of a weights file. OSError, or WeightsError if it is too large to be one."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise WeightsError(
            f"{path}: expected at most {MAX_FILE_BYTES >> 20} MiB of weights, "
            f"found {size >> 20} MiB"
        )
    return path.read_bytes()


def read_shipped(path: Path, sha256: str) -> bytes:
    """The bytes of a file of the package. OSError, or WeightsError if its SHA-256 is another."""
    data = read_file(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise WeightsError(
            f"{path}: expected SHA-256 {sha256[:16]}..., found {digest[:16]}...: "
            "the file is damaged; install mricodec again"
        )
    return data


def network_name(data: bytes) -> str | None:
    """The network that the metadata of a weights file names. WeightsError if it is no safetensors
    file.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    try:
        if len(header) != length or not header.startswith(b"{"):
            raise ValueError
        metadata = json.loads(header).get("__metadata__") or {}
        name = metadata.get(NETWORK_KEY)
    except (ValueError, AttributeError, RecursionError) as error:
        raise WeightsError("expected a safetensors file, found something else") from error
    return name if isinstance(name, str) else None
