"""A Method from a descriptor, ``method.json`` or ``method.yaml``, as CCP and OGC API Processes write them.

Law: what is unknown is kept, what is wrong is an error that names its place
and, where it can, the cure. `document_of` gives back what `read_method` read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from prefect_executions.descriptors.inputs import IMAGE, wish_faults
from prefect_executions.descriptors.parser import DescriptorFault, parse, pointer
from prefect_executions.descriptors.schema import ABSENT, Steps, default_of, schema_faults, short
from prefect_executions.descriptors.scripts import EXECUTE, SCRIPTS, placing_faults
from prefect_executions.errors import MethodError
from prefect_executions.methods.model import AdditionalParameter, Comparison, InputDescription, Method
from prefect_executions.methods.secrets import is_secret_reference

_MOST_TOLD = 20
_MOST_INPUTS = 500  # a form; each input's schema is judged on its own
_TYPE_WORDS = {
    "string_type": "text is wanted; put it in quotes",
    "tuple_type": "a list is wanted",
    "list_type": "a list is wanted",
    "dict_type": "an object is wanted",
    "model_type": "an object is wanted",
    "int_type": "a whole number is wanted, without quotes",
    "int_from_float": "a whole number is wanted",
    "float_type": "a number is wanted, without quotes",
    "extra_forbidden": "there is no such member",
}


def read_method(data: bytes, name: str) -> Method:
    """Return the Method that a descriptor's bytes tell; *name* is the file's name and says whether it is YAML.

    Raises:
        MethodError: If it cannot be read or is wrong; the message names the
            file and each fault with its JSON pointer.
    """
    return method_of(parse(data, name), name)


def method_of(document: Any, name: str) -> Method:
    """Return the Method that a descriptor's JSON value tells.

    Raises:
        MethodError: As `read_method` does.
    """
    if not isinstance(document, dict):
        raise MethodError(f"{name}: a descriptor is an object, with id, version, inputs and additionalParameters")
    faults = list(_misspelt(document))
    method = None
    if not faults:
        try:
            method = Method.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            faults = list(_model_faults(error, document))
    if method is not None:
        faults = list(_faults(method))
    if method is None or faults:
        raise MethodError(_told(name, faults))
    return method


def document_of(method: Method) -> dict[str, Any]:
    """Return a Method's descriptor as it was read: equal as JSON, nothing added, nothing lost."""
    return method.model_dump(mode="json", by_alias=True, exclude_unset=True)


def without_clear_secrets(method: Method) -> Method:
    """Return *method* as a record may hold it: CCP's descriptors give secrets defaults in clear."""

    def safe(described: InputDescription) -> InputDescription:
        told = described.json_schema.get("default")
        if not described.is_secret or told is None or is_secret_reference(told):
            return described
        schema = {key: value for key, value in described.json_schema.items() if key not in {"default", "example"}}
        return described.model_copy(update={"json_schema": schema})

    return method.model_copy(update={"inputs": {name: safe(told) for name, told in method.inputs.items()}})


def _told(name: str, faults: Sequence[DescriptorFault]) -> str:
    if len(faults) == 1:
        return f"{name}: {faults[0]}"
    more = f"\n  and {len(faults) - _MOST_TOLD} more" if len(faults) > _MOST_TOLD else ""
    listed = "".join(f"\n  {fault}" for fault in faults[:_MOST_TOLD])
    return f"{name}: {len(faults)} faults in the descriptor:{listed}{more}"


def _misspelt(document: Mapping[str, Any]) -> Iterator[DescriptorFault]:
    """Yield members that have our Python name, which pydantic would take and never write back."""
    inputs, outputs = document.get("inputs"), document.get("outputs")
    comparisons = document.get("comparisons")
    parts: list[tuple[tuple[str, ...], type[BaseModel], Any]] = [((), Method, document)]
    for kind, told in (("inputs", inputs), ("outputs", outputs)):
        if isinstance(told, dict):
            parts += [((kind, name), InputDescription, one) for name, one in told.items()]
    if isinstance(comparisons, dict):
        parts += [(("comparisons", name), Comparison, one) for name, one in comparisons.items()]
    for steps, model, part in parts:
        for python, field in model.model_fields.items():
            alias = field.alias or python
            if alias != python and isinstance(part, dict) and python in part:
                yield DescriptorFault(pointer(*steps, python), f"unknown; did you mean '{alias}'?")


def _model_faults(error: ValidationError, document: Mapping[str, Any]) -> Iterator[DescriptorFault]:
    seen = set()
    for one in error.errors(include_url=False, include_context=True):
        steps, part = _place(one["loc"], document)
        if pointer(*steps) in seen or one["type"] == "default_factory_not_called":
            continue  # one place, several ways to be right; and a title that follows from what is wrong
        seen.add(pointer(*steps))
        if one["type"] == "missing":
            yield DescriptorFault(pointer(*steps), _missing(str(one["loc"][-1]), part))
        elif one["type"] == "literal_error":
            expected = str(one.get("ctx", {}).get("expected", ""))
            hint = _near(part, re.findall(r"'([^']*)'", expected))
            yield DescriptorFault(pointer(*steps), f"{short(repr(part))} is not one of {expected}{hint}")
        else:
            yield DescriptorFault(pointer(*steps), _TYPE_WORDS.get(one["type"], one["msg"]))


def _near(said: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(said), known, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _place(location: Sequence[str | int], document: Any) -> tuple[Steps, Any]:
    """Return those steps of pydantic's *location* that lead into the document, and what lies there."""
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
    return f"'{name}' is missing" + (f"; did you mean it by '{unknown[0]}'?" if unknown else "")


def _faults(method: Method) -> Iterator[DescriptorFault]:
    for name in ("id", "version"):
        if not _is_name(getattr(method, name)):
            yield DescriptorFault(pointer(name), "must be 1 to 200 characters, none of them a control character")
    yield from _parameter_faults(method)
    if len(method.inputs) > _MOST_INPUTS:
        yield DescriptorFault("/inputs", f"more than {_MOST_INPUTS} inputs; make a list of one of them, or a file")
        return
    for name, described in method.inputs.items():
        yield from _input_faults(name, described, ("inputs", name))
    yield from placing_faults(method)
    yield from wish_faults(method)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable() and bool(text.strip())  # noqa: PLR2004 - as the message says


def _parameter_faults(method: Method) -> Iterator[DescriptorFault]:
    told = method.additional_parameters.parameters if method.additional_parameters else ()
    names = {one.name for one in told}
    seen = set()
    meant = set()
    for number, one in enumerate(told):
        steps = ("additionalParameters", "parameters", number)
        near = get_close_matches(one.name.lower().replace("_", "-"), SCRIPTS, 1, 0.85)
        if one.name in SCRIPTS:
            yield from _script_faults(one, steps, twice=one.name in seen)
            seen.add(one.name)
        elif near and near[0] not in names:
            meant.add(near[0])
            yield DescriptorFault(pointer(*steps, "name"), f"'{short(one.name)}': did you mean '{near[0]}'?")
    if EXECUTE not in meant and not any(line.strip() for line in method.script(EXECUTE)):
        yield DescriptorFault("/additionalParameters/parameters", _no_script(method))


def _script_faults(one: AdditionalParameter, steps: Steps, *, twice: bool) -> Iterator[DescriptorFault]:
    if twice:
        yield DescriptorFault(pointer(*steps), f"'{one.name}' is said twice; put its lines together")
    for line, text in enumerate(one.value):
        if not isinstance(text, str) or "\0" in text:
            yield DescriptorFault(
                pointer(*steps, "value", line), "a line of a script is text without NUL; put it in quotes"
            )


def _no_script(method: Method) -> str:
    if method.code is not None and method.code.entrypoint:
        return f"no script: this is the record of a Python Method; run its code, {method.code.entrypoint}"
    return f"there is no '{EXECUTE}'; add one, with a list of lines as its value"


def _input_faults(name: str, described: InputDescription, steps: Steps) -> Iterator[DescriptorFault]:
    extra = described.model_extra or {}
    if not _is_name(name) or "{" in name or "}" in name:
        yield DescriptorFault(
            pointer(*steps), "an input's name has 1 to 200 characters, no braces and no control characters"
        )
    if extra.get("id", name) != name:
        yield DescriptorFault(pointer(*steps, "id"), f"{short(repr(extra['id']))}: the input is called '{short(name)}'")
    for unknown in extra:
        near = get_close_matches(unknown, ("minOccurs", "maxOccurs"), 1, 0.85)
        if near:
            yield DescriptorFault(pointer(*steps, unknown), f"unknown; did you mean '{near[0]}'?")
    if described.max_occurs != "unbounded" and described.max_occurs < max(1, described.min_occurs):
        yield DescriptorFault(pointer(*steps, "maxOccurs"), "must be 1 or more, and not below minOccurs")
    found = list(schema_faults(described, *steps, "schema"))
    yield from found
    if not found:
        yield from _binding_faults(name, described, (*steps, "schema"))


def _binding_faults(name: str, described: InputDescription, steps: Steps) -> Iterator[DescriptorFault]:
    for unknown in described.json_schema:
        if unknown != "readOnly" and unknown.lower().replace("_", "") == "readonly":
            yield DescriptorFault(pointer(*steps, unknown), "unknown; did you mean 'readOnly'?")
    bound = described.json_schema.get("readOnly")
    if bound is not None and not isinstance(bound, bool):
        yield DescriptorFault(pointer(*steps, "readOnly"), "true or false is wanted")
    if described.is_secret and described.is_list:
        yield DescriptorFault(pointer(*steps[:-1], "maxOccurs"), "a secret is a single value; declare several inputs")
    # CCP: an image may be empty and is then the basic one
    if described.is_bound and default_of(described) is ABSENT and described.min_occurs and name != IMAGE:
        cure = "give the name of a Secret block or env:NAME" if described.is_secret else "give it"
        yield DescriptorFault(
            pointer(*steps, "default"), f"an input that is bound (readOnly) needs its value here; {cure}"
        )
