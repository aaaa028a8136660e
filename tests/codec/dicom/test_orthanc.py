"""A real PACS (Orthanc), in a separate network namespace because it listens on all interfaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import TESTS


def test_a_series_through_a_pacs(tmp_path: Path) -> None:
    """Pushed, fetched, encoded, decoded; wrapped, stored, forwarded, unwrapped: all identical."""
    pytest.importorskip("pynetdicom", reason="the receiving node needs pynetdicom")
    orthanc = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if orthanc is None:
        pytest.skip("Orthanc is not installed (Debian: apt-get install orthanc)")
    alone = next(
        (alone for alone in (["unshare", "-n"], ["unshare", "-rn"]) if _works(alone)), None
    )
    if alone is None:
        pytest.skip("no network namespace for Orthanc here (unshare -n and ip link)")
    scenario = TESTS / "support" / "orthanc_scenario.py"
    command = [
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "sh",
        sys.executable,
        str(scenario),
        str(tmp_path),
        orthanc,
    ]
    run = subprocess.run(
        [*alone, *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def _works(alone: list[str]) -> bool:
    try:
        run = subprocess.run(
            [*alone, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=20, check=False
        )
    except OSError:
        return False
    return run.returncode == 0
