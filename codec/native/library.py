"""Load the C core: beside this module, from nowhere else, and only if it was built from it."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any

from . import sources

# MRC_ABI of mrc.h.
ABI = 9
# MRC_OK of mrc.h.
OK = 0
# Lowers the backend that the CPU allows, for tests.
VARIABLE = "MRICODEC_BACKEND"
# Names of all backends, the best of an architecture first.
BACKENDS = ("avx512", "avx2", "neon", "scalar")
# The functions of mrc.h: the type of the result, and those of the arguments.
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "mrc_abi": (c_uint32, []),
    "mrc_source_hash": (c_char_p, []),
    "mrc_backend": (c_char_p, []),
    "mrc_use_backend": (c_int32, [c_char_p]),
    "mrc_model_bytes": (c_size_t, [c_void_p, c_size_t, c_void_p]),
    "mrc_model_init": (c_int32, [c_void_p, c_size_t, c_void_p, c_size_t, c_void_p]),
    "mrc_slab_bytes": (c_size_t, [c_void_p, c_void_p, c_int32]),
    "mrc_depth_of_run": (c_int32, [c_void_p, c_void_p, c_size_t]),
    "mrc_start_decoding": (
        c_int32,
        [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t],
    ),
    "mrc_start_encoding": (
        c_int32,
        [
            c_void_p,
            c_void_p,
            c_void_p,
            c_size_t,
            c_void_p,
            c_void_p,
            c_size_t,
            c_void_p,
            c_void_p,
        ],
    ),
    "mrc_next_tasks": (c_int32, [c_void_p, c_void_p]),
    "mrc_run_task": (c_int32, [c_void_p, c_int32, c_int32]),
    "mrc_phase": (c_char_p, [c_void_p]),
    "mrc_predictive_bytes": (c_size_t, [c_void_p, c_int32]),
    "mrc_predictive_encode": (
        c_int32,
        [c_void_p, c_int32, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_predictive_decode": (c_int32, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "mrc_analysis": (c_int32, [c_void_p, c_void_p, c_float, c_void_p, c_size_t]),
    "mrc_synthesis": (c_int32, [c_void_p, c_size_t, c_void_p, c_int32, c_void_p, c_size_t]),
    "mrc_convolution": (
        c_int32,
        [
            c_void_p,
            c_void_p,
            c_size_t,
            c_int32,
            c_int32,
            c_void_p,
            c_size_t,
            c_void_p,
            c_size_t,
        ],
    ),
    "mrc_entropy_encode": (
        c_int32,
        [c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_entropy_decode": (
        c_int32,
        [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_measure_floats": (c_int32, [c_void_p, c_void_p, c_size_t, c_void_p]),
    "mrc_split_floats": (
        c_int32,
        [c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_join_floats": (
        c_int32,
        [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_label_map_bytes": (c_size_t, [c_void_p, c_int32]),
    "mrc_encode_label_map": (
        c_int32,
        [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p],
    ),
    "mrc_decode_label_map": (c_int32, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
}


class LibraryError(OSError):
    """The C core can't be used: missing, stale, foreign, or without the backend asked for."""


@functools.cache
def load() -> ctypes.CDLL:
    """The library, checked, its functions with their types; LibraryError in one line."""
    file = sources.library_path()
    if not file.is_file():
        raise LibraryError(f"{file}: the C core is missing; {remedy()}")
    try:
        library = ctypes.CDLL(str(file))
        declare(library, ["mrc_abi", "mrc_source_hash"])
    except (OSError, AttributeError) as error:
        reason = str(error).replace(f"{file}: ", "")
        raise LibraryError(
            f"{file}: not a C core for this system ({reason}); {remedy()}"
        ) from error
    check_origin(library)
    declare(library, list(PROTOTYPES))
    if name := os.environ.get(VARIABLE):
        choose(library, name)
    return library


def check_origin(library: ctypes.CDLL) -> None:
    """Refuse a library of another ABI, or of other sources than those beside this module."""
    if (number := library.mrc_abi()) != ABI:
        raise LibraryError(
            f"{sources.library_path()}: expected ABI {ABI}, found {number}; {remedy()}"
        )
    expected, built_from = expected_hash(), library.mrc_source_hash().decode()
    if built_from != expected:
        raise LibraryError(
            f"{sources.library_path()}: expected a library of the sources {expected}, "
            f"found one of {built_from}; {remedy()}"
        )


def expected_hash() -> str:
    """The hash of the sources beside this module; in an installed package the recorded one."""
    digest = sources.source_hash() or sources.recorded_hash()
    if digest is None:
        raise LibraryError(
            f"{sources.library_path()}: {sources.RECORDED_HASH} is missing beside it; {remedy()}"
        )
    return digest


def remedy() -> str:
    """What to do about a library that doesn't fit."""
    script = sources.FOLDER / "compiler.py"
    return f"python {script} builds it" if sources.c_files() else "install mricodec again"


def declare(library: ctypes.CDLL, names: list[str]) -> None:
    """Set the types of functions; AttributeError if the library lacks one."""
    for name in names:
        function = getattr(library, name)
        function.restype, function.argtypes = PROTOTYPES[name]


def backend() -> str:
    """The backend in use: "scalar", "avx2", "avx512" or "neon"."""
    return str(load().mrc_backend().decode())


def use_backend(name: str | None) -> None:
    """Use another backend from now on; None for the best one. For tests."""
    choose(load(), name)


def backends() -> list[str]:
    """The backends that this CPU can run, the best one first."""
    return runnable(load())


def choose(library: ctypes.CDLL, name: str | None) -> None:
    """Use a backend; LibraryError if this library or this CPU can't."""
    if library.mrc_use_backend(None if name is None else name.encode()) != OK:
        raise LibraryError(
            f"{VARIABLE}={name}: this computer runs {', '.join(runnable(library))}; choose one"
        )


def runnable(library: ctypes.CDLL) -> list[str]:
    """Names of backends that can be chosen; the one in use stays."""
    before = library.mrc_backend()
    names = [name for name in BACKENDS if library.mrc_use_backend(name.encode()) == OK]
    library.mrc_use_backend(before)
    return names
