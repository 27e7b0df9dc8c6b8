"""The record: the OGC request, the table of documents, and the summary of an execution."""

import json
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from prefect_executions.documents import json_value
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import (
    DOCUMENTS,
    OPTIONAL,
    REQUIRED,
    ExecuteRequest,
    ExecutionRecord,
    Metric,
    Metrics,
    OpeningRecord,
    as_ogc,
)
from prefect_executions.executions.summary import in_milliseconds, summary_of
from records import NOON, a_record, a_request, a_staged_input

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_file_is_a_link_and_several_are_a_list_of_links():
    first, second = a_staged_input("picture"), a_staged_input("picture", b"other")

    assert as_ogc({"picture": "x"}, [first])["picture"] == {"href": first.origin, "type": "image/png"}
    assert len(as_ogc({"picture": ["x", "y"]}, [first, second])["picture"]["value"]) == 2


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_values_survive_the_document(values: dict[str, Any]):
    request = a_request(values=values, files=())

    assert ExecuteRequest.from_json(request.to_json()) == request


def test_inputs_that_differ_from_the_values_are_refused():
    forged = a_request().to_json().replace(b'"threshold": 0.3', b'"threshold": 0.4', 1)

    with pytest.raises(BundleError, match="inputs do not match values and files"):
        ExecuteRequest.from_json(forged)


def test_a_metric_that_is_not_finite_satisfies_the_published_schema():
    metrics = Metrics(metrics=[Metric(name="loss", value=value, time=NOON) for value in (1, 0.5, nan, inf, -inf)])
    document = json.loads(metrics.to_json())

    Draft202012Validator(Metrics.model_json_schema(by_alias=True)).validate(document)
    assert [metric["value"] for metric in document["metrics"]] == [1, 0.5, "NaN", "Infinity", "-Infinity"]


def test_the_opening_record_contains_the_record():
    record = a_record(metrics=None)

    assert OpeningRecord.from_json(OpeningRecord.of(record).to_json()).record() == record


def test_a_record_is_read_from_its_documents():
    record = a_record()

    assert ExecutionRecord.from_json(record.to_json()) == record


def test_the_table_of_documents_has_every_field_of_the_record():
    assert set(DOCUMENTS) == set(ExecutionRecord.__dataclass_fields__)
    assert {name for name in DOCUMENTS if name not in REQUIRED} == set(OPTIONAL)


def test_a_missing_document_is_named():
    with pytest.raises(BundleError, match=r"the record has no auth/jwt\.json, metadata/method\.json"):
        ExecutionRecord.from_json({})


def test_the_summary_has_digests_of_files_and_values():
    summary = summary_of(a_record())

    assert {name for name, _ in summary.inputs} == {"picture", "threshold", "labels"}
    assert summary_of(a_record(request=a_request(values={"picture": "x", "threshold": 0.4, "labels": []}))) != summary


def test_times_are_truncated_to_milliseconds_not_rounded():
    assert in_milliseconds(datetime(2026, 1, 1, microsecond=999_999, tzinfo=UTC)) == datetime(
        2026, 1, 1, microsecond=999_000, tzinfo=UTC
    )


def test_a_value_without_a_json_form_is_unrecorded():
    assert json_value({"a": object()}) == {"a": {"unrecorded": "builtins.object"}}
