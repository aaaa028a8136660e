"""The installed package: every module and its data, one version, light imports, small weights."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")

ROOT = Path(__file__).parents[1]
# Bytes of all weights together.
MAX_WEIGHTS = 40_000_000
NOT_INSTALLED = {"tests", "benchmarks"}

project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages() -> set[Path]:
    """Every folder with a Python module, relative to the root, that belongs to the package."""
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*.py")}
    return {
        folder for folder in folders if folder.parts[0] not in NOT_INSTALLED | {"build", "dist"}
    }


def shipped() -> set[Path]:
    """Files that the package needs, relative to the root."""
    patterns = ["*.py", "py.typed", "FORMAT.md", "format/*.md", "sample/*", "weights/*.safetensors"]
    return {
        path.relative_to(ROOT)
        for folder in packages()
        for pattern in patterns
        for path in ROOT.glob(f"{folder}/{pattern}")
    }


def test_every_package_is_listed() -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(("mricodec", *folder.parts)) for folder in packages())


def test_the_root_is_a_namespace_package() -> None:
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("folder", sorted(packages()), ids=str)
def test_every_package_is_typed(folder: Path) -> None:
    assert (ROOT / folder.parts[0] / "py.typed").exists()


def test_everything_is_installed() -> None:
    try:
        distribution = metadata.distribution("mricodec")
    except metadata.PackageNotFoundError:
        pytest.skip("mricodec is not installed")
    files = {
        Path(*file.parts[1:]) for file in distribution.files or () if file.parts[0] == "mricodec"
    }
    if not files:
        pytest.skip("mricodec is installed in editable mode")
    assert shipped() - files == set()


def test_versions_agree() -> None:
    version = project["project"]["version"]
    released = re.findall(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert released[0] == ("Unreleased" if "dev" in version else version)
    try:
        assert metadata.version("mricodec") == version
    except metadata.PackageNotFoundError:
        pytest.skip("mricodec is not installed")


def test_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.glob("models/weights/*")) <= MAX_WEIGHTS


def test_the_sample_comes_with_its_licence() -> None:
    folder = ROOT / "codec" / "sample"
    notices = [
        (folder / "NOTICE").read_text(encoding="utf-8"),
        (ROOT / "NOTICE").read_text(encoding="utf-8"),
    ]
    for scan in folder.glob("*.nii.gz"):
        assert scan.name in notices[0]
        assert scan.relative_to(ROOT).as_posix() in notices[1]
    for scan in [
        *(ROOT / "tests" / "data").glob("*.nii.gz"),
        *(ROOT / "tests" / "data" / "dicom").iterdir(),
    ]:
        assert scan.relative_to(ROOT).as_posix() in notices[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import mricodec.codec"],
        ["-c", "import mricodec.bitstream.container"],
        ["-m", "mricodec.cli", "--help"],
        ["-m", "mricodec.cli", "encode", "--help"],
    ],
    ids=" ".join,
)
def test_torch_is_imported_only_where_a_network_runs(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()
    }
    assert imported.isdisjoint({"torch", "nibabel", "compressai", "matplotlib", "imagecodecs"})
