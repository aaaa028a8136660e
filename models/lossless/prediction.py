"""A slab after its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import vectorized as whole
from .fronts import NO_FILTERS, UNIT, Wavefront, shipped
from .side_info import Side


@dataclass(frozen=True, eq=False)
class Predicted:
    """A slab [K, H, W] after prediction, in the order of its planes."""

    context: NDArray[np.int16]  # [voxels]
    error: NDArray[np.int32]  # [voxels], in steps of 2 * max_error + 1
    sizes: list[int]  # voxels of each plane
    decoded: NDArray[np.int32]  # [K, H, W]
    shift: NDArray[
        np.int64
    ]  # [voxels], from the centre to the integer next to the prediction, as errors are coded


def predict(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int = 0,
    references: Sequence[NDArray[np.int32]] = (),
    *,
    centre: NDArray[np.int32] | None = None,
) -> Predicted:
    """Contexts and errors of a slab [K, H, W]; of `side` all but its kinds is used. centre: the shift from it is told too."""
    if side.filters == NO_FILTERS and max_error == 0 and centre is None:
        contexts, errors = whole.contexts(
            slab, side.largest, side.border, side.predictor, references
        )
        order, counts = whole.plane_order((slab.shape[0], slab.shape[1], slab.shape[2]))
        return Predicted(
            contexts.reshape(-1)[order],
            errors.reshape(-1)[order],
            counts,
            slab,
            np.zeros(0, np.int64),
        )
    flat = slab.reshape(-1)
    context, error = np.empty(flat.size, np.int16), np.empty(flat.size, np.int32)
    centres = None if centre is None else centre.reshape(-1)
    shift = np.zeros(0 if centre is None else flat.size, np.int64)
    decoded = slab if max_error == 0 else np.empty_like(flat)
    sizes: list[int] = []
    start = 0
    step = 2 * max_error + 1
    wavefront = _wavefront(slab.shape, side, references)
    for plane in wavefront.planes():
        values = flat[plane.voxels].astype(np.float64)
        end = start + values.size
        context[start:end] = plane.context
        if centres is not None:
            shift[start:end] = (plane.nearest - centres[plane.voxels]) * plane.sign
        if max_error == 0:
            error[start:end] = (values - plane.nearest) * plane.sign
        else:
            nearest = _snapped(plane.nearest, side, max_error)
            steps = np.floor((values - nearest + (max_error + 0.5)) * (1 / step))
            error[start:end] = steps * plane.sign
            values = np.clip(nearest + steps * step, 0, side.largest)
            decoded[plane.voxels] = values
        wavefront.put(values)
        sizes.append(end - start)
        start = end
    if max_error:
        context &= ~(UNIT - 1)
    return Predicted(context, error, sizes, decoded.reshape(slab.shape), shift)


def _wavefront(
    shape: tuple[int, ...], side: Side, references: Sequence[NDArray[np.int32]]
) -> Wavefront:
    slices, height, width = shape
    return Wavefront(
        (slices, height, width),
        side.largest,
        side.border,
        side.predictor,
        shipped().scale_weights,
        references,
        adaptive=side.filters,
    )


def _snapped(nearest: NDArray[np.float64], side: Side, max_error: int) -> NDArray[np.float64]:
    """With a bound, predictions that the least value would do for as well are taken for it: it stays exact."""
    return np.where(nearest <= max_error, 0.0, nearest) if side.snap else nearest
