"""Figures and the page of the representation study; extra `bench` (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.evaluation.page import STYLE, data_uri, html_note, html_table

from .corpus import CONTRASTS, Slice

Picture = NDArray[np.float32]
DARK = 0.02  # of an error map, the error shown brightest, at least

# of the earlier study, by model: PSNR range, MSE, SSIM
EARLIER = {
    "cnn8": ("9.180 – 48.161", "", ""), "cnn16": ("8.556 – 47.426", "", ""), "cnn32": ("8.516 – 48.570", "", ""),
    "unet": ("0.572 – 25.668", "0.047", "0.038"), "unet-wide": ("6.863 – 27.583", "0.027", "0.044"),
}  # fmt: skip
NAMES = {
    "cnn8": "CNN-8", "cnn16": "CNN-16", "cnn32": "CNN-32", "unet": "U-Net V1", "unet-wide": "U-Net V2",
    "unet-2level": "U-Net, two levels", "vae": "VAE", "acai": "ACAI", "bagan": "BAGAN", "bagan-start": "BAGAN, its autoencoder",
    "bagan-few": "BAGAN, small subset", "bagan-few-start": "BAGAN, small subset, its autoencoder",
    "features": "network of the feature distance",
}  # fmt: skip


TITLES = {
    "ssim": "SSIM to parents", "feature_distance": "feature distance to parents", "lpips": "LPIPS to parents",
    "novelty": "novelty", "nearest": "nearest", "sharpness": "sharpness", "mesh": "mesh",
    "psnr": "PSNR of the parents, dB",
}  # fmt: skip
CHOSEN = (
    "feature_distance",
    "nearest",
    "sharpness",
    "mesh",
)  # smaller is better, of sharpness its distance to 1
CONSTANT = 0.0521  # the critic's loss if it always answers 1/8: the best of constants for alpha in 0 ... 1/2
CLEAR = 0.75  # of the pairs; of 24 this is what a sign test asks for at 5 %


def _named(model: str) -> str:
    return "ACAI on " + _named(model[5:]) if model.startswith("acai-") else NAMES.get(model, model)


class Figures:
    """PNG files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _grid(
        self, rows: int, columns: int, width: float = 1.7, height: float = 1.85
    ) -> tuple[Any, Any]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        return figure, axes

    def _save(self, figure: Any, name: str) -> None:
        figure.savefig(self._folder / f"{name}.png", dpi=110, facecolor="white")

    def contact_sheet(self, slices: Sequence[Slice], grid: Picture) -> None:
        """Up to eight training pictures of every contrast on the common grid."""
        figure, axes = self._grid(len(CONTRASTS), 8, 1.3, 1.35)
        for row, contrast in zip(axes, CONTRASTS, strict=True):
            own = [n for n, item in enumerate(slices) if item.contrast == contrast]
            for axis, n in zip(row, own[:: max(1, len(own) // 8)], strict=False):
                axis.imshow(grid[n], cmap="gray", vmin=0, vmax=1)
            row[0].set_title(contrast, loc="left", fontsize=10)
        self._save(figure, "data")

    def reconstructions(
        self, name: str, models: Sequence[str], rows: Sequence[tuple[Slice, list[Picture]]]
    ) -> None:
        """Input and what every model makes of it, and under them the absolute errors."""
        figure, axes = self._grid(2 * len(rows), 1 + len(models), 2.3, 2.3)
        for n, (item, pictures) in enumerate(rows):
            top = float(np.percentile(item.pixels, 99.8))
            largest = max(
                DARK, *(float(np.percentile(np.abs(p - item.pixels), 99.5)) for p in pictures)
            )
            shown, errors = axes[2 * n], axes[2 * n + 1]
            shown[0].imshow(item.pixels, cmap="gray", vmin=0, vmax=top)
            shown[0].set_title(f"{item.contrast}, input", fontsize=9)
            for axis, below, model, picture in zip(
                shown[1:], errors[1:], models, pictures, strict=True
            ):
                error = np.abs(picture - item.pixels)
                psnr = -10 * np.log10(max(float((error**2).mean()), 1e-12))
                axis.imshow(picture, cmap="gray", vmin=0, vmax=top)
                axis.set_title(f"{_named(model)}, {psnr:.1f} dB", fontsize=9)
                drawn = below.imshow(error, cmap="inferno", vmin=0, vmax=largest)
            bar = figure.colorbar(drawn, cax=errors[0].inset_axes((0.85, 0.05, 0.07, 0.9)))
            bar.ax.yaxis.set_ticks_position("left")
            bar.ax.yaxis.set_label_position("left")
            bar.set_label("absolute error, of the volume's range", fontsize=8)
            bar.ax.tick_params(labelsize=8)
        self._save(figure, f"{name}-reconstructions")

    def surfaces(
        self, name: str, models: Sequence[str], item: Slice, pictures: Sequence[Picture]
    ) -> None:
        """The absolute error as a landscape over the slice, means of 4 x 4 pixels."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * len(models), 3.9), layout="constrained")
        landscapes = []
        for picture in pictures:
            error = np.abs(picture - item.pixels)
            h, w = (n // 4 * 4 for n in error.shape)
            landscapes.append(error[:h, :w].reshape(h // 4, 4, w // 4, 4).mean((1, 3)))
        top = max(DARK, max(float(z.max()) for z in landscapes))
        for n, (model, z) in enumerate(zip(models, landscapes, strict=True)):
            axis: Any = figure.add_subplot(1, len(models), n + 1, projection="3d")
            y, x = np.indices(z.shape) * 4
            axis.plot_surface(
                x,
                y,
                z,
                cmap="inferno",
                vmin=0,
                vmax=top,
                rcount=120,
                ccount=120,
                linewidth=0,
                antialiased=False,
            )
            axis.set_zlim(0, top)
            axis.set_box_aspect((1, 1, 0.6), zoom=0.95)
            axis.view_init(50, -60)
            axis.set_title(f"{_named(model)}, mean {z.mean():.4f}", fontsize=10)
            axis.set_xlabel("column", fontsize=8)
            axis.set_ylabel("row", fontsize=8)
            axis.set_zlabel("absolute error", fontsize=8, labelpad=10)
            axis.tick_params(labelsize=7)
        self._save(figure, f"{name}-surfaces")

    def rates(self, rows: Sequence[dict[str, Any]]) -> None:
        """PSNR against bits a pixel, a curve for each model."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axis = figure.subplots()
        for model, marker in zip(
            dict.fromkeys(row["model"] for row in rows), "osDv^P", strict=True
        ):
            curve = [(row["bits"], row["psnr"]) for row in rows if row["model"] == model]
            axis.plot(
                *zip(*curve, strict=True),
                marker=marker,
                markersize=4,
                linewidth=1.2,
                label=_named(model),
            )
        axis.set_xscale("log")
        axis.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("bits a pixel")
        axis.set_ylabel("PSNR, dB")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
        self._save(figure, "rates")

    def strips(self, strips: dict[str, list[Picture]], alphas: Sequence[float]) -> None:
        """From one scan to another, a row for every way to mix."""
        figure, axes = self._grid(len(strips), len(alphas), 1.5, 1.6)
        for row, (name, pictures) in zip(axes, strips.items(), strict=True):
            for axis, alpha, picture in zip(row, alphas, pictures, strict=True):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
                if row[0] is axes[0, 0]:
                    axis.set_title(f"α = {alpha:.2f}", fontsize=9)
            row[0].text(3, 10, _named(name), color="white", fontsize=8)
        self._save(figure, "strips")

    def simplex(self, name: str, pictures: Sequence[tuple[tuple[float, ...], Picture]]) -> None:
        """Mixtures of three scans where their weights lie in a triangle."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 7.6))
        for (a, b, c), picture in pictures:
            axis = figure.add_axes((0.82 * (b + c / 2), 0.79 * c, 0.175, 0.173))
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{a:.2f} {b:.2f} {c:.2f}", fontsize=7, pad=2)
            axis.axis("off")
        figure.text(0.02, 0.95, _named(name), fontsize=10)
        self._save(figure, "simplex")

    def samples(self, samples: Picture, grid: Picture, slices: Sequence[Slice]) -> None:
        """BAGAN's pictures of every class, a real one before them."""
        figure, axes = self._grid(len(samples), 1 + samples.shape[1], 1.25, 1.35)
        for contrast, row, made in zip(CONTRASTS, axes, samples, strict=True):
            own = [n for n, item in enumerate(slices) if item.contrast == contrast]
            if own:
                row[0].imshow(grid[own[len(own) // 2]], cmap="gray", vmin=0, vmax=1)
            row[0].set_title(f"{contrast}, real", fontsize=8)
            for axis, picture in zip(row[1:], made, strict=True):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        self._save(figure, "bagan")

    def accuracies(self, rows: Sequence[dict[str, Any]]) -> None:
        """Mean, 95 % interval and every seed."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 2.8), layout="constrained")
        axis = figure.subplots()
        for n, row in enumerate(rows):
            axis.errorbar(
                n,
                row["balanced_accuracy"],
                row["half_interval_95"],
                fmt="o",
                color="#0072B2",
                capsize=5,
            )
            axis.plot(
                n + 0.15 + np.linspace(-0.03, 0.03, len(row["scores"])),
                row["scores"],
                ".",
                color="#999999",
            )
        axis.axhline(1 / len(CONTRASTS), color="#a8201a", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(rows)), [_named(row["method"]) for row in rows])
        axis.set_ylabel("balanced accuracy")
        axis.set_ylim(0, 1)
        self._save(figure, "augmentation")


def render(results: dict[str, Any], folder: Path) -> str:
    """The page, which needs nothing else; figures of `folder` that are there become part of it."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>Representation study</title><style>{STYLE}</style></head><body>",
        "<h1>How autoencoders and generative models represent brain MRI</h1>",
        *_introduction(results),
        *_data_set(results, folder),
        *_methods(),
        "<h2>Results</h2>",
        *_reconstruction(results, folder),
        *_coding(results, folder),
        *_mixing(results, folder),
        *_generation(results, folder),
        *_conclusions(results),
        *_limits(),
        html_note("; ".join(f"{name} {value}" for name, value in results["environment"].items())),
        "</body></html>",
    ]
    return "\n".join(parts)


def _p(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _figure(folder: Path, name: str, caption: str) -> str:
    path = folder / f"{name}.png"
    if not path.exists():
        return ""
    picture = f"<img src='{data_uri('png', path.read_bytes())}' alt='{escape(caption)}'>"
    return f"<figure>{picture}<figcaption class='note'>{escape(caption)}</figcaption></figure>"


def _introduction(results: dict[str, Any]) -> list[str]:
    note = []
    if results["config"] == "debug":
        note = [
            "<p class='bad'>Configuration “debug”: networks of a few steps. The page shows its form, no finding.</p>"
        ]
    elif results["minutes"] is not None:
        note = [
            html_note(
                f"Every model had a budget of {results['minutes']:g} minutes of training; see the table of trainings."
            )
        ]
    return [
        "<h2>Introduction</h2>",
        _p("Can a small network hold a slice of a brain scan, how well, and are the points between two scans plausible scans? "
           "Autoencoders of three latent sizes, U-Nets without skip connections, their adversarially regularised "
           "variants and a "
           "class-balancing generator are trained on the training subjects and measured on subjects that no training "
           "has seen."),
        *note,
    ]  # fmt: skip


def _data_set(results: dict[str, Any], folder: Path) -> list[str]:
    heads = ("split", "contrast", "subjects", "scans", "slices")
    rows = [[str(row[key]) for key in heads] for row in results["data"]]
    left_out = "; ".join(f"{name} ({why})" for name, why in results["left_out"])
    return [
        "<h2>Data</h2>",
        _p("Axial slices between 20 and 110 mm below the vertex, at least 3 mm apart, each pixel in 0 … 1 of its "
           "volume's range. "
           "Subjects of train, validation and test are disjoint; only scans whose licence allows it are trained on."),
        html_table(heads, rows),
        _figure(folder, "data", "Training pictures on the common grid: 128 × 128 pixels of 1.75 mm, the head in the middle."),
        *([html_note(f"Left out: {left_out}.")] if left_out else []),
    ]  # fmt: skip


def _drawing(boxes: Sequence[tuple[str, int]]) -> str:
    """Boxes from left to right, as high as their resolution (0: full, 1: half ...)."""
    parts, x = [], 4
    for n, (label, level) in enumerate(boxes):
        height = (74, 52, 36, 26)[level]
        width = 14 + 7 * max(len(line) for line in label.split("|"))
        y = 40 - height // 2
        fill = "#fde8c8" if label.startswith("z") else "#e4edf7"
        parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='3' fill='{fill}' stroke='#667'/>"
        )
        parts.append(
            f"<text x='{x + width / 2}' y='44' text-anchor='middle'>{escape(label)}</text>"
        )
        if n < len(boxes) - 1:
            parts.append(
                f"<path d='M{x + width + 2} 40h12m-4 -3l4 3l-4 3' fill='none' stroke='#333'/>"
            )
        x += width + 18
    size = f"viewBox='0 0 {x} 80' width='{x}' style='max-width:100%;height:auto'"
    return f"<svg {size} font-size='12' font-family='sans-serif'>{''.join(parts)}</svg>"


def _methods() -> list[str]:
    cnn = [("x", 0), ("5×5/2, 32", 1), ("3×3/2, 96", 2), ("residual", 2), ("z 8, 16, 32", 2), ("3×3, 96", 2), ("residual", 2),
           ("shuffle, 32", 1), ("shuffle", 0), ("x̂", 0)]  # fmt: skip
    unet = [("x", 0), ("64", 0), ("128", 1), ("256", 2), ("512", 3), ("z 32", 3), ("512", 3), ("256", 2), ("128", 1), ("64", 0),
            ("x̂", 0)]  # fmt: skip
    acai = [
        ("x₁, x₂", 0),
        ("encoder", 1),
        ("z α z₁ + (1 − α) z₂", 2),
        ("decoder", 1),
        ("x̂", 0),
        ("critic", 1),
        ("α̂", 3),
    ]
    vae = [("x", 0), ("5×5/2, 48", 1), ("residual, 96", 2), ("residual, 128", 3), ("z rounded", 3), ("residual, 128", 3),
           ("residual, 96", 2), ("48", 1), ("x̂", 0)]  # fmt: skip
    bagan = [
        ("class", 3),
        ("z Gaussian of class", 2),
        ("generator", 1),
        ("x̂", 0),
        ("discriminator", 1),
        ("class or fake", 3),
    ]
    return [
        "<h2>Methods</h2>",
        "<p><b>Minimal CNN autoencoder</b>, latents of 8, 16, 32 channels at a quarter of the resolution: 0.5, 1, 2 "
        "values a pixel.</p>",
        _drawing(cnn),
        "<p><b>U-Net without skip connections</b> V1; V2 is 1.5 times as wide, a third variant has two levels only. "
        "Half a value a "
        "pixel each; all that the decoder knows passes the lowest level.</p>",
        _drawing(unet),
        "<p><b>ACAI</b> (arXiv:1807.07543): a critic guesses α of mixed pictures, the autoencoder learns to make it "
        "guess 0.</p>",
        _drawing(acai),
        "<p><b>BAGAN</b> (arXiv:1803.09655), 64 × 64 pixels: started from an autoencoder, latents drawn from the "
        "Gaussian of a class; the generator also goes on reconstructing, and the discriminator sees pictures moved and "
        "brightened.</p>",
        _drawing(bagan),
        "<p><b>VAE codec</b>: residual blocks beside an 8 × 8 transform, uniform noise as posterior, a factorized prior; "
        "trained for log(bits + 6 · squared error in steps²), the step drawn at random.</p>",
        _drawing(vae),
        "<p><b>Interpolation</b> of any number of scans: z = Σ αᵢ zᵢ, αᵢ ∈ [0, 1], Σ αᵢ = 1. Autoencoders learn the "
        "logarithm of the "
        "squared error of 64 × 64 crops, mirrored, turned and darkened at random.</p>",
    ]


def _trainings(results: dict[str, Any]) -> str:
    lines = []
    for name, row in results["trainings"].items():
        size = sum(row["parameters"].values())
        recipe = row["recipe"]
        lines.append([escape(_named(name)), f"{size / 1e6:.2f}", f"{row['step']} of {recipe['steps']}", str(recipe["batch"]),
                      f"{row['seconds'] / 60:.1f}", str(recipe["seed"])])  # fmt: skip
    heads = ["training", "parameters, M", "steps", "batch", "minutes", "seed"]
    return "<h3>What was trained</h3>" + html_table(heads, lines) if lines else ""


def _reconstruction(results: dict[str, Any], folder: Path) -> list[str]:
    out = [_trainings(results)]
    for number, part, title in (
        (1, "cnn", "CNN autoencoders"),
        (2, "unet", "U-Nets without skip connections"),
    ):
        if part not in results:
            continue
        lines = []
        for row in results[part]:
            earlier = EARLIER.get(row["model"], ("", "", ""))
            lines.append([
                _named(row["model"]), f"{row['values_per_pixel']:g}", f"{row['psnr_min']:.2f} – {row['psnr_max']:.2f}",
                f"{row['psnr']:.2f} ± {row['psnr_sd']:.2f}", f"{row['mse']:.6f}", f"{row['ssim']:.4f} ± {row['ssim_sd']:.4f}",
                *(f"{row['psnr_by_contrast'][c]:.2f}" if c in row["psnr_by_contrast"] else "-" for c in CONTRASTS), *earlier,
            ])  # fmt: skip
        heads = ["model", "values a pixel", "PSNR, dB: range", "PSNR: mean ± sd", "MSE", "SSIM", *CONTRASTS,
                 "earlier study: PSNR", "MSE", "SSIM"]  # fmt: skip
        out += [
            f"<h3>Table {number}: {title}, {results[part][0]['slices']} slices of test subjects</h3>", html_table(heads, lines),
            html_note("The earlier study's figures come from other data and another preparation and cannot be compared "
                  "with ours; an "
                  "SSIM of 0.04 beside a PSNR of 25 dB suggests another definition of SSIM."),
            _figure(folder, f"{part}-reconstructions", "Test slices, reconstructions, and the absolute errors under them."),
            _figure(folder, f"{part}-surfaces", "The error of the first slice as a landscape, means of 4 × 4 pixels."),
        ]  # fmt: skip
    return out


def _coding(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("vae")
    if not rows:
        return []
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        lines.append([_named(model), *(f"{row['bits']:.2f}: {row['psnr']:.1f}" for row in own)])
    octaves = [f"2^{octave}" for octave in dict.fromkeys(row["octave"] for row in rows)]
    return [
        f"<h3>As codecs, {rows[0]['slices']} slices of test subjects</h3>",
        _figure(folder, "rates", "Entropy and PSNR, means over slices, at steps of 2^-3 … 2^-8 of the range."),
        html_table(["bits a pixel: PSNR, at range / step", *octaves], lines),
        html_note("Bits: entropy of the rounded latents under the probability tables measured on training slices; values beyond "
              "the tables count as their escape alone. Real files beside JPEG 2000: mricodec rd-curve --model vae …"),
    ]  # fmt: skip


def _mixing(results: dict[str, Any], folder: Path) -> list[str]:
    rows = results.get("interpolation")
    if not rows:
        return []
    keys = [key for key in TITLES if any(key in row for row in rows)]
    shown = "{mean:.4g} ± {sd:.2g} ({min:.4g} – {max:.4g})"
    lines = [
        [
            escape(_named(row["method"])),
            *(shown.format(**row[key]) if key in row else "-" for key in keys),
        ]
        for row in rows
    ]
    lpips = (
        ""
        if "lpips" in keys
        else " LPIPS was not computed: no weights were given (--lpips-weights)."
    )
    return [
        f"<h3>Table 3: the middle between two scans, {rows[0]['pairs']} pairs of test subjects</h3>",
        html_table(["method", *(TITLES[key] for key in keys)], lines),
        html_note("Mean ± sd (range). " + "; ".join(f"{key}: {text}" for key, text in results["measures"].items()) + "." + lpips),
        html_note("Earlier study: SSIM 0.03 (CNN) and 0.04 (U-Net), LPIPS 0.16 – 0.47 and 0.21 – 0.47, novelty 4.46 – 11.0 and "
              "4.17 – 11.72; other data and undocumented definitions, so only the columns' names are the same."),
        *_critics(results["trainings"]),
        _figure(folder, "strips", "From one test scan to another, α the weight of the second."),
        _figure(folder, "simplex", "Three test scans in the corners, their mixtures between; above each its three weights."),
    ]  # fmt: skip


def _critics(trainings: dict[str, dict[str, Any]]) -> list[str]:
    """How much the critics had learned, from the logs."""
    losses = {name: row["critic"] for name, row in trainings.items() if "critic" in row}
    if not losses:
        return []
    said = ", ".join(
        f"{_named(name)} {loss:.4f}, {100 * (1 - loss / CONSTANT):.0f} % below"
        for name, loss in losses.items()
    )
    return [html_note("ACAI cannot remove what its critic does not see. One that answers 1/8, the best constant, has a loss "
                  f"of {CONSTANT}; at the end of these short trainings: {said}.")]  # fmt: skip


def _generation(results: dict[str, Any], folder: Path) -> list[str]:
    out = []
    if rows := results.get("bagan"):
        caption = "A training picture of each class, then pictures drawn at random, unselected."
        keys = ("energy_distance", "diversity", "sharpness", "recognised", "novelty")
        lines = [
            [
                row["source"],
                row["contrast"],
                *(f"{row[key]:.3g}" if key in row else "-" for key in keys),
            ]
            for row in rows
        ]
        out += [
            "<h3>Table 4: BAGAN</h3>",
            html_table(["pictures", "class", *(key.replace("_", " ") for key in keys)], lines),
            html_note(
                "64 × 64 pixels, against the pictures of test subjects of the same contrast. Energy distance (Székely, Rizzo "
                "2013): of mean and standard deviation of every feature of the contrast network over a picture, in standard "
                "deviations of the training pictures; 0 is alike, and the training pictures show what other subjects and "
                "scanners make of it. Diversity: mean distance of two pictures there, over that of the test pictures. "
                "Sharpness: mean absolute gradient over that of the training pictures. Recognised: share that the network "
                "takes for their class. Novelty: root mean squared difference to the nearest training picture of the class, "
                "mirrored or not, of 255. Initialisation: the decoder of the autoencoder on latents drawn from the Gaussian "
                "of the class, before the adversarial training."
            ),
            _figure(folder, "bagan", caption),
        ]
        if row := results["trainings"].get("bagan"):
            losses = f"discriminator {row['discriminator']:.3f}, generator {row['generator']:.3f}"
            out.append(html_note(f"Cross entropy at the end of the training: {losses}."))
    if rows := results.get("augmentation"):
        counts = ", ".join(f"{n} {name}" for name, n in results.get("subset", {}).items())
        lines = [[escape(_named(r["method"])), f"{r['balanced_accuracy']:.3f} ± {r['half_interval_95']:.3f}",
                  ", ".join(f"{s:.3f}" for s in r["scores"])] for r in rows]  # fmt: skip
        out += [
            "<h3>Does it help?</h3>",
            _p(
                f"A small classifier of contrasts, trained on {counts} slices and what each method adds to make the "
                "classes equal."
            ),
            html_table(
                ["method", "balanced accuracy on test, mean ± 95 % interval", "seeds"], lines
            ),
            _figure(
                folder,
                "augmentation",
                "Mean and 95 % interval (Student) over seeds, each seed beside; dotted: chance.",
            ),
        ]
    return out


def _conclusions(results: dict[str, Any]) -> list[str]:
    """What the numbers say, whichever way."""
    found = []
    for part, model, target in (("cnn", "cnn32", 38.0), ("unet", "unet", 28.0)):
        for row in results.get(part, []):
            if row["model"] == model:
                verdict = "reaches" if row["psnr"] >= target else "misses"
                found.append(
                    f"{_named(model)} {verdict} {target:g} dB mean PSNR on test slices: {row['psnr']:.2f} dB."
                )
    found += _verdicts({row["method"]: row for row in results.get("interpolation") or []})
    table = {row["method"]: row for row in results.get("augmentation") or []}
    for name, row in table.items():
        if name != "repetition":
            base = table["repetition"]  # balanced classes without a new picture
            gain = row["balanced_accuracy"] - base["balanced_accuracy"]
            half = math.hypot(row["half_interval_95"], base["half_interval_95"])
            verdict = (
                "no difference shown"
                if abs(gain) <= half
                else "it helps"
                if gain > 0
                else "it harms"
            )
            what = "No augmentation" if name == "none" else f"Augmentation by {_named(name)}"
            found.append(f"{what}, against repetition of the pictures there are: balanced accuracy {gain:+.3f} ± {half:.3f} "
                         f"(95 %), {verdict}.")  # fmt: skip
    items = (
        "".join(f"<li>{escape(text)}</li>" for text in found) or "<li>Nothing measured yet.</li>"
    )
    return ["<h2>Conclusions</h2>", f"<ul>{items}</ul>"]


def _verdicts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """ACAI against pixel blending and the plain autoencoder, pair by pair, on the measures chosen."""
    out = []
    for name, row in rows.items():
        if not name.startswith("acai-"):
            continue
        measures = [key for key in CHOSEN if key in row]
        both = {
            "better": set(measures),
            "worse": set(measures),
            "not clearly different": set(measures),
        }
        for other in ("pixel blending", name[5:]):
            said: dict[str, list[str]] = {verdict: [] for verdict in both}
            for key in measures:
                mine, theirs = (np.array(r[key]["values"]) for r in (row, rows[other]))
                if key == "sharpness":
                    mine, theirs = abs(mine - 1), abs(theirs - 1)
                share = float((mine < theirs).mean())
                found = (
                    "better"
                    if share >= CLEAR
                    else "worse"
                    if share <= 1 - CLEAR
                    else "not clearly different"
                )
                for verdict in both.keys() - {found}:
                    both[verdict].discard(key)
                means = f"{row[key]['mean']:.4g} against {rows[other][key]['mean']:.4g}"
                said[found].append(f"{TITLES[key]} ({means}, won {share:.0%} of the pairs)")
            text = "; ".join(
                f"{verdict} in " + ", ".join(those) for verdict, those in said.items() if those
            )
            out.append(f"{_named(name)} against {_named(other)}: {text}.")
        better, worse = (
            ", ".join(TITLES[key] for key in measures if key in both[kind])
            for kind in ("better", "worse")
        )
        out.append(f"So the interpolants of {_named(name)} beat both pixel blending and the plain autoencoder in "
                   f"{better or 'none of the measures'}, and lose to both in {worse or 'none'}.")  # fmt: skip
    return out


def _limits() -> list[str]:
    return [
        "<h2>Limits</h2>",
        _p("Few subjects: intervals and counts over slices and pairs are not those over people. Contrast goes with the scanner "
           "and the subject, so the classifier may learn either. Slices are mixed by height below the vertex without "
           "registration. Autoencoders are trained on crops in scanner resolution and mix pictures of the common grid; in the "
           "augmentation they have seen all training slices, though without labels, and BAGAN only the small subset, once for "
           "all seeds. Trainings are short: see the table of trainings."),
    ]  # fmt: skip
