"""Commands that take several executions take ids or one query, and say how many they work on."""

from __future__ import annotations

import json
import os
import pty
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import OTHER_ID, begun, bench_at, kept, record_of
from ledgers import an_id
from prefect_executions.bundles.layout import is_execution_id
from prefect_executions.cli.app import main
from prefect_executions.cli.arguments import open_catalog
from prefect_executions.cli.selection import is_query, is_search, select
from prefect_executions.errors import NotFoundError, QueryError, RequestError
from prefect_executions.executions.record import Metric, Metrics
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID, NOON


def numbered(loss: float) -> Metrics:
    return Metrics(params={"epochs": 5}, metrics=(Metric(name="loss", value=loss, step=0, time=NOON),))


@pytest.fixture
def bench(home):
    bench = bench_at(home)
    kept(bench)
    kept(bench, OTHER_ID, metrics=numbered(0.75))
    begun(bench, record_of(an_id(3), Status.EXECUTING))
    return bench


def told(capsys, *arguments: str, code: int = 0) -> tuple[str, str]:
    found = main(arguments)
    shown = capsys.readouterr()
    assert found == code, shown.err
    return shown.out, shown.err


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", fullmatch=True))
def test_no_id_and_no_beginning_of_one_is_read_as_a_query(execution_id):
    assert is_execution_id(execution_id)
    assert not any(is_query(execution_id[:end]) for end in range(len(execution_id) + 1))


@pytest.mark.parametrize(
    ("target", "search"),
    [
        ("0b1e5a52", False),
        ("timeout", False),
        ("status:failed", True),
        ('"timeout"', True),
        ("media:image/*", True),
        ("out of memory", True),
        ("missing folder/bundle", False),
        ("bundle (1).zip", False),
        ("s3://bucket/a.zip", False),
        ("x" * 100_000 + ":", True),
        ("a:\0", True),
    ],
)
def test_what_may_be_verified_is_told_from_a_query(target, search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_search(target) is search


def test_a_file_with_the_name_of_a_query_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("status:failed").touch()
    assert not is_search("status:failed")


def test_a_query_is_narrowed_by_filters_and_an_id_is_not(bench, capsys):
    catalog = Catalog(bench)
    completed = Filter(status=(Status.COMPLETED,), method="segment-coins", since=NOON.replace(year=2020), until=None)
    assert set(select(catalog, ["method:segment-coins"], completed).ids) == {EXECUTION_ID, OTHER_ID}
    assert select(catalog, ["loss>0.5"], completed).ids == (OTHER_ID,)
    assert "1 execution matches loss>0.5 AND status=completed AND method=segment-coins" in capsys.readouterr().err
    with pytest.raises(RequestError, match="exclude each other"):
        select(catalog, [EXECUTION_ID], completed)
    with pytest.raises(NotFoundError, match="executions search 'loss>7'"):
        select(catalog, ["loss>7"])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["status:failed", "AND", "loss>1"], RequestError, "one query in quotes: 'status:failed AND loss>1'"),
        (["status:failed", EXECUTION_ID], RequestError, "one query in quotes"),
        ([" "], RequestError, r"'\*' finds all executions"),
        ([""], NotFoundError, "empty prefix"),
        (["timeout"], NotFoundError, """put it in quotes of its own: '"timeout"'"""),
        (["loss>"], QueryError, "column 6"),
        (["(" * 10_000], QueryError, "at most"),
        (["x " * 1_000_000], QueryError, "at most 2,000"),
    ],
)
def test_what_is_neither_ids_nor_one_query_is_refused(bench, words, error, message):
    with pytest.raises(error, match=message):
        select(Catalog(bench), words)


def test_list_takes_a_query_with_filters_and_pages(bench, capsys):
    out, err = told(capsys, "list", "method:segment-coins", "--status", "completed", "--limit", "1", "--json")
    page = json.loads(out)
    assert err.startswith("2 executions match ")
    assert [row["status"] for row in page["executions"]] == ["COMPLETED"]
    rest = json.loads(
        told(capsys, "list", "method:segment-coins", "--status", "completed", "--after", page["after"], "--json")[0]
    )
    assert {row["id"] for row in (*page["executions"], *rest["executions"])} == {EXECUTION_ID, OTHER_ID}
    assert told(capsys, "list", "loss>7")[0] == ""
    assert told(capsys, "list", OTHER_ID[:13])[0].startswith(OTHER_ID)
    _, err = told(capsys, "list", "loss<7", "--limit", "1")
    assert "There are more; add:\n--after" in err


def test_export_takes_a_query_and_leaves_out_what_is_not_sealed(bench, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = told(capsys, "export", "method:segment-coins", "--json")
    assert json.loads(out) == {"executions": sorted([EXECUTION_ID, OTHER_ID]), "size": ANY, "file": "executions.zip"}
    assert "3 executions match" in err
    assert zipfile.is_zipfile("executions.zip")


def test_verify_takes_several_targets_and_goes_on_after_a_failure(bench, capsys):
    out, _ = told(capsys, "verify", "method:segment-coins", "--json", code=1)
    document = json.loads(out)
    assert (document["passed"], len(document["targets"])) == (False, 3)
    passed = {entry["target"]: entry["passed"] for entry in document["targets"]}
    assert passed == {EXECUTION_ID: True, OTHER_ID: True, an_id(3): False}
    out, _ = told(capsys, "verify", EXECUTION_ID, OTHER_ID)
    assert out.endswith("2 of 2 targets verified\n")
    assert told(capsys, "verify", code=2)[1].startswith("error: give what to verify")


def test_remove_and_retain_take_a_query_and_are_refused_without_confirmation(bench, capsys, monkeypatch):
    out, err = told(capsys, "remove", "loss>0.5", code=2)
    assert out == f"{OTHER_ID}\twould be removed\t\n"
    assert err.splitlines() == [
        "1 execution matches loss>0.5",
        "error: nothing was removed: confirm with --yes, or only list with --dry-run",
    ]
    assert json.loads(told(capsys, "remove", "loss>0.5", "--json", code=2)[0])["removed"] is False
    monkeypatch.setenv("EXECUTIONS_RETENTION", "segment-coins=0d")
    out, _ = told(capsys, "retain", "loss>0.5", "--dry-run", "--json")
    assert [entry["id"] for entry in json.loads(out)["executions"]] == [OTHER_ID]
    assert told(capsys, "remove", "loss>0.5", "--yes")[0].endswith("1 execution removed\n")
    assert Catalog(bench).search("method:segment-coins status:completed").ids == (EXECUTION_ID,)


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("n", 2), ("", 2)])
def test_remove_asks_at_a_terminal(bench, home, answer, left):
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("executions")), "remove", "loss>0.5"]
    with Popen(
        command, stdin=theirs, stderr=theirs, stdout=DEVNULL, env=os.environ | {"EXECUTIONS_HOME": str(home)}
    ) as made:
        shown = b""
        with suppress(OSError):
            while b"[y/N]" not in shown:
                shown += os.read(ours, 1024)
        os.write(ours, f"{answer}\n".encode())
        made.wait(60)
    assert b"Remove 1 execution?" in shown
    assert open_catalog(Settings(home=home)).search("status:completed").total == left


def test_annotate_takes_a_query_and_says_how_many_it_affects(bench, capsys):
    _, err = told(capsys, "annotate", "loss>0.5", "--star")
    assert err == "1 execution matches loss>0.5\n"
    assert Catalog(bench).search("is:starred").ids == (OTHER_ID,)
    _, err = told(capsys, "annotate", EXECUTION_ID, OTHER_ID, "--tag", "both")
    assert err == "2 executions\n"
    assert Catalog(bench).search("tag:both").total == 2


def test_a_limit_takes_the_newest_results_and_needs_a_query(bench, capsys):
    newest = Catalog(bench).search("method:segment-coins").ids[0]
    _, err = told(capsys, "annotate", "method:segment-coins", "--limit", "1", "--tag", "newest")
    assert err.splitlines() == ["3 executions match method:segment-coins", "Limited to the newest 1"]
    assert Catalog(bench).search("tag:newest").ids == (newest,)
    for command in ("rerun", "share"):
        assert "Limited to the newest 1" in told(capsys, command, "method:segment-coins", "--limit", "1", code=1)[1]
    for command in ("rerun", "share", "annotate"):
        assert "exclude each other" in told(capsys, command, EXECUTION_ID, "--limit", "1", *TAG[command], code=2)[1]


TAG = {"annotate": ["--star"], "rerun": [], "share": []}


def test_watch_takes_a_query_for_the_open_executions(bench, capsys):
    _, err = told(capsys, "watch", "loss>0.5", code=3)
    assert "no execution matches" in err
    assert "0 executions match loss>0.5 AND NOT status:completed,failed,cancelled" in err


def test_rerun_and_share_and_reproduce_take_a_query(bench, capsys):
    for command in ("rerun", "share", "reproduce"):
        _, err = told(capsys, command, "loss>7", code=3)
        assert err.splitlines()[0].startswith("0 executions match loss>7"), command
    assert "only an archive on S3" in told(capsys, "share", "loss>0.5", code=1)[1]
    out = told(capsys, "share", EXECUTION_ID, OTHER_ID, "--json", code=1)[0]
    assert json.loads(out) == {"shares": [], "failed": {EXECUTION_ID: ANY, OTHER_ID: ANY}}
