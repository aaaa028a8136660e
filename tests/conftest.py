"""Small real scans for every test; see NOTICE for where they come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from paths import DATA
from quick import is_quick

from mricodec.codec.native import compiler


def pytest_configure() -> None:
    """Give processes of `-n` their own cores, more threads than cores slow all down; build C."""
    worker, count = (
        os.environ.get("PYTEST_XDIST_WORKER", "gw0"),
        int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    )
    if count > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker[2:]) % len(cores) :: count])
    if "PYTEST_XDIST_WORKER" not in os.environ:
        build_core()


def build_core() -> None:
    """Where the package runs from its sources: compile the C core again if these have changed."""
    try:
        compiler.build_if_stale()
    except compiler.CompilerError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests."""
    for item in items:
        if is_quick(item.nodeid):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(params=sorted(path.name for path in DATA.glob("*.nii.gz")))
def scan_path(request: pytest.FixtureRequest) -> Path:
    """Each of the small scans in turn: thick slices, near-isotropic, 4-D diffusion, body."""
    return DATA / str(request.param)


@pytest.fixture
def data_dir() -> Path:
    """The folder of the small scans."""
    return DATA
