"""Networks and their integer arithmetic: arrays <-> integer symbols and probability-table indices.

    from mricodec import models

    models.names()                        # default, hyperprior, ...
    net = models.load("hyperprior")       # a torch module; x [N, 1, H, W] in 0 ... 1
    out = net(x, level=6)                 # {"x_hat": ..., "likelihoods": {"y": ..., "z": ...}}
    coded = net.compress(x, level=6)      # {"strings": [...], "shape": ...}
    net.decompress(coded["strings"], coded["shape"], level=6)["x_hat"]

models/README.md says more. torch is imported when a model is loaded.
"""

from __future__ import annotations

import os
from typing import Any

# OpenMP reads this when torch is loaded, which no module outside this package does before. Threads
# that spin while they wait take ten times the processor's time, and eight times as long, on a
# machine that does other work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def names() -> list[str]:
    """Names of the shipped models, the default first; no torch."""
    from . import zoo

    return zoo.names()


def load(model: str | os.PathLike[str] = "default", *, device: str = "cpu") -> Any:
    """A model of `names()`, or of a file that `mricodec train` wrote, ready to compress or to be
    trained further.

    Coders of slices are torch modules (see `lossy.slice_coder.SliceCoder`); `default` is an object
    with `compress`, `decompress` and its `network`. Parameters want gradients, in evaluation mode
    until `.train()`. ValueError for an unknown name or unfit weights, OSError for a file that can't
    be read, extras.MissingExtra without torch.
    """
    from .extras import require_torch

    require_torch("models.load")
    from .loader import load_model
    from .lossy.transform_codec import TransformLossy
    from .zoo import UnknownModelError

    try:
        loaded = load_model(model, device=device)
    except UnknownModelError as error:
        raise ValueError(str(error)) from error
    loaded.network.requires_grad_(True)
    return loaded.network if isinstance(loaded, TransformLossy) else loaded
