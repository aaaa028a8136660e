"""Models that somebody trained: encode with a file, and find it again to decode."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from paths import DATA
from safetensors.torch import load_file, save_file

from mricodec import codec
from mricodec.cli.main import cli
from mricodec.codec.evaluation.codecs import Mricodec
from mricodec.models import zoo
from mricodec.models.weights_file import NETWORK_KEY

SCAN = DATA / "thick_flair.nii.gz"


@pytest.fixture(scope="module", params=["factorized", "default"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that differs from the shipped one in its metadata, and so in its id."""
    path: Path = tmp_path_factory.mktemp("trained") / "mine.safetensors"
    shipped = zoo.find(request.param).path
    save_file(load_file(shipped), path, metadata={NETWORK_KEY: request.param})
    return path


def model_id(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).digest()[:8].hex()


@pytest.fixture(scope="module")
def stream(weights: Path) -> bytes:
    encoded = codec.encode(SCAN, quality=40, model=weights)
    assert encoded is not None
    return encoded


def test_the_stream_names_the_file(weights: Path, stream: bytes) -> None:
    info = codec.info(stream)
    assert info.model_id == model_id(weights)
    assert codec.model_name(info.model_id) is None
    for _ in range(2):
        assert codec.version(weights).endswith(model_id(weights))


def test_decoding_finds_the_file(
    weights: Path, stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(codec.UnknownModel, match=f"{model_id(weights)}.*--model.*MRICODEC_MODELS"):
        codec.decode(stream)
    named = codec.Decoder(model=weights).decode(stream)
    codec.verify(stream, deep=True, model=str(weights))
    monkeypatch.setenv("MRICODEC_MODELS", str(weights.parent))
    assert codec.model_name(model_id(weights)) == str(weights)
    assert np.array_equal(codec.decode(stream).array, named.array)
    # A named file that is another model gives way to one from the folders.
    other = zoo.find("cnn8").path
    assert np.array_equal(codec.Decoder(model=other).decode(stream).array, named.array)
    monkeypatch.delenv("MRICODEC_MODELS")
    with pytest.raises(codec.UnknownModel, match=r"cnn8-.* is the model 5b1aaf3f4ae42a85"):
        codec.Decoder(model=other).decode(stream)


def test_a_named_file_does_not_stand_in_for_a_shipped_model(weights: Path) -> None:
    stream = codec.encode(SCAN, quality=40, model="factorized")
    assert stream is not None
    decoded = codec.Decoder(model=weights).decode(stream).array
    assert np.array_equal(decoded, codec.decode(stream).array)


def test_what_is_no_weights_file(tmp_path: Path, stream: bytes) -> None:
    array = np.asarray(nibabel.load(SCAN).dataobj)  # type: ignore[attr-defined]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x04pickle")
    with pytest.raises(codec.FormatError, match=r"bad\.safetensors: expected a safetensors file"):
        codec.encode(array, model=bad)
    with pytest.raises(codec.FormatError, match=r"bad\.safetensors: expected a safetensors file"):
        codec.Decoder(model=bad).decode(stream)
    with pytest.raises(FileNotFoundError):
        codec.encode(array, model=tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"model: expected a file \.safetensors, found 'default'"):
        codec.Decoder(model="default")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands(weights: Path, tmp_path: Path) -> None:
    stream, scan = tmp_path / "scan.mrc", tmp_path / "scan.nii.gz"
    done = run("encode", SCAN, "-o", stream, "--model", weights, "--quality", 40)
    assert done.exit_code == 0, done.output
    shown = run("info", stream).output
    assert "not here: needs a weights file whose SHA-256 begins with the id" in shown
    assert f"({model_id(weights)})" in shown
    failed = run("decode", stream, "-o", scan)
    assert failed.exit_code == 1 and f"-{model_id(weights)[:8]}.safetensors" in failed.output
    assert len(failed.output.strip().splitlines()) == 1
    assert run("verify", "--deep", stream).exit_code == 1
    for command in (
        ("decode", stream, "-o", scan, "--model", weights),
        ("verify", "--deep", stream, "--model", weights),
        ("compare", SCAN, stream, "--model", weights),
    ):
        done = run(*command)
        assert done.exit_code == 0, done.output
    values = json.loads(run("info", stream, "--json").output)
    assert values["model"] is None and values["model_id"] == model_id(weights)
    assert run("encode", SCAN, "-o", stream, "-f", "--model", "absent.safetensors").exit_code == 1


def test_a_curve_of_a_file(weights: Path, tmp_path: Path) -> None:
    measured = Mricodec(str(weights))
    assert measured.name == "mricodec-mine" and measured.version.endswith(model_id(weights))
    failed = run("rd-curve", SCAN, "-o", tmp_path / "rd", "--model", "nope")
    assert failed.exit_code == 2 and "FILE.safetensors, found 'nope'" in failed.output
    failed = run("rd-curve", SCAN, "-o", tmp_path / "rd", "--model", "absent.safetensors")
    assert failed.exit_code == 2 and "absent.safetensors" in failed.output


def test_help_lists_the_models() -> None:
    shown = " ".join(run("encode", "--help").output.split())
    assert "default, for research: hyperprior, factorized, cnn8" in shown
