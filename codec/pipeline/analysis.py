"""The first pass over a scan: statistics of its values, and its noise."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.coders.workers import processes
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Scan
from mricodec.codec.voxels import noise
from mricodec.codec.voxels.intensity import Statistics
from mricodec.codec.voxels.mappings import SampleMap, exact_map

from .stream import Progress

# Slabs, evenly spaced, of which the noise is measured; the noise of the scan is their median.
NOISE_SLABS = 5


@dataclass(frozen=True)
class Analysis:
    """A scan after its first pass.

    dtype: the stored type in native byte order.
    statistics: of the stored values.
    sigma: noise of the scan in stored units, the median over slabs; 0 where none was measured.
    middle_sigma: the same of the middle slab alone.
    labels: whether the header declares the values to be labels.
    """

    tiling: Tiling
    dtype: np.dtype[Any]
    statistics: Statistics
    sigma: float
    middle_sigma: float
    labels: bool
    spacing_mm: tuple[float, float, float]


def analyse(scan: Scan, tiling: Tiling, *, noise_slabs: int, progress: Progress) -> Analysis:
    """Read the scan to its end.

    noise_slabs: how many slabs to measure the noise of. One is enough for a stream without loss,
    which needs it for its preview alone.
    """
    statistics = Statistics(scan.dtype)
    sampled = {(2 * n + 1) * tiling.slabs // (2 * noise_slabs) for n in range(noise_slabs)}
    sigmas: dict[int, Future[float]] = {}
    with ThreadPoolExecutor(processes()) as pool:
        for number, slab in enumerate(scan.blocks(tiling)):
            if number in sampled and statistics.numeric and statistics.finite:
                sigmas[number] = pool.submit(_sigma, noise.sampled(slab))
            statistics.add(slab)
            progress((number + 1) / tiling.slabs)
    measured = {number: sigma.result() for number, sigma in sigmas.items()}
    if not measured or not statistics.finite:
        measured = {tiling.slabs // 2: 0.0}
    return Analysis(
        tiling=tiling,
        dtype=scan.dtype.newbyteorder("="),
        statistics=statistics,
        sigma=float(noise.median(np.array([*measured.values()]))),
        middle_sigma=measured.get(tiling.slabs // 2, 0.0),
        labels=scan.declared_labels,
        spacing_mm=scan.envelope.spacing_mm,
    )


def _sigma(slices: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # A range so wide is coded without loss.
        return noise.sigma_hat(slices)


def lossless_map(scan: Scan, analysis: Analysis) -> SampleMap | None:
    """The map of the scan to integers without loss; None if only the store coder can take it.

    Floats are read once more.
    """
    return exact_map(analysis.dtype, analysis.statistics, scan.blocks(analysis.tiling))
