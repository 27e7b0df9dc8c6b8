"""`@method`: declares a function as a Method, a Prefect flow that records each of its runs.

A Method is a real Prefect `Flow`. `recording` runs inside the flow; `hooks` seals
the record when Prefect has set the final state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Annotated, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from griffe import Docstring, DocstringSectionKind, Parser, parse
from prefect.flows import Flow
from prefect.logging.loggers import disable_logger
from prefect.utilities.callables import generate_parameter_schema, parameter_schema
from pydantic import Field, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict  # before Python 3.12, pydantic refuses the class of `typing`

from prefect_executions.capture import opened_files
from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.errors import MethodError
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.hooks import with_sealing_hook
from prefect_executions.flow.opening import prefetch_code_identity
from prefect_executions.flow.recording import recorded
from prefect_executions.methods.model import Comparison, Method, OutputDescription, check_type
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference, marked, secret_inputs, unmarked
from prefect_executions.prefect_api import blocks, server
from prefect_executions.settings import ArchiveLevel, Settings

# Modules often read their data when they are imported, after this one.
opened_files.watch()

P = ParamSpec("P")
R = TypeVar("R")

_FLOW_OPTIONS = (
    "name",
    "version",
    "flow_run_name",
    "retries",
    "retry_delay_seconds",
    "task_runner",
    "description",
    "timeout_seconds",
    "persist_result",
    "result_storage",
    "result_serializer",
    "cache_result_in_memory",
    "log_prints",
)
_SECRET_NAME = {name: value for name, value in SECRET_FORM.items() if name != "description"}
_BOUND_TO = frozenset({"__prefect_self__", "__prefect_cls__"})
"""Attributes of a flow's function in which Prefect keeps the object or class that it is bound to."""
_FLOW_HOOKS = ("on_completion", "on_failure", "on_cancellation", "on_crashed")


class Declaration(TypedDict, total=False):
    """What the author declares about a Method beside its function: the keyword arguments of `@method`."""

    version: str | None
    title: str | None
    description: str | None
    keywords: Sequence[str] | AbstractSet[str]
    type: str | None
    archive: ArchiveLevel | str | None
    secrets: Sequence[str] | AbstractSet[str]
    outputs: Mapping[str, str] | None
    comparisons: Mapping[str, Comparison] | None


_DECLARATIONS = TypeAdapter(Declaration)


class MethodFlow(Flow[P, R], Generic[P, R]):
    """A Prefect flow whose runs each leave an execution bundle.

    Attributes:
        declaration: The keyword arguments of `@method`.
        time_limit: Seconds that the author's code may take. Prefect's own
            `timeout_seconds` stays empty, because it would include the time of sealing.
        declared: The author's function, and the descriptor that is derived from it and the declaration.
    """

    def __init__(
        self,
        function: Callable[P, R],
        declaration: Declaration,
        *,
        timeout_seconds: float | None = None,
        **options: Any,
    ) -> None:
        _check_function(function)
        prefect_logs.shield()
        options["version"] = declaration.get("version") or options.get("version")
        super().__init__(function, **options)
        function = self.fn  # the function itself, where a class or static method holds it
        schema = self.parameters.model_dump()
        method_type = declaration.get("type")
        if method_type is not None:  # otherwise the settings are not read, so invalid settings do no harm here
            check_type(method_type, Settings.read().method_types)
        secrets = secret_inputs(schema, frozenset(declaration.get("secrets", ())), self.name)
        signature = _form_signature(function, secrets, schema)
        self.declaration = declaration
        self.time_limit = float(timeout_seconds) if timeout_seconds else None
        self.__signature__ = signature = _with_mark(signature, self.version or "0")
        self.parameters = parameter_schema(self)
        self.description = unmarked(self.description)
        if self.description and self.description == inspect.getdoc(function):
            self.description = _prose(self.description)
        declared = Declared(
            function=function, method=self._describe(), wrapped=secret_inputs(schema, frozenset(), self.name)
        )
        if not self.parameters.properties:
            self.description = marked(self.description, self.version or "0")
        self._record(declared, recorded(declared), signature)

    def _record(self, declared: Declared, body: Callable[..., Any], signature: inspect.Signature) -> None:
        """Make *body*, which records, the function of this flow; add the hooks that seal."""
        self.declared = declared
        self.fn = body
        self.fn.__signature__ = signature  # type: ignore[attr-defined]  # a function takes any attribute
        for name in _FLOW_HOOKS:
            hooks = getattr(self, f"{name}_hooks")
            hooks[:] = with_sealing_hook(hooks, declared)

    @property
    def call_signature(self) -> inspect.Signature:
        """The signature of a call: without `self` or `cls`, which Python fills in."""
        signature = inspect.signature(self.declared.function)
        if not (self.ismethod or self.isclassmethod):
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def method(self) -> Method:
        """The Method's descriptor, without the identity of its code, which each run determines."""
        return self.declared.method

    def _describe(self) -> Method:
        declaration, archive = self.declaration, self.declaration.get("archive")
        return Method(
            id=self.name,
            version=self.version or "0",
            title=declaration.get("title") or self.name.replace("-", " ").replace("_", " ").capitalize(),
            description=declaration.get("description") or self.description,
            keywords=tuple(declaration.get("keywords", ())),
            inputs=inputs_of(self.parameters.model_dump()),
            outputs=_outputs(declaration.get("outputs") or {}),
            comparisons=dict(declaration.get("comparisons") or {}) or None,
            type=declaration.get("type"),
            archive=None if archive is None else ArchiveLevel(archive),
            time_limit=self.time_limit,
        )

    def with_options(self, **options: Any) -> MethodFlow[P, R]:
        """Return this Method with other flow options; takes the arguments of `Flow.with_options`."""
        changed = super().with_options(**options)
        time_limit = options.get("timeout_seconds")
        copied = _of_flow(
            _as_held(self.declared.function, self),
            changed,
            {**self.declaration, "version": options.get("version") or self.declaration.get("version")},
            timeout_seconds=time_limit if time_limit is not None else self.time_limit,
        )
        for name in _BOUND_TO & vars(self.fn).keys():
            setattr(copied.fn, name, getattr(self.fn, name))
        return copied

    if not TYPE_CHECKING:  # the overloads of Flow.__call__ have the types

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the Method as a flow; refuse a secret in plain text before a flow run exists."""
            server.allow_slow_start()
            if self.method.secrets:
                options = {name: kwargs.pop(name) for name in ("return_state", "wait_for") if name in kwargs}
                bound = self.call_signature.bind(*args, **kwargs)
                bound.arguments = dict(bound.arguments) | checked_secrets(self, bound.arguments)
                args, kwargs = bound.args, bound.kwargs | options
            if self.isasync:  # its body identifies the code in a thread
                return super().__call__(*args, **kwargs)
            with prefetch_code_identity(self.declared):
                return super().__call__(*args, **kwargs)


def checked_secrets(flow: MethodFlow[Any, Any], parameters: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the secret inputs among *parameters*, each the name of a secret; called before a flow run is created.

    Raises:
        SecretError: If a value is neither the name of a Secret block nor ``env:NAME``; the message omits the value.
    """
    references = {name: _plain(parameters[name]) for name in sorted(flow.method.secrets & parameters.keys())}
    for name, reference in references.items():
        if reference is not None:
            blocks.check_secret(name, reference)
    return references


@overload
def method(function: Callable[P, R], /) -> MethodFlow[P, R]: ...


@overload
def method(**declaration: Unpack[Declaration]) -> Callable[[Callable[P, R]], MethodFlow[P, R]]: ...


def method(
    function: Callable[P, R] | None = None, /, **declaration: Unpack[Declaration]
) -> MethodFlow[P, R] | Callable[[Callable[P, R]], MethodFlow[P, R]]:
    """Declare a function, sync or async, or an existing `@flow`, as a Method.

    Args:
        function: The function or flow, when the decorator is used without arguments.
        version: The Method's version. Default: the digest of its file, as for any flow.
        title: A short title for readers. Default: the function's name.
        description: A description. Default: the docstring.
        keywords: Words for a search.
        type: A term of the vocabulary, for example ``Training``; EXECUTIONS_METHOD_TYPES adds terms.
        archive: ``full``, ``outputs`` or ``none``. Default: EXECUTIONS_ARCHIVE_LEVEL.
        secrets: Parameters that name a secret; those annotated `SecretStr` always do.
        outputs: Media types of outputs that the Method promises, by name.
        comparisons: How a replay compares outputs, by name or pattern (``plots/*.png``).

    Returns:
        A real Prefect flow.

    Raises:
        MethodError: If the declaration is invalid; the message says why.
    """
    checked = _checked(declaration)

    def declare(declared: Callable[P, R]) -> MethodFlow[P, R]:
        if _is_generator(declared):  # it must not prevent the import of other Methods in its file
            return cast("MethodFlow[P, R]", RefusedMethod(declared))
        if isinstance(declared, MethodFlow):
            raise MethodError(f"'{declared.name}' is a Method already; use @method once")
        if isinstance(declared, Flow):
            function = _as_held(declared.fn, declared)
            return _of_flow(function, declared, checked, timeout_seconds=declared.timeout_seconds)
        return MethodFlow(declared, checked)

    return declare if function is None else declare(function)


class RefusedMethod:
    """A function that cannot be a Method, in the place of the Method: its use says why.

    Attributes:
        error: The reason.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__name__", repr(function))
        self.error = MethodError(
            f"Method '{name}' is a generator (it has 'yield'); write its items as outputs and return at the end"
        )

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise the reason."""
        raise self.error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.error}; it has no '{name}'")


def _is_generator(function: Any) -> bool:
    function = function.fn if isinstance(function, Flow) else getattr(function, "__func__", function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _checked(declaration: Declaration) -> Declaration:
    for name, value in declaration.items():
        if name not in Declaration.__annotations__:
            hint = f"; it is an option of @flow({name}=…), written below @method" if name in _FLOW_OPTIONS else ""
            raise TypeError(f"method() got an unexpected keyword argument '{name}'{hint}")
        if name in {"keywords", "secrets"} and isinstance(value, str):  # a string is a sequence, too
            raise MethodError(f"@method: {name} must be a list of strings: {name}=[{value!r}]")
    archive = declaration.get("archive")
    if archive is not None and archive not in tuple(ArchiveLevel):
        raise MethodError(f"@method: archive must be one of {', '.join(ArchiveLevel)}; {archive!r} was given")
    try:
        return _DECLARATIONS.validate_python(declaration)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MethodError(f"@method: {where} is invalid: {first['msg']}; {first['input']!r} was given") from error


def _of_flow(
    function: Callable[P, R], flow: Flow[P, R], declaration: Declaration, *, timeout_seconds: float | None
) -> MethodFlow[P, R]:
    return MethodFlow(
        function,
        declaration,
        timeout_seconds=timeout_seconds,
        validate_parameters=flow.should_validate_parameters,
        **options_of(flow),
    )


def _as_held(function: Callable[P, R], flow: Flow[P, R]) -> Callable[P, R]:
    """Return *function* wrapped as *flow* was declared in its class: as a class method, static method or function."""
    wrapper: Any = classmethod if flow.isclassmethod else staticmethod if flow.isstaticmethod else None
    return cast("Callable[P, R]", wrapper(function)) if wrapper else function


def options_of(flow: Flow[P, R]) -> dict[str, Any]:
    """Return the options and hooks of *flow*, except its time limit and its validation."""
    options = {name: getattr(flow, name) for name in _FLOW_OPTIONS if name != "timeout_seconds"}
    return options | {name: list(getattr(flow, f"{name}_hooks")) for name in (*_FLOW_HOOKS, "on_running")}


def _check_function(function: Callable[..., Any]) -> None:
    name = getattr(function, "__name__", repr(function))
    if isinstance(function, classmethod | staticmethod):
        function = function.__func__
    if not inspect.isfunction(inspect.unwrap(function)):
        hint = f"; name its arguments: @method(version={function!r})" if isinstance(function, str) else ""
        raise MethodError(f"{name}: @method decorates a function or a flow{hint}")


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _form_signature(
    function: Callable[..., Any], secrets: frozenset[str], schema: Mapping[str, Any]
) -> inspect.Signature:
    """Return the signature for Prefect's form, in which a secret input is the name of a secret.

    Prefect's form takes a description from an annotation only if the annotation's schema has it.
    The form shows the pattern of a secret's name, and Prefect's API checks it. The run itself
    checks in `checked_secrets`, because a validation error might repeat the value.
    """
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation for type checkers only; Prefect does not evaluate it either
        signature = inspect.signature(function)
    parameters = []
    for name, parameter in signature.parameters.items():
        in_schema = schema["properties"].get(name, {}).get("description")
        missing = None if in_schema else _description(parameter.annotation)
        if name in secrets:
            missing = in_schema or missing or SECRET_FORM["description"]
            secret_name = Annotated[str, Field(json_schema_extra=_SECRET_NAME)]
            default = _plain(parameter.default)
            parameter = parameter.replace(  # noqa: PLW2901 - a Parameter is immutable
                annotation=secret_name | None if parameter.default is None else secret_name,
                default=default if is_secret_reference(default) else parameter.default,
            )
        if missing:
            parameter = _with_schema(parameter, description=missing)  # noqa: PLW2901 - as above
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _prose(docstring: str) -> str:
    """Return the text of a docstring without its lists of arguments, results and exceptions."""
    with disable_logger("griffe"):  # it warns about arguments without a type
        sections = parse(Docstring(docstring), Parser.auto)
    texts = []
    for section in sections:
        if section.kind is DocstringSectionKind.text:
            texts.append(str(section.value))
        elif section.kind is DocstringSectionKind.admonition:
            texts.append(f"{section.title}: {section.value.contents}")
    return "\n\n".join(texts) or docstring


def _description(annotation: Any) -> str | None:
    """Return the description in an annotation such as ``Annotated[float, Field(description=…)]``."""
    fields = [field for field in getattr(annotation, "__metadata__", ()) if isinstance(field, FieldInfo)]
    return next((field.description for field in reversed(fields) if field.description), None)


def _with_schema(parameter: inspect.Parameter, **members: str) -> inspect.Parameter:
    """Return *parameter* with *members* added to the schema of its annotation."""
    annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    return parameter.replace(annotation=Annotated[annotation, Field(json_schema_extra={**members})])


def _with_mark(signature: inspect.Signature, version: str) -> inspect.Signature:
    """Return the signature with the mark in the schema of its first parameter, unless this changes the form."""
    before = generate_parameter_schema(signature, {}).model_dump()
    parameters = list(signature.parameters.values())
    first = next((parameter for parameter in parameters if parameter.name in before["properties"]), None)
    if first is None:
        return signature
    with_mark = _with_schema(first, **{MARK: version})
    changed = signature.replace(parameters=[with_mark if each is first else each for each in parameters])
    after = generate_parameter_schema(changed, {}).model_dump()
    after["properties"][first.name].pop(MARK, None)
    return changed if before == after else signature


def _outputs(promised: Mapping[str, str]) -> dict[str, OutputDescription]:
    outputs = {
        "outputs": OutputDescription(
            title="Everything that the Method wrote, zipped",
            json_schema={"type": "string", "format": "binary", "contentMediaType": "application/zip"},
        )
    }
    for name, media_type in promised.items():
        outputs[name] = OutputDescription(
            title=name, json_schema={"type": "string", "format": "binary", "contentMediaType": media_type}
        )
    return outputs
