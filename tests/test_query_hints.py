from __future__ import annotations

import pytest

from prefect_executions.query.hints import hints
from prefect_executions.query.parser import parse
from prefect_executions.query.tree import ValueSource

NAMES = {
    ValueSource.PARAM: {"epochs", "learning_rate", "val.max"},
    ValueSource.METRIC: {"accuracy"},
    ValueSource.INPUT: {"seed"},
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("epochs>10 accuracy.max>0.9 seed=3 val.max>1 metric:accuracy>1 status:failed", []),
        ("statsu:failed", ["no param, metric or input has the name 'statsu'; did you mean 'status'?"]),
        ("epoch>10", ["no param, metric or input has the name 'epoch'; did you mean 'epochs'?"]),
        ("Epochs:1 TO 2", ["no param, metric or input has the name 'Epochs'; did you mean 'epochs'?"]),
        ("NOT has:metric.epochs", ["no metric has the name 'epochs'"]),
        ("metric:acuracy.max>1", ["no metric has the name 'acuracy'; did you mean 'accuracy'?"]),
        ("zzz:1 OR zzz:2", ["no param, metric or input has the name 'zzz'"]),
        ("a or b", ["'or' is searched as a word; the keyword is OR"]),
        ('a "OR" b or*', []),
    ],
)
def test_a_probable_mistake_has_a_hint(query, expected):
    assert list(hints(parse(query), NAMES)) == expected
