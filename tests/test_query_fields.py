from __future__ import annotations

import pytest

from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.fields import (
    BY_NAME,
    FIELDS,
    KINDS,
    LINKS,
    OPERATORS,
    SOURCES,
    Kind,
    has_order,
    nearest,
    searched,
)
from prefect_executions.query.tree import Link, ValueSource


def test_each_name_and_alias_exists_once_in_lower_case():
    names = [name for field in FIELDS for name in (field.name, *field.aliases)]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert [name for name in names if name != name.lower()] == []


def test_each_kind_has_operators_and_a_meaning():
    assert set(OPERATORS) == set(KINDS) == set(Kind)
    assert {kind for kind in Kind if has_order(kind)} == {
        *(Kind.NAME, Kind.VERSION, Kind.NUMBER, Kind.TIME, Kind.DURATION, Kind.SIZE, Kind.VALUE)
    }


def test_each_source_and_link_has_a_field():
    assert set(SOURCES.values()) == set(ValueSource)
    assert set(LINKS.values()) == set(Link)


def test_each_status_and_reason_is_a_choice():
    assert {status.lower() for status in Status} <= set(BY_NAME["status"].choices)
    assert set(BY_NAME["reason"].choices) == set(Reason)


@pytest.mark.parametrize(
    ("word", "statuses"),
    [
        ("completed", {"completed"}),
        ("successful", {"completed"}),
        ("running", {"started", "executing"}),
        ("accepted", {"created", "scheduled"}),
        ("dismissed", {"cancelled"}),
        ("ended", {"completed", "failed", "cancelled"}),
    ],
)
def test_a_status_may_be_a_word_of_another_system(word, statuses):
    assert set(BY_NAME["status"].choices[word]) == statuses


@pytest.mark.parametrize(
    ("word", "field"),
    [("pipeline", "method"), ("stage", "method"), ("run", "id"), ("user", "agent"), ("artifact", "output")],
)
def test_words_of_other_systems_are_aliases(word, field):
    assert BY_NAME[word].name == field


def test_free_text_is_searched_in_texts_ids_and_files():
    assert {field.kind for field in searched()} == {Kind.NAME, Kind.PROSE, Kind.ID, Kind.DIGEST, Kind.FILE}


def test_the_nearest_word_is_near():
    assert nearest("statsu", BY_NAME) == "status"
    assert nearest("zzz", BY_NAME) is None
