"""The settings: read once, named when wrong."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_executions.errors import SettingsError
from prefect_executions.settings import ArchiveLevel, Settings


def test_the_defaults_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path))
    settings = Settings.read()

    assert settings.workbench_folder == tmp_path / "workbench"
    assert settings.archive_url == (tmp_path / "archive").as_uri()
    assert settings.ledger_url == f"sqlite:///{tmp_path / 'ledger.db'}"
    assert settings.archive_level is ArchiveLevel.FULL


def test_lists_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_ENVIRONMENT", "A, B,,C")

    assert Settings.read().environment == ("A", "B", "C")


def test_durations_are_seconds(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_HOOK_TIMEOUT", "2.5")

    assert Settings.read().hook_timeout == timedelta(seconds=2.5)


def test_a_wrong_value_names_its_variable(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_ARCHIVE_LEVEL", "everything")

    with pytest.raises(SettingsError, match="EXECUTIONS_ARCHIVE_LEVEL: Input should be 'full', 'outputs' or 'none'"):
        Settings.read()


def test_a_home_with_a_tilde_is_the_users(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_HOME", "~/records")

    assert Settings.read().home_folder == Path.home() / "records"


def test_the_password_of_the_ledger_is_not_shown(monkeypatch):
    monkeypatch.setenv("EXECUTIONS_LEDGER", "postgresql://me:hunter2@localhost/x")

    assert "hunter2" not in repr(Settings.read())
