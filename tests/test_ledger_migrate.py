"""The ledger's tables, migrations and query plans agree, in SQLite and PostgreSQL."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, inspect, text

from ledgers import KINDS, OLD, SEAL, a_fresh_url, an_old_ledger, numbered, record_old
from prefect_executions.errors import LedgerError
from prefect_executions.ledger import queries
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.migrate import HEAD, MIGRATIONS, SCHEMA, VERSION_TABLE, migrate
from prefect_executions.ledger.rows import MethodEntry, Row
from prefect_executions.ledger.sqlite import NEWEST
from prefect_executions.ledger.tables import METADATA
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter


@pytest.fixture(params=KINDS)
def url(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url:
        yield url


@pytest.fixture
def connection(url):
    """A plain connection of SQLAlchemy to a ledger that was just made."""
    Ledger.open(url).close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with engine.connect() as connected:
        if engine.dialect.name == "postgresql":
            connected.execute(text(f"SET search_path TO {SCHEMA}"))
        yield connected


def sql(url, statement):
    """Run a statement on the ledger as a stranger would."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connected:
            connected.execute(statement)
        connected.close()
    else:
        with psycopg.connect(url) as connected:
            connected.execute(f"SET search_path TO {SCHEMA}")
            connected.execute(statement)


def test_the_migrations_create_exactly_the_current_tables(connection):
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": False}
    )
    assert compare_metadata(context, METADATA) == []


def test_a_new_sqlite_file_has_the_tables_of_the_migrations(tmp_path):
    migrated, created = tmp_path / "migrated.db", tmp_path / "created.db"
    migrate("sqlite", lambda: sqlite3.connect(migrated, isolation_level=None), str(migrated))
    with closing(sqlite3.connect(migrated)) as theirs:
        tables = [" ".join(sql.split()) for *_, sql in _schema(theirs) if sql]
        rows = [f"INSERT INTO ledger_version VALUES ('{HEAD}')", "INSERT INTO change_counter VALUES (1, 0)"]  # noqa: S608 - a constant
        if os.environ.get("RENEW_DOCS"):
            NEWEST.write_text(";\n".join(["-- Made by tests/test_ledger_migrate.py", *tables, *rows]) + ";\n")
        Ledger.open(f"sqlite:///{created}").close()
        with closing(sqlite3.connect(created)) as ours:
            stale = "stale: RENEW_DOCS=1 python -m pytest tests/test_ledger_migrate.py"
            for query in (_VERSION, "SELECT * FROM change_counter"):
                assert _all(ours, query) == _all(theirs, query), stale
            assert sorted(map(_one_line, _schema(ours))) == sorted(map(_one_line, _schema(theirs))), stale
            assert _all(ours, "SELECT number, execution, removed FROM changes") == [(1, None, 0)]


def test_a_sqlite_file_with_a_strangers_table_is_migrated(tmp_path):
    with closing(sqlite3.connect(tmp_path / "shared.db")) as shared:
        shared.execute("CREATE TABLE notes (text TEXT)")
        Ledger.open(f"sqlite:///{tmp_path / 'shared.db'}").close()
        assert _all(shared, _VERSION) == [(HEAD,)]


_VERSION = "SELECT * FROM ledger_version"


def _schema(connected):
    return _all(connected, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid")


def _one_line(row):
    return " ".join(" ".join(map(str, row)).split())


def _all(connected, query):
    return connected.execute(query).fetchall()


def test_a_different_table_is_detected(connection):
    connection.execute(text("ALTER TABLE tags ADD COLUMN planted TEXT"))
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    assert "planted" in str(compare_metadata(context, METADATA))


def test_indexes_and_keys_have_the_names_in_the_metadata(connection):
    inspector = inspect(connection)
    for table in METADATA.tables.values():
        assert {index["name"] for index in inspector.get_indexes(table.name)} - {
            constraint["name"] for constraint in inspector.get_unique_constraints(table.name)
        } == {index.name for index in table.indexes}


def test_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    steps = sorted(path.name for path in (MIGRATIONS / "versions").glob("0*.py"))
    assert [name[:4] for name in steps] == [f"{number:04d}" for number in range(1, len(steps) + 1)]


KEYED = ("methods", "executions")


def test_a_row_has_a_field_for_each_column_in_the_order_of_the_statements():
    assert tuple(field.name for field in fields(Row)) == queries.ROW_COLUMNS
    assert MethodEntry._fields == queries.METHOD_COLUMNS


FEED = {"changes", "change_counter"}


def test_statements_and_metadata_have_the_same_tables_and_columns():
    assert {*queries.TABLES, *FEED} == set(METADATA.tables)
    for name, columns in queries.ALL_COLUMNS.items():
        assert METADATA.tables[name].columns.keys() == [*(["key"] if name in KEYED else []), *columns]


def test_a_ledger_of_a_newer_version_is_refused_and_unchanged(url):
    with Ledger.open(url) as ledger:
        ledger.record(numbered(1), archive="local")
    sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608  a constant
    with pytest.raises(LedgerError, match=r"version 9999 .* newer prefect-executions"):
        Ledger.open(url)
    sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'")  # noqa: S608  a constant
    with Ledger.open(url) as ledger:
        assert len(ledger.list().rows) == 1


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_old_ledger_is_migrated_and_keeps_its_rows(url, revision, tmp_path):
    an_old_ledger(url, revision)
    with Ledger.open(url) as ledger, Ledger.open(f"sqlite:///{tmp_path / 'rebuilt.db'}") as rebuilt:
        record_old(rebuilt)
        migrated, fresh = ledger.dump(), rebuilt.dump()
        unknown = ["python_version", "gpu", "gpu_driver", "cuda_version", "cpu", "memory"]  # only in the bundle
        unknown += ["imported", "origin"] if revision == "0001" else []
        for row in fresh["executions"]:
            row.update(dict.fromkeys(unknown))
        assert migrated == fresh


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_migrated_ledger_equals_a_rebuilt_one_after_a_rebuild(url, revision, tmp_path):
    an_old_ledger(url, revision)
    with Ledger.open(url) as ledger, Ledger.open(f"sqlite:///{tmp_path / 'rebuilt.db'}") as rebuilt:
        mark = ledger.mark()
        for each in (ledger, rebuilt):
            record_old(each)
        assert ledger.dump() == rebuilt.dump()
        assert len(ledger.changes(mark).changes) == len(OLD["executions"])


def test_reopening_keeps_all_rows(url):
    for number in range(3):
        with Ledger.open(url) as ledger:
            ledger.record(numbered(number), archive="local")
    assert len(Ledger.open(url).list().rows) == 3


def test_an_incomplete_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connected:
        connected.execute("CREATE TABLE executions (id TEXT)")
    connected.close()
    with pytest.raises(LedgerError, match="executions already exists"):
        Ledger.open(f"sqlite:///{path}")


def test_a_current_ledger_is_opened_without_alembic_and_sqlalchemy(url):
    with Ledger.open(url) as ledger:
        ledger.record(numbered(1), archive="local")
    script = (
        "import sys\nfrom prefect_executions.ledger.ledger import Ledger\n"
        "assert len(Ledger.open(sys.argv[1]).list().rows) == 1\n"
        "print({'sqlalchemy', 'alembic', 'prefect'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_sqlite_ledger_does_not_import_the_postgresql_driver(tmp_path):
    script = (
        "import sys\nfrom prefect_executions.ledger.ledger import Ledger\n"
        "Ledger.open(sys.argv[1])\nprint('psycopg' in sys.modules)"
    )
    address = f"sqlite:///{tmp_path / 'ledger.db'}"
    run = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_ledger_in_postgresql_uses_its_own_schema(need, tmp_path):
    with a_fresh_url("postgresql", need, tmp_path) as address:
        with psycopg.connect(address) as connected:
            connected.execute("CREATE TABLE public.alembic_version (version_num TEXT)")  # as Prefect's database has
            connected.execute("CREATE TABLE public.metrics (somebody_elses TEXT)")  # and MLflow's
        with Ledger.open(address) as ledger:
            ledger.record(numbered(1), archive="local")
            assert len(list(ledger.rows("metrics"))) == 2
        with psycopg.connect(address) as connected:
            assert connected.execute("SELECT count(*) FROM public.metrics").fetchone() == (0,)
            query = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
            tables = {name for (name,) in connected.execute(query, ("public",))}
            assert tables == {"alembic_version", "metrics"}


# plans

EARLY, MIDDLE, LATE = (datetime(year, 1, 1, tzinfo=UTC) for year in (1971, 2001, 5000))
FILTERS = [
    {},
    {"status": (Status.FAILED,)},
    {"method": "m1"},
    {"method": "m1", "status": (Status.FAILED,)},
    {"since": EARLY, "until": MIDDLE},
    {"status": (Status.FAILED,), "since": EARLY},
    {"method": "m1", "status": (Status.FAILED,), "since": EARLY, "until": LATE},
    {"after": (10**17, "x")},
    {"status": (Status.FAILED,), "after": (10**17, "x")},
    {"method": "m1", "after": (10**17, "x"), "until": LATE},
]


def fill(url):
    """Record enough executions that a planner takes an index."""
    with Ledger.open(url) as ledger, ledger.bulk() as bulk:
        for number in range(1500):
            archive = "pending" if number % 100 == 0 else "archived"
            bulk.record(numbered(number, method=f"m{number % 5}"), archive=archive, manifest_sha256=SEAL)


@pytest.fixture(scope="module")
def filled_sqlite(need, tmp_path_factory):
    with a_fresh_url("sqlite", need, tmp_path_factory.mktemp("plans")) as url:
        fill(url)
        yield url


@pytest.fixture(scope="module")
def filled_postgres(need, tmp_path_factory):
    with a_fresh_url("postgresql", need, tmp_path_factory.mktemp("plans")) as url:
        fill(url)
        yield url


def newest(*, after=None, **conditions):
    return queries.newest(Filter(**conditions), limit=51, after=after)


def plan_in_sqlite(url, query):
    connected = sqlite3.connect(url.removeprefix("sqlite:///"))
    plan = [row[3] for row in connected.execute(f"EXPLAIN QUERY PLAN {query.sql}", query.values)]
    connected.close()
    return plan


@pytest.mark.parametrize("criteria", FILTERS, ids=str)
def test_every_list_in_sqlite_uses_an_index_without_sorting(filled_sqlite, criteria):
    (step,) = plan_in_sqlite(filled_sqlite, newest(**criteria))
    expected = "_".join(word for word in ("method", "status") if word in criteria)
    name = f"executions_{expected}_newest_idx".replace("__", "_")
    assert re.match(rf"(SCAN|SEARCH) executions USING INDEX {name}\b", step)


@pytest.mark.parametrize("criteria", FILTERS, ids=str)
def test_every_list_in_postgresql_uses_an_index_without_sorting(filled_postgres, criteria):
    query = newest(**criteria)
    with psycopg.connect(filled_postgres, autocommit=True) as connected:
        connected.execute(f"SET search_path TO {SCHEMA}")
        connected.execute("ANALYZE executions")
        lines = connected.execute(f"EXPLAIN {query.sql.replace('?', '%s')}", query.values).fetchall()
    plan = "\n".join(line for (line,) in lines)
    assert "Index Scan" in plan
    assert not re.search(r"^ *(->)? *Sort", plan, re.MULTILINE)
    assert "Seq Scan" not in plan


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (queries.PENDING, (), "executions_pending_idx"),
        (queries.GET, ("x",), "sqlite_autoindex_executions_1"),
        (queries.IDS_WITH_PREFIX, ("a", "b", 21), "sqlite_autoindex_executions_1"),
    ],
    ids=["pending", "get", "find"],
)
def test_other_queries_use_an_index_too(filled_sqlite, statement, values, index):
    (step,) = plan_in_sqlite(filled_sqlite, queries.Query(statement, values))
    assert f"INDEX {index}" in step


@pytest.mark.parametrize("table", ["input_files", "outputs"])
def test_a_file_is_found_by_its_digest_with_an_index(filled_sqlite, table):
    query = queries.Query(f"SELECT execution FROM {table} WHERE sha256 = ?", ("x",))  # noqa: S608  a name above
    (step,) = plan_in_sqlite(filled_sqlite, query)
    assert f"{table}_sha256_idx" in step
