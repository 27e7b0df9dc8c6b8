"""Random executions, and what a query can ask about each, for tests of the column index."""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random
from typing import Any

from ledgers import an_id
from prefect_executions.executions.record import Deployment, ExecutionRecord, Instance, Metric, Metrics, Relative, Usage
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.match import Facts, FileFacts, MetricFacts
from prefect_executions.query.tree import Link
from records import (
    NOON,
    a_job_status,
    a_method,
    a_request,
    a_staged_input,
    an_agent,
    an_infrastructure,
    an_instance,
)

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 10, 2, 3, 0.5, 0.1, 1e3, -0.0, 1e-7, 1e300, 0.30000000000000004, 5.123456789012345),
    *(2**53, 2**53 + 1, 2**60 + 1, -(2**60) - 1, 2**62, 10**400, -(10**400)),
)
NOT_FINITE = (math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    "a",
    "A",
    "Ab",
    "ab",
    "b",
    "mnist",
    "10",
    "1e3",
    "true",
    "ß",
    "ss",
    "É",
    "日本",
    "x y",
    'a"b',
    "*",
    "\\",
    "inf",
)
OTHERS = (None, True, False, [], [1, 2], {"name": "adam"}, {"name": None, "y": {"z": 2}})
NAMES = ("optimizer", "epochs", "lr", "x.max", "x", "status", "optimizer.name", "é")
PATHS = ("a", "outputs/a.csv", "outputs/b/Ab.CSV", "outputs/mnist", "outputs/日本.txt")


def random_records(random: Random, many: int, *, first: int = 0) -> list[ExecutionRecord]:
    """Return executions *first* and following, each with some of all kinds of values."""
    return [random_record(random, number) for number in range(first, first + many)]


def random_record(random: Random, number: int) -> ExecutionRecord:
    """Return execution *number* with random values."""

    def some(values: Any) -> Any:
        return random.choice(values)

    execution_id = an_id(number) if random.random() < 0.8 else f"{an_id(number)}.2"
    begins = NOON - timedelta(days=some([0, 1, 250, 264]), seconds=some([0, 0, 3600, number]))
    end = some([Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXECUTING])
    failed = end is Status.FAILED
    outputs = [
        OutputFile(path=path, sha256=_digest(random), size=some([0, 1500, 10**9]), media_type=some(["text/csv", "a"]))
        for path in random.sample(PATHS, some([0, 1, 2]))
    ]
    job_status = a_job_status(
        end,
        execution_id=execution_id,
        reason=some([Reason.ERROR, Reason.TIMED_OUT]) if failed else None,
        message=some(TEXTS) if failed else None,
        outputs=outputs,
        begins=begins,
    )
    if random.random() < 0.2:
        job_status = job_status.model_copy(update={"partial": True})
    method = a_method(id=some(["mnist", "a", "Ab"]), version=some(["1.2.0", "1.10", "10", "a"]), title=some(TEXTS[1:]))
    request = a_request(
        execution_id=execution_id,
        values={name: some((*NUMBERS, *TEXTS, *OTHERS)) for name in random.sample(NAMES, some([0, 1, 3]))},
        files=tuple(
            a_staged_input(name, sha256=_digest(random))
            for name in random.sample(["a", "Ab", "mnist"], some([0, 1, 2]))
        ),
        relatives=tuple(
            Relative(execution_id=an_id(random.randrange(40)), relation=relation)
            for relation in random.sample(["parent", "rerun-of"], some([0, 0, 1, 2]))
        ),
        tags=tuple(dict.fromkeys(some(TEXTS[1:]) for _ in range(some([0, 1, 2])))),
        flow_run_name=some([*TEXTS, None]),
        deployment=some([None, Deployment(id=a_request().deployment.id, name="a/b")]),
    )
    metrics = Metrics(
        params={name: some((*NUMBERS, *TEXTS, *OTHERS)) for name in random.sample(NAMES, some([0, 1, 3]))},
        metrics=tuple(
            Metric(name=name, value=some((*NUMBERS, *NOT_FINITE)), step=step, time=NOON)
            for name in random.sample(NAMES, some([0, 1, 3]))
            for step in range(some([1, 1, 3]))
        ),
    )
    return ExecutionRecord(
        method=method,
        request=request,
        infrastructure=an_infrastructure(worker=some(["worker-1", None])),
        instance=_instance(random, some(["node1", "a"])) if random.random() < 0.8 else Instance(),
        job_status=job_status,
        agent=an_agent(claims={"iss": "i", "sub": "s", "name": some(["Ada", "a"])}),
        metrics=metrics if random.random() < 0.9 else None,
    )


def _instance(random: Random, hostname: str) -> Instance:
    usage = Usage(cpu_seconds=random.choice([None, 0.5, 90]), peak_memory=random.choice([None, 1500, 10**9]))
    return an_instance(hostname=hostname, usage=random.choice([None, usage]))


def _digest(random: Random) -> str:
    """Return one of few digests; no word of a random query with wildcards can be a digest."""
    return random.choice(["cdef" * 16, "cd00" * 16, "dead" * 16])


def facts_of(record: ExecutionRecord, *, archive: str, records: dict[str, ExecutionRecord]) -> Facts:
    """Return what a query can ask about *record*, read from its documents; *records* are all executions."""
    job_status, request, method = record.job_status, record.request, record.method
    code, usage = method.code, record.instance.usage
    repository = code.repository if code else None
    times = {}
    for entry in job_status.history:
        if entry.kind.value == "status":
            times.setdefault(entry.status, entry.time)
    started, finished = job_status.started, job_status.finished
    fields: dict[str, tuple[Any, ...]] = {
        "id": (record.id,),
        "method": (method.id,),
        "title": (method.title,),
        "version": (method.version,),
        "type": (method.type,),
        "status": (record.status.value,),
        "reason": (job_status.reason and job_status.reason.value,),
        "date": (job_status.created or next(iter(times.values()), job_status.updated),),
        "created": (job_status.created,),
        "scheduled": (times.get(Status.SCHEDULED),),
        "started": (started,),
        "finished": (finished,),
        "updated": (job_status.updated,),
        "duration": (finished - started if started and finished else None,),
        "attempt": (job_status.attempt,),
        "progress": (job_status.progress,),
        "message": (job_status.message,),
        "name": (request.flow_run_name,),
        "tag": request.tags,
        "agent": (record.agent.name,),
        "infrastructure": (record.infrastructure.type,),
        "pool": (record.infrastructure.work_pool,),
        "worker": (record.infrastructure.worker,),
        "host": (record.instance.hostname,),
        "deployment": (request.deployment and request.deployment.name,),
        "commit": (repository and repository.commit,),
        "code": (code and code.sha256,),
        "branch": (repository and repository.branch,),
        "author": (repository and repository.author,),
        "subject": (repository and repository.subject,),
        "remote": (repository and repository.remote,),
        "python": (record.instance.python and record.instance.python.version,),
        "cpu": (None if usage is None or usage.cpu_seconds is None else timedelta(seconds=usage.cpu_seconds),),
        "memory": (usage and usage.peak_memory,),
    }
    flags = {"archived"} if archive == "archived" else set()
    return Facts(
        fields={name: tuple(value for value in values if value is not None) for name, values in fields.items()},
        params=_with_leaves(record.metrics.params if record.metrics else {}),
        metrics=_metrics(record.metrics),
        inputs=_with_leaves(request.values),
        input_files=tuple(FileFacts(names=(file.input, file.name), sha256=file.sha256) for file in request.files),
        output_files=tuple(
            FileFacts(names=(file.path,), sha256=file.sha256, size=file.size, media_type=file.media_type)
            for file in job_status.outputs
        ),
        flags=frozenset(
            flags
            | ({"partial"} if job_status.partial else set())
            | ({"dirty"} if repository and repository.dirty else set())
        ),
        links=_links(record, records),
    )


def _with_leaves(values: dict[str, Any]) -> dict[str, Any]:
    """Return *values* and the members of mappings by dotted names; a value comes before a member of its name."""
    found = {**values}
    for name, value in values.items():
        if isinstance(value, dict):
            for leaf, inner in _with_leaves(value).items():
                if not isinstance(inner, dict):
                    found.setdefault(f"{name}.{leaf}", inner)
    return found


def _metrics(metrics: Metrics | None) -> dict[str, MetricFacts]:
    series: dict[str, list[Any]] = {}
    for metric in metrics.metrics if metrics else ():
        series.setdefault(metric.name, []).append(metric.value)
    found = {}
    for name, values in series.items():
        numbers = [value for value in values if value == value]  # noqa: PLR0124 - not NaN; a large integer is no double
        last, first = values[-1], values[0]
        least, most = min(numbers, default=math.nan), max(numbers, default=math.nan)
        found[name] = MetricFacts(last=last, first=first, min=least, max=most)
    return found


def _links(record: ExecutionRecord, records: dict[str, ExecutionRecord]) -> dict[Link, frozenset[str]]:
    relations: dict[Link, set[str]] = {link: set() for link in Link}
    for relative in record.request.relatives:
        relations[Link.PARENT if relative.relation == "parent" else Link.RERUNS].add(relative.execution_id)
    for other in records.values():
        if other.id != record.id:
            if _used(other, record):
                relations[Link.USES].add(other.id)
            if _used(record, other):
                relations[Link.USED_BY].add(other.id)
    return {link: frozenset(ids) for link, ids in relations.items() if ids}


def _used(maker: ExecutionRecord, taker: ExecutionRecord) -> bool:
    made = {file.sha256 for file in maker.job_status.outputs if file.size}
    before = maker.job_status.started and taker.job_status.started
    return bool(before and maker.job_status.started <= taker.job_status.started) and any(
        file.sha256 in made for file in taker.request.files
    )
