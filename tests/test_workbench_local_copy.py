"""A sealed bundle that is changed on the workbench: readers take the archive's files, and it can be restored."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benches import OTHER_ID, bench_at, kept
from bundle_makers import contents
from marks import long_unless
from prefect_executions.attestation.policy import TRUST_NOBODY
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.operations.export import export
from prefect_executions.operations.replay import record_source
from prefect_executions.operations.verify import verify_execution
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.local_copy import LocalCopy, restore_copy
from prefect_executions.workbench.recovery import restore_changed, settle_all
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS, an_agent

NAME, DATA = next((path.removeprefix("outputs/"), data) for path, data in OUTPUTS.items() if data)
JOB_STATUS = JobStatus.file_name


@pytest.fixture
def bench(home: Path) -> Workbench:
    return bench_at(home)


@pytest.fixture
def bundle(bench: Workbench) -> OpenBundle:
    return kept(bench)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"late")


def overwritten_with_its_time(path: Path) -> None:
    """Change a byte and put size and modification time back."""
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def linked(path: Path) -> None:
    target = path.with_name(path.name + ".target")
    path.rename(target)
    path.symlink_to(target)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "appended": appended,
    "overwritten": overwritten_with_its_time,
    "truncated": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "linked": linked,
    "a folder": replaced_by_a_folder,
}

FILES = (f"outputs/{NAME}", JOB_STATUS, "metadata/provo.xml", "inputs/picture.png", "output.zip", "manifest-sha256.txt")


@pytest.mark.parametrize(
    ("path", "damage"),
    long_unless(
        [(path, damage) for path in FILES for damage in DAMAGES],
        [*((path, "overwritten") for path in FILES), *((FILES[0], damage) for damage in DAMAGES)],
    ),
)
def test_damage_is_never_served_and_can_be_restored(bench, bundle, path, damage):
    catalog, sealed = Catalog(bench), contents(bundle.folder)
    record = catalog.record(EXECUTION_ID)
    DAMAGES[damage](bundle.folder / path)

    if path != "manifest-sha256.txt" or damage != "removed":  # without a manifest it is an open bundle
        assert path in catalog.damaged(EXECUTION_ID) or path == "manifest-sha256.txt"
        assert catalog.record(EXECUTION_ID) == record
        assert b"".join(catalog.blocks(EXECUTION_ID, NAME)) == DATA
        with catalog.open_output(EXECUTION_ID, NAME) as stream:
            assert stream.read() == DATA
        assert catalog.read(EXECUTION_ID, "metadata/provo.xml") == sealed["metadata/provo.xml"]
        source = record_source(catalog, EXECUTION_ID)
        assert source is not None
        assert b"".join(source.blocks("inputs/picture.png")) == sealed["inputs/picture.png"]

        restored = restore_copy(bench.archive, bundle)

        assert path in restored.restored
        assert restored.lost == ()
        assert verify(bundle.folder).faults == ()
        assert contents(bundle.folder) == sealed
        assert catalog.damaged(EXECUTION_ID) == ()


def test_an_intact_copy_is_not_hashed_again(bench, bundle):
    copy = LocalCopy(bundle)
    before = [(path, (bundle.folder / path).stat().st_atime_ns) for path in copy.listed]

    assert list(copy.damaged()) == []

    assert [(path, (bundle.folder / path).stat().st_atime_ns) for path in copy.listed] == before
    assert restore_copy(bench.archive, bundle).restored == ()


def test_a_copied_workbench_is_intact(bench, bundle, tmp_path):
    """Every file is newer than the manifest, but none differs."""
    shutil.copytree(bundle.folder, tmp_path / "elsewhere" / bundle.id)

    assert list(LocalCopy(OpenBundle(tmp_path / "elsewhere", bundle.id)).damaged()) == []


def test_the_changed_files_are_moved_aside(bench, bundle):
    appended(bundle.folder / f"outputs/{NAME}")
    (bundle.folder / "outputs/new.txt").write_text("new")

    restored = restore_copy(bench.archive, bundle)

    assert (restored.aside / f"outputs/{NAME}").read_bytes() == DATA + b"late"
    assert (restored.aside / "outputs/new.txt").read_text() == "new"
    assert not (bundle.folder / "outputs/new.txt").exists()


def test_an_output_comes_from_the_local_zip_when_the_archive_does_not_have_it(bench, bundle):
    shutil.rmtree(bench.folder.parent / "archive")
    appended(bundle.folder / f"outputs/{NAME}")

    assert b"".join(Catalog(bench).blocks(EXECUTION_ID, NAME)) == DATA
    assert restore_copy(bench.archive, bundle).restored == (f"outputs/{NAME}",)


def test_damage_without_any_other_copy_is_an_error_and_is_reported_as_lost(bench, bundle):
    shutil.rmtree(bench.folder.parent / "archive")
    appended(bundle.folder / JOB_STATUS)

    with pytest.raises(BundleError, match="changed on this workbench after it was sealed"):
        Catalog(bench).record(EXECUTION_ID)
    assert restore_copy(bench.archive, bundle).lost == (JOB_STATUS,)


def test_an_open_bundle_is_not_restored(bench):
    with pytest.raises(NotFoundError, match="no sealed bundle"):
        restore_copy(bench.archive, OpenBundle(bench.folder, EXECUTION_ID))


def test_an_export_has_the_sealed_files(bench, bundle):
    appended(bundle.folder / f"outputs/{NAME}")
    target = io.BytesIO()

    export(Catalog(bench), [EXECUTION_ID], target.write)

    with zipfile.ZipFile(target) as zipped:
        (path,) = (name for name in zipped.namelist() if name.endswith(f"outputs/{NAME}"))
        assert zipped.read(path) == DATA


def test_show_names_the_damage_and_verify_restores_it(bench, bundle, told):
    appended(bundle.folder / f"outputs/{NAME}")

    assert told("show", EXECUTION_ID)["damaged"] == [f"outputs/{NAME} on the workbench"]
    told("verify", EXECUTION_ID, code=1)
    shown: dict[str, Any] = told("verify", EXECUTION_ID, "--restore")
    assert shown["restored"]["restored"] == [f"outputs/{NAME}"]
    assert "damaged" not in told("show", EXECUTION_ID)


def test_settle_restores_what_was_changed_soon_after_the_seal(bench, bundle):
    appended(bundle.folder / f"outputs/{NAME}")
    now = datetime.now(UTC)

    assert list(restore_changed(bench, now + timedelta(days=2))) == []
    (settled,) = restore_changed(bench, now)
    assert (settled.id, settled.result) == (EXECUTION_ID, "restored")
    assert list(restore_changed(bench, now)) == []
    assert verify(bundle.folder).faults == ()


def test_each_restoration_keeps_what_was_moved_aside_before(bench, bundle):
    for text in ("first", "second"):
        (bundle.folder / "outputs" / NAME).write_text(text)
        aside = restore_copy(bench.archive, bundle).aside
    kept_aside = sorted(path.read_text() for path in (aside / "outputs").iterdir())
    assert kept_aside == ["first", "second"]


def test_a_link_in_place_of_a_folder_is_moved_aside_and_its_target_stays(bench, bundle, tmp_path):
    away = tmp_path / "away"
    (bundle.folder / "outputs").rename(away)
    (bundle.folder / "outputs").symlink_to(away)
    before = contents(away)
    done = restore_copy(bench.archive, bundle)
    assert done.lost == ()
    assert verify(bundle.folder).faults == ()
    assert not (bundle.folder / "outputs").is_symlink()
    assert contents(away) == before


def test_a_file_in_place_of_a_folder_is_moved_aside(bench, bundle):
    shutil.rmtree(bundle.folder / "inputs")
    (bundle.folder / "inputs").write_text("in the way")
    assert restore_copy(bench.archive, bundle).lost == ()
    assert verify(bundle.folder).faults == ()


def test_touched_inodes_are_hashed_once(bench, bundle):
    for path in bundle.folder.rglob("*"):
        path.chmod(path.stat().st_mode)
    assert list(restore_changed(bench, datetime.now(UTC))) == []
    copy = LocalCopy(OpenBundle.load(bench.folder, EXECUTION_ID))
    assert list(copy.damaged()) == []
    assert not copy.hashed


def test_a_changed_input_of_a_pending_bundle_is_not_archived(bench, bundle):
    shutil.rmtree(bench.folder.parent / "archive/executions")
    bundle.scratch.mkdir(parents=True)  # as if the upload had failed
    appended(next((bundle.folder / "inputs").iterdir()))
    (result,) = settle_all(bench)
    assert result.result == "failed"
    assert "was changed on this workbench" in (result.message or "")
    assert bench.archive.seal_of(EXECUTION_ID) is None


def test_a_removed_output_of_a_pending_bundle_stops_only_its_own_execution(bench, bundle):
    kept(bench, OTHER_ID)
    shutil.rmtree(bench.folder.parent / "archive/executions")
    for execution_id in (EXECUTION_ID, OTHER_ID):
        OpenBundle(bench.folder, execution_id).scratch.mkdir(parents=True)
    (bundle.folder / "outputs" / NAME).unlink()
    results = {entry.id: entry.result for entry in settle_all(bench)}
    assert results == {EXECUTION_ID: "failed", OTHER_ID: "archived"}
    assert [entry.result for entry in restore_changed(bench, datetime.now(UTC))] == ["restored"]
    assert {entry.result for entry in settle_all(bench)} == {"archived"}


@pytest.fixture
def replaced(bench: Workbench, bundle: OpenBundle, tmp_path: Path) -> OpenBundle:
    """A bundle whose copy in the archive was replaced, with its seal, by another one that agrees with itself."""
    other = bench_at(tmp_path / "forger")
    kept(other, agent=an_agent(claims={"sub": "mallory"}))
    shutil.rmtree(bench.folder.parent / "archive")
    shutil.copytree(tmp_path / "forger" / "archive", bench.folder.parent / "archive")
    return bundle


def test_a_bundle_that_was_replaced_in_the_archive_is_found_although_both_copies_verify(bench, replaced):
    here, there = verify_execution(Catalog(bench), EXECUTION_ID, signatures=TRUST_NOBODY)
    assert here.report.passed
    (fault,) = there.report.faults
    assert fault.startswith("seal: manifest-sha256.txt has the digest ")
    assert "one of the bundles was replaced" in fault


@pytest.mark.parametrize("path", [None, f"outputs/{NAME}", JOB_STATUS])
def test_a_bundle_that_was_replaced_in_the_archive_replaces_no_copy_here(bench, replaced, path):
    if path:
        appended(replaced.folder / path)
    before = contents(replaced.folder)
    with pytest.raises(BundleError, match="nothing was restored: the archive has another bundle"):
        restore_copy(bench.archive, replaced)
    assert contents(replaced.folder) == before


def test_a_manifest_with_one_changed_digest_is_restored(bench, bundle):
    data = bundle.paths.manifest.read_bytes()
    bundle.paths.manifest.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert restore_copy(bench.archive, bundle).restored == ("manifest-sha256.txt",)
    assert bundle.paths.manifest.read_bytes() == data
