"""The library of the C core: what is loaded and what is refused, its types, backends, its build."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from paths import ROOT

from mricodec.codec.native import compiler, library, sources

SOURCES = ROOT / "codec" / "native"
# Types of mrc.h as ctypes has them; all other pointers are addresses.
C_TYPES = {
    "const char *": ctypes.c_char_p,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "uint8_t": ctypes.c_uint8,
}
Import = Callable[[], tuple[ModuleType, Path]]


def header() -> str:
    """mrc.h without comments and directives, in one line."""
    text = (SOURCES / "mrc.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\s+", " ", " ".join(lines))


def c_type(declaration: str) -> Any:
    """The ctypes type for the declaration of a result or of an argument."""
    kind = declaration.strip()
    if kind not in C_TYPES and not kind.endswith("*"):
        kind = re.sub(r"\w+(\[\w*\])?$", r"\1", kind).strip()  # Without the name.
    return C_TYPES[kind] if kind in C_TYPES or kind[-1] not in "*]" else ctypes.c_void_p


def declared() -> dict[str, tuple[Any, list[Any]]]:
    """Types of the result and of the arguments of every function of mrc.h."""
    functions = {}
    for result, name, arguments in re.findall(r"MRC_API ([^;()]*?)(\w+)\(([^()]*)\);", header()):
        parts = [] if arguments.strip() == "void" else arguments.split(",")
        functions[name] = (c_type(result), [c_type(part) for part in parts])
    return functions


@pytest.fixture
def copy(tmp_path: Path) -> Import:
    """Imports a copy of the package, with its library, as it lies in an installation."""
    folder = tmp_path / "copied_core"
    folder.mkdir()
    for file in [*sources.FOLDER.glob("*.py"), sources.library_path()]:
        shutil.copy(file, folder)
    (folder / sources.RECORDED_HASH).write_text(library.expected_hash() + "\n")
    return lambda: (import_copy(folder), folder)


def import_copy(folder: Path) -> ModuleType:
    """The module `library` of a copy."""
    package = folder.name
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.library")


def refusal(module: ModuleType) -> str:
    """The one line with which a library is refused."""
    with pytest.raises(module.LibraryError) as caught:
        module.load()
    message = str(caught.value)
    assert isinstance(caught.value, OSError) and "\n" not in message
    return message


def test_every_function_has_its_types() -> None:
    assert declared() == library.PROTOTYPES
    assert header().count("MRC_API") == len(library.PROTOTYPES)
    core = library.load()
    for name, (result, arguments) in library.PROTOTYPES.items():
        function = getattr(core, name)
        assert function.restype is result and list(function.argtypes) == arguments


def test_types_are_read_from_the_header() -> None:
    """The reader of mrc.h itself."""
    assert c_type("uint32_t ") is ctypes.c_uint32
    assert c_type("const char *name") is c_type("const char *") is ctypes.c_char_p
    assert c_type("const int16_t *values") is c_type("void *arena") is ctypes.c_void_p
    assert c_type("const int64_t shape[3]") is ctypes.c_void_p
    assert c_type(" size_t count") is ctypes.c_size_t


def test_numbers_agree_with_the_header() -> None:
    text = (SOURCES / "mrc.h").read_text(encoding="utf-8")
    assert f"#define MRC_ABI {library.ABI}\n" in text
    assert f"MRC_OK = {library.OK}," in text


def test_a_copy_is_loaded(copy: Import) -> None:
    module, _ = copy()
    assert module.backend() == library.backend()


def test_a_missing_library(copy: Import) -> None:
    module, folder = copy()
    (folder / sources.library_path().name).unlink()
    assert re.search(r"libmrc\.\w+: the C core is missing; install mricodec", refusal(module))


@pytest.mark.parametrize("kind", ["text", "library"])
def test_a_foreign_file(copy: Import, kind: str) -> None:
    module, folder = copy()
    file = folder / sources.library_path().name
    file.unlink()
    if kind == "text":
        file.write_text("not a library\n" * 1000)
    else:
        shutil.copy(np._core._multiarray_umath.__file__, file)  # type: ignore[attr-defined]
    assert "not a C core for this system" in refusal(module)


def test_another_abi(copy: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = copy()
    monkeypatch.setattr(module, "ABI", 99)
    assert f"expected ABI 99, found {library.ABI}; install" in refusal(module)


def test_a_library_of_another_installation(copy: Import) -> None:
    module, folder = copy()
    (folder / sources.RECORDED_HASH).write_text("0123456789abcdef\n")
    message = refusal(module)
    assert "0123456789abcdef" in message and library.expected_hash() in message
    (folder / sources.RECORDED_HASH).unlink()
    assert "libmrc.hash is missing" in refusal(copy()[0])


def test_a_stale_library(copy: Import) -> None:
    """With sources beside it, these count, and the message has the command that builds."""
    module, folder = copy()
    for file in SOURCES.rglob("*.[ch]"):
        target = folder / file.relative_to(SOURCES)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    (folder / sources.RECORDED_HASH).unlink()
    assert module.load()
    with (folder / "core.c").open("a") as stream:
        stream.write("/* changed */\n")
    assert f"python {folder / 'compiler.py'} builds it" in refusal(copy()[0])


def test_the_hash_covers_names_and_contents(copy: Import) -> None:
    module, folder = copy()
    seen = {module.sources.source_hash()}
    (folder / "a.c").write_text("int a;\n")
    seen.add(module.sources.source_hash())
    (folder / "a.c").rename(folder / "b.c")
    seen.add(module.sources.source_hash())
    (folder / "b.c").write_text("int b;\n")
    seen.add(module.sources.source_hash())
    assert len(seen) == 4 and None in seen


def best_backend() -> str:
    """The backend that /proc/cpuinfo calls for."""
    machine = platform.machine()
    if machine in ("aarch64", "arm64"):
        return "neon"
    if machine not in ("x86_64", "AMD64"):
        return "scalar"
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("the CPU's flags are read from /proc/cpuinfo")
    line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    if {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"} <= flags:
        return "avx512"
    return "avx2" if "avx2" in flags else "scalar"


def test_the_best_backend_of_the_cpu_is_used(copy: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler whose library runs scalar everywhere would pass all other tests."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    module, _ = copy()
    assert module.backend() == best_backend() == module.backends()[0]
    assert module.backends()[-1] == "scalar"


def test_the_variable_lowers_the_backend(copy: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in library.backends():
        monkeypatch.setenv(library.VARIABLE, name)
        module, _ = copy()
        assert module.backend() == name
        module.use_backend(None)
        assert module.backend() == module.backends()[0]


@pytest.mark.parametrize(
    "name", ["fastest", "AVX2", "neon" if best_backend() != "neon" else "avx2"]
)
def test_an_unknown_backend(copy: Import, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    message = refusal(copy()[0])
    assert message.startswith(f"{library.VARIABLE}={name}: ") and "scalar; choose one" in message


@pytest.fixture(scope="module")
def working() -> compiler.Compiler:
    """A compiler; without one the tests of the build are skipped."""
    try:
        return compiler.find()
    except compiler.CompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of the folder native, as it lies in a checkout."""
    folder = tmp_path / "native"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("libmrc.*", "__pycache__"))
    return folder


def script(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """compiler.py as a script, without installed packages (ziglang would be one)."""
    return python(folder, "-S", str(folder / "compiler.py"), *arguments, **environment)


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with variables of the environment replaced."""
    variables = {"PYTHONPATH": "", **environment}
    kept = {name: value for name, value in os.environ.items() if name != "CC"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**kept, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_checkout_is_built_by_the_script(source_tree: Path, working: compiler.Compiler) -> None:
    """The library and its hash are there afterwards, and nothing of another system."""
    (source_tree / "libmrc.other").touch()
    done = script(source_tree)
    if "no C compiler" in done.stderr:
        pytest.skip("ziglang is the only compiler")
    assert done.returncode == 0, done.stderr
    assert ", ".join(working.backends) in done.stdout
    assert {path.name for path in source_tree.glob("*libmrc*")} == {
        sources.library_path().name, sources.RECORDED_HASH,
    }  # fmt: skip
    assert import_copy(source_tree).backend() in working.backends


@pytest.mark.parametrize("variables", [{}, {"CC": "no-such-compiler -O2"}], ids=["PATH", "CC"])
def test_a_build_without_a_compiler(source_tree: Path, variables: dict[str, str]) -> None:
    done = script(source_tree, PATH="", **variables)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"Error: no C compiler works: {compiler.ADVICE}")
    assert variables.get("CC", "none on PATH").partition(" ")[0] in done.stderr
    assert not list(source_tree.glob("*libmrc*"))


def test_another_system_needs_zig(source_tree: Path) -> None:
    done = script(source_tree, "--target", "aarch64-macos")
    assert done.returncode == 1 and "pip install ziglang" in done.stderr


def test_a_failed_build_leaves_the_library(source_tree: Path, working: compiler.Compiler) -> None:
    (source_tree / sources.library_path().name).write_text("the old one")
    with (source_tree / "core.c").open("a") as stream:
        stream.write("int unfinished(\n")
    done = script(source_tree)
    assert done.returncode == 1
    assert "core.c" in done.stderr.splitlines()[0] or "no C compiler" in done.stderr
    assert [path.read_text() for path in source_tree.glob("*libmrc*")] == ["the old one"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a flag of x86-64")
def test_a_compiler_set_to_one_cpu_is_refused(
    tmp_path: Path, source_tree: Path, working: compiler.Compiler
) -> None:
    import_copy(source_tree)
    module = importlib.import_module("native.compiler")
    with pytest.raises(module.CompilerError, match="set it to the baseline"):
        module.build(tmp_path, working, flags=["-mavx2"])


def test_sources_that_changed_are_compiled(
    source_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests do before they start, where the package runs from a checkout."""
    import_copy(source_tree)
    module = importlib.import_module("native.compiler")
    built: list[Path] = []
    monkeypatch.setattr(module, "build", built.append)
    module.build_if_stale()
    assert built == [source_tree]
    (source_tree / sources.library_path().name).write_text("")
    (source_tree / sources.RECORDED_HASH).write_text(module.sources.source_hash())
    module.build_if_stale()
    assert built == [source_tree]
    with (source_tree / "mrc.h").open("a") as stream:
        stream.write("\n")
    module.build_if_stale()
    assert built == [source_tree, source_tree]


def backend_hook(folder: Path, code: str, **environment: str) -> str:
    """What code prints that uses the build's backend; skipped where setuptools can't build."""
    code = f"import setuptools, build_backend, setuptools.dist as dist\n{code}"
    done = python(folder, "-W", "ignore", "-c", code, **environment)
    if "No module named 'setuptools" in done.stderr:
        pytest.skip("needs setuptools 77")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ziglang_is_asked_for_where_nothing_compiles(
    source_tree: Path, working: compiler.Compiler
) -> None:
    code = "print(build_backend.ziglang())"
    assert backend_hook(source_tree, code, PATH="") == "['ziglang']"
    if "ziglang" not in working.command:
        assert backend_hook(source_tree, code) == "[]"


def test_a_wheel_fits_every_python(source_tree: Path) -> None:
    code = (
        "command = build_backend.PlatformWheel(dist.Distribution({'name': 'x', 'ext_modules': "
        "[setuptools.Extension('x.y', [])]}))\ncommand.ensure_finalized()\nprint(command.get_tag())"
    )
    assert backend_hook(source_tree, code).startswith("('py3', 'none', '")
