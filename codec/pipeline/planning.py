"""From an analysis and the settings to a plan: which coder, which header, which mode, and why.

Nothing here reads a file or codes a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mricodec.bitstream.header import LEARNED, LEARNED_INEXACT, PREDICTIVE, STORE, Flags, Mode
from mricodec.codec.coders.base import LossyModel, LossyParams, SlabCoder
from mricodec.codec.coders.learned import LearnedCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.store import StoreCoder
from mricodec.codec.settings import Bound, Effort, EncodeSettings
from mricodec.codec.tiling import Tiling
from mricodec.codec.voxels import quality as quality_scale
from mricodec.codec.voxels.intensity import Intensity, lossless_reason, lossy_range
from mricodec.codec.voxels.mappings import SampleMap, bounded_map

from .analysis import Analysis
from .heads import LossyHead, PredictiveHead

# Share of the voxels at the minimum from which on a background mask is worth a byte per slab.
MIN_BACKGROUND = 0.02
# Volumes of a chain: each but the first has the ones before as references and decodes after them.
CHAIN = 8
# Voxels of the largest volume that is coded in chains, as two volumes are kept in memory.
CHAIN_VOXELS = 1 << 25


@dataclass(frozen=True)
class Plan:
    """How the slabs of a scan are coded.

    coder: its number in HEAD; head: its parameters there, None for the store coder.
    reason: why the scan is coded without loss though loss was asked for.
    chain: volumes of a chain of references; 0: none.
    """

    coder: int
    mode: Mode = Mode.LOSSLESS
    head: LossyHead | PredictiveHead | None = None
    reason: str | None = None
    chain: int = 0
    flags: Flags = Flags(0)  # noqa: RUF009 (a constant)

    def params(self) -> bytes:
        """HEAD.params."""
        if self.head is None:
            return b""
        return (
            self.head.pack(self.mode) if isinstance(self.head, PredictiveHead) else self.head.pack()
        )

    def with_step(self, step: float, sigma: float) -> Plan:
        """The plan of a lossy stream with another step of the quantiser, in samples.

        sigma: the noise of the scan in stored units; the one in the head is rounded to the step.
        """
        assert isinstance(self.head, LossyHead)
        return replace(self, head=_as_decoded(replace(self.head, step=step, sigma=sigma)))


def plan(
    analysis: Analysis,
    settings: EncodeSettings,
    find_lossless_map: Callable[[], SampleMap | None],
    *,
    layered: bool = False,
    exact_model: Callable[[], bool] = lambda: True,
) -> Plan:
    """Choose coder, map and mode.

    find_lossless_map: called only if the scan is to be coded without loss.
    layered: whether the stream refines a layer; then no volume has others as references.
    exact_model: whether the lossy model decodes to the same samples on every machine; called only
        if the scan is to be coded with loss.
    """
    reason = None
    if settings.lossless:
        pass
    elif settings.bound is not None:
        bounded = _bounded_plan(analysis, settings.bound, layered)
        if isinstance(bounded, Plan):
            return bounded
        reason = bounded
    elif settings.quality is not None:
        reason = lossless_reason(
            analysis.dtype,
            analysis.statistics,
            analysis.sigma,
            declared_labels=analysis.labels,
        )
        if reason is None:
            return _lossy_plan(analysis, settings.quality, exact_model())
    sample_map = find_lossless_map()
    if sample_map is None:
        return Plan(STORE, reason=reason)
    chain = 0 if layered else chain_length(analysis.tiling)
    head = PredictiveHead(sample_map, chain)
    return Plan(PREDICTIVE, head=head, reason=reason, chain=chain)


def _bounded_plan(analysis: Analysis, bound: Bound, layered: bool) -> Plan | str:
    """The plan, or why the bound leaves no room for loss."""
    reason = _unbounded_reason(analysis, bound)
    if reason is not None:
        return reason
    limit = bound.value * (analysis.sigma if bound.of_sigma else 1.0)
    mapped = bounded_map(analysis.dtype, analysis.statistics, limit)
    if mapped is None:
        return f"an error of {limit:.3g} stored units allows no other value"
    sample_map, max_error = mapped
    chain = 0 if layered else chain_length(analysis.tiling)
    head = PredictiveHead(sample_map, chain, max_error, limit, analysis.sigma)
    head = PredictiveHead.unpack(head.pack(Mode.BOUNDED), Mode.BOUNDED, analysis.dtype)
    return Plan(PREDICTIVE, Mode.BOUNDED, head, chain=chain)


def _unbounded_reason(analysis: Analysis, bound: Bound) -> str | None:
    """Why a bound means no loss, or None."""
    dtype, statistics = analysis.dtype, analysis.statistics
    if bound.of_sigma and analysis.sigma == 0 and statistics.finite:
        return "no noise was found in it"
    if (
        dtype.kind not in "iuf"
        or dtype.itemsize > 8
        or not statistics.finite
        or statistics.minimum == statistics.maximum
    ):
        return (
            lossless_reason(dtype, statistics, analysis.sigma, declared_labels=analysis.labels)
            or "it holds no numbers"
        )
    if analysis.labels or statistics.looks_like_labels():
        return "it is a label map"
    if dtype.kind != "f" and not statistics.integral:
        return "its range is too wide"
    return None


def chain_length(tiling: Tiling) -> int:
    """Volumes of a chain of references in a 4-D scan; 0: no volume has references."""
    return CHAIN if tiling.volumes > 1 and math.prod(tiling.volume_shape) <= CHAIN_VOXELS else 0


def _lossy_plan(analysis: Analysis, quality: float, exact_model: bool) -> Plan:
    statistics, sigma = analysis.statistics, analysis.sigma
    intensity = Intensity.for_lossy(analysis.dtype, *lossy_range(statistics))
    step = quality_scale.step(quality, sigma / intensity.scale, intensity.peak)
    has_background = statistics.at_minimum >= MIN_BACKGROUND * statistics.voxels
    return Plan(
        LEARNED if exact_model else LEARNED_INEXACT,
        Mode.LOSSY,
        _as_decoded(LossyHead(step, sigma, intensity)),
        flags=Flags.BACKGROUND if has_background else Flags(0),
    )


def _as_decoded(head: LossyHead) -> LossyHead:
    """The head with the numbers that a decoder reads: the encoder works with the same."""
    return LossyHead.unpack(head.pack(), head.intensity.dtype)


def make_coder(
    plan: Plan,
    analysis: Analysis,
    effort: Effort,
    load_model: Callable[[], LossyModel],
    refined: PredictiveHead | None = None,
) -> SlabCoder:
    """The coder of a plan; refined: the head of the bounded layer that the stream refines."""
    head = plan.head
    if isinstance(head, PredictiveHead):
        base = None if refined is None else (refined.sample_map, refined.max_error)
        return PredictiveCoder(
            head.sample_map, analysis.dtype, head.max_error, base=base, effort=effort
        )
    if isinstance(head, LossyHead):
        k, j, i = np.array(analysis.spacing_mm, np.float32).tolist()  # HEAD holds float32.
        spacing = analysis.tiling.slab_axes((k, j, i))
        params = LossyParams(head.step, head.intensity.peak, spacing)
        background = bool(plan.flags & Flags.BACKGROUND)
        return LearnedCoder(load_model(), head.intensity, params, background)
    return StoreCoder(analysis.dtype)
