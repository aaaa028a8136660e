"""From a scan and a plan to a stream, in one loop over the slabs; observers follow them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import ERRORS, GOAL, GZIP, META, ORIG, PREVIEW, SUMS
from mricodec.bitstream.container import ContainerWriter
from mricodec.bitstream.header import Flags, Mode, StreamHeader, digest_bytes
from mricodec.bitstream.sections import pack_meta, pack_orig
from mricodec.codec.coders import base as coders
from mricodec.codec.coders.base import LossyModel, SlabCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.references import ReferenceBuffer
from mricodec.codec.coders.workers import processes
from mricodec.codec.formats import gzip_recipe
from mricodec.codec.settings import Target
from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import Envelope, Scan, dtype_name, is_big_endian, to_file_order
from mricodec.codec.voxels import metrics

from .heads import Distortion, PredictiveHead
from .planning import Plan
from .stream import Progress, geometry_meta


@dataclass(frozen=True)
class EncodeReport:
    """What came of encoding one scan.

    mode: "lossless", "lossy" or "bounded".
    reason: why it is lossless though loss was asked for.
    original_bytes: of the scan, uncompressed, with its header.
    fidelity: of a lossy or bounded stream.
    target: the PSNR or size that was asked for; missed: why the stream does not have it.
    max_error: the bound of a bounded stream, in stored units.
    layers: modes of the streams inside, the coarsest first; no_layers: why there are none.
    gzip: how the .nii.gz is made again; "" if it can't be, None if the source was none.
    """

    mode: str
    model: str | None
    reason: str | None
    voxels: int
    original_bytes: int
    stream_bytes: int
    fidelity: Distortion | None
    target: Target | None = None
    missed: str | None = None
    max_error: float | None = None
    layers: tuple[str, ...] = ()
    no_layers: str | None = None
    gzip: str | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the scan over those of the stream."""
        return self.original_bytes / self.stream_bytes

    @property
    def bits_per_voxel(self) -> float:
        """Bits of the whole stream per voxel."""
        return 8 * self.stream_bytes / self.voxels


@dataclass(frozen=True)
class Layer:
    """A coarser stream of the same scan that is refined.

    file: the stream from its start, `size` bytes; modes: its own last, those of its layers before.
    head: of a bounded one; slabs: its decoded slabs, from the first on.
    """

    file: BinaryIO
    size: int
    modes: tuple[str, ...]
    head: PredictiveHead | None
    slabs: Callable[[], Iterator[NDArray[Any]]]


class PreviewEncoder(Protocol):
    """Follows the slabs of a scan and encodes a reduced version of it."""

    def add(self, slab: NDArray[Any]) -> None:
        """The next slab, [n, h, w]."""

    def encode(self, stream_bytes: int) -> bytes | None:
        """A stream for the chunk PREVIEW, or None if there is no room; after the last slab."""


@dataclass(frozen=True)
class Job:
    """What is written.

    coder: of the plan; model: of a lossy stream. envelope: stored in the stream. base: the layer
    that is refined. preview: of a stream without loss. gzip: look for the recipe of a .nii.gz.
    """

    scan: Scan
    tiling: Tiling
    plan: Plan
    coder: SlabCoder
    model: LossyModel | None = None
    base: Layer | None = None
    preview: PreviewEncoder | None = None
    target: Target | None = None
    gzip: bool = False
    bare: bool = False

    @property
    def envelope(self) -> Envelope:
        """What the stream stores around its voxels: nothing in a stream inside another."""
        if not self.bare:
            return self.scan.envelope
        return Envelope(spacing_mm=self.scan.envelope.spacing_mm)


def write(job: Job, file: BinaryIO, progress: Progress) -> tuple[EncodeReport, float]:
    """Write the whole stream. The second result is the mean squared error, stored units squared."""
    scan, plan = job.scan, job.plan
    writer = ContainerWriter(file, _header(job))
    recipe = _write_chunks(job, writer)
    if job.base is not None:
        writer.embed(job.base.file, job.base.size)
    fidelity, mse = _write_slabs(job, writer, progress)
    bounded = isinstance(plan.head, PredictiveHead) and plan.mode is Mode.BOUNDED
    report = EncodeReport(
        mode=plan.mode.name.lower(),
        model=None if job.model is None else job.model.name,
        reason=plan.reason,
        voxels=math.prod(scan.shape),
        original_bytes=job.envelope.size + math.prod(scan.shape) * scan.dtype.itemsize,
        stream_bytes=writer.size,
        fidelity=fidelity,
        target=job.target,
        max_error=plan.head.bound if bounded else None,  # type: ignore[union-attr]
        layers=() if job.base is None else job.base.modes,
        gzip=recipe,
    )
    return report, mse


def _header(job: Job) -> StreamHeader:
    scan, plan = job.scan, job.plan
    return StreamHeader(
        mode=plan.mode,
        coder=plan.coder,
        dtype=dtype_name(scan.dtype),
        shape=scan.shape,
        slab_axis=job.tiling.axis,
        slab_slices=job.tiling.slices,
        flags=plan.flags | (Flags.BIG_ENDIAN if is_big_endian(scan.dtype) else Flags(0)),
        model_id=bytes(8) if job.model is None else job.model.model_id,
        spacing_mm=job.envelope.spacing_mm,
        params=plan.params(),
    )


def _write_chunks(job: Job, writer: ContainerWriter) -> str | None:
    """All chunks before the layer and the slabs; the recipe of a .nii.gz as in `EncodeReport`."""
    scan, envelope = job.scan, job.envelope
    if envelope.header:
        writer.chunk(ORIG, pack_orig(envelope.header + envelope.lead, envelope.trailer))
    elif meta := geometry_meta(envelope, scan.name):
        writer.chunk(META, pack_meta(meta))
    if not job.bare:
        for type, payload in scan.chunks:
            writer.chunk(type, payload)
    if job.target is not None:
        writer.chunk(GOAL, job.target.pack())
    gzip_file = scan.gzip_file() if job.plan.mode is Mode.LOSSLESS and job.gzip else None
    if gzip_file is None:
        return None
    recipe = gzip_recipe.find_recipe(gzip_file)
    if recipe is None:
        return ""
    writer.chunk(GZIP, recipe.pack())
    return str(recipe)


class _Errors:
    """Errors of decoded slabs, measured in the background."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._pending: list[tuple[int, Future[tuple[float, float]]]] = []
        self.squared = 0.0  # Sum over voxels.
        self.largest = 0.0

    def add(self, slab: NDArray[Any], decoded: NDArray[Any]) -> None:
        self._pending.append((slab.size, self._pool.submit(metrics.errors, slab, decoded)))

    def collect(self) -> None:
        """Wait for the errors of the slabs so far."""
        for voxels, pending in self._pending:
            mse, largest = pending.result()
            self.squared, self.largest = self.squared + mse * voxels, max(largest, self.largest)
        self._pending.clear()


def _write_slabs(
    job: Job, writer: ContainerWriter, progress: Progress
) -> tuple[Distortion | None, float]:
    """Code every slab and finish the stream; its fidelity and mean squared error."""
    scan, tiling, plan, coder = job.scan, job.tiling, job.plan, job.coder
    lossless = plan.mode is Mode.LOSSLESS
    envelope = job.envelope
    digest = hashlib.sha256(envelope.header + envelope.lead if lossless else b"")
    order = FileOrder(tiling)
    sums: list[int] = []
    with ThreadPoolExecutor(processes()) as pool:
        errors = _Errors(pool)
        for window, coded in _coded_windows(job):
            if not lossless:
                for slab, (_, decoded) in zip(window, coded, strict=True):
                    errors.add(slab, decoded)
            for slab, (payload, decoded) in zip(window, coded, strict=True):
                writer.slab(payload)
                sums.append(coders.checksum(slab if lossless else decoded, scan.dtype))
                for block in order.add(slab if lossless else decoded):
                    digest.update(to_file_order(block, scan.dtype))
                if job.preview is not None:
                    job.preview.add(slab)
            errors.collect()
            progress(len(sums) / tiling.slabs)
    packed = np.array(sums, "<u4").tobytes() if coder.exact else b""
    if not lossless:
        return _finish_with_loss(job, writer, errors, packed, digest.digest())
    writer.chunk(SUMS, packed)
    if job.preview is not None and (preview := job.preview.encode(writer.size)) is not None:
        writer.chunk(PREVIEW, preview)
    digest.update(job.envelope.trailer)
    writer.finish(digest.digest())
    return None, 0.0


def _coded_windows(
    job: Job,
) -> Iterator[tuple[list[NDArray[Any]], list[tuple[bytes, NDArray[Any]]]]]:
    """(slabs, their payloads and what these decode to), as many at once as the coder takes."""
    plan, coder, number = job.plan, job.coder, 0
    chain = ReferenceBuffer(job.tiling, plan.chain)
    below = job.base.slabs() if job.base is not None else None
    batch_voxels = coder.batch_voxels if below is None and not plan.chain else 1
    slabs = job.scan.blocks(job.tiling)
    for window in coders.windows(slabs, lambda slab: slab.size, batch_voxels):
        references: coders.References = chain.references(number) if plan.chain else []
        if below is not None and isinstance(coder, PredictiveCoder):
            references = [coder.samples(next(below))]
        coded = coder.encode(window, references)
        yield window, coded
        for _, decoded in coded:
            if plan.chain and isinstance(coder, PredictiveCoder):
                chain.add(number, coder.samples(decoded))
            number += 1


def _finish_with_loss(
    job: Job, writer: ContainerWriter, errors: _Errors, sums: bytes, digest: bytes
) -> tuple[Distortion, float]:
    head, mode = job.plan.head, job.plan.mode
    assert head is not None
    if isinstance(head, PredictiveHead) and errors.largest > head.bound:
        raise RuntimeError(
            f"{job.scan.name}: an error of {errors.largest} is beyond the bound; "
            "please report this scan"
        )
    mse = errors.squared / math.prod(job.scan.shape)
    packed = head.pack_errors(math.sqrt(mse), errors.largest)
    writer.chunk(ERRORS, packed + sums)
    writer.finish(digest[: digest_bytes(mode)])
    return head.fidelity(packed), mse
