"""One stream -> voxels in file order, in an array or a file; the whole or a selection."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.container import Mode
from mricodec.bitstream.errors import ChecksumMismatch, FormatError

from . import nifti, slabcoding
from .output import gzipped, replacing
from .slabcoding import SlabCoder
from .stream import Progress, Stream
from .tiling import FileOrder
from .volume import Volume, is_big_endian, to_file_order

Range = slice | tuple[int, int] | None


@dataclass(frozen=True)
class Selection:
    """Part of a scan: volumes (all leading axes counted as one) and slices of the third-last axis, k."""

    volumes: tuple[int, int]
    slices: tuple[int, int]
    shape: tuple[int, ...]
    whole: bool

    @classmethod
    def of(cls, stream: Stream, slices: Range, volumes: Range) -> Selection:
        """ValueError for an empty range, or one that reaches beyond the scan."""
        if 0 in stream.shape:
            raise FormatError("expected a volume, found a series without voxels that are coded: restore its files")
        k, j, i = stream.tiling.volume_shape
        chosen_slices = _range(slices, k, "slices")
        chosen_volumes = _range(volumes, stream.tiling.volumes, "volumes")
        whole = chosen_slices == (0, k) and chosen_volumes == (0, stream.tiling.volumes)
        shape = stream.shape
        if not whole and len(shape) >= 3:
            depth = chosen_slices[1] - chosen_slices[0]
            count = chosen_volumes[1] - chosen_volumes[0]
            shape = (*(shape[:-3] if count == stream.tiling.volumes else (count,)), depth, j, i)
        return cls(chosen_volumes, chosen_slices, shape, whole)

    def affine(self, whole: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """The affine of the part from that of the whole."""
        if whole is None:
            return None
        part = whole.copy()
        part[:3, 3] += part[:3, 2] * self.slices[0]
        return part


def blocks(
    stream: Stream, coder: SlabCoder, selection: Selection, progress: Progress
) -> Iterator[NDArray[Any]]:
    """The selected voxels in file order, [slices, j, i] each; only slabs that are needed are decoded.

    After the last voxel of a whole scan the digest is compared (ChecksumMismatch), unless the model does not
    decode to the same samples everywhere.
    """
    cut = stream.tiling
    per_volume = list(range(cut.slabs_per_volume))
    first, stop = selection.slices
    if cut.axis == 0:
        per_volume = per_volume[first // cut.slices : -(-stop // cut.slices)]
    needed = [t * cut.slabs_per_volume + n for t in range(*selection.volumes) for n in per_volume]
    digest = hashlib.sha256()
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.header + stream.lead)
    order = FileOrder(cut)
    padding = stream.padding()
    done = 0
    for window in slabcoding.windows(
        needed, lambda slab: math.prod(cut.slab_shape(slab)), coder.batch_voxels
    ):
        payloads = [stream.reader.slab(slab) for slab in window]
        decoded = slabcoding.decode_slabs(coder, payloads, [cut.slab_shape(slab) for slab in window])
        for slab, array in zip(window, decoded, strict=True):
            start = cut.span(slab)[0] if cut.axis == 0 else 0
            for block in order.add(array):
                part = block[max(first - start, 0) : stop - start]
                if selection.whole:
                    digest.update(to_file_order(part, stream.dtype))
                if padding:
                    picture = slab // cut.slabs_per_volume * cut.volume_shape[0] + max(first, start)
                    part = _padded(part, picture, padding)
                yield part
        done += len(window)
        progress(done / len(needed))
    if not (selection.whole and coder.exact):
        return
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.trailer)
    if digest.digest() != stream.reader.digest:
        what = "original file" if stream.mode is Mode.LOSSLESS else "decoded voxels"
        raise ChecksumMismatch(
            f"expected SHA-256 {stream.reader.digest.hex()} of the {what}, found {digest.hexdigest()}: "
            "the file is damaged or this decoder is not exact here; do not use the result"
        )


def _padded(block: NDArray[Any], first: int, padding: list[tuple[int, NDArray[np.uint8]]]) -> NDArray[Any]:
    """The block [k, j, i], which begins with picture `first`, with the values that stand for no data."""
    block = block.copy()
    for value, bits in padding:
        masks = np.unpackbits(bits[first : first + len(block)], axis=1, count=block[0].size)
        block[masks.reshape(block.shape).astype(bool)] = value
    return block


def decode_volume(stream: Stream, coder: SlabCoder, selection: Selection, progress: Progress) -> Volume:
    """The selected voxels in memory, with the header and the geometry that belong to them."""
    array = np.empty(selection.shape, stream.native)
    flat = array.reshape(-1)
    at = 0
    for block in blocks(stream, coder, selection, progress):
        flat[at : at + block.size] = block.reshape(-1)
        at += block.size
    return Volume(
        array,
        selection.affine(stream.affine),
        stream.spacing_mm,
        stream.slope,
        stream.inter,
        is_big_endian(stream.dtype),
        _header(stream, selection),
        stream.lead if selection.whole else b"",
        stream.trailer if selection.whole else b"",
    )


def decode_to_nifti(
    stream: Stream,
    coder: SlabCoder,
    selection: Selection,
    destination: str | os.PathLike[str] | BinaryIO,
    progress: Progress,
) -> None:
    """Write .nii, .nii.gz or a .hdr/.img pair, by the name; .nii into a file object. Bounded memory.

    ValueError for another name, or a pair from a scan that was none.
    """
    header = _header(stream, selection)
    if not header:
        header = nifti.make_header(
            selection.shape,
            stream.dtype,
            stream.spacing_mm,
            selection.affine(stream.affine),
            stream.slope,
            stream.inter,
        )
    is_pair = nifti.parse(header, "header").pair
    with contextlib.ExitStack() as stack:
        if not isinstance(destination, (str, os.PathLike)):
            file, as_pair = destination, False
        elif (pair := nifti.pair_paths(Path(destination))) is not None:
            if not is_pair:
                raise ValueError(
                    f"{destination}: expected a name with .nii or .nii.gz, as the scan was one file"
                )
            _create(stack, pair[0]).write(header)
            file, as_pair = _create(stack, pair[1]), True
        elif os.fspath(destination).lower().endswith((".nii", ".nii.gz")):
            file, as_pair = _create(stack, Path(destination)), False
        else:
            raise ValueError(
                f"{destination}: expected a name with .nii, .nii.gz, .hdr or .img; choose one of them"
            )
        if as_pair:
            file.write(stream.lead if selection.whole else bytes(len(stream.lead)))
        else:
            file.write(nifti.single_file_header(header) if is_pair else header)
        for block in blocks(stream, coder, selection, progress):
            file.write(to_file_order(block, stream.dtype))
        if selection.whole:
            file.write(stream.trailer)


def _create(stack: contextlib.ExitStack, path: Path) -> BinaryIO:
    file = stack.enter_context(replacing(path))
    return stack.enter_context(gzipped(file)) if path.suffix.lower() == ".gz" else file


def _header(stream: Stream, selection: Selection) -> bytes:
    if selection.whole or not stream.header:
        return stream.header
    return nifti.crop_header(stream.header, selection.shape, selection.slices[0])


def _range(chosen: Range, length: int, name: str) -> tuple[int, int]:
    if chosen is None:
        return 0, length
    if isinstance(chosen, slice):
        if chosen.step not in (None, 1):
            raise ValueError(f"{name}: expected a range without gaps, found a step of {chosen.step}")
        start, stop = chosen.start, chosen.stop
    else:
        start, stop = chosen
    start = 0 if start is None else start + length * (start < 0)
    stop = length if stop is None else stop + length * (stop < 0)
    if not 0 <= start < stop <= length:
        raise ValueError(f"{name}: expected a range within 0:{length}, found {start}:{stop}")
    return start, stop
