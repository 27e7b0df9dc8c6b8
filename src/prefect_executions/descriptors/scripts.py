"""The scripts of a descriptor Method: placeholders, environment variables, and one merged script with marks.

Law: a value is never pasted into the author's text. It is assigned once, quoted, at
the head of the script. A placeholder becomes a reference to that variable, whose
value no shell parses again. The text never has a secret: its reference leads to an
environment variable.

Scripts that share a process or a container are merged into one. It prints marks
where each script begins and ends; the runtime removes them from standard output.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import SecretStr

from prefect_executions.descriptors.parser import DescriptorFault, pointer
from prefect_executions.descriptors.shell import (
    PLACEHOLDER,
    Context,
    Placeholder,
    ShellSyntaxError,
    evaluated_by,
    names_a_variable,
    placeholders,
)
from prefect_executions.errors import InputError
from prefect_executions.methods.model import CCP_FILE, InputDescription, Method

MAX_VARIABLE_BYTES = 128 * 1024
"""The limit for one ``NAME=value`` with its final NUL, in bytes: Linux's MAX_ARG_STRLEN."""

MAX_ENVIRONMENT_BYTES = 1024 * 1024
"""The limit for all variables, in bytes: half of Linux's limit for arguments and environment with the default stack."""

_RESERVED = frozenset(
    {
        *("PATH", "IFS", "ENV", "HOME", "SHELL", "PWD", "OLDPWD", "TMPDIR", "CDPATH", "GLOBIGNORE", "SHELLOPTS"),
        *("PS4", "PROMPT_COMMAND", "POSIXLY_CORRECT", "PERL5LIB", "PERL5OPT", "PERL5DB", "RUBYOPT", "RUBYLIB"),
        *("NODE_OPTIONS", "NODE_PATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "R_PROFILE", "R_PROFILE_USER"),
        *("R_ENVIRON", "R_ENVIRON_USER", "R_LIBS", "R_LIBS_USER", "INPUTS", "OUTPUTS", "EXECUTION_ID", "_"),
        *("ccptaskid", "ccpiamurl", "ccpclientid", "ccprefreshtoken", "ccpcontext"),
    }
)
_RESERVED_PREFIXES = ("LD_", "DYLD_", "PYTHON", "GIT_", "SSH_", "BASH", "PREFECT_", "EXECUTIONS_", "_input_")


def variable_name(name: str) -> str:
    """Return the name of an input's environment variable: its name, with ``_`` for characters that a shell forbids."""
    safe = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"_{safe}" if safe[:1].isdigit() else safe


def variable_faults(names: Iterator[str] | Mapping[str, Any]) -> Iterator[DescriptorFault]:
    """Yield the inputs whose variable hides another variable or changes how programs start."""
    seen: dict[str, str] = {}
    for name in names:
        own = variable_name(name)
        if own in _RESERVED or own.startswith(_RESERVED_PREFIXES):
            yield DescriptorFault(
                pointer("inputs", name), f"its environment variable {own} is reserved; rename the input"
            )
        elif own in seen:
            yield DescriptorFault(
                pointer("inputs", name),
                f"its environment variable {own} is also that of the input '{seen[own]}'; rename one of them",
            )
        seen.setdefault(own, name)


def text_of(name: str, value: Any) -> str:
    """Return a value as a script sees it: text unchanged, null empty, anything else as JSON.

    Raises:
        InputError: If it has NUL or half a surrogate pair, which neither an environment
            variable nor a file name can hold.
    """
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if "\0" in text or (not isinstance(value, str) and "\\u0000" in text):
        raise InputError(f"input '{name}' has a NUL character, which cannot be passed to a script; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"input '{name}' has half a surrogate pair at {error.start}; write the pair") from error
    return text


DEPLOY = "deploy-script"
EXECUTE = "execute-script"
UNDEPLOY = "undeploy-script"
SCRIPTS = (DEPLOY, EXECUTE, UNDEPLOY)

_SHELL = re.compile(r"#![ \t]*(?P<path>/\S+)(?P<rest>[^\n]*)")
_SHELLS = re.compile(r"(ba|da|a|k|z)?sh")
_HEAD = "# Inputs, quoted by prefect-executions; the author's script follows.\n"


@dataclass(frozen=True, kw_only=True)
class Script:
    """One script. It is run as ``command + (path of a file with the text,)``, never by ``sh -c``.

    The text has no secret, so it is recorded in the bundle as it is.
    """

    text: str
    command: tuple[str, ...] = ("/bin/sh",)


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """The scripts of one execution and their shared environment.

    Attributes:
        scripts: By `DEPLOY`, `EXECUTE` and `UNDEPLOY`; a script that the Method lacks is absent.
        environment: The inputs as variables, without secrets.
        secrets: The variables with secrets. The runtime adds them to the environment
            and must not write them anywhere else.
        unexported: The variables that are too long for the environment. The scripts
            see them, but programs that the scripts start do not.
    """

    scripts: Mapping[str, Script]
    environment: Mapping[str, str]
    secrets: Mapping[str, SecretStr] = field(repr=False)
    unexported: tuple[str, ...] = ()


def scripts_of(method: Method, values: Mapping[str, Any], secrets: Mapping[str, SecretStr]) -> Scripts:
    """Return the scripts of *method* for the *values* from `values_of`.

    The value of a file input is the path of its staged copy, as the scripts see it.
    The value of a secret input is taken from *secrets*; its reference in *values* is ignored.

    Raises:
        InputError: If a value cannot be passed to a script, for example because it has NUL.
    """
    texts = {name: text_of(name, values[name]) for name in method.inputs if name in values and name not in secrets}
    for name in method.secrets:
        texts.pop(name, None)
        if name in secrets:
            _check_secret(name, secrets[name])
    exported, unexported = _fit_environment(texts)
    scripts = {}
    for name in SCRIPTS:
        lines = method.script(name)
        if any(line.strip() for line in lines):
            scripts[name] = _script("\n".join(lines), method, values, texts, unexported)
    return Scripts(
        scripts=scripts,
        environment={variable_name(name): texts[name] for name in exported},
        secrets={variable_name(name): secrets[name] for name in method.inputs if name in secrets},
        unexported=tuple(variable_name(name) for name in unexported),
    )


def script_faults(method: Method) -> Iterator[DescriptorFault]:
    """Yield the faults in the scripts of *method*: what cannot run, or would run a user's value as code."""
    yield from variable_faults(method.inputs)
    parameters = method.additional_parameters.parameters if method.additional_parameters else ()
    for number, parameter in enumerate(parameters):
        if parameter.name in SCRIPTS:
            steps = ("additionalParameters", "parameters", number, "value")
            yield from _faults(method, method.script(parameter.name), steps)


def _check_secret(name: str, secret: SecretStr) -> None:
    value = secret.get_secret_value()
    if "\0" in value or len(value.encode(errors="replace")) + len(variable_name(name)) + 2 > MAX_VARIABLE_BYTES:
        raise InputError(f"the secret of input '{name}' has NUL or is too long for an environment variable")


def _fit_environment(texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the inputs that fit into the environment, and those that do not."""
    exported: list[str] = []
    unexported: list[str] = []
    left = MAX_ENVIRONMENT_BYTES
    for name, text in texts.items():
        size = len(text.encode()) + len(variable_name(name)) + 2
        fits = size <= min(MAX_VARIABLE_BYTES, left)
        (exported if fits else unexported).append(name)
        left -= size if fits else 0
    return exported, unexported


def _script(
    text: str, method: Method, values: Mapping[str, Any], texts: Mapping[str, str], unexported: Sequence[str]
) -> Script:
    used = [placeholder for placeholder in _placeholders(text) if placeholder.name in method.inputs]
    head = [f"{variable_name(name)}={shlex.quote(texts[name])}" for name in unexported]
    for name in dict.fromkeys(placeholder.name for placeholder in used):
        head += _assignments(name, method.inputs[name], values.get(name), texts.get(name))
    pieces = []
    at = 0
    for placeholder in used:
        name = placeholder.name
        pieces += [text[at : placeholder.start], _reference(placeholder, method.inputs[name], values.get(name))]
        at = placeholder.end
    body = "".join([*pieces, text[at:]]) + "\n"
    begin, command = _shebang(body)
    assignments = _HEAD + "".join(f"{line}\n" for line in head) if head else ""
    return Script(text=body[:begin] + assignments + body[begin:], command=command)


def _placeholders(text: str) -> tuple[Placeholder, ...]:
    return placeholders(text) if PLACEHOLDER.search(text) else ()


def _shebang(text: str) -> tuple[int, tuple[str, ...]]:
    """Return the offset after the ``#!`` line, and the command in that line."""
    shebang = _SHELL.match(text)
    return (shebang.end() + 1, (shebang["path"], *shebang["rest"].split())) if shebang else (0, ("/bin/sh",))


def _assignments(name: str, described: InputDescription, value: Any, text: str | None) -> Iterator[str]:
    """Yield the assignments that placeholders refer to."""
    own = f"_input_{variable_name(name)}"
    if described.is_secret:
        yield f'{own}="${{{variable_name(name)}-}}"'
    elif text is not None and _is_content(described):
        yield f'{own}="$(base64 < {shlex.quote(text)})" || exit 1'
    else:
        yield f"{own}={shlex.quote(text or '')}"
        for number, part in enumerate(value if isinstance(value, list) else ()):
            yield f"_input_{number}_{variable_name(name)}={shlex.quote(text_of(name, part))}"


def _is_content(described: InputDescription) -> bool:
    return described.is_file and described.json_schema.get("format") == CCP_FILE and not described.is_list


def _reference(placeholder: Placeholder, described: InputDescription, value: Any) -> str:
    own = variable_name(placeholder.name)
    if placeholder.context is Context.BARE and _is_array(described):
        parts = len(value) if isinstance(value, list) else 0
        return " ".join(f'"${{_input_{number}_{own}}}"' for number in range(parts))
    reference = f"${{_input_{own}}}"
    match placeholder.context:
        case Context.BARE:
            return f'"{reference}"'
        case Context.SINGLE:
            return f"'\"{reference}\"'"
        case _:
            return reference


def _is_array(described: InputDescription) -> bool:
    return described.is_list or described.json_schema.get("type") == "array"


def _cannot_be_code(described: InputDescription) -> bool:
    """Whether a user cannot write code into the value: the author listed the values, or it is a number."""
    schema = described.json_schema
    by_author = described.is_bound or "enum" in schema or "const" in schema
    return by_author or schema.get("type") in {"number", "integer", "boolean"} or schema.get("format") in _CHECKED


_CHECKED = frozenset({"number", "date"})  # formats that `schema` validates


def _faults(method: Method, lines: Sequence[str], steps: tuple[str | int, ...]) -> Iterator[DescriptorFault]:
    text = "\n".join(lines)
    shebang = _shebang(text)[1]
    if text.startswith("#!") and not _SHELLS.fullmatch(_program(shebang)):
        yield DescriptorFault(
            pointer(*steps, 0), f"'{_program(shebang)}' is not a shell; write the program to a file and call it"
        )
        return
    try:
        found = _placeholders(text)
    except ShellSyntaxError as error:
        yield DescriptorFault(pointer(*steps), f"cannot find the script's placeholders: {error}")
        return
    for placeholder in found:
        message = _misplaced(placeholder, text, method)
        if message:
            yield DescriptorFault(pointer(*steps, _line_of(placeholder.start, lines)), message)


def _program(command: Sequence[str]) -> str:
    names = [word.rpartition("/")[2] for word in command if not word.startswith("-") and "=" not in word]
    return next((name for name in names if name != "env"), "")


def _line_of(at: int, lines: Sequence[str]) -> int:
    for number, line in enumerate(lines):
        at -= len(line) + 1
        if at < 0:
            return number
    return len(lines) - 1


def _misplaced(placeholder: Placeholder, text: str, method: Method) -> str | None:
    written = f"{{{{ {placeholder.name} }}}}"
    if placeholder.name not in method.inputs:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", placeholder.name):
            return None  # braces of another program
        near = get_close_matches(placeholder.name, method.inputs, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(method.inputs) or 'none'}."
        return f"{written}: there is no such input; {hint} To write it literally, bind it (readOnly) to an input"
    described = method.inputs[placeholder.name]
    return _unquotable(placeholder, text, written, described) or _run_as_code(placeholder, text, written, described)


def _unquotable(placeholder: Placeholder, text: str, written: str, described: InputDescription) -> str | None:
    instead = f'; use "${variable_name(placeholder.name)}"'
    if placeholder.context is Context.QUOTED_HERE:
        return f"{written} is in a here-document with a quoted delimiter; remove the quotes from the delimiter"
    if placeholder.context in {Context.ANSI, Context.EXPANSION}:
        return f"{written} is in $'…' or ${{…}}{instead}"
    if placeholder.in_backtick_in_quotes:
        return f"{written} is between backticks inside quotes; write $(…) instead of `…`"
    if text[placeholder.start - 1 : placeholder.start] == "$" and placeholder.context is not Context.SINGLE:
        return f"{written} has a $ before it, which would make it the name of a variable; remove the $"
    if placeholder.context is Context.BARE and _is_array(described) and not placeholder.alone:
        return f"{written} is a list and must be a separate word, or in quotes, where it is JSON"
    return None


def _run_as_code(placeholder: Placeholder, text: str, written: str, described: InputDescription) -> str | None:
    if _cannot_be_code(described) and not _is_array(described):
        return None
    if placeholder.context is Context.ARITHMETIC:
        return f"{written} is in an arithmetic expression but not a number; give its schema the type number or integer"
    if names_a_variable(placeholder):
        return f"{written} would be in the name of a variable, whose brackets bash runs as code; write the name out"
    program = evaluated_by(placeholder, text)
    if program is None:
        return None
    return (
        f"{written} would be run as code by {program}; pass it as an argument, or let {program} read "
        f"the environment variable {variable_name(placeholder.name)}"
    )


_BEGIN = """\
# Written by prefect-executions: the scripts of the Method, one after the other.
here=${0%/*}
[ -d "$here" ] && [ -w "$here" ] || here=$(mktemp -d) || exit 125
"""
_KEEP = """\
cat > "$here/{name}" <<'{end}' || exit 125
{text}{end}
"""
_RUN = """\
printf '\\036%s begin %s\\n' '{mark}' {name}
{command} "$here/{name}"
code=$?
printf '\\036%s end %s %s\\n' '{mark}' {name} "$code"
[ "$code" = 0 ] || exit "$code"
"""


class Mark(NamedTuple):
    """The begin of the script *name*, or its end with an exit code."""

    name: str
    exit_code: int | None


def merge_scripts(scripts: Mapping[str, Script], mark: str) -> str:
    """Return one script that runs *scripts* in order, stops at the first failure, and exits with its exit code.

    Each script is written to a separate file: it may need another shell, and it cannot
    break the scripts after it. *mark* must not occur in any of them.
    """
    files = [_KEEP.format(name=name, text=script.text, end=f"end-{mark}") for name, script in scripts.items()]
    run = [
        _RUN.format(name=name, mark=mark, command=" ".join(_quoted(word) for word in script.command))
        for name, script in scripts.items()
    ]
    return "".join([_BEGIN, *files, *run])


class MarkReader:
    """Separates marks from a stream of bytes; what may be the start of a mark waits for more bytes."""

    def __init__(self, mark: str) -> None:
        self._start = b"\x1e" + mark.encode() + b" "
        self._pattern = re.compile(re.escape(self._start) + rb"(?:begin ([a-z-]+)|end ([a-z-]+) ([0-9]{1,3}))\n")
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Yield the plain bytes and marks so far, in order, without an unfinished mark at the end."""
        data = self._held + data
        at = 0
        for match in self._pattern.finditer(data):
            if match.start() > at:
                yield data[at : match.start()]
            begun, ended, code = (part and part.decode() for part in match.groups())
            yield Mark(begun or ended or "", None if code is None else int(code))
            at = match.end()
        hold = self._unfinished(data, at)
        self._held = data[hold:]
        if hold > at:
            yield data[at:hold]

    def finish(self) -> bytes:
        """Return the rest, which did not become a mark."""
        rest, self._held = self._held, b""
        return rest

    def _unfinished(self, data: bytes, at: int) -> int:
        """Return the offset of a mark that may be cut off at the end of *data*, else the end."""
        start = data.rfind(b"\x1e", at)
        if start < 0:
            return len(data)
        tail = data[start:]
        cut = self._start.startswith(tail) or (tail.startswith(self._start) and b"\n" not in tail)
        return start if cut and len(tail) < len(self._start) + _LONGEST else len(data)


_LONGEST = 64  # bytes of a mark after its word


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
