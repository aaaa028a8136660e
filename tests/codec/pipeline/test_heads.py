"""HEAD.params of every coder."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from streams import encode, noisy_waves

from mricodec import codec
from mricodec.bitstream.container import ContainerReader
from mricodec.bitstream.header import Mode
from mricodec.codec.pipeline.heads import PredictiveHead


def test_forged_parameters_are_refused() -> None:
    bounded, _ = encode(noisy_waves((3, 9, 11)), max_error=2)
    params = ContainerReader(bounded).header.params
    head = PredictiveHead.unpack(params, Mode.BOUNDED, np.dtype(np.int16))
    assert head.pack(Mode.BOUNDED) == params
    for forged in (
        params[:-1],
        params + b"\0",
        params[:-12] + struct.pack("<df", -1.0, 1.0),
        params[:-12] + struct.pack("<df", np.nan, 1.0),
        params[:-12] + struct.pack("<df", 1.0, np.inf),
    ):
        with pytest.raises(codec.FormatError):
            PredictiveHead.unpack(forged, Mode.BOUNDED, np.dtype(np.int16))
