"""Files appear when they are complete, and nothing is left of those that never were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mricodec.codec import atomic


def part(folder: Path, name: str, age: float) -> Path:
    """A temporary file that was last written some seconds ago."""
    path = folder / f".{name}.0123abcd.part"
    path.write_bytes(b"half of a scan")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_stale_files_are_removed_and_those_in_work_stay(tmp_path: Path) -> None:
    stale, recent = part(tmp_path, "a.mrc", 1000), part(tmp_path, "b.mrc", 0)
    foreign = tmp_path / ".download.part"
    foreign.write_bytes(b"not ours")
    os.utime(foreign, (0, 0))
    locked = part(tmp_path, "c.mrc", 1000)
    with open(locked, "rb") as file:
        assert atomic._try_lock(file)
        with atomic.replacing(tmp_path / "d.mrc") as out:
            out.write(b"whole")
    assert not stale.exists() and recent.exists() and foreign.exists() and locked.exists()
    assert (tmp_path / "d.mrc").read_bytes() == b"whole"


def test_an_output_keeps_the_permissions_of_the_file_that_it_replaces(tmp_path: Path) -> None:
    target = tmp_path / "scan.mrc"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with atomic.replacing(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o640


def test_a_link_to_itself_is_an_error_with_its_name(tmp_path: Path) -> None:
    loop = tmp_path / "loop.nii"
    loop.symlink_to(loop)
    with pytest.raises(OSError) as caught, atomic.replacing(loop):
        pass
    assert str(loop) in str(caught.value)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_no_temporary_file(name: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
from mricodec.cli import main
def work(*_, **__):
    from mricodec.codec import atomic
    with atomic.replacing("scan.mrc") as file:
        file.write(b"half")
        print("begun", flush=True)
        import time
        time.sleep(60)
main.cli = work
main.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert list(tmp_path.glob(".*.part"))
        process.send_signal(getattr(signal, name))
        process.wait(30)
    assert process.returncode not in (0, None)
    assert not list(tmp_path.iterdir())
