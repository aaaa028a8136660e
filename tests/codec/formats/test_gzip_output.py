"""Gzip files whose pieces are compressed in threads."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest

from mricodec.codec.formats import gzip_output

SIZES = [0, 1, gzip_output.PIECE - 1, gzip_output.PIECE, 3 * gzip_output.PIECE + 5]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(size: int) -> None:
    data = (np.cumsum(np.arange(size) % 7) % 251).astype(np.uint8).tobytes()
    packed = []
    for threads, part in ((1, size), (3, 100_001)):
        file = io.BytesIO()
        with gzip_output.gzipped(file, threads) as output:
            for start in range(0, size, max(part, 1)):
                output.write(data[start : start + part])
        packed.append(file.getvalue())
        assert gzip.decompress(packed[-1]) == data
    # Pieces begin elsewhere when parts are written, which deflate may show in a few bytes.
    assert len(packed[1]) == pytest.approx(len(packed[0]), rel=0.01)
    assert len(packed[0]) <= 1.01 * len(gzip.compress(data, gzip_output.LEVEL)) + 16


def test_an_error_of_the_file_is_raised() -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() > 10:
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    noise = np.random.default_rng(0).bytes(20 * gzip_output.PIECE)
    with pytest.raises(OSError, match="No space"), gzip_output.gzipped(Full(), 2) as output:
        output.write(noise)
