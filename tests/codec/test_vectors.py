"""Golden streams of format 1: what they decode to may never change.

`python tests/codec/test_vectors.py`, with tests/support on PYTHONPATH, writes them again; only
before the first release.
"""

from __future__ import annotations

import hashlib
import json

import pytest
from paths import DATA, VECTORS

from mricodec import codec

EXPECTED = VECTORS / "expected.json"
SOURCES = {
    "lossless-thick": ("thick_flair.nii.gz", {"lossless": True}),
    "lossless-4d": ("dwi_4d.nii.gz", {"lossless": True}),
    "bounded-isotropic": ("isotropic_t1w.nii.gz", {"max_error": 4}),
    "bounded-4d": ("dwi_4d.nii.gz", {"max_error": "0.5sigma", "effort": "fast"}),
    "default-isotropic": ("isotropic_t1w.nii.gz", {"quality": 50.0}),
    "default-fine": ("prostate_t2w.nii.gz", {"quality": 75.0}),
    "default-coarse": ("thick_flair.nii.gz", {"quality": 20.0}),
    "default-4d": ("dwi_4d.nii.gz", {"quality": 40.0}),
}


def names() -> list[str]:
    return sorted(json.loads(EXPECTED.read_text())) if EXPECTED.exists() else []


def digest(stream: bytes) -> str:
    """SHA-256 of the decoded voxels, little-endian, C order."""
    array = codec.decode(stream).array
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def test_there_are_vectors() -> None:
    assert names() == sorted(SOURCES)


@pytest.mark.parametrize("name", names())
def test_vectors_decode_to_the_same_voxels(name: str) -> None:
    assert digest((VECTORS / f"{name}.mrc").read_bytes()) == json.loads(EXPECTED.read_text())[name]


def write() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, (scan, options) in SOURCES.items():
        stream = codec.encode(DATA / scan, **options)  # type: ignore[arg-type]
        assert stream is not None
        (VECTORS / f"{name}.mrc").write_bytes(stream)
        expected[name] = digest(stream)
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
