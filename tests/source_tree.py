"""The source tree as values: the modules, what each imports and on which line; read by `test_architecture`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "prefect_executions"

Function = ast.FunctionDef | ast.AsyncFunctionDef

_IMPORT_IN_TEXT = re.compile(rf"\b(?:from|import)\s+({PACKAGE}(?:\.\w+)*)(?:\s+import\s+(\w+))?")
_MODULE_NAME = re.compile(rf"{PACKAGE}(\.\w+)+(:\S*)?")


class Import(NamedTuple):
    """One import: the full name of its target, its line, whether a function contains it, whether it is in a string."""

    target: str
    line: int
    inside: bool
    quoted: bool = False


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name and its text."""

    name: str
    path: str
    text: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the tree, which many rules read."""
        return tuple(ast.walk(self.tree))

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def package(self) -> str:
        """The first name below `prefect_executions`, or "" for `prefect_executions` itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    def at(self, line: int) -> str:
        return f"{self.path}:{line}"

    def functions(self) -> Iterator[Function]:
        return (node for node in self.nodes if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in self.nodes if isinstance(node, ast.ClassDef))

    def calls(self) -> Iterator[tuple[str, int]]:
        """Yield the dotted name of each call, as written, and its line."""
        for node in self.nodes:
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node.lineno

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports: at the top, in functions, for types only, and those written in strings.

        A string counts when it names a module of the package, alone or in an import statement: it may be
        given to `import_module`, to `python -m` or to `python -c`.
        """
        inside = {id(node) for function in self.functions() for node in ast.walk(function) if node is not function}
        docstrings = set(self._docstrings())
        return tuple(
            Import(target, node.lineno, id(node) in inside, isinstance(node, ast.Constant))
            for node in self.nodes
            if id(node) not in docstrings
            for target in self._targets(node)
        )

    def _docstrings(self) -> Iterator[int]:
        for node in self.nodes:
            if isinstance(node, ast.Module | ast.ClassDef | Function):
                yield from (id(part.value) for part in node.body if isinstance(part, ast.Expr))

    def _targets(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = self._origin(node)
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _targets_in(node.value)

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        above = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*above, *([node.module] if node.module else [])])


class SourceTree:
    """All modules of a package folder, by dotted name."""

    def __init__(self, folder: Path) -> None:
        self.modules = {module.name: module for module in _read(folder)}

    @cached_property
    def packages(self) -> set[str]:
        return {module.package for module in self.modules.values()} - {""}

    def package_of(self, target: str) -> str | None:
        """Return the package that an import of *target* loads: "" for the top package, None for another project."""
        top, _, rest = target.partition(".")
        package = rest.partition(".")[0]
        return None if top != PACKAGE else package if package in self.packages or "." in rest else ""

    def module_of(self, target: str) -> str | None:
        """Return the module that an import of *target* loads, or None for another project."""
        if target.split(".", maxsplit=1)[0] != PACKAGE:
            return None
        while target not in self.modules and "." in target:
            target = target.rpartition(".")[0]
        return target

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """The modules that import each module."""
        found: dict[str, set[str]] = {name: set() for name in self.modules}
        for module in self.modules.values():
            for target, *_ in module.imports:
                name = self.module_of(target)
                if name in found and name != module.name:
                    found[name].add(module.name)
        return found


def _targets_in(text: str) -> Iterator[str]:
    if _MODULE_NAME.fullmatch(text):
        yield text.partition(":")[0]
    for module, name in _IMPORT_IN_TEXT.findall(text):
        yield f"{module}.{name}" if name else module


def _read(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        shown = path.relative_to(folder.parents[1]).as_posix()
        yield Module(name, shown, path.read_text(encoding="utf-8"), is_package)
