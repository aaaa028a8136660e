"""The product's registry: names and ids of models, their networks, and where weights files lie. No
torch.

Entries are appended and never changed. The networks of the representation study have a registry of
their own, which is looked into only when a name or an id is not here.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .weights_file import (
    ID_BYTES,
    MAX_FILE_BYTES,
    NAME_DIGITS,
    NETWORK_KEY,
    SUFFIX,
    Entry,
    Network,
    WeightsError,
    is_file_name,
    network_name,
    read_file,
    read_shipped,
)

DEFAULT = "default"
# Environment variable with folders of weights files that are not shipped, separated as in PATH.
FOLDERS_VARIABLE = "MRICODEC_MODELS"
# Files of a folder that are hashed in search of an id.
MAX_HASHED_FILES = 256
_STUDY = "mricodec.models.study.registry"

NETWORKS: dict[str, Network] = {
    "default": Network("mricodec.models.lossy.context_model:ContextCodec"),
    "hyperprior": Network("mricodec.models.lossy.hyperprior:ScaleHyperprior"),
    "factorized": Network("mricodec.models.lossy.hyperprior:FactorizedPrior"),
}
REGISTRY: tuple[Entry, ...] = (
    Entry(
        "hyperprior",
        NETWORKS["hyperprior"],
        "9b65e38e47004fd2676c3574a53645d0aaa327613c41dd34905421a363ba65b0",
    ),
    Entry(
        "factorized",
        NETWORKS["factorized"],
        "5ed9ddaab508222216f9ee1cbce13dbd3bb472488db2aeea1ceb14ba2b897070",
    ),
    Entry(
        "default",
        NETWORKS["default"],
        "c8bc7683114c1138db43f99258f610049baa6c997b3ea8fd87f5da0c13954183",
    ),
)


class UnknownModelError(KeyError):
    """No model has this name or id."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Weights:
    """The bytes of a weights file and the network they are for; path: of one that isn't shipped."""

    name: str
    network: Network
    data: bytes
    path: Path | None = None

    @property
    def is_default(self) -> bool:
        """Whether they are for the network of the model `default`."""
        return self.network == NETWORKS[DEFAULT]

    @property
    def shown(self) -> str:
        """Their name or file, for a message."""
        return self.name if self.path is None else str(self.path)


def read(model: str | bytes | os.PathLike[str]) -> Weights:
    """The weights of a name, of the id in a stream, or of a file (*.safetensors).

    UnknownModelError, OSError, WeightsError.
    """
    if isinstance(model, bytes):
        path = None if is_shipped(model) else locate(model)
        if path is not None:
            return _read_path(path)
    elif is_file_name(model):
        return _read_path(Path(model))
    return _read_entry(find(model if isinstance(model, bytes) else str(model)))


def _read_path(path: Path) -> Weights:
    """The weights of a file that `mricodec train` wrote, or of a copy of a shipped one."""
    data = read_file(path)
    digest = hashlib.sha256(data).digest()[:ID_BYTES]
    if is_shipped(digest):
        return _read_entry(find(digest))
    try:
        name = network_name(data)
        if name is None:
            raise WeightsError(
                f"expected the metadata {NETWORK_KEY!r}, which `mricodec train` writes, found none"
            )
        return Weights(path.stem, network(name), data, path)
    except (WeightsError, UnknownModelError) as error:
        raise WeightsError(f"{path}: {error}") from error


def _read_entry(entry: Entry) -> Weights:
    try:
        data = read_shipped(entry.path, entry.sha256)
    except OSError as error:
        raise WeightsError(
            f"{entry.path}: cannot read the weights of {entry.name} ({error.strerror}): "
            "install mricodec again"
        ) from error
    return Weights(entry.name, entry.network, data)


def names() -> list[str]:
    """Names of the shipped models, the product's before the study's."""
    product = [name for name in NETWORKS if _of(name, REGISTRY)]
    return [*product, *dict.fromkeys(entry.name for entry in _study().REGISTRY)]


def network(name: str) -> Network:
    """The architecture of a name. UnknownModelError."""
    known = NETWORKS if name in NETWORKS else _study().NETWORKS
    if name not in known:
        raise UnknownModelError(f"network: expected {', '.join(NETWORKS | known)}, found {name}")
    return known[name]


def find(model: str | bytes) -> Entry:
    """The shipped model of a name (the latest of that name) or of an id. UnknownModelError."""
    entry = _of(model, REGISTRY) or _of(model, _study().REGISTRY)
    if entry is not None:
        return entry
    if isinstance(model, bytes):
        raise UnknownModelError(
            f"the model {model.hex()} is not here: expected a weights file whose SHA-256 begins so "
            f"(*-{model.hex()[:NAME_DIGITS]}{SUFFIX}); name it with --model (Python: "
            f"Decoder(model=...)), put it into a folder of {FOLDERS_VARIABLE}, or update mricodec"
        )
    raise UnknownModelError(
        f"model: expected {', '.join(names())}, or a file {SUFFIX}, found {model!r}"
    )


def is_shipped(model_id: bytes) -> bool:
    """Whether the model of an id comes with the package."""
    return any(_of(model_id, registry) for registry in (REGISTRY, _study().REGISTRY))


def locate(model_id: bytes) -> Path | None:
    """The file of an id in the folders of MRICODEC_MODELS, its whole SHA-256 checked.

    Files named after the id are read first, then up to 256 others of each folder.
    """
    for folder in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep):
        for path in _candidates(Path(folder), model_id) if folder else ():
            if _id_of(path) == model_id:
                return path
    return None


def _of(model: str | bytes, registry: tuple[Entry, ...]) -> Entry | None:
    return next((e for e in reversed(registry) if model in (e.name, e.model_id)), None)


def _study() -> Any:
    return importlib.import_module(_STUDY)


def _candidates(folder: Path, model_id: bytes) -> Iterator[Path]:
    named = f"-{model_id.hex()[:NAME_DIGITS]}{SUFFIX}"
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: not path.name.endswith(named))
    yield from paths[:MAX_HASHED_FILES]


def _id_of(path: Path) -> bytes | None:
    """None for what can't be read or is too large for a weights file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        return hashlib.sha256(path.read_bytes()).digest()[:ID_BYTES]
    except OSError:
        return None
