"""The representation study: its models, measures and commands, from scans to page."""

from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save, save_file
from symbol_streams import Params, Streams

from mricodec import codec
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.cli.main import cli
from mricodec.codec.study import augmentation, page
from mricodec.codec.study import corpus as slices
from mricodec.codec.study.measures import mesh
from mricodec.codec.study.networks import Networks, TrainingPlan
from mricodec.codec.study.settings import CONFIGS
from mricodec.models import loader, zoo
from mricodec.models.study import adversarial, perceptual
from mricodec.models.study.autoencoder import MinimalCNN
from mricodec.models.training import study as slice_training

LEVELS = {"T1w": (900, 500), "T2w": (300, 1000), "FLAIR": (600, 200), "DWI": (400, 800)}


def write_head(path: Path, brain: int, fluid: int, seed: int) -> None:
    """An ellipsoid with a bright rim and two ventricles: 40 x 48 x 24 voxels of 4 x 4 x 6 mm."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 24)), indexing="ij")
    size = 0.8 + 0.1 * rng.random()
    radius = np.sqrt(i**2 + j**2 + k**2)
    voxels = np.where(radius < size, brain, 0) + np.where(abs(radius - size) < 0.06, 300, 0)
    voxels = np.where((abs(abs(i) - 0.2) < 0.1) & (abs(j) < 0.4) & (abs(k) < 0.5), fluid, voxels)
    voxels = np.abs(voxels + rng.normal(0, 15, voxels.shape)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4.0, 6.0, 1.0])), path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    seed = 0
    for split, contrasts in (("train", LEVELS), ("validation", ("T1w",)), ("test", ("T1w", "T2w"))):
        (folder / split).mkdir()
        for contrast in contrasts:
            for subject in ("a", "b"):
                seed += 1
                write_head(
                    folder / split / f"{split}-{subject}_{contrast}.nii.gz", *LEVELS[contrast], seed
                )
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return results


@pytest.fixture(scope="module")
def study(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    begin = time.process_time()
    result = invoke("study", "run", "--data", corpus, "-o", out, "--config", "debug")
    assert result.exit_code == 0, result.output
    assert time.process_time() - begin < 120
    return out


def test_the_debug_study_goes_from_scans_to_page(study: Path) -> None:
    results = results_of(study)
    assert [row["model"] for row in results["cnn"]] == ["cnn8", "cnn16", "cnn32"]
    assert [row["model"] for row in results["unet"]] == ["unet", "unet-wide", "unet-2level"]
    assert [row["values_per_pixel"] for row in results["cnn"] + results["unet"]] == [
        0.5,
        1,
        2,
        0.5,
        0.5,
        0.5,
    ]
    assert [row["method"] for row in results["augmentation"]] == list(augmentation.METHODS)
    assert all(len(row["scores"]) == 5 for row in results["augmentation"])
    assert len(results["interpolation"]) == 5
    assert all(len(row["nearest"]["values"]) == 3 for row in results["interpolation"])
    assert {(row["source"], row["contrast"]) for row in results["bagan"]} == {
        (source, contrast)
        for source in ("training pictures", "initialisation", "BAGAN")
        for contrast in ("T1", "T2")
    }
    curves = {
        name: [row["psnr"] for row in results["vae"] if row["model"] == name]
        for name in ("cnn8", "vae")
    }
    assert curves["vae"] == sorted(curves["vae"]) and len(curves["vae"]) == len(curves["cnn8"]) == 6
    html = (study / "study.html").read_text()
    tables = ("Table 1", "Table 2", "Table 3", "Table 4: BAGAN")
    for word in (*tables, "Conclusions", "Limits", "no finding", "LPIPS was not computed"):
        assert word in html
    assert "src='http" not in html and html.count("data:image/png") == 10


def test_a_study_is_not_trained_twice(study: Path, corpus: Path) -> None:
    before = (study / "models" / "cnn8.jsonl").read_bytes(), results_of(study)["unet"]
    result = invoke(
        "study", "run", "--data", corpus, "-o", study, "--config", "debug", "--only", "cnn"
    )
    assert result.exit_code == 0, result.output
    assert ((study / "models" / "cnn8.jsonl").read_bytes(), results_of(study)["unet"]) == before


def test_lpips_stands_in_the_table_where_its_weights_are_given(
    study: Path, corpus: Path, tmp_path: Path
) -> None:
    lpips_file(tmp_path / "lpips.safetensors")
    shutil.copytree(study / "models", tmp_path / "out" / "models")
    result = invoke(
        "study", "run", "--data", corpus, "-o", tmp_path / "out", "--config", "debug",
        "--only", "interpolation", "--lpips-weights", tmp_path / "lpips.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(row["lpips"]["mean"] > 0 for row in results_of(tmp_path / "out")["interpolation"])
    page = (tmp_path / "out" / "study.html").read_text()
    assert "LPIPS to parents" in page and "LPIPS was not computed" not in page


def test_shipped_models_are_not_trained(corpus: Path, tmp_path: Path) -> None:
    data = slices.load_corpus(corpus, every=12, scans_per_contrast=1)
    plan = TrainingPlan(CONFIGS["debug"])
    networks = Networks(data, tmp_path, plan, report=lambda line: None)
    shipped = loader.load_model("cnn8").network.state_dict()
    state = networks.autoencoder("cnn8").state_dict()
    assert all(torch.equal(state[key], shipped[key]) for key in shipped)
    assert not (tmp_path / "models").exists()
    retrained = Networks(data, tmp_path, replace(plan, use_shipped=False), report=lambda line: None)
    state = retrained.autoencoder("cnn8").state_dict()
    assert not all(torch.equal(state[key], shipped[key]) for key in shipped)
    assert (tmp_path / "models" / "cnn8.jsonl").exists()


def test_a_contrast_that_training_lacks_does_not_stop_the_study(
    corpus: Path, tmp_path: Path
) -> None:
    """Test scans are T1 and T2, training scans FLAIR and DWI."""
    for split, pattern in (("train", "*[RI]*.nii.gz"), ("validation", "*"), ("test", "*")):
        (tmp_path / "data" / split).mkdir(parents=True)
        for path in (corpus / split).glob(pattern):
            shutil.copy(path, tmp_path / "data" / split)
    shutil.rmtree(tmp_path / "data" / "validation")
    out = tmp_path / "out"
    result = invoke(
        "study", "run", "--data", tmp_path / "data", "-o", out, "--config", "debug",
        "--only", "interpolation,bagan,augmentation",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "no usable slice in validation: training slices stand in" in result.stderr
    results = results_of(out)
    assert results["bagan"] == []
    assert all("nearest" not in row for row in results["interpolation"])
    assert {row["contrast"] for row in results["data"] if row["split"] == "train"} == {
        "FLAIR",
        "DWI",
    }
    assert "Table 3" in (out / "study.html").read_text()


def test_a_study_of_one_scan(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(corpus / "train" / "train-a_T1w.nii.gz", tmp_path / "data")
    (tmp_path / "data" / "maps").mkdir()
    out = tmp_path / "out"
    result = invoke("study", "run", "--data", tmp_path / "data", "-o", out, "--config", "debug")
    assert result.exit_code == 0, result.output
    assert "no usable slice in validation and test: training slices stand in" in result.stderr
    assert "left out: maps/: derived maps and labels" in result.stderr
    results = results_of(out)
    assert results["interpolation"] == []
    assert results["substituted"] == ["validation", "test"]
    html = (out / "study.html").read_text()
    assert "say nothing about other subjects" in html and "Table 1" in html


def test_folders_without_scans_are_refused(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for command in (
        ("study", "run", "--data", data, "--config", "debug"),
        ("augment", data, "-n", 1),
    ):
        result = invoke(*command, "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert "expected at least one NIfTI scan" in result.stderr
        assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    shutil.copy(corpus / "train" / "train-a_T1w.nii.gz", data)
    result = invoke("augment", data, "-n", 1, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "one contrast and height of two subjects, found none" in result.stderr


def test_a_subset_has_scans_of_every_contrast(corpus: Path) -> None:
    """Also where the names of the files sort by contrast, and of different subjects."""
    data = slices.load_corpus(corpus, every=12, scans_per_contrast=1)
    assert {item.contrast for item in data.slices["train"]} == {"T1", "T2", "FLAIR", "DWI"}
    assert len({item.scan for item in data.slices["train"]}) == 4
    reasons = {item.file: item.reason for item in data.left_out}
    assert "only 1 scans of each contrast" in reasons["4 scans of train"]
    everything = slices.load_corpus(corpus, every=12)
    assert len({item.scan for item in everything.slices["train"]}) == 8


def test_what_is_left_out_is_named_with_its_reason(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data" / "MANIFEST.csv").write_text(
        "file,licence,subject,contrast,body_part\n"
        "train/train-a_T1w.nii.gz,CC0,a,T1w,head\n"
        "train/train-b_T1w.nii.gz,CC BY-NC 4.0,b,T1w,head\n"
        "train/train-a_T2w.nii.gz,CC0,a,T2w,knee\n"
        "train/train-a_DWI.nii.gz,CC0,a,phase,head\n"
    )
    data = slices.load_corpus(tmp_path / "data", every=12)
    reasons = {item.file: item.reason for item in data.left_out}
    assert {item.scan for item in data.slices["train"]} == {"train-a_T1w"}
    assert "licence not on the list" in reasons["train/train-b_T1w.nii.gz"]
    assert reasons["train/train-a_T2w.nii.gz"] == "no brain: knee"
    assert reasons["train/train-a_DWI.nii.gz"].startswith("contrast none of T1")
    assert "licence is unknown" in reasons["train/train-a_FLAIR.nii.gz"]


def test_the_page_shows_the_committed_results(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "study.json"
    html = page.render(json.loads(path.read_text()), tmp_path)
    assert "CNN-32 reaches 38 dB mean PSNR on test slices: 41.67 dB." in html
    assert "beat both pixel blending and the plain autoencoder in" in html
    assert html.count("<table") == 8


def test_an_autoencoder_of_a_study_is_a_codec(study: Path) -> None:
    (path,) = (study / "models").glob("cnn8-*.safetensors")
    assert path.name == f"cnn8-{results_of(study)['files']['cnn8']['sha256'][:8]}.safetensors"
    array = np.random.default_rng(0).integers(0, 900, (2, 17, 20)).astype(np.int16)
    model = loader.load_model(path)
    stream = codec.Encoder(model=model, quality=60).encode(array)
    assert stream is not None
    assert codec.Decoder(model=model).decode(stream).array.shape == array.shape


def test_wrong_parts_are_named(corpus: Path, tmp_path: Path) -> None:
    result = invoke("study", "run", "--data", corpus, "-o", tmp_path / "out", "--only", "cnn,gan")
    assert result.exit_code != 0
    assert "found gan" in result.output


def with_acai(study: Path) -> str:
    """The CNN that the study chose."""
    return (
        next((study / "models").glob("acai-cnn*.safetensors"))
        .name.removeprefix("acai-")
        .removesuffix(".safetensors")
    )


@pytest.mark.parametrize("weights", ["0.5,0.5", "0.2,0.5,0.3"])
def test_interpolate_writes_a_head(weights: str, study: Path, corpus: Path, tmp_path: Path) -> None:
    scans = sorted((corpus / "train").iterdir())[: weights.count(",") + 1]
    out = tmp_path / "mixed.nii.gz"
    model = f"acai-{with_acai(study)}"
    result = invoke(
        "interpolate", *scans, "--weights", weights, "-o", out, "--model", model, "--study", study
    )
    assert result.exit_code == 0, result.output
    before = out.read_bytes()
    result = invoke("interpolate", *scans, "--weights", weights, "-o", out, "--model", "cnn8")
    assert (
        result.exit_code == 2
        and "exists; use --force" in result.output
        and out.read_bytes() == before
    )
    image: Any = nib.load(out)  # type: ignore[attr-defined]
    assert image.shape[:2] == (slices.GRID, slices.GRID) and image.shape[2] > 10
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", ["0.5,0.4", "1.5,-0.5", "1", "a,b"])
def test_weights_that_do_not_fit(weights: str, study: Path, corpus: Path, tmp_path: Path) -> None:
    scans = sorted((corpus / "train").iterdir())[:2]
    out = tmp_path / "mixed.nii"
    result = invoke(
        "interpolate", *scans, "--weights", weights, "-o", out, "--model", "cnn8", "--study", study
    )
    assert result.exit_code != 0
    assert "eights" in result.output and not out.exists()


def test_what_cannot_be_mixed_is_named(corpus: Path, tmp_path: Path) -> None:
    scans = sorted((corpus / "train").iterdir())[:2]
    for arguments, message in (
        (("-o", tmp_path / "mixed.png"), "ends in .nii or .nii.gz"),
        (("-o", tmp_path / "a.nii", "--model", "vae"), "expected an autoencoder of cnn8"),
        (("-o", tmp_path / "a.nii", "--model", "acai-cnn8"), "acai-cnn8 is not shipped"),
        (("-o", tmp_path / "a.nii", "--model", "acai-cnn8", "--study", tmp_path), "found none"),
        (("-o", tmp_path / "a.nii", tmp_path / "none.nii"), "none.nii' does not exist"),
    ):
        result = invoke("interpolate", *scans, "--weights", "0.5,0.5", *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
    result = invoke(
        "augment",
        corpus,
        "-n",
        1,
        "-o",
        tmp_path / "more",
        "--method",
        "bagan",
        "--study",
        tmp_path,
    )
    assert result.exit_code == 2 and "expected the weights of BAGAN" in result.output
    result = invoke("augment", corpus, "-n", 1, "-o", tmp_path / "more", "--method", "acai")
    assert result.exit_code == 2 and "--study" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["interpolation", "acai", "bagan"])
def test_augment_says_what_its_pictures_come_from(
    method: str, study: Path, corpus: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        result = invoke(
            "augment", corpus, "-n", 3, "-o", tmp_path / name, "--method", method,
            "--model", with_acai(study), "--study", study, "--seed", 7,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "one" / "manifest.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["00000.nii.gz", "00001.nii.gz", "00002.nii.gz"]
    assert {row["seed"] for row in rows} == {"7"}
    if method != "bagan":
        parents = [{parent.split("@")[0] for parent in row["parents"].split()} for row in rows]
        assert all(len(scans) == 2 for scans in parents)
        assert [row["contrast"] for row in rows] == ["T1", "T2", "FLAIR"]
        assert [sum(map(float, row["weights"].split())) for row in rows] == pytest.approx([1, 1, 1])
    for row in rows:
        assert (tmp_path / "one" / row["file"]).read_bytes() == (
            tmp_path / "two" / row["file"]
        ).read_bytes()


def test_the_discriminator_sees_pictures_moved() -> None:
    torch.manual_seed(0)
    picture = torch.zeros(64, 1, 64, 64)
    picture[:, :, 30, 20] = 1
    moved = adversarial._moved(picture)
    assert ((moved > 0).sum((1, 2, 3)) == 1).all()
    places = (moved[:, 0] > 0).nonzero()[:, 1:]
    low, high = places.amin(0).tolist(), places.amax(0).tolist()
    assert low == [26, 16] and high == [34, 47]  # 20 and, mirrored, 43, each 4 to and fro
    values = moved.amax((1, 2, 3))
    assert 0.8 <= float(values.min()) < 0.9 < 1.1 < float(values.max()) <= 1.2


def test_the_energy_distance_tells_samples_apart() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 300, 2).unbind()
    assert abs(perceptual.energy_distance(x, y)) < 0.05 < 0.5 < perceptual.energy_distance(x, y + 1)
    assert perceptual.energy_distance(
        torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    ) == pytest.approx(4 - 2 - 4)
    assert perceptual.ContrastNet(4).statistics(torch.rand(3, 1, 64, 64)).shape == (3, 224)


def test_a_mesh_is_seen() -> None:
    picture = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    textured = picture.copy()
    textured[:, ::8] += 1
    assert mesh(picture) < 0.1 < 0.3 < mesh(textured)


def test_a_weight_of_one_is_the_reconstruction() -> None:
    network = MinimalCNN(8).eval()
    pictures = torch.rand(3, 1, 16, 24)
    with torch.no_grad():
        mixed = adversarial.interpolate(network, pictures, [0.0, 1.0, 0.0])
        assert torch.allclose(mixed, network.reconstruct(pictures[1:2]), atol=1e-5)


def lpips_file(path: Path) -> None:
    """Layers of AlexNet's shape, four channels each."""
    generator = torch.Generator().manual_seed(0)
    tensors, inputs = {}, 3
    for n, (layer, size) in enumerate(((0, 11), (3, 5), (6, 3), (8, 3), (10, 3))):
        tensors[f"features.{layer}.weight"] = torch.randn(
            4, inputs, size, size, generator=generator
        )
        tensors[f"features.{layer}.bias"] = torch.randn(4, generator=generator)
        tensors[f"lin{n}.model.1.weight"] = torch.rand(1, 4, 1, 1, generator=generator)
        inputs = 4
    save_file(tensors, path)


def test_lpips_from_a_file(tmp_path: Path) -> None:
    lpips_file(tmp_path / "lpips.safetensors")
    lpips = perceptual.Lpips(tmp_path / "lpips.safetensors")
    x, y = torch.rand(2, 2, 1, 64, 64).unbind()
    assert torch.equal(lpips(x, x), torch.zeros(2))
    assert (lpips(x, y) > 0).all() and torch.allclose(lpips(x, y), lpips(y, x))
    first = [
        f / f.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10)
        for f in (lpips.features(x)[0], lpips.features(y)[0])
    ]
    assert first[0].shape == (2, 4, 15, 15)
    (tmp_path / "other.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="expected weights of LPIPS"):
        perceptual.Lpips(tmp_path / "other.safetensors")


def test_the_distance_is_the_published_one() -> None:
    x, y = (
        torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1),
        torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1),
    )
    assert float(perceptual.unit_distance([x], [y])) == pytest.approx(0.4**2 + 0.8**2)
    assert float(perceptual.unit_distance([x], [y], [torch.tensor([1.0, 0.5])])) == pytest.approx(
        0.4**2 + 0.5 * 0.8**2
    )


@pytest.mark.parametrize("name", ["cnn16", "unet-2level", "vae"])
def test_a_study_model_as_a_codec(name: str) -> None:
    """Random weights, exported and coded: the decoder gets the encoder's latents, and coarse
    steps take fewer bytes."""
    torch.manual_seed(0)
    network: Any = zoo.network(name).build()
    j, i = np.mgrid[:48, :36]
    picture = (0.5 + 0.3 * np.sin(j / 5) * np.cos(i / 7)).astype(np.float32)
    export: Any = slice_training.vae_tensors if name == "vae" else slice_training.file_tensors
    tensors = export(network, [picture] * 2)
    model = loader.assemble(name, zoo.network(name).build, save(tensors), "cpu")
    x = np.round(1000 * picture).astype(np.int32)[None, None]
    sizes = []
    for step in (2.0, 40.0):
        params = Params(step, 1000)
        coder = Streams([EntropyEncoder()])
        decoded = model.encode(x, step, coder, params)
        data = coder.streams[0].finish()
        again = model.decode(x.shape, params, Streams([EntropyDecoder(data)]))
        assert np.array_equal(again, decoded)
        sizes.append(len(data))
    assert sizes[1] < sizes[0]
