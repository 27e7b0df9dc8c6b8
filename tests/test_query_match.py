from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings

import queries
from prefect_executions.query.fields import Kind
from prefect_executions.query.match import Facts, FileFacts, MetricFacts, matches, values_of, version_key
from prefect_executions.query.parser import parse
from prefect_executions.query.tree import And, Between, Condition, Has, Link, Not, Operator, Or, leaves, resolve

ID = "9068ec87-e88e-4a19-ba3c-e37cd7720f7a"
SHA = "1f3c" + "0" * 60


FEWER = settings(max_examples=40, suppress_health_check=list(HealthCheck))


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


RUN = Facts(
    fields={
        "id": (ID,),
        "method": ("Mnist_train",),
        "title": ("Handwritten digits",),
        "version": ("1.10.0",),
        "status": ("COMPLETED",),
        "date": (at(2026, 1, 31, 12, 0, 0, 1),),
        "duration": (timedelta(minutes=5),),
        "attempt": (2,),
        "message": ("Connection Timeout after 3 s",),
        "tag": ("baseline", "Straße"),
        "commit": ("a3f9e2b7c0ffee",),
        "code": (SHA,),
        "python": ("3.11.7",),
        "host": ("node17",),
    },
    params={
        "epochs": 20,
        "lr": 0.001,
        "optimizer": "Lion",
        "optimizer.name": "lion",
        "shuffle": True,
        "big": 2**53 + 1,
        "seed": None,
        "layers": [1, 2],
        "text": "10",
        "flag": "True",
        "empty": "",
    },
    metrics={
        "accuracy": MetricFacts(last=0.9, first=0.1, min=0.1, max=0.95),
        "loss": MetricFacts(last=math.nan, first=2.5, min=0.5, max=math.inf),
        "epochs": MetricFacts(last=1, first=1, min=1, max=1),
    },
    inputs={"seed": 3, "accuracy": 7},
    input_files=(FileFacts(names=("train.csv", "data"), sha256=SHA),),
    output_files=(
        FileFacts(names=("plots/Loss.png",), sha256="ab" * 32, size=1500, media_type="image/png"),
        FileFacts(names=("model.bin",), sha256="cd" * 32, size=10**9, media_type=None),
    ),
    flags=frozenset({"archived"}),
    links={Link.PARENT: frozenset({"beefcafe-1"})},
)


@pytest.mark.parametrize(
    "query",
    [
        # names: the whole text, ignoring case; = is exact
        "method:mnist_TRAIN",
        "method:mnist*",
        "method=Mnist_train",
        "NOT method=mnist_train",
        "method!=mnist_train",
        "NOT method:mnist",
        "method~train$",
        "NOT method~TRAIN",
        'method~"(?i)TRAIN"',
        "tag:STRASSE",
        "host>=node17 host<node2 host:node1 TO node17",
        # sentences are found by a part
        "message:timeout",
        'message:"connection timeout"',
        "NOT message=timeout",
        "message:conn*",
        "NOT message:timeout*",
        # choices
        "status:completed status=completed status:successful status!=failed",
        "status:failed,completed",
        # ids and digests: the beginning
        "id:9068EC87 commit:A3F9 code:1f3c code:sha256:1F3C",
        "NOT id=9068ec87",
        "NOT commit:f9e2",
        # versions: by number
        "version>1.9 version<1.11 version:1.10 version=1.10.0",
        "NOT version=1.10",
        "NOT version:1.1",
        "python>=3.9 python:3.11 python:3.* python:3.9 TO 3.12",
        # numbers, times, durations, sizes
        "attempt:2 attempt=2.0 attempt>1 attempt!=3 attempt:1 TO 2",
        "date:2026 date:2026-01 date:2026-01-31 date=2026-01-31T12 date:2026-01-31T12:00:00.000001",
        "date!=2026-01-30 date>2026-01-30 date>=2026-01-31 date<=2026-01-31 date<2026-02",
        "NOT date>2026-01-31",
        "NOT date<2026-01-31",
        "date:2026-01-01 TO 2026-01-31",
        "date:2026-01-31T13+01:00",
        "date:>-7d",
        "NOT date:>+1s",
        "date:-7d",
        "duration:5m duration>=300 duration<5.1m NOT duration>5m",
        "size>500MB size<2kB size:1.5kB",
        "NOT size:2kB TO 10kB",
        # files: path, name, name of the input, digest
        "input:train.csv input:DATA input:*.csv input:sha256:1f3c",
        "output:loss.png output:plots/* output:*.png output=Loss.png output:sha256:abab",
        "NOT output=loss.png",
        "media:image/* NOT media:text/csv",
        "output~^plots/",
        # values by type
        "epochs>10 epochs=20 epochs:20.0 epochs!=21 epochs:10 TO 20",
        "lr=0.001 lr=1e-3 lr<0.0010000001",
        "big=9007199254740993 NOT big=9007199254740992 big>9007199254740992",
        "optimizer:lion optimizer=Lion NOT optimizer=lion optimizer:l* optimizer~^L",
        "shuffle:true shuffle!=false NOT shuffle=1",
        'text=10 text:10 text="10" NOT text=10.0 NOT text>9 text>"09"',
        "flag:true flag=true flag=True NOT flag:false NOT flag~^t",
        'empty="" has:empty',
        "epochs!=many NOT epochs=many NOT epochs>many",
        "has:layers layers!=1 NOT layers=1",
        # the first of param, metric and input
        "epochs=20 metric:epochs=1",
        "accuracy=0.9 in:accuracy=7 input:accuracy=7",
        "seed=3 in:seed=3 NOT has:param.seed NOT param:seed=3",
        "accuracy.max=0.95 metric:accuracy.min=0.1 metric:accuracy.first=0.1 metric:accuracy=0.9",
        "optimizer.name:lion",
        # NaN and infinity
        "has:metric.loss NOT metric:loss<=inf NOT metric:loss=1 metric:loss!=1",
        "loss.max=inf loss.max>1e300 NOT loss.max<inf",
        # missing values
        "NOT branch:main NOT branch!=main NOT has:branch",
        "NOT dropout>0 NOT dropout<=0 NOT dropout!=0",
        "tag!=other NOT tag!=baseline",
        # presence, flags, relations
        "has:tag has:param has:metric has:in has:input has:parent has:size NOT has:reruns NOT has:dropout",
        "is:archived NOT is:imported",
        "parent:beefcafe parent:x,BEEF NOT parent:cafe NOT uses:beefcafe",
        # free text
        "timeout MNIST handwritten 9068ec87 a3f9 1f3c00 abab loss.png strasse",
        "NOT 906 NOT 068ec87 NOT lion",
        "mnist* NOT nist* model.*",
        # logic
        "*",
        "",
        "method:x OR status:completed method:mnist*",
        "NOT (method:x OR method:y)",
    ],
)
def test_the_run_is_found(query):
    assert matches(resolve(parse(query), queries.NOW), RUN)


@FEWER
@given(queries.conditions(), queries.facts())
def test_without_a_value_no_condition_matches(tree, facts):
    (leaf,) = leaves(tree)
    assert isinstance(leaf, Condition | Between)
    if not values_of(leaf.target, facts):
        assert not matches(resolve(leaf, queries.NOW), facts)
        assert matches(resolve(Not(leaf), queries.NOW), facts)


@FEWER
@given(queries.conditions(operators=frozenset({Operator.DIFFERENT})), queries.facts())
def test_different_is_a_value_that_is_not_equal(tree, facts):
    equal = replace(tree, operator=Operator.EQUAL)
    expected = And((Has(tree.target), Not(equal)))
    assert matches(tree, facts) == matches(expected, facts)


@FEWER
@given(queries.conditions(operators=frozenset({Operator.CONTAINS, Operator.EQUAL})), queries.facts())
def test_several_literals_are_alternatives(tree, facts):
    each = Or(tuple(replace(tree, values=(value,)) for value in tree.values))
    assert matches(tree, facts) == matches(each, facts)


ORDERED = frozenset({Kind.TIME, Kind.NUMBER, Kind.DURATION})


@FEWER
@given(queries.conditions(ORDERED, frozenset({Operator.EQUAL})), queries.facts())
def test_exactly_one_of_less_equal_and_greater_holds_for_a_time_or_a_number(tree, facts):
    for literal in tree.values:
        one = replace(tree, values=(literal,))
        holds = [
            matches(replace(one, operator=operator), facts)
            for operator in (Operator.LESS, Operator.EQUAL, Operator.GREATER)
        ]
        assert sum(holds) == len(values_of(tree.target, facts))


@FEWER
@given(queries.trees, queries.facts())
def test_any_tree_is_true_or_false_of_any_execution(tree, facts):
    tree = resolve(tree, queries.NOW)
    assert matches(Not(tree), facts) is not matches(tree, facts)


@pytest.mark.parametrize(
    ("less", "greater"),
    [("3.9", "3.11"), ("1.0", "1.0.1"), ("1.0.a", "1.0.1"), ("9" * 5000, "1" + "0" * 5000), ("1.9", "01.10")],
)
def test_versions_are_ordered_by_their_numbers(less, greater):
    assert version_key(less) < version_key(greater)


@pytest.mark.parametrize(
    ("recorded", "query", "found"),
    [
        (0.1, "x=0.1", True),
        (0.1, "x=0.1000000000000000055", True),
        (0.1, "x>0.1", False),
        (0.1, "x=0.10000000000000002", False),
        (2**53 + 1, "x=9007199254740993", True),
        (2**53 + 1, "x=9007199254740992", False),
        (2**53 + 1, "x>9007199254740992", True),
        (2.0**53, "x=9007199254740993", True),
        (10**400, f"x={10**400}", True),
        (10**400, "x>1e300", True),
        (10**400, "x<0.5", False),
        (1e300, "x<1e400", True),
        (math.inf, "x=inf", True),
        (-math.inf, "x<0.5", True),
        (math.nan, "x=inf", False),
        (math.nan, "x!=1", True),
        (5e-324, "x>0", True),
        (1, "x=1.0", True),
        (Decimal("0.1"), "x=0.1", True),
    ],
)
def test_numbers_compare_as_doubles_and_whole_numbers_exactly(recorded, query, found):
    assert matches(parse(query), Facts(params={"x": recorded})) is found
