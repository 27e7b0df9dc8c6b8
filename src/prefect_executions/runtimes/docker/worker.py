"""A Prefect worker for Docker that labels each flow run with its container and image before the start.

Law: it does not change how Prefect runs a flow. A fact that it cannot find is left
out, and no run fails because of that.
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
    """A Docker worker whose executions record their image and container."""

    type = "executions-docker"
    _display_name = "Docker, with records"
    _description = "Execute Methods in Docker containers and record which image they really ran in."

    def _create_container(self, docker_client: DockerClient, **settings: Any) -> Container:
        container: Container = super()._create_container(docker_client, **settings)
        flow_run_id = container.labels.get(_FLOW_RUN)
        if flow_run_id:
            try:
                with get_client(sync_client=True) as client:
                    labels = seen(docker_client, container, str(settings.get("image", "")))
                    client.update_flow_run_labels(UUID(flow_run_id), {**labels})
            except Exception as error:  # noqa: BLE001 - a missing label must not stop the run
                self._logger.warning("Flow run %s gets no labels of its container: %s", flow_run_id, error)
        return container


def seen(docker_client: DockerClient, container: Container, image: str) -> dict[str, str]:
    """Return the labels for *container*, which was requested with *image*.

    An image that did not come from a registry has an id and no digest.
    """
    api: Any = docker_client.api  # the published types leave functions out
    details = api.inspect_image(container.attrs["Image"])
    digest = registry_digest(image, details)
    return label_values(
        {
            SeenLabel.IMAGE: image,
            SeenLabel.IMAGE_ID: details["Id"],
            SeenLabel.IMAGE_DIGEST: digest and digest.partition("@")[2],
            SeenLabel.CONTAINER: container.id,
            SeenLabel.NODE: api.info().get("Name"),
        }
    )
