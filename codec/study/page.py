"""The study as one HTML page that needs nothing else: data, methods, tables, figures, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mricodec.codec.evaluation.page import STYLE, data_uri, html_note, html_table

from .corpus import CONTRASTS
from .generation import COLUMNS as GENERATION_COLUMNS
from .interpolation import COLUMNS as INTERPOLATION_COLUMNS
from .names import display_name

# Results of an earlier study on other data, by model: PSNR range, MSE, SSIM.
_EARLIER = {
    "cnn8": ("9.180 – 48.161", "", ""),
    "cnn16": ("8.556 – 47.426", "", ""),
    "cnn32": ("8.516 – 48.570", "", ""),
    "unet": ("0.572 – 25.668", "0.047", "0.038"),
    "unet-wide": ("6.863 – 27.583", "0.027", "0.044"),
}
# Mean PSNR on test slices that a network was to reach, dB: part, model, target.
_TARGETS = (("cnn", "cnn32", 38.0), ("unet", "unet", 28.0))
_TITLES = {
    "ssim": "SSIM to parents",
    "feature_distance": "feature distance to parents",
    "lpips": "LPIPS to parents",
    "novelty": "novelty",
    "nearest": "nearest",
    "sharpness": "sharpness",
    "mesh": "mesh",
    "psnr": "PSNR of the parents, dB",
}
# Measures by which ACAI is judged: smaller is better, of sharpness its distance to 1.
_JUDGED = ("feature_distance", "nearest", "sharpness", "mesh")
# Share of the pairs that must be won for a clear difference: of 24, a sign test at 5 %.
_CLEAR_SHARE = 0.75
_BETTER, _WORSE, _UNCLEAR = "better", "worse", "not clearly different"
# Loss of a critic that always answers 1/8, the best constant for alpha in 0 ... 1/2.
_CONSTANT_LOSS = 0.0521

# Boxes of the drawings: a label, and the level of its resolution (0: full, 1: half, ...).
_CNN = (
    ("x", 0), ("5×5/2, 32", 1), ("3×3/2, 96", 2), ("residual", 2), ("z 8, 16, 32", 2),
    ("3×3, 96", 2), ("residual", 2), ("shuffle, 32", 1), ("shuffle", 0), ("x̂", 0),
)  # fmt: skip
_UNET = (
    ("x", 0), ("64", 0), ("128", 1), ("256", 2), ("512", 3), ("z 32", 3),
    ("512", 3), ("256", 2), ("128", 1), ("64", 0), ("x̂", 0),
)  # fmt: skip
_ACAI = (
    ("x₁, x₂", 0), ("encoder", 1), ("z α z₁ + (1 − α) z₂", 2), ("decoder", 1), ("x̂", 0),
    ("critic", 1), ("α̂", 3),
)  # fmt: skip
_BAGAN = (
    ("class", 3), ("z Gaussian of class", 2), ("generator", 1), ("x̂", 0), ("discriminator", 1),
    ("class or fake", 3),
)  # fmt: skip
_VAE = (
    ("x", 0), ("5×5/2, 48", 1), ("residual, 96", 2), ("residual, 128", 3), ("z rounded", 3),
    ("residual, 128", 3), ("residual, 96", 2), ("48", 1), ("x̂", 0),
)  # fmt: skip
# Height of a box in a drawing by level, pixels.
_BOX_HEIGHTS = (74, 52, 36, 26)


def render(results: dict[str, Any], folder: Path) -> str:
    """The page of a study.json; figures that exist in `folder` become part of it."""
    environment = "; ".join(f"{name} {value}" for name, value in results["environment"].items())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Representation study</title><style>{STYLE}</style></head><body>",
        "<h1>How autoencoders and generative models represent brain MRI</h1>",
        *_introduction(results),
        *_data_set(results, folder),
        *_methods(),
        "<h2>Results</h2>",
        _trainings(results),
        *_reconstruction(results, folder),
        *_coding(results, folder),
        *_mixing(results, folder),
        *_generation(results, folder),
        *_augmentation(results, folder),
        *_conclusions(results),
        *_limits(),
        html_note(environment),
        "</body></html>",
    ]
    return "\n".join(parts)


def _p(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _warning(text: str) -> str:
    return f"<p class='bad'>{escape(text)}</p>"


def _figure(folder: Path, name: str, caption: str) -> str:
    path = folder / f"{name}.png"
    if not path.exists():
        return ""
    picture = f"<img src='{data_uri('png', path.read_bytes())}' alt='{escape(caption)}'>"
    return f"<figure>{picture}<figcaption class='note'>{escape(caption)}</figcaption></figure>"


def _introduction(results: dict[str, Any]) -> list[str]:
    parts = [
        "<h2>Introduction</h2>",
        _p(
            "Can a small network hold a slice of a brain scan, how well, and are the points "
            "between two scans plausible scans? Autoencoders of three latent sizes, U-Nets without "
            "skip connections, their adversarially regularised variants and a class-balancing "
            "generator are trained on the training subjects and measured on subjects that no "
            "training has seen."
        ),
    ]
    if results["config"] == "debug":
        parts.append(
            _warning(
                "Configuration “debug”: networks of a few steps. The page shows its form, no "
                "finding."
            )
        )
    elif results["minutes"] is not None:
        parts.append(
            html_note(
                f"Every network had a budget of {results['minutes']:g} minutes of training; see "
                "the table of trainings."
            )
        )
    if splits := results.get("substituted"):
        parts.append(
            _warning(
                f"No usable slice in {' and '.join(splits)}: training slices stand in, so the "
                "figures say nothing about other subjects."
            )
        )
    return parts


def _data_set(results: dict[str, Any], folder: Path) -> list[str]:
    heads = ("split", "contrast", "subjects", "scans", "slices")
    rows = [[str(row[key]) for key in heads] for row in results["data"]]
    left_out = "; ".join(f"{name} ({reason})" for name, reason in results["left_out"])
    return [
        "<h2>Data</h2>",
        _p(
            "Axial slices between 20 and 110 mm below the vertex, at least 3 mm apart, each pixel "
            "in 0 … 1 of its volume's range. Subjects of train, validation and test are disjoint; "
            "only scans whose licence allows it are trained on."
        ),
        html_table(heads, rows),
        _figure(
            folder,
            "data",
            "Training pictures on the common grid: 128 × 128 pixels of 1.75 mm, the head in the "
            "middle.",
        ),
        *([html_note(f"Left out: {left_out}.")] if left_out else []),
    ]


def _drawing(boxes: Sequence[tuple[str, int]]) -> str:
    """Boxes from left to right, as high as their resolution."""
    parts, x = [], 4
    for n, (label, level) in enumerate(boxes):
        height = _BOX_HEIGHTS[level]
        width = 14 + 7 * len(label)
        fill = "#fde8c8" if label.startswith("z") else "#e4edf7"
        parts += [
            f"<rect x='{x}' y='{40 - height // 2}' width='{width}' height='{height}' rx='3' "
            f"fill='{fill}' stroke='#667'/>",
            f"<text x='{x + width / 2}' y='44' text-anchor='middle'>{escape(label)}</text>",
        ]
        if n < len(boxes) - 1:
            arrow = f"M{x + width + 2} 40h12m-4 -3l4 3l-4 3"
            parts.append(f"<path d='{arrow}' fill='none' stroke='#333'/>")
        x += width + 18
    size = f"viewBox='0 0 {x} 80' width='{x}' style='max-width:100%;height:auto'"
    return f"<svg {size} font-size='12' font-family='sans-serif'>{''.join(parts)}</svg>"


def _methods() -> list[str]:
    return [
        "<h2>Methods</h2>",
        "<p><b>Minimal CNN autoencoder</b>, latents of 8, 16, 32 channels at a quarter of the "
        "resolution: 0.5, 1, 2 values per pixel.</p>",
        _drawing(_CNN),
        "<p><b>U-Net without skip connections</b> V1; V2 is 1.5 times as wide, a third variant has "
        "two levels only. Half a value per pixel each; all that the decoder knows passes the "
        "lowest level.</p>",
        _drawing(_UNET),
        "<p><b>ACAI</b> (arXiv:1807.07543): a critic guesses α of mixed pictures, the autoencoder "
        "learns to make it guess 0.</p>",
        _drawing(_ACAI),
        "<p><b>BAGAN</b> (arXiv:1803.09655), 64 × 64 pixels: started from an autoencoder, latents "
        "drawn from the Gaussian of a class; the generator also goes on reconstructing, and the "
        "discriminator sees pictures shifted, mirrored and brightened.</p>",
        _drawing(_BAGAN),
        "<p><b>VAE codec</b>: residual blocks parallel to an 8 × 8 transform, uniform noise as "
        "posterior, a factorized prior; trained for log(bits + 6 · squared error in steps²), the "
        "step drawn at random.</p>",
        _drawing(_VAE),
        "<p><b>Interpolation</b> of any number of scans: z = Σ αᵢ zᵢ, αᵢ ∈ [0, 1], Σ αᵢ = 1. "
        "Autoencoders learn the logarithm of the squared error of 64 × 64 crops, mirrored, "
        "transposed and darkened at random.</p>",
    ]


def _trainings(results: dict[str, Any]) -> str:
    lines = [
        [
            escape(display_name(name)),
            f"{sum(row['parameters'].values()) / 1e6:.2f}",
            f"{row['step']} of {row['recipe']['steps']}",
            str(row["recipe"]["batch"]),
            f"{row['seconds'] / 60:.1f}",
            str(row["recipe"]["seed"]),
        ]
        for name, row in results["trainings"].items()
    ]
    heads = ["training", "parameters, M", "steps", "batch", "minutes", "seed"]
    return "<h3>What was trained</h3>" + html_table(heads, lines) if lines else ""


def _reconstruction(results: dict[str, Any], folder: Path) -> list[str]:
    parts = []
    for number, part, title in (
        (1, "cnn", "CNN autoencoders"),
        (2, "unet", "U-Nets without skip connections"),
    ):
        rows = results.get(part)
        if not rows:
            continue
        heads = [
            "model", "values per pixel", "PSNR, dB: range", "PSNR: mean ± sd", "MSE", "SSIM",
            *CONTRASTS, "earlier study: PSNR", "MSE", "SSIM",
        ]  # fmt: skip
        slices = rows[0]["slices"]
        parts += [
            f"<h3>Table {number}: {title}, {slices} slices of test subjects</h3>",
            html_table(heads, map(_reconstruction_line, rows)),
            html_note(
                "The earlier study's figures come from other data and another preparation and "
                "cannot be compared with ours; an SSIM of 0.04 with a PSNR of 25 dB suggests "
                "another definition of SSIM."
            ),
            _figure(
                folder,
                f"{part}-reconstructions",
                "Test slices, reconstructions, and the absolute errors under them.",
            ),
            _figure(
                folder,
                f"{part}-surfaces",
                "The error of the first slice as a landscape, means of 4 × 4 pixels.",
            ),
        ]
    return parts


def _reconstruction_line(row: dict[str, Any]) -> list[str]:
    by_contrast = row["psnr_by_contrast"]
    return [
        display_name(row["model"]),
        f"{row['values_per_pixel']:g}",
        f"{row['psnr_min']:.2f} – {row['psnr_max']:.2f}",
        f"{row['psnr']:.2f} ± {row['psnr_sd']:.2f}",
        f"{row['mse']:.6f}",
        f"{row['ssim']:.4f} ± {row['ssim_sd']:.4f}",
        *(f"{by_contrast[c]:.2f}" if c in by_contrast else "-" for c in CONTRASTS),
        *_EARLIER.get(row["model"], ("", "", "")),
    ]


def _coding(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("vae")
    if not rows:
        return []
    lines = [
        [
            display_name(model),
            *(f"{row['bits']:.2f}: {row['psnr']:.1f}" for row in rows if row["model"] == model),
        ]
        for model in dict.fromkeys(row["model"] for row in rows)
    ]
    octaves = [f"2^{octave}" for octave in dict.fromkeys(row["octave"] for row in rows)]
    return [
        f"<h3>As codecs, {rows[0]['slices']} slices of test subjects</h3>",
        _figure(
            folder,
            "rates",
            "Entropy and PSNR, means over slices, at steps of 2^-3 … 2^-8 of the range.",
        ),
        html_table(["bits per pixel: PSNR, at range / step", *octaves], lines),
        html_note(
            "Bits: entropy of the rounded latents under the probability tables measured on "
            "training slices; values beyond the tables count as their escape alone. Real files "
            "compared with JPEG 2000: mricodec rd-curve --model vae …"
        ),
    ]


def _mixing(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("interpolation")
    if not rows:
        return []
    keys = [key for key in INTERPOLATION_COLUMNS if any(key in row for row in rows)]
    form = "{mean:.4g} ± {sd:.2g} ({min:.4g} – {max:.4g})"
    lines = [
        [
            escape(display_name(row["method"])),
            *(form.format(**row[key]) if key in row else "-" for key in keys),
        ]
        for row in rows
    ]
    measures = "; ".join(f"{key}: {text}" for key, text in results["measures"].items())
    no_lpips = "LPIPS was not computed: no weights were given (--lpips-weights)."
    return [
        f"<h3>Table 3: the middle between two scans, {rows[0]['pairs']} pairs of test "
        "subjects</h3>",
        html_table(["method", *(_TITLES[key] for key in keys)], lines),
        html_note(f"Mean ± sd (range). {measures}. {'' if 'lpips' in keys else no_lpips}"),
        html_note(
            "Earlier study: SSIM 0.03 (CNN) and 0.04 (U-Net), LPIPS 0.16 – 0.47 and 0.21 – 0.47, "
            "novelty 4.46 – 11.0 and 4.17 – 11.72; other data and undocumented definitions, so "
            "only the columns' names are the same."
        ),
        *_critics(results["trainings"]),
        _figure(folder, "strips", "From one test scan to another, α the weight of the second."),
        _figure(
            folder,
            "simplex",
            "Three test scans in the corners, their mixtures between; above each its three "
            "weights.",
        ),
    ]


def _critics(trainings: dict[str, dict[str, Any]]) -> list[str]:
    """How much the critics had learned, from the logs."""
    losses = {name: row["critic"] for name, row in trainings.items() if "critic" in row}
    if not losses:
        return []
    text = ", ".join(
        f"{display_name(name)} {loss:.4f}, {100 * (1 - loss / _CONSTANT_LOSS):.0f} % below"
        for name, loss in losses.items()
    )
    return [
        html_note(
            "ACAI cannot remove what its critic does not see. One that answers 1/8, the best "
            f"constant, has a loss of {_CONSTANT_LOSS}; at the end of these short trainings: "
            f"{text}."
        )
    ]


def _generation(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("bagan")
    if not rows:
        return []
    lines = [
        [
            row["source"],
            row["contrast"],
            *(f"{row[key]:.3g}" if key in row else "-" for key in GENERATION_COLUMNS),
        ]
        for row in rows
    ]
    titles = (key.replace("_", " ") for key in GENERATION_COLUMNS)
    parts = [
        "<h3>Table 4: BAGAN</h3>",
        html_table(["pictures", "class", *titles], lines),
        html_note(
            "64 × 64 pixels, against the pictures of test subjects of the same contrast. Energy "
            "distance (Székely, Rizzo 2013): of mean and standard deviation of every feature of "
            "the contrast network over a picture, in standard deviations of the training "
            "pictures; 0 is alike, and the training pictures show what other subjects and "
            "scanners make of it. Diversity: mean distance of two pictures there, over that of "
            "the test pictures. Sharpness: mean absolute gradient over that of the training "
            "pictures. Recognised: share that the network takes for their class. Novelty: root "
            "mean squared difference to the nearest training picture of the class, mirrored or "
            "not, of 255. Initialisation: the decoder of the autoencoder on latents drawn from "
            "the Gaussian of the class, before the adversarial training."
        ),
        _figure(
            folder,
            "bagan",
            "A training picture of each class, then pictures drawn at random, unselected.",
        ),
    ]
    if row := results["trainings"].get("bagan"):
        losses = f"discriminator {row['discriminator']:.3f}, generator {row['generator']:.3f}"
        parts.append(html_note(f"Cross entropy at the end of the training: {losses}."))
    return parts


def _augmentation(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("augmentation")
    if not rows:
        return []
    counts = ", ".join(f"{n} {contrast}" for contrast, n in results.get("subset", {}).items())
    lines = [
        [
            escape(display_name(row["method"])),
            f"{row['balanced_accuracy']:.3f} ± {row['half_interval_95']:.3f}",
            ", ".join(f"{score:.3f}" for score in row["scores"]),
        ]
        for row in rows
    ]
    heads = ["method", "balanced accuracy on test, mean ± 95 % interval", "seeds"]
    return [
        "<h3>Does it help?</h3>",
        _p(
            f"A small classifier of contrasts, trained on {counts} slices and what each method "
            "adds to make the classes equal."
        ),
        html_table(heads, lines),
        _figure(
            folder,
            "augmentation",
            "Mean and 95 % interval (Student) over seeds, and each seed; dotted: chance.",
        ),
    ]


def _conclusions(results: dict[str, Any]) -> list[str]:
    """What the numbers show, whichever way."""
    statements = []
    for part, model, target in _TARGETS:
        for row in results.get(part, []):
            if row["model"] == model:
                verdict = "reaches" if row["psnr"] >= target else "misses"
                statements.append(
                    f"{display_name(model)} {verdict} {target:g} dB mean PSNR on test slices: "
                    f"{row['psnr']:.2f} dB."
                )
    statements += _acai_verdicts({row["method"]: row for row in results.get("interpolation", [])})
    statements += _augmentation_verdicts(results.get("augmentation", []))
    items = "".join(f"<li>{escape(text)}</li>" for text in statements)
    return ["<h2>Conclusions</h2>", f"<ul>{items or '<li>Nothing measured yet.</li>'}</ul>"]


def _augmentation_verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Every method against repetition, which balances the classes without a new picture."""
    by_method = {row["method"]: row for row in rows}
    statements = []
    for name, row in by_method.items():
        if name == "repetition":
            continue
        base = by_method["repetition"]
        gain = row["balanced_accuracy"] - base["balanced_accuracy"]
        half = math.hypot(row["half_interval_95"], base["half_interval_95"])
        verdict = (
            "it helps" if gain > half else "it harms" if gain < -half else "no difference shown"
        )
        what = "No augmentation" if name == "none" else f"Augmentation by {display_name(name)}"
        statements.append(
            f"{what}, against repetition of the pictures there are: balanced accuracy "
            f"{gain:+.3f} ± {half:.3f} (95 %), {verdict}."
        )
    return statements


def _acai_verdicts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """ACAI against pixel blending and the plain autoencoder, pair by pair."""
    statements = []
    for name, row in rows.items():
        if not name.startswith("acai-"):
            continue
        verdicts = {
            other: _compare(row, rows[other])
            for other in ("pixel blending", name.removeprefix("acai-"))
        }
        for other, (verdict, details) in verdicts.items():
            text = "; ".join(
                f"{kind} in " + ", ".join(details[key] for key in verdict if verdict[key] == kind)
                for kind in (_BETTER, _WORSE, _UNCLEAR)
                if kind in verdict.values()
            )
            statements.append(f"{display_name(name)} against {display_name(other)}: {text}.")
        both = [verdict for verdict, _ in verdicts.values()]
        better, worse = (
            ", ".join(_TITLES[key] for key in both[0] if all(v[key] == kind for v in both))
            for kind in (_BETTER, _WORSE)
        )
        statements.append(
            f"So the interpolants of {display_name(name)} beat both pixel blending and the plain "
            f"autoencoder in {better or 'none of the measures'}, and lose to both in "
            f"{worse or 'none'}."
        )
    return statements


def _compare(row: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """By measure: the verdict on `row` against `other`, and the numbers behind it."""
    verdict, details = {}, {}
    for key in _JUDGED:
        if key not in row:
            continue
        values, others = (np.array(r[key]["values"]) for r in (row, other))
        if key == "sharpness":
            values, others = abs(values - 1), abs(others - 1)
        share = float((values < others).mean())
        verdict[key] = (
            _BETTER if share >= _CLEAR_SHARE else _WORSE if share <= 1 - _CLEAR_SHARE else _UNCLEAR
        )
        means = f"{row[key]['mean']:.4g} against {other[key]['mean']:.4g}"
        details[key] = f"{_TITLES[key]} ({means}, won {share:.0%} of the pairs)"
    return verdict, details


def _limits() -> list[str]:
    return [
        "<h2>Limits</h2>",
        _p(
            "Few subjects: intervals and counts over slices and pairs are not those over people. "
            "Contrast goes with the scanner and the subject, so the classifier may learn either. "
            "Slices are mixed by height below the vertex without registration. Autoencoders are "
            "trained on crops in scanner resolution and mix pictures of the common grid; in the "
            "augmentation they have seen all training slices, though without labels, and BAGAN "
            "only the small subset, once for all seeds. Trainings are short: see the table of "
            "trainings."
        ),
    ]
