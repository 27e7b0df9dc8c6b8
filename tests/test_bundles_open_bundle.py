"""An open bundle: folders, documents, the lock, and a full disk."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from bundle_makers import a_sealed_bundle, an_open_bundle, contents
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.errors import BundleError, NameRefusedError, NotFoundError, SealedError
from prefect_executions.executions.record import Agent, ExecuteRequest, Metrics
from prefect_executions.lifecycle.history import JobStatus
from records import EXECUTION_ID, a_job_status, a_record, a_request, an_agent, an_instance

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    return OpenBundle.create(tmp_path / "workbench", EXECUTION_ID)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_bundle_has_its_folders_and_nothing_else(bundle: OpenBundle) -> None:
    assert {path.name for path in bundle.folder.iterdir()} == {"auth", "metadata", "inputs", "code", "outputs"}
    assert contents(bundle.folder) == {}


def test_a_bundle_is_created_once(bundle: OpenBundle) -> None:
    with pytest.raises(BundleError, match=EXECUTION_ID):
        OpenBundle.create(bundle.workbench, EXECUTION_ID)
    assert OpenBundle.load(bundle.workbench, EXECUTION_ID) == bundle


def test_a_missing_bundle_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not on the workbench"):
        OpenBundle.load(tmp_path, EXECUTION_ID)


def test_an_id_never_leads_out_of_the_workbench(tmp_path: Path) -> None:
    for make in (OpenBundle.create, OpenBundle.load):
        with pytest.raises(NameRefusedError):
            make(tmp_path, "../outside")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = a_record()
    assert an_open_bundle(tmp_path, record).record() == record


def test_a_record_without_metrics_is_read_without(tmp_path: Path) -> None:
    record = a_record(metrics=None)
    assert an_open_bundle(tmp_path, record).record() == record


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    bundle = an_open_bundle(tmp_path)
    (bundle.folder / ExecuteRequest.file_name).unlink()
    with pytest.raises(BundleError, match=r"metadata/request\.json"):
        bundle.record()


def test_the_agent_document_is_private(bundle: OpenBundle) -> None:
    bundle.write_document(an_agent())
    bundle.write_document(an_agent())
    assert mode(bundle.folder / "auth") == 0o700
    assert mode(bundle.folder / Agent.file_name) == 0o600


def test_writing_leaves_no_temporary_file_in_the_bundle(bundle: OpenBundle) -> None:
    for _ in range(3):
        bundle.write_document(a_request())
    assert set(contents(bundle.folder)) == {ExecuteRequest.file_name}


def test_code_may_be_in_folders(bundle: OpenBundle) -> None:
    bundle.write("code/package/module.py", b"pass\n")
    assert (bundle.folder / "code/package/module.py").read_bytes() == b"pass\n"


@pytest.mark.parametrize("name", ["metadata/other.json", "code/../../x", "x", "/etc/x", "outputs"])
def test_a_file_that_the_format_does_not_allow_is_refused(bundle: OpenBundle, name: str) -> None:
    with pytest.raises(BundleError, match="does not allow this file"):
        bundle.write(name, b"")


def test_a_sealed_bundle_refuses_new_outputs_and_documents(tmp_path: Path) -> None:
    bundle = a_sealed_bundle(tmp_path)
    before = contents(bundle.folder)
    with pytest.raises(SealedError, match=r"outputs/late\.csv"):
        bundle.output_path("late.csv")
    with pytest.raises(SealedError, match="jobStatus"):
        bundle.write_document(a_job_status())
    assert contents(bundle.folder) == before


def test_a_reader_sees_a_complete_document_at_every_moment(bundle: OpenBundle) -> None:
    small, large = a_request(tags=("a",)), a_request(tags=tuple(f"tag {n}" for n in range(5000)))
    bundle.write_document(small)
    done = threading.Event()

    def write() -> None:
        for _ in range(40):
            bundle.write_document(large)
            bundle.write_document(small)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(len(bundle.read(ExecuteRequest).tags))
    writer.join()
    assert seen <= {1, 5000}


def test_a_full_disk_is_an_error_and_the_earlier_document_remains(bundle: OpenBundle) -> None:
    bundle.write_document(a_request())
    before = (bundle.folder / ExecuteRequest.file_name).read_bytes()

    def write_too_much() -> None:
        # A file beyond this limit cannot be written, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        try:
            bundle.write_document(a_request(tags=("x" * 5000,)))
        except BundleError as error:
            os._exit(0 if "request.json" in str(error) else 2)
        os._exit(1)

    process = FORK.Process(target=write_too_much)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (bundle.folder / ExecuteRequest.file_name).read_bytes() == before
    assert not list(bundle.scratch.glob("*.new"))


def test_a_workbench_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "workbench").write_bytes(b"")
    with pytest.raises(BundleError, match="cannot be written"):
        OpenBundle.create(tmp_path / "workbench", EXECUTION_ID)


def test_a_partial_document_of_a_dead_process_is_replaced(bundle: OpenBundle) -> None:
    partial = bundle.scratch / f"request.json.{os.getpid()}-{threading.get_ident()}.new"
    partial.write_bytes(b"{")
    bundle.write_document(a_request())
    assert bundle.read(ExecuteRequest) == a_request()


def test_the_lock_excludes_other_threads(bundle: OpenBundle) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        with OpenBundle.load(bundle.workbench, bundle.id).lock(timeout=30):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def hold(bundle: OpenBundle, held: Event) -> None:
    with bundle.lock():
        held.set()
        time.sleep(60)


def test_waiting_for_the_lock_ends_after_the_timeout(bundle: OpenBundle) -> None:
    with (
        bundle.lock(),
        pytest.raises(BundleError, match=r"locked for more than .* by another"),
        bundle.lock(timeout=0.05),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(bundle: OpenBundle) -> None:
    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(bundle, held))
    holder.start()
    assert held.wait(30)
    with pytest.raises(BundleError, match="locked for more than"), bundle.lock(timeout=0.02):
        pass
    holder.kill()
    holder.join()
    with bundle.lock(timeout=5):
        pass


def test_a_child_process_does_not_inherit_the_lock(bundle: OpenBundle) -> None:
    with bundle.lock():
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with bundle.lock(timeout=1):
        pass
    child.communicate()


def test_a_discarded_bundle_leaves_nothing(tmp_path: Path) -> None:
    bundle = an_open_bundle(tmp_path)
    with bundle.lock():
        bundle.discard()
    bundle.discard()
    assert contents(tmp_path) == {}


def test_a_document_of_another_kind_is_named_in_the_error(bundle: OpenBundle) -> None:
    bundle.write(JobStatus.file_name, an_instance().to_json())
    with pytest.raises(BundleError, match=r"metadata/jobStatus\.json"):
        bundle.read(JobStatus)


def test_reading_missing_metrics_is_an_error(bundle: OpenBundle) -> None:
    with pytest.raises(BundleError, match=r"metrics\.json cannot be read"):
        bundle.read(Metrics)


def test_locking_a_removed_bundle_fails_and_keeps_files_of_a_new_one(tmp_path):
    bundle = OpenBundle.create(tmp_path, EXECUTION_ID)
    bundle.discard()
    with pytest.raises(NotFoundError, match="no longer on the workbench"), bundle.lock():
        pass
    assert not bundle.scratch.exists()
    bundle.mark_stand_in()
    with pytest.raises(NotFoundError, match="no longer on the workbench"), bundle.lock():
        pass
    assert bundle.stand_in


@pytest.mark.long
def test_loading_survives_a_race_with_removal_of_the_scratch_folder(bundle: OpenBundle) -> None:
    done = threading.Event()

    def remove_scratch() -> None:
        while not done.is_set():
            shutil.rmtree(bundle.scratch, ignore_errors=True)

    remover = threading.Thread(target=remove_scratch)
    remover.start()
    try:
        for _ in range(20_000):
            OpenBundle.load(bundle.workbench, bundle.id)
    finally:
        done.set()
        remover.join()


def test_a_file_in_place_of_the_scratch_folder_is_named(bundle: OpenBundle) -> None:
    shutil.rmtree(bundle.scratch, ignore_errors=True)
    bundle.scratch.touch()
    with pytest.raises(BundleError, match=rf"{bundle.scratch.name}.*cannot be written"):
        OpenBundle.load(bundle.workbench, bundle.id)
