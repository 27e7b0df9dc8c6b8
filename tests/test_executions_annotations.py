"""The labels of an execution are what its annotations amount to, in their order."""

from __future__ import annotations

import pytest

from prefect_executions.errors import RequestError
from prefect_executions.executions.annotations import LONGEST_NAME, AnnotationKind, LabelChange, label_changes, labels

TAG, UNTAG, NAME, NOTE = AnnotationKind.TAG, AnnotationKind.UNTAG, AnnotationKind.NAME, AnnotationKind.NOTE
RECALL, REINSTATE = AnnotationKind.RECALL, AnnotationKind.REINSTATE


def test_without_annotations_the_tags_are_those_of_the_request():
    assert labels([], ["gpu", "gpu"]).tags == ("gpu",)


def test_tags_are_added_and_removed():
    assert labels([(TAG, "a"), (UNTAG, "gpu"), (TAG, "b"), (UNTAG, "b")], ["gpu", "x"]).tags == ("x", "a")


def test_a_removed_tag_can_be_added_again():
    assert labels([(UNTAG, "gpu"), (TAG, "gpu")], ["gpu"]).tags == ("gpu",)


def test_the_last_name_and_the_last_experiment_count():
    changes = [(NAME, "one"), (AnnotationKind.EXPERIMENT, "a"), (NAME, "two")]
    assert (labels(changes).name, labels(changes).experiment) == ("two", "a")
    assert labels([*changes, (NAME, "")]).name is None


def test_every_note_is_kept():
    assert labels([(NOTE, "first"), (NOTE, "second"), (NOTE, "first")]).notes == ("first", "second", "first")


def test_a_star_is_added_and_removed():
    star, unstar = (AnnotationKind.STAR, ""), (AnnotationKind.UNSTAR, "")
    assert labels([star]).starred
    assert not labels([star, unstar]).starred
    assert labels([star, unstar, star]).starred


def test_a_recall_has_a_reason_until_it_ends():
    assert labels([(RECALL, "bad sensor")]).recalled == "bad sensor"
    assert labels([(RECALL, "bad sensor"), (REINSTATE, "it was fine")]).recalled is None


def test_a_kind_of_a_newer_version_changes_nothing():
    assert labels([("colour", "red")], ["gpu"]) == labels([], ["gpu"])


@pytest.mark.parametrize(
    ("kind", "text"), [(TAG, " "), (NOTE, ""), (RECALL, ""), (TAG, "x" * (LONGEST_NAME + 1)), (NAME, "two\nlines")]
)
def test_a_text_without_a_meaning_is_refused(kind, text):
    with pytest.raises(RequestError, match=str(kind)):
        LabelChange.of(kind, text)


def test_a_note_may_have_several_lines():
    assert LabelChange.of(NOTE, " one\ntwo ").text == "one\ntwo"


def test_arguments_become_changes_and_one_text_is_not_several():
    assert label_changes(tag="best", untag=["a", "b"], name="", star=False) == (
        (AnnotationKind.UNSTAR, ""),
        (TAG, "best"),
        (UNTAG, "a"),
        (UNTAG, "b"),
        (NAME, ""),
    )
    assert label_changes(star=True, name=None) == ((AnnotationKind.STAR, ""),)


@pytest.mark.parametrize("arguments", [{}, {"name": None, "tag": ()}, {"tag": " "}, {"note": ["ok", ""]}])
def test_arguments_without_a_change_or_with_an_empty_text_are_refused(arguments):
    with pytest.raises(RequestError):
        label_changes(**arguments)
