"""`executions export`, `import`, `share`, `shares`: executions as one zip file, and presigned links to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.cli.arguments import (
    DEFAULT_SIGNATURES,
    FILTER_NAMES,
    NO_FILTER,
    FilterOptions,
    Json,
    SignatureOptions,
    open_catalog,
    open_workbench,
    parse_time,
)
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import (
    OutputFile,
    atomic_file,
    format_size,
    format_time,
    pluralize,
    progress_bar,
    say,
    show_facts,
    show_json,
    status_line,
    to_json,
    warn,
    warn_error,
)
from prefect_executions.cli.selection import query_among, select
from prefect_executions.cli.tables import Column, digest_column, id_column, name_column, show_table, time_column
from prefect_executions.errors import ExecutionsError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import EVERYTHING
from prefect_executions.settings import Settings, SignatureRule

if TYPE_CHECKING:
    from prefect_executions.operations.export import Exported
    from prefect_executions.operations.share import Shared

shares = App(name="shares", help="List and revoke shared links.")


def export(
    *executions: Selected,
    output: OutputFile = None,
    form: Annotated[ExportFormat, Parameter(name="--format")] = ExportFormat.ZIP,
    level: ExportLevel = ExportLevel.FULL,
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    filters: FilterOptions = NO_FILTER,
    as_json: Json = False,
) -> None:
    """Export executions as one zip: bundles, a bag or an RO-Crate.

    The same executions always give the same bytes.

    Args:
        executions: Ids or id prefixes, or one query such as 'epochs>10'; without any, the filters choose.
        output: File to write, or - for standard output (default: <id>.zip, or executions.zip for several).
        form: zip (a folder for each bundle), bagit (a bag) or crate (an RO-Crate).
        level: full, outputs (without staged inputs) or metadata (only the record and the code).
        status: Only executions with this status (repeatable).
        as_json: Print one JSON document: the ids, the size in bytes, and the file.
    """
    criteria = filters.filter(datetime.now(UTC), status)
    by_query = query_among(executions) is not None
    if not by_query and bool(executions) is (criteria != EVERYTHING):
        raise RequestError(f"give either execution ids, or filters: --status, {FILTER_NAMES}; or a query")
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.export import export as write_export  # noqa: PLC0415
    from prefect_executions.operations.export import matching_ids, sealed_ids  # noqa: PLC0415

    catalog = open_catalog()
    if by_query:
        ids = sorted(sealed_ids(catalog, select(catalog, executions, criteria).ids))
    else:
        ids = sorted(select(catalog, executions).ids or matching_ids(catalog, criteria))
    target = output or (f"{ids[0]}.zip" if len(ids) == 1 else "executions.zip")
    if target == "-" and (as_json or sys.stdout.isatty()):
        raise RequestError("-o - cannot write a zip to a terminal or beside --json; give -o FILE")
    write = partial(write_export, catalog, ids, form=form, level=level)
    text = f"Exporting {pluralize(len(ids), 'execution')}"
    with progress_bar(text, len(ids), quiet=as_json) as progress:
        exported = _write(target, partial(write, progress=progress))
    if as_json:
        show_json({"executions": exported.ids, "size": exported.size, "file": target})
    elif target != "-":
        say(f"{pluralize(len(exported.ids), 'execution')}, {format_size(exported.size)} in {target}")


def import_executions(
    target: str, /, *, signatures: SignatureOptions = DEFAULT_SIGNATURES, as_json: Json = False
) -> None:
    """Import executions from a zip, a folder or the address of a zip.

    Everything is verified before anything is recorded, signatures included.

    Args:
        target: A zip, a folder, or the https://, http:// or s3:// address of a zip, with bundles, a bag or CCP exports.
        as_json: Print one JSON document: each execution, whether it is new, and the digest of its manifest.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.capture.secrets import redact_url  # noqa: PLC0415
    from prefect_executions.operations.download import is_url  # noqa: PLC0415
    from prefect_executions.operations.imports import ImportPolicy, import_bundles  # noqa: PLC0415

    settings = Settings.read()
    shown = redact_url(target, query=False) if is_url(target) else target
    policy = ImportPolicy.of(settings, datetime.now(UTC), signatures.policy(settings))
    with progress_bar(f"Importing {shown}", quiet=as_json) as progress:
        results = import_bundles(open_workbench(settings), target, policy, progress=progress, note=warn)
    if as_json:
        show_json({"target": shown, "executions": results})
        return
    head = (id_column(), "result", Column("kind", optional=True), digest_column("manifest"), "signature")
    show_table(head, results)
    new = sum(result.result == "imported" for result in results)
    present = len(results) - new
    say(f"{pluralize(new, 'execution')} imported" + (f", {present} already present and unchanged" if present else ""))
    unsigned = sum(result.signature == "unsigned" for result in results)
    if unsigned and settings.signatures is SignatureRule.NOTE:
        say(f"note: {pluralize(unsigned, 'execution')} without a signature")


def _write(target: str, write: Callable[..., Exported]) -> Exported:
    if target == "-":
        exported = write(write=sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return exported
    with atomic_file(Path(target)) as file:
        return write(write=file.write)


def share(
    *executions: Selected,
    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None,
    expires: str = "7d",
    level: ExportLevel = ExportLevel.FULL,
    limit: int | None = None,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    as_json: Json = False,
) -> int:
    """Share executions or one output of each by links that expire.

    Anyone who has the link can read the copy in the archive. Before it is copied,
    its signature is checked and the content is scanned for secrets. A revoked
    share is removed from the archive.

    Args:
        executions: Ids or id prefixes, or one query such as 'method:mnist tag:final'; each gets its own link.
        output: Output to share (default: the exported bundle).
        expires: Lifetime of the link, at most 7d (default): 12h, 30m.
        level: Level of the bundle: full, outputs (without staged inputs) or metadata (only the record and the code).
        limit: Largest number of results of a query, the newest first.
        as_json: Print one JSON document; for several executions, with the shares and the failures.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.share import share as share_it  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to share, or a query")

    settings, now = Settings.read(), datetime.now(UTC)
    catalog, policy = open_catalog(settings), signatures.policy(settings)
    lifetime, selection = now - parse_time(expires, now), select(catalog, executions, limit=limit)

    def one(execution_id: str) -> Shared:
        with status_line(f"Sharing {output or execution_id}", quiet=as_json):
            return share_it(
                catalog,
                execution_id,
                now=now,
                expires=lifetime,
                output=output,
                level=level,
                environment=os.environ,
                signatures=policy,
            )

    if selection.several:
        return _share_each(one, selection.ids, as_json=as_json)
    shared = one(selection.ids[0])
    if as_json:
        show_json(_share_json(shared))
    else:
        _show_share(shared)
    return OK


def _share_each(one: Callable[[str], Shared], ids: Sequence[str], *, as_json: bool) -> int:
    """Share each execution; a failure does not stop the others, whose links are shown only once."""
    done: list[Shared] = []
    failed: dict[str, str] = {}
    for execution_id in ids:
        try:
            done.append(one(execution_id))
        except ExecutionsError as error:
            failed[execution_id] = str(error)
            warn_error(error)
        else:
            if not as_json:
                _show_share(done[-1])
    if as_json:
        show_json({"shares": [_share_json(shared) for shared in done], "failed": failed})
    return FAILED if failed else OK


def _share_json(shared: Shared) -> dict[str, Any]:
    return {**to_json(shared.share), "url": shared.url, "signature": shared.signature}


def _show_share(shared: Shared) -> None:
    show_facts(
        [
            ("share", shared.share.id),
            ("execution", shared.share.execution_id),
            ("what", shared.share.what),
            ("size", format_size(shared.share.size)),
            ("expires", format_time(shared.share.expires)),
            ("signature", shared.signature),
            ("link", shared.url),
        ]
    )
    say(f"Next: executions shares revoke {shared.share.id}")


@shares.command(name="list")
def list_shares(*, as_json: Json = False) -> None:
    """List shares, and remove expired copies.

    Args:
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.archive.shares import read_shares  # noqa: PLC0415
    from prefect_executions.operations.share import sweep  # noqa: PLC0415

    store = open_catalog().workbench.archive.store
    sweep(store, datetime.now(UTC))
    found = read_shares(store)
    current = sorted(found.shares, key=lambda share: (share.created, share.id))
    for sentence in found.damaged:
        warn(sentence)
    if as_json:
        show_json({"shares": current, "damaged": found.damaged})
        return
    rows = (
        (share.id, share.execution_id, share.what, format_size(share.size), format_time(share.expires))
        for share in current
    )
    show_table(("share", id_column("execution"), name_column("what"), "size", time_column("expires")), rows)


@shares.command
def revoke(share_id: str, /, *, as_json: Json = False) -> None:
    """Revoke a share: remove its copy, which invalidates its link.

    Args:
        share_id: Id of the share.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.share import revoke as revoke_it  # noqa: PLC0415

    revoke_it(open_catalog().workbench.archive.store, share_id)
    if as_json:
        show_json({"revoked": share_id})
    else:
        say(f"Share {share_id} is revoked")
