"""Labels of a flow run that describe its container: our workers set them from the engine or the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prefect_executions.events import SeenLabel

_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
_ID = re.compile(r"(?:^|//)(sha256:[0-9a-f]{64})$")


def label_values(facts: Mapping[SeenLabel, object]) -> dict[str, str]:
    """Return *facts* as labels; facts without a value are left out."""
    return {name.value: str(value) for name, value in facts.items() if value}


def pod_labels(pods: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the labels of the newest pod whose container has started; empty if there is none.

    *pods* are dictionaries of Kubernetes' Python clients. An image from a registry has
    a digest; one that was loaded onto the node has only an id.
    """
    started = [
        pod for pod in pods if any(status.get("image_id") for status in pod["status"].get("container_statuses") or ())
    ]
    if not started:
        return {}
    pod = max(started, key=lambda pod: pod["metadata"]["creation_timestamp"])
    container = pod["status"]["container_statuses"][0]
    digest, image_id = _DIGEST.search(container["image_id"]), _ID.search(container["image_id"])
    return label_values(
        {
            SeenLabel.IMAGE: container.get("image"),
            SeenLabel.IMAGE_ID: image_id and image_id[1],
            SeenLabel.IMAGE_DIGEST: digest and digest[1],
            SeenLabel.CONTAINER: (container.get("container_id") or "").rpartition("/")[2],
            SeenLabel.POD: pod["metadata"]["name"],
            SeenLabel.NODE: pod["spec"].get("node_name"),
        }
    )
