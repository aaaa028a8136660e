"""Makes the shipped file of the lossless coder: ``python -m
mricodec.models.training.lossless_tables DATA_DIR``.

Probability tables come from formulas; the weights of the local scale and the predictor of small
slabs are fitted to the scans of DATA_DIR/train. What a stream decodes to depends on every number of
the file, so its digest, which is printed, stands in `fronts`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import normalised
from mricodec.models.lossless import encoder_search, fronts
from mricodec.models.lossless.fronts import (
    FEATURES,
    FINE,
    FIRST_FINE,
    FRACTIONS,
    GRADIENTS,
    NODES,
    OCTAVE,
    SCALE_BITS,
    SPIKES,
    STAGES,
    TOKEN_MAX,
    UNIT,
    WEIGHTS,
    Float,
    Front,
    FrontModel,
    FrontPredictor,
    Predictor,
    Tap,
)

SLICES, SIDE = 12, 192  # of a scan, from its middle
ROUNDS = 3
SMALL_TAPS: tuple[Tap, ...] = (
    *((0, i, j) for i, j in ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))),
    *((-1, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)),
)


def main(data: Path) -> None:
    from safetensors.numpy import save_file

    slabs = list(_slabs(data / "train"))
    errors = len(fronts.ERRORS)
    scale_weights = np.zeros((2, FEATURES))
    scale_weights[:, :errors] = 0.6 / errors
    scale_weights[:, errors:] = 0.1 / len(GRADIENTS)
    scale_weights = np.rint(scale_weights * (1 << SCALE_BITS))
    for _ in range(ROUNDS):
        scale_weights = fit_scale_weights(slabs, scale_weights)
    save_file(
        {
            "tables.voxel": voxel_tables(),
            "tables.byte": byte_table(),
            "tables.place": nodes(),
            "scale.weights": scale_weights.astype(np.int32),
            "predictor.taps": np.array(SMALL_TAPS, np.int32),
            "predictor.coefficients": small_predictor(slabs).coefficients,
        },
        WEIGHTS,
    )
    WEIGHTS.chmod(0o644)
    print(f'WEIGHTS_SHA256 = "{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}"')


def _slabs(folder: Path) -> Iterator[NDArray[np.int32]]:
    """The middle of every integer scan, least value 0."""
    import nibabel

    for path in sorted(folder.glob("*.nii.gz")):
        scan = nibabel.load(path)
        voxels = np.asanyarray(scan.dataobj.get_unscaled()).T  # type: ignore[attr-defined]
        while voxels.ndim > 3:
            voxels = voxels[0]
        middle = tuple(
            slice(max(0, (n - size) // 2), max(0, (n - size) // 2) + size)
            for n, size in zip(voxels.shape, (SLICES, SIDE, SIDE), strict=True)
        )
        part = voxels[middle].astype(np.int32)
        yield part - part.min()


def voxel_tables() -> NDArray[np.uint32]:
    """[ROWS, 2 TOKEN_MAX + 2]: row 0, which is never used, then the rows of
    `tables.index_of_distribution`.
    """
    rows = [
        normalised(np.ones(2 * TOKEN_MAX + 2)),
        *(_spike(2.0 ** -(4 + 2 * n)) for n in range(SPIKES)),
    ]
    distance = np.arange(UNIT // 2 + 1)
    fraction = distance * FRACTIONS // distance.size
    for n in range(FINE):
        scale = 2.0 ** (n / OCTAVE - 3)
        rows += [_discretised(scale, distance[fraction == f] / UNIT) for f in range(FRACTIONS)]
    rows += [_discretised(2.0 ** (n / OCTAVE + 2), distance / UNIT) for n in range(OCTAVE)]
    return np.stack(rows)


def nodes() -> NDArray[np.int8]:
    """[ROWS, 2 TOKEN_MAX + 1]: the node of a skew for each value of a row: its distance from the
    prediction, in quarters of the scale, rounded, between -16 and 16, and 16 more. Rows without a
    scale have node 16 throughout.
    """
    value = np.arange(-TOKEN_MAX, TOKEN_MAX + 1)
    distance = np.arange(UNIT // 2 + 1)
    fraction = distance * FRACTIONS // distance.size
    rows = [0 * value] * FIRST_FINE
    for n in range(FINE):
        scale = 2.0 ** (n / OCTAVE - 3)
        rows += [(value - distance[fraction == f].mean() / UNIT) / scale for f in range(FRACTIONS)]
    rows += [(value - distance.mean() / UNIT) / 2.0 ** (n / OCTAVE + 2) for n in range(OCTAVE)]
    last = NODES // 2
    return (np.clip(np.rint(4 * np.stack(rows)), -last, last) + last).astype(np.int8)


def byte_table() -> NDArray[np.uint32]:
    """[1, 257]: bytes, all alike."""
    return normalised(np.append(np.full(256, 1.0), 0.0))[None]


def _spike(other: float) -> NDArray[np.uint32]:
    """0 but for a probability `other`, half of which is small values, half escapes."""
    size = np.abs(np.arange(-TOKEN_MAX, TOKEN_MAX + 1)).astype(np.float64)
    size[TOKEN_MAX] = np.inf
    values = other / 2 / size / (1 / size).sum()
    values[TOKEN_MAX] = 1 - other
    return normalised(np.append(values, other / 2))


def _discretised(scale: float, distances: Float) -> NDArray[np.uint32]:
    """A logistic density of this standard deviation, 1/64 of it thrice as wide, centred on the
    distances.
    """

    def below(z: Float) -> Float:
        slope = np.pi / np.sqrt(3) / scale
        near, far = (1 / (1 + np.exp(-np.clip(z * s, -500, 500))) for s in (slope, slope / 3))
        cumulative: Float = near * (63 / 64) + far / 64
        return cumulative

    edges = np.arange(-TOKEN_MAX, TOKEN_MAX + 2) - 0.5
    values = np.mean([np.diff(below(edges - d)) for d in distances], axis=0)
    return normalised(np.append(values, max(1 - values.sum(), 0.0)))


def small_predictor(slabs: Iterable[NDArray[np.int32]]) -> Predictor:
    """One least-squares fit to all slabs, which weigh alike."""
    coefficients = np.zeros((STAGES, len(SMALL_TAPS)))
    random = np.random.default_rng(0)
    for stage in range(2):
        there = [k for k, tap in enumerate(SMALL_TAPS) if -tap[0] <= stage]
        information, moment = np.zeros((len(there), len(there))), np.zeros(len(there))
        for slab in slabs:
            taps = [SMALL_TAPS[k] for k in there]
            one, other = encoder_search.normal_equations(
                encoder_search.Data(slab, slab), taps, stage, len(slab), random
            )
            information += one / np.trace(one)
            moment += other / np.trace(one)
        coefficients[stage:, there] = np.linalg.solve(information, moment)
    return Predictor(SMALL_TAPS, encoder_search.whole_coefficients(coefficients))


class _Recorder(FrontPredictor):
    """Keeps the features and errors of some voxels, by whether they are in the first slice."""

    def __init__(self, slab: NDArray[np.int32], predictor: Predictor, scale_weights: Float) -> None:
        shape = (slab.shape[0], slab.shape[1], slab.shape[2])
        super().__init__(
            shape,
            int(slab.max()),
            encoder_search.choose_border(slab),
            FrontModel(predictor, scale_weights),
        )
        self.kept: list[Float] = []
        flat = slab.reshape(-1)
        for front in self.fronts():
            self._record(
                front, flat[front.voxels].astype(np.float64), height=slab.shape[1] * slab.shape[2]
            )

    def _record(self, front: Front, values: Float, height: int) -> None:
        features = self._features[:, self._pending.lanes]
        self.put(values)
        error = np.abs(values * UNIT - self._pending.prediction)
        self.kept.append(
            np.concatenate([features, error[None], front.voxels[None] < height])[:, ::4]
        )


def fit_scale_weights(slabs: Iterable[NDArray[np.int32]], scale_weights: Float) -> Float:
    """[2, FEATURES]: first slices, others; the mean over the slabs of those that foretell |errors|
    best.

    scale_weights: those that the filters work with meanwhile.
    """
    by_stage: list[list[Float]] = [[], []]
    for slab in slabs:
        kept = np.concatenate(
            _Recorder(slab, encoder_search.fit_predictor(slab), scale_weights).kept, axis=1
        )
        for later in (0, 1):
            chosen = kept[:-1, kept[-1] != later]
            features = np.concatenate([chosen[:-1], np.full((1, chosen.shape[1]), float(UNIT))])
            by_stage[later].append(_likeliest(features, chosen[-1])[:-1])
    weights = np.array([np.mean(of_stage, axis=0) for of_stage in by_stage])
    weights[0, [k for k, taps in enumerate(_feature_taps()) if taps[0][0] < 0]] = 0
    whole: Float = np.rint(weights * (1 << SCALE_BITS))
    return whole


def _feature_taps() -> list[tuple[Tap, ...]]:
    return [*((tap,) for tap in fronts.ERRORS), *GRADIENTS]


def _likeliest(features: Float, error: Float) -> Float:
    """Weights >= 0 with weights @ features ~ |error|, by multiplicative updates of weighted least
    squares.
    """
    weights = np.full(len(features), error.mean() / features.sum(axis=0).mean())
    for _ in range(60):
        scale = weights @ features + 1e-3
        weights *= (features @ (error / scale**2) + 1e-12) / (features @ (1 / scale) + 1e-12)
    return weights


if __name__ == "__main__":
    main(Path(sys.argv[1]))
