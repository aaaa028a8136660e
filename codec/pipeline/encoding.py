"""One scan -> one stream.

    scan --analyse--> Analysis --plan, with EncodeSettings--> Plan --write, with the scan--> stream

Layers and the search for a target call plan and write again; write calls none of them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from mricodec.bitstream.header import PREDICTIVE, Mode
from mricodec.codec import tiling as tilings
from mricodec.codec.coders import predictive
from mricodec.codec.coders.base import LossyModel
from mricodec.codec.formats import nifti_header
from mricodec.codec.settings import Bound, EncodeSettings
from mricodec.codec.volume import ArrayScan, Scan, Volume, dtype_name

from . import analysis as analyses
from . import layers
from .analysis import Analysis
from .heads import LossyHead
from .planning import Plan, make_coder, plan
from .preview_stream import ReducedScan, has_preview
from .stream import MAX_SLAB_VOXELS, Progress
from .writing import EncodeReport, Job, Layer, write

# Share of the time that the first pass takes, for the progress.
ANALYSIS_SHARE = 0.1

_log = logging.getLogger(__name__)

LoadModel = Callable[[], LossyModel]


def encode_scan(
    scan: Scan,
    file: BinaryIO,
    settings: EncodeSettings,
    load_model: LoadModel,
    progress: Progress,
) -> EncodeReport:
    """Write the stream of a scan. The model is loaded only if it is needed.

    ValueError for a scan that no stream can hold.
    """
    dtype_name(scan.dtype)  # ValueError for a type that no stream can hold.
    if 0 in scan.shape or not scan.shape:
        raise ValueError(
            f"{scan.name}: expected an array with axes and voxels, found shape {scan.shape}"
        )
    _check_header(scan)
    tiling = tilings.choose(scan.shape, scan.envelope.spacing_mm)
    if math.prod(tiling.slab_shape(0)) > MAX_SLAB_VOXELS:
        raise ValueError(
            f"{scan.name}: expected slices of at most {MAX_SLAB_VOXELS} voxels, "
            f"found {tiling.slab_shape(0)}"
        )
    helpers = None
    if settings.lossless or settings.bound is not None:  # Started early, as they take a moment.
        helpers = predictive.helpers(math.prod(scan.shape), tiling.slabs, settings.effort)
    analysis = analyses.analyse(
        scan,
        tiling,
        noise_slabs=1 if settings.lossless and not settings.layers else analyses.NOISE_SLABS,
        progress=lambda done: progress(ANALYSIS_SHARE * done),
    )
    with contextlib.ExitStack() as stack:
        streams = _Streams(scan, analysis, load_model, stack)
        report = streams.finest(
            settings, file, lambda done: progress(ANALYSIS_SHARE + (1 - ANALYSIS_SHARE) * done)
        )
    del helpers
    return report


@dataclass
class _Streams:
    """The streams of one scan: the finest, and its layers."""

    scan: Scan
    analysis: Analysis
    load_model: LoadModel
    stack: contextlib.ExitStack

    def finest(self, settings: EncodeSettings, file: BinaryIO, progress: Progress) -> EncodeReport:
        """The stream of the settings, after the layer below it."""
        below = layers.coarser(settings)
        if below is None:
            return self._write(settings, file, None, progress)
        layer = self._layer(below, lambda done: progress(0.5 * done))
        base = layer if isinstance(layer, Layer) else None
        report = self._write(settings, file, base, lambda done: progress(0.5 + 0.5 * done))
        return replace(report, no_layers=None if isinstance(layer, Layer) else layer)

    def _layer(self, settings: EncodeSettings, progress: Progress) -> Layer | str:
        """A layer, after the one below it; or why the scan can't have it."""
        base = None
        below = layers.coarser(settings)
        if below is not None:
            layer = self._layer(below, lambda done: progress(0.5 * done))
            base = layer if isinstance(layer, Layer) else None
        planned = self._plan(settings, base)
        if planned.mode is Mode.LOSSLESS:
            return planned.reason or "it is coded without loss"
        file = self.stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        job = self._job(planned, settings, base, bare=True)
        report, _ = write(job, file, progress)
        return layers.written_layer(file, report, self.load_model)

    def _write(
        self,
        settings: EncodeSettings,
        file: BinaryIO,
        base: Layer | None,
        progress: Progress,
    ) -> EncodeReport:
        planned = self._plan(settings, base)
        if settings.target is None or not isinstance(planned.head, LossyHead):
            return write(self._job(planned, settings, base), file, progress)[0]
        from . import target_search

        def write_at_step(
            step: float, trial: BinaryIO, progress: Progress
        ) -> tuple[EncodeReport, float]:
            other = planned.with_step(step, self.analysis.sigma)
            return write(self._job(other, settings, None), trial, progress)

        search = target_search.of_scan(
            self.scan, self.analysis.tiling, planned.head, settings.target, write_at_step
        )
        return search.run(file, progress)

    def _plan(self, settings: EncodeSettings, base: Layer | None) -> Plan:
        planned = plan(
            self.analysis,
            settings,
            lambda: analyses.lossless_map(self.scan, self.analysis),
            layered=base is not None,
            exact_model=lambda: self.load_model().exact_samples,
        )
        mode, sigma = planned.mode.name.lower(), self.analysis.sigma
        _log.debug("%s: %s, noise %.4g stored units", self.scan.name, mode, sigma)
        return planned

    def _job(
        self,
        planned: Plan,
        settings: EncodeSettings,
        base: Layer | None,
        *,
        bare: bool = False,
    ) -> Job:
        """bare: for a stream inside another, without an envelope."""
        scan, tiling = self.scan, self.analysis.tiling
        predicted = planned.coder == PREDICTIVE
        base = base if predicted else None
        lossless = planned.mode is Mode.LOSSLESS
        preview = None
        if settings.preview and lossless and predicted and has_preview(tiling):
            preview = ReducedScan(scan, tiling, self.analysis.middle_sigma, _encode_bounded)
        lossy = isinstance(planned.head, LossyHead)
        refined = None if base is None else base.head
        return Job(
            scan,
            tiling,
            planned,
            make_coder(planned, self.analysis, settings.effort, self.load_model, refined),
            model=self.load_model() if lossy else None,
            base=base,
            preview=preview,
            target=settings.target if lossy else None,
            gzip=settings.gzip,
            bare=bare,
        )


def _encode_bounded(volume: Volume, bound: float) -> bytes:
    """A stream of a volume in which no voxel differs by more than `bound` stored units."""
    settings = EncodeSettings(bound=Bound(bound), effort="fast", preview=False, gzip=False)
    buffer = io.BytesIO()
    encode_scan(ArrayScan(volume), buffer, settings, _no_model, lambda _: None)
    return buffer.getvalue()


def _no_model() -> LossyModel:
    raise AssertionError("a bounded stream has no model")


def _check_header(scan: Scan) -> None:
    """ValueError if the header of a `Volume` is that of another array."""
    envelope = scan.envelope
    if not envelope.header:
        if envelope.lead or envelope.trailer:
            raise ValueError(
                f"{scan.name}: expected a header with a trailer, found none; leave the trailer out"
            )
        return
    parsed = nifti_header.parse(envelope.header, f"header of {scan.name}")
    if (parsed.shape, parsed.dtype) != (scan.shape, scan.dtype):
        raise ValueError(
            f"{scan.name}: expected an array of {parsed.dtype} {parsed.shape}, as the header says, "
            f"found {scan.dtype} {scan.shape}; leave the header out"
        )
