"""`executions share`, `shares`: a link to an execution or one of its outputs, for a while."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter

from prefect_executions.bundles.forms import Level
from prefect_executions.cli.arguments import Json, moment, reader
from prefect_executions.cli.output import how_large, plain, say, show_facts, show_json, show_table, when, working

shares = App(name="shares", help="What is shared by a link.")


def share(
    execution: str,
    /,
    *,
    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None,
    expires: str = "7d",
    level: Level = Level.FULL,
    as_json: Json = False,
) -> None:
    """Share an execution, or one output of it, by a link that anybody can read until it expires.

    It is looked through for secrets before; a copy lies in the archive until it is revoked.

    Args:
        execution: The id, or its beginning.
        output: The output to share; without one the exported bundle is.
        expires: How long the link lasts: 7d at most, 12h, 30m.
        level: Of the bundle: full, outputs (no staged inputs), or metadata (the record and the code alone).
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.share import share as share_it  # noqa: PLC0415

    hall, now = reader(), datetime.now(UTC)
    execution_id, lasting = hall.find(execution), now - moment(expires, now)
    with working(f"Sharing {output or execution_id}", quiet=as_json):
        told = share_it(
            hall, execution_id, now=now, expires=lasting, output=output, level=level, environment=os.environ
        )
    if as_json:
        show_json({**plain(told.share), "url": told.url})
        return
    show_facts(
        [
            ("share", told.share.id),
            ("execution", execution_id),
            ("what", told.share.what),
            ("size", how_large(told.share.size)),
            ("expires", when(told.share.expires)),
            ("link", told.url),
        ]
    )
    say(f"Next: executions shares revoke {told.share.id}")


@shares.command(name="list")
def list_shares(*, as_json: Json = False) -> None:
    """List what is shared; copies whose time is over are removed.

    Args:
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.share import shares as shares_in  # noqa: PLC0415
    from prefect_executions.operations.share import sweep  # noqa: PLC0415

    store = reader().workbench.archive.store
    sweep(store, datetime.now(UTC))
    found = sorted(shares_in(store), key=lambda one: (one.created, one.id))
    if as_json:
        show_json({"shares": found})
        return
    rows = ((one.id, one.execution_id, one.what, how_large(one.size), when(one.expires)) for one in found)
    show_table(("share", "execution", "what", "size", "expires"), rows)


@shares.command
def revoke(share_id: str, /, *, as_json: Json = False) -> None:
    """End a share: its link reads nothing any more.

    Args:
        share_id: The id of the share.
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.share import revoke as revoke_it  # noqa: PLC0415

    revoke_it(reader().workbench.archive.store, share_id)
    if as_json:
        show_json({"revoked": share_id})
    else:
        say(f"The share {share_id} is revoked")
