"""Effort "high" of the default model: decisions by trials, and by gradients that torch computes.

RDOQ weighs a coefficient's error against its own bits alone. But it is also context: its value
changes the means and scales of coefficients that are coded later. The C core codes the bands
several times, torch differentiates the bits that depend on a coefficient, and the coefficients move
against this gradient (models/lossy/iterative_rdo.py).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mricodec.codec.native import functions
from mricodec.codec.native.model import Bands, NativeModel, Samples, Workspace, max_depth
from mricodec.models.lossy import lapped_transform as transform
from mricodec.models.lossy.context_model import ContextCodec, rate_class
from mricodec.models.lossy.iterative_rdo import dependent_rate_gradient
from mricodec.models.lossy.params import STEP_BITS, Params, integer_step
from mricodec.models.lossy.rdo import RDO_LAMBDA

# Trials of the iterative RDO.
RDO_ITERATIONS = 5
# Largest gradient that the iterative RDO follows, in bits per step.
MAX_RATE_GRADIENT = 4.0
# Order of coefficients in torch: the place 8 u + w of each.
_PLACES = np.array(transform.zigzag())


class IterativeModel(NativeModel):
    """The default model with an encoder that searches longer for the same decoder."""

    def __init__(self, name: str, data: bytes, network: ContextCodec, device: str) -> None:
        """network: the same weights in torch, on the device."""
        super().__init__(name, data)
        self._network = network
        self._device = device

    def encode_slab(
        self, samples: Samples, params: Params, workspace: Workspace, out: Samples | None = None
    ) -> tuple[bytes, Samples]:
        """As the `NativeModel` does, in ten times the time."""
        depth = self._depth_by_trial(samples, params, workspace)
        targets = self._targets(samples, params, workspace, depth)
        return self.encode_bands(samples, params, workspace, depth, targets, out)[:2]

    def _depth_by_trial(self, samples: Samples, params: Params, workspace: Workspace) -> int:
        """The depth of least squared error + RDO_LAMBDA bits."""
        costs = {}
        for depth in transform.DEPTHS[: 1 + transform.DEPTHS.index(max_depth(len(samples)))]:
            run, decoded, _ = self.encode_bands(samples, params, workspace, depth)
            error = (decoded - samples) / params.step
            costs[depth] = float(np.square(error).sum()) + RDO_LAMBDA * 8 * len(run)
        return min(costs, key=costs.__getitem__)

    def _targets(
        self, samples: Samples, params: Params, workspace: Workspace, depth: int
    ) -> NDArray[np.float32]:
        """Bands shifted against the gradient of the bits that depend on them, at 8 u + w.

        A coefficient moves to where squared error + RDO_LAMBDA bits is least if each of its steps
        costs other symbols as much as on the mean of RDO_ITERATIONS trials and 0. (The gradients of
        one trial are noisy, because symbols are integers.)
        """
        step = integer_step(params)
        coefficients = functions.analysis(samples, step / (1 << STEP_BITS + 4))
        y = transform.analysis_across(self._in_torch(coefficients)[None], depth)[0]
        rate = torch.tensor([rate_class(step, params.peak)], device=self._device)
        mean, targets = torch.zeros_like(y), y
        for n in range(RDO_ITERATIONS):
            bands = self.encode_bands(samples, params, workspace, depth, _at_places(targets))[2]
            coded = self._in_torch(bands)
            gradient = dependent_rate_gradient(self._network, coded, y, depth, rate)
            gradient.clamp_(-MAX_RATE_GRADIENT, MAX_RATE_GRADIENT)
            mean += gradient.sub_(mean).div_(n + 2)
            targets = y - 8 * RDO_LAMBDA * mean
        return _at_places(targets)

    def _in_torch(self, bands: NDArray[np.float32] | Bands) -> torch.Tensor:
        """Coefficients at 8 u + w -> float32 in torch's order."""
        ordered = bands[..., _PLACES].astype(np.float32, order="C")
        return torch.from_numpy(ordered).to(self._device)


def _at_places(bands: torch.Tensor) -> NDArray[np.float32]:
    """The inverse of `_in_torch`."""
    out = np.empty(bands.shape, np.float32)
    out[..., _PLACES] = bands.cpu().numpy()
    return out
