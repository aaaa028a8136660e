"""One stream -> voxels in file order, in an array or a file; the whole or a selection."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.chunks import GZIP
from mricodec.bitstream.errors import ChecksumMismatch, FormatError, Truncated, UnsupportedVersion
from mricodec.bitstream.header import LEARNED, LEARNED_INEXACT, PREDICTIVE, STORE, Mode
from mricodec.codec.atomic import gzipped, replacing
from mricodec.codec.coders import base as coders_base
from mricodec.codec.coders.base import LossyModel, LossyParams, SlabCoder
from mricodec.codec.coders.learned import LearnedCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.references import ReferenceBuffer
from mricodec.codec.coders.store import StoreCoder
from mricodec.codec.formats import nifti_header
from mricodec.codec.formats.gzip_recipe import GzipRecipe
from mricodec.codec.formats.nifti import pair_paths
from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import Volume, is_big_endian, to_file_order

from .stream import Progress, Stream

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
            raise FormatError(
                "expected a volume, found a series without voxels that are coded: restore its files"
            )
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


@dataclass(frozen=True)
class Layered:
    """A stream with its coder, and the layer that it refines."""

    stream: Stream
    coder: SlabCoder
    base: Layered | None = None

    @classmethod
    def of(cls, stream: Stream, load_model: Callable[[bytes], LossyModel]) -> Layered:
        """load_model: the model of an id. UnknownModel, UnsupportedVersion."""
        base = None if stream.base is None else cls.of(stream.base, load_model)
        if base is not None and not base.coder.exact:
            raise FormatError(
                "expected a layer that decodes to the same voxels everywhere, found another: the file is damaged"
            )
        return cls(stream, _coder(stream, None if base is None else base.stream, load_model), base)


def _coder(
    stream: Stream, base: Stream | None, load_model: Callable[[bytes], LossyModel]
) -> SlabCoder:
    if stream.coder == STORE:
        return StoreCoder(stream.native)
    if stream.coder == PREDICTIVE:
        head = stream.predictive_head()
        refined = None
        if base is not None and base.mode is Mode.BOUNDED:
            below = base.predictive_head()
            refined = below.codes, below.max_error
        return PredictiveCoder(head.codes, stream.native, head.max_error, base=refined)
    if stream.coder not in (LEARNED, LEARNED_INEXACT):
        raise UnsupportedVersion(
            f"expected coder 0 to 3 in HEAD, found {stream.coder}: update mricodec"
        )
    lossy = stream.lossy_head()
    params = LossyParams(
        lossy.step, lossy.intensity.peak, stream.tiling.turned(stream.reader.header.spacing_mm)
    )
    return LearnedCoder(load_model(stream.model_id), lossy.intensity, params, stream.has_background)


Salvage = Callable[[str], None]  # called with what is wrong with a slab that is filled


def decoded_slabs(
    layered: Layered, needed: Iterable[int], salvage: Salvage | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """(number, values) of slabs, given in rising order, each checked if there are checksums.

    FormatError names the slab that is damaged; with `salvage` its voxels are zeros instead.
    """
    stream, coder, cut = layered.stream, layered.coder, layered.stream.tiling
    sums = stream.sums() if coder.exact else None
    length = stream.predictive_head().chain if stream.coder == PREDICTIVE else 0
    if length and layered.base is not None:
        raise FormatError("expected layers or a chain of volumes, found both: the file is damaged")
    chain = ReferenceBuffer(cut, length)
    wanted = list(needed)
    whole = sorted({slab for last in wanted for slab in _chain_up_to(last, cut, length)})
    below = None if layered.base is None else decoded_slabs(layered.base, whole, salvage)
    asked = set(wanted)
    together = coder.batch_voxels if below is None and not length else 1
    for window in coders_base.windows(
        whole, lambda slab: math.prod(cut.slab_shape(slab)), together
    ):
        beside = chain.beside(window[0]) if length else []
        if below is not None and isinstance(coder, PredictiveCoder):
            beside = [coder.codes(next(below)[1])]
        try:
            found = _decode(layered, window, beside, sums)
        except FormatError as error:
            if salvage is None and len(window) == 1:
                raise type(error)(f"{_name(cut, window[0])}: {error}") from error
            found = []
            for slab in window:
                try:
                    found += _decode(layered, [slab], beside, sums)
                except FormatError as one:
                    message = f"{_name(cut, slab)}: {one}"
                    if salvage is None:
                        raise type(one)(message) from one
                    salvage(message)
                    found.append(np.zeros(cut.slab_shape(slab), stream.native))
        for slab, values in zip(window, found, strict=True):
            if length and isinstance(coder, PredictiveCoder):
                chain.add(slab, coder.codes(values))
            if slab in asked:
                yield slab, values


def _decode(
    layered: Layered, window: list[int], beside: list[NDArray[Any]], sums: NDArray[np.uint32] | None
) -> list[NDArray[Any]]:
    stream, cut = layered.stream, layered.stream.tiling
    if window[-1] >= stream.reader.slab_count:
        raise Truncated(
            "expected a chunk SLAB, found the end of the file: it is cut short; get it again"
        )
    payloads = [stream.reader.slab(slab) for slab in window]
    found = layered.coder.decode(payloads, [cut.slab_shape(slab) for slab in window], beside)
    for slab, values in zip(window, found, strict=True):
        if sums is not None and coders_base.checksum(values, stream.dtype) != int(sums[slab]):
            raise ChecksumMismatch(
                "expected voxels that match their CRC-32, found others: "
                "the file is damaged or this decoder is not exact here; do not use them"
            )
    return found


def _chain_up_to(slab: int, cut: Tiling, length: int) -> range:
    """This slab, after those that must be decoded before."""
    before = slab // cut.slabs_per_volume % length if length else 0
    return range(slab - before * cut.slabs_per_volume, slab + 1, cut.slabs_per_volume)


def _name(cut: Tiling, slab: int) -> str:
    start, stop = cut.span(slab)
    volume = f" of volume {slab // cut.slabs_per_volume}" if cut.volumes > 1 else ""
    return f"slab {slab} (slices {start}:{stop} along {'kji'[cut.axis]}{volume})"


def blocks(
    layered: Layered, selection: Selection, progress: Progress, salvage: Salvage | None = None
) -> Iterator[NDArray[Any]]:
    """The selected voxels in file order, [slices, j, i] each; only slabs that are needed are decoded.

    After the last voxel of a whole scan the digest is compared (ChecksumMismatch), unless the model does not
    decode to the same samples everywhere. salvage: see `decoded_slabs`.
    """
    stream = layered.stream
    cut = stream.tiling
    first, stop = selection.slices
    per_volume = cut.covering(first, stop) if cut.axis == 0 else range(cut.slabs_per_volume)
    needed = [t * cut.slabs_per_volume + n for t in range(*selection.volumes) for n in per_volume]
    digest = hashlib.sha256()
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.header + stream.lead)
    order = FileOrder(cut)
    padding = stream.padding()
    bad: list[str] = []

    def note(message: str) -> None:
        bad.append(message)
        assert salvage is not None
        salvage(message)

    for done, (slab, array) in enumerate(
        decoded_slabs(layered, needed, note if salvage is not None else None), 1
    ):
        start = cut.span(slab)[0] if cut.axis == 0 else 0
        for block in order.add(array):
            part = block[max(first - start, 0) : stop - start]
            if selection.whole:
                digest.update(to_file_order(part, stream.dtype))
            if padding:
                picture = slab // cut.slabs_per_volume * cut.volume_shape[0] + max(first, start)
                part = _padded(part, picture, padding)
            yield part
        progress(done / len(needed))
    if not (selection.whole and layered.coder.exact) or bad:
        return
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.trailer)
    if digest.digest()[: len(stream.reader.digest)] != stream.reader.digest:
        what = "original file" if stream.mode is Mode.LOSSLESS else "decoded voxels"
        message = (
            f"expected SHA-256 {stream.reader.digest.hex()} of the {what}, found {digest.hexdigest()}: "
            "the file is damaged or this decoder is not exact here; do not use the result"
        )
        if salvage is None:
            raise ChecksumMismatch(message)
        salvage("the whole: " + ("its digest is lost" if stream.reader.damaged else message))


def _padded(
    block: NDArray[Any], first: int, padding: list[tuple[int, NDArray[np.uint8]]]
) -> NDArray[Any]:
    """The block [k, j, i], which begins with picture `first`, with the values that stand for no data."""
    block = block.copy()
    for value, bits in padding:
        masks = np.unpackbits(bits[first : first + len(block)], axis=1, count=block[0].size)
        block[masks.reshape(block.shape).astype(bool)] = value
    return block


def decode_volume(
    layered: Layered, selection: Selection, progress: Progress, salvage: Salvage | None = None
) -> Volume:
    """The selected voxels in memory, with the header and the geometry that belong to them."""
    stream = layered.stream
    array = np.empty(selection.shape, stream.native)
    flat = array.reshape(-1)
    at = 0
    for block in blocks(layered, selection, progress, salvage):
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
    layered: Layered,
    selection: Selection,
    destination: str | os.PathLike[str] | BinaryIO,
    progress: Progress,
    salvage: Salvage | None = None,
) -> None:
    """Write .nii, .nii.gz or a .hdr/.img pair, by the name; .nii into a file object. Bounded memory.

    A .nii.gz is the one that was encoded if the stream says how. ValueError for another name, or a pair from a
    scan that was none.
    """
    stream = layered.stream
    header = _header(stream, selection)
    if not header:
        affine = selection.affine(stream.affine)
        header = nifti_header.make_header(
            selection.shape, stream.dtype, stream.spacing_mm, affine, stream.slope, stream.inter
        )
    voxels = (
        to_file_order(block, stream.dtype)
        for block in blocks(layered, selection, progress, salvage)
    )
    lead = stream.lead if selection.whole else bytes(len(stream.lead))
    trailer = stream.trailer if selection.whole else b""
    _write(destination, header, lead, voxels, trailer, _gzip_recipe(stream, selection))


def write_nifti(volume: Volume, destination: str | os.PathLike[str] | BinaryIO) -> None:
    """A volume without header as .nii or .nii.gz. ValueError for another name."""
    affine, slope, inter = volume.affine, volume.slope, volume.inter
    header = nifti_header.make_header(
        volume.array.shape, volume.dtype, volume.spacing_mm, affine, slope, inter
    )
    _write(destination, header, b"", iter([to_file_order(volume.array, volume.dtype)]), b"", None)


def _write(
    destination: str | os.PathLike[str] | BinaryIO,
    header: bytes,
    lead: bytes,
    voxels: Iterator[memoryview],
    trailer: bytes,
    recipe: GzipRecipe | None,
) -> None:
    is_pair = nifti_header.parse(header, "header").pair
    with contextlib.ExitStack() as stack:
        if not isinstance(destination, (str, os.PathLike)):
            file, as_pair = destination, False
        elif (pair := pair_paths(Path(destination))) is not None:
            if not is_pair:
                raise ValueError(
                    f"{destination}: expected a name with .nii or .nii.gz, as the scan was one file"
                )
            _create(stack, pair[0]).write(header)
            file, as_pair = _create(stack, pair[1]), True
        elif os.fspath(destination).lower().endswith((".nii", ".nii.gz")):
            file, as_pair = _create(stack, Path(destination), recipe), False
        else:
            raise ValueError(
                f"{destination}: expected a name with .nii, .nii.gz, .hdr or .img; choose one of them"
            )
        if as_pair:
            file.write(lead)
        else:
            file.write(nifti_header.single_file_header(header) if is_pair else header)
        for block in voxels:
            file.write(block)
        file.write(trailer)


def _create(stack: contextlib.ExitStack, path: Path, recipe: GzipRecipe | None = None) -> BinaryIO:
    file = stack.enter_context(replacing(path))
    if path.suffix.lower() != ".gz":
        return file
    return stack.enter_context(
        gzipped(file) if recipe is None else recipe.compressing(file, str(path))
    )


def _gzip_recipe(stream: Stream, selection: Selection) -> GzipRecipe | None:
    payload = stream.reader.chunk(GZIP)
    if payload is None or not selection.whole or stream.mode is not Mode.LOSSLESS:
        return None
    return GzipRecipe.unpack(payload)


def _header(stream: Stream, selection: Selection) -> bytes:
    if selection.whole or not stream.header:
        return stream.header
    return nifti_header.crop_header(stream.header, selection.shape, selection.slices[0])


def _range(chosen: Range, length: int, name: str) -> tuple[int, int]:
    if chosen is None:
        return 0, length
    if isinstance(chosen, slice):
        if chosen.step not in (None, 1):
            raise ValueError(
                f"{name}: expected a range without gaps, found a step of {chosen.step}"
            )
        start, stop = chosen.start, chosen.stop
    else:
        start, stop = chosen
    start = 0 if start is None else start + length * (start < 0)
    stop = length if stop is None else stop + length * (stop < 0)
    if not 0 <= start < stop <= length:
        raise ValueError(f"{name}: expected a range within 0:{length}, found {start}:{stop}")
    return start, stop
