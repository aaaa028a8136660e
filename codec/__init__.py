"""Compress and restore MRI scans.

    from mricodec import codec

    codec.encode("scan.nii.gz", quality=50, out="scan.mrc")
    volume = codec.decode("scan.mrc", slices=(80, 100))
    volume.array[k, j, i], volume.affine, volume.spacing_mm

torch is imported only when a learned model is needed, and what codes only when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

import mricodec.models  # how OpenMP waits, before torch is loaded
from mricodec.bitstream.container import MAGIC, Limits
from mricodec.bitstream.errors import (
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    Truncated,
    UnknownModel,
    UnsupportedVersion,
)

from .gzipping import GzipDiffers
from .inspection import info, model_name, verify
from .rate_control import Target
from .stream import Fidelity, StreamInfo
from .volume import Volume

if TYPE_CHECKING:
    from .api import Decoder, Encoder, LosslessFallback, TargetMissed, decode, decode_file, encode, version
    from .deidentify import Deidentifier, Finding, identifying
    from .encoding import EncodeReport
    from .series import (
        SeriesReport,
        decode_series,
        encode_series,
        encode_series_file,
        find_series,
        further_stacks,
        restore_series,
        series_files,
        series_headers,
    )
    from .wrapping import unwrap, wrap

_LATER = {  # what is imported when it is first asked for, and where it is
    **dict.fromkeys(("Decoder", "Encoder", "LosslessFallback", "TargetMissed"), "api"),
    **dict.fromkeys(("decode", "decode_file", "encode", "version"), "api"),
    "EncodeReport": "encoding",
    **dict.fromkeys(("Deidentifier", "Finding", "identifying"), "deidentify"),
    **dict.fromkeys(("SeriesReport", "decode_series", "encode_series", "encode_series_file", "find_series"), "series"),
    **dict.fromkeys(("further_stacks", "restore_series", "series_files", "series_headers"), "series"),
    **dict.fromkeys(("unwrap", "wrap"), "wrapping"),
}

__all__ = [
    "MAGIC",
    "ChecksumMismatch",
    "Decoder",
    "Deidentifier",
    "EncodeReport",
    "Encoder",
    "Fidelity",
    "Finding",
    "FormatError",
    "GzipDiffers",
    "LimitExceeded",
    "Limits",
    "LosslessFallback",
    "SeriesReport",
    "StreamInfo",
    "Target",
    "TargetMissed",
    "Truncated",
    "UnknownModel",
    "UnsupportedVersion",
    "Volume",
    "decode",
    "decode_file",
    "decode_series",
    "encode",
    "encode_series",
    "encode_series_file",
    "find_series",
    "further_stacks",
    "identifying",
    "info",
    "model_name",
    "restore_series",
    "series_files",
    "series_headers",
    "unwrap",
    "verify",
    "version",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
