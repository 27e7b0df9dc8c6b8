"""What deployments/ ships: every flow of flows/, deployed by Prefect's own command as its README says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from benches import begun, bench_at, record_of
from flows.settle import settle
from prefect_executions.cli.app import app
from prefect_executions.lifecycle.status import Status
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import queries as prefect_queries
from records import EXECUTION_ID
from scenes import Scene

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deployments").rglob("*.md")))


@pytest.mark.long
def test_every_flow_is_deployed_and_the_methods_are_known_as_such(prefect_server, home):
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run([*prefect, "work-pool", "create", "executions", "--type", "process"], cwd=ROOT, check=True)
    deploying = [*prefect, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    subprocess.run(deploying, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    names = {flow.id: flow.name for flow in api_client.client().read_flows()}
    deployed = {names[one.flow_id]: one for one in api_client.client().read_deployments()}
    assert {path.stem.replace("_", "-") for path in (ROOT / "flows").glob("*.py")} <= deployed.keys()
    methods = {names[flow_id] for flow_id in prefect_queries.method_flows(None) if flow_id in names}
    assert {"count-words", "segment-coins", "train-digits", "separate-irises"} <= methods
    assert "settle" not in methods
    [schedule] = deployed["settle"].schedules
    assert schedule.schedule.interval.total_seconds() == 60
    assert deployed["settle"].concurrency_options.collision_strategy.value == "CANCEL_NEW"


def test_the_settle_flow_seals_what_was_left(prefect_server, home):
    Scene(home)  # the server forgets the runs that other tests left: they would be settled here, too
    begun(bench_at(home), record_of(EXECUTION_ID))
    assert settle() == {"archived": 1}
    assert settle() == {}
    assert bench_at(home).ledger.get(EXECUTION_ID).status is Status.COMPLETED


def commands_of(page: Path) -> Iterator[list[str]]:
    """The calls of our command line in a page's console blocks, as words."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            found = re.fullmatch(r"\$ (?:[A-Z_]+=\S+ )*executions (.*)", line)
            if found:
                yield list(takewhile(lambda word: word not in {"|", ">"}, shlex.split(found[1], comments=True)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_to_type_is_what_the_command_line_takes(page):
    for words in commands_of(page):
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("infrastructure", ["process", "docker", "kubernetes"])
def test_each_infrastructure_is_told_in_a_page_that_a_new_operator_can_read_at_once(infrastructure):
    page = (ROOT / "deployments" / infrastructure / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 30
    for path in re.findall(r"\b(?:deployments|flows)/[\w./-]+\.\w+", page):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("infrastructure", ["docker", "kubernetes"])
def test_a_base_job_template_uses_each_of_its_variables_and_has_each_that_it_uses(infrastructure):
    template = json.loads(
        (ROOT / "deployments" / infrastructure / "base-job-template.json").read_text(encoding="utf-8")
    )
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used | {"env"} == template["variables"]["properties"].keys()
