"""`executions annotate`: tags, a name, an experiment, notes and a star, added to executions later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.output import pluralize, say, show_json
from prefect_executions.cli.selection import select
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column
from prefect_executions.errors import RequestError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.executions.annotations import LabelChange
    from prefect_executions.workbench.catalog import Catalog


def annotate(
    *executions: Selected,
    tag: tuple[str, ...] = (),
    untag: tuple[str, ...] = (),
    name: str | None = None,
    experiment: str | None = None,
    note: tuple[str, ...] = (),
    star: bool = False,
    unstar: bool = False,
    reinstate: str | None = None,
    limit: int | None = None,
    as_json: Json = False,
) -> None:
    """Add tags, a name, an experiment, notes or a star.

    The bundle does not change. The archive keeps each change beside the seal, with
    time and agent, signed if there is a signing key.

    Args:
        executions: Ids or id prefixes, or one query such as 'method:mnist epochs>10'.
        tag: Add a tag (repeatable).
        untag: Remove a tag (repeatable).
        name: Set the name; an empty one restores that of the flow run.
        experiment: Set the experiment; an empty one removes it.
        note: Add a note (repeatable).
        star: Add a star.
        unstar: Remove the star.
        reinstate: End a recall by 'executions impact --mark', for this reason.
        limit: Largest number of results of a query, the newest first.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI.
    from prefect_executions.executions.annotations import AnnotationKind as Kind  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to annotate, or a query")
    if star and unstar:
        raise RequestError("--star and --unstar exclude each other; give one of them")
    changes = [
        *_changes(Kind.TAG, tag),
        *_changes(Kind.UNTAG, untag),
        *_changes(Kind.NAME, () if name is None else (name,)),
        *_changes(Kind.EXPERIMENT, () if experiment is None else (experiment,)),
        *_changes(Kind.NOTE, note),
        *_changes(Kind.STAR, ("",) * star),
        *_changes(Kind.UNSTAR, ("",) * unstar),
        *_changes(Kind.REINSTATE, () if reinstate is None else (reinstate,)),
    ]
    if not changes:
        raise RequestError("give at least one change, such as --tag TAG or --note TEXT")
    settings = Settings.read()
    catalog = open_catalog(settings)
    found = select(catalog, executions, limit=limit).ids
    add_annotations(catalog, found, changes, settings)
    if as_json:
        show_json({"executions": found, "changes": changes})
        return
    rows = ((id_, kind, text) for id_ in found for kind, text in changes)
    show_table((id_column("execution"), name_column("change"), text_column("text")), rows)
    say(f"{pluralize(len(found), 'execution')} annotated. Next: executions show {found[0]}")


def _changes(kind: str, texts: Iterable[str]) -> Iterator[LabelChange]:
    from prefect_executions.executions.annotations import AnnotationKind, LabelChange  # noqa: PLC0415 - as above

    return (LabelChange.of(AnnotationKind(kind), text) for text in texts)


def add_annotations(catalog: Catalog, ids: Iterable[str], changes: Iterable[LabelChange], settings: Settings) -> None:
    """Annotate several executions in the name of the agent of *settings*, else of the user of this process."""
    from prefect_executions.capture.host import this_user  # noqa: PLC0415 - as above
    from prefect_executions.workbench.annotations import annotate as annotate_one  # noqa: PLC0415 - as above

    agent, at, each = settings.agent or this_user(), datetime.now(UTC), list(changes)
    for execution_id in ids:
        annotate_one(catalog.workbench, execution_id, each, agent=agent, at=at)
