"""Symbols to byte strings and back, for the models' own `compress` and `decompress`.

The codec frames the same symbols as the slabs of its streams. No other module of the models runs a range coder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import ProbabilityTables, SlabStreams, SymbolCoder


class StringEncoder(SymbolCoder):
    """Encodes N rows of symbols into N strings for each group of table sets; `group_of` maps their names to groups."""

    def __init__(self, count: int, group_of: Mapping[str, int]) -> None:
        self._group_of = group_of
        groups = 1 + max(group_of.values())
        self._encoders = [[EntropyEncoder() for _ in range(count)] for _ in range(groups)]

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        """index [N, n], values [N, n] -> values."""
        streams = self._encoders[self._group_of[tables.name]]
        return SlabStreams(streams).code(tables, index, values)

    def finish(self) -> list[list[bytes]]:
        """The strings of each group."""
        return [[encoder.finish() for encoder in group] for group in self._encoders]


class StringDecoder(SymbolCoder):
    """The inverse of `StringEncoder`. FormatError if a string is damaged."""

    def __init__(self, strings: Sequence[Sequence[bytes]], group_of: Mapping[str, int]) -> None:
        groups = 1 + max(group_of.values())
        if len(strings) != groups or len({len(group) for group in strings}) != 1:
            raise ValueError(f"strings: expected {groups} lists, as `compress` returned them")
        self._group_of = group_of
        self._decoders = [[EntropyDecoder(string) for string in group] for group in strings]

    def code(
        self, tables: ProbabilityTables, index: NDArray[Any], values: NDArray[Any] | None
    ) -> NDArray[Any]:
        """index [N, n] -> values."""
        streams = self._decoders[self._group_of[tables.name]]
        return SlabStreams(streams).code(tables, index, values)

    def finish(self) -> None:
        """FormatError unless all of every string has been decoded."""
        for decoder in (decoder for group in self._decoders for decoder in group):
            decoder.finish()
