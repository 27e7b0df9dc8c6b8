"""What an export of CCP says, as documents of ours: both layouts, with or without `jobStatus.json` and `provo.xml`.

Law: what it does not say is absent or told in a note, and never guessed. It comes
with tokens (``auth/jwt.json``, ``outputs_ccpenv``) and with secret values pasted into
scripts; none of that comes in.
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
from prefect_executions.descriptors.loader import without_clear_secrets
from prefect_executions.documents import Document, in_utc, strict_json
from prefect_executions.errors import BundleError, NameRefusedError
from prefect_executions.executions.record import Agent, BundleFile, ExecuteRequest, Infrastructure, Instance
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry, advance, new_job_status
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.methods.model import Method
from prefect_executions.provenance.reader import records

_FLAT = re.compile(r"(metadata|auth|outputs)_(.+)", re.DOTALL)
_STREAM = re.compile(r"(stdout|stderr)(\.[^/]*)?\.(txt|log)")
_STREAM_ID = re.compile(r"std(?:out|err)\.([0-9A-Za-z-]+)\.txt")
# From the beginning of a word only, so that a long one is looked through once.
_TOKEN = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}\.([A-Za-z0-9_-]{4,})(\.[A-Za-z0-9_-]*)?")

_TOLD = 100
"""How many files that nobody knows are named, each in a note of the history."""

_ENVIRONMENT = "outputs/ccpenv"
_SCRIPT = "outputs/ccp-entrypoint.sh"
_READ = frozenset({*(kind.file_name for kind in layout.REQUIRED), layout.PROVENANCE})
_CLAIMS = ("iss", "sub", "aud", "iat", "exp", "jti", "name", "preferred_username")

_ENDS: Mapping[str, tuple[Status, Reason | None]] = {
    "successful": (Status.COMPLETED, None),
    "completed": (Status.COMPLETED, None),
    "failed": (Status.FAILED, Reason.ERROR),
    "expired": (Status.FAILED, Reason.TIMED_OUT),
    "cancelled": (Status.CANCELLED, None),
    "dismissed": (Status.CANCELLED, None),
}
"""CCP's words for an end, by its page "Execution status" and by OGC's."""


@dataclass(frozen=True)
class CcpExecution:
    """An execution of CCP in words of ours: its documents, and where in the export its outputs are."""

    id: str
    documents: tuple[Document, ...]
    job_status: JobStatus
    outputs: Mapping[str, str]
    """The path in the export by the path in the bundle; none where they are in its `output.zip` alone."""
    zipped: str | None
    mask: SecretMask
    """The secret values that it holds in clear."""
    source_sha256: str

    def masked(self, path: str) -> bool:
        """Whether the output at *path* is a log or script, in which secret values are replaced."""
        return path in {layout.STDOUT, layout.STDERR, _SCRIPT}


def translate(arrival: IncomingBundle, at: datetime, limits: Limits) -> CcpExecution:
    """Return what the export *arrival* says; *at* is the time of import, which stands where it tells none.

    Raises:
        BundleError: If a document is no JSON, is too large, or names no Method.
    """
    return _Reading(arrival, at, limits).translated()


def zipped_outputs(reader: ZipReader) -> Iterator[tuple[str, str]]:
    """Yield the entry and the output's path for each file of CCP's `output.zip` that is an output."""
    for name, entry in reader.entries.items():
        path = name.removeprefix("ccp_data/").removeprefix("outputs/")
        if not entry.is_folder and f"outputs/{path}" != _ENVIRONMENT and not path.startswith(("metadata/", "auth/")):
            yield name, _stream_name(f"outputs/{path}")


@dataclass
class _Reading:
    """One export while it is read."""

    arrival: IncomingBundle
    at: datetime
    limits: Limits
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source: Source = self.arrival.source
        self.paths = {_tree_path(path, self.arrival.kind): path for path in self.source.files}
        if len(self.paths) != len(self.source.files):
            raise BundleError("two of its files mean the same file of the execution")

    def translated(self) -> CcpExecution:
        method, asked = self._method(), self._json(ExecuteRequest.file_name)
        told = self._json(JobStatus.file_name)
        story = self._story()
        execution_id = self._id(told, asked, story)
        mask = SecretMask(str(value) for name, value in _inputs(asked).items() if name in method.secrets)
        request = self._request(method, asked, execution_id)
        outputs = dict(self._outputs())
        job_status = self._job_status(execution_id, method, told, story)
        infrastructure, instance = self._places(_inputs(asked).get("ccpimage"))
        return CcpExecution(
            id=execution_id,
            documents=(self._agent(), method, request, infrastructure, instance),
            job_status=job_status,
            outputs=outputs,
            zipped=None if outputs else self._zipped(),
            mask=mask,
            source_sha256=_fingerprint(self.source),
        )

    def _json(self, path: str) -> dict[str, Any]:
        data = self._bytes(path)
        told = strict_json(data, path) if data else {}
        if not isinstance(told, dict):
            raise BundleError(f"{path}: this is no JSON object")
        return told

    def _bytes(self, path: str) -> bytes:
        name = self.paths.get(path)
        if name is None:
            return b""
        if self.source.files[name] > self.limits.document:
            raise BundleError(f"{name} has more than the {self.limits.document} bytes that a document may have")
        return b"".join(self.source.blocks(name))

    def _method(self) -> Method:
        told = self._json(Method.file_name)
        if "format" in told:
            raise BundleError(f"{Method.file_name} is of our own format, and there is no {layout.MANIFEST}")
        if not told:
            self._note(f"{Method.file_name} was not exported")
        named = {"id": "unknown", "version": "unknown"} | {
            name: value for name, value in told.items() if value is not None
        }
        try:
            return without_clear_secrets(Method.model_validate_json(json.dumps(named | {"code": None})))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BundleError(f"{Method.file_name}: {'/'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _request(self, method: Method, asked: Mapping[str, Any], execution_id: str) -> ExecuteRequest:
        values = recorded_parameters(method, _inputs(asked))
        outputs, response = asked.get("outputs"), asked.get("response")
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

    def _places(self, image: object) -> tuple[Infrastructure, Instance]:
        where, what = self._json(Infrastructure.file_name), self._json(Instance.file_name)
        kept = {"infrastructure": plain_value(where), "instance": plain_value(what)}
        infrastructure = Infrastructure(
            type=_word(where.get("type")) or "unknown",
            identifier=_word(where.get("id")),
            image=_word(image) if isinstance(image, str) and plain_value(image) == image else None,
            job_variables={name: value for name, value in kept.items() if value},
        )
        return infrastructure, Instance(container_id=_word(what.get("containerId") or what.get("id")))

    def _agent(self) -> Agent:
        data = self._bytes(Agent.file_name)
        token = _TOKEN.search(data.decode(errors="replace"))
        claims = _claims(token[1]) if token else self._json(Agent.file_name)
        kept = {name: claims[name] for name in _CLAIMS if isinstance(claims.get(name), str | int | list)}
        if "preferred_username" in kept:
            kept.setdefault("name", kept["preferred_username"])
        if token:
            self._note("the token in auth/jwt.json was not kept, and nobody verified it")
        digest = sha256(token[0].encode()).hexdigest() if token else None
        return Agent(verified=False, source="token", claims=plain_value(kept), token_sha256=digest)

    def _story(self) -> Mapping[str, Any]:
        """What `provo.xml` says of the execution: id, status, start and end, as far as it does."""
        data = self._bytes(layout.PROVENANCE)
        found: dict[str, Any] = {}
        if b"<!DOCTYPE" in data:
            raise BundleError(f"{layout.PROVENANCE} has a DTD, which is never read")
        try:
            for one in records(data) if data else ():
                if one.kind == "activity" and not found:
                    status = next((text for name, text in one.texts.items() if name.lower().endswith("status")), None)
                    times = {"started": one.time("prov:startTime"), "finished": one.time("prov:endTime")}
                    found = {"status": status, "id": one.id, **times}
        except BundleError as error:
            self._note(f"what {layout.PROVENANCE} says is not known: {error}")
            return {}
        return found

    def _id(self, told: Mapping[str, Any], asked: Mapping[str, Any], story: Mapping[str, Any]) -> str:
        streams = [found[1] for path in self.paths if (found := _STREAM_ID.fullmatch(path.removeprefix("outputs/")))]
        folder = self.arrival.path.strip("/").rpartition("/")[2]
        uuid = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", f"{story.get('id', '')} {folder}")
        for said in (told.get("jobID"), asked.get("executionId"), uuid and uuid[0], *sorted(streams)):
            if isinstance(said, str) and said:
                try:
                    return layout.check_execution_id(said)
                except NameRefusedError as error:
                    raise BundleError(str(error)) from error
        self._note("the export tells no id; this one is made from its content")
        return str(uuid5(NAMESPACE_URL, _fingerprint(self.source)))

    def _job_status(
        self, execution_id: str, method: Method, told: Mapping[str, Any], story: Mapping[str, Any]
    ) -> JobStatus:
        word = str(told.get("status") or story.get("status") or "").strip().lower()
        end, reason = _ENDS.get(word, (Status.FAILED, Reason.LOST))
        message = _word(told.get("message"))
        if reason is Reason.LOST:
            message = f"the export says '{word}' and no end" if word else "the export tells no status"
        created = self._time(told, "created")
        started = self._time(told, "started") or story.get("started")
        finished = self._time(told, "finished") or story.get("finished")
        if finished is None and (finished := self._time(told, "updated")):
            self._note("the export tells no time of the end; that of its last change stands for it")
        if not finished:
            self._note("the export tells no time of the end; that of the import stands for it")
        known = [(Status.CREATED, created), (Status.STARTED, started), (end, finished or self.at)]
        steps = [(status, at) for status, at in known if at]
        status: JobStatus | None = None
        for to, at in steps:
            seen: dict[str, Any] = {"observer": Observer.IMPORT, "message": message if to is end else None}
            if status is None:
                status = new_job_status(execution_id, method.id, status=to, at=at, **seen)
            else:
                later = max(at, status.updated)
                status = advance(status, to, later, reason=reason if to is end else None, **seen)
        return _with_notes(status, self.notes, reason)

    def _time(self, told: Mapping[str, Any], name: str) -> datetime | None:
        text = told.get(name)
        if not isinstance(text, str):
            return None
        try:
            time = datetime.fromisoformat(text.strip())
            if time.tzinfo is None:
                self._note(f"{name} has no offset from UTC and was taken for UTC")
                time = time.replace(tzinfo=UTC)
            return in_utc(time)
        except (ValueError, OverflowError):
            self._note(f"{name} is no time: {text[:40]!r}")
            return None

    def _outputs(self) -> Iterator[tuple[str, str]]:
        streams = Counter(
            found[1] for path in self.paths if (found := _STREAM.fullmatch(path.removeprefix("outputs/")))
        )
        unknown = 0
        for path, name in self.paths.items():
            if path in _READ or path in {layout.OUTPUT_ZIP, "outputs/output.zip"}:
                continue
            if not path.startswith("outputs/"):
                unknown += 1
                if unknown <= _TOLD:
                    self._note(f"{name} was not kept: nobody knows what it is")
                continue
            if path == _ENVIRONMENT:
                self._note("outputs/ccpenv was not kept: it is an environment with a refresh token")
                continue
            alone = streams[path.removeprefix("outputs/")[:6]] == 1
            yield (_stream_name(path) if alone else path), name
        if unknown > _TOLD:
            self._note(f"{unknown - _TOLD} more files were not kept: nobody knows what they are")

    def _zipped(self) -> str | None:
        found = self.paths.get(layout.OUTPUT_ZIP) or self.paths.get("outputs/output.zip")
        if found is None:
            self._note("no outputs were exported")
        return found

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _tree_path(path: str, kind: BundleKind) -> str:
    """Return where a file of the flat layout lies in the other one."""
    found = _FLAT.fullmatch(path) if kind is BundleKind.FLAT else None
    if found:
        return f"{found[1]}/{found[2]}"
    top = path.partition("/")[0]
    return path if path == layout.OUTPUT_ZIP or top in layout.FOLDERS else f"outputs/{path}"


def _stream_name(path: str) -> str:
    found = _STREAM.fullmatch(path.removeprefix("outputs/"))
    return f"outputs/{found[1]}.log" if found else path


def _with_notes(status: JobStatus | None, notes: Sequence[str], reason: Reason | None) -> JobStatus:
    if status is None:
        raise BundleError("nothing is known of how it went")
    if len(status.history) == 1 and reason:  # its end is all that is known of it
        last = status.history[0].model_copy(update={"reason": reason})
        status = status.model_copy(update={"reason": reason, "history": (last,)})
    for note in notes:
        status = add_entry(status, EntryKind.NOTE, status.updated, observer=Observer.IMPORT, message=note)
    return status


def _inputs(asked: Mapping[str, Any]) -> dict[str, Any]:
    told = asked.get("inputs")
    return dict(told) if isinstance(told, dict) else {}


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _claims(payload: str) -> dict[str, Any]:
    try:
        told = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _fingerprint(source: Source) -> str:
    files = []
    for path, size in source.files.items():
        digest = sha256()
        for block in source.blocks(path):
            digest.update(block)
        files.append(BundleFile(path, digest.hexdigest(), size))
    return sha256(manifest.render(files)).hexdigest()
