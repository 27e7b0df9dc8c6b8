"""PROV and crate that have exactly the bytes that the writers give for the record: their content needs no parsing.

Law: a result is equal to that of the document's reader. Whatever a reader might refuse gives None,
and the caller uses the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from io import BytesIO

from prefect_executions.bundles import layout
from prefect_executions.crate import writer as crate_writer
from prefect_executions.executions.record import BundleFile, ExecuteRequest, ExecutionRecord, Instance
from prefect_executions.executions.summary import ReadSummary, RecordSummary, phases_of
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.methods.model import Method
from prefect_executions.provenance import writer as prov_writer

LARGEST = 1 << 20
"""The largest document in bytes that is compared; a smaller one cannot exceed the limits of the readers."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]+")  # other ids are abbreviated in PROV and crate, and might collide
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CODE_LIMIT = 10**18  # the readers read integers of at most 18 digits


def provenance(
    data: bytes, record: ExecutionRecord, summary: RecordSummary, files: Sequence[BundleFile]
) -> ReadSummary | None:
    """Return what the `provo.xml` *data* contains if it is that of *record* and *files*; otherwise None.

    *summary* is the summary of *record*.
    """
    if len(data) > LARGEST or not _is_unambiguous(record, files):
        return None
    stream = BytesIO()
    prov_writer.write(record, files, stream)
    if data != stream.getvalue():
        return None
    listed = {file.path: file.sha256 for file in files}
    return ReadSummary(summary, tuple(_files_in_provenance(record, listed)))


def _files_in_provenance(record: ExecutionRecord, listed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    sources = {file.path: file.sha256 for file in record.method.code.files} if record.method.code else {}
    documents = [ExecuteRequest.file_name, *([Instance.file_name] if record.instance.python else [])]
    yield from ((path, listed[path]) for path in (Method.file_name,) if path in listed)
    yield from sources.items()
    yield from ((path, listed[path]) for path in documents if path in listed)


def crate(
    data: bytes, record: ExecutionRecord, summary: RecordSummary, files: Sequence[BundleFile]
) -> ReadSummary | None:
    """Return what the `ro-crate-metadata.json` *data* contains if it is that of *record* and *files*; otherwise None.

    *summary* is the summary of *record*.
    """
    if len(data) > LARGEST or not _is_unambiguous(record, files):
        return None
    by_path = {file.path: file for file in files if file.path != layout.CRATE}
    paths = _sealing_order(record, by_path)
    if len(paths) != len(by_path) or by_path.keys() != set(paths):
        return None
    ordered = [by_path[path] for path in paths]
    if data != crate_writer.build(record, ordered):
        return None
    return ReadSummary(summary, tuple((file.path, file.sha256) for file in ordered))


def _sealing_order(record: ExecutionRecord, paths: Mapping[str, object]) -> list[str]:
    """Return *paths* in the order of `bundles.seal`."""
    documents = [kind.file_name for kind in layout.DOCUMENTS if kind.file_name in paths]
    code = sorted(path for path in paths if path.startswith(f"{layout.CODE}/"))
    inputs = sorted(path for path in paths if path.startswith(f"{layout.INPUTS}/"))
    outputs = [output.path for output in record.job_status.outputs]
    return [*documents, *code, *inputs, *outputs, layout.OUTPUT_ZIP, layout.PROVENANCE]


def times_in_order(record: ExecutionRecord) -> bool:
    """Whether no activity in the `provo.xml` of *record* ends before it starts; it has no other times to compare."""
    spans: list[tuple[datetime | None, datetime | None]] = [(record.started, record.finished)]
    spans += [(step.started, step.finished) for step in record.job_status.steps or ()]
    spans += [(phase.started, phase.ended) for phase in phases_of(record)]
    return all(start is None or end is None or start <= end for start, end in spans)


def _is_unambiguous(record: ExecutionRecord, files: Sequence[BundleFile]) -> bool:
    """Whether *record* states each fact once, in a form that the readers accept.

    Since format 2, the documents are in their only form, which has no infinite number.
    """
    status, request = record.job_status, record.request
    listed = {file.path: file.sha256 for file in files}
    sources = record.method.code.files if record.method.code else ()
    described = [(file.path, file.sha256) for file in status.outputs]
    described += [(file.path, file.sha256) for file in request.files if file.path is not None]
    ids = [record.id, *(relative.execution_id for relative in request.relatives), status.cached_from or record.id]
    steps = [str(step.id) for step in status.steps or ()]
    entries = [entry.status for entry in status.history if entry.kind is EntryKind.STATUS]
    return (
        record.format > 1
        and len({output.path for output in status.outputs}) == len(status.outputs)
        and len({source.path for source in sources}) == len(sources)
        and len(set(steps)) == len(steps)
        and len(set(entries)) == len(entries)
        and all(map(_PLAIN_ID.fullmatch, ids))
        and all(_DIGEST.fullmatch(source.sha256) for source in sources)
        and all(listed.get(path, digest) == digest for path, digest in described)
        and all(abs(entry.exit_code or 0) < _CODE_LIMIT for entry in status.history)
    )
