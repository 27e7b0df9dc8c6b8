"""`executions diff`, `rerun`: two executions beside each other, and one once more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, Pairs, Params, parameters, reader, set_defaults
from prefect_executions.cli.deploy import tell_submitted
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import say, show_agreements, show_json, show_table, warn, working
from prefect_executions.cli.run import run_here
from prefect_executions.errors import RequestError

if TYPE_CHECKING:
    from prefect_executions.comparison.records import Difference
    from prefect_executions.workbench.catalog import Reader


def diff(
    before: str,
    after: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    as_json: Json = False,
) -> None:
    """Compare two executions: inputs, params, metrics, code, packages, environment, outputs, timings.

    Files are compared by their digests, outputs that differ by their content, too. What only one of them tells has
    nothing on the other side.

    Args:
        before: The id of the first, or its beginning.
        after: The id of the second.
        everything: Also what is the same in both.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.compare import compare_executions  # noqa: PLC0415

    hall = reader()
    compared = compare_executions(hall, hall.find(before), hall.find(after))
    shown = [one for one in compared.differences if everything or not one.same]
    if as_json:
        show_json({**compared._asdict(), "differences": shown})
        return
    head = ("part", "name", compared.before, compared.after)
    show_table((*head, "differs") if everything else head, _rows(shown, everything=everything))
    show_agreements(compared.outputs, title="agreement")
    for source in compared.sources:
        say((source.diff or f"{source.path}: {source.why}").rstrip("\n"))
    if not shown:
        say(f"{compared.before} and {compared.after} tell the same")


def rerun(
    execution: str,
    /,
    *,
    param: Pairs = (),
    params: Params = None,
    pool: str | None = None,
    method: str | None = None,
    wait: bool = False,
    as_json: Json = False,
) -> int:
    """Run an execution again, with the same or edited inputs; the new execution is linked to it.

    It runs as it ran before: through its deployment, or here. A secret is named anew by -p.

    Args:
        execution: The id, or its beginning.
        param: An input that is to be another, as name=value; may be given several times.
        params: A JSON file with an object of such inputs; - is standard input.
        pool: Run it on this work pool, where its Method is deployed.
        method: Run it here, with the Method at path.py:function or module:function.
        wait: Of one on a work pool: return when it has ended, with 0 if it ended well.
        as_json: One JSON document.
    """
    if pool and method:
        raise RequestError("--pool runs what is deployed there, and --method what is here; leave one")
    edits, hall = parameters(param, params), reader()
    execution_id = hall.find(execution)
    if pool or (method is None and hall.record(execution_id).request.deployment is not None):
        return _submit_again(hall, execution_id, edits, pool, wait=wait, as_json=as_json)
    return _run_again(hall, execution_id, edits, method, as_json=as_json)


def _submit_again(
    hall: Reader, execution_id: str, edits: Mapping[str, Any], pool: str | None, *, wait: bool, as_json: bool
) -> int:
    set_defaults()
    with working("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.dispatch import repeating  # noqa: PLC0415
        from prefect_executions.dispatch import submit as submission

    submitted = repeating.submit_again(hall, execution_id, edits, pool=pool)
    ended = submission.wait(hall, submitted.id, tell=warn) if wait else None
    tell_submitted(submitted, ended, as_json=as_json)
    return OK if ended is None or ended.well else FAILED


def _run_again(hall: Reader, execution_id: str, edits: Mapping[str, Any], method: str | None, *, as_json: bool) -> int:
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.replay import asked_again, bring_inputs, entrypoint_here, record_source

    record = hall.record(execution_id)
    entrypoint = method or entrypoint_here(record, Path.cwd())
    asked_again(record, edits)  # what is refused is refused before files are brought
    with TemporaryDirectory(prefix="executions-") as folder:
        source = record_source(hall, execution_id)
        files = bring_inputs(record, source, Path(folder)) if source else {}
        again = asked_again(record, edits, files)
        return run_here(entrypoint, again.parameters, tags=[again.relative.tag], quiet=False, as_json=as_json)


def _rows(shown: list[Difference], *, everything: bool) -> Iterator[tuple[str, ...]]:
    for one in shown:
        row = (one.part, one.name, _value(one.before), _value(one.after))
        yield (*row, "" if one.same else "yes") if everything else row


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
