"""Many bundles are verified in several processes, with the results of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bundle_makers import a_sealed_bundle, an_open_bundle, copy_of, forge_json
from prefect_executions.attestation.keys import SEED, SigningKey
from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.source import FolderSource, Source
from prefect_executions.bundles.verifiers import ReportedSource, verified_records
from prefect_executions.bundles.verify import DEFAULT_LIMITS, Report, verify
from prefect_executions.lifecycle.history import JobStatus

PATIENCE = 120.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_sealed_bundle(tmp_path_factory.mktemp("sealed")).folder


@pytest.fixture(scope="module")
def damaged(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of(honest, tmp_path_factory.mktemp("damaged") / honest.name)
    forge_json(folder, "metadata/jobStatus.json", lambda status: status.update(status="running"))
    return folder


def children() -> list[int]:
    pid = os.getpid()
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def verified_beside(
    first: Path,
    then: list[Path],
    policy: SignaturePolicy = TRUST_NOBODY,
    before: Callable[[list[int]], object] = lambda _: None,
) -> tuple[Report, list[ReportedSource]]:
    """Verify *first* until another process returns its report, call *before* with that process, and verify *then*."""
    known, until = children(), time.monotonic() + PATIENCE
    beside: list[Report] = []

    def sources() -> Iterator[Source]:
        while not beside:
            assert time.monotonic() < until, "no other process verified anything"
            yield FolderSource(first)
        before([pid for pid in children() if pid not in known])
        yield from map(FolderSource, then)

    given: list[Source] = []
    found = []

    def noted() -> Iterator[Source]:
        for source in sources():
            given.append(source)
            yield source

    with closing(verified_records(noted(), limits=DEFAULT_LIMITS, signatures=policy, processes=1)) as results:
        for result in results:
            found.append(result)
            if result.record is None and not beside:
                beside.append(result.report)
    assert [result.source for result in found] == given
    assert [pid for pid in children() if pid not in known] == []
    return beside[0], found[-len(then) :]


def test_the_reports_of_other_processes_are_equal_and_in_order(honest, damaged):
    folders = [honest, damaged, honest, honest, damaged] * 20
    first, rest = verified_beside(honest, folders)
    reports = {folder: verify(folder, signatures=TRUST_NOBODY) for folder in (honest, damaged)}
    assert first == reports[honest]
    assert reports[honest].passed
    assert not reports[damaged].passed
    assert [result.report for result in rest] == [reports[folder] for folder in folders]


def test_a_killed_verifier_changes_no_result(honest, damaged):
    def kill(started: list[int]) -> None:
        for pid in started:
            os.kill(pid, signal.SIGKILL)

    folders = [honest, damaged] * 30
    killed: list[int] = []
    _, rest = verified_beside(honest, folders, before=lambda started: (killed.extend(started), kill(started)))
    assert len(killed) == 1
    assert [result.report.passed for result in rest] == [True, False] * 30


def test_without_another_process_this_one_verifies_everything(honest, damaged, monkeypatch):
    for program in ("/bin/false", "/nowhere", None):
        monkeypatch.setattr(sys, "executable", program)
        sources = [FolderSource(folder) for folder in (honest, damaged) * 20]
        found = list(verified_records(sources, limits=DEFAULT_LIMITS, signatures=TRUST_NOBODY, processes=2))
        assert [result.source for result in found] == sources
        assert [result.record is not None for result in found] == [True, False] * 20


def test_other_processes_follow_the_signature_policy(tmp_path):
    key = SigningKey.of_seed(bytes(SEED))
    bundle = an_open_bundle(tmp_path)
    with bundle.lock():
        outputs = gather(bundle).outputs
        bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": outputs}))
        seal(bundle, key)
    trusting, _ = verified_beside(bundle.folder, [], SignaturePolicy(trusted={key.public.id: key.public}))
    assert (trusting.signature, trusting.passed) == (SignatureState.TRUSTED, True)
    refusing, _ = verified_beside(bundle.folder, [], TRUST_NOBODY)
    assert (refusing.signature, refusing.passed) == (SignatureState.UNKNOWN, False)


ENDLESS = """
import sys
from itertools import repeat
from pathlib import Path
from prefect_executions.attestation.policy import TRUST_NOBODY
from prefect_executions.bundles.source import FolderSource
from prefect_executions.bundles.verifiers import verified_records
from prefect_executions.bundles.verify import DEFAULT_LIMITS

sources = repeat(FolderSource(Path(sys.argv[1])))
for result in verified_records(sources, limits=DEFAULT_LIMITS, signatures=TRUST_NOBODY, processes=2):
    if result.record is None:
        print("beside", flush=True)
"""


def test_the_verifiers_of_a_killed_process_end(honest):
    command = [sys.executable, "-c", ENDLESS, str(honest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"beside\n"
        started = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    assert len(started) == 2
    until = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in started):
        assert time.monotonic() < until, "a verifier outlived its parent"
        time.sleep(0.05)
