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
    decode,
    decode_file,
    encode,
    info,
    model_name,
    verify,
    version,
)
from .encoding import EncodeReport
from .gzipping import GzipDiffers
from .stream import Fidelity, StreamInfo
from .volume import Volume

__all__ = [
    "MAGIC",
    "ChecksumMismatch",
    "Decoder",
    "EncodeReport",
    "Encoder",
    "Fidelity",
    "FormatError",
    "GzipDiffers",
    "LimitExceeded",
    "Limits",
    "LosslessFallback",
    "StreamInfo",
    "Truncated",
    "UnknownModel",
    "UnsupportedVersion",
    "Volume",
    "decode",
    "decode_file",
    "encode",
    "info",
    "model_name",
    "verify",
    "version",
]
