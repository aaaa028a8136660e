"""The symbols of a pass of the default model: RDOQ, sign hiding, magnitudes, then signs.

    encode   targets - mu --RDOQ--> q --hide_signs--> q --> abs(q) --> signs that are not hidden
    decode   abs(q) --> hidden signs, from parities --> the other signs --> q

A call has the N bands of some slabs, slab after slab, and the n coefficients of each that the pass
codes. The symbol coder works on [slabs, symbols].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder

from .coding_order import Layout
from .context_model import INDEX_SKIP, PassCoder
from .params import SIGNS, SYMBOL_MAX
from .rdo import RDO_LAMBDA, ErrorCompensation, increment_bits, rdo_quantise
from .sign_hiding import SignGroups, hidden_signs, hide_signs

# Squared steps that the bits of a larger magnitude are worth, by scale index: float32 [2, 256].
SIGN_COSTS = RDO_LAMBDA * increment_bits().numpy()


@dataclass(frozen=True)
class PassSymbols:
    """Codes the symbols of the passes of `slabs` slabs.

    weights: int32 [256], the number of signs a symbol can carry by scale index, see sign_hiding.py.
    """

    slabs: int
    coder: SymbolCoder
    tables: Mapping[str, ProbabilityTables]
    weights: NDArray[np.int32]

    def encoder(self, y: Tensor, layout: Layout, bands: Sequence[int]) -> PassCoder:
        """Encodes the passes of some bands of y [S, K', h, w, 64], in 1/16 of a step."""
        originals = y[:, list(bands)].flatten(0, 1)
        pieces: list[ErrorCompensation] = []

        def code(p: int, means: Sequence[Tensor], indices: Sequence[Tensor]) -> Sequence[Tensor]:
            sizes = [len(mu) for mu in means]
            if p == 0:
                pieces.extend(ErrorCompensation(part, layout) for part in originals.split(sizes))
            targets = [piece.targets(p) for piece in pieces]
            symbols = torch.from_numpy(self.encode(p, means, indices, targets)).to(y.device)
            parts: Sequence[Tensor] = symbols.split(sizes)
            for piece, q, mu in zip(pieces, parts, means, strict=True):
                piece.update(p, 16 * q + mu)
            return parts

        return code

    def decoder(self, bands: Sequence[int]) -> PassCoder:
        """Decodes the passes of some bands."""

        def code(p: int, means: Sequence[Tensor], indices: Sequence[Tensor]) -> Sequence[Tensor]:
            symbols = torch.from_numpy(self.decode(p, indices)).to(means[0].device)
            parts: Sequence[Tensor] = symbols.split([len(mu) for mu in means])
            return parts

        return code

    def encode(
        self,
        p: int,
        means: Sequence[Tensor],
        indices: Sequence[Tensor],
        targets: Sequence[Tensor],
    ) -> NDArray[np.float32]:
        """Code the symbols [N, n] of pass p; means, targets [.., n] by piece, in 1/16 of a step."""
        index = _scale_indices(indices)
        error, q = np.empty(index.shape, np.float32), np.empty(index.shape, np.int32)
        start = 0
        for mu, row, target in zip(means, indices, targets, strict=True):
            piece = slice(start, start := start + len(mu))
            e = (target - mu).div_(16)
            symbols = rdo_quantise(e, row, INDEX_SKIP).clamp_(1 - SYMBOL_MAX, SYMBOL_MAX - 1)
            error[piece], q[piece] = e.cpu().numpy(), symbols.cpu().numpy()
        groups = SignGroups.of(index, self.weights, self.slabs)
        q, hidden = hide_signs(groups, q, error, SIGN_COSTS, index)
        magnitude = np.abs(q)
        rows = (self.slabs, -1)
        self.coder.code(self.tables[f"pass{p}"], index.reshape(rows), magnitude.reshape(rows))
        sent, sign_index = self._sent_signs(magnitude, hidden)
        negative = np.zeros(sign_index.shape, np.uint8)
        negative[sign_index > 0] = q.reshape(-1)[sent] < 0
        self.coder.code(self.tables[SIGNS], sign_index, negative)
        return q.astype(np.float32)

    def decode(self, p: int, indices: Sequence[Tensor]) -> NDArray[np.float32]:
        """Symbols [N, n] of pass p."""
        index = _scale_indices(indices)
        groups = SignGroups.of(index, self.weights, self.slabs)
        coded = self.coder.code(self.tables[f"pass{p}"], index.reshape(self.slabs, -1), None)
        magnitude = np.clip(coded, 0, SYMBOL_MAX)
        hidden, hidden_negative = hidden_signs(groups, magnitude)
        sent, sign_index = self._sent_signs(magnitude, hidden)
        sent_negative = self.coder.code(self.tables[SIGNS], sign_index, None)[sign_index > 0]
        symbols: NDArray[np.float32] = magnitude.astype(np.float32)
        flat = symbols.reshape(-1)
        for at, negative in ((hidden, hidden_negative), (sent, sent_negative)):
            minus = at[negative == 1]
            flat[minus] = -flat[minus]
        return symbols.reshape(index.shape)

    def _sent_signs(
        self, magnitude: NDArray[Any], hidden: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Flat positions of the symbols whose signs are sent, and table indices [slabs, signs].

        The coder has equally many symbols of every slab, so rows are filled up with index 0.
        """
        is_sent = magnitude.reshape(-1) > 0
        is_sent[hidden] = False
        sent = np.flatnonzero(is_sent)
        bounds = np.arange(self.slabs + 1) * (is_sent.size // self.slabs)
        counts = np.diff(np.searchsorted(sent, bounds))
        return sent, (np.arange(counts.max()) < counts[:, None]).astype(np.uint8)


def _scale_indices(indices: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Scale indices of all pieces, uint8 [N, n]; 0 where no symbol is coded."""
    index = np.empty((sum(map(len, indices)), indices[0].shape[1]), np.uint8)
    start = 0
    for row in indices:
        index[start : (start := start + len(row))] = row.to(torch.uint8).cpu().numpy()
    index *= index >= INDEX_SKIP
    return index
