from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.query.completion import Completion, completion
from prefect_executions.query.fields import FIELDS, FLAGS
from prefect_executions.query.tree import FieldTarget, Statistic, ValueSource, ValueTarget
from prefect_executions.query.values import KEYWORDS

ANY, PARAM, METRIC = ValueSource.ANY, ValueSource.PARAM, ValueSource.METRIC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stat", Completion(start=0, prefix="stat", words=("status:",), names=ANY)),
        ("a AND (bra", Completion(start=7, prefix="bra", words=("branch:",), names=ANY)),
        ("epochs", Completion(start=0, prefix="epochs", names=ANY)),
        ("a an", Completion(start=2, prefix="an", words=("AND",), names=ANY)),
        ("status:fa", Completion(start=7, prefix="fa", words=("failed",), values=FieldTarget("status"))),
        (
            "status:failed,canc",
            Completion(start=14, prefix="canc", words=("cancelled", "canceled"), values=FieldTarget("status")),
        ),
        ("is:ar", Completion(start=3, prefix="ar", words=("archived",))),
        ("is:", Completion(start=3, prefix="", words=tuple(FLAGS))),
        ("branch:ma", Completion(start=7, prefix="ma", values=FieldTarget("branch"))),
        ("pipeline:=mn", Completion(start=10, prefix="mn", values=FieldTarget("method"))),
        ("metric:acc", Completion(start=7, prefix="acc", names=METRIC)),
        ("params:", Completion(start=7, prefix="", names=PARAM)),
        ("metric:acc.max>", Completion(start=15, prefix="", values=ValueTarget(METRIC, "acc", Statistic.MAX))),
        ("param:opt:li", Completion(start=10, prefix="li", values=ValueTarget(PARAM, "opt"))),
        ("optimizer=li", Completion(start=10, prefix="li", values=ValueTarget(ANY, "optimizer"))),
        ('"learning rate"=', Completion(start=16, prefix="", values=ValueTarget(ANY, "learning rate"))),
        ("has:metric.lo", Completion(start=11, prefix="lo", names=METRIC)),
        ("has:bran", Completion(start=4, prefix="bran", words=("branch",), names=ANY)),
        ("parent:90", Completion(start=7, prefix="90")),
        ('tag:"a b', Completion(start=4, prefix='"a b', values=FieldTarget("tag"))),
    ],
)
def test_the_end_of_a_query_may_become(text, expected):
    assert completion(text) == expected


def test_a_term_begins_with_a_field_a_name_or_a_keyword():
    found = completion("status:failed ")
    assert set(found.words) == {*(f"{field.name}:" for field in FIELDS), *KEYWORDS}
    assert (found.prefix, found.start, found.names) == ("", 14, ANY)


def test_a_text_that_is_too_long_for_a_query_has_no_completion():
    found = completion("a" * 1_000_000)
    assert (found.start, found.prefix) == (1_000_000, "")


@given(st.text(st.one_of(st.sampled_from('ab:="\\(),. '), st.characters()), max_size=20))
def test_any_text_has_a_completion(text):
    found = completion(text)
    assert text[found.start :] == found.prefix
