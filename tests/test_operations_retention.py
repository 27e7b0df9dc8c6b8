"""Removed executions stay removed; an execution that is not archived or has not ended is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from benches import OTHER_ID, begun, bench_at, kept, record_of
from bundle_makers import contents
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.cli.app import main
from prefect_executions.errors import ArchiveError, NotAvailableError, NotFoundError, SettingsError
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.retention import clear_workbench, damaged_seal, expired, parse_rules, remove
from prefect_executions.settings import ArchiveLevel
from prefect_executions.workbench.index import rebuild_ledger
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, NOON, a_job_status, a_request

NOW = NOON + timedelta(days=40)


def removed(bench: Workbench, execution_id: str = EXECUTION_ID) -> None:
    remove(bench, execution_id, why="asked for", at=NOW)


def cleared(bench: Workbench, **told: object) -> dict[str, tuple[str, str]]:
    asked = {"before": NOW, "dry": False} | told
    return {one.id: (one.result, one.why) for one in clear_workbench(bench, **asked)}


def test_a_removed_execution_leaves_only_a_note(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    kept(bench, OTHER_ID)
    digest = bench.archive.bundle(EXECUTION_ID).seal.manifest_sha256
    removed(bench)
    with pytest.raises(NotFoundError):
        bench.record(EXECUTION_ID)
    assert [row.id for row in bench.ledger.list().rows] == [OTHER_ID]
    assert [path for path in contents(tmp_path / "archive") if path.startswith(f"executions/{EXECUTION_ID}")] == []
    note = bench.archive.removed(EXECUTION_ID)
    assert (note.manifest_sha256, note.why, note.removed) == (digest, "asked for", NOW)
    assert rebuild_ledger(bench).executions == 1


def test_removing_twice_changes_nothing(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    removed(bench)
    before = contents(tmp_path / "archive")
    remove(bench, EXECUTION_ID, why="again", at=NOW + timedelta(days=1))
    assert contents(tmp_path / "archive") == before


@pytest.mark.parametrize("here", [True, False], ids=["on the workbench", "only in the archive"])
def test_an_execution_with_a_damaged_seal_is_removed_with_a_note_that_says_so(tmp_path, here):
    bench = bench_at(tmp_path)
    digest = sha256(kept(bench).paths.manifest.read_bytes()).hexdigest()
    if not here:
        OpenBundle(bench.folder, EXECUTION_ID).discard()
    (tmp_path / "archive/executions" / EXECUTION_ID / "seal.json").write_text("{")
    assert "seal of" in (damaged_seal(bench, EXECUTION_ID) or "")
    removed(bench)
    note = bench.archive.removed(EXECUTION_ID)
    assert (note.manifest_sha256, note.why) == (digest if here else None, "asked for; its seal was damaged")
    assert [path for path in contents(tmp_path / "archive") if path.startswith(f"executions/{EXECUTION_ID}")] == []
    assert damaged_seal(bench, EXECUTION_ID) is None


def test_a_seal_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch):
    bench = bench_at(tmp_path)
    begun(bench, record_of(end=Status.EXECUTING))
    bench.leases.release(EXECUTION_ID)

    def fail(keys: Sequence[str], **_options: object) -> Mapping[str, bytes]:
        raise ArchiveError(f"{keys[0]} cannot be read")

    monkeypatch.setattr(bench.archive.store, "get_many", fail)  # while requests for metadata still succeed
    with pytest.raises(ArchiveError, match="cannot be read"):
        damaged_seal(bench, EXECUTION_ID)
    with pytest.raises(ArchiveError, match="cannot be read"):
        removed(bench)


def test_an_execution_that_has_not_ended_is_not_removed(tmp_path):
    bench = bench_at(tmp_path)
    begun(bench, record_of(end=Status.EXECUTING))
    bench.leases.release(EXECUTION_ID)
    with pytest.raises(NotAvailableError, match="has not been sealed"):
        removed(bench)
    assert bench.record(EXECUTION_ID).status is Status.EXECUTING


def test_archived_bundles_are_removed_from_the_workbench(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    assert cleared(bench, dry=True) == {EXECUTION_ID: ("removed", "")}
    assert (bench.folder / EXECUTION_ID).is_dir()
    assert cleared(bench) == {EXECUTION_ID: ("removed", "")}
    assert not (bench.folder / EXECUTION_ID).exists()
    assert bench.record(EXECUTION_ID).status is Status.COMPLETED


def test_a_bundle_missing_in_the_archive_is_never_removed(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    bench.archive.remove(EXECUTION_ID)
    kept(bench, OTHER_ID, request=a_request(execution_id=OTHER_ID, archive=ArchiveLevel.OUTPUTS))
    begun(bench, record_of("running", end=Status.EXECUTING))
    bench.leases.release("running")
    result = cleared(bench)
    assert result[EXECUTION_ID] == ("kept", "it is not in the archive")
    assert result[OTHER_ID] == ("kept", "the archive does not have inputs/picture.png")
    assert "running" not in result
    assert {path.name for path in bench.folder.iterdir()} >= {EXECUTION_ID, OTHER_ID, "running"}


def test_a_bundle_that_waits_for_the_archive_is_kept(tmp_path):
    bench = bench_at(tmp_path)
    bundle = kept(bench)
    bundle.scratch.mkdir()
    assert cleared(bench) == {EXECUTION_ID: ("kept", "it is not archived yet")}


def test_age_and_status_choose_the_bundles_to_remove(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    assert cleared(bench, before=NOON) == {}
    assert cleared(bench, status=(Status.FAILED,)) == {}
    assert set(cleared(bench, status=(Status.FAILED, Status.COMPLETED))) == {EXECUTION_ID}


@pytest.mark.parametrize(
    ("texts", "gone"),
    [
        (["segment-coins=30d"], {EXECUTION_ID, OTHER_ID}),
        (["segment-coins=50d"], set()),
        (["*=30d", "segment-coins=50d"], set()),
        (["*=50d", "*:FAILED=30d"], {OTHER_ID}),
        (["segment-coins:failed=50d", "segment-coins=30d"], {EXECUTION_ID}),
        (["another=1d"], set()),
    ],
)
def test_the_most_specific_rule_decides(tmp_path, texts, gone):
    bench = bench_at(tmp_path)
    kept(bench)
    kept(bench, OTHER_ID, end=Status.FAILED)
    assert {one.id for one in expired(bench, parse_rules(texts), NOW)} == gone


def test_the_age_counts_from_the_moment_when_the_end_was_found(tmp_path):
    bench = bench_at(tmp_path)
    found = NOON + timedelta(days=35)
    times = {"finished": NOON + timedelta(seconds=5), "finished_before": found, "updated": found}
    kept(bench, job_status=a_job_status(Status.FAILED).model_copy(update=times))
    rules = parse_rules(["*=30d"])
    assert list(expired(bench, rules, NOW)) == []
    assert cleared(bench, before=NOON + timedelta(days=30)) == {}
    assert [each.id for each in expired(bench, rules, NOW + timedelta(days=30))] == [EXECUTION_ID]
    assert set(cleared(bench)) == {EXECUTION_ID}


@pytest.mark.parametrize("text", ["", "x", "x=", "x=5", "x=5h", "x:NEVER=5d", "=5d", "a=1d=2d"])
def test_an_invalid_rule_is_named(text):
    with pytest.raises(SettingsError, match="EXECUTIONS_RETENTION"):
        parse_rules([text])


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    found = main(arguments)
    shown = capsys.readouterr()
    assert found == code, shown.err
    return shown.err if code else shown.out


def test_nothing_is_removed_without_yes(home, capsys, monkeypatch):
    bench = bench_at(home)
    kept(bench)
    assert run(capsys, "remove", EXECUTION_ID[:5], "--dry-run").splitlines() == [
        f"{EXECUTION_ID}\twould be removed\t",
        "1 execution would be removed; do it with --yes",
    ]
    assert "confirm with --yes" in run(capsys, "remove", EXECUTION_ID, code=2)
    assert "no retention rule is set" in run(capsys, "retain", code=2)
    monkeypatch.setenv("EXECUTIONS_RETENTION", "segment-coins=1d")
    payload = json.loads(run(capsys, "retain", "--json", "--dry-run"))
    age = datetime.now(UTC) - NOON > timedelta(days=1)
    assert [one["id"] for one in payload["executions"]] == ([EXECUTION_ID] if age else [])
    listed = run(capsys, "gc", "--older-than", "2100-01-01", "--dry-run")
    assert "\twould be removed\t" in listed
    assert "1 bundle of" in listed
    assert listed.endswith(" would be removed from the workbench; do it with --yes\n")
    assert "confirm with --yes" in run(capsys, "gc", "--older-than", "2100-01-01", code=2)
    for command in (["gc"], ["retain"], ["remove", EXECUTION_ID]):
        assert "--yes and --dry-run exclude each other" in run(capsys, *command, "--yes", "--dry-run", code=2)
    assert Path(bench.folder / EXECUTION_ID).is_dir()
    assert bench.archive.seal_of(EXECUTION_ID)
    run(capsys, "gc", "--older-than", "2100-01-01", "--json", "--yes")
    assert not Path(bench.folder / EXECUTION_ID).exists()
    run(capsys, "remove", EXECUTION_ID, "--yes")
    assert bench.archive.seal_of(EXECUTION_ID) is None


def test_each_command_says_what_is_kept_and_why(home, capsys, monkeypatch):
    bench = bench_at(home)
    kept(bench)
    begun(bench, record_of(OTHER_ID, Status.EXECUTING))
    (bench.folder / ".server").mkdir()
    monkeypatch.setenv("EXECUTIONS_RETENTION", "segment-coins:CANCELLED=1d,segment-coins:COMPLETED=99999d")
    assert run(capsys, "retain").splitlines() == [
        "1 execution kept: no rule matches",
        "1 execution kept: not older than segment-coins:COMPLETED=99999d",
        "0 executions would be removed; do it with --yes",
    ]
    assert run(capsys, "gc", "--older-than", "2026-09-01", "--status", "completed").splitlines() == [
        "Not listed: executions that are open, or that ended after 2026-09-01 00:00:00Z, or that are not COMPLETED",
        "0 bundles of 0 B would be removed from the workbench; do it with --yes",
    ]
    assert main(["remove", EXECUTION_ID, OTHER_ID, "--yes"]) == 3
    assert set(capsys.readouterr().out.splitlines()) == {
        f"{EXECUTION_ID}\tremoved\t",
        f"{OTHER_ID}\tkept\tit has not been sealed; cancel it, or seal it with 'executions settle --once'",
        "1 execution removed",
    }
    assert bench.archive.seal_of(EXECUTION_ID) is None
    assert (bench.folder / OTHER_ID).is_dir()
