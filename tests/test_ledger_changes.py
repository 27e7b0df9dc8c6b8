"""A reader that follows the change feed misses no change and reads none twice, in SQLite and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id, numbered
from prefect_executions.errors import StaleMarkError
from prefect_executions.ledger import changes as change_feed
from prefect_executions.ledger.changes import Changes, FeedMark
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.postgres import PostgresSession

TESTS = Path(__file__).parent


@pytest.fixture(params=KINDS)
def url(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url:
        yield url


@pytest.fixture
def ledger(url):
    with Ledger.open(url) as opened:
        yield opened


def told(changes: Changes):
    return [(change.id, change.removed) for change in changes.changes]


def test_each_insert_update_and_removal_is_one_change_in_order(ledger):
    start = ledger.mark()
    ledger.record(numbered(1), archive="local")
    ledger.record(numbered(2), archive="local")
    ledger.record(numbered(1), archive="pending", manifest_sha256=SEAL)
    ledger.note_archived(an_id(1), manifest_sha256=SEAL)
    ledger.remove(an_id(2))
    ledger.record(numbered(2), archive="local")
    wanted = [(an_id(1), False), (an_id(2), False), (an_id(1), False), (an_id(1), False), (an_id(2), True)]
    assert told(ledger.changes(start)) == [*wanted, (an_id(2), False)]


def test_a_reader_continues_from_its_mark_in_pages(ledger):
    mark, seen = ledger.mark(), []
    for number in range(7):
        ledger.record(numbered(number), archive="local")
    while (page := ledger.changes(mark, limit=3)).changes:
        assert len(page.changes) <= 3
        seen += [change.number for change in page.changes]
        mark = page.mark
    assert seen == list(range(seen[0], seen[0] + 7))
    assert ledger.changes(mark) == Changes((), mark)
    assert mark == ledger.mark()


def test_what_changes_no_row_is_not_a_change(ledger):
    ledger.record(numbered(1), archive="pending", manifest_sha256=SEAL)
    mark = ledger.mark()
    ledger.record(numbered(1), archive="local")  # the sealed record stays
    ledger.remove(an_id(9))
    assert ledger.changes(mark).changes == ()


def test_a_bulk_write_is_one_change_for_each_execution(ledger):
    mark = ledger.mark()
    with ledger.bulk() as bulk:
        for number in (1, 2, 1):
            bulk.record(numbered(number), archive="local")
    assert told(ledger.changes(mark)) == [(an_id(1), False), (an_id(2), False)]


def test_a_mark_from_before_a_rebuild_is_refused(ledger):
    ledger.record(numbered(1), archive="local")
    mark = ledger.mark()
    ledger.clear()
    with pytest.raises(StaleMarkError, match="rebuilt or restored"):
        ledger.changes(mark)
    ledger.record(numbered(1), archive="local")
    with pytest.raises(StaleMarkError):
        ledger.changes(mark)


def test_a_mark_of_another_ledger_is_refused(ledger, tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        for each in (ledger, other):
            each.record(numbered(1), archive="local")
        assert other.mark().number == ledger.mark().number
        with pytest.raises(StaleMarkError):
            ledger.changes(other.mark())


def test_a_mark_that_the_ledger_has_not_reached_is_refused(ledger):
    with pytest.raises(StaleMarkError):
        ledger.changes(FeedMark(10**9, 1))


def test_a_mark_is_refused_when_its_change_is_forgotten(ledger, monkeypatch):
    # Smaller, because 100,000 changes take minutes to write; the statements and their order are those of the product.
    monkeypatch.setattr(change_feed, "KEPT", 10)
    monkeypatch.setattr(change_feed, "_TRIM", 5)
    old = ledger.mark()
    for number in range(10):
        ledger.record(numbered(number), archive="local")
    recent = ledger.mark()
    for number in range(10):
        ledger.record(numbered(number), archive="local")
    with pytest.raises(StaleMarkError):
        ledger.changes(old)
    assert len(ledger.changes(recent).changes) == 10


def test_a_copy_restored_over_a_sqlite_ledger_refuses_newer_marks(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.record(numbered(1), archive="local")
    shutil.copy(path, tmp_path / "copy.db")
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.record(numbered(2), archive="local")
        lost = ledger.mark()
    path.write_bytes((tmp_path / "copy.db").read_bytes())  # the file keeps its inode
    with Ledger.open(f"sqlite:///{path}") as ledger:
        with pytest.raises(StaleMarkError):
            ledger.changes(lost)
        ledger.record(numbered(3), archive="local")
        assert ledger.mark().number == lost.number
        with pytest.raises(StaleMarkError):
            ledger.changes(lost)


def test_a_sqlite_file_that_was_deleted_refuses_old_marks(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        mark = ledger.mark()
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        with pytest.raises(StaleMarkError):
            ledger.changes(mark)


# writers and a reader at the same time

WRITER = """
import sys
from contextlib import suppress
from ledgers import SEAL, numbered
from prefect_executions.errors import NotFoundError
from prefect_executions.ledger.ledger import Ledger

with Ledger.open(sys.argv[1]) as ledger:
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        ledger.record(numbered(number), archive="local")
        ledger.record(numbered(number), archive="pending", manifest_sha256=SEAL)
        with suppress(NotFoundError):  # the other writer of the same executions removed it
            ledger.note_archived(numbered(number).id, manifest_sha256=SEAL)
        if number % 5 == 0:
            ledger.remove(numbered(number).id)
        if number == int(sys.argv[2]):
            print("under way", flush=True)
"""

FOR_EVER = 10**6


def start(url, first, last):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, url, str(first), str(last)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )


def follow(ledger, mark, busy, seen):
    """Poll the feed until no writer is left and nothing is new; return the last mark."""
    while True:
        ended = not busy()
        page = ledger.changes(mark, limit=7)
        seen += page.changes
        mark = page.mark
        if ended and not page.changes:
            return mark


def check_complete(ledger, start_mark, seen):
    """Check that the numbers have no gap, and that the changes lead to the rows of the ledger."""
    assert [change.number for change in seen] == list(range(start_mark.number + 1, ledger.mark().number + 1))
    present = {change.id: not change.removed for change in seen}
    assert {execution_id for execution_id, is_present in present.items() if is_present} == {
        row.id for row in ledger.search()
    }


@pytest.mark.long
def test_a_reader_misses_nothing_while_processes_write(url, ledger):
    mark, seen = ledger.mark(), []
    writers = [start(url, first, first + 10) for first in (0, 100, 200, 200)]
    follow(ledger, mark, lambda: any(writer.poll() is None for writer in writers), seen)
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    check_complete(ledger, mark, seen)
    # Three changes for each execution, and a fourth for the removed ones; the last two writers wrote the same ones.
    assert len([change for change in seen if change.id < an_id(200)]) == 2 * (10 * 3 + 2)


def test_a_reader_misses_nothing_while_threads_write(ledger):
    mark, seen = ledger.mark(), []

    def write(first):
        for number in range(first, first + 10):
            ledger.record(numbered(number), archive="local")
            if number % 3 == 0:
                ledger.remove(an_id(number))
        with ledger.bulk() as bulk:
            for number in range(first + 20, first + 25):
                bulk.record(numbered(number), archive="local")

    writers = [threading.Thread(target=write, args=(first,)) for first in range(0, 400, 100)]
    for writer in writers:
        writer.start()
    follow(ledger, mark, lambda: any(writer.is_alive() for writer in writers), seen)
    check_complete(ledger, mark, seen)


@pytest.mark.long
def test_a_killed_writer_leaves_no_gap_and_blocks_no_other_writer(url, ledger):
    mark, seen = ledger.mark(), []
    last = mark
    for round_number in range(2):
        writer = start(url, 1000 * round_number, FOR_EVER)
        assert writer.stdout.readline() == "under way\n"
        for _ in range(20):
            last = follow(ledger, last, lambda: False, seen)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        ledger.record(numbered(FOR_EVER + round_number), archive="local")
    follow(ledger, last, lambda: False, seen)
    check_complete(ledger, mark, seen)
    assert {an_id(FOR_EVER + round_number) for round_number in range(2)} <= {change.id for change in seen}


def test_a_change_is_visible_after_all_earlier_ones_in_postgresql(need, tmp_path):
    # A number that is taken first and committed last would be missed by a reader that polls in between.
    with a_fresh_url("postgresql", need, tmp_path) as url, Ledger.open(url) as ledger:
        mark = ledger.mark()
        with psycopg.connect(url) as first:
            first.execute("SET search_path TO executions_ledger")
            first.execute("UPDATE change_counter SET number = number + 1")
            second = threading.Thread(target=lambda: ledger.record(numbered(2), archive="local"))
            second.start()
            second.join(0.5)
            assert second.is_alive()
            assert ledger.changes(mark).changes == ()
            first.rollback()
        second.join()
        assert told(ledger.changes(mark)) == [(an_id(2), False)]


def test_postgresql_appends_the_changes_of_a_transaction_in_one_round_trip(need, tmp_path):
    # All other writers wait from the first statement that takes the counter's row.
    statements = []

    class Recorder(psycopg.RawCursor):
        def execute(self, query, *values, **options):
            statements.append(query)
            return super().execute(query, *values, **options)

        def executemany(self, query, *values, **options):
            statements.append(query)
            return super().executemany(query, *values, **options)

    with a_fresh_url("postgresql", need, tmp_path) as url, Ledger.open(url) as ledger:
        mark = ledger.mark()
        with psycopg.connect(url, cursor_factory=Recorder) as connection:
            connection.execute("SET search_path TO executions_ledger")
            statements.clear()
            change_feed.note_changes(PostgresSession(connection), [an_id(1), an_id(2)], removed=True)
        assert len(statements) == 1
        assert told(ledger.changes(mark)) == [(an_id(1), True), (an_id(2), True)]
