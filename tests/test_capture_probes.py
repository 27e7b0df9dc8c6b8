"""Each source of facts fails in turn: the run completes, its record is sealed, and a note says what is missing."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import pytest

from broken_probes import FAULTS
from prefect_executions.capture.packages import Packages, package_of
from prefect_executions.capture.probes import Failures, Probe, note_on, probe
from prefect_executions.errors import DirtyTreeError

ROOT = Path(__file__).parents[1] / "src/prefect_executions"
_CAPTURE = (
    *("code", "data_files", "git", "host", "imports", "late_code", "notebook", "opened_files", "packages"),
    *("processes", "procfs", "project"),
)
MODULES = (*(f"capture/{name}.py" for name in _CAPTURE), "flow/opening.py", "flow/recorded_code.py")
"""The modules whose calls read facts for the record."""

NOTED = {
    "socket.gethostname": "host name",
    "os.getcwd": "working directory",
    "os.sched_getaffinity": "number of CPUs",
    "platform.release": "kernel",
    "platform.machine": "architecture",
    "platform.python_version": "Python",
    "platform.python_implementation": "Python",
    "shutil.which": "Git repository",
    "subprocess.run": "Git repository",
    "tempfile.TemporaryFile": "Git repository",
    "importlib.metadata.distributions": "packages",
    "os.times": "resource usage",
    "resource.getrusage": "resource usage",
}
"""Sources whose fact has no second source: the note names the fact."""

QUIET = {
    "os.lstat",
    "os.stat",
    "os.listdir",
    "os.path.abspath",
    "os.path.exists",
    "os.path.isfile",
    "os.path.realpath",
    "open",
    "platform.freedesktop_os_release",
    "platform.system",
    "pwd.getpwuid",  # the uid instead
    "getpass.getuser",
    "time.clock_gettime",
    "os.sysconf",
    "importlib.metadata.distribution",
    "linecache.getlines",
    "inspect.unwrap",
    "Path.read_bytes",
    "Path.read_text",
    "Path.write_text",
    "Path.readlink",
    "Path.exists",
    "Path.glob",
    "Path.is_dir",
    "Path.resolve",
    "Path.stat",
}
"""Sources with a second source, or whose absence is normal."""

SOURCES = NOTED.keys() | QUIET

ROWS = [(source, fault) for source in sorted(SOURCES) for fault in FAULTS if source in NOTED or fault == "RuntimeError"]

_STDLIB = {
    "os", "socket", "platform", "pwd", "resource", "subprocess", "shutil", "time", "getpass", "tempfile", "linecache",
    "inspect", "importlib", "locale", "sysconfig", "ctypes", "fcntl", "grp",
}  # fmt: skip
_PATH = {
    "read_bytes", "read_text", "write_text", "readlink", "exists", "glob", "is_dir", "resolve", "stat", "iterdir",
    "is_file", "rglob", "open", "cwd", "home", "owner", "group",
}  # fmt: skip
_HARMLESS = {
    # text only
    "os.fsencode", "os.fsdecode", "os.path.dirname", "os.path.basename", "os.path.join", "os.path.normpath",
    "os.path.isabs", "os.path.relpath", "os.path.splitext", "os.path.expanduser", "inspect.signature",
    "time.sleep", "time.monotonic", "time.time_ns",
    "os.environ.items", "os.getpid", "os.geteuid", "os.getuid", "sysconfig.get_path",
    # after the end of a stopped run, and for other processes
    "os.pidfd_open", "os.kill", "os.close",
    # memory of this process
    "ctypes.byref",
    # only on systems without sched_getaffinity
    "os.cpu_count",
}  # fmt: skip


def called(path: Path) -> set[str]:
    """The functions outside the package that a module calls, or passes on, to read something."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        if text == "open" or (text.partition(".")[0] in _STDLIB and is_function(text)):
            names.add(text)
        elif isinstance(node, ast.Attribute) and node.attr in _PATH and "loader" not in text and "." in text:
            names.add(f"Path.{node.attr}")
    return names - _HARMLESS


def is_function(name: str) -> bool:
    """Whether the dotted *name* is a function or method of the standard library."""
    first, *steps = name.split(".")
    thing: Any = importlib.import_module("importlib.metadata" if name.startswith("importlib.metadata.") else first)
    for step in steps[1:] if name.startswith("importlib.metadata.") else steps:
        thing = getattr(thing, step, None)
    return isinstance(thing, FunctionType | BuiltinFunctionType | MethodType)


def test_each_source_of_facts_has_a_row():
    found = set().union(*(called(ROOT / name) for name in MODULES))
    assert found == SOURCES


@pytest.fixture(scope="module")
def told(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of one run for each source and each way to fail; all in one process, whose start takes seconds."""
    folder = tmp_path_factory.mktemp("probes")
    (folder / "m.py").write_text("from prefect_executions import method\n\n@method(version='1')\ndef m():\n    pass\n")
    git = ["git", "-C", str(folder), "-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (folder / "m.py").write_text((folder / "m.py").read_text() + "\n# changed\n")
    home = {"EXECUTIONS_HOME": str(folder / "home"), "PREFECT_API_URL": prefect_server}
    command = [sys.executable, str(Path(__file__).with_name("broken_probes.py")), str(folder)]
    rows = [f"{source} {fault}" for source, fault in ROWS]
    done = subprocess.run(
        [*command, *rows], check=False, env=os.environ | home, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize(("source", "fault"), ROWS)
def test_a_run_survives_the_failure_of_a_source(source: str, fault: str, told: dict[str, Any]):
    result = told[f"{source} {fault}"]
    assert "error" not in result, result
    assert (result["status"], result["state"], result["faults"]) == ("COMPLETED", "Completed", [])
    if source in NOTED and result["hits"]:
        assert any(f"{NOTED[source]} (" in note for note in result["notes"]), result


@pytest.mark.long
def test_the_faults_reach_the_probes(told: dict[str, Any]):
    reached = {row.split(" ")[0] for row, result in told.items() if result["hits"]}
    assert NOTED.keys() <= reached


def test_a_failed_probe_leaves_its_default_and_a_reason():
    failures: Failures = {}

    def fail() -> str:
        raise ValueError("https://ada:pw@host/ is down")

    assert probe(Probe.KERNEL, fail, None, failures) is None
    assert probe(Probe.USER, lambda: "ad\udcffa", None, failures) == "ad\\udcffa"
    assert note_on(failures) == (
        "not recorded, because it could not be read: kernel (ValueError: https://host/ is down)"
    )
    assert note_on({}) is None


def test_a_probe_lets_a_refusal_through():
    def refuse() -> None:
        raise DirtyTreeError("/repo", ())

    with pytest.raises(DirtyTreeError):
        probe(Probe.CODE, refuse, None, {})


def test_a_package_with_an_author_in_latin_1_is_recorded_like_any_other(tmp_path, monkeypatch):
    (tmp_path / "old-1.0.dist-info").mkdir()
    (tmp_path / "old-1.0.dist-info/METADATA").write_bytes(
        b"Metadata-Version: 2.1\nName: old\nVersion: 1.0\nAuthor: Jos\xe9\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = Packages()
    assert packages.versions()["old"] == "1.0"
    assert packages.failures == {}


def test_a_package_that_cannot_be_read_is_named_and_the_others_are_recorded(tmp_path, monkeypatch):
    (tmp_path / "new-2.0.dist-info").mkdir()
    (tmp_path / "new-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: new\nVersion: 2.0\n")
    (tmp_path / "bad-1.0.dist-info").mkdir()
    (tmp_path / "bad-1.0.dist-info/METADATA").symlink_to("METADATA")
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = Packages()
    assert packages.versions()["new"] == "2.0"
    assert "bad-1.0.dist-info: OSError" in packages.failures[Probe.PACKAGES]
    assert b"new==2.0\n" in packages.requirements()


def test_a_broken_package_does_not_hide_the_package_of_a_method(tmp_path, monkeypatch):
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (tmp_path / "mine-1.0.dist-info/top_level.txt").write_text("its_module\n")
    (tmp_path / "bad-1.0.dist-info").mkdir()
    (tmp_path / "bad-1.0.dist-info/METADATA").write_bytes(b"Name: \xff\n")
    (tmp_path / "bad-1.0.dist-info/top_level.txt").write_bytes(b"\xff\n")
    (tmp_path / "its_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_of("its_module", str(tmp_path / "its_module.py")) == "mine==1.0"
