"""format/maps.md: label maps, and floats of classes, samples and bits, in Python's integers."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from .entropy import RangeDecoder

# Rows, columns and slices from a voxel, by the letters of a neighbour's name.
STEPS = {"N": (-1, 0), "S": (1, 0), "W": (0, -1), "E": (0, 1)}
CANDIDATES = ["W", "N", "P", "NE", "PE", "PS"]
CLASSES = [
    ["N", "P", "NE", "NW", "PE", "PS"],
    ["PW", "PN", "PSE", "P", "PE", "PS", "N"],
    ["N", "P", "NE", "NW", "PE", "PS", "PW", "PN", "PSE", "WW", "NN", "NEE"],
    ["N", "P", "NE", "WW", "NN", "NEE", "WWW", "NNN", "NEEE", "NWW", "NNE", "NNW"],
    ["N", "P", "NE", "NW", "PE", "PS", "PSE", "PEE", "PSS", "PSEE", "PWW", "PNN", "PSW", "PNE",
     "PNW"],
    ["N", "P", "PE", "PS", "Q", "QE", "QS", "QW", "QN"],
]  # fmt: skip
PLAIN = ["NWW", "NW", "NE", "NEE", "NN", "NNW", "NNE", "PW", "P", "PE", "PEE", "PN", "PNW", "PNE",
         "PS", "PSW", "PSE", "PSS"]  # fmt: skip


def clamp(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def log2(x: int) -> int:
    return x.bit_length() - 1


def tables() -> tuple[list[int], list[int]]:
    """squash and stretch."""
    squash, odds = [0] * 6144, 2**32
    for k in range(3072):
        squash[3072 + k] = min(2**56 // (2**32 + odds), 2**24 - 64)
        squash[3071 - k] = 2**24 - squash[3072 + k]
        odds = (odds * 4278222805 + 2**31) // 2**32
    first = [min(bisect.bisect_left(squash, (2 * c + 1) << 11), 6143) for c in range(4096)]
    return squash, [k - 3072 for k in first]


class Chance:
    def __init__(self, q: int = 2**21) -> None:
        self.q, self.n = q, 0

    def learn(self, bit: int) -> None:
        goal = 2**22 - 1 if bit else 0
        self.q += (goal - self.q) * (2**17 // (2 * self.n + 3)) >> 16
        self.n = min(self.n + 1, 255)


class Decisions:
    def __init__(self, data: bytes) -> None:
        self.coder = RangeDecoder(data)
        self.squash, self.stretch = tables()

    def decide(self, p: int) -> int:
        return 1 - self.coder.symbol([0, p, 2**24])

    def by_chance(self, chance: Chance) -> int:
        bit = self.decide(clamp(4 * chance.q, 64, 2**24 - 64))
        chance.learn(bit)
        return bit

    def even(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = 2 * value + self.decide(2**23)
        return value

    def mixed(self, chances: list[Chance], weights: tuple[list[int], list[int]]) -> int:
        x = [self.stretch[c.q >> 10] if c.n else 0 for c in chances] + [77]
        total = sum((a + b) * each for a, b, each in zip(*weights, x, strict=False))
        p = self.squash[clamp(total >> 21, -3072, 3071) + 3072]
        bit = self.decide(p)
        error = (2**24 if bit else 0) - p
        for k, each in enumerate(x):
            move = error * each + 2**18 >> 19
            for of_set in weights:
                of_set[k] = clamp(of_set[k] + move, -(2**26), 2**26)
        for chance in chances:
            chance.learn(bit)
        return bit


class LabelMap:
    def __init__(self, data: bytes, shape: tuple[int, int, int], peak: int) -> None:
        self.decisions = Decisions(data)
        self.shape, self.peak = shape, peak
        slices, height, width = shape
        self.line_bits = clamp(log2(slices * height) + log2(width) - 2, 8, 19)
        self.lines: dict[tuple[int, int], Chance] = {}
        self.weights: dict[Any, list[int]] = {}
        self.whole: dict[tuple[int, int], Chance] = {}
        self.half: dict[int, Chance] = {}
        self.planes = [np.zeros((height + 6, width + 6), int) for _ in range(3)]
        self.values = self.palette()

    def palette(self) -> list[int]:
        chances = [Chance() for _ in range(17)]
        values = [-1]
        for _ in range(self.decisions.even(16) + 1):
            bits = 1
            while bits < 17 and self.decisions.by_chance(chances[bits]):
                bits += 1
            values.append(values[-1] + 2 ** (bits - 1) + self.decisions.even(bits - 1))
            if values[-1] > self.peak:
                raise ValueError(f"expected values up to {self.peak}, found {values[-1]}")
        return values[1:]

    def rank(self, name: str, i: int, j: int) -> int:
        """Of a neighbour of the voxel at row i, column j."""
        plane = {"P": 1, "Q": 2}.get(name[0], 0)
        for letter in name.lstrip("PQ"):
            row, column = STEPS[letter]
            i, j = i + row, j + column
        return int(self.planes[plane][i + 3, j + 3])

    def line(self, key: int, context: int) -> int:
        h = (key + (context << 56)) * 0x9E3779B97F4A7C15 % 2**64
        h = (h ^ h >> 32) * 0xD6E8FEB86659FD93 % 2**64
        return h >> 64 - self.line_bits

    def chance(self, line: int, number: int) -> Chance:
        return self.lines.setdefault((line, number), Chance())

    def weight_sets(self, first: Any, second: Any) -> tuple[list[int], list[int]]:
        one, two = (self.weights.setdefault(key, [200000] * 9) for key in (first, second))
        return one, two

    def voxel(self, i: int, j: int, other: bool) -> int:
        candidates = list(dict.fromkeys(self.rank(name, i, j) for name in CANDIDATES))

        def key(names: list[str]) -> int:
            value = 0
            for name in names:
                rank = self.rank(name, i, j)
                value = 8 * value + (candidates.index(rank) if rank in candidates else 7)
            return value

        keys = [key(names) for names in CLASSES]
        w, n, p = (self.rank(name, i, j) for name in "WNP")
        keys.insert(2, (w << 32) + (n << 16) + p)
        lines = [self.line(each, context) for context, each in enumerate(keys)]
        near, far = key(["N", "P", "NE"]), key(["NW", "PE", "PS"])
        count = len(candidates)
        for e in range(int(other), count):
            last = self.line((keys[0] << 16) + candidates[e], 7)
            chances = [self.chance(line, e) for line in [*lines, last]]
            sets = self.weight_sets(("near", count, e, near), ("far", count, e, far))
            if self.decisions.mixed(chances, sets):
                return candidates[e]
        return self.plain_rank(w, n, p, self.rank("NE", i, j))

    def plain_rank(self, w: int, n: int, p: int, ne: int) -> int:
        bits = (len(self.values) - 1).bit_length()
        keys = [0, w, (n << 16) + w, p, (p << 16) + n, (ne << 16) + w]
        path, start, lines = 1, 1, []
        for done in range(bits):
            if done % 3 == 0:
                start = path
                lines = [self.line((path << 32) + key, 8 + k) for k, key in enumerate(keys)]
            node = (path - (start << done % 3)) + (1 << done % 3)
            chances = [self.chance(line, node) for line in lines]
            left = bits - done
            sets = self.weight_sets(("rank", left, 0), ("rank", left, 1))
            path = 2 * path + self.decisions.mixed(chances, sets)
        return path - 2**bits

    def is_plain(self, i: int, j: int) -> bool:
        if j >= self.shape[2]:
            return False
        value = self.rank("N", i, j)
        return all(self.rank(name, i, j) == value for name in PLAIN)

    def run(self, length: int, value: int) -> int:
        whole = self.whole.setdefault((value % 256, log2(length)), Chance(3 * 2**20))
        if self.decisions.by_chance(whole):
            return length
        low, high = 0, length
        while high - low > 1:
            middle = low + (high - low) // 2
            half = self.half.setdefault(log2(high - low), Chance())
            if self.decisions.by_chance(half):
                low = middle
            else:
                high = middle
        return low

    def row(self, i: int) -> None:
        plane, width = self.planes[0][i + 3], self.shape[2]
        plane[:3] = self.planes[0][i + 2, 3]
        j = 0
        while j < width:
            other, length, value = False, 0, self.rank("N", i, j)
            if self.rank("W", i, j) == self.rank("WW", i, j) == value:
                while self.is_plain(i, j + length):
                    length += 1
            if length >= 8:
                alike = self.run(length, value)
                plane[j + 3 : j + 3 + alike] = value
                j += alike
                other = alike < length
                if not other:
                    continue
            plane[j + 3] = self.voxel(i, j, other)
            j += 1
        plane[width + 3 :] = plane[width + 2]

    def samples(self) -> Any:
        """[K, H, W]"""
        slices, height, width = self.shape
        out = np.zeros(self.shape, np.int32)
        for k in range(slices):
            self.planes = [np.zeros((height + 6, width + 6), int), *self.planes[:2]]
            self.planes[0][:3] = self.planes[1][3]
            for i in range(height):
                self.row(i)
                ranks = self.planes[0][i + 3, 3 : width + 3]
                out[k, i] = [self.values[rank] for rank in ranks]
            self.planes[0][height + 3 :] = self.planes[0][height + 2]
        if not self.decisions.coder.exhausted():
            raise ValueError("expected the end of a label map, found more")
        return out


class Bits:
    """Fields from the lowest bit of each byte on."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError("expected more bits of floats, found the end")
        value = self.bits & (1 << count) - 1
        self.bits >>= count
        self.left -= count
        return value


def magnitude(m: int, bits: Bits, cells: tuple[int, int, int], dtype: Any) -> float:
    """Of a value in cell m."""
    cell, grid, mantissa = cells

    def unit(top: int) -> int:
        return max(top - mantissa, grid)

    if cell <= grid:
        return float(m) * 2.0**cell
    if m > 0:
        last = min(unit(cell + log2(m)), cell)
        return float((m << cell - last) + bits.take(cell - last)) * 2.0**last
    if cell - grid <= mantissa:
        return float(bits.take(cell - grid)) * 2.0**grid
    ones = 0
    while ones < 32 and bits.take(1):
        ones += 1
    if ones == 32:
        size = 8 * dtype.itemsize
        return float(np.array([bits.take(size - 1)], f"u{dtype.itemsize}").view(dtype)[0])
    top = cell - 1 - ones
    behind = max(top - unit(top), 0)
    return float((1 << behind) + bits.take(behind)) * 2.0 ** (top - behind)


def floats(
    classes: Any,
    samples: Any,
    data: bytes,
    cells: tuple[int, int, int],
    specials: list[int],
    dtype: Any,
) -> Any:
    """Values of exponents in which Python's doubles have no underflow."""
    bits, out = Bits(data), np.zeros(samples.size, dtype)
    for n, (of_class, sample) in enumerate(zip(classes.ravel(), samples.ravel(), strict=True)):
        if of_class:
            out[n : n + 1].view(f"u{dtype.itemsize}")[:] = specials[of_class - 1]
            continue
        m = (
            int(sample)
            if sample >= 0
            else -int(sample)
            if cells[0] <= cells[1]
            else -1 - int(sample)
        )
        value = magnitude(m, bits, cells, dtype)
        out[n] = -value if sample < 0 else value
    if bits.left >= 8 or bits.bits:
        raise ValueError("expected the end of the bits of floats, found more")
    return out.reshape(samples.shape)
