"""The description and the checks of a stream, mostly without decoding it.

Only what reads streams is imported; coders, torch and the readers of scans are for `api`.
"""

from __future__ import annotations

import os

from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.codec.pipeline.stream import Progress, Source, Stream, StreamInfo, opened
from mricodec.models import zoo


def info(source: Source, *, limits: Limits | None = None) -> StreamInfo:
    """The description of a stream, without torch and weights. FormatError if it is damaged."""
    with opened(source) as file:
        return Stream(file, limits or DEFAULT_LIMITS).info()


def verify(
    source: Source,
    *,
    deep: bool = False,
    limits: Limits | None = None,
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> StreamInfo:
    """Check every checksum of a stream, without torch; `deep` decodes it too, and compares digests.

    model: the weights file of a stream whose model is not shipped, to decode it.
    FormatError (ChecksumMismatch, Truncated, ...) if it is damaged.
    """
    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        stream.reader.verify()
        if deep:
            from .api import Decoder

            decoder = Decoder(limits=limits, model=model, device=device)
            if stream.table is None:
                decoder.verify(stream, progress)
            else:
                from .dicom.restore import verify_series

                verify_series(stream, decoder, progress or (lambda _: None))
        return stream.info()


def model_name(model_id: str) -> str | None:
    """The name of the model with the id of a `StreamInfo`, or its file in MRICODEC_MODELS.

    None if its weights are not here.
    """
    binary_id = bytes.fromhex(model_id)
    if zoo.is_shipped(binary_id):
        entry = zoo.find(binary_id)
        return entry.name if entry.path.is_file() else None
    path = zoo.locate(binary_id)
    return None if path is None else str(path)
