"""What an engine or a cluster says of a run's container, as labels that its worker gives to the flow run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prefect_executions.events import SeenLabel

_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
_ID = re.compile(r"(?:^|//)(sha256:[0-9a-f]{64})$")


def label_values(seen: Mapping[SeenLabel, object]) -> dict[str, str]:
    """Return what was *seen* as labels; what was not is no label."""
    return {name.value: str(value) for name, value in seen.items() if value}


def pod_labels(pods: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return what a cluster says of the newest of *pods* whose container has run; nothing where none has.

    *pods* are told as Kubernetes' Python clients do. What a registry gave has a
    digest; what was put on the node by hand has an id alone.
    """
    begun = [pod for pod in pods if any(one.get("image_id") for one in pod["status"].get("container_statuses") or ())]
    if not begun:
        return {}
    pod = max(begun, key=lambda one: one["metadata"]["creation_timestamp"])
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
