"""A tree there and back: nothing is lost, nothing is done twice, and nothing stops the rest."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import batch_jobs
import dicom_files
import numpy as np
import pytest
from click.testing import CliRunner, Result
from nifti_files import single, smooth, write_pair

from mricodec import codec
from mricodec.cli import main
from mricodec.codec.integrations import batch
from mricodec.codec.integrations.batch import job as job_module
from mricodec.codec.integrations.batch.ledger import LEDGER, Ledger

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(main.cli, ["batch", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small BIDS data set with a pair, a copied file of each kind, and nothing wrong."""
    root = tmp_path / "in"
    anat, dwi, pair = (
        root / "sub-01" / "anat",
        root / "sub-01" / "dwi",
        root / "derivatives" / "old",
    )
    for folder in (anat, dwi, pair):
        folder.mkdir(parents=True)
    (anat / "sub-01_T1w.nii.gz").write_bytes(gzip.compress(single(smooth((5, 16, 18)))))
    (anat / "sub-01_T1w.json").write_text('{"EchoTime": 0.003}')
    (dwi / "sub-01_dwi.nii").write_bytes(single(smooth((4, 3, 16, 18)), trailer=b"tail"))
    (dwi / "sub-01_dwi.bval").write_text("0 1000 1000 1000")
    (dwi / "sub-01_dwi.bvec").write_text("0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    write_pair(pair, smooth((3, 9, 8)))
    (root / "derivatives" / "map.mrc").write_bytes(
        bytes(208) + b"MAP " + bytes(20)
    )  # cryo-EM, no stream
    (root / "README").write_text("data")
    (root / "empty.txt").touch()
    return root


def write_series(folder: Path, series: str, count: int = 4, **attributes: Any) -> None:
    """IM-SERIES-NUMBER, without an extension."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + ord(series) - ord("a")
    slices = dicom_files.series(
        dicom_files.volume(count, 12, 10), series=series, SeriesNumber=number, **attributes
    )
    for n, dataset in enumerate(slices):
        (folder / f"IM-{series}-{n}").write_bytes(dicom_files.to_bytes(dataset))


def files(root: Path) -> dict[str, bytes]:
    """Path and content, what is gzipped unpacked; without the ledger."""
    contents = {}
    for path in root.rglob("*"):
        if path.is_file() and path.name != batch.LEDGER:
            data = path.read_bytes()
            contents[path.relative_to(root).as_posix()] = (
                gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            )
    return contents


def ledger(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / batch.LEDGER).read_text().splitlines()]


def jobs_of(names: list[str], folder: Path) -> list[batch.Job]:
    for name in names:
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_text(name)
    (folder / "out").mkdir(exist_ok=True)
    return [
        batch.Job(
            "file", n, n, str(folder / "in"), str(folder / "out"), len(n), "", (), None, False
        )
        for n in names
    ]


def test_there_and_back(tree: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    encoded = run(tree, out, "--lossless", "--jobs", 2)
    assert encoded.exit_code == 0, encoded.stderr
    expected = {
        *("sub-01/anat/sub-01_T1w.nii.gz.mrc", "sub-01/anat/sub-01_T1w.json"),
        *(
            "sub-01/dwi/sub-01_dwi.nii.mrc",
            "sub-01/dwi/sub-01_dwi.bval",
            "sub-01/dwi/sub-01_dwi.bvec",
        ),
        *("derivatives/old/scan.hdr.mrc", "derivatives/map.mrc", "README", "empty.txt"),
    }
    assert files(out).keys() == expected
    assert codec.info(out / "sub-01/dwi/sub-01_dwi.nii.mrc").mode == "lossless"
    assert not (out / batch.STAGING).exists()
    size_in = sum(
        (tree / name).stat().st_size
        for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/dwi/sub-01_dwi.nii")
    )
    size_in += sum(
        (tree / "derivatives/old" / name).stat().st_size for name in ("scan.hdr", "scan.img")
    )
    size_out = sum(path.stat().st_size for path in out.rglob("*.mrc") if path.name != "map.mrc")
    row = next(line for line in encoded.stderr.splitlines() if line.startswith("NIfTI scans"))
    assert row.split()[2:5] == ["3", "0", "0"] and row.endswith(f" {size_in / size_out:.2f}")

    assert run(out, back, "--decode", "--jobs", 2).exit_code == 0
    assert files(back) == files(tree)
    assert (back / "README").stat().st_mtime_ns == (tree / "README").stat().st_mtime_ns


def test_the_ledger_says_what_became_of_every_file(tree: Path, tmp_path: Path) -> None:
    summary = batch.run(tree, tmp_path / "out", settings={"lossless": True}, jobs=1)
    records = {record["source"]: record for record in ledger(tmp_path / "out")}
    assert len(records) == sum(totals.files for totals in summary.totals.values()) == 9
    record = records["sub-01/dwi/sub-01_dwi.nii"]
    source = tree / "sub-01/dwi/sub-01_dwi.nii"
    assert (record["kind"], record["status"], record["reason"]) == ("scan", "done", None)
    stat = source.stat()
    assert (
        record["bytes_in"] == stat.st_size
        and record["state"] == f"{source.name}:{stat.st_size}:{stat.st_mtime_ns}"
    )
    [[name, digest]] = record["outputs"]
    assert digest == job_module._sha256(tmp_path / "out" / name)
    assert record["bytes_out"] == (tmp_path / "out" / name).stat().st_size
    assert record["settings"] == {"decode": False, "lossless": True}


def test_progress_is_by_bytes_and_ends_with_all(tree: Path, tmp_path: Path) -> None:
    (tree / "link").symlink_to(tree / "derivatives")  # A failure before the first job.
    fractions: list[tuple[float, int, int]] = []
    batch.run(
        tree,
        tmp_path / "out",
        settings={"lossless": True},
        jobs=1,
        report=lambda _, at: fractions.append((at.fraction, at.files, at.total_files)),
    )
    assert fractions == sorted(fractions) and fractions[-1] == (1.0, 10, 10)
    largest = (tree / "sub-01/dwi/sub-01_dwi.nii").stat().st_size
    total = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    assert fractions[1][0] == pytest.approx(largest / total)


def test_a_second_run_does_only_what_is_missing_changed_or_damaged(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def done() -> set[str]:
        names: set[str] = set()

        def report(outcome: batch.Outcome, _: batch.Progress) -> None:
            if outcome.status == "done":
                names.add(outcome.source)

        batch.run(tree, out, settings={"lossless": True}, jobs=1, report=report)
        return names

    assert len(done()) == 9
    assert done() == set()
    (out / "README").unlink()
    stream = out / "sub-01/dwi/sub-01_dwi.nii.mrc"
    damaged = bytearray(stream.read_bytes())
    damaged[-100] ^= 1
    stream.write_bytes(damaged)
    (tree / "sub-01/anat/sub-01_T1w.json").write_text('{"EchoTime": 0.004}')
    assert done() == {"README", "sub-01/dwi/sub-01_dwi.nii", "sub-01/anat/sub-01_T1w.json"}
    later = time.time_ns() + 10**9
    os.utime(tree / "derivatives/old/scan.img", ns=(later, later))  # the second file of a pair
    assert done() == {"derivatives/old/scan.hdr"}
    assert codec.verify(stream, deep=True).mode == "lossless"

    text = (out / batch.LEDGER).read_text()
    (out / batch.LEDGER).write_text(text + '{"kind": "sc')  # torn by a crash
    assert done() == set()
    (out / batch.LEDGER).unlink()  # sound streams and identical copies are believed
    (out / "README").write_text("other")
    stream.write_bytes(damaged)
    assert done() == {"README", "sub-01/dwi/sub-01_dwi.nii"}


def test_dicom_series_there_and_back(tmp_path: Path) -> None:
    """A stream for each series of a folder; what is no DICOM, and a DICOMDIR, is copied."""
    root, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    for folder in (root, root / "sub-01", root / "sub-01" / "deep"):
        write_series(folder, "a")
        write_series(folder, "b", 3)
        (folder / "notes.txt").write_text(folder.name)
    (root / "DICOMDIR").write_bytes((root / "IM-a-0").read_bytes())
    encoded = run(root, out, "--lossless", "--jobs", 2)
    assert encoded.exit_code == 0, encoded.stderr
    streams = {
        f"{folder}{name}"
        for folder in ("", "sub-01/", "sub-01/deep/")
        for name in ("1_t1_a.mrc", "2_t1_b.mrc")
    }
    notes = {"notes.txt", "sub-01/notes.txt", "sub-01/deep/notes.txt"}
    assert files(out).keys() == streams | notes | {"DICOMDIR"}
    row = next(line for line in encoded.stderr.splitlines() if line.startswith("DICOM folders"))
    assert row.split()[2:5] == ["3", "0", "0"]
    assert run(out, back, "--decode", "--jobs", 2).exit_code == 0
    assert files(back) == files(root)

    for source, target, *decode in (
        (root, out, "--lossless"),
        (out, back, "--decode"),
    ):  # again: nothing is left to do
        assert run(source, target, "--jobs", 1, *decode).exit_code == 0
        assert {record["status"] for record in ledger(target)[len(ledger(target)) // 2 :]} == {
            "skipped"
        }
    (back / "sub-01" / "IM-a-1").write_bytes(b"damaged")
    (back / "IM-b-0").unlink()
    assert run(out, back, "--decode").exit_code == 0
    assert files(back) == files(root)

    write_series(root, "b", 4, SeriesDescription="other")  # the stream of the old name goes
    assert run(root, out, "--lossless").exit_code == 0
    assert {name for name in files(out) if "/" not in name} == {
        "1_t1_a.mrc",
        "2_other.mrc",
        "notes.txt",
        "DICOMDIR",
    }


def test_damaged_dicom_is_kept_and_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root, "a")
    whole = (root / "IM-a-2").read_bytes()
    (root / "IM-a-2").write_bytes(whole[:-50])
    result = run(root, tmp_path / "out", "--lossless", "--jobs", 1)
    assert (
        result.exit_code == 1
        and "damaged, kept as they are (1):" in result.stderr
        and "IM-a-2: " in result.stderr
    )
    assert run(tmp_path / "out", tmp_path / "back", "--decode").exit_code == 0
    assert files(tmp_path / "back") == files(root)


def test_files_of_a_series_replace_no_others(tmp_path: Path) -> None:
    """Streams from elsewhere may hold the same names."""
    for name in ("a", "b"):
        write_series(tmp_path / name, "a", PatientID=name)
        (tmp_path / "in").mkdir(exist_ok=True)
        codec.encode_series(tmp_path / name, lossless=True, out=tmp_path / "in" / f"{name}.mrc")
    result = run(tmp_path / "in", tmp_path / "out", "--decode", "--jobs", 1)
    assert result.exit_code == 1 and "other content" in result.stderr
    assert files(tmp_path / "out") in (files(tmp_path / "a"), files(tmp_path / "b"))


def test_other_settings_do_it_again(tree: Path, tmp_path: Path) -> None:
    """Noise-free scans this small are coded without loss either way; the ledger notes why."""
    out = tmp_path / "out"
    (tree / "labels.nii").write_bytes(
        single(np.tile(np.arange(4, dtype=np.int16), (3, 6, 2)), intent=1002)
    )
    for path in [*tree.glob("sub-01/*/*.nii*"), *tree.glob("derivatives/old/*")]:
        path.unlink()
    batch.run(tree, out, settings={"lossless": True}, jobs=1)
    assert batch.run(tree, out, settings={"quality": 50}, jobs=1).totals["scan"].done == 1
    assert batch.run(tree, out, settings={"quality": 50}, jobs=1).totals["scan"].skipped == 1
    reasons = [record["reason"] for record in ledger(out) if record["source"] == "labels.nii"]
    assert reasons[0] is None and "label" in reasons[1]


@unix
def test_one_bad_file_never_stops_the_rest(tree: Path, tmp_path: Path) -> None:
    (tree / "sub-01" / "broken.nii.gz").write_bytes(b"no scan")
    whole = (tree / "sub-01/dwi/sub-01_dwi.nii").read_bytes()
    (tree / "sub-01" / "cut.nii").write_bytes(whole[:-3000])
    (tree / "dangling").symlink_to("nowhere")
    (tree / "loop").symlink_to(tree)
    os.mkfifo(tree / "pipe")
    result = run(tree, tmp_path / "out", "--lossless", "--jobs", 2)
    assert result.exit_code == 1
    reasons = {
        record["source"]: record["reason"]
        for record in ledger(tmp_path / "out")
        if record["status"] == "failed"
    }
    for name, reason in {
        "sub-01/broken.nii.gz": "expected NIfTI",
        "sub-01/cut.nii": "cut short",
        "dangling": "No such file",
        "loop": "link",
        "pipe": "pipe",
    }.items():
        assert reason in reasons.pop(name)
    assert reasons == {}
    assert result.stderr.count("failed (5):") == 1 and "cut short" in result.stderr
    assert len(files(tmp_path / "out")) == 9
    again = run(tree, tmp_path / "out", "--lossless", "-q")
    assert again.exit_code == 1 and again.stderr.count("\n") == 5  # failures only

    stream = tmp_path / "out/sub-01/dwi/sub-01_dwi.nii.mrc"
    stream.write_bytes(stream.read_bytes()[:-1])
    assert run(tmp_path / "out", tmp_path / "back", "--decode", "--jobs", 1).exit_code == 1
    restored = files(tmp_path / "back")
    assert "sub-01/dwi/sub-01_dwi.nii" not in restored and len(restored) == 9  # The pair is two.


def test_two_files_for_one_name(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.nii.mrc").write_text("not ours")
    (root / "a.nii").write_bytes(single(smooth((3, 9, 8))))
    result = run(root, tmp_path / "out", "--lossless")
    assert result.exit_code == 1 and "a name of its own" in result.stderr


def test_streams_by_other_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    codec.encode(smooth((3, 9, 8)), lossless=True, out=root / "a.mrc")
    codec.encode(smooth((3, 9, 8)), lossless=True, out=root / "B.NII.MRIC")
    assert run(root, tmp_path / "out", "--decode").exit_code == 0
    assert files(tmp_path / "out").keys() == {"a.nii.gz", "B.NII"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--decode", "--lossless"],
        ["--lossless", "--model", "m"],
        ["--jobs", "2", "--scheduler", "tcp://x:1"],
        ["--jobs=0"],
    ],
)
def test_wrong_usage(arguments: list[str], tree: Path, tmp_path: Path) -> None:
    result = run(tree, tmp_path / "out", *arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_folders(tree: Path, tmp_path: Path) -> None:
    assert run(tree, tree / ".." / "in").exit_code == 2
    assert run(tmp_path / "missing", tmp_path / "out").exit_code == 2
    with pytest.raises(ValueError, match="quality"):
        batch.run(tree, tmp_path / "out", settings={"quality": 1000})
    with pytest.raises(ValueError, match="expected none with decode"):
        batch.run(tree, tmp_path / "out", decode=True, settings={"lossless": True})
    inside = tree / "streams"  # is not taken for input, not the second time either
    for _ in range(2):
        assert (
            batch.run(tree, inside, settings={"lossless": True}, jobs=1).totals["file"].files == 6
        )
    assert not (inside / "streams").exists()


@unix
def test_one_run_at_a_time(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        batch.Ledger(tmp_path / "out" / batch.LEDGER, {}),
        pytest.raises(OSError, match="another run"),
    ):
        batch.run(tree, tmp_path / "out", settings={"lossless": True}, jobs=1)


def test_what_may_pass_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "WAIT_SECONDS", 0.0)
    [job] = jobs_of(["a"], tmp_path)
    attempts: list[int] = []

    def failing(times: int, code: int) -> Any:
        attempts.clear()

        def done(job: batch.Job) -> batch.Outcome:
            attempts.append(code)
            if len(attempts) <= times:
                raise OSError(code, os.strerror(code), job.source)
            return batch.Outcome("file", "a", "done")

        return done

    for times, code, status, tries in [
        (2, errno.EIO, "done", 3),
        (3, errno.EIO, "failed", 3),
        (1, errno.ENOSPC, "failed", 1),
    ]:
        monkeypatch.setattr(job_module, "_convert", failing(times, code))
        outcome = batch.run_job(job)
        assert (outcome.status, len(attempts)) == (status, tries)
        assert (outcome.reason is None) == (status == "done")


@unix
def test_a_job_that_kills_its_process_fails_alone(tmp_path: Path) -> None:
    names = [*(f"file{n}" for n in range(6)), "deadly", "deadly too"]
    outcomes = {
        o.source: o for o in batch.in_processes(batch_jobs.deadly, jobs_of(names, tmp_path), 3)
    }
    assert outcomes.keys() == set(names)
    for name, outcome in outcomes.items():
        assert outcome.status == ("failed" if "deadly" in name else "done"), outcome
    assert outcomes["deadly"].reason == "its process died 3 times; is there enough memory?"


def test_a_job_that_raises_fails_alone(tmp_path: Path) -> None:
    outcomes = list(batch.in_processes(batch_jobs.raising, jobs_of(["a", "b"], tmp_path), 2))
    assert sorted(outcome.reason or "" for outcome in outcomes) == [
        "no luck with a",
        "no luck with b",
    ]


@unix
def test_a_killed_process_is_survived(tree: Path, tmp_path: Path) -> None:
    for n in range(8):
        (tree / f"more{n}.nii").write_bytes(single(smooth((5, 16, 18 + n))))
    killed: list[int] = []

    def kill(*_: Any) -> None:
        if not killed:
            [victim, *_] = multiprocessing.active_children()
            assert victim.pid is not None
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    summary = batch.run(tree, tmp_path / "out", settings={"lossless": True}, jobs=2, report=kill)
    assert killed and not summary.failures
    assert batch.run(tmp_path / "out", tmp_path / "back", decode=True, jobs=2).failures == []
    assert files(tmp_path / "back") == files(tree)


@unix
def test_a_killed_run_leaves_no_half_files_and_goes_on(tree: Path, tmp_path: Path) -> None:
    for n in range(20):
        (tree / f"more{n}.nii").write_bytes(single(smooth((16, 64, 60 + n))))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "mricodec.cli",
        "batch",
        str(tree),
        str(out),
        "--lossless",
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.mrc"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    for path in out.rglob("*.mrc"):
        if path.name != "map.mrc" and batch.STAGING not in path.parts:
            codec.verify(path, deep=True)
    deadline = time.monotonic() + 60  # its processes end with it, and the folder is free again
    while True:
        result = run(tree, out, "--lossless", "--jobs", 2)
        if result.exit_code == 0 or time.monotonic() > deadline:
            break
        assert "another run" in result.stderr
        time.sleep(0.1)
    assert result.exit_code == 0
    assert any(record["status"] == "skipped" for record in ledger(out))
    assert run(out, tmp_path / "back", "--decode").exit_code == 0
    assert files(tmp_path / "back") == files(tree)


@unix
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_cluster_whose_worker_is_killed(tree: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="distributed is not installed (extra 'cluster')"
    )
    for n in range(12):
        (tree / f"more{n}.nii").write_bytes(single(smooth((8, 32, 30 + n))))
    out = tmp_path / "out"
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killed: list[int] = []

        def kill(*_: Any) -> None:
            if not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        scheduler = cluster.scheduler_address
        summary = batch.run(
            tree, out, settings={"lossless": True}, scheduler=scheduler, report=kill
        )
        assert killed and not summary.failures
        # If a worker died after its file was complete, the next one verifies it and skips it.
        assert sum(totals.done + totals.skipped for totals in summary.totals.values()) == 21
        result = run(tree, out, "--lossless", "--scheduler", scheduler)
        assert result.exit_code == 0
        assert run(out, tmp_path / "back", "--decode", "--scheduler", scheduler).exit_code == 0
    statuses = [record["status"] for record in ledger(out)]
    assert set(statuses[:21]) <= {"done", "skipped"} and statuses[:21].count("done") >= 21 - len(
        pids
    )
    assert statuses[21:] == ["skipped"] * 21
    assert files(tmp_path / "back") == files(tree)


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "scan", "source": "a.nii.gz", "outputs": 5}',
        '{"kind": "scan", "source": "a.nii.gz", "outputs": [[1, 2]]}',
        '{"kind": ["scan"], "source": "a.nii.gz"}',
        '["scan"]',
        "[" * 100_000,
        '{"kind": "scan", "sou',
    ],
)
def test_a_damaged_line_of_the_ledger_is_ignored(line: str, tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    path.write_text(line + "\n")
    with Ledger(path, {}) as records:
        assert records.previous("scan", "a.nii.gz", "") == (None, False)
