"""`SharedSecrets`: the secrets of a tree of executions; each execution masks the secrets of all others.

Executions of one process share one mask. Another process gets only the names (``env:NAME``, or a Prefect block),
which are in the scratch folder of each open execution and in its record, and resolves them itself.

Law: the value of a secret is never written to a disk, sent to Prefect or put into an environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress

from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import EXECUTION_ID_ENV
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.errors import ExecutionsError, SecretError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.prefect_api import blocks
from prefect_executions.workbench.workbench import Workbench

SHARED_WITH_ENV = "EXECUTION_SECRETS_OF"
"""The environment variable with the id of an execution whose secrets the processes that it starts mask as well.

It is set only while this process holds secrets, also where several executions share the process and `EXECUTION_ID`
is not set."""

_GENERATIONS = 20
"""How many callers of callers are read from the archive."""


class SharedSecrets:
    """The secrets of the executions that run in this process at the same time, or inside the same flow run.

    Attributes:
        mask: Masks the values of all of them.
    """

    def __init__(self) -> None:
        self.mask = SecretMask()
        self.members = 0
        self._names: set[str] = set()
        self._bundles: dict[str, OpenBundle] = {}
        self._announced = False
        self._inherited: str | None = None

    def add(self, name: str, value: str) -> None:
        """Add the *value* of the secret *name*, and let every open execution keep the name."""
        self.mask.add(value)
        with _lock:
            if name in self._names:
                return
            self._names.add(name)
            bundles, names = list(self._bundles.values()), sorted(self._names)
            self._announce()
        for bundle in bundles:
            _keep(bundle, names)

    def open(self, bundle: OpenBundle) -> None:
        """Let the execution of *bundle* keep the names of all secrets until it is sealed."""
        with _lock:
            self._bundles[ExecutionId.parse(bundle.id).flow_run_id] = bundle
            names = sorted(self._names)
            self._announce()
        if names:
            _keep(bundle, names)

    def inherit(self, workbench: Workbench, parent: str | None, environment: Mapping[str, str]) -> list[str]:
        """Add the secrets of the execution *parent*, and of the one whose process started this process.

        Return the names of those that cannot be resolved here.
        """
        with _lock:
            own = {bundle.id for bundle in self._bundles.values()}
        callers = {parent, environment.get(EXECUTION_ID_ENV), environment.get(SHARED_WITH_ENV)} - {None, *own}
        missing = []
        for name in sorted({name for caller in callers if caller for name in _names_of(workbench, caller)}):
            try:
                self.add(name, blocks.resolve_secret("", name, environment).get_secret_value())
            except SecretError:
                missing.append(name)
        return missing

    def leave(self, flow_run_id: str) -> None:
        """Note the end of a member's code."""
        with _lock:
            self.members -= 1
            self._bundles.pop(flow_run_id, None)
            self._announce()

    def _announce(self) -> None:
        ids = [bundle.id for bundle in self._bundles.values()] if self._names else []
        if ids and os.environ.get(SHARED_WITH_ENV) not in ids:
            if not self._announced:
                self._inherited = os.environ.get(SHARED_WITH_ENV)
            os.environ[SHARED_WITH_ENV] = ids[0]
        elif not ids and self._announced:
            restore_variable(SHARED_WITH_ENV, self._inherited)
        self._announced = bool(ids)


_lock = threading.Lock()
_current = SharedSecrets()


def restore_variable(name: str, value: str | None) -> None:
    """Set an environment variable to its earlier *value*; None removes it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def join(*, enclosed: bool) -> SharedSecrets:
    """Return the secrets that an execution shares; it must call `leave` at its end.

    An execution that is not *enclosed* in another flow run, while no other execution runs
    in this process, starts with none.
    """
    global _current  # noqa: PLW0603 - the memory of a process is shared, and so are its secrets
    with _lock:
        if not enclosed and not _current.members:
            _current = SharedSecrets()
        _current.members += 1
        return _current


def current() -> SharedSecrets:
    """Return the secrets of the executions that run in this process, or ran last."""
    return _current


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held the lock at the fork
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _keep(bundle: OpenBundle, names: Iterable[str]) -> None:
    with suppress(ExecutionsError):  # the values are masked here in any case
        bundle.keep_secret_names(names)


def _names_of(workbench: Workbench, execution_id: str) -> set[str]:
    """Return the names of the secrets of an execution and its callers, as far as they can be read here."""
    names: set[str] = set()
    callers: str | None = execution_id
    with suppress(ExecutionsError):
        for _ in range(_GENERATIONS):
            if callers is None:
                break
            kept = OpenBundle(workbench.folder, check_execution_id(callers)).secret_names()
            if kept:  # those of the callers are among them
                return names | kept
            record = workbench.record(callers)
            names |= _resolved(record)
            callers = next((each.execution_id for each in record.request.relatives if each.relation == "parent"), None)
    return names


def _resolved(record: ExecutionRecord) -> set[str]:
    values = (record.request.values.get(name) for name in record.method.secrets)
    return {str(value["secret"]) for value in values if isinstance(value, dict) and "secret" in value}
