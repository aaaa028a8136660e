"""The environment of a program: the folder it is started in, and other work on the machine."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mricodec import codec

# What a helper process and a process of a batch import first.
SHADOWED = ("backports", "compression", "numpy", "json", "multiprocessing", "pickle", "mricodec")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with modules that leave a trace if they are imported."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(
            "open('RAN', 'a').write(__name__)\nraise SystemExit(3)\n"
        )
    return folder


def run(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A script that lies elsewhere and imports as this process does, started in `cwd`."""
    script = cwd.parent / "program.py"
    script.write_text(code)
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    command = [sys.executable, str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("OMP_NUM_THREADS", None)  # With one thread there are no helpers.
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_helpers_import_nothing_from_the_current_folder(trap: Path) -> None:
    code = """
from mricodec.codec.coders import predictive, workers
workers.cores = lambda: 2
group = workers.Workers.shared(predictive.predictive_part)
group.start(2)
assert group._helpers[0].ready.wait(120)
assert group._helpers[0]._process.poll() is None, "the helper ended"
"""
    done = run(code, cwd=trap)
    assert done.returncode == 0, done.stderr
    assert not (trap / "RAN").exists()


def test_a_batch_imports_nothing_from_the_current_folder(trap: Path, data_dir: Path) -> None:
    (trap / "in").mkdir()
    (trap / "in" / "scan.nii.gz").symlink_to(data_dir / "isotropic_t1w.nii.gz")
    code = """
from mricodec.cli.main import main
if __name__ == "__main__":
    main()
"""
    done = run(code, "batch", "in", "out", "--lossless", "--jobs", "2", cwd=trap)
    assert done.returncode == 0, done.stderr
    assert (trap / "out" / "scan.nii.gz.mrc").exists()
    assert not (trap / "RAN").exists()


@pytest.mark.parametrize(
    "first", ["from mricodec import codec", "from mricodec.models import loader"]
)
def test_threads_sleep_while_they_wait(first: str, tmp_path: Path) -> None:
    """OpenMP's threads spin otherwise, which slows down other work on the machine tenfold."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = f"import os\n{first}\nimport torch\nprint(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "passive"


def test_numpy_is_one_that_can_decode() -> None:
    assert int(np.__version__.partition(".")[0]) >= 2
    array = np.random.default_rng(0).normal(300, 20, (4, 24, 24)).astype(np.int16)
    stream = codec.encode(array, quality=50)
    assert stream is not None and codec.decode(stream).array.shape == array.shape


@pytest.mark.parametrize("model", ["default", "hyperprior", "cnn8"])
def test_the_default_type_of_torch_changes_nothing(model: str) -> None:
    import torch

    array = np.random.default_rng(0).normal(300, 20, (4, 24, 24)).astype(np.int16)
    expected = codec.encode(array, quality=50, model=model)
    assert expected is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert codec.encode(array, quality=50, model=model) == expected
        decoded = codec.decode(expected).array
    finally:
        torch.set_default_dtype(before)
    assert np.array_equal(decoded, codec.decode(expected).array)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_that_start_after_use(method: str) -> None:
    """Threads and memory of a parent that has coded do not hinder its children."""
    volume = np.random.default_rng(0).normal(500, 30, (12, 40, 40)).astype(np.int16)
    stream = codec.encode(volume)
    assert stream is not None
    expected = codec.decode(stream).array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads of numpy
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as processes:
            again = processes.submit(codec.encode, volume).result(60)
            decoded = processes.submit(codec.decode, stream).result(60)
    assert again == stream and np.array_equal(decoded.array, expected)
