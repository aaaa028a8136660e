"""Stored samples of a DICOM object -> the values they stand for (PS3.3 C.7.6.3.1.4, C.11.1).

A sample has BitsStored bits, the highest of which is HighBit; what else is in its word is not of
the image. Files are restored from samples as they are stored; only volumes have the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .elements import numbers

if TYPE_CHECKING:
    from pydicom import Dataset

# RescaleSlope and RescaleIntercept where there is none.
UNSCALED = (1.0, 0.0)


@dataclass(frozen=True)
class StoredBits:
    """Which bits of a word hold its sample: BitsStored bits up to HighBit."""

    stored: int
    high: int

    def fill(self, dtype: np.dtype[Any]) -> bool:
        """Whether all bits of a word are the sample's, or BitsStored and HighBit make no sense."""
        if dtype.kind not in "iu":
            return True
        allocated = 8 * dtype.itemsize
        inside = 0 < self.stored <= self.high + 1 <= allocated
        return not inside or self.stored == allocated

    def values(self, words: NDArray[Any]) -> NDArray[Any]:
        """The samples in words of the stored type, of the same type."""
        if self.fill(words.dtype):
            return words
        allocated = 8 * words.dtype.itemsize
        up = words.dtype.type(allocated - 1 - self.high)
        # Shifted down, the highest bit of a signed type is its sign.
        values: NDArray[Any] = (words << up) >> words.dtype.type(allocated - self.stored)
        return values


@dataclass(frozen=True, eq=False)
class SliceValues:
    """The values of a stack's samples.

    bits: which of a word are the sample's. scales: RescaleSlope and RescaleIntercept [slices, 2]
    where slices differ in them, else None: the values are then to be scaled as the stream says.
    """

    bits: StoredBits | None = None
    scales: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, bits: StoredBits, rescales: Sequence[tuple[float, float]]) -> SliceValues:
        """rescales: (slope, intercept) of each slice."""
        scales = np.array(rescales, np.float64) if len(set(rescales)) > 1 else None
        return cls(bits, scales)

    def are_samples(self, stored: np.dtype[Any]) -> bool:
        """Whether the values are the samples of the stored type."""
        return self.scales is None and (self.bits is None or self.bits.fill(stored))

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The type of the values of samples of a stored type, in its byte order."""
        if self.scales is None:
            return stored
        return np.dtype(np.float32).newbyteorder(stored.byteorder)

    def values(self, block: NDArray[Any], first: int) -> NDArray[Any]:
        """The values of samples [slices, j, i] in native order; first: the number of the first."""
        if self.bits is not None:
            block = self.bits.values(block)
        if self.scales is None:
            return block
        scales = self.scales[first : first + len(block), :, None, None]
        return (block * scales[:, 0] + scales[:, 1]).astype(np.float32)


def rescale(dataset: Dataset | None) -> tuple[float, float] | None:
    """(RescaleSlope, RescaleIntercept) or (DoseGridScaling, 0); None if there is none to use."""
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    if not slope and not intercept:
        slope, intercept = numbers(dataset, "DoseGridScaling"), [0.0]
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        return None
    return (slope[0], intercept[0]) if math.isfinite(slope[0] + intercept[0]) else None
