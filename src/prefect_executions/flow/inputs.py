"""The arguments of one call: which are files and secrets, and what stands for them in the record."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.parameters import WITHHELD, plain_value, register_credentials, resolved_name
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.capture.staging import Staged, stage
from prefect_executions.documents import json_value
from prefect_executions.executions.record import StagedInput
from prefect_executions.flow.declared import Declared
from prefect_executions.methods.model import FILE_FORMAT, InputFile
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import ArchiveLevel, Settings

Visit = Callable[[str, InputFile], Any]
Shape = Mapping[str, Any]
"""The JSON Schema of a value; empty where nothing is known of it."""

_SEVERAL = (list, tuple, set, frozenset)

_RECEIVERS = frozenset({"self", "cls"})
"""Parameters that Python fills in, and Prefect leaves out of the form: what a method is called on."""


class Inputs:
    """The bound arguments of a Method's function, on their way to it.

    Attributes:
        bound: The arguments as the function gets them.
        staged: The staged files, by the name of their input; a file inside a
            model has a name like ``options.scene``.
    """

    def __init__(self, declared: Declared, bound: inspect.BoundArguments) -> None:
        self._declared = declared
        self.bound = bound
        self.staged: dict[str, tuple[Path, ...]] = {}
        described = declared.method.inputs
        for name, value in bound.arguments.items():
            if name in described and described[name].is_file:
                bound.arguments[name] = _as_file(value)

    def values(self) -> dict[str, Any]:
        """Return the JSON values of all inputs; secrets are withheld until they are resolved."""
        secrets = self._declared.method.secrets
        return {
            name: dict(WITHHELD) if name in secrets and value is not None else plain_value(value)
            for name, value in self._given()
        }

    def files(self) -> dict[str, list[str]]:
        """Return the paths and URLs of all files that are to be staged, by the name of their input."""
        asked: dict[str, list[str]] = {}

        def noted(path: str, file: InputFile) -> InputFile:
            asked.setdefault(path, []).append(file.origin)
            return file

        for name, value in self._given():
            _walk(name, value, noted, self._shape(name))
        return asked

    def resolve_secrets(self, environment: Mapping[str, str], mask: SecretMask) -> dict[str, Any]:
        """Put each secret's value in the place of its name, and return how the record tells it.

        *mask* is told these values, and what the URLs among all arguments grant access with.

        Raises:
            SecretError: If a name resolves to nothing.
        """
        register_credentials([json_value(value) for _, value in self._given()], mask)
        told = {}
        for name in sorted(self._declared.method.secrets & self.bound.arguments.keys()):
            reference = self.bound.arguments[name]
            if reference is None:
                continue
            value = blocks.resolve_secret(name, reference, environment)
            mask.add(value.get_secret_value())
            told[name] = resolved_name(reference)
            wrapped = name in self._declared.wrapped
            self.bound.arguments[name] = value if wrapped else value.get_secret_value()
        return told

    def stage(
        self,
        bundle: OpenBundle,
        level: ArchiveLevel,
        settings: Settings,
        progress: Callable[[str, int, int | None], None],
    ) -> tuple[StagedInput, ...]:
        """Stage all files, hand their copies to the function, and return what the record tells of them.

        A copy is kept in the bundle at the archive level ``full`` and up to the
        size limit; a larger one lies in the scratch folder until the end.

        Raises:
            InputError: If a file is missing or cannot be read; the message names the input.
        """
        asked = self.files()
        if not asked:
            return ()
        waiting: dict[str, Iterator[tuple[StagedInput, Path]]] = {}
        told: list[StagedInput] = []
        arrived = stage(asked, bundle.scratch / "inputs", progress=progress)
        for name in asked:
            placed = [_place(one, bundle, level, settings) for one in arrived if one.input == name]
            waiting[name] = iter(placed)
            self.staged[name] = tuple(path for _, path in placed)
            told += [record for record, _ in placed]
        for name, value in self._given():
            self.bound.arguments[name] = _walk(name, value, lambda path, _: _copy(waiting[path]), self._shape(name))
        return tuple(told)

    def _given(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self.bound.arguments.items() if name not in _RECEIVERS]

    def _shape(self, name: str) -> Shape:
        """The schema that an input's annotation gave; that of a descriptor says nothing of files inside a value."""
        described = self._declared.method.inputs.get(name)
        return described.json_schema if described is not None and not self._declared.is_scripted else {}


def _as_file(value: Any) -> Any:
    """A default is not validated by Prefect, so a path may stand where an `InputFile` is declared."""
    if isinstance(value, _SEVERAL) and not hasattr(value, "_fields"):
        return type(value)(_as_file(part) for part in value)
    return InputFile(value) if isinstance(value, str | os.PathLike) else value


def _walk(name: str, value: Any, visit: Visit, shape: Shape) -> Any:
    """Return *value* with each file in it replaced by what *visit* returns for it; what has none stays itself.

    Nobody validates what a dataclass was made with or a model holds by default, so
    where *shape* says that a file is, a path is one.
    """
    if isinstance(value, InputFile):
        return visit(name, value)
    if isinstance(value, str | os.PathLike):
        return visit(name, InputFile(value)) if _says_file(shape) else value
    if isinstance(value, _SEVERAL):
        parts = [_walk(name, part, visit, _inside(shape)) for part in value]
        return value if _same(parts, value) else _like(value, parts)
    if isinstance(value, dict):
        named = {key: _walk(f"{name}.{key}", part, visit, _inside(shape, key)) for key, part in value.items()}
        return value if _same(named.values(), value.values()) else named
    members = _members(value)
    walked = {
        field: _walk(f"{name}.{told}", getattr(value, field), visit, _inside(shape, told))
        for field, told in members.items()
    }
    changed = {field: part for field, part in walked.items() if part is not getattr(value, field)}
    if not changed:
        return value
    return value.model_copy(update=changed) if isinstance(value, BaseModel) else dataclasses.replace(value, **changed)


def _members(value: Any) -> dict[str, str]:
    """The fields of a model or dataclass, each with the name by which the record tells it; none of anything else."""
    if isinstance(value, BaseModel):
        return {field: told.serialization_alias or field for field, told in type(value).model_fields.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: field.name for field in dataclasses.fields(value)}
    return {}


def _choices(shape: Shape) -> list[Shape]:
    return [one for one in shape.get("anyOf") or shape.get("oneOf") or [shape] if isinstance(one, dict)]


def _says_file(shape: Shape) -> bool:
    texts = [one for one in _choices(shape) if one.get("type") == "string"]
    return bool(texts) and all(one.get("format") == FILE_FORMAT for one in texts)


def _inside(shape: Shape, name: str | None = None) -> Shape:
    """Return the schema of the member *name*, or of each part where there are no names; empty where none is told."""
    for one in _choices(shape):
        members = one.get("properties", {})
        found = one.get("items") if name is None else members.get(name, one.get("additionalProperties"))
        if isinstance(found, dict):
            return found
    return {}


def _like(value: Any, parts: list[Any]) -> Any:
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(left, right, strict=True))


def _place(one: Staged, bundle: OpenBundle, level: ArchiveLevel, settings: Settings) -> tuple[StagedInput, Path]:
    """Move a staged file into the bundle if it is to be kept there; return its record and where it lies."""
    kept: Path | None = None
    if level is ArchiveLevel.FULL and one.size <= settings.input_limit:
        kept = bundle.paths.inputs / one.path.relative_to(bundle.scratch / "inputs")
        kept.parent.mkdir(parents=True, exist_ok=True)
        one.path.replace(kept)
    record = StagedInput(
        input=one.input,
        name=one.name,
        path=kept and kept.relative_to(bundle.folder).as_posix(),
        origin=one.origin,
        sha256=one.sha256,
        size=one.size,
        media_type=one.media_type,
        etag=one.etag,
    )
    return record, kept or one.path


def _copy(waiting: Iterator[tuple[StagedInput, Path]]) -> InputFile:
    record, path = next(waiting)
    return InputFile(path, origin=record.origin)
