"""Contradictions between the bundles of one zip, folder or bag that name each other: replays, reruns and parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from prefect_executions.comparison.outputs import LOGS
from prefect_executions.comparison.verdict import Agreement, Verdict
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.lifecycle.history import CLOCK_SKEW, JobStatus


class RelatedBundle(NamedTuple):
    """What a bundle says of its execution and of others."""

    manifest_sha256: str
    request: ExecuteRequest
    status: JobStatus
    verdict: Verdict | None


def relation_faults(bundles: Sequence[RelatedBundle]) -> Iterator[str]:
    """Yield a sentence for each contradiction between two of *bundles*."""
    by_id = {bundle.status.job_id: bundle for bundle in bundles}
    for execution_id, bundle in by_id.items():
        if bundle.verdict and (original := by_id.get(bundle.verdict.replay_of)):
            yield from _verdict_faults(execution_id, bundle, bundle.verdict, original)
        for relative in bundle.request.relatives:
            other = by_id.get(relative.execution_id)
            if other is None or other is bundle:
                continue
            began, earlier = bundle.status.started, other.status.created
            if began and earlier and earlier - began > CLOCK_SKEW:  # earlier - CLOCK_SKEW could be before the year 1
                yield (
                    f"execution {execution_id} started at {began}, before its {relative.relation} "
                    f"{relative.execution_id} was created at {earlier}"
                )
    origins = {id_: [one.execution_id for one in bundle.request.relatives] for id_, bundle in by_id.items()}
    if circle := _circle(origins):
        yield f"executions {' and '.join(circle)} say that they came from each other"


def _circle(origins: Mapping[str, Iterable[str]]) -> Sequence[str]:
    """Return executions each of which came from the next one according to *origins*; none without such a circle."""
    graph = {
        execution_id: [other for other in others if other != execution_id] for execution_id, others in origins.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        _, circle = error.args
        return sorted({*circle})
    return ()


def _verdict_faults(
    execution_id: str, replay: RelatedBundle, verdict: Verdict, original: RelatedBundle
) -> Iterator[str]:
    if verdict.manifest_sha256 not in {None, original.manifest_sha256}:
        yield (
            f"the verdict of {execution_id} is on the manifest {verdict.manifest_sha256} of {verdict.replay_of}, "
            f"whose manifest here is {original.manifest_sha256}"
        )
    before, after = _digests(original.status), _digests(replay.status)
    for output in verdict.outputs:
        same = before.get(output.path) == after.get(output.path)
        if output.path not in LOGS and same is not (output.agreement is Agreement.SAME):
            bytes_are = "the same" if same else "different"
            yield f"the verdict of {execution_id}: {output.path!r} is {output.agreement}; its bytes are {bytes_are}"


def _digests(status: JobStatus) -> Mapping[str, str]:
    return {output.path: output.sha256 for output in status.outputs}
