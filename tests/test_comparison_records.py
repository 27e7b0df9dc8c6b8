"""Two records are told apart part by part: what changed, what only one tells, and the source as a diff."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import OTHER_ID, bench_at, kept
from prefect_executions.cli.app import main
from prefect_executions.comparison.records import changed_sources, compare, source_diff
from prefect_executions.executions.record import Metrics
from prefect_executions.lifecycle.status import Reason, Status
from records import (
    EXECUTION_ID,
    NOON,
    SOURCE,
    a_job_status,
    a_method,
    a_record,
    a_request,
    a_staged_input,
    an_infrastructure,
    an_instance,
    digest,
)


def differing(before, after):
    return {(one.part, one.name): (one.before, one.after) for one in compare(before, after) if not one.same}


def test_a_record_is_the_same_as_itself():
    record = a_record()
    told = list(compare(record, record))
    assert all(one.same for one in told)
    assert {one.part for one in told} >= {"inputs", "code", "packages", "environment", "outputs", "timings"}


def test_ids_and_times_of_day_are_no_difference():
    later = a_record(job_status=a_job_status(begins=NOON.replace(year=2030), execution_id=OTHER_ID))
    assert differing(a_record(), later) == {}


def test_each_part_tells_what_changed_and_nothing_else():
    before = a_record()
    after = a_record(
        request=a_request(values={"picture": "s3://survey/picture.png", "threshold": 0.4, "labels": ["a", "ä"]}),
        infrastructure=an_infrastructure(work_pool="large"),
        instance=an_instance(packages={"numpy": "2.4.0", "prefect": "3.8.8"}, environment={"TZ": "Europe/Berlin"}),
        job_status=a_job_status(Status.FAILED, reason=Reason.ERROR),
    )
    assert differing(before, after) == {
        ("outcome", "status"): ("COMPLETED", "FAILED"),
        ("outcome", "reason"): (None, "error"),
        ("inputs", "threshold"): (0.3, 0.4),
        ("packages", "numpy"): ("2.3.1", "2.4.0"),
        ("environment", "$TZ"): ("UTC", "Europe/Berlin"),
        ("infrastructure", "work pool"): ("default", "large"),
    }


def test_a_file_is_told_by_its_content_and_not_by_its_origin():
    elsewhere = a_request(
        values={"picture": "file:///data/picture.png", "threshold": 0.3, "labels": ["a", "ä"]},
        files=(a_staged_input(origin="file:///data/picture.png"),),
    )
    assert differing(a_record(), a_record(request=elsewhere)) == {}
    other = a_request(files=(a_staged_input("picture", b"another picture"),))
    assert list(differing(a_record(), a_record(request=other))) == [("inputs", "picture")]


def test_what_only_one_tells_has_nothing_on_the_other_side():
    before = replace(a_record(), metrics=None)
    after = replace(before, metrics=Metrics(params={"epochs": 5}))
    assert differing(before, after) == {("params", "epochs"): (None, 5)}
    assert differing(after, before) == {("params", "epochs"): (5, None)}


@pytest.mark.parametrize(
    ("one", "other", "same"), [(True, 1, False), (1, 1.0, True), ([True], [1], False), ("1", 1, False)]
)
def test_values_are_equal_as_json_tells_them_apart(one, other, same):
    before, after = (replace(a_record(), metrics=Metrics(params={"value": value})) for value in (one, other))
    assert (differing(before, after) == {}) is same


def test_a_source_that_changed_is_named():
    code = a_method().code
    file = code.files[0].model_copy(update={"sha256": digest(b"other")})
    after = a_record(method=a_method(code=code.model_copy(update={"files": (file,)})))
    assert changed_sources(a_record(), after) == ("code/flows/coins.py",)
    assert changed_sources(a_record(), a_record()) == ()


def test_what_is_no_text_has_no_diff():
    assert source_diff("code/x.so", b"\xff", b"").diff is None


@given(st.text(alphabet="ab\n", max_size=30), st.text(alphabet="ab\n", max_size=30))
def test_a_source_diff_is_empty_for_equal_texts_only(before, after):
    told = source_diff("code/a.py", before.encode(), after.encode())
    assert (told.diff == "") is (before == after)


def test_patch_makes_the_one_source_of_the_other(tmp_path, need_program):
    patch = need_program("patch")
    before, after = b"a\nb\nc", b"a\nB\nc\nd\n"
    (tmp_path / "file.py").write_bytes(before)
    diff = source_diff("file.py", before, after).diff
    subprocess.run([patch, "-s", "-p1"], input=(diff or "").encode(), cwd=tmp_path, check=True)
    assert (tmp_path / "file.py").read_bytes() == after


def test_diff_shows_two_kept_executions_with_their_source(home, capsys):
    bench = bench_at(home)
    kept(bench)
    method = a_method(version="1.3.0")
    changed = SOURCE.replace(b"0.3", b"0.4")
    file = method.code.files[0].model_copy(update={"sha256": digest(changed)})
    method = method.model_copy(update={"code": method.code.model_copy(update={"files": (file,)})})
    kept(bench, OTHER_ID, method=method, request=a_request(execution_id=OTHER_ID, method_version="1.3.0"))

    assert main(["diff", EXECUTION_ID, OTHER_ID]) == 0
    told = capsys.readouterr().out
    assert "method\tversion\t1.2.0\t1.3.0" in told
    assert "packages" not in told

    assert main(["diff", EXECUTION_ID, OTHER_ID, "--json", "--all"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in told["sources"]] == ["code/flows/coins.py"]
    assert any(one["part"] == "packages" and one["same"] for one in told["differences"])

    assert main(["diff", EXECUTION_ID, EXECUTION_ID]) == 0
    assert "do not differ" in capsys.readouterr().out
