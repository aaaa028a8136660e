"""The registry: names, ids and files without torch; a line for damaged, foreign and unfit files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import check_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mricodec.models import loader, names, zoo
from mricodec.models.lossless import fronts
from mricodec.models.study import registry
from mricodec.models.weights_file import (
    MAX_FILE_BYTES,
    NETWORK_KEY,
    WEIGHTS,
    WeightsError,
)

ENTRIES = (*zoo.REGISTRY, *registry.REGISTRY)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_shipped_weights(entry: zoo.Entry) -> None:
    check_weights(entry)
    assert zoo.find(entry.name) == zoo.find(entry.model_id) == entry


def test_shipped_tables_of_the_predictive_coder() -> None:
    check_weights(fronts.WEIGHTS, fronts.WEIGHTS_SHA256)


def test_every_shipped_file_has_an_entry() -> None:
    files = {path.name for path in WEIGHTS.glob("*-*.safetensors")}
    assert files == {entry.path.name for entry in ENTRIES}
    assert names() == [
        "default", "hyperprior", "factorized",
        "cnn8", "cnn16", "cnn32", "unet", "unet-2level", "vae",
    ]  # fmt: skip


def test_names_need_no_torch_and_the_product_no_study() -> None:
    code = """
import sys
from mricodec import models
models.names()
from mricodec.models import zoo
zoo.find("vae")
assert "torch" not in sys.modules and "mricodec.models.study.vae" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = """
import sys
from mricodec.models.loader import load_model
load_model("default")
load_model("hyperprior")
assert not [name for name in sys.modules if name.startswith("mricodec.models.study")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_and_ids() -> None:
    with pytest.raises(zoo.UnknownModelError, match=r"expected default, hyperprior.*found 'nope'"):
        loader.load_model("nope")
    with pytest.raises(zoo.UnknownModelError, match=r"model 0102030405060708.*MRICODEC_MODELS"):
        loader.load_model(bytes(range(1, 9)))
    with pytest.raises(zoo.UnknownModelError, match=r"network: expected default.*found nope"):
        zoo.network("nope")


@pytest.fixture
def hyperprior(tmp_path: Path) -> Path:
    """The shipped file with a metadata that names its network: another SHA-256."""
    path = tmp_path / "mine.safetensors"
    entry = zoo.find("hyperprior")
    save_file(load_file(entry.path), path, metadata={NETWORK_KEY: "hyperprior"})
    return path


def test_a_file_that_names_its_network(hyperprior: Path) -> None:
    model = loader.load_model(hyperprior)
    assert model.name == "mine"
    assert model.model_id == hashlib.sha256(hyperprior.read_bytes()).digest()[:8]
    assert loader.load_model(str(hyperprior)).model_id == model.model_id


def test_a_copy_of_a_shipped_file_is_the_shipped_model(tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    shutil.copy(zoo.find("cnn8").path, path)
    assert loader.load_model(path).name == "cnn8"


def test_files_of_the_environment_variable(
    hyperprior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = loader.load_model(hyperprior).model_id
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("MRICODEC_MODELS", f"{tmp_path / 'absent'}:{folder}")
    assert zoo.locate(model_id) is None
    # A name that promises the id is not believed.
    (folder / f"a-{model_id.hex()[:8]}.safetensors").write_bytes(b"other")
    (folder / "b.safetensors").mkdir()
    assert zoo.locate(model_id) is None
    shutil.copy(hyperprior, folder / "any.safetensors")
    assert zoo.locate(model_id) == folder / "any.safetensors"
    assert loader.load_model(model_id).model_id == model_id
    shutil.copy(hyperprior, folder / f"z-{model_id.hex()[:8]}.safetensors")
    assert zoo.locate(model_id) == folder / f"z-{model_id.hex()[:8]}.safetensors"


def with_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    """The file with some tensors replaced or, for None, left out; "__" stands for a dot."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for key, value in changes.items():
        name = key.replace("__", ".")
        assert name in tensors
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gains": None}, "missing.*gains"),
        ({"gains": torch.zeros(3, 128)}, "size mismatch"),
        ({"gains": torch.full((10, 128), torch.nan)}, "not finite"),
        ({"h_s_first__weight": torch.ones(64, 32, 1, 1, dtype=torch.int8)}, "h_s_first.weight"),
        ({"h_s_first__weight": torch.ones(64, 32, 3, 3)}, "h_s_first.weight"),
        ({"h_s_first__bias": torch.full((64,), 1 << 24, dtype=torch.int32)}, "exact sums"),
        ({"h_s_first__shift": None}, "h_s_first.shift"),
        ({"tables__z": None}, "do not code a picture"),
        ({"tables__z": torch.ones(32, 66, dtype=torch.int32)}, "summing to"),
        ({"tables__y": torch.full((1, 1), 1 << 24, dtype=torch.int32)}, "expected 1 to"),
    ],
    ids=str,
)
def test_unfit_files(
    hyperprior: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    with_tensors(hyperprior, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        loader.load_model(hyperprior)
    assert "\n" not in str(caught.value) and str(hyperprior) in str(caught.value)


def test_damaged_and_foreign_files(hyperprior: Path, tmp_path: Path) -> None:
    data = hyperprior.read_bytes()
    path = tmp_path / "bad.safetensors"
    for bad in (b"", b"\x80\x04K\x01.", data[:100], data[:-1], b"\xff" * 64, b"[]" * 40):
        path.write_bytes(bad)
        with pytest.raises(WeightsError, match=r"bad\.safetensors"):
            loader.load_model(path)
    save_file(load_file(hyperprior), path)
    with pytest.raises(WeightsError, match=NETWORK_KEY):
        loader.load_model(path)
    save_file(load_file(hyperprior), path, metadata={NETWORK_KEY: "later"})
    with pytest.raises(WeightsError, match="found later"):
        loader.load_model(path)
    save_file(load_file(hyperprior), path, metadata={NETWORK_KEY: "default"})
    with pytest.raises(WeightsError, match="do not fit the network"):
        loader.load_model(path)
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(WeightsError, match="at most 256 MiB"):
        loader.load_model(path)
    with pytest.raises(FileNotFoundError):
        loader.load_model(tmp_path / "absent.safetensors")


def test_a_shipped_file_that_is_damaged_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mricodec.models.weights_file.WEIGHTS", tmp_path)
    with pytest.raises(WeightsError, match="install mricodec again"):
        loader.load_model("cnn8")
    zoo.find("cnn8").path.write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"expected SHA-256 5b1aaf3f.*install mricodec again"):
        loader.load_model("cnn8")
