"""An import verifies everything before it records anything, and refuses a damaged import as a whole."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import ccp_exports
from benches import OTHER_ID, begun, bench_at, kept, record_of
from bundle_makers import contents, copy_of, forge, zip_of
from ccp_exports import CCP_ID, SECRET, TOKEN
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.cli.app import main
from prefect_executions.documents import FORMAT
from prefect_executions.errors import ArchiveError, ImportRefusedError, NotFoundError
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, ImportResult, _staging_folder, import_bundles
from prefect_executions.operations.retention import remove
from prefect_executions.operations.verify import verify_execution, verify_target
from prefect_executions.settings import ImportNames, Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.index import rebuild_ledger
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS, a_request

GOLDEN = sorted((Path(__file__).parent / "bundles").glob("*.zip"))
NOW = datetime(2026, 10, 1, 8, 30, tzinfo=UTC)
TERMS = ImportPolicy(Limits(entries=1000, allowance=100 << 20, expansion=0), ImportNames.PORTABLE, NOW)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return the workbench that the bundles come from; no test changes it."""
    found = bench_at(tmp_path_factory.mktemp("theirs"))
    kept(found)
    kept(found, OTHER_ID)
    return found


@pytest.fixture
def ours(tmp_path: Path) -> Workbench:
    return bench_at(tmp_path / "ours")


def exported(
    bench: Workbench,
    target: Path,
    *ids: str,
    form: ExportFormat = ExportFormat.ZIP,
    level: ExportLevel = ExportLevel.FULL,
) -> Path:
    out = io.BytesIO()
    export(Catalog(bench), ids or (EXECUTION_ID,), out.write, form=form, level=level)
    target.write_bytes(out.getvalue())
    return target


def imported(bench: Workbench, target: Path | str, terms: ImportPolicy = TERMS) -> tuple[ImportResult, ...]:
    return import_bundles(bench, str(target), terms)


def test_progress_is_reported_at_each_step(theirs, ours, tmp_path):
    target, steps = exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID), []

    def progress(execution_id: str, total: int) -> None:
        steps.append((execution_id, total, ours.archive.seal_of(execution_id) is not None))

    import_bundles(ours, str(target), TERMS, progress=progress)
    both = sorted([EXECUTION_ID, OTHER_ID])
    assert steps == [(one, 4, False) for one in both] + [(one, 4, True) for one in both], "verified, then recorded"


def test_a_small_bundle_is_recorded_as_it_was_verified(theirs, ours, tmp_path):
    source = theirs.archive.bundle(EXECUTION_ID).seal.manifest_sha256
    folder = tmp_path / EXECUTION_ID
    with zipfile.ZipFile(exported(theirs, tmp_path / "x.zip")) as bundle:
        bundle.extractall(tmp_path)

    def change(_id: str, _total: int) -> None:
        (folder / "metadata/request.json").write_text("changed after it was verified")

    import_bundles(ours, str(folder), TERMS, progress=change)
    assert ours.archive.bundle(EXECUTION_ID).seal.manifest_sha256 == source
    assert of_record(ours, EXECUTION_ID) == of_record(theirs, EXECUTION_ID)
    assert all(copy.report.passed for copy in verify_execution(Catalog(ours), EXECUTION_ID))


def everything_in(bench: Workbench) -> dict[str, bytes]:
    """Return all that a home holds, but for the ledger's files, the archive's identity, and empty folders."""
    beside = ("ledger.db", "archive/identity", "workbench/.archives/")
    return {path: data for path, data in contents(bench.folder.parent).items() if not path.startswith(beside)}


def nothing_in(bench: Workbench) -> bool:
    return not everything_in(bench) and not bench.ledger.list().rows and not list((bench.folder / ".open").iterdir())


def of_record(bench: Workbench, execution_id: str) -> Any:
    return bench.archived_record(execution_id)


# --- ours --------------------------------------------------------------------


@pytest.mark.parametrize("form", ExportFormat)
def test_what_was_exported_comes_back_as_it_was(theirs, ours, tmp_path, form):
    (taken,) = imported(ours, exported(theirs, tmp_path / "x.zip", form=form))
    assert (taken.id, taken.result) == (EXECUTION_ID, "imported")
    assert of_record(ours, EXECUTION_ID) == of_record(theirs, EXECUTION_ID)
    assert ours.archive.bundle(EXECUTION_ID).seal == theirs.archive.bundle(EXECUTION_ID).seal
    assert all(copy.report.passed for copy in verify_execution(Catalog(ours), EXECUTION_ID))
    again = exported(ours, tmp_path / "again.zip", form=form)
    assert again.read_bytes() == (tmp_path / "x.zip").read_bytes()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_a_bundle_of_an_earlier_format_is_imported_without_a_changed_byte(ours, tmp_path, golden):
    (taken,) = imported(ours, golden)
    with zipfile.ZipFile(golden) as before, zipfile.ZipFile(exported(ours, tmp_path / "again.zip")) as after:
        first, second = ({name: file.read(name) for name in file.namelist()} for file in (before, after))
    assert first == {name: data for name, data in second.items() if not name.endswith("/")}
    assert of_record(ours, taken.id).format == int(golden.stem.split("-")[1])


def test_it_is_marked_with_its_origin_and_the_time_of_import(theirs, ours, tmp_path):
    imported(ours, exported(theirs, tmp_path / "x.zip"))
    mark = ours.archive.imported(EXECUTION_ID)
    assert (mark.origin, mark.imported, mark.kind) == ("x.zip", NOW, "bundle")
    row = ours.ledger.get(EXECUTION_ID)
    assert (row.origin, row.imported, row.archive) == ("x.zip", NOW, "archived")
    assert row.agent == theirs.ledger.get(EXECUTION_ID).agent
    assert theirs.ledger.get(EXECUTION_ID).imported is None


def test_a_rebuilt_ledger_has_the_same_rows(theirs, ours, tmp_path):
    imported(ours, exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID))
    before = ours.ledger.dump()
    rebuild_ledger(ours)
    assert ours.ledger.dump() == before


def test_a_ledger_is_rebuilt_beside_what_a_killed_import_left(theirs, ours, tmp_path):
    imported(ours, exported(theirs, tmp_path / "x.zip"))
    before = ours.ledger.list().rows
    ours.archive.store.put(f"{folder_of('of-the-dead')}sealed-0123456789abcdef/metadata/method.json", b"{}")
    assert rebuild_ledger(ours).executions == len(before)
    assert ours.ledger.list().rows == before


@pytest.mark.long
def test_a_record_that_is_too_large_to_stay_in_memory_is_read_again(ours, tmp_path):
    theirs, large = bench_at(tmp_path / "theirs"), a_request(files=(), values={"text": "x" * (9 << 20)})
    kept(theirs, request=large)
    kept(theirs, OTHER_ID)
    imported(ours, exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID))
    for execution_id in (EXECUTION_ID, OTHER_ID):
        assert ours.archived_record(execution_id) == theirs.archived_record(execution_id)
        assert ours.ledger.get(execution_id).method_id == theirs.ledger.get(execution_id).method_id


def test_a_second_import_changes_nothing_and_says_so(theirs, ours, tmp_path):
    place = exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID)
    imported(ours, place)
    before, rows = everything_in(ours), ours.ledger.dump()
    later = TERMS._replace(at=datetime(2027, 1, 1, tzinfo=UTC))
    assert {taken.result for taken in imported(ours, place, later)} == {"unchanged"}
    assert (everything_in(ours), ours.ledger.dump()) == (before, rows)


def test_an_execution_of_this_archive_is_imported_as_unchanged(theirs, tmp_path):
    place = exported(theirs, tmp_path / "x.zip")
    assert imported(theirs, place)[0].result == "unchanged"
    assert theirs.archive.imported(EXECUTION_ID) is None


@pytest.mark.long
def test_a_folder_of_bundles_and_a_zip_by_the_zip_command_are_imported(theirs, ours, tmp_path):
    for one in (EXECUTION_ID, OTHER_ID):
        copy_of(theirs.folder / one, tmp_path / "some/where" / one)
    assert len(imported(ours, tmp_path / "some")) == 2
    other = bench_at(tmp_path / "other")
    assert len(imported(other, zip_of(tmp_path / "some", tmp_path / "some.zip"))) == 2


def test_an_unpacked_bag_is_imported(theirs, ours, tmp_path):
    with zipfile.ZipFile(exported(theirs, tmp_path / "b.zip", EXECUTION_ID, OTHER_ID, form=ExportFormat.BAGIT)) as bag:
        bag.extractall(tmp_path / "bag")
    assert [taken.id for taken in imported(ours, tmp_path / "bag")] == sorted([EXECUTION_ID, OTHER_ID])


def test_a_bag_by_bagit_is_imported(theirs, ours, tmp_path):
    copy_of(theirs.folder / EXECUTION_ID, tmp_path / "bag" / EXECUTION_ID)
    make = [sys.executable, "-W", "ignore", "-m", "bagit", "--md5", "--sha512", str(tmp_path / "bag")]
    subprocess.run(make, check=True, capture_output=True)
    assert imported(ours, tmp_path / "bag")[0].id == EXECUTION_ID


@pytest.mark.parametrize("path", ["data/manifest-sha256.txt", "bag-info.txt", "manifest-sha256.txt"])
def test_a_bag_whose_digests_are_wrong_is_refused(theirs, ours, tmp_path, path):
    with zipfile.ZipFile(exported(theirs, tmp_path / "b.zip", form=ExportFormat.BAGIT)) as bag:
        bag.extractall(tmp_path / "bag")
    changed = tmp_path / "bag" / EXECUTION_ID / path
    changed.write_bytes(changed.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ImportRefusedError, match=path):
        imported(ours, tmp_path / "bag")
    assert nothing_in(ours)


@pytest.mark.parametrize("level", [ExportLevel.OUTPUTS, ExportLevel.METADATA])
def test_an_export_without_all_data_is_imported_with_its_missing_files(theirs, ours, tmp_path, level):
    place = exported(theirs, tmp_path / "x.zip", level=level)
    assert imported(ours, place)[0].result == "imported"
    (found,) = verify_execution(Catalog(ours), EXECUTION_ID)
    assert found.report.passed
    assert any(f"exported with the level '{level}'" in words for words in found.report.unchecked)
    again = exported(ours, tmp_path / "again.zip", level=level)
    assert again.read_bytes() == place.read_bytes()


def test_other_content_of_the_same_id_is_refused_with_both_digests(theirs, ours, tmp_path):
    kept(ours, outputs={**OUTPUTS, "outputs/regions.csv": b"other"})
    before = everything_in(ours)
    digests = [bench.archive.bundle(EXECUTION_ID).seal.manifest_sha256 for bench in (theirs, ours)]
    with pytest.raises(ImportRefusedError) as found:
        imported(ours, exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID))
    assert all(digest in str(found.value) for digest in digests)
    assert everything_in(ours) == before
    assert ours.archive.seal_of(OTHER_ID) is None


def test_an_execution_that_runs_here_is_not_replaced(theirs, ours, tmp_path):
    begun(ours, record_of(end=Status.EXECUTING))
    ours.leases.release(EXECUTION_ID)
    with pytest.raises(ImportRefusedError, match="has not been sealed"):
        imported(ours, exported(theirs, tmp_path / "x.zip"))


def test_an_import_with_an_execution_twice_is_refused(theirs, ours, tmp_path):
    for name in ("a", "b"):
        copy_of(theirs.folder / EXECUTION_ID, tmp_path / "twice" / name)
    with pytest.raises(ImportRefusedError, match="twice, at 'a/' and 'b/'"):
        imported(ours, tmp_path / "twice")
    assert nothing_in(ours)


def test_one_damaged_bundle_refuses_the_whole_import(theirs, ours, tmp_path):
    for one in (EXECUTION_ID, OTHER_ID):
        copy_of(theirs.folder / one, tmp_path / "some" / one)
    (tmp_path / "some" / EXECUTION_ID / "outputs/regions.csv").write_bytes(b"x")
    with pytest.raises(ImportRefusedError, match=rf"{EXECUTION_ID}/: digests: 'outputs/regions\.csv' is "):
        imported(ours, tmp_path / "some")
    assert nothing_in(ours)


def test_a_forged_status_is_refused_although_the_manifest_fits(theirs, ours, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / "forged")
    forge(folder, "metadata/provo.xml", lambda text: text.replace("COMPLETED", "FAILED"))
    with pytest.raises(ImportRefusedError, match="status is FAILED"):
        imported(ours, folder)


def test_after_a_failure_of_the_archive_a_second_import_continues(theirs, ours, tmp_path):
    place = exported(theirs, tmp_path / "x.zip")
    blocker = tmp_path / "ours/archive" / folder_of(EXECUTION_ID).rstrip("/")
    blocker.parent.mkdir(parents=True)
    blocker.write_bytes(b"in the way")
    with pytest.raises(ArchiveError):
        imported(ours, place)
    assert list(everything_in(ours)) == [blocker.relative_to(tmp_path / "ours").as_posix()]
    blocker.unlink()
    assert imported(ours, place)[0].result == "imported"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_next_import_removes_the_remains_of_a_killed_one(theirs, ours, tmp_path):
    child = os.fork()
    if child == 0:
        held = _staging_folder(ours.folder)
        (held.__enter__() / "half").write_text("x")
        os._exit(9)
    os.waitpid(child, 0)
    assert len(list((ours.folder / ".open").rglob("half"))) == 1
    imported(ours, exported(theirs, tmp_path / "x.zip"))
    assert not list((ours.folder / ".open").iterdir())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_address_of_a_zip_is_fetched_and_its_credentials_are_not_kept(theirs, ours, tmp_path):
    exported(theirs, tmp_path / "x.zip")
    with served(tmp_path) as url:
        imported(ours, f"{url}/x.zip?token=abc")
        assert ours.ledger.get(EXECUTION_ID).origin == f"{url}/x.zip"
        with pytest.raises(NotFoundError):
            imported(ours, f"{url}/none.zip")


def test_a_missing_target_is_not_found(ours, tmp_path):
    with pytest.raises(NotFoundError):
        imported(ours, tmp_path / "none.zip")


def test_a_target_without_a_bundle_is_refused(ours, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some/readme.txt").write_text("hello")
    with pytest.raises(ImportRefusedError, match=r"contains no bundle"):
        imported(ours, tmp_path / "some")


# --- CCP's ------------------------------------------------------------------------


def zipped(files: Mapping[str, bytes], target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for path, data in files.items():
            made.writestr(path, data)
    return target


def laid_out(files: Mapping[str, bytes], folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


LAYOUTS: dict[str, Callable[..., dict[str, bytes]]] = {"tree": ccp_exports.tree, "flat": ccp_exports.flat}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", [zipped, laid_out], ids=["zip", "folder"])
def test_an_export_of_ccp_shows_its_status_inputs_and_outputs(ours, tmp_path, layout, form):
    (taken,) = imported(ours, form(LAYOUTS[layout](), tmp_path / "ccp"))
    assert taken.id == CCP_ID
    record = of_record(ours, CCP_ID)
    assert (record.status, record.method.id) == (Status.COMPLETED, ccp_exports.METHOD["id"])
    assert record.request.values["name"] == "world"
    assert record.job_status.created == datetime(2024, 4, 12, 10, 20, 30, 123000, UTC)
    assert record.finished == datetime(2024, 4, 12, 10, 21, tzinfo=UTC)
    assert record.agent.name == "alice"
    assert record.infrastructure.type == "docker"
    names = {output.path for output in record.job_status.outputs}
    assert names == {f"outputs/{name}" for name in ("hello.txt", "stdout.log", "stderr.log", "ccp-entrypoint.sh")}
    assert record.format == FORMAT
    row = ours.ledger.get(CCP_ID)
    assert (row.status, row.origin, row.imported) == (Status.COMPLETED, "ccp", NOW)
    assert all(copy.report.passed for copy in verify_execution(Catalog(ours), CCP_ID))


def test_tokens_and_secrets_of_a_ccp_export_are_not_imported(ours, tmp_path):
    imported(ours, zipped(ccp_exports.tree(), tmp_path / "ccp.zip"))
    kept_bytes = b"".join(everything_in(ours).values())
    with Catalog(ours).open_output(CCP_ID, "stdout.log") as stream:
        kept_bytes += stream.read()
    with Catalog(ours).open_output(CCP_ID, "ccp-entrypoint.sh") as stream:
        kept_bytes += stream.read()
    assert TOKEN.encode() not in kept_bytes
    assert SECRET.encode() not in kept_bytes
    notes = [entry.message for entry in of_record(ours, CCP_ID).job_status.history if entry.kind == "note"]
    assert any("ccpenv was not imported" in str(note) for note in notes)


def test_a_ccp_export_is_imported_once_and_another_with_its_id_is_refused(ours, tmp_path):
    place = zipped(ccp_exports.tree(), tmp_path / "ccp.zip")
    imported(ours, place)
    before = everything_in(ours)
    later = TERMS._replace(at=datetime(2027, 1, 1, tzinfo=UTC))
    assert imported(ours, place, later)[0].result == "unchanged"
    with pytest.raises(ImportRefusedError, match=f"another execution {CCP_ID} is here"):
        imported(ours, zipped(ccp_exports.tree(hello=b"other"), tmp_path / "other.zip"))
    assert everything_in(ours) == before


def end_of(bench: Workbench) -> tuple[Status, Reason | None]:
    result = of_record(bench, CCP_ID).job_status
    return result.execution_status, result.reason


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("failed", (Status.FAILED, Reason.ERROR)),
        ("expired", (Status.FAILED, Reason.TIMED_OUT)),
        ("cancelled", (Status.CANCELLED, None)),
        ("running", (Status.FAILED, Reason.LOST)),
    ],
)
def test_each_terminal_status_of_ccp_is_translated(ours, tmp_path, word, end):
    status = json.dumps({**ccp_exports.JOB_STATUS, "status": word}).encode()
    imported(ours, zipped(ccp_exports.flat(jobStatus=status), tmp_path / "ccp.zip"))
    assert end_of(ours) == end


def test_without_a_job_status_the_end_is_read_from_the_provenance(ours, tmp_path):
    imported(ours, zipped(ccp_exports.tree(jobStatus=None), tmp_path / "ccp.zip"))
    record = of_record(ours, CCP_ID)
    assert end_of(ours) == (Status.COMPLETED, None)
    assert record.started == datetime(2024, 4, 12, 10, 20, 31, tzinfo=UTC)
    assert record.job_status.created is None


def test_without_job_status_and_provenance_the_end_is_reported_as_unknown(ours, tmp_path):
    imported(ours, zipped(ccp_exports.flat(jobStatus=None, provo=None), tmp_path / "ccp.zip"))
    record = of_record(ours, CCP_ID)
    assert end_of(ours) == (Status.FAILED, Reason.LOST)
    assert (record.started, record.finished, record.job_status.message) == (None, NOW, "the export has no status")
    assert all(copy.report.passed for copy in verify_execution(Catalog(ours), CCP_ID))


def test_outputs_that_are_only_in_the_zip_are_imported(ours, tmp_path):
    inner = zipped({"outputs/a.txt": b"a", "outputs/ccpenv": b"x", "metadata/method.json": b"{}"}, tmp_path / "o.zip")
    files = {path: data for path, data in ccp_exports.tree().items() if not path.startswith("outputs/")}
    imported(ours, zipped({**files, "output.zip": inner.read_bytes()}, tmp_path / "ccp.zip"))
    assert [output.path for output in of_record(ours, CCP_ID).job_status.outputs] == ["outputs/a.txt"]


def test_a_ccp_export_in_a_bag_is_imported(ours, tmp_path):
    laid_out(ccp_exports.tree(), tmp_path / "bag")
    make = [sys.executable, "-W", "ignore", "-m", "bagit", "--sha256", str(tmp_path / "bag")]
    subprocess.run(make, check=True, capture_output=True)
    assert imported(ours, tmp_path / "bag")[0].id == CCP_ID


def test_a_bundle_without_manifest_is_not_taken_for_a_ccp_export(theirs, ours, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / "x")
    (folder / "manifest-sha256.txt").unlink()
    with pytest.raises(ImportRefusedError, match=r"manifest-sha256\.txt is missing"):
        imported(ours, folder)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("request", b"[" * 100_000, "nested too deeply"),
        ("request", b'{"inputs": {"n": ' + b"1" * 10_000 + b"}}", "invalid JSON"),
        ("request", b'{"inputs": 1, "inputs": 2}', "twice"),
        ("method", b'{"id": 5}', "id"),
        ("jobStatus", b'{"jobID": "../../etc"}', "is not a valid execution id"),
        ("jwt", b"eyJ" * 300_000, "invalid JSON"),
        ("provo", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "has a DTD"),
    ],
)
def test_hostile_documents_of_ccp_are_refused_by_name(ours, tmp_path, name, data, words):
    with pytest.raises(ImportRefusedError, match=words):
        imported(ours, zipped(ccp_exports.tree(**{name: data}), tmp_path / "ccp.zip"))
    assert nothing_in(ours)


def test_of_many_unknown_files_some_are_named_and_the_others_counted(ours, tmp_path):
    unknown = {f"metadata/{number}": b"" for number in range(150)}
    imported(ours, zipped(ccp_exports.tree() | unknown, tmp_path / "ccp.zip"))
    results = [entry.message or "" for entry in ours.archived_record(CCP_ID).job_status.history]
    assert sum("is an unknown file and was not imported" in message for message in results) == 100
    assert "50 more unknown files were not imported" in results


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_the_earliest_and_latest_representable_times_are_imported(ours, tmp_path, time):
    status = dict(ccp_exports.JOB_STATUS) | dict.fromkeys(("created", "started", "updated"), time)
    export = ccp_exports.tree(jobStatus=json.dumps(status).encode(), provo=None)
    (taken,) = imported(ours, zipped(export, tmp_path / "ccp.zip"))
    assert ours.archived_record(taken.id).job_status.created.year == int(time[:4])


# --- the terminal ---------------------------------------------------------------------


def test_the_import_command_lists_the_imported_executions(theirs, home, tmp_path, capsys):
    place = exported(theirs, tmp_path / "x.zip")
    assert main(["import", str(place)]) == 0
    assert "1 execution imported" in capsys.readouterr().out
    assert main(["import", str(place), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["executions"]
    assert (result["id"], result["result"], result["kind"]) == (EXECUTION_ID, "unchanged", "bundle")
    assert main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["executions"]
    assert row["origin"] == "x.zip"
    place.write_bytes(place.read_bytes()[:-1])
    assert main(["import", str(place)]) == 2
    assert "x.zip is not imported" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_refused_import_names_each_fault_once_with_short_digests(theirs, tmp_path, capsys):
    folder = tmp_path / "x"
    shutil.copytree(theirs.folder / EXECUTION_ID, folder)
    (folder / "metadata/request.json").write_bytes(b"{}")
    (folder / "outputs/regions.csv").write_bytes(b"forged")
    assert main(["import", str(folder)]) == 2
    listed = capsys.readouterr().err.partition("x is not imported: ")[2].splitlines()
    faults = [line.partition(": ")[2] for line in listed if not line.strip().startswith("and ")]
    assert len(set(faults)) == len(faults) > 1
    assert not re.search(r"[0-9a-f]{13}", " ".join(listed))


def test_the_settings_define_the_import_policy(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_IMPORT_LIMIT", "5")
    monkeypatch.setenv("EXECUTIONS_IMPORT_NAMES", "any")
    terms = ImportPolicy.of(Settings.read(), NOW)
    assert (terms.limits.allowance, terms.limits.expansion, terms.names) == (5, 0, ImportNames.ANY)


# --- verify reads the same forms ---------------------------------------------------------


@pytest.mark.parametrize("form", ExportFormat)
def test_an_export_of_several_is_verified_bundle_by_bundle(theirs, tmp_path, form):
    place = exported(theirs, tmp_path / "x.zip", EXECUTION_ID, OTHER_ID, form=form)
    results = list(verify_target(Catalog(theirs), str(place)))
    assert [one.place.rpartition(" ")[2].rstrip("/").rpartition("/")[2] for one in results] == sorted(
        [EXECUTION_ID, OTHER_ID]
    )
    assert all(one.report.passed and not one.report.unchecked for one in results)


def test_an_export_without_all_data_is_verified_as_far_as_it_goes(theirs, tmp_path):
    (result,) = verify_target(Catalog(theirs), str(exported(theirs, tmp_path / "x.zip", level=ExportLevel.METADATA)))
    assert result.report.passed
    assert any("level 'metadata'" in words for words in result.report.unchecked)


KILLED = """
import os, shutil, sys
from datetime import UTC, datetime
from pathlib import Path

from benches import bench_at
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.tracepoints import EVENT
from prefect_executions.settings import ImportNames
from prefect_executions.operations.verify import verify_execution
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.workbench.catalog import Catalog

TERMS = ImportPolicy(Limits(), ImportNames.PORTABLE, datetime(2026, 10, 1, tzinfo=UTC))
target, home, execution_id = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
step = {"left": -1}

def hear(event, told):
    if event == EVENT and step["left"] >= 0:
        step["left"] -= 1
        if step["left"] < 0:
            os._exit(9)

sys.addaudithook(hear)
empty = bench_at(home / "empty")  # a new ledger takes longer than all the rest
empty.ledger.list()
empty.ledger.close()
for number in range(0, 1000, 3):
    here = home / str(number)
    shutil.copytree(home / "empty", here)
    child = os.fork()
    if child == 0:
        step["left"] = number
        import_bundles(bench_at(here), target, TERMS)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    bench = bench_at(here)
    before = bench.archive.seal_of(execution_id)
    if before is not None:
        assert all(copy.report.passed for copy in verify_execution(Catalog(bench), execution_id)), number
    (taken,) = import_bundles(bench, target, TERMS)
    assert (taken.result == "unchanged") is (before is not None), number
    assert bench.archive.imported(execution_id).imported == TERMS.at, number
    assert [row.id for row in bench.ledger.list().rows] == [execution_id], number
    assert not list((bench.folder / ".open").iterdir()), number
    if not killed:
        print(number)
        break
"""


@pytest.mark.long
def test_an_import_killed_at_any_step_is_completed_by_the_next(theirs, tmp_path):
    place = exported(theirs, tmp_path / "x.zip")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(place), str(tmp_path / "homes"), EXECUTION_ID],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_what_was_removed_may_be_imported_again(theirs, ours, tmp_path):
    place = exported(theirs, tmp_path / "x.zip")
    imported(ours, place)
    remove(ours, EXECUTION_ID, why="asked for", at=NOW)
    assert imported(ours, place)[0].result == "imported"
    assert ours.ledger.get(EXECUTION_ID).origin == "x.zip"
