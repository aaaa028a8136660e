"""The whole training of the restoration filter on a small cache; an interrupted one goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mricodec.codec.training import restoration_pairs
from mricodec.codec.training.cache import build_cache
from mricodec.codec.training.restoration_run import RestorationSettings, run


@pytest.fixture
def cache(tmp_path: Path, data_dir: Path) -> Path:
    for split, name in {"train": "thick_flair", "validation": "prostate_t2w"}.items():
        (tmp_path / "corpus" / split).mkdir(parents=True)
        shutil.copy(data_dir / f"{name}.nii.gz", tmp_path / "corpus" / split)
    build_cache(tmp_path / "corpus", tmp_path / "cache.safetensors")
    return tmp_path / "cache.safetensors"


def test_from_a_cache_to_a_table(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration_pairs, "VALIDATION_QUALITIES", (20.0, 40.0))
    settings = RestorationSettings("debug", count=2)
    lines: list[str] = []
    path = run(cache, tmp_path / "out", settings, lines.append)
    assert path.exists()
    assert lines[-2].startswith("validation/prostate_t2w") and lines[-1].startswith("mean")
    assert len(lines) == 4 + 1 + 2
    again: list[str] = []
    assert run(cache, tmp_path / "out", settings, again.append) == path
    assert again == lines[-2:]


def test_a_cache_whose_scans_are_held_out(cache: Path, tmp_path: Path) -> None:
    settings = RestorationSettings(held_out=["train/thick_flair.nii.gz"])
    with pytest.raises(ValueError, match="expected training scans that are not held out"):
        run(cache, tmp_path / "out", settings, print)
