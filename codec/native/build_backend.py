"""The build of the package (PEP 517, PEP 660): setuptools, and the C core by compiler.py.

pyproject.toml names it. A wheel fits one platform and every Python: py3-none-<platform>.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import setuptools
from setuptools import build_meta
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

try:
    from . import compiler, sources
except ImportError:  # In a build there is no package around it.
    import compiler  # type: ignore[import-not-found,no-redef]
    import sources  # type: ignore[import-not-found,no-redef]

# As PEP 517 has them.
Settings = Mapping[str, "str | list[str] | None"] | None
EXTENSIONS = ["mricodec.codec.native.library", "mricodec.codec.native.hash"]


class BuildLibrary(build_ext):
    """Builds the library and its hash, which setuptools takes for two extension modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """Path of a file of the package, which setuptools asks for with and without the package."""
        *package, name = fullname.split(".")
        if name == "hash":
            return os.path.join(*package, sources.RECORDED_HASH)
        chosen = working_compiler()
        # Metadata are asked for before there is a compiler, and don't list the library.
        suffix = chosen.suffix if isinstance(chosen, compiler.Compiler) else ""
        return os.path.join(*package, sources.LIBRARY + suffix)

    def build_extensions(self) -> None:
        """Build both files; CompileError, of which setuptools shows one line, if that fails."""
        folder = Path(self.get_ext_fullpath(EXTENSIONS[0])).parent
        chosen = working_compiler()
        try:
            if isinstance(chosen, compiler.CompilerError):
                raise chosen
            library = compiler.build(folder, chosen)
        except compiler.CompilerError as error:
            raise CompileError(str(error)) from error
        print(f"{library}: compiled by {' '.join(chosen.command)}")


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3 of a platform: the library knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """(Python, its ABI, platform)."""
        return "py3", "none", super().get_tag()[2]


@functools.cache
def working_compiler() -> compiler.Compiler | compiler.CompilerError:
    """The compiler of this build, or why there is none."""
    try:
        return compiler.find()
    except compiler.CompilerError as error:
        return error


def ziglang() -> list[str]:
    """What a build needs besides setuptools: a compiler from PyPI where there is no other."""
    try:
        compiler.find(zig=False)
    except compiler.CompilerError:
        return ["ziglang"]
    return []


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What a wheel needs."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *ziglang()]


def get_requires_for_build_editable(
    config_settings: Settings = None,
) -> list[str]:
    """What an editable installation needs."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *ziglang()]


build_editable = build_meta.build_editable
build_sdist = build_meta.build_sdist
build_wheel = build_meta.build_wheel
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel

# The hooks call setuptools.setup(), since there is no setup.py.
setuptools.setup = functools.partial(
    setuptools.setup,
    ext_modules=[setuptools.Extension(name, sources=[]) for name in EXTENSIONS],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
