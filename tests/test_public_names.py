"""What the package offers is what it says that it offers, and costs nothing until it is used."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType

import pytest

import prefect_executions

SLOW = ("prefect", "sqlalchemy", "alembic", "s3fs", "fsspec", "lxml", "prov", "cyclopts", "rich", "pydantic")
EXAMPLE = {"method", "current_execution", "InputFile"}


def told_by_a_new_process(code: str) -> object:
    """Return what *code* prints as JSON, from an interpreter that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_all_names_are_there_and_documented():
    for name in prefect_executions.__all__:
        thing = getattr(prefect_executions, name)
        if inspect.isclass(thing) or callable(thing):
            assert inspect.getdoc(thing), f"{name} has no docstring"


def test_all_names_what_the_readme_shows():
    assert set(prefect_executions.__all__) >= EXAMPLE


def test_all_has_each_name_once():
    assert len(prefect_executions.__all__) == len(set(prefect_executions.__all__))


def test_nothing_public_is_missing_from_all():
    for name in prefect_executions.__all__:
        getattr(prefect_executions, name)
    public = {
        name
        for name, thing in vars(prefect_executions).items()
        if not name.startswith("_")
        and not isinstance(thing, ModuleType)
        and name not in {"annotations", "TYPE_CHECKING"}
    }
    assert public <= set(prefect_executions.__all__)


def test_type_checkers_see_the_same_names():
    source = Path(prefect_executions.__file__).read_text(encoding="utf-8")
    seen = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect_executions.")
        for alias in node.names
    }
    assert seen == set(prefect_executions.__all__) - {"__version__"}


def test_dir_lists_the_names_before_they_are_loaded():
    assert set(prefect_executions.__all__) <= set(dir(prefect_executions))


@pytest.mark.long
def test_a_star_import_gives_all_names():
    code = "import json; names = {}; exec('from prefect_executions import *', names); print(json.dumps(sorted(names)))"
    assert set(told_by_a_new_process(code)) >= set(prefect_executions.__all__)


def test_importing_the_package_imports_nothing_slow():
    code = f"import json, sys, prefect_executions; print(json.dumps([n for n in {SLOW!r} if n in sys.modules]))"
    assert told_by_a_new_process(code) == []


def test_a_name_that_is_not_there_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = prefect_executions.no_such_name


def test_the_version_is_that_of_the_installed_package():
    assert prefect_executions.__version__ == version("prefect-executions")


def test_prefect_finds_the_package_as_a_collection():
    (found,) = entry_points(group="prefect.collections", name="prefect_executions")
    assert found.load() is prefect_executions
