"""The training cache: what is packed comes back, in the same bytes, within budget, by licence."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from mricodec import codec
from mricodec.bitstream.errors import FormatError
from mricodec.cli.main import cli
from mricodec.codec.training.cache import MAX_VOLUMES, SLAB_SLICES, Slab, build_cache, load_cache
from mricodec.models import loader
from mricodec.models.training import loop as training


def write(path: Path, array: NDArray[Any], zooms: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """`array[.., k, j, i]` as a NIfTI file, stored as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: Any = nib.Nifti1Header(
        endianness="<" if array.dtype.newbyteorder("=") == array.dtype else ">"
    )
    header.set_data_dtype(array.dtype)
    image: Any = nib.Nifti1Image(array.T, np.eye(4), header)
    image.header.set_zooms((*zooms, 1.0, 1.0)[: array.ndim])
    nib.save(image, path)


def assembled(slabs: list[Slab], name: str) -> list[NDArray[Any]]:
    """The volumes of one file, put together from its slabs."""
    mine = [slab for slab in slabs if slab.name == name]
    return [
        np.concatenate([slab.voxels for slab in mine if slab.volume == volume], axis=mine[0].axis)
        for volume in sorted({slab.volume for slab in mine})
    ]


@pytest.fixture
def corpus(tmp_path: Path, data_dir: Path) -> Path:
    for split, names in {
        "train": ["thick_flair", "isotropic_t1w", "dwi_4d"],
        "validation": ["prostate_t2w"],
    }.items():
        (tmp_path / "corpus" / split).mkdir(parents=True)
        for name in names:
            shutil.copy(data_dir / f"{name}.nii.gz", tmp_path / "corpus" / split)
    return tmp_path / "corpus"


def test_real_scans_come_back(corpus: Path, tmp_path: Path) -> None:
    report = build_cache(corpus, tmp_path / "cache")
    slabs = load_cache(tmp_path / "cache")
    assert report.slabs == len(slabs)
    assert not report.left_out
    for path in corpus.glob("*/*.nii.gz"):
        image: Any = nib.load(path)
        stored = np.asarray(image.dataobj.get_unscaled()).T
        name = f"{path.parent.name}/{path.name}"
        volumes = assembled(slabs, name)
        np.testing.assert_array_equal(np.squeeze(np.stack(volumes)), stored)
        assert all(volume.dtype == stored.dtype for volume in volumes)
        assert {slab.spacing_mm for slab in slabs if slab.name == name} == {
            tuple(float(zoom) for zoom in reversed(image.header.get_zooms()[:3]))
        }
        assert {slab.split for slab in slabs if slab.name == name} == {path.parent.name}
    assert {slab.name: slab.geometry for slab in slabs} == {
        "train/thick_flair.nii.gz": "thick",
        "train/isotropic_t1w.nii.gz": "near-isotropic",
        "train/dwi_4d.nii.gz": "dwi",
        "validation/prostate_t2w.nii.gz": "thick",
    }


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", ">i2", "<u4", ">i4", "<i8"])
def test_every_integer_type_comes_back(dtype: str, tmp_path: Path) -> None:
    kind = np.dtype(dtype)
    limits = np.iinfo(kind)
    array = np.random.default_rng(0).integers(
        limits.min, limits.max, (5, 6, 7), kind.newbyteorder("="), endpoint=True
    )
    for split in ("train", "validation"):
        write(tmp_path / split / "scan.nii", array.astype(kind))
    build_cache(tmp_path, tmp_path / "cache")
    slab = load_cache(tmp_path / "cache")[0]
    assert slab.voxels.dtype == kind.newbyteorder("=")
    np.testing.assert_array_equal(slab.voxels, array)


@pytest.mark.parametrize("shape", [(9,), (4, 9), (1, 1, 1), (2, 3, 4, 5, 6)])
def test_any_number_of_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, shape, np.int16)
    for split in ("train", "validation"):
        write(tmp_path / split / "scan.nii", array)
    build_cache(tmp_path, tmp_path / "cache")
    volumes = assembled(load_cache(tmp_path / "cache"), "train/scan.nii")
    expected = array.reshape(-1, *((1, 1, *shape)[-3:]))[:MAX_VOLUMES]
    np.testing.assert_array_equal(np.stack(volumes), expected)


def test_slabs_follow_the_coarsest_axis(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (8, 8, 100), np.int16)
    for split in ("train", "validation"):
        write(tmp_path / split / "scan.nii", array, (3.0, 1.0, 1.0))
    build_cache(tmp_path, tmp_path / "cache", 0.0085)  # room for a part of the slices
    slabs = [slab for slab in load_cache(tmp_path / "cache") if slab.split == "train"]
    assert len(slabs) > 1
    for slab in slabs:
        assert slab.axis == 2
        assert slab.voxels.shape[2] <= SLAB_SLICES
        span = slice(slab.start, slab.start + slab.voxels.shape[2])
        np.testing.assert_array_equal(slab.voxels, array[:, :, span])


def test_the_same_scans_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    build_cache(corpus, tmp_path / "a")
    build_cache(corpus, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("budget_mib", [0.02, 0.06, 0.1])
def test_the_budget_holds_and_is_shared(budget_mib: float, corpus: Path, tmp_path: Path) -> None:
    report = build_cache(corpus, tmp_path / "cache", budget_mib)
    assert report.size <= budget_mib * 2**20
    assert report.size == (tmp_path / "cache").stat().st_size
    slabs = load_cache(tmp_path / "cache")
    names = {slab.name for slab in slabs}
    assert len(names) == 4 or budget_mib == 0.02
    assert names.isdisjoint(scan.file for scan in report.left_out)
    assert len(names) + len(report.left_out) == 4
    for slab in slabs:  # a part of its volume, at the stated place
        image: Any = nib.load(corpus / slab.name)
        stored = np.asarray(image.dataobj.get_unscaled()).T
        volume = stored[slab.volume] if stored.ndim == 4 else stored
        span = range(slab.start, slab.start + slab.voxels.shape[slab.axis])
        np.testing.assert_array_equal(slab.voxels, np.take(volume, span, slab.axis))


@pytest.mark.parametrize(
    ("licence", "taken"),
    [
        ("CC BY 3.0 (archive; repository code Apache-2.0)", True),
        ("CC-BY (somebody et al.)", True),
        ('says "CCO" (read as CC0)', True),
        ("CC0", True),
        ("MIT (no licence file)", True),
        ("BSD-2-Clause", True),
        ("PDDL 1.0", True),
        ("CC BY-NC 4.0", False),
        ("CC-BY-ND", False),
        ("CC BY SA", False),
        ("GPL-3.0 (repository, no separate data licence)", False),
        ("not stated in this repository (its sibling: MIT)", False),
        ("", False),
    ],
)
def test_only_licences_that_allow_it_are_trained_on(
    licence: str, taken: bool, corpus: Path, tmp_path: Path
) -> None:
    quoted = licence.replace('"', '""')
    (corpus / "MANIFEST.csv").write_text(
        "file,licence\n"
        f'train/thick_flair.nii.gz,"{quoted}"\n'
        "train/isotropic_t1w.nii.gz,CC0\n"
        "validation/prostate_t2w.nii.gz,not stated\n"
    )
    report = build_cache(corpus, tmp_path / "cache")
    names = {slab.name for slab in load_cache(tmp_path / "cache")}
    assert ("train/thick_flair.nii.gz" in names) == taken
    assert "validation/prostate_t2w.nii.gz" in names  # measured on, not trained on
    assert "train/dwi_4d.nii.gz" not in names  # not in the table
    left_out = {scan.file: scan.reason for scan in report.left_out}
    assert "unknown" in left_out["train/dwi_4d.nii.gz"]
    assert ("train/thick_flair.nii.gz" in left_out) != taken
    assert report.notes


def test_scans_that_store_no_integers_are_left_out(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "train" / "float.nii", np.ones((3, 4, 5), np.float32))
    report = build_cache(corpus, tmp_path / "cache")
    assert [scan.file for scan in report.left_out] == ["train/float.nii"]
    assert "float32" in report.left_out[0].reason


def test_a_folder_without_splits_is_a_training_set(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (4, 5, 6), np.int16)
    write(tmp_path / "data" / "scan.nii", array)
    report = build_cache(tmp_path / "data", tmp_path / "cache")
    (slab,) = load_cache(tmp_path / "cache")
    assert (slab.name, slab.split) == ("scan.nii", "train")
    np.testing.assert_array_equal(slab.voxels, array)
    assert report.voxels == {"train": array.size, "validation": 0}
    assert "no validation scans" in report.notes[0]


def test_maps_and_other_folders_are_left_out(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "maps" / "labels.nii", np.ones((3, 4, 5), np.uint8))
    (corpus / "dicom").mkdir()
    report = build_cache(corpus, tmp_path / "cache")
    reasons = {item.file: item.reason for item in report.left_out}
    assert reasons.keys() == {"maps/", "dicom/"}
    assert "maps and labels (1 files)" in reasons["maps/"]
    assert all(
        slab.name.startswith(("train/", "validation/")) for slab in load_cache(tmp_path / "cache")
    )


@pytest.mark.parametrize("splits", [(), ("train", "validation")])
def test_empty_folders_are_refused(splits: tuple[str, ...], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in splits:
        (data / split).mkdir()
    with pytest.raises(ValueError, match="at least one NIfTI scan"):
        build_cache(data, tmp_path / "cache")
    for command in (("cache",), ("train", "--config", "debug")):
        result = CliRunner().invoke(cli, [*command, str(data), "-o", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [data]


def test_a_folder_without_an_allowed_licence_is_refused(corpus: Path, tmp_path: Path) -> None:
    (corpus / "MANIFEST.csv").write_text("file,licence\ntrain/dwi_4d.nii.gz,CC BY-NC 4.0\n")
    with pytest.raises(ValueError, match=r"left out: 3, the first train/dwi_4d.nii.gz \(licence"):
        build_cache(corpus, tmp_path / "cache")


def test_a_subset_has_the_smallest_scans(corpus: Path, tmp_path: Path) -> None:
    report = build_cache(corpus, tmp_path / "cache", scans_per_split=1)
    train = (corpus / "train").iterdir()
    smallest = min(train, key=lambda path: path.stat().st_size)
    names = {slab.name for slab in load_cache(tmp_path / "cache")}
    assert names == {f"train/{smallest.name}", "validation/prostate_t2w.nii.gz"}
    assert [item.file for item in report.left_out] == ["2 scans of train"]


@pytest.mark.parametrize("budget_mib", [55, 0.06])
def test_progress_ends_at_one(budget_mib: float, corpus: Path, tmp_path: Path) -> None:
    fractions: list[float] = []
    build_cache(
        corpus, tmp_path / "cache", budget_mib, progress=lambda done, _: fractions.append(done)
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert len(fractions) == 2 * 4


def test_damage_is_refused(corpus: Path, tmp_path: Path) -> None:
    build_cache(corpus, tmp_path / "cache", 0.05)
    good = (tmp_path / "cache").read_bytes()
    damaged = tmp_path / "damaged"
    for stop in (0, 7, 100, len(good) // 2, len(good) - 1):
        damaged.write_bytes(good[:stop])
        with pytest.raises(FormatError, match="expected a training cache"):
            load_cache(damaged)
    with pytest.raises(FileNotFoundError):
        load_cache(tmp_path / "absent")


def test_reading_needs_neither_nibabel_nor_torch(corpus: Path, tmp_path: Path) -> None:
    build_cache(corpus, tmp_path / "cache", 0.05)
    code = (
        "import sys; from mricodec.codec.training.cache import load_cache; "
        f"load_cache({str(tmp_path / 'cache')!r}); print({{'torch', 'nibabel'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_cache_command(corpus: Path, tmp_path: Path) -> None:
    arguments = ["cache", str(corpus), "-o", str(tmp_path / "cache")]
    write(corpus / "train" / "float.nii", np.ones((3, 4, 5), np.float32))
    first = CliRunner().invoke(cli, arguments)
    assert first.exit_code == 0
    assert "MiB" in first.stderr
    assert "left out: train/float.nii: expected stored integers, found float32" in first.stderr
    assert first.stdout == ""
    assert CliRunner().invoke(cli, arguments).exit_code == 2  # The output exists.
    assert CliRunner().invoke(cli, [*arguments, "--force", "--quiet"]).output == ""
    assert load_cache(tmp_path / "cache")


def test_train_command(corpus: Path, tmp_path: Path) -> None:
    """From a folder to weights as they are shipped: stopped, resumed, finished, and used."""
    run = tmp_path / "run"
    command = ["train", str(corpus), "-o", str(run), "--device", "cpu", "--config"]
    stopped = CliRunner().invoke(cli, [*command, "debug", "--minutes", "0"])
    assert stopped.exit_code == 0
    assert "goes on" in stopped.stderr
    assert not list(run.glob("default-*.safetensors"))
    before = (run / "cache.safetensors").stat().st_mtime_ns
    finished = CliRunner().invoke(cli, [*command, "debug", "--quiet"])
    assert finished.exit_code == 0
    assert finished.output == ""
    assert (run / "cache.safetensors").stat().st_mtime_ns == before  # a resumed run keeps its cache
    steps = [
        json.loads(line).get("step") for line in (run / "debug.jsonl").read_text().splitlines()
    ]
    assert steps[1:] == [1, training.CONFIGS["debug"].steps]
    (weights,) = run.glob("default-*.safetensors")
    data = weights.read_bytes()
    assert hashlib.sha256(data).hexdigest()[:8] in weights.name
    model = loader.load_model(weights)
    array = np.random.default_rng(0).integers(0, 900, (3, 17, 20)).astype(np.int16)
    stream = codec.Encoder(model=model, quality=60).encode(array)
    assert stream is not None
    assert codec.Decoder(model=model).decode(stream).array.shape == array.shape
    unknown = CliRunner().invoke(cli, [*command, "nothing"])
    assert unknown.exit_code == 2
    assert "expected one of" in unknown.stderr and "debug" in unknown.stderr


def test_scans_with_too_small_values_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data" / "scan.nii", np.ones((4, 5, 6), np.int16))
    result = CliRunner().invoke(
        cli, ["train", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--config", "debug"]
    )
    assert result.exit_code == 2
    assert "expected training scans with values of" in result.stderr


def test_a_network_starts_from_a_larger_one() -> None:
    """Shared weights are copied: of larger kernels the centre, of more channels the first."""
    wide, narrow = training.MODELS["default-wide"](), training.MODELS["default"]()
    before = {key: value.clone() for key, value in narrow.state_dict().items()}
    training.start_from(narrow, wide.state_dict())
    after, source = narrow.state_dict(), wide.state_dict()
    assert torch.equal(after["low.passes.1.known.weight"], source["low.passes.1.known.weight"][:96])
    assert torch.equal(
        after["detail.sources.1.weight"], source["detail.sources.1.weight"][:96, :, 1:2, 1:2]
    )
    assert torch.equal(after["low.mix.0.middle.weight"], before["low.mix.0.middle.weight"])
    assert torch.equal(
        after["low.passes.0.head.weight"], source["low.passes.0.head.weight"][:, :96]
    )
