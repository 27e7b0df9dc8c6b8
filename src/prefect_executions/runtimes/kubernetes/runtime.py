"""Scripts in pods of a Kubernetes cluster, reached by its API alone: no disk is shared unless the operator says so.

The cluster keeps all there is to know of a run: its Job, by its name, and its
pod. So a caller that was killed finds its run again from any machine that
reaches the cluster.

Law: what a plan says is what the API server took. It is asked when the plan is
made; what it would leave out or change is a refusal.
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
"""Seconds that a pod keeps what its script left, for a caller that comes back."""

_LARGEST = 1_000_000  # bytes; Kubernetes keeps no Secret above 1 MiB, and its store no object above 1.5 MiB
_TAKEN = 409


class KubernetesRuntime:
    """Runs scripts with ``/bin/sh`` of an image, each in a Job of its own."""

    name = "kubernetes"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: f"the script begins in it; seen as `{DATA}`; brought there and back, or shared by a claim",
            Capability.ENVIRONMENT: "with the image's own and `KUBERNETES_…`, and nothing of the worker; 1 MB",
            Capability.SECRETS: "in a Secret of the namespace, which is there until the run is discarded",
            Capability.IMAGE: "pulled by the node, by policy; pinned only if it is named by its digest",
            Capability.USER: "an id, `1000` or `1000:1000`; otherwise the image's own user",
            Capability.OPEN_NETWORK: "the pod's own, or the node's where the operator says `host`",
            Capability.CPUS: "a share of time (CFS quota), and reserved",
            Capability.MEMORY: "of the script's container, and reserved",
            Capability.GPUS: f"where nodes offer `{GPU}`",
            Capability.TIME_LIMIT: "in seconds, rounded up; "
            "SIGTERM, then SIGKILL, to every process (the image's `sleep`)",
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
        """Speak to the cluster of *kubeconfig*, else ``KUBECONFIG``, else the pod we are in, else ``~/.kube/config``.

        Raises:
            InfrastructureError: If it does not answer.
        """
        self._cluster = Cluster(kubeconfig)
        self._host_network = host_network
        self._claim = claim
        self._keep = keep
        try:
            self._cluster.ask("get", "/version")
        except Refused as error:
            raise InfrastructureError(f"The Kubernetes cluster does not let us in: {error}") from error

    @classmethod
    def open(cls, options: RuntimeOptions) -> KubernetesRuntime:
        """Return the runtime with *options*."""
        network = options.open_network
        if network not in {None, "host"}:
            raise RequestError(f"Kubernetes has no network '{network}'; name none for the pod's own, or 'host'")
        return cls(options.engine, host_network=network == "host", claim=options.claim)

    def close(self) -> None:
        """Close the connections; runs go on."""
        self._cluster.close()

    def mount_path(self, data: Path) -> str:  # noqa: ARG002 - it is seen alike whatever its path is here
        """Return `DATA`."""
        return DATA

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan of *request*, as the API server takes it, and write it into the folder *into*."""
        reasons = [*common_reasons(request, self.capabilities), *self._reasons(request)]
        if reasons:
            raise refusal(self.name, request, reasons)
        spec = job_manifest(request, claim=self._claim, host_network=self._host_network, keep=self._keep)
        tried = spec | {"metadata": {**spec["metadata"], "name": None, "generateName": f"{request.id[:50]}-"}}
        self._created(request, spec, tried, dry_run="All")
        digest = request.image if request.image and "@sha256:" in request.image else None
        names = tuple(sorted(request.secrets))
        plan = Plan(runtime=self.name, request=request, secret_names=names, image_digest=digest, spec=spec)
        plan.write(into)
        return plan

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:  # noqa: ARG002 - a node pulls by digest
        """Return *digest*: whether it can be pulled shows when a pod is started."""
        return digest

    def run(self, plan: Plan) -> PodRun:
        """Create the Job of *plan*, and return; its pod gets its data as soon as it waits for it."""
        full_environment(plan)  # refuses a plan without its secrets
        job = self._created(plan.request, plan.spec, plan.spec)
        try:
            self._cluster.ask("post", "core/secrets", secret_manifest(plan.request, job))
        except Refused as error:
            Job(self._cluster, plan.id).remove()
            raise refusal(self.name, plan.request, [f"secrets: {error}"]) from error
        return PodRun(self._cluster, plan.id)

    def find(self, run_id: str) -> PodRun:
        """Return the run with this id; if its pod still waits for its data, it gets it from here."""
        if Job(self._cluster, _named(run_id)).look() is None:
            raise NotFoundError(f"The namespace {self._cluster.namespace} has no Job of a run {run_id}")
        return PodRun(self._cluster, run_id)

    def _created(
        self, request: RunRequest, spec: Mapping[str, Any], body: Mapping[str, Any], **wishes: str
    ) -> dict[str, Any]:
        """Create the Job, or only see whether that is possible; what the server drops is refused."""
        try:
            job = self._cluster.ask("post", "batch/jobs", body, **wishes)
        except Refused as error:
            if error.status == _TAKEN:
                raise PlanError(
                    f"A run with the id {request.id} was started before; find it, or use another id"
                ) from error
            raise refusal(self.name, request, [str(error)]) from error
        dropped = [f"{at}: the cluster drops or changes it" for at in dropped_fields(spec["spec"], job["spec"])]
        if dropped:
            if not wishes:
                Job(self._cluster, request.id).remove()
            raise refusal(self.name, request, dropped)
        return job

    def _reasons(self, request: RunRequest) -> Iterator[str]:
        if request.image is None:
            yield "image: none is named, and a container needs one"
        if request.user is not None and not USER.fullmatch(request.user):
            yield f"user: {request.user!r} is no number, and Kubernetes takes no names"
        sizes = [len(value.get_secret_value().encode(errors="replace")) for value in request.secrets.values()]
        if len(request.script.encode(errors="replace")) + sum(sizes) > _LARGEST:
            yield f"secrets: with the script they are more than {_LARGEST} bytes, and Kubernetes keeps no larger Secret"
        if sum(len(value.encode(errors="replace")) for value in request.environment.values()) > _LARGEST:
            yield f"environment: all together is more than {_LARGEST} bytes; give long values as files"
        if self._claim is not None and not request.data.is_relative_to(self._claim.root):
            yield f"data folder: {request.data} is not below {self._claim.root}, which {self._claim.name} shares"
        elif self._claim is None and request.data.is_dir():
            yield from (f"data folder: {path} is no file, folder or link" for path in unsendable(request.data))
        yield from self._reasons_of_nodes(request)

    def _reasons_of_nodes(self, request: RunRequest) -> Iterator[str]:
        limits = request.resources
        asked = {"cpus": (limits.cpus, "cpu"), "memory": (limits.memory, "memory"), "gpus": (limits.gpus, GPU)}
        if not any(value for value, _ in asked.values()):
            return
        with suppress(Refused):  # who may not see the nodes lets the cluster decide
            nodes = self._cluster.ask("get", "/api/v1/nodes")["items"]
            for word, (value, kind) in asked.items():
                most = max(
                    (parse_quantity(node["status"]["allocatable"].get(kind, 0)) or 0 for node in nodes), default=0
                )
                if value is not None and value > most:
                    yield f"{word}: {value:g} were asked for, and no node has more than {most:f}"


def _named(name: str) -> str:
    return check_run_id(name)
