"""Recorded calls of the C core: this library computes the same bits; replay.c sees a difference.

programs.py replays them on other systems and under sanitizers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

from mricodec.codec.native import compiler, library, sources

FOLDER = ROOT / "tests" / "native"
RECORDING = FOLDER / "recording.bin"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """replay.c, linked with the library that Python loads."""
    program = tmp_path_factory.mktemp("replay") / "replay"
    try:
        command = compiler.find().command
    except compiler.CompilerError as error:
        pytest.skip(str(error))
    shared = sources.library_path()
    include = [f"-I{ROOT / 'codec' / 'native'}", f"-I{FOLDER}"]
    arguments = [*include, str(FOLDER / "replay.c"), str(shared), f"-Wl,-rpath,{shared.parent}"]
    compiler.run([*command, "-std=c11", "-O1", *arguments, "-o", str(program)])
    return program


def replay(program: Path, recording: Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(program), str(recording)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_same_bits_by_every_backend(program: Path) -> None:
    status, text = replay(program, RECORDING)
    assert status == 0, text
    lines = re.findall(r"^(\w+), mrc_\w+: \d+ calls, 0 differ$", text, re.MULTILINE)
    assert set(lines) == set(library.backends())


def test_a_difference_is_reported(program: Path, tmp_path: Path) -> None:
    content = bytearray(RECORDING.read_bytes())
    content[-1] ^= 1  # Of the last output.
    recording = tmp_path / "changed.bin"
    recording.write_bytes(content)
    status, text = replay(program, recording)
    assert status == 1 and "differs at element" in text
    assert text.count(", 1 differ") == len(library.backends())


@pytest.mark.parametrize("size", [0, 3, 100, 5000, -1])
def test_a_recording_cut_short(program: Path, tmp_path: Path, size: int) -> None:
    recording = tmp_path / "short.bin"
    recording.write_bytes(RECORDING.read_bytes()[:size])
    status, text = replay(program, recording)
    assert status == 2 and "cut short" in text


def test_the_recording_is_small() -> None:
    assert RECORDING.stat().st_size <= 2_000_000
