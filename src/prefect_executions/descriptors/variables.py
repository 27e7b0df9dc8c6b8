"""The environment variables that tell a script its inputs: their names, and a value's text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefect_executions.descriptors.parser import Fault, pointer
from prefect_executions.errors import InputError

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


def variable_faults(names: Iterator[str] | Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the inputs whose variable would hide another one, or change how programs start."""
    seen: dict[str, str] = {}
    for name in names:
        made = variable(name)
        if made in _RESERVED or made.startswith(_RESERVED_BEGINNINGS):
            yield Fault(
                pointer("inputs", name), f"its environment variable would be {made}, which is taken; rename the input"
            )
        elif made in seen:
            yield Fault(
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
