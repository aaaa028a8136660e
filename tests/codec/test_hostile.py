"""Damaged and forged streams of every kind: a FormatError or the identical volume, nothing else."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from forged import reseal
from numpy.typing import NDArray

from mricodec import codec

# Seconds that a damaged stream may take; a sound one takes a fraction of one.
MAX_SECONDS = 20.0


def volume() -> NDArray[np.int16]:
    k, j, i = np.mgrid[0:3, 0:9, 0:11]
    noise = np.random.default_rng(3).normal(0, 6, k.shape)
    return (300 + 120 * np.sin(i / 3) * np.cos(j / 4) + 10 * k + noise).astype(np.int16)


def streams() -> dict[str, bytes]:
    array = volume()
    rgb = np.zeros((2, 3, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    encoded: dict[str, bytes | None] = {
        "predictive": codec.encode(array, lossless=True),
        "store": codec.encode(array.astype(np.complex64) * np.float32(np.pi), lossless=True),
        "grid": codec.encode(array * np.float64(np.pi), lossless=True),
        "ordered": codec.encode(np.sqrt(array.astype(np.float32)), lossless=True),
        "chain": codec.encode(np.stack([array[:1, :6], array[1:2, :6]]), lossless=True),
        "bounded": codec.encode(array, max_error=3),
        "rgb": codec.encode(rgb, lossless=True),
    }
    for model in ("default", "hyperprior", "factorized"):
        encoded[model] = codec.encode(array, model=model, quality=45)
    return {name: stream for name, stream in encoded.items() if stream is not None}


STREAMS = (
    "predictive",
    "store",
    "grid",
    "ordered",
    "chain",
    "bounded",
    "rgb",
    "default",
    "hyperprior",
    "factorized",
)


@pytest.fixture(scope="module")
def sound_streams() -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", codec.LosslessFallback)
        return streams()


@pytest.fixture(scope="module")
def decoder() -> codec.Decoder:
    return codec.Decoder()


def outcome(decoder: codec.Decoder, stream: bytes) -> NDArray[np.generic] | None:
    """The voxels, or None for an error of the right kind; anything else fails the test."""
    start = time.monotonic()
    try:
        return decoder.decode(stream).array
    except codec.FormatError as error:
        assert str(error)
        assert "\n" not in str(error)
        return None
    finally:
        assert time.monotonic() - start < MAX_SECONDS


@pytest.mark.parametrize("kind", STREAMS)
def test_every_truncation(
    sound_streams: dict[str, bytes], decoder: codec.Decoder, kind: str
) -> None:
    stream = sound_streams[kind]
    assert outcome(decoder, stream) is not None
    for length in range(len(stream)):
        assert outcome(decoder, stream[:length]) is None, length
    assert outcome(decoder, stream + b"\0") is None


@pytest.mark.parametrize("kind", STREAMS)
def test_every_flipped_bit(
    sound_streams: dict[str, bytes], decoder: codec.Decoder, kind: str
) -> None:
    stream = sound_streams[kind]
    good = decoder.decode(stream).array
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        decoded = outcome(decoder, bytes(damaged))
        assert decoded is None or np.array_equal(decoded, good), bit


@pytest.mark.parametrize("kind", STREAMS)
def test_forged_bits_with_right_checksums(
    sound_streams: dict[str, bytes], decoder: codec.Decoder, kind: str
) -> None:
    """No forged payload passes the digest of the voxels where decoding is exact."""
    stream = sound_streams[kind]
    good = decoder.decode(stream).array
    exact = codec.info(stream).exact
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(stream), 150, replace=False):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << int(bit % 8)
        decoded = outcome(decoder, reseal(damaged))
        if exact and decoded is not None and decoded.shape == good.shape:
            assert np.array_equal(decoded, good), bit


@pytest.mark.parametrize("start", [b"", b"\x89MRC", bytes(300), b"not a stream at all" * 20])
def test_not_a_stream(decoder: codec.Decoder, start: bytes) -> None:
    assert outcome(decoder, start) is None


def test_a_cryo_em_map_is_named(decoder: codec.Decoder) -> None:
    cryo = bytearray(1100)
    cryo[208:212] = b"MAP "
    with pytest.raises(codec.FormatError, match="cryo-EM"):
        decoder.decode(bytes(cryo))


def test_a_later_version_is_named(sound_streams: dict[str, bytes], decoder: codec.Decoder) -> None:
    later = bytearray(sound_streams["predictive"])
    later[8] = 9
    with pytest.raises(codec.UnsupportedVersion, match="9"):
        decoder.decode(bytes(later))


def test_an_unknown_model_is_named(sound_streams: dict[str, bytes], decoder: codec.Decoder) -> None:
    model_id = bytes.fromhex(codec.info(sound_streams["default"]).model_id)
    other = bytearray(sound_streams["default"].replace(model_id, b"\x01" * 8))
    with pytest.raises(codec.UnknownModel, match="0101010101010101"):
        decoder.decode(reseal(other))
