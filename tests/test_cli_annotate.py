"""`executions annotate` and `executions run` add labels, which `search` and `show` have at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle_makers import an_open_bundle
from prefect_executions import background
from prefect_executions.cli.app import main
from prefect_executions.executions.record import OpeningRecord
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.settings import Settings
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_record

METHOD = """
from prefect_executions import method

@method
def double(number: int) -> int:
    return 2 * number
"""


@pytest.fixture
def sealed(home: Path) -> str:
    bench = Workbench.of(Settings.read(), archive_block=lambda name: (name, {}))
    record = a_record(job_status=a_job_status(Status.EXECUTING))
    bench.archive.put_opening(record.id, OpeningRecord.of(record).to_json())
    an_open_bundle(bench.folder, record)
    bench.seal(record.id, Ending(Status.COMPLETED, None, NOON, Observer.HOOK))
    return record.id


def found(query: str, capsys) -> list[str]:
    capsys.readouterr()
    assert main(["search", query, "--json"]) == 0
    return [row["id"] for row in json.loads(capsys.readouterr().out)["executions"]]


def test_labels_are_added_found_and_shown(sealed, capsys):
    given = ["--tag", "best", "--name", "run 7", "--experiment", "ablation", "--note", "see plot 3", "--star"]
    assert main(["annotate", sealed[:8], *given]) == 0
    assert found('tag:best name:"run 7" experiment:ablation note:plot is:starred', capsys) == [sealed]
    assert main(["show", sealed, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["labels"]["name"], shown["labels"]["notes"]) == ("run 7", ["see plot 3"])
    assert {each["kind"] for each in shown["annotations"]} == {"tag", "name", "experiment", "note", "star"}
    assert main(["annotate", sealed, "--untag", "best", "--unstar"]) == 0
    assert found("tag:best OR is:starred", capsys) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "at least one change"),
        (["--star", "--unstar"], "exclude each other"),
        (["--tag", " "], "is empty"),
    ],
)
def test_a_command_without_a_meaning_is_refused(sealed, options, message, capsys):
    assert main(["annotate", sealed, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_names_of_no_execution_are_refused(capsys):
    assert main(["annotate", "--star"]) == 2
    assert "ids" in capsys.readouterr().err


@pytest.mark.usefixtures("prefect_server")
def test_a_run_gets_labels_at_its_start(home, tmp_path, capsys):
    script = tmp_path / "double.py"
    script.write_text(METHOD)
    labels = ["--tag", "gpu", "--name", "run 7", "--experiment", "ablation"]
    assert main(["run", f"{script}:double", "-p", "number=2", *labels, "--json"]) == 0
    execution_id = json.loads(capsys.readouterr().out)["id"]
    background.drain()
    assert found('tag:gpu name:"run 7" experiment:ablation status:completed', capsys) == [execution_id]
