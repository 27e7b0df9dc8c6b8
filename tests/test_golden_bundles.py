"""Golden bundles: a bundle of every format version ever written can still be read and verified.

The zips under tests/bundles/ are never regenerated: a failure means that the code has
broken a promise, not that a file is out of date.
"""

from __future__ import annotations

import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from prefect_executions.bundles.verify import verify
from prefect_executions.documents import FORMAT
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status

BUNDLES = Path(__file__).parent / "bundles"
GOLDEN = {
    "format-1.zip": "c34289b11b7d26e305d0b7e83e077400d68d96ed9831c9a9492188777d84af59",
    "format-1-cancelled.zip": "cfcbf381c43c3636210e5cf179a39fc7ab119c5471927481755b5f45a469e17b",
    "format-1-failed.zip": "a735f329fb9bcbf23930e1378239cb7127c0848fce15891af1aca815fe015821",
    "format-1-never-started.zip": "af986422dab60f360d5ff90a9eae7178c475b1145a30689c88eab7200e577cf4",
    "format-2.zip": "dd6958f410e59a5534d01d7e135211f39a45c9a4fcd7907cfe0f04ae44bdcc8c",
    "format-2-cancelled.zip": "dafcabc940b74fa2ae9655e031a8d078937610632e87819ae647d5d08c9268c7",
    "format-2-failed.zip": "a8a164443a3f1fe0c8cb7b130327b15fe801cd764beee67ff84a836bdaa332c1",
    "format-2-never-started.zip": "833aa329d7a7fb17bb8857fbe48b11105a6817ab5ff1cd9b26fde5bf909dd9eb",
    "format-2-replay.zip": "6647a96c82f71c7df7bf77999216f8f203095a9ff8683a302d76fd24c4b0b753",
}
ENDED = {
    "format-1.zip": Status.COMPLETED,
    "format-1-cancelled.zip": Status.CANCELLED,
    "format-1-failed.zip": Status.FAILED,
    "format-1-never-started.zip": Status.CANCELLED,
    "format-2.zip": Status.COMPLETED,
    "format-2-cancelled.zip": Status.CANCELLED,
    "format-2-failed.zip": Status.FAILED,
    "format-2-never-started.zip": Status.CANCELLED,
    "format-2-replay.zip": Status.COMPLETED,
}


def _record(name: str) -> ExecutionRecord:
    with zipfile.ZipFile(BUNDLES / name) as bundle:
        top = bundle.namelist()[0].split("/")[0]
        files = {path.removeprefix(f"{top}/"): bundle.read(path) for path in bundle.namelist()}
    record = ExecutionRecord.from_json(files)
    assert record.id == top
    return record


def test_every_golden_bundle_is_listed_and_unchanged():
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in BUNDLES.glob("*.zip")} == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_verifies(name):
    report = verify(BUNDLES / name)

    assert report.faults == ()
    assert report.unchecked == ()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_is_read(name):
    record = _record(name)

    assert record.status is ENDED[name]
    assert name.startswith(f"format-{record.format}")


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_golden_bundles_contain_every_part_of_a_record(number):
    assert _record(f"format-{number}.zip").request.files
    assert _record(f"format-{number}.zip").metrics
    assert _record(f"format-{number}-failed.zip").instance.runs
    assert _record(f"format-{number}-failed.zip").job_status.steps
    assert _record(f"format-{number}-never-started.zip").started is None


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_is_checked_without_this_package(name, tmp_path):
    with zipfile.ZipFile(BUNDLES / name) as bundle:
        bundle.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()

    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "manifest-sha256.txt"], cwd=folder, check=True)
