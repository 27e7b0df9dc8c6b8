"""`executions show`, `logs`, `outputs`, `prov`: the record, logs, outputs and provenance of one execution."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from prefect_executions.bundles.layout import PROVENANCE
from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import OneId
from prefect_executions.cli.output import (
    OutputFile,
    code_began,
    format_duration,
    format_end,
    format_returned,
    format_size,
    format_time,
    format_took,
    say,
    shorten,
    show_facts,
    show_json,
    to_json,
    warn,
    write_file,
    write_log,
)
from prefect_executions.cli.tables import (
    SIZE,
    Column,
    digest_column,
    id_column,
    name_column,
    show_table,
    text_column,
    time_column,
    value_column,
)
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.history import EntryKind

if TYPE_CHECKING:
    from prefect_executions.bundles.annotations import StoredAnnotation
    from prefect_executions.executions.annotations import Labels
    from prefect_executions.executions.record import ExecutionRecord, Infrastructure
    from prefect_executions.ledger.rows import FileEdge
    from prefect_executions.operations.bundle_reader import Opened, Reader
    from prefect_executions.workbench.catalog import StorageState, Stream
    from prefect_executions.workbench.recorded import Links
    from prefect_executions.workbench.sealing import LateSeal

_OUTPUT = Column("name", least=24, wrap=True)  # whole: `executions outputs ID NAME` needs it
_MEDIA_TYPE = Column("media type", least=16, optional=True)
_EDGE = (id_column("execution"), name_column("output"), name_column("input"))
_STEPS = (name_column("name"), "state", time_column("started"), "took", "attempts")
_HISTORY = ("time", "status", "by", text_column("what"))
_ANNOTATIONS = (time_column("time"), "change", name_column("by"), "signature", text_column("text"))

# Of an input whose recorded value is not the value that the code received, such as a URL without its password.
_INCOMPLETE: dict[str | None, str] = {
    "caller": " (incomplete; a rerun asks for it)",
    "default": " (incomplete; it was the default)",
}

_ATTEMPTS = {EntryKind.STATUS: "", EntryKind.ATTEMPT: "attempt {}", EntryKind.ATTEMPT_FAILED: "attempt {} failed:"}

# As `provenance.convert.Form`, whose import loads lxml and prov.
Form = Literal["xml", "json", "n", "ttl", "svg"]

# Relations as the other execution sees them.
_INVERSE = {"parent": "child", "rerun-of": "rerun", "edited-rerun-of": "edited rerun", "retry-of": "retry"}


def show(execution: str, /, *, as_json: Json = False) -> None:
    """Show an execution: status, inputs, outputs, metrics, steps, history.

    Args:
        execution: Its id or id prefix, or its bundle: a folder, a zip, or the https://, http:// or s3:// URL of a zip.
        as_json: Print one JSON document: every document of the bundle, and its location.
    """
    with _open(execution) as opened:
        _show(opened, as_json=as_json)


def _open(target: str) -> AbstractContextManager[Opened]:
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.bundle_reader import open_execution  # noqa: PLC0415

    return open_execution(target, open_catalog)


def _show(opened: Opened, *, as_json: bool) -> None:
    # Start-up time of the CLI, as below.
    from prefect_executions.bundles.annotations import labels_of  # noqa: PLC0415

    reader, execution_id = opened.reader, opened.id
    record, storage, links = (
        reader.record(execution_id),
        reader.storage_state(execution_id),
        reader.links(execution_id),
    )
    beside = reader.beside(execution_id) if storage and storage.sealed else None
    late = beside.late if beside else ()
    annotations = reader.annotations(execution_id)
    labels = labels_of(annotations, record.request.tags)
    damaged = [f"{path} on the workbench" for path in reader.damaged(execution_id)]
    damaged += [what for _, what in beside.faults] if beside else []
    imported = beside.imported if beside and storage and storage.folder is None else None
    gone_process = reader.dead_process(execution_id)
    if as_json:
        shown: dict[str, Any] = {"lateWords": late, "imported": imported, "processGone": gone_process}
        shown |= {"labels": labels, "annotations": [_annotation_json(each) for each in annotations]}
        show_json(_as_json(record, storage, links) | shown | ({"damaged": damaged} if damaged else {}))
        return
    execution, *facts = _facts(record, links, gone_process)
    show_facts([execution, *_labels(labels), *facts, *_places(opened.bundle, storage), *_error(record)])
    show_facts([("imported", format_time(imported.imported)), ("origin", imported.origin)] if imported else [])
    show_facts([("damaged", f"{what}; 'executions verify {execution_id}' says more") for what in damaged])
    show_table((name_column("name"), value_column()), _inputs(record), title="input")
    show_table((_OUTPUT, SIZE, _MEDIA_TYPE), _outputs(reader, execution_id), title="output")
    show_table(_EDGE, _file_edges(links.made_from), title="made from")
    show_table(_EDGE, _file_edges(links.used_by), title="used by")
    show_table((name_column("name"), value_column()), _params(record), title="param")
    show_table((name_column("name"), value_column(), "step"), _metrics(record), title="metric")
    show_table(_STEPS, _steps(record), title="step")
    show_table(_HISTORY, _history(record), title="history")
    show_table(_HISTORY, _late_seals(late), title="late seal")
    show_table(_ANNOTATIONS, _annotation_rows(annotations), title="annotation")


def _labels(labels: Labels) -> Iterator[tuple[str, object]]:
    yield "recalled", labels.recalled
    yield "name", labels.name
    yield "experiment", labels.experiment
    yield "tags", ", ".join(labels.tags) or None
    yield "star", "yes" if labels.starred else None


def _annotation_rows(annotations: Iterable[StoredAnnotation]) -> Iterator[tuple[object, ...]]:
    for stored in annotations:
        signed = f"signed by {stored.signer[:16]}" if stored.signer else "unsigned"
        each = stored.annotation
        yield format_time(each.time), each.kind, each.agent or "unknown", signed, each.text


def _annotation_json(stored: StoredAnnotation) -> dict[str, object]:
    members = to_json(stored.annotation)
    return {**members, "sha256": stored.sha256, "signer": stored.signer}


def _places(bundle: str | None, storage: StorageState | None) -> Iterator[tuple[str, object]]:
    yield "bundle", storage.folder if storage else f"{bundle}, not verified; 'executions verify {bundle}' does it"
    yield "archive", storage.archive if storage else None


def _error(record: ExecutionRecord) -> Iterator[tuple[str, object]]:
    from prefect_executions.executions.summary import error_text  # noqa: PLC0415 - start-up time of the CLI

    usage = record.instance.usage
    if usage and usage.exception:
        # Before the Method's code, the traceback has only lines of this package.
        yield (
            "error",
            usage.exception.traceback.rstrip() if code_began(record.job_status) else error_text(usage.exception),
        )


def logs(
    execution: OneId,
    /,
    *,
    stderr: bool = False,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    as_json: Json = False,
) -> None:
    """Show what an execution wrote to standard output.

    A pipe gets the unchanged bytes; on a terminal, control characters are escaped.

    Args:
        execution: Its id or id prefix, or its bundle: a folder, a zip, or the https://, http:// or s3:// URL of a zip.
        stderr: Show standard error instead; it also has the lines of Prefect's loggers.
        follow: Continue until the execution is sealed.
        as_json: Print one JSON document with the whole text.
    """
    if follow and as_json:
        raise RequestError("--follow and --json exclude each other; give one of them")
    with _open(execution) as opened:
        reader, execution_id, stream = opened.reader, opened.id, _stream(stderr=stderr)
        blocks = reader.follow(execution_id, stream) if follow else reader.blocks(execution_id, f"{stream}.log")
        if not as_json:
            _show_log(iter(blocks), execution, stderr=stderr)
            return
        text = b"".join(blocks).decode(errors="replace")
        show_json({"execution": execution_id, "stream": stream, "text": text})


def _show_log(blocks: Iterator[bytes], execution: str, *, stderr: bool) -> None:
    """Write a log; of an empty one, tell a terminal where the other one is."""
    first = next(blocks, b"")
    write_log(chain([first], blocks))
    if not first and sys.stdout.isatty():
        other = "" if stderr else f" Next: executions logs {execution} --stderr"
        warn(f"Standard {'error' if stderr else 'output'} is empty.{other}")


def outputs(execution: str, name: str | None = None, /, *, output: OutputFile = None, as_json: Json = False) -> None:
    """List the outputs of an execution, or fetch one of them.

    The digest of a fetched output is checked.

    Args:
        execution: Its id or id prefix, or its bundle: a folder, a zip, or the https://, http:// or s3:// URL of a zip.
        name: Output to fetch; from the archive, only its own bytes are read.
        output: File to write, or - for standard output.
        as_json: Print one JSON document.
    """
    with _open(execution) as opened:
        if name is not None:
            _fetch_output(opened, name, output, as_json=as_json)
        elif output is not None:
            shown = opened.bundle or opened.id
            raise RequestError(f"-o {output} needs the name of an output. Next: executions outputs {shown}")
        else:
            _list_outputs(opened, as_json=as_json)


def _fetch_output(opened: Opened, name: str, output: str | None, *, as_json: bool) -> None:
    reader, execution_id = opened.reader, opened.id
    entry = reader.output(execution_id, name)
    blocks = reader.blocks(execution_id, entry.name)
    if output is None and not as_json and sys.stdout.isatty():
        raise RequestError(f"give a file for '{entry.name}': -o FILE, or -o - for the terminal")
    if output == "-" and as_json:
        raise RequestError("-o - and --json both write to standard output; give one of them")
    if output not in {None, "-"}:
        write_file(blocks, Path(str(output)))
    elif not as_json:
        write_log(blocks)
        return
    if as_json:
        show_json({"execution": execution_id, **to_json(entry), "file": output})
    else:
        say(f"{entry.path} of {execution_id}: {entry.size} bytes in {output}")


def prov(
    execution: OneId,
    /,
    *,
    form: Annotated[Form | None, Parameter(name="--format")] = None,
    output: OutputFile = None,
    as_json: Json = False,
) -> None:
    """Show the provenance of an execution in W3C PROV.

    Args:
        execution: Its id or id prefix, or its bundle: a folder, a zip, or the https://, http:// or s3:// URL of a zip.
        form: xml (PROV-XML as in the bundle, default), json (PROV-JSON), n (PROV-N), ttl (PROV-O) or svg (a picture).
        output: File to write.
        as_json: Short for --format json.
    """
    if as_json and form not in {None, "json"}:
        raise RequestError(f"--json and --format {form} exclude each other; give one of them")
    # Start-up time of the CLI: lxml and prov come with it.
    from prefect_executions.provenance.convert import convert  # noqa: PLC0415

    with _open(execution) as opened:
        execution_id = opened.id
        data = convert(opened.reader.read(execution_id, PROVENANCE), "json" if as_json else form or "xml")
    if output in {None, "-"}:
        write_log([data])
    else:
        write_file([data], Path(str(output)))
        say(f"Provenance of {execution_id} in {output}")


def _stream(*, stderr: bool) -> Stream:
    return "stderr" if stderr else "stdout"


def _as_json(record: ExecutionRecord, storage: StorageState | None, links: Links) -> dict[str, Any]:
    return {
        "id": record.id,
        "status": record.status,
        "folder": storage and storage.folder,
        "sealed": storage is None or storage.sealed,
        "archive": storage and storage.archive,
        "jobStatus": record.job_status,  # first; the other documents follow
        **to_json(record),
        "namedBy": links.named_by,
        "madeFrom": links.made_from,
        "usedBy": links.used_by,
    }


def _requester(record: ExecutionRecord) -> str:
    """Return the requester's name, and what made Prefect create the run."""
    kind = record.agent.claims.get("type") if record.agent.source == "prefect" else None
    return f"{record.agent.name or 'unknown'}{f' ({str(kind).lower()} in Prefect)' if kind else ''}"


def _late_seals(seals: Iterable[LateSeal]) -> Iterator[tuple[object, ...]]:
    for seal in seals:
        reason = f": {seal.message}" if seal.message else ""
        yield format_time(seal.noted), seal.status, seal.hostname, f"sealed too late, ignored{reason}"


def _facts(record: ExecutionRecord, links: Links, gone_process: str | None) -> Iterator[tuple[str, object]]:
    status, usage = record.job_status, record.instance.usage
    yield "execution", record.id
    yield "status", record.status
    yield "reason", status.reason
    yield "message", status.message
    yield "process", f"{gone_process} is gone; 'executions settle --once' seals the record" if gone_process else None
    yield "method", f"{record.method.id} {record.method.version}"
    yield "title", record.method.title
    for relative in record.request.relatives:
        yield relative.relation, relative.execution_id
    for named in links.named_by:
        yield _INVERSE.get(named.relation, named.relation), named.id
    yield "created", format_time(status.created)
    yield "started", format_time(status.started)
    yield "finished", format_end(status)
    yield "took", format_took(status, usage)
    yield "returned", format_returned(usage)
    yield "attempt", status.attempt if status.attempt > 1 else None
    yield "progress", None if status.progress is None else f"{status.progress} %"
    yield "requested by", _requester(record)
    yield "flow run", record.request.flow_run_name
    yield "deployment", record.request.deployment and (record.request.deployment.name or record.request.deployment.id)
    yield "infrastructure", " ".join(filter(None, (record.infrastructure.type, record.infrastructure.work_pool)))
    yield "image", _image(record.infrastructure)
    yield "host", record.instance.hostname
    yield "container", record.instance.container_id
    yield "pod", " on ".join(filter(None, (record.instance.pod, record.instance.node))) if record.instance.pod else None
    yield from _code(record)
    yield "CPU time", None if usage is None or usage.cpu_seconds is None else f"{usage.cpu_seconds:.2f} s"
    yield "peak memory", None if usage is None or usage.peak_memory is None else format_size(usage.peak_memory)


def _image(infrastructure: Infrastructure) -> str | None:
    digest = infrastructure.image_digest or infrastructure.image_id
    return " ".join(filter(None, (infrastructure.image, digest))) or None


def _file_edges(files: Iterable[FileEdge]) -> Iterator[tuple[str, str, str]]:
    for file in files:
        yield file.id, file.output, file.input


def _code(record: ExecutionRecord) -> Iterator[tuple[str, object]]:
    code = record.method.code
    if code is None:
        return
    yield "entrypoint", code.entrypoint
    repository = code.repository
    if repository and repository.commit:
        yield "commit", repository.commit + (" with uncommitted changes" if repository.dirty else "")
        yield "commit author", repository.author
        yield "commit subject", repository.subject
        yield "branch", repository.branch
    # Start-up time of the CLI.
    from prefect_executions.executions.local_packages import local_packages, summary  # noqa: PLC0415

    yield "lacks for an isolated replay", summary(local_packages(record))
    if code.lacking:
        yield "lacks for a replay", "\n".join(f"{file.path}: {file.why}" for file in code.lacking)


def _inputs(record: ExecutionRecord) -> Iterator[tuple[str, object]]:
    """Every value; a list of files has a line for each file."""
    from prefect_executions.executions.values import text_of  # noqa: PLC0415 - start-up time of the CLI

    origins: dict[str, list[str]] = {}
    rerun = record.request.rerun or {}
    for file in record.request.files:
        origins.setdefault(file.input, []).append(file.origin)
    for name, value in record.request.values.items():
        for shown in origins.get(name) or [shorten(text_of(value)) + _INCOMPLETE.get(rerun.get(name), "")]:
            yield name, shown


def _outputs(reader: Reader, execution_id: str) -> Iterator[tuple[str, object, object]]:
    for output in reader.outputs(execution_id):
        yield output.name, format_size(output.size), output.media_type


def _params(record: ExecutionRecord) -> Iterator[tuple[str, str]]:
    from prefect_executions.executions.values import text_of  # noqa: PLC0415 - as above

    for name, value in (record.metrics.params if record.metrics else {}).items():
        yield name, shorten(text_of(value))


def _metrics(record: ExecutionRecord) -> Iterator[tuple[str, object, object]]:
    """The last value of each metric."""
    last = {metric.name: metric for metric in (record.metrics.metrics if record.metrics else ())}
    for metric in last.values():
        yield metric.name, metric.value, "" if metric.step is None else metric.step


def _steps(record: ExecutionRecord) -> Iterator[tuple[object, ...]]:
    for step in record.job_status.steps or ():
        took = step.finished - step.started if step.started and step.finished else None
        yield step.name, step.state, format_time(step.started), format_duration(took), step.attempts or ""


def _history(record: ExecutionRecord) -> Iterator[tuple[str, object, object, object]]:
    """Every entry, but only the last of consecutive progress entries, of which a long run has thousands."""
    history = record.job_status.history
    several = len({entry.task for entry in history if entry.task}) > 1
    for entry, following in zip_longest(history, history[1:]):
        if following is not None and entry.kind is following.kind is EntryKind.PROGRESS:
            continue
        kind = _ATTEMPTS.get(entry.kind, entry.kind.value).format(entry.attempt)
        progress = "" if entry.progress is None else f"{round(entry.progress, 1):g} %"
        code = "" if entry.exit_code is None else f"exit code {entry.exit_code}"
        replica = f"of replica {entry.task.rpartition('.')[2]}" if several and entry.task else ""
        message = shorten(entry.message or "")
        what = " ".join(filter(None, (kind, entry.phase, replica, code, progress, entry.reason, message)))
        yield format_time(entry.time), entry.status, entry.observer.value, what


def _list_outputs(opened: Opened, *, as_json: bool) -> None:
    entries = opened.reader.outputs(opened.id)
    if as_json:
        show_json({"execution": opened.id, "outputs": entries})
        return
    show_table(
        (_OUTPUT, SIZE, _MEDIA_TYPE, digest_column("sha-256")),
        ((entry.name, entry.size, entry.media_type, entry.sha256 or "") for entry in entries),
    )
