"""The figures of the study as PNG files; extra `bench` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import CONTRASTS, Picture, Slice
from .names import display_name

# An error map is drawn as if its largest error were at least this: small errors stay dark.
MIN_ERROR_RANGE = 0.02
# Training pictures of a contrast in the contact sheet.
CONTACT_COLUMNS = 8
# Pixels along each side over which an error landscape is averaged.
LANDSCAPE_BLOCK = 4
_DPI = 110
_MARKERS = "osDv^P"


class Figures:
    """PNG files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def contact_sheet(self, slices: Sequence[Slice], grid: Picture) -> None:
        """Training pictures of every contrast on the common grid."""
        figure, axes = _panels(len(CONTRASTS), CONTACT_COLUMNS, 1.3, 1.35)
        for row, contrast in zip(axes, CONTRASTS, strict=True):
            alike = [n for n, item in enumerate(slices) if item.contrast == contrast]
            chosen = alike[:: max(1, len(alike) // CONTACT_COLUMNS)]
            for axis, n in zip(row, chosen, strict=False):
                _show(axis, grid[n])
            row[0].set_title(contrast, loc="left", fontsize=10)
        self._save(figure, "data")

    def reconstructions(
        self, name: str, models: Sequence[str], rows: Sequence[tuple[Slice, list[Picture]]]
    ) -> None:
        """Each slice and its reconstructions, and below them the absolute errors."""
        figure, axes = _panels(2 * len(rows), 1 + len(models), 2.3, 2.3)
        for n, (item, pictures) in enumerate(rows):
            errors = [np.abs(picture - item.pixels) for picture in pictures]
            limit = max(MIN_ERROR_RANGE, *(float(np.percentile(e, 99.5)) for e in errors))
            brightest = float(np.percentile(item.pixels, 99.8))
            upper, lower = axes[2 * n], axes[2 * n + 1]
            _show(upper[0], item.pixels, brightest)
            upper[0].set_title(f"{item.contrast}, input", fontsize=9)
            for column, (model, picture, error) in enumerate(
                zip(models, pictures, errors, strict=True), 1
            ):
                psnr = -10 * np.log10(max(float((error**2).mean()), 1e-12))
                _show(upper[column], picture, brightest)
                upper[column].set_title(f"{display_name(model)}, {psnr:.1f} dB", fontsize=9)
                image = lower[column].imshow(error, cmap="inferno", vmin=0, vmax=limit)
            bar = figure.colorbar(image, cax=lower[0].inset_axes((0.85, 0.05, 0.07, 0.9)))
            bar.ax.yaxis.set_ticks_position("left")
            bar.ax.yaxis.set_label_position("left")
            bar.set_label("absolute error, of the volume's range", fontsize=8)
            bar.ax.tick_params(labelsize=8)
        self._save(figure, f"{name}-reconstructions")

    def surfaces(
        self, name: str, models: Sequence[str], item: Slice, pictures: Sequence[Picture]
    ) -> None:
        """The absolute error of one slice as a landscape over it."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * len(models), 3.9), layout="constrained")
        landscapes = [_block_means(np.abs(picture - item.pixels)) for picture in pictures]
        limit = max(MIN_ERROR_RANGE, max(float(z.max()) for z in landscapes))
        for n, (model, z) in enumerate(zip(models, landscapes, strict=True), 1):
            axis: Any = figure.add_subplot(1, len(models), n, projection="3d")
            y, x = np.indices(z.shape) * LANDSCAPE_BLOCK
            surface = {"rcount": 120, "ccount": 120, "linewidth": 0, "antialiased": False}
            axis.plot_surface(x, y, z, cmap="inferno", vmin=0, vmax=limit, **surface)
            axis.set_zlim(0, limit)
            axis.set_box_aspect((1, 1, 0.6), zoom=0.95)
            axis.view_init(50, -60)
            axis.set_title(f"{display_name(model)}, mean {z.mean():.4f}", fontsize=10)
            axis.set_xlabel("column", fontsize=8)
            axis.set_ylabel("row", fontsize=8)
            axis.set_zlabel("absolute error", fontsize=8, labelpad=10)
            axis.tick_params(labelsize=7)
        self._save(figure, f"{name}-surfaces")

    def rates(self, rows: Sequence[dict[str, Any]]) -> None:
        """PSNR against bits per pixel, a curve for each network."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axis = figure.subplots()
        models = list(dict.fromkeys(row["model"] for row in rows))
        for model, marker in zip(models, _MARKERS, strict=False):
            curve = [(row["bits"], row["psnr"]) for row in rows if row["model"] == model]
            bits, psnr = zip(*curve, strict=True)
            style: dict[str, Any] = {"marker": marker, "markersize": 4, "linewidth": 1.2}
            axis.plot(bits, psnr, label=display_name(model), **style)
        axis.set_xscale("log")
        axis.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("bits per pixel")
        axis.set_ylabel("PSNR, dB")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
        self._save(figure, "rates")

    def strips(self, strips: dict[str, list[Picture]], weights: Sequence[float]) -> None:
        """From one scan to another, a row for each way to mix."""
        figure, axes = _panels(len(strips), len(weights), 1.5, 1.6)
        for axis, weight in zip(axes[0], weights, strict=True):
            axis.set_title(f"α = {weight:.2f}", fontsize=9)
        for row, (name, pictures) in zip(axes, strips.items(), strict=True):
            for axis, picture in zip(row, pictures, strict=True):
                _show(axis, picture)
            row[0].text(3, 10, display_name(name), color="white", fontsize=8)
        self._save(figure, "strips")

    def simplex(self, name: str, pictures: Sequence[tuple[tuple[float, ...], Picture]]) -> None:
        """Mixtures of three scans, each where its weights lie in a triangle."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 7.6))
        for (a, b, c), picture in pictures:
            axis = figure.add_axes((0.82 * (b + c / 2), 0.79 * c, 0.175, 0.173))
            _show(axis, picture)
            axis.set_title(f"{a:.2f} {b:.2f} {c:.2f}", fontsize=7, pad=2)
            axis.axis("off")
        figure.text(0.02, 0.95, display_name(name), fontsize=10)
        self._save(figure, "simplex")

    def samples(self, samples: Picture, slices: Sequence[Slice], grid: Picture) -> None:
        """BAGAN's pictures [contrasts, n, H, W] of every class, a training picture before them."""
        figure, axes = _panels(len(samples), 1 + samples.shape[1], 1.25, 1.35)
        for contrast, row, generated in zip(CONTRASTS, axes, samples, strict=True):
            alike = [n for n, item in enumerate(slices) if item.contrast == contrast]
            if alike:
                _show(row[0], grid[alike[len(alike) // 2]])
            row[0].set_title(f"{contrast}, real", fontsize=8)
            for axis, picture in zip(row[1:], generated, strict=True):
                _show(axis, picture)
        self._save(figure, "bagan")

    def accuracies(self, rows: Sequence[dict[str, Any]]) -> None:
        """Balanced accuracy by method: mean, 95 % interval and every seed."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.5, 2.8), layout="constrained")
        axis = figure.subplots()
        for n, row in enumerate(rows):
            interval: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "capsize": 5}
            axis.errorbar(n, row["balanced_accuracy"], row["half_interval_95"], **interval)
            columns = n + 0.15 + np.linspace(-0.03, 0.03, len(row["scores"]))
            axis.plot(columns, row["scores"], ".", color="#999999")
        axis.axhline(1 / len(CONTRASTS), color="#a8201a", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(rows)), [display_name(row["method"]) for row in rows])
        axis.set_ylabel("balanced accuracy")
        axis.set_ylim(0, 1)
        self._save(figure, "augmentation")

    def _save(self, figure: Any, name: str) -> None:
        figure.savefig(self._folder / f"{name}.png", dpi=_DPI, facecolor="white")


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of equal panels without axes, each of `width` x `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _show(axis: Any, picture: Picture, brightest: float = 1.0) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=brightest)


def _block_means(error: Picture) -> Picture:
    """Means of LANDSCAPE_BLOCK x LANDSCAPE_BLOCK pixels."""
    side = LANDSCAPE_BLOCK
    rows, columns = (n // side for n in error.shape)
    cut = error[: rows * side, : columns * side]
    means: Picture = cut.reshape(rows, side, columns, side).mean((1, 3))
    return means
