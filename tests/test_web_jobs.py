"""Executions as OGC's jobs: the status, the list, its filters and pages, judged by OGC's own schemas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import parse_qsl, urlsplit

import pytest

import ogc
from benches import begun, bench_at, kept, record_of
from ledgers import an_id
from prefect_executions.documents import text_of_time
from prefect_executions.lifecycle.status import AS_OGC, Status
from prefect_executions.web.app import create_app
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID, NOON, a_job_status, a_method, a_request
from webs import ADDRESS, Client

SLOW = an_id(2)
FAILED = an_id(3)
OPEN = an_id(4)


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Client:
    """Serve four executions: completed, slow, failed of another Method, and one that runs since an hour."""
    home = tmp_path_factory.mktemp("home")
    bench = bench_at(home)
    kept(bench)
    kept(bench, SLOW, job_status=a_job_status(execution_id=SLOW, begins=NOON + timedelta(days=1)))
    kept(
        bench,
        FAILED,
        method=a_method(id="other"),
        request=a_request(execution_id=FAILED, method_id="other"),
        job_status=a_job_status(Status.FAILED, execution_id=FAILED, method_id="other", message="no <b>coins</b>"),
    )
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    begun(bench, record_of(OPEN, job_status=a_job_status(Status.EXECUTING, execution_id=OPEN, begins=hour_ago)))
    return Client(create_app(lambda: Catalog(bench_at(home))))


def ids(client: Client, **query) -> list[str]:
    found = client.get("/jobs", params=query)
    assert found.status_code == 200, found.text
    assert not ogc.faults("jobList", found.json())
    assert found.json()["numberReturned"] == len(found.json()["jobs"])
    return sorted(job["jobID"] for job in found.json()["jobs"])


def of(*those: str) -> list[str]:
    return sorted(those)


def test_a_job_has_the_members_of_ogc_and_no_others(client):
    found = client.get(f"/jobs/{EXECUTION_ID}").json()
    assert not ogc.faults("statusInfo", found)
    assert found == {
        "jobID": EXECUTION_ID,
        "processID": "segment-coins",
        "type": "process",
        "status": "successful",
        "created": text_of_time(NOON),
        "started": found["started"],
        "finished": found["finished"],
        "updated": found["updated"],
        "progress": 100,
        "links": found["links"],
    }
    assert found["created"] < found["started"] < found["finished"] == found["updated"]


def test_the_list_has_the_same_jobs_as_the_single_answers(client):
    jobs = client.get("/jobs").json()["jobs"]
    assert len(jobs) == 4
    assert jobs == [client.get(f"/jobs/{job['jobID']}").json() for job in jobs]


def test_an_open_execution_is_a_running_job(client):
    found = client.get(f"/jobs/{OPEN}").json()
    assert (found["status"], found["progress"], found["message"]) == ("running", 50, "half way")
    assert "finished" not in found


@pytest.mark.parametrize("listed", [True, False])
def test_every_status_is_that_of_the_table(tmp_path, listed):
    bench = bench_at(tmp_path)
    for number, status in enumerate(Status):
        job_status = a_job_status(status, execution_id=an_id(number))
        if not status.terminal:  # the way goes on to EXECUTING
            last = next(place for place, entry in enumerate(job_status.history) if entry.status is status)
            changes = {"execution_status": status, "status": AS_OGC[status], "history": job_status.history[: last + 1]}
            job_status = job_status.model_copy(update=changes)
        begun(bench, record_of(an_id(number), job_status=job_status))
        if not listed:
            bench.ledger.remove(an_id(number))
    client = Client(create_app(lambda: Catalog(bench_at(tmp_path))))
    found = [client.get(f"/jobs/{an_id(number)}").json()["status"] for number in range(len(Status))]
    assert found == ["accepted", "accepted", "running", "running", "successful", "failed", "dismissed"]


@pytest.mark.parametrize("job_id", [an_id(9), EXECUTION_ID[:8], "x", "%2e%2e%2fledger.db", "a%00b", "x" * 5000])
def test_another_id_is_not_a_job(client, job_id):
    found = client.get(f"/jobs/{job_id}")
    assert found.status_code == 404
    assert found.headers["Content-Type"] == "application/problem+json"
    assert not ogc.faults("exception", found.json())
    if "%2f" not in job_id:
        assert found.json()["type"].endswith("/ogcapi-processes-1/1.0/no-such-job")


def test_the_list_has_an_execution_whose_row_is_not_written_yet(tmp_path):
    bench = bench_at(tmp_path)
    begun(bench, record_of(OPEN, end=Status.EXECUTING))
    bench.ledger.remove(OPEN)
    assert ids(Client(create_app(lambda: Catalog(bench_at(tmp_path))))) == [OPEN]


def test_jobs_are_filtered_by_process(client):
    assert ids(client, processID="other") == [FAILED]
    assert ids(client, processID=["other", "segment-coins"]) == of(EXECUTION_ID, SLOW, FAILED, OPEN)
    assert ids(client, processID="other,none") == [FAILED]
    assert ids(client, processID="oth*") == []  # not a wildcard
    assert ids(client, processID="a OR b") == []


def test_jobs_are_filtered_by_status(client):
    assert ids(client, status="failed") == [FAILED]
    assert ids(client, status=["failed", "running"]) == of(FAILED, OPEN)
    assert client.get("/jobs", params={"status": "completed"}).status_code == 400


def test_jobs_are_filtered_by_type(client):
    assert len(ids(client, type="process")) == 4
    assert ids(client, type="workflow") == []


def test_jobs_are_filtered_by_the_time_of_their_creation(client):
    when = NOON + timedelta(days=1)
    day, before, after = (text_of_time(when + timedelta(microseconds=each)) for each in (0, -1, 1))
    assert ids(client, datetime=day) == [SLOW]
    assert ids(client, datetime=when.astimezone(timezone(timedelta(hours=1))).isoformat()) == [SLOW]
    assert ids(client, datetime=f"{day}/..") == of(SLOW, OPEN)
    assert ids(client, datetime=f"../{day}") == of(EXECUTION_ID, SLOW, FAILED)
    assert ids(client, datetime=f"/{day}") == of(EXECUTION_ID, SLOW, FAILED)
    assert ids(client, datetime=f"{before}/{day}") == [SLOW]
    assert ids(client, datetime=after) == ids(client, datetime=before) == []


@pytest.mark.parametrize("when", ["", "..", "../..", "/", "yesterday", "2026-11-04T12:00:00", "2026-11-04T12:00:00Z/x"])
def test_another_datetime_is_refused(client, when):
    assert client.get("/jobs", params={"datetime": when}).status_code == 400


def test_an_interval_that_ends_before_it_begins_is_refused(client):
    when = "2026-11-04T12:00:00Z/2026-11-03T12:00:00Z"
    assert client.get("/jobs", params={"datetime": when}).status_code == 400


def test_jobs_are_filtered_by_duration_and_a_running_job_lasts_until_now(client):
    assert ids(client, minDuration=3000) == [OPEN]
    assert ids(client, maxDuration=3000) == of(EXECUTION_ID, SLOW, FAILED)
    assert ids(client, minDuration=1, maxDuration=3000) == of(EXECUTION_ID, SLOW, FAILED)
    assert ids(client, minDuration=10**30) == []
    assert client.get("/jobs", params={"minDuration": -1}).status_code == 400


def test_jobs_are_searched_in_our_language_as_well(client):
    assert ids(client, q="threshold>0.1 AND status:completed") == of(EXECUTION_ID, SLOW)
    assert ids(client, q="status:completed OR status:failed", processID="other") == [FAILED]


def test_a_wrong_query_is_refused_with_its_place(client):
    found = client.get("/jobs", params={"q": "is:archivd"})
    assert found.status_code == 400
    assert (found.json()["column"], found.json()["suggestion"]) == (4, "archived")


def test_pages_have_every_job_once_and_keep_the_filters(client):
    query = {"limit": "1", "processID": "segment-coins", "status": ["successful", "running"]}
    page = client.get("/jobs", params=query).json()
    seen = []
    while True:
        seen += [job["jobID"] for job in page["jobs"]]
        assert page["numberMatched"] == 3
        following = [each["href"] for each in page["links"] if each["rel"] == "next"]
        if not following:
            break
        assert following[0].startswith(f"{ADDRESS}/jobs?")
        assert [value for name, value in parse_qsl(urlsplit(following[0]).query) if name == "status"] == query["status"]
        page = client.get(following[0]).json()
    assert sorted(seen) == of(EXECUTION_ID, SLOW, OPEN)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", ""])
def test_a_limit_that_is_no_number_of_jobs_is_refused(client, limit):
    found = client.get("/jobs", params={"limit": limit})
    assert found.status_code == 400
    assert not ogc.faults("exception", found.json())


def test_a_limit_above_the_largest_page_and_a_wrong_cursor(client):
    assert len(ids(client, limit=10**9)) == 4
    assert client.get("/jobs", params={"after": "x"}).status_code == 400


def test_an_unavailable_ledger_is_a_problem_without_its_address(tmp_path):
    (tmp_path / "ledger.db").mkdir()
    client = Client(create_app(lambda: Catalog(bench_at(tmp_path))))
    found = client.get("/jobs")
    assert found.status_code == 503
    assert str(tmp_path) not in found.text
