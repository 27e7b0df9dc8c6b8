"""Prefect's worker for Kubernetes, which tells the run what the cluster says of its pod.

Law: it changes nothing of how Prefect runs a flow, and what it cannot find out it
does not tell; no run fails for that.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kubernetes_asyncio.client import CoreV1Api
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration, KubernetesWorkerResult

from prefect_executions.runtimes.worker_labels import pod_labels

if TYPE_CHECKING:
    import anyio.abc
    from prefect.client.schemas.objects import FlowRun

_PATIENCE = 600.0  # seconds; an image may have to be pulled first
_ASK = 1.0
_JOB = "job-name"  # Kubernetes' own label of a job's pods


class ExecutionsKubernetesWorker(KubernetesWorker):
    """A worker for Kubernetes whose executions know their image, pod and node."""

    type = "executions-kubernetes"
    _display_name = "Kubernetes, with records"
    _description = "Execute Methods in Kubernetes jobs and record which image they really ran in."

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> KubernetesWorkerResult:
        """Create the job as Prefect's worker does, and tell of its pod once its container runs."""
        result = await super().run(flow_run, configuration, task_status)
        try:
            told = await self._seen(result.identifier, configuration)
            if told:
                await self.client.update_flow_run_labels(flow_run.id, {**told})
        except Exception as error:  # noqa: BLE001 - a run is worth more than what is known of its pod
            self._logger.warning("What the cluster says of flow run %s is not told: %s", flow_run.id, error)
        return result

    async def _seen(self, identifier: str, configuration: KubernetesWorkerJobConfiguration) -> dict[str, str]:
        """What is said of the pod of this job, and of no other that the same flow run was sent to before."""
        job = identifier.rpartition(":")[2]
        until = time.monotonic() + _PATIENCE
        async with self._get_configured_kubernetes_client(configuration) as client:
            while time.monotonic() < until:
                pods = await CoreV1Api(client).list_namespaced_pod(
                    configuration.namespace, label_selector=f"{_JOB}={job}"
                )
                told = pod_labels(pod.to_dict() for pod in pods.items)
                if told:
                    return told
                await asyncio.sleep(_ASK)
        return {}
