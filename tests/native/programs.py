"""Compiles the C core into test programs and runs them: replay.c and the fuzz targets.

    python tests/native/programs.py replay sanitizers aarch64 s390x wasm32
    python tests/native/programs.py fuzz SECONDS [FOLDER]

`sanitizers` is this system with AddressSanitizer and UBSan. Other systems need ziglang, and node or
qemu-user with the system's C library (Debian: libc6-arm64-cross, libc6-s390x-cross); fuzzing needs
clang with libFuzzer. Inputs that fail are kept in FOLDER. Exits with 1 if a program fails, with 2
if a tool is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# An installed package has no C sources: those of the checkout are compiled.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "codec" / "native"))

import compiler
import sources

FOLDER = Path(__file__).resolve().parent
RECORDING = FOLDER / "recording.bin"
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
FUZZED = ["entropy", "slab", "weights", "label_map"]
# Seconds after which a single input counts as a hang.
FUZZ_TIMEOUT = 20


class MissingTool(RuntimeError):
    """A tool that a program needs isn't there."""


@dataclass(frozen=True)
class System:
    """What programs are compiled for, and how they are run."""

    target: str | None = None  # As zig names it; None for this system.
    flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()
    library: str = ""  # Where the C library of another system lies.

    def compiler(self) -> compiler.Compiler:
        """The compiler; MissingTool."""
        if self.runner and not shutil.which(self.runner[0]):
            raise MissingTool(f"{self.runner[0]} is missing")
        if self.library and not Path(self.library).is_dir():
            raise MissingTool(f"{self.library}, the C library, is missing")
        try:
            return compiler.find(target=self.target)
        except compiler.CompilerError as error:
            raise MissingTool(str(error).partition("\n")[0]) from error


def emulated(machine: str, target: str) -> System:
    """Linux on another machine, by qemu-user."""
    library = f"/usr/{machine}-linux-gnu"
    return System(target, (), (f"qemu-{machine}", "-L", library), library)


SYSTEMS = {
    "sanitizers": System(flags=(*SANITIZE, "-fsanitize=address,undefined")),
    "aarch64": emulated("aarch64", "aarch64-linux-gnu.2.28"),
    "s390x": emulated("s390x", "s390x-linux-gnu.2.28"),
    "wasm32": System("wasm32-wasi", runner=("node", "--no-warnings", str(FOLDER / "wasi.mjs"))),
}


def link(folder: Path, chosen: compiler.Compiler, name: str, flags: tuple[str, ...]) -> Path:
    """Compile a program and link it with the objects in its folder. CompilerError."""
    program = folder / f"{name}{'.wasm' if chosen.suffix == '.wasm' else ''}"
    include = [f"-I{sources.FOLDER}", f"-I{FOLDER}", f'-DRECORDING="{RECORDING}"']
    options = [*compiler.FLAGS, *include, *compiler.LINK_FLAGS, *flags]
    inputs = [str(FOLDER / f"{name}.c"), *map(str, sorted(folder.glob("*.o")))]
    compiler.run([*chosen.command, *options, *inputs, "-lm", "-o", str(program)])
    return program


def replay(name: str) -> tuple[int, str]:
    """Replay the recording on a system: the exit status, and what was printed. MissingTool."""
    system = SYSTEMS[name]
    chosen = system.compiler()
    with tempfile.TemporaryDirectory() as folder:
        compiler.compile_units(Path(folder), chosen, flags=system.flags)
        program = link(Path(folder), chosen, "replay", system.flags)
        command = [*system.runner, str(program), str(RECORDING)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stdout + done.stderr


def fuzz_programs(folder: Path) -> list[Path]:
    """Compile the fuzz targets. MissingTool."""
    if not shutil.which("clang"):
        raise MissingTool("clang is missing")
    chosen = compiler.probe(("clang",))
    flags = (*SANITIZE, "-fsanitize=fuzzer-no-link,address,undefined")
    compiler.compile_units(folder, chosen, flags=flags)
    try:
        return [
            link(folder, chosen, f"fuzz_{name}", (*flags, "-fsanitize=fuzzer")) for name in FUZZED
        ]
    except compiler.CompilerError as error:
        if "libclang_rt" not in str(error):
            raise
        raise MissingTool("clang has no libFuzzer (Debian: apt install libclang-rt-dev)") from error


def fuzz(program: Path, seconds: int) -> tuple[int, str]:
    """Fuzz one target from its seeds; inputs that fail are kept beside the program."""
    name = program.name.removeprefix("fuzz_")
    corpus = program.parent / f"corpus_{name}"
    corpus.mkdir(exist_ok=True)
    command = [
        str(program), str(corpus), str(FOLDER / "seeds" / name), f"-max_total_time={seconds}",
        f"-timeout={FUZZ_TIMEOUT}", f"-artifact_prefix={program}-", "-print_final_stats=1",
        "-max_len=8192", "-verbosity=0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def replay_all(names: list[str]) -> int:
    """Replay on systems, two at a time; the exit status."""

    def outcome(name: str) -> tuple[int, str]:
        try:
            status, text = replay(name)
        except MissingTool as error:
            return 2, f"-- {name}: not run: {error}\n"
        result = "the same bits" if status == 0 else f"failed ({status})"
        return int(status != 0), f"-- {name}: {result}\n{text}"

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(outcome, names))
    print("".join(text for _, text in results), end="")
    statuses = {status for status, _ in results}
    return 1 if 1 in statuses else max(statuses)


def fuzz_all(seconds: int, folder: Path) -> int:
    """Fuzz all targets beside one another; the number of failures."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = fuzz_programs(folder)
    with ThreadPoolExecutor(len(programs)) as pool:
        results = list(pool.map(lambda program: fuzz(program, seconds), programs))
    for program, (status, text) in zip(programs, results, strict=True):
        runs = [line for line in text.splitlines() if "number_of_executed_units" in line]
        print(f"-- {program.name}, {seconds} s: {' '.join(runs) or 'no run'}")
        if status:
            print(f"{text}\ninputs that fail are in {folder}")
    return sum(status != 0 for status, _ in results)


def main() -> int:
    """The command line; the exit status."""
    match sys.argv[1:]:
        case ["replay", *names] if names and set(names) <= set(SYSTEMS):
            return replay_all(names)
        case ["fuzz", seconds]:
            with tempfile.TemporaryDirectory() as folder:
                return min(fuzz_all(int(seconds), Path(folder)), 1)
        case ["fuzz", seconds, folder]:
            return min(fuzz_all(int(seconds), Path(folder)), 1)
    print(__doc__)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingTool as error:
        print(f"not run: {error}")
        sys.exit(2)
