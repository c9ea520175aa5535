"""Finding and measuring Python source files; plain functions that know nothing of workflows."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "ROOT",
    "Facts",
    "Measure",
    "Row",
    "count_assertions",
    "count_classes",
    "count_functions",
    "deepest_nesting",
    "is_tooling",
    "iter_paths",
    "measure_file",
    "package_of",
]

ROOT = Path(sysconfig.get_path("stdlib"))

INSTALLED = {"__pycache__", "site-packages", "dist-packages"}  # below the root, but not of the standard library
TOOLING = {
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tests",
    "turtledemo",
    "unittest",
    "venv",
}
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where a statement keeps the statements within it

warnings.simplefilter("ignore", SyntaxWarning)  # what others have written is theirs to mend

Facts = dict[str, str | int | None]
Row = tuple[Any, ...]  # of the user's table, in the order of its columns
Statements = Sequence[tuple[ast.AST, int]]
Measure = Callable[[Statements], int]


# -- finding -----------------------------------------------------------------------------------------------------------


def iter_paths() -> Iterator[str]:
    """The standard library's source files in a fixed order, relative to its root, with forward slashes."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(set(folders) - INSTALLED)
        for file in sorted(files):
            if file.endswith(".py"):
                yield Path(folder, file).relative_to(ROOT).as_posix()


def package_of(path: str) -> str:
    """The dotted name of the folder that a file is in; modules at the root form a package of their own."""
    return ".".join(PurePosixPath(path).parent.parts) or "(root)"


def is_tooling(path: str) -> bool:
    """Whether a file serves to test or to develop programs, rather than to run them."""
    return not TOOLING.isdisjoint(PurePosixPath(path).parts)


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure_file(path: str, measures: dict[str, Measure]) -> Facts:
    """Digest, number of lines and the given measures of one file; a measure is None where the file does not parse."""
    source = (ROOT / path).read_bytes()
    facts: Facts = {"sha256": hashlib.sha256(source).hexdigest(), "lines": source.count(b"\n")}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the library's tests keep some broken files on purpose
        return facts | dict.fromkeys(measures)
    statements = list(iter_statements(tree))
    return facts | {name: measure(statements) for name, measure in measures.items()}


def iter_statements(tree: ast.Module) -> Iterator[tuple[ast.AST, int]]:
    """Every statement, with the number of blocks it is nested in."""
    waiting: list[tuple[ast.AST, int]] = [(tree, -1)]
    while waiting:
        parent, depth = waiting.pop()
        for block in BLOCKS:
            inner = depth if _is_clause(parent, block) else depth + 1
            children = [(child, inner) for child in getattr(parent, block, ())]
            yield from children
            waiting += children


def _is_clause(parent: ast.AST, block: str) -> bool:
    """Whether a block holds clauses of the statement (``except``, ``case``, ``elif``), which are no deeper than it."""
    is_elif = block == "orelse" and isinstance(parent, ast.If) and [type(child) for child in parent.orelse] == [ast.If]
    return is_elif or block in ("handlers", "cases")


def count_functions(statements: Statements) -> int:
    return sum(isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) for statement, _ in statements)


def count_classes(statements: Statements) -> int:
    return sum(isinstance(statement, ast.ClassDef) for statement, _ in statements)


def deepest_nesting(statements: Statements) -> int:
    return max((depth for _, depth in statements), default=0)


def count_assertions(statements: Statements) -> int:
    """``assert`` statements, and calls like ``self.assertEqual(…)``."""
    return sum(isinstance(statement, ast.Assert) or _is_assertion_call(statement) for statement, _ in statements)


def _is_assertion_call(statement: ast.AST) -> bool:
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))):
            return name.startswith("assert")
    return False
