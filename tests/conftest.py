"""Small real scans for every test; see NOTICE for where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=sorted(path.name for path in DATA.glob("*.nii.gz")))
def scan_path(request: pytest.FixtureRequest) -> Path:
    """Each of the small scans in turn: thick slices, near-isotropic, 4-D diffusion, body."""
    return DATA / str(request.param)


@pytest.fixture
def data_dir() -> Path:
    """The folder of the small scans."""
    return DATA
