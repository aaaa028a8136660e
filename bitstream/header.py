"""The chunk HEAD, its codes, and the limits that a reader holds it against (FORMAT.md, "HEAD")."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType

from .errors import FormatError, LimitExceeded, UnsupportedVersion
from .fields import ByteReader, pack_varint

# The store coder: byte planes and zstd.
STORE = 0
# The predictive coder: prediction from neighbours, lossless or within a bound.
PREDICTIVE = 1
# The learned lossy models, of which the model id names one.
LEARNED = 2
# The learned lossy models whose samples (not latents) may differ by rounding between machines.
LEARNED_INEXACT = 3

# The voxel types: name -> (code in HEAD, bytes per voxel). They are only ever appended.
DTYPES = MappingProxyType(
    {
        "uint8": (1, 1),
        "int8": (2, 1),
        "uint16": (3, 2),
        "int16": (4, 2),
        "uint32": (5, 4),
        "int32": (6, 4),
        "uint64": (7, 8),
        "int64": (8, 8),
        "float32": (9, 4),
        "float64": (10, 8),
        "float128": (11, 16),
        "complex64": (12, 8),
        "complex128": (13, 16),
        "complex256": (14, 32),
        "rgb24": (15, 3),
        "rgba32": (16, 4),
        "bool": (17, 1),
        "float16": (18, 2),
    }
)
_DTYPE_NAMES = {code: name for name, (code, _) in DTYPES.items()}

# The largest spacing: a finite float32.
_MAX_SPACING = 3.4e38


class Mode(IntEnum):
    """How the decoded voxels relate to the source's; bounded: lossy, with a largest error."""

    LOSSLESS = 0
    LOSSY = 1
    BOUNDED = 2


class Flags(IntFlag):
    """The source file's voxels were big-endian; a background value is restored exactly."""

    BIG_ENDIAN = 1
    BACKGROUND = 2


_NO_FLAGS = Flags(0)
_ALL_FLAGS = int(Flags.BIG_ENDIAN | Flags.BACKGROUND)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reader accepts. The defaults are beyond any scan, yet within a workstation's reach.

    max_voxels: 32 GiB of 16-bit voxels.
    max_chunks: other than slabs.
    max_metadata_bytes: of ORIG, META or a chunk of a series, decompressed.
    max_files: of a series, which has at most 16 times as many pictures.
    """

    max_voxels: int = 1 << 34
    max_dims: int = 16
    max_slabs: int = 1 << 18
    max_chunk_bytes: int = 1 << 30
    max_chunks: int = 4096
    max_metadata_bytes: int = 1 << 27
    max_files: int = 1 << 18


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class StreamHeader:
    """The HEAD chunk.

    mode: lossless or lossy.
    coder: STORE, PREDICTIVE or the number of a learned coder.
    dtype: a name of ``DTYPES``, the voxels as stored in the source.
    shape: slowest axis first, so that the last three are [k, j, i].
    slab_axis: which of [k, j, i] slabs cut; a shape of fewer axes is filled up in front with 1.
    slab_slices: slices of that axis in a slab, at least 1.
    model_id: first 8 bytes of the SHA-256 of the weights; zero for none.
    spacing_mm: of k, j, i; 0 where unknown; kept as float32.
    params: belong to the coder.
    """

    mode: Mode
    coder: int
    dtype: str
    shape: tuple[int, ...]
    slab_axis: int = 0
    slab_slices: int = 1
    flags: Flags = _NO_FLAGS
    model_id: bytes = bytes(8)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    params: bytes = b""

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per voxel."""
        return DTYPES[self.dtype][1]

    def pack(self) -> bytes:
        """The payload of HEAD. ValueError if the format has no code for a field."""
        self._check(ValueError)
        return b"".join(
            (
                bytes((self.mode, self.coder, DTYPES[self.dtype][0], self.flags, len(self.shape))),
                *map(pack_varint, self.shape),
                bytes((self.slab_axis,)),
                pack_varint(self.slab_slices),
                self.model_id,
                struct.pack("<3f", *self.spacing_mm),
                pack_varint(len(self.params)),
                self.params,
            )
        )

    @classmethod
    def unpack(cls, payload: bytes, limits: Limits = DEFAULT_LIMITS) -> StreamHeader:
        """FormatError if the payload is no header; LimitExceeded if it is beyond ``limits``."""
        fields = ByteReader(payload, "HEAD")
        mode, coder, dtype_code, flags, ndim = fields.take(5)
        if mode not in tuple(Mode):
            raise UnsupportedVersion(f"expected mode 0 to 2, found {mode} in HEAD: update mricodec")
        if dtype_code not in _DTYPE_NAMES:
            raise UnsupportedVersion(
                f"expected a voxel type 1 to {len(DTYPES)}, found {dtype_code}: update mricodec"
            )
        if flags & ~_ALL_FLAGS:
            raise UnsupportedVersion(
                f"expected flags below 4, found {flags} in HEAD: update mricodec"
            )
        if ndim > limits.max_dims:
            raise LimitExceeded(
                f"expected at most {limits.max_dims} dimensions, found {ndim}: raise "
                "Limits.max_dims"
            )
        shape = tuple(fields.varint() for _ in range(ndim))
        header = cls(
            mode=Mode(mode),
            coder=coder,
            dtype=_DTYPE_NAMES[dtype_code],
            shape=shape,
            slab_axis=fields.take(1)[0],
            slab_slices=fields.varint(),
            flags=Flags(flags),
            model_id=fields.take(8),
            spacing_mm=struct.unpack("<3f", fields.take(12)),
            params=fields.take(fields.varint()),
        )
        fields.end()
        # An axis of 0 counts as 1, so that it hides no other.
        if math.prod(max(n, 1) for n in shape) > limits.max_voxels:
            raise LimitExceeded(
                f"expected at most {limits.max_voxels} voxels, found a shape of {shape}: "
                "if you trust the file, raise Limits.max_voxels"
            )
        header._check(FormatError)
        return header

    def _check(self, error: type[ValueError]) -> None:
        if int(self.flags) & ~_ALL_FLAGS:
            raise error(f"expected flags of {list(Flags)}, found {self.flags!r}")
        if not 0 <= self.coder <= 255 or len(self.model_id) != 8:
            raise error(
                f"expected coder 0..255 and 8 bytes of model id, found {self.coder}, "
                f"{self.model_id!r}"
            )
        if self.dtype not in DTYPES:
            raise error(f"expected a voxel type of {', '.join(DTYPES)}, found {self.dtype}")
        if not 1 <= len(self.shape) <= 255 or min(self.shape) < 0 or max(self.shape) >= 1 << 63:
            raise error(f"expected 1 to 255 dimensions, none negative, found shape {self.shape}")
        if self.slab_axis not in (0, 1, 2) or not 1 <= self.slab_slices < 1 << 63:
            raise error(
                f"expected slabs along axis 0..2, found {self.slab_slices} slices of axis "
                f"{self.slab_axis}"
            )
        if not all(0 <= s <= _MAX_SPACING for s in self.spacing_mm):
            raise error(f"expected three spacings in mm, zero or positive, found {self.spacing_mm}")


def digest_bytes(mode: Mode) -> int:
    """Bytes of the digest in ENDX: a SHA-256 if lossless, else the first half of one."""
    return 32 if mode is Mode.LOSSLESS else 16
