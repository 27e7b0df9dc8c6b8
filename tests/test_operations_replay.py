"""An execution is replayed from its bundle alone; missing parts are named before, differences after the run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from benches import OTHER_ID, begun, bench_at, kept, record_of
from journeys import command
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.source import FolderSource
from prefect_executions.cli.app import main
from prefect_executions.comparison.verdict import Agreement, Grade, Verdict
from prefect_executions.errors import BundleError, NotAvailableError, NotFoundError, RequestError
from prefect_executions.executions.record import ScriptRun
from prefect_executions.methods.model import Comparison, InputDescription
from prefect_executions.operations.bundle_reader import Opened
from prefect_executions.operations.compare import compare_executions
from prefect_executions.operations.replay import open_replayable, prepare_replay
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import (
    EXECUTION_ID,
    OUTPUTS,
    PICTURE,
    SOURCE,
    a_code_identity,
    a_method,
    a_request,
    a_staged_input,
    an_instance,
)

METHOD = '''
from prefect_executions import InputFile, current_execution, method

from letters import capitals


@method(version="1.0.0")
def shout(text: InputFile, times: int = 2, chance: bool = False) -> None:
    """Write a text in capital letters."""
    import os

    told = os.urandom(8).hex() if chance else text.read_text()
    current_execution().output("shouted.csv").write_text("text,area\\n" + f"{capitals(told)},1.5\\n" * times)
'''
LETTERS = "def capitals(text):\n    return text.upper()\n"


@pytest.fixture
def replayed(home):
    """Return a function that opens a kept execution for a replay, within a context."""
    bench = bench_at(home)
    kept(bench)

    def opened(**changes: Any):
        source = FolderSource(bench.folder / EXECUTION_ID)
        return prepare_replay(replace(record_of(), **changes), source, {})

    return opened


def test_a_replay_copies_the_code_and_the_inputs(replayed):
    with replayed() as ready:
        path, _, name = ready.entrypoint.partition(":")
        assert (Path(path).read_bytes(), name) == (SOURCE, "segment")
        assert ready.paths == (str(Path(path).parent),)
        assert Path(ready.request.parameters["picture"]).read_bytes() == PICTURE
    assert not Path(path).exists()


def test_all_that_is_missing_is_named_before_anything_runs(replayed, tmp_path):
    secret = InputDescription(json_schema={"type": "string", "format": "secret"})
    code = a_method().code
    files = (code.files[0].model_copy(update={"path": "code/lost.py"}),)
    method = a_method(
        inputs={"token": secret}, code=code.model_copy(update={"entrypoint": "lost.py:f", "files": files})
    )
    changed = tmp_path / "changed"
    changed.write_bytes(b"other")
    far = [
        a_staged_input("gone", path=None, origin=str(tmp_path / "gone")),
        a_staged_input("changed", path=None, origin=str(changed)),
    ]
    values = {"gone": "x", "changed": str(changed), "token": {"secret": "survey"}}
    with (
        pytest.raises(NotAvailableError) as caught,
        replayed(method=method, request=a_request(values=values, files=far)),
    ):
        pass
    message = str(caught.value)
    assert "nothing was run" in message
    for part in ("lost.py", "input 'gone'", "input 'changed' is kept by reference only", "-p token=BLOCK"):
        assert part in message


def test_an_unavailable_image_is_named_before_anything_runs(replayed, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine")
    image = {"image": f"sha256:{'a' * 64}", "image_name": "science/coins:1"}
    run = ScriptRun(id="a", task="a", runtime="docker", **image)
    with (
        pytest.raises(NotAvailableError, match=rf"nothing was run:\n  image: science/coins:1 \({image['image']}\)"),
        replayed(instance=an_instance(runs=(run,))),
    ):
        pass


def test_an_input_kept_by_reference_is_read_from_its_unchanged_origin(replayed, tmp_path):
    (tmp_path / "far").write_bytes(PICTURE)
    file = a_staged_input(path=None, origin=str(tmp_path / "far"))
    with replayed(request=a_request(files=(file,), values={"picture": "there"})) as ready:
        assert ready.request.parameters == {"picture": str(tmp_path / "far")}


def test_a_missing_module_is_named_and_isolated_suggested(home, capsys):
    bench, source = bench_at(home), b"import no_such_module\n"
    record = record_of(method=a_method(code=a_code_identity(source)))
    bundle = begun(bench, record)
    bundle.write("code/flows/coins.py", source)
    bench.leases.release(EXECUTION_ID)
    assert bench.settle(EXECUTION_ID).archived
    assert main(["replay", EXECUTION_ID]) == 3
    output = capsys.readouterr().err
    assert "nothing was run: module 'no_such_module' is missing. --isolated" in output


def test_a_damaged_bundle_is_not_replayed(home):
    bench = bench_at(home)
    bundle = kept(bench)
    (bundle.folder / "code/flows/coins.py").write_bytes(b"forged")
    with pytest.raises(BundleError, match=r"coins\.py"), open_replayable(Catalog(bench), str(bundle.folder)):
        pass


@pytest.mark.parametrize("path", ["nothing.zip", "nowhere/bundle"])
def test_a_missing_path_is_reported_as_a_path(home, path):
    reader = Catalog(bench_at(home))
    with pytest.raises(NotFoundError, match=f"the file or folder {path} does not exist"), open_replayable(reader, path):
        pass


def test_a_folder_of_two_bundles_is_refused(home):
    bench = bench_at(home)
    kept(bench)
    kept(bench, OTHER_ID)
    for scratch in bench.folder.glob(".*"):
        scratch.rename(bench.folder.parent / f"away{scratch.name}")
    with pytest.raises(RequestError, match="2 bundles"), open_replayable(Catalog(bench), str(bench.folder)):
        pass


OTHER_REGIONS = {**OUTPUTS, "outputs/regions.csv": b"label,area\n1,2605\n"}


def verdict_on(bench: Workbench, replay: OpenBundle) -> Verdict:
    """Return the verdict on the open bundle of a *replay* of the kept execution."""
    with replay.lock():
        gather(replay)
    with (
        open_replayable(Catalog(bench), EXECUTION_ID) as (record, source),
        prepare_replay(record, source, {}) as ready,
    ):
        return ready.verdict(replay, tolerance=0, well=True)


@pytest.mark.parametrize("where", ["workbench", "archive"])
def test_the_verdict_is_written_before_the_seal_and_sealed_with_it(home, where):
    bench = bench_at(home)
    first = kept(bench)
    if where == "archive":
        first.discard()
    outputs = {**OTHER_REGIONS, "outputs/new.txt": b""}
    del outputs["outputs/maps/labels.tif"]
    second = begun(bench, record_of(OTHER_ID), outputs)
    verdict = verdict_on(bench, second)
    result = {one.path: (one.agreement, one.words) for one in verdict.outputs}
    area = "column area differs in 1 of 1 rows, largest relative difference 0.00038"
    assert result["outputs/regions.csv"] == (Agreement.DIFFERS, (area,))
    assert result["outputs/stdout.log"] == (Agreement.SAME, ())
    assert result["outputs/maps/labels.tif"][0] is Agreement.GONE
    assert result["outputs/new.txt"][0] is Agreement.NEW
    assert verdict.grade is Grade.RECOMPUTE
    bench.leases.release(OTHER_ID)
    assert bench.settle(OTHER_ID).archived
    assert Verdict.from_json(Catalog(bench).read(OTHER_ID, "metadata/verdict.json")) == verdict
    assert "metadata/verdict.json" in (second.folder / "manifest-sha256.txt").read_text()


@pytest.mark.parametrize(("tolerance", "agreement"), [(1e-3, Agreement.EQUAL), (1e-5, Agreement.DIFFERS)])
def test_an_output_is_compared_as_the_recorded_method_and_its_code_declare(home, tolerance, agreement):
    bench = bench_at(home)
    declared = Comparison(tolerance=tolerance)
    method = a_method(comparisons={"*.csv": declared})
    kept(bench, method=method).discard()
    second = begun(bench, record_of(OTHER_ID, method=method), OTHER_REGIONS)
    verdict = verdict_on(bench, second)
    [regions] = [one for one in verdict.outputs if one.path == "outputs/regions.csv"]
    assert (regions.agreement, regions.declared) == (agreement, declared)
    bench.leases.release(OTHER_ID)
    assert bench.settle(OTHER_ID).archived
    assert Verdict.from_json(Catalog(bench).read(OTHER_ID, "metadata/verdict.json")) == verdict
    catalog = Catalog(bench)
    [result] = compare_executions(Opened(catalog, EXECUTION_ID), Opened(catalog, OTHER_ID)).outputs
    assert result == regions


def test_a_comparison_that_only_the_bundle_declares_excuses_nothing(home):
    bench = bench_at(home)
    kept(bench, method=a_method(comparisons={"*": Comparison(volatile=("*",))})).discard()
    second = begun(bench, record_of(OTHER_ID), OTHER_REGIONS)
    verdict = verdict_on(bench, second)
    [regions] = [one for one in verdict.outputs if one.path == "outputs/regions.csv"]
    assert (regions.agreement, regions.declared) == (Agreement.DIFFERS, None)
    assert verdict.code == ("the code declares other comparisons of outputs than the recorded Method",)
    assert verdict.grade is Grade.REPEAT


@pytest.mark.parametrize("tolerance", ["-1", "1", "nan"])
def test_an_invalid_tolerance_is_refused(home, tolerance):
    assert main(["replay", "x", "--tolerance", tolerance]) == 2


# --- with Prefect ----------------------------------------------------------------


@pytest.fixture
def beside(tmp_path, monkeypatch, prefect_server) -> None:
    """Be in the folder of shout.py, with a Prefect server."""
    (tmp_path / "shout.py").write_text(METHOD)
    (tmp_path / "letters.py").write_text(LETTERS)
    (tmp_path / "text.txt").write_text("hello ")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "letters", raising=False)  # another test's module, whose file is gone


@pytest.mark.long
@pytest.mark.usefixtures("beside")
def test_a_bundle_reproduces_without_the_method_and_randomness_is_reported(told, home, tmp_path, monkeypatch):
    first = told("run", "shout.py:shout", "-p", "text=text.txt")["id"]
    assert "dataFiles" not in told("show", first)["method"]["code"]  # text.txt is an input, staged from its origin
    random = told("run", "shout.py:shout", "-p", "text=text.txt", "-p", "chance=true")["id"]
    zips = [told("export", one, "-o", str(tmp_path / f"{one}.zip"))["file"] for one in (first, random)]
    for name in ("shout.py", "letters.py", "text.txt"):
        (tmp_path / name).unlink()
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path / "elsewhere"))

    reproduced = told("replay", zips[0], "--yes")
    verdict = reproduced["verdict"]
    assert (verdict["grade"], verdict["replayOf"]) == ("reproduce", first)
    assert {one["path"]: one["agreement"] for one in verdict["outputs"]}["outputs/shouted.csv"] == "same"
    assert told("show", reproduced["id"])["request"]["relatives"][0] == {
        "executionId": first,
        "relation": "rerun-of",
    }
    told("verify", reproduced["id"])

    drifted = told("replay", zips[1], "--yes", code=1)
    assert drifted["verdict"]["grade"] == "recompute"
    shouted = next(one for one in drifted["verdict"]["outputs"] if one["path"] == "outputs/shouted.csv")
    assert shouted["words"] == ["column text differs in 2 of 2 rows"]
    assert told("replay", zips[1], "--yes", "--grade", "recompute")["reached"]


@pytest.mark.long
@pytest.mark.timeout(900)  # all packages of this environment are installed once more
@pytest.mark.usefixtures("beside")
def test_an_isolated_replay_runs_in_an_environment_of_its_own_with_the_recorded_packages(told, home, tmp_path):
    method = "import sys\n" + METHOD
    (tmp_path / "shout.py").write_text(
        method.replace("    told =", "    print(sys.prefix, file=sys.stderr)\n    told =")
    )
    first = told("run", "shout.py:shout", "-p", "text=text.txt")["id"]
    zipped = told("export", first, "-o", str(tmp_path / "first.zip"))["file"]
    (tmp_path / "shout.py").unlink()

    replayed = json.loads(command("executions", "replay", zipped, "--isolated", "--json"))
    assert (replayed["verdict"]["grade"], replayed["verdict"]["environment"]) == ("reproduce", [])
    logs = [Catalog(bench_at(home)).read(one, "outputs/stderr.log").decode() for one in (first, replayed["id"])]
    assert f"{sys.prefix}\n" in logs[0]
    assert f"{sys.prefix}\n" not in logs[1]
    assert "/venv\n" in logs[1]


LATE = '''
from prefect_executions import current_execution, method


@method(version="1.0.0")
def m() -> None:
    """Import modules late."""
    import importlib

    from helper.late import answer

    computed = importlib.import_module("_".join(["computed", "name"]))
    current_execution().output("o.txt").write_text(f"{answer()} {computed.ANSWER}")
'''


def test_modules_that_are_imported_inside_the_function_are_replayed(told, home, tmp_path, monkeypatch, prefect_server):
    (tmp_path / "project/helper").mkdir(parents=True)
    for name, text in {
        "meth.py": LATE,
        "helper/__init__.py": "",
        "helper/late.py": "from helper.deep import NUMBER\n\ndef answer():\n    return NUMBER\n",
        "helper/deep.py": "NUMBER = 42\n",
        "computed_name.py": "ANSWER = 7\n",
    }.items():
        (tmp_path / "project" / name).write_text(text)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    ids = [told("run", "meth.py:m")["id"] for _ in range(2)]
    first, second = (told("show", one)["method"]["code"] for one in ids)
    assert {file["path"]: file.get("late") for file in first["files"]} == {
        "code/meth.py": None,
        "code/helper/__init__.py": None,
        "code/helper/late.py": None,
        "code/helper/deep.py": None,
        "code/computed_name.py": True,
    }
    assert first["sha256"] == second["sha256"]
    zipped = told("export", ids[0], "-o", str(tmp_path / "first.zip"))["file"]
    for path in (tmp_path / "project").rglob("*.py"):
        path.unlink()
    for name in ("helper", "helper.late", "helper.deep", "computed_name"):
        del sys.modules[name]
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path / "elsewhere"))
    assert told("replay", zipped, "--yes")["verdict"]["grade"] == "reproduce"
    told("verify", zipped)


PACKAGED = '''

from importlib.resources import files
from pathlib import Path

from prefect_executions import current_execution, method

from ..numbers import answer

SETTINGS = Path(__file__).with_name("settings.txt").read_text()


@method(version="1.0.0")
def m() -> None:
    """Import from the package above, and read data of the package."""
    table = files(__package__.rpartition(".")[0]).joinpath("data/table.csv").read_text()
    current_execution().output("o.txt").write_text(f"{answer()} {__name__} {SETTINGS} {table}")
'''


@pytest.mark.parametrize("place", ["", "src/"])
@pytest.mark.usefixtures("prefect_server")
def test_a_method_in_a_package_is_replayed_by_its_module(told, home, tmp_path, monkeypatch, place):
    top = f"package_{'src' if place else 'flat'}"
    for name, text in {
        "sub/__init__.py": "",
        "sub/mod.py": PACKAGED,
        "numbers.py": "def answer():\n    return 42\n",
        "__init__.py": "",
        "sub/settings.txt": "setting",
        "data/table.csv": "a,b",
    }.items():
        path = tmp_path / "project" / place / top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if place:
        for arguments in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *arguments], cwd=tmp_path / "project", check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "project" / place))
    first = told("run", f"{top}.sub.mod:m")["id"]
    code = told("show", first)["method"]["code"]
    data = [f"code/{place}{top}/data/table.csv", f"code/{place}{top}/sub/settings.txt"]
    assert [file["path"] for file in code["dataFiles"]] == data
    assert {file["path"]: file["module"] for file in code["files"]} == {
        f"code/{place}{top}/__init__.py": top,
        f"code/{place}{top}/numbers.py": f"{top}.numbers",
        f"code/{place}{top}/sub/__init__.py": f"{top}.sub",
        f"code/{place}{top}/sub/mod.py": f"{top}.sub.mod",
    }
    zipped = told("export", first, "-o", str(tmp_path / "first.zip"))["file"]
    (tmp_path / "project").rename(tmp_path / "away")
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path / "elsewhere"))
    assert told("replay", zipped, "--yes")["verdict"]["grade"] == "reproduce"


LOCAL = """
from prefect_executions import current_execution, method


@method(version="1.0.0")
def m() -> None:
    import from_a_folder
    current_execution().output("o.txt").write_text(from_a_folder.table())
"""


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_package_that_came_from_a_folder_is_replayed_from_the_bundle(told, home, tmp_path, monkeypatch):
    info = "from_a_folder-1.0.dist-info"
    files = {
        "from_a_folder/__init__.py": (
            "from importlib.resources import files\ndef table(): return files(__name__).joinpath('t.csv').read_text()\n"
        ),
        "from_a_folder/t.csv": "a,b",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: from-a-folder\nVersion: 1.0\n",
        f"{info}/direct_url.json": '{"url": "file:///home/ada/from_a_folder", "dir_info": {}}',
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    for path, text in files.items():
        (tmp_path / "site-packages" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site-packages" / path).write_text(text)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/local.py").write_text(LOCAL)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    first = told("run", "local.py:m")["id"]
    code = told("show", first)["method"]["code"]
    kept = {file["path"].removeprefix("code/_outside/site-packages/") for file in code["dataFiles"]}
    assert kept == set(files)
    zipped = told("export", first, "-o", str(tmp_path / "first.zip"))["file"]
    (tmp_path / "site-packages").rename(tmp_path / "away")
    del sys.modules["from_a_folder"]
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path / "elsewhere"))
    replayed = told("replay", zipped, "--yes")
    assert (replayed["verdict"]["grade"], replayed["verdict"]["environment"]) == ("reproduce", [])
    again = told("show", replayed["id"])["method"]["code"]
    assert again["dataFiles"] == code["dataFiles"]
    assert again["sha256"] == code["sha256"]
    del sys.modules["from_a_folder"]


LACKING = '''
from pathlib import Path

from prefect_executions import current_execution, method


@method(version="1.0.0")
def m() -> None:
    """Read data that is not kept."""
    here = Path(__file__).parent
    size = (here / "large.bin").stat().st_size if (here / "large.bin").exists() else 0
    for name in ("large.bin", "token.txt", "small.txt"):
        if (here / name).exists():
            (here / name).read_bytes()
    current_execution().output("o.txt").write_text(str(size))
'''


UNDECLARED = """
from pathlib import Path
from prefect_executions import current_execution, method

@method(version="1.0.0")
def m(path: Path, many: list[str], api_key: str, word: str = "no file") -> int:
    current_execution().output("copy.txt").write_text(path.read_text())
    return len(many)
"""


@pytest.mark.usefixtures("prefect_server")
def test_a_file_that_is_not_declared_is_named_by_show_and_verify_and_before_a_replay(
    told, tmp_path, monkeypatch, capsys
):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/undeclared.py").write_text(UNDECLARED)
    for name in ("a.csv", "b.csv", "secret-path"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    inputs = ["-p", "path=a.csv", "-p", 'many=["b.csv", "none"]', "-p", "api_key=secret-path"]
    first = told("run", "code/undeclared.py:m", *inputs)["id"]
    assert [(file["path"], file["input"]) for file in told("show", first)["method"]["code"]["lacking"]] == [
        ("a.csv", "path"),
        ("b.csv", "many"),
    ]
    capsys.readouterr()
    assert main(["show", first]) == 0
    assert "a.csv: it is the input 'path', which is not declared as InputFile" in capsys.readouterr().out
    assert any(
        "'a.csv' was used and is not in the bundle" in text for text in json.dumps(told("verify", first)).split('"')
    )
    assert told("replay", first, "-p", "api_key=x")["verdict"]["grade"] == "reproduce"  # the files are still here
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["replay", first, "-p", "api_key=x"]) == 3
    output = " ".join(capsys.readouterr().err.split())
    assert "nothing was run" in output
    assert "a.csv: it is the input 'path', which is not declared as InputFile; name a file with -p path=FILE" in output
    assert "b.csv" in output
    named = ["-p", "api_key=x", "-p", f"path={tmp_path / 'a.csv'}", "-p", 'many=["x", "y"]']
    assert told("replay", first, *named, "--grade", "rerun")["reached"]


FIXED_PATH = """
from prefect_executions import current_execution, method

@method(version="1.0.0")
def m() -> str:
    with open("{path}") as file:
        text = file.read()
    current_execution().output("copy.txt").write_text(text)
    return text
"""


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_file_at_a_fixed_path_is_named_by_show_and_verify_and_before_a_replay(told, tmp_path, monkeypatch, capsys):
    for name in ("code", "data", "elsewhere"):
        (tmp_path / name).mkdir()
    path = tmp_path / "data/x.csv"
    path.write_text("a,b")
    (tmp_path / "code/fixed_path.py").write_text(FIXED_PATH.format(path=path))
    monkeypatch.chdir(tmp_path / "elsewhere")
    first = told("run", "../code/fixed_path.py:m")["id"]
    [lacking] = told("show", first)["method"]["code"]["lacking"]
    assert (lacking["path"], lacking["size"]) == (str(path), 3)
    assert lacking["sha256"] == sha256(b"a,b").hexdigest()
    second = told("run", "../code/fixed_path.py:m")["id"]  # the same process opens it again
    assert told("show", second)["method"]["code"]["lacking"] == [lacking]
    capsys.readouterr()
    assert main(["show", first]) == 0
    assert f"{path}: it is not beside the code (3 bytes)" in capsys.readouterr().out
    assert f"{str(path)!r} was used and is not in the bundle" in str(told("verify", first))
    assert told("replay", first)["verdict"]["grade"] == "reproduce"  # the file is as it was
    path.write_text("c,d")
    assert main(["replay", first]) == 3
    output = " ".join(capsys.readouterr().err.split())
    assert "nothing was run" in output
    assert f"{path}: it is not beside the code" in output
    assert "--allow-missing" in output


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_data_that_is_not_kept_is_named_by_show_and_verify_and_before_a_replay(
    told, home, tmp_path, monkeypatch, capsys
):
    for name, text in {"lacking.py": LACKING, "token.txt": "hunter2", "small.txt": "small"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "large.bin").write_bytes(bytes(1024**2 + 1))
    monkeypatch.chdir(tmp_path)
    first = told("run", "lacking.py:m")["id"]
    code = told("show", first)["method"]["code"]
    assert [file["path"] for file in code["dataFiles"]] == ["code/small.txt"]
    large = {"path": "code/large.bin", "why": "it has 1048577 bytes, more than 1048576"}
    secret = {"path": "code/token.txt", "why": "its name says that it may hold credentials"}
    assert code["lacking"] == [large, secret]
    assert b"hunter2" not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    capsys.readouterr()
    assert main(["show", first]) == 0
    assert "code/large.bin: it has 1048577 bytes" in capsys.readouterr().out
    assert any("code/large.bin" in text for text in json.dumps(told("verify", first)).split('"'))
    assert main(["replay", first]) == 3
    output = capsys.readouterr().err
    assert "nothing was run" in output
    assert "code/large.bin: it has 1048577 bytes" in output
    assert "--allow-missing" in output
    assert main(["replay", first, "--allow-missing"]) == 1
