"""Removes secrets and credentials from parameters and values before they are recorded."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prefect_executions.capture.secrets import (
    MASK,
    SHORTEST_FOUND,
    SecretMask,
    looks_secret,
    mask_credentials,
    redact_urls,
)
from prefect_executions.documents import Document, json_value
from prefect_executions.executions.record import ExecuteRequest, ExecutionRecord, Metrics
from prefect_executions.executions.value_types import WITHHELD, is_marker
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.methods.model import InputDescription, Method
from prefect_executions.methods.secrets import is_secret_reference, is_withheld

# Members of a JSON Schema that contain the author's values instead of a schema.
_DATA = frozenset({"default", "example", "examples", "enum", "const"})
# The keywords of a JSON Schema that contain one value of the input. `enum` lists its choices, which are not secret.
_VALUES = frozenset({"default", "example", "examples", "const"})

_LISTED = 20
"""The most withheld values that a note names."""


def recorded_parameters(method: Method, parameters: Mapping[str, Any], names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return raw parameters for the record, without secrets that were given in plain text.

    *names* are the operator's additional names of secrets, here and below.
    """
    return {
        name: _secret_name(value) if name in method.secrets else plain_value(value, _checked(method, name), names)
        for name, value in parameters.items()
    }


def plain_value(value: Any, name: str = "", names: tuple[str, ...] = ()) -> Any:
    """Return the *value* of *name* as JSON without credentials.

    URLs are redacted. Values that look like keys, and those whose names look secret, are withheld.
    """
    return without_credentials(json_value(value), name, names)


def recorded_method(method: Method, names: tuple[str, ...] = ()) -> Method:
    """Return *method* for the record, with credentials removed from its defaults and examples."""
    inputs = {name: _recorded_input(method, name, described, names) for name, described in method.inputs.items()}
    return method if inputs == method.inputs else method.model_copy(update={"inputs": inputs})


def register_credentials(value: Any, mask: SecretMask, names: tuple[str, ...] = ()) -> None:
    """Register in *mask* all well-known keys, URL credentials and values with secret names in the JSON *value*."""
    match value:
        case str():
            mask_credentials(value, mask)
        case Mapping():
            for name, part in value.items():
                if is_withheld(name, part, names):
                    mask.add(*(text for text in _texts(part) if len(text) >= SHORTEST_FOUND))
                register_credentials(part, mask, names)
        case list():
            for part in value:
                register_credentials(part, mask, names)


def plain_text_defaults(method: Method, names: tuple[str, ...] = ()) -> SecretMask:
    """Return a mask of the plain-text credentials in the defaults of *method*, which its source contains as well."""
    mask = SecretMask()
    for name, described in method.inputs.items():
        for data in _data_in(_checked(method, name), described.json_schema):
            register_credentials(data, mask, names)
    return mask


def masked_request(request: ExecuteRequest, mask: SecretMask) -> ExecuteRequest:
    """Return *request* without the secrets in *mask*: a value that contains one is withheld; in names it is masked."""
    if not mask:
        return request
    members = request.model_dump(exclude={"inputs"}, by_alias=False)
    members |= {name: _without_secrets(members[name], mask) for name in ("values", "parameters")}
    members |= mask.mask_inside({name: members[name] for name in ("flow_run_name", "tags", "created_by")})
    hidden = [name for name, value in request.values.items() if members["values"][name] != value]
    members["rerun"] = {**dict.fromkeys(hidden, "caller"), **(request.rerun or {})} or None
    members["files"] = [
        file.model_copy(update={"origin": mask.mask(file.origin), "name": mask.mask(file.name)})
        for file in request.files
    ]
    masked = ExecuteRequest(**members)
    return request if masked == request else masked


def masked_record(record: ExecutionRecord, mask: SecretMask) -> ExecutionRecord:
    """Return *record* without the secrets in *mask*, wherever it holds free text or values."""
    if not mask:
        return record
    instance, infrastructure = record.instance, record.infrastructure
    return replace(
        record,
        request=masked_request(record.request, mask),
        job_status=masked_history(record.job_status, mask),
        infrastructure=infrastructure.model_copy(
            update={"job_variables": _without_secrets(infrastructure.job_variables, mask)}
        ),
        instance=instance.model_copy(
            update={
                "environment": mask.mask_inside(instance.environment),
                "working_directory": mask.mask_inside(instance.working_directory),
            }
        ),
    )


def described_by(record: ExecutionRecord) -> tuple[Document, ...]:
    """Return the documents that are written when a run begins, and may contain a secret that becomes known later."""
    return record.request, record.infrastructure, record.instance


def masked_history(job_status: JobStatus, mask: SecretMask) -> JobStatus:
    """Return *job_status* without the secrets in *mask* in the messages of its history and the names of its steps."""
    history = tuple(
        entry if entry.message is None else entry.model_copy(update={"message": mask.mask(entry.message)})
        for entry in job_status.history
    )
    steps = job_status.steps and tuple(
        step.model_copy(update={"name": mask.mask(step.name)}) for step in job_status.steps
    )
    masked = job_status.model_copy(
        update={"history": history, "steps": steps, "message": mask.mask_inside(job_status.message)}
    )
    return job_status if masked == job_status else masked


def masked_metrics(metrics: Metrics, mask: SecretMask) -> Metrics:
    """Return *metrics* without the secrets in *mask*, in names and in params."""
    named = tuple(metric.model_copy(update={"name": mask.mask(metric.name)}) for metric in metrics.metrics)
    return metrics.model_copy(update={"params": mask.mask_inside(metrics.params), "metrics": named})


def recorded_param(name: str, value: Any, names: tuple[str, ...] = ()) -> Any:
    """Return the JSON *value* of a param that the Method logged, with `MASK` for values whose names look secret."""
    if is_withheld(name, value, names):
        return MASK
    match value:
        case dict():
            return {key: recorded_param(key, part, names) for key, part in value.items()}
        case list():
            return [recorded_param("", part, names) for part in value]
        case _:
            return value


def withheld_note(method: Method, request: ExecuteRequest) -> str | None:
    """Return the note on withheld values of *request*, which names them; None if there are none."""
    values = {name: value for name, value in request.values.items() if name not in method.secrets}
    paths = sorted({path for name, value in values.items() for path in _withheld_paths(name, value)})
    if not paths:
        return None
    listed = ", ".join(paths[:_LISTED]) + (f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else "")
    return f"withheld, because the name looks secret or the value contains a secret: {listed}"


def _withheld_paths(path: str, value: Any) -> Iterator[str]:
    if value == WITHHELD:
        yield path
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _withheld_paths(f"{path}.{name}", part)
    elif isinstance(value, list):
        for part in value:
            yield from _withheld_paths(path, part)


def _without_secrets(value: Any, mask: SecretMask) -> Any:
    match value:
        case str() | int() | float():
            return dict(WITHHELD) if mask.mask(str(value)) != str(value) else value
        case list() | tuple():
            return [_without_secrets(part, mask) for part in value]
        case dict() if is_marker(value):  # its parts cannot be withheld one by one
            return dict(WITHHELD) if _holds_secret(value, mask) else value
        case dict():
            if any(mask.mask(name) != name for name in value):  # a rerun cannot supply such a key
                return dict(WITHHELD)
            return {name: _without_secrets(part, mask) for name, part in value.items()}
        case _:
            return value


def _holds_secret(marker: Mapping[str, Any], mask: SecretMask) -> bool:
    if isinstance(encoded := marker.get("base64"), str) and mask.holds(b64decode(encoded)):
        return True
    return any(mask.mask(text) != text for text in _texts(marker))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for part in value.values():
                yield from _texts(part)
        case list():
            for part in value:
                yield from _texts(part)
        case int() | float() if not isinstance(value, bool):
            yield str(value)


def _checked(method: Method, name: str) -> str:
    """Return the *name* to judge an input by; a file is recorded by its location, whatever its name."""
    described = method.inputs.get(name)
    return "" if described is not None and described.is_file else name


def resolved_name(reference: object) -> dict[str, Any]:
    """Return the recorded form of a resolved secret: the name it was resolved from."""
    return {"secret": reference} if is_secret_reference(reference) else dict(WITHHELD)


def _secret_name(value: object) -> Any:
    """Keep the name only if it has the form ``env:NAME``; any other text may be a secret in plain text."""
    if value is None:
        return None
    return {"secret": value} if is_secret_reference(value) and str(value).startswith("env:") else dict(WITHHELD)


def without_credentials(value: Any, name: str = "", names: tuple[str, ...] = ()) -> Any:
    """Return the JSON *value* of *name* without credentials; see `plain_value`."""
    if name and is_withheld(name, value, names):
        return dict(WITHHELD)
    match value:
        case str():
            return dict(WITHHELD) if looks_secret("", clean := redact_urls(value)) else clean
        case list():
            return [without_credentials(part, "", names) for part in value]
        case {"python": _, "base64": str() as encoded} if is_marker(value):  # base64 looks as random as a key
            return dict(WITHHELD) if looks_secret("", b64decode(encoded).decode("latin-1")) else value
        case dict():
            return {key: without_credentials(part, key, names) for key, part in value.items()}
        case _:
            return value


def _recorded_input(method: Method, name: str, described: InputDescription, names: tuple[str, ...]) -> InputDescription:
    schema = _without_credentials_in_data(_checked(method, name), described.json_schema, names)
    return described if schema == described.json_schema else described.model_copy(update={"json_schema": schema})


def _without_credentials_in_data(name: str, schema: Any, names: tuple[str, ...]) -> Any:
    """Return the *schema* of *name* with cleaned data; members that consist of a secret are removed."""
    match schema:
        case dict():
            cleaned = {
                key: without_credentials(json_value(part), name if key in _VALUES else "", names)
                if key in _DATA
                else {inner: _without_credentials_in_data(inner, of, names) for inner, of in part.items()}
                if key == "properties" and isinstance(part, dict)
                else _without_credentials_in_data(name, part, names)
                for key, part in schema.items()
            }
            return {key: part for key, part in cleaned.items() if part != WITHHELD}
        case list():
            return [_without_credentials_in_data(name, part, names) for part in schema]
        case _:
            return schema


def _data_in(name: str, schema: Any) -> Iterator[Any]:
    """Yield the author's values in the *schema* of *name*, each in a dictionary with its name, and all other text."""
    match schema:
        case dict():
            for key, part in schema.items():
                if key in _DATA:
                    yield {name if key in _VALUES else "": json_value(part)}
                elif key == "properties" and isinstance(part, dict):
                    for inner, of in part.items():
                        yield from _data_in(inner, of)
                else:
                    yield from _data_in(name, part)
        case list():
            for part in schema:
                yield from _data_in(name, part)
        case str():
            yield schema
