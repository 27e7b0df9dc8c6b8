"""The milestones: one list in the order of an execution, told to who listens and to nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prefect_executions.tracepoints import EVENT, TracePoint, trace_point

SOURCE = Path(__file__).parents[1] / "src" / "prefect_executions"

LISTENS = f"""
import sys
sys.addaudithook(lambda event, told: print(*told) if event == {EVENT!r} else None)
from prefect_executions.tracepoints import TracePoint, trace_point
reach(Milestone.ZIP_KEPT, "abc", "output.zip")
"""


def test_who_listens_to_the_interpreters_audit_events_hears_of_a_milestone():
    # In a process of its own: an audit hook can never be taken away again.
    heard = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, check=True)
    assert heard.stdout.split("\n")[0] == f"{TracePoint.ZIP_KEPT} abc output.zip"


def test_a_milestone_that_nobody_hears_changes_nothing():
    assert trace_point(TracePoint.OPENED, "abc") is None


def test_each_milestone_is_reached_somewhere_in_the_code():
    code = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    assert not [one for one in TracePoint if f"reach(Milestone.{one.name}," not in code]
