"""Reconstruction: how well autoencoders hold slices of test subjects, and at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mricodec.codec.voxels import metrics
from mricodec.models.training.study import padded

from .corpus import CONTRASTS, Picture, Slice
from .measures import deviation, psnr, ssim
from .networks import reconstruction
from .study import Study

if TYPE_CHECKING:
    from mricodec.models.study.autoencoder import Autoencoder

# Octaves of peak / step at which rates are measured.
OCTAVES = range(3, 9)
# Every n-th of the measured slices is coded.
CODED_EVERY = 6
# Tables sum to 2**24.
TABLE_BITS = 24
# Slices in a figure, the nearest to this height below the vertex of their contrast.
SHOWN_SLICES = 3
SHOWN_HEIGHT_MM = 55.0


def reconstructions(study: Study, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each network: PSNR, MSE and SSIM per slice."""
    rows = []
    for name in names:
        row = _reconstruction_row(study, name)
        rows.append(row)
        study.report(
            f"{name}: {row['psnr']:.2f} ± {row['psnr_sd']:.2f} dB on {row['slices']} test slices"
        )
    return rows


def _reconstruction_row(study: Study, name: str) -> dict[str, Any]:
    network = study.networks.autoencoder(name)
    values = []
    for item in study.measured:
        x_hat = reconstruction(network, item.pixels)
        mse = metrics.mse(item.pixels, x_hat)
        values.append((psnr(item.pixels, x_hat), mse, ssim(item.pixels, x_hat)))
    psnrs, mses, ssims = np.array(values).T
    contrasts = np.array([item.contrast for item in study.measured])
    return {
        "model": name,
        "values_per_pixel": network.values_per_pixel,
        "parameters": sum(p.numel() for p in network.parameters()),
        "slices": len(psnrs),
        "psnr_min": psnrs.min(),
        "psnr_max": psnrs.max(),
        "psnr": psnrs.mean(),
        "psnr_sd": deviation(psnrs),
        "mse": mses.mean(),
        "ssim": ssims.mean(),
        "ssim_sd": deviation(ssims),
        "psnr_by_contrast": {
            contrast: float(psnrs[contrasts == contrast].mean())
            for contrast in CONTRASTS
            if (contrasts == contrast).any()
        },
        "validation_psnr": study.networks.validation_psnr(name),
    }


def rates(study: Study, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each network and octave of peak / step: entropy of the latents, and PSNR."""
    rows = []
    coded = study.measured[::CODED_EVERY]
    for name in names:
        network, tables = study.networks.autoencoder(name), study.networks.tables(name)
        points = np.array([_rate_curve(network, tables, item.pixels) for item in coded])
        for octave, (bits, mean_psnr) in zip(OCTAVES, points.mean(0), strict=True):
            rows.append(
                {
                    "model": name,
                    "octave": octave,
                    "bits": bits,
                    "psnr": mean_psnr,
                    "slices": len(coded),
                }
            )
    return rows


@torch.no_grad()
def _rate_curve(
    network: Autoencoder, tables: dict[str, torch.Tensor], picture: Picture
) -> list[tuple[float, float]]:
    """Bits per pixel and PSNR of a picture at every octave."""
    height, width = picture.shape
    latents = network.g_a(padded(picture, 8))
    points = []
    for octave in OCTAVES:
        gain = network.gain(torch.tensor([float(octave)]))
        y = (latents * gain).round()
        x_hat = network.g_s(y / gain)[0, 0, :height, :width].clamp(0, 1).numpy()
        # Bins of values around 0 in the middle; the last bin is the escape of all others.
        weights = tables[f"tables.{network.table_set(octave)}"]
        bits = TABLE_BITS - torch.log2(weights.double())
        bins = (y[0].flatten(1) + (bits.shape[1] - 1) // 2).long().clamp(0, bits.shape[1] - 1)
        rate = float(bits.gather(1, bins).sum()) / (height * width)
        points.append((rate, psnr(picture, x_hat)))
    return points


def shown_reconstructions(study: Study, names: Sequence[str]) -> list[tuple[Slice, list[Picture]]]:
    """For the figures: one test slice of each contrast and what every network makes of it."""
    nearest: dict[str, Slice] = {}
    for item in study.measured:
        best = nearest.setdefault(item.contrast, item)
        if abs(item.height_mm - SHOWN_HEIGHT_MM) < abs(best.height_mm - SHOWN_HEIGHT_MM):
            nearest[item.contrast] = item
    slices = [nearest[contrast] for contrast in CONTRASTS if contrast in nearest]
    networks = [study.networks.autoencoder(name) for name in names]
    return [
        (item, [reconstruction(network, item.pixels) for network in networks])
        for item in slices[:SHOWN_SLICES]
    ]
