"""The arguments of one call: staging of files, resolution of secrets, and their values in the record."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    PlainValidator,
    PydanticUserError,
    SecretStr,
    TypeAdapter,
    WrapValidator,
)

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.parameters import register_credentials, resolved_name, without_credentials
from prefect_executions.capture.secrets import SecretMask, free_path, masked_name
from prefect_executions.capture.staging import Staged, stage
from prefect_executions.documents import json_value
from prefect_executions.errors import InputError, SecretError
from prefect_executions.executions.record import RerunSource, StagedInput
from prefect_executions.executions.value_types import WITHHELD
from prefect_executions.executions.values import ValueForm, input_form, recorded_form, same_form, type_name
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.shared_secrets import SharedSecrets
from prefect_executions.methods.model import FILE_FORMAT, InputFile
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import ArchiveLevel, Settings

Visit = Callable[[str, InputFile], Any]
Shape = Mapping[str, Any]
"""The JSON Schema of a value; empty if there is none."""

_SECONDS_BETWEEN_STAGING_LINES = 2.0

_SEVERAL = (list, tuple, set, frozenset)

_RECEIVERS = frozenset({"self", "cls"})
"""Parameters that Python fills in and Prefect's form omits."""


class RecordedInputs(NamedTuple):
    """The recorded values of all inputs, and how a rerun gets those that the record cannot supply."""

    values: dict[str, Any]
    rerun: dict[str, RerunSource]


class Inputs:
    """The bound arguments of a Method's function, changed in place until the function is called.

    Attributes:
        bound: The arguments as the function gets them.
        staged: The staged files by input name; a file inside a model has a name like ``options.scene``.
    """

    def __init__(self, declared: Declared, bound: inspect.BoundArguments) -> None:
        self._declared = declared
        self.bound = bound
        self.staged: dict[str, tuple[Path, ...]] = {}
        self._resolved: dict[str, SecretStr] = {}
        self._unresolved: SecretError | None = None
        described = declared.method.inputs
        for name, value in bound.arguments.items():
            if name in described and described[name].is_file:
                bound.arguments[name] = _as_file(value)

    def recorded(self, names: tuple[str, ...] = ()) -> RecordedInputs:
        """Return the recorded values of all inputs, with secrets withheld; *names* are additional names of secrets.

        Raises:
            InputError: If neither a value nor its digest can be recorded; the message names the input.
        """
        values: dict[str, Any] = {}
        rerun: dict[str, RerunSource] = {}
        files = self.files()
        for name, value in self._given():
            if name in self._declared.method.secrets:
                values[name] = None if value is None else dict(WITHHELD)
                continue
            try:
                form, exact = self._form(name, value)
            except InputError as error:
                if not self._is_default(name, value):
                    raise InputError(f"input '{name}' {error}") from error
                form, exact = {"unrecorded": type_name(value)}, False
            values[name] = without_credentials(form, "" if name in files else name, names)
            if not exact or values[name] != form:
                rerun[name] = "default" if self._is_default(name, value) else "caller"
        return RecordedInputs(values, rerun)

    def files(self) -> dict[str, list[str]]:
        """Return the paths and URLs of all files to stage, by input name."""
        origins: dict[str, list[str]] = {}

        def add(path: str, file: InputFile) -> InputFile:
            origins.setdefault(path, []).append(file.origin)
            return file

        for name, value in self._given():
            _walk(name, value, add, self._shape(name))
        return origins

    def register_secrets(
        self, environment: Mapping[str, str], shared: SharedSecrets, names: tuple[str, ...] = ()
    ) -> None:
        """Look up the value of each secret; add these values and all credentials among the arguments to *shared*.

        The failure of a look-up is raised by `resolve_secrets`, when there is a record of it.
        """
        files = self.files()
        for name, value in self._given():
            register_credentials({"" if name in files else name: json_value(value)}, shared.mask, names)
        for name in sorted(self._declared.method.secrets & self.bound.arguments.keys()):
            reference = self.bound.arguments[name]
            if reference is None:
                continue
            try:
                self._resolved[name] = blocks.resolve_secret(name, reference, environment)
            except SecretError as error:
                self._unresolved = error
                return
            shared.add(reference, self._resolved[name].get_secret_value())

    def resolve_secrets(self) -> dict[str, Any]:
        """Replace the name of each secret by its value; return the names for the record.

        Raises:
            SecretError: If no secret has that name.
        """
        if self._unresolved is not None:
            raise self._unresolved
        names = {}
        for name, value in self._resolved.items():
            names[name] = resolved_name(self.bound.arguments[name])
            wrapped = name in self._declared.wrapped
            self.bound.arguments[name] = value if wrapped else value.get_secret_value()
        return names

    def stage(
        self,
        bundle: OpenBundle,
        level: ArchiveLevel,
        settings: Settings,
        progress: Callable[[str, int, int | None], None],
        mask: SecretMask,
    ) -> tuple[StagedInput, ...]:
        """Stage all files, replace them by their copies in the arguments, and return their records.

        At archive level ``full``, copies up to the size limit go into the bundle. Others
        stay in the scratch folder until the end of the execution. Names and origins are masked.

        Raises:
            InputError: If a file is missing or cannot be read; the message names the input.
        """
        origins = self.files()
        if not origins:
            return ()
        copies: dict[str, Iterator[tuple[StagedInput, Path]]] = {}
        records: list[StagedInput] = []
        all_staged = stage(origins, bundle.scratch / "inputs", progress=progress)
        for name in origins:
            placed = [_place(staged, bundle, level, settings, mask) for staged in all_staged if staged.input == name]
            copies[name] = iter(placed)
            self.staged[name] = tuple(path for _, path in placed)
            records += [record for record, _ in placed]
        for name, value in self._given():
            self.bound.arguments[name] = _walk(name, value, lambda path, _: _copy(copies[path]), self._shape(name))
        return tuple(records)

    def _form(self, name: str, value: Any) -> ValueForm:
        value = _walk(name, value, lambda _, file: file, self._shape(name))
        described = self._declared.method.inputs.get(name)
        is_file = described is not None and described.is_file
        kind = annotations_of(self._declared.function).get(name, _ANYTHING)
        return input_form(
            value,
            lambda given: _as_file(kind.validate(given)) if is_file else kind.validate(given),
            converts=kind.converts,
        )

    def _is_default(self, name: str, value: Any) -> bool:
        """Whether *value* is the parameter's default; validation may have copied it."""
        parameter = inspect.signature(self._declared.function).parameters.get(name)
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return False
        try:
            return value is parameter.default or same_form(recorded_form(value), recorded_form(parameter.default))
        except InputError:
            return False

    def _given(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self.bound.arguments.items() if name not in _RECEIVERS]

    def _shape(self, name: str) -> Shape:
        """Return the schema from the input's annotation; a descriptor's schema does not describe files in values."""
        described = self._declared.method.inputs.get(name)
        return described.json_schema if described is not None and not self._declared.is_scripted else {}


class Annotation(NamedTuple):
    """The annotation of a parameter: how it validates a requested value, and whether it may change a valid value."""

    validate: Callable[[Any], Any]
    converts: bool


_ANYTHING = Annotation(lambda value: value, converts=False)
_PLAIN = frozenset({inspect.Parameter.empty, Any, None, bool, int, float, str, InputFile})


@lru_cache(maxsize=256)
def annotations_of(function: Callable[..., Any]) -> Mapping[str, Annotation]:
    """Return the annotations of the parameters of *function*; those that cannot be evaluated are left out."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception:  # noqa: BLE001 - an annotation for type checkers only, whose evaluation runs the author's code
        return {}
    return {
        name: Annotation(_Validator(parameter.annotation), _converts(parameter.annotation))
        for name, parameter in parameters.items()
        if parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    }


class _Validator:
    """Validates a value as Prefect does; pydantic's part is built when it is first needed."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = Any if annotation is inspect.Parameter.empty else annotation
        self._adapter: TypeAdapter[Any] | None = None

    def __call__(self, value: Any) -> Any:
        if self._adapter is None:
            try:
                self._adapter = TypeAdapter(self._annotation, config={"arbitrary_types_allowed": True})
            except PydanticUserError:  # a model has a configuration of its own
                self._adapter = TypeAdapter(self._annotation)
        return self._adapter.validate_python(value)


def _converts(annotation: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether the author's own validators may change a value that is valid already."""
    try:
        if annotation in _PLAIN or annotation in seen:
            return False
    except TypeError:  # not hashable, as `Annotated` with a list
        return True
    if any(isinstance(part, _VALIDATORS) for part in getattr(annotation, "__metadata__", ())):
        return True
    decorators = getattr(annotation, "__pydantic_decorators__", None)
    if decorators and (decorators.validators or decorators.field_validators or decorators.model_validators):
        return True
    fields = list(getattr(annotation, "__pydantic_fields__", {}).values())
    if any(isinstance(part, _VALIDATORS) for field in fields for part in field.metadata):
        return True
    inner = [*get_args(annotation), *(field.annotation for field in fields)]
    return any(_converts(part, seen | {annotation}) for part in inner)


_VALIDATORS = (BeforeValidator, AfterValidator, WrapValidator, PlainValidator)


def staging_progress(log: LoggerAdapter[Logger]) -> Callable[[str, int, int | None], None]:
    """Return a callback that logs the progress of staging every two seconds."""
    next_line = time.monotonic() + _SECONDS_BETWEEN_STAGING_LINES

    def report(name: str, done: int, total: int | None) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + _SECONDS_BETWEEN_STAGING_LINES
            log.info("input '%s': %s of %s bytes", name, done, "?" if total is None else total)

    return report


def _as_file(value: Any) -> Any:
    """Convert paths to `InputFile`: Prefect does not validate defaults, so a default may be a plain path."""
    if isinstance(value, _SEVERAL) and not hasattr(value, "_fields"):
        return type(value)(_as_file(part) for part in value)
    return InputFile(value) if isinstance(value, str | os.PathLike) else value


def _walk(name: str, value: Any, visit: Visit, shape: Shape) -> Any:
    """Return *value* with each file in it replaced by the result of *visit*; return *value* itself if it has none.

    Fields of dataclasses and defaults of models are not validated. So a plain path
    counts as a file if *shape* declares a file there.
    """
    if isinstance(value, InputFile):
        return visit(name, value)
    if isinstance(value, str | os.PathLike):
        return visit(name, InputFile(value)) if _is_file_schema(shape) else value
    if isinstance(value, _SEVERAL):
        parts = [_walk(name, part, visit, _inside(shape)) for part in value]
        return value if _same(parts, value) else _like(value, parts)
    if isinstance(value, dict):
        named = {key: _walk(f"{name}.{key}", part, visit, _inside(shape, key)) for key, part in value.items()}
        return value if _same(named.values(), value.values()) else named
    members = _members(value)
    walked = {
        field: _walk(f"{name}.{alias}", getattr(value, field), visit, _inside(shape, alias))
        for field, alias in members.items()
    }
    changed = {field: part for field, part in walked.items() if part is not getattr(value, field)}
    if not changed:
        return value
    return value.model_copy(update=changed) if isinstance(value, BaseModel) else dataclasses.replace(value, **changed)


def _members(value: Any) -> dict[str, str]:
    """Return the fields of a model or dataclass with their names in the record; empty for other values."""
    if isinstance(value, BaseModel):
        return {name: field.serialization_alias or name for name, field in type(value).model_fields.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: field.name for field in dataclasses.fields(value)}
    return {}


def _choices(shape: Shape) -> list[Shape]:
    choices = shape.get("anyOf") or shape.get("oneOf") or [shape]
    return [choice for choice in choices if isinstance(choice, dict)]


def _is_file_schema(shape: Shape) -> bool:
    strings = [choice for choice in _choices(shape) if choice.get("type") == "string"]
    return bool(strings) and all(choice.get("format") == FILE_FORMAT for choice in strings)


def _inside(shape: Shape, name: str | None = None) -> Shape:
    """Return the schema of the member *name*, or of the items if *name* is None; empty if there is none."""
    for choice in _choices(shape):
        members = choice.get("properties", {})
        inner = choice.get("items") if name is None else members.get(name, choice.get("additionalProperties"))
        if isinstance(inner, dict):
            return inner
    return {}


def _like(value: Any, parts: list[Any]) -> Any:
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(first is second for first, second in zip(left, right, strict=True))


def _place(
    staged: Staged, bundle: OpenBundle, level: ArchiveLevel, settings: Settings, mask: SecretMask
) -> tuple[StagedInput, Path]:
    """Move a staged file into the bundle if level and limit allow it; return its record and its path."""
    in_bundle: Path | None = None
    if level is ArchiveLevel.FULL and staged.size <= settings.input_limit:
        relative = staged.path.relative_to(bundle.scratch / "inputs").as_posix()
        in_bundle = bundle.paths.inputs / masked_name(relative, mask)
        in_bundle = free_path(in_bundle) if in_bundle.name != staged.path.name else in_bundle
        in_bundle.parent.mkdir(parents=True, exist_ok=True)
        staged.path.replace(in_bundle)
    record = StagedInput(
        input=staged.input,
        name=mask.mask(staged.name),
        path=in_bundle and in_bundle.relative_to(bundle.folder).as_posix(),
        origin=mask.mask(staged.origin),
        sha256=staged.sha256,
        size=staged.size,
        media_type=staged.media_type,
        etag=staged.etag,
    )
    return record, in_bundle or staged.path


def _copy(copies: Iterator[tuple[StagedInput, Path]]) -> InputFile:
    record, path = next(copies)
    return InputFile(path, origin=record.origin)
