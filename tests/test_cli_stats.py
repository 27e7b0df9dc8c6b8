"""`executions stats` in a pipe, on a terminal and as JSON."""

from __future__ import annotations

import json
import re

import pytest
from rich.cells import cell_len

from benches import OTHER_ID, bench_at, kept
from ledgers import an_id
from prefect_executions.cli.app import main
from prefect_executions.lifecycle.status import Reason, Status
from records import a_job_status
from terminals import on_a_terminal


@pytest.fixture(autouse=True)
def bench(home):
    bench = bench_at(home)
    kept(bench)
    kept(bench, OTHER_ID)
    failed = a_job_status(Status.FAILED, execution_id=an_id(3), reason=Reason.TIMED_OUT)
    kept(bench, an_id(3), job_status=failed)
    return bench


def told(capsys, *arguments: str, code: int = 0) -> list[list[str]]:
    found = main(["stats", *arguments])
    shown = capsys.readouterr()
    assert found == code, shown.err
    return [line.split("\t") for line in (shown.err if code else shown.out).splitlines()]


def test_all_executions_are_shown_as_facts(capsys):
    lines = dict(line[:2] for line in told(capsys) if len(line) == 2)
    assert lines == {
        "executions": "3",
        "completed": "2",
        "failed": "1",
        "success": "66.7%",
        "duration": "mean 6.00 s, median 6.00 s, p95 6.00 s",
        "wait": "mean 1.00 s, median 1.00 s, p95 1.00 s",
        "cpu": "mean 4.25 s, median 4.25 s, p95 4.25 s",
        "memory": "mean 123.5 MB, median 123.5 MB, p95 123.5 MB",
    }


def test_groups_and_periods_are_rows_with_their_failures(capsys):
    assert told(capsys, "status:*", "--by", "method,host") == [
        ["segment-coins", "vm-7", "3", "66.7%", "6.00 s", "6.00 s", "6.00 s", "1.00 s", "4.25 s", "123.5 MB"],
        ["failures", "segment-coins", "vm-7", "timed_out", "1", "33.3%"],
    ]
    rows = told(capsys, "--per", "hour")
    assert rows[0][:3] == ["2026-09-22 12:00:00Z", "3", "66.7%"]
    assert told(capsys, "method:none") == [["No executions found."]]


def test_the_document_has_all_numbers(capsys):
    assert main(["stats", "--by", "method", "--per", "day", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (group,) = document["groups"]
    assert (document["query"], document["total"], document["by"], document["per"]) == ("*", 3, ["method"], "day")
    assert group["values"] == {"method": "segment-coins"}
    assert group["statuses"] == {"COMPLETED": 2, "FAILED": 1}
    assert group["failures"] == [{"reason": "timed_out", "executions": 1, "rate": pytest.approx(1 / 3)}]
    assert group["duration"]["p95"] == 6
    assert group["throughput"] == {"hour": 0.125, "day": 3}
    assert group["memory"]["maximum"] == 123_456_789


def test_what_cannot_be_read_is_refused(capsys):
    assert "a period is hour or day, not 'week'" in told(capsys, "--per", "week", code=2)[0][0]
    assert told(capsys, "--by", "is", code=2)[0][0].startswith("error: ")
    assert "did you mean 'failed'" in told(capsys, "status:faild", code=2)[0][0]


@pytest.mark.parametrize(
    "options", [["--per", "day"], *(pytest.param(one, marks=pytest.mark.long) for one in ([], ["--by", "method,host"]))]
)
def test_a_terminal_of_80_columns_has_a_chart(home, options):
    shown = on_a_terminal(["stats", *options], home, columns=80)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "█" in "".join(lines)
    assert any("timed_out" in line for line in lines)
