"""The command line with DICOM: where streams and files go, and what `--rm` removes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dicom_files
import pytest
from click.testing import CliRunner, Result

from mricodec import codec
from mricodec.cli.main import cli


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with two series."""
    for name in ("a", "b"):
        dicom_files.write(dicom_files.series(series=name), tmp_path / "study" / name)
    return tmp_path / "study"


def test_no_output_is_beside_the_folder_or_the_file(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dicom_files.contents(study / "a")
    assert run("encode", study / "a", study / "b", "--lossless").exit_code == 0
    assert codec.info(study / "a.mrc").files == codec.info(study / "b.mrc").files == 12
    shutil.rmtree(study / "a")
    assert run("decode", study / "a.mrc").exit_code == 0
    assert dicom_files.contents(study / "a") == files
    monkeypatch.chdir(study / "b")
    result = run("encode", ".", "--lossless")
    assert result.exit_code == 2 and "b.mrc exists" in result.stderr
    single = shutil.copy(next(iter(sorted((study / "a").iterdir()))), tmp_path / "one.dcm")
    assert run("encode", single, "--lossless").exit_code == 0
    assert codec.info(tmp_path / "one.mrc").files == 1
    assert run("encode", *(study / "a").iterdir(), "--lossless").exit_code == 0
    assert [path.name for path in (study / "a").glob("*.mrc")] == ["7_t1_a.mrc"]


def test_a_folder_for_series(study: Path, tmp_path: Path) -> None:
    """NAME/ is a folder for one series too, and several series of a folder need one."""
    refused = run("encode", study, "--lossless")
    assert refused.exit_code == 2 and "-o NAME/" in refused.stderr and "found 2" in refused.stderr
    for count, source in ((1, study / "a"), (2, study)):
        out = tmp_path / f"out{count}"
        assert run("encode", source, "-o", f"{out}/", "--lossless").exit_code == 0
        assert len(list(out.glob("7_t1_*.mrc"))) == count
        again = run("encode", source, "-o", out, "--lossless")
        assert again.exit_code == 2 and "exists; use --force" in again.stderr
    wrong = run("encode", study / "a", "-o", tmp_path / "series.nii.gz")
    assert wrong.exit_code == 2 and "ends in .mrc or .mric" in wrong.stderr
    back = tmp_path / "back"
    assert run("decode", *(tmp_path / "out2").iterdir(), "-o", f"{back}/").exit_code == 0
    assert sorted(path.name for path in back.iterdir()) == ["7_t1_a", "7_t1_b"]
    assert dicom_files.contents(back / "7_t1_a" / "a") == dicom_files.contents(study / "a")


def test_a_series_to_stdout(study: Path) -> None:
    piped = CliRunner().invoke(cli, ["encode", str(study / "a"), "-o", "-", "--lossless"])
    assert codec.info(piped.stdout_bytes).files == 12


def test_parts_of_files_are_refused(study: Path, tmp_path: Path) -> None:
    stream = tmp_path / "s.mrc"
    assert run("encode", study / "a", "-o", stream, "--lossless").exit_code == 0
    for option in (["--preview"], ["--layer", "1"], ["--salvage"], ["--volumes", "0:1"]):
        refused = run("decode", stream, "-o", tmp_path / "x", *option)
        assert refused.exit_code == 2 and "--format nifti" in refused.stderr
    refused = run("decode", stream, "-o", tmp_path / "x.nii", "--rm")
    assert refused.exit_code == 2 and "decoded to NIfTI" in refused.stderr and stream.exists()


def test_rm(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dicom_files.contents(study)
    out = tmp_path / "out"
    restored = list(dicom_files.contents(study / "a").items())
    for wrong in (restored[:-1], [*restored[:-1], (restored[-1][0], restored[-1][1][:-1])]):
        with monkeypatch.context() as context:
            context.setattr(codec, "series_files", lambda *_, wrong=wrong, **__: wrong)
            result = run("encode", study / "a", "-o", f"{out}/", "-f", "--lossless", "--rm")
        assert result.exit_code == 1 and "kept" in result.stderr
        assert dicom_files.contents(study) == files
    assert run("encode", study, "-o", f"{out}/", "-f", "--lossless", "--rm").exit_code == 0
    assert not study.exists() or not dicom_files.contents(study)
    streams = sorted(out.iterdir())
    for stream in streams:
        assert run("decode", stream, "-o", tmp_path / "study", "--rm").exit_code == 0
        assert not stream.exists()
    assert dicom_files.contents(tmp_path / "study") == files


@pytest.mark.parametrize("ending", [".mrc", ".mric"])
def test_wrap_and_unwrap(study: Path, tmp_path: Path, ending: str) -> None:
    stream = tmp_path / f"series{ending}"
    assert run("encode", study / "a", "-o", stream, "--lossless").exit_code == 0
    assert run("wrap", stream).exit_code == 0
    data = stream.read_bytes()
    stream.unlink()
    assert run("unwrap", tmp_path / "series.dcm", "-o", stream).exit_code == 0
    assert stream.read_bytes() == data
    assert run("unwrap", tmp_path / "series.dcm", "-f").exit_code == 0
    assert (tmp_path / "series.mrc").read_bytes() == data
    for command, source, name in (
        ("wrap", stream, "x.mrc"),
        ("wrap", stream, "x.nii.gz"),
        ("unwrap", tmp_path / "series.dcm", "x.dcm"),
    ):
        result = run(command, source, "-o", tmp_path / name)
        assert result.exit_code == 2 and not (tmp_path / name).exists()
