"""The plans of scripts, their runs and their phases belong to one execution and agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from time import process_time
from typing import Any

import pytest

from bundle_makers import MemorySource, an_open_bundle, contents, finish
from prefect_executions.bundles.verify import Report, verify
from records import EXECUTION_ID, a_record, with_phases

INSTANCE, STATUS = "metadata/instance.json", "metadata/jobStatus.json"
FIRST = f"{EXECUTION_ID}.1.1"
SCRIPT = "set -e\nawk 1\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The files of a completed execution with three runs of scripts, each with its plan."""
    record = with_phases(a_record())
    bundle = an_open_bundle(tmp_path_factory.mktemp("scripts"), record)
    for run in record.instance.runs or ():
        name = run.id.removeprefix(f"{EXECUTION_ID}.")
        request = {"id": run.id, "executionId": EXECUTION_ID, "script": SCRIPT, "image": run.image_name}
        plan = {"runtime": run.runtime, "request": {key: value for key, value in request.items() if value}, "spec": {}}
        bundle.write(f"code/plan/{name}/plan.json", json.dumps(plan).encode())
        bundle.write(f"code/plan/{name}/entrypoint.sh", SCRIPT.encode())
    return contents(finish(bundle).folder)


def checked(files: Mapping[str, bytes | None]) -> Report:
    return verify(MemorySource({path: data for path, data in files.items() if data is not None}), only=("scripts",))


def test_plans_runs_and_phases_of_one_execution_agree(files):
    assert verify(MemorySource(files)).faults == ()
    assert checked(files).unchecked == ()


def of_another_execution(instance: Any) -> None:
    for run in instance["runs"]:
        run |= {"id": run["id"].replace("0b1e", "1b1e"), "task": run["task"].replace("0b1e", "1b1e")}


CHANGES: Mapping[str, tuple[str, Callable[[Any], object], str]] = {
    "a run of another execution": (INSTANCE, of_another_execution, "belongs to another execution"),
    "a run with another id than its task": (
        INSTANCE,
        lambda d: d["runs"][0].update(id=f"{EXECUTION_ID}.1.3"),
        "belongs to another execution",
    ),
    "a run twice": (INSTANCE, lambda d: d["runs"].append(d["runs"][0]), f"has the run '{FIRST}' 2 times"),
    "a run without its plan": (
        INSTANCE,
        lambda d: d["runs"].append(d["runs"][2] | {"id": f"{EXECUTION_ID}.1.3", "task": f"{EXECUTION_ID}.1.3"}),
        "1.3', which has no plan",
    ),
    "a run that is missing": (INSTANCE, lambda d: d["runs"].pop(0), f"the run '{FIRST}' was planned"),
    "a run in another runtime": (INSTANCE, lambda d: d["runs"][0].update(runtime="process"), "is for docker with"),
    "a run in another image": (INSTANCE, lambda d: d["runs"][0].update(imageName="evil"), "is for docker with"),
    "a run that ended before it began": (
        INSTANCE,
        lambda d: d["runs"][0].update(
            started="2026-09-22T12:10:00.000000+00:00", ended="2026-09-22T12:00:01.000000+00:00"
        ),
        "before its start",
    ),
    "a phase of another task": (
        STATUS,
        lambda d: next(entry for entry in d["history"] if "task" in entry).update(task="other.1.1"),
        "has a phase of 'other.1.1'",
    ),
    "a plan of another execution": (
        "code/plan/1.1/plan.json",
        lambda d: d["request"].update(executionId="other"),
        "is the plan of",
    ),
    "a plan of another run": (
        "code/plan/1.1/plan.json",
        lambda d: d["request"].update(id=f"{EXECUTION_ID}.1.2"),
        "is the plan of",
    ),
    "a plan for another image": (
        "code/plan/1.1/plan.json",
        lambda d: d["request"].update(image="evil"),
        "with the image evil",
    ),
    "a plan with another script": (
        "code/plan/1.1/plan.json",
        lambda d: d["request"].update(script="true\n"),
        "is not the script in plan.json",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_contradiction_is_found(files, name):
    path, change, fault = CHANGES[name]
    document = json.loads(files[path])
    change(document)
    assert any(fault in found for found in checked(files | {path: json.dumps(document, indent=2).encode()}).faults)


@pytest.mark.parametrize(
    ("path", "data", "fault"),
    [
        ("code/plan/1.1/entrypoint.sh", b"true\n", "is not the script in plan.json"),
        ("code/plan/1.1/plan.json", None, "is there without its plan.json"),
        ("code/plan/1.1/plan.json", b"[]", "is the plan of None"),
        ("code/plan/1.1/plan.json", b"{", "plan.json: invalid JSON"),
        ("code/plan/1.1/evil.py", b"", "is neither the plan.json nor the entrypoint.sh of a plan"),
        ("code/plan/evil.py", b"", "is neither the plan.json nor the entrypoint.sh of a plan"),
    ],
)
def test_another_file_of_a_plan_is_found(files, path, data, fault):
    assert any(fault in found for found in checked(files | {path: data}).faults)


def test_a_masked_script_may_be_masked_otherwise_in_its_plan(files):
    assert checked(files | {"code/plan/1.1/entrypoint.sh": b"token=********\n"}).passed


def test_runs_of_a_descriptor_need_plans(files):
    method = json.loads(files["metadata/method.json"])
    method["additionalParameters"] = {"parameters": [{"name": "execute-script", "value": ["awk 1"]}]}
    bare = {path: None if path.startswith("code/plan/") else data for path, data in files.items()}
    assert checked(bare).passed
    report = checked(bare | {"metadata/method.json": json.dumps(method, indent=2).encode()})
    assert f"scripts: metadata/instance.json has the run '{FIRST}', which has no plan" in report.faults


def changed_json(files: Mapping[str, bytes], path: str, change: Callable[[Any], object]) -> dict[str, bytes]:
    document = json.loads(files[path])
    change(document)
    return {**files, path: json.dumps(document, indent=2).encode()}


def test_the_code_of_a_method_may_have_a_folder_of_that_name(files):
    own = b"def model(): ...\n"
    listed = {"path": "code/plan/model.py", "sha256": sha256(own).hexdigest(), "gitObject": "0" * 40}
    method = changed_json(files, "metadata/method.json", lambda d: d["code"]["files"].append(listed))
    assert checked({**method, "code/plan/model.py": own}).faults == ()


def test_the_clock_may_be_turned_back_while_a_script_runs(files):
    times = {"started": "2026-09-22T12:00:02.000000+00:00", "ended": "2026-09-22T12:00:01.000000+00:00"}
    assert checked(changed_json(files, INSTANCE, lambda d: d["runs"][0].update(times))).faults == ()


def test_a_secret_may_be_a_part_of_an_id_or_an_image(files):
    def masked(plan: Any) -> None:
        plan["request"] |= {"id": "0b1e********", "image": "********"}

    assert checked(changed_json(files, "code/plan/1.1/plan.json", masked)).faults == ()


def test_many_plans_take_linear_time(files):
    plans = {f"code/plan/9.{number}/entrypoint.sh": b"" for number in range(20_000)}
    begun = process_time()
    assert len(checked({**files, **plans}).faults) == 101
    assert process_time() - begun < 20  # 20,000 x 20,000 comparisons take minutes
