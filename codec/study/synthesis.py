"""Pictures between and beyond scans, as NIfTI files on the common grid of `slices`: `mricodec interpolate` and `augment`."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.atomic import replacing

from .corpus import CONTRASTS, GRID, GRID_MM, HEIGHTS_MM, Slice, on_grid, read_corpus, read_scan

if TYPE_CHECKING:
    from mricodec.models.study.autoencoder import Autoencoder

GAP_MM = 4.0  # between the slices of a mixed volume
SCALE = 4095  # stored value of 1
NEAR_MM = 8.0  # largest difference in height of slices that are mixed
SMALL = 64  # side of BAGAN's pictures


def load_autoencoder(name: str, study: Path | None) -> Autoencoder:
    """An autoencoder that a study trained, or else a shipped one. ValueError for an unknown name or a missing file."""
    from mricodec.models import zoo
    from mricodec.models.loader import load_model
    from mricodec.models.study.adversarial import Acai
    from mricodec.models.study.registry import NETWORKS
    from mricodec.models.training import study as slice_training

    plain = name.removeprefix("acai-")
    autoencoders = [key for key in NETWORKS if key != "vae"]
    if plain not in autoencoders:
        raise ValueError(f"expected an autoencoder of {', '.join(autoencoders)}, found {plain}")
    path = None if study is None else study / "models" / f"{name}.safetensors"
    if path is not None and path.exists():
        made: Any = NETWORKS[plain].build()
        task: Any = slice_training.Reconstruction(made) if name == plain else Acai(made)
        slice_training.load_trained(task, path)
        made.eval().requires_grad_(False)
        return made  # type: ignore[no-any-return]
    if name in zoo.names():
        network: Autoencoder = cast(Any, load_model(name)).network
        return network
    where = (
        "is not shipped: name the folder of a study with --study"
        if path is None
        else f"expected in {path}, found none"
    )
    raise ValueError(
        f"{name} {where} (mricodec study run --only interpolation trains the best CNN and U-Net with ACAI)"
    )


def interpolate_scans(
    scans: Sequence[str | os.PathLike[str]],
    weights: Sequence[float],
    out: str | os.PathLike[str],
    network: Autoencoder,
) -> None:
    """Mix heads slice by slice in the latents and write the volume. ValueError for weights or scans that do not fit."""
    import torch

    from mricodec.models.study import adversarial

    adversarial.check_weights(list(weights), len(scans))
    if not os.fspath(out).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{os.fspath(out)}: expected a name that ends in .nii or .nii.gz")
    each = [read_scan(Path(scan)) for scan in scans]
    for scan, slices in zip(scans, each, strict=True):
        if not slices:
            raise ValueError(
                f"{os.fspath(scan)}: expected a head with axial slices of square pixels, found none"
            )
    lowest = min(HEIGHTS_MM[1], *(max(s.height_mm for s in slices) for slices in each))
    highest = max(HEIGHTS_MM[0], *(min(s.height_mm for s in slices) for slices in each))
    heights = np.arange(highest, lowest + 1e-6, GAP_MM)
    if not len(heights):
        raise ValueError(
            "expected scans that show the same heights of the head, found none in common"
        )
    volume = np.zeros((len(heights), GRID, GRID), np.float32)
    for n, height in enumerate(heights):
        near = [min(slices, key=lambda s: abs(s.height_mm - height)) for slices in each]
        with torch.no_grad():
            volume[n] = adversarial.interpolate(
                network, torch.from_numpy(on_grid(near))[:, None], list(weights)
            )[0, 0]
    _write(Path(out), volume, GRID_MM)


def augment(
    data: Path, out: Path, count: int, method: str, model: str, study: Path | None, seed: int
) -> None:
    """`count` pictures `out`/00000.nii.gz ..., contrasts in turn, and manifest.csv (file, method, model, contrast, parents,
    weights, seed)."""
    import torch

    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    rng = np.random.default_rng(seed)
    if method != "interpolation" and study is None:
        raise ValueError(
            f"--method {method}: expected the folder of a study that trained its model (--study), found none"
        )
    rows: list[dict[str, Any]] = []
    pictures: list[NDArray[np.float32]] = []
    if method == "bagan":
        from mricodec.models.study.adversarial import Bagan
        from mricodec.models.training import study as slice_training

        assert study is not None
        bagan = Bagan(len(CONTRASTS))
        path = study / "models" / "bagan.safetensors"
        if not path.exists():
            raise ValueError(
                f"{path}: expected the weights of BAGAN, found none (mricodec study run --only bagan trains it)"
            )
        slice_training.load_trained(bagan, path)
        for network in bagan.networks.values():
            network.eval().requires_grad_(False)
        classes = torch.arange(count) % len(CONTRASTS)
        made = bagan.sample(classes, torch.Generator().manual_seed(seed))
        pictures = [picture[0].numpy() for picture in made]
        rows = [{"contrast": CONTRASTS[n], "parents": "", "weights": ""} for n in classes.tolist()]
    else:
        from mricodec.models.study.adversarial import interpolate

        name = f"acai-{model.removeprefix('acai-')}" if method == "acai" else model
        network = load_autoencoder(name, study)
        slices, _ = read_corpus(data, "train")
        pools = _partners(slices)
        for n in range(count):
            pool = pools[n % len(pools)]
            a, b = pool[rng.integers(len(pool))]
            alpha = round(float(rng.uniform(0.2, 0.8)), 4)
            with torch.no_grad():
                mixed = interpolate(
                    network, torch.from_numpy(on_grid([a, b]))[:, None], [alpha, 1 - alpha]
                )
            pictures.append(mixed[0, 0].numpy())
            parents = " ".join(f"{s.scan}@{s.height_mm:.1f}mm" for s in (a, b))
            rows.append(
                {
                    "contrast": a.contrast,
                    "parents": parents,
                    "weights": f"{alpha:.4f} {1 - alpha:.4f}",
                }
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir()
    try:
        for n, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            row |= {
                "file": f"{n:05d}.nii.gz",
                "method": method,
                "model": "bagan" if method == "bagan" else model,
                "seed": seed,
            }
            _write(part / row["file"], picture[None], GRID_MM * GRID / len(picture))
        with (part / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, ["file", "method", "model", "contrast", "parents", "weights", "seed"]
            )
            writer.writeheader()
            writer.writerows(rows)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _partners(slices: Sequence[Slice]) -> list[list[tuple[Slice, Slice]]]:
    """For every contrast that has some: slices of different subjects, of one height. ValueError if there are none."""
    pools = [
        [
            (a, b)
            for n, a in enumerate(slices)
            for b in slices[n + 1 :]
            if a.contrast == b.contrast == contrast
            and a.subject != b.subject
            and abs(a.height_mm - b.height_mm) <= NEAR_MM
        ]
        for contrast in CONTRASTS
    ]
    if not any(pools):
        raise ValueError("expected training scans of one contrast of two subjects, found none")
    return [pool for pool in pools if pool]


def _write(path: Path, slices: NDArray[np.float32], pixel_mm: float) -> None:
    """[slices from the vertex down, rows from anterior, columns from the right] -> NIfTI, uint16, 1 is SCALE."""
    import nibabel as nib

    stored = np.rint(np.clip(slices, 0, 1) * SCALE).astype(np.uint16)
    voxels = np.ascontiguousarray(
        stored[::-1, ::-1].transpose(2, 1, 0)
    )  # i to the left is -x, so that i grows leftwards
    affine = np.diag([-pixel_mm, pixel_mm, GAP_MM, 1.0])
    image: Any = nib.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call, attr-defined, unused-ignore]
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        import gzip

        data = gzip.compress(data, mtime=0)
    with replacing(path) as file:
        file.write(data)
