"""Damaged streams: the error names the slab, and salvage keeps the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from streams import encode, lossless, noisy_waves

from mricodec import codec
from mricodec.bitstream.container import ContainerReader
from mricodec.codec.coders import base


def four_slabs() -> tuple[NDArray[Any], bytes]:
    array = noisy_waves((152, 20, 22))
    return array, lossless(array)


def test_a_wrong_voxel_names_its_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    array = noisy_waves((152, 20, 22))
    true = base.checksum
    seen: list[int] = []

    def forged(slab: NDArray[Any], dtype: np.dtype[Any]) -> int:
        seen.append(1)
        return true(slab, dtype) ^ (len(seen) == 2)

    with monkeypatch.context() as patch:
        patch.setattr(base, "checksum", forged)
        stream, _ = encode(array, lossless=True)
    with pytest.raises(
        codec.ChecksumMismatch,
        match=r"^slab 1 \(slices 40:80 along k\): expected voxels that match",
    ):
        codec.decode(stream)
    assert (codec.decode(stream, slices=(0, 40)).array == array[:40]).all()


def test_salvage_of_a_damaged_slab(tmp_path: Path) -> None:
    array, stream = four_slabs()
    reader = ContainerReader(stream)
    position = [section for section in reader.sections() if section.type == "SLAB"][1].offset + 50
    damaged = bytearray(stream)
    damaged[position] ^= 1
    out = tmp_path / "scan.nii"
    with pytest.raises(codec.ChecksumMismatch, match="slab 1 "):
        codec.decode_file(bytes(damaged), out)
    assert not any(tmp_path.iterdir())
    lost: list[str] = []
    again = codec.Decoder().decode(bytes(damaged), salvage=lost.append).array
    assert len(lost) == 1 and lost[0].startswith("slab 1 (slices 40:80 along k): ")
    assert (
        (again[:40] == array[:40]).all()
        and not again[40:80].any()
        and (again[80:] == array[80:]).all()
    )


def test_salvage_of_a_file_cut_short() -> None:
    array, stream = four_slabs()
    slabs = [section for section in ContainerReader(stream).sections() if section.type == "SLAB"]
    lost: list[str] = []
    again = codec.Decoder().decode(stream[: slabs[2].offset + 9], salvage=lost.append).array
    assert [line.partition(" (")[0] for line in lost] == ["slab 2", "slab 3"]
    assert (again[:80] == array[:80]).all() and not again[80:].any()
    lost.clear()
    again = codec.Decoder().decode(stream[:-3], salvage=lost.append).array
    assert (again == array).all() and lost == ["the whole: its digest is lost"]
    assert (
        codec.Decoder().decode(stream, salvage=lost.append).array.shape == array.shape
        and len(lost) == 1
    )
    for length in (0, 5, 20):
        with pytest.raises(codec.FormatError):
            codec.Decoder().decode(stream[:length], salvage=lost.append)


def test_a_broken_chain_is_lost_up_to_its_end() -> None:
    first = noisy_waves((4, 30, 30), sigma=8)
    series = np.stack([first + n for n in range(10)]).astype(np.int16)
    stream = lossless(series)
    slab = [section for section in ContainerReader(stream).sections() if section.type == "SLAB"][2]
    damaged = bytearray(stream)
    damaged[slab.offset + 30] ^= 4
    lost: list[str] = []
    again = codec.Decoder().decode(bytes(damaged), salvage=lost.append).array
    good = [bool((again[n] == series[n]).all()) for n in range(10)]
    assert (
        good[:2] == [True, True]
        and good[8:] == [True, True]
        and not good[2]
        and len(lost) == good.count(False)
    )
