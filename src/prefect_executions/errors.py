"""The tree of exceptions, grouped by what the caller can do about them.

::

    ExecutionsError
    ├── RequestError              the request is wrong: change it and retry
    │   ├── MethodError             a Method is declared wrongly
    │   ├── InputError              an input is missing, unreadable or of the wrong type
    │   ├── SecretError             a secret was given in plain text, or its name cannot be resolved
    │   ├── NameRefusedError        a name is not allowed for a file or an id
    │   ├── AmbiguousIdError        an id prefix matches more than one execution
    │   ├── QueryError              a search query cannot be read
    │   ├── TransitionError         a status may not follow the current status
    │   ├── PlanError               a runtime cannot run a script as requested
    │   ├── ImportRefusedError      an import is damaged or hostile, or its id belongs to another execution
    │   └── SettingsError           a setting has an invalid value
    ├── NotAvailableError         the target is missing or not allowed
    │   ├── NoExecutionError        no execution is running in this context
    │   ├── NotFoundError           the execution, Method, output or file does not exist
    │   ├── SealedError             the bundle is sealed and cannot change
    │   ├── EndedError              the execution has ended and cannot be cancelled
    │   ├── ForeignCodeError        code from another machine is not signed by a trusted key, and was not approved
    │   └── DirtyTreeError          the working tree has uncommitted changes, which the operator forbids
    ├── ScriptError               a script of a descriptor Method failed: read its output
    └── WorldError                an outside system failed: retry, or call the operator
        ├── ArchiveError            the archive's storage failed
        │   └── DamagedSealError      the archived seal of an execution is damaged
        ├── LedgerError             the ledger's database failed
        │   └── StaleMarkError        a mark in the change feed belongs to another history of the ledger, or is too old
        ├── BundleError             a bundle is damaged or cannot be written
        ├── InfrastructureError     a process cannot be started, or the container engine is unavailable
        └── OrchestratorError       Prefect's API is unavailable or incompatible
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_LINE = 2000


def shortened(text: str) -> str:
    """Return *text* with each long line shortened in the middle: a message may contain names from hostile documents."""
    return "\n".join(map(_shortened_line, text.split("\n")))


def _shortened_line(line: str) -> str:
    end = _LONGEST_LINE // 4
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - end]} … {line[-end:]}"


class ExecutionsError(Exception):
    """The base class of every exception that this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message; a line of more than 2,000 characters is shortened."""
        return shortened(super().__str__())


class RequestError(ExecutionsError):
    """The request is wrong; change it and retry."""


class MethodError(RequestError):
    """A Method is declared wrongly; the message names the Method and the fix."""


class InputError(RequestError):
    """An input is missing, unreadable or of the wrong type; the Method did not run."""


class SecretError(RequestError):
    """A secret was given in plain text, or its name cannot be resolved.

    The message never repeats the given value.
    """


class NameRefusedError(RequestError):
    """A name is not allowed for an output, an input or an id."""


class AmbiguousIdError(RequestError):
    """An id prefix matches more than one execution.

    Attributes:
        candidates: The full ids that match the prefix, at most 20.
    """

    def __init__(self, prefix: str, candidates: Sequence[str]) -> None:
        self.candidates = tuple(candidates)
        listed = "\n  ".join(self.candidates)
        super().__init__(f"'{prefix}' matches more than one execution; give a longer prefix:\n  {listed}")


class QueryError(RequestError):
    """A search query cannot be read; the message shows the place, what was expected, and the nearest word.

    Attributes:
        problem: What is wrong, without the place.
        text: The query; None if the place is unknown.
        column: The place in the query, from 1; None if it is unknown.
        expected: What may stand there.
        suggestion: The word that was probably meant.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: Sequence[str] = (),
        suggestion: str | None = None,
        text: str | None = None,
        column: int | None = None,
    ) -> None:
        self.problem, self.text, self.column = problem, text, column
        self.expected, self.suggestion = tuple(expected), suggestion
        lines = [problem if suggestion is None else f"{problem}; did you mean '{suggestion}'?"]
        if text is not None and column is not None:
            lines[0] = f"column {column}: {lines[0]}"
            lines += _with_caret(text, column - 1)
        if self.expected:
            lines.append(f"expected: {', '.join(self.expected)}")
        super().__init__("\n".join(lines))

    def at(self, text: str, column: int) -> QueryError:
        """Return this error with its place, unless it has one."""
        if self.column is not None:
            return self
        return QueryError(self.problem, expected=self.expected, suggestion=self.suggestion, text=text, column=column)


def _with_caret(text: str, place: int) -> tuple[str, str]:
    first, last = max(0, place - 60), place + 40
    before, after = "…" if first else "", "…" if len(text) > last else ""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[first:last])
    return f"  {before}{shown}{after}", f"  {' ' * (len(before) + place - first)}^"


class TransitionError(RequestError):
    """A status may not follow the current status (see the table in `lifecycle.status`)."""


class PlanError(RequestError):
    """A runtime cannot run a script as requested; the message lists every reason. Nothing was started."""


class ImportRefusedError(RequestError):
    """An import is damaged or hostile, or its id belongs to another execution; nothing was stored."""


class SettingsError(RequestError):
    """A setting has an invalid value; the message names the variable."""


class NotAvailableError(ExecutionsError):
    """The target of the request is missing or not allowed."""


class NoExecutionError(NotAvailableError):
    """`current_execution()` was called where no execution is running."""


class NotFoundError(NotAvailableError):
    """The execution, Method, output or file does not exist."""


class SealedError(NotAvailableError):
    """The bundle is sealed and cannot change."""


class EndedError(NotAvailableError):
    """The execution or its process has ended and cannot be cancelled."""


class ForeignCodeError(NotAvailableError):
    """The code of a bundle from another machine is not signed by a trusted key, and was not approved; nothing ran."""


class DirtyTreeError(NotAvailableError):
    """`EXECUTIONS_DIRTY=refuse` is set, and the working tree has uncommitted changes or Git cannot list them.

    Attributes:
        files: The changed files, relative to the repository; empty if Git cannot list them.
    """

    def __init__(self, repository: str, files: Sequence[str]) -> None:
        self.files = tuple(files)
        listed = "\n  ".join(self.files)
        super().__init__(
            f"The working tree of {repository} has uncommitted changes and EXECUTIONS_DIRTY=refuse is set. "
            f"Commit or stash these files, or set EXECUTIONS_DIRTY=record:\n  {listed}"
            if files
            else f"Git cannot list the uncommitted changes of {repository}, and EXECUTIONS_DIRTY=refuse is set. "
            f"Check that 'git status' works there, or set EXECUTIONS_DIRTY=record."
        )


class ScriptError(ExecutionsError):
    """A script of a descriptor Method failed or was killed.

    Attributes:
        exit_code: The exit code of the script; None if it is unknown.
    """

    def __init__(self, message: str, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class WorldError(ExecutionsError):
    """An outside system failed; the call may succeed later."""


class ArchiveError(WorldError):
    """The archive's storage failed; the message names the object and the cause."""


class DamagedSealError(ArchiveError):
    """The archived seal of an execution is damaged; `executions remove` removes the execution."""


class LedgerError(WorldError):
    """The ledger's database failed; `executions ledger rebuild` restores a lost ledger."""


class StaleMarkError(LedgerError):
    """A mark in the change feed belongs to another history of the ledger, or is too old; read all executions."""


class BundleError(WorldError):
    """A bundle is damaged or cannot be written."""


class InfrastructureError(WorldError):
    """A runtime failed: a process cannot be started or reached, or the container engine is unavailable."""


class OrchestratorError(WorldError):
    """Prefect's API is unavailable, or this installation of Prefect does not work."""
