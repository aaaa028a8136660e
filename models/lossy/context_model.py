"""The default lossy model: lapped transform across and within slices, context of planes, four passes.

After Minnen, Balle & Toderici 2018 (mean and scale from context) and Li et al. 2023 (DCVC-DC: four parallel passes over
channel group x 2 x 2 parity). What video codecs take from motion and B-frames comes here from a transform across 1, 2, 4 or
8 slices, chosen for every slab by the encoder, and from the planes that are known.

    x [K, H, W] --transform, / step--> y [K', 64, H/8, W/8]: `depth` frequency planes f of every group g of slices
    planes f = 0 in the order of `steps`, between the coded groups a < g < b:               net `low`
        context: y_hat of planes (a, 0) and (b, 0)
    planes f = 1 .. depth - 1, all groups side by side:                                    net `detail`
        context: y_hat of planes (g, f - 1), (g, f - 2) and (g, 0)
    every plane in passes p = 0..3, 1/8, 1/8, 1/4 and 1/2 of it:
        mu, scale index = net_p(context, y_hat of this plane known so far)
        q = round(y - mu), coded with the table of the scale index;  y_hat = q + mu
    x_hat = step * synthesis(y_hat)

Everything from q to x_hat is integer arithmetic (layers.py); y_hat, mu and x_hat are integers in 1/16 of the step. All
statistics are in units of the step, so one model serves every rate and bit depth; the networks are told how many steps
the range of the volume has. The latent has one value per sample and the transform is orthonormal: rates never saturate.
There is no hyperprior: the first pass and the planes before say what it would, for nothing. And no filter after the
synthesis: mu is what the context expects of a coefficient that is not sent, and a network of two residual blocks of 64
channels on slices t-1, t, t+1, trained on what is left, gained 0.02 dB.

The scale index is the network's output plus weights times log-energies, each of the same coefficient or its neighbours:
of the planes around (3 x 3 blocks; for details 3 groups), of the known neighbouring blocks, and of the known neighbouring
frequencies of the block. The mean of a block (coefficient 0) counts by what it differs from its neighbours or prediction.

In planes f = 0, mu = net + gate * (mean of y_hat_a and y_hat_b at the same place), gates in 1/64 chosen by the network:
exact prediction of large values by small integers. The mean of a block has two more predictors: the mean of its known
neighbours, and the same plus what planes a and b say of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import entropy_models as entropy
from . import lapped_transform as transform
from .coding_order import (
    CHANNELS,
    PARITIES,
    PASSES,
    Layout,
    Step,
    _smooth,
    _spectra,
    coded_channels,
    column_inputs,
    columns,
    grown,
    joined,
    steps,
)
from .layers import (
    COMPAND_SIZE,
    SIGNED,
    IntegerBottleneck,
    IntegerConv2d,
    IntegerResidual,
    clamped,
    compand,
    compand_table,
    floor_through,
    level_of,
    level_table,
    relu8,
    round_through,
    rounded_once,
    through,
)
from .rdo import RDO_LAMBDA, hiding_weights, rdo_quantise

TOGETHER = 8192  # blocks that are worked on at once: more gain nothing, and take memory
PLACES = 5  # of a plane among its neighbours, see `Step.places`; each depth has its own
DEPTHS = transform.DEPTHS
DETAILS = {2: 0, 4: 1, 8: 4}  # first detail class of a depth: 1, 3 and 7 of them
RATES = 16  # octaves of the range in steps
GATE = 64  # one unit of a gate or an energy's weight is 1/64
GATE_MAX = 127
LINEAR_MAX = float((1 << 17) - 1)  # times GATE_MAX: exact in float32
MU_MAX = float(1 << 22)
Y_MAX = float(1 << 23)
INDEX_ORIGIN = 35  # scale index where the network's output is 0: sigma of one step
INDEX_MAX = 207
INDEX_SKIP = 6  # lower indices (sigma below 0.08) are not coded


Code = Callable[
    [int, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]
]  # pass, of parts mu and index [N, n] -> q
Coder = Callable[[Sequence[int]], Code]  # of planes


def _picked(x: Tensor, where: Tensor) -> Tensor:
    """x [N, ...] at flat positions -> [N, n]."""
    return x.reshape(len(x), -1).index_select(1, where)


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


def pieces(planes: int, blocks: int) -> list[slice]:
    """Of planes of so many blocks, those that are worked on together; in training all of them."""
    size = planes if torch.is_grad_enabled() else TOGETHER // blocks
    return [slice(start, start + max(1, size)) for start in range(0, planes, max(1, size))]


class ContextPass(nn.Module):
    """One pass: the context and what is known of y_hat -> of `outputs` numbers a block those that it codes."""

    def __init__(
        self, width: int, outputs: int, energies: int, places: int, *, first: bool, base: bool
    ) -> None:
        super().__init__()
        self.base = IntegerConv2d(width, width, 1) if base else None
        self.known = None if first else IntegerConv2d(CHANNELS, width)
        self.middle = IntegerConv2d(width, width, 1)
        self.head = IntegerConv2d(width, outputs, 1, gain=0.3)
        count = energies if first else energies + 2
        self.energies = nn.Parameter(torch.full((places, count, CHANNELS), 0.75 / count))

    def energy_weights(self) -> Tensor:
        """[places, energies, 64] integers, in 1/64."""
        return round_through((self.energies * GATE).clamp(-SIGNED, SIGNED))

    def forward(
        self, base: Sequence[Tensor], known: Tensor | None, p: int, outputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """By parity, base: features of the blocks [n, width], outputs: which are wanted, -> [n, outputs]; known: see `columns`.

        Only what is known is multiplied, and only what is coded is computed.
        """
        around = [None] * len(base) if known is None else columns(known)
        out = []
        for parity, (features, near, wanted) in enumerate(zip(base, around, outputs, strict=True)):
            h = features.clone() if near is None or self.base is not None else features
            if self.base is not None:
                h = self.base.of_rows(relu8(h))
            if self.known is not None and near is not None:
                h = self.known.of_rows(
                    near, self.known.part(parity, column_inputs(p, parity))
                ).add_(h)
            h = relu8(self.middle.of_rows(relu8(h)))
            out.append(self.head.of_rows(h, self.head.part(parity, outputs=wanted)))
        return out


class PlaneNet(nn.Module):
    """Context of a plane from known planes, `kernels` of each's convolution, and the passes that code it.

    `gates`: predict values from the mean of the sources (planes f = 0). `wide`: see `ContextCodec`.
    """

    def __init__(
        self,
        width: int,
        kernels: tuple[int, ...],
        energies: int,
        places: int,
        *,
        gates: bool,
        wide: bool,
        base: bool,
    ) -> None:
        super().__init__()
        self.gates = gates
        outputs = 3 * CHANNELS + 2 if gates else 2 * CHANNELS
        self.sources = nn.ModuleList(
            [IntegerConv2d(CHANNELS, width, 3 if wide else kernel) for kernel in kernels]
        )
        self.place = nn.Parameter(torch.zeros(places, width))
        self.rate = nn.Parameter(torch.zeros(RATES, width))
        self.mix = nn.ModuleList(
            [(IntegerResidual if wide else IntegerBottleneck)(width) for _ in range(2)]
        )
        self.passes: Sequence[ContextPass] = nn.ModuleList(  # type: ignore[assignment]
            [
                ContextPass(width, outputs, energies, places, first=p == 0, base=base)
                for p in range(PASSES)
            ]
        )
        if gates:
            with torch.no_grad():
                for each in self.passes:
                    each.head.bias[-1] = GATE

    def base(self, says: Sequence[Tensor], place: Tensor, rate: Tensor) -> list[Tensor]:
        """What the sources say [N, h, w, width], classes and rates int64 [N] -> features of the blocks by parity."""
        total = (round_through(self.place)[place] + round_through(self.rate)[rate])[:, None, None]
        total = total + says[0]
        for part in says[1:]:
            total += part
        total = relu8(total.permute(0, 3, 1, 2))
        for block in self.mix:
            total = block(total)
        total = total.permute(0, 2, 3, 1)
        return [total[:, r::2, c::2].flatten(0, 2) for r, c in PARITIES]

    def outputs(self, p: int) -> list[Tensor]:
        """Which outputs pass p uses, by parity: means, scales and gates, and the two more gates of block means."""
        kinds = CHANNELS * torch.arange(3 if self.gates else 2)[:, None]
        wanted = [(kinds + channels).flatten() for channels in coded_channels(p)]
        if self.gates:
            wanted[p] = torch.cat([wanted[p], 3 * CHANNELS + torch.arange(2)])
        return wanted

    def part_shapes(self) -> Iterator[tuple[int, int, int]]:
        """Outputs, inputs and kernel of the parts of convolutions that the passes use."""
        for p, each in enumerate(self.passes):
            if each.known is not None:
                yield each.known.weight.shape[0], len(column_inputs(p, 0)), 1
            for wanted in self.outputs(p):
                yield len(wanted), each.head.weight.shape[1], 1


@dataclass
class Planes:
    """N planes that are being coded, some of those of a step, and what is known of them so far."""

    base: Sequence[Tensor]  # features of the blocks of each parity [n, width]
    place: Tensor  # int64 [N], or [1] if it is the same of all
    y_1: Tensor | None  # [N, h, w, 64]: the planes a and b, or their mean; None for details
    energies: list[Tensor]  # log-energies [N, h, w, 64]
    y_hat: Tensor  # [N, h, w, 64], 0 where it is not known
    magnitude: Tensor  # the same of what was sent
    known: Tensor | None = None  # see `columns`

    def coded(self, p: int, q: Tensor, mu: Tensor, layout: Layout, lut: Tensor) -> None:
        """What came of pass p: q and mu [N, n]."""
        n, h, w, _ = self.y_hat.shape
        level, block = layout.level[p], layout.block[p]
        new = (16 * q + mu.detach()).clamp_(-Y_MAX, Y_MAX)
        where = layout.where[p].expand(n, -1)
        self.y_hat.view(n, -1).scatter_(1, where, new)
        if p == PASSES - 1:
            return
        if self.y_1 is not None:
            new[:, level] -= _picked(self.y_1[..., 0], block)
        size = new.abs()
        size[:, level] = (16 * q[:, level]).abs()
        self.magnitude.view(n, -1).scatter_(1, where, size.clamp_(max=COMPAND_SIZE - 1))
        self.known = grown(self.known, compand(new, lut), h, w)


@dataclass(frozen=True)
class Source:
    """A known plane as context of others."""

    y: Tensor  # [N, h, w, 64]
    energy: Tensor  # sum of magnitudes around every coefficient [N, h, w, 64]; its logarithm for planes f = 0
    says: list[
        Sequence[Tensor]
    ]  # what each of a net's sources makes of it, [.., h, w, width] of `pieces`


class ContextCodec(nn.Module):
    """See the module. `width`: channels of the networks. Early stages of training have more: `base`, another layer in every
    pass, and `wide`, residual blocks of two whole convolutions."""

    lut: Tensor
    levels: Tensor
    hiding: Tensor

    def __init__(self, width: int = 96, *, base: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.low = PlaneNet(
            width, (3, 3), 1, PLACES * len(DEPTHS), gates=True, wide=wide, base=base
        )
        places = sum(depth - 1 for depth in DETAILS)
        self.detail = PlaneNet(width, (3, 1, 3), 2, places, gates=False, wide=wide, base=base)
        self.register_buffer("lut", compand_table(), persistent=False)
        self.register_buffer("levels", level_table(), persistent=False)
        self.register_buffer("hiding", hiding_weights(), persistent=False)

    # -- what encoder, decoder and training share ----------------------------------------------------------------

    def level(self, y: Tensor) -> Tensor:
        """y [N, h, w, 64] with block means relative to their 3 x 3 neighbourhood."""
        levelled = y.clone()
        levelled[..., 0] -= _box(y[..., 0][:, None])[:, 0]
        return levelled

    def compress(self, levelled: Tensor) -> Tensor:
        """[N, h, w, 64] in 1/16 step -> companded [N, 64, h, w]."""
        return compand(levelled, self.lut).permute(0, 3, 1, 2)

    def energy(self, levelled: Tensor) -> Tensor:
        """Sum of magnitudes around every coefficient [N, h, w, 64]: 3 x 3 blocks, weights 4, 2, 1, zeros beyond the border."""
        return _smooth(levelled.abs().clamp_(max=COMPAND_SIZE - 1))

    def source(self, y: Tensor, layers: Sequence[nn.Module], *, levelled: bool) -> Source:
        """Of planes y [N, h, w, 64]; levelled: of those whose block means are large."""
        energies, says = [], []
        for part in pieces(len(y), math.prod(y.shape[1:3])):
            values = self.level(y[part]) if levelled else y[part]
            energies.append(self.energy(values))
            companded = self.compress(values)
            says.append([layer(companded).permute(0, 2, 3, 1) for layer in layers])
        return Source(y, torch.cat(energies), list(zip(*says, strict=True)))

    def low_source(self, y: Tensor) -> Source:
        """Of a group's plane f = 0 for others', its energies as logarithms."""
        source = self.source(y, list(self.low.sources), levelled=True)
        return replace(source, energy=level_of(source.energy, self.levels))

    def detail_source(self, y: Tensor, f: int) -> Source:
        """Of planes f for those of higher frequency."""
        return self.source(y, list(self.detail.sources)[: 3 if f == 0 else 2], levelled=f == 0)

    def low_planes(
        self, around: Sequence[tuple[Source, Source, bool]], place: Tensor, rate: Tensor
    ) -> list[Planes]:
        """Groups side by side after those around: planes f = 0 a and b [S, ...] (zeros: none) and whether there are both;
        place 5 log2(depth) + `Step.places`, rate [S groups]."""
        y_1, energy, says = [], [], []
        for a, b, both in around:
            y_1.append(floor_through((a.y + b.y).add_(1).div_(2)) if both else a.y)
            energy.append(floor_through((a.energy + b.energy).div_(2)) if both else a.energy)
            says.append(
                torch.cat(
                    [first + second for first, second in zip(a.says[0], b.says[1], strict=True)]
                )
            )
        whole = [torch.stack(groups, 1).flatten(0, 1) for groups in (y_1, energy, says)]
        out = []
        for part in pieces(len(place), math.prod(whole[0].shape[1:3])):
            y, e, said = (each[part] for each in whole)
            base = self.low.base([said], place[part], rate[part])
            out.append(Planes(base, place[part], y, [e], torch.zeros_like(y), torch.zeros_like(y)))
        return out

    def detail_planes(
        self, f: int, near: Source, far: Source, low: Source, rate: Tensor, depth: int
    ) -> list[Planes]:
        """Planes f > 0 of all groups after their planes f - 1, max(f - 2, 0) and 0, [S G, h, w, 64] each; rate [S]."""
        n, groups = len(near.y), len(near.y) // len(rate)
        plane = torch.arange(n, device=rate.device)
        before, after = (
            plane - (plane % groups > 0).long(),
            plane + (plane % groups < groups - 1).long(),
        )
        place = torch.full((1,), DETAILS[depth] + f - 1, device=rate.device)
        rates = rate.repeat_interleave(groups)
        out = []
        for i, part in enumerate(pieces(n, math.prod(near.y.shape[1:3]))):
            wide = (near.energy[before[part]] + near.energy[after[part]]).add_(
                near.energy[part], alpha=2
            )
            energies = [level_of(e, self.levels) for e in ((wide + 2) / 4, far.energy[part])]
            base = self.detail.base(
                [near.says[0][i], far.says[1][i], low.says[2][i]], place, rates[part]
            )
            nothing = [torch.zeros_like(near.y[part]) for _ in range(2)]
            out.append(Planes(base, place, None, energies, *nothing))
        return out

    def predict(
        self, net: PlaneNet, p: int, planes: Planes, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Means (1/16 step) and scale indices [N, n] of what pass p codes."""
        n, h, w, _ = planes.y_hat.shape
        where, channel = layout.where[p], layout.channel[p]
        made = net.passes[p](planes.base, planes.known, p, net.outputs(p))
        m = len(where) // (h * w)
        kinds = 3 if net.gates else 2
        split = (
            joined([part[:, : kinds * m] for part in made], n).unflatten(2, (kinds, m)).unbind(2)
        )  # [N, blocks, m]
        mean, scale, *gates = split
        if planes.y_1 is not None:
            more = made[p][:, kinds * m :].reshape(n, -1, 2)
            linear = self._linear(p, gates[0].flatten(1), more, planes.y_1, planes.y_hat, layout)
            mean = mean + linear.view(mean.shape)
        energies = [_picked(energy, where) for energy in planes.energies]
        if p > 0:
            beside = [
                planes.magnitude[:, r::2, c::2].reshape(-1, CHANNELS) @ weights.to(mean.device)
                for (r, c), weights in zip(PARITIES, _spectra(p), strict=True)
            ]
            sums = (_picked(_smooth(planes.magnitude), where), joined(beside, n).flatten(1))
            for total, weight in zip(sums, (layout.spatial[p], layout.spectral[p]), strict=True):
                energies.append(level_of(total.div_(weight), self.levels))
        weights = net.passes[p].energy_weights()[planes.place] / GATE  # exact, as the sums are
        total = scale.new_zeros(())
        for weight, energy in zip(weights.unbind(1), energies, strict=True):
            total = torch.addcmul(total, weight.index_select(1, channel), energy)
        index = round_through(total).view(scale.shape).add_(scale).add_(INDEX_ORIGIN)
        return F.hardtanh(mean, -MU_MAX, MU_MAX).flatten(1), clamped(index, 0, INDEX_MAX).flatten(1)

    def _linear(
        self, p: int, gate: Tensor, more: Tensor, y_1: Tensor, y_hat: Tensor, layout: Layout
    ) -> Tensor:
        """Gated predictions [N, n] from the planes around, and of block means from their neighbours.

        gate [N, n], more [N, block means, 2]: how much of each.
        """
        where, level, block = layout.where[p], layout.level[p], layout.block[p]
        gate, more = (F.hardtanh(part, -GATE_MAX, GATE_MAX) for part in (gate, more))
        linear = round_through(gate * _picked(y_1, where).clamp(-LINEAR_MAX, LINEAR_MAX) / GATE)
        before = y_1[..., 0][
            :, None
        ].double()  # block means: their products need more than float32's integers
        if p == 0:
            near = slope = before
        else:
            near = _neighbours(y_hat[..., 0][:, None].double(), p == 1)
            slope = before + near - _neighbours(before, p == 1)
        first, second, third = (_picked(plane, block) for plane in (before, near, slope))
        total = gate[:, level] * first + more[..., 0] * second + more[..., 1] * third
        linear[:, level] = round_through(total / GATE).to(linear.dtype)
        return linear

    def plane_passes(
        self, net: PlaneNet, parts: Sequence[Planes], layout: Layout, code: Code
    ) -> Tensor:
        """y_hat [N, h, w, 64] of N planes in parts; `code` codes the symbols of a pass."""
        for p in range(PASSES):
            means, indices = zip(
                *(self.predict(net, p, part, layout) for part in parts), strict=True
            )
            for part, q, mu in zip(parts, code(p, means, indices), means, strict=True):
                part.coded(p, q, mu, layout, self.lut)
        return parts[0].y_hat if len(parts) == 1 else torch.cat([part.y_hat for part in parts])

    def order(self, groups: int) -> list[Step]:
        """In which the planes f = 0 are coded."""
        return steps(groups)

    def run(self, y_hat: Tensor, depth: int, rate: Tensor, layout: Layout, coder: Coder) -> Tensor:
        """Code the planes of slabs in order into y_hat [S, K', h, w, 64]; rate int64 [S]; `coder` is told the planes."""
        s, k = y_hat.shape[:2]
        groups = k // depth
        nothing = torch.zeros_like(y_hat[:, 0])
        sources: dict[int, Source] = {}  # of groups that others lean on

        for step in self.order(groups):
            m = len(step.groups)
            for g in {*step.before, *step.after} - sources.keys():
                sources[g] = self.low_source(nothing if g < 0 else y_hat[:, g * depth].clone())
            around = [
                (sources[a], sources[b], b >= 0)
                for a, b in zip(step.before, step.after, strict=True)
            ]
            place = torch.tensor(step.places(), device=y_hat.device).repeat(
                s
            ) + PLACES * DEPTHS.index(depth)
            parts = self.low_planes(around, place, rate.repeat_interleave(m))
            planes = [g * depth for g in step.groups]
            y_hat[:, planes] = self.plane_passes(self.low, parts, layout, coder(planes)).unflatten(
                0, (s, m)
            )
        known: list[Source] = []
        y = y_hat[:, ::depth].flatten(0, 1)
        for f in range(1, depth):
            known.append(self.detail_source(y, f - 1))
            parts = self.detail_planes(f, known[-1], known[max(f - 2, 0)], known[0], rate, depth)
            planes = [g * depth + f for g in range(groups)]
            y = self.plane_passes(self.detail, parts, layout, coder(planes))
            y_hat[:, f::depth] = y.unflatten(0, (s, groups))
        return y_hat

    # -- search of an encoder ------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.enable_grad()
    def dependent_rate_gradient(self, y_hat: Tensor, y: Tensor, depth: int, rate: Tensor) -> Tensor:
        """What coded planes y_hat of a slab, [K', h, w, 64], do to what leans on them: bits a step, of the same shape.

        The derivative of the bits of other symbols, and of the squared errors of those that are 0 (in RDO_LAMBDA), by every
        coefficient, of which y is what was wanted; rate int64 [1].
        """
        y_hat, y, rate = y_hat.clone(), y.clone(), rate.clone()
        total = torch.zeros_like(y_hat)
        h, w = y.shape[1:3]
        layout = Layout.of(h, w, y.device)
        groups, most = len(y_hat) // depth, max(1, TOGETHER // (h * w))  # planes at once
        for step in self.order(groups):
            for at in range(0, len(step.groups), most):
                part = Step(
                    *(each[at : at + most] for each in (step.groups, step.before, step.after))
                )
                coded = list(part.groups)
                own = y_hat[::depth][coded].requires_grad_()
                around = {
                    g: y_hat[::depth][[g]].requires_grad_()
                    for g in {*part.before, *part.after} - {-1}
                }
                sources = {g: self.low_source(plane) for g, plane in around.items()}
                sources[-1] = self.low_source(torch.zeros_like(y_hat[:1]))
                pairs = [
                    (sources[a], sources[b], b >= 0)
                    for a, b in zip(part.before, part.after, strict=True)
                ]
                place = torch.tensor(part.places(), device=y.device) + PLACES * DEPTHS.index(depth)
                (made,) = self.low_planes(pairs, place, rate.expand(len(coded)))
                bits = self._dependent_rate_of(self.low, made, own, y[::depth][coded], layout).sum()
                first, *others = torch.autograd.grad(bits, [own, *around.values()])
                total[::depth][coded] += first
                for g, gradient in zip(around, others, strict=True):
                    total[g * depth] += gradient[0]
        for f in range(1, depth):
            for at in range(0, groups, most):
                near = slice(
                    max(at - 1, 0), at + most + 1
                )  # energies are also of the groups beside
                planes = {
                    n: y_hat[n::depth][near].clone().requires_grad_()
                    for n in (0, max(f - 2, 0), f - 1, f)
                }
                sources = {n: self.detail_source(plane, n) for n, plane in planes.items() if n < f}
                (made,) = self.detail_planes(
                    f, sources[f - 1], sources[max(f - 2, 0)], sources[0], rate, depth
                )
                bits = self._dependent_rate_of(
                    self.detail, made, planes[f], y[f::depth][near], layout
                )
                bits = bits[at - near.start :][:most].sum()
                for n, gradient in zip(
                    planes, torch.autograd.grad(bits, list(planes.values())), strict=True
                ):
                    total[n::depth][near] += gradient
        return total.mul_(16)

    def _dependent_rate_of(
        self, net: PlaneNet, planes: Planes, y_hat: Tensor, y: Tensor, layout: Layout
    ) -> Tensor:
        """Bits [N], and errors in RDO_LAMBDA, with the gradients of `dependent_rate_gradient`; planes y_hat and y [N, h, w, 64]."""
        sums = []

        def code(p: int, means: Sequence[Tensor], indices: Sequence[Tensor]) -> Sequence[Tensor]:
            (mu,), (index,) = means, indices
            made, wanted = _picked(y_hat, layout.where[p]), _picked(y, layout.where[p])
            q, e = ((made - mu).detach() / 16).round(), (wanted - mu) / 16
            bits = entropy.coded_bits(index, e, q, (q - e).detach())
            bits = bits * (index >= INDEX_SKIP) + e.square() * (q == 0) / RDO_LAMBDA
            sums.append(bits.sum(1))
            return [through(made, lambda _: q, made.new_tensor(1 / 16))]

        self.plane_passes(net, [planes], layout, code)
        return torch.stack(sums).sum(0)

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, depth: int, rate: Tensor) -> dict[str, Tensor]:
        """x [B, K, H, W] in steps, rate int64 [B] -> bits per sample [B] and squared error per sample [B] in steps^2."""
        b, k, h, w = x.shape
        size = (h // 8, w // 8)
        y = transform.analysis(x.flatten(0, 1)).unflatten(0, (b, k)) * 16
        y = transform.analysis_across(y, depth)
        layout = Layout.of(*size, x.device)
        coded: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # q, y - mu in steps, index of every pass, [B, ...]

        def coder(planes: Sequence[int]) -> Code:
            given = y[:, list(planes)].reshape(b * len(planes), -1)

            def code(
                p: int, means: Sequence[Tensor], indices: Sequence[Tensor]
            ) -> Sequence[Tensor]:
                (mu,), (index,) = means, indices  # one part
                e = (given[:, layout.where[p]] - mu) / 16
                q = rdo_quantise(e.detach(), index.detach())
                coded.append((q.reshape(b, -1), e.reshape(b, -1), index.reshape(b, -1)))
                return [q]

            return code

        with rounded_once(self):
            y_hat = self.run(torch.zeros_like(y), depth, rate, layout, coder)
        q, e, index = (torch.cat(parts, 1) for parts in zip(*coded, strict=True))
        bits = entropy.coded_bits(index, e, q, torch.rand_like(e) - 0.5).sum(1)
        with torch.no_grad():
            slices = transform.synthesis_across_float(y_hat, depth)[:, :k].flatten(0, 1)
            samples = transform.synthesis_float(slices).unflatten(0, (b, k)) / 16
        return {"y": bits / (k * h * w), "mse": ((samples - x) ** 2).mean((1, 2, 3))}


def rate_class(step: int, peak: int) -> int:
    """Octaves of the range in steps: the bit length of floor(peak / step), peak in codes, step in 2**-16 codes; at most 15."""
    return min(((peak << 16) // step).bit_length(), RATES - 1)
