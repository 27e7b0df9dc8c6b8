"""`executions lineage` and `impact`, as a user types them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from lxml import etree

from benches import bench_at, kept
from bundle_makers import an_open_bundle
from ledgers import an_id
from lineages import digest, record_graph
from prefect_executions.cli.app import main
from prefect_executions.executions.record import OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.settings import Settings
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, NOON, a_job_status, a_record, a_request
from terminals import on_a_terminal

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def chain(home: Path) -> Ledger:
    """A file is used by 1, whose file is used by 2 and 3; 4 uses the files of both."""
    ledger = Ledger.open(Settings.read().ledger_url)
    record_graph(ledger, {1: ["bad"], 2: [1], 3: [1], 4: [2, 3]})
    return ledger


def printed(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_a_tree_has_each_execution_once(chain, capsys):
    lines = printed(capsys, "lineage", an_id(1), "--down").splitlines()
    assert lines[1] == "data flow, down"
    assert [line.count("─") and an_id(number) in line for line, number in zip(lines[2:], (2, 4, 3), strict=True)]
    assert "outputs/1.csv" in lines[2]


def test_a_terminal_shows_the_beginnings_of_ids(home):
    kept(bench_at(home))
    shown = on_a_terminal(["lineage", EXECUTION_ID], home)
    assert shown.startswith(f"{EXECUTION_ID[:8]}  segment-coins")


def test_what_the_limits_leave_out_is_noted(chain, capsys):
    assert main(["lineage", an_id(4), "--up", "--depth", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cut"] == 1
    assert "1 neighbour left out" in err


def test_the_document_has_every_edge_with_its_file(chain, capsys):
    document = json.loads(printed(capsys, "lineage", an_id(4), "--up", "--json"))
    edges = document["dataFlow"]["up"]["edges"]
    assert {(edge["from"], edge["to"]) for edge in edges} == {
        (an_id(source), an_id(target)) for source, target in ((2, 4), (3, 4), (1, 2), (1, 3))
    }
    assert {edge["sha256"] for edge in edges if edge["from"] == an_id(1)} == {digest(1)}
    assert document["dataFlow"]["up"]["depths"][an_id(1)] == 2


def test_a_file_is_found_by_its_content(chain, capsys, tmp_path):
    path = tmp_path / "renamed.csv"
    path.write_bytes(b"bad")
    document = json.loads(printed(capsys, "lineage", str(path), "--json"))
    assert document["start"] == f"sha256:{digest('bad')}"
    assert [each["id"] for each in document["executions"]] == [an_id(number) for number in (1, 2, 3, 4)]


def test_an_empty_file_and_a_folder_have_no_lineage(chain, capsys, tmp_path):
    (tmp_path / "empty").touch()
    assert main(["lineage", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err
    assert main(["impact", str(tmp_path)]) == 2
    assert "folder" in capsys.readouterr().err


def test_graphs_have_every_execution_and_every_edge(chain, capsys):
    assert printed(capsys, "lineage", an_id(1), "--format", "dot").count("->") == 4
    assert printed(capsys, "lineage", an_id(1), "--format", "mermaid").count("-->") == 4


def test_the_svg_is_a_drawing_without_scripts_and_styles(chain, capsys, tmp_path):
    target = tmp_path / "lineage.svg"
    printed(capsys, "lineage", an_id(1), "--format", "svg", "-o", str(target))
    first = target.read_bytes()
    root = etree.fromstring(first)
    assert len(root.findall(f".//{SVG}rect")) == 4
    assert len(root.findall(f".//{SVG}polyline")) == 4
    assert not [
        element
        for element in root.iter()
        if element.tag in {f"{SVG}script", f"{SVG}style"} or "style" in element.attrib
    ]
    printed(capsys, "lineage", an_id(1), "--format", "svg", "-o", str(target))
    assert target.read_bytes() == first


def test_an_impact_lists_everything_that_was_made_from_a_file(chain, capsys):
    document = json.loads(printed(capsys, "impact", f"sha256:{digest('bad')}", "--json"))
    assert [(each["id"], each["depth"]) for each in document["affected"]] == [
        (an_id(1), 1),
        (an_id(2), 2),
        (an_id(3), 2),
        (an_id(4), 3),
    ]
    assert document["cpu"] == 8.0
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "impact", an_id(2), "--csv"))))
    assert [(row["id"], row["archive"], row["shared"]) for row in rows] == [(an_id(4), "archived", "False")]


def test_a_plan_runs_each_execution_after_those_that_it_needs(chain, capsys):
    lines = printed(capsys, "impact", an_id(1), "--plan").splitlines()
    assert [line.split("\t")[1] for line in lines[:-1]] == [an_id(number) for number in (1, 2, 3, 4)]
    assert "8.00 s of CPU time" in lines[-1]


def test_a_recall_is_shown_verified_and_found_until_it_ends(home, capsys):
    bench = Workbench.of(Settings.read(), archive_block=lambda name: (name, {}))
    execution_id = an_id(1)
    job_status = a_job_status(Status.EXECUTING, execution_id=execution_id)
    record = a_record(request=a_request(execution_id=execution_id), job_status=job_status)
    bench.archive.put_opening(execution_id, OpeningRecord.of(record).to_json())
    an_open_bundle(bench.folder, record)
    bench.seal(execution_id, Ending(Status.COMPLETED, None, NOON, Observer.HOOK))
    marked = printed(capsys, "impact", execution_id, "--mark", "bad sensor", "--plan", "--csv")
    assert [row["recalled"] for row in csv.DictReader(io.StringIO(marked))] == ["bad sensor"]
    assert execution_id in printed(capsys, "search", "is:recalled")
    assert "recalled\tbad sensor" in printed(capsys, "show", execution_id)
    assert main(["verify", execution_id]) == 0
    assert "recalled: bad sensor" in capsys.readouterr().err
    printed(capsys, "annotate", execution_id, "--reinstate", "it was fine")
    assert execution_id not in printed(capsys, "search", "is:recalled")
    assert main(["verify", execution_id]) == 0
    assert "recalled" not in capsys.readouterr().err
