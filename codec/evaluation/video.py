"""Video codecs beside this one: slices as frames of grey video, through the program ffmpeg.

A volume becomes samples of 10 or 12 bits, its least value 0 and its largest the largest sample; the map is counted in
the codec's error, not in its bytes. Slices too small or odd for the codec are padded by repeating their border.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.atomic import replacing

from .rate_distortion import Contender, Source
from .still import Samples

TIMEOUT = 3600  # seconds a file


class NotInstalled(RuntimeError):
    """ffmpeg, or the encoder in it, is missing."""


@dataclass(frozen=True)
class Video(Contender):
    """One encoder of ffmpeg; parameter: its constant rate factor."""

    name: str
    version: str
    encoder: str
    bits: int
    pixels: str  # ffmpeg's name of the format
    options: tuple[str, ...]  # "{crf}" stands for the parameter
    factors: tuple[float, float]  # constant rate factors, best first
    multiple: int  # of the sides
    least: int  # voxels a side
    chroma: bool  # a constant plane of colour is needed
    suffix: str

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return [float(round(factor)) for factor in np.linspace(*self.factors, count)]

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        samples = self._samples(source)
        frames = samples.from_values(source.voxels)
        n, h, w = frames.shape
        height, width = self._size(h, w)
        padded = np.pad(frames, ((0, 0), (0, height - h), (0, width - w)), "edge").astype("<u2")
        if self.chroma:
            grey = np.full((n, height * width // 2), 1 << (self.bits - 1), "<u2")
            padded = np.concatenate([padded.reshape(n, -1), grey], 1)
        options = [option.format(crf=f"{parameter:g}") for option in self.options]
        given = [
            "-f",
            "rawvideo",
            "-pix_fmt",
            self.pixels,
            "-s",
            f"{width}x{height}",
            "-r",
            "25",
            "-i",
            "-",
        ]
        made = _ffmpeg(
            [*given, "-c:v", self.encoder, *options, "-f", self.suffix.strip("."), "-"],
            padded.tobytes(),
        )
        if not made:
            raise RuntimeError(f"{self.name}: ffmpeg wrote nothing")
        with replacing(path) as file:
            file.write(made)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        shape = (1, 1, *source.voxels.shape)[-2:]
        h, w = shape
        n = source.voxels.size // (h * w)
        height, width = self._size(h, w)
        raw = _ffmpeg(["-i", str(path), "-f", "rawvideo", "-pix_fmt", self.pixels, "-"], b"")
        frame = height * width * 3 // 2 if self.chroma else height * width
        if len(raw) != 2 * n * frame:
            raise RuntimeError(
                f"{self.name}: expected {n} frames of {2 * frame} bytes from ffmpeg, found {len(raw)} bytes"
            )
        frames = (
            np.frombuffer(raw, "<u2")
            .reshape(n, frame)[:, : height * width]
            .reshape(n, height, width)
        )
        return self._samples(source).to_values(
            frames[:, :h, :w].astype(np.uint16), source.voxels.shape
        )

    def _samples(self, source: Source) -> Samples:
        integer = Samples.of(source.voxels, source.limits)  # ValueError for what has no samples
        largest = (1 << self.bits) - 1
        return Samples(integer.low, source.peak / largest, largest, integer.dtype)

    def _size(self, h: int, w: int) -> tuple[int, int]:
        height, width = (max(-(-n // self.multiple) * self.multiple, self.least) for n in (h, w))
        return height, width


def x265(preset: str) -> Video:
    """x265, 12 bits grey, tuned for PSNR. NotInstalled without ffmpeg or its encoder."""
    options = (
        "-preset",
        preset,
        "-tune",
        "psnr",
        "-x265-params",
        "crf={crf}:info=0:log-level=none",
    )
    version = _version("libx265", options)
    return Video(
        f"x265-{preset}",
        version,
        "libx265",
        12,
        "gray12le",
        options,
        (-6.0, 46.0),
        2,
        32,
        False,
        ".hevc",
    )


def svtav1(preset: int = 5) -> Video:
    """SVT-AV1, 10 bits. NotInstalled without ffmpeg or its encoder."""
    options = ("-preset", str(preset), "-crf", "{crf}", "-svtav1-params", "tune=1")
    version = _version("libsvtav1", options)
    return Video(
        f"svtav1-p{preset}",
        version,
        "libsvtav1",
        10,
        "yuv420p10le",
        options,
        (2.0, 62.0),
        2,
        64,
        True,
        ".obu",
    )


def _ffmpeg(arguments: Sequence[str], data: bytes) -> bytes:
    """What ffmpeg writes to its output. RuntimeError with its last line if it fails."""
    program = _program()
    command = [program, "-hide_banner", "-nostdin", "-loglevel", "error", *arguments]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"ffmpeg took longer than {TIMEOUT} s") from error
    except OSError as error:
        raise RuntimeError(f"ffmpeg could not be run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        how = (
            f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        )
        raise RuntimeError(f"ffmpeg failed ({how}): {lines[-1][:300]}")
    return done.stdout


def _program() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        raise NotInstalled("ffmpeg is not installed")
    return program


def _version(encoder: str, options: Sequence[str]) -> str:
    return " ".join((_encoder_version(_program(), encoder), encoder, *options))


@lru_cache(maxsize=8)
def _encoder_version(program: str, encoder: str) -> str:
    """Version of the program that holds an encoder. NotInstalled if it does not."""
    try:
        first = subprocess.run(
            [program, "-version"], capture_output=True, timeout=60, check=True
        ).stdout.decode()
        known = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, timeout=60, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise NotInstalled(f"ffmpeg could not be run: {error}") from error
    if encoder not in known.stdout.decode().split():
        raise NotInstalled(f"this ffmpeg has no {encoder}")
    return " ".join(first.split()[:3])
