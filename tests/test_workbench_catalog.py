"""The catalog finds and reads executions on the workbench and in the archive, with and without a ledger."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

import archives
from benches import OTHER_ID, begun, bench_at, kept, record_of
from prefect_executions.archive.archive import Archive
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles import layout
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.errors import (
    AmbiguousIdError,
    ArchiveError,
    BundleError,
    NotAvailableError,
    NotFoundError,
    RequestError,
    WorldError,
)
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.objectstore.interface import Store
from prefect_executions.objectstore.local import TEMP_PREFIX
from prefect_executions.objectstore.open import open_store
from prefect_executions.operations.download import downloaded
from prefect_executions.operations.verify import Verified, verify_target
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.recovery import STALE, settle_all, sweep_uploads
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, NOON, OUTPUTS


@pytest.fixture
def bench(home) -> Workbench:
    return bench_at(home)


@pytest.fixture
def reader(bench) -> Catalog:
    return Catalog(bench)


def without_local(bench: Workbench, bundle: OpenBundle) -> None:
    bundle.discard()
    assert not bundle.folder.exists()


# --- finding ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [EXECUTION_ID[:9], EXECUTION_ID[:13], EXECUTION_ID, EXECUTION_ID.replace("-", "")])
def test_a_unique_prefix_finds_its_execution(bench, reader, prefix):
    kept(bench)
    assert reader.find(prefix) == EXECUTION_ID


def test_an_ambiguous_prefix_is_an_error_that_lists_the_ids(bench, reader):
    kept(bench)
    kept(bench, OTHER_ID)
    with pytest.raises(AmbiguousIdError) as caught:
        reader.find("0b1e5a52")
    assert set(caught.value.candidates) == {EXECUTION_ID, OTHER_ID}


def test_an_unknown_prefix_is_not_found(bench, reader):
    kept(bench)
    with pytest.raises(NotFoundError, match="ffff"):
        reader.find("ffff")


@pytest.mark.parametrize("prefix", ["0b1e5a526", EXECUTION_ID[:12], EXECUTION_ID])
def test_without_a_ledger_the_id_is_found_in_the_archive(bench, home, prefix):
    without_local(bench, kept(bench))
    kept(bench, OTHER_ID)
    bench.ledger.close()
    (home / "ledger.db").unlink()
    assert Catalog(bench_at(home)).find(prefix) == EXECUTION_ID


def test_a_damaged_ledger_does_not_prevent_reading(bench, home):
    kept(bench)
    bench.ledger.close()
    for path in home.glob("ledger.db*"):
        path.unlink()
    (home / "ledger.db").write_bytes(b"no database at all" * 100)
    assert Catalog(bench_at(home)).find(EXECUTION_ID[:6]) == EXECUTION_ID


def test_without_a_ledger_an_ambiguous_prefix_is_an_error(bench, home):
    kept(bench)
    without_local(bench, kept(bench, OTHER_ID))
    bench.ledger.close()
    (home / "ledger.db").unlink()
    with pytest.raises(AmbiguousIdError) as caught:
        Catalog(bench_at(home)).find("0b1e5a52")
    assert set(caught.value.candidates) == {EXECUTION_ID, OTHER_ID}


def test_an_exact_id_matches_although_another_begins_with_it(bench, home):
    kept(bench)
    kept(bench, f"{EXECUTION_ID}.2")
    assert Catalog(bench).find(EXECUTION_ID) == EXECUTION_ID
    bench.ledger.close()
    (home / "ledger.db").unlink()
    assert Catalog(bench_at(home)).find(EXECUTION_ID) == EXECUTION_ID
    assert Catalog(bench_at(home)).find(f"{EXECUTION_ID}.2") == f"{EXECUTION_ID}.2"


@pytest.mark.parametrize("prefix", ["", "../..", "a/b", "\0", "-", ".open"])
def test_an_impossible_id_is_not_found(bench, reader, prefix):
    kept(bench)
    with pytest.raises(NotFoundError):
        reader.find(prefix)


# --- reading ---------------------------------------------------------------------


def test_the_record_reads_the_same_from_the_archive(bench, reader):
    bundle = kept(bench)
    here = reader.record(EXECUTION_ID)
    without_local(bench, bundle)
    assert reader.record(EXECUTION_ID) == here


@pytest.mark.parametrize("local", [True, False])
def test_an_output_reads_the_same_here_and_from_the_archive(bench, reader, local):
    bundle = kept(bench)
    if not local:
        without_local(bench, bundle)
    for path, content in OUTPUTS.items():
        with reader.open_output(EXECUTION_ID, path.removeprefix("outputs/")) as stream:
            assert stream.read() == content
        assert b"".join(reader.blocks(EXECUTION_ID, path)) == content


def test_the_outputs_of_a_sealed_execution_carry_their_digests(bench, reader):
    kept(bench)
    result = {output.path: (output.size, output.sha256) for output in reader.outputs(EXECUTION_ID)}
    record = reader.record(EXECUTION_ID)
    assert result == {output.path: (output.size, output.sha256) for output in record.job_status.outputs}
    assert set(result) == set(OUTPUTS)


def test_a_changed_output_is_read_from_the_archive(bench, reader):
    bundle = kept(bench)
    (bundle.folder / "outputs/regions.csv").write_bytes(b"label,area\n1,9999\n")
    assert b"".join(reader.blocks(EXECUTION_ID, "regions.csv")) == OUTPUTS["outputs/regions.csv"]


def test_a_changed_output_without_another_copy_is_an_error(bench, reader):
    bundle = kept(bench)
    (bundle.folder / "outputs/regions.csv").write_bytes(b"label,area\n1,9999\n")
    bundle.paths.output_zip.unlink()
    shutil.rmtree(bench.folder.parent / "archive")
    with pytest.raises(BundleError, match=r"outputs/regions\.csv.*verify"):
        list(reader.blocks(EXECUTION_ID, "regions.csv"))


@pytest.mark.parametrize("name", ["nothing.csv", "../metadata/request.json", "/etc/passwd", "", "maps"])
def test_only_outputs_are_read_as_outputs(bench, reader, name):
    kept(bench)
    with pytest.raises(NotFoundError, match="executions outputs"):
        reader.open_output(EXECUTION_ID, name)


def test_a_link_in_an_open_bundle_is_not_an_output(bench, reader, tmp_path):
    (tmp_path / "secret").write_text("not an output")
    bundle = begun(bench, record_of(end=Status.EXECUTING))
    (bundle.folder / "outputs/link").symlink_to(tmp_path / "secret")
    assert "link" not in {output.name for output in reader.outputs(EXECUTION_ID)}
    with pytest.raises(NotFoundError):
        reader.open_output(EXECUTION_ID, "link")


def test_the_outputs_of_an_open_execution_are_its_current_files(bench, reader):
    begun(bench, record_of(end=Status.EXECUTING))
    result = {output.path: output for output in reader.outputs(EXECUTION_ID)}
    assert set(result) == set(OUTPUTS)
    assert {output.sha256 for output in result.values()} == {None}


@pytest.mark.parametrize("local", [True, False])
def test_any_file_of_the_bundle_can_be_read_by_its_path(bench, reader, local):
    bundle = kept(bench)
    expected = (bundle.folder / layout.PROVENANCE).read_bytes()
    if not local:
        without_local(bench, bundle)
    assert reader.read(EXECUTION_ID, layout.PROVENANCE) == expected


def test_a_file_written_at_the_end_is_announced(bench, reader):
    begun(bench, record_of(end=Status.EXECUTING))
    with pytest.raises(NotFoundError, match="EXECUTING; this file is written when it ends"):
        reader.read(EXECUTION_ID, layout.PROVENANCE)


def test_reading_leaves_the_workbench_as_it_was(bench, reader):
    kept(bench)
    before = sorted(bench.folder.rglob("*"))
    reader.record(EXECUTION_ID)
    reader.storage_state(EXECUTION_ID)
    list(reader.blocks(EXECUTION_ID, "regions.csv"))
    list(reader.follow(EXECUTION_ID, "stdout"))
    assert sorted(bench.folder.rglob("*")) == before


def test_the_storage_state_follows_the_seal(bench, reader):
    bundle = begun(bench, record_of(end=Status.EXECUTING))
    assert reader.storage_state(EXECUTION_ID) == (bundle.folder, False, "local")
    bench.seal(EXECUTION_ID, Ending(Status.FAILED, Reason.ERROR, NOON, Observer.HOOK))
    assert reader.storage_state(EXECUTION_ID) == (bundle.folder, True, "archived")
    without_local(bench, bundle)
    assert reader.storage_state(EXECUTION_ID) == (None, True, "archived")


# --- logs ------------------------------------------------------------------------


@pytest.mark.parametrize("local", [True, False])
def test_a_log_reads_the_same_here_and_from_the_archive(bench, reader, local):
    bundle = kept(bench)
    if not local:
        without_local(bench, bundle)
    with reader.log(EXECUTION_ID, "stdout") as stream:
        assert stream.read() == OUTPUTS["outputs/stdout.log"]
    assert b"".join(reader.follow(EXECUTION_ID, "stdout")) == OUTPUTS["outputs/stdout.log"]


def test_an_open_log_is_followed_until_the_execution_is_sealed(bench, reader):
    bundle = begun(bench, record_of(end=Status.EXECUTING))
    seen: list[bytes] = []
    first = threading.Event()

    def follow() -> None:
        for block in reader.follow(EXECUTION_ID, "stdout", pause=0.01):
            seen.append(block)
            first.set()

    following = threading.Thread(target=follow)
    following.start()
    assert first.wait(30)
    with bundle.paths.stdout.open("ab") as log:
        log.write(b"one more line\n")
    bench.seal(EXECUTION_ID, Ending(Status.COMPLETED, None, NOON, Observer.HOOK))
    following.join(30)
    assert not following.is_alive()
    assert b"".join(seen) == OUTPUTS["outputs/stdout.log"] + b"one more line\n"


def test_a_log_on_another_machine_is_announced(bench, reader):
    begun(bench, record_of(end=Status.EXECUTING)).discard()
    with pytest.raises(NotFoundError, match="is EXECUTING"):
        list(reader.follow(EXECUTION_ID, "stdout"))


# --- verifying -------------------------------------------------------------------


def verified(reader: Catalog, text: object) -> dict[str, Verified]:
    return {one.place: one for one in verify_target(reader, str(text))}


def test_both_copies_of_an_execution_are_verified(bench, reader):
    kept(bench)
    result = verified(reader, EXECUTION_ID[:6])
    assert list(result) == ["workbench", "archive"]
    assert [one.report.faults for one in result.values()] == [(), ()]


def test_damage_in_one_copy_is_not_hidden_by_the_other(bench, reader):
    bundle = kept(bench)
    with (bundle.folder / "outputs/regions.csv").open("ab") as file:
        file.write(b"!")
    result = verified(reader, EXECUTION_ID)
    assert not result["workbench"].report.passed
    assert result["archive"].report.passed


def test_damage_in_the_archive_is_found_by_name(bench, reader, home):
    without_local(bench, kept(bench))
    damaged = 0
    for path in sorted((home / "archive" / folder_of(EXECUTION_ID)).rglob("*")):
        if path.is_file() and path.name not in {"seal.json", "opening.json", Path(layout.ATTESTATION).name}:
            whole = path.read_bytes()
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if whole else b"!")
            result = verified(reader, EXECUTION_ID)
            assert list(result) == ["archive"]
            assert not result["archive"].report.passed, path
            path.write_bytes(whole)
            damaged += 1
    assert damaged > 10


def test_an_object_missing_in_the_archive_is_a_fault(bench, reader, home):
    without_local(bench, kept(bench))
    (data,) = (home / "archive" / folder_of(EXECUTION_ID) / "data").glob(
        reader.bundle_source(EXECUTION_ID)._bundle.seal.data[layout.OUTPUT_ZIP].sha256
    )
    data.unlink()
    report = verified(reader, EXECUTION_ID)["archive"].report
    assert any("output.zip" in fault for fault in report.faults)


def test_an_object_added_after_the_seal_is_a_fault(bench, reader, home):
    without_local(bench, kept(bench))
    (objects,) = (home / "archive" / folder_of(EXECUTION_ID)).glob("sealed-*")
    (objects / "metadata/extra.json").write_bytes(b"{}")
    report = verified(reader, EXECUTION_ID)["archive"].report
    assert any("extra.json" in fault for fault in report.faults)


def test_a_rewritten_manifest_contradicts_the_seal(bench, reader, home):
    without_local(bench, kept(bench))
    (listed,) = (home / "archive" / folder_of(EXECUTION_ID)).glob(f"sealed-*/{layout.MANIFEST}")
    listed.write_bytes(listed.read_bytes().replace(b"a", b"b"))
    report = verified(reader, EXECUTION_ID)["archive"].report
    assert any(fault.startswith("seal: ") for fault in report.faults)


def test_an_execution_that_is_not_sealed_cannot_be_verified_yet(bench, reader):
    begun(bench, record_of(end=Status.EXECUTING))
    with pytest.raises(NotAvailableError, match="EXECUTING and not sealed yet"):
        verified(reader, EXECUTION_ID)


def test_the_copy_here_is_verified_before_an_archive_that_fails(bench, reader, home):
    kept(bench)
    (home / "archive" / folder_of(EXECUTION_ID) / "seal.json").write_bytes(b"{ no seal")
    result = verify_target(reader, EXECUTION_ID)
    assert next(result).report.passed
    with pytest.raises(ArchiveError, match="seal"):
        next(result)


def test_a_folder_and_a_zip_of_it_are_verified(bench, reader, tmp_path):
    bundle = kept(bench)
    assert verified(reader, bundle.folder)["folder"].report.passed
    zipped = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.folder.parent, bundle.folder.name)
    assert list(verified(reader, zipped)) == ["zip"]


@pytest.mark.parametrize("target", ["there/is/nothing", "nothing.zip"])
def test_a_missing_path_is_not_found(reader, target):
    with pytest.raises(NotFoundError, match=r"file or folder .* does not exist"):
        verified(reader, target)


# --- addresses -------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """Python's own web server of files, without its log."""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/bundle.zip")
            self.end_headers()
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"0" * 100_000)
        else:
            super().do_GET()


@pytest.fixture
def web(tmp_path) -> Iterator[str]:
    def serve(*arguments: object) -> Quiet:
        return Quiet(*arguments, directory=str(tmp_path))

    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_a_zip_on_the_web_is_verified(bench, reader, web, tmp_path):
    bundle = kept(bench)
    here = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.folder.parent, bundle.folder.name)
    result = verified(reader, f"{web}/bundle.zip?X-Amz-Signature=abc")
    assert result["download"].report == verified(reader, here)["zip"].report


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("nothing.zip", NotFoundError, "404"),
        ("cut", WorldError, "stopped after 9 of 1000 bytes"),
        ("elsewhere", WorldError, "cannot be read"),
    ],
)
def test_the_error_of_a_download_omits_the_query(web, path, kind, message):
    with pytest.raises(kind, match=message) as caught, downloaded(f"{web}/{path}?token=hidden"):
        pass
    assert "hidden" not in str(caught.value)


def test_a_download_stops_at_the_limit(web):
    with pytest.raises(RequestError, match="limit here is 1000"), downloaded(f"{web}/endless", largest=1000):
        pass


@pytest.mark.parametrize("url", ["ftp://example.org/a.zip", "file:///etc/passwd", "gopher://x/y"])
def test_only_web_and_object_storage_are_downloaded_from(url):
    with pytest.raises(RequestError, match="https://"), downloaded(url):
        pass


# --- settling --------------------------------------------------------------------


def test_settle_finishes_ended_executions_and_leaves_running_ones(bench, home):
    begun(bench, record_of(end=Status.EXECUTING))
    begun(bench, record_of(OTHER_ID))
    result = {one.id: one.result for one in settle_all(bench)}
    assert result == {EXECUTION_ID: "open", OTHER_ID: "archived"}
    assert {one.id: one.result for one in settle_all(bench)} == {EXECUTION_ID: "open"}
    assert bench.ledger.get(OTHER_ID).archive == "archived"


def test_one_damaged_bundle_does_not_affect_the_others(bench):
    begun(bench, record_of(OTHER_ID))
    damaged = begun(bench, record_of(EXECUTION_ID))
    (damaged.folder / "metadata/jobStatus.json").write_text("{}")
    result = {one.id: one.result for one in settle_all(bench)}
    assert result == {EXECUTION_ID: "failed", OTHER_ID: "archived"}


# --- on S3 -----------------------------------------------------------------------


class Counting:
    """A store that knows how many bytes were read from it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        data = self._store.get_range(key, start, end)
        self.read += len(data)
        return data


def test_one_output_is_read_from_s3_by_its_range(need, tmp_path):
    place = archives.place_on("seaweedfs", need)
    try:
        store = Counting(open_store(place.url, options=place.options))
        ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
        bench = Workbench(
            tmp_path / "bench",
            open_archive=lambda: Archive(cast("Store", store)),
            open_ledger=lambda: Ledger.open(ledger),
        )
        without_local(bench, kept(bench, outputs={**OUTPUTS, "outputs/large.bin": os.urandom(24 << 20)}))
        reader = Catalog(bench)
        assert b"".join(reader.blocks(EXECUTION_ID, "regions.csv")) == OUTPUTS["outputs/regions.csv"]
        assert 0 < store.read < 2 << 20
        assert verified(reader, EXECUTION_ID)["archive"].report.passed
        assert store.read > 24 << 20
    finally:
        place.close()


def test_remains_of_an_abandoned_upload_are_removed_and_recent_ones_stay(tmp_path):
    bench = bench_at(tmp_path)
    bench.archive.store.put("executions/x/opening.json", b"{}")
    left = tmp_path / "archive" / "executions" / "x" / f"{TEMP_PREFIX}0123456789abcdef"
    left.write_bytes(b"half")
    begun = datetime.fromtimestamp(left.stat().st_mtime, UTC)

    assert sweep_uploads(bench, begun + STALE / 2) == 0
    assert sweep_uploads(bench, begun + STALE * 2) == 1
    assert not left.exists()
