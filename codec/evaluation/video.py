"""x265 and SVT-AV1 as baselines: slices as frames of grey video, through the program ffmpeg.

A volume becomes samples of 10 or 12 bits, its smallest value 0 and its largest the largest sample;
the rounding is part of the codec's error, the map itself costs no bytes. Slices that are too small
or odd for the codec are padded by repeating their border.
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

from .rate_distortion import Codec, Source
from .still import Samples

# Width and height of a frame are multiples of this.
SIDE_MULTIPLE = 2
# Seconds after which ffmpeg is stopped.
TIMEOUT_S = 3600


class NotInstalled(RuntimeError):
    """ffmpeg, or the encoder in it, is missing."""


@dataclass(frozen=True)
class Video(Codec):
    """One encoder of ffmpeg; parameter: its constant rate factor."""

    name: str
    version: str
    # Name of the encoder in ffmpeg.
    encoder: str
    # Bits of a sample, and ffmpeg's name of the pixel format.
    bits: int
    pixels: str
    # Arguments of the encoder; "{crf}" stands for the parameter.
    options: tuple[str, ...]
    # Constant rate factors of the finest and of the coarsest point.
    factors: tuple[float, float]
    # Smallest width and height of a frame in voxels; both are multiples of SIDE_MULTIPLE.
    min_side: int
    # Whether the format needs a constant plane of colour.
    chroma: bool
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
        raw = ["-f", "rawvideo", "-pix_fmt", self.pixels, "-s", f"{width}x{height}", "-r", "25"]
        output = ["-c:v", self.encoder, *options, "-f", self.suffix.strip("."), "-"]
        stream = _ffmpeg([*raw, "-i", "-", *output], padded.tobytes())
        if not stream:
            raise RuntimeError(f"{self.name}: ffmpeg wrote nothing")
        with replacing(path) as file:
            file.write(stream)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        shape = (1, 1, *source.voxels.shape)[-2:]
        h, w = shape
        n = source.voxels.size // (h * w)
        height, width = self._size(h, w)
        raw = _ffmpeg(["-i", str(path), "-f", "rawvideo", "-pix_fmt", self.pixels, "-"], b"")
        frame = height * width * 3 // 2 if self.chroma else height * width
        if len(raw) != 2 * n * frame:
            raise RuntimeError(
                f"{self.name}: expected {n} frames of {2 * frame} bytes from ffmpeg, "
                f"found {len(raw)} bytes"
            )
        luma = np.frombuffer(raw, "<u2").reshape(n, frame)[:, : height * width]
        frames = luma.reshape(n, height, width)[:, :h, :w].astype(np.uint16)
        return self._samples(source).to_values(frames, source.voxels.shape)

    def _samples(self, source: Source) -> Samples:
        """ValueError for voxels that are not real and finite."""
        exact = Samples.of(source.voxels, source.limits)
        peak = (1 << self.bits) - 1
        return Samples(exact.low, source.peak / peak, peak, exact.dtype)

    def _size(self, h: int, w: int) -> tuple[int, int]:
        height, width = (max(-(-n // SIDE_MULTIPLE) * SIDE_MULTIPLE, self.min_side) for n in (h, w))
        return height, width


def x265(preset: str) -> Video:
    """x265, 12 bits grey, tuned for PSNR. NotInstalled without ffmpeg or its encoder."""
    settings = "crf={crf}:info=0:log-level=none"
    options = ("-preset", preset, "-tune", "psnr", "-x265-params", settings)
    return Video(
        name=f"x265-{preset}",
        version=_version("libx265", options),
        encoder="libx265",
        bits=12,
        pixels="gray12le",
        options=options,
        factors=(-6.0, 46.0),
        min_side=32,
        chroma=False,
        suffix=".hevc",
    )


def svtav1(preset: int = 5) -> Video:
    """SVT-AV1, 10 bits, tuned for PSNR. NotInstalled without ffmpeg or its encoder."""
    options = ("-preset", str(preset), "-crf", "{crf}", "-svtav1-params", "tune=1")
    return Video(
        name=f"svtav1-p{preset}",
        version=_version("libsvtav1", options),
        encoder="libsvtav1",
        bits=10,
        pixels="yuv420p10le",
        options=options,
        factors=(2.0, 62.0),
        min_side=64,
        chroma=True,
        suffix=".obu",
    )


def _ffmpeg(arguments: Sequence[str], data: bytes) -> bytes:
    """What ffmpeg writes to its output. RuntimeError with its last line of errors if it fails."""
    program = _program()
    command = [program, "-hide_banner", "-nostdin", "-loglevel", "error", *arguments]
    try:
        run = subprocess.run(
            command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"ffmpeg took longer than {TIMEOUT_S} s") from error
    except OSError as error:
        raise RuntimeError(f"ffmpeg could not be run: {error}") from error
    if run.returncode != 0:
        lines = run.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        how = f"signal {-run.returncode}" if run.returncode < 0 else f"exit code {run.returncode}"
        raise RuntimeError(f"ffmpeg failed ({how}): {lines[-1][:300]}")
    return run.stdout


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
