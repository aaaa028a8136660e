"""A DICOM series as one stream, and the same series as compressed DICOM files, headers and all.

    python -m benchmarks.dicom FOLDER...

Each instance becomes a DICOM file with the same header and lossless JPEG-LS, JPEG 2000 or JPEG XL
frames (encapsulated, without offset table); its size is counted in full. Needs the extra `bench`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mricodec import codec
from mricodec.models.extras import MissingExtra, require

# Folder of a data folder that holds DICOM series.
SPLIT = "dicom"


def _imagecodecs() -> Any:
    return require("imagecodecs", "bench", "JPEG codecs")


def _jpegls(frame: NDArray[Any], bits: int) -> bytes:
    return bytes(_imagecodecs().jpegls_encode(frame))


def _jpeg2000(frame: NDArray[Any], bits: int) -> bytes:
    encode = _imagecodecs().jpeg2k_encode
    return bytes(encode(frame, codecformat="j2k", bitspersample=bits, reversible=True))


def _jpegxl(frame: NDArray[Any], bits: int) -> bytes:
    return bytes(_imagecodecs().jpegxl_encode(frame, effort=7, lossless=True, numthreads=1))


# Name -> (transfer syntax of PS3.5 A.4, encoder of one frame).
PEERS: dict[str, tuple[str, Callable[[NDArray[Any], int], bytes]]] = {
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", _jpegls),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", _jpeg2000),
    "JPEG XL e7": ("1.2.840.10008.1.2.4.110", _jpegxl),
}


def sizes(files: Sequence[Path]) -> dict[str, int]:
    """Total bytes of uncompressed monochrome instances as files of each peer.

    MissingExtra without imagecodecs.
    """
    return {name: sum(len(compressed(file, name)) for file in files) for name in PEERS}


def compressed(file: Path, peer: str) -> bytes:
    """One instance with its frames coded by a peer."""
    from pydicom import dcmread, dcmwrite
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    syntax, encode = PEERS[peer]
    dataset = dcmread(file)
    stored = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}")
    frames = stored[
        : stored.size // (dataset.Rows * dataset.Columns) * dataset.Rows * dataset.Columns
    ]
    frames = frames.reshape(-1, dataset.Rows, dataset.Columns)
    bits = max(2, int(frames.max()).bit_length())
    if bits <= 8:
        frames = frames.astype(np.uint8)
    codestreams = [encode(np.ascontiguousarray(frame), bits) for frame in frames]
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(codestreams, has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    # Forced, since pydicom may not know JPEG XL's transfer syntax.
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    return buffer.getvalue()


def series_of(folder: Path) -> list[Any]:
    """The series in a folder, or in dicom/ of a data folder. ValueError if there are none."""
    folder = folder / SPLIT if (folder / SPLIT).is_dir() else folder
    series = [each for each in codec.find_series(folder) if _imaged(each)]
    if not series:
        raise ValueError(f"{folder}: expected DICOM series with pixels, found none")
    return series


def _imaged(series: Any) -> list[Path]:
    """The files of a series that have pixels."""
    return [instance.source.path for instance in series.instances if instance.pixels]


def report(series: Any) -> Iterator[str]:
    """Lines: bytes of a series in every form, and seconds of the stream.

    ValueError if a file does not come back as it was.
    """
    start = time.perf_counter()
    stream = codec.encode_series(series, lossless=True) or b""
    encoded = time.perf_counter()
    files = dict(codec.series_files(stream))
    decoded = time.perf_counter()
    for instance in series.instances:
        if files[instance.name] != instance.source.read(0, instance.source.size):
            raise ValueError(f"{instance.name}: restored file differs")
    yield f"{series.title}: {len(files)} files, {series.size} bytes"
    sections = dict(codec.info(stream).sections)
    headers = len(stream) - sections.get("SLAB", 0) - sections.get("STCK", 0)
    yield f"  mricodec    {len(stream):>10}, {headers / len(files):.0f} bytes a file besides voxels"
    for name, size in sizes(_imaged(series)).items():
        yield f"  {name:<11} {size:>10}  (stream {len(stream) / size - 1:+.1%})"
    yield (
        f"  {encoded - start:.1f} s to encode, {decoded - encoded:.1f} s to decode; "
        "every file identical"
    )


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print a table for every DICOM series in FOLDERS, or in dicom/ of a data folder."""
    for folder in folders:
        try:
            for series in series_of(folder):
                for line in report(series):
                    click.echo(line)
        except (ValueError, MissingExtra) as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
