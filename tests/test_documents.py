"""Documents: equal bytes for equal values, clear messages for invalid ones."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.archive.objects import Imported, Removed, Seal
from prefect_executions.archive.shares import Share
from prefect_executions.attestation.transparency import Checkpoint, CheckpointHead, Inclusion
from prefect_executions.bundles.export import Export
from prefect_executions.documents import (
    FORMAT,
    canonical_json,
    clean_text,
    in_utc,
    json_value,
    strict_json,
    text_of_time,
)
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import ExecuteRequest, ExecutionRecord, Instance, OpeningRecord
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.workbench.sealing import LateSeal
from records import a_record

UNRECORDED_INT = {"unrecorded": "builtins.int"}


def test_a_time_is_written_in_utc_with_microseconds():
    noon = datetime(2026, 11, 21, 13, tzinfo=timezone(timedelta(hours=1)))

    assert text_of_time(noon) == "2026-11-21T12:00:00.000000+00:00"


def test_a_time_without_offset_is_refused():
    with pytest.raises(ValueError, match="needs an offset"):
        in_utc(datetime(2026, 11, 21))  # noqa: DTZ001 - the mistake


def test_prefects_time_becomes_a_plain_datetime():
    import pendulum  # noqa: PLC0415 - Prefect's own times

    plain = in_utc(pendulum.datetime(2026, 11, 21, 12))

    assert type(plain) is datetime
    assert plain == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_an_unknown_member_is_absent():
    assert b"null" not in Instance(pid=3).to_json()


def test_the_first_invalid_member_is_named():
    with pytest.raises(BundleError, match=r"metadata/jobStatus\.json: jobID: Field required"):
        JobStatus.from_json(b"{}")


def test_a_member_that_is_not_in_the_format_is_refused():
    with pytest.raises(BundleError, match=r"metadata/instance\.json: colour"):
        Instance.from_json(b'{"format": 1, "colour": "blue"}')


@pytest.mark.parametrize("number", [1, 2])
def test_every_format_is_read_and_written_back(number):
    data = a_record().instance.model_copy(update={"format": number}).to_json()
    assert f'"format": {number}'.encode() in data
    assert Instance.from_json(data).to_json() == data


def test_a_new_document_has_the_newest_format():
    assert {document.format for document in a_record().documents().values() if document} == {FORMAT}


@pytest.mark.parametrize("number", ["0", "3", '"2"', "2.5", "null"])
def test_a_later_format_is_refused_by_its_number(number):
    with pytest.raises(BundleError, match=r"instance\.json: format .* is unknown; .* 1 or 2; install a newer"):
        Instance.from_json(f'{{"format": {number}, "colour": "blue"}}'.encode())


def test_a_later_format_inside_an_opening_record_is_refused_by_its_number():
    opening = json.loads(OpeningRecord.of(a_record()).to_json())
    opening["request"]["format"] = 3
    with pytest.raises(BundleError, match=r"opening\.json: format 3 is unknown"):
        OpeningRecord.from_json(json.dumps(opening).encode())


def test_an_object_of_the_archive_has_a_format_of_its_own():
    opening = OpeningRecord.of(a_record())
    assert (opening.format, opening.request.format) == (1, FORMAT)
    with pytest.raises(BundleError, match="format 2 is unknown"):
        OpeningRecord.from_json(opening.to_json().replace(b'"format": 1', b'"format": 2', 1))


def test_a_record_of_documents_of_two_formats_is_refused():
    documents = a_record().to_json()
    documents[Instance.file_name] = documents[Instance.file_name].replace(b'"format": 2', b'"format": 1')
    with pytest.raises(BundleError, match=r"instance\.json has format 1; metadata/jobStatus\.json has format 2"):
        ExecutionRecord.from_json(documents)


def test_equal_documents_have_equal_bytes():
    assert a_record().request.to_json() == a_record().request.to_json()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/data"), "/data"),
        (Decimal("1.5"), "1.5"),
        ("ä".encode(), "ä"),
        (b"\xff\x00", {"unrecorded": "builtins.bytes"}),
        ({1: {"a"}}, {"1": ["a"]}),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        ("\udc80", "\\udc80"),
        (["\udc81"], ["\\udc81"]),
        (object, {"unrecorded": "builtins.type"}),
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.array(7), 7),
        ([np.bool_(1)], [True]),
        ({np.int64(0): np.int64(24)}, {"0": 24}),
        (np.array([1, 2]), {"unrecorded": "numpy.ndarray"}),
        (np.longdouble("0.5"), {"unrecorded": "numpy.longdouble"}),
        (np.timedelta64(5, "ns"), {"unrecorded": "numpy.timedelta64"}),
        ({object(): 1}, {"unrecorded": "builtins.dict"}),
    ],
)
def test_values_take_a_form_that_json_can_hold(value, expected):
    assert json_value(value) == expected


def test_a_value_that_contains_itself_is_not_guessed():
    itself: list[object] = []
    itself.append(itself)

    assert json_value(itself) == {"unrecorded": "builtins.list"}


def test_a_number_of_any_length_can_be_read_back():
    for number, expected in ((10**4300 - 1, 10**4300 - 1), (1 - 10**4300, 1 - 10**4300), (10**4300, UNRECORDED_INT)):
        request = ExecuteRequest(execution_id="i", method_id="m", method_version="1", values={"x": json_value(number)})

        assert ExecuteRequest.from_json(request.to_json()).values == {"x": expected}


@given(st.text(alphabet=st.characters()))
def test_any_text_can_be_written(text):
    request = ExecuteRequest(execution_id="i", method_id="m", method_version="1", values={"x": json_value(text)})

    assert ExecuteRequest.from_json(request.to_json()) == request
    assert clean_text(text).encode().decode() == clean_text(text)


def test_the_canonical_form_does_not_depend_on_order():
    assert (
        canonical_json({"b": 1, "a": [1.0, "ä"]})
        == canonical_json({"a": [1.0, "ä"], "b": 1})
        == '{"a":[1.0,"ä"],"b":1}'.encode()
    )


@pytest.mark.parametrize(
    "kind",
    [Seal, Imported, Removed, OpeningRecord, LateSeal, Checkpoint, CheckpointHead, Inclusion, Share, Export],
)
def test_a_member_that_a_document_of_the_archive_has_twice_is_refused(kind):
    with pytest.raises(BundleError, match="the member 'format' twice"):
        kind.from_json(b'{"format": 1, "format": 1}')


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_json_in_another_encoding_than_utf8_is_refused(encoding):
    with pytest.raises(BundleError, match=r"^crate: invalid JSON"):
        strict_json('{"name": "ä"}'.encode(encoding), "crate")


def test_a_surrogate_in_the_bytes_of_json_is_refused():
    with pytest.raises(BundleError, match="invalid JSON"):
        strict_json('{"name": "\ud800"}'.encode(errors="surrogatepass"), "crate")


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_time_outside_the_years_of_utc_is_refused(time):
    with pytest.raises(ValueError, match="years 1 to 9999"):
        in_utc(datetime.fromisoformat(time))
    seal = {"format": 1, "executionId": "x", "manifestSha256": "0" * 64, "objects": f"sealed-{'0' * 16}/"}
    with pytest.raises(BundleError, match=r"finished: .*years 1 to 9999"):
        Seal.from_json(json.dumps({**seal, "status": "COMPLETED", "finished": time}).encode())
