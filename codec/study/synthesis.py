"""Pictures between and beyond scans as NIfTI files: `mricodec interpolate` and `augment`."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from mricodec.codec.atomic import replacing
from mricodec.codec.training.data_folder import LeftOut, read_data_folder
from mricodec.models import zoo
from mricodec.models.loader import load_model
from mricodec.models.study import adversarial
from mricodec.models.study.registry import NETWORKS
from mricodec.models.training import study as training

from .corpus import (
    CONTRASTS,
    GRID,
    GRID_MM,
    HEIGHTS_MM,
    Picture,
    Slice,
    on_grid,
    read_scan,
    read_split,
)
from .interpolation import pairs_of

if TYPE_CHECKING:
    from mricodec.models.study.autoencoder import Autoencoder

METHODS = ("interpolation", "acai", "bagan")
# Distance of the slices of a mixed volume.
GAP_MM = 4.0
# Stored value of a pixel of 1.
SCALE = 4095
# Range of the weight of the first of two mixed slices.
WEIGHTS = (0.2, 0.8)

_MANIFEST_COLUMNS = ("file", "method", "model", "contrast", "parents", "weights", "seed")


@dataclass(frozen=True)
class AugmentSettings:
    """What pictures `augment` makes."""

    count: int
    method: str = "interpolation"
    # The autoencoder of interpolation and acai.
    model: str = "cnn32"
    # Folder of a study that trained the networks of acai and bagan.
    study: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Generated:
    """A picture [H, W] and what it comes from."""

    picture: Picture
    contrast: str
    parents: str = ""
    weights: str = ""


def load_autoencoder(name: str, study: Path | None) -> Autoencoder:
    """An autoencoder that a study trained, or else a shipped one.

    ValueError for an unknown name or one that is neither shipped nor trained.
    """
    plain = name.removeprefix("acai-")
    known = [key for key in NETWORKS if key != "vae"]
    if plain not in known:
        raise ValueError(f"expected an autoencoder of {', '.join(known)}, found {plain}")
    path = None if study is None else study / "models" / f"{name}.safetensors"
    if path is not None and path.exists():
        network: Any = NETWORKS[plain].build()
        is_acai = name != plain
        task: Any = adversarial.Acai(network) if is_acai else training.Reconstruction(network)
        training.load_trained(task, path)
        network.eval().requires_grad_(False)
        return cast("Autoencoder", network)
    if name in zoo.names():
        return cast("Autoencoder", cast(Any, load_model(name)).network)
    where = (
        "is not shipped: name the folder of a study with --study"
        if path is None
        else f"expected in {path}, found none"
    )
    raise ValueError(
        f"{name} {where} (mricodec study run --only interpolation trains the best CNN and U-Net "
        "with ACAI)"
    )


def interpolate_scans(
    scans: Sequence[str | os.PathLike[str]],
    weights: Sequence[float],
    out: str | os.PathLike[str],
    network: Autoencoder,
) -> None:
    """Mix heads slice by slice in the latents and write the volume.

    ValueError for weights or scans that do not fit.
    """
    adversarial.check_weights(list(weights), len(scans))
    if not os.fspath(out).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{os.fspath(out)}: expected a name that ends in .nii or .nii.gz")
    heads = [read_scan(Path(scan)) for scan in scans]
    for scan, slices in zip(scans, heads, strict=True):
        if not slices:
            raise ValueError(
                f"{os.fspath(scan)}: expected a head with axial slices of square pixels, found none"
            )
    lowest = min(HEIGHTS_MM[1], *(max(s.height_mm for s in slices) for slices in heads))
    highest = max(HEIGHTS_MM[0], *(min(s.height_mm for s in slices) for slices in heads))
    heights = np.arange(highest, lowest + 1e-6, GAP_MM)
    if not len(heights):
        raise ValueError(
            "expected scans that show the same heights of the head, found none in common"
        )
    volume = np.zeros((len(heights), GRID, GRID), np.float32)
    for n, height in enumerate(heights):
        nearest = [min(slices, key=lambda s: abs(s.height_mm - height)) for slices in heads]
        volume[n] = _mixed(network, nearest, list(weights))
    _write_nifti(Path(out), volume, GRID_MM)


def augment(data: Path, out: Path, settings: AugmentSettings) -> list[LeftOut]:
    """Write pictures `out`/00000.nii.gz ..., contrasts in rotation, and what they come from to
    `out`/manifest.csv; returns the scans of `data` that are not used.

    ValueError for networks that are not trained or data without two scans to mix, OSError.
    """
    left_out: list[LeftOut] = []
    if settings.method != "interpolation" and settings.study is None:
        raise ValueError(
            f"--method {settings.method}: expected the folder of a study that trained its network "
            "(--study), found none"
        )
    if settings.method == "bagan":
        generated = _drawn(settings)
    else:
        is_acai = settings.method == "acai"
        name = f"acai-{settings.model.removeprefix('acai-')}" if is_acai else settings.model
        network = load_autoencoder(name, settings.study)
        folder = read_data_folder(data)
        slices, refused = read_split(folder, "train")
        left_out = [*folder.left_out, *refused]
        generated = _interpolated(network, slices, settings)
    _write_pictures(out, list(generated), settings)
    return left_out


def _drawn(settings: AugmentSettings) -> Iterator[_Generated]:
    """Pictures that the BAGAN of a study draws."""
    assert settings.study is not None
    bagan = adversarial.Bagan(len(CONTRASTS))
    path = settings.study / "models" / "bagan.safetensors"
    if not path.exists():
        raise ValueError(
            f"{path}: expected the weights of BAGAN, found none (mricodec study run --only bagan "
            "trains it)"
        )
    training.load_trained(bagan, path)
    for network in bagan.networks.values():
        network.eval().requires_grad_(False)
    labels = torch.arange(settings.count) % len(CONTRASTS)
    pictures = bagan.sample(labels, torch.Generator().manual_seed(settings.seed))
    for label, picture in zip(labels.tolist(), pictures, strict=True):
        yield _Generated(picture[0].numpy(), CONTRASTS[label])


def _interpolated(
    network: Autoencoder, slices: Sequence[Slice], settings: AugmentSettings
) -> Iterator[_Generated]:
    """Mixtures of two slices of one contrast and height and different subjects."""
    pools = pairs_of(slices)
    if not pools:
        raise ValueError(
            "expected training scans of one contrast and height of two subjects, found none"
        )
    rng = np.random.default_rng(settings.seed)
    for n in range(settings.count):
        pool = pools[n % len(pools)]
        parents = [slices[index] for index in pool[rng.integers(len(pool))]]
        weight = round(float(rng.uniform(*WEIGHTS)), 4)
        picture = _mixed(network, parents, [weight, 1 - weight])
        names = " ".join(f"{s.scan}@{s.height_mm:.1f}mm" for s in parents)
        yield _Generated(picture, parents[0].contrast, names, f"{weight:.4f} {1 - weight:.4f}")


@torch.no_grad()
def _mixed(network: Autoencoder, slices: Sequence[Slice], weights: list[float]) -> Picture:
    """A mixture of slices on the common grid."""
    pictures = torch.from_numpy(on_grid(slices))[:, None]
    mixed: Picture = adversarial.interpolate(network, pictures, weights)[0, 0].numpy()
    return mixed


def _write_pictures(out: Path, generated: list[_Generated], settings: AugmentSettings) -> None:
    """The folder `out`, complete or not at all."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir()
    try:
        with (part / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _MANIFEST_COLUMNS)
            writer.writeheader()
            for n, item in enumerate(generated):
                name = f"{n:05d}.nii.gz"
                pixel_mm = GRID_MM * GRID / len(item.picture)
                _write_nifti(part / name, item.picture[None], pixel_mm)
                writer.writerow(
                    {
                        "file": name,
                        "method": settings.method,
                        "model": "bagan" if settings.method == "bagan" else settings.model,
                        "contrast": item.contrast,
                        "parents": item.parents,
                        "weights": item.weights,
                        "seed": settings.seed,
                    }
                )
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_nifti(path: Path, slices: Picture, pixel_mm: float) -> None:
    """[slices from the vertex down, rows from anterior, columns from the right] -> uint16."""
    import nibabel as nib

    stored = np.rint(np.clip(slices, 0, 1) * SCALE).astype(np.uint16)
    # Columns run to the patient's left, which is -x: i grows leftwards.
    voxels = np.ascontiguousarray(stored[::-1, ::-1].transpose(2, 1, 0))
    affine = np.diag([-pixel_mm, pixel_mm, GAP_MM, 1.0])
    image_of: Any = nib.Nifti1Image  # type: ignore[attr-defined, unused-ignore]
    data = image_of(voxels, affine).to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    with replacing(path) as file:
        file.write(data)
