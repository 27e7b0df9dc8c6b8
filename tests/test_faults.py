"""A sample of the fault tests, so that they cannot rot; all of them: ``python tests/faults``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from faults import chaos, harms, judging, kills, settles, table
from faults.kills import Case
from faults.methods import HALF
from faults.world import World, a_world
from prefect_executions.tracepoints import TracePoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # a Prefect server starts, and the machine may be busy

ELSEWHERE = {TracePoint.SET_ASIDE, TracePoint.DATA_SENT, TracePoint.PART_SENT} | kills.OF_THE_INDEX
"""Trace points that an execution without a fault and with small files does not reach."""

SAMPLE = (TracePoint.STAGED, HALF, TracePoint.ZIP_KEPT, TracePoint.MANIFEST_KEPT, TracePoint.SEALED)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a world with a Prefect server of its own: a settle looks at every run that its server knows."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "archive").mkdir()
    with a_world(folder, {"EXECUTIONS_ARCHIVE": str(folder / "archive")}) as world:
        yield world


@pytest.fixture(scope="module")
def cases(world: World) -> Mapping[str, Case]:
    """Kill runs at some steps, close the archive to another, and settle once for all."""
    told = {step: kills.killed_at(world, step) for step in SAMPLE}
    with ExitStack() as stack:
        closed = {harm.step: harm for harm in harms.closed_folders(world, stack) if "archive" in harm.fault}
        told["archive closed"] = harms.suffered(world, closed[TracePoint.EXECUTING], "archive closed")
    world.executions(*settles.SETTLE)
    return told


def test_an_execution_without_a_fault_reaches_every_trace_point(world: World):
    steps = kills.steps_of(world)
    assert {point for point in TracePoint if not any(step.startswith(point) for step in steps)} == ELSEWHERE


@pytest.mark.parametrize("step", [*SAMPLE, "archive closed"])
def test_a_settle_after_a_fault_leaves_one_true_record(step: str, cases: Mapping[str, Case], world: World):
    case = cases[step]
    verdict = judging.judge(world, case.execution_id, case.truth)
    assert (case.untrue, verdict.untrue) == ((), ())


def test_a_record_that_tells_something_else_is_found_out(cases: Mapping[str, Case], world: World):
    killed = cases[HALF]
    ended = cases[TracePoint.SEALED].truth
    untrue = judging.judge(world, killed.execution_id, ended).untrue
    assert any("it is told as FAILED crashed and was COMPLETED" in one for one in untrue)
    assert any("last.bin was written before and is lost" in one for one in untrue)


def test_nothing_half_written_is_left_after_a_settle(cases: Mapping[str, Case], world: World):
    world.executions(*settles.SETTLE)
    assert judging.unfinished(world) == []


def test_each_row_of_the_table_is_run_in_one_third_and_listed_in_the_others():
    names = [("folder", f"step {number}", "kill -9") for number in range(300)]
    for name in names:
        listed: list[table.Row] = []
        runs = [table.Selection(third=third).take(*name, listed) for third in range(table.THIRDS)]
        assert runs.count(True) == 1
        assert listed == [("deselected", *name)] * 2
    sizes = [sum(table.Selection(third=third).take(*name, []) for name in names) for third in range(table.THIRDS)]
    assert min(sizes) > 50


def test_all_rows_are_run_without_a_third_and_rows_that_are_not_asked_for_are_not_listed():
    listed: list[table.Row] = []
    assert table.Selection().take("s3", "upload", "kill -9", listed)
    assert not table.Selection(only="disk", third=0).take("s3", "upload", "kill -9", listed)
    assert listed == []


@pytest.mark.parametrize("command", [table.main, chaos.main])
def test_the_full_runs_tell_how_they_are_called(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["faults", "--help"])
    with pytest.raises(SystemExit):
        command()
    assert "usage:" in capsys.readouterr().out
