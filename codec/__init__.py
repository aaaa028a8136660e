"""Compress and restore MRI scans.

    from mricodec import codec

    codec.encode("scan.nii.gz", quality=50, out="scan.mrc")
    volume = codec.decode("scan.mrc", slices=(80, 100))
    volume.array[k, j, i], volume.affine, volume.spacing_mm

Each name is imported when it is first asked for, and torch when a learned model needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

import mricodec.models  # noqa: F401 (it says how OpenMP waits, before torch is loaded)

if TYPE_CHECKING:
    from mricodec.bitstream.container import MAGIC
    from mricodec.bitstream.errors import (
        ChecksumMismatch,
        FormatError,
        LimitExceeded,
        Truncated,
        UnknownModel,
        UnsupportedVersion,
    )
    from mricodec.bitstream.header import Limits

    from .api import (
        Decoder,
        Encoder,
        LosslessFallback,
        TargetMissed,
        decode,
        decode_file,
        encode,
        further_volumes,
        version,
    )
    from .dicom.deidentify import Deidentifier
    from .dicom.encode import SeriesReport, encode_series, encode_series_file
    from .dicom.phi import Finding, identifying
    from .dicom.raw_data import unwrap, wrap
    from .dicom.restore import decode_series, restore_series, series_files
    from .dicom.stacks import find_series
    from .formats.gzip_recipe import GzipDiffers
    from .inspection import info, model_name, verify
    from .integrations import batch, nibabel_plugin, pydicom_plugin
    from .pipeline.heads import Distortion
    from .pipeline.series import further_stacks, series_headers
    from .pipeline.stream import StreamInfo
    from .pipeline.writing import EncodeReport
    from .settings import Target
    from .volume import Volume

_ROOMS = {  # Names by their module.
    "mricodec.bitstream.container": ("MAGIC",),
    "mricodec.bitstream.errors": (
        "ChecksumMismatch",
        "FormatError",
        "LimitExceeded",
        "Truncated",
        "UnknownModel",
        "UnsupportedVersion",
    ),
    "mricodec.bitstream.header": ("Limits",),
    ".api": (
        "Decoder",
        "Encoder",
        "LosslessFallback",
        "TargetMissed",
        "decode",
        "decode_file",
        "encode",
        "further_volumes",
        "version",
    ),
    ".dicom.deidentify": ("Deidentifier",),
    ".dicom.encode": ("SeriesReport", "encode_series", "encode_series_file"),
    ".pipeline.series": ("further_stacks", "series_headers"),
    ".dicom.phi": ("Finding", "identifying"),
    ".dicom.raw_data": ("unwrap", "wrap"),
    ".dicom.restore": ("decode_series", "restore_series", "series_files"),
    ".dicom.stacks": ("find_series",),
    ".formats.gzip_recipe": ("GzipDiffers",),
    ".inspection": ("info", "model_name", "verify"),
    ".pipeline.heads": ("Distortion",),
    ".pipeline.stream": ("StreamInfo",),
    ".pipeline.writing": ("EncodeReport",),
    ".settings": ("Target",),
    ".volume": ("Volume",),
}
_MODULES = (
    "batch",
    "nibabel_plugin",
    "pydicom_plugin",
)  # Modules of `integrations` that users import from here.
_MODULE_OF = {name: module for module, names in _ROOMS.items() for name in names}

__all__ = [
    "MAGIC",
    "ChecksumMismatch",
    "Decoder",
    "Deidentifier",
    "Distortion",
    "EncodeReport",
    "Encoder",
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
    "batch",
    "decode",
    "decode_file",
    "decode_series",
    "encode",
    "encode_series",
    "encode_series_file",
    "find_series",
    "further_stacks",
    "further_volumes",
    "identifying",
    "info",
    "model_name",
    "nibabel_plugin",
    "pydicom_plugin",
    "restore_series",
    "series_files",
    "series_headers",
    "unwrap",
    "verify",
    "version",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".integrations.{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
