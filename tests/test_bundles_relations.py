"""Bundles of one zip or folder that name each other do not contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from benches import OTHER_ID
from bundle_makers import a_complete_bundle, a_sealed_bundle, copy_of
from prefect_executions.attestation.policy import TRUST_NOBODY
from prefect_executions.bundles.relations import RelatedBundle, relation_faults
from prefect_executions.comparison.verdict import Agreement, OutputVerdict, Verdict
from prefect_executions.executions.record import Relative
from prefect_executions.operations.verify import verify_target
from records import EXECUTION_ID, NOON, OUTPUTS, a_job_status, a_record, a_request, an_output

MANIFEST = "a" * 64


def related(execution_id: str = EXECUTION_ID, *links: tuple[str, str], **changes: Any) -> RelatedBundle:
    relatives = tuple(Relative(execution_id=other, relation=relation) for relation, other in links)
    request = a_request(execution_id=execution_id, relatives=relatives)
    outputs = tuple(an_output(path, data) for path, data in OUTPUTS.items())
    status = a_job_status(execution_id=execution_id, outputs=outputs)
    return RelatedBundle(MANIFEST, request, status, None)._replace(**changes)


def a_replay(**changes: Any) -> RelatedBundle:
    outputs = tuple(OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes") for path in OUTPUTS)
    verdict = Verdict(replay_of=EXECUTION_ID, manifest_sha256=MANIFEST, outputs=outputs).model_copy(update=changes)
    return related(OTHER_ID, ("rerun-of", EXECUTION_ID), verdict=verdict)


def test_a_replay_and_its_original_agree():
    assert list(relation_faults([related(), a_replay()])) == []


@pytest.mark.parametrize(
    ("created", "count"), [(datetime(1, 1, 1, tzinfo=UTC), 0), (datetime(9999, 12, 31, tzinfo=UTC), 1)]
)
def test_the_earliest_and_the_latest_time_are_compared(created, count):
    status = related().status.model_copy(update={"created": created})
    assert len(list(relation_faults([related(status=status), a_replay()]))) == count


def later(status: Any) -> Any:
    return status.model_copy(update={"created": NOON + timedelta(hours=1)})


def changed(status: Any) -> Any:
    (first, *others) = (one for one in status.outputs if one.path not in {"outputs/stdout.log", "outputs/stderr.log"})
    return status.model_copy(update={"outputs": (first.model_copy(update={"sha256": "b" * 64}), *others)})


CASES: Mapping[str, tuple[RelatedBundle, RelatedBundle, str]] = {
    "a verdict on another bundle": (related(manifest_sha256="b" * 64), a_replay(), "is on the manifest aaaa"),
    "a verdict that calls other bytes the same": (
        related(status=changed(related().status)),
        a_replay(),
        "is same; its bytes are different",
    ),
    "a verdict that calls the same bytes different": (
        related(),
        a_replay(
            outputs=tuple(
                OutputVerdict(path=path, agreement=Agreement.DIFFERS, by="bytes", words=("it differs",))
                for path in OUTPUTS
            )
        ),
        "is differs; its bytes are the same",
    ),
    "a rerun before its original": (related(status=later(related().status)), a_replay(), "before its rerun-of"),
    "two parents of each other": (
        related(EXECUTION_ID, ("parent", OTHER_ID)),
        related(OTHER_ID, ("parent", EXECUTION_ID)),
        "say that they came from each other",
    ),
}


def test_a_circle_of_executions_that_came_from_each_other_is_found_once():
    ids = [f"{number}b1e5a52-0000-4f2e-9a41-3d6d5d3f2e11" for number in range(4)]
    circle = [related(own, ("retry-of", other)) for own, other in zip(ids, ids[1:] + ids[:1], strict=True)]
    assert list(relation_faults(circle)) == [f"executions {' and '.join(ids)} say that they came from each other"]
    assert list(relation_faults(circle[1:])) == []


@pytest.mark.parametrize("name", CASES)
def test_a_contradiction_between_two_bundles_is_found(name):
    first, second, fault = CASES[name]
    assert any(fault in found for found in relation_faults([first, second]))


def test_verify_compares_the_bundles_of_a_folder(tmp_path: Path) -> None:
    original = a_sealed_bundle(tmp_path / "first")
    record = a_record(
        job_status=a_job_status(execution_id=OTHER_ID),
        request=a_request(execution_id=OTHER_ID, relatives=(Relative(execution_id=EXECUTION_ID, relation="rerun-of"),)),
    )

    def verified(manifest_sha256: str) -> tuple[str, ...]:
        outputs = tuple(OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes") for path in sorted(OUTPUTS))
        verdict = Verdict(replay_of=EXECUTION_ID, manifest_sha256=manifest_sha256, grade="reproduce", outputs=outputs)
        folder = tmp_path / manifest_sha256[:8]
        copy_of(original.folder, folder / "both" / EXECUTION_ID)
        copy_of(a_complete_bundle(folder, record, verdict).folder, folder / "both" / OTHER_ID)
        reports = verify_target(None, str(folder / "both"), signatures=TRUST_NOBODY)  # type: ignore[arg-type]
        return tuple(fault for one in reports for fault in one.report.faults)

    assert verified(sha256(original.paths.manifest.read_bytes()).hexdigest()) == ()
    assert any("is on the manifest 0000" in fault for fault in verified("0" * 64))
