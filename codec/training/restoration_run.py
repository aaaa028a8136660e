"""A whole training of the restoration filter: from a training cache to weights and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from mricodec.models.loader import load_model
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.training import restoration

from . import restoration_measures as measures
from . import restoration_pairs as pairs
from .cache import Slab, load_cache

# Pairs that the filter of the default model is trained on; coding one takes about a second.
TRAINING_PAIRS = 1600


@dataclass(frozen=True)
class RestorationSettings:
    """How to train a filter.

    recipe: a name of `restoration.RECIPES`. held_out: training scans to choose by instead.
    every: only each so manieth slice of the validation slabs is measured.
    """

    recipe: str = "restoration"
    count: int = TRAINING_PAIRS
    held_out: Sequence[str] = ()
    every: int = 4


def run(
    cache: Path, out: Path, settings: RestorationSettings, report: Callable[[str], None]
) -> Path:
    """Code pairs from a file of `build_cache`, train, measure; the path of the float weights.

    The pairs are kept in `out`, and with them and a checkpoint an interrupted run goes on. The
    lines of `report` end with the savings. OSError, FormatError for the cache, ValueError without a
    slab to train on.
    """
    slabs = load_cache(cache)
    training = [s for s in slabs if s.split == "train" and s.name not in settings.held_out]
    if not training:
        raise ValueError(f"{cache}: expected training scans that are not held out, found none")
    model = load_model()
    assert isinstance(model, ContextLossy)
    _write(pairs.capturing(model), training, slabs, out, settings, report)
    pool = restoration.examples(pairs.read_pairs(out / "pairs"))
    path = restoration.train_filter(pool, out, settings.recipe, lambda row: report(str(row)))
    network = restoration.RestorationFilter(
        integer=restoration.RECIPES[settings.recipe].integer
    ).eval()
    network.load_state_dict(load_file(path))
    points: dict[str, list[measures.Point]] = {}
    for pair in pairs.read_pairs(out / "validation-pairs"):
        point = measures.measure(network, pair, settings.every)
        points.setdefault(pair.info.name, []).append(point)
    for line in measures.table(points) if points else ():
        report(line)
    return path


def _write(
    coder: pairs.CapturingCodec,
    training: Sequence[Slab],
    slabs: Sequence[Slab],
    out: Path,
    settings: RestorationSettings,
    report: Callable[[str], None],
) -> None:
    """The pairs that are missing in `out`."""
    chosen = pairs.validation_slabs(slabs, settings.held_out)
    count = len(chosen) * len(pairs.VALIDATION_QUALITIES)
    pairs.write_pairs(
        out / "validation-pairs", lambda n: pairs.validation_pair(coder, chosen, n), count, report
    )
    pairs.write_pairs(
        out / "pairs",
        lambda n: pairs.training_pair(coder, training, 0, n),
        settings.count,
        report,
    )
