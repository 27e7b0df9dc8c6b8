"""The architecture: layers, allowed imports, names and sizes (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

from prefect_executions.runtimes.registry import RUNTIMES
from source_tree import PACKAGE, Function, Module, SourceTree

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"background", "durations", "errors", "fsync", "mediatypes", "seekable", "tracepoints"},
    {"documents", "patterns", "settings"},
    {"lifecycle", "methods", "datasets"},
    {"executions", "descriptors", "query"},
    {"capture", "attestation", "events"},
    {"provenance", "crate", "comparison", "ledger", "objectstore"},
    {"bundles"},
    {"archive", "prefect_api", "runtimes"},
    {"workbench"},
    {"operations"},
    {"flow", "dispatch", "settle"},
    {"discovery", "pipelines"},
    {"web"},
    {"cli", "__main__"},
)
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}

NAMED_ONLY = {"prefect_executions.flow.file"}
"""Modules that a lower layer may name in a string: Prefect loads this one from a deployment's entrypoint."""

HTTP = {"web", "discovery", "runtimes"}
ALLOWED_IN = {
    "prefect": {"flow", "dispatch", "settle", "prefect_api", "runtimes", "discovery", "pipelines"},
    "docker": {"runtimes"},
    "prefect_docker": {"runtimes"},
    "prefect_kubernetes": {"runtimes"},
    "kubernetes": {"runtimes"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web", "prefect_api"},  # prefect_api: the local Prefect server
    "jinja2": {"web"},
    "http": HTTP,
    "httpx": HTTP,
    "requests": HTTP,
    "urllib3": HTTP,
    "websocket": HTTP,
    "urllib.request.Request": HTTP | {"operations.download"},
    "urllib.request.urlopen": HTTP | {"operations.download"},
    "urllib.error": HTTP | {"operations.download"},
    "urllib.response": HTTP | {"operations.download"},
    "aiohttp": {"objectstore"},
    "s3fs": {"objectstore"},
    "sqlalchemy": {"ledger"},
    "alembic": {"ledger"},
    "sqlite3": {"ledger"},
    "psycopg": {"ledger"},
    "numpy": {"ledger", "executions"},
    "pandas": {"workbench.results"},
    "prov": {"provenance"},
    "cryptography": {"attestation"},
    "cyclopts": {"cli"},
}
"""Who may import a library: packages, or single modules (`package.module`)."""

PURE = (
    {"errors", "documents", "mediatypes", "tracepoints", "methods", "descriptors", "lifecycle", "executions", "events"}
    | {"query", "provenance", "crate", "attestation", "comparison"}
)  # fmt: skip
IMPURE_MODULES = {"time", "random", "subprocess", "socket", "tempfile", "shutil", "urllib.request", "asyncio"}
IMPURE_CALLS = re.compile(
    r"^open$|\.(now|utcnow|today|uuid4|read_text|read_bytes|write_text|write_bytes|iterdir)$"
    r"|^os\.(?!fspath$|fsdecode$|fsencode$)"
)
READS_FILES = {"InputFile"}  # the author's code reads the disk through it

NEVER = (
    {"util", "utils", "helper", "helpers", "manager", "handler", "service", "processor"}
    | {"common", "base", "misc", "core", "wrapper", "factory"}
)  # fmt: skip
NOUNS = {"incoming", "keyring", "opening", "recording", "sealing", "staging"}
"""Module names in -ing that are nouns."""
EXITS = {"exit", "quit", "sys.exit", "os._exit", "SystemExit"}

THREADS = {"Thread", "Timer", "start_new_thread"}
STARTS_THREADS = {"background", "capture", "runtimes"}

READS_SETTINGS = {"cli", "flow", "web", "workbench.entry"}

PREFECT_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING"}
"""Prefect's state types that end a flow run, or are about to."""
DEFINES_STATES = {"lifecycle.status"}

TOP = (
    {"pyproject.toml", "README.md", "flows", "src", "deployments", "tests"}
    | {"LICENSE", "CHANGELOG.md", "docs", ".ci", ".github", ".git", ".gitignore"}
)  # fmt: skip

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MIN_SHARED_LINES = 60
MAX_REEXPORTS = 12


def imports_look_down(tree: SourceTree) -> Iterator[str]:
    """An import looks only to a lower layer; packages on one layer do not import each other."""
    for module in _in_packages(tree):
        layer = LAYER_OF.get(module.package)
        if layer is None:
            yield f"{module.at(1)}: the package '{module.package}' is on no layer"
            continue
        for target, line, _, quoted in module.imports:
            package = tree.package_of(target)
            if package is None or package == module.package or (quoted and (not package or target in NAMED_ONLY)):
                continue
            other = LAYER_OF.get(package, len(LAYERS))
            if other >= layer:
                imported = f"{package or PACKAGE} (layer {other})"
                yield f"{module.at(line)}: {module.package} (layer {layer}) imports {imported}"


def imports_have_no_cycles(tree: SourceTree) -> Iterator[str]:
    """No module imports itself through others."""
    imported = {
        name: {
            found
            for target, *_ in module.imports
            if target not in NAMED_ONLY
            if (found := tree.module_of(target)) in tree.modules
        }
        for name, module in tree.modules.items()
        if module.package
    }
    for name in imported:
        cycle = _cycle_through(name, imported)
        if cycle:
            yield f"{tree.modules[name].at(1)}: {' → '.join(cycle)}: a cycle of imports"


def libraries_stay_in_their_packages(tree: SourceTree) -> Iterator[str]:
    """Prefect, HTTP, SQL and other libraries are imported only by the packages that exist for them."""
    for module in _in_packages(tree):
        for target, line, *_ in module.imports:
            for library, allowed in ALLOWED_IN.items():
                if f"{target}.".startswith(f"{library}.") and not _is_in(module, allowed):
                    yield f"{module.at(line)}: {target} may be imported in {', '.join(sorted(allowed))} only"


def pure_packages_touch_nothing(tree: SourceTree) -> Iterator[str]:
    """A pure package uses no clock, disk, process or network: values in, values out."""
    for module in _in_packages(tree):
        if module.package not in PURE:
            continue
        for target, line, *_ in module.imports:
            if any(target == name or target.startswith(f"{name}.") for name in IMPURE_MODULES):
                yield f"{module.at(line)}: {module.package} is pure and imports {target}"
        excused = {line for found in module.classes() if found.name in READS_FILES for line in _lines_of(found)}
        for called, line in module.calls():
            if IMPURE_CALLS.search(called) and line not in excused:
                yield f"{module.at(line)}: {module.package} is pure and calls {called}()"


def only_the_command_line_exits(tree: SourceTree) -> Iterator[str]:
    """Only `cli` ends the process."""
    for module in tree.modules.values():
        if module.package in {"cli", "__main__"}:
            continue
        for called, line in module.calls():
            if called in EXITS:
                yield f"{module.at(line)}: {called}() outside cli"
        for node in module.nodes:
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id == "SystemExit":
                yield f"{module.at(node.lineno)}: raises SystemExit outside cli"


def settings_are_read_at_entry_points(tree: SourceTree) -> Iterator[str]:
    """Settings are read once, where a command, a request or a run begins, and passed down as values."""
    for module in _in_packages(tree):
        for called, line in module.calls():
            if called.endswith("Settings.read") and not _is_in(module, READS_SETTINGS):
                yield f"{module.at(line)}: {called}() outside {', '.join(sorted(READS_SETTINGS))}"


def names_say_what_they_name(tree: SourceTree) -> Iterator[str]:
    """No module or class has a name that could stand for anything; modules are named by nouns, except commands."""
    for module in tree.modules.values():
        own = module.name.rpartition(".")[2]
        named = [(own, 1), *((found.name, found.lineno) for found in module.classes())]
        for name, line in named:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
            if words & NEVER:
                yield f"{module.at(line)}: '{name}' contains '{min(words & NEVER)}', which says nothing"
        if own.endswith("ing") and own not in NOUNS and module.package != "cli":
            yield f"{module.at(1)}: '{own}' is a verb form; name the module for the thing that it defines"


def class_names_are_unique(tree: SourceTree) -> Iterator[str]:
    """A class name exists once in the package."""
    found = defaultdict(list)
    for module in tree.modules.values():
        for node in module.classes():
            found[node.name].append((module, node.lineno))
    for name, places in found.items():
        for module, line in places[1:]:
            yield f"{module.at(line)}: class {name} exists in {places[0][0].at(places[0][1])} as well"


def modules_and_functions_have_a_fair_size(tree: SourceTree) -> Iterator[str]:
    """No module has more than 500 lines, no function more than 60; a module below 60 lines serves more than one."""
    for module in tree.modules.values():
        if len(module.lines) > MAX_MODULE_LINES:
            yield f"{module.at(1)}: {len(module.lines)} lines, more than {MAX_MODULE_LINES}"
        importers = tree.importers[module.name]
        if len(module.lines) < MIN_SHARED_LINES and len(importers) == 1 and not module.is_package:
            importer = min(importers)
            if importer.rpartition(".")[0] == module.name.rpartition(".")[0] and module.package:
                yield f"{module.at(1)}: {len(module.lines)} lines, imported by {importer} only; put it there"
        for function in module.functions():
            length = len(_lines_of(function))
            if length > MAX_FUNCTION_LINES:
                yield f"{module.at(function.lineno)}: {function.name} has {length} lines, more than 60"


def packages_export_little(tree: SourceTree) -> Iterator[str]:
    """An `__init__` re-exports at most 12 names; everything else is imported from the module that defines it."""
    for module in tree.modules.values():
        names = [alias for node in module.tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
        if module.is_package and len(names) > MAX_REEXPORTS:
            yield f"{module.at(1)}: re-exports {len(names)} names, more than {MAX_REEXPORTS}"


def everything_public_is_documented(tree: SourceTree) -> Iterator[str]:
    """A module begins with one sentence; a public function or class has a docstring."""
    for module in tree.modules.values():
        first = (ast.get_docstring(module.tree) or "").partition("\n")[0]
        if not first.endswith((".", "::")) or ". " in first:
            yield f"{module.at(1)}: the module does not begin with one sentence"
        for node in module.tree.body:
            if not isinstance(node, ast.ClassDef | Function) or node.name[0] == "_" or _is_overload(node):
                continue
            if not ast.get_docstring(node):
                yield f"{module.at(node.lineno)}: {node.name} has no docstring"


def late_imports_have_a_reason(tree: SourceTree) -> Iterator[str]:
    """An import inside a function has a comment with its reason, beside it or above its group."""
    for module in tree.modules.values():
        late = {
            line
            for _, line, inside, quoted in module.imports
            if inside and not quoted
            if "import" in module.lines[line - 1]
        }
        for line in sorted(late):
            group = [line]
            while group[-1] in late or not module.lines[group[-1] - 1].strip():
                group.append(group[-1] - 1)
            if not any(_gives_reason(module.lines[number - 1]) for number in group):
                yield f"{module.at(line)}: an import inside a function without a comment that says why"


def prefect_state_sets_are_defined_once(tree: SourceTree) -> Iterator[str]:
    """Only `lifecycle.status` lists Prefect's terminal states; other modules ask `PrefectState` or its set."""
    for module in _in_packages(tree):
        if _is_in(module, DEFINES_STATES):
            continue
        for node in module.nodes:
            if not isinstance(node, ast.Set | ast.List | ast.Tuple):
                continue
            states = [state for part in node.elts if (state := _prefect_state(part)) and state in PREFECT_STATES]
            if len(states) > 1:
                yield f"{module.at(node.lineno)}: lists Prefect's states {', '.join(map(str, states))}"


def runtimes_are_compared_in_their_package_only(tree: SourceTree) -> Iterator[str]:
    """Only `runtimes` compares names of runtimes; other packages ask the entry in its registry."""
    for module in _in_packages(tree):
        if module.package == "runtimes":
            continue
        for node in module.nodes:
            if isinstance(node, ast.Compare):
                parts = [part for side in (node.left, *node.comparators) for part in getattr(side, "elts", [side])]
            elif isinstance(node, ast.Dict):
                parts = [key for key in node.keys if key is not None]
            else:
                continue
            names = {part.value for part in parts if isinstance(part, ast.Constant)} & RUNTIMES.keys()
            if names and (isinstance(node, ast.Compare) or len(names) > 1):
                yield f"{module.at(node.lineno)}: tells runtimes apart by name: {', '.join(sorted(names))}"


def threads_start_in_few_places(tree: SourceTree) -> Iterator[str]:
    """Only `background`, `capture` and `runtimes` start threads; other modules submit work to the first.

    A bounded `ThreadPoolExecutor` inside one function is no background thread: its work ends before the function does.
    """
    for module in _in_packages(tree):
        if _is_in(module, STARTS_THREADS):
            continue
        named = [
            *module.calls(),
            *((ast.unparse(base), node.lineno) for node in module.classes() for base in node.bases),
        ]
        for name, line in named:
            if name.split(".")[-1] in THREADS:
                yield f"{module.at(line)}: {name} outside {', '.join(sorted(STARTS_THREADS))}"


VERIFIES = {"verify", "verify_target", "verify_execution", "open_replayable", "share", "share_it"}
"""Functions that verify a bundle; their default policy trusts no key."""


def verifications_name_their_signature_policy(tree: SourceTree) -> Iterator[str]:
    """A call that verifies a bundle says which signatures it accepts."""
    for module in _in_packages(tree):
        for node in module.nodes:
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in VERIFIES):
                continue
            if "signatures" not in {keyword.arg for keyword in node.keywords}:
                yield f"{module.at(node.lineno)}: {node.func.id}() without signatures="


RULES = [
    imports_look_down,
    imports_have_no_cycles,
    libraries_stay_in_their_packages,
    pure_packages_touch_nothing,
    only_the_command_line_exits,
    settings_are_read_at_entry_points,
    names_say_what_they_name,
    class_names_are_unique,
    modules_and_functions_have_a_fair_size,
    packages_export_little,
    everything_public_is_documented,
    late_imports_have_a_reason,
    prefect_state_sets_are_defined_once,
    runtimes_are_compared_in_their_package_only,
    threads_start_in_few_places,
    verifications_name_their_signature_policy,
]


def _in_packages(tree: SourceTree) -> Iterator[Module]:
    return (module for module in tree.modules.values() if module.package)


def _is_in(module: Module, allowed: set[str]) -> bool:
    return module.package in allowed or module.name.partition(".")[2] in allowed


def _prefect_state(node: ast.expr) -> object:
    if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("StateType"):
        return node.attr
    return node.value if isinstance(node, ast.Constant) else None


def _is_overload(node: ast.ClassDef | Function) -> bool:
    return any(ast.unparse(decorator).split(".")[-1] == "overload" for decorator in node.decorator_list)


def _cycle_through(name: str, imported: Mapping[str, set[str]]) -> list[str]:
    paths = {name: [name]}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        for target in sorted(imported.get(current, ())):
            if target == name:
                return [*paths[current], name]
            if target not in paths:
                paths[target] = [*paths[current], target]
                waiting.append(target)
    return []


def _lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _gives_reason(line: str) -> bool:
    _, mark, comment = line.partition("#")
    words = re.sub(r"noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?", "", comment)
    return bool(mark) and len(re.findall(r"\w+", words)) > 1


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree(ROOT / "src" / PACKAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_follows_the_rule(rule: Callable[[SourceTree], Iterator[str]], tree: SourceTree):
    violations = list(rule(tree))
    assert not violations, f"{rule.__doc__}\n" + "\n".join(violations)


VIOLATIONS = {
    "imports_look_down": [
        (
            "lifecycle.py",
            "from prefect_executions.bundles import write",
            "lifecycle.py:1: lifecycle (layer 2) imports bundles (layer 6)",
        ),
        ("lifecycle.py", "from prefect_executions import methods", "imports methods (layer 2)"),
        ("lifecycle.py", "if TYPE_CHECKING:\n    from .archive import Archive", "lifecycle.py:2"),
        ("lifecycle.py", "def f():\n    import prefect_executions.cli", "lifecycle.py:2"),
        ("lifecycle.py", "import_module('prefect_executions.cli')", "imports cli"),
        ("lifecycle.py", "from prefect_executions import method", "imports prefect_executions (layer 14)"),
        ("runtimes/docker.py", "from ..workbench import Workbench", "imports workbench (layer 8)"),
        ("attic.py", "", "attic.py:1: the package 'attic' is on no layer"),
        ("workbench.py", "RUN = [sys.executable, '-m', 'prefect_executions.cli.app']", "imports cli (layer 13)"),
        (
            "workbench.py",
            "RUN = 'import sys; from prefect_executions.cli import main; main()'",
            "imports cli (layer 13)",
        ),
    ],
    "imports_have_no_cycles": [
        ("runtimes/docker.py", "def f():\n    from prefect_executions.runtimes.process import g", "a cycle of imports"),
    ],
    "libraries_stay_in_their_packages": [
        ("capture.py", "import prefect.context", "capture.py:1: prefect.context may be imported in"),
        ("cli.py", "def doctor():\n    from fastapi import FastAPI", "cli.py:2"),
        ("workbench.py", "import sqlalchemy", "in ledger only"),
        (
            "workbench.py",
            "from urllib.request import urlopen",
            "workbench.py:1: urllib.request.urlopen may be imported",
        ),
    ],
    "pure_packages_touch_nothing": [
        ("crate.py", "import os\nhere = os.getcwd()", "crate.py:2: crate is pure and calls os.getcwd()"),
        ("crate.py", "from time import sleep", "crate is pure and imports time"),
        ("crate.py", "from datetime import datetime\nx = datetime.now()", "calls datetime.now()"),
        ("provenance.py", "x = open('a')", "calls open()"),
    ],
    "only_the_command_line_exits": [
        ("flow.py", "import sys\nsys.exit(1)", "flow.py:2: sys.exit() outside cli"),
        ("flow.py", "raise SystemExit", "raises SystemExit outside cli"),
    ],
    "settings_are_read_at_entry_points": [
        ("workbench.py", "def f():\n    return Settings.read()", "workbench.py:2: Settings.read() outside cli, flow"),
    ],
    "names_say_what_they_name": [
        ("runtimes/util.py", "", "'util' contains 'util'"),
        ("flow.py", "class HTTPServiceThing: ...", "contains 'service'"),
        ("runtimes/telling.py", "", "'telling' is a verb form"),
    ],
    "class_names_are_unique": [
        ("workbench.py", "class Taken: ...", "class Taken exists in src/prefect_executions/archive.py:1 as well"),
    ],
    "modules_and_functions_have_a_fair_size": [
        ("flow.py", "x = 1\n" * 501, "501 lines"),
        ("flow.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("runtimes/docker.py", "x = 1", "imported by prefect_executions.runtimes.process only; put it there"),
    ],
    "packages_export_little": [
        ("runtimes/__init__.py", "".join(f"from .docker import a{n}\n" for n in range(13)), "re-exports 13 names"),
    ],
    "everything_public_is_documented": [
        ("flow.py", "", "flow.py:1: the module does not begin with one sentence"),
        ("flow.py", '"""A flow. And more."""', "one sentence"),
        ("flow.py", '"""A flow."""\ndef run(): ...', "flow.py:2: run has no docstring"),
    ],
    "late_imports_have_a_reason": [
        ("flow.py", "def f():\n    import json", "flow.py:2"),
        ("flow.py", "def f():\n    import json  # noqa: PLC0415", "flow.py:2"),
    ],
    "runtimes_are_compared_in_their_package_only": [
        ("flow.py", "own = settings.runtime == 'process'", "flow.py:1: tells runtimes apart by name: process"),
        ("flow.py", "own = name not in {'docker', 'slurm'}", "tells runtimes apart by name: docker"),
        ("cli.py", "ADVICE = {'docker': 'a', 'kubernetes': 'b'}", "tells runtimes apart by name: docker, kubernetes"),
    ],
    "prefect_state_sets_are_defined_once": [
        ("flow.py", "ENDS = {'COMPLETED', 'FAILED'}", "flow.py:1: lists Prefect's states COMPLETED, FAILED"),
        ("flow.py", "ENDS = [StateType.CRASHED, StateType.CANCELLED]", "lists Prefect's states CRASHED, CANCELLED"),
    ],
    "threads_start_in_few_places": [
        (
            "flow.py",
            "def f(g):\n    threading.Thread(target=g).start()",
            "flow.py:2: threading.Thread outside",
        ),
        ("workbench.py", "from threading import Timer\nTimer(1, print).start()", "workbench.py:2: Timer outside"),
        ("flow.py", "class Replica(threading.Thread): ...", "flow.py:1: threading.Thread outside"),
    ],
    "verifications_name_their_signature_policy": [
        ("workbench.py", "report = verify(source, limits=limits)", "workbench.py:1: verify() without signatures="),
    ],
}


@pytest.mark.parametrize(
    ("rule", "file", "text", "message"),
    [(rule, *violation) for rule in RULES for violation in VIOLATIONS[rule.__name__]],
)
def test_a_violation_is_reported_with_file_and_line(rule, file, text, message, tmp_path):
    planted = tmp_path / "src" / PACKAGE
    files = {
        "__init__.py": "",
        "bundles.py": "",
        "archive.py": "class Taken: ...",
        "cli.py": "",
        "methods.py": "",
        "workbench.py": "",
        "runtimes/__init__.py": "",
        "runtimes/process.py": "from . import docker",
        "runtimes/docker.py": "",
    }
    for name, content in (files | {file: text}).items():
        (planted / name).parent.mkdir(parents=True, exist_ok=True)
        (planted / name).write_text(content)
    violations = list(rule(SourceTree(planted)))
    assert any(
        re.match(rf"src/{PACKAGE}/{re.escape(file)}:\d+: ", violation) and message in violation
        for violation in violations
    ), violations


def test_a_reason_above_a_group_of_late_imports_counts_for_all_of_it(tmp_path):
    planted = tmp_path / "src" / PACKAGE
    planted.mkdir(parents=True)
    (planted / "cli.py").write_text("def f():\n    # start-up time of the CLI\n    import json\n\n    import re\n")
    assert not list(late_imports_have_a_reason(SourceTree(planted)))


def test_an_audit_event_named_like_a_module_is_not_an_import(tmp_path):
    planted = tmp_path / "src" / PACKAGE
    planted.mkdir(parents=True)
    (planted / "errors.py").write_text("EVENT = 'prefect_executions.milestone'\n")
    assert not list(imports_look_down(SourceTree(planted)))


def test_the_top_level_holds_what_was_agreed_and_nothing_else():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    unexpected = [
        path.name
        for path in ROOT.iterdir()
        if path.name not in TOP and not any(fnmatch(path.name, pattern) for pattern in ignored)
    ]
    assert not unexpected, f"not agreed for the top level: {', '.join(sorted(unexpected))}"


def test_no_file_names_a_machine_or_a_registry_host():
    hosts = ["pypi" + ".org", "python" + "hosted", "registry." + "npmjs", "deb." + "debian", "proxy." + "golang"]
    places = [rf"(?<![\w.<>-])/{folder}/" for folder in ("work", "root", "farm")]
    wrong = re.compile("|".join([*map(re.escape, hosts), *places]))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _own_text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if wrong.search(line)
    ]
    assert not found, "\n".join(found)


def _own_text_files() -> Iterator[Path]:
    endings = {".py", ".md", ".toml", ".sh", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".html", ".mako", ""}
    for name in sorted(TOP - {".git"}):
        top = ROOT / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and path.suffix in endings and "__pycache__" not in path.parts:
                yield path
