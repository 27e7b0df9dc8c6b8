"""Ledger URLs, and the errors for a ledger that cannot be opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefect_executions.errors import LedgerError, SettingsError
from prefect_executions.ledger.ledger import Ledger


@pytest.mark.parametrize(
    "wrong", ["", "ledger.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://u:hunter2@host/x", "a=hunter2"]
)
def test_an_invalid_ledger_url_is_refused_without_its_password(wrong):
    with pytest.raises(SettingsError, match="EXECUTIONS_LEDGER") as raised:
        Ledger.open(wrong)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "place",
    [
        "alice:hunter2@127.0.0.1:1/x",
        "alice:hunter2/3@127.0.0.1:1/x",
        "alice:hunter2?@127.0.0.1:1/x",
        "alice:hunter2@@127.0.0.1:1/x",
        "alice@127.0.0.1:1/x?password=hunter2",
        "alice:hunter%32@127.0.0.1:wrong/x",
        "alice:hunter2@127.0.0.1:1/x?nothing=a@b",
    ],
)
def test_the_error_for_an_unreachable_server_has_no_password(place):
    with pytest.raises(LedgerError) as raised:
        Ledger.open(f"postgresql://{place}")
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter" not in str(error)
        error = None if error.__suppress_context__ else error.__cause__ or error.__context__


@pytest.mark.long
def test_a_missing_driver_is_reported_with_the_install_command():
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from prefect_executions.ledger.ledger import Ledger\n"
        "Ledger.open('postgresql://alice:hunter2@127.0.0.1/x')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert "LedgerError" in last
    assert "psycopg" in last
    assert "prefect-executions[postgres]" in last
    assert "hunter2" not in run.stderr


def test_a_file_that_is_not_a_database_is_reported_with_the_rebuild_command(tmp_path):
    (tmp_path / "ledger.db").write_text("this is a note and no database " * 100)
    with pytest.raises(LedgerError, match=r"executions ledger rebuild"):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="folder"):
        Ledger.open(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
