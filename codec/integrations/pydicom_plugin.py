"""Frames of streams inside DICOM objects, through pydicom, under a private transfer syntax.

    from mricodec.codec import pydicom_plugin
    from mricodec.codec.pydicom_plugin import MRICODEC_LOSSLESS

    pydicom_plugin.register()              # once per process; nothing happens on import
    dataset.compress(MRICODEC_LOSSLESS, generate_instance_uid=False)   # the same image
    dataset.save_as("image.dcm")
    dcmread("image.dcm").pixel_array       # or .decompress(generate_instance_uid=False)

A private transfer syntax (PS3.5 section 10.1) is for interchange between users of mricodec only: a
PACS may store such objects but can't forward them by C-STORE. Without this module pydicom still
reads and saves them, all but the pixels. Every frame is a stream of its own (bitstream/FORMAT.md,
"DICOM frames"), so slices are not predicted from each other: a series is smaller as one stream.

Grey values of 8, 16 and 32 bits allocated, signed or not, and colours of 8. As with every
compressed transfer syntax, pydicom takes PixelData for little-endian: a big-endian data set needs
`compress(MRICODEC_LOSSLESS, arr=dataset.pixel_array)`.

pydicom 3: pixels/encoders/base.py, pixels/decoders/base.py, hooks.py. It has no public way to add
a transfer syntax.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.hooks import hooks
from pydicom.pixels.decoders import base as decoders
from pydicom.pixels.encoders import base as encoders

from mricodec.bitstream.chunks import END, FRAMING
from mricodec.bitstream.container import MAGIC
from mricodec.bitstream.errors import FormatError
from mricodec.codec import api, inspection
from mricodec.codec.volume import DTYPES, dtype_name

MRICODEC_LOSSLESS = uid.UID("2.25.24725342419288323833044710154595667153")
MRICODEC_LOSSLESS.set_private_encoding(False, True)  # Explicit VR, little-endian.

NAME = "mricodec"
ENCODER_DEPENDENCIES = DECODER_DEPENDENCIES = {MRICODEC_LOSSLESS: (NAME,)}
_TRANSFER_SYNTAX_TAG = 0x00020010


def register() -> None:
    """Make pydicom know `MRICODEC_LOSSLESS`. Calling it again changes nothing."""
    uid.register_transfer_syntax(MRICODEC_LOSSLESS)
    if MRICODEC_LOSSLESS not in decoders._PIXEL_DATA_DECODERS:
        decoder, encoder = decoders.Decoder(MRICODEC_LOSSLESS), encoders.Encoder(MRICODEC_LOSSLESS)
        decoder.add_plugin(NAME, (__name__, "decode_frame"))
        encoder.add_plugin(NAME, (__name__, "encode_frame"))
        decoders._PIXEL_DATA_DECODERS[MRICODEC_LOSSLESS] = (decoder, "3.0")
        encoders._PIXEL_DATA_ENCODERS[MRICODEC_LOSSLESS] = (encoder, "3.0")
    if not getattr(hooks.raw_element_value, "of_mricodec", False):
        hooks.register_callback("raw_element_value", _knowing(hooks.raw_element_value))


def is_available(_: str) -> bool:
    """For pydicom: everything that is needed is installed."""
    return True


def encode_frame(frame: bytes, runner: encoders.EncodeRunner) -> bytes:
    """For pydicom: a frame -> a stream, padded to an even length.

    The frame is little-endian, with as few bytes a value as hold Bits Stored.
    """
    dtype, shape = _layout(runner)
    size = 1 if runner.bits_stored <= 8 else 2 if runner.bits_stored <= 16 else 4
    if runner.samples_per_pixel == 1 and size < dtype.itemsize:
        _check_unused_bytes(runner, size)
        frame = np.frombuffer(frame, f"<{dtype.kind}{size}").astype(dtype).tobytes()
    array = np.frombuffer(frame, dtype).reshape(shape)
    if runner.is_array and runner.samples_per_pixel > 1 and runner.planar_configuration:
        # An array has its colours last.
        array = np.ascontiguousarray(np.moveaxis(array.reshape(*shape[1:], shape[0]), -1, 0))
    stream = _encoder().encode(array)
    assert stream is not None
    return stream + bytes(len(stream) % 2)


def decode_frame(frame: bytes, runner: decoders.DecodeRunner) -> bytes:
    """For pydicom: a stream -> the frame, little-endian.

    FormatError if it is damaged, or that of another image.
    """
    stream = _unpadded(frame)
    dtype, shape = _layout(runner)
    about = inspection.info(stream)
    if (about.shape, about.dtype) != (shape, dtype_name(dtype)):
        raise FormatError(
            f"expected a frame of {dtype_name(dtype)} {shape}, as in the data set, "
            f"found {about.dtype} {about.shape}: the file is damaged"
        )
    return np.ascontiguousarray(_decoder().decode(stream).array, dtype).tobytes()


def _layout(runner: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of a frame in PixelData."""
    bits, samples, rows, columns = (
        runner.bits_allocated,
        runner.samples_per_pixel,
        runner.rows,
        runner.columns,
    )
    if samples == 1 and bits in (8, 16, 32):
        return np.dtype(f"<{'ui'[runner.pixel_representation]}{bits // 8}"), (rows, columns)
    if samples == 3 and bits == 8 and runner.photometric_interpretation != "YBR_FULL_422":
        return (
            (np.dtype("u1"), (3, rows, columns))
            if runner.planar_configuration
            else (DTYPES["rgb24"], (rows, columns))
        )
    raise ValueError(
        "expected 1 sample of 8, 16 or 32 bits, or 3 of 8 that are not subsampled, "
        f"found {samples} of {bits} bits ({runner.photometric_interpretation}); keep it as it is"
    )


def _check_unused_bytes(runner: encoders.EncodeRunner, size: int) -> None:
    """Check, once for all frames, that the bytes beyond Bits Stored hold nothing.

    pydicom drops them, and `encode_frame` puts back the extension of the sign.
    """
    if runner.is_array or runner.get_option("mricodec_checked"):
        return
    stored: NDArray[Any] = np.frombuffer(runner.src, _layout(runner)[0])
    if not np.array_equal(stored, stored.astype(f"<{stored.dtype.kind}{size}")):
        raise ValueError(
            f"expected nothing above {runner.bits_stored} Bits Stored, found other data there; "
            "keep it as it is"
        )
    runner.set_option("mricodec_checked", True)


def _unpadded(frame: bytes) -> bytes:
    """The stream without the zero byte that makes a fragment even: it ends with its last chunk."""
    at = len(MAGIC) + 2
    while at + FRAMING <= len(frame):
        kind = frame[at : at + 4]
        at += FRAMING + int.from_bytes(frame[at + 4 : at + 8], "little")
        if kind == END:
            return frame[:at] if frame[at:] in (b"", b"\0") else frame
    return frame


def _knowing(previous: Any) -> Any:
    """pydicom's conversion of an element, extended by the encoding of our transfer syntax.

    Without the encoding pydicom can't decompress what it has read.
    """

    def convert(raw: Any, data: dict[str, Any], **kwargs: Any) -> None:
        previous(raw, data, **kwargs)
        if raw.tag == _TRANSFER_SYNTAX_TAG and data.get("value") == MRICODEC_LOSSLESS:
            data["value"] = MRICODEC_LOSSLESS

    convert.of_mricodec = True  # type: ignore[attr-defined]
    return convert


@functools.cache
def _encoder() -> api.Encoder:
    return api.Encoder(lossless=True)


@functools.cache
def _decoder() -> api.Decoder:
    return api.Decoder()
