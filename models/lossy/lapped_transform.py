"""The fixed linear transform of the default model: biorthogonal lapped transforms, 8 x 8 samples in a slice and 1, 2, 4 or 8
slices across.

Time-domain view (Tran, Liang & Tu 2003, "Lapped transform via time-domain pre- and post-filtering"): a filter across every
block boundary, then the DCT-II inside every block. The filter is P = B diag(I, V) B with the butterfly B and
V = J C2' diag(s) C4 J; s = 1 gives the orthogonal transform of Malvar 1989. These s make basis functions smoother:
with a fitted context and no network, (1.3, 1.2, 1.1, 1) took 4 to 9 % fewer bits than s = 1 on four training and
validation scans, and (1.2, 1.1, 1, 1) across slices another 1 to 2 %.

    analysis    x [.., H, W] --P along W and H--> --DCT per 8 x 8 block--> y [.., H/8, W/8, 64]
    across      y [K, ...] --the same with blocks of `depth` slices--> frequency planes [K, ...], group by group
    synthesis   the inverses, in integers: coefficients in 1/16 of a step in, samples in 1/16 of a step out

The picture's own edges have no filter: the first and last half block are only transformed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 8
PRECISION = 14  # bits of the integer matrices
GRAM = 256
HEADROOM = 4  # extra fraction bits between the stages


def _dct(n: int) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)[:, None]
    i = torch.arange(n, dtype=torch.float64)[None]
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * (2 * i + 1) * k / (2 * n))
    matrix[0] /= math.sqrt(2)
    return matrix


def _dct4(n: int) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)[:, None]
    i = torch.arange(n, dtype=torch.float64)[None]
    return math.sqrt(2 / n) * torch.cos(math.pi * (2 * k + 1) * (2 * i + 1) / (4 * n))


def _boundary(n: int, scales: tuple[float, ...], *, inverse: bool = False) -> Tensor:
    """Filter P = B diag(I, V) B of n samples across a block boundary, B the butterfly (its own inverse); or its inverse."""
    half = n // 2
    eye = torch.eye(half, dtype=torch.float64)
    flip = eye.flip(0)
    s = torch.diag(torch.tensor(scales[:half], dtype=torch.float64))
    v = flip @ _dct(half).T @ s @ _dct4(half) @ flip
    if inverse:
        v = flip @ _dct4(half).T @ torch.diag(1 / s.diagonal()) @ _dct(half) @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)]) / math.sqrt(2)
    boundary: Tensor = butterfly @ torch.block_diag(eye, v) @ butterfly
    return boundary


DCT = _dct(BLOCK)
SCALES = (1.3, 1.2, 1.1, 1.0)
PRE, POST = _boundary(BLOCK, SCALES), _boundary(BLOCK, SCALES, inverse=True)
DEPTHS = (1, 2, 4, 8)  # slices that a block reaches across
SCALES_ACROSS = (1.2, 1.1, 1.0, 1.0)
SLICES_AT_ONCE = 16  # in the analysis across; a multiple of all depths


@lru_cache(maxsize=64)
def across(slices: int, depth: int) -> tuple[Tensor, Tensor]:
    """float64 [slices, slices] each, `slices` a multiple of `depth`: slices -> planes, `depth` frequencies of each
    group, and the inverse."""
    pre, post = (torch.eye(slices, dtype=torch.float64) for _ in range(2))
    half = depth // 2
    if depth > 1:
        for start in range(half, slices - half, depth):
            at = slice(start, start + depth)
            pre[at, at] = _boundary(depth, SCALES_ACROSS)
            post[at, at] = _boundary(depth, SCALES_ACROSS, inverse=True)
    dct = torch.block_diag(*[_dct(depth)] * (slices // depth))
    return dct @ pre, post @ dct.T


def analysis_across(y: Tensor, depth: int) -> Tensor:
    """y [S, K, ...] of slices -> of planes [S, K', ...], K' the next multiple of `depth` (the last slice repeated)."""
    if depth == 1:
        return y
    if missing := -y.shape[1] % depth:
        y = torch.cat([y, y[:, -1:].expand(-1, missing, *y.shape[2:])], 1)
    matrix, out = across(y.shape[1], depth)[0].to(y), y.new_empty(y.shape)
    for slab, planes in zip(y.flatten(2), out.flatten(2), strict=True):
        for start in range(0, len(slab), SLICES_AT_ONCE):  # each needs those around alone
            rows = matrix[start : start + SLICES_AT_ONCE]
            near = slice(max(0, start - depth // 2), start + SLICES_AT_ONCE + depth // 2)
            torch.mm(rows[:, near], slab[near], out=planes[start : start + SLICES_AT_ONCE])
    return out


def synthesis_across_float(planes: Tensor, depth: int) -> Tensor:
    """The inverse in floating point, for training."""
    if depth == 1:
        return planes
    return torch.einsum("kp,sp...->sk...", across(planes.shape[1], depth)[1].to(planes), planes)


def synthesis_across(planes: Tensor, depth: int, slices: slice = slice(None)) -> Tensor:
    """Integer synthesis across: planes [K', n] of a slab, integer-valued, in 1/16 -> those slices, in 1/256, float64.

    The matrix is round(2**14 * inverse); exact sums in float64 (|planes| < 2**28), then round(v / 2**10), ties to even.
    """
    if depth == 1:
        return planes[slices].double() * (1 << HEADROOM)
    matrix = (across(len(planes), depth)[1][slices] * (1 << PRECISION)).round() / (
        1 << PRECISION - HEADROOM
    )
    used = matrix.any(0).nonzero()[:, 0]
    first, last = int(used.min()), int(used.max())
    return (
        matrix[:, first : last + 1].to(planes.device) @ planes[first : last + 1].double()
    ).round_()


@lru_cache
def gram() -> tuple[Tensor, Tensor]:
    """What errors of coefficients have in common in the samples: G = S' S, S the synthesis in a slice, far from its edges.

    As a convolution of [N, 64, h, w]: float32 [64, 64, 3, 3], integers in 1 / GRAM; and its diagonal, float32 [64].
    """
    blocks = 5
    pre = torch.eye(blocks * BLOCK, dtype=torch.float64)
    for start in range(BLOCK // 2, (blocks - 1) * BLOCK, BLOCK):
        pre[start : start + BLOCK, start : start + BLOCK] = POST
    synthesis = pre @ torch.block_diag(*[DCT.T] * blocks)
    middle = slice(blocks // 2 * BLOCK, (blocks // 2 + 1) * BLOCK)
    around = (synthesis.T @ synthesis)[middle].unflatten(1, (blocks, BLOCK))[
        :, 1:-1
    ]  # [8, block before, same, after, 8]
    order = zigzag()
    whole = torch.einsum("uyv,pxq->upvqyx", around, around).reshape(64, 64, 3, 3)[order][:, order]
    return (whole * GRAM).round().float(), whole[..., 1, 1].diagonal().float()


def zigzag() -> list[int]:
    """Order of the 64 coefficients: by rising diagonal, index = vertical * 8 + horizontal frequency."""
    return sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8))


def _filter_boundaries(x: Tensor, matrix: Tensor, *, whole: bool = False) -> None:
    """matrix times every 8-vector across a boundary of blocks, in place: x [n, 8 samples of a block, m, blocks, l].

    whole: the result is rounded to integers.
    """
    half = BLOCK // 2
    before, after = x[:, half:, :, :-1], x[:, :half, :, 1:]
    around = torch.cat([before, after], 1)
    out = (matrix @ around.flatten(2)).view(around.shape)
    if whole:
        out.round_()
    before.copy_(out[:, :half])
    after.copy_(out[:, half:])


@lru_cache
def _dct_of_blocks() -> Tensor:
    """float64 [64, 64]: 8 x 8 samples row by row -> coefficients in zigzag order."""
    return torch.kron(DCT, DCT)[zigzag()]


def analysis(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x [N, H, W] (sides multiples of 8) -> coefficients [N, H/8, W/8, 64] in zigzag order; into `out` if it is given."""
    n, h, w = x.shape[0], x.shape[1] // BLOCK, x.shape[2] // BLOCK
    pre = PRE.to(x)
    x = x.reshape(n, h, BLOCK, w, BLOCK).permute(0, 2, 4, 1, 3).contiguous()
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), pre)
    _filter_boundaries(x, pre)
    place = None if out is None else out.view(n, h * w, 64)
    return torch.matmul(
        x.view(n, 64, h * w).transpose(1, 2), _dct_of_blocks().T.to(x), out=place
    ).view(n, h, w, 64)


def synthesis_float(y: Tensor) -> Tensor:
    """The inverse of `analysis` in floating point, for training."""
    n, h, w, _ = y.shape
    post = POST.to(y)
    x = (_dct_of_blocks().T.to(y) @ y.flatten(1, 2).transpose(1, 2)).view(n, BLOCK, BLOCK, h, w)
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), post)
    _filter_boundaries(x, post)
    return _whole(x)


def synthesis(y: Tensor) -> Tensor:
    """Integer synthesis: y [N, h, w, 64] integer-valued, in 1/256 -> samples [N, 8h, 8w] integer-valued, in 1/16, float64.

    The matrices are round(2**14 * M); every stage is an exact sum in float64 (|y| < 2**32) followed by
    round(v / 2**14), ties to even; the last result is round(v / 2**4).
    """
    (n, h, w, _), scale = y.shape, 1 << PRECISION
    dct, post = ((m * scale).round().to(y.device) / scale for m in (DCT.T, POST))
    rows = torch.block_diag(*[dct] * BLOCK)[:, zigzag()]  # along the rows of every block
    x = (rows @ y.double().flatten(1, 2).transpose(1, 2)).round_()
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), post, whole=True)
    x = (dct @ x.view(n, BLOCK, -1)).round_().view(n, BLOCK, BLOCK, h, w)
    _filter_boundaries(x, post, whole=True)
    x.mul_(1 / (1 << HEADROOM)).round_()
    return _whole(x)


def _whole(x: Tensor) -> Tensor:
    """[N, 8, 8, h, w] -> [N, 8 h, 8 w]."""
    return x.permute(0, 3, 1, 4, 2).reshape(len(x), x.shape[3] * BLOCK, -1)
