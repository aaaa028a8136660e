"""The representation study: train what is missing, measure it on test subjects, write a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mricodec.codec.atomic import replacing
from mricodec.codec.evaluation.report import environment
from mricodec.codec.training.data_folder import SPLITS
from mricodec.models.extras import require
from mricodec.models.study.perceptual import Lpips

from . import augmentation, generation, interpolation, page, reconstruction
from .corpus import CONTRASTS, Corpus, load_corpus
from .figures import Figures
from .measures import MEASURES
from .networks import Networks, TrainingPlan
from .settings import CNNS, CODECS, CONFIGS, PARTS, UNETS
from .study import Study


@dataclass(frozen=True)
class StudySettings:
    """What is studied, and how."""

    parts: Sequence[str] = PARTS
    config: str = "default"
    # Wall time of each training instead of the steps of the configuration.
    minutes: float | None = None
    # Whether the shipped networks are trained too instead of being used as they are.
    retrain: bool = False
    # Published weights of LPIPS, if there are any.
    lpips: Path | None = None

    def check(self) -> None:
        """ValueError for unknown names."""
        if unknown := [name for name in self.parts if name not in PARTS]:
            raise ValueError(
                f"--only: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}"
            )
        if self.config not in CONFIGS:
            raise ValueError(
                f"--config: expected one of {', '.join(CONFIGS)}, found {self.config!r}"
            )


def run(
    data: Path,
    out: Path,
    settings: StudySettings,
    *,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, str], None] = lambda fraction, phase: None,
) -> Path:
    """Run parts of the study: `out`/study.json, figures/ and study.html; returns the page's path.

    Repeating it trains only what is missing; parts that were measured before are kept in
    study.json. `progress` gets the fraction of a phase that is done, and its name. ValueError for
    wrong names or data without a usable slice, OSError, MissingExtra without matplotlib.
    """
    settings.check()
    require("matplotlib.figure", "bench", "plots")
    config = CONFIGS[settings.config]
    corpus = load_corpus(
        data,
        every=config.every,
        scans_per_contrast=config.scans_per_contrast,
        progress=lambda fraction, name: progress(fraction, "reading scans"),
    )
    (out / "models").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    study = _study(corpus, out, settings, report)
    for line in corpus.notes():
        report(line)
    figures = Figures(out / "figures")
    figures.contact_sheet(corpus.slices["train"], corpus.grid["train"])
    results: dict[str, Any] = {}
    for n, part in enumerate(PARTS):
        if part in settings.parts:
            progress(n / len(PARTS), "study")
            results |= _EXPERIMENTS[part](study, figures)
    results |= _description(study, settings)
    return _write(out, results)


def _study(
    corpus: Corpus, out: Path, settings: StudySettings, report: Callable[[str], None]
) -> Study:
    lpips = None if settings.lpips is None else Lpips(settings.lpips)
    use_shipped = settings.config == "default" and settings.minutes is None and not settings.retrain
    config = CONFIGS[settings.config]
    plan = TrainingPlan(config, use_shipped=use_shipped, minutes=settings.minutes)
    return Study(corpus, Networks(corpus, out, plan, report), config, report, lpips)


# Experiments: each draws its figures and returns entries of study.json. --------------------------


def _cnn(study: Study, figures: Figures) -> dict[str, Any]:
    return {"cnn": _reconstructions(study, figures, "cnn", CNNS, CNNS)}


def _unet(study: Study, figures: Figures) -> dict[str, Any]:
    return {"unet": _reconstructions(study, figures, "unet", UNETS, UNETS[:2])}


def _reconstructions(
    study: Study, figures: Figures, part: str, models: Sequence[str], shown: Sequence[str]
) -> list[dict[str, Any]]:
    rows = reconstruction.reconstructions(study, models)
    pictures = reconstruction.shown_reconstructions(study, shown)
    figures.reconstructions(part, shown, pictures)
    figures.surfaces(part, shown, *pictures[0])
    return rows


def _vae(study: Study, figures: Figures) -> dict[str, Any]:
    rows = reconstruction.rates(study, CODECS)
    figures.rates(rows)
    return {"vae": rows}


def _interpolation(study: Study, figures: Figures) -> dict[str, Any]:
    rows = interpolation.interpolations(study)
    if rows:
        figures.strips(interpolation.strips(study), interpolation.STRIP_WEIGHTS)
        mixtures = interpolation.simplex(study)
        if mixtures is not None:
            figures.simplex(*mixtures)
    return {"interpolation": rows}


def _bagan(study: Study, figures: Figures) -> dict[str, Any]:
    corpus = study.corpus
    samples = generation.shown_samples(study)
    figures.samples(samples, corpus.slices["train"], corpus.grid["train"])
    return {"bagan": generation.generation(study)}


def _augmentation(study: Study, figures: Figures) -> dict[str, Any]:
    rows = augmentation.augmentation(study)
    figures.accuracies(rows)
    return {"augmentation": rows, "subset": augmentation.subset_counts(study)}


_EXPERIMENTS: dict[str, Callable[[Study, Figures], dict[str, Any]]] = {
    "cnn": _cnn,
    "unet": _unet,
    "vae": _vae,
    "interpolation": _interpolation,
    "bagan": _bagan,
    "augmentation": _augmentation,
}


def _description(study: Study, settings: StudySettings) -> dict[str, Any]:
    """What the results come from: data, trainings, machine, definitions."""
    corpus = study.corpus
    return {
        "config": settings.config,
        "minutes": settings.minutes,
        "environment": environment(),
        "measures": MEASURES,
        "left_out": [[item.file, item.reason] for item in corpus.left_out],
        "substituted": list(corpus.substituted),
        "data": [
            {
                "split": split,
                "contrast": contrast,
                "scans": len({item.scan for item in slices}),
                "subjects": len({item.subject for item in slices}),
                "slices": len(slices),
            }
            for split in SPLITS
            for contrast in CONTRASTS
            if split not in corpus.substituted
            and (slices := [s for s in corpus.slices[split] if s.contrast == contrast])
        ],
        "trainings": study.networks.trainings(),
        "files": study.networks.files,
    }


def _write(out: Path, results: dict[str, Any]) -> Path:
    """study.json, with the parts of an earlier run that were not repeated, and study.html."""
    path = out / "study.json"
    earlier: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in earlier.items() if key in (*PARTS, "subset")}
    results = kept | results | {"files": earlier.get("files", {}) | results["files"]}
    with replacing(path) as file:
        file.write((json.dumps(results, indent=1, default=float) + "\n").encode())
    html = out / "study.html"
    with replacing(html) as file:
        file.write(page.render(results, out / "figures").encode())
    return html
