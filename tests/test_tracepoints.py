"""Trace points: raised as audit events, and each one is raised somewhere in the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prefect_executions.tracepoints import EVENT, TracePoint, trace_point

SOURCE = Path(__file__).parents[1] / "src" / "prefect_executions"

WITH_AN_AUDIT_HOOK = f"""
import sys
sys.addaudithook(lambda event, arguments: print(*arguments) if event == {EVENT!r} else None)
from prefect_executions.tracepoints import TracePoint, trace_point
trace_point(TracePoint.ZIP_KEPT, "abc", "output.zip")
"""


def test_an_audit_hook_receives_the_trace_point_with_its_subject_and_detail():
    # In a process of its own: an audit hook cannot be removed.
    printed = subprocess.run([sys.executable, "-c", WITH_AN_AUDIT_HOOK], capture_output=True, text=True, check=True)
    assert printed.stdout.split("\n")[0] == f"{TracePoint.ZIP_KEPT} abc output.zip"


def test_a_trace_point_without_an_audit_hook_changes_nothing():
    assert trace_point(TracePoint.OPENED, "abc") is None


def test_each_trace_point_is_raised_somewhere_in_the_code():
    code = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    assert not [point for point in TracePoint if f"trace_point(TracePoint.{point.name}," not in code]
