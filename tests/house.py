"""The source tree as values: modules, what they import and where; read by `test_house`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "prefect_executions"

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One import: the full name of what is imported, its line, and whether a function holds it."""

    target: str
    line: int
    inside: bool


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
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def room(self) -> str:
        """The part of the name after the package, or nothing for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    def at(self, line: int) -> str:
        return f"{self.path}:{line}"

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def calls(self) -> Iterator[tuple[str, int]]:
        """Yield each call's dotted name as it is written, and its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node.lineno

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports: at the top, in functions, for types only, and by `import_module` with a written name."""
        inside = {id(node) for function in self.functions() for node in ast.walk(function) if node is not function}
        return tuple(
            Import(target, node.lineno, id(node) in inside)
            for node in ast.walk(self.tree)
            for target in self._targets(node)
        )

    def _targets(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = self._origin(node)
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        above = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*above, *([node.module] if node.module else [])])


class House:
    """All modules of a package folder, by dotted name."""

    def __init__(self, folder: Path) -> None:
        self.modules = {module.name: module for module in _read(folder)}

    @cached_property
    def rooms(self) -> set[str]:
        return {module.room for module in self.modules.values()} - {""}

    def room_of(self, target: str) -> str | None:
        """Return the room that an import of *target* enters, "" for the package itself, None for another package."""
        package, _, rest = target.partition(".")
        room = rest.partition(".")[0]
        return None if package != PACKAGE else room if room in self.rooms or "." in rest else ""

    def known(self, target: str) -> str | None:
        """Return the module that an import of *target* runs, or None for one of another package."""
        if target.split(".", maxsplit=1)[0] != PACKAGE:
            return None
        while target not in self.modules and "." in target:
            target = target.rpartition(".")[0]
        return target


def _read(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        shown = path.relative_to(folder.parents[1]).as_posix()
        yield Module(name, shown, path.read_text(encoding="utf-8"), is_package)
