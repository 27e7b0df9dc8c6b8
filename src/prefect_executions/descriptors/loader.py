"""The loader of descriptors: a Method from ``method.json`` or ``method.yaml`` in CCP's and OGC API Processes' form.

Law: unknown members are preserved. An invalid member is an error that names its
place and, if possible, the fix. `document_of` returns exactly what `read_method` read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from prefect_executions.descriptors.inputs import IMAGE, request_faults
from prefect_executions.descriptors.parser import DescriptorFault, parse, pointer
from prefect_executions.descriptors.schema import ABSENT, Steps, default_of, schema_faults, shorten
from prefect_executions.descriptors.scripts import EXECUTE, SCRIPTS, script_faults
from prefect_executions.errors import InputError, MethodError
from prefect_executions.methods.model import AdditionalParameter, Comparison, InputDescription, Method
from prefect_executions.methods.secrets import is_secret_reference
from prefect_executions.patterns import limited_time

_MAX_LISTED = 20
_MAX_INPUTS = 500  # the inputs are fields of a form, and checking each schema takes time
_TYPE_ERRORS = {
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "int_type": "must be an integer, without quotes",
    "int_from_float": "must be an integer",
    "float_type": "must be a number, without quotes",
    "extra_forbidden": "unknown member",
}


def read_method(data: bytes, name: str) -> Method:
    """Return the Method in a descriptor's bytes; the ending of the file *name* says whether it is YAML.

    Raises:
        MethodError: If the descriptor cannot be parsed or is invalid; the message names
            the file and each fault with its JSON pointer.
    """
    return method_of(parse(data, name), name)


def method_of(document: Any, name: str) -> Method:
    """Return the Method in a descriptor's JSON value.

    Raises:
        MethodError: As `read_method` does.
    """
    if not isinstance(document, dict):
        raise MethodError(f"{name}: a descriptor is an object, with id, version, inputs and additionalParameters")
    faults = list(_python_names(document))
    method = None
    if not faults:
        try:
            method = Method.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            faults = list(_model_faults(error, document))
    if method is not None:
        try:
            with limited_time():
                faults = list(_faults(method))
        except InputError as error:
            raise MethodError(f"{name}: {error}") from error
    if method is None or faults:
        raise MethodError(_message(name, faults))
    return method


def document_of(method: Method) -> dict[str, Any]:
    """Return a Method's descriptor as it was read: equal as JSON, with nothing added or lost."""
    return method.model_dump(mode="json", by_alias=True, exclude_unset=True)


def without_plain_text_secrets(method: Method) -> Method:
    """Return *method* without plain-text secrets, which CCP's descriptors have as defaults."""

    def without_default(described: InputDescription) -> InputDescription:
        default = described.json_schema.get("default")
        if not described.is_secret or default is None or is_secret_reference(default):
            return described
        schema = {key: value for key, value in described.json_schema.items() if key not in {"default", "example"}}
        return described.model_copy(update={"json_schema": schema})

    inputs = {name: without_default(described) for name, described in method.inputs.items()}
    return method.model_copy(update={"inputs": inputs})


def _message(name: str, faults: Sequence[DescriptorFault]) -> str:
    if len(faults) == 1:
        return f"{name}: {faults[0]}"
    more = f"\n  and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
    listed = "".join(f"\n  {fault}" for fault in faults[:_MAX_LISTED])
    return f"{name}: {len(faults)} faults in the descriptor:{listed}{more}"


def _python_names(document: Mapping[str, Any]) -> Iterator[DescriptorFault]:
    """Yield the members with a Python name (``min_occurs``): pydantic would accept them and write them differently."""
    models: dict[str, type[BaseModel]] = {
        "inputs": InputDescription,
        "outputs": InputDescription,
        "comparisons": Comparison,
    }
    parts: list[tuple[tuple[str, ...], type[BaseModel], Any]] = [((), Method, document)]
    for kind, model in models.items():
        if isinstance(document.get(kind), dict):
            parts += [((kind, name), model, part) for name, part in document[kind].items()]
    for steps, model, part in parts:
        for python, field in model.model_fields.items():
            alias = field.alias or python
            if alias != python and isinstance(part, dict) and python in part:
                yield DescriptorFault(pointer(*steps, python), f"unknown; did you mean '{alias}'?")


def _model_faults(error: ValidationError, document: Mapping[str, Any]) -> Iterator[DescriptorFault]:
    seen = set()
    for details in error.errors(include_url=False, include_context=True):
        steps, part = _place(details["loc"], document)
        if pointer(*steps) in seen or details["type"] == "default_factory_not_called":
            continue  # another branch of a union at this place, or the title, whose default needs a valid id
        seen.add(pointer(*steps))
        if details["type"] == "missing":
            yield DescriptorFault(pointer(*steps), _missing(str(details["loc"][-1]), part))
        elif details["type"] == "literal_error":
            expected = str(details.get("ctx", {}).get("expected", ""))
            hint = _suggestion(part, re.findall(r"'([^']*)'", expected))
            yield DescriptorFault(pointer(*steps), f"{shorten(repr(part))} is not one of {expected}{hint}")
        else:
            yield DescriptorFault(pointer(*steps), _TYPE_ERRORS.get(details["type"], details["msg"]))


def _suggestion(value: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(value), known, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _place(location: Sequence[str | int], document: Any) -> tuple[Steps, Any]:
    """Return the steps of pydantic's *location* that exist in the document, and the value at their end."""
    steps: list[str | int] = []
    part = document
    for step in location:
        if isinstance(part, dict) and step in part:
            part = part[str(step)]
        elif isinstance(part, list) and isinstance(step, int) and step < len(part):
            part = part[step]
        else:
            continue
        steps.append(step)
    return tuple(steps), part


def _missing(name: str, part: Any) -> str:
    unknown = get_close_matches(name, part, 1, 0.7) if isinstance(part, dict) else []
    return f"'{name}' is missing" + (f"; is it misspelt as '{unknown[0]}'?" if unknown else "")


def _faults(method: Method) -> Iterator[DescriptorFault]:
    for name in ("id", "version"):
        if not _is_name(getattr(method, name)):
            yield DescriptorFault(pointer(name), "must have 1 to 200 characters and no control characters")
    yield from _parameter_faults(method)
    if len(method.inputs) > _MAX_INPUTS:
        yield DescriptorFault("/inputs", f"more than {_MAX_INPUTS} inputs; use a list or a file instead")
        return
    readable = dict(method.inputs)
    for name, described in method.inputs.items():
        steps = ("inputs", name)
        yield from _input_faults(name, described, steps)
        invalid = list(schema_faults(described, *steps, "schema"))
        yield from invalid or _binding_faults(name, described, (*steps, "schema"))
        if invalid:  # the checks below read the schemas
            readable[name] = described.model_copy(update={"json_schema": {}})
    method = method.model_copy(update={"inputs": readable})
    yield from script_faults(method)
    yield from request_faults(method)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable() and bool(text.strip())  # noqa: PLR2004 - as the message says


def _parameter_faults(method: Method) -> Iterator[DescriptorFault]:
    parameters = method.additional_parameters.parameters if method.additional_parameters else ()
    names = {parameter.name for parameter in parameters}
    seen = set()
    misspelt = set()
    for number, parameter in enumerate(parameters):
        steps = ("additionalParameters", "parameters", number)
        near = get_close_matches(parameter.name.lower().replace("_", "-"), SCRIPTS, 1, 0.85)
        if parameter.name in SCRIPTS:
            yield from _script_faults(parameter, steps, duplicate=parameter.name in seen)
            seen.add(parameter.name)
        elif near and near[0] not in names:
            misspelt.add(near[0])
            yield DescriptorFault(pointer(*steps, "name"), f"'{shorten(parameter.name)}': did you mean '{near[0]}'?")
    if EXECUTE not in misspelt and not any(line.strip() for line in method.script(EXECUTE)):
        yield DescriptorFault("/additionalParameters/parameters", _no_script(method))


def _script_faults(script: AdditionalParameter, steps: Steps, *, duplicate: bool) -> Iterator[DescriptorFault]:
    if duplicate:
        yield DescriptorFault(pointer(*steps), f"'{script.name}' occurs twice; merge its lines")
    for line, text in enumerate(script.value):
        if not isinstance(text, str) or "\0" in text:
            yield DescriptorFault(
                pointer(*steps, "value", line), "a line of a script must be text without NUL; put it in quotes"
            )


def _no_script(method: Method) -> str:
    if method.code is not None and method.code.entrypoint:
        return f"no script: this is the record of a Python Method; run its code instead: {method.code.entrypoint}"
    return f"'{EXECUTE}' is missing; add it, with a list of lines as its value"


def _input_faults(name: str, described: InputDescription, steps: Steps) -> Iterator[DescriptorFault]:
    extra = described.model_extra or {}
    if not _is_name(name) or "{" in name or "}" in name:
        yield DescriptorFault(
            pointer(*steps), "an input's name must have 1 to 200 characters, no braces and no control characters"
        )
    if extra.get("id", name) != name:
        yield DescriptorFault(
            pointer(*steps, "id"), f"{shorten(repr(extra['id']))}: the input's name is '{shorten(name)}'"
        )
    for unknown in extra:
        near = get_close_matches(unknown, ("minOccurs", "maxOccurs"), 1, 0.85)
        if near:
            yield DescriptorFault(pointer(*steps, unknown), f"unknown; did you mean '{near[0]}'?")
    if described.max_occurs != "unbounded" and described.max_occurs < max(1, described.min_occurs):
        yield DescriptorFault(pointer(*steps, "maxOccurs"), "must be at least 1 and at least minOccurs")


def _binding_faults(name: str, described: InputDescription, steps: Steps) -> Iterator[DescriptorFault]:
    for unknown in described.json_schema:
        if unknown != "readOnly" and unknown.lower().replace("_", "") == "readonly":
            yield DescriptorFault(pointer(*steps, unknown), "unknown; did you mean 'readOnly'?")
    bound = described.json_schema.get("readOnly")
    if bound is not None and not isinstance(bound, bool):
        yield DescriptorFault(pointer(*steps, "readOnly"), "must be true or false")
    if described.is_secret and described.is_list:
        yield DescriptorFault(pointer(*steps[:-1], "maxOccurs"), "a secret is a single value; declare several inputs")
    # CCP: an empty image means the default image.
    if described.is_bound and default_of(described) is ABSENT and described.min_occurs and name != IMAGE:
        fix = "give the name of a Secret block or env:NAME" if described.is_secret else "give it"
        yield DescriptorFault(pointer(*steps, "default"), f"a bound input (readOnly) needs its value here; {fix}")
