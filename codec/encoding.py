"""One scan -> one stream: look at the scan, choose the coder, write the slabs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.container import (
    LATTICE,
    META,
    ORIG,
    STORE,
    ContainerWriter,
    Flags,
    Mode,
    StreamHeader,
)
from mricodec.bitstream.sections import pack_meta, pack_orig

from . import fidelity, nifti, noise, rate_control, slabcoding, tiling
from .intensity import Intensity, Statistics, lossless_reason, lossy_range
from .rate_control import Aim, Effort, Extent, Target, Trial
from .slabcoding import LossyModel, LossyParams, SlabCoder
from .stream import ERRORS, GOAL, MAX_SLAB_VOXELS, Fidelity, LossyHead, Progress, geometry_meta
from .tiling import FileOrder, Tiling
from .volume import Scan, dtype_name, is_big_endian, to_file_order

NOISE_SLABS = 5  # evenly spaced; the noise of the scan is their median
LEAST_BACKGROUND = 0.02  # of the voxels at the minimum, from which on a mask is worth a byte per slab
SURVEY_SHARE = 0.1  # of the time, for the progress
SAMPLE_SHARE = 0.3  # of the time after it, of a search for a target
SAMPLE_VOXELS = 4_000_000  # at most, to search a step with
SAMPLE_DEPTH = 8  # slices at least; thinner slabs are no sample of thick ones
MOST_IN_MEMORY = 64 << 20  # bytes of a stream that may still be replaced by a better one


@dataclass(frozen=True)
class EncodeReport:
    """What came out of encoding one scan."""

    mode: str  # "lossless" or "lossy"
    model: str | None
    reason: str | None  # why it is lossless though loss was asked for
    voxels: int
    original_bytes: int  # uncompressed, with the header
    stream_bytes: int
    fidelity: Fidelity | None  # of a lossy stream
    target: Target | None = None  # PSNR or size that was asked for
    missed: str | None = None  # why it is not what was asked for

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
        return 8 * self.stream_bytes / self.voxels


@dataclass(frozen=True)
class _Plan:
    """How the slabs of a scan are coded."""

    number: int  # of the coder
    coder: SlabCoder
    params: bytes = b""
    reason: str | None = None
    lossy: LossyHead | None = None
    model: LossyModel | None = None
    flags: Flags = Flags(0)  # noqa: RUF009 (a constant)
    target: Target | None = None
    at_step: Callable[[float, Effort], _Plan] | None = None  # the same plan with another step (codes) and effort


def encode_scan(
    scan: Scan,
    file: BinaryIO,
    quality: float | None,
    load_model: Callable[[], LossyModel],
    progress: Progress,
    *,
    target: Target | None = None,
    effort: Effort = "default",
) -> EncodeReport:
    """Write the stream of a scan; `quality` None: without loss. The model is loaded only if it is needed.

    With a `target` the step is searched for it, and the quality is where the search begins.
    """
    dtype_name(scan.dtype)  # ValueError for a type that no stream can hold
    if 0 in scan.shape or not scan.shape:
        raise ValueError(f"{scan.name}: expected an array with axes and voxels, found shape {scan.shape}")
    _check_header(scan)
    cut = tiling.choose(scan.shape, scan.spacing_mm)
    if math.prod(cut.slab_shape(0)) > MAX_SLAB_VOXELS:
        raise ValueError(
            f"{scan.name}: expected slices of at most {MAX_SLAB_VOXELS} voxels, found {cut.slab_shape(0)}"
        )
    statistics, sigma = _survey(scan, cut, lambda done: progress(SURVEY_SHARE * done))
    plan = _plan(scan, cut, statistics, sigma, quality, load_model, effort)
    if target is not None and plan.lossy is not None:
        return _write_on_target(scan, cut, plan, target, effort, file, lambda done: progress(SURVEY_SHARE + 0.9 * done))
    return _write(scan, cut, plan, file, lambda done: progress(SURVEY_SHARE + (1 - SURVEY_SHARE) * done))[0]


def _write(
    scan: Scan, cut: Tiling, plan: _Plan, file: BinaryIO, progress: Progress
) -> tuple[EncodeReport, float]:
    """The whole stream; the second is the mean squared error, stored units squared."""
    header = StreamHeader(
        mode=Mode.LOSSLESS if plan.lossy is None else Mode.LOSSY,
        coder=plan.number,
        dtype=dtype_name(scan.dtype),
        shape=scan.shape,
        slab_axis=cut.axis,
        slab_slices=cut.slices,
        flags=plan.flags | (Flags.BIG_ENDIAN if is_big_endian(scan.dtype) else Flags(0)),
        model_id=bytes(8) if plan.model is None else plan.model.model_id,
        spacing_mm=scan.spacing_mm,
        params=plan.params,
    )
    writer = ContainerWriter(file, header)
    if scan.header:
        writer.chunk(ORIG, pack_orig(scan.header + scan.lead, scan.trailer))
    elif meta := geometry_meta(scan):
        writer.chunk(META, pack_meta(meta))
    for type, payload in scan.chunks:
        writer.chunk(type, payload)
    if plan.target is not None:
        writer.chunk(GOAL, plan.target.pack())
    found, mse = _write_slabs(scan, cut, plan, writer, progress)
    around = len(scan.header) + len(scan.lead) + len(scan.trailer)
    report = EncodeReport(
        mode=header.mode.name.lower(),
        model=plan.model.name if plan.model is not None else None,
        reason=plan.reason,
        voxels=math.prod(scan.shape),
        original_bytes=around + math.prod(scan.shape) * scan.dtype.itemsize,
        stream_bytes=writer.size,
        fidelity=found,
        target=plan.target,
    )
    return report, mse


def _write_on_target(
    scan: Scan, cut: Tiling, plan: _Plan, target: Target, effort: Effort, file: BinaryIO, progress: Progress
) -> EncodeReport:
    """Search the step on a sample of the slabs, then on whole streams; the nearest of these is written."""
    head, at_step = plan.lossy, plan.at_step
    assert head is not None and at_step is not None
    intensity = head.intensity
    extent = Extent(math.prod(scan.shape), scan.dtype.itemsize, float(intensity.maximum - intensity.minimum))
    aim = Aim(target, extent)
    low = math.log2(max(fidelity.STEP_RANGE[0], rate_control.FINEST_STEP))
    high = min(math.log2(fidelity.STEP_RANGE[1]), max(low, math.log2(2 * intensity.peak)))
    share = SAMPLE_SHARE
    best: tuple[float, EncodeReport, BinaryIO] | None = None

    with contextlib.ExitStack() as stack:

        def whole(octave: float) -> float:
            nonlocal best, share
            begun, part = share, (1 - share) / 2
            stream = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(MOST_IN_MEMORY)))
            trial = dataclasses.replace(at_step(2**octave, effort), target=target)
            report, mse = _write(scan, cut, trial, stream, lambda done: progress(begun + part * done))
            share += part
            height = aim.of(Trial(report.stream_bytes, mse), extent.voxels)
            if best is None or abs(height - aim.height) < best[0]:
                if best is not None:
                    best[2].close()
                best = abs(height - aim.height), report, stream
            else:
                stream.close()
            return height

        slabs = _sample(scan, cut)

        def sample(octave: float) -> float:
            coded = slabcoding.encode_slabs(at_step(2**octave, "default").coder, slabs)
            squared = sum(_squared(slab, decoded) for slab, (_, decoded) in zip(slabs, coded, strict=True))
            voxels = sum(slab.size for slab in slabs)
            return aim.of(Trial(sum(len(payload) for payload, _ in coded), squared / voxels), voxels)

        start = aim.first(head.step, float(intensity.scale))
        at, height = rate_control.search(aim, start, low, high, sample if slabs else None, whole)
        assert best is not None
        _, report, stream = best
        stream.seek(0)
        shutil.copyfileobj(stream, file, 1 << 20)
    progress(1.0)
    return dataclasses.replace(report, missed=rate_control.shortfall(aim, at, height, low, high))


def _sample(scan: Scan, cut: Tiling) -> list[NDArray[Any]]:
    """Slices from the middle of evenly spaced slabs, at most a quarter of the scan; none if it is small or thin."""
    n, h, w = cut.slab_shape(0)
    depth = max(n // 4, SAMPLE_DEPTH)
    voxels = math.prod(scan.shape)
    count = min(cut.slabs, min(voxels // 4, SAMPLE_VOXELS) // (depth * h * w))
    if voxels < SAMPLE_VOXELS // 8 or count == 0 or depth > n:
        return []
    chosen = {(2 * i + 1) * cut.slabs // (2 * count) for i in range(count)}
    slabs = (slab for number, slab in enumerate(scan.blocks(cut)) if number in chosen)
    middles = ((slab, max(0, (len(slab) - depth) // 2)) for slab in slabs)
    return [np.ascontiguousarray(slab[start : start + depth]) for slab, start in middles]


def _squared(slab: NDArray[Any], decoded: NDArray[Any]) -> float:
    difference = decoded.astype(np.float64) - slab
    return float(np.vdot(difference, difference))


def _check_header(scan: Scan) -> None:
    """A `Volume` may carry the header of another array."""
    if not scan.header:
        if scan.lead or scan.trailer:
            raise ValueError(
                f"{scan.name}: expected a header with a trailer, found none; leave the trailer out"
            )
        return
    parsed = nifti.parse(scan.header, f"header of {scan.name}")
    if (parsed.shape, parsed.dtype) != (scan.shape, scan.dtype):
        raise ValueError(
            f"{scan.name}: expected an array of {parsed.dtype} {parsed.shape}, as the header says, "
            f"found {scan.dtype} {scan.shape}; leave the header out"
        )


def _survey(scan: Scan, cut: Tiling, progress: Progress) -> tuple[Statistics, float]:
    """First pass: what the values are, and the noise in stored units. Reads the scan to its end."""
    statistics = Statistics(scan.dtype)
    sampled = {(2 * n + 1) * cut.slabs // (2 * NOISE_SLABS) for n in range(NOISE_SLABS)}
    sigmas = []
    for number, slab in enumerate(scan.blocks(cut)):
        statistics.add(slab)
        if number in sampled and statistics.numeric and statistics.finite:
            with np.errstate(over="ignore", invalid="ignore"):  # a range so wide is coded without loss
                sigmas.append(noise.sigma_hat(slab))
        progress((number + 1) / cut.slabs)
    return statistics, float(np.median(sigmas)) if sigmas else 0.0


def _plan(
    scan: Scan,
    cut: Tiling,
    statistics: Statistics,
    sigma: float,
    quality: float | None,
    load_model: Callable[[], LossyModel],
    effort: Effort,
) -> _Plan:
    native = scan.dtype.newbyteorder("=")
    reason = None
    if quality is not None:
        reason = lossless_reason(native, statistics, sigma, declared_labels=scan.declared_labels)
        if reason is None:
            intensity = Intensity.for_lossy(native, *lossy_range(statistics))
            step = fidelity.step(quality, sigma / intensity.scale, intensity.peak)
            return _lossy_plan(scan, cut, statistics, sigma, intensity, step, effort, load_model())
    whole = statistics.whole_range()
    if whole is None:
        return _Plan(STORE, slabcoding.Store(native), reason=reason)
    intensity = Intensity.exact(native, *whole)
    return _Plan(LATTICE, slabcoding.Lattice(intensity), intensity.pack(), reason)


def _lossy_plan(
    scan: Scan,
    cut: Tiling,
    statistics: Statistics,
    sigma: float,
    intensity: Intensity,
    step: float,
    effort: Effort,
    model: LossyModel,
) -> _Plan:
    packed = LossyHead(step, sigma, intensity).pack()
    head = LossyHead.unpack(packed, intensity.dtype)  # what the decoder reads
    k, j, i = np.array(scan.spacing_mm, np.float32).tolist()  # what HEAD holds
    params = LossyParams(head.step, intensity.peak, cut.turned((k, j, i)), effort)
    has_background = statistics.at_minimum >= LEAST_BACKGROUND * statistics.voxels
    return _Plan(
        slabcoding.LEARNED if model.exact_samples else slabcoding.LEARNED_INEXACT,
        slabcoding.Lossy(model, intensity, params, has_background),
        packed,
        lossy=head,
        model=model,
        flags=Flags.BACKGROUND if has_background else Flags(0),
        at_step=lambda other, how: _lossy_plan(scan, cut, statistics, sigma, intensity, other, how, model),
    )


def _write_slabs(
    scan: Scan, cut: Tiling, plan: _Plan, writer: ContainerWriter, progress: Progress
) -> tuple[Fidelity | None, float]:
    """Second pass: code every slab, and finish the stream. The second is the mean squared error."""
    digest = hashlib.sha256(scan.header + scan.lead if plan.lossy is None else b"")
    order = FileOrder(cut)
    squared = largest = 0.0
    done = 0
    for window in slabcoding.windows(scan.blocks(cut), lambda slab: slab.size, plan.coder.batch_voxels):
        coded = slabcoding.encode_slabs(plan.coder, window)
        for slab, (payload, decoded) in zip(window, coded, strict=True):
            writer.slab(payload)
            for block in order.add(decoded):
                digest.update(to_file_order(block, scan.dtype))
            if plan.lossy is not None:
                difference = decoded.astype(np.float64) - slab
                squared += float(np.vdot(difference, difference))
                largest = max(largest, float(np.abs(difference).max()))
        done += len(window)
        progress(done / cut.slabs)
    if plan.lossy is None:
        digest.update(scan.trailer)
        writer.finish(digest.digest())
        return None, 0.0
    mse = squared / math.prod(scan.shape)
    errors = plan.lossy.pack_errors(math.sqrt(mse), largest)
    writer.chunk(ERRORS, errors)
    writer.finish(digest.digest())
    return plan.lossy.fidelity(errors), mse
