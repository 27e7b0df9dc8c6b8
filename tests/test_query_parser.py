from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.errors import QueryError, RequestError
from prefect_executions.query.canonical import canonical
from prefect_executions.query.fields import FIELDS, FLAGS
from prefect_executions.query.literals import (
    Digest,
    Duration,
    Number,
    Regex,
    RelativeTime,
    Size,
    Text,
    TimeRange,
    Truth,
    Version,
)
from prefect_executions.query.parser import parse, parse_target
from prefect_executions.query.tree import (
    And,
    Between,
    Condition,
    Everything,
    FieldTarget,
    Has,
    Is,
    Link,
    Not,
    Operator,
    Or,
    QueryTree,
    Related,
    Statistic,
    ValueSource,
    ValueTarget,
    Words,
    leaves,
)

CONTAINS, EQUAL, GREATER = Operator.CONTAINS, Operator.EQUAL, Operator.GREATER
ID = "9068ec87-e88e-4a19-ba3c-e37cd7720f7a"
DIGEST = "1f3c" + "0" * 60


def text(*parts: str) -> Text:
    return Text(parts)


def day(day: int, month: int = 1) -> TimeRange:
    start = datetime(2026, month, day, tzinfo=UTC)
    return TimeRange(start, start + timedelta(days=1))


def field(name: str, *values: object, operator: Operator = CONTAINS) -> Condition:
    return Condition(FieldTarget(name), operator, values)  # type: ignore[arg-type]


def named(name: str, operator: Operator, value: object, source: ValueSource = ValueSource.ANY) -> Condition:
    return Condition(ValueTarget(source, name), operator, (value,))  # type: ignore[arg-type]


EXAMPLES: dict[str, QueryTree] = {
    "pipeline:mnist AND status:completed AND property:epochs>10": And(
        (
            field("method", text("mnist")),
            field("status", text("completed")),
            named("epochs", GREATER, Number(10, "10")),
        )
    ),
    "method:mnist AND status:completed AND epochs>10": And(
        (
            field("method", text("mnist")),
            field("status", text("completed")),
            named("epochs", GREATER, Number(10, "10")),
        )
    ),
    "property:learning_rate=0.001": named("learning_rate", EQUAL, Number(Decimal("0.001"), "0.001")),
    "date:2026-01-01 TO 2026-01-31": Between(FieldTarget("date"), day(1), day(31)),
    "commit:a3f9e2b7": field("commit", text("a3f9e2b7")),
    "(optimizer:lion OR batch_size>=512) AND NOT status:failed": And(
        (
            Or(
                (
                    named("optimizer", CONTAINS, text("lion")),
                    named("batch_size", Operator.GREATER_EQUAL, Number(512, "512")),
                )
            ),
            Not(field("status", text("failed"))),
        )
    ),
    "metric:accuracy.max>0.9": Condition(
        ValueTarget(ValueSource.METRIC, "accuracy", Statistic.MAX), GREATER, (Number(Decimal("0.9"), "0.9"),)
    ),
    f"input:sha256:{DIGEST}": field("input", Digest(DIGEST)),
    "output:*.csv": field("output", text("", ".csv")),
    "has:metric.loss": Has(ValueTarget(ValueSource.METRIC, "loss", Statistic.LAST)),
    "is:archived": Is("archived"),
    "started:>-7d": field("started", RelativeTime(timedelta(days=-7)), operator=GREATER),
    "duration>5m": field("duration", Duration(timedelta(minutes=5)), operator=GREATER),
    "host:node1* agent:ada": And((field("host", text("node1", "")), field("agent", text("ada")))),
    '"connection timeout"': Words(text("connection timeout")),
    f"parent:{ID}": Related(Link.PARENT, (ID,)),
    f"uses:{ID}": Related(Link.USES, (ID,)),
    f"usedby:{ID}": Related(Link.USED_BY, (ID,)),
}
"""The examples of the issue, each with its tree."""


@pytest.mark.parametrize("query", EXAMPLES)
def test_an_example_of_the_issue_has_exactly_this_tree(query):
    assert parse(query) == EXAMPLES[query]


@pytest.mark.parametrize(
    ("query", "tree"),
    [
        ("", Everything()),
        ("  \n ", Everything()),
        ("*", Everything()),
        ("stage:train", field("method", text("train"))),
        ("Status:FAILED", field("status", text("failed"))),
        ("tag:a,b", field("tag", text("a"), text("b"))),
        ("tag: a, b", field("tag", text("a"), text("b"))),
        ("tag:a,b,a", field("tag", text("a"), text("b"))),
        ('tag:"a b"', field("tag", text("a b"))),
        ('tag:"a \\"b\\" \\\\ \\d"', field("tag", text('a "b" \\ \\d'))),
        ('tag:"*"', field("tag", text("*"))),
        ('tag:"a b"*', field("tag", text("a b", ""))),
        ("tag:*a*b*", field("tag", text("", "a", "b", ""))),
        ('tag:""', field("tag", text(""))),
        ("tag=A", field("tag", text("A"), operator=EQUAL)),
        ("tag:=A", field("tag", text("A"), operator=EQUAL)),
        ("tag!=A", field("tag", text("A"), operator=Operator.DIFFERENT)),
        ("tag!A", Words(text("tag!A"))),
        ("tag~^a|b,c*$", field("tag", Regex("^a|b,c*$"), operator=Operator.MATCHES)),
        ('tag~"(a|b)c"', field("tag", Regex("(a|b)c"), operator=Operator.MATCHES)),
        ("tag:s3://bucket/a", field("tag", text("s3://bucket/a"))),
        ("host:a TO m", Between(FieldTarget("host"), text("a"), text("m"))),
        ("python>=3.11", field("python", Version("3.11"), operator=Operator.GREATER_EQUAL)),
        ("python:3.*", field("python", text("3.", ""))),
        ("code:1F3C", field("code", Digest("1f3c"))),
        (f"input:{DIGEST.upper()}", field("input", Digest(DIGEST))),
        ("output:plots/a.png", field("output", text("plots/a.png"))),
        ("size<=2GiB", field("size", Size(2**31), operator=Operator.LESS_EQUAL)),
        ("attempt>1", field("attempt", Number(1, "1"), operator=GREATER)),
        ("attempt:1,2", field("attempt", Number(1, "1"), Number(2, "2"))),
        ("date:2026-01-31,2026-03-01", field("date", day(31), day(1, 3))),
        ("started:-7d", field("started", RelativeTime(timedelta(days=-7)), operator=Operator.GREATER_EQUAL)),
        ("started:+7d", field("started", RelativeTime(timedelta(days=7)), operator=Operator.LESS_EQUAL)),
        ("started:-2d TO *", field("started", RelativeTime(timedelta(days=-2)), operator=Operator.GREATER_EQUAL)),
        ("started:* TO *", Has(FieldTarget("started"))),
        ("epochs > 10", named("epochs", GREATER, Number(10, "10"))),
        ("epochs:10", named("epochs", CONTAINS, Number(10, "10"))),
        ("epochs:3 TO 7", Between(ValueTarget(ValueSource.ANY, "epochs"), Number(3, "3"), Number(7, "7"))),
        ("epochs=10.0", named("epochs", EQUAL, Number(10, "10.0"))),
        ("big=9007199254740993", named("big", EQUAL, Number(2**53 + 1, "9007199254740993"))),
        ('epochs="10"', named("epochs", EQUAL, text("10"))),
        ("shuffle:True", named("shuffle", CONTAINS, Truth(value=True))),
        ('shuffle:"true"', named("shuffle", CONTAINS, text("true"))),
        ("loss<inf", named("loss", Operator.LESS, Number(Decimal("inf"), "inf"))),
        ('"learning rate">0', named("learning rate", GREATER, Number(0, "0"))),
        ('"status">3', named("status", GREATER, Number(3, "3"))),
        ("optimizer.name:adam", named("optimizer.name", CONTAINS, text("adam"))),
        ("params.lr=1", named("lr", EQUAL, Number(1, "1"), ValueSource.PARAM)),
        ("param:lr=1", named("lr", EQUAL, Number(1, "1"), ValueSource.PARAM)),
        ("param:lr:1", named("lr", CONTAINS, Number(1, "1"), ValueSource.PARAM)),
        ("param:status=1", named("status", EQUAL, Number(1, "1"), ValueSource.PARAM)),
        ("param:a.max=1", named("a.max", EQUAL, Number(1, "1"), ValueSource.PARAM)),
        ("param:lr", Has(ValueTarget(ValueSource.PARAM, "lr"))),
        ("in:seed=3", named("seed", EQUAL, Number(3, "3"), ValueSource.INPUT)),
        ("input:seed=3", named("seed", EQUAL, Number(3, "3"), ValueSource.INPUT)),
        ("input.seed=3", named("seed", EQUAL, Number(3, "3"), ValueSource.INPUT)),
        ("input=a.csv", field("input", text("a.csv"), operator=EQUAL)),
        ("has:branch,metric:loss", Or((Has(FieldTarget("branch")), parse("has:metric.loss")))),
        ("has:epochs", Has(ValueTarget(ValueSource.ANY, "epochs"))),
        ("has:metric", Has(FieldTarget("metric"))),
        ("branch:*", Has(FieldTarget("branch"))),
        ("is:imported,dirty", Or((Is("imported"), Is("dirty")))),
        ("parent:a,b", Related(Link.PARENT, ("a", "b"))),
        ("time*out", Words(text("time", "out"))),
        ("and or", And((Words(text("and")), Words(text("or"))))),
        ("ANDa", Words(text("ANDa"))),
        ('NOT"a"', Not(Words(text("a")))),
        ("NOT(a)", Not(Words(text("a")))),
        ("(a)(b)", And((Words(text("a")), Words(text("b"))))),
        ("a b OR c AND d", Or((And((Words(text("a")), Words(text("b")))), And((Words(text("c")), Words(text("d"))))))),
        ("größe>1 OR 大小:x", Or((named("größe", GREATER, Number(1, "1")), named("大小", CONTAINS, text("x"))))),
    ],
)
def test_a_query_has_this_tree(query, tree):
    assert parse(query) == tree


def test_the_end_of_a_bare_name_may_be_a_statistic_of_a_metric():
    (condition,) = leaves(parse("accuracy.max>0.9"))
    assert isinstance(condition, Condition)
    assert condition.target == ValueTarget(ValueSource.ANY, "accuracy", Statistic.MAX)
    (condition,) = leaves(parse('"accuracy.max">0.9'))
    assert isinstance(condition, Condition)
    assert condition.target == ValueTarget(ValueSource.ANY, "accuracy.max")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_example_of_a_field_is_a_condition_on_the_field(field):
    (leaf,) = leaves(parse(field.example))
    match leaf:
        case Condition(FieldTarget(name)) | Between(FieldTarget(name)):
            assert name == field.name
        case Condition(ValueTarget(source)):
            assert source == field.name
        case Related(link):
            assert link == field.name
        case Has() | Is():
            assert field.example.startswith(field.name)
        case _:
            pytest.fail(f"{leaf}")


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_is_read(flag):
    assert parse(f"is:{flag}") == Is(flag)


@pytest.mark.parametrize(
    ("query", "column", "problem", "suggestion"),
    [
        ("status:complted", 8, "'complted' is not a status", "completed"),
        ("status:completed,faild", 18, "'faild' is not a status", "failed"),
        ("a AND is:archivd", 10, "'archivd' is not a flag", "archived"),
        ("(a OR b", 1, "this parenthesis is not closed", None),
        ("a) b", 2, "this parenthesis closes nothing", None),
        ("()", 2, "unexpected ')'", None),
        ("a AND", 6, "the query ends too early", None),
        ("a OR OR b", 6, "OR is a keyword; put it in quotes", None),
        ("AND a", 1, "AND is a keyword; put it in quotes", None),
        ("tag:NOT", 5, "NOT is a keyword; put it in quotes", None),
        ("NOT", 4, "the query ends too early", None),
        ("10>epochs", 1, "a name begins with a letter; put another in quotes", None),
        ("-tag:a", 1, "a name begins with a letter; to exclude, write NOT", None),
        (">5", 1, "unexpected '>'", None),
        ('a "b', 3, "this quote is not closed", None),
        ('""', 1, "the text is empty", None),
        ('"":a', 1, "the name is empty", None),
        ("metric:=1", 8, "unexpected '='", None),
        ("tag:", 5, "the query ends too early", None),
        ("tag:a,", 7, "the query ends too early", None),
        ("a, b", 2, "a comma separates the values of a field; put a text with a comma in quotes", None),
        ("a=b=c", 4, "a value ends here; put a value with this character in quotes", None),
        ("foo(bar)", 4, "a word ends before a parenthesis; put it in quotes, or a blank before it", None),
        ("acc*>1", 1, "a name has no wildcard", None),
        ("duration>5 apples,", 18, "a comma separates the values of a field; put a text with a comma in quotes", None),
        ("duration>5min", 10, "'5min' does not fit duration", None),
        ("duration>5m,6m", 10, "'>' takes one value", None),
        ("date:2026-13-01", 6, "'2026-13-01' does not fit date", None),
        ("date:2026-02-29", 6, "'2026-02-29' does not fit date", None),
        ("date:=-7d", 7, "a relative time is an instant", None),
        ("size>1.5B", 6, "'1.5B' does not fit size", None),
        ("attempt:many", 9, "'many' does not fit attempt", None),
        ("attempt:1e2000", 9, "the exponent of '1e2000' is larger than 1000", None),
        ("input:sha256:xyz", 7, "'sha256:xyz' does not fit input", None),
        ("message<x", 8, "'<' does not compare the field message; a param of this name is param:message", None),
        ("status:a TO b", 8, "the field status has no order, so it has no range", None),
        ("shuffle>true", 9, "true and false have no order", None),
        ("host>a*", 6, "a text with a wildcard has no order", None),
        ("loss=nan", 6, "nothing is equal to NaN", None),
        ("epochs:1 TO b", 8, "the ends of a range must be two numbers or two texts", None),
        ("param=5", 6, "'param' needs a name", None),
        ("metric:*>5", 8, "a name has no wildcard", None),
        ("has:is", 5, "'is' has no value", None),
        ("has>5", 4, "'>' does not compare has", None),
        ("parent:abc*", 8, "an id has no wildcard; its beginning is enough", None),
        ("tag~(", 5, "a word ends before a parenthesis; put it in quotes, or a blank before it", None),
        ('tag~"("', 5, "the regular expression is not supported by RE2: missing ): (", None),
        (r'tag~"(a)\1"', 5, r"the regular expression is not supported by RE2: invalid escape sequence: \1", None),
        ("a\0b", 2, "the character U+0000 is not allowed", None),
        ("\ud800", 1, "the character U+D800 is not allowed", None),
    ],
)
def test_an_error_names_the_place_and_the_nearest_word(query, column, problem, suggestion):
    with pytest.raises(QueryError) as caught:
        parse(query)
    error = caught.value
    assert (error.problem, error.column, error.suggestion) == (problem, column, suggestion)
    assert error.text == query


def test_the_message_shows_the_place_and_what_was_expected():
    with pytest.raises(RequestError) as caught:
        parse("method:mnist AND\tis:archivd")
    assert str(caught.value).splitlines() == [
        "column 21: 'archivd' is not a flag; did you mean 'archived'?",
        "  method:mnist AND is:archivd",
        "                      ^",
        f"expected: {', '.join(FLAGS)}",
    ]


def test_the_message_shows_only_the_surroundings_of_the_place():
    with pytest.raises(QueryError) as caught:
        parse("a " * 40 + "is:x " + "b " * 40)
    _, shown, caret, _ = str(caught.value).splitlines()
    assert len(shown) < 110
    assert shown[caret.index("^")] == "x"


@pytest.mark.parametrize(
    "query",
    [
        "x" * 2_000_000,
        "(" * 10_000 + ")" * 10_000,
        "(" * 1000 + ")" * 1000,
        "NOT " * 499 + "a",
        "a " * 1000,
        '"' + "\\" * 1998,
        "tag:" + "*a" * 5000,
        " " * 3000,
    ],
    ids=len,
)
def test_a_hostile_query_is_refused(query):
    with pytest.raises(QueryError) as caught:
        parse(query)
    assert len(str(caught.value)) < 400


def test_the_limits_are_reached_but_not_passed():
    parse("(" * 32 + "a" + ")" * 32)
    parse("NOT " * 32 + "a")
    parse(" ".join("a" * 64))
    parse("a" * 2000)
    for query in ("(" * 33 + "a" + ")" * 33, "NOT " * 33 + "a", " ".join("a" * 65), "a" * 2001):
        with pytest.raises(QueryError):
            parse(query)


@given(st.text(st.one_of(st.sampled_from('ab1 :=<>!~()",*\\.-TO\n'), st.characters()), max_size=30))
def test_any_text_is_a_query_or_an_error_with_a_place(text):
    with suppress(QueryError):
        assert parse(canonical(parse(text))) == parse(text)
        return
    with pytest.raises(QueryError, match=r"^column \d+: "):
        parse(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("started", FieldTarget("started")),
        ("pipeline", FieldTarget("method")),
        ("epochs", ValueTarget(ValueSource.ANY, "epochs")),
        ("metric:accuracy", ValueTarget(ValueSource.METRIC, "accuracy", Statistic.LAST)),
        ("metrics.accuracy.max", ValueTarget(ValueSource.METRIC, "accuracy", Statistic.MAX)),
        ('param:"learning rate"', ValueTarget(ValueSource.PARAM, "learning rate")),
        ("parent", FieldTarget("parent")),
    ],
)
def test_a_sort_key_or_column_is_a_target(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "metric", "has", "is", "a b", "a>1", "metric:", "acc*"])
def test_what_names_no_value_is_not_a_target(text):
    with pytest.raises(QueryError):
        parse_target(text)
