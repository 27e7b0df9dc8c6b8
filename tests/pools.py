"""Work pools whose runs share only the archive: an operator's machine, and a pool from deployments/."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_executions.cli.app import main
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import Settings
from prefect_executions.settle.loop import settle
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench

ROOT = Path(__file__).parents[1]


class Place:
    """A folder in the role of /srv/executions on a machine, and the command line of its operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.settings = Settings(home=folder / "home", archive=str(self.archive))
        self.workbench = Workbench.of(self.settings, archive_block=blocks.archive_block)

    def cli(self, *words: str, code: int = 0) -> str:
        """Run the command line in this process and return its output; a new process would take seconds to start."""
        shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with redirect_stdout(shown):
            exit_code = main(words)
        output = shown.buffer.getvalue().decode()
        assert exit_code == code, output
        return output

    def record(self, execution_id: str) -> ExecutionRecord:
        return Catalog(self.workbench).record(execution_id)

    def settled(self, execution_id: str) -> bool:
        """Run one round of settling, as an operator's machine does; return whether the execution is sealed then."""
        time.sleep(1)
        list(settle(self.workbench, self.settings))
        return self.workbench.archive.seal_of(execution_id) is not None

    def at_home(self, monkeypatch: pytest.MonkeyPatch) -> Place:
        """Set the home and the archive of that machine for the command line in this process."""
        monkeypatch.setenv("EXECUTIONS_HOME", str(self.settings.home))
        monkeypatch.setenv("EXECUTIONS_ARCHIVE", self.settings.archive)
        monkeypatch.chdir(ROOT)
        return self

    def begun(self, execution_id: str) -> bool:
        """Whether, according to the archive, the Method's own code runs."""
        opened = (self.archive / "executions" / execution_id / "opening.json").exists()
        return opened and self.record(execution_id).status is Status.EXECUTING


def make_pool(name: str, infrastructure: str, defaults: Mapping[str, Any], archive: Path) -> None:
    """Create the work pool of deployments/, with these defaults of its variables and with that archive."""
    template = json.loads(
        (ROOT / "deployments" / infrastructure / "base-job-template.json").read_text(encoding="utf-8")
    )
    for variable, default in defaults.items():
        template["variables"]["properties"][variable]["default"] = default
    template["job_configuration"]["env"]["EXECUTIONS_ARCHIVE"] = str(archive)
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name=name, type=f"executions-{infrastructure}", base_job_template=template)
        client.create_work_pool(pool)
