"""Converts an export of CCP to our documents: both layouts, with or without `jobStatus.json` and `provo.xml`.

Law: a missing fact stays absent or becomes a note in the history; nothing is guessed. An
export contains tokens (``auth/jwt.json``, ``outputs_ccpenv``) and secret values pasted into
scripts; none of them is imported.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pydantic import ValidationError

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.incoming import IncomingBundle
from prefect_executions.bundles.layout import BundleKind
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.capture.parameters import plain_value, recorded_parameters
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.descriptors.loader import without_plain_text_secrets
from prefect_executions.documents import Document, decode_text, in_utc, strict_json
from prefect_executions.errors import BundleError, NameRefusedError
from prefect_executions.executions.record import Agent, BundleFile, ExecuteRequest, Infrastructure, Instance
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry, advance, new_job_status
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.methods.model import Method
from prefect_executions.provenance.reader import records

_FLAT = re.compile(r"(metadata|auth|outputs)_(.+)", re.DOTALL)
_STREAM = re.compile(r"(stdout|stderr)(\.[^/]*)?\.(txt|log)")
_STREAM_ID = re.compile(r"std(?:out|err)\.([0-9A-Za-z-]+)\.txt")
# Only at the beginning of a word, so that a long word is scanned once.
_TOKEN = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}\.([A-Za-z0-9_-]{4,})(\.[A-Za-z0-9_-]*)?")

_MOST_NOTES = 100
"""The most unknown files that get a note in the history; the others are counted."""

_ENVIRONMENT = "outputs/ccpenv"
_SCRIPT = "outputs/ccp-entrypoint.sh"
_CONVERTED = frozenset({*(kind.file_name for kind in layout.REQUIRED), layout.PROVENANCE})
_CLAIMS = ("iss", "sub", "aud", "iat", "exp", "jti", "name", "preferred_username")

_ENDS: Mapping[str, tuple[Status, Reason | None]] = {
    "successful": (Status.COMPLETED, None),
    "completed": (Status.COMPLETED, None),
    "failed": (Status.FAILED, Reason.ERROR),
    "expired": (Status.FAILED, Reason.TIMED_OUT),
    "cancelled": (Status.CANCELLED, None),
    "dismissed": (Status.CANCELLED, None),
}
"""The final statuses of CCP, from its page "Execution status", and those of OGC."""


@dataclass(frozen=True)
class CcpExecution:
    """An execution of CCP as our documents, with the paths of its outputs in the export."""

    id: str
    documents: tuple[Document, ...]
    job_status: JobStatus
    outputs: Mapping[str, str]
    """The path in the export by the path in the bundle; empty if the outputs are only in `output.zip`."""
    zipped: str | None
    """The path of `output.zip` in the export, if the outputs are only there."""
    mask: SecretMask
    """The secret values that the export contains in plain text."""
    source_sha256: str

    def masked(self, path: str) -> bool:
        """Whether secret values are masked in the output at *path*: they are in logs and the script."""
        return path in {layout.STDOUT, layout.STDERR, _SCRIPT}


def translate(bundle: IncomingBundle, at: datetime, limits: Limits) -> CcpExecution:
    """Convert the export *bundle*; *at* is the time of import, which replaces a missing end time.

    Raises:
        BundleError: If a document is not JSON, is too large, or names no Method.
    """
    return _Conversion(bundle, at, limits).result()


def zipped_outputs(reader: ZipReader) -> Iterator[tuple[str, str]]:
    """Yield the entry name and the output path of each output in CCP's `output.zip`."""
    for name, entry in reader.entries.items():
        path = name.removeprefix("ccp_data/").removeprefix("outputs/")
        if not entry.is_folder and f"outputs/{path}" != _ENVIRONMENT and not path.startswith(("metadata/", "auth/")):
            yield name, _stream_name(f"outputs/{path}")


@dataclass
class _Conversion:
    """The state of one call of `translate`."""

    bundle: IncomingBundle
    at: datetime
    limits: Limits
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source: Source = self.bundle.source
        self.paths = {_tree_path(path, self.bundle.kind): path for path in self.source.files}
        if len(self.paths) != len(self.source.files):
            raise BundleError("two of its files have the same path in the execution")

    def result(self) -> CcpExecution:
        method, request = self._method(), self._json(ExecuteRequest.file_name)
        status = self._json(JobStatus.file_name)
        activity = self._activity()
        execution_id = self._id(status, request, activity)
        mask = SecretMask(str(value) for name, value in _inputs(request).items() if name in method.secrets)
        our_request = self._request(method, request, execution_id)
        outputs = dict(self._outputs())
        job_status = self._job_status(execution_id, method, status, activity)
        infrastructure, instance = self._infrastructure(_inputs(request).get("ccpimage"))
        return CcpExecution(
            id=execution_id,
            documents=(self._agent(), method, our_request, infrastructure, instance),
            job_status=job_status,
            outputs=outputs,
            zipped=None if outputs else self._zipped(),
            mask=mask,
            source_sha256=_fingerprint(self.source),
        )

    def _json(self, path: str) -> dict[str, Any]:
        data = self._bytes(path)
        try:
            document = strict_json(decode_text(data), path) if path in self.paths else {}
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is not UTF-8 at byte {error.start}") from error
        if not isinstance(document, dict):
            raise BundleError(f"{path}: this is not a JSON object")
        return document

    def _bytes(self, path: str) -> bytes:
        name = self.paths.get(path)
        if name is None:
            return b""
        if self.source.files[name] > self.limits.document:
            raise BundleError(
                f"{name} has {self.source.files[name]} bytes; the limit for a document is {self.limits.document}"
            )
        return b"".join(self.source.blocks(name))

    def _method(self) -> Method:
        document = self._json(Method.file_name)
        if "format" in document:
            raise BundleError(f"{Method.file_name} has our own format, but {layout.MANIFEST} is missing")
        if not document:
            self._note(f"{Method.file_name} was not exported")
        members = {name: value for name, value in document.items() if value is not None}
        members = {"id": "unknown", "version": "unknown"} | members | {"code": None}
        try:
            return without_plain_text_secrets(Method.model_validate_json(json.dumps(members)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BundleError(f"{Method.file_name}: {'/'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _request(self, method: Method, request: Mapping[str, Any], execution_id: str) -> ExecuteRequest:
        values = recorded_parameters(method, _inputs(request))
        outputs, response = request.get("outputs"), request.get("response")
        return ExecuteRequest(
            values=values,
            parameters=values,
            outputs=plain_value(outputs) if isinstance(outputs, dict) else {},
            response="raw" if response == "raw" else "document",
            execution_id=execution_id,
            method_id=method.id,
            method_version=method.version,
            validated=False,
        )

    def _infrastructure(self, image: object) -> tuple[Infrastructure, Instance]:
        infrastructure_json, instance_json = self._json(Infrastructure.file_name), self._json(Instance.file_name)
        variables = {"infrastructure": plain_value(infrastructure_json), "instance": plain_value(instance_json)}
        infrastructure = Infrastructure(
            type=_text(infrastructure_json.get("type")) or "unknown",
            identifier=_text(infrastructure_json.get("id")),
            image=_text(image) if isinstance(image, str) and plain_value(image) == image else None,
            job_variables={name: value for name, value in variables.items() if value},
        )
        container_id = _text(instance_json.get("containerId") or instance_json.get("id"))
        return infrastructure, Instance(container_id=container_id)

    def _agent(self) -> Agent:
        data = self._bytes(Agent.file_name)
        token = _TOKEN.search(data.decode(errors="replace"))
        claims = _claims(token[1]) if token else self._json(Agent.file_name)
        allowed = {name: claims[name] for name in _CLAIMS if isinstance(claims.get(name), str | int | list)}
        if "preferred_username" in allowed:
            allowed.setdefault("name", allowed["preferred_username"])
        if token:
            self._note("the token in auth/jwt.json was not imported and not verified")
        digest = sha256(token[0].encode()).hexdigest() if token else None
        return Agent(verified=False, source="token", claims=plain_value(allowed), token_sha256=digest)

    def _activity(self) -> Mapping[str, Any]:
        """Return id, status, start and end of the first activity in `provo.xml`, as far as present."""
        data = self._bytes(layout.PROVENANCE)
        activity: dict[str, Any] = {}
        if b"<!DOCTYPE" in data:
            raise BundleError(f"{layout.PROVENANCE} has a DTD, which is not allowed")
        try:
            for record in records(data) if data else ():
                if record.kind == "activity" and not activity:
                    texts = record.texts.items()
                    status = next((text for name, text in texts if name.lower().endswith("status")), None)
                    times = {"started": record.time("prov:startTime"), "finished": record.time("prov:endTime")}
                    activity = {"status": status, "id": record.id, **times}
        except BundleError as error:
            self._note(f"{layout.PROVENANCE} cannot be read and was ignored: {error}")
            return {}
        return activity

    def _id(self, status: Mapping[str, Any], request: Mapping[str, Any], activity: Mapping[str, Any]) -> str:
        streams = [match[1] for path in self.paths if (match := _STREAM_ID.fullmatch(path.removeprefix("outputs/")))]
        folder = self.bundle.path.strip("/").rpartition("/")[2]
        uuid = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", f"{activity.get('id', '')} {folder}")
        for candidate in (status.get("jobID"), request.get("executionId"), uuid and uuid[0], *sorted(streams)):
            if isinstance(candidate, str) and candidate:
                try:
                    return layout.check_execution_id(candidate)
                except NameRefusedError as error:
                    raise BundleError(str(error)) from error
        self._note("the export has no execution id; this id is derived from its content")
        return str(uuid5(NAMESPACE_URL, _fingerprint(self.source)))

    def _job_status(
        self, execution_id: str, method: Method, document: Mapping[str, Any], activity: Mapping[str, Any]
    ) -> JobStatus:
        word = str(document.get("status") or activity.get("status") or "").strip().lower()
        end, reason = _ENDS.get(word, (Status.FAILED, Reason.LOST))
        message = _text(document.get("message"))
        if reason is Reason.LOST:
            message = f"the export has the status '{word}', which is not final" if word else "the export has no status"
        created = self._time(document, "created")
        started = self._time(document, "started") or activity.get("started")
        finished = self._time(document, "finished") or activity.get("finished")
        if finished is None and (finished := self._time(document, "updated")):
            self._note("the export has no end time; the time of its last change is used")
        if not finished:
            self._note("the export has no end time; the time of the import is used")
        steps = [(Status.CREATED, created), (Status.STARTED, started), (end, finished or self.at)]
        status: JobStatus | None = None
        for to, at in ((step, time) for step, time in steps if time):
            about: dict[str, Any] = {"observer": Observer.IMPORT, "message": message if to is end else None}
            if status is None:
                status = new_job_status(execution_id, method.id, status=to, at=at, **about)
            else:
                later = max(at, status.updated)
                status = advance(status, to, later, reason=reason if to is end else None, **about)
        return _with_notes(status, self.notes, reason)

    def _time(self, document: Mapping[str, Any], name: str) -> datetime | None:
        text = document.get(name)
        if not isinstance(text, str):
            return None
        try:
            time = datetime.fromisoformat(text.strip())
            if time.tzinfo is None:
                self._note(f"{name} has no offset from UTC and is read as UTC")
                time = time.replace(tzinfo=UTC)
            return in_utc(time)
        except (ValueError, OverflowError):
            self._note(f"{name} is not a valid time: {text[:40]!r}")
            return None

    def _outputs(self) -> Iterator[tuple[str, str]]:
        streams = Counter(
            match[1] for path in self.paths if (match := _STREAM.fullmatch(path.removeprefix("outputs/")))
        )
        unknown = 0
        for path, name in self.paths.items():
            if path in _CONVERTED or path in {layout.OUTPUT_ZIP, "outputs/output.zip"}:
                continue
            if not path.startswith("outputs/"):
                unknown += 1
                if unknown <= _MOST_NOTES:
                    self._note(f"{name} is an unknown file and was not imported")
                continue
            if path == _ENVIRONMENT:
                self._note("outputs/ccpenv was not imported: it contains a refresh token")
                continue
            alone = streams[path.removeprefix("outputs/")[:6]] == 1
            yield (_stream_name(path) if alone else path), name
        if unknown > _MOST_NOTES:
            self._note(f"{unknown - _MOST_NOTES} more unknown files were not imported")

    def _zipped(self) -> str | None:
        path = self.paths.get(layout.OUTPUT_ZIP) or self.paths.get("outputs/output.zip")
        if path is None:
            self._note("no outputs were exported")
        return path

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _tree_path(path: str, kind: BundleKind) -> str:
    """Return the path in the layout with folders of *path* in a layout of *kind*."""
    match = _FLAT.fullmatch(path) if kind is BundleKind.FLAT else None
    if match:
        return f"{match[1]}/{match[2]}"
    top = path.partition("/")[0]
    return path if path == layout.OUTPUT_ZIP or top in layout.FOLDERS else f"outputs/{path}"


def _stream_name(path: str) -> str:
    match = _STREAM.fullmatch(path.removeprefix("outputs/"))
    return f"outputs/{match[1]}.log" if match else path


def _with_notes(status: JobStatus | None, notes: Sequence[str], reason: Reason | None) -> JobStatus:
    if status is None:
        raise BundleError("the export has no status and no times")
    if len(status.history) == 1 and reason:  # the history has only the end
        last = status.history[0].model_copy(update={"reason": reason})
        status = status.model_copy(update={"reason": reason, "history": (last,)})
    for note in notes:
        status = add_entry(status, EntryKind.NOTE, status.updated, observer=Observer.IMPORT, message=note)
    return status


def _inputs(request: Mapping[str, Any]) -> dict[str, Any]:
    inputs = request.get("inputs")
    return dict(inputs) if isinstance(inputs, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _claims(payload: str) -> dict[str, Any]:
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _fingerprint(source: Source) -> str:
    files = []
    for path, size in source.files.items():
        digest = sha256()
        for block in source.blocks(path):
            digest.update(block)
        files.append(BundleFile(path, digest.hexdigest(), size))
    return sha256(manifest.render(files)).hexdigest()
