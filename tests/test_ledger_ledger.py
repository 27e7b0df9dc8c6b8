"""The ledger gives equal results in SQLite and PostgreSQL."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id, as_read, numbered
from prefect_executions.errors import AmbiguousIdError, LedgerError, NotFoundError, RequestError
from prefect_executions.executions.record import Gpu, Instance, Metric, Metrics, Relative
from prefect_executions.executions.values import recorded_form
from prefect_executions.ledger.batch import BATCH_COLUMNS, PART_COLUMNS
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import FileEdge, Relation
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.methods.model import Method
from prefect_executions.query.filter import Filter
from records import (
    EXECUTION_ID,
    NOON,
    a_cancelled_record,
    a_failed_record,
    a_job_status,
    a_method,
    a_never_started_record,
    a_record,
    a_request,
    a_staged_input,
    an_output,
    digest,
)


@pytest.fixture(params=KINDS)
def url(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url:
        yield url


@pytest.fixture
def ledger(url):
    with Ledger.open(url) as opened:
        yield opened


def only(ledger, table):
    (row,) = ledger.rows(table)
    return row


# what is kept


def test_a_row_has_the_values_of_the_documents(ledger):
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    row = ledger.get(EXECUTION_ID)
    assert (row.method_id, row.method_version, row.method_type) == ("segment-coins", "1.2.0", "Analysis")
    assert row.status is Status.COMPLETED
    assert row.created == row.first_known == NOON
    assert row.scheduled == NOON + timedelta(seconds=1)
    assert (row.started, row.finished) == (NOON + timedelta(seconds=2), NOON + timedelta(seconds=8))
    assert row.duration == timedelta(seconds=6)
    assert (row.agent, row.hostname, row.worker, row.work_pool) == ("Alice", "vm-7", "worker-1", "default")
    assert (row.infrastructure, row.flow_run_name) == ("process", "brave-otter")
    assert (row.deployment_name, row.progress) == ("coins/nightly", 100)
    assert row.code_commit == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    assert (row.archive, row.manifest_sha256) == ("archived", SEAL)
    assert (row.code_branch, row.code_remote, row.code_dirty) == ("main", "https://example.org/coins.git", False)
    assert (row.code_author, row.code_subject) == ("Ada Lovelace", "Count the coins")


def test_a_row_has_the_python_and_the_gpu_of_the_instance(ledger):
    gpus = (Gpu(name="NVIDIA H200", driver="570.86.15", cuda="12.8"), Gpu(name="NVIDIA A2"))
    instance = a_record().instance.model_copy(update={"gpus": gpus})
    ledger.record(replace(a_record(), instance=instance), archive="local")
    row = ledger.get(EXECUTION_ID)
    assert row.python_version == instance.python.version
    assert (row.gpu, row.gpu_driver, row.cuda_version) == ("NVIDIA H200", "570.86.15", "12.8")
    assert (row.cpu, row.memory) == (timedelta(seconds=4.25), 123_456_789)


def test_a_record_without_repository_and_gpu_has_empty_columns(ledger):
    record = a_record(method=a_method(code=None))
    ledger.record(replace(record, instance=Instance()), archive="local")
    row = ledger.get(EXECUTION_ID)
    assert (row.code_branch, row.code_remote, row.code_author, row.code_subject, row.code_dirty) == (None,) * 5
    assert (row.python_version, row.gpu, row.gpu_driver, row.cuda_version) == (None,) * 4


def test_a_time_is_stored_to_the_microsecond_in_utc(ledger):
    ledger.record(a_record(), archive="local")
    assert ledger.get(EXECUTION_ID).created == datetime(2026, 9, 22, 12, 0, 0, 123456, UTC)
    assert ledger.get(EXECUTION_ID).created.tzinfo is UTC


def test_an_execution_that_never_started_has_no_unobserved_times(ledger):
    ledger.record(a_never_started_record(), archive="archived", manifest_sha256=SEAL)
    row = ledger.get(EXECUTION_ID)
    assert row.status is Status.CANCELLED
    assert (row.started, row.duration, row.hostname, row.worker) == (None, None, None, None)


def test_a_failure_has_its_reason_and_message(ledger):
    ledger.record(a_failed_record(), archive="archived", manifest_sha256=SEAL)
    row = ledger.get(EXECUTION_ID)
    assert (row.status, row.reason) == (Status.FAILED, Reason.ERROR)
    assert row.message == "ValueError: no coins in this picture"
    assert row.partial is None


def test_a_cancelled_execution_is_marked_as_partial(ledger):
    ledger.record(a_cancelled_record(), archive="archived", manifest_sha256=SEAL)
    assert ledger.get(EXECUTION_ID).partial is True


def test_an_execution_with_unobserved_creation_is_listed_by_its_first_status(ledger):
    job_status = a_job_status()
    unseen = job_status.model_copy(update={"created": None, "history": job_status.history[2:]})
    ledger.record(a_record(job_status=unseen), archive="local")
    row = ledger.get(EXECUTION_ID)
    assert (row.created, row.scheduled) == (None, None)
    assert row.first_known == NOON + timedelta(seconds=2)


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (3, ("3", 3.0, None, None)),
        (0.25, ("0.25", 0.25, None, None)),
        (2**70, (str(2**70), float(2**70), None, None)),
        (10**400, (str(10**400), math.inf, None, None)),
        (-(10**400), (str(-(10**400)), -math.inf, None, None)),
        (True, ("true", None, None, True)),
        ("ä", ('"ä"', None, "ä", None)),
        ("a\0b", ('"a\\u0000b"', None, "a�b", None)),
        ("\ud800", ('"\\\\ud800"', None, "\\ud800", None)),
        (math.inf, ('"Infinity"', None, "Infinity", None)),
        (math.nan, ('"NaN"', None, "NaN", None)),
        (recorded_form(math.inf), ('{"python":"float","value":"Infinity"}', math.inf, "Infinity", None)),
        (recorded_form(math.nan), ('{"python":"float","value":"NaN"}', None, "NaN", None)),
        (recorded_form(b"a"), ('{"python":"bytes","value":"a"}', None, "a", None)),
        (recorded_form((1, 2)), ('{"python":"tuple","value":[1,2]}', None, None, None)),
        (recorded_form(np.float32(0.5)), ('{"python":"numpy.float32","value":0.5}', 0.5, None, None)),
        (recorded_form(np.bool_(1)), ('{"python":"numpy.bool","value":true}', None, None, True)),
        (None, ("null", None, None, None)),
        ([1, {"a": None}], ('[1,{"a":null}]', None, None, None)),
        ("x" * 70_000, (None, None, None, None)),
    ],
    ids=str,
)
def test_an_input_value_is_stored_in_the_column_of_its_type_and_as_json(ledger, value, columns):
    record = a_record(request=a_request(values={"given": value}, files=()))
    ledger.record(record, archive="local")
    row = only(ledger, "inputs")
    assert row["name"] == "given"
    assert (row["json"], row["number"], row["text"], None if row["truth"] is None else bool(row["truth"])) == columns


def leaves(ledger):
    return [(row["source"], row["name"], row["json"]) for row in ledger.rows("leaves")]


def test_leaves_of_nested_params_and_inputs_have_dotted_names(ledger):
    params = {
        "optimizer": {"betas": {"first": 0.9}, "name": "lion", "steps": [1, 2], "none": None, "empty": {}},
        "epochs": 20,
        "model": {"python": "app.Model", "value": {"width": 64}},
        "tuple": recorded_form((1, 2)),
    }
    values = {"threshold": {"low": 1}}
    record = a_record(request=a_request(values=values, files=()), metrics=Metrics(params=params))
    ledger.record(record, archive="local")
    assert leaves(ledger) == [
        ("params", "optimizer.name", '"lion"'),
        ("params", "optimizer.steps", "[1,2]"),
        ("params", "optimizer.none", "null"),
        ("params", "optimizer.empty", "{}"),
        ("params", "model.width", "64"),
        ("params", "optimizer.betas.first", "0.9"),
        ("inputs", "threshold.low", "1"),
    ]
    assert [row["number"] for row in ledger.rows("leaves")] == [None, None, None, None, 64.0, 0.9, 1.0]


def test_an_execution_has_at_most_256_leaves_and_the_shallow_ones_come_first(ledger):
    deep = {"a": {str(number): number for number in range(300)}, "b": 1}
    ledger.record(a_record(metrics=Metrics(params={"p": {"deep": deep, "flat": 2}})), archive="local")
    found = leaves(ledger)
    assert len(found) == 256
    assert found[:2] == [("params", "p.flat", "2"), ("params", "p.deep.b", "1")]


def test_a_value_that_is_too_long_or_has_a_long_name_has_no_leaves(ledger):
    params = {"long": {"text": "x" * 70_000, "more": 1}, "named": {"n" * 600: 1, "short": 2}}
    ledger.record(a_record(metrics=Metrics(params=params)), archive="local")
    assert leaves(ledger) == [("params", "named.short", "2")]


def test_an_input_file_is_stored_with_its_digest_and_origin(ledger):
    ledger.record(a_record(), archive="local")
    row = only(ledger, "input_files")
    assert row["sha256"] == a_staged_input().sha256
    assert (row["input"], row["origin"], row["media_type"]) == ("picture", "s3://survey/picture.png", "image/png")


def test_a_digest_is_stored_as_32_bytes_and_read_in_hexadecimal(ledger):
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    batch = ledger.batch([EXECUTION_ID])
    (row,) = (dict(zip(BATCH_COLUMNS, row, strict=True)) for row in batch.executions)
    assert row["manifest_sha256"] == bytes.fromhex(SEAL)
    assert len(row["code_sha256"]) == 32
    assert {len(columns[PART_COLUMNS["outputs"].index("sha256")]) for columns in batch.parts["outputs"]} == {32}
    assert ledger.get(EXECUTION_ID).manifest_sha256 == SEAL
    assert ledger.get(EXECUTION_ID).code_sha256 == a_method().code.sha256


def test_a_code_digest_that_is_not_a_digest_is_left_out(ledger):
    code = a_method().code.model_copy(update={"sha256": "unknown"})
    ledger.record(a_record(method=a_method(code=code)), archive="local")
    assert ledger.get(EXECUTION_ID).code_sha256 is None


def test_an_output_used_as_an_input_has_one_digest_in_both_tables(ledger):
    made = an_output("outputs/map.tif", b"a map")
    maker, user = numbered(1), numbered(2, request=a_request(files=(a_staged_input("picture", b"a map"),)))
    maker = replace(maker, job_status=maker.job_status.model_copy(update={"outputs": (made,)}))
    for record in (maker, user):
        ledger.record(record, archive="local")
    outputs = [row for row in ledger.rows("outputs") if row["sha256"] == digest(b"a map")]
    files = [row for row in ledger.rows("input_files") if row["sha256"] == digest(b"a map")]
    assert [row["execution"] for row in outputs] == [an_id(1)]
    assert [row["execution"] for row in files] == [an_id(2)]


def logged(*values, name="loss"):
    return Metrics(metrics=tuple(Metric(name=name, value=value, step=n, time=NOON) for n, value in enumerate(values)))


@pytest.mark.parametrize(
    ("value", "number", "exact"),
    [
        (0.5, 0.5, None),
        (24, 24.0, None),
        (2**53, float(2**53), None),
        (2**53 + 1, float(2**53), str(2**53 + 1)),
        (10**30, 1e30, str(10**30)),
        (10**400, math.inf, str(10**400)),
        (10**5000, math.inf, hex(10**5000)),
        (math.nan, None, "NaN"),
        (math.inf, math.inf, None),
        (-math.inf, -math.inf, None),
        (5e-324, 5e-324, None),
    ],
    ids=lambda value: str(value) if not isinstance(value, int) else f"{value:#x}"[:40],
)
def test_a_metric_is_a_number_without_loss(ledger, value, number, exact):
    ledger.record(a_record(metrics=logged(value)), archive="local")
    row = only(ledger, "metrics")
    assert (row["name"], row["count"]) == ("loss", 1)
    assert (row["last"], row["last_exact"]) == (row["first"], row["first_exact"]) == (number, exact)
    extreme = (None, None) if exact == "NaN" else (number, exact)
    assert (row["min"], row["min_exact"]) == (row["max"], row["max_exact"]) == extreme


@pytest.mark.parametrize(
    ("values", "summary"),
    [
        ((3, 1, 4, 1, 5, 2), [3.0, 2.0, 1.0, 5.0]),
        ((math.nan, 2.0, 1.0), [None, 1.0, 1.0, 2.0]),
        ((2.0, math.nan), [2.0, None, 2.0, 2.0]),
        ((math.nan, math.nan), [None, None, None, None]),
        ((0.0, math.inf, -math.inf, 1.0), [0.0, 1.0, -math.inf, math.inf]),
    ],
    ids=str,
)
def test_a_metric_has_one_row_with_first_last_min_and_max(ledger, values, summary):
    ledger.record(a_record(metrics=logged(*values)), archive="local")
    row = only(ledger, "metrics")
    assert row["count"] == len(values)
    assert [row[name] for name in ("first", "last", "min", "max")] == summary


def test_the_smallest_of_large_integers_is_found_exactly(ledger):
    ledger.record(a_record(metrics=logged(2**53 + 3, 2**53 + 1, 2**53)), archive="local")
    row = only(ledger, "metrics")
    assert (row["max"], row["max_exact"]) == (float(2**53 + 3), str(2**53 + 3))
    assert (row["min"], row["min_exact"]) == (float(2**53), None)


@pytest.mark.long
def test_a_metric_of_100000_steps_is_one_row(ledger):
    ledger.record(a_record(metrics=logged(*range(100_000))), archive="local")
    row = only(ledger, "metrics")
    assert (row["count"], row["first"], row["last"]) == (100_000, 0.0, 99_999.0)


def test_referrers_are_the_executions_that_refer_to_an_execution(ledger):
    for number, relation in ((1, "parent"), (2, "rerun-of"), (3, "parent")):
        named = (Relative(execution_id=an_id(0 if number < 3 else 9), relation=relation),)
        ledger.record(numbered(number, request=a_request(relatives=named)), archive="local")

    assert ledger.referrers(an_id(0)) == (
        Relation(id=an_id(1), relation="parent"),
        Relation(id=an_id(2), relation="rerun-of"),
    )
    assert ledger.referrers(an_id(1)) == ()


def test_producer_and_consumer_of_a_file_are_linked_by_its_digest(ledger):
    table, empty = an_output("outputs/table.csv", b"1,2"), an_output("outputs/empty", b"")

    def add(number: int, *, makes: bool, takes: bool) -> None:
        files = (a_staged_input("rows", b"1,2"), a_staged_input("nothing", b"")) if takes else ()
        record = numbered(number, request=a_request(files=files, values={}))
        outputs = {"outputs": (table, empty) if makes else ()}
        ledger.record(replace(record, job_status=record.job_status.model_copy(update=outputs)), archive="local")

    add(0, makes=False, takes=True)  # it had begun before the file was made
    add(1, makes=True, takes=False)
    add(2, makes=True, takes=True)
    add(3, makes=False, takes=True)

    def handed(number: int) -> FileEdge:
        return FileEdge(id=an_id(number), output="outputs/table.csv", input="rows", sha256=table.sha256)

    assert ledger.made_from(an_id(3)) == (handed(2), handed(1))
    assert ledger.made_from(an_id(2)) == (handed(1),)
    assert ledger.made_from(an_id(0)) == ledger.made_from(an_id(1)) == ()
    assert ledger.used_by(an_id(1)) == (handed(2), handed(3))
    assert ledger.used_by(an_id(1), limit=1) == (handed(2),)
    assert ledger.used_by(an_id(3)) == ()


def test_tags_relatives_and_history_stay_in_order(ledger):
    relatives = (Relative(execution_id="b", relation="parent"), Relative(execution_id="a", relation="rerun-of"))
    ledger.record(a_record(request=a_request(tags=("z", "a", "z"), relatives=relatives)), archive="local")
    assert [row["tag"] for row in ledger.rows("tags")] == ["z", "a", "z"]
    assert [(row["other"], row["relation"]) for row in ledger.rows("relatives")] == [
        ("b", "parent"),
        ("a", "rerun-of"),
    ]
    assert [row["kind"] for row in ledger.rows("history")] == ["status"] * 4 + ["progress", "status"]


# recording again


def test_recording_twice_changes_nothing(ledger):
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    once = ledger.dump()
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    assert ledger.dump() == once


def test_the_final_record_replaces_all_rows_of_the_live_one(ledger):
    live = a_record(
        job_status=a_job_status(Status.EXECUTING),
        request=a_request(tags=("live", "more")),
        metrics=Metrics(params={"a": 1, "b": 2}),
    )
    ledger.record(live, archive="local")
    ledger.record(a_record(), archive="pending", manifest_sha256=SEAL)
    assert ledger.get(EXECUTION_ID).status is Status.COMPLETED
    assert [row["tag"] for row in ledger.rows("tags")] == ["survey"]
    assert [row["name"] for row in ledger.rows("params")] == ["footprint"]


def test_a_late_live_record_does_not_replace_a_sealed_one(ledger):
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    ledger.record(a_record(job_status=a_job_status(Status.EXECUTING)), archive="local")
    assert ledger.get(EXECUTION_ID).status is Status.COMPLETED


def test_a_second_sealer_does_not_take_an_execution_out_of_the_archive(ledger):
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    ledger.record(a_record(), archive="pending", manifest_sha256=SEAL)
    assert ledger.pending() == ()


def test_pending_executions_are_listed_oldest_first_until_archived(ledger):
    for number in (2, 1, 3):
        ledger.record(numbered(number), archive="pending", manifest_sha256=SEAL)
    ledger.note_archived(an_id(1), manifest_sha256=SEAL)
    assert ledger.pending() == (an_id(2), an_id(3))
    assert ledger.get(an_id(1)).archive == "archived"


def test_an_execution_missing_in_the_ledger_is_not_found(ledger):
    with pytest.raises(NotFoundError, match=EXECUTION_ID):
        ledger.note_archived(EXECUTION_ID, manifest_sha256=SEAL)
    with pytest.raises(NotFoundError, match=EXECUTION_ID):
        ledger.get(EXECUTION_ID)


def test_removing_an_execution_deletes_all_its_rows(ledger):
    ledger.record(numbered(1), archive="local")
    without = ledger.dump()
    ledger.record(numbered(2, method="other"), archive="local")
    ledger.remove(an_id(2))
    ledger.remove(an_id(2))
    assert ledger.dump() == without


# rebuilding


def test_a_rebuilt_ledger_has_the_same_rows(ledger):
    records = [numbered(number, method=f"m{number % 3}") for number in range(30)]
    for record in records:
        ledger.record(replace(record, job_status=a_job_status(Status.STARTED, execution_id=record.id)), archive="local")
        ledger.record(record, archive="archived", manifest_sha256=SEAL)
    before = ledger.dump()
    ledger.clear()
    assert not ledger.list().rows
    with ledger.bulk() as bulk:
        for record in reversed(records):
            bulk.record(as_read(record), archive="archived", manifest_sha256=SEAL)
    assert ledger.dump() == before


def test_a_bulk_write_with_a_repeated_execution_keeps_the_last_record(ledger):
    with ledger.bulk() as bulk:
        bulk.record(a_record(job_status=a_job_status(Status.STARTED)), archive="local")
        bulk.record(a_record(), archive="archived", manifest_sha256=SEAL)
        bulk.record(a_record(job_status=a_job_status(Status.STARTED)), archive="local")
    bulked = ledger.dump()
    ledger.clear()
    ledger.record(a_record(), archive="archived", manifest_sha256=SEAL)
    assert ledger.dump() == bulked


def test_a_bulk_write_with_many_rows_is_flushed_early(ledger):
    metrics = Metrics(metrics=tuple(Metric(name=f"loss-{n}", value=n, step=n, time=NOON) for n in range(26_000)))
    with ledger.bulk() as bulk:
        for number in (1, 2):
            bulk.record(numbered(number, metrics=metrics), archive="local")
        assert len(ledger.list().rows) == 2


def test_an_interrupted_bulk_write_keeps_the_earlier_batches(ledger):
    def interrupted():
        with ledger.bulk() as bulk:
            for number in range(600):
                bulk.record(numbered(number), archive="local")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(ledger.list(limit=1000).rows) == 500


# finding


@pytest.mark.parametrize("prefix", ["0b1e", "0B1E5A52", "0b1e5a526f0c", "0b1e5a52-6f0c-4", EXECUTION_ID])
def test_a_short_prefix_finds_the_full_id_with_or_without_dashes(ledger, prefix):
    for record in (a_record(), numbered(1)):
        ledger.record(record, archive="local")
    assert ledger.find(prefix) == EXECUTION_ID


def test_an_ambiguous_prefix_lists_at_most_twenty_candidates(ledger):
    for number in range(25):
        ledger.record(numbered(number), archive="local")
    with pytest.raises(AmbiguousIdError, match=an_id(3)) as raised:
        ledger.find("0000")
    assert raised.value.candidates == tuple(an_id(number) for number in range(20))


def test_a_complete_id_is_found_beside_its_second_generation(ledger):
    for life in (EXECUTION_ID, f"{EXECUTION_ID}.2"):
        ledger.record(a_record(job_status=a_job_status(execution_id=life)), archive="local")
    assert ledger.find(EXECUTION_ID) == EXECUTION_ID
    assert ledger.find(EXECUTION_ID.replace("-", "")) == EXECUTION_ID
    assert ledger.find(f"{EXECUTION_ID}.2") == f"{EXECUTION_ID}.2"
    with pytest.raises(AmbiguousIdError):
        ledger.find(EXECUTION_ID[:8])


def test_a_prefix_without_matches_is_not_found(ledger):
    ledger.record(a_record(), archive="local")
    for prefix in ("", "1b", "%", "_b1e", "0b1e\0", "'; DROP TABLE executions; --", "\ud800"):
        with pytest.raises(NotFoundError):
            ledger.find(prefix)


# listing


def ids(page):
    return [row.id for row in page.rows]


def test_the_newest_come_first_and_cursors_lead_through_all_pages(ledger):
    for number in range(25):
        ledger.record(numbered(number), archive="local")
    seen, after = [], None
    while True:
        page = ledger.list(limit=10, after=after)
        seen += ids(page)
        after = page.after
        if after is None:
            break
    assert seen == [an_id(number) for number in reversed(range(25))]


def test_a_cursor_keeps_its_position_when_newer_executions_arrive(ledger):
    for number in range(6):
        ledger.record(numbered(number), archive="local")
    first = ledger.list(limit=3)
    ledger.record(numbered(100), archive="local")
    assert ids(ledger.list(limit=3, after=first.after)) == [an_id(2), an_id(1), an_id(0)]


def test_executions_with_equal_times_are_all_listed_once(ledger):
    for number in range(7):
        job_status = a_job_status(execution_id=an_id(number))
        ledger.record(a_record(job_status=job_status), archive="local")
    first = ledger.list(limit=4)
    second = ledger.list(limit=4, after=first.after)
    assert sorted(ids(first) + ids(second)) == [an_id(number) for number in range(7)]
    assert second.after is None


def test_a_full_last_page_has_no_cursor(ledger):
    for number in range(3):
        ledger.record(numbered(number), archive="local")
    assert ledger.list(limit=3).after is None


@pytest.fixture
def mixed(ledger):
    ends = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXECUTING)
    for number in range(24):
        ledger.record(numbered(number, end=ends[number % 4], method=f"m{number % 3}"), archive="local")
    return ledger


@pytest.mark.parametrize(
    ("criteria", "fits"),
    [
        ({"status": (Status.FAILED,)}, lambda n: n % 4 == 1),
        ({"status": (Status.FAILED, Status.CANCELLED)}, lambda n: n % 4 in {1, 2}),
        ({"method": "m1"}, lambda n: n % 3 == 1),
        ({"method": "m1", "status": (Status.COMPLETED,)}, lambda n: n % 12 == 4),
        ({"since": NOON + timedelta(seconds=20)}, lambda n: n >= 20),
        ({"until": NOON + timedelta(seconds=3)}, lambda n: n < 3),
        ({"since": NOON + timedelta(seconds=4), "until": NOON + timedelta(seconds=9)}, lambda n: 4 <= n < 9),
        ({"method": "m2", "since": NOON + timedelta(seconds=12)}, lambda n: n % 3 == 2 and n >= 12),
        ({"method": "none"}, lambda n: n < 0),
        ({"method": "m1' OR 1=1 --"}, lambda n: n < 0),
    ],
)
def test_filters_together_narrow_the_list(mixed, criteria, fits):
    wanted = [an_id(number) for number in reversed(range(24)) if fits(number)]
    first = mixed.list(Filter(**criteria), limit=2)
    assert ids(first) == wanted[:2]
    rest = ids(mixed.list(Filter(**criteria), after=first.after)) if first.after else []
    assert rest == wanted[2:]


@pytest.mark.parametrize("cursor", ["", "!", "bm8gY3Vyc29y", "ä", "MQ"])
def test_an_invalid_cursor_is_refused(ledger, cursor):
    with pytest.raises(RequestError, match="cursor"):
        ledger.list(after=cursor)


def test_a_limit_below_one_is_refused(ledger):
    with pytest.raises(RequestError, match="at least 1"):
        ledger.list(limit=0)


# Methods


def test_methods_are_listed_by_version_with_first_and_last_seen(ledger):
    for number, version in enumerate(["1.0", "1.0", "2.0"]):
        record = numbered(number)
        ledger.record(replace(record, method=a_method(version=version)), archive="local")
    one, two = ledger.methods()
    assert (one.id, one.version, one.executions) == ("segment-coins", "1.0", 2)
    assert (one.first_seen, one.last_seen) == (NOON, NOON + timedelta(seconds=1))
    assert (two.version, two.executions) == ("2.0", 1)
    assert Method.from_json(two.descriptor.encode()) == a_method(version="2.0")
    assert ledger.method("segment-coins") == two
    assert ledger.method("segment-coins", "1.0") == one


def test_a_version_whose_code_changed_has_its_newest_descriptor(ledger):
    for number, title in ((2, "new"), (1, "old")):
        ledger.record(replace(numbered(number), method=a_method(title=title)), archive="local")
    (method,) = ledger.methods()
    assert (method.title, method.executions, method.first_seen) == ("new", 2, NOON + timedelta(seconds=1))
    assert len(list(ledger.rows("methods"))) == 2


def test_a_method_version_without_executions_is_not_found_and_others_are_listed(ledger):
    ledger.record(a_record(), archive="local")
    with pytest.raises(NotFoundError, match=r"Versions with executions: 1\.2\.0"):
        ledger.method("segment-coins", "9")
    with pytest.raises(NotFoundError, match="methods list"):
        ledger.method("nothing")


# the ledger itself


def test_a_missing_table_is_refused_with_the_existing_tables(ledger):
    with pytest.raises(LedgerError, match="input_files"):
        list(ledger.rows("executions; DROP TABLE executions"))


def test_a_closed_ledger_reopens_on_use(ledger):
    ledger.record(a_record(), archive="local")
    ledger.close()
    ledger.close()
    assert ledger.get(EXECUTION_ID).id == EXECUTION_ID
