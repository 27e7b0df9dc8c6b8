"""Prefect's worker for Docker, which tells the run what the engine says of its container before it starts it.

Law: it changes nothing of how Prefect runs a flow, and what it cannot find out it
does not tell; no run fails for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect_docker.worker import DockerWorker

from prefect_executions.events import SeenLabel
from prefect_executions.runtimes.docker.runtime import registry_digest
from prefect_executions.runtimes.worker_labels import label_values

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_FLOW_RUN = "io.prefect.flow-run-id"  # Prefect's own label of the container


class ExecutionsDockerWorker(DockerWorker):
    """A worker for Docker whose executions know their image and container."""

    type = "executions-docker"
    _display_name = "Docker, with records"
    _description = "Execute Methods in Docker containers and record which image they really ran in."

    def _create_container(self, docker_client: DockerClient, **settings: Any) -> Container:
        container: Container = super()._create_container(docker_client, **settings)
        flow_run_id = container.labels.get(_FLOW_RUN)
        if flow_run_id:
            try:
                with get_client(sync_client=True) as client:
                    told = seen(docker_client, container, str(settings.get("image", "")))
                    client.update_flow_run_labels(UUID(flow_run_id), {**told})
            except Exception as error:  # noqa: BLE001 - a run is worth more than what is known of its container
                self._logger.warning("What the engine says of flow run %s is not told: %s", flow_run_id, error)
        return container


def seen(docker_client: DockerClient, container: Container, image: str) -> dict[str, str]:
    """Return what the engine says of *container*, which was asked for with *image*, as labels of its flow run.

    An image that came from no registry has an id and no digest.
    """
    api: Any = docker_client.api  # the published types leave functions out
    told = api.inspect_image(container.attrs["Image"])
    digest = registry_digest(image, told)
    return label_values(
        {
            SeenLabel.IMAGE: image,
            SeenLabel.IMAGE_ID: told["Id"],
            SeenLabel.IMAGE_DIGEST: digest and digest.partition("@")[2],
            SeenLabel.CONTAINER: container.id,
            SeenLabel.NODE: api.info().get("Name"),
        }
    )
