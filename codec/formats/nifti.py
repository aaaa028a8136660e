"""NIfTI scans: .nii, .nii.gz and .hdr/.img pairs, read in slabs and never re-serialised."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.codec.tiling import Tiling
from mricodec.codec.volume import Envelope

from .gzip_input import (
    open_decompressed,
    peek,
    read_exactly,
    read_into,
    read_up_to,
    seek,
    stored_size,
)
from .nifti_header import MAX_ENVELOPE, MAX_HEADER_SIZE, Header, parse

# Deflate expands no byte further (zlib's technical notes: 1032).
MAX_DEFLATE_RATIO = 1040
# Endings of the names of the two files of a pair.
PAIR_SUFFIXES = (".hdr", ".img")
# Bytes of decompressed voxels that are kept for the second pass.
KEPT_BYTES = 1 << 25


class NiftiScan:
    """A .nii, .nii.gz or .hdr/.img pair as a `volume.Scan`; one slab in memory at a time.

    Voxels of a small .nii.gz are kept after the first pass.

    FormatError for a damaged file, Truncated for one that is shorter than its header requires.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    declared_labels: bool
    chunks: Iterable[tuple[bytes, bytes]] = ()

    def __init__(self, source: str | os.PathLike[str] | BinaryIO, name: str) -> None:
        self.name = name
        self._files: list[BinaryIO] = []
        self._trailer = b""
        self._kept: tuple[Tiling, list[NDArray[Any]]] | None = None
        try:
            if isinstance(source, (str, os.PathLike)):
                self._open_path(Path(source))
            else:
                self._open_single(
                    open_decompressed(source),
                    stored_size(source),
                    "pass the path of its .hdr file",
                )
        except BaseException:
            self.close()
            raise

    def _open_path(self, path: Path) -> None:
        header_path, image_path = pair_paths(path) or (path, None)
        file = self._open(header_path)
        if image_path is None or not parse(peek(file, MAX_HEADER_SIZE, self.name), self.name).pair:
            size = header_path.stat().st_size
            self._open_single(file, size, "name the two files .hdr and .img")
            return
        header = read_up_to(file, MAX_ENVELOPE + 1, self.name)
        if len(header) > MAX_ENVELOPE:
            raise FormatError(
                f"{header_path}: expected a header, found more than {MAX_ENVELOPE} bytes; "
                "is it the .hdr file?"
            )
        self._set_header(header, parse(header, str(header_path)))
        self._voxels = self._open(image_path)
        self._lead = read_exactly(self._voxels, self._parsed.vox_offset, str(image_path))
        self._check_size(image_path.stat().st_size)

    def _open_single(self, file: BinaryIO, size: int, pair_advice: str) -> None:
        """size: bytes of the stored file; pair_advice: what to do if it is a pair's header."""
        parsed = parse(peek(file, MAX_HEADER_SIZE, self.name), self.name)
        if parsed.pair:
            raise FormatError(
                f"{self.name}: expected a single file, found the header of a .hdr/.img pair; "
                f"{pair_advice}"
            )
        self._set_header(read_exactly(file, parsed.vox_offset, self.name), parsed)
        self._voxels = file
        self._check_size(size)

    def _open(self, path: Path) -> BinaryIO:
        file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._files.append(file)
        return open_decompressed(file)

    def _set_header(self, header: bytes, parsed: Header) -> None:
        self._parsed = parsed
        self._header, self._lead = header, b""
        self.shape, self.dtype = parsed.shape, parsed.dtype
        self.declared_labels = parsed.labels

    def _check_size(self, size: int) -> None:
        """Truncated if `size` stored bytes can't hold the voxels; before any allocation."""
        required = self._parsed.vox_offset + math.prod(self.shape) * self.dtype.itemsize
        gzipped = isinstance(self._voxels, gzip.GzipFile)
        if required > size * (MAX_DEFLATE_RATIO if gzipped else 1):
            voxels = "x".join(map(str, self.shape[::-1]))
            raise Truncated(
                f"{self.name}: expected {required} bytes for {voxels} voxels of {self.dtype.name}, "
                f"found {size}{' compressed' if gzipped else ''}; "
                "the header is wrong or the file is cut short"
            )

    @property
    def envelope(self) -> Envelope:
        """Header, geometry and, once the blocks were read to the end, the trailer."""
        parsed = self._parsed
        return Envelope(
            header=self._header,
            lead=self._lead,
            trailer=self._trailer,
            affine=parsed.affine,
            spacing_mm=parsed.spacing_mm,
            slope=parsed.slope,
            inter=parsed.inter,
        )

    def gzip_file(self) -> BinaryIO | None:
        """The stored file, if it is a single .nii.gz."""
        # Only a GzipFile has the attribute fileobj.
        return None if self._parsed.pair else getattr(self._voxels, "fileobj", None)

    def blocks(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        if self._kept is not None and self._kept[0] == tiling:
            yield from self._kept[1]
            return
        size = math.prod(self.shape) * self.dtype.itemsize
        gzipped = isinstance(self._voxels, gzip.GzipFile)
        keep = gzipped and size <= KEPT_BYTES
        kept: list[NDArray[Any]] = []
        for slab in self._slabs(tiling):
            if keep:
                slab.flags.writeable = False  # The same array comes again.
                kept.append(slab)
            yield slab
        if keep:
            self._kept = tiling, kept

    def _slabs(self, tiling: Tiling) -> Iterator[NDArray[Any]]:
        seek(self._voxels, self._parsed.vox_offset, self.name)
        slabs = [tiling.slab_shape(n) for n in range(tiling.slabs_per_volume)]
        for _ in range(tiling.volumes):
            if tiling.axis == 0:
                for shape in slabs:
                    yield self._read(shape)
            else:
                yield from tiling.cut(self._read(tiling.volume_shape))
        self._trailer = read_up_to(self._voxels, MAX_ENVELOPE + 1, self.name)
        if len(self._trailer) > MAX_ENVELOPE:
            raise FormatError(
                f"{self.name}: expected the end of the file after the voxels, found more than "
                f"{MAX_ENVELOPE} further bytes; the dimensions in the header are wrong"
            )

    def _read(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        array = np.empty(shape, self.dtype)
        read_into(self._voxels, array.reshape(-1).view(np.uint8).data, self.name)
        return array.astype(self.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        for file in self._files:
            file.close()


def header_path(path: str | os.PathLike[str]) -> Path:
    """The .hdr file of a pair, by the name of either file; another path as it is."""
    return (pair_paths(Path(path)) or (Path(path),))[0]


def pair_paths(path: Path) -> tuple[Path, Path] | None:
    """The .hdr and .img files of a pair, by the name of either; None for another name."""
    stem, gz = (path.with_suffix(""), path.suffix) if path.suffix.lower() == ".gz" else (path, "")
    if stem.suffix.lower() not in PAIR_SUFFIXES:
        return None
    hdr, img = (".HDR", ".IMG") if stem.suffix.isupper() else (".hdr", ".img")
    return stem.with_suffix(hdr + gz), stem.with_suffix(img + gz)
