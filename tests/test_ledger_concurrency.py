"""Many processes and threads use one ledger at once, and nothing is lost or refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id, numbered
from prefect_executions.errors import LedgerError
from prefect_executions.ledger.ledger import Ledger

TESTS = Path(__file__).parent

WRITER = """
import sys, time
from pathlib import Path
from ledgers import SEAL, numbered
from prefect_executions.ledger.ledger import Ledger

url, start, first, many = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
ledger = Ledger.open(url)
for number in range(first, first + many):
    ledger.record(numbered(number), archive="local")
    ledger.record(numbered(number), archive="pending", manifest_sha256=SEAL)
    ledger.note_archived(numbered(number).id, manifest_sha256=SEAL)
    ledger.list(limit=5)
"""

FORKER = """
import os, sys
from ledgers import numbered
from prefect_executions.ledger.ledger import Ledger

ledger = Ledger.open(sys.argv[1])
ledger.record(numbered(0), archive="local")
reads, writes = os.pipe()
child = os.fork()
if child == 0:
    ledger.record(numbered(1), archive="local")
    os.read(reads, 1)  # the parent has closed its connections by now
    for number in range(2, 50):
        ledger.record(numbered(number), archive="local")
    sys.exit(0)
ledger.record(numbered(100), archive="local")
ledger.close()
os.write(writes, b".")
for number in range(101, 150):
    ledger.record(numbered(number), archive="local")
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""

BULK_FOR_EVER = """
import itertools, sys
from ledgers import numbered
from prefect_executions.ledger.ledger import Ledger

with Ledger.open(sys.argv[1]).bulk() as bulk:
    for number in itertools.count():
        bulk.record(numbered(number), archive="local")
        if number == 600:
            print("under way", flush=True)
"""


@pytest.fixture(params=KINDS)
def url(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url:
        yield url


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )


def end(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def ids(url, limit=10_000):
    with Ledger.open(url) as ledger:
        return sorted(row.id for row in ledger.list(limit=limit).rows)


def write_at_once(url, folder, firsts, many):
    gate = folder / "start"
    writers = [start(WRITER, url, gate, first, many) for first in firsts]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    gate.touch()
    for writer in writers:
        end(writer)


@pytest.mark.long
def test_ten_processes_create_and_write_a_ledger_concurrently(url, tmp_path):
    write_at_once(url, tmp_path, range(0, 1000, 100), 20)
    assert ids(url) == [an_id(first + number) for first in range(0, 1000, 100) for number in range(20)]


@pytest.mark.long
def test_processes_that_record_the_same_executions_leave_one_row_each(url, tmp_path):
    write_at_once(url, tmp_path, [0] * 4, 10)
    assert ids(url) == [an_id(number) for number in range(10)]
    with Ledger.open(url) as ledger, Ledger.open(f"sqlite:///{tmp_path / 'alone.db'}") as alone:
        for number in range(10):
            alone.record(numbered(number), archive="archived", manifest_sha256=SEAL)
        assert ledger.dump() == alone.dump()


def test_ten_threads_share_one_ledger(url):
    with Ledger.open(url) as ledger, ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda number: ledger.record(numbered(number), archive="local"), range(200)))
        assert len(ledger.list(limit=300).rows) == 200


def test_a_fork_inherits_no_connection_and_loses_no_row(url):
    end(start(FORKER, url))
    assert ids(url) == [an_id(number) for number in (*range(50), *range(100, 150))]


def test_a_process_killed_while_writing_blocks_no_other_writer(url):
    writer = start(BULK_FOR_EVER, url)
    assert writer.stdout.readline() == "under way\n"
    with Ledger.open(url) as ledger:
        ledger.remove(an_id(0))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        ledger.record(numbered(10**6), archive="local")
        rows = len(ledger.list(limit=10**6).rows)
    assert rows % 500 == 0  # whole batches, without the one that was removed and with the one that was added


@pytest.mark.long
def test_a_rebuild_waits_for_other_writers(url):
    stop = threading.Event()
    failed = []

    def record_on():
        number = 0
        while not stop.is_set():
            number = (number + 1) % 50
            try:
                ledger.record(numbered(number), archive="local")
            except LedgerError as error:
                failed.append(error)

    with Ledger.open(url) as ledger:
        threads = [threading.Thread(target=record_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            ledger.clear()
            with ledger.bulk() as bulk:
                for number in range(50):
                    bulk.record(numbered(number), archive="local")
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed
        assert len(ledger.list(limit=100).rows) == 50


# SQLite


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.mark.long
def test_a_reader_keeps_its_snapshot_while_others_write(path, tmp_path):
    url = f"sqlite:///{path}"
    Ledger.open(url).record(numbered(5000), archive="local")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    count = "SELECT count(*) FROM executions"
    assert reader.execute(count).fetchone() == (1,)
    write_at_once(url, tmp_path, [0, 100, 200], 10)
    assert reader.execute(count).fetchone() == (1,)
    reader.execute("COMMIT")
    assert reader.execute(count).fetchone() == (31,)
    reader.close()


def test_a_writer_waits_for_a_slow_writer(path):
    url = f"sqlite:///{path}"
    Ledger.open(url).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    events = []

    def leave():
        time.sleep(1)
        events.append("the other writer ended")
        other.execute("COMMIT")

    leaving = threading.Thread(target=leave)
    leaving.start()
    with Ledger.open(url) as ledger:
        ledger.record(numbered(1), archive="local")
        events.append("recorded")
    leaving.join()
    other.close()
    assert events == ["the other writer ended", "recorded"]


def test_a_ledger_file_deleted_while_open_is_created_again(path):
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.record(numbered(1), archive="local")
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        ledger.record(numbered(2), archive="local")
        assert ids(f"sqlite:///{path}") == [an_id(2)]
        assert [row.id for row in ledger.list().rows] == [an_id(2)]


def test_a_sqlite_ledger_uses_wal_and_leaves_one_file_when_closed(path):
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.record(numbered(1), archive="local")
        assert path.with_name("ledger.db-wal").exists()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


MAKER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ledgers import numbered
from prefect_executions.ledger.ledger import Ledger

at_once = threading.Barrier(4)

def made(number):
    at_once.wait()
    with Ledger.open(f"sqlite:///{Path(sys.argv[1], str(number))}.db") as ledger:
        ledger.record(numbered(number), archive="local")
        return len(ledger.list().rows)

with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(made, range(4))))
"""


@pytest.mark.long
def test_one_process_can_create_several_ledgers_concurrently(tmp_path):
    # Alembic keeps what it works on in its modules; without turns the interpreter itself could crash.
    done = subprocess.run(
        [sys.executable, "-c", MAKER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[1, 1, 1, 1]\n"), done.stderr


# PostgreSQL


def test_a_connection_closed_by_the_server_is_replaced(need, tmp_path):
    with a_fresh_url("postgresql", need, tmp_path) as address, Ledger.open(address) as ledger:
        ledger.record(numbered(1), archive="local")
        with psycopg.connect(address, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ledger.record(numbered(2), archive="local")
        assert len(ledger.list().rows) == 2
