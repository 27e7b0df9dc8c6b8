"""Annotations lie beside the seal, are searched at once, travel with exports, and are checked."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from zipfile import ZipFile

import pytest

from bundle_makers import an_open_bundle
from ledgers import an_id
from prefect_executions.archive.archive import open_archive
from prefect_executions.bundles.annotations import AnnotationSet, read_annotation
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import ImportRefusedError, NotFoundError
from prefect_executions.executions.annotations import AnnotationKind, LabelChange
from prefect_executions.executions.record import ExecutionRecord, OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.operations.audit import audit
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.retention import remove
from prefect_executions.operations.verify import verify_execution
from prefect_executions.settings import Settings
from prefect_executions.workbench.annotations import annotate
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.index import rebuild_ledger
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_record, a_request
from signers import a_key, trusting

ID, OTHER = an_id(1), an_id(2)
TAG, NAME, STAR = (AnnotationKind.TAG, "best"), (AnnotationKind.NAME, "Run 7"), (AnnotationKind.STAR, "")
NOTE, RECALL = (AnnotationKind.NOTE, "see plot 3"), (AnnotationKind.RECALL, "bad sensor")
EXPERIMENT = (AnnotationKind.EXPERIMENT, "ablation")


def a_bench(folder: Path, *, signed: bool = False) -> Workbench:
    return Workbench(
        folder / "bench",
        open_archive=lambda: open_archive(str(folder / "archive")),
        open_ledger=lambda: Ledger.open(f"sqlite:///{folder / 'ledger.db'}"),
        signing_key=a_key if signed else lambda: None,
    )


def a_running_record(number: int) -> ExecutionRecord:
    job_status = a_job_status(Status.EXECUTING, execution_id=an_id(number))
    return a_record(request=a_request(execution_id=an_id(number)), job_status=job_status)


def seal(bench: Workbench, number: int) -> str:
    record = a_running_record(number)
    bench.archive.put_opening(record.id, OpeningRecord.of(record).to_json())
    an_open_bundle(bench.folder, record)
    bench.seal(record.id, Ending(Status.COMPLETED, None, NOON + timedelta(hours=1), Observer.HOOK))
    return record.id


def label(bench: Workbench, *changes: tuple[AnnotationKind, str], execution_id: str = ID, hours: int = 2) -> None:
    each = [LabelChange.of(*change) for change in changes]
    annotate(bench, execution_id, each, agent="ada", at=NOON + timedelta(hours=hours))


def found(bench: Workbench, query: str) -> set[str]:
    return set(Catalog(bench).search(query).ids)


def export_to(bench: Workbench, path: Path) -> Path:
    with path.open("wb") as file:
        export(Catalog(bench), [ID], file.write)
    return path


def import_from(bench: Workbench, path: Path, policy: ImportPolicy | None = None) -> str:
    (result,) = import_bundles(bench, str(path), policy or ImportPolicy.of(Settings(), NOON + timedelta(days=1)))
    return result.result


def objects_of(bench: Workbench) -> list[Path]:
    return sorted(Path(bench.folder.parent, "archive").rglob("annotations/*.json"))


def faults(bench: Workbench) -> list[str]:
    return [
        fault for copy in verify_execution(Catalog(bench), ID, signatures=trusting()) for fault in copy.report.faults
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = a_bench(tmp_path)
    seal(bench, 1)
    seal(bench, 2)
    return bench


@pytest.mark.parametrize(
    ("change", "query"),
    [
        (TAG, "tag:best"),
        (NAME, 'name:"run 7"'),
        (EXPERIMENT, "experiment:ablation"),
        (NOTE, 'note:"plot 3"'),
        (NOTE, '"plot 3"'),
        (STAR, "is:starred"),
        (RECALL, "is:recalled"),
    ],
)
def test_a_label_is_found_by_the_next_search(bench, change, query):
    assert found(bench, query) == set()
    label(bench, change)
    assert found(bench, query) == {ID}
    assert found(bench, f"NOT {query}") == {OTHER}


def test_a_removed_tag_and_a_removed_star_are_not_found(bench):
    label(bench, TAG, STAR)
    label(bench, (AnnotationKind.UNTAG, "best"), (AnnotationKind.UNSTAR, ""), hours=3)
    assert found(bench, "tag:best OR is:starred") == set()


def test_a_tag_of_the_request_can_be_removed(bench):
    tag = Catalog(bench).record(ID).request.tags[0]
    label(bench, (AnnotationKind.UNTAG, tag))
    assert found(bench, f'tag:"{tag}"') == {OTHER}


def test_the_bundle_stays_as_it_was(bench):
    before = Catalog(bench).bundle_source(ID)
    label(bench, TAG)
    after = Catalog(bench).bundle_source(ID)
    assert set(after.files) - set(before.files) == {AnnotationSet.file_name}
    assert faults(bench) == []


def test_two_writers_keep_both_changes(tmp_path, bench):
    other = a_bench(tmp_path)
    label(bench, TAG)
    label(other, (AnnotationKind.TAG, "mine"))
    assert found(bench, "tag:best tag:mine") == {ID}
    assert len(objects_of(bench)) == 2


def test_the_later_time_wins_whatever_is_written_first(bench):
    label(bench, (AnnotationKind.NAME, "late"), hours=5)
    label(bench, (AnnotationKind.NAME, "early"), hours=3)
    assert found(bench, "name:late") == {ID}


def test_the_same_change_twice_is_one_object(bench):
    label(bench, TAG)
    label(bench, TAG)
    assert len(objects_of(bench)) == len(bench.ledger.annotations(ID)) == 1


def test_a_rebuilt_ledger_has_the_same_rows(bench):
    label(bench, TAG, NAME, NOTE, STAR)
    label(bench, RECALL, hours=3)
    before = bench.ledger.dump()
    assert len(before["annotations"]) == 5
    rebuild_ledger(bench)
    assert bench.ledger.dump() == before


def test_an_execution_that_is_indexed_again_keeps_its_labels(bench):
    label(bench, TAG)
    bench.index(ID)
    bench.ledger.record(bench.record(ID), archive="archived", manifest_sha256=bench.archive.seal_of(ID).manifest_sha256)
    assert found(bench, "tag:best") == {ID}


def test_an_open_execution_gets_labels_that_its_seal_keeps(tmp_path):
    bench = a_bench(tmp_path)
    record = a_running_record(1)
    bench.archive.put_opening(record.id, OpeningRecord.of(record).to_json())
    an_open_bundle(bench.folder, record)
    label(bench, NAME)
    assert found(bench, 'name:"Run 7"') == {ID}
    bench.seal(ID, Ending(Status.COMPLETED, None, NOON + timedelta(hours=1), Observer.HOOK))
    assert found(bench, 'name:"Run 7" status:completed') == {ID}
    assert faults(bench) == []


def test_an_execution_that_does_not_exist_gets_no_labels(bench):
    with pytest.raises(NotFoundError):
        label(bench, TAG, execution_id=an_id(9))
    assert objects_of(bench) == []


def test_removal_removes_the_annotations(bench):
    label(bench, TAG)
    remove(bench, ID, why="asked for", at=NOON)
    assert objects_of(bench) == []
    assert bench.ledger.dump()["annotations"] == ()


def test_a_sweep_keeps_annotations(bench):
    label(bench, TAG)
    bench.archive.sweep(NOON + timedelta(days=9999))
    assert len(objects_of(bench)) == 1


def test_an_export_carries_them_and_an_import_brings_them_back(tmp_path, bench):
    label(bench, TAG, NAME, NOTE)
    path = export_to(bench, tmp_path / "one.zip")
    assert verify(path).passed
    other = a_bench(tmp_path / "other")
    assert import_from(other, path) == "imported"
    assert found(other, 'tag:best name:"Run 7" note:"plot 3" is:imported') == {ID}
    assert other.archive.annotations(ID) == bench.archive.annotations(ID)
    before = other.ledger.dump()
    rebuild_ledger(other)
    assert other.ledger.dump() == before


def test_importing_again_adds_the_annotations_that_are_new(tmp_path, bench):
    other = a_bench(tmp_path / "other")
    import_from(other, export_to(bench, tmp_path / "one.zip"))
    label(other, STAR, hours=4)
    label(bench, TAG)
    assert import_from(other, export_to(bench, tmp_path / "two.zip")) == "unchanged"
    assert found(other, "is:starred tag:best") == {ID}


def test_an_export_of_the_same_annotations_has_the_same_bytes(tmp_path, bench):
    label(bench, TAG, NOTE)
    first, second = (export_to(bench, tmp_path / name).read_bytes() for name in ("one.zip", "two.zip"))
    assert first == second


@pytest.mark.parametrize("signed", [False, True])
def test_a_damaged_annotation_is_named_by_verify_and_audit(tmp_path, signed):
    bench = a_bench(tmp_path, signed=signed)
    seal(bench, 1)
    label(bench, NOTE)
    (path,) = objects_of(bench)
    assert faults(bench) == []
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n ", 1))
    assert [path.name in fault for fault in faults(bench)] == [True]
    violations = [each for each in audit(bench.archive, trusting()) if each.weight == "violation"]
    assert [path.name in each.what for each in violations] == [True]
    assert path.name in rebuild_ledger(bench).problems[0].problem


def test_an_annotation_of_another_execution_is_forged(bench):
    label(bench, NOTE, execution_id=OTHER)
    (path,) = objects_of(bench)
    target = Path(str(path).replace(OTHER, ID))
    target.parent.mkdir()
    path.rename(target)
    assert [f"of execution {OTHER}" in fault for fault in faults(bench)] == [True]
    assert found(bench, "has:note") == {OTHER}  # its row; the archive's object is elsewhere
    rebuild_ledger(bench)
    assert found(bench, "has:note") == set()


def test_an_annotation_is_signed_if_there_is_a_key(tmp_path):
    bench = a_bench(tmp_path, signed=True)
    seal(bench, 1)
    label(bench, NOTE)
    (path,) = objects_of(bench)
    stored = read_annotation(path.read_bytes(), path.name)
    assert stored.signer == a_key().public.id == bench.ledger.annotations(ID)[0].signer
    assert stored.annotation.agent == "ada"
    assert stored.annotation.manifest_sha256 == bench.archive.seal_of(ID).manifest_sha256
    assert found(bench, "is:signed") == {ID}


def test_a_signature_of_other_content_is_refused(tmp_path):
    bench = a_bench(tmp_path, signed=True)
    seal(bench, 1)
    label(bench, NOTE)
    (data,) = bench.archive.annotations(ID).values()
    envelope = read_annotation(data, "x").envelope
    forged = envelope._replace(payload=envelope.payload.replace(b"plot 3", b"plot 4")).to_json()
    bench.archive.put_annotations(ID, [forged])
    assert [("invalid signature" in fault) for fault in faults(bench)] == [True]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda name, text: (name, text.replace("plot 3", "plot 4")), "not named by its digest"),
        (lambda name, text: (f"../{name}", text), "is not the name of an annotation"),
        (lambda _, text: ("note", text.replace("plot 3", "plot 4")), "is not the name of an annotation"),
    ],
)
def test_a_damaged_annotation_in_an_export_is_not_imported(tmp_path, bench, change, fault):
    label(bench, NOTE)
    path = export_to(bench, tmp_path / "one.zip")
    with ZipFile(path) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    (name,) = (name for name in files if name.endswith(AnnotationSet.file_name))
    document = json.loads(files[name])
    document["annotations"] = dict(change(*item) for item in document["annotations"].items())
    files[name] = json.dumps(document).encode()
    changed = tmp_path / "changed.zip"
    with ZipFile(changed, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
    other = a_bench(tmp_path / "other")
    with pytest.raises(ImportRefusedError, match=fault):
        import_from(other, changed)
    assert list(other.archive.ids()) == []
