"""A DICOM series as one stream beside the same series as compressed DICOM files, headers and all.

    python -m benchmarks.dicom FOLDER ...

Each instance becomes a DICOM file with the same header and lossless JPEG-LS, JPEG 2000 or JPEG XL frames
(encapsulated, without offset table); its size is counted in full. Needs the extra `bench`.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec import codec
from mricodec.codec.evaluation.extras import require


def _jpegls(frame: NDArray[Any], bits: int) -> bytes:
    return bytes(require("imagecodecs").jpegls_encode(frame))


def _jpeg2000(frame: NDArray[Any], bits: int) -> bytes:
    encode = require("imagecodecs").jpeg2k_encode
    return bytes(encode(frame, codecformat="j2k", bitspersample=bits, reversible=True))


def _jpegxl(frame: NDArray[Any], bits: int) -> bytes:
    return bytes(require("imagecodecs").jpegxl_encode(frame, effort=7, lossless=True, numthreads=1))


# name -> (transfer syntax of PS3.5 A.4, encoder of one frame)
PEERS: dict[str, tuple[str, Callable[[NDArray[Any], int], bytes]]] = {
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", _jpegls),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", _jpeg2000),
    "JPEG XL e7": ("1.2.840.10008.1.2.4.110", _jpegxl),
}


def sizes(files: Sequence[Path]) -> dict[str, int]:
    """Total bytes of uncompressed monochrome instances as files of each peer. MissingExtra without imagecodecs."""
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
    dcmwrite(
        buffer, dataset, implicit_vr=False, little_endian=True, force_encoding=True
    )  # it may not know JPEG XL
    return buffer.getvalue()


def main(arguments: Sequence[str]) -> None:
    """Prints a table: bytes of every series in every form, and seconds of ours."""
    for path in arguments:
        for series in codec.find_series(path):
            start = time.perf_counter()
            stream = codec.encode_series(series, lossless=True)
            encoded = time.perf_counter()
            assert stream is not None
            found = dict(codec.series_files(stream))
            decoded = time.perf_counter()
            assert all(
                found[instance.name] == instance.source.read(0, instance.source.size)
                for instance in series.instances
            )
            print(f"{series.title}: {len(found)} files, {series.size} bytes")
            sections = dict(codec.info(stream).sections)
            rest = len(stream) - sections.get("SLAB", 0) - sections.get("STCK", 0)
            print(
                f"  mricodec    {len(stream):>10}, {rest / len(found):.0f} bytes a file beside the voxels"
            )
            for name, size in sizes(
                [instance.source.path for instance in series.instances if instance.pixels]
            ).items():
                print(f"  {name:<11} {size:>10}  (stream {len(stream) / size - 1:+.1%})")
            print(
                f"  {encoded - start:.1f} s to encode, {decoded - encoded:.1f} s to decode; every file identical"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
