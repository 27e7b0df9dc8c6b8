"""The statements of a notebook's executed cells that a function needs (a program slice), as one file that runs alone.

Statements keep the order in which they ran, and the last definition of a name counts. Other cells are left out:
a replay must not repeat trials, plots or runs, and the digest of the code must not change with them. Only top-level
statements are judged, by the names in their bytecode; code that changes an object under another name is missed.

Law: a statement with a key or password in plain text, or that changes the environment, is never in the text.
"""

from __future__ import annotations

import ast
import builtins
import dis
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from types import CodeType
from typing import Any, NamedTuple

from prefect_executions.capture.secrets import SecretMask, looks_secret, mask_credentials
from prefect_executions.methods.secrets import is_withheld

_SIMPLE = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_AT_ONCE = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}
_RUN_MAGICS = {"run_cell_magic": 2, "run_line_magic": 1}
"""The position of the code among the arguments, for magics that run it."""
_TIMING = {"time", "capture", "prun"}
_SHOWING = ("head", "tail", "describe", "info", "sample", "hist", "plot", "show", "to_", "save", "serve", "deploy")
"""Beginnings of the names of methods that show or write their object and do not change it."""
_CHANGES_ENVIRONMENT = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__", "__ior__"}
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Unmet(NamedTuple):
    """A global name that the statements use and that a replay does not have."""

    name: str
    why: str


class Slice(NamedTuple):
    """The text of the needed statements, and the names that they lack."""

    text: str
    unmet: tuple[Unmet, ...]


@dataclass(frozen=True, kw_only=True)
class _CellStatement:
    text: str
    stores: frozenset[str]
    """Names that it binds, perhaps only under a condition."""
    binds: frozenset[str]
    """Names that it always binds: earlier bindings do not count before it."""
    touches: frozenset[str]
    """Names that it may bind, or whose objects it may change."""
    uses: frozenset[str]
    deferred: frozenset[str]
    """Global names that the functions in it use when they are called."""
    calls: frozenset[str]
    star: bool
    future: bool
    awaits: bool
    withheld: str
    """Why it is not kept; empty if it is."""


def slice_of(
    cells: Sequence[str], name: str, cell: str, *, known: AbstractSet[str], is_run: Callable[[str], bool]
) -> Slice | None:
    """Return what the function *name*, defined at the top level of *cell*, needs; None if *cells* lack it.

    *cells* are texts in the order of execution. *known* are the global names that exist now. *is_run* says whether
    calling the object with a name begins a run of Prefect.
    """
    last = max((number for number, text in enumerate(cells) if text.strip() == cell.strip()), default=None)
    if last is None:
        return None
    statements = [
        statement
        for number, text in enumerate(cells)
        for statement in _statements(text)
        if number <= last or name not in statement.binds
    ]
    if not any(name in statement.binds for statement in statements):
        return None
    needed, missing = _needed(statements, name, is_run)
    kept = sorted((each for each in needed if not each.withheld), key=lambda each: not each.future)
    text = "\n\n".join(statement.text for statement in kept) + "\n"
    return Slice(text, tuple(_unmet(needed, missing & known, is_run)))


def _needed(
    statements: Sequence[_CellStatement], name: str, is_run: Callable[[str], bool]
) -> tuple[list[_CellStatement], frozenset[str]]:
    """Return the needed *statements*, and the names that they use and none of them binds."""
    by_name: dict[str, set[str]] = {}
    for statement in statements:
        by_name.update((bound, set(statement.deferred)) for bound in statement.binds)
        for changed in statement.touches:
            by_name.setdefault(changed, set()).update(statement.deferred)
    final = _closure({name}, by_name)
    while True:
        live, chosen, deferred = set(final), list[_CellStatement](), set[str]()
        for statement in reversed(statements):
            runs_only = any(map(is_run, statement.calls)) and not statement.binds & live
            if runs_only or not (statement.star or statement.future or live & (statement.binds | statement.touches)):
                continue
            chosen.append(statement)
            live -= statement.binds
            live |= _closure(statement.uses, by_name) | (statement.touches - statement.binds)
            deferred |= statement.deferred
        if deferred <= final:
            stored = set(chain.from_iterable(each.stores for each in chosen))
            anything = any(each.star for each in chosen)
            return chosen[::-1], frozenset() if anything else frozenset(live - stored)
        final |= _closure(deferred, by_name)


def _closure(names: Iterable[str], by_name: dict[str, set[str]]) -> set[str]:
    """Return *names* and those that the functions with these names use, also indirectly."""
    result, waiting = set(names), list(names)
    while waiting:
        new = by_name.get(waiting.pop(), set()) - result
        result |= new
        waiting += new
    return result


def _unmet(
    statements: Iterable[_CellStatement], missing: Iterable[str], is_run: Callable[[str], bool]
) -> Iterator[Unmet]:
    for absent in sorted(missing):
        if not hasattr(builtins, absent) and absent != "get_ipython":
            yield Unmet(absent, "no executed cell defines it")
    for statement in statements:
        for name in sorted(statement.binds | statement.touches):
            runs = sorted(filter(is_run, statement.calls))
            if statement.withheld:
                yield Unmet(name, statement.withheld)
            elif statement.awaits:
                yield Unmet(name, "its cell uses 'await' outside a function")
            elif "get_ipython" in statement.uses:
                yield Unmet(name, "its cell uses a command of IPython")
            elif runs and not statement.deferred:
                yield Unmet(name, f"it is the result of a run of '{runs[0]}', which a replay would repeat")


@lru_cache(maxsize=16384)
def _statements(cell: str) -> tuple[_CellStatement, ...]:
    try:
        tree = ast.parse(cell)
        lines = cell.splitlines()
        return tuple(chain.from_iterable(_judged(node, cell, lines) for node in tree.body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return ()


def _judged(node: ast.stmt, cell: str, lines: Sequence[str]) -> Iterator[_CellStatement]:
    inner = _run_by_magic(node)
    if inner is not None:
        yield from _statements(inner)
        return
    try:
        code = compile(ast.Module([node], []), "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError):
        return
    stored, uses, deferred = set[str](), set[str](), set[str]()
    _read(code, stored, uses, deferred)
    withheld = _withheld(node)
    if withheld:
        uses, deferred = set(), set()
    future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    always = isinstance(node, _SIMPLE) and not future
    yield _CellStatement(
        text=_text(node, cell, lines),
        stores=frozenset(stored),
        binds=frozenset(stored) if always else frozenset(),
        touches=frozenset(_changed(node) if always or isinstance(node, ast.Expr) else {*stored, *_changed(node)}),
        uses=frozenset(uses),
        deferred=frozenset(deferred),
        calls=frozenset(_name(each.func) for each in _walk(node) if isinstance(each, ast.Call)),
        star=isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names),
        future=future,
        awaits=any(isinstance(each, ast.Await | ast.AsyncFor | ast.AsyncWith) for each in _walk(node)),
        withheld=withheld,
    )


def _withheld(node: ast.stmt) -> str:
    """Return why *node* must not be kept; an empty text if it may. Functions are kept, like those of modules."""
    if isinstance(node, _FUNCTIONS):
        return ""
    parts = list(_walk(node))
    if any(is_withheld(name, value) for part in parts for name, value in _named_constants(part)) or any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and _is_key(part.value) for part in parts
    ):
        return "its statement holds a key or password in plain text"
    if any(map(_changes_environment, parts)):
        return "its statement changes the environment; set the variable before a replay"
    return ""


def _is_key(text: str) -> bool:
    found = SecretMask()
    mask_credentials(text, found)
    # Names of models and folders look as random as keys, but have more than letters and digits.
    return bool(found) or (text.isalnum() and looks_secret("", text))


def _named_constants(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield the constants that *node* assigns or passes, with the name of the variable, attribute, key or argument."""
    pairs: list[tuple[ast.expr | str | None, ast.expr | None]] = []
    match node:
        case ast.Assign():
            pairs = [(target, node.value) for target in node.targets]
        case ast.AnnAssign() | ast.NamedExpr() | ast.AugAssign():
            pairs = [(node.target, node.value)]
        case ast.keyword():
            pairs = [(node.arg, node.value)]
        case ast.Dict():
            pairs = list(zip(node.keys, node.values, strict=True))
        case ast.Call():  # such as config.set("token", "…")
            pairs = list(pairwise(node.args))
    while pairs:
        target, value = pairs.pop()
        if isinstance(value, ast.Tuple | ast.List | ast.Set):
            targets = target.elts if isinstance(target, ast.Tuple | ast.List) else [target] * len(value.elts)
            pairs += zip(targets, value.elts, strict=False)  # of a, *b = 1, 2, 3 the rest has no name
        elif isinstance(value, ast.Constant):
            yield _last_name(target), value.value


def _last_name(target: ast.expr | str | None) -> str:
    match target:
        case str(name) | ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
            return name
        case ast.Subscript(slice=key):
            return _last_name(key)
    return ""


def _changes_environment(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(value=target, ctx=ast.Store() | ast.Del()) | ast.AugAssign(target=target):
            return _is_environment(target)
        case ast.Attribute(attr="environ", ctx=ast.Store() | ast.Del()):
            return True
        case ast.Call(func=ast.Attribute(value=target, attr=name)):
            return name in {"putenv", "unsetenv"} or (name in _CHANGES_ENVIRONMENT and _is_environment(target))
        case ast.Call(func=ast.Name(id=name)):
            return name in {"putenv", "unsetenv"}
    return False


def _is_environment(node: ast.expr) -> bool:
    return _last_name(node) in {"environ", "environb"} and isinstance(node, ast.Name | ast.Attribute)


def _read(code: CodeType, stored: set[str], uses: set[str], deferred: set[str]) -> None:
    """Add the global names in *code*, which runs at once, and in the functions that it makes."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _LOADS:
            uses.add(instruction.argval)
        elif instruction.opname in {"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME"}:
            stored.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            own = set[str]()  # the names that the body of a class stores are attributes
            is_class = "__qualname__" in constant.co_names and "__module__" in constant.co_names
            at_once = is_class or constant.co_name in _AT_ONCE
            _read(constant, own, uses if at_once else deferred, deferred)


def _walk(node: ast.AST) -> Iterator[Any]:
    """Yield *node* and the nodes in it that run at once, without the bodies of functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, _FUNCTIONS) and child in (node.body if isinstance(node.body, list) else [node.body])):
            yield from _walk(child)


def _changed(node: ast.stmt) -> Iterator[str]:
    """Yield the names of objects that *node* changes by an assignment to a part of them, or perhaps by a call."""
    for each in _walk(node):
        if isinstance(each, ast.Attribute | ast.Subscript) and isinstance(each.ctx, ast.Store | ast.Del):
            yield from _root(each)
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            call = each.value
            if isinstance(call.func, ast.Attribute) and not call.func.attr.startswith(_SHOWING):
                yield from _root(call.func)
            called = _name(call.func)
            if not hasattr(builtins, called) and called != "display":
                yield from chain.from_iterable(map(_root, (*call.args, *(keyword.value for keyword in call.keywords))))


def _root(node: ast.AST) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _run_by_magic(node: ast.stmt) -> str | None:
    """Return the code in a call such as ``get_ipython().run_cell_magic('time', '', code)``; None for anything else."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return None
    call = node.value
    values = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    position = _RUN_MAGICS.get(call.func.attr, 0) if isinstance(call.func, ast.Attribute) else 0
    if not position or len(values) <= position or values[0] not in _TIMING:
        return None
    return str(values[position])


def _text(node: ast.stmt, cell: str, lines: Sequence[str]) -> str:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    text = "\n".join(lines[first - 1 : node.end_lineno])
    segment = ast.get_source_segment(cell, node) or text
    try:  # a line may have several statements
        return text if len(ast.parse(text).body) == 1 else segment
    except SyntaxError:
        return segment
