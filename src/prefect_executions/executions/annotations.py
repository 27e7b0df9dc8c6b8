"""Annotations: what people add to an execution later, such as tags, a name, notes or a recall.

Law: an annotation is never changed and never deleted alone; a later one replaces its effect. Their order is
that of their times, then of their digests, so that every reader gets the same labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple, Self, TypedDict, Unpack, cast

from pydantic import Field, field_validator

from prefect_executions.documents import ArchiveDocument, Time, clean_text
from prefect_executions.errors import RequestError

LONGEST = 10_000
"""The most characters of a note, or of the reason of a recall."""

LONGEST_NAME = 200
"""The most characters of a tag, a name or an experiment."""


class AnnotationKind(StrEnum):
    """What an annotation does to the labels of an execution."""

    TAG = "tag"
    UNTAG = "untag"
    NAME = "name"
    EXPERIMENT = "experiment"
    NOTE = "note"
    STAR = "star"
    UNSTAR = "unstar"
    RECALL = "recall"
    """The execution, or an input of it, is wrong; the text is the reason."""
    REINSTATE = "reinstate"
    """The end of a recall; the text is the reason."""


_WITHOUT_TEXT = frozenset({AnnotationKind.STAR, AnnotationKind.UNSTAR})
_MAY_BE_EMPTY = frozenset({AnnotationKind.NAME, AnnotationKind.EXPERIMENT, AnnotationKind.REINSTATE}) | _WITHOUT_TEXT
_PROSE = frozenset({AnnotationKind.NOTE, AnnotationKind.RECALL, AnnotationKind.REINSTATE})


class ExecutionAnnotation(ArchiveDocument):
    """One change of the labels of an execution: who changed what, and when."""

    file_name: ClassVar[str] = "annotation.json"

    execution_id: str
    manifest_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The sealed bundle that it is about; absent if the execution was not sealed yet."""
    kind: AnnotationKind
    text: str = Field(default="", max_length=LONGEST)
    """The tag, name, experiment, note or reason; an empty name or experiment removes the earlier one."""
    time: Time
    agent: str | None = None

    @field_validator("text", "agent")
    @classmethod
    def _clean(cls, text: str | None) -> str | None:
        return text and clean_text(text)


class LabelChange(NamedTuple):
    """A requested change of labels."""

    kind: AnnotationKind
    text: str = ""

    @classmethod
    def of(cls, kind: AnnotationKind, text: str = "") -> Self:
        """Return the change, without blanks around *text*.

        Raises:
            RequestError: If *text* is empty, too long, or has a line break where a name belongs.
        """
        text = text.strip()
        most = LONGEST if kind in _PROSE else LONGEST_NAME
        if not text and kind not in _MAY_BE_EMPTY:
            raise RequestError(f"the text of a {kind} is empty")
        if len(text) > most:
            raise RequestError(f"the text of a {kind} has {len(text)} characters; the limit is {most}")
        if kind not in _PROSE and not text.isprintable():
            raise RequestError(f"the {kind} {text!r} has a character that cannot be printed")
        return cls(kind, text)


class LabelArguments(TypedDict, total=False):
    """The labels to add or to remove, as arguments of a function."""

    tag: str | Iterable[str]
    untag: str | Iterable[str]
    name: str | None
    """An empty name, and an empty experiment, removes the earlier one."""
    experiment: str | None
    note: str | Iterable[str]
    star: bool | None
    """Add the star (true), or remove it (false)."""
    recall: str | None
    """Why the execution is wrong."""
    reinstate: str | None
    """Why it is right after all."""


def label_changes(**labels: Unpack[LabelArguments]) -> tuple[LabelChange, ...]:
    """Return the changes that *labels* ask for.

    Raises:
        RequestError: If there is no change, or a text is empty, too long, or has a line break where a name belongs.
    """
    star = labels.pop("star", None)
    changes = [] if star is None else [LabelChange(AnnotationKind.STAR if star else AnnotationKind.UNSTAR)]
    for name, given in labels.items():
        texts = () if given is None else (given,) if isinstance(given, str) else cast("Iterable[str]", given)
        changes += [LabelChange.of(AnnotationKind(name), str(text)) for text in texts]
    if not changes:
        raise RequestError("give at least one change, such as a tag, a name or a note")
    return tuple(changes)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the annotations of an execution amount to."""

    tags: tuple[str, ...] = ()
    """The tags of the request and the added ones, without the removed ones."""
    name: str | None = None
    experiment: str | None = None
    notes: tuple[str, ...] = ()
    starred: bool = False
    recalled: str | None = None
    """The reason of the recall; None if the execution is not recalled."""


def labels(changes: Iterable[tuple[str, str]], tags: Iterable[str] = ()) -> Labels:
    """Return the labels after *changes*, each a kind and a text in their order; *tags* are those of the request.

    An unknown kind, which a newer version of this package may write, changes nothing.
    """
    kept, notes = dict.fromkeys(tags), []
    last: dict[str, str | None] = {}
    for kind, text in changes:
        match kind:
            case AnnotationKind.TAG:
                kept[text] = None
            case AnnotationKind.UNTAG:
                kept.pop(text, None)
            case AnnotationKind.NOTE:
                notes.append(text)
            case AnnotationKind.STAR | AnnotationKind.UNSTAR:
                last["star"] = text if kind == AnnotationKind.STAR else None
            case AnnotationKind.RECALL | AnnotationKind.REINSTATE:
                last["recall"] = text if kind == AnnotationKind.RECALL else None
            case AnnotationKind.NAME | AnnotationKind.EXPERIMENT:
                last[kind] = text or None
    return Labels(
        tags=tuple(kept),
        name=last.get(AnnotationKind.NAME),
        experiment=last.get(AnnotationKind.EXPERIMENT),
        notes=tuple(notes),
        starred=last.get("star") is not None,
        recalled=last.get("recall"),
    )
