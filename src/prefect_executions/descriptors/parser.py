"""The parser of descriptors: bytes to JSON values, from JSON or the JSON-compatible part of YAML.

A descriptor is untrusted input: size and depth are bounded, duplicate members are
refused, and YAML may have neither aliases nor tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from prefect_executions.documents import decode_text, strict_json
from prefect_executions.errors import BundleError, MethodError

MAX_BYTES = 1024 * 1024  # scripts are text; CCP's descriptors have a few thousand bytes
MAX_DEPTH = 64

# The core schema of YAML 1.2 (section 10.3.2), which reads "no", 12:30 and 010 differently than YAML 1.1.
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "null": None, "~": None, "true": True, "false": False}


class DescriptorFault(NamedTuple):
    """A fault in a descriptor, and its place as a JSON pointer (RFC 6901)."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the descriptor'}: {self.message}"


def pointer(*steps: str | int) -> str:
    """Return the JSON pointer of *steps*."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)


def parse(data: bytes, name: str) -> Any:
    """Return the JSON value in the file *name*: YAML if it ends in ``.yaml`` or ``.yml``, else JSON.

    Raises:
        MethodError: If *data* is too large, nested too deeply, not valid JSON or YAML, or
            has a value that JSON cannot hold.
    """
    if len(data) > MAX_BYTES:
        raise MethodError(f"{name}: larger than {MAX_BYTES} bytes; move data from the scripts into an input file")
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise MethodError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if PurePath(name).suffix.lower() in {".yaml", ".yml"}:
        value = _yaml(text, name)
    else:
        try:
            value = strict_json(text, name)
        except BundleError as error:
            raise MethodError(str(error)) from error
    fault = next(_faults(value), None)
    if fault:
        raise MethodError(f"{name}: {fault}")
    return value


def _faults(value: Any) -> Iterator[DescriptorFault]:
    # A loop, because recursion would fail on a document that is nested too deeply.
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        steps, part = waiting.pop()
        if len(steps) > MAX_DEPTH:
            yield DescriptorFault(pointer(*steps[:8]), f"nested deeper than {MAX_DEPTH} levels")
            return
        if isinstance(part, float) and not math.isfinite(part):
            yield DescriptorFault(pointer(*steps), "the number is too large")
        elif isinstance(part, str) and not _encodes(part):
            yield DescriptorFault(pointer(*steps), "half a surrogate pair is not a character; write the pair")
        elif isinstance(part, dict):
            if not all(map(_encodes, part)):
                yield DescriptorFault(pointer(*steps), "a member's name has half a surrogate pair")
            waiting += [((*steps, key), inner) for key, inner in part.items()]
        elif isinstance(part, list):
            waiting += [((*steps, number), inner) for number, inner in enumerate(part)]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Open:
    """A YAML list or mapping that has not ended yet."""

    def __init__(self, value: list[Any] | dict[str, Any]) -> None:
        self.value = value
        self.key: str | None = None


def _yaml(text: str, name: str) -> Any:
    try:
        return _build(text, name)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise MethodError(f"{name}:{line}: invalid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise MethodError(f"{name}: invalid YAML: {error}") from error


def _build(text: str, name: str) -> Any:
    """Build the value from YAML's events, each of which is checked first."""
    documents: list[Any] = []
    opened: list[_Open] = []
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        _refuse(event, f"{name}:{line}")
        if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(opened) >= MAX_DEPTH:
                raise MethodError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels")
            container: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            _put(container, documents, opened, f"{name}:{line}")
            opened.append(_Open(container))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and not event.style
            _put(_scalar(event.value, f"{name}:{line}") if plain else event.value, documents, opened, f"{name}:{line}")
    if len(documents) != 1:
        raise MethodError(f"{name}: holds {len(documents)} YAML documents; a descriptor is one document")
    return documents[0]


def _refuse(event: yaml.Event, where: str) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise MethodError(f"{where}: an alias or anchor, which is not allowed; write the value out")
    if getattr(event, "tag", None):
        raise MethodError(f"{where}: the tag '{str(getattr(event, 'tag', ''))[:80]}', which is not allowed; remove it")


def _put(value: Any, documents: list[Any], opened: list[_Open], where: str) -> None:
    if not opened:
        documents.append(value)
        return
    holder = opened[-1]
    if isinstance(holder.value, list):
        holder.value.append(value)
    elif holder.key is not None:
        holder.value[holder.key] = value
        holder.key = None
    elif not isinstance(value, str):
        raise MethodError(f"{where}: a member's name must be text; put it in quotes")
    elif value in holder.value:
        raise MethodError(f"{where}: the member '{value[:80]}' occurs twice")
    else:
        holder.key = value


def _scalar(text: str, where: str) -> Any:
    word = text.lower()
    if word in _WORDS and text in {word, word.capitalize(), word.upper()}:
        return _WORDS[word]
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    except ValueError as error:
        raise MethodError(f"{where}: the number is too large") from error
    return text
