"""`@method`: a function declared as a Method, which is a Prefect flow that keeps its record.

The flow is a real Prefect `Flow`; what runs inside it is in `running`, what
happens when its state is known is in `hooks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Generic, ParamSpec, TypeVar, cast, overload

from prefect.flows import Flow
from prefect.utilities.callables import generate_parameter_schema, parameter_schema
from pydantic import Field, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.errors import MethodError
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.hooks import hooked
from prefect_executions.flow.opening import prefetch_code_identity
from prefect_executions.flow.recording import recorded
from prefect_executions.methods.model import Comparison, Method, OutputDescription, check_type
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference, marked, secret_inputs, unmarked
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import ArchiveLevel, Settings

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
_SECRET_NAME = {name: said for name, said in SECRET_FORM.items() if name != "description"}
_BOUND_TO = frozenset({"__prefect_self__", "__prefect_cls__"})
"""Where Prefect keeps on a flow's function what it is called on."""
_FLOW_HOOKS = ("on_completion", "on_failure", "on_cancellation", "on_crashed")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What the author says about a Method beside its function."""

    version: str | None = None
    title: str | None = None
    description: str | None = None
    keywords: tuple[str, ...] = ()
    type: str | None = None
    archive: ArchiveLevel | None = None
    secrets: frozenset[str] = frozenset()
    outputs: Mapping[str, str] | None = None
    comparisons: Mapping[str, Comparison] | None = None


_DECLARATIONS = TypeAdapter(Declaration)


class MethodFlow(Flow[P, R], Generic[P, R]):
    """A Prefect flow whose runs each leave an execution bundle.

    Attributes:
        declaration: What the author said beside the function.
        time_limit: Seconds that the author's code may take. Prefect's own
            `timeout_seconds` stays empty, because it would count our sealing.
        declared: The author's function and the descriptor that is derived from all this.
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
        options["version"] = declaration.version or options.get("version")
        super().__init__(function, **options)
        function = self.fn  # the function itself, where a class or static method holds it
        told = self.parameters.model_dump()
        if declaration.type is not None:  # else the settings are not asked, and cannot be wrong here
            check_type(declaration.type, Settings.read().method_types)
        secrets = secret_inputs(told, declaration.secrets, self.name)
        signature = _form_signature(function, secrets, told)
        self.declaration = declaration
        self.time_limit = float(timeout_seconds) if timeout_seconds else None
        self.__signature__ = signature = _with_mark(signature, self.version or "0")
        self.parameters = parameter_schema(self)
        self.description = unmarked(self.description)
        declared = Declared(
            function=function, method=self._described(), wrapped=secret_inputs(told, frozenset(), self.name)
        )
        if not self.parameters.properties:
            self.description = marked(self.description, self.version or "0")
        self._keep(declared, recorded(declared), signature)

    def _keep(self, declared: Declared, body: Callable[..., Any], signature: inspect.Signature) -> None:
        """Let each run of *body* be recorded, and its record be sealed."""
        self.declared = declared
        self.fn = body
        self.fn.__signature__ = signature  # type: ignore[attr-defined]  # a function takes any attribute
        for name in _FLOW_HOOKS:
            hooks = getattr(self, f"{name}_hooks")
            hooks[:] = hooked(hooks, declared)

    @property
    def asked(self) -> inspect.Signature:
        """The signature of a call: without the object or class that it is called on, which Python fills in."""
        signature = inspect.signature(self.declared.function)
        if not (self.ismethod or self.isclassmethod):
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def method(self) -> Method:
        """The Method's descriptor, without its code, which is looked at when it runs."""
        return self.declared.method

    def _described(self) -> Method:
        declared = self.declaration
        return Method(
            id=self.name,
            version=self.version or "0",
            title=declared.title or self.name.replace("-", " ").replace("_", " ").capitalize(),
            description=declared.description or self.description,
            keywords=declared.keywords,
            inputs=inputs_of(self.parameters.model_dump()),
            outputs=_outputs(declared.outputs or {}),
            comparisons=dict(declared.comparisons) if declared.comparisons else None,
            type=declared.type,
            archive=declared.archive,
            time_limit=self.time_limit,
        )

    def with_options(self, **options: Any) -> MethodFlow[P, R]:
        """Return this Method with other flow options; takes what `Flow.with_options` takes."""
        changed = super().with_options(**options)
        given = options.get("timeout_seconds")
        made = _of_flow(
            _as_held(self.declared.function, self),
            changed,
            replace(self.declaration, version=options.get("version") or self.declaration.version),
            timeout_seconds=given if given is not None else self.time_limit,
        )
        for name in _BOUND_TO & vars(self.fn).keys():
            setattr(made.fn, name, getattr(self.fn, name))
        return made

    if not TYPE_CHECKING:  # the overloads of Flow.__call__ say the types

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the Method as a flow; a secret given in clear is refused before a flow run exists."""
            if self.method.secrets:
                options = {name: kwargs.pop(name) for name in ("return_state", "wait_for") if name in kwargs}
                bound = self.asked.bind(*args, **kwargs)
                bound.arguments = dict(bound.arguments) | checked_secrets(self, bound.arguments)
                args, kwargs = bound.args, bound.kwargs | options
            if self.isasync:  # its body looks itself, in a thread
                return super().__call__(*args, **kwargs)
            with prefetch_code_identity(self.declared):
                return super().__call__(*args, **kwargs)


def checked_secrets(flow: MethodFlow[Any, Any], parameters: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the secret inputs among *parameters*, each the name of a secret, before a flow run is created.

    Raises:
        SecretError: If one is not the name of a Secret block or ``env:NAME``; its value is not repeated.
    """
    told = {name: _plain(parameters[name]) for name in sorted(flow.method.secrets & parameters.keys())}
    for name, reference in told.items():
        if reference is not None:
            blocks.check_secret(name, reference)
    return told


@overload
def method(function: Callable[P, R], /) -> MethodFlow[P, R]: ...


@overload
def method(
    *,
    version: str | None = None,
    title: str | None = None,
    description: str | None = None,
    keywords: Sequence[str] = (),
    type: str | None = None,
    archive: ArchiveLevel | str | None = None,
    secrets: Sequence[str] = (),
    outputs: Mapping[str, str] | None = None,
    comparisons: Mapping[str, Comparison] | None = None,
) -> Callable[[Callable[P, R]], MethodFlow[P, R]]: ...


def method(
    function: Callable[P, R] | None = None,
    /,
    *,
    version: str | None = None,
    title: str | None = None,
    description: str | None = None,
    keywords: Sequence[str] = (),
    type: str | None = None,  # noqa: A002 - the field's word
    archive: ArchiveLevel | str | None = None,
    secrets: Sequence[str] = (),
    outputs: Mapping[str, str] | None = None,
    comparisons: Mapping[str, Comparison] | None = None,
) -> MethodFlow[P, R] | Callable[[Callable[P, R]], MethodFlow[P, R]]:
    """Declare a function, sync or async, or an existing `@flow`, as a Method.

    Args:
        function: The function or flow, when the decorator is used without arguments.
        version: The Method's version; the digest of its file when left out, as for any flow.
        title: A few words for people; the function's name when left out.
        description: What it does; the docstring when left out.
        keywords: Words to find it by.
        type: A term of the vocabulary, for example ``Training``; EXECUTIONS_METHOD_TYPES adds terms.
        archive: ``full``, ``outputs`` or ``none``; EXECUTIONS_ARCHIVE_LEVEL when left out.
        secrets: Parameters that name a secret; those annotated `SecretStr` always do.
        outputs: Media types of outputs that the Method promises, by name.
        comparisons: How outputs are compared when it is replayed, by name or pattern (``plots/*.png``).

    Returns:
        A real Prefect flow.

    Raises:
        MethodError: If the declaration cannot be used; the message says why.
    """
    try:
        level = ArchiveLevel(archive) if archive is not None else None
    except ValueError as error:
        levels = ", ".join(ArchiveLevel)
        raise MethodError(f"'{archive}' is no archive level; known: {levels}") from error
    declaration = _declaration(
        version=version,
        title=title,
        description=description,
        keywords=keywords,
        type=type,
        archive=level,
        secrets=secrets,
        outputs=outputs,
        comparisons=comparisons,
    )

    def declare(declared: Callable[P, R]) -> MethodFlow[P, R]:
        if isinstance(declared, MethodFlow):
            raise MethodError(f"'{declared.name}' is a Method already; use @method once")
        if isinstance(declared, Flow):
            function = _as_held(declared.fn, declared)
            return _of_flow(function, declared, declaration, timeout_seconds=declared.timeout_seconds)
        return MethodFlow(declared, declaration)

    return declare if function is None else declare(function)


def _declaration(**said: Any) -> Declaration:
    for name in ("keywords", "secrets"):
        if isinstance(said[name], str):  # it would be taken for a list of letters
            raise MethodError(f"@method: {name} is a list of texts: {name}=[{said[name]!r}]")
    try:
        return _DECLARATIONS.validate_python(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MethodError(f"@method: {where} is wrong: {first['msg']}; {first['input']!r} was given") from error


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
    """Return *function* as the class holds it that *flow* was declared in."""
    held: Any = classmethod if flow.isclassmethod else staticmethod if flow.isstaticmethod else None
    return cast("Callable[P, R]", held(function)) if held else function


def options_of(flow: Flow[P, R]) -> dict[str, Any]:
    """Return the options and hooks that *flow* was made with, but for its time limit and its validation."""
    options = {name: getattr(flow, name) for name in _FLOW_OPTIONS if name != "timeout_seconds"}
    return options | {name: list(getattr(flow, f"{name}_hooks")) for name in (*_FLOW_HOOKS, "on_running")}


def _check_function(function: Callable[..., Any]) -> None:
    name = getattr(function, "__name__", repr(function))
    if isinstance(function, classmethod | staticmethod):
        function = function.__func__
    if not inspect.isfunction(inspect.unwrap(function)):
        hint = f", and its arguments have names: @method(version={function!r})" if isinstance(function, str) else ""
        raise MethodError(f"{name}: @method goes on a function or a flow{hint}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise MethodError(f"Method '{name}' is a generator; let it write its items as outputs and return at the end")


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _form_signature(
    function: Callable[..., Any], secrets: frozenset[str], schema: Mapping[str, Any]
) -> inspect.Signature:
    """Return the signature that makes the form: of a secret it asks the name.

    Prefect's form has the description of an annotation only where it is told in its schema, too.
    The pattern is told in the form and held by Prefect's API. In the run we refuse
    ourselves, because a validation error may repeat the value.
    """
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation that only type checkers can follow; Prefect takes it as it stands, too
        signature = inspect.signature(function)
    parameters = []
    for name, parameter in signature.parameters.items():
        said = schema["properties"].get(name, {}).get("description")
        described = None if said else _description(parameter.annotation)
        if name in secrets:
            described = said or described or SECRET_FORM["description"]
            name_of = Annotated[str, Field(json_schema_extra=_SECRET_NAME)]
            told = _plain(parameter.default)
            parameter = parameter.replace(  # noqa: PLW2901 - the replaced one is what goes on
                annotation=name_of | None if parameter.default is None else name_of,
                default=told if is_secret_reference(told) else parameter.default,
            )
        if described:
            parameter = _with_words(parameter, description=described)  # noqa: PLW2901 - as above
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _description(annotation: Any) -> str | None:
    """Return the description in *annotation*, which is such as ``Annotated[float, Field(description=…)]``."""
    fields = [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, FieldInfo)]
    return next((field.description for field in reversed(fields) if field.description), None)


def _with_words(parameter: inspect.Parameter, **words: str) -> inspect.Parameter:
    """Return *parameter* with *words* beside what its annotation says in the schema."""
    annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    return parameter.replace(annotation=Annotated[annotation, Field(json_schema_extra={**words})])


def _with_mark(signature: inspect.Signature, version: str) -> inspect.Signature:
    """Return the signature with the mark in the schema of its first parameter, unless that would change the form."""
    before = generate_parameter_schema(signature, {}).model_dump()
    parameters = list(signature.parameters.values())
    first = next((one for one in parameters if one.name in before["properties"]), None)
    if first is None:
        return signature
    marking = _with_words(first, **{MARK: version})
    changed = signature.replace(parameters=[marking if one is first else one for one in parameters])
    after = generate_parameter_schema(changed, {}).model_dump()
    after["properties"][first.name].pop(MARK, None)
    return changed if before == after else signature


def _outputs(promised: Mapping[str, str]) -> dict[str, OutputDescription]:
    told = {
        "outputs": OutputDescription(
            title="Everything that the Method wrote, zipped",
            json_schema={"type": "string", "format": "binary", "contentMediaType": "application/zip"},
        )
    }
    for name, media_type in promised.items():
        told[name] = OutputDescription(
            title=name, json_schema={"type": "string", "format": "binary", "contentMediaType": media_type}
        )
    return told
