"""The arguments of one call: which are files and secrets, and what stands for them in the record."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefect_executions import engine
from prefect_executions.bundles.writing import OpenBundle
from prefect_executions.capture.parameters import WITHHELD, plain_value, resolved_name
from prefect_executions.capture.secrets import SecretMask, mask_credentials
from prefect_executions.capture.staging import Staged, stage
from prefect_executions.executions import StagedInput
from prefect_executions.flow.declared import Declared
from prefect_executions.methods import InputFile
from prefect_executions.settings import ArchiveLevel, Settings

Visit = Callable[[str, InputFile], Any]


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
            for name, value in self.bound.arguments.items()
        }

    def files(self) -> dict[str, list[str]]:
        """Return the paths and URLs of all files that are to be staged, by the name of their input."""
        asked: dict[str, list[str]] = {}

        def noted(path: str, file: InputFile) -> InputFile:
            asked.setdefault(path, []).append(file.origin)
            return file

        for name, value in self.bound.arguments.items():
            _walk(name, value, noted)
        return asked

    def resolve_secrets(self, environment: Mapping[str, str], mask: SecretMask) -> dict[str, Any]:
        """Put each secret's value in the place of its name, tell *mask*, and return how the record tells it.

        Raises:
            SecretError: If a name resolves to nothing.
        """
        told = {}
        for name in sorted(self._declared.method.secrets & self.bound.arguments.keys()):
            reference = self.bound.arguments[name]
            if reference is None:
                continue
            value = engine.secret(name, reference, environment)
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
        mask: SecretMask,
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
        for origin in chain.from_iterable(asked.values()):
            mask_credentials(origin, mask)
        waiting: dict[str, Iterator[tuple[StagedInput, Path]]] = {}
        told: list[StagedInput] = []
        arrived = stage(asked, bundle.scratch / "inputs", progress=progress)
        for name in asked:
            placed = [_place(one, bundle, level, settings) for one in arrived if one.input == name]
            waiting[name] = iter(placed)
            self.staged[name] = tuple(path for _, path in placed)
            told += [record for record, _ in placed]
        for name, value in self.bound.arguments.items():
            self.bound.arguments[name] = _walk(name, value, lambda path, _: _copy(waiting[path]))
        return tuple(told)


def _as_file(value: Any) -> Any:
    """A default is not validated by Prefect, so a path may stand where an `InputFile` is declared."""
    if isinstance(value, list | tuple):
        return type(value)(_as_file(part) for part in value)
    return InputFile(value) if isinstance(value, str | os.PathLike) else value


def _walk(name: str, value: Any, visit: Visit) -> Any:
    """Return *value* with each file in it replaced by what *visit* returns for it; what has none stays itself."""
    if isinstance(value, InputFile):
        return visit(name, value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts = [_walk(name, part, visit) for part in value]
        return value if _same(parts, value) else type(value)(parts)
    if isinstance(value, dict):
        named = {key: _walk(f"{name}.{key}", part, visit) for key, part in value.items()}
        return value if _same(named.values(), value.values()) else named
    if isinstance(value, BaseModel):
        fields = {field: getattr(value, field) for field in type(value).model_fields}
        changed = _changed(name, fields, visit)
        return value.model_copy(update=changed) if changed else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = _changed(name, {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}, visit)
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _changed(name: str, fields: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    walked = {field: _walk(f"{name}.{field}", part, visit) for field, part in fields.items()}
    return {field: part for field, part in walked.items() if part is not fields[field]}


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
