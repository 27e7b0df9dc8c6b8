"""`executions annotate`: tags, a name, an experiment, notes and a star, added to executions later."""

from __future__ import annotations

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.output import pluralize, say, show_json
from prefect_executions.cli.selection import select
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column
from prefect_executions.errors import RequestError


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
    from prefect_executions.executions.annotations import label_changes  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to annotate, or a query")
    if star and unstar:
        raise RequestError("--star and --unstar exclude each other; give one of them")
    changes = label_changes(
        tag=tag,
        untag=untag,
        name=name,
        experiment=experiment,
        note=note,
        star=True if star else False if unstar else None,
        reinstate=reinstate,
    )
    catalog = open_catalog()
    found = select(catalog, executions, limit=limit).ids
    catalog.add_labels(found, changes)
    if as_json:
        show_json({"executions": found, "changes": changes})
        return
    rows = ((id_, kind, text) for id_ in found for kind, text in changes)
    show_table((id_column("execution"), name_column("change"), text_column("text")), rows)
    say(f"{pluralize(len(found), 'execution')} annotated. Next: executions show {found[0]}")
