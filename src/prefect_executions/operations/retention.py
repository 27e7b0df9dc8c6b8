"""Remove executions: one that somebody names, what the Workbench need not keep, and what the rules of retention say.

Law: what is not in the archive is never taken from the Workbench by itself, and an
execution that has not ended is never removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from prefect_executions.archive.objects import Removed
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.durations import parse_duration
from prefect_executions.errors import ExecutionsError, NotAvailableError, SettingsError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.lookup import local_ids
from prefect_executions.workbench.workbench import Workbench

_RULE = re.compile(r"(?P<method>[^=:]+)(:(?P<status>[A-Za-z]+))?=(?P<age>\d+d)")
EVERY = "*"


class Cleared(NamedTuple):
    """A bundle of the Workbench, and whether it goes; `why` says why it stays."""

    id: str
    status: Status | None
    size: int
    result: Literal["removed", "kept"]
    why: str = ""


class Rule(NamedTuple):
    """How long the archive keeps the executions of a Method, or of every one (``*``), with a status or any."""

    method: str
    status: Status | None
    age: timedelta

    @property
    def text(self) -> str:
        """The rule as the operator writes it."""
        return f"{self.method}{f':{self.status}' if self.status else ''}={self.age.days}d"


class Expired(NamedTuple):
    """An execution that a rule of retention removes."""

    id: str
    method: str
    status: Status
    ended: datetime
    rule: str


def remove(workbench: Workbench, execution_id: str, *, why: str, at: datetime) -> None:
    """Remove an execution from the archive, this Workbench and the ledger, and note that it was removed.

    Broken off, the same call goes on.

    Raises:
        NotAvailableError: If it has not ended.
        ArchiveError: If the archive fails.
    """
    archive = workbench.archive
    sealed = archive.seal_of(execution_id)
    here = OpenBundle(workbench.folder, execution_id)
    if sealed is None and not here.sealed and (here.folder.is_dir() or archive.opening(execution_id) is not None):
        raise NotAvailableError(
            f"execution {execution_id} has not been sealed and is not removed; cancel it, or let "
            "'executions settle --once' seal it"
        )
    digest = sealed.manifest_sha256 if sealed else None
    if sealed is not None or archive.removed(execution_id) is None:
        archive.note_removal(Removed(execution_id=execution_id, manifest_sha256=digest, removed=at, why=why))
    archive.remove(execution_id)
    here.discard()
    workbench.ledger.remove(execution_id)


def clear_workbench(
    workbench: Workbench, *, before: datetime, status: Collection[Status] = (), dry: bool
) -> Iterator[Cleared]:
    """Remove from the Workbench the bundles that ended before a time, with one of these statuses or any.

    One stays whose archived form is not whole: that waits for the archive, or of which
    the archive level left data out. With *dry* nothing is removed.

    Raises:
        ArchiveError: If the archive cannot be asked.
    """
    unfinished = set(workbench.unfinished())
    for execution_id in sorted(local_ids(workbench)):
        bundle = OpenBundle(workbench.folder, execution_id)
        try:
            record = bundle.record()
        except ExecutionsError as error:
            yield Cleared(execution_id, None, 0, "kept", str(error))
            continue
        ended = record.finished or record.job_status.updated
        if not bundle.sealed or ended >= before or (status and record.status not in status):
            continue
        why = "it waits for the archive" if execution_id in unfinished else _only_here(workbench, bundle, record)
        size = _size(bundle.folder)
        if not why and not dry:
            bundle.discard()
        yield Cleared(execution_id, record.status, size, "kept" if why else "removed", why)


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules that *texts* say, such as ``count-words=90d`` or ``*:FAILED=14d``.

    Raises:
        SettingsError: If one is no rule.
    """
    rules = []
    for text in texts:
        found = _RULE.fullmatch(text.strip())
        status = (found["status"] or "").upper() if found else ""
        if found is None or (status and status not in Status.__members__):
            raise SettingsError(
                f"EXECUTIONS_RETENTION: '{text}' is no rule; write METHOD=90d, METHOD:FAILED=14d, or * for every Method"
            )
        try:
            age = parse_duration(found["age"])
        except OverflowError:
            age = timedelta.max
        rules.append(Rule(found["method"].strip(), Status(status) if status else None, age))
    return tuple(rules)


def expired(workbench: Workbench, rules: Sequence[Rule], now: datetime) -> Iterator[Expired]:
    """Yield the archived executions that the *rules* remove; of several that fit one, the most special decides.

    A rule for a Method goes before one for all, and one for a status before one for any.

    Raises:
        LedgerError: If the ledger cannot be asked.
    """
    for row in workbench.ledger.search():
        matching = [rule for rule in rules if _fits(rule, row.method_id, row.status)]
        ended = row.finished or row.updated
        rule = max(matching, key=lambda rule: (rule.method != EVERY, rule.status is not None), default=None)
        if rule is not None and row.manifest_sha256 and row.archive == "archived" and now - ended > rule.age:
            yield Expired(row.id, row.method_id, row.status, ended, rule.text)


def _fits(rule: Rule, method: str, status: Status) -> bool:
    return rule.method in {EVERY, method} and rule.status in {None, status}


def _only_here(workbench: Workbench, bundle: OpenBundle, record: ExecutionRecord) -> str:
    sealed = workbench.archive.seal_of(record.id)
    if sealed is None:
        return "it is not in the archive"
    if sealed.manifest_sha256 != sha256(bundle.paths.manifest.read_bytes()).hexdigest():
        return "another bundle of that id is in the archive"
    if sealed.absent:
        return f"the archive does not have {sealed.absent[0]}" + (" and more" if len(sealed.absent) > 1 else "")
    return ""


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
