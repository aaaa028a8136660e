"""The identical .nii.gz is made again, or the identical .nii."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from nifti_files import single
from streams import encode, noisy_waves

from mricodec import codec
from mricodec.bitstream.chunks import GZIP
from mricodec.bitstream.container import ContainerReader
from mricodec.codec.formats import gzip_recipe


@pytest.mark.parametrize("level", [1, 4, 6, 9])
def test_the_identical_nii_gz_comes_back(tmp_path: Path, level: int) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile("a name.nii", "wb", level, packed, mtime=12345) as file:
        file.write(single(noisy_waves((20, 64, 64))))
    path, again = tmp_path / "scan.nii.gz", tmp_path / "again.nii.gz"
    path.write_bytes(packed.getvalue())
    stream, report = encode(path, lossless=True)
    assert report.gzip == codec.info(stream).gzip == f"zlib level {level}"
    codec.decode_file(stream, again)
    assert again.read_bytes() == packed.getvalue()
    codec.decode_file(stream, tmp_path / "plain.nii")
    assert (tmp_path / "plain.nii").read_bytes() == gzip.decompress(packed.getvalue())
    assert encode(path, lossless=True, gzip=False)[1].gzip is None
    assert encode(io.BytesIO(packed.getvalue()), lossless=True)[1].gzip == report.gzip


def test_another_gzip_gives_the_nii_alone(tmp_path: Path) -> None:
    content = single(noisy_waves((6, 32, 32)))
    half = len(content) // 2
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    stream, report = encode(path, lossless=True)
    assert report.gzip == "" and codec.info(stream).gzip is None
    codec.decode_file(stream, tmp_path / "again.nii.gz")
    assert gzip.decompress((tmp_path / "again.nii.gz").read_bytes()) == content


def test_another_zlib_is_noticed(tmp_path: Path) -> None:
    packed = gzip.compress(single(noisy_waves((6, 32, 32))), 6)
    stream, _ = encode(io.BytesIO(packed), lossless=True)
    reader = ContainerReader(stream)
    recipe = gzip_recipe.GzipRecipe.unpack(reader.chunk(GZIP) or b"")
    file = io.BytesIO()
    other = gzip_recipe.GzipRecipe(1, 8, recipe.digest, recipe.header)
    with (
        pytest.warns(codec.GzipDiffers, match=r"x.nii.gz: the .nii inside is identical"),
        other.compressing(file, "x.nii.gz") as out,
    ):
        out.write(gzip.decompress(packed))
    assert gzip.decompress(file.getvalue()) == gzip.decompress(packed)
    for bad in (b"", recipe.pack()[:-1], b"\0" + recipe.pack()[1:], recipe.pack() + b"x"):
        with pytest.raises(codec.FormatError):
            gzip_recipe.GzipRecipe.unpack(bad)
