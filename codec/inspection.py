"""The description and the checks of a stream, mostly without decoding it.

Only what reads streams is imported; coders, torch and the readers of scans are for `api`.
"""

from __future__ import annotations

from mricodec.bitstream.header import DEFAULT_LIMITS, Limits
from mricodec.codec.pipeline.stream import Progress, Source, Stream, StreamInfo, opened


def info(source: Source, *, limits: Limits | None = None) -> StreamInfo:
    """The description of a stream, without torch and weights. FormatError if it is damaged."""
    with opened(source) as file:
        return Stream(file, limits or DEFAULT_LIMITS).info()


def verify(
    source: Source,
    *,
    deep: bool = False,
    limits: Limits | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> StreamInfo:
    """Check every checksum of a stream, without torch; `deep` decodes it too, and compares digests.

    FormatError (ChecksumMismatch, Truncated, ...) if it is damaged.
    """
    with opened(source) as file:
        stream = Stream(file, limits or DEFAULT_LIMITS)
        stream.reader.verify()
        if deep:
            from .api import Decoder

            decoder = Decoder(limits=limits, device=device)
            if stream.table is None:
                decoder.verify(stream, progress)
            else:
                from .dicom.restore import verify_series

                verify_series(stream, decoder, progress or (lambda _: None))
        return stream.info()


def model_name(model_id: str) -> str | None:
    """The name of the model with the id of a `StreamInfo`, or None if its weights are not here; no torch."""
    from importlib import resources

    # weights are named <name>-<first 8 digits of their SHA-256>.safetensors
    ending = f"-{model_id[:8]}.safetensors"
    folder = resources.files("mricodec.models") / "weights"
    files = folder.iterdir() if folder.is_dir() else ()
    return next(
        (file.name.removesuffix(ending) for file in files if file.name.endswith(ending)), None
    )
