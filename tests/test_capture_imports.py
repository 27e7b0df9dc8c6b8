"""The files that source code imports are found in its text, before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_executions.capture.imports import ImportedName, import_root, imported_names, reachable

STATEMENTS = {
    "import a": {ImportedName(0, ("a",))},
    "import a.b as c, d  # e, f": {ImportedName(0, ("a", "b")), ImportedName(0, ("d",))},
    "from a import b as c": {ImportedName(0, ("a",)), ImportedName(0, ("a",), "b")},
    "from a.b import (c,\n    d as e,  # f\n)": {
        ImportedName(0, ("a", "b")),
        ImportedName(0, ("a", "b"), "c"),
        ImportedName(0, ("a", "b"), "d"),
    },
    "from a import \\\n    b": {ImportedName(0, ("a",)), ImportedName(0, ("a",), "b")},
    "def f():\n    if x: import a; import b": {ImportedName(0, ("a",)), ImportedName(0, ("b",))},
    "from . import a": {ImportedName(1, ()), ImportedName(1, (), "a")},
    "from ..a import b": {ImportedName(2, ("a",)), ImportedName(2, ("a",), "b")},
    "from.a import*": {ImportedName(1, ("a",))},
    "importlib.import_module('a.b')": {ImportedName(0, ("a", "b"))},
    "__import__( 'a' )": {ImportedName(0, ("a",))},
    "importer = 1\nimportant()": set(),
    "# import a": set(),
}


@pytest.mark.parametrize("source", STATEMENTS)
def test_import_statements_are_read(source):
    assert imported_names(source) == STATEMENTS[source]


@pytest.fixture
def project(tmp_path):
    """Return a function that writes sources and returns what is reachable from the first, relative to the folder."""

    def found(files: dict[str, str], module: str = "main", loaded: dict[str, str] | None = None) -> dict[str, str]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        first = str(tmp_path / next(iter(files)))
        paths = reachable(
            {first: module},
            [first],
            [str(tmp_path)],
            text=lambda file: Path(file).read_text(),
            loaded=lambda name: str(tmp_path / loaded[name]) if loaded and name in loaded else None,
            allowed=lambda file: "forbidden" not in file,
        )
        return {str(Path(file).relative_to(tmp_path)): name for file, name in paths.items()}

    return found


def test_imports_are_followed_through_packages_modules_and_functions(project):
    files = {
        "main.py": "def f():\n    from package.sub import late\n    import numpy, beside, space.inner\n",
        "package/__init__.py": "",
        "package/sub/__init__.py": "from ..other import x\n",
        "package/sub/late.py": "from . import neighbour\n",
        "package/sub/neighbour.py": "",
        "package/other.py": "import beside\n",
        "package/unused.py": "",
        "beside.py": "",
        "space/inner.py": "",
    }
    assert project(files) == {
        name: name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if name != "package/unused.py"
    }


def test_a_package_hides_a_module_of_the_same_name_and_a_module_hides_a_folder(project):
    files = {"main.py": "import a, b", "a/__init__.py": "", "a.py": "", "b.py": "", "b/data.txt": ""}
    assert set(project(files)) == {"main.py", "a/__init__.py", "b.py"}


def test_files_that_are_not_allowed_are_not_followed(project):
    files = {"main.py": "import forbidden", "forbidden.py": "import other", "other.py": ""}
    assert set(project(files)) == {"main.py"}


def test_a_loaded_module_is_found_in_another_folder_and_so_are_its_neighbours(project):
    files = {"main.py": "import far", "lib/far.py": "import near", "lib/near.py": ""}
    assert project(files, loaded={"far": "lib/far.py"}) == {
        "main.py": "main",
        "lib/far.py": "far",
        "lib/near.py": "near",
    }


def test_modules_that_import_each_other_are_found_once(project):
    assert set(project({"main.py": "import a", "a.py": "import main, a"})) == {"main.py", "a.py"}


@pytest.mark.parametrize(
    ("file", "module", "root"),
    [
        ("/x/a/b.py", "a.b", "/x"),
        ("/x/a/__init__.py", "a", "/x"),
        ("/x/a.py", "a", "/x"),
        ("/a.py", "a", "/"),
        ("/x/a.py", "__main__", None),
        ("/x/a.py", "", None),
    ],
)
def test_the_folder_from_which_a_module_was_imported_follows_from_its_name(file, module, root):
    assert import_root(file, module) == root
