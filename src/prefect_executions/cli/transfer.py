"""`executions export`, `import`: executions as one file that leaves the house, and back.

`executions share`, `shares`: a link to an execution or one of its outputs, for a while.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.cli.arguments import NO_FILTER, FilterOptions, Json, moment, reader, workbench
from prefect_executions.cli.output import Target, counting, format_size, pluralize, saved, say, show_json, show_table
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import EVERYTHING
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.operations.export import Exported


import os

from cyclopts import App

from prefect_executions.cli.output import plain, show_facts, when, working


def export(
    *executions: str,
    output: Target = None,
    form: Annotated[ExportFormat, Parameter(name="--format")] = ExportFormat.ZIP,
    level: ExportLevel = ExportLevel.FULL,
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    filters: FilterOptions = NO_FILTER,
    as_json: Json = False,
) -> None:
    """Write executions as one zip, from the archive; the same executions give the same bytes.

    Args:
        executions: Their ids, or beginnings of them; without any, those that the filters fit.
        output: The file to write; - is standard output. When it is not said: <id>.zip, or executions.zip for several.
        form: zip (a folder for each), bagit (a bag), crate (an RO-Crate).
        level: full, outputs (no staged inputs), or metadata (the record and the code alone).
        status: Those with this status; may be given several times.
        as_json: One JSON document: the ids, the size in bytes, and the file.
    """
    criteria = filters.filter(datetime.now(UTC), status)
    if bool(executions) is (criteria != EVERYTHING):
        raise RequestError("name executions by their ids, or by --status, --method, --since and --until; not both")
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.export import export as write_export  # noqa: PLC0415
    from prefect_executions.operations.export import matching_ids  # noqa: PLC0415

    catalog = reader()
    ids = sorted({catalog.find(prefix) for prefix in executions} or matching_ids(catalog, criteria))
    target = output or (f"{ids[0]}.zip" if len(ids) == 1 else "executions.zip")
    if target == "-" and (as_json or sys.stdout.isatty()):
        raise RequestError("-o - writes a zip to standard output, which is a terminal or has --json; give -o FILE")
    exporting = partial(write_export, catalog, ids, form=form, level=level)
    text = f"Exporting {pluralize(len(ids), 'execution')}"
    with counting(text, len(ids), quiet=as_json) as told:
        done = _written(target, partial(exporting, progress=told))
    if as_json:
        show_json({"executions": done.ids, "size": done.size, "file": target})
    elif target != "-":
        say(f"{pluralize(len(done.ids), 'execution')}, {format_size(done.size)} in {target}")


def import_executions(target: str, /, *, as_json: Json = False) -> None:
    """Import executions: from a zip, a folder, or the address of a zip. All are verified before one is recorded.

    Args:
        target: A zip or folder, or the https://, http:// or s3:// address of a zip: bundles, a bag, or exports of CCP.
        as_json: One JSON document: each execution, whether it is new, and the digest of its manifest.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.imports import ImportPolicy, import_bundles  # noqa: PLC0415

    settings = Settings.read()
    with counting(f"Importing {target}", quiet=as_json) as told:
        taken = import_bundles(workbench(settings), target, ImportPolicy.of(settings, datetime.now(UTC)), progress=told)
    if as_json:
        show_json({"target": target, "executions": taken})
        return
    show_table(("id", "result", "kind", "manifest"), taken)
    new = sum(one.result == "imported" for one in taken)
    before = len(taken) - new
    say(f"{pluralize(new, 'execution')} imported" + (f", {before} here already and unchanged" if before else ""))


def _written(target: str, exporting: Callable[..., Exported]) -> Exported:
    if target == "-":
        done = exporting(write=sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return done
    with saved(Path(target)) as file:
        return exporting(write=file.write)


shares = App(name="shares", help="What is shared by a link.")


def share(
    execution: str,
    /,
    *,
    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None,
    expires: str = "7d",
    level: ExportLevel = ExportLevel.FULL,
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

    catalog, now = reader(), datetime.now(UTC)
    execution_id, lasting = catalog.find(execution), now - moment(expires, now)
    with working(f"Sharing {output or execution_id}", quiet=as_json):
        told = share_it(
            catalog, execution_id, now=now, expires=lasting, output=output, level=level, environment=os.environ
        )
    if as_json:
        show_json({**plain(told.share), "url": told.url})
        return
    show_facts(
        [
            ("share", told.share.id),
            ("execution", execution_id),
            ("what", told.share.what),
            ("size", format_size(told.share.size)),
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
    rows = ((one.id, one.execution_id, one.what, format_size(one.size), when(one.expires)) for one in found)
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
