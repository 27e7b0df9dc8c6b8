"""The house keeps its laws: imports look down, names are honest, rooms stay small (design, section 6)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

from house import PACKAGE, Function, House, Module

ROOT = Path(__file__).parents[1]

FLOORS = (
    {"errors"},  # the ground, where anybody stands
    {"documents", "media", "settings", "durability", "milestones", "phases"},
    {"methods", "lifecycle"},
    {"executions", "events", "query"},
    {"provenance", "crate", "attestation", "comparison", "capture", "access", "ledger"},
    {"bundles"},
    {"archive", "runtimes", "engine"},
    {"workbench"},
    {"flow", "dispatch", "settle", "pages"},
    {"api"},
    {"cli", "__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

HTTP = {"api", "pages"}
WORLD = {
    "prefect": {"flow", "dispatch", "settle", "engine", "runtimes"},
    "docker": {"runtimes"},
    "prefect_docker": {"runtimes"},
    "prefect_kubernetes": {"runtimes"},
    "kubernetes": {"runtimes"},
    "fastapi": HTTP,
    "starlette": HTTP,
    "uvicorn": HTTP,
    "http": HTTP,
    "httpx": HTTP,
    "jinja2": {"pages"},
    "sqlalchemy": {"ledger"},
    "alembic": {"ledger"},
    "sqlite3": {"ledger"},
    "psycopg": {"ledger"},
    "prov": {"provenance"},
    "cryptography": {"attestation"},
    "cyclopts": {"cli"},
}

PURE = (
    {"errors", "documents", "milestones", "phases", "methods", "lifecycle", "executions", "events", "query"}
    | {"provenance", "crate", "attestation", "comparison", "access"}
)  # fmt: skip
IMPURE_MODULES = {"time", "random", "subprocess", "socket", "tempfile", "shutil", "urllib.request", "asyncio"}
IMPURE_CALLS = re.compile(
    r"^open$|\.(now|utcnow|today|uuid4|read_text|read_bytes|write_text|write_bytes|iterdir)$"
    r"|^os\.(?!fspath$|fsdecode$|fsencode$)"
)
EXCUSED = {"InputFile"}  # the Method's own code reads the disk through it

NEVER = (
    {"util", "utils", "helper", "helpers", "manager", "handler", "service", "processor"}
    | {"common", "base", "misc", "core", "wrapper", "factory"}
)  # fmt: skip
EXITS = {"exit", "quit", "sys.exit", "os._exit", "SystemExit"}

TOP = (
    {"pyproject.toml", "README.md", "flows", "src", "deployments", "tests"}
    | {"LICENSE", "CHANGELOG.md", "docs", ".ci", ".github", ".git", ".gitignore"}
)  # fmt: skip

MOST_LINES_OF_A_MODULE = 500
MOST_LINES_OF_A_FUNCTION = 60


def imports_look_down(house: House) -> Iterator[str]:
    """An import looks only to a lower floor; rooms on one floor do not know each other."""
    for module in _in_rooms(house):
        here = FLOOR_OF.get(module.room)
        if here is None:
            yield f"{module.at(1)}: the room '{module.room}' is on no floor"
            continue
        for target, line, _ in module.imports:
            room = house.room_of(target)
            if room is None:
                continue
            there = FLOOR_OF.get(room, len(FLOORS))
            if room != module.room and there >= here:
                yield f"{module.at(line)}: {module.room} (floor {here}) imports {room or PACKAGE} (floor {there})"


def rooms_have_no_circles(house: House) -> Iterator[str]:
    """Inside a room that is a folder, no module leads back to itself by what it imports."""
    leads = {
        name: {known for target, _, _ in module.imports if (known := house.known(target)) in house.modules}
        for name, module in house.modules.items()
        if module.room
    }
    for name in leads:
        way = _way_back(name, leads)
        if way:
            yield f"{house.modules[name].at(1)}: {' → '.join(way)}: leads back to itself"


def the_world_enters_by_its_door(house: House) -> Iterator[str]:
    """Prefect, HTTP, SQL and the rest are known to the rooms that speak them, and to no other."""
    for module in _in_rooms(house):
        for target, line, _ in module.imports:
            doors = WORLD.get(target.split(".")[0])
            if doors is not None and module.room not in doors:
                yield f"{module.at(line)}: {target} may be imported in {', '.join(sorted(doors))} only"


def pure_rooms_touch_nothing(house: House) -> Iterator[str]:
    """A pure room has no clock, disk, process or network: values in, values out."""
    for module in _in_rooms(house):
        if module.room not in PURE:
            continue
        for target, line, _ in module.imports:
            if any(target == name or target.startswith(f"{name}.") for name in IMPURE_MODULES):
                yield f"{module.at(line)}: {module.room} is pure and imports {target}"
        excused = {line for found in module.classes() if found.name in EXCUSED for line in _lines_of(found)}
        for called, line in module.calls():
            if IMPURE_CALLS.search(called) and line not in excused:
                yield f"{module.at(line)}: {module.room} is pure and calls {called}()"


def only_the_terminals_door_exits(house: House) -> Iterator[str]:
    """Exit codes are known to `cli` alone."""
    for module in house.modules.values():
        if module.room in {"cli", "__main__"}:
            continue
        for called, line in module.calls():
            if called in EXITS:
                yield f"{module.at(line)}: {called}() outside cli"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id == "SystemExit":
                yield f"{module.at(node.lineno)}: raises SystemExit outside cli"


def names_are_honest(house: House) -> Iterator[str]:
    """No module or class has a name that could stand for anything."""
    for module in house.modules.values():
        named = [(module.name.rpartition(".")[2], 1), *((found.name, found.lineno) for found in module.classes())]
        for name, line in named:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
            if words & NEVER:
                yield f"{module.at(line)}: '{name}' says '{min(words & NEVER)}', which says nothing"


def modules_and_functions_are_small(house: House) -> Iterator[str]:
    """No module is above 500 lines, no function above 60."""
    for module in house.modules.values():
        if len(module.lines) > MOST_LINES_OF_A_MODULE:
            yield f"{module.at(1)}: {len(module.lines)} lines, above {MOST_LINES_OF_A_MODULE}"
        for function in module.functions():
            length = len(_lines_of(function))
            if length > MOST_LINES_OF_A_FUNCTION:
                yield f"{module.at(function.lineno)}: {function.name} has {length} lines, above 60"


def everything_public_is_documented(house: House) -> Iterator[str]:
    """A module begins with one sentence; a public function or class has a docstring."""
    for module in house.modules.values():
        first = (ast.get_docstring(module.tree) or "").partition("\n")[0]
        if not first.endswith((".", "::")) or ". " in first:
            yield f"{module.at(1)}: the module does not begin with one sentence"
        for node in module.tree.body:
            if not isinstance(node, ast.ClassDef | Function) or node.name[0] == "_" or _is_overload(node):
                continue
            if not ast.get_docstring(node):
                yield f"{module.at(node.lineno)}: {node.name} has no docstring"


def late_imports_have_a_reason(house: House) -> Iterator[str]:
    """An import inside a function has a comment with its reason, beside it or above its group."""
    for module in house.modules.values():
        late = {line for _, line, inside in module.imports if inside if "import" in module.lines[line - 1]}
        for line in sorted(late):
            group = [line]
            while group[-1] in late or not module.lines[group[-1] - 1].strip():
                group.append(group[-1] - 1)
            if not any(_says_why(module.lines[number - 1]) for number in group):
                yield f"{module.at(line)}: an import inside a function without a comment that says why"


LAWS = [
    imports_look_down,
    rooms_have_no_circles,
    the_world_enters_by_its_door,
    pure_rooms_touch_nothing,
    only_the_terminals_door_exits,
    names_are_honest,
    modules_and_functions_are_small,
    everything_public_is_documented,
    late_imports_have_a_reason,
]


def _in_rooms(house: House) -> Iterator[Module]:
    return (module for module in house.modules.values() if module.room)


def _is_overload(node: ast.ClassDef | Function) -> bool:
    return any(ast.unparse(decorator).split(".")[-1] == "overload" for decorator in node.decorator_list)


def _way_back(name: str, leads: Mapping[str, set[str]]) -> list[str]:
    ways = {name: [name]}
    waiting = [name]
    while waiting:
        here = waiting.pop(0)
        for there in sorted(leads.get(here, ())):
            if there == name:
                return [*ways[here], name]
            if there not in ways:
                ways[there] = [*ways[here], there]
                waiting.append(there)
    return []


def _lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _says_why(line: str) -> bool:
    _, mark, comment = line.partition("#")
    words = re.sub(r"noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?", "", comment)
    return bool(mark) and len(re.findall(r"\w+", words)) > 1


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT / "src" / PACKAGE)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_keeps_the_law(law: Callable[[House], Iterator[str]], house: House):
    broken = list(law(house))
    assert not broken, f"{law.__doc__}\n" + "\n".join(broken)


BREACHES = {
    "imports_look_down": [
        (
            "lifecycle.py",
            "from prefect_executions.bundles import write",
            "lifecycle.py:1: lifecycle (floor 2) imports bundles (floor 5)",
        ),
        ("lifecycle.py", "from prefect_executions import methods", "imports methods (floor 2)"),
        ("lifecycle.py", "if TYPE_CHECKING:\n    from .archive import Archive", "lifecycle.py:2"),
        ("lifecycle.py", "def f():\n    import prefect_executions.cli", "lifecycle.py:2"),
        ("lifecycle.py", "import_module('prefect_executions.cli')", "imports cli"),
        ("lifecycle.py", "from prefect_executions import method", "imports prefect_executions (floor 11)"),
        ("runtimes/docker.py", "from ..workbench import Workbench", "imports workbench (floor 7)"),
        ("attic.py", "", "attic.py:1: the room 'attic' is on no floor"),
    ],
    "rooms_have_no_circles": [
        (
            "runtimes/docker.py",
            "def f():\n    from prefect_executions.runtimes.process import g",
            "leads back to itself",
        ),
    ],
    "the_world_enters_by_its_door": [
        ("capture.py", "import prefect.context", "capture.py:1: prefect.context may be imported in"),
        ("cli.py", "def doctor():\n    from fastapi import FastAPI", "cli.py:2"),
        ("workbench.py", "import sqlalchemy", "in ledger only"),
    ],
    "pure_rooms_touch_nothing": [
        ("crate.py", "import os\nhere = os.getcwd()", "crate.py:2: crate is pure and calls os.getcwd()"),
        ("crate.py", "from time import sleep", "crate is pure and imports time"),
        ("crate.py", "from datetime import datetime\nx = datetime.now()", "calls datetime.now()"),
        ("provenance.py", "x = open('a')", "calls open()"),
    ],
    "only_the_terminals_door_exits": [
        ("flow.py", "import sys\nsys.exit(1)", "flow.py:2: sys.exit() outside cli"),
        ("flow.py", "raise SystemExit", "raises SystemExit outside cli"),
    ],
    "names_are_honest": [
        ("runtimes/util.py", "", "'util' says 'util'"),
        ("flow.py", "class HTTPServiceThing: ...", "says 'service'"),
    ],
    "modules_and_functions_are_small": [
        ("flow.py", "x = 1\n" * 501, "501 lines"),
        ("flow.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
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
}


@pytest.mark.parametrize(
    ("law", "file", "text", "told"),
    [(law, *breach) for law in LAWS for breach in BREACHES[law.__name__]],
)
def test_a_breach_of_the_law_is_told_with_file_and_line(law, file, text, told, tmp_path):
    planted = tmp_path / "src" / PACKAGE
    rooms = {
        "__init__.py": "",
        "bundles.py": "",
        "archive.py": "",
        "cli.py": "",
        "methods.py": "",
        "workbench.py": "",
        "runtimes/__init__.py": "",
        "runtimes/process.py": "from . import docker",
        "runtimes/docker.py": "",
    }
    for name, content in (rooms | {file: text}).items():
        (planted / name).parent.mkdir(parents=True, exist_ok=True)
        (planted / name).write_text(content)
    broken = list(law(House(planted)))
    assert any(re.match(rf"src/{PACKAGE}/{re.escape(file)}:\d+: ", breach) and told in breach for breach in broken), (
        broken
    )


def test_a_reason_above_a_group_of_late_imports_counts_for_all_of_it(tmp_path):
    planted = tmp_path / "src" / PACKAGE
    planted.mkdir(parents=True)
    (planted / "cli.py").write_text("def f():\n    # start-up time of the CLI\n    import json\n\n    import re\n")
    assert not list(late_imports_have_a_reason(House(planted)))


def test_the_top_level_holds_what_was_agreed_and_nothing_else():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    strangers = [
        path.name
        for path in ROOT.iterdir()
        if path.name not in TOP and not any(fnmatch(path.name, pattern) for pattern in ignored)
    ]
    assert not strangers, f"not agreed for the top level: {', '.join(sorted(strangers))}"


def test_no_file_names_a_machine_or_a_registry_host():
    hosts = ["pypi" + ".org", "python" + "hosted", "registry." + "npmjs", "deb." + "debian", "proxy." + "golang"]
    places = [rf"(?<![\w.<>-])/{folder}/" for folder in ("work", "root", "farm")]
    wrong = re.compile("|".join([*map(re.escape, hosts), *places]))
    told = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _own_text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if wrong.search(line)
    ]
    assert not told, "\n".join(told)


def _own_text_files() -> Iterator[Path]:
    endings = {".py", ".md", ".toml", ".sh", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".html", ".mako", ""}
    for name in sorted(TOP - {".git"}):
        top = ROOT / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and path.suffix in endings and "__pycache__" not in path.parts:
                yield path
