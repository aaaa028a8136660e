"""One scan -> one stream: look at the scan, choose the coder, write the slabs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import ERRORS, GOAL, GZIP, META, ORIG, PREVIEW, SUMS
from mricodec.bitstream.container import ContainerWriter
from mricodec.bitstream.header import (
    DEFAULT_LIMITS,
    LEARNED,
    LEARNED_INEXACT,
    PREDICTIVE,
    STORE,
    Flags,
    Mode,
    StreamHeader,
    digest_bytes,
)
from mricodec.bitstream.sections import pack_meta, pack_orig
from mricodec.codec import tiling
from mricodec.codec.coders import base as coders_base
from mricodec.codec.coders import learned, predictive, store
from mricodec.codec.coders.base import LossyModel, LossyParams, SlabCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.references import ReferenceBuffer
from mricodec.codec.coders.workers import processes
from mricodec.codec.formats import gzip_recipe, nifti_header
from mricodec.codec.settings import Bound, Effort, EncodeSettings, Target
from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import ArrayScan, Scan, Volume, dtype_name, is_big_endian, to_file_order
from mricodec.codec.voxels import metrics, noise, preview
from mricodec.codec.voxels import quality as fidelity
from mricodec.codec.voxels.intensity import Intensity, Statistics, lossless_reason, lossy_range
from mricodec.codec.voxels.mappings import bounded_map, exact_map

from . import rate_control
from .heads import Distortion, LossyHead, PredictiveHead
from .rate_control import Aim, Extent, Trial
from .stream import MAX_SLAB_VOXELS, Progress, Stream, geometry_meta

NOISE_SLABS = 5  # evenly spaced; the noise of the scan is their median. Without loss one is enough, for the preview
MIN_BACKGROUND = 0.02  # of the voxels at the minimum, from which on a mask is worth a byte per slab
SURVEY_SHARE = 0.1  # of the time, for the progress
EXPECTED_FROM = 1 << 20  # voxels, about, of which a target is expected
MAX_IN_MEMORY = 64 << 20  # bytes of a stream that may still be replaced by a better one
CHAIN = 8  # volumes: each but the first of so many is coded beside the ones before, and decodes after them
CHAIN_VOXELS = 1 << 25  # of a volume, as two are kept in memory
PREVIEW_FROM = 1 << 18  # voxels; smaller scans decode in no time
PREVIEW_SHARE = (
    0.008  # of the stream that a preview should take; it is left out if it takes twice as much
)
PREVIEW_TRIES = 2
MAX_GROWTH = 1.0008  # of the voxels, a preview included: noise has room for a coarse one at most


@dataclass(frozen=True)
class EncodeReport:
    """What came out of encoding one scan."""

    mode: str  # "lossless", "lossy" or "bounded"
    model: str | None
    reason: str | None  # why it is lossless though loss was asked for
    voxels: int
    original_bytes: int  # uncompressed, with the header
    stream_bytes: int
    fidelity: Distortion | None  # of a lossy or bounded stream
    target: Target | None = None  # PSNR or size that was asked for
    missed: str | None = None  # why it is not what was asked for
    max_error: float | None = None  # the bound of a bounded stream, in stored units
    layers: tuple[str, ...] = ()  # modes of the streams inside, the coarsest first
    no_layers: str | None = None  # why there are none though layers were asked for
    gzip: str | None = (
        None  # "" if the source is a .nii.gz that can't be made again; None if it is none, or not asked
    )

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
    mode: Mode = Mode.LOSSLESS
    head: LossyHead | PredictiveHead | None = None
    model: LossyModel | None = None
    flags: Flags = Flags(0)  # noqa: RUF009 (a constant)
    target: Target | None = None
    at_step: Callable[[float], _Plan] | None = None  # the same plan with another step (codes)
    chain: int = 0


def encode_scan(
    scan: Scan,
    file: BinaryIO,
    wanted: EncodeSettings,
    load_model: Callable[[], LossyModel],
    progress: Progress,
) -> EncodeReport:
    """Write the stream of a scan. The model is loaded only if it is needed.

    With a target the step is searched for it, whatever the quality.
    """
    dtype_name(scan.dtype)  # ValueError for a type that no stream can hold
    if 0 in scan.shape or not scan.shape:
        raise ValueError(
            f"{scan.name}: expected an array with axes and voxels, found shape {scan.shape}"
        )
    _check_header(scan)
    cut = tiling.choose(scan.shape, scan.spacing_mm)
    if math.prod(cut.slab_shape(0)) > MAX_SLAB_VOXELS:
        raise ValueError(
            f"{scan.name}: expected slices of at most {MAX_SLAB_VOXELS} voxels, found {cut.slab_shape(0)}"
        )
    finer = wanted.lossless or wanted.bound is not None
    helpers = predictive.helpers(math.prod(scan.shape), cut.slabs, wanted.effort) if finer else None
    with contextlib.ExitStack() as stack:
        base: _Layer | None = None
        no_layers = None
        coarser = _coarser(wanted)
        if coarser is not None:
            found_layer = _layer(
                scan, cut, coarser, load_model, lambda done: progress(0.5 * done), stack
            )
            if isinstance(found_layer, str):
                no_layers = found_layer
            else:
                base = found_layer
        start = 0.0 if base is None else 0.5
        noise_slabs = 1 if wanted.lossless else NOISE_SLABS
        statistics, sigma = _survey(
            scan, cut, noise_slabs, lambda done: progress(start + (1 - start) * SURVEY_SHARE * done)
        )
        plan = _plan(scan, cut, statistics, sigma, wanted, base, load_model)
        if plan.number != PREDICTIVE:
            base = None
        if wanted.target is not None and plan.at_step is not None:
            return _write_on_target(
                scan, cut, plan, wanted, file, lambda done: progress(SURVEY_SHARE + 0.9 * done)
            )
        first = start + (1 - start) * SURVEY_SHARE
        report, _ = _write(
            scan,
            cut,
            plan,
            base,
            wanted,
            sigma,
            file,
            lambda done: progress(first + (1 - first) * done),
        )
        del helpers
        return replace(report, no_layers=no_layers)


def _write(
    scan: Scan,
    cut: Tiling,
    plan: _Plan,
    base: _Layer | None,
    wanted: EncodeSettings,
    sigma: float,
    file: BinaryIO,
    progress: Progress,
) -> tuple[EncodeReport, float]:
    """The whole stream; the second is the mean squared error, stored units squared."""
    header = StreamHeader(
        mode=plan.mode,
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
    recipe = None
    gzip_file = scan.gzip_file() if plan.mode is Mode.LOSSLESS and wanted.gzip else None
    if gzip_file is not None:
        recipe = gzip_recipe.find_recipe(gzip_file)
        if recipe is not None:
            writer.chunk(GZIP, recipe.pack())
    if base is not None:
        writer.embed(base.file, base.size)
    found, mse = _write_slabs(scan, cut, plan, base, writer, wanted, sigma, progress)
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
        max_error=plan.head.bound
        if isinstance(plan.head, PredictiveHead) and plan.mode is Mode.BOUNDED
        else None,
        layers=() if base is None else base.modes,
        gzip=None if gzip_file is None else "" if recipe is None else str(recipe),
    )
    return report, mse


def _write_on_target(
    scan: Scan, cut: Tiling, plan: _Plan, wanted: EncodeSettings, file: BinaryIO, progress: Progress
) -> EncodeReport:
    """Search the step by whole streams; the nearest of these is written."""
    head, at_step, target = plan.head, plan.at_step, wanted.target
    assert isinstance(head, LossyHead) and at_step is not None and target is not None
    intensity = head.intensity
    extent = Extent(
        math.prod(scan.shape), scan.dtype.itemsize, float(intensity.maximum - intensity.minimum)
    )
    aim = Aim(target, extent)
    low = math.log2(max(fidelity.STEP_RANGE[0], rate_control.FINEST_STEP))
    high = min(math.log2(fidelity.STEP_RANGE[1]), max(low, math.log2(2 * intensity.peak)))
    octaves = np.linspace(low, high, 1 + math.ceil(rate_control.FINE * (high - low)))
    counts = rate_control.magnitudes(_coefficients(scan, cut, intensity))
    expected = np.array(
        [aim.expected(octave, counts, float(intensity.scale)) for octave in octaves]
    )
    share = 0.0
    best: tuple[float, EncodeReport, BinaryIO] | None = None

    with contextlib.ExitStack() as stack:

        def whole(octave: float) -> float:
            nonlocal best, share
            begun, part = share, (1 - share) / 2
            stream = cast(
                BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(MAX_IN_MEMORY))
            )
            trial = replace(at_step(2**octave), target=target)
            report, mse = _write(
                scan,
                cut,
                trial,
                None,
                wanted,
                0.0,
                stream,
                lambda done: progress(begun + part * done),
            )
            share += part
            height = aim.of(Trial(report.stream_bytes, mse))
            if best is None or abs(height - aim.height) < best[0]:
                if best is not None:
                    best[2].close()
                best = abs(height - aim.height), report, stream
            else:
                stream.close()
            return height

        at, height = rate_control.Search(aim.height, octaves, expected).run(whole, aim.tolerance)
        assert best is not None
        _, report, stream = best
        stream.seek(0)
        shutil.copyfileobj(stream, file, 1 << 20)
    progress(1.0)
    return replace(report, missed=rate_control.shortfall(aim, at, height, low, high))


def _coefficients(scan: Scan, cut: Tiling, intensity: Intensity) -> NDArray[np.float32]:
    """Of the transform of evenly spaced slices, [n]."""
    from mricodec.models.lossy import codec_base
    from mricodec.models.lossy import lapped_transform as transform

    voxels = math.prod(scan.shape)
    every = min(-(-voxels // EXPECTED_FROM), voxels // math.prod(cut.slab_shape(0)[1:]))
    found = []
    start = every // 2  # of the next slab
    for slab in scan.blocks(cut):
        if start < len(slab):
            codes = codec_base.padded(intensity.codes(slab[start::every]))
            found.append(transform.analysis(codes).numpy().reshape(-1))
        start = (start - len(slab)) % every
    return np.concatenate(found)


def _coarser(wanted: EncodeSettings) -> EncodeSettings | None:
    """What the layer below the finest is to hold."""
    if not wanted.layers:
        return None
    below = replace(wanted, lossless=False, preview=False, gzip=False)
    if wanted.lossless and wanted.bound is not None:
        return below
    return (
        replace(below, bound=None, layers=False)
        if wanted.lossless or wanted.bound is not None
        else None
    )


@dataclass(frozen=True)
class _Layer:
    """A stream of the same scan that is refined: in a temporary file, and as decoded slabs."""

    file: BinaryIO
    size: int
    modes: tuple[str, ...]
    head: PredictiveHead | None  # of a bounded one
    slabs: Callable[[], Iterator[NDArray[Any]]]


def _layer(
    scan: Scan,
    cut: Tiling,
    wanted: EncodeSettings,
    load_model: Callable[[], LossyModel],
    progress: Progress,
    stack: contextlib.ExitStack,
) -> _Layer | str:
    """The layer, or why the scan can't have it."""
    from . import decoding

    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    report = encode_scan(_WithoutHeader(scan), file, wanted, load_model, progress)
    if report.mode == "lossless":
        return report.reason or "it is coded without loss"
    if report.mode == "lossy" and not load_model().exact_samples:
        raise ValueError(
            "layers: expected a model that decodes to the same samples everywhere, such as the default one"
        )
    size = file.seek(0, os.SEEK_END)
    file.seek(0)

    def slabs() -> Iterator[NDArray[Any]]:
        stream = Stream(file, DEFAULT_LIMITS)
        for _, slab in decoding.decoded_slabs(
            decoding.Layered.of(stream, lambda _: load_model()), range(cut.slabs)
        ):
            yield slab

    bounded = Stream(file, DEFAULT_LIMITS).predictive_head() if report.mode == "bounded" else None
    file.seek(0)
    return _Layer(file, size, (*report.layers, report.mode), bounded, slabs)


class _WithoutHeader:
    """A scan as a bare array: what is around the voxels is stored once, in the outermost stream."""

    header = lead = trailer = b""
    slope, inter = 1.0, 0.0

    def __init__(self, scan: Scan) -> None:
        self.affine: NDArray[np.float64] | None = None
        self.chunks: Iterable[tuple[bytes, bytes]] = ()
        self.name, self.shape, self.dtype = scan.name, scan.shape, scan.dtype
        self.spacing_mm, self.declared_labels = scan.spacing_mm, scan.declared_labels
        self.blocks = scan.blocks

    def gzip_file(self) -> BinaryIO | None:
        return None

    def close(self) -> None:
        pass


def _check_header(scan: Scan) -> None:
    """A `Volume` may carry the header of another array."""
    if not scan.header:
        if scan.lead or scan.trailer:
            raise ValueError(
                f"{scan.name}: expected a header with a trailer, found none; leave the trailer out"
            )
        return
    parsed = nifti_header.parse(scan.header, f"header of {scan.name}")
    if (parsed.shape, parsed.dtype) != (scan.shape, scan.dtype):
        raise ValueError(
            f"{scan.name}: expected an array of {parsed.dtype} {parsed.shape}, as the header says, "
            f"found {scan.dtype} {scan.shape}; leave the header out"
        )


def _survey(
    scan: Scan, cut: Tiling, noise_slabs: int, progress: Progress
) -> tuple[Statistics, float]:
    """First pass: what the values are, and the noise in stored units. Reads the scan to its end."""
    statistics = Statistics(scan.dtype)
    sampled = {(2 * n + 1) * cut.slabs // (2 * noise_slabs) for n in range(noise_slabs)}
    sigmas = []
    with ThreadPoolExecutor(processes()) as pool:
        for number, slab in enumerate(scan.blocks(cut)):
            if number in sampled and statistics.numeric and statistics.finite:
                sigmas.append(pool.submit(_sigma, noise.sampled(slab)))
            statistics.add(slab)
            progress((number + 1) / cut.slabs)
    sigma = (
        float(np.median([sigma.result() for sigma in sigmas]))
        if sigmas and statistics.finite
        else 0.0
    )
    return statistics, sigma


def _sigma(slices: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # a range so wide is coded without loss
        return noise.sigma_hat(slices)


def _plan(
    scan: Scan,
    cut: Tiling,
    statistics: Statistics,
    sigma: float,
    wanted: EncodeSettings,
    base: _Layer | None,
    load_model: Callable[[], LossyModel],
) -> _Plan:
    native = scan.dtype.newbyteorder("=")
    reason = None
    if not wanted.lossless and wanted.bound is not None:
        bound = wanted.bound.value * (sigma if wanted.bound.of_sigma else 1.0)
        reason = _unbounded_reason(native, statistics, sigma, wanted.bound, scan.declared_labels)
        found = bounded_map(native, statistics, bound) if reason is None else None
        if found is not None:
            codes, max_error = found
            head = PredictiveHead(
                codes, 0 if base is not None else _chain(cut), max_error, bound, sigma
            )
            head = PredictiveHead.unpack(
                head.pack(Mode.BOUNDED), Mode.BOUNDED, native
            )  # what the decoder reads
            return _predictive_plan(head, Mode.BOUNDED, native, None, base, wanted.effort)
        reason = reason or f"an error of {bound:.3g} stored units allows no other value"
    elif not wanted.lossless and wanted.quality is not None:
        reason = lossless_reason(native, statistics, sigma, declared_labels=scan.declared_labels)
        if reason is None:
            intensity = Intensity.for_lossy(native, *lossy_range(statistics))
            step = fidelity.step(wanted.quality, sigma / intensity.scale, intensity.peak)
            return _lossy_plan(
                scan, cut, statistics, sigma, intensity, step, wanted.effort, load_model()
            )
    codes_exact = exact_map(native, statistics, scan.blocks(cut))
    if codes_exact is None:
        return _Plan(STORE, store.StoreCoder(native), reason=reason)
    head = PredictiveHead(codes_exact, 0 if base is not None else _chain(cut))
    return _predictive_plan(head, Mode.LOSSLESS, native, reason, base, wanted.effort)


def _unbounded_reason(
    dtype: np.dtype[Any], statistics: Statistics, sigma: float, bound: Bound, declared_labels: bool
) -> str | None:
    """Why a bound means no loss, or None."""
    if bound.of_sigma and sigma == 0 and statistics.finite:
        return "no noise was found in it"
    if (
        dtype.kind not in "iuf"
        or dtype.itemsize > 8
        or not statistics.finite
        or statistics.minimum == statistics.maximum
    ):
        return (
            lossless_reason(dtype, statistics, sigma, declared_labels=declared_labels)
            or "it holds no numbers"
        )
    if declared_labels or statistics.looks_like_labels():
        return "it is a label map"
    if dtype.kind != "f" and not statistics.integral:
        return "its range is too wide"
    return None


def _chain(cut: Tiling) -> int:
    """Volumes of a 4-D scan in a chain, of which each is coded beside the ones before it; 0: none is."""
    return CHAIN if cut.volumes > 1 and math.prod(cut.volume_shape) <= CHAIN_VOXELS else 0


def _predictive_plan(
    head: PredictiveHead,
    mode: Mode,
    native: np.dtype[Any],
    reason: str | None,
    base: _Layer | None,
    effort: Effort,
) -> _Plan:
    refined = None if base is None or base.head is None else (base.head.codes, base.head.max_error)
    coder = predictive.PredictiveCoder(
        head.codes, native, head.max_error, base=refined, effort=effort
    )
    return _Plan(PREDICTIVE, coder, head.pack(mode), reason, mode, head, chain=head.chain)


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
    has_background = statistics.at_minimum >= MIN_BACKGROUND * statistics.voxels
    return _Plan(
        LEARNED if model.exact_samples else LEARNED_INEXACT,
        learned.LearnedCoder(model, intensity, params, has_background),
        packed,
        mode=Mode.LOSSY,
        head=head,
        model=model,
        flags=Flags.BACKGROUND if has_background else Flags(0),
        at_step=lambda other: _lossy_plan(
            scan, cut, statistics, sigma, intensity, other, effort, model
        ),
    )


def _write_slabs(
    scan: Scan,
    cut: Tiling,
    plan: _Plan,
    base: _Layer | None,
    writer: ContainerWriter,
    wanted: EncodeSettings,
    sigma: float,
    progress: Progress,
) -> tuple[Distortion | None, float]:
    """Second pass: code every slab, and finish the stream. The second is the mean squared error."""
    lossless = plan.mode is Mode.LOSSLESS
    digest = hashlib.sha256(scan.header + scan.lead if lossless else b"")
    order = FileOrder(cut)
    chain = ReferenceBuffer(cut, plan.chain)
    below = base.slabs() if base is not None else None
    small = (
        _Small(scan, cut)
        if wanted.preview and lossless and plan.number == PREDICTIVE and _is_large(cut)
        else None
    )
    sums: list[int] = []
    squared = largest = 0.0
    together = plan.coder.batch_voxels if below is None and not plan.chain else 1
    with ThreadPoolExecutor(processes()) as pool:
        for window in coders_base.windows(scan.blocks(cut), lambda slab: slab.size, together):
            beside = chain.beside(len(sums)) if plan.chain else []
            if below is not None and isinstance(plan.coder, PredictiveCoder):
                beside = [plan.coder.codes(next(below))]
            coded = plan.coder.encode(window, beside)
            pairs = () if lossless else zip(window, (decoded for _, decoded in coded), strict=True)
            errors = [pool.submit(metrics.errors, *pair) for pair in pairs]
            for slab, (payload, decoded) in zip(window, coded, strict=True):
                writer.slab(payload)
                if plan.chain and isinstance(plan.coder, PredictiveCoder):
                    chain.add(len(sums), plan.coder.codes(decoded))
                sums.append(coders_base.checksum(slab if lossless else decoded, scan.dtype))
                for block in order.add(slab if lossless else decoded):
                    digest.update(to_file_order(block, scan.dtype))
                if small is not None:
                    small.add(slab)
            for slab, error in zip(window, errors, strict=False):
                mse, most = error.result()
                squared, largest = squared + mse * slab.size, max(largest, most)
            progress(len(sums) / cut.slabs)
    packed = np.array(sums, "<u4").tobytes() if plan.coder.exact else b""
    if lossless:
        writer.chunk(SUMS, packed)
        if small is not None:
            small.write(writer, sigma)
        digest.update(scan.trailer)
        writer.finish(digest.digest())
        return None, 0.0
    assert plan.head is not None
    if plan.mode is Mode.BOUNDED and largest > plan.head.bound:  # type: ignore[union-attr]
        raise RuntimeError(
            f"{scan.name}: an error of {largest} is beyond the bound; please report this scan"
        )
    mse = squared / math.prod(scan.shape)
    packed_errors = plan.head.pack_errors(math.sqrt(mse), largest)
    writer.chunk(ERRORS, packed_errors + packed)
    writer.finish(digest.digest()[: digest_bytes(plan.mode)])
    return plan.head.fidelity(packed_errors), mse


def _is_large(cut: Tiling) -> bool:
    return math.prod(cut.shape) >= PREVIEW_FROM


class _Small:
    """The reduced scan, made slab by slab."""

    def __init__(self, scan: Scan, cut: Tiling) -> None:
        self._scan = scan
        self._cut = cut
        self._order = FileOrder(cut)
        self._blocks: list[NDArray[Any]] = []

    def add(self, slab: NDArray[Any]) -> None:
        self._blocks += self._order.add(preview.reduced(slab))

    def write(self, writer: ContainerWriter, sigma: float) -> None:
        """The chunk PREVIEW: within the least bound that makes it as small as it should be, by an estimate."""
        array = np.concatenate(self._blocks).reshape(preview.reduced_shape(self._cut))
        volume = Volume.from_array(
            array, spacing_mm=preview.reduced_spacing(self._scan.spacing_mm, self._cut)
        )
        if array.dtype.kind not in "iuf":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            span = float(array.max()) - float(array.min())
        if not 0 < span < math.inf:
            return
        least = max(sigma, span / 1024, 1.0 if array.dtype.kind in "iu" else 0.0)
        whole = math.prod(self._scan.shape) * self._scan.dtype.itemsize
        room = min(PREVIEW_SHARE * writer.size, (MAX_GROWTH * whole - writer.size) / 2)
        if room <= 0:
            return
        bound = preview.bound_for(array, least, span / 8, 8 * room / array.size)
        for _ in range(PREVIEW_TRIES):
            buffer = io.BytesIO()
            wanted = EncodeSettings(bound=Bound(bound), effort="fast", preview=False, gzip=False)
            encode_scan(ArrayScan(volume), buffer, wanted, _no_model, lambda _: None)
            size = len(buffer.getvalue())
            if size <= 2 * room:
                writer.chunk(PREVIEW, buffer.getvalue())
                return
            bound *= 2 * size / room  # a bit less for each doubling, roughly


def _no_model() -> LossyModel:
    raise AssertionError("a bounded stream has no model")
