"""The registry of the representation study's models; see models/zoo.py."""

from __future__ import annotations

from mricodec.models.weights_file import Entry, Network

_CNN = "mricodec.models.study.autoencoder:MinimalCNN"
_UNET = "mricodec.models.study.unet:UNet"

NETWORKS: dict[str, Network] = {
    "cnn8": Network(_CNN, (8,)),
    "cnn16": Network(_CNN, (16,)),
    "cnn32": Network(_CNN, (32,)),
    "unet": Network(_UNET),
    "unet-wide": Network(_UNET, ((96, 192, 384, 768),)),
    "unet-2level": Network(_UNET, ((64, 128),)),
    "vae": Network("mricodec.models.study.vae:ResidualVAE"),
}
REGISTRY: tuple[Entry, ...] = tuple(
    Entry(name, NETWORKS[name], sha256)
    for name, sha256 in (
        ("cnn8", "5b1aaf3f4ae42a851c1991cd97d90f0d648e197b4205ca774369af78a7582434"),
        ("cnn16", "65ebe9b9466c34fbe9498db35bb71be3a0838494c2f052ae4ac10c67566514f8"),
        ("cnn32", "677c241d0b948c2cc978e79e23d902cf4e9ca3415a7ae6d4f5f081b803a41cfe"),
        ("unet", "ecf179570aedac2642775092199a5b78992fa7263bd201cc1420e6f5dc06e7c2"),
        ("unet-2level", "dc19e8f130674e69aa97ae94e5957399c2697fcd849f9aac5f8be878a4dc7095"),
        ("vae", "b5a30a905c551bd47472bb403a0ff2a0e56cac340151add80e52c63715f31b06"),
    )
)
