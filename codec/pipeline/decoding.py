"""One stream -> voxels in file order: the whole or a selection, slab by slab."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import ChecksumMismatch, FormatError, Truncated, UnsupportedVersion
from mricodec.bitstream.header import LEARNED, LEARNED_INEXACT, PREDICTIVE, STORE, Mode
from mricodec.codec.coders import base
from mricodec.codec.coders.base import LossyModel, LossyParams, SlabCoder
from mricodec.codec.coders.learned import LearnedCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.references import ReferenceBuffer
from mricodec.codec.coders.store import StoreCoder
from mricodec.codec.formats import nifti_header
from mricodec.codec.tiling import FileOrder, Tiling
from mricodec.codec.volume import Envelope, Volume, is_big_endian, to_file_order

from .series import View
from .stream import Progress, Stream

Range = slice | tuple[int, int] | None
# Where the voxels of a slab may be put.
Output = Callable[[int], NDArray[Any] | None]
Salvage = Callable[
    [str], None
]  # It is called with a line for every slab that is filled with zeros.


# The samples of a scan that was one file are its values.
_PLAIN = View()


@dataclass(frozen=True)
class Selection:
    """Part of a scan: volumes (leading axes counted as one) and slices of the axis k.

    view: what samples stand for; its part is not taken here.
    """

    volumes: tuple[int, int]
    slices: tuple[int, int]
    shape: tuple[int, ...]
    whole: bool
    view: View = _PLAIN

    @classmethod
    def of(cls, stream: Stream, slices: Range, volumes: Range, view: View = _PLAIN) -> Selection:
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
            leading = shape[:-3] if count == stream.tiling.volumes else (count,)
            shape = (*leading, depth, j, i)
        return cls(chosen_volumes, chosen_slices, shape, whole, view)

    def dtype(self, stream: Stream) -> np.dtype[Any]:
        """The type of the selected values, in the byte order of the scan."""
        return self.view.values.dtype(stream.dtype)

    def envelope(self, stream: Stream) -> Envelope:
        """What surrounds the selected voxels: of a part, with a header and an affine of its own."""
        envelope, first = self.view.envelope(stream.envelope), self.slices[0]
        if self.whole:
            return envelope
        affine = None if envelope.affine is None else envelope.affine.copy()
        if affine is not None:
            affine[:3, 3] += affine[:3, 2] * first
        header = envelope.header and nifti_header.crop_header(envelope.header, self.shape, first)
        return replace(envelope, header=header, lead=b"", trailer=b"", affine=affine)


@dataclass(frozen=True)
class Layered:
    """A stream with its coder, and the layer that it refines."""

    stream: Stream
    coder: SlabCoder
    base: Layered | None = None

    @classmethod
    def of(cls, stream: Stream, load_model: Callable[[bytes], LossyModel]) -> Layered:
        """load_model: the model of an id. UnknownModel, UnsupportedVersion."""
        lower = None if stream.base is None else cls.of(stream.base, load_model)
        if lower is not None and not lower.coder.exact:
            raise FormatError(
                "expected a layer that decodes to the same voxels everywhere, found another: "
                "the file is damaged"
            )
        coder = _coder(stream, None if lower is None else lower.stream, load_model)
        return cls(stream, coder, lower)


def _coder(
    stream: Stream, lower: Stream | None, load_model: Callable[[bytes], LossyModel]
) -> SlabCoder:
    if stream.coder == STORE:
        return StoreCoder(stream.native)
    if stream.coder == PREDICTIVE:
        head = stream.predictive_head()
        refined = None
        if lower is not None and lower.mode is Mode.BOUNDED:
            below = lower.predictive_head()
            refined = below.sample_map, below.max_error
        return PredictiveCoder(head.sample_map, stream.native, head.max_error, base=refined)
    if stream.coder not in (LEARNED, LEARNED_INEXACT):
        raise UnsupportedVersion(
            f"expected coder 0 to 3 in HEAD, found {stream.coder}: update mricodec"
        )
    lossy = stream.lossy_head()
    spacing = stream.tiling.slab_axes(stream.reader.header.spacing_mm)
    params = LossyParams(lossy.step, lossy.intensity.peak, spacing)
    return LearnedCoder(load_model(stream.model_id), lossy.intensity, params, stream.has_background)


@dataclass(frozen=True)
class _Known:
    """What the decoder of some slabs is given beside their payloads; sums: of all slabs."""

    references: base.References
    sums: NDArray[np.uint32] | None
    outputs: base.Outputs


def _no_output(slab: int) -> NDArray[Any] | None:
    return None


def decoded_slabs(
    layered: Layered,
    needed: Iterable[int],
    salvage: Salvage | None = None,
    output: Output = _no_output,
) -> Iterator[tuple[int, NDArray[Any]]]:
    """(number, voxels) of slabs in rising order, each compared with its checksum if there is one.

    FormatError names the slab that is damaged; with `salvage` its voxels are zeros instead.
    output: where the voxels of a slab may be put.
    """
    stream, coder, tiling = layered.stream, layered.coder, layered.stream.tiling
    sums = stream.sums() if coder.exact else None
    length = stream.predictive_head().chain if stream.coder == PREDICTIVE else 0
    if length and layered.base is not None:
        raise FormatError("expected layers or a chain of volumes, found both: the file is damaged")
    chain = ReferenceBuffer(tiling, length)
    selected = set(needed)
    decoded = sorted({slab for last in selected for slab in _chain_up_to(last, tiling, length)})
    below = None if layered.base is None else decoded_slabs(layered.base, decoded, salvage)
    batch_voxels = coder.batch_voxels if below is None and not length else 1
    for window in base.windows(
        decoded, lambda slab: math.prod(tiling.slab_shape(slab)), batch_voxels
    ):
        references = chain.references(window[0]) if length else []
        if below is not None and isinstance(coder, PredictiveCoder):
            references = [coder.samples(next(below)[1])]
        known = _Known(references, sums, [output(slab) for slab in window])
        slabs = _decode_window(layered, window, known, salvage)
        for slab, voxels in zip(window, slabs, strict=True):
            if length and isinstance(coder, PredictiveCoder):
                chain.add(slab, coder.samples(voxels))
            if slab in selected:
                yield slab, voxels


def _decode_window(
    layered: Layered, window: list[int], known: _Known, salvage: Salvage | None
) -> list[NDArray[Any]]:
    """The voxels of some slabs; if one is damaged each is tried alone, so that it can be named."""
    stream, tiling = layered.stream, layered.stream.tiling
    try:
        return _decode(layered, window, known)
    except FormatError as error:
        if salvage is None and len(window) == 1:
            raise type(error)(f"{_name(tiling, window[0])}: {error}") from error
    slabs = []
    for slab in window:
        try:
            slabs += _decode(layered, [slab], replace(known, outputs=[None]))
        except FormatError as error:
            message = f"{_name(tiling, slab)}: {error}"
            if salvage is None:
                raise type(error)(message) from error
            salvage(message)
            slabs.append(np.zeros(tiling.slab_shape(slab), stream.native))
    return slabs


def _decode(layered: Layered, window: list[int], known: _Known) -> list[NDArray[Any]]:
    stream, tiling = layered.stream, layered.stream.tiling
    if window[-1] >= stream.reader.slab_count:
        raise Truncated(
            "expected a chunk SLAB, found the end of the file: it is cut short; get it again"
        )
    payloads = [stream.reader.slab(slab) for slab in window]
    shapes = [tiling.slab_shape(slab) for slab in window]
    slabs = layered.coder.decode(payloads, shapes, known.references, known.outputs)
    for slab, voxels in zip(window, slabs, strict=True):
        if known.sums is None:
            continue
        if base.checksum(voxels, stream.dtype) != int(known.sums[slab]):
            raise ChecksumMismatch(
                "expected voxels that match their CRC-32, found others: "
                "the file is damaged or this decoder is not exact here; do not use them"
            )
    return slabs


def _chain_up_to(slab: int, tiling: Tiling, length: int) -> range:
    """This slab, after those that are its references."""
    before = slab // tiling.slabs_per_volume % length if length else 0
    return range(slab - before * tiling.slabs_per_volume, slab + 1, tiling.slabs_per_volume)


def _name(tiling: Tiling, slab: int) -> str:
    start, stop = tiling.span(slab)
    volume = f" of volume {slab // tiling.slabs_per_volume}" if tiling.volumes > 1 else ""
    return f"slab {slab} (slices {start}:{stop} along {'kji'[tiling.axis]}{volume})"


def blocks(
    layered: Layered,
    selection: Selection,
    progress: Progress,
    salvage: Salvage | None = None,
    output: Output = _no_output,
) -> Iterator[NDArray[Any]]:
    """The selected voxels in file order, [slices, j, i] each; only needed slabs are decoded.

    After the last voxel of a whole scan the digest is compared (ChecksumMismatch), unless the model
    does not decode to the same samples everywhere. salvage, output: see `decoded_slabs`.
    """
    stream, tiling = layered.stream, layered.stream.tiling
    first, stop = selection.slices
    count = tiling.slabs_per_volume
    per_volume = tiling.covering(first, stop) if tiling.axis == 0 else range(count)
    needed = [t * count + n for t in range(*selection.volumes) for n in per_volume]
    digest = hashlib.sha256()
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.envelope.header + stream.envelope.lead)
    order = FileOrder(tiling)
    padding = stream.padding()
    lost: list[str] = []

    def note(message: str) -> None:
        lost.append(message)
        assert salvage is not None
        salvage(message)

    noted = note if salvage is not None else None
    for done, (slab, voxels) in enumerate(decoded_slabs(layered, needed, noted, output), 1):
        start = tiling.span(slab)[0] if tiling.axis == 0 else 0
        for block in order.add(voxels):
            part = block[max(first - start, 0) : stop - start]
            if selection.whole:
                digest.update(to_file_order(part, stream.dtype))
            if padding:
                frame = slab // count * tiling.volume_shape[0] + max(first, start)
                part = _padded(part, frame, padding)
            yield part
        progress(done / len(needed))
    if selection.whole and layered.coder.exact and not lost:
        _compare_digest(stream, digest, salvage)


def _compare_digest(stream: Stream, digest: Any, salvage: Salvage | None) -> None:
    """digest: SHA-256 of all but the trailer. ChecksumMismatch, or a line for `salvage`."""
    if stream.mode is Mode.LOSSLESS:
        digest.update(stream.envelope.trailer)
    if digest.digest()[: len(stream.reader.digest)] == stream.reader.digest:
        return
    what = "original file" if stream.mode is Mode.LOSSLESS else "decoded voxels"
    message = (
        f"expected SHA-256 {stream.reader.digest.hex()} of the {what}, found "
        f"{digest.hexdigest()}: the file is damaged or this decoder is not exact here; "
        "do not use the result"
    )
    if salvage is None:
        raise ChecksumMismatch(message)
    salvage("the whole: " + ("its digest is lost" if stream.reader.damaged else message))


def _padded(
    block: NDArray[Any], first: int, padding: list[tuple[int, NDArray[np.uint8]]]
) -> NDArray[Any]:
    """The block [k, j, i], which begins with frame `first`, with its padding values."""
    block = block.copy()
    for value, bits in padding:
        masks = np.unpackbits(bits[first : first + len(block)], axis=1, count=block[0].size)
        block[masks.reshape(block.shape).astype(bool)] = value
    return block


def _slabs_of(array: NDArray[Any], tiling: Tiling) -> Output:
    """The slabs of a whole scan as parts of its array, if they are cut along its slowest axis."""
    if tiling.axis != 0 or tiling.volumes == 0:
        return _no_output
    volumes = array.reshape(tiling.volumes, *tiling.volume_shape)

    def slab_of(slab: int) -> NDArray[Any]:
        part: NDArray[Any] = volumes[slab // tiling.slabs_per_volume]
        return part[slice(*tiling.span(slab))]

    return slab_of


def value_blocks(
    layered: Layered,
    selection: Selection,
    progress: Progress,
    salvage: Salvage | None = None,
    output: Output = _no_output,
) -> Iterator[NDArray[Any]]:
    """As `blocks`, with the values that the samples stand for; output: for samples that are."""
    (first, stop), values = selection.slices, selection.view.values
    depth = layered.stream.tiling.volume_shape[0]
    volume, k = selection.volumes[0], first
    for block in blocks(layered, selection, progress, salvage, output):
        yield values.values(block, volume * depth + k)
        k += len(block)
        if k == stop:
            volume, k = volume + 1, first


def decode_volume(
    layered: Layered, selection: Selection, progress: Progress, salvage: Salvage | None = None
) -> Volume:
    """The selected voxels in memory, in the envelope that belongs to them."""
    stream = layered.stream
    dtype = selection.dtype(stream)
    array = np.empty(selection.shape, dtype.newbyteorder("="))
    in_parts = selection.whole and selection.view.values.are_samples(stream.native)
    output = _slabs_of(array, stream.tiling) if in_parts else _no_output
    flat = array.reshape(-1)
    position = 0
    for block in value_blocks(layered, selection, progress, salvage, output):
        if not np.may_share_memory(block, flat):  # Else it was decoded to where it belongs.
            flat[position : position + block.size] = block.reshape(-1)
        position += block.size
    return Volume(array, selection.envelope(stream), is_big_endian(dtype))


def part_of(stack: Volume, view: View, chosen: tuple[Range, Range]) -> Volume:
    """The volume that is a part of a stack as it is stored; chosen: slices and volumes of it."""
    part = view.part
    assert part is not None
    slices = _range(chosen[0], part.depth, "slices")
    volumes = _range(chosen[1], part.volumes, "volumes")
    frames = stack.array.reshape(-1, *stack.array.shape[-2:])[list(part.slices)]
    values = view.values.values(frames, 0).reshape(part.volumes, part.depth, *frames.shape[1:])
    array = values[slice(*volumes), slice(*slices)]
    envelope = view.envelope(stack.envelope)
    if envelope.affine is not None:
        affine = envelope.affine.copy()
        affine[:3, 3] += affine[:3, 2] * slices[0]
        envelope = replace(envelope, affine=affine)
    squeezed = array[0] if part.volumes == 1 else array
    return Volume(np.ascontiguousarray(squeezed), envelope, stack.big_endian)


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
