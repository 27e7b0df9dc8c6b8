"""The archive's marks: open executions, recent seals, and the settle watermark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from archives import SERVERS, content, place_on
from prefect_executions.archive.archive import Archive, open_archive

ID = "0b1e5a52-6f0e-4c1e-9d55-0a1b2c3d4e5f"
AT = datetime(2026, 1, 2, 3, 59, 59, tzinfo=UTC)


@pytest.fixture(params=["folder", "memory", *SERVERS])
def archive(request: pytest.FixtureRequest, tmp_path: Path, need: Callable[[str, str], str]) -> Iterator[Archive]:
    if request.param in SERVERS:
        place = place_on(request.param, need)
        yield open_archive(place.url, options=place.options)
        place.close()
    else:
        yield open_archive({"folder": str(tmp_path / "archive"), "memory": f"memory://{tmp_path}"}[request.param])


def test_an_execution_is_open_from_its_opening_record_to_its_seal(archive: Archive, tmp_path: Path) -> None:
    assert list(archive.marks.open()) == []
    archive.put_opening(ID, b"opened")
    assert [mark.id for mark in archive.marks.open()] == [ID]
    sealed = archive.seal(ID, content(tmp_path, {"metadata/method.json": b"{}"})).seal
    assert list(archive.marks.open()) == []
    [mark] = archive.marks.sealed_since(AT)
    assert mark[:2] == (ID, sealed.manifest_sha256)
    assert mark.at <= archive.marks.clock() + timedelta(seconds=1)


def test_a_heartbeat_is_timed_by_the_store(archive: Archive) -> None:
    archive.put_opening(ID, b"opened")
    [before] = archive.marks.open()
    archive.marks.renew({ID: "/bench"})
    assert archive.marks.workbenches([ID, "other"]) == {ID: "/bench"}
    [after] = archive.marks.open()
    assert before.renewed <= after.renewed <= archive.marks.clock() + timedelta(seconds=1)


def test_sealing_again_closes_a_mark_that_was_renewed_after_the_seal(archive: Archive, tmp_path: Path) -> None:
    made = content(tmp_path, {"metadata/method.json": b"{}"})
    archive.seal(ID, made)
    archive.marks.renew({ID: ""})
    assert not archive.seal(ID, made).ours or list(archive.marks.open()) == []


def test_recent_seals_are_found_by_the_hour(archive: Archive) -> None:
    for number, hours in enumerate((0, 1, 30)):
        archive.marks.close(f"{ID}.{number + 2}", "a" * 64, AT + timedelta(hours=hours))
    since = {
        hours: sorted(mark.id[-1] for mark in archive.marks.sealed_since(AT + timedelta(hours=hours)))
        for hours in (0, 1, 2)
    }
    assert since == {0: ["2", "3", "4"], 1: ["3", "4"], 2: ["4"]}


def test_the_settle_watermark_is_stored(archive: Archive) -> None:
    assert archive.marks.settled_until() is None
    archive.marks.settle_until(AT)
    assert archive.marks.settled_until() == AT


def test_a_late_seal_is_stored_beside_the_seal_and_survives_a_sweep(archive: Archive, tmp_path: Path) -> None:
    made = content(tmp_path, {"metadata/method.json": b"{}"})
    archive.seal(ID, made)
    before = archive.seal_of(ID)
    archive.put_late_seal(ID, b"late")
    archive.put_late_seal(ID, b"late")
    archive.sweep(datetime.now(UTC) + timedelta(days=1))
    assert [data for name, data in archive.beside(ID).items() if name.startswith("late/")] == [b"late"]
    assert archive.seal_of(ID) == before
