"""Compress and restore MRI scans.

    from mricodec import codec

    codec.encode("scan.nii.gz", quality=50, out="scan.mrc")
    volume = codec.decode("scan.mrc", slices=(80, 100))
    volume.array[k, j, i], volume.affine, volume.spacing_mm

torch is imported only when a learned model is needed.
"""

from mricodec.bitstream.container import MAGIC, Limits
from mricodec.bitstream.errors import (
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    Truncated,
    UnknownModel,
    UnsupportedVersion,
)

from .api import (
    Decoder,
    Encoder,
    LosslessFallback,
    TargetMissed,
    decode,
    decode_file,
    encode,
    info,
    model_name,
    verify,
    version,
)
from .deidentify import Deidentifier, Finding, identifying
from .encoding import EncodeReport
from .rate_control import Target
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
from .stream import Fidelity, StreamInfo
from .volume import Volume

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
    "verify",
    "version",
]
