"""Transform coders on slices: the factorized prior and the scale hyperprior.

    factorized prior: Balle, Laparra & Simoncelli 2016, arXiv:1611.01704
    scale hyperprior: Balle, Minnen, Singh, Hwang & Johnston 2018, arXiv:1802.01436

The letters are those of the papers and of CompressAI. y has two values per sample, so it is not
undercomplete. One model serves every rate: a gain per channel, interpolated in log2 of the step,
scales y before rounding (gain units, Cui et al. 2021, arXiv:2003.02012). h_s is integer arithmetic,
so that every machine decodes the same latents; g_a and g_s are floating point: samples may differ
in the last unit between machines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import entropy_models as entropy
from .layers import GDN, IntegerConv2d, clamp8, relu8, round_ste
from .slice_coder import SliceCoder, TensorSymbols, quantised, table_likelihood

# Channels of y.
LATENT = 128
# Channels of z.
HYPER = 32
# Gains are interpolated between GAIN_NODES values, at log2(peak / step) = 2, 3, ... 11.
GAIN_NODES = 10
FIRST_GAIN_NODE = 2.0
# Scale index where h_s gives 0: sigma of one step.
INDEX_ORIGIN = 35
INDEX_MAX = 207
# Largest magnitude of a symbol of z.
Z_MAX = 127


class TransformCoder(SliceCoder):
    """g_a, g_s and the gains that both models share. `width`: channels of the hidden layers.

    x [N, 1, H, W] in 0 .. 1 --g_a--> y [N, 128, H/8, W/8] --* gain(step), round--> y_hat
    y_hat --/ gain(step)--> --g_s--> x_hat [N, 1, H, W]

    g_a: 5x5/2, GDN, 5x5/2, GDN, 5x5/2
    g_s: (3x3, pixel shuffle x2, inverse GDN) twice, 3x3, pixel shuffle x2
    """

    latent = LATENT
    stride = 8

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.g_a: nn.Module = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2), GDN(width), nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, LATENT, 5, 2, 2),
        )  # fmt: skip
        self.g_s: nn.Module = nn.Sequential(
            nn.Conv2d(LATENT, 4 * width, 3, padding=1), nn.PixelShuffle(2),
            GDN(width, inverse=True),
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2),
            GDN(width, inverse=True),
            nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        # log2 of the gains, [GAIN_NODES, 128].
        self.gains = nn.Parameter(
            (FIRST_GAIN_NODE + torch.arange(GAIN_NODES))[:, None].repeat(1, LATENT)
        )

    def gain(self, level: Tensor) -> Tensor:
        """level [N] = log2(peak / step) -> gains [N, 128, 1, 1]."""
        position = (level - FIRST_GAIN_NODE).clamp(0, GAIN_NODES - 1.001)
        low = position.floor().long()
        part = (position - low)[:, None]
        gains = torch.exp2((1 - part) * self.gains[low] + part * self.gains[low + 1])
        return gains[:, :, None, None]

    def table_set(self, octave: int) -> str:
        """The tables of y: one set for all levels, as the gains adapt."""
        return "y"


class FactorizedPrior(TransformCoder):
    """Factorized prior: Balle, Laparra & Simoncelli 2016, arXiv:1611.01704.

    x --g_a, * gain--> y --round--> y_hat --/ gain, g_s--> x_hat
    p(y_hat) = prod_c p_c(y_hat_c), one learned density per channel (entropy bottleneck)
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.bottleneck = entropy.EntropyBottleneck(LATENT)


class ScaleHyperprior(TransformCoder):
    """Scale hyperprior: Balle et al. 2018, arXiv:1802.01436.

        x --g_a, * gain--> y --+--round------------------> y_hat --/ gain, g_s--> x_hat
                               └--h_a--> z --round--> z_hat --h_s--> scales
        z [N, 32, H/16, W/16] under the entropy bottleneck, p(y_hat | z_hat) = N(0, scales^2)

    h_a works on log2(1 + abs(y)); h_s is integer arithmetic and gives scale indices.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.h_a = nn.Sequential(
            nn.Conv2d(LATENT, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, HYPER, 3, padding=1),
        )  # fmt: skip
        self.bottleneck_z = entropy.EntropyBottleneck(HYPER)
        self.h_s_first = IntegerConv2d(HYPER, width)
        self.h_s_second = IntegerConv2d(width, 4 * width)
        self.h_s_head = IntegerConv2d(width, LATENT, gain=0.3)

    def analyse_hyper(self, y: Tensor) -> Tensor:
        """y [N, 128, h, w] -> z [N, 32, ceil(h / 2), ceil(w / 2)]."""
        z: Tensor = self.h_a(torch.log2(1 + y.abs()))
        return z

    def scale_index(self, z_hat: Tensor, size: tuple[int, int]) -> Tensor:
        """h_s: integer-valued z_hat -> integer-valued scale indices [N, 128, *size]."""
        a = relu8(self.h_s_first(clamp8(8 * z_hat)))
        a = relu8(F.pixel_shuffle(self.h_s_second(a), 2)[..., : size[0], : size[1]])
        index: Tensor = self.h_s_head(a) + INDEX_ORIGIN
        return index.clamp(1, INDEX_MAX)

    def code_latents(
        self, shape: tuple[int, int, int], y: Tensor | None, octave: int, symbols: TensorSymbols
    ) -> Tensor:
        """First z, under a factorized prior, then y with the scale indices that z yields."""
        n, h, w = shape
        size = (-(-h // 2), -(-w // 2))
        channel = torch.arange(HYPER, device=self.gains.device)
        channel = channel.repeat_interleave(size[0] * size[1]).expand(n, -1)
        values = None if y is None else hyper_symbols(self.analyse_hyper(y)).reshape(n, -1)
        z_hat = symbols.code(self.tables["z"], channel, values).reshape(n, HYPER, *size)
        index = self.scale_index(z_hat, (h, w)).reshape(n, -1)
        values = None if y is None else quantised(y).reshape(n, -1)
        tables = self.tables[self.table_set(octave)]
        return symbols.code(tables, index, values).reshape(n, LATENT, h, w)

    def likelihoods(self, y: Tensor, level: Tensor) -> dict[str, Tensor]:
        """z under its factorized prior, y under Gaussians, to which the tables of y are fitted."""
        symbols = self.relaxed(y)
        z = self.analyse_hyper(y)
        z_hat = hyper_symbols(z)
        index = self.scale_index(z_hat, (y.shape[2], y.shape[3]))
        z = z + torch.rand_like(z) - 0.5 if self.training else z_hat
        bits = entropy.gaussian_bits(symbols, entropy.sigma_of(index))
        return {"y": torch.exp2(-bits), "z": self._hyper_likelihood(z)}

    def _hyper_likelihood(self, z: Tensor) -> Tensor:
        """From the table of each channel, or from the bottleneck before there are tables."""
        if not self.tables:
            return self.bottleneck_z.likelihood(z).clamp(min=entropy.LIKELIHOOD_FLOOR)
        return torch.stack([table_likelihood(self.tables["z"], part) for part in z])


def hyper_symbols(z: Tensor) -> Tensor:
    """The symbols of z, with the gradient of the identity."""
    return round_ste(z).clamp(-Z_MAX, Z_MAX)
