"""DSSE v1 envelopes (secure-systems-lab/dsse) and the signed in-toto Statement v1 with SLSA provenance v1.

An envelope is parsed strictly and written in one form, each member on its own line, so that a reviewer
can extract it with `sed`. `commands` are the reviewer's commands for openssl and coreutils.
The subjects of the statement are the manifest and every file that it lists.

Law: the statement depends on the record alone, not on a clock or on chance.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prefect_executions.attestation.keys import SigningKey
from prefect_executions.documents import json_value, strict_json, text_of_time
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import NAMESPACE, BundleFile, ExecutionRecord

MAX_SIGNATURES = 100
"""The most signatures of an envelope: each takes the time to hash the whole payload."""

_LONGEST_TYPE = 256


class Signature(NamedTuple):
    """One signature, and the id of the key that it claims."""

    key_id: str
    data: bytes


class Envelope(NamedTuple):
    """A signed payload, its type, and its signatures."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def signed(self) -> bytes:
        """The bytes that a signature covers."""
        return pae(self.payload_type, self.payload)

    def to_json(self) -> bytes:
        """Return the envelope's bytes; equal envelopes give equal bytes."""
        signatures = ",\n".join(_signature_json(signature) for signature in self.signatures)
        return (
            f'{{\n  "payloadType": "{self.payload_type}",\n  "payload": "{_encoded(self.payload)}",\n'
            f'  "signatures": [\n{signatures}\n  ]\n}}\n'
        ).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Envelope:
        """Parse an envelope; *name* is the file, for error messages.

        Raises:
            BundleError: If *data* is not a DSSE envelope.
        """
        if not data.startswith(b"{") or b"\0" in data[:4]:  # RFC 8259, 8.1: no byte order mark, no UTF-16 or UTF-32
            raise BundleError(f"{name} is not a DSSE envelope: it does not begin with a brace in UTF-8")
        match strict_json(data, name):
            case {"payloadType": str(kind), "payload": str(payload), "signatures": [_, *_] as signatures, **rest}:
                _refuse_unknown(rest, name)
                if len(signatures) > MAX_SIGNATURES:
                    raise BundleError(f"{name} has {len(signatures)} signatures; the limit is {MAX_SIGNATURES}")
                if len(kind) > _LONGEST_TYPE or not kind.isprintable():  # a lone surrogate has no UTF-8 form to sign
                    raise BundleError(
                        f"{name}: payloadType must be printable and have at most {_LONGEST_TYPE} characters"
                    )
                read = tuple(_signature(item, name) for item in signatures)
                if len({signature.key_id for signature in read}) < len(read):
                    raise BundleError(f"{name} has two signatures of the same key")
                return cls(kind, _decoded(payload, name), read)
            case _:
                raise BundleError(f"{name} is not a DSSE envelope: it needs payloadType, payload and signatures")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: type and payload, each after its length, so it is unambiguous."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sealed_envelope(payload_type: str, payload: bytes, key: SigningKey) -> Envelope:
    """Return *payload* signed with *key*."""
    return Envelope(payload_type, payload, (Signature(key.public.id, key.sign(pae(payload_type, payload))),))


def _signature_json(signature: Signature) -> str:
    return f'    {{\n      "keyid": "{signature.key_id}",\n      "sig": "{_encoded(signature.data)}"\n    }}'


def _signature(item: object, name: str) -> Signature:
    match item:
        case {"sig": str(data), "keyid": str(key_id), **rest}:
            _refuse_unknown(rest, name)
            if not _KEY_ID.fullmatch(key_id):  # other text could pass for the name of a signer
                raise BundleError(f"{name}: the key id {key_id[:80]!r} is not a SHA-256 in lower-case hex")
            return Signature(key_id, _decoded(data, name))
        case _:
            raise BundleError(f"{name}: a signature needs sig and keyid")


def _refuse_unknown(members: Mapping[object, object], name: str) -> None:
    """Refuse members that no signature covers."""
    if members:
        raise BundleError(f"{name}: a DSSE envelope has no member '{str(next(iter(members)))[:80]}'")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, name: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"{name}: invalid base64: {error}") from error
    if _encoded(data) != text:  # RFC 4648, section 3.5: unused bits that are not zero give a second text of the data
        raise BundleError(f"{name}: invalid base64: it is not in its canonical form")
    return data


_KEY_ID = re.compile(r"[0-9a-f]{64}")
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{NAMESPACE}execution/v1"


_EXACT = 2**53 - 1
"""The largest integer that a double holds, and so does each smaller one."""


class Statement(NamedTuple):
    """A parsed statement: the digest of each subject, and the execution that it describes."""

    subjects: Mapping[str, str]
    execution_id: str
    started: str | None
    finished: str | None
    predicate: Mapping[str, Any]
    """The whole predicate, as it was parsed."""
    others: tuple[str, ...] = ()
    """The members beside type, subjects and predicate, which no statement of this package has."""

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Statement:
        """Parse a statement; *name* is the file, for error messages.

        Raises:
            BundleError: If *data* is not a statement of this package.
        """
        match strict_json(data, name):
            case {
                "_type": "https://in-toto.io/Statement/v1",
                "predicateType": "https://slsa.dev/provenance/v1",
                "subject": list(subjects),
                "predicate": {
                    "buildDefinition": {"buildType": str(build_type)},
                    "runDetails": {"metadata": {"invocationId": str(execution_id), **times}},
                } as predicate,
                **others,
            } if build_type == BUILD_TYPE:
                digests = dict(_subject(subject, name) for subject in subjects)
                if len(digests) != len(subjects):
                    raise BundleError(f"{name}: the statement lists a subject twice")
                begin, end = _text(times.get("startedOn")), _text(times.get("finishedOn"))
                return cls(digests, execution_id, begin, end, predicate, tuple(map(str, others)))
            case _:
                raise BundleError(
                    f"{name}: the payload is not an in-toto statement with SLSA provenance of {BUILD_TYPE}"
                )


def statement_of(record: ExecutionRecord, manifest: BundleFile, files: Iterable[BundleFile]) -> bytes:
    """Return the statement about the *manifest*, its first subject, and the *files*; equal records give equal bytes."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in (manifest, *sorted(files))],
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(record),
    }
    return _compact(statement)


def predicate_of(record: ExecutionRecord) -> Any:
    """Return the predicate of the statement about *record*, as a reader of its JSON gets it."""
    return json.loads(_compact(_predicate(record)))


def _predicate(record: ExecutionRecord) -> dict[str, Any]:
    """Return the predicate. `verify` compares it with the documents, so another content needs another build type."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "method": {"id": record.method.id, "version": record.method.version},
                "inputs": _portable(json_value(record.request.inputs)),
            },
            "resolvedDependencies": list(_dependencies(record)),
        },
        "runDetails": {"builder": _builder(record), "metadata": _present(_metadata(record))},
    }


def _compact(value: Any) -> bytes:
    # A lone surrogate becomes its own JSON escape.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")


def _portable(value: Any) -> Any:
    """Return a JSON *value* whose integers every JSON library reads exactly; a larger one is text.

    RFC 7493, section 2.2: a number beyond the precision of a double belongs into a string.
    """
    if isinstance(value, dict):
        return {name: _portable(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) > _EXACT else value


def _metadata(record: ExecutionRecord) -> dict[str, str | None]:
    return {
        "invocationId": record.id,
        "startedOn": text_of_time(record.started) if record.started else None,
        "finishedOn": text_of_time(record.finished) if record.finished else None,
    }


def _builder(record: ExecutionRecord) -> dict[str, Any]:
    infrastructure = record.infrastructure
    version = {"prefect": infrastructure.prefect_version} if infrastructure.prefect_version else {}
    return _present({"id": f"{NAMESPACE}infrastructure/{infrastructure.type}", "version": version or None})


def _dependencies(record: ExecutionRecord) -> Iterator[dict[str, Any]]:
    """Yield staged inputs, the Method's own files, their repository and the container image, each with its digest."""
    for staged in record.request.files:
        yield {"name": staged.path or staged.name, "uri": staged.origin, "digest": {"sha256": staged.sha256}}
    code = record.method.code
    for file in code.files if code else ():
        yield {"name": file.path, "digest": {"sha256": file.sha256}}
    repository = code.repository if code else None
    if repository and repository.commit:
        location = {"uri": f"git+{repository.remote}"} if repository.remote else {}
        yield {"name": "repository", **location, "digest": {"gitCommit": repository.commit}}
    image = record.infrastructure.image_digest
    if image:
        location = {"uri": record.infrastructure.image} if record.infrastructure.image else {}
        yield {"name": "image", **location, "digest": {"sha256": image.removeprefix("sha256:")}}


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _subject(item: object, name: str) -> tuple[str, str]:
    match item:
        case {"name": str(path), "digest": {"sha256": str(digest)}}:
            return path, digest
        case _:
            raise BundleError(f"{name}: a subject of the statement needs a name and a sha256")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_FILE = "metadata/attestation.dsse.json"


def commands(key_file: str) -> tuple[str, ...]:
    """Return the shell commands that check a seal in the bundle's folder with the public key *key_file*.

    They unpack the payload, check its signature, compare the manifest with the signed
    digest, and check every file against the manifest.
    """
    manifest = "$(sha256sum < manifest-sha256.txt | cut -c1-64)"
    first = rf"\"subject\":\[{{\"name\":\"manifest-sha256.txt\",\"digest\":{{\"sha256\":\"{manifest}\"}}}}"
    return (
        "D=$(mktemp -d)",
        f'sed -n \'s/^  "payload": "\\(.*\\)",$/\\1/p\' {_FILE} | base64 -d > $D/payload',
        f'sed -n \'s/^      "sig": "\\(.*\\)"$/\\1/p\' {_FILE} | base64 -d > $D/signature',
        f"(printf 'DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} %d ' $(wc -c < $D/payload); cat $D/payload) > $D/signed",
        f"openssl pkeyutl -verify -pubin -inkey {shlex.quote(key_file)} -rawin -in $D/signed -sigfile $D/signature",
        f'grep -c "^{{\\"_type\\":\\"{STATEMENT_TYPE}\\",{first}" $D/payload',
        "sha256sum --quiet -c manifest-sha256.txt",
    )
