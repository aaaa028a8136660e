"""The default model in the C core: torch decodes the same, and every backend writes the same."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save

from mricodec import codec
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import SlabStreams
from mricodec.codec.coders.base import LossyParams
from mricodec.codec.native import functions, library, model
from mricodec.codec.native.model import NativeModel, Workspace
from mricodec.models import zoo
from mricodec.models.loader import load_model
from mricodec.models.lossy.codec import ContextLossy
from mricodec.models.weights_file import NETWORK_KEY, WeightsError

Samples = NDArray[np.int32]
# Slices, rows and columns, and the step in samples: every depth, odd sizes, one block, one slice.
CASES = [
    ((1, 8, 8), 30.0),
    ((1, 61, 45), 9.0),
    ((2, 9, 17), 4.0),
    ((3, 40, 33), 25.0),
    ((7, 24, 72), 12.0),
    ((17, 33, 41), 18.0),
    ((24, 48, 40), 60.0),
]


@pytest.fixture(scope="module")
def native() -> NativeModel:
    return NativeModel("default", zoo.read("default").data)


@pytest.fixture(scope="module")
def torch_model() -> ContextLossy:
    loaded = load_model("default")
    assert isinstance(loaded, ContextLossy)
    return loaded


@pytest.fixture
def every_backend() -> Iterator[list[str]]:
    before = library.backend()
    yield library.backends()
    library.use_backend(before)


def scan(shape: tuple[int, int, int], seed: int = 0) -> Samples:
    """Smooth shapes that change slowly from slice to slice, and noise."""
    k, j, i = np.indices(shape)
    wave = 500 + 300 * np.sin(j / 7 + k / 11) * np.cos(i / 9) + 120 * (j > 20) * (i > 14)
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    return np.clip(np.rint(wave + noise), 0, 1000).astype(np.int32)


def params_of(samples: Samples, step: float) -> LossyParams:
    return LossyParams(step, int(samples.max()), (1.0, 1.0, 1.0))


def torch_encoded(model: ContextLossy, x: Samples, params: LossyParams) -> tuple[bytes, Samples]:
    stream = EntropyEncoder()
    decoded = model.encode(x[None], params.step, SlabStreams([stream]), params)[0]
    return stream.finish(), decoded


def torch_decoded(
    model: ContextLossy, run: bytes, shape: tuple[int, int, int], params: LossyParams
) -> Samples:
    stream = EntropyDecoder(run)
    decoded = model.decode((1, *shape), params, SlabStreams([stream]))[0]
    stream.finish()
    return decoded


@pytest.mark.parametrize(("shape", "step"), CASES)
def test_both_decode_what_either_encodes(
    native: NativeModel, torch_model: ContextLossy, shape: tuple[int, int, int], step: float
) -> None:
    x = scan(shape)
    params, workspace = params_of(x, step), Workspace()
    run, decoded = torch_encoded(torch_model, x, params)
    assert np.array_equal(native.decode_slab(run, shape, params, workspace), decoded)
    run, decoded = native.encode_slab(x, params, workspace)
    assert np.array_equal(native.decode_slab(run, shape, params, workspace), decoded)
    assert np.array_equal(torch_decoded(torch_model, run, shape, params), decoded)


def test_as_few_bits_at_the_same_error(native: NativeModel, torch_model: ContextLossy) -> None:
    x = scan((24, 96, 80))
    params = params_of(x, 12.0)
    run, decoded = native.encode_slab(x, params, Workspace())
    other, torch_samples = torch_encoded(torch_model, x, params)
    octaves = np.log2(np.square(decoded - x).mean() / np.square(torch_samples - x).mean()) / 2
    bits = 8 * (len(run) - len(other)) / x.size + octaves  # At high rates an octave costs a bit.
    assert abs(bits) < 0.01 * 8 * len(other) / x.size


@pytest.mark.parametrize(("shape", "step"), CASES)
def test_every_backend_writes_the_same(
    native: NativeModel, every_backend: list[str], shape: tuple[int, int, int], step: float
) -> None:
    x = scan(shape, 1)
    results = []
    for name in every_backend:
        library.use_backend(name)
        run, decoded = native.encode_slab(x, params_of(x, step), Workspace())
        again = native.decode_slab(run, shape, params_of(x, step), Workspace())
        assert np.array_equal(again, decoded), name
        results.append((name, run, decoded.tobytes()))
    for (one, *first), (other, *second) in itertools.pairwise(results):
        assert first == second, (one, other)


@pytest.mark.parametrize(("shape", "step"), CASES)
def test_any_number_of_threads_writes_the_same(
    native: NativeModel, shape: tuple[int, int, int], step: float
) -> None:
    x = scan(shape, 2)
    params = params_of(x, step)
    run, decoded = native.encode_slab(x, params, Workspace())
    for threads in (2, 3, 7):
        workspace = Workspace(threads)
        again, samples = native.encode_slab(x, params, workspace)
        assert again == run and np.array_equal(samples, decoded), threads
        assert np.array_equal(native.decode_slab(run, shape, params, workspace), decoded), threads


def test_extremes(native: NativeModel, torch_model: ContextLossy) -> None:
    """Noise of full range at the finest step: symbols that escape, means that are clamped."""
    x = np.random.default_rng(2).integers(0, 1 << 20, (3, 19, 21)).astype(np.int32)
    params = params_of(x, 2.0**-12)
    run, decoded = native.encode_slab(x, params, Workspace())
    assert np.array_equal(native.decode_slab(run, x.shape, params, Workspace()), decoded)
    assert np.array_equal(torch_decoded(torch_model, run, (3, 19, 21), params), decoded)


def test_threads_share_a_model_and_a_workspace(native: NativeModel) -> None:
    x, workspace = scan((9, 40, 40)), Workspace()
    params = params_of(x, 10.0)
    expected = native.encode_slab(x, params, workspace)[0]
    runs: list[bytes] = []

    def encode() -> None:
        runs.append(native.encode_slab(x, params, workspace)[0])

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [expected] * 4


def test_cancelled_work_ends(native: NativeModel) -> None:
    x = scan((9, 40, 40))
    for threads in (1, 3):
        workspace = Workspace(threads)
        workspace.cancel()
        with pytest.raises(functions.Cancelled):
            native.encode_slab(x, params_of(x, 10.0), workspace)


def test_damaged_runs_are_refused(native: NativeModel) -> None:
    x = scan((5, 33, 40))
    params = params_of(x, 10.0)
    run, decoded = native.encode_slab(x, params, Workspace())
    with pytest.raises(codec.FormatError, match="whole 32-bit words"):
        native.decode_slab(run[:-1], x.shape, params, Workspace())
    with pytest.raises(codec.FormatError):
        native.decode_slab(run + bytes(8), x.shape, params, Workspace())
    rng, refused = np.random.default_rng(3), 0
    for _ in range(40):
        damaged = bytearray(run)
        damaged[rng.integers(len(run))] ^= 1 << rng.integers(8)
        try:
            other = native.decode_slab(bytes(damaged), x.shape, params, Workspace())
            assert not np.array_equal(other, decoded)
        except codec.FormatError:
            refused += 1
    assert refused > 20


def test_weights_that_do_not_fit() -> None:
    data = zoo.read("default").data
    with pytest.raises(WeightsError, match="do not fit the network mine"):
        NativeModel("mine", zoo.read("hyperprior").data)
    with pytest.raises(WeightsError):
        NativeModel("mine", data[:-1])


def test_a_slab_out_of_range(native: NativeModel) -> None:
    params = LossyParams(1.0, 100, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="at most"):
        native.decode_slab(b"", (1 << 12, 1 << 12, 1 << 12), params, Workspace())


@pytest.mark.parametrize("layer", ["low.passes.3.known", "detail.mix.0.middle", "low.sources.0"])
def test_values_between_layers_fit_16_bits(layer: str, tmp_path: Path) -> None:
    """Weights that might exceed them are refused, by torch too."""
    tensors = load_tensors(zoo.read("default").data)
    shift = f"{layer}.shift"
    tensors[shift] = np.where(tensors[shift] > 3, tensors[shift] - 3, 0).astype(np.uint8)
    data = save(tensors, {NETWORK_KEY: "default"})
    with pytest.raises(WeightsError, match="fit the network"):
        NativeModel("mine", data)
    path = tmp_path / "mine.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="16 bits"):
        load_model(path)


class Watched(Workspace):
    """Notes what the tasks of a slab do."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []

    def run(self, arena: int) -> int:
        core, count = library.load(), ctypes.c_int32()
        while True:
            status = int(core.mrc_next_tasks(arena, ctypes.byref(count)))
            self.phases.append(core.mrc_phase(arena).decode())
            if count.value == 0:
                return status
            for task in range(count.value):
                core.mrc_run_task(arena, task, 0)


def test_phases_follow_one_another(native: NativeModel) -> None:
    """Two slices of depth 1: the second has the first as its reference."""
    x, watched = scan((2, 16, 24)), Watched()
    params = params_of(x, 10.0)
    passes = 4 * ["predict", "update"]
    features = ["features", "mix", "mix"]
    steps = [*features, *passes, "prepare", *features, *passes]
    run, decoded, _ = native.encode_bands(x, params, watched, 1)
    assert watched.phases == ["analyse", *steps, "synthesise", "finished"]
    watched.phases.clear()
    assert np.array_equal(native.decode_slab(run, x.shape, params, watched), decoded)
    assert watched.phases == [*steps, "synthesise", "finished"]
    assert library.load().mrc_phase(None) is None


def test_no_thread_waits_for_one_that_can_not_start_or_fails(
    native: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = scan((9, 40, 40))
    params, before = params_of(x, 10.0), threading.active_count()
    start, started = threading.Thread.start, itertools.count()

    def refuse(thread: threading.Thread) -> None:
        if next(started) == 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            native.encode_slab(x, params, Workspace(3))
    with monkeypatch.context() as patch:
        patch.setattr(model._Tasks, "help", lambda tasks, _: tasks.end())
        with pytest.raises(threading.BrokenBarrierError):
            native.encode_slab(x, params, Workspace(3))
    assert threading.active_count() == before
