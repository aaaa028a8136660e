"""Exactly constant background of a lossy slab: a mask of tiles restored to code 0, the least value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.sections import compress, decompress

TILE = 8  # voxels along both axes of a slice
ALL = np.uint64(0x0101010101010101)  # 8 flags that are set
MAX_COST = (
    1 / 32
)  # of the coded slab; a larger mask is left out, and the background is only nearly exact


def mask_for(codes: NDArray[np.int32], decoded: NDArray[np.int32], coded_size: int) -> bytes:
    """Packed mask of tiles of a slab [n, h, w] to be set to 0; b"" if none need be or it is dear.

    Any mask between "background but decoded otherwise" and "background" does; the shorter one is taken.
    """
    background = (_tiles(codes == 0) == ALL).all(2)
    wrong = background & (_tiles(decoded != 0) != 0).any(2)
    if not wrong.any():
        return b""
    packed = min((compress(np.packbits(mask).tobytes()) for mask in (background, wrong)), key=len)
    return packed if len(packed) <= MAX_COST * coded_size else b""


def restore(decoded: NDArray[np.int32], mask: bytes) -> NDArray[np.int32]:
    """The slab [n, h, w] with the tiles of a packed mask set to 0; FormatError if it is no such mask."""
    if not mask:
        return decoded
    n, h, w = decoded.shape
    tiles = (n, -(-h // TILE), -(-w // TILE))
    size = -(-int(np.prod(tiles)) // 8)
    bits = decompress(mask, size, "the background of a slab")
    if len(bits) != size:
        raise FormatError(
            f"expected {size} bytes of background in a slab, found {len(bits)}: the file is damaged"
        )
    flags = (
        np.unpackbits(np.frombuffer(bits, np.uint8), count=int(np.prod(tiles)))
        .reshape(tiles)
        .astype(bool)
    )
    return np.where(flags.repeat(TILE, 1)[:, :h].repeat(TILE, 2)[:, :, :w], 0, decoded)


def _tiles(flags: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """[n, h, w] -> [n, h/8, 8, w/8], the 8 bytes of a row of a tile as one number; the border repeated."""
    n, h, w = flags.shape
    padded = np.pad(flags, ((0, 0), (0, -h % TILE), (0, -w % TILE)), "edge")
    return padded.view(np.uint64).reshape(n, padded.shape[1] // TILE, TILE, padded.shape[2] // TILE)
