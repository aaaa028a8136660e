"""A whole stream: slabs with their references and layers, put together to the scan."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import learned, predictive
from .container import BOUNDED, LEARNED, LOSSLESS, PREDICTIVE, STORE, Fields, Stream, read_stream
from .sections import decompress, source_file, store_slab

Array = NDArray[Any]


def decode(data: bytes) -> Array:
    """The voxels of a stream, as its file stores them; ValueError if the digest differs."""
    stream = read_stream(data)
    voxels = assembled(stream, decoded_slabs(stream))
    check_digest(stream, voxels)
    for payload in stream.chunks.get("PADV", []):
        voxels = padded(payload, voxels)
    return voxels


def decoded_slabs(stream: Stream) -> list[Array]:
    """[K, J, I] of every slab, in order."""
    header = stream.header
    shapes = header.slab_shapes() * header.volumes
    if len(shapes) != len(stream.slabs):
        raise ValueError(f"expected {len(shapes)} slabs, found {len(stream.slabs)}")
    pairs = list(zip(stream.slabs, shapes, strict=True))
    if header.coder == STORE:
        dtype = np.dtype("<" + header.voxel_type)
        contents = [store_slab(data, math.prod(shape), dtype.itemsize) for data, shape in pairs]
        return [
            np.frombuffer(content, dtype).reshape(shape)
            for content, shape in zip(contents, shapes, strict=True)
        ]
    if header.coder == PREDICTIVE:
        return predictive_slabs(stream, shapes)
    if header.coder == LEARNED:
        decoder = learned.Decoder(header)
        return [decoder.slab(data, shape) for data, shape in pairs]
    raise ValueError(f"expected a coder 0 to 2, found {header.coder}")


def predictive_slabs(stream: Stream, shapes: list[tuple[int, int, int]]) -> list[Array]:
    header, base = stream.header, stream.only("BASE")
    parameters = predictive.read_parameters(
        header.params, header.voxel_type, header.mode, header.coder
    )
    layer = read_stream(base) if base is not None else None
    below = decoded_slabs(layer) if layer else []
    within = layer_bound(stream, layer, parameters) if layer else 0
    slabs: list[Array] = []
    samples: list[NDArray[np.int64]] = []
    count = len(header.slab_shapes())
    for n, (payload, shape) in enumerate(zip(stream.slabs, shapes, strict=True)):
        if layer:
            references = [parameters.sample_map.samples(below[n])]
        else:
            before = (n // count) % parameters.chain if parameters.chain else 0
            earlier = [samples[n - volume * count] for volume in range(1, before + 1)]
            references = earlier[:1] + ([sum(earlier) // before] if before > 1 else [])
        slabs.append(predictive.decode_slab(payload, shape, parameters, references, within))
        samples.append(parameters.sample_map.samples(slabs[-1]))
    return slabs


def layer_bound(stream: Stream, layer: Stream, parameters: predictive.Parameters) -> int:
    """The ε of a bounded layer that the tables "within" are for, else 0."""
    inside = layer.header
    if (inside.mode, stream.header.mode, inside.coder) != (BOUNDED, LOSSLESS, PREDICTIVE):
        return 0
    below = predictive.read_parameters(inside.params, inside.voxel_type, inside.mode, inside.coder)
    alike = below.sample_map == parameters.sample_map and below.sample_map.kind == 0
    return below.max_error if alike and below.max_error <= 16 else 0


def assembled(stream: Stream, slabs: list[Array]) -> Array:
    header = stream.header
    dtype = np.dtype(header.stored_type)
    count = len(header.slab_shapes())
    volumes = [
        np.moveaxis(np.concatenate(slabs[n : n + count]), 0, header.slab_axis)
        for n in range(0, len(slabs), max(count, 1))
    ]
    if not volumes:
        return np.zeros(header.shape, dtype)
    return np.ascontiguousarray(np.stack(volumes).reshape(header.shape).astype(dtype))


def check_digest(stream: Stream, voxels: Array) -> None:
    data = voxels.tobytes()
    if stream.header.mode == LOSSLESS:
        header, trailer = source_file(stream.only("ORIG"))
        data = header + data + trailer
    if not hashlib.sha256(data).digest().startswith(stream.digest):
        raise ValueError("expected voxels that match the digest in ENDX, found others")


def padded(payload: bytes, voxels: Array) -> Array:
    """PADV: voxels that stand for no data."""
    fields = Fields(payload)
    value = fields.signed()
    rows, columns = (1, 1, *voxels.shape)[-2:]
    size = -(-rows * columns // 8)
    masks = np.frombuffer(decompress(fields.rest()), np.uint8).reshape(-1, size)
    bits = np.unpackbits(masks, axis=1, count=rows * columns).reshape(voxels.shape)
    return np.where(bits == 1, np.array(value).astype(voxels.dtype), voxels)
