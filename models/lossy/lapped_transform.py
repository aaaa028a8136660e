"""The fixed transform of the default model: biorthogonal lapped transforms, in and across slices.

Time-domain view (Tran, Liang & Tu 2003, "Lapped transform via time-domain pre- and
post-filtering"): a pre-filter across every block boundary, then the DCT-II inside every block. The
filter is P = B diag(I, V) B with the butterfly B and V = J C2' diag(s) C4 J; s = 1 gives the
orthogonal transform of Malvar 1989. The scales s below make basis functions smoother: with a fitted
context and no network, (1.3, 1.2, 1.1, 1) took 4 to 9 % fewer bits than s = 1 on four training
and validation scans, and (1.2, 1.1, 1, 1) across slices another 1 to 2 %.

    analysis          x [.., H, W] --P along W and H--> --DCT of 8 x 8 blocks-> y [.., H/8, W/8, 64]
    analysis_across   y [K, ...] --the same with blocks of `depth` slices--> bands [K, ...]:
                      `depth` frequency bands of every group of `depth` slices, group by group
    synthesis         the inverses, in integers: coefficients in 1/16 of a step in,
                      samples in 1/16 of a step out

There is no filter at the edges of the picture: the first and last half block are only transformed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# Side of a block in a slice, in samples.
BLOCK = 8
# Fraction bits of the integer matrices of the synthesis.
PRECISION = 14
# Extra fraction bits between the stages of the synthesis.
HEADROOM = 4
# One unit of the matrix of `gram` is 1 / GRAM_SCALE.
GRAM_SCALE = 256
# Numbers of slices that a group may have, i.e. that are transformed together.
DEPTHS = (1, 2, 4, 8)
# The s of the filter within slices.
SCALES = (1.3, 1.2, 1.1, 1.0)
# The s of the filter across slices, of which the first depth / 2 are used.
SCALES_ACROSS = (1.2, 1.1, 1.0, 1.0)
# Slices that one product of the analysis across yields; a multiple of all depths.
SLICES_PER_PRODUCT = 16


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


def _boundary_filter(n: int, scales: tuple[float, ...], *, inverse: bool = False) -> Tensor:
    """The filter P = B diag(I, V) B of n samples across a block boundary, or its inverse.

    B is the butterfly, which is its own inverse.
    """
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
PRE, POST = _boundary_filter(BLOCK, SCALES), _boundary_filter(BLOCK, SCALES, inverse=True)


@lru_cache(maxsize=64)
def across(slices: int, depth: int) -> tuple[Tensor, Tensor]:
    """The matrix from slices to bands and its inverse, float64 [slices, slices] each.

    `slices` is a multiple of `depth`; the bands are `depth` frequencies of each group of slices.
    """
    pre, post = (torch.eye(slices, dtype=torch.float64) for _ in range(2))
    half = depth // 2
    if depth > 1:
        for start in range(half, slices - half, depth):
            at = slice(start, start + depth)
            pre[at, at] = _boundary_filter(depth, SCALES_ACROSS)
            post[at, at] = _boundary_filter(depth, SCALES_ACROSS, inverse=True)
    dct = torch.block_diag(*[_dct(depth)] * (slices // depth))
    return dct @ pre, post @ dct.T


def analysis_across(y: Tensor, depth: int) -> Tensor:
    """y [S, K, ...] of slices -> bands [S, K', ...].

    K' is the next multiple of `depth`; the last slice is repeated up to there.
    """
    if depth == 1:
        return y
    if missing := -y.shape[1] % depth:
        y = torch.cat([y, y[:, -1:].expand(-1, missing, *y.shape[2:])], 1)
    matrix, out = across(y.shape[1], depth)[0].to(y), y.new_empty(y.shape)
    for slab, bands in zip(y.flatten(2), out.flatten(2), strict=True):
        # The matrix is banded, so a product needs the slices around its rows only.
        for start in range(0, len(slab), SLICES_PER_PRODUCT):
            rows = matrix[start : start + SLICES_PER_PRODUCT]
            near = slice(max(0, start - depth // 2), start + SLICES_PER_PRODUCT + depth // 2)
            torch.mm(rows[:, near], slab[near], out=bands[start : start + SLICES_PER_PRODUCT])
    return out


def synthesis_across_float(bands: Tensor, depth: int) -> Tensor:
    """The inverse of `analysis_across` in floating point, for training."""
    if depth == 1:
        return bands
    return torch.einsum("kp,sp...->sk...", across(bands.shape[1], depth)[1].to(bands), bands)


def synthesis_across(bands: Tensor, depth: int, slices: slice = slice(None)) -> Tensor:
    """Integer synthesis across: bands [K', n] of a slab, integer-valued, in 1/16 -> those slices.

    The slices are float64, integer-valued, in 1/256. The matrix is round(2**14 * inverse); the sums
    are exact in float64 (|bands| < 2**28), then round(v / 2**10), ties to even.
    """
    if depth == 1:
        return bands[slices].double() * (1 << HEADROOM)
    matrix = (across(len(bands), depth)[1][slices] * (1 << PRECISION)).round() / (
        1 << PRECISION - HEADROOM
    )
    used = matrix.any(0).nonzero()[:, 0]
    first, last = int(used.min()), int(used.max())
    product = matrix[:, first : last + 1].to(bands.device) @ bands[first : last + 1].double()
    return product.round_()


@lru_cache
def gram() -> tuple[Tensor, Tensor]:
    """The Gram matrix G = S'S of the synthesis S in a slice, far from its edges, as a convolution.

    Returns the kernel for [N, 64, h, w], float32 [64, 64, 3, 3], integers in 1 / GRAM_SCALE, and
    the diagonal of G, the squared norms of the basis functions, float32 [64].
    """
    blocks = 5
    post = torch.eye(blocks * BLOCK, dtype=torch.float64)
    for start in range(BLOCK // 2, (blocks - 1) * BLOCK, BLOCK):
        post[start : start + BLOCK, start : start + BLOCK] = POST
    synthesis = post @ torch.block_diag(*[DCT.T] * blocks)
    centre = slice(blocks // 2 * BLOCK, (blocks // 2 + 1) * BLOCK)
    products = (synthesis.T @ synthesis)[centre].unflatten(1, (blocks, BLOCK))
    near = products[:, 1:-1]  # [8, block before, itself, block after, 8]
    order = zigzag()
    whole = torch.einsum("uyv,pxq->upvqyx", near, near).reshape(64, 64, 3, 3)[order][:, order]
    return (whole * GRAM_SCALE).round().float(), whole[..., 1, 1].diagonal().float()


def zigzag() -> list[int]:
    """Order of the 64 coefficients: by rising diagonal, index = vertical * 8 + horizontal."""
    return sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8))


def _filter_boundaries(x: Tensor, matrix: Tensor, *, rounded: bool = False) -> None:
    """Multiply every 8-vector across a boundary of blocks by the matrix, in place.

    x [n, 8 samples of a block, m, blocks, l]; rounded: round the products to integers.
    """
    half = BLOCK // 2
    before, after = x[:, half:, :, :-1], x[:, :half, :, 1:]
    around = torch.cat([before, after], 1)
    out = (matrix @ around.flatten(2)).view(around.shape)
    if rounded:
        out.round_()
    before.copy_(out[:, :half])
    after.copy_(out[:, half:])


@lru_cache
def _dct_of_blocks() -> Tensor:
    """float64 [64, 64]: 8 x 8 samples row by row -> coefficients in zigzag order."""
    return torch.kron(DCT, DCT)[zigzag()]


def analysis(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x [N, H, W] (sides multiples of 8) -> coefficients [N, H/8, W/8, 64] in zigzag order.

    out: a contiguous tensor of that shape to write into.
    """
    n, h, w = x.shape[0], x.shape[1] // BLOCK, x.shape[2] // BLOCK
    pre = PRE.to(x)
    x = x.reshape(n, h, BLOCK, w, BLOCK).permute(0, 2, 4, 1, 3).contiguous()
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), pre)
    _filter_boundaries(x, pre)
    samples = x.view(n, 64, h * w).transpose(1, 2)
    flat_out = None if out is None else out.view(n, h * w, 64)
    return torch.matmul(samples, _dct_of_blocks().T.to(x), out=flat_out).view(n, h, w, 64)


def synthesis_float(y: Tensor) -> Tensor:
    """The inverse of `analysis` in floating point, for training."""
    n, h, w, _ = y.shape
    post = POST.to(y)
    x = (_dct_of_blocks().T.to(y) @ y.flatten(1, 2).transpose(1, 2)).view(n, BLOCK, BLOCK, h, w)
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), post)
    _filter_boundaries(x, post)
    return _picture(x)


def synthesis(y: Tensor) -> Tensor:
    """Integer synthesis within slices: y [N, h, w, 64] -> samples [N, 8h, 8w].

    y is integer-valued in 1/256, the samples float64, integer-valued in 1/16. The matrices are
    round(2**14 * M); every stage is an exact sum in float64 (|y| < 2**32) followed by
    round(v / 2**14), ties to even; the last result is round(v / 2**4).
    """
    (n, h, w, _), scale = y.shape, 1 << PRECISION
    dct, post = ((m * scale).round().to(y.device) / scale for m in (DCT.T, POST))
    rows = torch.block_diag(*[dct] * BLOCK)[:, zigzag()]  # along the rows of every block
    x = (rows @ y.double().flatten(1, 2).transpose(1, 2)).round_()
    _filter_boundaries(x.view(-1, BLOCK, h, w, 1), post, rounded=True)
    x = (dct @ x.view(n, BLOCK, -1)).round_().view(n, BLOCK, BLOCK, h, w)
    _filter_boundaries(x, post, rounded=True)
    x.mul_(1 / (1 << HEADROOM)).round_()
    return _picture(x)


def _picture(x: Tensor) -> Tensor:
    """Samples of blocks [N, 8, 8, h, w] -> [N, 8 h, 8 w]."""
    return x.permute(0, 3, 1, 4, 2).reshape(len(x), x.shape[3] * BLOCK, -1)
