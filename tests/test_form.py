"""The form that Prefect's page makes of a Method, in a real browser: what it shows, what it refuses, what it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

import servers
from homes import WHOLE_WAY, Bundles, way
from journeys import program, waited
from prefect_executions.cli.app import main

ROOT = Path(__file__).parents[1]
POOL = "forms"
PATIENCE = 120_000  # milliseconds; the page asks a server on a busy machine
METHOD = '''
from enum import StrEnum
from typing import Annotated

from pydantic import Field, SecretStr

from prefect_executions import current_execution, method


class Channel(StrEnum):
    RED = "red"
    GREEN = "green"


@method(version="1.0.0", title="Measure")
def measure(
    name: str,
    channel: Channel = Channel.GREEN,
    times: Annotated[int, Field(ge=1, le=9, description="How often.")] = 3,
    token: SecretStr = SecretStr("env:SESAME"),
) -> None:
    """Measure a thing.

    Args:
        name: What is measured.
    """
    current_execution().output("told.txt").write_text(f"{name} {channel} {times} {len(token.get_secret_value())}")
'''


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch) -> Iterator[dict[str, str]]:
    """Run a Prefect server with its pages, where two Methods are deployed; yields its environment."""
    told = dict(servers.environment(tmp_path / "prefect", servers.free_port()))
    (tmp_path / "measure.py").write_text(METHOD)
    with servers.running(told, ui=True) as url, temporary_settings({PREFECT_API_URL: url}):
        with get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template={}))
        for folder, entrypoint in ((tmp_path, "measure.py:measure"), (ROOT, "flows/separate_irises/method.yaml")):
            monkeypatch.chdir(folder)
            assert main(["deploy", entrypoint, "--pool", POOL]) == 0
        yield told


@pytest.fixture
def client(server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def page(need_program) -> Iterator[Page]:
    """Open a page of Debian's Chromium; as root it runs without its own sandbox."""
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    chromium = need_program("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def opened(page: Page, client: SyncPrefectClient, method: str) -> None:
    deployment = client.read_deployment_by_name(f"{method}/{method}-{POOL}")
    page.goto(
        f"{str(client.api_url).removesuffix('/api/').removesuffix('/api')}/deployments/deployment/{deployment.id}/run"
    )
    expect(page.get_by_role("button", name="Submit")).to_be_visible(timeout=PATIENCE)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_run_is_started_from_the_form(server, client, page, home, tmp_path):
    opened(page, client, "separate-irises")
    expect(page.get_by_text("One species (Optional)")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("versicolor", exact=True).first).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "irises.png", full_page=True)

    opened(page, client, "measure")
    for shown in ("What is measured.", "channel (Optional)", "times (Optional)", "token (Optional)"):
        expect(page.get_by_text(shown, exact=True)).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("name (Optional)", exact=True)).to_have_count(0)
    expect(page.get_by_text("green", exact=True).first).to_be_visible(timeout=PATIENCE)
    name, token = page.locator("textarea").all()
    assert token.input_value() == "env:SESAME"
    name.fill("a star")
    page.screenshot(path=tmp_path / "measure.png", full_page=True)

    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    told = {**server, "EXECUTIONS_HOME": str(home), "SESAME": "twelve chars", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    bundles = Bundles(home)
    with program(worker, tmp_path / "worker.log", {**os.environ, **told}):
        token.fill("Sesame, open!")
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("does not match").first).to_be_visible(timeout=PATIENCE)
        assert not client.read_flow_runs()
        token.fill("env:SESAME")
        page.get_by_role("button", name="Submit").click()
        (run,) = waited(client.read_flow_runs, "the run that the form starts")
        folder = home / "workbench" / str(run.id)
        scratch = folder.parent / ".open" / folder.name
        waited(lambda: (folder / "manifest-sha256.txt").exists() and not scratch.exists(), f"the seal of {run.id}")

    record = bundles.record()
    assert way(record) == [*WHOLE_WAY, "COMPLETED"]
    assert (record.infrastructure.type, record.infrastructure.work_pool) == ("process", POOL)
    assert (folder / "outputs" / "told.txt").read_text() == "a star green 3 12"
    assert bundles.failed_checks() == []
    assert {path.name for path in tmp_path.glob("*.png")} == {"irises.png", "measure.png"}
