"""The code of a Method as its record has it: without credentials, and completed when the code has run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from prefect_executions.capture.code import KEPT_BYTES, PROCESS, RunStart
from prefect_executions.capture.late_code import late_modules, opened_data, outside_data, with_data
from prefect_executions.capture.local_packages import local_packages
from prefect_executions.capture.parameters import plain_text_defaults
from prefect_executions.capture.secrets import SecretMask, names_secret, redact_urls, reveals
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.flow.declared import Declared
from prefect_executions.methods.model import DIFF, REQUIREMENTS, CodeIdentity, LackingFile, Method


def with_late_code(
    declared: Declared,
    method: Method,
    start: RunStart,
    *,
    begun: int,
    apart: Sequence[str],
    inputs: Iterable[str],
    mask: SecretMask,
    names: tuple[str, ...],
) -> tuple[Method, Mapping[str, bytes]]:
    """Return the recorded *method* with what its code loaded late, and the new files.

    *start* was observed when the run began, at *begun* nanoseconds of the epoch. Data files below the
    folders *apart*, or with a secret of *mask*, are not kept. *inputs* are paths of files that are listed as
    inputs.
    """
    if method.code is None or declared.withheld:
        return method, {}
    late, modules = late_modules(method.code, start)
    secret = partial(_reveals, mask, names)
    opened = opened_data(late, start, before=begun, apart=apart, secret=secret)
    left = KEPT_BYTES - sum(len(file.content or b"") for file in opened)
    local = () if declared.is_scripted else local_packages(PROCESS.packages.local_origins(), secret=secret, limit=left)
    outside = (
        []
        if declared.is_scripted
        else outside_data(
            late, start, before=begun, apart=[*apart, *inputs], has_secret=lambda path: mask.mask(path) != path
        )
    )
    complete, data = with_data(late, [*opened, *local], outside)
    if complete == method.code:
        return method, {}
    identity, allowed = without_credentials(declared, complete, {**modules, **data}, before=method.code, names=names)
    return method.model_copy(update={"code": identity}), allowed


def with_undeclared_files(
    method: Method, undeclared: Mapping[str, Sequence[str]], request: ExecuteRequest, mask: SecretMask
) -> Method:
    """Return *method* with the files of *undeclared* inputs listed as lacking; a withheld input is left out."""
    code = method.code
    if code is None:
        return method
    before = {(file.path, file.input) for file in code.lacking or ()}
    lacking = [
        LackingFile(path=path, why=f"it is the input {name!r}, which is not declared as InputFile", input=name)
        for name, paths in undeclared.items()
        for path in dict.fromkeys(paths)
        if (path, name) not in before and mask.mask(path) == path and _is_recorded(request.values.get(name))
    ]
    if not lacking:
        return method
    return method.model_copy(update={"code": code.model_copy(update={"lacking": (*(code.lacking or ()), *lacking)})})


def _is_recorded(value: object) -> bool:
    return isinstance(value, str | list)


def without_credentials(
    declared: Declared,
    identity: CodeIdentity,
    code: Mapping[str, bytes],
    *,
    before: CodeIdentity | None = None,
    names: tuple[str, ...] = (),
) -> tuple[CodeIdentity, Mapping[str, bytes]]:
    """Return *identity* and its *code* without files that hold credentials from the defaults of inputs.

    The identity lists the files that are not kept. Those of *before* are already kept or listed.
    *names* are additional names of secrets.
    """
    withheld = declared.withheld
    plain_text = plain_text_defaults(declared.method, names)
    allowed = {path: data for path, data in code.items() if path == REQUIREMENTS or not withheld}
    allowed = {path: data for path, data in allowed.items() if not plain_text.holds(data)}
    if DIFF in code.keys() - allowed.keys() and identity.repository:
        repository = identity.repository.model_copy(update={"diff_kept": False})
        identity = identity.model_copy(update={"repository": repository})
    new = _paths(identity) - (_paths(before) if before else set())
    credentials = "it holds a key or password in plain text"
    lacking = [
        LackingFile(path=path, why=credentials if path in code else f"the code has more than {KEPT_BYTES} bytes")
        for path in sorted(new - allowed.keys())
    ]
    if lacking:
        identity = identity.model_copy(update={"lacking": (*(identity.lacking or ()), *lacking)})
    return identity, allowed


def _paths(identity: CodeIdentity) -> set[str]:
    return {file.path for file in (*identity.files, *(identity.data_files or ()))}


def _reveals(mask: SecretMask, names: tuple[str, ...], path: str, content: bytes) -> bool:
    """Whether a data file holds a known secret, credentials in a URL, or a value with a secret name.

    Source files have variables with such names, so only the first counts in them, as in the author's own modules.
    """
    if reveals([content], mask):
        return True
    text = "" if path.endswith(".py") else content.decode(errors="replace")
    return redact_urls(text) != text or names_secret(text, names)
