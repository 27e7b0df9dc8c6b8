"""The client of Prefect's API: errors when there is no server."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from prefect_executions.errors import OrchestratorError
from prefect_executions.prefect_api.client import ping


def test_an_embedded_server_without_a_folder_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "prefect"
    with (
        temporary_settings({PREFECT_API_URL: None, PREFECT_HOME: home}),
        pytest.raises(OrchestratorError, match=f"cannot write to its folder {home}: Not a directory. Set PREFECT_HOME"),
    ):
        ping()
