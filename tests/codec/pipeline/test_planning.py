"""The plan of a scan: coder, mode, head and reason follow from analysis and settings alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from nifti_files import smooth, voxels
from numpy.typing import NDArray

from mricodec.bitstream.header import LEARNED, LEARNED_INEXACT, PREDICTIVE, STORE, Flags, Mode
from mricodec.codec import tiling as tilings
from mricodec.codec.coders.learned import LearnedCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.store import StoreCoder
from mricodec.codec.pipeline import layers
from mricodec.codec.pipeline.analysis import Analysis
from mricodec.codec.pipeline.heads import LossyHead, PredictiveHead
from mricodec.codec.pipeline.planning import CHAIN, Plan, make_coder, plan
from mricodec.codec.settings import LAYER_QUALITY, EncodeSettings
from mricodec.codec.voxels import quality
from mricodec.codec.voxels.intensity import Statistics
from mricodec.codec.voxels.mappings import AffineMap, SampleMap, exact_map

SIGMA = 5.0
SHAPE = (8, 64, 64)


def analysis_of(
    array: NDArray[Any], sigma: float = SIGMA, *, labels: bool = False, shape: Any = None
) -> Analysis:
    """The analysis of a scan; shape: of the scan, if other than that of the array."""
    statistics = Statistics(array.dtype)
    statistics.add(array.reshape(-1, *array.shape[-2:]))
    spacing_mm = (2.0, 1.0, 0.5)
    tiling = tilings.choose(shape or array.shape, spacing_mm)
    return Analysis(tiling, array.dtype, statistics, sigma, sigma, labels, spacing_mm)


def no_map() -> SampleMap:
    raise AssertionError("the lossless map is not needed")


def no_model() -> bool:
    raise AssertionError("the model is not needed")


def map_finder(array: NDArray[Any], analysis: Analysis) -> Callable[[], SampleMap | None]:
    blocks = [array.reshape(-1, *array.shape[-2:])]
    return lambda: exact_map(array.dtype, analysis.statistics, iter(blocks))


def planned(
    array: NDArray[Any], *, sigma: float = SIGMA, labels: bool = False, **options: Any
) -> Plan:
    """The plan of an array for the options of an encoder."""
    analysis = analysis_of(array, sigma, labels=labels)
    return plan(analysis, EncodeSettings.of(options), map_finder(array, analysis))


def scan(dtype: str = "i2") -> NDArray[Any]:
    return smooth(SHAPE).astype(dtype)


def test_lossy() -> None:
    """No lossless map is asked for; the head holds step and noise as a decoder reads them."""
    array = scan()
    analysis = analysis_of(array)
    chosen = plan(analysis, EncodeSettings.of({"quality": 40}), no_map)
    assert (chosen.coder, chosen.mode, chosen.reason, chosen.chain) == (
        LEARNED,
        Mode.LOSSY,
        None,
        0,
    )
    head = chosen.head
    assert isinstance(head, LossyHead)
    assert head == LossyHead.unpack(chosen.params(), array.dtype)
    assert (head.intensity.minimum, head.intensity.maximum) == (array.min(), array.max())
    assert head.step == np.float32(quality.step(40, SIGMA, float(np.ptp(array))))
    assert head.sigma == pytest.approx(SIGMA, rel=1e-3)
    coder = make_coder(chosen, analysis, "default", FakeModel)  # type: ignore[arg-type]
    assert isinstance(coder, LearnedCoder)


def test_lossy_with_an_inexact_model() -> None:
    chosen = plan(analysis_of(scan()), EncodeSettings.of({}), no_map, exact_model=lambda: False)
    assert (chosen.coder, chosen.mode) == (LEARNED_INEXACT, Mode.LOSSY)


@pytest.mark.parametrize("background", [0.0, 0.01, 0.03, 0.5])
def test_background_is_flagged_where_it_is_worth_a_mask(background: float) -> None:
    array = np.random.default_rng(0).integers(10, 1000, SHAPE).astype(np.int16)
    array.reshape(-1)[: round(background * array.size)] = 0
    assert planned(array).flags == (Flags.BACKGROUND if background >= 0.02 else Flags(0))


@pytest.mark.parametrize("settings", [{"psnr": 40}, {"bpv": 0.5}, {"ratio": 20}])
def test_a_target_changes_nothing_but_the_step(settings: dict[str, float]) -> None:
    """The search varies the step of the plan for the default quality."""
    chosen = planned(scan(), **settings)
    assert chosen == planned(scan())
    other = chosen.with_step(12.3, SIGMA)
    assert isinstance(other.head, LossyHead) and isinstance(chosen.head, LossyHead)
    assert other.head.step == np.float32(12.3)
    assert other.head.sigma == pytest.approx(SIGMA, rel=1e-3)
    assert dataclasses.replace(other, head=chosen.head) == chosen


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(SHAPE, "u1"), "it is constant"),
        (scan() // 300, "it is a label map"),
        (np.where(scan() > 9, scan(), np.nan), "it holds NaN or infinite values"),
        (scan("c8"), "it holds complex values"),
        (voxels(np.random.default_rng(0), "rgb24", SHAPE), "it holds RGB colours"),
        (scan("longdouble"), "more than 64 bits"),
        (scan("u8") << 53, "its range is too wide"),
        (scan("f8") * 1e300 / 7, "its range is too wide"),
        (scan("f8") * 1e-300 / 7, "its range is too narrow"),
    ],
)
def test_scans_that_loss_cannot_represent(array: NDArray[Any], reason: str) -> None:
    """They are lossless, with a reason, whatever was asked for; no model is looked at."""
    for options in ({"quality": 30}, {"psnr": 40}):
        analysis = analysis_of(array)
        chosen = plan(
            analysis,
            EncodeSettings.of(options),
            map_finder(array, analysis),
            exact_model=no_model,
        )
        assert chosen.mode is Mode.LOSSLESS and reason in str(chosen.reason)
        assert chosen.coder in (STORE, PREDICTIVE)
    lossless = planned(array, lossless=True)
    assert (lossless.coder, lossless.params()) == (chosen.coder, chosen.params())
    assert lossless.reason is None


def test_labels_by_the_header() -> None:
    for options in ({}, {"max_error": 3}):
        chosen = planned(scan(), labels=True, **options)
        assert (chosen.mode, chosen.reason) == (Mode.LOSSLESS, "it is a label map")


@pytest.mark.parametrize(
    ("dtype", "coder", "kind"),
    [
        ("i2", PREDICTIVE, "AffineMap"),
        ("f4", PREDICTIVE, "AffineMap"),
        ("u8", PREDICTIVE, "AffineMap"),
        ("?", STORE, None),
        ("c8", STORE, None),
        ("longdouble", STORE, None),
    ],
)
def test_lossless(dtype: str, coder: int, kind: str | None) -> None:
    array = scan() > 100 if dtype == "?" else scan(dtype)
    analysis = analysis_of(array)
    settings = EncodeSettings.of({"lossless": True})
    chosen = plan(analysis, settings, map_finder(array, analysis), exact_model=no_model)
    assert (chosen.coder, chosen.mode, chosen.reason) == (coder, Mode.LOSSLESS, None)
    coded = make_coder(chosen, analysis, "default", no_model)  # type: ignore[arg-type]
    if kind is None:
        assert chosen.head is None and chosen.params() == b"" and isinstance(coded, StoreCoder)
    else:
        assert isinstance(chosen.head, PredictiveHead) and isinstance(coded, PredictiveCoder)
        assert type(chosen.head.sample_map).__name__ == kind
        assert chosen.params() == chosen.head.pack(Mode.LOSSLESS)


@pytest.mark.parametrize(("max_error", "bound"), [(3, 3.0), ("0.5sigma", 0.5 * SIGMA)])
def test_bounded(max_error: float | str, bound: float) -> None:
    """No lossless map and no model are asked for; the noise in the head is a float32."""
    array = scan()
    settings = EncodeSettings.of({"max_error": max_error})
    chosen = plan(analysis_of(array), settings, no_map, exact_model=no_model)
    assert (chosen.coder, chosen.mode, chosen.reason) == (PREDICTIVE, Mode.BOUNDED, None)
    head = chosen.head
    assert isinstance(head, PredictiveHead) and isinstance(head.sample_map, AffineMap)
    assert (head.max_error, head.bound, head.sigma) == (math.floor(bound), bound, SIGMA)
    assert head == PredictiveHead.unpack(chosen.params(), Mode.BOUNDED, array.dtype)


@pytest.mark.parametrize(
    ("array", "sigma", "max_error", "reason"),
    [
        (scan(), SIGMA, 0.5, "an error of 0.5 stored units allows no other value"),
        (scan("f4") * np.float32(0.37), SIGMA, 1e-9, "allows no other value"),
        (scan(), 0.0, "0.5sigma", "no noise was found in it"),
        (np.zeros(SHAPE, "u1"), 0.0, 3, "it is constant"),
        (scan() // 300, SIGMA, 3, "it is a label map"),
        (np.where(scan() > 9, scan(), np.nan), SIGMA, 3, "it holds NaN or infinite values"),
        (scan("c8"), SIGMA, 3, "it holds complex values"),
        (scan() > 100, SIGMA, 3, "it is a label map"),
        (scan("u8") << 53, SIGMA, 3, "its range is too wide"),
    ],
)
def test_bounds_that_leave_no_room(
    array: NDArray[Any], sigma: float, max_error: float | str, reason: str
) -> None:
    chosen = planned(array, sigma=sigma, max_error=max_error)
    assert chosen.mode is Mode.LOSSLESS and reason in str(chosen.reason)


@pytest.mark.parametrize(
    ("shape", "chain"),
    [
        ((8, 64, 64), 0),
        ((1, 8, 64, 64), 0),
        ((5, 8, 64, 64), CHAIN),
        ((2, 3, 8, 64, 64), CHAIN),
        ((2, 512, 512, 256), 0),  # Two volumes of this size would not fit into memory.
    ],
)
@pytest.mark.parametrize("options", [{"lossless": True}, {"max_error": 3}])
def test_chains_of_volumes(shape: tuple[int, ...], chain: int, options: dict[str, Any]) -> None:
    array = scan()
    analysis = analysis_of(array, shape=shape)
    settings = EncodeSettings.of(options)
    chosen = plan(analysis, settings, map_finder(array, analysis))
    assert isinstance(chosen.head, PredictiveHead)
    assert chosen.chain == chosen.head.chain == chain
    layered = plan(analysis, settings, map_finder(array, analysis), layered=True)
    assert isinstance(layered.head, PredictiveHead)
    assert layered.chain == layered.head.chain == 0, "the layer is the only reference"
    lossy = plan(analysis, EncodeSettings.of({}), no_map)
    assert lossy.chain == 0


def test_layers_of_the_settings() -> None:
    """lossless over bounded over lossy; each is planned as if it were asked for alone."""
    settings = EncodeSettings.of({"lossless": True, "max_error": 3, "layers": True})
    bounded = layers.coarser(settings)
    assert bounded is not None
    lossy = layers.coarser(bounded)
    assert lossy is not None and layers.coarser(lossy) is None
    array = scan()
    analysis = analysis_of(array)
    modes = [
        plan(analysis, each, map_finder(array, analysis), layered=n < 2).mode
        for n, each in enumerate((settings, bounded, lossy))
    ]
    assert modes == [Mode.LOSSLESS, Mode.BOUNDED, Mode.LOSSY]
    assert plan(analysis, lossy, no_map) == planned(array, quality=LAYER_QUALITY)
    assert layers.coarser(EncodeSettings.of({"lossless": True})) is None


def test_the_same_analysis_has_the_same_plan() -> None:
    array = scan()
    analysis = analysis_of(array)
    for options in ({}, {"lossless": True}, {"max_error": 3}, {"psnr": 40}):
        settings = EncodeSettings.of(options)
        first = plan(analysis, settings, map_finder(array, analysis))
        assert plan(analysis, settings, map_finder(array, analysis)) == first
