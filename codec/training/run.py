"""A whole training: from a data folder or its cache file to weights in the form that is shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mricodec.models.extras import require_torch

from .cache import build_cache, load_cache
from .data_folder import left_out_lines, read_data_folder

# MiB of the cache file that a data folder is packed into.
BUDGET_MIB = 55.0
CACHE_NAME = "cache.safetensors"


@dataclass(frozen=True)
class TrainSettings:
    """How to train."""

    config: str
    device: str = "auto"
    # Stop after this wall time, to go on with the next call; None: all steps.
    minutes: float | None = None


@dataclass(frozen=True)
class Reporting:
    """Where a training reports to: lines for people, rows of its log, and its progress."""

    line: Callable[[str], None] = lambda line: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
    # The fraction done of a phase, which is named: "packing", then "training default".
    progress: Callable[[float, str], None] = lambda fraction, phase: None


@dataclass(frozen=True)
class Trained:
    """The weights: as trained, and as shipped unless they are those of a first stage."""

    float_weights: Path
    shipped: Path | None
    sha256: str


def pack(
    data: Path,
    out: Path,
    reporting: Reporting,
    *,
    budget_mib: float = BUDGET_MIB,
    scans: int | None = None,
) -> None:
    """`build_cache`, with lines for what is left out and how much was packed."""
    report = build_cache(
        data,
        out,
        budget_mib,
        scans_per_split=scans,
        progress=lambda fraction, name: reporting.progress(fraction, "packing"),
    )
    for line in [*left_out_lines(report.left_out), *(f"note: {note}" for note in report.notes)]:
        reporting.line(line)
    sizes = ", ".join(
        f"{voxels / 1e6:.1f} M voxels for {split}" for split, voxels in report.voxels.items()
    )
    reporting.line(f"{out}: {report.size / 2**20:.2f} MiB, {report.slabs} slabs, {sizes}")


def train(data: Path, out: Path, settings: TrainSettings, reporting: Reporting) -> Trained | None:
    """Train on a data folder or a file of `build_cache`, in the folder `out`; None if time ran out.

    A folder is packed into `out`/cache.safetensors first. Repeating the call resumes an interrupted
    training from its last checkpoint. ValueError for an unknown configuration or data without a
    scan to train on, FormatError for another or a damaged file, OSError,
    MissingExtra without torch.
    """
    torch = require_torch("training")
    from mricodec.models import zoo
    from mricodec.models.training import export, loop

    if settings.config not in loop.CONFIGS:
        raise ValueError(
            f"--config: expected one of {', '.join(loop.CONFIGS)}, found {settings.config!r}"
        )
    config = loop.CONFIGS[settings.config]
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if data.is_dir():
        read_data_folder(data)  # Refuses an empty folder before anything is written.
    out.mkdir(parents=True, exist_ok=True)
    slabs = load_cache(_packed(data, out, reporting, config.scans))
    if config.start and not (out / f"{config.start}.safetensors").exists():
        reporting.line(
            f"{config.start}.safetensors is not in {out}: {settings.config} starts from random "
            f"weights; train {config.start} first to start from it"
        )

    def report(fraction: float, row: dict[str, Any] | None) -> None:
        reporting.progress(fraction, f"training {settings.config}")
        if row is not None:
            reporting.row(row)

    weights = loop.train(
        slabs, out, settings.config, device=device, minutes=settings.minutes, report=report
    )
    if weights is None:
        return None
    if config.model not in zoo.NETWORKS:
        return Trained(weights, None, "")
    crops = min(export.CROPS, config.steps)
    network = export.trained_network(config.model, weights)
    path, sha256 = export.export(
        config.model, network, slabs, out, crops=crops, report=reporting.line
    )
    return Trained(weights, path, sha256)


def _packed(data: Path, out: Path, reporting: Reporting, scans: int | None) -> Path:
    """The cache file of `data`: itself, or that of a folder, which a resumed training keeps."""
    if data.is_file():
        return data
    packed = out / CACHE_NAME
    if not packed.exists():
        pack(data, packed, reporting, scans=scans)
    return packed
