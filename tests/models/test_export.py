"""Networks that were trained further become weights files that the codec encodes with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from paths import DATA
from safetensors.torch import load_file

from mricodec import codec, models
from mricodec.models import zoo
from mricodec.models.training import export
from mricodec.models.weights_file import network_name

SCAN = DATA / "thick_flair.nii.gz"


@pytest.fixture(scope="module")
def slabs() -> list[Any]:
    """What a cache file holds of a real scan."""
    array = np.asarray(nibabel.load(SCAN).dataobj).T  # type: ignore[attr-defined]
    voxels = np.ascontiguousarray(array.astype(np.int32))
    slab = {"voxels": voxels, "spacing_mm": (5.0, 1.0, 1.0), "geometry": "thick", "split": "train"}
    return [SimpleNamespace(**slab)]


@pytest.mark.parametrize("name", ["hyperprior", "factorized", "cnn8", "default"])
def test_a_network_as_loaded_has_the_shipped_weights(
    name: str, slabs: list[Any], tmp_path: Path
) -> None:
    """Only the tables, fitted to the scans of the export, differ from the shipped file."""
    model = models.load(name)
    network = model.network if name == "default" else model
    path, sha256 = export.export(name, network, slabs, tmp_path, crops=1)
    assert path.name == f"{name}-{sha256[:8]}.safetensors"
    assert network_name(path.read_bytes()) == name
    shipped, exported = load_file(zoo.find(name).path), load_file(path)
    assert shipped.keys() == exported.keys()
    for key, tensor in shipped.items():
        if key.startswith("tables."):
            assert tensor.shape == exported[key].shape
        elif tensor.dtype == torch.bfloat16:
            assert torch.equal(exported[key], tensor.float())
        else:
            assert torch.equal(exported[key], tensor) and exported[key].dtype == tensor.dtype, key


def test_a_step_of_training(slabs: list[Any], tmp_path: Path) -> None:
    """The README's example: steps for one scan leave its file no larger and no worse."""
    network = models.load("hyperprior").train()
    peak = slabs[0].voxels.max()
    x = torch.from_numpy(slabs[0].voxels[:, None] / np.float32(peak)).float()
    optimiser = torch.optim.Adam(network.parameters(), 1e-5)
    for _ in range(2):
        out = network(x, level=6)
        bits = sum(-torch.log2(p).sum() for p in out["likelihoods"].values()) / x.numel()
        loss = bits + 6 * ((out["x_hat"] - x) * 2**6).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    path, _ = export.export("hyperprior", network.eval(), slabs, tmp_path, crops=2)
    stream = codec.encode(SCAN, quality=40, model=path)
    shipped = codec.encode(SCAN, quality=40, model="hyperprior")
    assert stream is not None and shipped is not None
    array = np.asarray(nibabel.load(SCAN).dataobj).T  # type: ignore[attr-defined]
    errors = [
        float(np.square(codec.Decoder(model=path).decode(s).array - array.astype(float)).mean())
        for s in (stream, shipped)
    ]
    assert len(stream) < 1.02 * len(shipped) and errors[0] < 1.05 * errors[1]
