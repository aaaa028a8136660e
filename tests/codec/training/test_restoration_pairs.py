"""Pairs for the restoration filter: what is kept is what the default model decodes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.coders.base import LossyParams
from mricodec.codec.training import restoration_pairs as pairs
from mricodec.codec.training.cache import Slab
from mricodec.models.loader import load_model
from mricodec.models.lossy.codec import ContextLossy


def slab(geometry: str = "thick", axis: int = 0, seed: int = 0) -> Slab:
    """A smooth object in noise, 10 slices of 40 x 52, cut along `axis`."""
    rng = np.random.default_rng(seed)
    k, j, i = np.mgrid[-1:1:10j, -1:1:40j, -1:1:52j]
    voxels = 400 * (k**2 + j**2 + i**2 < 1) * (1 + 0.3 * np.sin(9 * j)) + rng.normal(50, 5, k.shape)
    stored = np.moveaxis(voxels.round().astype(np.int16), 0, axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.0
    return Slab(f"train/{geometry}", "train", stored, (*spacing,), geometry, "MIT", 0, axis, 0)


@pytest.fixture(scope="module")
def model() -> pairs.CapturingCodec:
    default = load_model()
    assert isinstance(default, ContextLossy)
    return pairs.capturing(default)


def samples(item: Slab) -> np.ndarray:
    x = np.moveaxis(item.voxels, item.axis, 0).astype(np.int32)
    return np.ascontiguousarray(x - x.min())


def test_v_is_the_output_of_the_decoder(model: pairs.CapturingCodec) -> None:
    x = samples(slab())
    pair = pairs.code_pair(model, slab(), x, 40.0, 3.0)
    default = load_model()
    params = LossyParams(pair.info.step, pair.info.peak, (3.0, 1.0, 1.0))
    stream = EntropyEncoder()
    default.encode(x[None], params.step, SlabStreams([stream]), params)
    payload = stream.finish()
    assert pair.info.bits == 8 * len(payload) / x.size
    decoder = SlabStreams([EntropyDecoder(payload)])
    decoded = default.decode((1, *x.shape), params, decoder)[0]
    assert pair.v.shape == (10, 40, 56)
    again = np.floor(pair.v[:, :, :52] * (params.step / pairs.UNITS) + 0.5)
    # The decoder rounds to 1/16 of a step first.
    assert np.abs(again - decoded).max() <= 1 + params.step / 32
    exact = (pair.v + pair.error)[:, :, :52] * (params.step / pairs.UNITS)
    assert np.abs(exact - x).max() <= 0.51 * params.step / pairs.UNITS + 0.01


def test_mse_is_that_of_the_decoder_in_steps(model: pairs.CapturingCodec) -> None:
    pair = pairs.code_pair(model, slab(), samples(slab()), 30.0, 3.0)
    v = np.maximum(pair.v, 0) / pairs.UNITS
    original = (pair.v + pair.error) / pairs.UNITS
    mse = np.square(v - original)[:, :, :52].mean()
    assert pair.info.mse == pytest.approx(mse, rel=1e-3)
    assert 0.001 < mse < 0.2


def test_pairs_are_the_same_whenever_they_are_made(
    model: pairs.CapturingCodec, tmp_path: Path
) -> None:
    slabs = [slab("thick"), slab("near-isotropic", seed=1), slab("dwi", axis=2, seed=2)]

    def make(n: int) -> pairs.Pair | None:
        return pairs.training_pair(model, slabs, 7, n) if n < 3 else None

    lines: list[str] = []
    pairs.write_pairs(tmp_path, make, 2, lines.append)
    pairs.write_pairs(tmp_path, make, 9, lines.append)
    assert len(lines) == 3 and len(list(tmp_path.iterdir())) == 3
    for n, pair in enumerate(pairs.read_pairs(tmp_path)):
        again = make(n)
        assert again is not None and pair.info == again.info
        assert np.array_equal(pair.v, again.v) and np.array_equal(pair.error, again.error)
        assert pair.info.row % 8 == pair.info.column % 8 == 0
        assert pairs.QUALITIES[0] <= pair.info.quality <= pairs.QUALITIES[1]


def test_one_validation_slab_of_each_scan_at_all_qualities(model: pairs.CapturingCodec) -> None:
    held = slab("near-isotropic")
    train = slab("thick")
    validation = Slab(
        **{**vars(slab("dwi", axis=1)), "split": "validation", "name": "validation/x"}
    )
    chosen = pairs.validation_slabs([train, held, validation], [held.name])
    assert [item.name for item in chosen] == ["validation/x", held.name]
    count = len(pairs.VALIDATION_QUALITIES)
    pair = pairs.validation_pair(model, chosen, count - 1)
    assert pair is not None
    assert (pair.info.name, pair.info.ratio) == ("validation/x", 3.0)
    assert pair.info.quality == pairs.VALIDATION_QUALITIES[-1]
    assert pairs.validation_pair(model, chosen, 2 * count) is None
