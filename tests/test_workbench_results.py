"""Searches through the catalog, and `executions search`."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from benches import bench_at, kept
from ledgers import an_id
from prefect_executions.cli.app import main
from prefect_executions.errors import QueryError
from prefect_executions.executions.record import Metrics
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID
from terminals import on_a_terminal


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path))
    bench = bench_at(tmp_path)
    kept(bench)
    kept(bench, an_id(2))
    return bench


def test_a_search_has_total_rows_facets_and_groups(bench):
    results = Catalog(bench).search(
        "method:segment-coins AND loss<0.5",
        sort=["-loss"],
        limit=1,
    )
    assert (results.query, results.total) == ("method:segment-coins AND loss<0.5", 2)
    assert results.columns == ("id", "status", "method", "version", "started", "duration", "loss")
    assert [(row["id"], row["loss"]) for row in results] == [(EXECUTION_ID, 0.25)]
    assert results.facets("status")["status"].values == (("COMPLETED", 2),)
    (group,) = results.groups("host", aggregate=["loss"])
    assert (group.values, group.executions, group.success_rate) == (("vm-7",), 2, 1.0)
    (measure,) = group.measures.values()
    assert (measure.count, measure.mean, measure.sd) == (2, 0.25, 0.0)


def test_pages_continue_and_new_executions_are_found_at_once(bench):
    catalog = Catalog(bench)
    first = catalog.search(limit=1, columns=["id"])
    second = catalog.search(limit=1, columns=["id"], after=first.after)
    assert {*first.ids, *second.ids} == {EXECUTION_ID, an_id(2)}
    assert second.after is None
    kept(bench, an_id(3))
    assert catalog.search().total == 3
    bench.ledger.remove(an_id(2))
    assert catalog.search().total == 2


def test_the_index_is_beside_the_file_of_the_ledger(bench, tmp_path):
    Catalog(bench).search()
    assert (tmp_path / "ledger.db.index" / "manifest.json").is_file()


def test_a_query_that_cannot_be_read_is_refused_with_its_place(bench):
    with pytest.raises(QueryError, match="did you mean 'failed'"):
        Catalog(bench).search("status:faild")
    with pytest.raises(QueryError):
        Catalog(bench).search(sort=["is"])


def test_the_command_prints_rows_csv_and_json(bench, capsys):
    query = ["search", "status:completed", "--columns", "id,loss,tag,duration", "--sort=-loss"]
    assert main(query) == 0
    assert f"{an_id(2)}\t0.25\tsurvey\t6.00 s" in capsys.readouterr().out.splitlines()
    assert main([*query, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["id"] for row in rows} == {EXECUTION_ID, an_id(2)}
    assert rows[0]["loss"] == "0.25"
    assert main([*query, "--jsonl", "--limit", "1"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tag"] == ["survey"]
    assert "--after" in printed.err
    assert main([*query, "--json", "--facets", "status", "--group-by", "method", "--aggregate", "loss"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["total"], document["after"], len(document["executions"])) == (2, None, 2)
    assert document["facets"]["status"] == {
        "values": [{"value": "COMPLETED", "executions": 2}],
        "missing": 0,
        "distinct": 1,
    }
    (group,) = document["groups"]
    assert (group["values"], group["successRate"], group["measures"]["loss"]["mean"]) == (
        {"method": "segment-coins"},
        1.0,
        0.25,
    )
    assert main(["search", "--csv", "--json"]) == 2
    assert main(["search", "status:faild"]) == 2


def test_whole_params_have_no_fraction_in_tables_facets_and_csv(bench, capsys):
    kept(bench, an_id(3), metrics=Metrics(params={"epochs": 24, "rate": 0.5}))
    query = ["search", "epochs:*", "--columns", "epochs,rate"]
    assert main([*query, "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["24,0.5"]
    assert main([*query, "--facets", "epochs"]) == 0
    assert capsys.readouterr().out.splitlines() == ["epochs\t24\t1", "24\t0.5"]


def test_a_narrow_terminal_shows_what_the_results_are_sorted_by(bench, tmp_path):
    shown = on_a_terminal(["search", "--sort=-metric:accuracy", "--limit", "1"], tmp_path, columns=80)
    assert "metric:accuracy" in shown
    assert re.search("  2026-[0-9-]+ [0-9:]+Z  ", shown)
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines())) <= 80
    chosen = on_a_terminal(["search", "--columns", "version,id,host,title,updated,commit"], tmp_path, columns=80)
    assert re.search(r"1\.2\.0 .*Segment coins +2026-[0-9-]+ [0-9:]+Z  [0-9a-f]{12}\n", chosen)


def test_counts_on_a_terminal_replace_the_rows_and_their_next_page(bench, tmp_path):
    shown = on_a_terminal(["search", "--limit", "1", "--facets", "method"], tmp_path)
    assert "segment-coins  2" in shown
    assert "2 executions found." in shown
    assert "--after" not in shown


def test_a_name_that_no_execution_has_gets_a_note(bench, capsys):
    assert Catalog(bench).search("loss<1").hints == ()
    assert main(["search", "NOT los>1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["total"] == 2
    assert shown.err == "note: no param, metric or input has the name 'los'; did you mean 'loss'?\n"
    assert main(["list", "los>1"]) == 0
    assert "did you mean 'loss'?" in capsys.readouterr().err


def test_each_aggregated_number_has_its_table(bench, capsys):
    assert main(["search", "--group-by", "method", "--aggregate", "loss,duration"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "groups\tsegment-coins\t2\t100.0%",
        "loss\tsegment-coins\t0.25\t0\t0.25\t0.25",
        "duration\tsegment-coins\t6.00 s\t0.00 s\t6.00 s\t6.00 s",
    ]


def test_a_column_stands_for_all_names_of_the_results(bench, capsys):
    kept(bench, an_id(3), metrics=Metrics(params={"rate": 0.5, "epochs": 24}))
    found = Catalog(bench).search("epochs:*", columns=["id", "param:*", "metric:*"])
    assert found.columns == ("id", "param:epochs", "param:rate")
    assert found.to_dicts() == [{"id": an_id(3), "param:epochs": 24.0, "param:rate": 0.5}]
    assert main(["search", "loss:*", "--columns", "metric:*", "--csv"]) == 0
    assert "metric:loss" in capsys.readouterr().out.splitlines()[0].split(",")
