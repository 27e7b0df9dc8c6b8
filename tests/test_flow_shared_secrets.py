"""A secret that an execution passes on is in no record of the tree: nested, in threads, tasks and subprocesses."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import SecretStr

from homes import Bundles, holding
from marks import long_if
from prefect_executions import current_execution, method
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.secrets import MASK
from prefect_executions.errors import RequestError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.flow.opening import workbench_for
from prefect_executions.flow.shared_secrets import SHARED_WITH_ENV, SharedSecrets
from prefect_executions.operations.replay import rerun_request
from prefect_executions.settings import Settings
from records import a_record

pytestmark = pytest.mark.usefixtures("prefect_server")

SECRET = "-".join(["shAred", "s3cret", "c94f31"])  # noqa: FLY002 - the record keeps this file, too
LATER = "-".join(["known", "l4ter", "d05a42"])  # noqa: FLY002 - as above


@pytest.fixture
def bundles(home: Path, monkeypatch: pytest.MonkeyPatch) -> Bundles:
    monkeypatch.setenv("THE_SHARED", SECRET)
    monkeypatch.setenv("THE_LATER", LATER)
    return Bundles(home)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert SHARED_WITH_ENV not in os.environ


@method(version="1")
def uses(header: str, options: dict[str, Any] | None = None) -> str:
    """Report the secret in every way."""
    execution = current_execution()
    print("header is", header)
    execution.note(f"with {header}")
    execution.progress(50, header)
    execution.log_params({"header": header})
    execution.output(f"of-{header[-20:]}.txt").write_text("1")
    return header


@method(version="1", secrets=["token"])
def passes_on(token: str, how: str) -> None:
    """Pass the secret on to a nested Method."""
    WAYS[how](f"with {token}")


def in_a_thread(header: str) -> None:
    thread = threading.Thread(target=uses, args=(header,))
    thread.start()
    thread.join()


@task
def a_task(header: str) -> None:
    uses(header)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
def a_flow(header: str) -> None:
    a_task.submit(header).wait()


WAYS: dict[str, Callable[[str], Any]] = {
    "called": lambda header: uses(header, {header: header, "list": [header]}),
    "in a thread without a context": in_a_thread,
    "in a task of a plain flow": a_flow,
}


def seen(home: Path, *values: str) -> list[Path]:
    background = Bundles(home)
    background.folders()  # waits for the archive and the ledger
    return [path for value in values for path in holding(home, value.encode())] + [
        path for path in home.rglob("*") for value in values if value in str(path)
    ]


def record_of(bundles: Bundles, method_id: str) -> ExecutionRecord:
    return next(record for record in map(bundles.record, bundles.folders()) if record.method.id == method_id)


@pytest.mark.parametrize("how", long_if(WAYS, WAYS.keys() - {"called"}))
def test_a_secret_that_is_passed_on_is_in_no_record(how, bundles, home):
    passes_on("env:THE_SHARED", how)

    assert seen(home, SECRET) == []
    record = record_of(bundles, "uses")
    assert record.request.values["header"] == {"withheld": True}
    assert record.metrics.params == {"header": f"with {MASK}"}
    assert bundles.failed_checks() == []


@method(version="1", secrets=["token"])
def gives(token: SecretStr) -> str:
    """Return the secret to the caller."""
    return token.get_secret_value()


@method(version="1")
def learns_later(text: str) -> None:
    """Report a text before it turns out to be a secret."""
    execution = current_execution()
    print("early:", text)
    execution.note(f"early: {text}")
    execution.log_params({"text": text})
    gives("env:THE_LATER")


@pytest.mark.long
def test_what_was_reported_before_a_secret_became_known_is_masked_at_the_end(bundles, home):
    learns_later(LATER)

    assert {path.name for path in seen(home, LATER)} <= {"ledger.db", "ledger.db-wal"}  # unused pages of SQLite
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        assert LATER not in "".join(ledger.iterdump())
    record = record_of(bundles, "learns-later")
    assert record.request.values == {"text": {"withheld": True}}
    assert bundles.failed_checks() == []


@method(version="1")
def fails(text: str) -> None:
    """Fail with the secret in the message."""
    raise RuntimeError(f"cannot use {text}")


@flow
def siblings() -> None:
    fails(gives("env:THE_SHARED"))


def test_methods_of_one_plain_flow_share_their_secrets(bundles, home):
    with pytest.raises(RuntimeError, match="cannot use"):
        siblings()
    assert seen(home, SECRET) == []


@method(version="1")
def strict(number: int) -> None:
    """Take a number."""


@method(version="1", secrets=["token"])
def calls_wrongly(token: str) -> None:
    """Give the secret where a number is wanted: Prefect repeats it in its message."""
    strict(token)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_nested_run_that_never_starts_has_no_secret_in_its_record(bundles, home):
    with pytest.raises(Exception, match="number"):
        calls_wrongly("env:THE_SHARED")
    assert seen(home, SECRET) == []
    assert len(bundles.folders()) == 2


IN_A_SUBPROCESS = """
import os, subprocess, sys
from prefect_executions import method

@method(version="1")
def inner(header: str):
    print("inner has", header)

@method(version="1", secrets=["token"])
def outer(token: str):
    here = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {here!r}); import spawning; spawning.inner(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, token], check=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("owned", [True, False])
def test_a_method_in_a_subprocess_masks_the_secrets_of_its_caller(owned, bundles, home, told, tmp_path):
    (tmp_path / "spawning.py").write_text(IN_A_SUBPROCESS)
    if owned:
        told("run", f"{tmp_path / 'spawning.py'}:outer", "-p", "token=env:THE_SHARED")
    else:
        call = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import spawning; spawning.outer('env:THE_SHARED')"
        subprocess.run([sys.executable, "-c", call], check=True)

    assert seen(home, SECRET) == []
    assert len(bundles.folders()) == 2
    assert record_of(bundles, "inner").request.values == {"header": {"withheld": True}}


def test_another_process_resolves_the_names_of_its_callers_secrets(home, monkeypatch):
    monkeypatch.setenv("THE_SHARED", SECRET)
    workbench = workbench_for(Settings.read())
    record = a_record()
    bundle = workbench.begin(record, {})
    first = SharedSecrets()
    first.add("env:THE_SHARED", SECRET)
    first.add("env:GONE", "a-value-of-another-machine")
    first.members = 1
    first.open(bundle)

    other = SharedSecrets()
    assert other.inherit(workbench, record.id, os.environ) == ["env:GONE"]
    assert other.mask.mask(f"x {SECRET}") == f"x {MASK}"
    assert holding(home, SECRET.encode()) == []
    assert json.loads((bundle.scratch / "secrets.json").read_text()) == ["env:GONE", "env:THE_SHARED"]
    assert OpenBundle(workbench.folder, "00000000-0000-4000-8000-000000000000").secret_names() == frozenset()
    assert SharedSecrets().inherit(workbench, None, {"EXECUTION_ID": "no id"}) == []
    first.leave(record.id)


def test_the_variable_of_a_calling_process_is_there_again_for_the_next_run(home, monkeypatch):
    monkeypatch.setenv(SHARED_WITH_ENV, "the-caller")
    bundle = workbench_for(Settings.read()).begin(a_record(), {})
    shared = SharedSecrets()
    shared.members = 1
    shared.add("env:TOKEN", "hunter2hunter2")
    shared.open(bundle)
    assert os.environ[SHARED_WITH_ENV] == bundle.id
    shared.leave(bundle.id)
    assert os.environ[SHARED_WITH_ENV] == "the-caller"
    monkeypatch.delenv(SHARED_WITH_ENV)


@method(version="1")
def by_name(user: str, password: str, options: dict[str, Any], max_tokens: int = 8) -> None:
    """Take a password by mistake."""
    print("password is", password, options)
    current_execution().log_params({"api_key": "a-key-of-the-author", "lr": 0.1})


def test_values_with_secret_names_are_withheld_and_a_rerun_asks_for_them_by_name(bundles, home):
    key = "k3y-" + "0123456789"
    by_name("ada", SECRET, {"api_key": key, "sort_key": "name"})

    assert seen(home, SECRET, key) == []
    record = bundles.record()
    assert record.request.values == {
        "user": "ada",
        "password": {"withheld": True},
        "options": {"api_key": {"withheld": True}, "sort_key": "name"},
        "max_tokens": 8,
    }
    assert record.metrics.params == {"api_key": MASK, "lr": 0.1}
    notes = [entry.message for entry in record.job_status.history if entry.kind == "note"]
    assert notes == [
        "withheld, because the name looks secret or the value contains a secret: options.api_key, password"
    ]
    assert bundles.failed_checks() == []
    with pytest.raises(RequestError, match=r"-p options=… -p password=…"):
        rerun_request(record, {})


def test_the_operator_adds_names(bundles, home, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_SECRET_NAMES", "user, sort key")
    by_name("ada", "", {"sort_key": "name"})
    values = bundles.record().request.values
    assert (values["user"], values["options"]) == ({"withheld": True}, {"sort_key": {"withheld": True}})
