"""How much the study reads, trains and measures; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mricodec.models.training.study import Recipe

# Parts of the study, in the order in which they run.
PARTS = ("cnn", "unet", "vae", "interpolation", "bagan", "augmentation")

CNNS = ("cnn8", "cnn16", "cnn32")
UNETS = ("unet", "unet-wide", "unet-2level")
# Networks whose rates are measured.
CODECS = (*CNNS, "unet", "unet-2level", "vae")
# U-Nets whose latents are mixed; with two levels that would be close to mixing pixels.
DEEP_UNETS = ("unet", "unet-wide")
# Shortest side of the pictures of BAGAN and of the contrast classifier, pixels.
SMALL_GRID = 64


@dataclass(frozen=True)
class Config:
    """A named configuration."""

    # Training steps by network; the longest key that a name begins with counts.
    steps: dict[str, int]
    # Crops of a batch and the side of a crop in pixels.
    batch: int = 4
    size: int = 64
    # Scans of each contrast and split, of different subjects; None: all.
    scans_per_contrast: int | None = None
    # Every n-th slice of a volume is read, every n-th test slice measured.
    every: int = 1
    test_every: int = 3
    # Pairs of test slices that are interpolated.
    pairs: int = 24
    # Classifiers that are trained for each method of augmentation.
    seeds: int = 5
    # Pictures of a batch of ACAI.
    mix_batch: int = 4
    # Training slices on which the probability tables of a codec are measured.
    calibrate: int = 24

    def recipe(self, name: str) -> Recipe:
        """How the network `name` is trained."""
        from mricodec.models.training.study import Recipe

        steps = self.steps[max((key for key in self.steps if name.startswith(key)), key=len)]
        if name.startswith(("unet", "vae")):
            return Recipe(steps, self.batch, 1e-3, self.size)
        if name.startswith("cnn"):
            return Recipe(steps, self.batch, 2e-3, self.size)
        if name.startswith("acai"):
            return Recipe(steps, self.mix_batch, 1e-3, 2 * SMALL_GRID)
        if name.startswith("bagan"):
            rate, momentum = (1e-3, 0.9) if name.endswith("-start") else (4e-4, 0.5)
            return Recipe(steps, 4 * self.mix_batch, rate, SMALL_GRID, momentum=momentum)
        return Recipe(steps, 32, 2e-3, SMALL_GRID)


_STEPS = {
    "cnn": 2500,
    "unet": 1200,
    "unet-wide": 600,
    "vae": 3000,
    "acai-cnn": 600,
    "acai-unet": 300,
    "bagan-start": 2000,
    "bagan": 3000,
    "bagan-few-start": 600,
    "bagan-few": 800,
    "features": 1500,
    "classifier": 600,
}
CONFIGS = {
    "default": Config(_STEPS),
    "debug": Config(
        dict.fromkeys(_STEPS, 2),
        batch=2,
        size=32,
        scans_per_contrast=2,
        every=12,
        test_every=4,
        pairs=3,
        mix_batch=2,
        calibrate=2,
    ),
}
