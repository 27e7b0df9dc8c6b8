"""Many executions are replayed, and one table shows which of them still reproduce."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benches import OTHER_ID, begun, bench_at, kept, record_of
from flows.reproduce import reproduce as reproduce_flow
from prefect_executions import background
from prefect_executions.cli.app import main
from prefect_executions.comparison.verdict import Agreement, Grade, OutputVerdict, ReplayGoal, Verdict
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.reproduce import Reproduced, reproduce, reproducible
from prefect_executions.query.filter import Filter
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID

THIRD_ID = "0b1e5a52-0000-4f2e-9a41-3d6d5d3f2e12"
DRIFTED = Verdict(
    replay_of=OTHER_ID,
    grade=Grade.RECOMPUTE,
    outputs=(
        OutputVerdict(path="outputs/a.csv", agreement=Agreement.DIFFERS, by="table", words=("column x differs",)),
        OutputVerdict(path="outputs/b.csv", agreement=Agreement.EQUAL, by="table", words=("written in another way",)),
    ),
)
METHOD = '''
from prefect_executions import current_execution, method


@method(version="1.0.0")
def throw(chance: bool = False) -> None:
    """Throw a die."""
    import os

    current_execution().output("eyes.csv").write_text("eyes\\n" + (os.urandom(8).hex() if chance else "6") + "\\n")
'''


@pytest.fixture
def replaying(tmp_path):
    """Return a function that makes a command that answers each replay of an id as a script says."""

    def made(**answers: str) -> list[str]:
        script = tmp_path / "answer.py"
        cases = "".join(f"if sys.argv[2].startswith({key!r}):\n    {result}\n" for key, result in answers.items())
        script.write_text(f"import os, signal, sys\n{cases}")
        return [sys.executable, str(script)]

    return made


def answer(verdict: Verdict, *, reached: bool, code: int) -> str:
    payload = {"id": THIRD_ID, "wanted": "reproduce", "reached": reached, "verdict": json.loads(verdict.to_json())}
    return f"print({json.dumps(payload)!r}); sys.exit({code})"


def test_a_failed_or_killed_replay_does_not_affect_the_others(home, replaying):
    bench = bench_at(home)
    for one in (EXECUTION_ID, OTHER_ID, THIRD_ID):
        kept(bench, one)
    missing = "print('INFO: a log\\nerror: cannot be replayed; nothing was run:\\n  input x', file=sys.stderr)"
    command = replaying(
        **{
            EXECUTION_ID: f"{missing}; sys.exit(3)",
            OTHER_ID: answer(DRIFTED, reached=False, code=1),
            THIRD_ID: "os.kill(os.getpid(), signal.SIGKILL)",
        }
    )
    results = list(reproduce(Catalog(bench), [EXECUTION_ID, OTHER_ID, THIRD_ID], ReplayGoal(), command=command))
    assert results == [
        Reproduced(
            id=EXECUTION_ID,
            method="segment-coins",
            problem="cannot be replayed; nothing was run:\n  input x",
        ),
        Reproduced(
            id=OTHER_ID,
            method="segment-coins",
            replay=THIRD_ID,
            grade=Grade.RECOMPUTE,
            differs=("outputs/a.csv: column x differs",),
        ),
        Reproduced(
            id=THIRD_ID,
            method="segment-coins",
            problem="the replay was killed by SIGKILL and gave no verdict",
        ),
    ]


def test_a_method_that_cannot_start_is_reported_with_its_error(home, replaying):
    bench = bench_at(home)
    kept(bench)
    result = {"id": None, "method": "x", "error": {"type": "ImportError", "message": "no module"}}
    command = replaying(**{EXECUTION_ID: f"print({json.dumps(result)!r}); sys.exit(1)"})
    [one] = reproduce(Catalog(bench), [EXECUTION_ID], ReplayGoal(), command=command)
    assert one.problem == "ImportError: no module"


def test_a_replay_gets_the_goal_and_no_flow_run_id_of_its_caller(home, replaying, monkeypatch):
    bench = bench_at(home)
    kept(bench)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", EXECUTION_ID)
    seen = "sys.exit(f\"error: {sys.argv[3:]} {'PREFECT__FLOW_RUN_ID' in os.environ}\")"
    wanted = ReplayGoal(grade=Grade.RECOMPUTE, tolerance=1e-9, isolated=True)
    [one] = reproduce(Catalog(bench), [EXECUTION_ID], wanted, command=replaying(**{EXECUTION_ID: seen}))
    words = ["--isolated", "--grade", "recompute", "--tolerance", "1e-09", "--json"]
    assert one.problem == f"{words} False"


def test_only_completed_executions_that_are_not_replays_are_chosen(home):
    bench = bench_at(home)
    kept(bench)
    kept(bench, OTHER_ID, job_status=record_of(OTHER_ID, Status.FAILED).job_status)
    (bench.folder / EXECUTION_ID).rename(home / "away")
    assert reproducible(Catalog(bench)) == (EXECUTION_ID,)
    assert reproducible(Catalog(bench), Filter(method="other")) == ()
    replays = bench_at(home / "replays")
    begun(replays, record_of()).write_document(DRIFTED)
    replays.leases.release(EXECUTION_ID)
    replays.settle(EXECUTION_ID)
    assert reproducible(Catalog(replays)) == ()


def test_a_limit_takes_the_newest(home):
    bench = bench_at(home)
    kept(bench)
    kept(bench, OTHER_ID)
    both = reproducible(Catalog(bench))
    assert sorted(both) == sorted([EXECUTION_ID, OTHER_ID])
    assert reproducible(Catalog(bench), limit=1) == both[:1]


@pytest.mark.parametrize(
    "words", [[], ["--limit", "0"], [EXECUTION_ID, "--method", "x"], [EXECUTION_ID, "--tolerance", "2"]]
)
def test_contradictory_arguments_are_refused(home, words):
    assert main(["reproduce", *words]) == 2


def test_a_filter_without_a_match_is_an_error(home, capsys):
    assert main(["reproduce", "--limit", "3"]) == 2
    assert "no completed execution matches the filters" in capsys.readouterr().err


# --- with Prefect ----------------------------------------------------------------


def test_the_results_of_a_query_are_reproduced(home, tmp_path, monkeypatch, told, prefect_server):
    (tmp_path / "throw.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    first = told("run", "throw.py:throw", "--tag", "kept")["id"]
    summary = told("reproduce", "tag:kept")
    assert [(one["id"], one["grade"]) for one in summary["executions"]] == [(first, "reproduce")]


@pytest.mark.long
def test_two_executions_are_replayed_and_summed_up(home, tmp_path, monkeypatch, capsys, prefect_server):
    (tmp_path / "throw.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    ids = []
    for words in ([], ["-p", "chance=true"]):
        assert main(["run", "throw.py:throw", *words, "--json"]) == 0
        ids.append(json.loads(capsys.readouterr().out)["id"])
    background.drain()
    Path("throw.py").unlink()

    assert main(["reproduce", *ids, "--json"]) == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["reached"] == 1
    assert [(one["id"], one["grade"], one["reached"]) for one in payload["executions"]] == [
        (ids[0], "reproduce", True),
        (ids[1], "recompute", False),
    ]
    [drift] = [words for words in payload["executions"][1]["differs"] if "eyes.csv" in words]
    assert "differs in 1 of 1 rows" in drift
    replays = {one["replay"] for one in payload["executions"]}
    assert {Catalog(bench_at(home)).record(one).status for one in replays} == {Status.COMPLETED}
    assert set(reproducible(Catalog(bench_at(home)))) == set(ids), "replays are not replayed"

    state = reproduce_flow(most=1, return_state=True)
    assert state.is_failed()
    assert "1 of 1 executions did not reach reproduce" in state.message
    assert reproduce_flow(most=1, grade=Grade.RECOMPUTE) == {ids[1]: "recompute"}
