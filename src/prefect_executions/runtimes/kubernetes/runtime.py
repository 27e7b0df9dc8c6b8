"""The Kubernetes runtime: scripts in pods, through the cluster's API; no disk is shared unless the operator sets one.

The cluster keeps all state of a run: its Job, by its name, and its pod. So a caller
that was killed finds its run again from any machine that can reach the cluster.

Law: a plan states what the API server accepted. A dry run shows that when the plan
is made; a field that the server would drop or change is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefect_executions.errors import InfrastructureError, NotFoundError, PlanError, RequestError
from prefect_executions.runtimes.interface import (
    DATA,
    Capability,
    Plan,
    RunRequest,
    RuntimeOptions,
    SharedClaim,
    check_run_id,
    common_reasons,
    full_environment,
    refusal,
)
from prefect_executions.runtimes.kubernetes.api import Cluster, Refused
from prefect_executions.runtimes.kubernetes.job import Job
from prefect_executions.runtimes.kubernetes.manifest import (
    GPU,
    USER,
    dropped_fields,
    job_manifest,
    parse_quantity,
    secret_manifest,
)
from prefect_executions.runtimes.kubernetes.run import PodRun
from prefect_executions.runtimes.kubernetes.transfer import unsendable

KEEP = 24 * 3600.0
"""Seconds that a pod keeps the script's data for a caller that was killed and returns."""

_MAX_SECRET = 1_000_000  # bytes; Kubernetes stores no Secret above 1 MiB, and no object above 1.5 MiB
_CONFLICT = 409


class KubernetesRuntime:
    """Runs each script with ``/bin/sh`` of an image, in a Job of its own."""

    name = "kubernetes"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: f"the script starts in it; mounted at `{DATA}`; "
            "copied to and from the pod, or shared through a volume claim",
            Capability.ENVIRONMENT: "with the variables of the image and `KUBERNETES_…`, "
            "and none of the worker's; at most 1 MB",
            Capability.SECRETS: "in a Secret of the namespace, which exists until the run is discarded",
            Capability.IMAGE: "pulled by the node, as the pull policy says; pinned only if given by its digest",
            Capability.USER: "an id, `1000` or `1000:1000`; the image's own user by default",
            Capability.OPEN_NETWORK: "the pod's own, or the node's if the operator sets `host`",
            Capability.CPUS: "a share of CPU time (CFS quota), which is also reserved",
            Capability.MEMORY: "limit of the script's container, which is also reserved",
            Capability.GPUS: f"if nodes offer `{GPU}`",
            Capability.TIME_LIMIT: "in seconds, rounded up; "
            "SIGTERM, then SIGKILL, to every process (uses the image's `sleep`)",
        }
    )

    def __init__(
        self,
        kubeconfig: str | None = None,
        *,
        host_network: bool = False,
        claim: SharedClaim | None = None,
        keep: float = KEEP,
    ) -> None:
        """Connect to the cluster of *kubeconfig*, else ``KUBECONFIG``, else the pod around us, else ``~/.kube/config``.

        Raises:
            InfrastructureError: If it is unavailable.
        """
        self._cluster = Cluster(kubeconfig)
        self._host_network = host_network
        self._claim = claim
        self._keep = keep
        try:
            self._cluster.request("get", "/version")
        except Refused as error:
            raise InfrastructureError(f"The Kubernetes cluster refuses access: {error}") from error

    @classmethod
    def open(cls, options: RuntimeOptions) -> KubernetesRuntime:
        """Return the runtime with *options*."""
        network = options.open_network
        if network not in {None, "host"}:
            raise RequestError(f"Kubernetes has no network '{network}'; leave it out for the pod's own, or use 'host'")
        return cls(options.engine, host_network=network == "host", claim=options.claim)

    def close(self) -> None:
        """Close connections; runs continue."""
        self._cluster.close()

    def mount_path(self, data: Path) -> str:  # noqa: ARG002 - every data folder is mounted there
        """Return `DATA`."""
        return DATA

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan of *request*, as the API server accepts it, and write it into the folder *into*."""
        reasons = [*common_reasons(request, self.capabilities), *self._reasons(request)]
        if reasons:
            raise refusal(self.name, request, reasons)
        spec = job_manifest(request, claim=self._claim, host_network=self._host_network, keep=self._keep)
        trial = spec | {"metadata": {**spec["metadata"], "name": None, "generateName": f"{request.id[:50]}-"}}
        self._create(request, spec, trial, dry_run="All")
        digest = request.image if request.image and "@sha256:" in request.image else None
        names = tuple(sorted(request.secrets))
        plan = Plan(runtime=self.name, request=request, secret_names=names, image_digest=digest, spec=spec)
        plan.write(into)
        return plan

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:  # noqa: ARG002 - a node pulls by digest
        """Return *digest*; the node pulls it when a pod starts."""
        return digest

    def run(self, plan: Plan) -> PodRun:
        """Create the Job of *plan*, and return; a background thread sends the data as soon as the pod waits for it."""
        full_environment(plan)  # refuses a plan without its secrets
        job = self._create(plan.request, plan.spec, plan.spec)
        try:
            self._cluster.request("post", "core/secrets", secret_manifest(plan.request, job))
        except Refused as error:
            Job(self._cluster, plan.id).remove()
            raise refusal(self.name, plan.request, [f"secrets: {error}"]) from error
        return PodRun(self._cluster, plan.id)

    def find(self, run_id: str) -> PodRun:
        """Return the run with this id; if its pod waits for its data, this process sends it."""
        if Job(self._cluster, check_run_id(run_id)).snapshot() is None:
            raise NotFoundError(f"The namespace {self._cluster.namespace} has no Job of a run {run_id}")
        return PodRun(self._cluster, run_id)

    def _create(
        self, request: RunRequest, spec: Mapping[str, Any], body: Mapping[str, Any], **options: str
    ) -> dict[str, Any]:
        """Create the Job, or try it in a dry run; refuse the request if the server drops or changes a field."""
        try:
            job = self._cluster.request("post", "batch/jobs", body, **options)
        except Refused as error:
            if error.status == _CONFLICT:
                raise PlanError(
                    f"A run with the id {request.id} was started before; find it, or use another id"
                ) from error
            raise refusal(self.name, request, [str(error)]) from error
        dropped = [f"{path}: the cluster drops or changes it" for path in dropped_fields(spec["spec"], job["spec"])]
        if dropped:
            if not options:
                Job(self._cluster, request.id).remove()
            raise refusal(self.name, request, dropped)
        return job

    def _reasons(self, request: RunRequest) -> Iterator[str]:
        if request.image is None:
            yield "image: a container needs an image, and none is given"
        if request.user is not None and not USER.fullmatch(request.user):
            yield f"user: {request.user!r} is not a number, and Kubernetes accepts no names"
        sizes = [len(value.get_secret_value().encode(errors="replace")) for value in request.secrets.values()]
        if len(request.script.encode(errors="replace")) + sum(sizes) > _MAX_SECRET:
            yield f"secrets: with the script they exceed {_MAX_SECRET} bytes, the limit of a Kubernetes Secret"
        if sum(len(value.encode(errors="replace")) for value in request.environment.values()) > _MAX_SECRET:
            yield f"environment: the total exceeds {_MAX_SECRET} bytes; give long values as files"
        if self._claim is not None and not request.data.is_relative_to(self._claim.root):
            yield f"data folder: {request.data} is not below {self._claim.root}, the folder of {self._claim.name}"
        elif self._claim is None and request.data.is_dir():
            yield from (f"data folder: {path} is not a file, folder or link" for path in unsendable(request.data))
        yield from self._node_reasons(request)

    def _node_reasons(self, request: RunRequest) -> Iterator[str]:
        limits = request.resources
        limited = {"cpus": (limits.cpus, "cpu"), "memory": (limits.memory, "memory"), "gpus": (limits.gpus, GPU)}
        if not any(value for value, _ in limited.values()):
            return
        with suppress(Refused):  # without permission to read nodes, the cluster decides
            nodes = self._cluster.request("get", "/api/v1/nodes")["items"]
            for word, (value, kind) in limited.items():
                largest = max(
                    (parse_quantity(node["status"]["allocatable"].get(kind, 0)) or 0 for node in nodes), default=0
                )
                if value is not None and value > largest:
                    yield f"{word}: {value:g} were requested, and no node has more than {largest:f}"
