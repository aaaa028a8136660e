"""CPU time of each phase of the C core while it codes a slab in one thread."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.coders.base import LossyParams
from mricodec.codec.native import library
from mricodec.codec.native.model import NativeModel, Workspace
from mricodec.codec.tiling import SLAB_SLICES
from mricodec.codec.voxels import noise, quality
from mricodec.codec.voxels.intensity import Intensity
from mricodec.models import zoo

# What is done between the tasks of a phase and those of the next one: the depth of the transform
# across slices is chosen, and it is applied; the symbols of a pass are coded, their signs hidden.
SERIAL = {"analyse": "depth", "predict": "code"}
# In the order of the work; "rest" is what is not in one of them.
PHASES = (
    "analyse", "depth", "prepare", "features", "mix", "predict", "code", "update", "synthesise",
    "rest",
)  # fmt: skip


class Timed(Workspace):
    """One thread; the seconds spent in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def run(self, arena: int) -> int:
        core, count, phase = library.load(), ctypes.c_int32(), ""
        while True:
            with self._timed(SERIAL.get(phase, "rest")):
                status = int(core.mrc_next_tasks(arena, ctypes.byref(count)))
            if status != library.OK or count.value == 0:
                return status
            phase = core.mrc_phase(arena).decode()
            with self._timed(phase):
                for task in range(count.value):
                    core.mrc_run_task(arena, task, 0)

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds[part] += time.thread_time() - start

    def take(self) -> Counter[str]:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, Counter()
        return seconds


def measure(voxels: NDArray[Any], backends: list[str], runs: int) -> list[dict[str, Any]]:
    """Rows of ns per voxel: medians of a slab at the default quality, the backends alternating."""
    weights = zoo.read(zoo.DEFAULT)
    model, workspace, before = NativeModel(weights.name, weights.data), Timed(), library.backend()
    slab = voxels[:SLAB_SLICES]
    intensity = Intensity.for_lossy(slab.dtype, slab.min().item(), slab.max().item())
    samples = intensity.samples(slab)
    sigma = noise.sigma_hat(noise.sampled(slab)) / intensity.scale
    step = float(np.float32(quality.step(quality.DEFAULT_QUALITY, sigma, intensity.peak)))
    params = LossyParams(step, intensity.peak, (1.0, 1.0, 1.0))
    shape: Any = samples.shape
    times: dict[tuple[str, str], list[Counter[str]]] = {}
    for _ in range(runs + 1):  # The first one is not counted.
        for backend in backends:
            library.use_backend(backend)
            run, _ = model.encode_slab(samples, params, workspace)
            times.setdefault((backend, "encode"), []).append(workspace.take())
            model.decode_slab(run, shape, params, workspace)
            times.setdefault((backend, "decode"), []).append(workspace.take())
    library.use_backend(before)
    return [
        {"backend": backend, "way": way} | _medians(counted[1:], samples.size)
        for (backend, way), counted in times.items()
    ]


def _medians(runs: list[Counter[str]], voxels: int) -> dict[str, float]:
    """ns per voxel of each phase, and of all of them."""
    medians = {
        phase: 1e9 / voxels * statistics.median(seconds[phase] for seconds in runs)
        for phase in PHASES
    }
    total = 1e9 / voxels * statistics.median(seconds.total() for seconds in runs)
    return {name: round(figure, 2) for name, figure in (medians | {"all": total}).items()}
