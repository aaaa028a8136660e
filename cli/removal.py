"""`--rm`: an input goes only when its output is on the disk, was decoded, and no byte differs."""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from . import console, files

if TYPE_CHECKING:
    from mricodec.codec.dicom.stacks import Series

# Bytes compared at a time.
_BLOCK = 1 << 20


def remove_scan(scan: str, stream: str, device: str, *, unpacked: bool) -> bool:
    """Remove a scan (both files of a pair) if `stream` decodes to it; a line if it is kept.

    unpacked: compare the .nii inside a .nii.gz instead of the .nii.gz.
    """
    from mricodec.codec.filenames import NIFTI_ENDINGS, ends_with

    if not ends_with(scan, NIFTI_ENDINGS):
        console.say(f"{scan}: kept: it is restored as a NIfTI file, not as it is")
        return False
    _sync(stream)
    if not _decodes_to(stream, Path(scan), device, unpacked):
        reason = "what the stream decodes to is not the same file"
        if scan.lower().endswith(".gz") and not unpacked:
            reason = "only the .nii inside comes back; with --no-gzip that suffices"
        console.say(f"{scan}: kept: {reason}")
        return False
    for file in files.both_files(Path(scan)):
        file.unlink()
    return True


def remove_series(series: Series, stream: str, device: str) -> bool:
    """Remove the files of a DICOM series, and emptied folders, if the stream restores them all."""
    _sync(stream)
    paths = {instance.name: instance.source.path for instance in series.instances}
    if series.left_out or not _restores(stream, paths, device):
        console.say(f"{stream}: the files of the series are kept: not all of them come back")
        return False
    for path in paths.values():
        path.unlink()
    for folder in sorted({path.parent for path in paths.values()}, key=str, reverse=True):
        with contextlib.suppress(OSError):  # Other files are in it.
            folder.rmdir()
    return True


def remove_stream(stream: str, output: str, device: str, *, is_series: bool) -> bool:
    """Remove a stream if what it decodes to is on the disk, byte for byte."""
    from mricodec import codec

    if is_series:
        names = [name for name, _ in codec.series_headers(stream)]
        paths = {name: Path(output, name) for name in names}
        for path in paths.values():
            _sync(str(path))
        same = _restores(stream, paths, device)
    else:
        for file in files.both_files(Path(output)):
            _sync(str(file))
        same = _decodes_to(stream, Path(output), device, unpacked=False)
    if not same:
        console.say(f"{stream}: kept: {output} is not what it decodes to")
        return False
    Path(stream).unlink()
    return True


def _sync(name: str) -> None:
    """Wait until a file has reached the disk: what it is made of may be removed then."""
    with open(name, "r+b") as file:
        os.fsync(file.fileno())


def _decodes_to(stream: str, scan: Path, device: str, unpacked: bool) -> bool:
    """Decode a stream again, and compare every byte with a scan."""
    from mricodec import codec

    with tempfile.TemporaryDirectory(prefix=".mricodec-", dir=Path(stream).parent) as folder:
        is_gz = scan.name.lower().endswith(".nii.gz")
        copy = Path(folder, scan.name[:-3] if unpacked and is_gz else scan.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", codec.GzipDiffers)
            codec.Decoder(device=device).decode_file(stream, copy)
        if unpacked and is_gz:
            with gzip.open(scan, "rb") as first, open(copy, "rb") as second:
                return _same(cast(BinaryIO, first), second)
        originals, copies = files.both_files(scan), files.both_files(copy)
        return all(
            copied.is_file() and filecmp.cmp(original, copied, shallow=False)
            for original, copied in zip(originals, copies, strict=True)
        )


def _restores(stream: str, paths: dict[str, Path], device: str) -> bool:
    """Decode the files of a series again, and compare every byte with those on the disk."""
    from mricodec import codec

    remaining = dict(paths)
    for name, data in codec.series_files(stream, decoder=codec.Decoder(device=device)):
        path = remaining.pop(name, None)
        if path is None or not path.is_file() or path.read_bytes() != data:
            return False
    return not remaining


def _same(first: BinaryIO, second: BinaryIO) -> bool:
    while block := first.read(_BLOCK):
        if block != second.read(_BLOCK):
            return False
    return not second.read(1)
