"""Why two executions differ is found by experiments: an input, a package, the code, two inputs, or chance."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches import OTHER_ID, begun, bench_at, record_of
from prefect_executions.cli.app import main
from prefect_executions.cli.diff import answer
from prefect_executions.comparison.causes import Effect
from prefect_executions.errors import ForeignCodeError, NotAvailableError, RequestError
from prefect_executions.executions.record import Instance, Python
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import InputDescription
from prefect_executions.operations.environments import layer_environment
from prefect_executions.operations.explain import EXPERIMENT_TAG, Conclusion, ExperimentPlan, Explanation, explain
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID, SOURCE, a_code_identity, a_job_status, a_method, a_record, a_request, an_instance
from wheels import only_grains

THIRD_ID = "0b1e5a52-0000-4f2e-9a41-3d6d5d3f2e12"
NUMBERS = {name: InputDescription(json_schema={"type": "integer"}) for name in ("left", "right", "title")}
REPLAY = """
import importlib.util, json, os, sys
from pathlib import Path

words = sys.argv[2:]
edits = json.loads(Path(words[words.index("--params") + 1]).read_text())
key = " ".join([*(["code"] if words[0] == {other!r} else []), *(f"{{name}}={{edits[name]}}" for name in sorted(edits))])
key = f"{{key}} TZ={{os.environ['TZ']}}".strip() if "TZ" in os.environ else key
try:
    import grains
    key = f"{{key}} grains={{grains.VERSION}}".strip()
except ImportError:
    pass
if not importlib.util.find_spec("pytest"):
    key = f"{{key}} without pytest".strip()
answers, log = {answers!r}, Path({log!r})
log.write_text((log.read_text() if log.exists() else "") + f"{{key}}\\n")
answer = answers.get(key, answers[""])
if isinstance(answer, list):
    answer = answer[(log.read_text().splitlines().count(key) - 1) % len(answer)]
if answer.startswith("error"):
    sys.exit(answer)
print(json.dumps({{"id": answer}}))
"""
"""A replay that only names an execution whose outputs are those that it would give."""

HERE = Python(version=platform.python_version(), implementation="CPython")


def instance(**changes: Any) -> Instance:
    """Return an instance on this Python."""
    return an_instance(**{"python": HERE, "packages": {}, "environment": {}} | changes)


class Laboratory:
    """Two executions with other outputs, replays of both, and what each experiment gives."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.bench = bench_at(home)
        self.folder = folder
        self.ids: dict[str, str] = {}

    def execution(self, name: str, execution_id: str = "", /, code: bytes = SOURCE, **changes: Any) -> str:
        """Keep an execution whose output is *name*, with the inputs in *changes*, and return its id."""
        execution_id = execution_id or f"0b1e5a52-0000-4f2e-9a41-3d6d5d3f2f{len(self.ids):02}"
        values = {"left": 1, "right": 1, "title": 1} | changes.pop("values", {})
        members: dict[str, Any] = {
            "method": a_method(inputs=NUMBERS),
            "instance": instance(),
            "request": a_request(execution_id=execution_id, values=values, parameters=values, files=()),
        }
        outputs = {"outputs/answer.txt": f"{name}\n".encode(), "outputs/stdout.log": b"", "outputs/stderr.log": b""}
        bundle = begun(self.bench, record_of(execution_id, **members | changes), outputs)
        bundle.write("code/flows/coins.py", code)
        self.bench.leases.release(execution_id)
        assert self.bench.settle(execution_id).archived
        self.ids[execution_id] = name
        return execution_id

    def explain(self, answers: Mapping[str, Any], **plan: Any) -> Explanation:
        """Explain the two executions where *answers* gives the execution that each experiment results in."""
        script = self.folder / "replay.py"
        text = {"answers": dict(answers), "log": str(self.folder / "log"), "other": OTHER_ID}
        script.write_text(REPLAY.format(**text))
        members: dict[str, Any] = {"limit": 30, "during": lambda _number, _factors: nullcontext()}
        made = ExperimentPlan(command=lambda python: (str(python), str(script)), prepare=lambda: None, **members | plan)
        return explain(Catalog(self.bench), EXECUTION_ID, OTHER_ID, made)

    def tried(self) -> list[str]:
        """Return the experiments in their order."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def laboratory(home, tmp_path, monkeypatch) -> Laboratory:
    monkeypatch.delenv("TZ", raising=False)
    return Laboratory(home, tmp_path)


def cause(found: Explanation) -> list[str]:
    return [f"{factor.kind} {factor.name}" for factor in found.cause]


def test_one_input_explains_the_outputs(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2, "title": 2})
    first, second = laboratory.execution("a"), laboratory.execution("b")
    found = laboratory.explain({"": first, "left=2": second})
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["input left"])
    assert laboratory.tried() == ["", "left=2"]
    assert [(one.effect, one.execution) for one in found.experiments] == [("first", first), ("second", second)]


def test_two_inputs_together_explain_the_outputs(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2, "right": 2, "title": 2})
    found = laboratory.explain({"": laboratory.execution("a"), "left=2 right=2": laboratory.execution("b")})
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["input left", "input right"])
    assert laboratory.tried() == ["", "left=2", "right=2", "title=2", "left=2 right=2"]


def test_a_factor_that_gives_other_outputs_than_both_is_reported_as_a_change(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2, "right": 2})
    found = laboratory.explain({"": laboratory.execution("a"), "right=2": laboratory.execution("c")})
    assert (found.conclusion, cause(found), found.untried) == (Conclusion.CHANGED, ["input right"], 0)
    assert answer(found, "A", "B") == "With input right from B, A gives other outputs, but not those of B."


def test_all_factors_that_change_the_outputs_by_themselves_are_named(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2, "right": 2, "title": 2})
    other = laboratory.execution("c")
    found = laboratory.explain({"": laboratory.execution("a"), "left=2": other, "title=2": other})
    assert (found.conclusion, cause(found), found.untried) == (Conclusion.CHANGED, ["input left"], 0)
    assert answer(found, "A", "B") == (
        "Each of these changes the outputs of A by itself: input left, input title. "
        "No set of at most two that was tried gives the outputs of B."
    )


def test_a_method_without_a_fixed_seed_is_reported_before_any_experiment(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2})
    found = laboratory.explain({"": [laboratory.execution("c"), laboratory.execution("d")]})
    assert (found.conclusion, found.cause, laboratory.tried()) == (Conclusion.UNSTABLE, (), ["", ""])


def test_recorded_outputs_that_do_not_come_again_are_distinguished_from_chance(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2})
    assert laboratory.explain({"": laboratory.execution("b")}).conclusion is Conclusion.NOT_REPRODUCED


def test_equal_outputs_need_no_experiment(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("a", OTHER_ID, values={"left": 2})
    assert laboratory.explain({}) == Explanation(EXECUTION_ID, OTHER_ID, Conclusion.SAME)


def test_the_code_runs_with_the_inputs_of_the_first_execution(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    source = b"other\n"
    method = a_method(inputs=NUMBERS, code=a_code_identity(source))
    laboratory.execution("b", OTHER_ID, values={"left": 2}, method=method, code=source)
    found = laboratory.explain({"": laboratory.execution("a"), "code left=1": laboratory.execution("b")})
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["code flows/coins.py"])
    assert laboratory.tried() == ["", "left=2", "code left=1"]


def test_variables_have_the_value_of_the_first_execution_until_they_are_tried(laboratory):
    laboratory.execution("a", EXECUTION_ID, instance=instance(environment={"TZ": "UTC"}))
    other = {"TZ": "Asia/Tokyo", "LD_PRELOAD": "/evil.so", "SLURM_JOB_ID": "7"}
    laboratory.execution("b", OTHER_ID, instance=instance(environment=other))
    found = laboratory.explain({"": laboratory.execution("a"), "TZ=Asia/Tokyo": laboratory.execution("b")})
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["variable TZ"])
    assert laboratory.tried() == ["TZ=UTC", "TZ=Asia/Tokyo"]
    assert {one.factor.name: one.why for one in found.untestable} == {
        "LD_PRELOAD": "this machine does not record it (EXECUTIONS_ENVIRONMENT)",
        "SLURM_JOB_ID": "a scheduler or an operator sets it for each run",
    }


def test_infrastructure_is_named_as_not_testable(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, instance=instance(hostname="vm-8"))
    found = laboratory.explain({"": laboratory.execution("a")})
    assert found.conclusion is Conclusion.UNEXPLAINED
    assert [(one.factor.name, one.why) for one in found.untestable] == [
        ("host", "it needs the other machine or work pool")
    ]


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> None:
    """Let two versions of one package be the only ones that can be installed."""
    only_grains(tmp_path / "shelf", monkeypatch)


@pytest.mark.long
@pytest.mark.usefixtures("shelf")
def test_a_package_is_tried_with_the_other_packages_of_the_first_execution(laboratory):
    laboratory.execution("a", EXECUTION_ID, instance=instance(packages={"grains": "1.0"}))
    laboratory.execution("b", OTHER_ID, instance=instance(packages={"grains": "2.0"}), values={"left": 2})
    answers = {"grains=1.0": laboratory.execution("a"), "grains=2.0": laboratory.execution("b")}
    found = laboratory.explain(answers | {"": laboratory.execution("c"), "left=2 grains=1.0": answers["grains=1.0"]})
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["package grains"])
    assert laboratory.tried() == ["grains=1.0", "left=2 grains=1.0", "grains=2.0"]


@pytest.mark.long
@pytest.mark.usefixtures("shelf")
def test_the_first_execution_gets_its_own_packages_if_it_needs_them(laboratory):
    both = instance(packages={"grains": "1.0"})
    laboratory.execution("a", EXECUTION_ID, instance=both)
    laboratory.execution("b", OTHER_ID, instance=both, values={"left": 2})
    first, second = laboratory.execution("a"), laboratory.execution("b")
    answers = {"grains=1.0": first, "left=2 grains=1.0": second}
    found = laboratory.explain({"": laboratory.execution("c")} | answers)
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["input left"])
    assert laboratory.tried() == ["", "grains=1.0", "left=2 grains=1.0"]


@pytest.mark.long
@pytest.mark.usefixtures("shelf")
def test_a_package_that_the_second_execution_lacks_is_absent_although_it_is_installed_here(laboratory):
    packages = {"grains": "1.0", "pytest": pytest.__version__}
    laboratory.execution("a", EXECUTION_ID, instance=instance(packages=packages))
    laboratory.execution("b", OTHER_ID, instance=instance(packages={"grains": "1.0"}))
    answers = {"": laboratory.execution("a"), "grains=1.0 without pytest": laboratory.execution("b")}
    found = laboratory.explain(answers)
    assert (found.conclusion, cause(found)) == (Conclusion.EXPLAINED, ["package pytest"])
    assert laboratory.tried() == ["grains=1.0", "grains=1.0 without pytest"]


@pytest.mark.long
@pytest.mark.usefixtures("shelf")
def test_a_package_that_cannot_be_installed_is_named_and_not_tried_in_pairs(laboratory):
    for name, execution_id, version in (("a", EXECUTION_ID, "3.0"), ("b", OTHER_ID, "4.0")):
        values = {"left": 2} if name == "b" else {}
        laboratory.execution(name, execution_id, instance=instance(packages={"grains": version}), values=values)
    found = laboratory.explain({"": laboratory.execution("a")})
    assert found.conclusion is Conclusion.UNEXPLAINED
    assert [one.effect.value for one in found.experiments] == ["unavailable", "first", "first", "unavailable"]
    assert "grains==4.0" in (found.experiments[-1].problem or "")


def test_an_experiment_that_was_stopped_says_nothing(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2})
    stopped = laboratory.execution("c", THIRD_ID, job_status=a_job_status(Status.CANCELLED, execution_id=THIRD_ID))
    found = laboratory.explain({"": laboratory.execution("a"), "left=2": stopped})
    assert (found.conclusion, found.experiments[1].effect) == (Conclusion.UNEXPLAINED, "none")


def test_a_secret_is_not_a_factor_that_a_record_can_supply(laboratory):
    inputs = NUMBERS | {"token": InputDescription(json_schema={"type": "string", "format": "secret"})}
    method = a_method(inputs=inputs)
    laboratory.execution("a", EXECUTION_ID, values={"token": {"secret": "x"}}, method=method)
    laboratory.execution("b", OTHER_ID, values={"token": {"secret": "y"}}, method=method)
    found = laboratory.explain({"": laboratory.execution("a")})
    [(factor, why)] = found.untestable
    assert factor.name == "token"
    assert "a record never contains a secret" in why


def test_a_method_that_does_not_start_is_reported_with_its_error(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2})
    found = laboratory.explain({"": laboratory.execution("a"), "left=2": "error: left is too large"})
    assert found.conclusion is Conclusion.UNEXPLAINED
    assert found.experiments[1][1:2] + found.experiments[1][3:] == (Effect.NONE, None, "left is too large")
    with pytest.raises(NotAvailableError, match="no experiment can explain it: no module"):
        laboratory.explain({"": "error: no module"})


def test_an_execution_that_failed_differs_from_one_that_completed(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    failed = a_job_status(Status.FAILED, execution_id=OTHER_ID)
    laboratory.execution("a", OTHER_ID, values={"left": 2}, job_status=failed)
    found = laboratory.explain({"": laboratory.execution("a")})
    assert found.conclusion is Conclusion.UNEXPLAINED


def test_wrong_targets_are_refused(laboratory):
    laboratory.execution("a", EXECUTION_ID)
    other: dict[str, Any] = {"execution_id": OTHER_ID, "method_id": "other-method"}
    request, job_status = a_request(**other, values={}, files=()), a_job_status(**other)
    laboratory.execution("b", OTHER_ID, method=a_method(id="other-method"), request=request, job_status=job_status)
    with pytest.raises(RequestError, match="two executions of one Method"):
        laboratory.explain({})
    catalog, refused = Catalog(laboratory.bench), "download the bundle first"
    plan = ExperimentPlan(command=lambda _: (), prepare=lambda: None, during=lambda *_: nullcontext(), limit=1)
    with pytest.raises(RequestError, match=refused):
        explain(catalog, EXECUTION_ID, "https://example.org/x.zip", plan)


def test_foreign_code_needs_approval(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there"))
    there = Laboratory(tmp_path / "other", tmp_path)
    there.execution("b", OTHER_ID, values={"left": 2})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "here"))
    here = Laboratory(home, tmp_path)
    here.execution("a", EXECUTION_ID)
    plan = ExperimentPlan(command=lambda _: (), prepare=lambda: None, during=lambda *_: nullcontext(), limit=1)
    with pytest.raises(ForeignCodeError):
        explain(Catalog(here.bench), EXECUTION_ID, str(there.bench.folder / OTHER_ID), plan)


@pytest.mark.parametrize("words", [["--limit", "3"], ["--yes"], ["-p", "a=1"], ["--explain", "--all"]])
def test_options_that_do_not_apply_are_refused(home, words):
    assert main(["diff", EXECUTION_ID, OTHER_ID, *words]) == 2


def test_a_limit_is_at_least_1(home):
    assert main(["diff", EXECUTION_ID, OTHER_ID, "--explain", "--limit", "0"]) == 2


INTERRUPTED = """
import sys
from contextlib import nullcontext
from pathlib import Path

from prefect_executions.operations.explain import ExperimentPlan, explain
from prefect_executions.settings import Settings
from prefect_executions.workbench.entry import catalog_of

wait = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)"
plan = ExperimentPlan(
    command=lambda python: (str(python), "-c", wait, sys.argv[1]),
    prepare=lambda: None,
    during=lambda *_: nullcontext(),
    limit=1,
)
explain(catalog_of(Settings.read()), *sys.argv[2:], plan)
"""


def test_an_interruption_ends_the_experiment_and_leaves_no_files(laboratory, tmp_path, monkeypatch):
    laboratory.execution("a", EXECUTION_ID)
    laboratory.execution("b", OTHER_ID, values={"left": 2})
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    started = tmp_path / "started"
    command = [sys.executable, "-c", INTERRUPTED, str(started), EXECUTION_ID, OTHER_ID]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as process:
        while not started.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert list((tmp_path / "temporary").iterdir()) == []


# --- with Prefect ----------------------------------------------------------------

METHOD = """
import random

from prefect_executions import current_execution, method


@method(version="1.0.0")
def throw(left: int = 1, seed: int | None = 0) -> None:
    '''Throw a die.'''
    random.seed(seed)
    times = 7 if left > 5 else 1
    current_execution().output("eyes.csv").write_text(f"eyes\\n{times * random.randint(1, 10**9)}\\n")
"""
GRAINS = """
import grains

from prefect_executions import current_execution, method


@method(version="1.0.0")
def count(most: int = 1) -> None:
    '''Count grains.'''
    current_execution().output("grains.csv").write_text(f"version\\n{grains.VERSION}\\n")
"""


@pytest.fixture
def run(home, tmp_path, monkeypatch, prefect_server) -> Callable[..., str]:
    """Return a function that runs a Method in a process, as a user does, and returns the id of its execution."""
    monkeypatch.chdir(tmp_path)

    def ran(entrypoint: str, *words: str, python: Path | str = sys.executable) -> str:
        command = [str(python), "-m", "prefect_executions.cli", "run", entrypoint, "-q", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return ran


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_recorded_seed_or_the_code_explains_a_run(run, home, tmp_path, told):
    (tmp_path / "throw.py").write_text(METHOD)
    first, seeded = run("throw.py:throw"), run("throw.py:throw", "-p", "seed=1", "-p", "left=2")
    (tmp_path / "throw.py").write_text(METHOD.replace("else 1", "else 2"))
    other = run("throw.py:throw")

    found = told("diff", first, seeded, "--explain")
    assert (found["conclusion"], [factor["name"] for factor in found["cause"]]) == ("explained", ["seed"])
    found = told("diff", first, other, "--explain")
    assert (found["conclusion"], [factor["kind"] for factor in found["cause"]]) == ("explained", ["code"])
    last = Catalog(bench_at(home)).record(found["experiments"][-1]["execution"])
    assert EXPERIMENT_TAG in last.request.tags
    assert {relative.relation for relative in last.request.relatives} == {"rerun-of"}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_seed_that_is_not_recorded_is_reported_as_chance(run, tmp_path, capsys):
    (tmp_path / "throw.py").write_text(METHOD)
    ids = [run("throw.py:throw", "-p", "seed=null") for _ in range(2)]
    assert main(["diff", *ids, "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "gives other outputs each time" in shown
    assert [line.split("\t")[1:3] for line in shown.splitlines()[:2]] == [["nothing", "other"]] * 2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("shelf")
def test_a_package_explains_a_run(run, tmp_path, told):
    (tmp_path / "count.py").write_text(GRAINS)
    ids = []
    for version in ("1.0", "2.0"):
        record = replace(a_record(), instance=instance(packages={"grains": version}))
        environment = layer_environment(record, tmp_path / f"venv-{version}")
        ids.append(run("count.py:count", *(["-p", "most=2"] if ids else []), python=environment))

    found = told("diff", *ids, "--explain")
    assert (found["conclusion"], [factor["name"] for factor in found["cause"]]) == ("explained", ["grains"])
    assert [one["effect"] for one in found["experiments"]] == ["first", "first", "second"]
