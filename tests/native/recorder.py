"""Records calls of the C core, with what they return, for replay.c: recording.h has the format."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.native import functions, library

Array = NDArray[Any]


@dataclass(frozen=True)
class Output:
    """An output of a call, as it is after the call."""

    buffer: Array
    compared: int | None = None  # Elements that have a meaning; None for all.


@dataclass(frozen=True)
class Call:
    """The arguments of a call; `scalars` without the status, which comes first."""

    scalars: list[int]
    inputs: list[Array]
    outputs: list[Output]


class Recorder:
    """Stands for the library: calls it, and keeps a record of each call.

    A slab is one record, from mrc_start_... until mrc_next_tasks has no task left. Arguments are
    read after the call, since the library changes nothing but outputs.
    """

    def __init__(self) -> None:
        self._core = library.load()
        self.records: list[bytes] = []
        # Slabs that are being coded, by the address of the arena.
        self._started: dict[int, tuple[str, tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._core, name)
        if name in STARTS:
            return lambda *arguments: self._start(name, *arguments)
        if name not in READERS:
            return function
        return lambda *arguments: self._keep(name, int(function(*arguments)), arguments)

    def _start(self, name: str, *arguments: Any) -> int:
        status = int(getattr(self._core, name)(*arguments))
        if status != library.OK:
            return self._keep(name, status, arguments)
        self._started[structure(arguments[1]).arena] = (name, arguments)
        return status

    def mrc_next_tasks(self, arena: int, tasks: Any) -> int:
        """The function, which ends a slab."""
        status = int(self._core.mrc_next_tasks(arena, tasks))
        if status != library.OK or structure(tasks).value == 0:
            name, arguments = self._started.pop(arena)
            self._keep(name, status, arguments)
        return status

    def _keep(self, name: str, status: int, arguments: tuple[Any, ...]) -> int:
        failed = name != "mrc_depth_of_run" and status != library.OK
        self.records.append(encoded(name, status, READERS[name](*arguments), failed=failed))
        return status

    def recording(self) -> bytes:
        """The file."""
        head = struct.pack("<4sI", b"mrcr", len(self.records))
        return head + b"".join(self.records)


def encoded(name: str, status: int, call: Call, *, failed: bool) -> bytes:
    """A record of the file; the outputs of a call that failed have no meaning."""
    scalars = [status, *call.scalars]
    parts = [struct.pack("<B", len(name)), name.encode(), struct.pack("<B", len(scalars))]
    parts += [struct.pack("<q", scalar) for scalar in scalars]
    parts.append(struct.pack("<H", len(call.inputs)))
    for array in call.inputs:
        parts += [struct.pack("<BI", array.itemsize, array.size), little_endian(array)]
    parts.append(struct.pack("<B", len(call.outputs)))
    for output in call.outputs:
        size = output.buffer.size
        compared = 0 if failed else size if output.compared is None else output.compared
        parts.append(struct.pack("<BII", output.buffer.itemsize, size, compared))
        parts.append(little_endian(output.buffer[:compared]))
    return b"".join(parts)


def little_endian(array: Array) -> bytes:
    """The elements of an array as they are in the file."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


# -- arguments as ctypes has them -----------------------------------------------------------------


def at(address: int | None, count: int, dtype: str) -> Array:
    """A copy of the elements at an address."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size) if size else b"", dtype)


def structure(reference: Any) -> Any:
    """What ctypes.byref refers to."""
    return reference._obj


def tensors(structures: Any, count: int) -> tuple[Array, list[Array]]:
    """Of each tensor its type and lengths, and its bytes."""
    shapes, data = [], []
    for tensor in structures[:count]:
        itemsize = {1: 1, 2: 1, 3: 2, 4: 4}[tensor.type]
        shapes.append([tensor.type, *tensor.shape])
        data.append(at(tensor.data, itemsize * int(np.prod(tensor.shape[:])), "u1"))
    return np.array(shapes, np.int64).ravel(), data


def slab_scalars(slab: Any) -> list[int]:
    """As replay.c's slab_of reads them."""
    shape = [slab.slices, slab.height, slab.width]
    return [*shape, slab.peak, slab.step, slab.threads, slab.depth]


def cancel_flag(slab: Any) -> int:
    """The flag as it was during the call."""
    return int(at(slab.cancel, 1, "i4")[0]) if slab.cancel else 0


def model_init(model: int, size: int, structures: Any, count: int, blocks: Any) -> Call:
    shapes, data = tensors(structures, count)
    return Call([], [shapes, np.array(blocks[:], np.int32), *data], [])


def depth_of_run(model: int, data: int, size: int) -> Call:
    return Call([], [at(data, size, "u1")], [])


def start_decoding(
    model: int, slab: Any, data: int, size: int, samples: int, sample_count: int
) -> Call:
    s = structure(slab)
    outputs = [Output(at(samples, sample_count, "i4"))]
    return Call([*slab_scalars(s), cancel_flag(s)], [at(data, size, "u1")], outputs)


def start_encoding(*arguments: Any) -> Call:
    _, slab, samples, sample_count, reference, data, capacity, size, decoded = arguments
    s, used = structure(slab), structure(size).value
    search = functions.Search() if reference is None else structure(reference)
    inputs = [at(samples, sample_count, "i4")]
    inputs.append(at(search.targets, search.count if search.targets else 0, "f4"))
    outputs = [Output(at(data, capacity, "u1"), used), Output(at(decoded, sample_count, "i4"))]
    outputs.append(Output(at(search.bands, search.count if search.bands else 0, "i4")))
    scalars = [used, *slab_scalars(s), cancel_flag(s), reference is not None, search.depth]
    return Call([int(n) for n in scalars], inputs, outputs)


def analysis(samples: int, slab: Any, unit: float, coefficients: int, count: int) -> Call:
    s = structure(slab)
    size = s.slices * s.height * s.width
    inputs = [at(samples, size, "i4"), np.array([unit], np.float32)]
    return Call([*slab_scalars(s), s.arena_size], inputs, [Output(at(coefficients, count, "f4"))])


def synthesis(y: int, count: int, slab: Any, depth: int, samples: int, sample_count: int) -> Call:
    s = structure(slab)
    outputs = [Output(at(samples, sample_count, "i4"))]
    return Call([*slab_scalars(s), s.arena_size, depth], [at(y, count, "i4")], outputs)


def convolution(*arguments: Any) -> Call:
    structures, x, x_count, height, width, _, arena_size, out, out_count = arguments
    shapes, data = tensors(structures, 3)
    inputs = [shapes, at(x, x_count, "i2"), *data]
    return Call([height, width, arena_size], inputs, [Output(at(out, out_count, "i4"))])


def tables_and_calls(tables: Any, calls: Any) -> tuple[list[int], list[Array]]:
    t, c = structure(tables), structure(calls)
    weights = at(t.weights, 4 * t.rows * t.columns, "u1")
    sizes = at(c.sizes, c.calls, np.dtype(np.uintp).str).astype(np.int64)
    return [t.rows, t.columns, t.octave, t.low], [weights, at(c.index, c.count, "u1"), sizes]


def entropy_encode(*arguments: Any) -> Call:
    tables, calls, values, _, arena_size, data, capacity, size = arguments
    scalars, inputs = tables_and_calls(tables, calls)
    used = structure(size).value
    inputs.append(at(values, structure(calls).count, "i4"))
    return Call([used, *scalars, arena_size], inputs, [Output(at(data, capacity, "u1"), used)])


def entropy_decode(*arguments: Any) -> Call:
    tables, calls, data, size, _, arena_size, values = arguments
    scalars, inputs = tables_and_calls(tables, calls)
    inputs.append(at(data, size, "u1"))
    outputs = [Output(at(values, structure(calls).count, "i4"))]
    return Call([*scalars, arena_size], inputs, outputs)


def encode_label_map(*arguments: Any) -> Call:
    slab, samples, sample_count, data, capacity, size = arguments
    s, used = structure(slab), structure(size).value
    outputs = [Output(at(data, capacity, "u1"), used)]
    return Call(
        [used, *slab_scalars(s), cancel_flag(s)], [at(samples, sample_count, "i4")], outputs
    )


def decode_label_map(slab: Any, data: int, size: int, samples: int, sample_count: int) -> Call:
    s = structure(slab)
    outputs = [Output(at(samples, sample_count, "i4"))]
    return Call([*slab_scalars(s), cancel_flag(s)], [at(data, size, "u1")], outputs)


def cells_and_specials(cells: Any) -> tuple[list[int], Array]:
    c = structure(cells)
    return [c.bytes, c.cell, c.grid, c.mantissa], at(c.specials, c.special_count, "u8")


def measure_floats(cells: Any, values: int, count: int, measured: Any) -> Call:
    scalars, specials = cells_and_specials(cells)
    r = structure(measured)
    numbers = np.array([r.low, r.high, r.steps])
    integers = np.array([r.others, r.grid, r.mantissa, r.count], np.int64)
    inputs = [at(values, scalars[0] * count, "u1"), specials]
    return Call([*scalars, count], inputs, [Output(numbers), Output(integers)])


def split_floats(*arguments: Any) -> Call:
    cells, values, count, classes, samples, data, capacity, size = arguments
    scalars, specials = cells_and_specials(cells)
    used = structure(size).value
    outputs = [Output(at(classes, count, "u1")), Output(at(samples, count, "i4"))]
    outputs.append(Output(at(data, capacity, "u1"), used))
    inputs = [at(values, scalars[0] * count, "u1"), specials]
    return Call([used, *scalars, count], inputs, outputs)


def join_floats(*arguments: Any) -> Call:
    cells, classes, samples, count, data, size, values = arguments
    scalars, specials = cells_and_specials(cells)
    inputs = [at(classes, count, "u1"), at(samples, count, "i4"), at(data, size, "u1"), specials]
    return Call([*scalars, count], inputs, [Output(at(values, scalars[0] * count, "u1"))])


READERS: dict[str, Callable[..., Call]] = {
    "mrc_model_init": model_init,
    "mrc_depth_of_run": depth_of_run,
    "mrc_start_decoding": start_decoding,
    "mrc_start_encoding": start_encoding,
    "mrc_analysis": analysis,
    "mrc_synthesis": synthesis,
    "mrc_convolution": convolution,
    "mrc_entropy_encode": entropy_encode,
    "mrc_entropy_decode": entropy_decode,
    "mrc_measure_floats": measure_floats,
    "mrc_split_floats": split_floats,
    "mrc_join_floats": join_floats,
    "mrc_encode_label_map": encode_label_map,
    "mrc_decode_label_map": decode_label_map,
}
# Functions that begin to code a slab.
STARTS = ("mrc_start_decoding", "mrc_start_encoding")
