"""Decoded voxels -> .nii, .nii.gz or a .hdr/.img pair, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mricodec.bitstream.chunks import GZIP
from mricodec.bitstream.header import Mode
from mricodec.codec.atomic import replacing
from mricodec.codec.coders.workers import processes
from mricodec.codec.formats import nifti_header
from mricodec.codec.formats.gzip_output import gzipped
from mricodec.codec.formats.gzip_recipe import GzipRecipe
from mricodec.codec.formats.nifti import pair_paths
from mricodec.codec.volume import Envelope, Volume, to_file_order

from .decoding import Layered, Salvage, Selection, value_blocks
from .stream import Progress, Stream

Destination = str | os.PathLike[str] | BinaryIO


def decode_to_nifti(
    layered: Layered,
    selection: Selection,
    destination: Destination,
    progress: Progress,
    salvage: Salvage | None = None,
) -> None:
    """Write .nii, .nii.gz or a .hdr/.img pair, by the name; .nii into a file object.

    A .nii.gz is the one that was encoded if the stream has the recipe for it. ValueError for a name
    of another format, or a pair from a scan that was none.
    """
    stream = layered.stream
    envelope = selection.envelope(stream)
    if not selection.whole:  # The .img file of a pair keeps its length before the voxels.
        envelope = replace(envelope, lead=bytes(len(stream.envelope.lead)))
    if not envelope.header:
        header = nifti_header.make_header(selection.shape, selection.dtype(stream), envelope)
        envelope = replace(envelope, header=header)
    decoded = value_blocks(layered, selection, progress, salvage)
    voxels = (to_file_order(block, selection.dtype(stream)) for block in decoded)
    _write(destination, envelope, voxels, _recipe(stream, selection))


def write_nifti(volume: Volume, destination: Destination) -> None:
    """A volume without header as .nii or .nii.gz. ValueError for another name."""
    header = nifti_header.make_header(volume.array.shape, volume.dtype, volume.envelope)
    voxels = iter([to_file_order(volume.array, volume.dtype)])
    _write(destination, Envelope(header), voxels, None)


def _write(
    destination: Destination,
    envelope: Envelope,
    voxels: Iterator[memoryview],
    recipe: GzipRecipe | None,
) -> None:
    header = envelope.header
    is_pair = nifti_header.parse(header, "header").pair
    with contextlib.ExitStack() as stack:
        if not isinstance(destination, (str, os.PathLike)):
            file, as_pair = destination, False
        elif (pair := pair_paths(Path(destination))) is not None:
            if not is_pair:
                raise ValueError(
                    f"{destination}: expected a name with .nii or .nii.gz, as the scan was one file"
                )
            _create(stack, pair[0]).write(header)
            file, as_pair = _create(stack, pair[1]), True
        elif os.fspath(destination).lower().endswith((".nii", ".nii.gz")):
            file, as_pair = _create(stack, Path(destination), recipe), False
        else:
            raise ValueError(
                f"{destination}: expected a name with .nii, .nii.gz, .hdr or .img; "
                "choose one of them"
            )
        if as_pair:
            file.write(envelope.lead)
        else:
            file.write(nifti_header.single_file_header(header) if is_pair else header)
        for block in voxels:
            file.write(block)
        file.write(envelope.trailer)


def _create(stack: contextlib.ExitStack, path: Path, recipe: GzipRecipe | None = None) -> BinaryIO:
    file = stack.enter_context(replacing(path))
    if path.suffix.lower() != ".gz":
        return file
    return stack.enter_context(
        gzipped(file, processes()) if recipe is None else recipe.compressing(file, str(path))
    )


def _recipe(stream: Stream, selection: Selection) -> GzipRecipe | None:
    payload = stream.reader.chunk(GZIP)
    if payload is None or not selection.whole or stream.mode is not Mode.LOSSLESS:
        return None
    return GzipRecipe.unpack(payload)
