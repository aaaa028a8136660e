"""How the page and the figures name networks and methods."""

from __future__ import annotations

_NAMES = {
    "cnn8": "CNN-8",
    "cnn16": "CNN-16",
    "cnn32": "CNN-32",
    "unet": "U-Net V1",
    "unet-wide": "U-Net V2",
    "unet-2level": "U-Net, two levels",
    "vae": "VAE",
    "acai": "ACAI",
    "bagan": "BAGAN",
    "bagan-start": "BAGAN, its autoencoder",
    "bagan-few": "BAGAN, small subset",
    "bagan-few-start": "BAGAN, small subset, its autoencoder",
    "features": "network of the feature distance",
}


def display_name(model: str) -> str:
    """The name for readers: "ACAI on CNN-32" of "acai-cnn32"; unknown names stay as they are."""
    if model.startswith("acai-"):
        return "ACAI on " + display_name(model.removeprefix("acai-"))
    return _NAMES.get(model, model)
