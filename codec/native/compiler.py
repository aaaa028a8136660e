"""Compile the C core: find a compiler, compile each backend, link one library.

    python codec/native/compiler.py                           # into this folder, to run a checkout
    python codec/native/compiler.py --target aarch64-macos -o FOLDER    # another system, by ziglang

Imports the standard library alone: the build runs it before anything is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

try:
    from . import sources
except ImportError:  # A script, or part of the build: there is no package around it.
    import sources  # type: ignore[import-not-found,no-redef]

# Without a compiler: what to do.
ADVICE = "install a C compiler (Debian: apt install gcc) or pip install ziglang"
# Every unit is compiled with these. Sums may wrap, and doubles are never contracted, so that all
# compilers compute the same. (zig links UBSan unless it is switched off. How vectors longer than
# registers are passed doesn't matter: they cross no call that is not inlined.)
FLAGS = [
    "-std=c11", "-O2", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing",
    "-fvisibility=hidden", "-fno-sanitize=undefined", "-Wall", "-Wextra", "-Wno-unused-function",
    "-Wno-psabi",
]  # fmt: skip
LINK_FLAGS = ["-O2", "-fno-sanitize=undefined"]
# Loops become vectors, straight-line code does not: it got slower by a quarter.
VECTORS = ["-O3", "-fno-tree-slp-vectorize"]
# What a backend may use beyond the baseline of its architecture. No FMA with AVX2.
BACKEND_FLAGS = {
    "scalar": [],
    "avx2": [*VECTORS, "-mavx2"],
    "avx512": [*VECTORS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"],
    "neon": VECTORS,
}
# Backends by the macro with which a compiler names its architecture; elsewhere scalar alone.
ARCHITECTURES = {
    "__x86_64__": ("scalar", "avx2", "avx512"),
    "__aarch64__": ("scalar", "neon"),
}
# The suffix of a library, by the macro of the system; elsewhere that of ELF.
SUFFIXES = {"_WIN32": ".dll", "__APPLE__": ".dylib", "__wasm__": ".wasm"}
# What a compiler must be able to build: it needs the headers of the C library too. (zig 0.17
# crashes when it links a library for macOS that exports nothing.)
PROBE = """
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
static _Atomic int32_t value;
#ifdef _WIN32
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
int32_t mrc_probe(const char *text) { return value + (int32_t)strlen(text); }
"""


class CompilerError(RuntimeError):
    """No compiler, or a compiler that failed; the first line of the message says all of it."""


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C, and what it compiles for."""

    command: tuple[str, ...]
    macros: frozenset[str]  # Those that the compiler defines by itself.

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends of the architecture."""
        for macro, backends in ARCHITECTURES.items():
            if macro in self.macros:
                return backends
        return ("scalar",)

    @property
    def suffix(self) -> str:
        """The suffix of a library of the system."""
        return next((s for macro, s in SUFFIXES.items() if macro in self.macros), ".so")

    @property
    def unit_flags(self) -> list[str]:
        """Flags of every unit, for the system."""
        return FLAGS if self.suffix == ".dll" else [*FLAGS, "-fPIC"]

    @property
    def link_flags(self) -> list[str]:
        """Flags that make a library of the units."""
        if self.suffix == ".wasm":
            return [*LINK_FLAGS, "-mexec-model=reactor", "-Wl,--export-dynamic", "-s"]
        return [*LINK_FLAGS, "-shared", *([] if self.suffix == ".dylib" else ["-s"])]


def zig_command(target: str | None) -> tuple[str, ...]:
    """The compiler of the package ziglang; without a target, for any CPU of this machine's kind."""
    # Without -mcpu zig compiles for the CPU it runs on.
    machine = ("-mcpu=baseline",) if target is None else ("-target", target)
    return (sys.executable, "-m", "ziglang", "cc", *machine)


def system_commands() -> list[tuple[str, ...]]:
    """$CC if it is set, else the usual names of compilers on PATH."""
    if chosen := os.environ.get("CC"):
        return [tuple(shlex.split(chosen))]
    return [(name,) for name in ("cc", "gcc", "clang") if shutil.which(name)]


def find(*, target: str | None = None, zig: bool = True) -> Compiler:
    """The first compiler that builds a probe.

    `target` names another system as zig does ("x86_64-linux-gnu.2.17"); only ziglang compiles for
    it. Raises CompilerError.
    """
    commands = [] if target else system_commands()
    if zig and importlib.util.find_spec("ziglang"):
        commands.append(zig_command(target))
    failures = []
    for command in commands:
        try:
            return probe(command)
        except CompilerError as error:
            failures.append(str(error).partition("\n")[0])
    advice = "pip install ziglang, which compiles for other systems" if target else ADVICE
    raise CompilerError(f"no C compiler works: {advice} ({'; '.join(failures) or 'none on PATH'})")


def probe(command: tuple[str, ...]) -> Compiler:
    """The compiler that a command is; CompilerError if it can't build a library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(PROBE)
        listing = run([*command, "-dM", "-E", str(source)]).splitlines()
        macros = frozenset(line.split()[1] for line in listing if line.startswith("#define "))
        compiler = Compiler(command, macros)
        flags = [*compiler.unit_flags, *compiler.link_flags]
        run([*command, *flags, str(source), "-o", str(Path(folder) / "probe.out")])
    return compiler


def run(command: Sequence[str]) -> str:
    """Standard output of a command; CompilerError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line), "".join(lines[:1]))
        raise CompilerError(f"{command[0]} failed: {first}\n{shlex.join(command)}\n{done.stderr}")
    sys.stderr.write(done.stderr)  # Warnings.
    return done.stdout


def compile_units(folder: Path, compiler: Compiler, *, flags: Sequence[str] = ()) -> list[str]:
    """Compile each unit of the library into a folder, `flags` added; the object files.

    Raises CompilerError.
    """
    if (source_hash := sources.source_hash()) is None:
        raise CompilerError(f"{sources.FOLDER}: no C sources; build from a checkout or an sdist")
    units = [("mrc", [f'-DMRC_SOURCE_HASH="{source_hash}"'])]
    units += [
        (backend, [f"-DMRC_BACKEND={backend}", *BACKEND_FLAGS[backend]])
        for backend in compiler.backends
    ]

    def compile_unit(unit: tuple[str, list[str]]) -> str:
        source = sources.FOLDER / ("mrc.c" if unit[0] == "mrc" else "core.c")
        output = str(folder / f"{unit[0]}.o")
        options = [*compiler.unit_flags, *unit[1], *flags]
        run([*compiler.command, *options, "-c", str(source), "-o", output])
        return output

    with ThreadPoolExecutor(len(units)) as pool:
        return list(pool.map(compile_unit, units))


def build(folder: Path, compiler: Compiler | None = None, *, flags: Sequence[str] = ()) -> Path:
    """Compile the library into a folder, with the hash of its sources beside it; its path.

    `flags` are added to every unit and to the link. Files that are there are replaced at once and
    only if everything was compiled. Raises CompilerError.
    """
    compiler = compiler or find()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as name:
        work = Path(name)
        objects = compile_units(work, compiler, flags=flags)
        library = work / f"{sources.LIBRARY}{compiler.suffix}"
        # Flags come last where they may replace another one, objects before libraries.
        options = [*compiler.link_flags, *flags]
        run([*compiler.command, *objects, *options, "-o", str(library)])
        (work / sources.RECORDED_HASH).write_text(f"{sources.source_hash()}\n")
        for other in folder.glob(f"{sources.LIBRARY}.*"):
            if other.name not in (library.name, sources.RECORDED_HASH):
                other.unlink()  # Of another system: a folder has one library.
        os.replace(library, folder / library.name)
        os.replace(work / sources.RECORDED_HASH, folder / sources.RECORDED_HASH)
    return folder / library.name


def build_if_stale() -> None:
    """In a checkout: build the library beside this module unless it fits the sources.

    It isn't loaded to find out: a process can't load the new file under the path of an old one.
    """
    source_hash = sources.source_hash()
    fits = sources.library_path().is_file() and source_hash == sources.recorded_hash()
    if source_hash is not None and not fits:
        build(sources.FOLDER)


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Compile the C core of mricodec.")
    parser.add_argument("-o", "--output", type=Path, default=sources.FOLDER, metavar="FOLDER")
    parser.add_argument("--target", help="another system, as zig names it; needs ziglang")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: for every unit")
    arguments = parser.parse_args()
    started = time.perf_counter()
    try:
        compiler = find(target=arguments.target)
        library = build(arguments.output, compiler, flags=arguments.flags)
    except CompilerError as error:
        sys.exit(f"Error: {error}")
    seconds = time.perf_counter() - started
    print(
        f"{library}: {library.stat().st_size / 1e3:.0f} kB, {', '.join(compiler.backends)}, "
        f"{seconds:.1f} s, {shlex.join(compiler.command)}"
    )


if __name__ == "__main__":
    main()
