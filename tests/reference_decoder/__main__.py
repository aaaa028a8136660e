"""python -m reference_decoder STREAM -o OUT.npy"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .stream import decode


def main() -> None:
    parser = argparse.ArgumentParser("reference_decoder", description="Decode an mricodec stream.")
    parser.add_argument("stream", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .npy file")
    arguments = parser.parse_args()
    np.save(arguments.output, decode(arguments.stream.read_bytes()))


if __name__ == "__main__":
    main()
