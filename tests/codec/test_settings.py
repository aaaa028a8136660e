"""Settings: what an encoder can be asked for, and options that exclude one another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mricodec import codec
from mricodec.bitstream.errors import FormatError
from mricodec.codec import loading
from mricodec.codec.settings import (
    DEFAULT_QUALITY,
    LAYER_QUALITY,
    TARGET_KINDS,
    Bound,
    EncodeSettings,
    Target,
)


def test_defaults() -> None:
    assert 0 < LAYER_QUALITY < DEFAULT_QUALITY < 100
    assert EncodeSettings.of({}) == EncodeSettings(quality=DEFAULT_QUALITY)
    assert loading.DEFAULT_MODEL == "default"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"quality": 30}, EncodeSettings(quality=30.0)),
        ({"lossless": True}, EncodeSettings(lossless=True)),
        ({"max_error": 4}, EncodeSettings(bound=Bound(4.0))),
        ({"max_error": "0.5sigma"}, EncodeSettings(bound=Bound(0.5, of_sigma=True))),
        (
            {"lossless": True, "layers": True},
            EncodeSettings(lossless=True, layers=True, quality=LAYER_QUALITY),
        ),
        (
            {"lossless": True, "layers": True, "max_error": 2, "quality": 10},
            EncodeSettings(lossless=True, layers=True, bound=Bound(2.0), quality=10.0),
        ),
        (
            {"psnr": 40},
            EncodeSettings(quality=DEFAULT_QUALITY, target=Target("psnr", 40.0)),
        ),
    ],
)
def test_options(options: dict[str, Any], expected: EncodeSettings) -> None:
    assert EncodeSettings.of(options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"lossless": True, "max_error": 2},
        {"lossless": True, "quality": 40},
        {"lossless": True, "model": "default"},
        {"max_error": 3, "model": "default"},
        {"psnr": 40, "bpv": 1},
        {"psnr": 40, "quality": 50},
        {"psnr": 40, "max_error": 1},
        {"ratio": 5, "lossless": True},
    ],
)
def test_options_that_exclude_one_another(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .* found both: leave one out"):
        codec.Encoder(**options)
    with pytest.raises(ValueError, match="leave one out"):
        codec.encode(np.zeros((2, 8, 8), np.int16), **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"layers": True}, "layers"),
        ({"effort": "highest"}, "effort"),
        ({"lossless": True, "effort": "none"}, "effort"),
        ({"quality": -1}, "quality"),
        ({"quality": 101}, "quality"),
        ({"quality": math.nan}, "quality"),
        ({"psnr": -1}, "psnr"),
        ({"psnr": math.inf}, "psnr"),
        ({"bpv": 0}, "bpv"),
        ({"ratio": math.nan}, "ratio"),
    ],
)
def test_values_that_are_no_setting(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected .* found"):
        codec.Encoder(**options)


@pytest.mark.parametrize(
    "bound", [0, -1, math.nan, math.inf, "sigma", "x", "0sigma", "1e999sigma", ""]
)
def test_bounds_that_are_none(bound: Any) -> None:
    with pytest.raises(ValueError, match=r"max_error: expected a number above 0.* found"):
        codec.Encoder(max_error=bound)


def test_options_that_nobody_knows() -> None:
    with pytest.raises(TypeError, match="colour"):
        codec.Encoder(colour="red")  # type: ignore[call-arg]


def test_a_target_in_a_stream() -> None:
    for kind in TARGET_KINDS:
        assert Target.unpack(Target(kind, 0.3).pack()) == Target(kind, 0.3)
    assert Target.unpack(b"\x09" + bytes(4)) is None, "a kind of a later release"
    for damaged in (b"", bytes(6), b"\x01" + bytes(4), b"\x01\x00\x00\xc0\x7f"):
        with pytest.raises(FormatError, match="damaged"):
            Target.unpack(damaged)
