"""The damage matrix: each small object of an archive, damaged in each way, concerns only its own execution."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bundle_makers import an_open_bundle
from marks import long_if
from prefect_executions.archive.archive import open_archive
from prefect_executions.cli.app import main
from prefect_executions.executions.record import OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.retention import remove
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.sealing import Ending, LateSeal
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_record, a_request

pytestmark = pytest.mark.usefixtures("prefect_server")

SEALED, IMPORTED, OPEN, REMOVED, OTHER = (f"{letter * 8}-6f0c-4f2e-9a41-3d6d5d3f2e10" for letter in "abcde")
KEPT = {SEALED, IMPORTED, OPEN, OTHER}


class Cell(NamedTuple):
    """What the commands say about the execution whose object is damaged; None: nothing about it."""

    listed: bool = True
    """Whether a rebuilt ledger has it."""
    rebuild: str | None = None
    """What its problem in `ledger rebuild` contains."""
    show: int = 0
    """The exit code of `show`."""
    damaged: str | None = None
    """What `show` says is damaged."""
    audit: frozenset[str] = frozenset()
    """The kinds of the violations."""
    settle: str | None = None
    """What its failure in `settle` contains."""


def kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


def a_record_of(execution_id: str) -> Any:
    job_status = a_job_status(Status.EXECUTING, execution_id=execution_id)
    return a_record(request=a_request(execution_id=execution_id), job_status=job_status)


def seal(bench: Workbench, execution_id: str) -> None:
    record = a_record_of(execution_id)
    bench.archive.put_opening(execution_id, OpeningRecord.of(record).to_json())
    an_open_bundle(bench.folder, record)
    bench.seal(execution_id, Ending(Status.COMPLETED, None, NOON, Observer.HOOK))


def a_late_seal(execution_id: str) -> bytes:
    seal = LateSeal(execution_id=execution_id, status=Status.FAILED, manifest_sha256="f" * 64, noted=NOON)
    return seal.to_json()


def a_bench(folder: Path) -> Workbench:
    return Workbench(
        folder / "bench",
        open_archive=lambda: open_archive(str(folder / "archive")),
        open_ledger=lambda: Ledger.open(f"sqlite:///{folder / 'ledger.db'}"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a sealed, an imported, an open, a removed and another sealed execution; no test changes it."""
    folder = tmp_path_factory.mktemp("made")
    bench, elsewhere = a_bench(folder / "ours"), a_bench(folder / "theirs")
    for execution_id in (SEALED, OTHER, REMOVED):
        seal(bench, execution_id)
    bench.archive.put_late_seal(SEALED, a_late_seal(SEALED))
    remove(bench, REMOVED, why="a test", at=NOON)
    bench.archive.put_opening(OPEN, OpeningRecord.of(a_record_of(OPEN)).to_json())
    seal(elsewhere, IMPORTED)
    with (folder / "x.zip").open("wb") as file:
        export(Catalog(elsewhere), [IMPORTED], file.write)
    list(import_bundles(bench, str(folder / "x.zip"), ImportPolicy.of(Settings(), NOON)))
    return folder / "ours/archive"


@pytest.fixture
def archive(made: Path, home: Path, told: Callable[..., Any]) -> Path:
    """An archive that a test may damage, indexed in the ledger."""
    shutil.copytree(made, home / "archive")
    assert told("ledger", "rebuild") == {"executions": len(KEPT)}
    return home / "archive"


DAMAGES: Mapping[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "not JSON": lambda _: b"\x80\0<html>",
    "another type": lambda _: b"[17, null]",
    "of another execution": lambda data: (
        data.replace(SEALED.encode(), OTHER.encode())
        .replace(IMPORTED.encode(), OTHER.encode())
        .replace(OPEN.encode(), OTHER.encode())
        .replace(REMOVED.encode(), OTHER.encode())
    ),
    "unknown member": lambda data: b'{"planted": 1,' + data.lstrip()[1:],
    "missing": lambda _: None,
}


def path_of(archive: Path, execution_id: str, name: str) -> Path:
    if name == "removed":
        return archive / f"removed/{execution_id}.json"
    folder = archive / "executions" / execution_id
    return next(folder.glob(name))


DAMAGED_SEAL = Cell(listed=False, rebuild="seal", show=4, audit=kinds("damaged"), settle="seal")
OBJECTS: Mapping[str, tuple[str, str, Cell, Mapping[str, Cell]]] = {
    "seal": (
        SEALED,
        "seal.json",
        DAMAGED_SEAL,
        {"missing": Cell(audit=kinds("removed"), settle="no sealed execution")},
    ),
    "import record": (
        IMPORTED,
        "imported.json",
        Cell(rebuild="imported.json", damaged="imported.json", audit=kinds("damaged")),
        {
            "of another execution": Cell(rebuild="imported.json", damaged="imported.json", audit=kinds("forged")),
            "missing": Cell(),
        },
    ),
    "late seal": (
        SEALED,
        "late/*.json",
        Cell(damaged="late/", audit=kinds("damaged", "digest")),
        {"of another execution": Cell(damaged="late/", audit=kinds("forged", "digest")), "missing": Cell()},
    ),
    "opening record": (
        OPEN,
        "opening.json",
        Cell(listed=False, rebuild="opening.json", show=4, audit=kinds("damaged"), settle="opening.json"),
        {
            "of another execution": Cell(
                listed=False, rebuild="opening.json", show=4, audit=kinds("forged"), settle="opening.json"
            ),
            "empty": Cell(listed=False, show=3, settle="opening record is gone"),
            "missing": Cell(listed=False, show=3, settle="opening record is gone"),
        },
    ),
    "opening record of a sealed one": (
        SEALED,
        "opening.json",
        Cell(damaged="opening.json", audit=kinds("damaged")),
        {
            "of another execution": Cell(damaged="opening.json", audit=kinds("forged")),
            "empty": Cell(),
            "missing": Cell(),
        },
    ),
    "job status": (
        SEALED,
        "sealed-*/metadata/jobStatus.json",
        Cell(listed=False, rebuild="jobStatus.json", show=4, audit=kinds("digest", "damaged"), settle="jobStatus.json"),
        {
            "of another execution": Cell(
                listed=False,
                rebuild="jobStatus.json",
                show=4,
                audit=kinds("digest", "forged"),
                settle="jobStatus.json",
            ),
            "missing": Cell(
                listed=False, rebuild="jobStatus.json", show=4, audit=kinds("missing"), settle="jobStatus.json"
            ),
        },
    ),
    "manifest": (
        SEALED,
        "sealed-*/manifest-sha256.txt",
        Cell(
            listed=False,
            rebuild="manifest",
            show=4,
            audit=kinds("added", "digest", "damaged", "missing"),
            settle="manifest",
        ),
        {},
    ),
    "removal record": (
        REMOVED,
        "removed",
        Cell(listed=False, show=3, audit=kinds("removed"), settle="removal record"),
        {
            "of another execution": Cell(listed=False, show=3, audit=kinds("removed")),
            "missing": Cell(listed=False, show=3, audit=kinds("removed"), settle="no sealed execution"),
        },
    ),
}


@pytest.mark.parametrize("damage", long_if(DAMAGES, DAMAGES.keys() - {"empty", "of another execution"}))
@pytest.mark.parametrize("name", OBJECTS)
def test_damage_concerns_only_its_own_execution(archive, told, name, damage):
    execution_id, place, usual, special = OBJECTS[name]
    expected = special.get(damage, usual)
    path = path_of(archive, execution_id, place)
    data = DAMAGES[damage](path.read_bytes())
    if damage == "of another execution" and name == "manifest":
        data = path_of(archive, OTHER, place).read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)

    before = {row["id"] for row in told("list")["executions"]}
    assert before == KEPT

    for other in KEPT - {execution_id}:
        assert told("show", other)["id"] == other
    if expected.show == 0:
        shown = told("show", execution_id)
        assert [expected.damaged in what for what in shown.get("damaged", [])] or expected.damaged is None
    else:
        assert main(["show", execution_id]) == expected.show

    findings = told("audit", code=1 if expected.audit else 0)["findings"]
    violations = [finding for finding in findings if finding["weight"] == "violation"]
    assert {finding["execution"] for finding in violations} <= {execution_id}
    assert {finding["kind"] for finding in violations} <= expected.audit
    assert bool(violations) == bool(expected.audit)

    rebuilt = told("ledger", "rebuild", code=4 if expected.rebuild else 0)
    after = {row["id"] for row in told("list")["executions"]}
    assert after == (KEPT | {execution_id} if expected.listed else KEPT - {execution_id})
    assert rebuilt["executions"] == len(after)
    problems = {problem["id"]: problem["problem"] for problem in rebuilt.get("problems", [])}
    assert problems.keys() == ({execution_id} if expected.rebuild else set())
    assert (expected.rebuild or "") in problems.get(execution_id, "")

    settled = told("settle", "--once", code=4 if expected.settle else 0)["settled"]
    failed = {entry["id"]: entry["message"] for entry in settled if entry["result"] == "failed"}
    assert failed.keys() == ({execution_id} if expected.settle else set())
    assert (expected.settle or "") in failed.get(execution_id, "")
