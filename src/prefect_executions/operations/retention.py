"""Removal of executions: a named one, the local copies of archived ones, and those that retention rules expire.

Law: a bundle that is not in the archive is never removed from the workbench alone,
and an execution that has not ended is never removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.objects import Removed, Seal
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.durations import parse_duration
from prefect_executions.errors import DamagedSealError, ExecutionsError, NotAvailableError, SettingsError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.lookup import local_ids
from prefect_executions.workbench.workbench import Workbench

_RULE = re.compile(r"(?P<method>[^=:]+)(:(?P<status>[A-Za-z]+))?=(?P<age>\d+d)")
EVERY = "*"
NOT_SEALED = "it has not been sealed; cancel it, or seal it with 'executions settle --once'"


class Cleared(NamedTuple):
    """A bundle on the workbench, and whether it is removed; `why` is the reason for keeping it."""

    id: str
    status: Status | None
    size: int
    result: Literal["removed", "kept"]
    why: str = ""


class Rule(NamedTuple):
    """A retention rule: how long to keep executions of a Method (or of all, ``*``) with a status (or any)."""

    method: str
    status: Status | None
    age: timedelta

    @property
    def text(self) -> str:
        """The rule as it is written in the setting."""
        return f"{self.method}{f':{self.status}' if self.status else ''}={self.age.days}d"


class Expired(NamedTuple):
    """An execution that a retention rule removes."""

    id: str
    method: str
    status: Status
    ended: datetime
    rule: str


def remove(workbench: Workbench, execution_id: str, *, why: str, at: datetime) -> None:
    """Remove an execution from the archive, this workbench and the ledger, and note its removal in the archive.

    After an interruption, a second call continues. An execution whose seal is damaged is removed as well; the
    note says so.

    Raises:
        NotAvailableError: If it has not ended.
        ArchiveError: If the archive fails, or is not the one that *workbench* used before.
    """
    archive = workbench.archive
    workbench.archive_identity.check()
    sealed, damage = _seal_of(archive, execution_id)
    bundle = OpenBundle(workbench.folder, execution_id)
    if _is_open(workbench, execution_id):
        raise NotAvailableError(f"execution {execution_id} is not removed: {NOT_SEALED}")
    digest = sealed.manifest_sha256 if sealed else None
    if damage and bundle.sealed:
        digest = sha256(bundle.paths.manifest.read_bytes()).hexdigest()
    if sealed is not None or damage or archive.removed(execution_id) is None:
        noted = f"{why}; its seal was damaged" if damage else why
        archive.put_removal(Removed(execution_id=execution_id, manifest_sha256=digest, removed=at, why=noted))
    archive.remove(execution_id)
    bundle.discard()
    workbench.ledger.remove(execution_id)


def removable(workbench: Workbench, execution_id: str) -> str:
    """Return why an execution is not removed; an empty text if it is.

    Raises:
        ArchiveError: If the archive is unavailable.
    """
    return NOT_SEALED if _is_open(workbench, execution_id) else ""


def _is_open(workbench: Workbench, execution_id: str) -> bool:
    archive, bundle = workbench.archive, OpenBundle(workbench.folder, execution_id)
    sealed, damage = _seal_of(archive, execution_id)
    unsealed = sealed is None and not damage and not bundle.sealed
    return unsealed and (bundle.folder.is_dir() or archive.opening(execution_id) is not None)


def damaged_seal(workbench: Workbench, execution_id: str) -> str | None:
    """Return why the seal of an execution in the archive cannot be read; None if it can, or if there is none.

    Raises:
        ArchiveError: If the archive is unavailable.
    """
    return _seal_of(workbench.archive, execution_id)[1]


def _seal_of(archive: Archive, execution_id: str) -> tuple[Seal | None, str | None]:
    try:
        return archive.seal_of(execution_id), None
    except DamagedSealError as error:
        return None, str(error)


def clear_workbench(
    workbench: Workbench, *, before: datetime, status: Collection[Status] = (), dry: bool
) -> Iterator[Cleared]:
    """Remove from the workbench the sealed bundles that ended before *before*, with one of the statuses or any.

    A bundle stays if its copy in the archive is incomplete: it is not archived yet, or
    its archive level leaves out data. With *dry* nothing is removed.

    Raises:
        ArchiveError: If the archive is unavailable.
    """
    unfinished = set(workbench.unfinished())
    for execution_id in sorted(local_ids(workbench)):
        bundle = OpenBundle(workbench.folder, execution_id)
        try:
            record = bundle.record()
        except ExecutionsError as error:
            yield Cleared(execution_id, None, 0, "kept", str(error))
            continue
        ended = record.job_status.end_found or record.job_status.updated
        if not bundle.sealed or ended >= before or (status and record.status not in status):
            continue
        why = "it is not archived yet" if execution_id in unfinished else _missing_in_archive(workbench, bundle, record)
        size = _size(bundle.folder)
        if not why and not dry:
            bundle.discard()
        yield Cleared(execution_id, record.status, size, "kept" if why else "removed", why)


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Parse retention rules such as ``count-words=90d`` or ``*:FAILED=14d``.

    Raises:
        SettingsError: If a text is not a rule.
    """
    rules = []
    for text in texts:
        match = _RULE.fullmatch(text.strip())
        status = (match["status"] or "").upper() if match else ""
        if match is None or (status and status not in Status.__members__):
            raise SettingsError(
                f"EXECUTIONS_RETENTION: '{text}' is not a rule; write METHOD=90d, METHOD:FAILED=14d or *=90d"
            )
        try:
            age = parse_duration(match["age"])
        except OverflowError:
            age = timedelta.max
        rules.append(Rule(match["method"].strip(), Status(status) if status else None, age))
    return tuple(rules)


def expired(workbench: Workbench, rules: Sequence[Rule], now: datetime) -> Iterator[Expired]:
    """Yield the executions that the *rules* remove; see `judge_all`."""
    return (found for found in judge_all(workbench, rules, now) if isinstance(found, Expired))


def judge_all(
    workbench: Workbench, rules: Sequence[Rule], now: datetime, *, only: Sequence[str] | None = None
) -> Iterator[Expired | str]:
    """Yield each execution that the *rules* remove, and for each other one why it is kept; *only* are the ids to judge.

    Only archived executions are removed. If several rules match, the most specific one decides.

    A rule for a Method precedes a rule for all; then a rule for a status precedes a rule for any.

    Raises:
        LedgerError: If the ledger is unavailable.
    """
    ledger = workbench.ledger
    for row in ledger.search() if only is None else ledger.get_many(only):
        matching = [rule for rule in rules if _matches(rule, row.method_id, row.status)]
        # An end that nothing observed was found later; the row has only the last sign of life.
        ended = max(row.finished or row.updated, row.updated)
        rule = max(matching, key=lambda rule: (rule.method != EVERY, rule.status is not None), default=None)
        if rule is None:
            yield "no rule matches"
        elif now - ended <= rule.age:
            yield f"not older than {rule.text}"
        elif not row.manifest_sha256 or row.archive != "archived":
            yield "not archived yet"
        else:
            yield Expired(row.id, row.method_id, row.status, ended, rule.text)


def _matches(rule: Rule, method: str, status: Status) -> bool:
    return rule.method in {EVERY, method} and rule.status in {None, status}


def _missing_in_archive(workbench: Workbench, bundle: OpenBundle, record: ExecutionRecord) -> str:
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
