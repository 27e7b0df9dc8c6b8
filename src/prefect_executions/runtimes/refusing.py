"""What is refused before anything is started, with all reasons at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prefect_executions.capture.processes import COOKIE
from prefect_executions.errors import PlanError
from prefect_executions.runtimes.plans import RUN_COOKIE, Plan, RunRequest, Wish, wishes_of

LONGEST_VALUE = 128 * 1024 - 1
"""Bytes of ``NAME=value`` that Linux hands to a program (execve(2), MAX_ARG_STRLEN)."""

LONGEST_ENVIRONMENT = 1536 * 1024
"""Bytes of all variables together; Linux takes a quarter of the stack's limit, which is 8 MiB nearly everywhere."""

# A shell passes on no other names, and says nothing.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What dash or bash do not pass on as it came.
_OF_THE_SHELL = frozenset(
    {"_", "PWD", "OLDPWD", "PPID", "SHLVL", "OPTIND", "OPTERR", "IFS", "PS1", "PS2", "PS4", "LINENO", "RANDOM"}
    | {"SRANDOM", "SHELLOPTS", "HISTCMD", "EPOCHSECONDS", "EPOCHREALTIME", "COMP_WORDBREAKS"}
)


def environment_of(plan: Plan) -> dict[str, str]:
    """Return all variables that the script gets from its caller, secrets too.

    Raises:
        PlanError: If the plan was read from a file, so that the values of its secrets are not there.
    """
    request = plan.request
    missing = sorted(set(plan.secret_names) - request.secrets.keys())
    if missing:
        raise refusal(plan.runtime, request, [f"secrets: no value of {', '.join(missing)} is in a plan; compile anew"])
    return told_environment(request) | {name: value.get_secret_value() for name, value in request.secrets.items()}


def told_environment(request: RunRequest) -> dict[str, str]:
    """Return the variables that a plan shows: those of the request, and by which the run's processes are known."""
    return request.environment | {COOKIE: request.execution_id, RUN_COOKIE: request.id}


def refusal(runtime: str, request: RunRequest, reasons: Iterable[str]) -> PlanError:
    """Return the error that tells all *reasons*."""
    listed = "\n  ".join(reasons)
    return PlanError(f"The runtime '{runtime}' cannot run {request.id} as asked, and nothing was started:\n  {listed}")


def reasons_of_all(request: RunRequest, honours: Mapping[Wish, str]) -> Iterator[str]:
    """Yield what no runtime takes, and what the one that honours *honours* does not."""
    for wish in wishes_of(request):
        if wish not in honours:
            yield f"{wish}: this runtime has no such thing; leave it out, or choose another runtime"
    if "\0" in request.script:
        yield "script: it has a NUL character"
    elif not _is_unicode(request.script):
        yield "script: it cannot be written as UTF-8"
    if not request.data.is_absolute() or not request.data.is_dir():
        yield f"data folder: {request.data} is no folder with an absolute path"
    yield from _of_environment(request)


def _of_environment(request: RunRequest) -> Iterator[str]:
    secrets = {name: value.get_secret_value() for name, value in request.secrets.items()}
    for name in sorted({COOKIE, RUN_COOKIE} & (request.environment.keys() | secrets.keys())):
        yield f"environment: {name} is given by the runtime"
    for name in sorted(secrets.keys() & request.environment.keys()):
        yield f"environment: {name} is given twice, once as a secret"
    together = 0
    for name, value in (request.environment | secrets).items():
        reason = _against(name, value)
        if reason:
            yield f"environment: {reason}"
        together += len(name) + len(value.encode(errors="replace"))
    if together > LONGEST_ENVIRONMENT:
        yield f"environment: {together} bytes together are more than {LONGEST_ENVIRONMENT}; give long values as files"


def _against(name: str, value: str) -> str | None:
    """Why a variable cannot be handed on; the message never repeats the value."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name of a variable: letters, digits and _ only, and no digit first"
    if name in _OF_THE_SHELL or name.startswith("BASH"):
        return f"{name} belongs to the shell, which changes it; choose another name"
    if "\0" in value:
        return f"the value of {name} has a NUL character; give it as a file"
    if not _is_unicode(value):
        return f"the value of {name} cannot be written as UTF-8; give it as a file"
    size = len(name) + 1 + len(value.encode())
    if size > LONGEST_VALUE:
        return f"the value of {name} is too long ({size} bytes of at most {LONGEST_VALUE}); give it as a file"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
