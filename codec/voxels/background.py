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


def mask_for(samples: NDArray[np.int32], decoded: NDArray[np.int32], coded_size: int) -> bytes:
    """The packed mask of the background tiles of a slab, to be restored to sample 0.

    samples, decoded: [n, h, w], none below 0; coded_size: bytes of the coded slab. b"" if the
    background is exact already, or if the mask would be larger than MAX_COST allows.

    Every mask between the tiles that are background but decoded otherwise and all background tiles
    restores the same slab; the shorter of these two is taken.
    """
    background = _largest_of_tiles(samples) == 0
    wrong = background & (_largest_of_tiles(decoded) > 0)
    if not wrong.any():
        return b""
    packed = min((compress(np.packbits(mask).tobytes()) for mask in (background, wrong)), key=len)
    return packed if len(packed) <= MAX_COST * coded_size else b""


def restore(decoded: NDArray[np.int32], mask: bytes) -> NDArray[np.int32]:
    """Set the tiles of a packed mask in a slab [n, h, w] to 0. FormatError if it is damaged."""
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
    for of_slice, of_tiles in zip(decoded, flags, strict=True):
        of_slice[of_tiles.repeat(TILE, 0)[:h].repeat(TILE, 1)[:, :w]] = 0
    return decoded


def _largest_of_tiles(samples: NDArray[np.int32]) -> NDArray[np.int32]:
    """[n, h, w] -> [n, h/8, w/8]: the largest sample of each tile; those of the border are cut."""
    rows = samples[:, ::TILE].copy()
    for n in range(1, TILE):
        part = samples[:, n::TILE]
        np.maximum(rows[:, : part.shape[1]], part, out=rows[:, : part.shape[1]])
    tiles = rows[..., ::TILE].copy()
    for n in range(1, TILE):
        part = rows[..., n::TILE]
        np.maximum(tiles[..., : part.shape[2]], part, out=tiles[..., : part.shape[2]])
    return tiles
