"""The lossless coder gives every slab back, like the reference decoder, and is worth its name."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zstandard
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_decoder import predictive

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.models.lossless import encoder_search, fronts, prediction, side_info, slab_coder
from mricodec.models.lossless import tables as table_rows
from mricodec.models.training import lossless_tables


def encode(slab: NDArray[np.int32]) -> bytes:
    stream = EntropyEncoder()
    slab_coder.encode_slab(slab, stream)
    return stream.finish()


def decode(payload: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    stream = EntropyDecoder(payload)
    slab = slab_coder.decode_slab((shape[0], shape[1], shape[2]), stream)
    stream.finish()
    return slab


def restored(slab: NDArray[np.int32]) -> bytes:
    """The payload, having checked that it gives the slab back."""
    payload = encode(slab)
    again = decode(payload, slab.shape)
    assert again.dtype == np.int32 and again.shape == slab.shape and (again == slab).all()
    return payload


def scan_like(shape: tuple[int, int, int], sigma: float = 6.0, seed: int = 0) -> NDArray[np.int32]:
    """A bright smooth object with an edge, and noise that is stronger inside."""
    random = np.random.default_rng(seed)
    k, j, i = (np.linspace(-1, 1, n) for n in shape)
    radius = np.sqrt(k[:, None, None] ** 2 / 4 + j[:, None] ** 2 + i**2)
    inside = radius < 0.8
    mean = np.where(inside, 400 + 150 * np.cos(7 * radius) + 100 * j[:, None] * i, 10)
    noise = random.normal(size=shape) * np.where(inside, sigma, sigma / 4)
    return np.clip(np.rint(mean + noise), 0, None).astype(np.int32)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
PATTERNS = st.sampled_from(["noise", "walk", "sparse", "few", "ramp"])


@settings(max_examples=200, deadline=None)
@examples(
    SHAPES,
    st.integers(-(2**31), 2**31 - 2**24),
    st.integers(0, 2**24 - 1),
    PATTERNS,
    st.integers(0, 9),
)
def test_every_slab_comes_back(
    shape: tuple[int, int, int], low: int, span: int, pattern: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    if pattern == "noise":
        values = random.integers(0, span + 1, shape)
    elif pattern == "walk":
        values = np.clip(np.cumsum(random.integers(-3, 4, shape), axis=-1) + span // 2, 0, span)
    elif pattern == "sparse":
        values = np.where(random.random(shape) < 0.95, 0, random.integers(0, span + 1, shape))
    elif pattern == "few":
        values = random.integers(0, 4, shape) * (span // 3)
    else:
        values = (
            np.linspace(0, span, shape[0] * shape[1] * shape[2]).astype(np.int64).reshape(shape)
        )
    restored((values + low).astype(np.int32))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 1, 3000),
        (1, 3000, 1),
        (3000, 1, 1),
        (70, 5, 9),
        (33, 12, 7),
        (2, 1, 900),
        (5, 64, 1),
        (1, 90, 70),
    ],
)
def test_every_shape_comes_back(shape: tuple[int, int, int]) -> None:
    restored(scan_like(shape))
    restored(np.asfortranarray(scan_like(shape)))


@pytest.mark.parametrize("value", [0, 5, -(2**31), 2**31 - 1])
def test_a_constant_slab_is_next_to_nothing(value: int) -> None:
    assert len(restored(np.full((32, 64, 64), value, np.int32))) <= 8


def test_background_of_zeros_is_nearly_free() -> None:
    slab = np.zeros((16, 96, 96), np.int32)
    slab[:, 40:60, 30:50] = scan_like((16, 20, 20)) + 1
    inside = len(restored(np.ascontiguousarray(slab[:, 40:60, 30:50])))
    outside = len(restored(slab)) - inside
    assert outside * 8 < 0.06 * slab.size


def test_noise_hardly_expands() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (16, 64, 64)).astype(np.int32)
    assert len(restored(noise)) < noise.size * 2 * 1.03


def test_a_smooth_noisy_volume_is_far_smaller_than_with_zstd() -> None:
    slab = scan_like((24, 96, 96))
    planes = slab.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
    assert len(restored(slab)) < 0.75 * len(zstandard.compress(planes, 19))


def test_noise_costs_about_its_entropy() -> None:
    sigma = 6.0
    slab = np.rint(np.random.default_rng(1).normal(1000, sigma, (16, 96, 96))).astype(np.int32)
    entropy = 0.5 * np.log2(2 * np.pi * np.e * sigma**2)
    assert entropy < 8 * len(encode(slab)) / slab.size < entropy * 1.025


def test_values_with_gaps_are_packed() -> None:
    slab = scan_like((8, 64, 64))
    plain, spread = len(restored(slab)), len(restored(slab * 7 - 3))
    assert spread < plain * 1.02 + 100


def test_real_scans_are_far_smaller_than_with_zstd(data_dir: Path) -> None:
    for path in sorted(data_dir.glob("*.nii.gz")):
        image: Any = nibabel.load(path)  # type: ignore[attr-defined]
        voxels = np.asanyarray(image.dataobj.get_unscaled()).T
        slab = voxels.reshape(-1, *voxels.shape[-2:])[:16].astype(np.int32)
        planes = slab.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
        assert len(restored(slab)) < 0.85 * len(zstandard.compress(planes, 19))


def test_the_same_slab_gives_the_same_bytes() -> None:
    slab = scan_like((4, 40, 50))
    here = encode(slab)
    assert encode(slab.copy()) == here and encode(np.asfortranarray(slab)) == here
    program = (
        "import sys, numpy as np; sys.path[:0] = sys.argv[1:]; import test_lossless as t; "
        "sys.stdout.buffer.write(t.encode(t.scan_like((4, 40, 50))))"
    )
    path = [str(Path(__file__).parent), *sys.path]
    fresh = subprocess.run([sys.executable, "-c", program, *path], capture_output=True, check=True)
    assert fresh.stdout == here


def test_what_cannot_be_coded_is_refused() -> None:
    stream = EntropyEncoder()
    with pytest.raises(
        ValueError, match="expected values within 16777215 of each other, found a range of 16777216"
    ):
        slab_coder.encode_slab(np.array([[[0, 1 << 24]]], np.int32), stream)
    for slab in (
        np.zeros((0, 3, 3), np.int32),
        np.zeros((3, 3), np.int32),
        np.zeros((1, 1, 1), np.float32),
    ):
        with pytest.raises(ValueError, match="expected integer voxels"):
            slab_coder.encode_slab(slab, stream)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@examples(st.binary(max_size=400), SHAPES)
def test_any_bytes_decode_to_something_or_are_a_format_error(
    data: bytes, shape: tuple[int, int, int]
) -> None:
    """Nothing but FormatError, and nothing larger than the slab."""
    try:
        slab = decode(data[: len(data) & ~3], shape)
    except FormatError:
        return
    assert slab.shape == shape


def test_flipped_bits_decode_to_something_or_are_a_format_error() -> None:
    slab = scan_like((3, 20, 24))
    payload = bytearray(encode(slab))
    random = np.random.default_rng(0)
    for bit in [*range(256), *random.integers(256, 8 * len(payload), 50).tolist()]:
        payload[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FormatError):
            assert decode(bytes(payload), slab.shape).shape == slab.shape
        payload[bit // 8] ^= 1 << bit % 8


def reference_predictions(
    slab: NDArray[np.int32],
    border: int,
    predictor: fronts.Predictor,
    references: Sequence[NDArray[np.int32]] = (),
    filters: int = fronts.FILTERS,
) -> list[tuple[int, int, int, int]]:
    """(voxel, state, nearest, sign) of the reference decoder, in the order of the stream."""
    taps = predictive.Predictor(
        predictor.taps, predictor.coefficients.tolist(), predictor.reference_taps
    )
    shape = (slab.shape[0], slab.shape[1], slab.shape[2])
    model = predictive.PartModel(shape, int(slab.max()), border, taps, references, filters)
    result = []
    for front in predictive.fronts(shape):
        predictions = [model.predict(*voxel) for voxel in front]
        for voxel, p in zip(front, predictions, strict=True):
            model.learn(voxel, int(slab[voxel]), p)
            state = (p.variant * 128 + p.context) * 16 + p.fraction
            position = int(np.ravel_multi_index(voxel, shape))
            result.append((position, state, p.nearest, p.sign))
    return result


def predictions_of(
    walk: fronts.FrontPredictor, slab: NDArray[np.int32]
) -> list[tuple[int, int, int, int]]:
    """The same of the model."""
    predictions: list[tuple[int, int, int, int]] = []
    for front in walk.fronts():
        columns = (front.voxels, front.state, front.nearest, front.sign)
        predictions += zip(*(column.astype(int).tolist() for column in columns), strict=True)
        walk.put(slab.reshape(-1)[front.voxels].astype(np.float64))
    return predictions


def extreme(shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """As rough as 24 bits can be."""
    slab = np.random.default_rng(0).integers(0, 2, shape) * ((1 << 24) - 1)
    slab[:, shape[1] // 2 :] = np.random.default_rng(1).integers(
        0, 1 << 24, slab[:, shape[1] // 2 :].shape
    )
    return slab.astype(np.int32)


@pytest.mark.parametrize("make", [scan_like, extreme])
@pytest.mark.parametrize(
    "shape", [(1, 9, 13), (2, 12, 10), (5, 11, 14), (4, 16, 1), (3, 2, 20), (6, 1, 1)]
)
def test_predictions_are_those_of_the_format(make: Any, shape: tuple[int, int, int]) -> None:
    slab = make(shape)
    slab -= slab.min()
    random = np.random.default_rng(2)
    taps = tuple(tap for tap in fronts.CANDIDATES if random.random() < 0.5)
    coefficients = random.integers(-3000, 3000, (3, len(taps))).astype(np.int32)
    coefficients[:, 0] += 1 << 13
    for stage in range(3):
        coefficients[stage, [-t > stage for t, _, _ in taps]] = 0
    for predictor in (fronts.shipped().predictor, fronts.Predictor(taps, coefficients)):
        reference = reference_predictions(slab, 37, predictor)
        model = fronts.FrontModel(predictor, fronts.shipped().scale_weights)
        walk = fronts.FrontPredictor(shape, int(slab.max()), 37, model)
        predicted = predictions_of(walk, slab)
        assert sorted(voxel for voxel, _, _, _ in predicted) == list(range(slab.size))
        assert predicted == reference


@pytest.mark.parametrize("make", [scan_like, extreme])
@pytest.mark.parametrize(
    "shape", [(1, 9, 13), (2, 12, 10), (5, 70, 140), (4, 16, 1), (3, 1, 20), (6, 1, 1)]
)
def test_vectorized_predictions_are_those_front_by_front(
    make: Any, shape: tuple[int, int, int]
) -> None:
    slab = make(shape)
    slab -= slab.min()
    references = [np.roll(slab, 1, axis=1)]
    random = np.random.default_rng(2)
    reference_taps = tuple((0, tap) for tap in fronts.REFERENCE_CANDIDATES if random.random() < 0.6)
    coefficients = random.integers(
        -900, 900, (3, len(fronts.CANDIDATES) + len(reference_taps))
    ).astype(np.int32)
    for stage in range(3):
        coefficients[
            stage, [-t > stage for t, _, _ in fronts.CANDIDATES] + [False] * len(reference_taps)
        ] = 0
    fitted = fronts.Predictor(fronts.CANDIDATES, coefficients, reference_taps)
    for predictor in (fitted, fronts.shipped().predictor):
        side = side_info.Side(
            0, int(slab.max()), border=37, filters=fronts.NO_FILTERS, predictor=predictor
        )
        fast = prediction.predict(slab, side, 0, references)
        slow = prediction.predict(slab, side, 0, references, centre=slab)
        assert fast.sizes == [size for size in slow.sizes if size]
        np.testing.assert_array_equal(fast.state, slow.state)
        np.testing.assert_array_equal(fast.error, slow.error)


@pytest.mark.parametrize("filters", [fronts.NO_FILTERS, fronts.FILTERS, fronts.LONG_FILTERS])
def test_predictions_from_references_are_those_of_the_format(filters: int) -> None:
    shape = (4, 9, 11)
    slab = scan_like(shape)
    slab -= slab.min()
    references = [
        np.clip(slab + n - np.random.default_rng(n).integers(0, 9, shape), 0, None) for n in (1, 2)
    ]
    random = np.random.default_rng(2)
    reference_taps = tuple(
        (r, tap) for r in (0, 1) for tap in fronts.REFERENCE_CANDIDATES if random.random() < 0.6
    )
    taps = fronts.CANDIDATES[:20]
    coefficients = random.integers(-900, 900, (3, len(taps) + len(reference_taps))).astype(np.int32)
    predictor = fronts.Predictor(taps, coefficients, reference_taps)
    model = fronts.FrontModel(predictor, fronts.shipped().scale_weights, filters)
    walk = fronts.FrontPredictor(shape, int(slab.max()), 3, model, references)
    reference = reference_predictions(slab, 3, predictor, references, filters)
    assert predictions_of(walk, slab) == reference


@settings(max_examples=60, deadline=None)
@examples(SHAPES, st.integers(0, 40), st.integers(0, 2), st.booleans(), st.integers(0, 9))
def test_every_slab_comes_back_within_its_bound(
    shape: tuple[int, int, int], bound: int, count: int, sparse: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    slab = (random.normal(200, 40, shape) * ((random.random(shape) < 0.3) if sparse else 1)).astype(
        np.int32
    )
    references = [(slab + random.integers(-9, 10, shape)).astype(np.int32) for _ in range(count)]
    stream = EntropyEncoder()
    decoded = slab_coder.encode_slab(slab, stream, max_error=bound, references=references)
    assert (
        np.abs(decoded - slab).max() <= bound
        and slab.min() <= decoded.min()
        and decoded.max() <= slab.max()
    )
    reader = EntropyDecoder(stream.finish())
    assert (
        slab_coder.decode_slab(shape, reader, max_error=bound, references=references) == decoded
    ).all()
    reader.finish()


@settings(max_examples=40, deadline=None)
@examples(SHAPES, st.integers(1, table_rows.MAX_WITHIN), st.integers(0, 9))
def test_every_slab_comes_back_from_a_bounded_layer(
    shape: tuple[int, int, int], within: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    slab = random.normal(200, 30, shape).astype(np.int32)
    layer = (slab + random.integers(-within, within + 1, shape)).astype(np.int32)
    stream = EntropyEncoder()
    slab_coder.encode_slab(slab, stream, references=[layer], within=within)
    reader = EntropyDecoder(stream.finish())
    assert (slab_coder.decode_slab(shape, reader, references=[layer], within=within) == slab).all()


def test_skewed_tables_are_those_of_the_format() -> None:
    skews = np.random.default_rng(0).integers(-32, 33, (5, 33))
    skews[1] = 0
    tables = table_rows.skewed_tables(skews)
    assert tables.weights.shape == (9 * 92, 82) and tables.variants == 9
    assert tables.weights.tolist() == predictive.skewed_weights(skews.tolist())


def test_skews_are_worth_it_where_noise_is_skewed(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    slab = np.rint(np.hypot(*random.normal(0, 20, (2, 6, 128, 128)))).astype(np.int32)
    skewed = restored(slab)
    # The entropy of a Rayleigh distribution of sigma 20, in bits:
    # log2(20) + (1 + 0.5772 / 2) / ln 2 - 1 / 2 = 5.68.
    assert 5.68 < 8 * len(skewed) / slab.size < 1.02 * 5.68
    monkeypatch.setattr(encoder_search, "choose_skews", lambda *_: side_info.NO_SKEWS)
    assert len(skewed) < 0.99 * len(restored(slab))


def test_long_filters_and_far_neighbours_decode() -> None:
    slab = scan_like((5, 40, 44))
    sizes = []
    for effort in (slab_coder.FAST, slab_coder.DEFAULT, slab_coder.HIGH):
        stream = EntropyEncoder()
        slab_coder.encode_slab(slab, stream, effort=effort)
        sizes.append(len(stream.finish()))
        assert (decode(stream.finish(), slab.shape) == slab).all()
    assert sizes[2] < 1.01 * sizes[1] < 1.02 * sizes[0]


def test_tables_within_a_bound_are_those_of_the_format() -> None:
    for within in (1, 3, table_rows.MAX_WITHIN):
        tables = table_rows.within_tables(within)
        assert tables.low == -within and tables.octave == 0
        assert tables.weights.tolist() == predictive.within_weights(within)


def test_indices_of_distributions_stay_within_the_tables() -> None:
    index = table_rows.index_of_distribution()
    assert index.shape == (fronts.DISTRIBUTIONS, 16) and not index[0].any() and index[1:].all()
    assert index[1:, 0].tolist() == sorted(set(index[1:, 0].tolist()))
    tables = fronts.shipped().tables["voxel"]
    assert (
        tables.weights.shape == (fronts.ROWS, 2 * fronts.TOKEN_MAX + 2)
        and tables.low == -fronts.TOKEN_MAX
    )


def test_shipped_tables_are_those_of_the_formulas() -> None:
    """Up to the last bit of an exponential."""
    tables, shipped = (
        lossless_tables.voxel_tables().astype(np.int64),
        fronts.shipped().tables["voxel"].weights.astype(np.int64),
    )
    assert np.abs(tables - shipped).max() < 100
    assert (lossless_tables.byte_table() == fronts.shipped().tables["byte"].weights).all()
    assert (
        fronts.shipped().scale_weights.sum(axis=1).max() <= 4096
    )  # so that a scale stays below 2**28


def test_chosen_tables_cost_what_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they are not skewed."""
    monkeypatch.setattr(encoder_search, "choose_skews", lambda index, error: side_info.NO_SKEWS)
    slab = scan_like((8, 64, 64))
    slab -= slab.min()
    side = side_info.Side(
        0,
        int(slab.max()),
        border=encoder_search.choose_border(slab),
        predictor=encoder_search.fit_predictor(slab),
    )
    predicted = prediction.predict(slab, side)
    state, error = predicted.state, predicted.error
    assert sum(predicted.sizes) == state.size == error.size == slab.size
    distributions = encoder_search.choose_distributions(state, error)
    bits = 0.0
    contexts = (state >> 4) % encoder_search.CONTEXTS  # above them: the variant of the tables
    for context in np.unique(contexts).tolist():
        chosen = contexts == context
        if distributions[context]:
            bits += encoder_search.cost(
                int(distributions[context]), (state[chosen] & 15).astype(np.intp), error[chosen]
            )
    payload = len(encode(slab))
    assert bits / 8 < payload < bits / 8 * 1.01 + 400
