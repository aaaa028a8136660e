"""A slab after its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import vectorized
from .fronts import NO_FILTERS, UNIT, FrontModel, FrontPredictor, shipped
from .side_info import Side


@dataclass(frozen=True, eq=False)
class Predicted:
    """A slab [K, H, W] after prediction, in the order of its fronts."""

    state: NDArray[np.int16]  # [voxels], see `fronts.Front`.
    error: NDArray[np.int32]  # [voxels], in steps of 2 * max_error + 1.
    sizes: list[int]  # The voxels of each front.
    decoded: NDArray[np.int32]  # [K, H, W]
    # [voxels], from the centre to the integer next to the prediction, with the sign of the errors.
    shift: NDArray[np.int64]


def predict(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int = 0,
    references: Sequence[NDArray[np.int32]] = (),
    *,
    centre: NDArray[np.int32] | None = None,
) -> Predicted:
    """Contexts and errors of a slab [K, H, W]; all of `side` but its distributions is used.

    centre: a known array from which the shift is returned, too.
    """
    if side.filters == NO_FILTERS and max_error == 0 and centre is None:
        return _predict_vectorized(slab, side, references)
    flat = slab.reshape(-1)
    state, error = np.empty(flat.size, np.int16), np.empty(flat.size, np.int32)
    centres = None if centre is None else centre.reshape(-1)
    shift = np.zeros(0 if centre is None else flat.size, np.int64)
    decoded = slab if max_error == 0 else np.empty_like(flat)
    sizes: list[int] = []
    start = 0
    step = 2 * max_error + 1
    walk = front_predictor(slab.shape, side, references)
    for front in walk.fronts():
        values = flat[front.voxels].astype(np.float64)
        end = start + values.size
        state[start:end] = front.state
        if centres is not None:
            shift[start:end] = (front.nearest - centres[front.voxels]) * front.sign
        if max_error == 0:
            error[start:end] = (values - front.nearest) * front.sign
        else:
            nearest = snapped(front.nearest, side, max_error)
            steps = np.floor((values - nearest + (max_error + 0.5)) * (1 / step))
            error[start:end] = steps * front.sign
            values = np.clip(nearest + steps * step, 0, side.largest)
            decoded[front.voxels] = values
        walk.put(values)
        sizes.append(end - start)
        start = end
    if max_error:
        state &= ~(UNIT - 1)
    return Predicted(state, error, sizes, decoded.reshape(slab.shape), shift)


def _predict_vectorized(
    slab: NDArray[np.int32], side: Side, references: Sequence[NDArray[np.int32]]
) -> Predicted:
    states, errors = vectorized.states(slab, side.largest, side.border, side.predictor, references)
    order, counts = vectorized.front_order((slab.shape[0], slab.shape[1], slab.shape[2]))
    no_shift = np.zeros(0, np.int64)
    return Predicted(states.reshape(-1)[order], errors.reshape(-1)[order], counts, slab, no_shift)


def front_predictor(
    shape: tuple[int, ...], side: Side, references: Sequence[NDArray[np.int32]]
) -> FrontPredictor:
    slices, height, width = shape
    model = FrontModel(side.predictor, shipped().scale_weights, side.filters)
    return FrontPredictor((slices, height, width), side.largest, side.border, model, references)


def snapped(nearest: NDArray[np.float64], side: Side, max_error: int) -> NDArray[np.float64]:
    """Predictions, those within the bound of the least value replaced by it: it stays exact."""
    return np.where(nearest <= max_error, 0.0, nearest) if side.snap else nearest
