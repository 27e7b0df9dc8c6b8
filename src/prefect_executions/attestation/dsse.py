"""The envelope around what is signed: DSSE v1 (secure-systems-lab/dsse), read strictly, written in one form.

Each member stands on a line of its own, so that a reviewer gets at it with `sed`.

What a seal says when it is signed: an in-toto Statement v1 whose predicate is SLSA provenance v1.

Its subjects are the manifest and every file that the manifest lists. The predicate
is told by the record alone: no clock and no chance goes in.

The commands by which a reviewer checks a signed bundle with openssl and coreutils alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prefect_executions.attestation.keys import SigningKey
from prefect_executions.documents import json_value, strict_json, text_of_time
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import NAMESPACE, BundleFile, ExecutionRecord


class Signature(NamedTuple):
    """One signature, and the id of the key that it claims to be of."""

    key_id: str
    data: bytes


class Envelope(NamedTuple):
    """What is signed, of which type, and by whom."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def signed(self) -> bytes:
        """The bytes that a signature is of."""
        return pae(self.payload_type, self.payload)

    def to_json(self) -> bytes:
        """Return the envelope's bytes; the same envelope gives the same bytes."""
        told = ",\n".join(_told(one) for one in self.signatures)
        return (
            f'{{\n  "payloadType": "{self.payload_type}",\n  "payload": "{_coded(self.payload)}",\n'
            f'  "signatures": [\n{told}\n  ]\n}}\n'
        ).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Envelope:
        """Read an envelope; *name* says in the message which file it is.

        Raises:
            BundleError: If it is none.
        """
        match strict_json(data, name):
            case {"payloadType": str(kind), "payload": str(payload), "signatures": [_, *_] as told}:
                return cls(kind, _decoded(payload, name), tuple(_signature(one, name) for one in told))
            case _:
                raise BundleError(f"{name} is no DSSE envelope: payloadType, payload and signatures are what it has")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what DSSE signs: the type and the payload, each after its length, so that no two mean the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sealed_envelope(payload_type: str, payload: bytes, key: SigningKey) -> Envelope:
    """Return *payload* signed with *key*."""
    return Envelope(payload_type, payload, (Signature(key.public.id, key.sign(pae(payload_type, payload))),))


def _told(signature: Signature) -> str:
    return f'    {{\n      "keyid": "{signature.key_id}",\n      "sig": "{_coded(signature.data)}"\n    }}'


def _signature(told: object, name: str) -> Signature:
    match told:
        case {"sig": str(data), "keyid": str(key_id)}:
            return Signature(key_id, _decoded(data, name))
        case _:
            raise BundleError(f"{name}: a signature has sig and keyid")


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"{name}: this is no base64: {error}") from error


PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{NAMESPACE}execution/v1"


class Statement(NamedTuple):
    """What was read of a statement: the digest of each subject, and of which execution it is."""

    subjects: Mapping[str, str]
    execution_id: str
    started: str | None
    finished: str | None

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Statement:
        """Read a statement; *name* says in the message which file it is in.

        Raises:
            BundleError: If it is no statement of ours.
        """
        match strict_json(data, name):
            case {
                "_type": "https://in-toto.io/Statement/v1",
                "predicateType": "https://slsa.dev/provenance/v1",
                "subject": list(subjects),
                "predicate": {
                    "buildDefinition": {"buildType": str(build_type)},
                    "runDetails": {"metadata": {"invocationId": str(execution_id), **times}},
                },
            } if build_type == BUILD_TYPE:
                told = dict(_subject(one, name) for one in subjects)
                if len(told) != len(subjects):
                    raise BundleError(f"{name}: the statement has a subject twice")
                return cls(told, execution_id, _text(times.get("startedOn")), _text(times.get("finishedOn")))
            case _:
                raise BundleError(f"{name}: the payload is no in-toto statement with SLSA provenance of {BUILD_TYPE}")


def statement_of(record: ExecutionRecord, manifest: BundleFile, files: Iterable[BundleFile]) -> bytes:
    """Return what is said of the *manifest*, which is the first subject, and its *files*; always the same bytes."""
    told = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in (manifest, *sorted(files))],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "method": {"id": record.method.id, "version": record.method.version},
                    "inputs": json_value(record.request.inputs),
                },
                "resolvedDependencies": list(_dependencies(record)),
            },
            "runDetails": {"builder": _builder(record), "metadata": _present(_metadata(record))},
        },
    }
    # A lone surrogate becomes the JSON escape of itself.
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")


def _metadata(record: ExecutionRecord) -> dict[str, str | None]:
    return {
        "invocationId": record.id,
        "startedOn": text_of_time(record.started) if record.started else None,
        "finishedOn": text_of_time(record.finished) if record.finished else None,
    }


def _builder(record: ExecutionRecord) -> dict[str, Any]:
    there = record.infrastructure
    version = {"prefect": there.prefect_version} if there.prefect_version else {}
    return _present({"id": f"{NAMESPACE}infrastructure/{there.type}", "version": version or None})


def _dependencies(record: ExecutionRecord) -> Iterator[dict[str, Any]]:
    """The staged inputs, the Method's own files, their repository, and the container image, each by its digest."""
    for staged in record.request.files:
        yield {"name": staged.path or staged.name, "uri": staged.origin, "digest": {"sha256": staged.sha256}}
    code = record.method.code
    for file in code.files if code else ():
        yield {"name": file.path, "digest": {"sha256": file.sha256}}
    repository = code.repository if code else None
    if repository and repository.commit:
        place = {"uri": f"git+{repository.remote}"} if repository.remote else {}
        yield {"name": "repository", **place, "digest": {"gitCommit": repository.commit}}
    image = record.infrastructure.image_digest
    if image:
        place = {"uri": record.infrastructure.image} if record.infrastructure.image else {}
        yield {"name": "image", **place, "digest": {"sha256": image.removeprefix("sha256:")}}


def _present(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value is not None}


def _subject(told: object, name: str) -> tuple[str, str]:
    match told:
        case {"name": str(path), "digest": {"sha256": str(digest)}}:
            return path, digest
        case _:
            raise BundleError(f"{name}: a subject of the statement has a name and a sha256")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_FILE = "metadata/attestation.dsse.json"


def commands(key_file: str) -> tuple[str, ...]:
    """Return the commands, to be given in the bundle's folder, that check its seal against the public key *key_file*.

    They unpack what was signed, check the signature over it, that the manifest is the
    one that was signed, and that every file is the one that the manifest lists.
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
