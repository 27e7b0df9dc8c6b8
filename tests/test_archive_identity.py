"""The identity of an archive: a Workbench does not write to another archive than the one it used."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archives import Place, place_on
from benches import EXECUTION_ID, OTHER_ID, begun, bench_at, kept, record_of
from prefect_executions import method
from prefect_executions.archive.identity import ArchiveIdentity
from prefect_executions.errors import ArchiveError
from prefect_executions.objectstore.interface import Store
from prefect_executions.objectstore.open import open_store
from prefect_executions.workbench.index import rebuild_ledger
from prefect_executions.workbench.recovery import settle_all
from prefect_executions.workbench.workbench import SEEN_ARCHIVES


def unmounted(home: Path) -> Path:
    """Leave the empty folder of a mount point, and return where the archive is now."""
    (home / "archive").rename(home / "disk")
    (home / "archive").mkdir()
    return home / "disk"


def test_a_run_is_refused_while_the_archive_is_not_mounted(tmp_path):
    kept(bench_at(tmp_path))
    unmounted(tmp_path)
    with pytest.raises(ArchiveError, match=r"it has no 'identity'\. Mount its disk.*settle --once --accept-archive"):
        begun(bench_at(tmp_path), record_of(OTHER_ID))
    assert list((tmp_path / "archive").iterdir()) == []


def test_nothing_is_archived_into_an_empty_mount_point_and_all_of_it_after_the_mount(tmp_path):
    bench = bench_at(tmp_path)
    bundle = kept(bench)
    bundle.scratch.mkdir(parents=True)  # as if the upload had failed
    shutil.rmtree(tmp_path / "archive/executions")
    disk = unmounted(tmp_path)
    assert [entry.result for entry in settle_all(bench)] == ["pending"]
    assert list((tmp_path / "archive").iterdir()) == []
    shutil.rmtree(tmp_path / "archive")
    disk.rename(tmp_path / "archive")
    assert [entry.result for entry in settle_all(bench)] == ["archived"]


def test_the_ledger_is_not_rebuilt_from_an_empty_mount_point(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    unmounted(tmp_path)
    with pytest.raises(ArchiveError, match="Mount its disk"):
        rebuild_ledger(bench)
    assert [row.id for row in bench.ledger.list().rows] == [EXECUTION_ID]


def test_another_archive_at_the_same_place_is_refused_until_it_is_accepted(tmp_path):
    kept(bench_at(tmp_path))
    kept(bench_at(tmp_path / "other"))
    shutil.rmtree(tmp_path / "archive")
    shutil.copytree(tmp_path / "other/archive", tmp_path / "archive")
    bench = bench_at(tmp_path)
    with pytest.raises(ArchiveError, match="its 'identity' differs"):
        begun(bench, record_of(OTHER_ID))
    bench.archive_identity.accept()
    bench.archive_identity.claim()


def test_a_second_workbench_uses_the_identity_of_the_archive(tmp_path):
    first = bench_at(tmp_path)
    kept(first)
    identity = (tmp_path / "archive/identity").read_bytes()
    kept(bench_at(tmp_path / "second", archive=first), OTHER_ID)
    assert (tmp_path / "archive/identity").read_bytes() == identity


def test_an_archive_of_an_earlier_version_gets_an_identity(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    (tmp_path / "archive/identity").unlink()
    shutil.rmtree(bench.folder / SEEN_ARCHIVES)
    kept(bench, OTHER_ID)
    assert (tmp_path / "archive/identity").is_file()


def test_an_earlier_workbench_refuses_an_archive_that_lacks_all_executions_of_the_ledger(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    shutil.rmtree(bench.folder / SEEN_ARCHIVES)
    unmounted(tmp_path)
    with pytest.raises(ArchiveError, match=f"none of the newest archived executions, such as {EXECUTION_ID}"):
        begun(bench, record_of(OTHER_ID))
    bench.archive_identity.accept()
    bench.archive_identity.claim()


def test_a_new_archive_at_another_place_is_accepted(tmp_path):
    kept(bench_at(tmp_path))
    other = bench_at(tmp_path / "other")
    kept(bench_at(tmp_path, archive=other), OTHER_ID)
    assert other.archive.seal_of(OTHER_ID)


@pytest.fixture
def s3(need: Callable[[str, str], str]) -> Iterator[Place]:
    place = place_on("seaweedfs", need)
    yield place
    place.close()


def identity_of(store: Store, memory: Path) -> ArchiveIdentity:
    return ArchiveIdentity(store, memory, lost=lambda: None)


def test_an_emptied_bucket_is_refused(s3: Place, tmp_path: Path) -> None:
    store = open_store(s3.url, options=s3.options)
    one, two = identity_of(store, tmp_path / "one"), identity_of(store, tmp_path / "two")
    one.claim()
    two.claim()
    assert store.get("identity")
    store.delete("identity")
    for identity in (one, two):
        with pytest.raises(ArchiveError, match="it has no 'identity'"):
            identity.claim()
    two.accept()
    two.check()
    with pytest.raises(ArchiveError, match="its 'identity' differs"):
        one.check()


def test_an_archive_in_memory_is_not_remembered(tmp_path):
    identity_of(open_store("memory://identity"), tmp_path / "one").claim()
    assert not (tmp_path / "one").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_refused_run_shows_no_frames_of_the_archive(home):
    @method(version="1")
    def never() -> None:
        raise AssertionError("it must not run")

    kept(bench_at(home))
    unmounted(home)
    with pytest.raises(ArchiveError, match="Mount its disk") as refused:
        never()
    assert "workbench.py" not in "".join(traceback.format_exception(refused.value))
