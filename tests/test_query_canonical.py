from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import queries
from prefect_executions.query.canonical import canonical, canonical_target
from prefect_executions.query.conditions import MAX_CHARACTERS, value_target
from prefect_executions.query.literals import Text
from prefect_executions.query.parser import parse, parse_target
from prefect_executions.query.tree import Condition, FieldTarget, Not, Operator, Or, QueryTree, ValueSource, Words


def check(tree: QueryTree) -> None:
    text = canonical(tree)
    if len(text) <= MAX_CHARACTERS:
        assert parse(text) == tree
        assert canonical(parse(text)) == text


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(tree=queries.trees)
def test_the_canonical_text_of_any_tree_gives_the_tree(tree):
    check(tree)


@pytest.mark.long
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(terms=st.lists(queries.terms, min_size=20, max_size=20), random=st.randoms(use_true_random=False))
def test_the_canonical_text_of_ten_thousand_trees_gives_the_tree(terms, random):
    for _ in range(20):  # drawing a tree takes longer than checking it
        check(queries.combined(terms, random))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "*"),
        ("  ", "*"),
        ("*", "*"),
        ("a b", "a AND b"),
        ("a AND (b c)", "a AND b AND c"),
        ("a OR (b OR c)", "a OR b OR c"),
        ("a OR b AND c", "a OR b AND c"),
        ("(a OR b) c", "(a OR b) AND c"),
        ("NOT (a b)", "NOT (a AND b)"),
        ("NOT NOT a", "NOT NOT a"),
        ("Pipeline:mnist", "method:mnist"),
        ("status:running", "status:started,executing"),
        ("property:epochs > 10", "epochs>10"),
        ("params.lr = 0.10", "param:lr=0.10"),
        ("metric:accuracy.last>1", "metric:accuracy>1"),
        ('metric:"accuracy.max">1', 'metric:"accuracy.max">1'),
        ("accuracy.max>0.9", "accuracy.max>0.9"),
        ('"status">3', '"status">3'),
        ("input:seed=3", "in:seed=3"),
        ("has:metrics.loss,branch", "has:metric:loss OR has:branch"),
        ("is:imported, archived", "is:imported OR is:archived"),
        ('param:"TO"=TOP has:metric:"NOT"', 'param:"TO"=TOP AND has:metric:"NOT"'),
        ("branch:*", "has:branch"),
        ("branch!=*", "NOT has:branch"),
        ("started:-1w", "started>=-7d"),
        ("scheduled:+90m", "scheduled<=+1h30m"),
        ("duration>90", "duration>1m30s"),
        ("duration>0.5s", "duration>500ms"),
        ("size>1500000000B", "size>1.5GB"),
        ("size>1KiB", "size>1024B"),
        ("size>1234567", "size>1234567B"),
        ("date:2026-01-31T00:00:00+01:00", "date:2026-01-30T23:00:00"),
        ("date:2026-01-31T12+05:30", "date:2026-01-31T06-00:30"),
        ('date:"2026-01-31 12:30"', "date:2026-01-31T12:30"),
        ("date:* TO 2026", "date<=2026"),
        ("date:2026 TO *", "date>=2026"),
        ("code:5E88", "code:sha256:5e88"),
        ('message~"\\d+"', 'message~"\\\\d+"'),
        ("tag:a,a,b", "tag:a,b"),
        ('"a:b"', '"a:b"'),
        ('"AND"', '"AND"'),
        ('a""*', "a*"),
        ("a***b", "a*b"),
    ],
)
def test_queries_that_mean_one_thing_have_one_text(text, expected):
    assert canonical(parse(text)) == expected
    assert canonical(parse(expected)) == expected


def test_a_text_is_in_quotes_where_it_would_be_read_otherwise():
    target = value_target(ValueSource.PARAM, "x", typed=True)
    for text in ("10", "-1e3", "inf", "TRUE", "a b", "a,b", "", "AND", "x:y>z", "ä"):
        tree = Condition(target, Operator.EQUAL, (Text((text,)),))
        assert parse(canonical(tree)) == tree, canonical(tree)
    assert canonical(Words(Text(("größe",)))) == "größe"


def test_parentheses_stand_only_where_they_are_needed():
    a, b, c = (Words(Text((letter,))) for letter in "abc")
    assert canonical(Not(Or((a, b)))) == "NOT (a OR b)"
    assert canonical(Or((Not(a), Or((b, c))))) == "NOT a OR b OR c"


@pytest.mark.parametrize(
    "text", ["started", "metric:accuracy.max", 'param:"learning rate"', "epochs", '"status"', "in:seed", '"x.min"']
)
def test_the_text_of_a_target_is_read_as_the_target(text):
    assert canonical_target(parse_target(text)) == text
    assert canonical_target(FieldTarget("method")) == "method"
