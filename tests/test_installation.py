"""An installation without extras: what works in it, and what names the extra that it needs."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import series, write
from nifti_files import single, smooth

from mricodec import codec
from mricodec.models.extras import MissingExtra, require

# A module that can't be imported, and leaves a trace in its folder where that is tried.
ABSENT = """
import pathlib
pathlib.Path(__file__).with_name("TRIED").write_text(__name__)
raise ImportError(f"No module named {__name__!r}")
"""
# What no command needs for NIfTI scans.
NIFTI_NEEDS_NO = ("torch", "nibabel", "pydicom", "scipy", "matplotlib")


class Installation:
    """Python without some packages, also in the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._absent = folder / "absent"

    def run(self, *arguments: str, absent: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """python ARGUMENTS in the folder."""
        self._absent.mkdir()
        for name in absent:
            (self._absent / f"{name}.py").write_text(ABSENT)
        path = [str(self._absent), *(os.path.abspath(entry) for entry in sys.path if entry)]
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def tried(self) -> str | None:
        """The absent package whose import was tried last."""
        trace = self._absent / "TRIED"
        return trace.read_text() if trace.exists() else None


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """With scans, a stream without loss, one with loss, and a DICOM series in its folder."""
    (tmp_path / "in").mkdir()
    for name in ("scan.nii.gz", "in/other.nii.gz"):
        (tmp_path / name).write_bytes(gzip.compress(single(smooth((12, 40, 36)))))
    codec.encode(tmp_path / "scan.nii.gz", lossless=True, out=tmp_path / "scan.mrc")
    codec.encode(tmp_path / "scan.nii.gz", out=tmp_path / "lossy.mrc")
    write(series(), tmp_path / "dicom")
    return Installation(tmp_path)


def check(installation: Installation, *arguments: str, absent: tuple[str, ...]) -> None:
    done = installation.run(*arguments, absent=absent)
    assert done.returncode == 0, done.stderr
    assert installation.tried() is None


@pytest.mark.parametrize(
    "command",
    [
        "--version",
        "--help",
        "info scan.mrc",
        "verify scan.mrc",
        "encode scan.nii.gz -o out.mrc",
        "encode scan.nii.gz -o out.mrc --effort fast",
        "encode scan.nii.gz -o out.mrc --psnr 40",
        "encode scan.nii.gz in/other.nii.gz -o out/ --ratio 10",
        "decode lossy.mrc -o out.nii.gz",
        "decode lossy.mrc -o out.nii --slices 2:4",
        "decode lossy.mrc -o out.nii --preview",
        "verify --deep lossy.mrc",
        "compare scan.nii.gz lossy.mrc",
        "batch in out --jobs 2",
    ],
)
def test_nifti_with_loss_needs_numpy_alone(installation: Installation, command: str) -> None:
    arguments = ("-m", "mricodec.cli", *command.split())
    check(installation, *arguments, absent=(*NIFTI_NEEDS_NO, "constriction"))


@pytest.mark.parametrize(
    "command",
    [
        "verify --deep scan.mrc",
        "encode scan.nii.gz -o out.mrc --lossless",
        "encode scan.nii.gz -o out.mrc --lossless --layers",
        "encode scan.nii.gz -o out.mrc --max-error 0.5sigma",
        "decode scan.mrc -o out.nii.gz",
        "decode scan.mrc -o out.nii --preview",
        "batch in out --lossless --jobs 2",
    ],
)
def test_nifti_without_loss_needs_constriction(installation: Installation, command: str) -> None:
    check(installation, "-m", "mricodec.cli", *command.split(), absent=NIFTI_NEEDS_NO)


@pytest.mark.parametrize(
    ("command", "constriction"),
    [
        ("encode dicom -o series.mrc", False),
        ("encode dicom -o series.mrc --lossless", True),
        ("compare dicom dicom", False),
        ("info --phi scan.mrc", False),
        ("wrap lossy.mrc -o lossy.dcm", False),
    ],
)
def test_dicom_needs_no_torch(installation: Installation, command: str, constriction: bool) -> None:
    absent = ("torch", "nibabel", *(() if constriction else ("constriction",)))
    check(installation, "-m", "mricodec.cli", *command.split(), absent=absent)


def test_the_nibabel_plugin_needs_no_torch(installation: Installation) -> None:
    code = """
import nibabel
from mricodec import codec
codec.nibabel_plugin.register()
assert nibabel.load("lossy.mrc").get_fdata().shape == (36, 40, 12)
"""
    check(installation, "-c", code, absent=("torch", "constriction"))


def test_the_pydicom_plugin_needs_no_torch(installation: Installation) -> None:
    code = """
import pathlib
import pydicom
from mricodec import codec
codec.pydicom_plugin.register()
image = pydicom.dcmread(sorted(pathlib.Path("dicom").iterdir())[0])
pixels = image.pixel_array.copy()
image.compress(codec.pydicom_plugin.MRICODEC_LOSSLESS)
assert (image.pixel_array == pixels).all()
"""
    check(installation, "-c", code, absent=("torch", "nibabel"))


@pytest.mark.parametrize(
    "command",
    [
        "encode scan.nii.gz -o out.mrc --model hyperprior",
        "encode scan.nii.gz in/other.nii.gz -o out/ --model hyperprior",
        "encode scan.nii.gz -o out.mrc --device cuda",
        "encode scan.nii.gz -o out.mrc --effort high",
        "train in -o run --config debug",
        "study run --data in -o study",
        "interpolate scan.nii.gz scan.nii.gz --weights 0.5,0.5 -o out.nii",
    ],
)
def test_what_needs_the_extra_names_it(installation: Installation, command: str) -> None:
    done = installation.run("-m", "mricodec.cli", *command.split(), absent=("torch",))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith('pip install "mricodec[models]"\n')
    left = {path.name for path in installation.folder.iterdir()}
    assert not left & {"out.mrc", "out.nii", "study"}


def test_an_unknown_model_is_named_first(installation: Installation) -> None:
    """A package that is installed for it would not help."""
    code = """
from mricodec import codec
from mricodec.codec import loading
for model in ("absent", bytes(8)):
    try:
        loading.open_model(model, "auto")
    except (codec.UnknownModel, ValueError) as error:
        print(type(error).__name__)
"""
    done = installation.run("-c", code, absent=("torch",))
    assert done.stdout.split() == ["ValueError", "UnknownModel"], done.stderr


def test_loading_a_model_names_the_extra(installation: Installation) -> None:
    code = """
from mricodec import models
from mricodec.models.extras import MissingExtra
try:
    models.load("hyperprior")
except MissingExtra as error:
    print(error)
"""
    done = installation.run("-c", code, absent=("torch",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models.load: expected the package torch")
    assert 'pip install "mricodec[models]"' in done.stdout


def test_a_package_that_is_there_is_returned() -> None:
    assert require("numpy", "models", "a test") is np
    with pytest.raises(MissingExtra, match=r'a test: .* absent_package.* "mricodec\[bench\]"'):
        require("absent_package", "bench", "a test")
