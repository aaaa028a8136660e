"""The command line: what it writes, what it says, and with which exit code."""

from __future__ import annotations

import errno
import gzip
import io
import json
import logging
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel
from nifti_files import single, smooth, write_pair

from mricodec import codec
from mricodec.cli import console, main
from mricodec.codec import atomic as output
from mricodec.codec import loading
from mricodec.codec.release import release

STARTUP = 0.3  # seconds, of --help, info and verify


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(name: str | bytes, device: str) -> FakeModel:
        if name not in ("default", fake.model_id):
            raise ValueError(f"unknown model {name!r}")
        return fake

    monkeypatch.setattr(loading, "open_model", load)
    return fake


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(single(smooth((2, 12, 40, 36)))))
    return path


@pytest.fixture
def stream(scan: Path, tmp_path: Path) -> Path:
    codec.encode(scan, lossless=True, out=tmp_path / "scan.mrc")
    return tmp_path / "scan.mrc"


def run(*arguments: Any, data: bytes | None = None) -> Result:
    result = CliRunner().invoke(main.cli, [str(a) for a in arguments], input=data)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def python(*arguments: Any, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mricodec.cli", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)


def assert_one_line(text: str, *parts: str) -> None:
    assert text.startswith("Error: ") and text.count("\n") == 1, text
    for part in parts:
        assert part in text


def test_lossless_there_and_back(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mrc"
    encoded = run("encode", scan, "-o", out, "--lossless")
    assert encoded.exit_code == 0 and encoded.stdout == ""
    raw = gzip.decompress(scan.read_bytes())
    for part in (str(scan), str(out), "kB -> ", "ratio", "lossless"):
        assert part in encoded.stderr
    assert encoded.stderr.count("\n") == 1
    for name in ("back.nii", "back.nii.gz"):
        decoded = run("decode", out, "-o", tmp_path / name)
        assert decoded.exit_code == 0 and "36x40x12x2 int16" in decoded.stderr
    assert (tmp_path / "back.nii").read_bytes() == raw
    assert gzip.decompress((tmp_path / "back.nii.gz").read_bytes()) == raw


def test_lossy_there_and_back(scan: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in ([], ["--quality", "20"], ["--quality", "92.5"]):
        encoded = run("encode", scan, "-o", tmp_path / "out.mrc", "-f", "-v", *quality)
        assert encoded.exit_code == 0
        for part in ("ratio", "lossy (fake)", "PSNR", "dB", "RMSE", "bits per voxel", "noise"):
            assert part in encoded.stderr
        sizes.append((tmp_path / "out.mrc").stat().st_size)
    assert sizes[1] < sizes[0] < sizes[2]
    assert run("decode", tmp_path / "out.mrc", "-o", tmp_path / "out.nii", "-v").exit_code == 0
    shown = run("info", tmp_path / "out.mrc").stdout
    for part in (
        "lossy (learned)",
        "MRICODEC_MODELS (66616b6566616b65)",
        "of the noise",
        "step",
        "PSNR",
        "section SLAB",
    ):
        assert part in shown


def test_the_model_is_named(
    scan: Path, tmp_path: Path, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a stream is described; of an inexact one nothing is said to be compared."""
    monkeypatch.setattr(
        codec, "model_name", lambda model_id: {model.model_id.hex(): "fake"}[model_id]
    )
    out = tmp_path / "out.mrc"
    assert run("encode", scan, "-o", out).exit_code == 0
    assert json.loads(run("info", out, "--json").stdout)["model"] == "fake"
    decoded = run("decode", out, "-o", tmp_path / "out.nii", "-v").stderr
    for shown in (run("info", out).stdout, decoded, run("verify", "-v", out).stdout):
        assert f"fake ({model.model_id.hex()})" in shown
    assert "decoded and compared" in run("verify", "--deep", out).stdout
    model.exact_samples = False
    assert run("encode", scan, "-o", out, "-f").exit_code == 0
    assert "not compared" in run("verify", "--deep", out).stdout


def test_quiet(scan: Path, stream: Path, tmp_path: Path) -> None:
    for arguments in (
        ("encode", scan, "-o", tmp_path / "q.mrc", "--lossless"),
        ("decode", stream, "-o", tmp_path / "q.nii"),
        ("verify", stream, "--deep"),
    ):
        assert run(*arguments, "-q").output == ""


def test_fallback_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(single((smooth((4, 16, 16)) > 0).astype("u1")))
    encoded = run("encode", path, "-o", tmp_path / "mask.mrc", "-q", "--quality", "10")
    assert encoded.exit_code == 0 and "without loss: it is a label map" in encoded.stderr


def test_parts(stream: Path, tmp_path: Path) -> None:
    decoded = run(
        "decode", stream, "-o", tmp_path / "part.nii", "--slices", "3:7", "--volumes", "1:"
    )
    assert decoded.exit_code == 0 and "a part of" in decoded.stderr
    raw = (tmp_path / "part.nii").read_bytes()
    assert raw[352:] == smooth((2, 12, 40, 36))[1:, 3:7].tobytes()


def test_pair(tmp_path: Path) -> None:
    hdr, img = write_pair(tmp_path, smooth((3, 8, 8)))
    assert run("encode", hdr, "-o", tmp_path / "pair.mrc", "--lossless").exit_code == 0
    assert run("decode", tmp_path / "pair.mrc", "-o", tmp_path / "back.hdr").exit_code == 0
    assert (tmp_path / "back.hdr").read_bytes() == hdr.read_bytes()
    assert (tmp_path / "back.img").read_bytes() == img.read_bytes()


def test_both_files_of_a_pair_are_kept(tmp_path: Path) -> None:
    """Without --force no file of another pair is overwritten, with it none of the scan itself."""
    hdr, img = write_pair(tmp_path, smooth((3, 8, 8)))
    stream = tmp_path / "pair.mrc"
    assert run("encode", hdr, "-o", stream, "--lossless").exit_code == 0
    before = hdr.read_bytes(), img.read_bytes()
    for first, second in ((hdr, img), (img, hdr)):
        assert_one_line(
            run("encode", first, "-o", second, "--lossless", "-f").stderr, "ends in .mrc or .mric"
        )
    odd = tmp_path / "odd.mric"
    odd.write_bytes(single(smooth((3, 8, 8))))
    for name in (odd, tmp_path / ".." / tmp_path.name / "odd.mric"):
        assert_one_line(run("encode", odd, "-o", name, "-f").stderr, "is the input too")
    for suffix, other in ((".hdr", ".img"), (".img", ".hdr")):
        mine = (tmp_path / f"mine{suffix}").with_suffix(other)
        mine.write_bytes(b"mine")
        result = run("decode", stream, "-o", tmp_path / f"mine{suffix}")
        assert result.exit_code == 2 and mine.read_bytes() == b"mine"
        assert_one_line(result.stderr, mine.name, "--force")
        mine.unlink()
    assert (hdr.read_bytes(), img.read_bytes()) == before


def test_stdin_and_stdout(scan: Path, stream: Path) -> None:
    encoded = run("encode", "-", "-o", "-", "--lossless", data=scan.read_bytes())
    assert encoded.exit_code == 0 and encoded.stdout_bytes == stream.read_bytes()
    decoded = run("decode", "-", "-o", "-", data=stream.read_bytes())
    assert decoded.stdout_bytes == gzip.decompress(scan.read_bytes())
    assert json.loads(run("info", "-", "--json", data=stream.read_bytes()).stdout)["slabs"] == 2
    assert run("verify", "-", data=stream.read_bytes()).exit_code == 0
    assert_one_line(run("info", "-", data=b"nonsense").stderr, "stdin: ")
    assert run("verify", "-", data=b"nonsense").stderr.startswith("stdin: ")


def test_info(stream: Path) -> None:
    shown = run("info", stream)
    assert shown.exit_code == 0
    for part in (
        "36x40x12x2",
        "0.5 x 0.75 x 2.5 mm",
        "int16",
        "lossless (predictive)",
        "ratio",
        "section SLAB",
    ):
        assert part in shown.stdout
    about = json.loads(run("info", stream, "--json").stdout)
    assert (
        about["shape"] == [2, 12, 40, 36]
        and about["mode"] == "lossless"
        and about["fidelity"] is None
    )
    assert about["stream_bytes"] == stream.stat().st_size == sum(about["sections"].values()) + 10
    assert about["spacing_mm"] == [2.5, 0.75, 0.5]


def test_verify(stream: Path, tmp_path: Path) -> None:
    assert run("verify", stream).stdout == f"{stream}: good (checksums)\n"
    assert "decoded and compared" in run("verify", "--deep", stream).stdout
    bad = tmp_path / "bad.mrc"
    data = bytearray(stream.read_bytes())
    data[len(data) // 2] ^= 4
    bad.write_bytes(data)
    checked = run("verify", bad, stream)
    assert checked.exit_code == 1
    assert str(bad) in checked.stderr and f"{stream}: good" in checked.stdout
    assert_one_line(run("decode", bad, "-o", tmp_path / "bad.nii").stderr, str(bad))
    assert not (tmp_path / "bad.nii").exists()


def test_bad_data(scan: Path, stream: Path, tmp_path: Path) -> None:
    """Exit code 1, one line, no file."""
    out = tmp_path / "out"
    out.mkdir()
    packed = scan.read_bytes()
    cases = {
        "text.nii": b"no scan at all",
        "empty.nii": b"",
        "short.nii.gz": packed[: len(packed) // 2],
        "short.nii": gzip.decompress(packed)[:-1],
        "stream.nii": stream.read_bytes(),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        result = run("encode", tmp_path / name, "-o", out / "x.mrc", "--lossless")
        assert result.exit_code == 1
        assert_one_line(result.stderr, name)
    newer = bytearray(stream.read_bytes())
    newer[8] = 2
    (tmp_path / "newer.mrc").write_bytes(newer)
    (tmp_path / "short.mrc").write_bytes(stream.read_bytes()[:-20])
    for name, part in {
        "newer.mrc": "version",
        "short.mrc": "cut short",
        "text.nii": "mricodec stream",
    }.items():
        for command in (
            ["decode", tmp_path / name, "-o", out / "x.nii"],
            ["info", tmp_path / name],
        ):
            result = run(*command)
            assert result.exit_code == 1
            assert_one_line(result.stderr, name, part)
    assert list(out.iterdir()) == []


def test_wrong_usage(scan: Path, stream: Path, tmp_path: Path) -> None:
    """Exit code 2, one line, nothing overwritten."""
    existing = tmp_path / "existing.mrc"
    existing.write_bytes(b"mine")
    cases: list[tuple[list[Any], str]] = [
        (["encode", tmp_path / "none.nii", "-o", tmp_path / "x.mrc"], "none.nii"),
        (["encode"], "SCAN"),
        (["encode", scan, "-o", existing], "--force"),
        (["encode", scan, "-o", tmp_path / "none" / "x.mrc"], "no such folder"),
        (["encode", scan, "-o", tmp_path], "scan.mrc exists; use --force"),
        (["encode", scan], "scan.mrc exists; use --force"),
        (["decode", stream], "scan.nii.gz exists; use --force"),
        (["encode", scan, "-o", existing.with_suffix("")], "NAME/"),
        (["encode", scan, scan.with_name("scan.mrc"), "-o", existing, "-f"], "expected DICOM"),
        (["decode", stream, existing, "-o", tmp_path / "x.nii"], "NAME/"),
        (["decode", stream, "-o", tmp_path / "x.nii", "--rm", "--preview"], "as a whole"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--rm"], "--lossless"),
        (["encode", scan, "-o", "-", "--rm", "--lossless"], "--rm"),
        (["encode", scan, "-o", ""], "name of the output"),
        (["encode", scan, "-o", scan, "-f"], "ends in .mrc or .mric"),
        (["encode", scan, "-o", tmp_path / "none.nii.gz"], "ends in .mrc or .mric"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--quality", "101"], "quality"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--lossless", "--quality", "1"], "lossless"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--model", "none"], "none"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--threads", "0"], "threads"),
        (["encode", scan, "-o", tmp_path / "x.mrc", "--nonsense"], "nonsense"),
        (["decode", stream, "-o", tmp_path / "x.nii", "--slices", "3"], "a:b"),
        (["decode", stream, "-o", tmp_path / "x.nii", "--slices", "7:99"], "0:12"),
        (["decode", stream, "-o", tmp_path / "x.nii", "--volumes", "2:1"], "0:2"),
        (["decode", stream, "-o", tmp_path / "x.txt"], ".nii"),
        (["decode", stream, "-o", tmp_path / "x.hdr"], "one file"),
        (["nonsense"], "nonsense"),
        (["--nonsense"], "nonsense"),
        (["study", "run", "--nonsense"], "nonsense"),
    ]
    for arguments, part in cases:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert_one_line(result.stderr, part)
    assert existing.read_bytes() == b"mine"
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob("*.part"))


def test_no_output_is_beside_the_input(scan: Path, tmp_path: Path) -> None:
    original = scan.read_bytes()
    assert run("encode", scan, "--lossless").exit_code == 0
    assert codec.info(tmp_path / "scan.mrc").mode == "lossless"
    scan.unlink()
    assert run("decode", tmp_path / "scan.mrc").exit_code == 0
    assert scan.read_bytes() == original
    for name, restored in (
        ("a.nii.mrc", "a.nii"),
        ("b.NII.gz.mric", "b.NII.gz"),
        ("c", "c.nii.gz"),
        ("p.hdr.mrc", "p.hdr"),
    ):
        hdr, _ = write_pair(tmp_path, smooth((3, 8, 8)))
        codec.encode(hdr if "hdr" in name else scan, lossless=True, out=tmp_path / name)
        assert run("decode", tmp_path / name).exit_code == 0
        assert (tmp_path / restored).exists()
    assert (tmp_path / "p.img").exists()
    piped = run("encode", "-", "--lossless", data=original)
    assert piped.stdout_bytes == (tmp_path / "scan.mrc").read_bytes()
    assert run("decode", "-", data=piped.stdout_bytes).stdout_bytes == gzip.decompress(original)


def test_several_inputs(scan: Path, tmp_path: Path) -> None:
    """Each beside its input, or all into a folder; a bad one doesn't stop the rest."""
    hdr, img = (
        file.rename(tmp_path / f"pair{file.suffix}")
        for file in write_pair(tmp_path, smooth((3, 8, 8)))
    )
    (tmp_path / "bad.nii").write_bytes(b"no scan at all")
    result = run("encode", scan, tmp_path / "bad.nii", hdr, img, "--lossless")
    assert result.exit_code == 1 and result.stderr.count("Error: ") == 1
    assert "bad.nii" in result.stderr and result.stderr.count(" -> ") == 4
    assert sorted(path.name for path in tmp_path.glob("*.mrc")) == [f"{hdr.stem}.mrc", "scan.mrc"]
    out = tmp_path / "out"
    result = run("encode", scan, hdr, "-o", f"{out}/", "--lossless")
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{hdr.stem}.mrc", "scan.mrc"]
    back = tmp_path / "back"
    assert run("decode", *out.iterdir(), "-o", f"{back}/").exit_code == 0
    assert (back / "scan.nii.gz").read_bytes() == scan.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "scan.nii").write_bytes(gzip.decompress(scan.read_bytes()))
    both = run("encode", scan, tmp_path / "sub" / "scan.nii", "-o", f"{tmp_path / 'more'}/")
    assert both.exit_code == 2 and not (tmp_path / "more").exists()
    assert_one_line(both.stderr, "both give")


def test_rm_only_after_every_byte_was_compared(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, stream = scan.read_bytes(), tmp_path / "scan.mrc"
    assert run("encode", scan, "--lossless", "--rm").exit_code == 0 and not scan.exists()
    assert run("decode", stream, "--rm").exit_code == 0 and not stream.exists()
    assert scan.read_bytes() == original
    hdr, img = write_pair(tmp_path, smooth((3, 8, 8)))
    assert run("encode", hdr, "--lossless", "--rm").exit_code == 0
    assert not hdr.exists() and not img.exists()
    stream.unlink()

    packer = zlib.compressobj(6, zlib.DEFLATED, 31, memLevel=1)  # No recipe gives these bytes.
    foreign = packer.compress(gzip.decompress(original)) + packer.flush()
    scan.write_bytes(foreign)
    kept = run("encode", scan, "--lossless", "--rm")
    assert kept.exit_code == 1 and "kept" in kept.stderr and scan.read_bytes() == foreign
    assert run("encode", scan, "--lossless", "--rm", "--no-gzip", "-f").exit_code == 0
    assert not scan.exists()

    assert run("decode", stream).exit_code == 0
    lossy = codec.encode(scan, out=tmp_path / "lossy.mrc")
    assert lossy is None
    result = run("decode", tmp_path / "lossy.mrc", "--rm")
    assert result.exit_code == 2 and (tmp_path / "lossy.mrc").exists()

    def other(self: codec.Decoder, source: Any, destination: Any, **options: Any) -> None:
        Path(destination).write_bytes(b"other voxels")

    stream.unlink()
    with monkeypatch.context() as context:
        context.setattr(codec.Decoder, "decode_file", other)
        result = run("encode", scan, "--lossless", "--rm")
    assert result.exit_code == 1 and "kept" in result.stderr and scan.exists()
    assert not list(tmp_path.glob(".mricodec*"))


def test_mric_is_read_as_mrc_is(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.mric"
    assert run("encode", scan, "-o", out, "--lossless").exit_code == 0
    assert run("verify", "--deep", out).exit_code == 0 and run("info", out).exit_code == 0
    assert "largest error 0" in run("compare", scan, out).stdout
    assert run("decode", out, "-o", tmp_path / "back.nii.gz").exit_code == 0
    assert (tmp_path / "back.nii.gz").read_bytes() == scan.read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_full_device(scan: Path, stream: Path) -> None:
    result = run("encode", scan, "-o", "/dev/full", "--lossless")
    assert result.exit_code == 1
    assert_one_line(result.stderr, "/dev/full", os.strerror(errno.ENOSPC))
    assert Path("/dev/full").is_char_device()
    for arguments in (["encode", str(scan), "-o", "-", "--lossless"], ["info", str(stream)]):
        for more in ({}, {"PYTHONUNBUFFERED": "1"}):
            environment = {
                key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"
            } | more
            with open("/dev/full", "wb") as full:
                command = [sys.executable, "-m", "mricodec.cli", *arguments]
                process = subprocess.run(
                    command,
                    stdout=full,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                    env=environment,
                )
            assert process.returncode == 1
            assert_one_line(process.stderr, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="closes a descriptor of the child")
def test_closed_pipes(scan: Path) -> None:
    for descriptor, source in ((0, "-"), (1, str(scan))):
        process = subprocess.run(
            [sys.executable, "-m", "mricodec.cli", "encode", source, "-o", "-", "--lossless"],
            preexec_fn=lambda descriptor=descriptor: os.close(descriptor),
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert process.returncode == 2
        assert_one_line(process.stderr, "closed")


def test_too_little_memory(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has a RuntimeError for it; other ones are faults, and stay."""
    for message, failure in (
        ("can't allocate memory:\n1 byte", SystemExit),
        ("a fault", RuntimeError),
    ):

        def load(name: str, device: str, message: str = message) -> None:
            raise RuntimeError(message)

        monkeypatch.setattr(loading, "open_model", load)
        result = CliRunner().invoke(main.cli, ["encode", str(scan), "-o", str(tmp_path / "x.mrc")])
        assert isinstance(result.exception, failure) and result.exit_code == 1
        assert ("not enough memory" in result.stderr) == (failure is SystemExit)


class FullDisk(io.FileIO):
    """Takes 500 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("name", ["x.mrc", "x.nii", "x.nii.gz"])
def test_full_disk(
    scan: Path, stream: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, neither under the name nor beside it."""
    monkeypatch.setattr(
        output, "open", lambda path, mode: io.BufferedWriter(FullDisk(path, "x")), raising=False
    )
    before = sorted(tmp_path.iterdir())
    if name.endswith(".mrc"):
        result = run("encode", scan, "-o", tmp_path / name, "--lossless")
    else:
        result = run("decode", stream, "-o", tmp_path / name)
    assert result.exit_code == 1
    assert_one_line(result.stderr, name, os.strerror(errno.ENOSPC))
    assert sorted(tmp_path.iterdir()) == before


def test_compare(scan: Path, stream: Path, tmp_path: Path) -> None:
    shown = run("compare", scan, stream).stdout
    assert "PSNR inf dB" in shown and "largest error 0" in shown
    values = json.loads(run("compare", scan, stream, "--json").stdout, parse_constant=pytest.fail)
    assert values["psnr"] is None and values["ssim"] == 1 and values["max_error"] == 0
    assert values["bytes"] == stream.stat().st_size
    assert values["bits_per_voxel"] == 8 * values["bytes"] / (2 * 12 * 40 * 36)
    newer = bytearray(stream.read_bytes())
    newer[8] = 2
    (tmp_path / "newer.mrc").write_bytes(newer)
    result = run("compare", scan, tmp_path / "newer.mrc")
    assert result.exit_code == 1
    assert_one_line(result.stderr, "newer.mrc", "version")


def test_version() -> None:
    """Of the installed package, or without one."""
    assert run("--version").stdout == f"mricodec {release()}\n"


def test_json_without_infinities(scan: Path, tmp_path: Path) -> None:
    """Errors beyond float16 are infinite in a stream, but JSON has no such number."""
    assert run("encode", scan, "-o", tmp_path / "x.mrc").exit_code == 0
    data = bytearray((tmp_path / "x.mrc").read_bytes())
    at = data.index(b"eRRS")
    data[at + 8 : at + 12] = np.array([np.inf, np.inf], "<f2").tobytes()
    end = at + 8 + data[at + 4]
    data[end : end + 4] = zlib.crc32(data[at:end]).to_bytes(4, "little")
    (tmp_path / "x.mrc").write_bytes(data)
    assert "inf" in run("info", tmp_path / "x.mrc").stdout
    about = json.loads(run("info", tmp_path / "x.mrc", "--json").stdout, parse_constant=pytest.fail)
    assert about["fidelity"]["rmse"] is about["fidelity"]["psnr"] is None


def test_lazy_commands() -> None:
    """They are in the help without being imported."""
    shown = run("--help").stdout
    for name in ("encode", "decode", "info", "verify", "rd-curve", "train", "cache"):
        assert f"\n  {name} " in shown
    context = click.Context(main.cli)
    assert main.cli.list_commands(context) == sorted(main.cli.list_commands(context))
    for name in ("rd-curve", "train", "cache"):
        command = main.cli.get_command(context, name)
        assert command is not None and command.name == name
    code = (
        "import sys, mricodec.cli.main\n"
        "assert not {'numpy', 'torch', 'mricodec.codec'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch(stream: Path) -> None:
    """`info` and `verify` work where torch can't be imported."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'mricodec'\n"
        "from mricodec.cli.main import main; main()"
    )
    for command in ("info", "verify"):
        subprocess.run(
            [sys.executable, "-c", code, command, str(stream)], check=True, capture_output=True
        )


@pytest.mark.parametrize("command", ["--help", "info", "verify"])
def test_quick_start(stream: Path, command: str) -> None:
    """Time of the processor, the best of five: other processes do not count."""
    arguments = [command] if command == "--help" else [command, stream]
    times = []
    for _ in range(5):
        before = os.times()
        assert python(*arguments).returncode == 0
        after = os.times()
        times.append(after[2] + after[3] - before[2] - before[3])  # user and system, of children
    assert min(times) <= STARTUP


def test_as_a_process(scan: Path, tmp_path: Path) -> None:
    """Real pipes and exit codes."""
    encoded = python("encode", "-", "-o", "-", "--lossless", data=scan.read_bytes())
    assert encoded.returncode == 0 and b"ratio" in encoded.stderr
    decoded = python("decode", "-", "-o", "-", "-q", data=encoded.stdout)
    assert decoded.stdout == gzip.decompress(scan.read_bytes()) and decoded.stderr == b""
    assert python("info", "-", data=encoded.stdout[:-1]).returncode == 1
    assert python("info", tmp_path / "none").returncode == 2
    assert b"Traceback" not in python("decode", scan, "-o", "-").stderr


def test_bar_only_on_a_terminal_and_after_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "BAR_INTERVAL", 0.01)
    for terminal, quiet, delay, fraction, shown in (
        (False, False, 0.0, 0.5, False),
        (True, True, 0.0, 0.5, False),
        (True, False, 60.0, 0.5, False),
        (True, False, 0.0, 1.0, False),
        (True, False, 0.0, 0.5, True),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer, raising=False)
        monkeypatch.setattr(console, "BAR_DELAY", delay)
        bar = console.Bar("encode", quiet=quiet)
        bar.update(fraction)
        with bar:
            time.sleep(0.2)
            console.say("a note")
        text = capsys.readouterr().err
        assert ("\r\033[Kencode" in text) == ("\r\033[Ka note\n" in text) == shown
        assert "a note\n" in text and (shown or "\r" not in text)


def test_bar_has_label_percent_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    monkeypatch.setenv("COLUMNS", "100")
    bar = console.Bar("encode a.nii", size=80e6)
    now += 3
    assert "  0 %" in bar.line() and bar.line().endswith("  0:03")
    now += 7
    bar.update(0.25)
    for part in ("encode a.nii  ", " 25 %", "2 MB/s", "0:30 left"):
        assert part in bar.line()
    now += 4  # Without an update the time goes on.
    assert "0:26 left" in bar.line() and "2 MB/s" in bar.line()
    now += 6
    bar.count(3, 4, "b.nii")
    assert "encode a.nii: 3 of 4, b.nii" in bar.line() and " 75 % " in bar.line()
    bar.update(0.8, "a very long name " * 9)
    for width in (60, 30):
        monkeypatch.setenv("COLUMNS", str(width))
        assert len(bar.line()) < width


def test_verbose_shows_the_log(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the library, on stderr, and only while the command runs."""
    plain = codec.verify

    def verify(*arguments: Any, **options: Any) -> Any:
        logging.getLogger("mricodec.codec.inspection").info("checked")
        return plain(*arguments, **options)

    monkeypatch.setattr(codec, "verify", verify)
    assert run("verify", stream).stderr == ""
    assert run("verify", stream, "-v").stderr == "mricodec.codec.inspection: checked\n"
    assert run("verify", stream).stderr == "" and not logging.getLogger("mricodec").handlers


def test_threads(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert (
        run("encode", scan, "-o", tmp_path / "x.mrc", "--lossless", "--threads", "2").exit_code == 0
    )
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_streams_are_the_same_as_from_python(scan: Path, stream: Path, tmp_path: Path) -> None:
    assert run("encode", scan, "-o", tmp_path / "x.mrc").exit_code == 0
    assert (tmp_path / "x.mrc").read_bytes() == codec.encode(scan)
    volume = codec.decode(tmp_path / "x.mrc")
    np.testing.assert_array_equal(volume.array.shape, (2, 12, 40, 36))


def test_bounds_layers_previews_and_salvage(scan: Path, tmp_path: Path) -> None:
    original = codec.decode(codec.encode(scan, lossless=True) or b"").array
    mrc, out = tmp_path / "a.mrc", tmp_path / "a.nii.gz"
    result = run("encode", scan, "-o", mrc, "--max-error", "3")
    assert result.exit_code == 0 and "every voxel within 3" in result.stderr
    assert "every voxel within 3 stored units" in run("info", mrc).stdout
    assert json.loads(run("info", mrc, "--json").stdout)["max_error"] == 3

    result = run(
        "encode",
        scan,
        "-o",
        mrc,
        "-f",
        "--lossless",
        "--max-error",
        "2",
        "--layers",
        "--effort",
        "fast",
    )
    assert result.exit_code == 0 and "with layers (lossy, bounded)" in result.stderr
    assert "the .nii.gz comes back (zlib level 9)" in result.stderr
    assert run("decode", mrc, "-o", out).exit_code == 0 and out.read_bytes() == scan.read_bytes()
    assert run("decode", mrc, "-o", out, "-f", "--layer", "2").exit_code == 0
    assert np.abs(codec.decode(mrc, layer=2).array - original).max() <= 2
    assert run("decode", mrc, "-o", out, "-f", "--layer", "9").exit_code == 2
    assert run("decode", mrc, "-o", out, "-f", "--preview").exit_code == 0
    assert run("decode", mrc, "-o", out, "-f", "--preview", "--slices", "0:1").exit_code == 2

    codec.encode(scan, lossless=True, out=mrc)
    damaged = bytearray(mrc.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    mrc.write_bytes(damaged)
    out.unlink()
    result = run("decode", mrc, "-o", out)
    assert result.exit_code == 1 and "slab " in result.stderr and not out.exists()
    result = run("decode", mrc, "-o", out, "--salvage")
    assert result.exit_code == 1 and "lost: slab " in result.stderr and out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--max-error", "x"),
        ("--max-error", "0"),
        ("--layers",),
        ("--max-error", "2", "--quality", "3"),
        ("--lossless", "--max-error", "2"),
    ],
)
def test_bounds_that_are_wrong(scan: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run("encode", scan, "-o", tmp_path / "a.mrc", *options)
    assert (
        result.exit_code == 2
        and len(result.stderr.strip().splitlines()) == 1
        and not (tmp_path / "a.mrc").exists()
    )
