"""The rules of CONTRIBUTING.md on names and sizes, file by file; ruff holds the length of lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from paths import ROOT
from quick import QUICK

ROOMS = ("bitstream", "models", "codec", "cli", "benchmarks", "tests")
# What encodes and decodes: its functions are short. The research rooms of models and codec may have
# a training loop or a page in one piece.
PRODUCT = ("bitstream", "models", "codec", "cli")
RESEARCH = (
    "models/study", "models/training", "codec/evaluation", "codec/study", "codec/training",
)  # fmt: skip
MAX_LINES = 50
MAX_PARAMETERS = 6
# Words that name no thing of the field.
BANNED = {
    "found", "made", "given", "own", "beside", "says", "told", "turn", "place", "most", "least",
}  # fmt: skip
BANNED_PREFIX = re.compile(r"(MOST|LEAST)_")
# Functions of the public API with more parameters, and why.
WIDE = {
    "codec/api.py:decode_file": "source, output, and one option for each way to restrict decoding",
    "codec/api.py:Decoder.decode": "one option for each way to restrict decoding",
    "codec/api.py:Decoder.decode_file": "source, output, and the options of Decoder.decode",
    "codec/integrations/batch/__init__.py:run": "two folders, and the options of the command batch",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(rooms: tuple[str, ...]) -> list[str]:
    """Paths of Python files, relative to the root."""
    paths = sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def names(node: ast.AST) -> Iterator[str]:
    """The identifiers that a node introduces or uses."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.keyword(arg=str(name)) | ast.alias(asname=str(name)):
            yield name


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function) of all functions, the inner ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, prefix)


def is_command(function: Function) -> bool:
    """Whether click makes a command of it: its parameters are the options."""
    return any("command(" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("file", files(ROOMS))
def test_identifiers_name_things(file: str) -> None:
    faults = [
        f"{file}:{getattr(node, 'lineno', 0)}: {name}"
        for node in ast.walk(tree(file))
        for name in names(node)
        if name in BANNED or BANNED_PREFIX.match(name)
    ]
    assert not faults, "choose the name of the thing:\n" + "\n".join(faults)


@pytest.mark.parametrize("file", [f for f in files(PRODUCT) if not f.startswith(RESEARCH)])
def test_functions_are_short(file: str) -> None:
    faults = []
    for name, function in functions(tree(file)):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MAX_LINES:
            faults.append(f"{file}:{function.lineno}: {name} has {lines} lines")
    assert not faults, f"at most {MAX_LINES} lines:\n" + "\n".join(faults)


@pytest.mark.parametrize("file", files(PRODUCT))
def test_functions_have_few_parameters(file: str) -> None:
    faults = []
    for name, function in functions(tree(file)):
        arguments = [a.arg for a in function.args.posonlyargs + function.args.args]
        count = (
            len(arguments) + len(function.args.kwonlyargs) - (arguments[:1] in (["self"], ["cls"]))
        )
        if count > MAX_PARAMETERS and not is_command(function) and f"{file}:{name}" not in WIDE:
            faults.append(f"{file}:{function.lineno}: {name} takes {count} parameters")
    assert not faults, f"at most {MAX_PARAMETERS} parameters:\n" + "\n".join(faults)


def test_every_exception_is_needed() -> None:
    for exception, reason in WIDE.items():
        file, name = exception.split(":")
        function = dict(functions(tree(file)))[name]
        parameters = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        assert reason and len(parameters) > MAX_PARAMETERS, exception


def test_the_rules_see_what_they_should() -> None:
    """The checks themselves, on a snippet that breaks every rule."""
    body = "\n".join(["    pass"] * MAX_LINES)
    module = ast.parse(
        f"import x as most\ndef made(a, *, own=1):\n{body}\nMOST_VOXELS = f(told=3).place"
    )
    seen = {name for node in ast.walk(module) for name in names(node)}
    assert {"most", "made", "own", "MOST_VOXELS", "told", "place"} <= seen
    ((name, function),) = functions(module)
    assert name == "made" and function.end_lineno - function.lineno + 1 > MAX_LINES


def test_quick_tests_touch_every_room() -> None:
    """Every entry is a test, and every folder with tests has an entry."""
    rooms = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    for entry in QUICK:
        file, _, test = entry.partition("::")
        path = ROOT / "tests" / file
        assert f"def {test.removesuffix('[')}" in path.read_text(encoding="utf-8"), entry
        rooms.discard(path.parent)
    assert not rooms, "rooms without a quick test"
