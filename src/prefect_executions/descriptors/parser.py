"""A descriptor's bytes as JSON values: JSON, or the part of YAML that says the same.

A descriptor may come from anybody, so size and depth are bounded, a member
said twice is refused, and YAML has neither aliases nor tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError, MethodError

MOST_BYTES = 1024 * 1024  # scripts are text; a descriptor of CCP has a few thousand bytes
MOST_DEPTH = 64

# The core schema of YAML 1.2 (section 10.3.2): "no", 12:30 and 010 are not what YAML 1.1 makes of them.
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "null": None, "~": None, "true": True, "false": False}


class DescriptorFault(NamedTuple):
    """What is wrong in a descriptor, and where: a JSON pointer (RFC 6901)."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the descriptor'}: {self.message}"


def pointer(*steps: str | int) -> str:
    """Return the JSON pointer of *steps*."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in steps)


def parse(data: bytes, name: str) -> Any:
    """Return the JSON value that the file *name* holds: YAML when it ends in ``.yaml`` or ``.yml``, else JSON.

    Raises:
        MethodError: If it is too large or too deep, is neither, or says what JSON cannot.
    """
    if len(data) > MOST_BYTES:
        raise MethodError(f"{name}: larger than {MOST_BYTES} bytes; move what the scripts carry into an input file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MethodError(f"{name}: byte {error.start} is no UTF-8; save the file as UTF-8") from error
    if PurePath(name).suffix.lower() in {".yaml", ".yml"}:
        value = _yaml(text, name)
    else:
        try:
            value = strict_json(text, name)
        except BundleError as error:
            raise MethodError(str(error)) from error
    faults = [f"{fault}" for fault in _unusable(value)]
    if faults:
        raise MethodError(f"{name}: {faults[0]}")
    return value


def _unusable(value: Any) -> Iterator[DescriptorFault]:
    """Yield what nothing after us could hold, without recursion."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        steps, part = waiting.pop()
        if len(steps) > MOST_DEPTH:
            yield DescriptorFault(pointer(*steps[:8]), f"nests deeper than {MOST_DEPTH} levels")
            return
        if isinstance(part, float) and not math.isfinite(part):
            yield DescriptorFault(pointer(*steps), "the number is too large")
        elif isinstance(part, str) and not _encodes(part):
            yield DescriptorFault(pointer(*steps), "half a surrogate pair is no character; write the whole one")
        elif isinstance(part, dict):
            bad = next((key for key in part if not _encodes(key)), None)
            if bad is not None:
                yield DescriptorFault(pointer(*steps), "a member's name holds half a surrogate pair")
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
    """A YAML list or mapping that is still being read."""

    def __init__(self, value: list[Any] | dict[str, Any]) -> None:
        self.value = value
        self.key: str | None = None


def _yaml(text: str, name: str) -> Any:
    try:
        return _built(text, name)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise MethodError(f"{name}:{line}: this is no YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise MethodError(f"{name}: this is no YAML: {error}") from error


def _built(text: str, name: str) -> Any:
    """Build the value from YAML's events, so that nothing is built before it is judged."""
    done: list[Any] = []
    opened: list[_Open] = []
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        _refuse(event, f"{name}:{line}")
        if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(opened) >= MOST_DEPTH:
                raise MethodError(f"{name}:{line}: nests deeper than {MOST_DEPTH} levels")
            fresh: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            _put(fresh, done, opened, f"{name}:{line}")
            opened.append(_Open(fresh))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and not event.style
            _put(_scalar(event.value, f"{name}:{line}") if plain else event.value, done, opened, f"{name}:{line}")
    if len(done) != 1:
        raise MethodError(f"{name}: holds {len(done)} YAML documents; a descriptor is one")
    return done[0]


def _refuse(event: yaml.Event, where: str) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise MethodError(f"{where}: an alias or anchor; write the value out, a descriptor has none")
    if getattr(event, "tag", None):
        raise MethodError(f"{where}: the tag '{str(getattr(event, 'tag', ''))[:80]}'; a descriptor has no tags")


def _put(value: Any, done: list[Any], opened: list[_Open], where: str) -> None:
    if not opened:
        done.append(value)
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
        raise MethodError(f"{where}: the member '{value[:80]}' is said twice")
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
