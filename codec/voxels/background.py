"""Exactly constant background of a lossy slab: a mask of background tiles, restored to sample 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.sections import compress, decompress

# Voxels of a tile along both axes of a slice.
TILE = 8
# The largest mask as a share of the coded slab; without one the background is only nearly exact.
MAX_COST = 1 / 32
# Eight boolean voxels that are all set, as one 64-bit number.
_ALL_SET = np.uint64(0x0101010101010101)


def mask_for(samples: NDArray[np.int32], decoded: NDArray[np.int32], coded_size: int) -> bytes:
    """The packed mask of the background tiles of a slab, to be restored to sample 0.

    samples, decoded: [n, h, w]; coded_size: bytes of the coded slab. b"" if the background is
    exact already, or if the mask would be larger than MAX_COST allows.

    Every mask between the tiles that are background but decoded otherwise and all background tiles
    restores the same slab; the shorter of these two is taken.
    """
    background = (_tiles(samples == 0) == _ALL_SET).all(2)
    wrong = background & (_tiles(decoded != 0) != 0).any(2)
    if not wrong.any():
        return b""
    packed = min((compress(np.packbits(mask).tobytes()) for mask in (background, wrong)), key=len)
    return packed if len(packed) <= MAX_COST * coded_size else b""


def restore(decoded: NDArray[np.int32], mask: bytes) -> NDArray[np.int32]:
    """The slab [n, h, w] with the tiles of a packed mask set to 0. FormatError if it is damaged."""
    if not mask:
        return decoded
    n, h, w = decoded.shape
    tiles = (n, -(-h // TILE), -(-w // TILE))
    count = int(np.prod(tiles))
    size = -(-count // 8)
    bits = decompress(mask, size, "the background of a slab")
    if len(bits) != size:
        raise FormatError(
            f"expected {size} bytes of background in a slab, found {len(bits)}: the file is damaged"
        )
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=count).reshape(tiles).astype(bool)
    return np.where(flags.repeat(TILE, 1)[:, :h].repeat(TILE, 2)[:, :, :w], 0, decoded)


def _tiles(flags: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """[n, h, w] -> [n, h/8, 8, w/8]: rows of a tile as 64-bit numbers; the border is repeated."""
    n, h, w = flags.shape
    padded = np.pad(flags, ((0, 0), (0, -h % TILE), (0, -w % TILE)), "edge")
    return padded.view(np.uint64).reshape(n, padded.shape[1] // TILE, TILE, padded.shape[2] // TILE)
