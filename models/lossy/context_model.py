"""The default lossy model: a lapped transform and a context model of its frequency bands.

After Minnen, Balle & Toderici 2018 (arXiv:1809.02736: mean and scale from context) and Li et al.
2023 (DCVC-DC, arXiv:2302.14402: four passes over channel groups and 2 x 2 parities). What video
codecs take from motion compensation and B pictures comes here from a transform across 1, 2, 4 or 8
slices, which the encoder chooses for every slab, and from bands that are coded already.

    x [K, H, W] --transform, / step--> y [K', 64, h, w], h = H/8, w = W/8:
                                       `depth` frequency bands f of every group of slices
    low bands f = 0, group by group in the order of `coding_steps`:             BandNet `low`
        references: y_hat of the low bands of a coded group on either side, a and b
    detail bands f = 1 .. depth - 1, of all groups side by side:                BandNet `detail`
        references: y_hat of the bands f - 1, f - 2 and 0 of the group
    every band in passes p = 0 .. 3, with 1/8, 1/8, 1/4 and 1/2 of its coefficients:
        mu, scale index = net.passes[p](base of the references, y_hat of this band so far)
        q = round(y - mu), coded with the table of the scale index;  y_hat = q + mu
    y_hat --* step, synthesis--> x_hat [K, H, W]

Everything from q to x_hat is integer arithmetic (layers.py); y_hat, mu and x_hat are integers in
1/16 of the step. All statistics are in units of the step, so one model serves every rate and bit
depth; the networks know how many steps the range of the volume has (`rate_class`). The latent has
one value per sample and the transform is nearly orthonormal: rates never saturate. There is no
hyperprior z: the first pass and the coded bands give the same information without side
information. Nor is there a filter after the synthesis: mu is the expectation of a coefficient that
is not sent, and a network of two residual blocks of 64 channels on slices t-1, t, t+1, trained on
the remaining error, gained 0.02 dB.

The scale index is the network's output plus a weighted sum of log-energies, each of the same
coefficient or its neighbours: of the references (3 x 3 blocks; for detail bands 3 groups), of the
known neighbouring blocks, and of the known neighbouring frequencies of the block. The DC of a block
counts by its difference from its neighbours or prediction.

In low bands, mu = net + gate * (mean of y_hat_a and y_hat_b at the same position), with gates in
1/64 from the network: an exact prediction of large values by small integers. The DC has two more
predictors: the mean of its known neighbours, and the same plus the difference between the DC and
that mean in the references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import entropy_models as entropy
from . import lapped_transform as transform
from .band_networks import GATE, RATES, BandKind, BandNet
from .coding_order import (
    CHANNELS,
    PARITIES,
    PASSES,
    REFERENCE_CLASSES,
    CodingStep,
    Layout,
    append_pass,
    binomial_sum,
    coding_steps,
    frequency_kernels,
    join_parities,
)
from .layers import (
    COMPAND_SIZE,
    clamped,
    compand,
    compand_table,
    floor_ste,
    log_energy,
    log_energy_table,
    round_ste,
    rounded_once,
)
from .rdo import hiding_weights, rdo_quantise

# Blocks that are worked on at once in inference: more gain no speed, and take memory.
MAX_BLOCKS = 8192
# Class of the first detail band by depth; there are depth - 1 classes for each.
FIRST_DETAIL_CLASS = {2: 0, 4: 1, 8: 4}
# Largest magnitude of a gate, in 1 / GATE.
GATE_MAX = 127
# Largest magnitude of a value that a gate multiplies: products are exact in float32.
LINEAR_MAX = float((1 << 17) - 1)
# Largest magnitude of mu, in 1/16 of a step.
MU_MAX = float(1 << 22)
# Largest magnitude of y_hat, in 1/16 of a step.
Y_MAX = float(1 << 23)
# Scale index where the network's output and the energies are 0: sigma of one step.
INDEX_ORIGIN = 35
INDEX_MAX = 207
# Symbols of lower scale indices (sigma below 0.08) are 0 and not coded.
INDEX_SKIP = 6

LOW_BANDS = BandKind(
    (3, 3), energies=1, classes=REFERENCE_CLASSES * len(transform.DEPTHS), gates=True
)
DETAIL_BANDS = BandKind(
    (3, 1, 3), energies=2, classes=sum(depth - 1 for depth in FIRST_DETAIL_CLASS), gates=False
)

# Codes the symbols of a pass: pass, means and scale indices [N, n] of each piece -> q of each.
PassCoder = Callable[[int, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
# The `PassCoder` of bands, which are numbered group by group.
BandCoder = Callable[[Sequence[int]], PassCoder]


def select(x: Tensor, where: Tensor) -> Tensor:
    """x [N, ...] at flat positions [n] -> [N, n]."""
    return x.reshape(len(x), -1).index_select(1, where)


def _neighbour_mean(x: Tensor, diagonal: bool) -> Tensor:
    """floor((sum + 2) / 4) of the 4 diagonal or edge neighbours of x [N, 1, h, w].

    Reflected at the border.
    """
    mode = [("reflect" if n > 1 else "replicate") for n in x.shape[-2:]]
    p = F.pad(F.pad(x, (1, 1, 0, 0), mode=mode[1]), (0, 0, 1, 1), mode=mode[0])
    if diagonal:
        total = p[..., :-2, :-2] + p[..., :-2, 2:] + p[..., 2:, :-2] + p[..., 2:, 2:]
    else:
        total = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    return torch.floor((total + 2) / 4)


def _box_mean(x: Tensor) -> Tensor:
    """floor((sum over 3 x 3 + 4) / 9) of x [N, C, h, w], replicated at the border."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = p[..., :-2, :] + p[..., 1:-1, :] + p[..., 2:, :]
    return torch.floor((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4) / 9)


def bands_at_once(blocks: int) -> int:
    """How many bands of so many blocks are worked on at once in inference."""
    return max(1, MAX_BLOCKS // blocks)


def _pieces(bands: int, blocks: int) -> list[slice]:
    """Parts of the bands that are worked on at once; in training all of them."""
    size = max(1, bands) if torch.is_grad_enabled() else bands_at_once(blocks)
    return [slice(start, start + size) for start in range(0, bands, size)]


def rate_class(step: int, peak: int) -> int:
    """Octaves of the range in steps: the bit length of floor(peak / step), at most 15.

    peak in codes, step in 2**-16 codes.
    """
    return min(((peak << 16) // step).bit_length(), RATES - 1)


@dataclass(frozen=True)
class Reference:
    """Coded bands as context of others."""

    y: Tensor  # [N, h, w, 64], y_hat.
    energy: Tensor  # [N, h, w, 64], `ContextCodec.energy`; its logarithm for low bands.
    # Per convolution of the net that uses them: its features, [.., h, w, width] of each piece.
    features: list[Sequence[Tensor]]


class ReferencePair(NamedTuple):
    """The references of a low band: those of the groups before and after it, zeros for none."""

    before: Reference
    after: Reference
    both: bool  # Whether there is a group after it.


@dataclass
class BandState:
    """N bands that are being coded, a piece of those of a step, and what is known of them."""

    base: Sequence[Tensor]  # By parity: features of the references [blocks, width].
    classes: Tensor  # int64 [N], or [1] if all have the same.
    mean_reference: Tensor | None  # [N, h, w, 64]; None for detail bands.
    energies: list[Tensor]  # Log-energies of the references, [N, h, w, 64] each.
    y_hat: Tensor  # [N, h, w, 64], 0 where it is unknown.
    magnitude: Tensor  # [N, h, w, 64]: abs(y_hat), of DC what was sent.
    known: Tensor | None = None  # Companded y_hat as `context_columns` takes it.

    def update(self, p: int, q: Tensor, mu: Tensor, layout: Layout, lut: Tensor) -> None:
        """Take note of the symbols q and means mu [N, n] of pass p."""
        n, h, w, _ = self.y_hat.shape
        dc, dc_block = layout.dc[p], layout.dc_block[p]
        coded = (16 * q + mu.detach()).clamp_(-Y_MAX, Y_MAX)
        where = layout.where[p].expand(n, -1)
        self.y_hat.view(n, -1).scatter_(1, where, coded)
        if p == PASSES - 1:
            return
        if self.mean_reference is not None:
            coded[:, dc] -= select(self.mean_reference[..., 0], dc_block)
        magnitude = coded.abs()
        magnitude[:, dc] = (16 * q[:, dc]).abs()
        self.magnitude.view(n, -1).scatter_(1, where, magnitude.clamp_(max=COMPAND_SIZE - 1))
        self.known = append_pass(self.known, compand(coded, lut), h, w)


class ContextCodec(nn.Module):
    """The networks of the default model and the order in which they code bands.

        y [S, K', h, w, 64] --`run`: low bands, detail bands, 4 passes each--> q, y_hat (same shape)

    The module's docstring has the papers and the data flow. `width`: channels of the networks.
    Early stages of training have larger networks: `base`, another layer in every pass, and `wide`,
    residual blocks of two whole convolutions.
    """

    lut: Tensor
    levels: Tensor
    hiding: Tensor

    def __init__(self, width: int = 96, *, base: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.low = BandNet(width, LOW_BANDS, wide=wide, base=base)
        self.detail = BandNet(width, DETAIL_BANDS, wide=wide, base=base)
        self.register_buffer("lut", compand_table(), persistent=False)
        self.register_buffer("levels", log_energy_table(), persistent=False)
        self.register_buffer("hiding", hiding_weights(), persistent=False)

    # -- references ------------------------------------------------------------------------------

    def dc_removed(self, y: Tensor) -> Tensor:
        """y [N, h, w, 64] with DC coefficients relative to the mean of their 3 x 3 blocks."""
        relative = y.clone()
        relative[..., 0] -= _box_mean(y[..., 0][:, None])[:, 0]
        return relative

    def energy(self, y: Tensor) -> Tensor:
        """Sum of magnitudes around every coefficient, [N, h, w, 64].

        Over 3 x 3 blocks with weights 4, 2 and 1, zeros beyond the border.
        """
        return binomial_sum(y.abs().clamp_(max=COMPAND_SIZE - 1))

    def reference(self, y: Tensor, convolutions: Sequence[nn.Module], *, low: bool) -> Reference:
        """Bands y [N, h, w, 64] as context; low: low bands, whose DC coefficients are large."""
        energies, features = [], []
        for piece in _pieces(len(y), math.prod(y.shape[1:3])):
            values = self.dc_removed(y[piece]) if low else y[piece]
            energies.append(self.energy(values))
            companded = compand(values, self.lut).permute(0, 3, 1, 2)
            features.append([layer(companded).permute(0, 2, 3, 1) for layer in convolutions])
        return Reference(y, torch.cat(energies), list(zip(*features, strict=True)))

    def low_reference(self, y: Tensor) -> Reference:
        """The low bands y of a group for those of other groups; energies are logarithms."""
        reference = self.reference(y, list(self.low.sources), low=True)
        return replace(reference, energy=log_energy(reference.energy, self.levels))

    def detail_reference(self, y: Tensor, f: int) -> Reference:
        """The bands f of groups for their bands of higher frequency."""
        return self.reference(y, list(self.detail.sources)[: 3 if f == 0 else 2], low=f == 0)

    def low_states(
        self, pairs: Sequence[ReferencePair], step: CodingStep, depth: int, rate: Tensor
    ) -> list[BandState]:
        """The low bands of a step, before they are coded: those of all its groups for each slab.

        pairs: per group, of [S, h, w, 64]; rate int64 [S groups].
        """
        mean, energy, features = [], [], []
        for a, b, both in pairs:
            mean.append(floor_ste((a.y + b.y).add_(1).div_(2)) if both else a.y)
            energy.append(floor_ste((a.energy + b.energy).div_(2)) if both else a.energy)
            sums = [x + y for x, y in zip(a.features[0], b.features[1], strict=True)]
            features.append(torch.cat(sums))
        y, e, h = (torch.stack(groups, 1).flatten(0, 1) for groups in (mean, energy, features))
        offset = REFERENCE_CLASSES * transform.DEPTHS.index(depth)
        classes = torch.tensor(step.reference_classes(), device=y.device) + offset
        classes = classes.repeat(len(y) // len(classes))
        states = []
        for piece in _pieces(len(y), math.prod(y.shape[1:3])):
            base = self.low.base([h[piece]], classes[piece], rate[piece])
            unknown = [torch.zeros_like(y[piece]) for _ in range(2)]
            states.append(BandState(base, classes[piece], y[piece], [e[piece]], *unknown))
        return states

    def detail_states(
        self, f: int, references: Sequence[Reference], depth: int, rate: Tensor
    ) -> list[BandState]:
        """The bands f > 0 of all groups of each slab, before they are coded.

        references: the bands f - 1, max(f - 2, 0) and 0 of [S groups, h, w, 64]; rate int64 [S].
        """
        near, far, low = references
        n, groups = len(near.y), len(near.y) // len(rate)
        group = torch.arange(n, device=rate.device)
        before = group - (group % groups > 0).long()
        after = group + (group % groups < groups - 1).long()
        classes = torch.full((1,), FIRST_DETAIL_CLASS[depth] + f - 1, device=rate.device)
        rates = rate.repeat_interleave(groups)
        states = []
        for i, piece in enumerate(_pieces(n, math.prod(near.y.shape[1:3]))):
            around = (near.energy[before[piece]] + near.energy[after[piece]]).add_(
                near.energy[piece], alpha=2
            )
            energies = [log_energy(e, self.levels) for e in ((around + 2) / 4, far.energy[piece])]
            features = [near.features[0][i], far.features[1][i], low.features[2][i]]
            base = self.detail.base(features, classes, rates[piece])
            unknown = [torch.zeros_like(near.y[piece]) for _ in range(2)]
            states.append(BandState(base, classes, None, energies, *unknown))
        return states

    # -- passes ----------------------------------------------------------------------------------

    def predict(
        self, net: BandNet, p: int, state: BandState, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Means (1/16 of a step) and scale indices [N, n] of the coefficients of pass p."""
        n, h, w, _ = state.y_hat.shape
        outputs = net.passes[p](state.base, state.known, p, net.outputs(p))
        m = len(layout.where[p]) // (h * w)
        count = 3 if net.gates else 2
        parts = [part[:, : count * m] for part in outputs]
        mean, scale, *gates = join_parities(parts, n).unflatten(2, (count, m)).unbind(2)
        if state.mean_reference is not None:
            dc_gates = outputs[p][:, count * m :].reshape(n, -1, 2)
            linear = self._linear(p, gates[0].flatten(1), dc_gates, state, layout)
            mean = mean + linear.view(mean.shape)
        weights = net.passes[p].energy_weights()[state.classes] / GATE  # exact, as the sums are
        total = scale.new_zeros(())
        for weight, energy in zip(weights.unbind(1), self._energies(p, state, layout), strict=True):
            total = torch.addcmul(total, weight.index_select(1, layout.channel[p]), energy)
        index = round_ste(total).view(scale.shape).add_(scale).add_(INDEX_ORIGIN)
        return F.hardtanh(mean, -MU_MAX, MU_MAX).flatten(1), clamped(index, 0, INDEX_MAX).flatten(1)

    def _energies(self, p: int, state: BandState, layout: Layout) -> list[Tensor]:
        """The log-energies [N, n] that the scales of pass p depend on."""
        where = layout.where[p]
        energies = [select(energy, where) for energy in state.energies]
        if p == 0:
            return energies
        by_frequency = [
            state.magnitude[:, r::2, c::2].reshape(-1, CHANNELS) @ kernel.to(where.device)
            for (r, c), kernel in zip(PARITIES, frequency_kernels(p), strict=True)
        ]
        sums = (
            select(binomial_sum(state.magnitude), where),
            join_parities(by_frequency, len(state.y_hat)).flatten(1),
        )
        for total, weight in zip(sums, (layout.spatial[p], layout.spectral[p]), strict=True):
            energies.append(log_energy(total.div_(weight), self.levels))
        return energies

    def _linear(
        self, p: int, gate: Tensor, dc_gates: Tensor, state: BandState, layout: Layout
    ) -> Tensor:
        """Gated predictions [N, n] from the references, and of the DC from its neighbours.

        gate [N, n], dc_gates [N, DC coefficients, 2]: the weights of the predictors.
        """
        where, dc, dc_block = layout.where[p], layout.dc[p], layout.dc_block[p]
        reference = state.mean_reference
        assert reference is not None
        gate, dc_gates = (F.hardtanh(part, -GATE_MAX, GATE_MAX) for part in (gate, dc_gates))
        linear = round_ste(gate * select(reference, where).clamp(-LINEAR_MAX, LINEAR_MAX) / GATE)
        # Products of DC coefficients exceed the integers of float32.
        before = reference[..., 0][:, None].double()
        if p == 0:
            near = slope = before
        else:
            near = _neighbour_mean(state.y_hat[..., 0][:, None].double(), p == 1)
            slope = before + near - _neighbour_mean(before, p == 1)
        first, second, third = (select(dcs, dc_block) for dcs in (before, near, slope))
        total = gate[:, dc] * first + dc_gates[..., 0] * second + dc_gates[..., 1] * third
        linear[:, dc] = round_ste(total / GATE).to(linear.dtype)
        return linear

    def code_passes(
        self, net: BandNet, states: Sequence[BandState], layout: Layout, code: PassCoder
    ) -> Tensor:
        """y_hat [N, h, w, 64] of N bands, their symbols coded by `code`."""
        for p in range(PASSES):
            predictions = [self.predict(net, p, state, layout) for state in states]
            means, indices = zip(*predictions, strict=True)
            for state, q, mu in zip(states, code(p, means, indices), means, strict=True):
                state.update(p, q, mu, layout, self.lut)
        return states[0].y_hat if len(states) == 1 else torch.cat([s.y_hat for s in states])

    # -- bands -----------------------------------------------------------------------------------

    def order(self, groups: int) -> list[CodingStep]:
        """The order in which low bands are coded."""
        return coding_steps(groups)

    def run(
        self, y_hat: Tensor, depth: int, rate: Tensor, layout: Layout, coder: BandCoder
    ) -> Tensor:
        """Code the bands of slabs in order into y_hat [S, K', h, w, 64]; rate int64 [S]."""
        self._code_low_bands(y_hat, depth, rate, layout, coder)
        self._code_detail_bands(y_hat, depth, rate, layout, coder)
        return y_hat

    def _code_low_bands(
        self, y_hat: Tensor, depth: int, rate: Tensor, layout: Layout, coder: BandCoder
    ) -> None:
        slabs, groups = len(y_hat), y_hat.shape[1] // depth
        zeros = torch.zeros_like(y_hat[:, 0])
        references: dict[int, Reference] = {}  # of groups, as far as others refer to them
        for step in self.order(groups):
            for g in {*step.before, *step.after} - references.keys():
                y = zeros if g < 0 else y_hat[:, g * depth].clone()
                references[g] = self.low_reference(y)
            pairs = [
                ReferencePair(references[a], references[b], b >= 0)
                for a, b in zip(step.before, step.after, strict=True)
            ]
            count = len(step.groups)
            states = self.low_states(pairs, step, depth, rate.repeat_interleave(count))
            bands = [g * depth for g in step.groups]
            y = self.code_passes(self.low, states, layout, coder(bands))
            y_hat[:, bands] = y.unflatten(0, (slabs, count))

    def _code_detail_bands(
        self, y_hat: Tensor, depth: int, rate: Tensor, layout: Layout, coder: BandCoder
    ) -> None:
        slabs, groups = len(y_hat), y_hat.shape[1] // depth
        references: list[Reference] = []
        y = y_hat[:, ::depth].flatten(0, 1)
        for f in range(1, depth):
            references.append(self.detail_reference(y, f - 1))
            chosen = references[-1], references[max(f - 2, 0)], references[0]
            states = self.detail_states(f, chosen, depth, rate)
            bands = [g * depth + f for g in range(groups)]
            y = self.code_passes(self.detail, states, layout, coder(bands))
            y_hat[:, f::depth] = y.unflatten(0, (slabs, groups))

    # -- training --------------------------------------------------------------------------------

    def forward(self, x: Tensor, depth: int, rate: Tensor) -> dict[str, Tensor]:
        """x [B, K, H, W] in steps, rate int64 [B] -> bits and squared errors per sample, [B] each.

        "y" are the bits, "mse" the squared errors in steps^2.
        """
        b, k, h, w = x.shape
        y = transform.analysis(x.flatten(0, 1)).unflatten(0, (b, k)) * 16
        y = transform.analysis_across(y, depth)
        layout = Layout.of(h // 8, w // 8, x.device)
        # q, y - mu in steps and scale index of every pass, [B, ...].
        coded: list[tuple[Tensor, Tensor, Tensor]] = []

        def coder(bands: Sequence[int]) -> PassCoder:
            y_bands = y[:, list(bands)].reshape(b * len(bands), -1)

            def code(
                p: int, means: Sequence[Tensor], indices: Sequence[Tensor]
            ) -> Sequence[Tensor]:
                (mu,), (index,) = means, indices  # one piece
                e = (y_bands[:, layout.where[p]] - mu) / 16
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
            x_hat = transform.synthesis_float(slices).unflatten(0, (b, k)) / 16
        return {"y": bits / (k * h * w), "mse": ((x_hat - x) ** 2).mean((1, 2, 3))}
