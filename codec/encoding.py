"""One scan -> one stream: look at the scan, choose the coder, write the slabs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

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

from . import fidelity, nifti, noise, slabcoding, tiling
from .intensity import Intensity, Statistics, lossless_reason, lossy_range
from .slabcoding import LossyModel, LossyParams, SlabCoder
from .stream import ERRORS, MAX_SLAB_VOXELS, Fidelity, LossyHead, Progress, geometry_meta
from .tiling import FileOrder, Tiling
from .volume import Scan, dtype_name, is_big_endian, to_file_order

NOISE_SLABS = 5  # evenly spaced; the noise of the scan is their median
LEAST_BACKGROUND = 0.02  # of the voxels at the minimum, from which on a mask is worth a byte per slab
SURVEY_SHARE = 0.1  # of the time, for the progress


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


def encode_scan(
    scan: Scan,
    file: BinaryIO,
    quality: float | None,
    load_model: Callable[[], LossyModel],
    progress: Progress,
) -> EncodeReport:
    """Write the stream of a scan; `quality` None: without loss. The model is loaded only if it is needed."""
    name = dtype_name(scan.dtype)
    if 0 in scan.shape or not scan.shape:
        raise ValueError(f"{scan.name}: expected an array with axes and voxels, found shape {scan.shape}")
    _check_header(scan)
    cut = tiling.choose(scan.shape, scan.spacing_mm)
    if math.prod(cut.slab_shape(0)) > MAX_SLAB_VOXELS:
        raise ValueError(
            f"{scan.name}: expected slices of at most {MAX_SLAB_VOXELS} voxels, found {cut.slab_shape(0)}"
        )
    statistics, sigma = _survey(scan, cut, lambda done: progress(SURVEY_SHARE * done))
    plan = _plan(scan, cut, statistics, sigma, quality, load_model)
    header = StreamHeader(
        mode=Mode.LOSSLESS if plan.lossy is None else Mode.LOSSY,
        coder=plan.number,
        dtype=name,
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
    found = _write_slabs(
        scan, cut, plan, writer, lambda done: progress(SURVEY_SHARE + (1 - SURVEY_SHARE) * done)
    )
    around = len(scan.header) + len(scan.lead) + len(scan.trailer)
    return EncodeReport(
        mode=header.mode.name.lower(),
        model=plan.model.name if plan.model is not None else None,
        reason=plan.reason,
        voxels=math.prod(scan.shape),
        original_bytes=around + math.prod(scan.shape) * scan.dtype.itemsize,
        stream_bytes=writer.size,
        fidelity=found,
    )


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
) -> _Plan:
    native = scan.dtype.newbyteorder("=")
    reason = None
    if quality is not None:
        reason = lossless_reason(native, statistics, sigma, declared_labels=scan.declared_labels)
        if reason is None:
            intensity = Intensity.for_lossy(native, *lossy_range(statistics))
            return _lossy_plan(scan, cut, statistics, sigma, intensity, quality, load_model())
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
    quality: float,
    model: LossyModel,
) -> _Plan:
    step = fidelity.step(quality, sigma / intensity.scale, intensity.peak)
    packed = LossyHead(step, sigma, intensity).pack()
    head = LossyHead.unpack(packed, intensity.dtype)  # what the decoder reads
    k, j, i = np.array(scan.spacing_mm, np.float32).tolist()  # what HEAD holds
    params = LossyParams(head.step, intensity.peak, cut.turned((k, j, i)))
    has_background = statistics.at_minimum >= LEAST_BACKGROUND * statistics.voxels
    return _Plan(
        slabcoding.LEARNED if model.exact_samples else slabcoding.LEARNED_INEXACT,
        slabcoding.Lossy(model, intensity, params, has_background),
        packed,
        lossy=head,
        model=model,
        flags=Flags.BACKGROUND if has_background else Flags(0),
    )


def _write_slabs(
    scan: Scan, cut: Tiling, plan: _Plan, writer: ContainerWriter, progress: Progress
) -> Fidelity | None:
    """Second pass: code every slab, and finish the stream."""
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
        return None
    rmse = math.sqrt(squared / math.prod(scan.shape))
    errors = plan.lossy.pack_errors(rmse, largest)
    writer.chunk(ERRORS, errors)
    writer.finish(digest.digest())
    return plan.lossy.fidelity(errors)
