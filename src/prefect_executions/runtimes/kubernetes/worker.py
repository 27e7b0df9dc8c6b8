"""A Prefect worker for Kubernetes that labels each flow run with its pod, node and image.

Law: it does not change how Prefect runs a flow. A fact that it cannot find is left
out, and no run fails because of that.
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

_POD_TIMEOUT = 600.0  # seconds; the image may have to be pulled first
_POLL = 1.0  # seconds
_JOB = "job-name"  # Kubernetes' own label of a job's pods


class ExecutionsKubernetesWorker(KubernetesWorker):
    """A Kubernetes worker whose executions record their image, pod and node."""

    type = "executions-kubernetes"
    _display_name = "Kubernetes, with records"
    _description = "Execute Methods in Kubernetes jobs and record which image they really ran in."

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> KubernetesWorkerResult:
        """Create the job as Prefect's worker does, and label the flow run once the container runs."""
        result = await super().run(flow_run, configuration, task_status)
        try:
            labels = await self._labels(result.identifier, configuration)
            if labels:
                await self.client.update_flow_run_labels(flow_run.id, {**labels})
        except Exception as error:  # noqa: BLE001 - a missing label must not stop the run
            self._logger.warning("Flow run %s gets no labels of its pod: %s", flow_run.id, error)
        return result

    async def _labels(self, identifier: str, configuration: KubernetesWorkerJobConfiguration) -> dict[str, str]:
        """Return the labels of this job's pod, and of no earlier job of the same flow run."""
        job = identifier.rpartition(":")[2]
        until = time.monotonic() + _POD_TIMEOUT
        async with self._get_configured_kubernetes_client(configuration) as client:
            while time.monotonic() < until:
                pods = await CoreV1Api(client).list_namespaced_pod(
                    configuration.namespace, label_selector=f"{_JOB}={job}"
                )
                labels = pod_labels(pod.to_dict() for pod in pods.items)
                if labels:
                    return labels
                await asyncio.sleep(_POLL)
        return {}
