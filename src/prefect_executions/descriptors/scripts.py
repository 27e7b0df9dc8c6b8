"""The scripts of a descriptor Method as they will be run, and the environment that they see.

Law: a value is never pasted into the author's text. It stands once, quoted, at
the head of the script; a placeholder becomes a reference to it, which no shell
reads again. A secret stands nowhere in the text: its reference leads to an
environment variable.

The environment variables that tell a script its inputs: their names, and a value's text.

Several scripts as one, so that they share a process or a container, with marks that say where each begins and ends.

What runs it reads the marks from its standard output and takes them out again.
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
    Placeholder,
    Unreadable,
    Where,
    evaluated_by,
    names_a_variable,
    placeholders,
)
from prefect_executions.errors import InputError
from prefect_executions.methods.model import CCP_FILE, InputDescription, Method

MOST_OF_ONE = 128 * 1024
"""Bytes of one ``NAME=value`` with its end: Linux's MAX_ARG_STRLEN, above which no program can be started."""

MOST_OF_ALL = 1024 * 1024
"""Bytes of all of them: half of what Linux leaves to arguments and environment under the usual stack limit."""

_RESERVED = frozenset(
    {
        *("PATH", "IFS", "ENV", "HOME", "SHELL", "PWD", "OLDPWD", "TMPDIR", "CDPATH", "GLOBIGNORE", "SHELLOPTS"),
        *("PS4", "PROMPT_COMMAND", "POSIXLY_CORRECT", "PERL5LIB", "PERL5OPT", "PERL5DB", "RUBYOPT", "RUBYLIB"),
        *("NODE_OPTIONS", "NODE_PATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "R_PROFILE", "R_PROFILE_USER"),
        *("R_ENVIRON", "R_ENVIRON_USER", "R_LIBS", "R_LIBS_USER", "INPUTS", "OUTPUTS", "EXECUTION_ID", "_"),
        *("ccptaskid", "ccpiamurl", "ccpclientid", "ccprefreshtoken", "ccpcontext"),
    }
)
_RESERVED_BEGINNINGS = ("LD_", "DYLD_", "PYTHON", "GIT_", "SSH_", "BASH", "PREFECT_", "EXECUTIONS_", "_input_")


def variable(name: str) -> str:
    """Return the name of the environment variable of an input: the same, with ``_`` for what a shell forbids."""
    made = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"_{made}" if made[:1].isdigit() else made


def variable_faults(names: Iterator[str] | Mapping[str, Any]) -> Iterator[DescriptorFault]:
    """Yield the inputs whose variable would hide another one, or change how programs start."""
    seen: dict[str, str] = {}
    for name in names:
        made = variable(name)
        if made in _RESERVED or made.startswith(_RESERVED_BEGINNINGS):
            yield DescriptorFault(
                pointer("inputs", name), f"its environment variable would be {made}, which is taken; rename the input"
            )
        elif made in seen:
            yield DescriptorFault(
                pointer("inputs", name),
                f"its environment variable is {made}, as that of the input '{seen[made]}'; rename one of them",
            )
        seen.setdefault(made, name)


def text_of(name: str, value: Any) -> str:
    """Return how a script is told a value: text as it is, anything else as JSON; null is empty.

    Raises:
        InputError: If it holds what no environment variable and no file name can: NUL, half a surrogate pair.
    """
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if "\0" in text or (not isinstance(value, str) and "\\u0000" in text):
        raise InputError(f"input '{name}' holds a NUL character, which no script can be given")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"input '{name}' holds half a surrogate pair at {error.start}, which is no character"
        ) from error
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
    """One script as it will be run: ``command + (path of a file with the text,)``, never ``sh -c``.

    The text holds no secret, so the same text is kept in the bundle.
    """

    text: str
    command: tuple[str, ...] = ("/bin/sh",)


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """The scripts of one execution, by name, and the environment of all of them.

    Attributes:
        scripts: By `DEPLOY`, `EXECUTE` and `UNDEPLOY`; what the author left out is absent.
        environment: The inputs as variables, without secrets.
        secrets: The variables that hold secrets; whoever starts the script adds
            them to the environment and writes them nowhere.
        unexported: The variables that are too long for an environment: the
            scripts see them, the programs that the scripts start do not.
    """

    scripts: Mapping[str, Script]
    environment: Mapping[str, str]
    secrets: Mapping[str, SecretStr] = field(repr=False)
    unexported: tuple[str, ...] = ()


def scripts_of(method: Method, values: Mapping[str, Any], secrets: Mapping[str, SecretStr]) -> Scripts:
    """Return the scripts of *method* for *values*, as `values_of` gives them.

    The value of a file input is the path of its staged copy, as the scripts see
    it. The value of a secret input is in *secrets*, not in *values*, whose name of it is ignored.

    Raises:
        InputError: If a value cannot be told to a script, for example because it holds NUL.
    """
    texts = {name: text_of(name, values[name]) for name in method.inputs if name in values and name not in secrets}
    for name in method.secrets:
        texts.pop(name, None)
        if name in secrets:
            _check_secret(name, secrets[name])
    exported, unexported = _shared_out(texts)
    made = {}
    for name in SCRIPTS:
        lines = method.script(name)
        if any(line.strip() for line in lines):
            made[name] = _script("\n".join(lines), method, values, texts, unexported)
    return Scripts(
        scripts=made,
        environment={variable(name): texts[name] for name in exported},
        secrets={variable(name): secrets[name] for name in method.inputs if name in secrets},
        unexported=tuple(variable(name) for name in unexported),
    )


def placing_faults(method: Method) -> Iterator[DescriptorFault]:
    """Yield what in the scripts of *method* could not be run, or not without running a user's text."""
    yield from variable_faults(method.inputs)
    told = method.additional_parameters.parameters if method.additional_parameters else ()
    for number, one in enumerate(told):
        if one.name in SCRIPTS:
            yield from _faults(method, method.script(one.name), ("additionalParameters", "parameters", number, "value"))


def _check_secret(name: str, secret: SecretStr) -> None:
    value = secret.get_secret_value()
    if "\0" in value or len(value.encode(errors="replace")) + len(variable(name)) + 2 > MOST_OF_ONE:
        raise InputError(f"the secret of input '{name}' holds NUL or is too long for an environment variable")


def _shared_out(texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return which inputs fit into an environment, and which do not."""
    exported: list[str] = []
    unexported: list[str] = []
    left = MOST_OF_ALL
    for name, text in texts.items():
        size = len(text.encode()) + len(variable(name)) + 2
        fits = size <= min(MOST_OF_ONE, left)
        (exported if fits else unexported).append(name)
        left -= size if fits else 0
    return exported, unexported


def _script(
    text: str, method: Method, values: Mapping[str, Any], texts: Mapping[str, str], unexported: Sequence[str]
) -> Script:
    found = [one for one in _found(text) if one.name in method.inputs]
    head = [f"{variable(name)}={shlex.quote(texts[name])}" for name in unexported]
    for name in dict.fromkeys(one.name for one in found):
        head += _defined(name, method.inputs[name], values.get(name), texts.get(name))
    pieces = []
    at = 0
    for one in found:
        pieces += [text[at : one.start], _reference(one, method.inputs[one.name], values.get(one.name))]
        at = one.end
    body = "".join([*pieces, text[at:]]) + "\n"
    begin, command = _shebang(body)
    told = _HEAD + "".join(f"{line}\n" for line in head) if head else ""
    return Script(text=body[:begin] + told + body[begin:], command=command)


def _found(text: str) -> tuple[Placeholder, ...]:
    return placeholders(text) if PLACEHOLDER.search(text) else ()


def _shebang(text: str) -> tuple[int, tuple[str, ...]]:
    """Return where the text after a ``#!`` line begins, and the command that the line names."""
    found = _SHELL.match(text)
    return (found.end() + 1, (found["path"], *found["rest"].split())) if found else (0, ("/bin/sh",))


def _defined(name: str, described: InputDescription, value: Any, text: str | None) -> Iterator[str]:
    """Yield the assignments at the head of a script that placeholders refer to."""
    held = f"_input_{variable(name)}"
    if described.is_secret:
        yield f'{held}="${{{variable(name)}-}}"'
    elif text is not None and _is_content(described):
        yield f'{held}="$(base64 < {shlex.quote(text)})" || exit 1'
    else:
        yield f"{held}={shlex.quote(text or '')}"
        for number, part in enumerate(value if isinstance(value, list) else ()):
            yield f"_input_{number}_{variable(name)}={shlex.quote(text_of(name, part))}"


def _is_content(described: InputDescription) -> bool:
    return described.is_file and described.json_schema.get("format") == CCP_FILE and not described.is_list


def _reference(one: Placeholder, described: InputDescription, value: Any) -> str:
    held = variable(one.name)
    if one.where is Where.BARE and _is_several(described):
        parts = len(value) if isinstance(value, list) else 0
        return " ".join(f'"${{_input_{number}_{held}}}"' for number in range(parts))
    told = f"${{_input_{held}}}"
    match one.where:
        case Where.BARE:
            return f'"{told}"'
        case Where.SINGLE:
            return f"'\"{told}\"'"
        case _:
            return told


def _is_several(described: InputDescription) -> bool:
    return described.is_list or described.json_schema.get("type") == "array"


def _is_harmless(described: InputDescription) -> bool:
    """Whether no user can write code into the value: the author chose it, or it is a number."""
    schema = described.json_schema
    chosen = described.is_bound or "enum" in schema or "const" in schema
    return chosen or schema.get("type") in {"number", "integer", "boolean"} or schema.get("format") in _PLAIN


_PLAIN = frozenset({"number", "date"})  # formats that `schemas` checks


def _faults(method: Method, lines: Sequence[str], steps: tuple[str | int, ...]) -> Iterator[DescriptorFault]:
    text = "\n".join(lines)
    shebang = _shebang(text)[1]
    if text.startswith("#!") and not _SHELLS.fullmatch(_program(shebang)):
        yield DescriptorFault(
            pointer(*steps, 0), f"'{_program(shebang)}' is no shell; write the program to a file and call it"
        )
        return
    try:
        found = _found(text)
    except Unreadable as error:
        yield DescriptorFault(pointer(*steps), f"where its placeholders stand cannot be said: {error}")
        return
    for one in found:
        message = _misplaced(one, text, method)
        if message:
            yield DescriptorFault(pointer(*steps, _line_of(one.start, lines)), message)


def _program(command: Sequence[str]) -> str:
    names = [word.rpartition("/")[2] for word in command if not word.startswith("-") and "=" not in word]
    return next((name for name in names if name != "env"), "")


def _line_of(at: int, lines: Sequence[str]) -> int:
    for number, line in enumerate(lines):
        at -= len(line) + 1
        if at < 0:
            return number
    return len(lines) - 1


def _misplaced(one: Placeholder, text: str, method: Method) -> str | None:
    told = f"{{{{ {one.name} }}}}"
    if one.name not in method.inputs:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", one.name):
            return None  # text for another program
        near = get_close_matches(one.name, method.inputs, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(method.inputs) or 'none'}"
        return f"{told}: there is no such input; {hint} To write it as it stands, bind it (readOnly) to an input"
    return _unquotable(one, text, told, method.inputs[one.name]) or _run_as_code(
        one, text, told, method.inputs[one.name]
    )


def _unquotable(one: Placeholder, text: str, told: str, described: InputDescription) -> str | None:
    instead = f'; use "${variable(one.name)}"'
    if one.where is Where.QUOTED_HERE:
        return f"{told} lies in a here-document whose delimiter is quoted; take the quotes off the delimiter"
    if one.where in {Where.ANSI, Where.EXPANSION}:
        return f"{told} lies in $'…' or ${{…}}{instead}"
    if one.in_backtick_in_quotes:
        return f"{told} lies between backticks inside quotes; write $(…) instead of `…`"
    if text[one.start - 1 : one.start] == "$" and one.where is not Where.SINGLE:
        return f"{told} has a $ before it, which would make a variable's name of it; leave the $ out"
    if one.where is Where.BARE and _is_several(described) and not one.alone:
        return f"{told} is a list and must stand as a word of its own, or in quotes, where it is JSON"
    return None


def _run_as_code(one: Placeholder, text: str, told: str, described: InputDescription) -> str | None:
    if _is_harmless(described) and not _is_several(described):
        return None
    if one.where is Where.ARITHMETIC:
        return f"{told} lies in an arithmetic expression and is no number; give its schema the type number or integer"
    if names_a_variable(one):
        return f"{told} would be in the name of a variable, whose brackets bash runs as code; write the name out"
    program = evaluated_by(one, text)
    if program is None:
        return None
    return (
        f"{told} would be run as code by {program}; hand it over as an argument, or let {program} read "
        f"the environment variable {variable(one.name)}"
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
    """The script *name* begins; or it has ended, with an exit code."""

    name: str
    exit_code: int | None


def merged(scripts: Mapping[str, Script], mark: str) -> str:
    """Return one script that runs *scripts* in their order, up to the first that fails, and ends as that one.

    Each is written to a file of its own, because it may be for another shell, and
    none can break what comes after it. *mark* is a word that none of them holds.
    """
    kept = [_KEEP.format(name=name, text=script.text, end=f"end-{mark}") for name, script in scripts.items()]
    run = [
        _RUN.format(name=name, mark=mark, command=" ".join(_quoted(word) for word in script.command))
        for name, script in scripts.items()
    ]
    return "".join([_BEGIN, *kept, *run])


class MarkReader:
    """Takes the marks out of bytes that come in pieces; what may be the beginning of one waits for the next piece."""

    def __init__(self, mark: str) -> None:
        self._start = b"\x1e" + mark.encode() + b" "
        self._whole = re.compile(re.escape(self._start) + rb"(?:begin ([a-z-]+)|end ([a-z-]+) ([0-9]{1,3}))\n")
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Yield what is decided of all bytes so far: plain bytes and marks, in their order."""
        data = self._held + data
        at = 0
        for found in self._whole.finditer(data):
            if found.start() > at:
                yield data[at : found.start()]
            begun, ended, code = (part and part.decode() for part in found.groups())
            yield Mark(begun or ended or "", None if code is None else int(code))
            at = found.end()
        hold = self._undecided(data, at)
        self._held = data[hold:]
        if hold > at:
            yield data[at:hold]

    def finish(self) -> bytes:
        """Return the rest, which has become no mark."""
        rest, self._held = self._held, b""
        return rest

    def _undecided(self, data: bytes, at: int) -> int:
        """Return where a mark may have begun that the end cuts off."""
        begun = data.rfind(b"\x1e", at)
        if begun < 0:
            return len(data)
        tail = data[begun:]
        cut = self._start.startswith(tail) or (tail.startswith(self._start) and b"\n" not in tail)
        return begun if cut and len(tail) < len(self._start) + _LONGEST else len(data)


_LONGEST = 64  # of what follows the mark's word


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
