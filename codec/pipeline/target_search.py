"""A lossy stream of a given PSNR or size: the quantiser's step is searched by whole streams."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.native import functions
from mricodec.codec.settings import Target
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Scan
from mricodec.codec.voxels.intensity import Intensity
from mricodec.codec.voxels.quality import STEP_RANGE

from . import rate_control
from .heads import LossyHead
from .rate_control import Aim, Extent, Trial
from .stream import Progress
from .writing import EncodeReport

# Voxels, about, whose coefficients tell what to expect of a step.
EXPECTED_FROM = 1 << 20
# Bytes of a stream that is kept in memory while a better one may replace it.
MAX_IN_MEMORY = 64 << 20

_log = logging.getLogger(__name__)

WriteAtStep = Callable[[float, BinaryIO, Progress], tuple[EncodeReport, float]]


def of_scan(
    scan: Scan,
    tiling: Tiling,
    head: LossyHead,
    target: Target,
    write_at_step: WriteAtStep,
) -> TargetSearch:
    """The search for a scan; head: of a lossy plan at any step."""
    intensity = head.intensity
    peak = float(intensity.maximum - intensity.minimum)
    aim = Aim(target, Extent(math.prod(scan.shape), scan.dtype.itemsize, peak))
    low = math.log2(max(STEP_RANGE[0], rate_control.FINEST_STEP))
    high = min(math.log2(STEP_RANGE[1]), max(low, math.log2(2 * intensity.peak)))
    octaves = np.linspace(low, high, 1 + math.ceil(rate_control.FINE * (high - low)))
    counts = rate_control.magnitudes(_coefficients(scan, tiling, intensity))
    scale = float(intensity.scale)
    expected = np.array([aim.expected(octave, counts, scale) for octave in octaves])
    return TargetSearch(aim, rate_control.Search(aim.height, octaves, expected), write_at_step)


@dataclass
class TargetSearch:
    """Whole streams of several steps, of which the nearest to the target is kept."""

    aim: Aim
    search: rate_control.Search
    write_at_step: WriteAtStep
    share: float = 0.0  # Of the progress.
    best: tuple[float, EncodeReport, BinaryIO] | None = None

    def run(self, file: BinaryIO, progress: Progress) -> EncodeReport:
        """Write the nearest stream; its report says if and why it misses the target."""
        low, high = float(self.search.octaves[0]), float(self.search.octaves[-1])
        with contextlib.ExitStack() as stack:

            def measure(octave: float) -> float:
                trial = stack.enter_context(tempfile.SpooledTemporaryFile(MAX_IN_MEMORY))
                return self._measure(octave, cast(BinaryIO, trial), progress)

            octave, height = self.search.run(measure, self.aim.tolerance)
            assert self.best is not None
            _, report, stream = self.best
            stream.seek(0)
            shutil.copyfileobj(stream, file, 1 << 20)
        progress(1.0)
        return replace(report, missed=rate_control.shortfall(self.aim, octave, height, low, high))

    def _measure(self, octave: float, stream: BinaryIO, progress: Progress) -> float:
        """Write a stream at a step; its height on the rate-distortion curve."""
        begun, part = self.share, (1 - self.share) / 2
        report, mse = self.write_at_step(
            2**octave, stream, lambda done: progress(begun + part * done)
        )
        self.share += part
        height = self.aim.of(Trial(report.stream_bytes, mse))
        reached = self.aim.target.describe(self.aim.value(height))
        _log.debug("step of 2**%.2f samples: %s", octave, reached)
        distance = abs(height - self.aim.height)
        if self.best is None or distance < self.best[0]:
            if self.best is not None:
                self.best[2].close()
            self.best = distance, report, stream
        else:
            stream.close()
        return height


def _coefficients(scan: Scan, tiling: Tiling, intensity: Intensity) -> NDArray[np.float32]:
    """Coefficients of the transform of evenly spaced slices, [n]."""
    voxels = math.prod(scan.shape)
    slices = voxels // math.prod(tiling.slab_shape(0)[1:])
    every = min(-(-voxels // EXPECTED_FROM), slices)
    coefficients = []
    start = every // 2  # Of the next slab.
    for slab in scan.blocks(tiling):
        if start < len(slab):
            samples = intensity.samples(slab[start::every])
            coefficients.append(functions.analysis(samples).reshape(-1))
        start = (start - len(slab)) % every
    return np.concatenate(coefficients)
