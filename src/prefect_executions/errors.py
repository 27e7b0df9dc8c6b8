"""The one tree of errors, by what the caller can do about them.

::

    ExecutionsError
    ├── RequestError              the request is wrong: change it and ask again
    │   ├── MethodError             a Method is declared wrongly
    │   ├── InputError              an input is missing, unreadable or of the wrong kind
    │   ├── SecretError             a secret was given in clear, or its name resolves to nothing
    │   ├── NameRefusedError        a name may not be used for a file or an id
    │   ├── AmbiguousIdError        an id prefix fits more than one execution
    │   ├── TransitionError         a status may not follow the current one
    │   ├── PlanError               a runtime cannot run a script as asked
    │   ├── ImportRefusedError      what is to be imported is damaged, hostile, or another execution has its id
    │   └── SettingsError           a setting has a value that cannot be used
    ├── NotAvailableError         the thing is not there or not allowed
    │   ├── NoExecutionError        no execution is around the caller
    │   ├── NotFoundError           no such execution, Method, output or file
    │   ├── SealedError             the bundle is sealed and takes no change
    │   ├── EndedError              the execution has ended, so it cannot be cancelled
    │   └── DirtyTreeError          the working tree has changes and the operator forbade that
    ├── ScriptError               a script of a descriptor Method failed: look at what it wrote
    └── WorldError                the world failed: try again, or call the operator
        ├── ArchiveError            the object storage failed
        ├── LedgerError             the ledger's database failed
        ├── BundleError             a bundle on disk is damaged or cannot be written
        ├── InfrastructureError     a process cannot be started, or the engine of containers is away
        └── OrchestratorError       Prefect's API is away or does not fit
"""

from __future__ import annotations

from collections.abc import Sequence


class ExecutionsError(Exception):
    """Anything that this package raises on purpose."""


class RequestError(ExecutionsError):
    """The request is wrong; change it and ask again."""


class MethodError(RequestError):
    """A Method is declared wrongly; the message names the Method and the cure."""


class InputError(RequestError):
    """An input is missing, unreadable or of the wrong kind; nothing was computed."""


class SecretError(RequestError):
    """A secret was given in clear, or its name resolves to nothing.

    The message never repeats the value that was given.
    """


class NameRefusedError(RequestError):
    """A name may not be used for an output, an input or an id."""


class AmbiguousIdError(RequestError):
    """An id prefix fits more than one execution.

    Attributes:
        candidates: The full ids that the prefix fits, at most 20 of them.
    """

    def __init__(self, prefix: str, candidates: Sequence[str]) -> None:
        self.candidates = tuple(candidates)
        listed = "\n  ".join(self.candidates)
        super().__init__(f"'{prefix}' is the beginning of more than one execution id; give more of it:\n  {listed}")


class TransitionError(RequestError):
    """A status may not follow the current one (the table is in `lifecycle`)."""


class PlanError(RequestError):
    """A runtime cannot run a script as asked; the message tells every reason, and nothing was started."""


class ImportRefusedError(RequestError):
    """What is to be imported is damaged, hostile, or another execution has its id; nothing of it was kept."""


class SettingsError(RequestError):
    """A setting has a value that cannot be used; the message names the variable."""


class NotAvailableError(ExecutionsError):
    """The thing that was asked for is not there, or not allowed."""


class NoExecutionError(NotAvailableError):
    """`current_execution()` was called where no execution is running."""


class NotFoundError(NotAvailableError):
    """There is no such execution, Method, output or file."""


class SealedError(NotAvailableError):
    """The bundle is sealed; nothing in it changes any more."""


class EndedError(NotAvailableError):
    """The execution has ended, or its process has; it cannot be cancelled any more."""


class DirtyTreeError(NotAvailableError):
    """The working tree has uncommitted changes, or Git cannot say, and `EXECUTIONS_DIRTY=refuse` forbids that.

    Attributes:
        files: The changed files, relative to the repository; none where Git cannot say.
    """

    def __init__(self, repository: str, files: Sequence[str]) -> None:
        self.files = tuple(files)
        listed = "\n  ".join(self.files)
        super().__init__(
            f"The working tree of {repository} has uncommitted changes and EXECUTIONS_DIRTY=refuse is set. "
            f"Commit or stash these files, or set EXECUTIONS_DIRTY=record:\n  {listed}"
            if files
            else f"Whether the working tree of {repository} has uncommitted changes cannot be seen, and "
            f"EXECUTIONS_DIRTY=refuse is set. Look whether 'git status' works there, or set EXECUTIONS_DIRTY=record."
        )


class ScriptError(ExecutionsError):
    """A script of a descriptor Method ended with an error, or was ended.

    Attributes:
        exit_code: The exit code of the script; None where nobody saw it.
    """

    def __init__(self, message: str, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class WorldError(ExecutionsError):
    """The world outside failed; the same call may succeed later."""


class ArchiveError(WorldError):
    """The archive's storage failed; the message names the object and the cause."""


class LedgerError(WorldError):
    """The ledger's database failed; `executions ledger rebuild` brings a lost one back."""


class BundleError(WorldError):
    """A bundle on disk is damaged, or cannot be written."""


class InfrastructureError(WorldError):
    """What runs scripts failed: a process cannot be started or reached, or the engine of containers is away."""


class OrchestratorError(WorldError):
    """Prefect's API is away, or this installation of Prefect does not work."""
