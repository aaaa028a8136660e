"""The default lossy model: lapped transform, slice context, hyperprior, four context passes, decoder-side filter.

After Minnen, Balle & Toderici 2018 (mean and scale from hyperprior and context) and Li et al. 2023 (DCVC-DC: four parallel
passes over channel group x 2 x 2 parity), on slices: what video codecs take from motion and B-frames comes here from
the slices before and after.

    x [K, H, W] --analysis, / step--> y [K, 64, H/8, W/8]
    z = round(h_a(y))          one vector per 2 x 2 blocks, factorized prior        (hyperprior)
    for slice t in the order of `steps`, between coded slices a < t < b, for pass p = 0..3:
        base  = h_s(z_t) + conv(y_hat_a) + conv(y_hat_b)                             (slices)
        mu, scale index = net_p(base, y_hat_t known so far)                         (context)
        q = round(y - mu), coded with the table of the scale index;  y_hat = q + mu
    x_hat = step * (synthesis(y_hat) + filter(synthesis(y_hat) of slices t-1, t, t+1))

Everything from z to x_hat is integer arithmetic (layers.py); y_hat, mu and x_hat are integers in 1/16 of the step. All
statistics are in units of the step, so one model serves every rate and bit depth. The latent has one value per sample
and the transform is orthonormal: rates never saturate.

The scale index is the network's output plus weights times three log-energies, each of the same coefficient or its
neighbours: E1 in the slices a and b (3 x 3 blocks), E2 in the known neighbouring blocks, E3 at the known neighbouring
frequencies of the block.

mu = net + gate * (mean of y_hat_a and y_hat_b at the same place), gates in 1/64 chosen by the network: exact prediction
of large values by small integers. The mean of a block (coefficient 0) has two more predictors: the mean of its known
neighbours, and the same plus what slices a and b say of the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import entropy, transform
from .layers import (
    COMPAND_SIZE,
    SIGNED,
    IntegerConv2d,
    IntegerResidual,
    clamp8,
    compand,
    compand_table,
    level_table,
    relu8,
    round_through,
)

CHANNELS = 64
HYPER = 16
PASSES = 4
ANCHOR = 8
PLACES = 5
HEAD = 3 * CHANNELS + 2
GATE = 64  # one unit of a gate is 1/64
GATE_MAX = 127
LINEAR_MAX = float((1 << 17) - 1)  # times GATE_MAX: exact in float32
MU_MAX = float(1 << 22)
Y_MAX = float(1 << 23)
INDEX_ORIGIN = 35  # scale index where the network's output is 0: sigma of one step
INDEX_MAX = 207
INDEX_SKIP = 6  # lower indices (sigma below 0.08) are not coded
RDO_LAMBDA = 0.1155  # squared steps per bit: -dD/dR of a uniform quantiser at high rate, 2 ln 2 / 12

Code = Callable[[int, Tensor, Tensor], Tensor]  # pass, mu [N, n], index [N, n] -> q [N, n]


def frequency_neighbours() -> Tensor:
    """float [64, 64], zigzag order: weight 2 between frequencies that differ by one along an axis, 1 diagonally."""
    order = torch.tensor(transform.zigzag())
    u, v = order // transform.BLOCK, order % transform.BLOCK
    du, dv = (u[:, None] - u).abs(), (v[:, None] - v).abs()
    return torch.where((du <= 1) & (dv <= 1) & (du + dv > 0), 3 - du - dv, 0).float()


def _smooth(x: Tensor) -> Tensor:
    """x [N, h, w, C] filtered by (1, 2, 1) along h and w, zeros beyond the border."""
    p = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]


@dataclass(frozen=True)
class Layout:
    """Which coefficients each pass codes, and where they lie in [h, w, 64] flattened: int64 tensors, one per pass.

    Parity of a block (0,0), (1,1), (0,1), (1,0) = 0..3; coefficient c is coded in pass (parity + c) % 4, blocks in
    raster order, coefficients rising within a block.
    """

    where: list[Tensor]  # flat positions in [h, w, 64]
    head: list[Tensor]  # the same entries in [h, w, 194]: means; scales and gates lie 64 and 128 further
    spatial: list[Tensor]  # float [n]: weight of the known neighbouring blocks, at least 1
    spectral: list[Tensor]  # float [n]: of the known neighbouring frequencies, at least 1
    level: list[Tensor]  # which of the n entries are block means (coefficient 0)
    block: list[Tensor]  # and their blocks, flat in [h, w]

    @staticmethod
    def of(h: int, w: int, device: torch.device | str = "cpu") -> Layout:
        parity = torch.tensor([[0, 2], [3, 1]]).repeat((h + 1) // 2, (w + 1) // 2)[:h, :w]
        turn = (parity[..., None] + torch.arange(CHANNELS)) % PASSES
        where = [(turn == p).flatten().nonzero()[:, 0] for p in range(PASSES)]
        head = [n // CHANNELS * HEAD + n % CHANNELS for n in where]
        known = torch.stack([(turn < p) for p in range(PASSES)]).float()
        counts = [_smooth(known), known @ frequency_neighbours()]
        spatial, spectral = ([count[p].flatten()[n].clamp(min=1) for p, n in enumerate(where)] for count in counts)
        level = [(n % CHANNELS == 0).nonzero()[:, 0] for n in where]
        block = [n[i] // CHANNELS for n, i in zip(where, level, strict=True)]
        return Layout(
            *([part.to(device) for part in parts] for parts in (where, head, spatial, spectral, level, block))
        )


@dataclass(frozen=True)
class Step:
    """Slices that are coded side by side: `before` and `after` are the coded ones that they lie between (-1: none)."""

    slices: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def places(self) -> list[int]:
        """Class of each slice: 0 nothing to lean on, 1 a slice before, 2 3 4 between two, the farther 3 or more, 2, 1 away."""
        out = []
        for t, a, b in zip(self.slices, self.before, self.after, strict=True):
            out.append(0 if a < 0 else 1 if b < 0 else 5 - min(max(t - a, b - t), 3))
        return out


def steps(slices: int) -> list[Step]:
    """Order of a slab: every eighth slice and the last one after another, then the middles between coded ones."""
    anchors = sorted({*range(0, slices, ANCHOR), slices - 1})
    out = [Step((t,), (anchors[i - 1] if i else -1,), (-1,)) for i, t in enumerate(anchors)]
    gaps = [(a, b) for a, b in itertools.pairwise(anchors) if b - a > 1]
    while gaps:
        before, after = zip(*gaps, strict=True)
        middle = tuple((a + b) // 2 for a, b in gaps)
        out.append(Step(middle, before, after))
        halves = [half for (a, b), t in zip(gaps, middle, strict=True) for half in ((a, t), (t, b))]
        gaps = [(a, b) for a, b in halves if b - a > 1]
    return out


def _neighbours(x: Tensor, diagonal: bool) -> Tensor:
    """Mean of the 4 diagonal or edge neighbours of x [N, 1, h, w], reflected at the border: floor((sum + 2) / 4)."""
    mode = [("reflect" if n > 1 else "replicate") for n in x.shape[-2:]]
    p = F.pad(F.pad(x, (1, 1, 0, 0), mode=mode[1]), (0, 0, 1, 1), mode=mode[0])
    if diagonal:
        total = p[..., :-2, :-2] + p[..., :-2, 2:] + p[..., 2:, :-2] + p[..., 2:, 2:]
    else:
        total = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    return torch.floor((total + 2) / 4)


def _box(x: Tensor) -> Tensor:
    """floor((sum over 3 x 3 + 4) / 9) of x [N, C, h, w], replicated at the border."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = p[..., :-2, :] + p[..., 1:-1, :] + p[..., 2:, :]
    return torch.floor((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4) / 9)


class HyperAnalysis(nn.Module):
    """h_a, encoder only, float: companded y [N, 64, h, w] -> z [N, 16, ceil(h/2), ceil(w/2)]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.ReLU(), nn.Conv2d(width, HYPER, 3, padding=1),
        )  # fmt: skip

    def forward(self, a: Tensor) -> Tensor:
        z: Tensor = self.layers(a / 16)
        return z


class HyperSynthesis(nn.Module):
    """h_s: z [N, 16, h/2, w/2] -> [N, width, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(HYPER, width)
        self.second = IntegerConv2d(width, 4 * width, gain=0.5)

    def forward(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        a = relu8(self.first(clamp8(8 * z)))
        return F.pixel_shuffle(self.second(a), 2)[..., : size[0], : size[1]]


class ContextPass(nn.Module):
    """One pass: base and what is known of y_hat -> 64 means, 64 scale indices, 64 + 2 gates."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.base = IntegerConv2d(width, width, 1)
        self.known = None if first else IntegerConv2d(CHANNELS, width)
        self.middle = IntegerConv2d(width, width, 1)
        self.head = IntegerConv2d(width, HEAD, 1, exact=True, gain=0.3)
        self.energies = nn.Parameter(torch.full((1 if first else 3, CHANNELS), 0.5 if first else 0.25))
        with torch.no_grad():
            self.head.bias[-1] = GATE

    def energy_weights(self) -> Tensor:
        """[1 or 3, 64] integers, in 1/64."""
        return round_through((self.energies * GATE).clamp(-SIGNED, SIGNED))

    def forward(self, base: Tensor, known: Tensor) -> Tensor:
        h = self.base(base)
        if self.known is not None:
            h = h + self.known(known)
        out: Tensor = self.head(relu8(self.middle(relu8(h))))
        return out


class Filter(nn.Module):
    """g_s beyond the transform: samples of slices t-1, t, t+1 less their local mean, companded -> a correction.

    16 phases of 4 x 4 samples per slice: [N, 48, H/4, W/4] -> [N, 16, H/4, W/4].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = IntegerConv2d(48, width)
        self.blocks = nn.ModuleList([IntegerResidual(width), IntegerResidual(width)])
        self.last = IntegerConv2d(width, 16, exact=True, gain=0.05)

    def forward(self, a: Tensor) -> Tensor:
        h = self.first(a)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.last(clamp8(h))
        return out


class ContextCodec(nn.Module):
    """See the module. `width`: channels of the context networks; `filter_width`: of the filter."""

    lut: Tensor
    levels: Tensor
    spectrum: Tensor

    def __init__(self, width: int = 96, filter_width: int = 64) -> None:
        super().__init__()
        self.h_a = HyperAnalysis(width)
        self.h_s = HyperSynthesis(width)
        self.bottleneck = entropy.EntropyBottleneck(HYPER, init_scale=3.0)
        self.previous = nn.ModuleList([IntegerConv2d(CHANNELS, width) for _ in range(2)])
        self.place = nn.Parameter(torch.zeros(PLACES, width))
        self.mix = IntegerResidual(width)
        self.passes: Sequence[ContextPass] = nn.ModuleList(  # type: ignore[assignment]
            [ContextPass(width, p == 0) for p in range(PASSES)]
        )
        self.filter = Filter(filter_width)
        self.register_buffer("lut", compand_table(), persistent=False)
        self.register_buffer("levels", level_table(), persistent=False)
        self.register_buffer("spectrum", frequency_neighbours(), persistent=False)

    # -- what encoder, decoder and training share ----------------------------------------------------------------

    def activations(self, y: Tensor) -> Tensor:
        """y [N, h, w, 64] in 1/16 step -> companded [N, 64, h, w]; block means relative to their 3 x 3 neighbourhood."""
        level = y[..., :1] - _box(y[..., 0][:, None])[:, 0, ..., None]
        return compand(torch.cat([level, y[..., 1:]], -1), self.lut).permute(0, 3, 1, 2)

    def base(self, hyper: Tensor, y_a: Tensor, y_b: Tensor, place: Tensor) -> Tensor:
        """hyper [N, width, h, w], the slices around [N, h, w, 64], classes int64 [N] -> features of N slices."""
        first, second = self.previous
        sums = hyper + first(self.activations(y_a)) + second(self.activations(y_b))
        return relu8(self.mix(relu8(sums + round_through(self.place)[place][:, :, None, None])))

    def predict(
        self, p: int, base: Tensor, known: Tensor, y_hat: Tensor, y_1: Tensor, energy_1: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Means (1/16 step) and scale indices [N, n] of what pass p codes; y_hat, y_1, known [N, h, w, 64]."""
        n = len(y_1)
        out = self.passes[p](base, known.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(n, -1)
        head, level, block = layout.head[p], layout.level[p], layout.block[p]
        mean, scale = out[:, head], out[:, head + CHANNELS]
        gate = out[:, head + 2 * CHANNELS].clamp(-GATE_MAX, GATE_MAX)
        linear = round_through(gate * y_1.reshape(n, -1)[:, layout.where[p]].clamp(-LINEAR_MAX, LINEAR_MAX) / GATE)
        before = y_1[..., 0][:, None].double()  # block means: their products need more than float32's integers
        if p == 0:
            near = slope = before
        else:
            near = _neighbours(y_hat.detach()[..., 0][:, None].double(), p == 1)
            slope = before + near - _neighbours(before, p == 1)
        first, second, third = (plane.reshape(n, -1)[:, block] for plane in (before, near, slope))
        more = out[:, block * HEAD + 3 * CHANNELS].clamp(-GATE_MAX, GATE_MAX)
        most = out[:, block * HEAD + 3 * CHANNELS + 1].clamp(-GATE_MAX, GATE_MAX)
        total = gate[:, level] * first + more * second + most * third
        linear[:, level] = round_through(total / GATE).to(linear.dtype)
        energies = [energy_1.reshape(n, -1)[:, layout.where[p]]]
        if p > 0:
            magnitude = y_hat.detach().abs().clamp(max=COMPAND_SIZE - 1)
            sums = (_smooth(magnitude), magnitude @ self.spectrum)
            for total, weight in zip(sums, (layout.spatial[p], layout.spectral[p]), strict=True):
                mean_of = torch.floor(total.reshape(n, -1)[:, layout.where[p]] * 16 / weight)
                energies.append(self.levels[mean_of.to(torch.int32)])
        weights = self.passes[p].energy_weights()[:, None, layout.where[p] % CHANNELS]
        energy = round_through((weights * torch.stack(energies)).sum(0) / GATE)
        return (mean + linear).clamp(-MU_MAX, MU_MAX), (scale + energy + INDEX_ORIGIN).clamp(0, INDEX_MAX)

    def energy(self, y_a: Tensor, y_b: Tensor, both: Tensor) -> Tensor:
        """Log-energy around every coefficient [N, h, w, 64] of the slices beside: 3 x 3 blocks, weights 4, 2, 1, zeros
        beyond the border; the mean of the two, rounded down, where there are two."""
        e_a, e_b = (self.levels[_smooth(y.abs().clamp(max=COMPAND_SIZE - 1)).to(torch.int32)] for y in (y_a, y_b))
        return torch.where(both, torch.floor((e_a + e_b) / 2), e_a)

    def slice_passes(
        self, hyper: Tensor, y_a: Tensor, y_b: Tensor, place: Tensor, layout: Layout, code: Code
    ) -> Tensor:
        """y_hat [N, h, w, 64] of N slices from the ones around (zeros: none); `code` codes the symbols of a pass."""
        n = len(y_a)
        base = self.base(hyper, y_a, y_b, place)
        both = (place >= 2)[:, None, None, None]
        y_1 = torch.where(both, torch.floor((y_a + y_b + 1) / 2), y_a)
        energy_1 = self.energy(y_a, y_b, both)
        y_hat, known = y_1.new_zeros(y_1.shape), y_1.new_zeros(y_1.shape)
        for p in range(PASSES):
            mu, index = self.predict(p, base, known, y_hat, y_1, energy_1, layout)
            new = (16 * code(p, mu, index) + mu).clamp(-Y_MAX, Y_MAX)
            y_hat.view(n, -1)[:, layout.where[p]] = new
            if p < PASSES - 1:
                seen = new.detach().clone()
                seen[:, layout.level[p]] -= y_1[..., 0].reshape(n, -1)[:, layout.block[p]]
                known.view(n, -1)[:, layout.where[p]] = compand(seen, self.lut)
        return y_hat

    def run(
        self, hyper: Callable[[Step], Tensor], y_hat: Tensor, layout: Layout, code: Callable[[Step], Code]
    ) -> Tensor:
        """Code the slices of slabs in order into y_hat [S, K, h, w, 64]; `hyper` gives the h_s features of a step."""
        s, k = y_hat.shape[:2]
        done: dict[int, Tensor] = {-1: torch.zeros_like(y_hat[:, 0])}
        for step in steps(k):
            m = len(step.slices)
            y_a, y_b = (torch.stack([done[t] for t in side], 1).flatten(0, 1) for side in (step.before, step.after))
            place = torch.tensor(step.places(), device=y_hat.device).repeat(s)
            new = self.slice_passes(hyper(step), y_a, y_b, place, layout, code(step)).unflatten(0, (s, m))
            for i, t in enumerate(step.slices):
                done[t] = new[:, i].detach()
                y_hat[:, t] = new[:, i]
        return y_hat

    def details(self, samples: Tensor) -> Tensor:
        """Samples [N, H, W] in 1/16 step, integer-valued -> companded differences from the local mean, int8 [N, 16, H/4, W/4].

        The 16 channels are the phases of 4 x 4 cells; the mean is that of 3 x 3 cells.
        """
        n, h, w = samples.shape
        cells = samples.detach().reshape(n, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3)
        total = F.pad(cells.sum((1, 2), keepdim=True, dtype=torch.float64)[:, 0], (1, 1, 1, 1), mode="replicate")
        total = total[..., :-2, :] + total[..., 1:-1, :] + total[..., 2:, :]
        mean = torch.floor((total[..., :-2] + total[..., 1:-1] + total[..., 2:] + 72) / 144).to(samples.dtype)
        return compand((cells - mean[:, :, None]).flatten(1, 2), self.lut).to(torch.int8)

    def correction(self, details: Tensor) -> Tensor:
        """`details` of a slice and the ones before and after it, int8 [N, 48, H/4, W/4] -> [N, H, W] in 1/16 step."""
        inputs = details.to(torch.bfloat16, memory_format=torch.channels_last)
        return F.pixel_shuffle(self.filter(inputs.float() if self.training else inputs), 4)[:, 0]

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, K, H, W] in steps -> bits per sample [B] (y and z apart) and squared error per sample [B] in steps^2."""
        b, k, h, w = x.shape
        y = transform.analysis(x.reshape(b * k, h, w)) * 16
        size = (h // 8, w // 8)
        y = y.permute(0, 2, 3, 1).reshape(b, k, *size, CHANNELS)
        layout = Layout.of(*size, x.device)
        z = self.h_a(self.activations(y.flatten(0, 1).round()))
        bits_z = self.bottleneck.bits(z + torch.rand_like(z) - 0.5)
        hyper = self.h_s(round_through(z), size).unflatten(0, (b, k))
        coded: list[tuple[Tensor, Tensor, Tensor]] = []  # q, y - mu in steps, index of every pass, [B, ...]

        def coder(step: Step) -> Code:
            given = y[:, list(step.slices)].reshape(b * len(step.slices), -1)

            def code(p: int, mu: Tensor, index: Tensor) -> Tensor:
                e = (given[:, layout.where[p]] - mu) / 16
                q = quantise(e.detach(), index.detach())
                coded.append((q.reshape(b, -1), e.reshape(b, -1), index.reshape(b, -1)))
                return q

            return code

        y_hat = self.run(lambda step: hyper[:, list(step.slices)].flatten(0, 1), torch.zeros_like(y), layout, coder)
        q, e, index = (torch.cat(parts, 1) for parts in zip(*coded, strict=True))
        sigma = entropy.sigma_of(index.clamp(min=1))
        noisy = e + torch.rand_like(e) - 0.5
        relaxed = entropy.laplace_bits(noisy, sigma.detach())  # its gradient reaches mu, its value does not count
        bits_y = (entropy.laplace_bits(q, sigma) + relaxed - relaxed.detach()).sum(1)
        y_hat = y_hat.flatten(0, 1).permute(0, 3, 1, 2)
        samples = transform.synthesis_float(y_hat).unflatten(0, (b, k))
        details = self.details(samples.detach().flatten(0, 1).round()).unflatten(0, (b, k))
        samples = samples + self.correction(beside(details).flatten(0, 1)).unflatten(0, (b, k))
        error = ((samples / 16 - x) ** 2).mean((1, 2, 3))
        count = k * h * w
        return {"y": bits_y / count, "z": bits_z.reshape(b, -1).sum(1) / count, "mse": error}


def beside(details: Tensor) -> Tensor:
    """[S, K, C, ...] -> [S, K, 3 C, ...]: the slices before, itself and after; at the ends itself again."""
    before = torch.cat([details[:, :1], details[:, :-1]], 1)
    after = torch.cat([details[:, 1:], details[:, -1:]], 1)
    return torch.cat([before, details, after], 2)


def quantise(e: Tensor, index: Tensor) -> Tensor:
    """Rate-distortion optimised rounding of e (steps) under the Laplace of the scale index; encoder only.

    A symbol n + 1 is preferred to n when it gains more squared error than RDO_LAMBDA times the bits it costs more.
    """
    sigma = entropy.sigma_of(index.clamp(min=1))
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    first = entropy.laplace_bits(one, sigma) - entropy.laplace_bits(zero, sigma)
    later = 2**0.5 / (sigma * 0.6931)
    a = e.abs()
    n = torch.floor(a + 0.5 - (0.5 * RDO_LAMBDA * later).clamp(max=0.4))
    n = torch.where(n <= 1, (a > (0.5 + 0.5 * RDO_LAMBDA * first).clamp(max=1.3)).to(a.dtype), n)
    return torch.where(index < INDEX_SKIP, 0, torch.sign(e) * n)
