"""Code identity: what Git, files, packages and notebooks say, never written to, never guessed, never stale."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import cloudpickle
import pytest

from prefect_executions.capture.code import CodeCache, git_object, identify
from prefect_executions.errors import DirtyTreeError
from prefect_executions.methods.model import CodeIdentity
from prefect_executions.settings import Settings

FLOW = "import {helper}\n\ndef count(text):\n    return len(text)\n"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Project:
    """A Git repository with a Method and a module that it imports, loaded under names that no other test uses."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.helper = f"helper_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
        self.flow = f"flow_{self.helper}"
        (folder / "flows").mkdir(parents=True)
        self.write(f"flows/{self.flow}.py", FLOW.format(helper=self.helper))
        self.write(f"flows/{self.helper}.py", "ANSWER = 42\n")
        self.write("data.txt", "data\n")
        monkeypatch.syspath_prepend(str(folder / "flows"))
        self.function = __import__(self.flow).count
        self.cache = CodeCache()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def commit(self) -> str:
        self.write(".gitignore", "__pycache__/\n")
        git(self.folder, "init", "-q", "-b", "main")
        git(self.folder, "add", ".")
        git(self.folder, "commit", "-q", "-m", "first")
        return git(self.folder, "rev-parse", "HEAD")

    def identify(self, **options) -> tuple[CodeIdentity, dict[str, bytes]]:
        settings = {name: options.pop(name) for name in list(options) if name in Settings.model_fields}
        identity, files = identify(self.function, settings=Settings(**settings), cache=self.cache, **options)
        return identity, dict(files)

    def settle(self) -> None:
        """Wait until what was written lies long enough back to be trusted."""
        time.sleep(0.08)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    return Project(tmp_path / "project", monkeypatch)


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Put a real git before the real git that notes each call; return how many calls there were."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()
    calls = tmp_path / "calls"
    calls.touch()
    (folder / "git").write_text(f'#!/bin/sh\necho call >> "{calls}"\nexec "{real}" "$@"\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: len(calls.read_text().splitlines())


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_clean_commit_is_told_whole(project):
    commit = project.commit()
    git(project.folder, "remote", "add", "origin", "https://ada:ghp_0123456789abcdefghij@host/org/repo.git")
    identity, files = project.identify()
    entry = f"flows/{project.flow}.py"
    repository = identity.repository
    assert identity.entrypoint == f"{entry}:count"
    assert (repository.commit, repository.branch, repository.path) == (commit, "main", entry)
    assert repository.remote == "https://host/org/repo.git"
    assert repository.author == git(project.folder, "log", "-1", "--format=%an")
    assert repository.subject == git(project.folder, "log", "-1", "--format=%s")
    assert repository.dirty is False
    assert repository.changed == ()
    assert repository.diff_sha256 is None
    assert [file.path for file in identity.files] == sorted([f"code/{entry}", f"code/flows/{project.helper}.py"])
    for file in identity.files:
        assert file.git_object == git(project.folder, "rev-parse", f"HEAD:{file.path.removeprefix('code/')}")
        assert file.sha256 == hashlib.sha256(files[file.path]).hexdigest()
    assert {file.module for file in identity.files} == {project.flow, project.helper}
    assert set(files) == {file.path for file in identity.files} | {"code/requirements.txt"}
    assert b"\npydantic==" in files["code/requirements.txt"]
    assert "ghp_" not in repr(identity)


def test_git_is_never_written_to(project):
    project.commit()
    project.settle()
    # What makes an ordinary `git status` refresh the index.
    os.utime(project.folder / "data.txt")
    project.write(f"flows/{project.helper}.py", "ANSWER = 43\n")
    before = contents(project.folder / ".git")
    for _ in range(3):
        project.identify()
    assert contents(project.folder / ".git") == before
    git(project.folder, "status")
    assert contents(project.folder / ".git") != before


def test_a_dirty_tree_is_told_with_a_diff_that_applies(project, tmp_path):
    project.commit()
    git(project.folder, "clone", "-q", ".", str(tmp_path / "clone"))
    project.write(f"flows/{project.helper}.py", "ANSWER = 43  # password=hunter2 is code\n")
    (project.folder / "data.txt").write_bytes(bytes(range(256)))
    project.write("notes.txt", "untracked, and no code")
    identity, files = project.identify()
    changed = ("data.txt", f"flows/{project.helper}.py")
    assert identity.repository.dirty is True
    assert identity.repository.changed == changed
    diff = files["code/uncommitted.diff"]
    assert identity.repository.diff_sha256 == hashlib.sha256(diff).hexdigest()
    assert identity.repository.diff_kept is True
    (tmp_path / "diff").write_bytes(diff)
    git(tmp_path / "clone", "apply", str(tmp_path / "diff"))
    for name in changed:
        assert (tmp_path / "clone" / name).read_bytes() == (project.folder / name).read_bytes()


DIFF_SETTINGS = [
    {"diff.noprefix": "true"},
    {"diff.mnemonicPrefix": "true"},
    {"diff.srcPrefix": "old/tree/", "diff.dstPrefix": "new/tree/"},
    {"diff.context": "0", "diff.interHunkContext": "9"},
    {"diff.algorithm": "patience", "diff.indentHeuristic": "false"},
    {"diff.external": "false", "color.ui": "always", "color.diff": "always", "diff.colorMoved": "zebra"},
    {"diff.python.textconv": "tr a-z A-Z", "diff.python.command": "false"},
    {"diff.python.xfuncname": "^ANSWER.*", "diff.python.binary": "true", "diff.python.algorithm": "histogram"},
    {"diff.renames": "copies", "diff.relative": "true", "diff.suppressBlankEmpty": "true"},
    {"diff.orderFile": "order", "diff.submodule": "log", "diff.ignoreSubmodules": "all"},
    {"core.autocrlf": "input", "core.safecrlf": "true", "core.whitespace": "tab-in-indent"},
    {"core.abbrev": "4", "core.quotePath": "true", "core.compression": "0", "core.bigFileThreshold": "1"},
    {"core.pager": "false", "pager.diff": "true", "core.attributesFile": "attributes"},
]


@pytest.fixture
def changed_project(project):
    """Return a repository with every kind of change: text, binary, renamed, deleted, staged, mode."""
    lines = "".join(f"LINE_{number} = {number}\n\n" for number in range(40))
    for name, text in {"moved.txt": lines, "mode.sh": "true\n", "gone.txt": "x\n", "ü.txt": "ü\n"}.items():
        project.write(name, text)
    project.write(f"flows/{project.helper}.py", f"ANSWER = 42\n\n\ndef other():\n{lines.replace('LINE', '    LINE')}")
    (project.folder / "picture.bin").write_bytes(bytes(range(256)) * 40)
    (project.folder / "windows.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    project.write(".gitattributes", "*.py diff=python\n*.txt diff=text\n")
    project.commit()
    source = (project.folder / f"flows/{project.helper}.py").read_text()
    project.write(f"flows/{project.helper}.py", source.replace("LINE_20 = 20", "LINE_20 = 21"))
    git(project.folder, "mv", "moved.txt", "moved there.txt")
    git(project.folder, "rm", "-q", "gone.txt")
    (project.folder / "mode.sh").chmod(0o755)
    (project.folder / "picture.bin").write_bytes(bytes(reversed(range(256))) * 40)
    (project.folder / "windows.txt").write_bytes(b"one\r\n2\r\nthree\r\n")
    project.write("ü.txt", "no line break at the end")
    return project


@pytest.mark.long
@pytest.mark.parametrize("settings", DIFF_SETTINGS, ids=lambda settings: next(iter(settings)))
def test_the_diff_applies_and_has_one_digest_whatever_git_is_set_to(changed_project, tmp_path, settings):
    project = changed_project
    usual = project.identify()[0].repository.diff_sha256
    project.write(".git/order", "windows.txt\n")
    project.write(".git/attributes", "*.txt diff=python\n")
    for name, value in settings.items():
        below = f"{project.folder}/.git/" if name in {"diff.orderFile", "core.attributesFile"} else ""
        git(project.folder, "config", name, below + value)
    identity, files = identify(project.function, settings=Settings(), cache=CodeCache())
    for name in settings:
        git(project.folder, "config", "--unset", name)
    git(project.folder, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    (tmp_path / "diff").write_bytes(files["code/uncommitted.diff"])
    git(tmp_path / "tree", "apply", "--index", str(tmp_path / "diff"))
    for name in identity.repository.changed:
        changed, original = tmp_path / "tree" / name, project.folder / name
        assert changed.exists() == original.exists()
        if original.exists():
            assert changed.read_bytes() == original.read_bytes()
            assert changed.stat().st_mode == original.stat().st_mode
    assert identity.repository.diff_sha256 == usual


def test_a_submodule_with_changes_inside_does_not_spoil_the_diff(project, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "file.txt").write_text("x\n")
    git(inner, "add", ".")
    git(inner, "commit", "-q", "-m", "inner")
    project.commit()
    git(project.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    git(project.folder, "commit", "-q", "-m", "with submodule")
    (project.folder / "sub/file.txt").write_text("y\n")
    project.write("data.txt", "other\n")
    identity, files = project.identify()
    assert identity.repository.changed == ("data.txt", "sub")
    git(project.folder, "checkout", "-q", "data.txt")
    (tmp_path / "diff").write_bytes(files["code/uncommitted.diff"])
    git(project.folder, "apply", "--index", str(tmp_path / "diff"))


def test_a_diff_above_the_limit_is_told_by_its_digest(project):
    project.commit()
    project.write("data.txt", "other\n" * 1000)
    whole, kept = project.identify()
    identity, files = project.identify(diff_limit=100)
    assert "code/uncommitted.diff" not in files
    assert identity.repository.diff_kept is False
    assert identity.repository.diff_sha256 == hashlib.sha256(kept["code/uncommitted.diff"]).hexdigest()
    assert whole.sha256 == identity.sha256


def test_a_file_that_is_only_touched_is_not_a_change(project):
    project.commit()
    os.utime(project.folder / "data.txt", (1, 1))
    assert project.identify()[0].repository.dirty is False


def test_loaded_code_that_git_does_not_track_makes_the_tree_dirty_but_ignored_code_does_not(project):
    project.write(".gitignore", "")
    git(project.folder, "init", "-q")
    git(project.folder, "add", "data.txt", f"flows/{project.flow}.py")
    git(project.folder, "commit", "-q", "-m", "first")
    assert project.identify()[0].repository.changed == (f"flows/{project.helper}.py",)
    project.write(".git/info/exclude", "helper_*\n")
    assert project.identify()[0].repository.dirty is False


def test_a_function_that_comes_pickled_by_value_is_known_by_its_file(tmp_path):
    script = tmp_path / "serving.py"
    script.write_text(
        "import sys\n\nimport cloudpickle\n\n\n"
        "def count(text):\n    return len(text)\n\n\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(count))\n"
    )
    pickled = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    identity, files = identify(cloudpickle.loads(pickled), settings=Settings(), cache=CodeCache())
    assert identity.entrypoint == "serving.py:count"
    assert files["code/serving.py"] == script.read_bytes()


def test_refuse_lists_the_changed_files(project):
    project.commit()
    assert project.identify(dirty="refuse")[0].repository.dirty is False
    project.write("data.txt", "other\n")
    with pytest.raises(DirtyTreeError, match=r"data\.txt") as caught:
        project.identify(dirty="refuse")
    assert caught.value.files == ("data.txt",)


def test_refuse_holds_where_git_cannot_say(project, monkeypatch, tmp_path):
    project.commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DirtyTreeError, match=r"cannot list the uncommitted changes.*git status"):
        project.identify(dirty="refuse")


def test_refuse_leaves_code_outside_git_alone(project):
    assert project.identify(dirty="refuse")[0].repository is None


@pytest.mark.parametrize("name", ["two\nlines", "ends\n", " blank ", "näme ☃", "-dash", "a\x1b[31m"])
def test_a_repository_in_a_folder_with_any_name_is_told(tmp_path, monkeypatch, name):
    project = Project(tmp_path / name, monkeypatch)
    commit = project.commit()
    project.write("data.txt", "other\n")
    repository = project.identify()[0].repository
    assert (repository.commit, repository.changed, repository.diff_kept) == (commit, ("data.txt",), True)


def test_a_cached_answer_costs_no_process(project, counted):
    project.commit()
    project.settle()
    first = project.identify()
    called = counted()
    assert called > 0
    for _ in range(5):
        assert project.identify() == first
    assert counted() == called


def test_what_was_looked_at_since_a_moment_is_not_looked_at_again(project, counted):
    project.commit()
    since = time.monotonic()
    first = project.identify(since=since)  # not settled: looked at anew by whoever asks without a moment
    called = counted()
    project.write("data.txt", "DATA\n")
    assert project.identify(since=since) == first
    assert counted() == called
    assert project.identify(since=time.monotonic())[0].repository.changed == ("data.txt",)


@pytest.mark.parametrize(
    "change",
    [
        lambda project: project.write("data.txt", "DATA\n"),
        lambda project: project.write(f"flows/{project.helper}.py", "ANSWER = 41\n"),
        lambda project: git(project.folder, "commit", "-q", "--allow-empty", "-m", "second"),
        lambda project: git(project.folder, "checkout", "-q", "-b", "other"),
        lambda project: git(project.folder, "remote", "add", "origin", "https://host/x"),
        lambda project: (project.folder / "data.txt").unlink(),
        lambda project: git(project.folder, "rm", "-q", "--cached", "data.txt"),
        lambda project: (project.folder / ".git").rename(project.folder / "gone"),
    ],
    ids=["tracked file", "loaded module", "commit", "branch", "remote", "deleted", "index", "no repository"],
)
def test_every_change_is_seen_at_the_next_run(project, change):
    project.commit()
    project.settle()
    first, _ = project.identify()
    change(project)
    second, _ = project.identify()
    assert second != first
    assert second == identify(project.function, settings=Settings(), cache=CodeCache())[0]


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        ("Fix the\ncount\n\nand more", "Fix the count"),
        ("pull https://ada:ghp_0123456789abcdefghij@host/x", "pull https://host/x"),
        ("x" * 600, "x" * 499 + "…"),
        ("Zähle", "Zähle"),
        ("", None),
    ],
    ids=["one line", "credentials", "long", "unicode", "empty"],
)
def test_the_subject_of_the_commit_is_its_first_line_without_credentials(project, message, subject):
    project.commit()
    git(project.folder, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", message)
    assert project.identify()[0].repository.subject == subject


@pytest.mark.long
def test_a_change_of_the_same_size_in_the_same_moment_is_seen(project):
    project.commit()
    for number in range(10):
        text = f"ANSWER = {number:02}\n"
        project.write(f"flows/{project.helper}.py", text)
        assert project.identify()[1][f"code/flows/{project.helper}.py"] == text.encode()


def test_a_change_with_its_old_time_put_back_is_seen(project):
    project.commit()
    project.settle()
    project.identify()
    told = (project.folder / "data.txt").stat()
    project.write("data.txt", "DATA\n")
    os.utime(project.folder / "data.txt", ns=(told.st_atime_ns, told.st_mtime_ns))
    assert project.identify()[0].repository.dirty is True


def test_a_module_that_is_loaded_later_is_told_from_then_on(project, monkeypatch):
    late = f"late_{project.helper}"
    project.write(f"flows/{late}.py", "")
    project.commit()
    project.settle()
    assert len(project.identify()[0].files) == 2
    __import__(late)
    assert len(project.identify()[0].files) == 3


IN_AN_ENVIRONMENT = """
import json
import {flow}
from prefect_executions.capture.code import identify
from prefect_executions.settings import Settings
print(json.dumps([file.path for file in identify({flow}.count, settings=Settings())[0].files]))
"""


@pytest.mark.parametrize("place", [".venv", "."])
def test_what_a_virtual_environment_among_them_brings_is_not_the_authors(project, place):
    project.commit()
    environment = project.folder / place
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    program = environment / "bin" / "program"
    program.write_text(IN_AN_ENVIRONMENT.format(flow=project.flow))
    told = subprocess.run(
        [environment / "bin" / "python", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert sorted(json.loads(told.stdout)) == sorted(
        [f"code/flows/{project.flow}.py", f"code/flows/{project.helper}.py"]
    )


ENVIRONMENTS = [
    (".venv/lib/python3.11/site-packages", ".venv/pyvenv.cfg"),
    ("env/lib/python3.11/site-packages", "env/conda-meta/history"),
    ("vendor/site-packages", None),
    (".tox/py311/src", ".tox/py311/pyvenv.cfg"),
]


def install(project: Project, monkeypatch, place: str, mark: str | None):
    """Put a package into an environment in the project's repository and import it."""
    name = f"package_{project.helper}"
    contents = {f"{place}/{name}/__init__.py": "def count():\n    return 1\n"} | ({mark: ""} if mark else {})
    for path, text in contents.items():
        (project.folder / path).parent.mkdir(parents=True, exist_ok=True)
        project.write(path, text)
    monkeypatch.syspath_prepend(str(project.folder / place))
    return __import__(name)


@pytest.mark.parametrize(("place", "mark"), ENVIRONMENTS)
def test_a_package_in_an_environment_inside_the_repository_is_not_the_repositorys_code(
    project, monkeypatch, place, mark
):
    project.commit()
    project.write("data.txt", "other\n")
    package = install(project, monkeypatch, place, mark)
    identity, files = identify(package.count, settings=Settings(dirty="refuse"), cache=CodeCache())
    assert identity.repository is None
    outside_site_packages = f"{package.__name__}/" if "site-packages" not in place else ""
    assert [file.path for file in identity.files] == [f"code/{outside_site_packages}__init__.py"]
    assert "code/uncommitted.diff" not in files


@pytest.mark.parametrize(("place", "mark"), ENVIRONMENTS)
def test_a_package_in_an_environment_inside_the_repository_makes_no_method_dirty(project, monkeypatch, place, mark):
    project.commit()
    package = install(project, monkeypatch, place, mark)
    identity, files = project.identify(dirty="refuse")
    assert identity.repository.dirty is False
    assert not any(package.__name__ in name for name in files)


def test_a_repository_inside_an_environment_is_told(project, monkeypatch):
    project.write("pyvenv.cfg", "")
    outer = project.folder
    project.folder = outer / "src/inner"
    project.folder.mkdir(parents=True)
    package = install(project, monkeypatch, "flows", None)
    commit = project.commit()
    repository = identify(package.count, settings=Settings(), cache=CodeCache())[0].repository
    assert (repository.commit, repository.dirty) == (commit, False)


def test_outside_git_the_files_beside_the_method_are_told(project):
    identity, files = project.identify()
    assert identity.repository is None
    assert identity.entrypoint == f"{project.flow}.py:count"
    assert sorted(file.path for file in identity.files) == sorted(
        [f"code/{project.flow}.py", f"code/{project.helper}.py"]
    )
    assert f"code/{project.helper}.py" in files
    project.commit()
    assert project.identify()[0].repository is not None


def test_without_git_installed_the_files_are_told(project, monkeypatch, tmp_path):
    project.commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    identity, _ = project.identify()
    assert identity.repository is None
    assert identity.entrypoint == f"flows/{project.flow}.py:count"


def test_a_repository_without_a_commit_is_told_as_far_as_it_goes(project):
    git(project.folder, "init", "-q", "-b", "main")
    git(project.folder, "add", "data.txt")
    repository = project.identify()[0].repository
    assert (repository.commit, repository.branch, repository.dirty) == (None, "main", True)


@pytest.mark.parametrize("text", ["", "gitdir: /nowhere\n", None])
def test_a_broken_repository_is_no_error_and_does_not_lead_to_another(project, text, tmp_path):
    git(tmp_path, "init", "-q")
    if text is None:
        (project.folder / ".git").mkdir()
    else:
        project.write(".git", text)
    assert project.identify()[0].repository is None


def test_a_worktree_and_a_detached_head_are_told(project, monkeypatch, tmp_path):
    commit = project.commit()
    git(project.folder, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    sys.modules.pop(project.flow)
    monkeypatch.syspath_prepend(str(tmp_path / "tree/flows"))
    project.function = __import__(project.flow).count
    project.settle()
    repository = project.identify()[0].repository
    assert (repository.commit, repository.branch, repository.dirty) == (commit, None, False)
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    assert project.identify()[0].repository.commit != commit


def test_a_submodule_is_asked_anew_each_time(project, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-q", "--allow-empty", "-m", "inner")
    project.commit()
    git(project.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    git(project.folder, "commit", "-q", "-m", "with submodule")
    project.settle()
    assert project.identify()[0].repository.dirty is False
    (project.folder / "sub/.git").stat()
    git(project.folder / "sub", "commit", "-q", "--allow-empty", "-m", "moved")
    assert project.identify()[0].repository.changed == ("sub",)


def test_names_that_git_quotes_are_told_as_they_are(project):
    project.write('ü "x"\n.txt', "1")
    project.commit()
    project.write('ü "x"\n.txt', "2")
    assert project.identify()[0].repository.changed == ('ü "x"\n.txt',)


def test_a_variable_of_git_does_not_lead_to_another_repository(project, monkeypatch, tmp_path):
    commit = project.commit()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere/index"))
    assert project.identify()[0].repository.commit == commit


def test_what_cannot_be_seen_in_a_container_comes_from_settings(project):
    hidden = {"code_commit": "c0ffee", "image": "registry/image:1", "image_digest": "sha256:abc"}
    identity, _ = project.identify(**hidden)
    assert identity.repository.commit == "c0ffee"
    assert identity.repository.dirty is None
    assert (identity.image, identity.image_digest) == ("registry/image:1", "sha256:abc")
    commit = project.commit()
    assert project.identify(**hidden)[0].repository.commit == commit


def test_partials_decorated_functions_and_callables_are_followed_to_their_code(project):
    @functools.wraps(project.function)
    def decorated(*args):
        return project.function(*args)

    for function in (decorated, functools.partial(project.function, "x")):
        told = identify(function, settings=Settings(), cache=CodeCache())[0]
        assert told.entrypoint == f"{project.flow}.py:count"


def test_an_installed_package_is_told_by_name_and_version():
    import pydantic  # noqa: PLC0415 - installed code is what is asked about

    identity, files = identify(pydantic.create_model, settings=Settings(), cache=CodeCache())
    assert identity.package == f"pydantic=={pydantic.__version__}"
    assert [file.path for file in identity.files] == ["code/main.py"]
    assert identity.repository is None
    assert "code/main.py" in files


def test_code_in_c_is_no_error():
    identity, files = identify(len, settings=Settings(), cache=CodeCache())
    assert identity.files == ()
    assert identity.entrypoint is None
    assert identity.sha256 is None
    assert [file.why for file in identity.lacking] == ["the text of the code is unknown; put it into a file"]
    assert list(files) == ["code/requirements.txt"]


def test_code_in_a_zip_is_kept(tmp_path):
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("zipped_code.py", "def count():\n    return 1\n")
        archive.writestr("zipped_helper.py", "")
        archive.writestr(
            "__main__.py",
            "import zipped_code, zipped_helper\n"
            "from prefect_executions.capture.code import identify\n"
            "from prefect_executions.settings import Settings\n"
            "identity, files = identify(zipped_code.count, settings=Settings())\n"
            "print(identity.model_dump_json(exclude_none=True)); print(files['code/zipped_code.py'].decode())\n",
        )
    done = subprocess.run([sys.executable, str(tmp_path / "app.pyz")], capture_output=True, text=True, check=True)
    told, _, kept = done.stdout.partition("\n")
    assert json.loads(told)["entrypoint"] == "zipped_code.py:count"
    [lacking] = json.loads(told)["lacking"]
    assert lacking["path"] == "code/zipped_helper.py"
    assert "of app.pyz only the file of the Method is kept" in lacking["why"]
    assert kept.strip() == "def count():\n    return 1"


PROBE = textwrap.dedent("""
    from prefect_executions.capture.code import identify
    from prefect_executions.settings import Settings
    def count(): return 1
    identity, files = identify(count, settings=Settings())
    print(identity.model_dump_json(exclude_none=True))
    """)


def test_a_script_is_told_by_its_file(tmp_path):
    (tmp_path / "script.py").write_text(PROBE)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["entrypoint"] == "script.py:count"
    assert told["files"][0]["gitObject"] == git_object(PROBE.encode())


@pytest.mark.parametrize("arguments", [["-c", PROBE], ["-"], ["-i", "-q"]], ids=["python -c", "stdin", "prompt"])
def test_typed_code_is_no_error(tmp_path, arguments):
    git(tmp_path, "init", "-q")
    typed = "\n".join(PROBE.strip().splitlines()).replace("return 1\n", "return 1\n\n")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, input=typed + "\n", capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert "repository" not in told
