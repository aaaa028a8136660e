"""format/maps.md: what the C core writes, the reference decoder reads."""

from __future__ import annotations

import numpy as np
import pytest
from reference_decoder.maps import LabelMap, floats

from mricodec.codec.native import float_cells, label_map


@pytest.mark.parametrize("labels", [1, 2, 6, 40000])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 12, 40), (1, 2, 150), (4, 30, 5)])
def test_label_maps(shape: tuple[int, int, int], labels: int) -> None:
    rng = np.random.default_rng(labels)
    k, j, i = np.indices(shape)
    samples = (i // 30 + (j > 7) + (k > 1)) % labels
    samples = np.where(rng.random(shape) < 0.03, rng.integers(0, labels, shape), samples)
    run = label_map.encode(samples.astype(np.int32), 40000)
    assert np.array_equal(LabelMap(run, shape, 40000).samples(), samples)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)])
@pytest.mark.parametrize("kind", ["noise", "half", "exact", "wide"])
def test_floats(kind: str, dtype: np.dtype[np.floating]) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (2, 20, 20))
    values[0] = np.where(values[0] < 0, 0, values[0])
    values[1, 0, :3] = np.nan, -0.0, np.inf
    if kind == "half":
        values = values.astype(np.float16)
    elif kind == "exact":
        values = np.where(np.isfinite(values), np.rint(values * 8) / 8, values)
    elif kind == "wide":
        values = values * 2.0 ** rng.integers(-90, 90, values.shape)
    array = values.astype(dtype)
    cells = float_cells.choose(array)
    assert cells is not None
    parts = float_cells.split(array, cells)
    parameters = cells.cell, cells.grid, cells.mantissa
    decoded = floats(
        parts.classes, parts.samples, parts.bits, parameters, list(cells.specials), dtype
    )
    assert decoded.tobytes() == array.tobytes()
