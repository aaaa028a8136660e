"""format/learned.md: slabs of coder 2, the model `default`, in integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .container import LOSSY, Fields, Header
from .entropy import Run, Tables
from .sections import decompress, read_sample_map
from .weights import tensors

Int = NDArray[np.int64]

PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
PASS_OF_PHASE = (0, 2, 1, 3, 2, 3, 3, 3)
PATTERNS = (9, 13, 11, 15)
# Coefficient c -> its vertical and horizontal frequency.
FREQUENCIES = sorted(itertools.product(range(8), range(8)), key=lambda uw: (sum(uw), uw[0]))


def matrix(text: str) -> Int:
    return np.array([line.split() for line in text.strip().splitlines()], np.int64)


# The tables of the synthesis: inverse transforms, overlaps, and the filter across blocks.
INVERSE = {
    2: matrix("""
 11585  11585
 11585 -11585
"""),
    4: matrix("""
  8192  10703   8192   4433
  8192   4433  -8192 -10703
  8192  -4433  -8192  10703
  8192 -10703   8192  -4433
"""),
    8: matrix("""
  5793   8035   7568   6811   5793   4551   3135   1598
  5793   6811   3135  -1598  -5793  -8035  -7568  -4551
  5793   4551  -3135  -8035  -5793   1598   7568   6811
  5793   1598  -7568  -4551   5793   6811  -3135  -8035
  5793  -1598  -7568   4551   5793  -6811  -3135   8035
  5793  -4551  -3135   8035  -5793  -1598   7568  -6811
  5793  -6811   3135   1598  -5793   8035  -7568   4551
  5793  -8035   7568  -6811   5793  -4551   3135  -1598
"""),
}
OVERLAP = {
    2: matrix("""
 10620 -10620    965    965
   965   -965  10620  10620
"""),
    4: matrix("""
  8556  -5566  -6111   8920   -364  -1132  -2081  -1783
  5943  -8920   8961  -6005   2249   1783   -769  -1571
  2249  -1783   -769   1571   5943   8920   8961   6005
  -364   1132  -2081   1783   8556   5566  -6111  -8920
"""),
    8: matrix("""
  6244 -2357 -6880  4544  5172 -6565 -2367  7027  -451  -759  -688    -7   621   247  -768 -1008
  5734 -5501  -841  6630 -6914   824  6060 -6574    58  -950 -2294 -1405  1121  2422  1509   238
  4793 -6505  5220 -2229 -2097  5958 -7190  4851  1000   307 -2085 -3827 -3695 -2077  -379   300
  3562 -5318  5853 -6187  6302 -6274  5585 -3453  2230  2716  1715   625  -509 -1723 -2450 -1855
  2230 -2716  1715  -625  -509  1723 -2450  1855  3562  5318  5853  6187  6302  6274  5585  3453
  1000  -307 -2085  3827 -3695  2077  -379  -300  4793  6505  5220  2229 -2097 -5958 -7190 -4851
    58   950 -2294  1405  1121 -2422  1509  -238  5734  5501  -841 -6630 -6914  -824  6060  6574
  -451   759  -688     7   621  -247  -768  1008  6244  2357 -6880 -4544  5172  6565 -2367 -7027
"""),
}
FILTER = matrix("""
 14768   1070    374    720   -720   -374  -1070   1616
 -2216  14474   2587    756   -756  -2587   1910   2216
   -38  -3703  13344   3541  -3541   3040   3703     38
  -665   1231  -4740  14105   2279   4740  -1231    665
   665  -1231   4740   2279  14105  -4740   1231   -665
    38   3703   3040  -3541   3541  13344  -3703    -38
  2216   1910  -2587   -756    756   2587  14474  -2216
  1616  -1070   -374   -720    720    374   1070  14768
""")


def rounded(value: Any, divisor: Any) -> Any:
    """value / divisor to the nearest integer, ties to even."""
    quotient, rest = value // divisor, value % divisor
    return quotient + ((2 * rest > divisor) | ((2 * rest == divisor) & (quotient % 2 == 1)))


def relu8(x: Int) -> Int:
    return np.clip(x, 0, 255)


def clamp8(x: Int) -> Int:
    return np.clip(x, -127, 127)


def around(x: Int) -> Int:
    """Sum over 3 x 3 blocks of [R, T, 64], weights 4, 2, 1, zeros outside."""
    p = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    return rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]


def dc_removed(y: Int) -> Int:
    """[R, T, 64] less the mean DC of the 3 x 3 blocks around, border blocks repeated."""
    p = np.pad(y[..., 0], 1, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(p, (3, 3))
    out = y.copy()
    out[..., 0] -= (windows.sum((2, 3)) + 4) // 9
    return out


def neighbours(dc: Int, diagonal: bool) -> Int:
    """floor((sum of four neighbours + 2) / 4) of [R, T], reflected at the border."""
    for axis in (0, 1):
        mode = "reflect" if dc.shape[axis] > 1 else "edge"
        dc = np.pad(dc, [(1, 1) if axis == a else (0, 0) for a in (0, 1)], mode)
    if diagonal:
        total = dc[:-2, :-2] + dc[:-2, 2:] + dc[2:, :-2] + dc[2:, 2:]
    else:
        total = dc[:-2, 1:-1] + dc[2:, 1:-1] + dc[1:-1, :-2] + dc[1:-1, 2:]
    return (total + 2) // 4


def frequency_weights() -> Int:
    """[64, 64]: weight of coefficient c among the frequencies around another."""
    weights = np.zeros((64, 64), np.int64)
    for (c, (u, w)), (other, (x, z)) in itertools.product(enumerate(FREQUENCIES), repeat=2):
        du, dw = abs(u - x), abs(w - z)
        if max(du, dw) == 1:
            weights[c, other] = 3 - du - dw
    return weights


def pass_positions(p: int, rows: int, columns: int) -> tuple[Int, Int, Int]:
    """(r, t, c) of the coefficients of pass p, in the order of a call."""
    positions = [
        (r, t, c)
        for e, (row, column) in enumerate(PARITIES)
        for r in range(row, rows, 2)
        for t in range(column, columns, 2)
        for c in range(64)
        if PASS_OF_PHASE[(2 * e + c) % 8] == p
    ]
    r, t, c = np.array(positions, np.int64).reshape(-1, 3).T
    return r, t, c


def steps(groups: int) -> Iterator[list[tuple[int, int | None, int | None]]]:
    """Groups whose low bands are coded together, each with the references before and after it."""
    anchors = sorted({*range(0, groups, 8), groups - 1})
    for a, g in zip([None, *anchors], anchors, strict=False):
        yield [(g, a, None)]
    gaps = [(a, b) for a, b in itertools.pairwise(anchors) if b - a > 1]
    while gaps:
        yield [((a + b) // 2, a, b) for a, b in gaps]
        halves = [half for a, b in gaps for half in ((a, (a + b) // 2), ((a + b) // 2, b))]
        gaps = [(a, b) for a, b in halves if b - a > 1]


def hidden_signs(
    weights: Sequence[int], indices: Sequence[Sequence[int]], magnitudes: Sequence[Sequence[int]]
) -> list[tuple[int, int, int]]:
    """(band, symbol, 1 if negative) of the signs that are not sent, of the bands of a call.

    The signs are H |q| mod 2; column m of H has ones in rows first + bit.
    """
    weight = [[weights[index] for index in band] for band in indices]
    target = min(163840, max(1, math.isqrt(8192 * sum(map(sum, weight)))))
    groups: list[tuple[int, list[int], int, list[int]]] = []  # Band, carriers, start, first rows.
    payloads = []
    for band, band_weights in enumerate(weight):
        total = sum(band_weights)
        before = [0, *itertools.accumulate(band_weights)]
        count = (2 * total + target) // (2 * target)
        for n in range(count):
            start, end = (-(-edge * total // count) for edge in (n, n + 1))
            carriers = [m for m, w in enumerate(band_weights) if w > 0 and start <= before[m] < end]
            payload = 0 if len(groups) % 8 == 0 else (end - start) // 4096
            rows = [payload * (before[m] - start) // (end - start) for m in carriers]
            groups.append((band, carriers, start, rows))
            payloads.append(payload)
    hidden = []
    for (last, owners, _, _), (band, carriers, _, rows), payload in zip(
        groups, groups[1:], payloads[1:], strict=False
    ):
        signs = [0] * payload
        for m, first in zip(carriers, rows, strict=True):
            for bit in range(4):
                if first + bit < payload and PATTERNS[(40503 * m >> 8) % 4] >> bit & 1:
                    signs[first + bit] ^= magnitudes[band][m] & 1
        nonzero = [m for m in owners if magnitudes[last][m] > 0]
        hidden += [(last, m, sign) for m, sign in zip(nonzero, signs, strict=False)]
    return hidden


class Network:
    """The tensors of a weights file."""

    def __init__(self, model_id: bytes) -> None:
        self.tensors = tensors(model_id.hex())
        self.lut, self.levels = self.tensors["lut"], self.tensors["levels"]
        self.hiding: list[int] = self.tensors["hiding"].tolist()
        self.tables = {
            f"pass{p}": Tables(self.tensors[f"tables.pass{p}"].tolist(), 0, 8) for p in range(4)
        }
        self.tables["sign"] = Tables(self.tensors["tables.sign"].tolist(), 0, 8)
        self.tables["depth"] = Tables(self.tensors["tables.depth"].tolist(), 0)

    def compand(self, y: Int) -> Int:
        return self.lut[np.clip(y, -2047, 2047) + 2047]

    def convolution(self, name: str, x: Int) -> Int:
        """[R, T, inputs] -> [R, T, outputs], zeros outside."""
        weight, bias, shift = (
            self.tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift")
        )
        size = weight.shape[-1]
        rows, columns = x.shape[:2]
        p = np.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        total = np.zeros((rows, columns, len(weight)), np.int64) + bias
        for i, j in itertools.product(range(size), repeat=2):
            total += p[i : i + rows, j : j + columns] @ weight[:, :, i, j].T
        return rounded(total, 1 << shift)

    def residual(self, name: str, x: Int) -> Int:
        h = relu8(self.convolution(f"{name}.first", clamp8(x)))
        h = relu8(self.convolution(f"{name}.middle", h))
        return x + self.convolution(f"{name}.second", h)

    def base(self, net: str, sources: Sequence[Int], number: int, rate: int) -> Int:
        total = self.tensors[f"{net}.place"][number] + self.tensors[f"{net}.rate"][rate]
        for m, source in enumerate(sources):
            total = total + self.convolution(f"{net}.sources.{m}", self.compand(source))
        return self.residual(f"{net}.mix.1", self.residual(f"{net}.mix.0", relu8(total)))


def magnitudes(x: Int) -> Int:
    return np.minimum(np.abs(x), 2047)


@dataclass
class Band:
    """A band that is being decoded: its context, and what is decoded of it."""

    network: Network
    net: str
    number: int  # Its class.
    base: Int
    y1: Int
    energies: list[Int]

    def __post_init__(self) -> None:
        shape = (*self.base.shape[:2], 64)
        self.y, self.known, self.magnitude, self.decoded = (
            np.zeros(shape, np.int64) for _ in range(4)
        )

    def predict(self, p: int) -> tuple[Int, Int]:
        """μ and index of the coefficients of pass p, in the order of a call."""
        network, name = self.network, f"{self.net}.passes.{p}"
        h = self.base if p == 0 else self.base + network.convolution(f"{name}.known", self.known)
        h = relu8(network.convolution(f"{name}.middle", relu8(h)))
        out = network.convolution(f"{name}.head", h)
        mean, scale = out[..., :64], out[..., 64:128]
        if self.net == "low":
            mean = mean + self.linear(p, clamp8(out[..., 128:]))
        energies = np.stack([*self.energies, *(self.decoded_energies() if p else [])])
        weights = network.tensors[f"{name}.energies"][self.number][:, None, None]
        index = np.clip(scale + rounded((weights * energies).sum(0), 64) + 35, 0, 207)
        index[index < 6] = 0
        at = pass_positions(p, *self.y.shape[:2])
        return np.clip(mean, -(2**22), 2**22)[at], index[at]

    def linear(self, p: int, gates: Int) -> Int:
        """The gated prediction of a low band."""
        limit = 2**17 - 1
        linear = rounded(gates[..., :64] * np.clip(self.y1, -limit, limit), 64)
        y1 = self.y1[..., 0]
        near = slope = y1
        if p > 0:
            near = neighbours(self.y[..., 0], p == 1)
            slope = y1 + near - neighbours(y1, p == 1)
        total = gates[..., 0] * y1 + gates[..., 64] * near + gates[..., 65] * slope
        linear[..., 0] = rounded(total, 64)
        return linear

    def decoded_energies(self) -> list[Int]:
        """The energies of decoded coefficients around and in the block."""
        weights = frequency_weights()
        pairs = (
            (around(self.magnitude), around(self.decoded)),
            (self.magnitude @ weights, self.decoded @ weights),
        )
        return [self.network.levels[16 * m // np.maximum(w, 1)] for m, w in pairs]

    def put(self, p: int, q: Int, mu: Int) -> None:
        """The symbols of pass p."""
        r, t, c = at = pass_positions(p, *self.y.shape[:2])
        self.y[at] = np.clip(16 * q + mu, -(2**23), 2**23)
        dc = c == 0
        new = self.y[at] - np.where(dc, self.y1[r, t, 0], 0)
        self.known[at] = self.network.compand(new)
        self.magnitude[at] = magnitudes(np.where(dc, 16 * q, new))
        self.decoded[at] = 1


class SlabDecoder:
    """The bands of a slab, [d][G] of [R, T, 64]."""

    def __init__(self, network: Network, run: Run, shape: tuple[int, int, int], rate: int) -> None:
        self.network, self.run, self.rate = network, run, rate
        self.rows, self.columns = -(-shape[1] // 8), -(-shape[2] // 8)
        (depth,) = run.call(network.tables["depth"], [0])
        self.depth = 1 << min(max(depth, 0), 3)
        self.groups = -(-shape[0] // self.depth)

    def bands(self) -> Int:
        low: dict[int, Int] = {}
        for step in steps(self.groups):
            coded = self.code([self.low_band(low, *groups) for groups in step])
            low.update(zip((g for g, _, _ in step), coded, strict=True))
        bands = [[low[g] for g in range(self.groups)]]
        for f in range(1, self.depth):
            bands.append(self.code(self.detail_bands(bands, f)))
        return np.array(bands)

    def low_band(self, low: dict[int, Int], g: int, a: int | None, b: int | None) -> Band:
        zeros = np.zeros((self.rows, self.columns, 64), np.int64)
        before, after = (zeros if n is None else low[n] for n in (a, b))
        sources = [dc_removed(before), dc_removed(after)]
        first, second = (self.network.levels[around(magnitudes(source))] for source in sources)
        number, y1, energy = 0, before, first
        if a is not None:
            number = 1
        if a is not None and b is not None:
            number = 5 - min(max(g - a, b - g), 3)
            y1, energy = (before + after + 1) // 2, (first + second) // 2
        number += 5 * (self.depth.bit_length() - 1)
        base = self.network.base("low", sources, number, self.rate)
        return Band(self.network, "low", number, base, y1, [energy])

    def detail_bands(self, bands: list[list[Int]], f: int) -> list[Band]:
        numbers = {2: 0, 4: 1, 8: 4}
        number, last = numbers[self.depth] + f - 1, self.groups - 1
        known = [[dc_removed(y) for y in bands[0]], *bands[1:]]
        near, far = known[f - 1], known[max(f - 2, 0)]
        sums = [around(magnitudes(y)) for y in near]
        coded = []
        for g in range(self.groups):
            wide = 2 * sums[g] + sums[max(g - 1, 0)] + sums[min(g + 1, last)] + 2
            energies = [self.network.levels[wide // 4]]
            energies.append(self.network.levels[around(magnitudes(far[g]))])
            sources = [near[g], far[g], known[0][g]]
            base = self.network.base("detail", sources, number, self.rate)
            zeros = np.zeros_like(near[g])
            coded.append(Band(self.network, "detail", number, base, zeros, energies))
        return coded

    def code(self, bands: list[Band]) -> list[Int]:
        """A step: four passes over the bands."""
        for p in range(4):
            means, indices = zip(*(band.predict(p) for band in bands), strict=True)
            for band, q, mu in zip(bands, self.symbols(p, indices), means, strict=True):
                band.put(p, q, mu)
        return [band.y for band in bands]

    def symbols(self, p: int, indices: Sequence[Int]) -> list[Int]:
        """q of a pass of the bands: magnitudes, then the signs that are not hidden."""
        size = len(indices[0])
        flat = self.run.call(self.network.tables[f"pass{p}"], np.concatenate(indices).tolist())
        flat = [min(max(value, 0), 2**19) for value in flat]
        sizes = [flat[size * n :][:size] for n in range(len(indices))]
        lists = [index.tolist() for index in indices]
        signs = {
            size * band + m: sign
            for band, m, sign in hidden_signs(self.network.hiding, lists, sizes)
        }
        sent = [m for m, value in enumerate(flat) if value > 0 and m not in signs]
        signs.update(
            zip(sent, self.run.call(self.network.tables["sign"], [1] * len(sent)), strict=True)
        )
        q = np.array([-value if signs.get(m) == 1 else value for m, value in enumerate(flat)])
        return list(q.reshape(len(indices), size))


def slices_of(bands: Int, count: int) -> Int:
    """Bands [d, G, R, T, 64] -> slices [count, R, T, 64], in 1/256 of the step."""
    depth, groups = bands.shape[:2]
    flat = bands.reshape(depth, groups, -1)
    if depth == 1:
        return 16 * bands[0, :count]
    half, inverse = depth // 2, INVERSE[depth]
    parts = [inverse[:half] @ flat[:, 0]]
    for g in range(groups - 1):
        parts.append(OVERLAP[depth] @ np.concatenate([flat[:, g], flat[:, g + 1]]))
    parts.append(inverse[half:] @ flat[:, -1])
    slices = rounded(np.concatenate(parts), 1 << 10)
    return slices[:count].reshape(count, *bands.shape[2:])


def synthesis(coefficients: Int) -> Int:
    """A slice [R, T, 64] in 1/256 of the step -> samples [8 R, 8 T] in 1/16 of it."""
    rows, columns, _ = coefficients.shape
    v = np.zeros((rows, 8, columns, 8), np.int64)
    for c, (u, w) in enumerate(FREQUENCIES):
        v[:, u, :, w] = coefficients[..., c]
    v = v.reshape(8 * rows, 8 * columns)
    for _ in range(2):  # Along the rows; then transposed, along the columns.
        blocks = v.reshape(len(v), -1, 8)
        v = rounded(blocks @ INVERSE[8].T, 1 << 14).reshape(len(v), -1)
        inner = v[:, 4:-4].reshape(len(v), -1, 8)
        v[:, 4:-4] = rounded(inner @ FILTER.T, 1 << 14).reshape(len(v), -1)
        v = v.T.copy()
    return np.clip(rounded(v, 16), -(2**26), 2**26)


class Decoder:
    """Slabs of a stream of coder 2."""

    def __init__(self, header: Header) -> None:
        fields = Fields(header.params)
        (step,) = fields.numbers("f")
        fields.numbers("e")
        self.sample_map = read_sample_map(fields, header.voxel_type, header.coder)
        fields.end()
        if header.mode != LOSSY:
            raise ValueError(f"expected a lossy stream of coder 2, found mode {header.mode}")
        self.peak = self.sample_map.peak
        self.step = round(2**16 * max(step, self.peak / 2**15))
        if not 2**4 <= self.step <= 2**36:
            raise ValueError(f"expected a step of 2**-12 to 2**20 samples, found {step}")
        self.masked = bool(header.flags & 2)
        self.model_id = header.model_id

    @cached_property
    def network(self) -> Network:
        return Network(self.model_id)

    def samples(self, payload: bytes, shape: tuple[int, int, int]) -> Int:
        """[K, J, I], without the background mask."""
        rate = min(15, (2**16 * self.peak // self.step).bit_length())
        run = Run(payload)
        bands = SlabDecoder(self.network, run, shape, rate).bands()
        run.end()
        slices = [synthesis(slice) for slice in slices_of(bands, shape[0])]
        cropped = np.stack(slices)[:, : shape[1], : shape[2]]
        return np.clip((cropped * self.step + 2**19) >> 20, 0, self.peak)

    def slab(self, payload: bytes, shape: tuple[int, int, int]) -> NDArray[Any]:
        """A SLAB of coder 2 -> voxels [K, J, I]."""
        fields, mask = Fields(payload), b""
        if self.masked:
            mask = fields.take(fields.varint())
        samples = self.samples(fields.rest(), shape)
        if mask:
            tiles = (shape[0], -(-shape[1] // 8), -(-shape[2] // 8))
            packed = np.frombuffer(decompress(mask), np.uint8)
            bits = np.unpackbits(packed, count=math.prod(tiles)).reshape(tiles)
            samples[np.kron(bits, np.ones((1, 8, 8), int))[:, : shape[1], : shape[2]] == 1] = 0
        return self.sample_map.voxels(samples)
