"""The manifests of a run: its Job and Secret; and the check that a cluster accepted them unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import ceil
from typing import Any

from prefect_executions.runtimes.container_init import OWN_FOLDER, entry_script
from prefect_executions.runtimes.interface import (
    DATA,
    GRACE,
    LABEL_PREFIX,
    RUN_LABEL,
    Pull,
    Resources,
    RunRequest,
    SharedClaim,
    plan_environment,
)
from prefect_executions.runtimes.kubernetes.job import DATA_FOLDER, EXPIRED, KEEPER, RECEIVER, SCRIPT

GPU = "nvidia.com/gpu"
"""Kubernetes' name of a GPU, with NVIDIA's device plug-in."""

SCRIPT_KEY = "entrypoint.sh"
"""The key of the script in the run's Secret; all other keys are variables."""

USER = re.compile(r"([0-9]+)(?::([0-9]+))?")
"""A user as Kubernetes accepts it: an id, and optionally a group id."""

_SCRIPTS = "/ccp_script"
_PULL = {Pull.MISSING: "IfNotPresent", Pull.ALWAYS: "Always", Pull.NEVER: "Never"}
_RECEIVER = f"""\
trap 'exit 143' TERM
until [ -e {OWN_FOLDER}/ready ]; do sleep 0.2; done
"""
_KEEPER = f"""\
trap 'exit 0' TERM
kept=0
while [ "$kept" -lt {{keep}} ]; do
  sleep 1
  if [ -e {OWN_FOLDER}/over ]; then kept=$((kept + 1)); fi
done
"""
# The containers that move data request no share of the node.
_SMALL = {"requests": {"cpu": "0", "memory": "0"}, "limits": {"memory": "256Mi"}}
_QUANTITY = re.compile(r"([0-9.]+)([munkKMGTPE]?)(i?)")
_POWER = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def job_manifest(request: RunRequest, *, claim: SharedClaim | None, host_network: bool, keep: float) -> dict[str, Any]:
    """Return the manifest of the Job for *request*, complete except for the values of secrets."""
    labels = {RUN_LABEL: request.id, f"{LABEL_PREFIX}.execution": request.execution_id}
    annotations = {DATA_FOLDER: str(request.data)} if claim is None else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": request.id, "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": 0,
            "parallelism": 1,
            "completions": 1,
            "template": {"metadata": {"labels": labels}, "spec": _pod(request, claim, keep, host_network=host_network)},
        },
    }


def secret_manifest(request: RunRequest, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a run's Secret, which Kubernetes removes together with *job*."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": request.id, "uid": job["metadata"]["uid"]}
    values = {name: value.get_secret_value() for name, value in request.secrets.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "immutable": True,
        "metadata": {"name": request.id, "labels": {RUN_LABEL: request.id}, "ownerReferences": [owner]},
        "stringData": {SCRIPT_KEY: request.script, **values},
    }


def dropped_fields(sent: object, received: object, path: str = "") -> Iterator[str]:
    """Yield the paths at which *received*, the cluster's version of *sent*, lacks or changes a field."""
    if isinstance(sent, Mapping):
        members = received if isinstance(received, Mapping) else {}
        for name, value in sent.items():
            yield from dropped_fields(value, members.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(sent, list):
        items = received if isinstance(received, list) else []
        for number, value in enumerate(sent):
            yield from dropped_fields(value, _counterpart(value, number, items), f"{path}[{number}]")
    elif sent != received and not (sent == "" and received is None) and not _equal(sent, received):
        yield path


def parse_quantity(text: object) -> Decimal | None:
    """Return the number of a Kubernetes quantity such as ``500m`` or ``2Gi``; None if *text* is not a quantity."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, unit, binary = match.groups()
    return Decimal(number) * (Decimal(1024) if binary else Decimal(1000)) ** _POWER[unit]


def _pod(request: RunRequest, claim: SharedClaim | None, keep: float, *, host_network: bool) -> dict[str, Any]:
    shared = [{"name": "own", "mountPath": OWN_FOLDER}]
    volumes: list[dict[str, Any]] = [
        {"name": "own", "emptyDir": {}},
        {"name": "script", "secret": {"secretName": request.id, "items": [{"key": SCRIPT_KEY, "path": SCRIPT_KEY}]}},
    ]
    data = {"name": "own", "mountPath": DATA, "subPath": "data"}
    if claim is not None:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim.name}})
        data = {"name": "data", "mountPath": DATA}
        sub_path = request.data.relative_to(claim.root).as_posix()
        data |= {} if sub_path == "." else {"subPath": sub_path}
    scripts = {"name": "script", "mountPath": _SCRIPTS, "readOnly": True}
    limit = request.resources.time_limit
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ceil(GRACE),
        "volumes": volumes,
        "initContainers": [_container(request, RECEIVER, _RECEIVER) | {"resources": _SMALL, "volumeMounts": shared}],
        "containers": [
            _container(request, KEEPER, _KEEPER.format(keep=ceil(keep)))
            | {"resources": _SMALL, "volumeMounts": shared},
            _script(request) | {"volumeMounts": [*shared, data, scripts]},
        ],
    }
    if limit is not None:
        # If the script has stopped the timer in its container, the node's deadline remains.
        pod["activeDeadlineSeconds"] = ceil(limit) + ceil(GRACE) + ceil(keep)
    return pod | ({"hostNetwork": True} if host_network else {})


def _script(request: RunRequest) -> dict[str, Any]:
    init = entry_script(
        f"{_SCRIPTS}/{SCRIPT_KEY} >{OWN_FOLDER}/stdout 2>{OWN_FOLDER}/stderr",
        time_limit=request.resources.time_limit,
        expired=f"echo {EXPIRED} >/dev/termination-log",
        # No process may write after the file that marks the end.
        last=f"kill -KILL -1\n: >{OWN_FOLDER}/over\n",
    )
    env = [{"name": name, "value": _literal(value)} for name, value in plan_environment(request).items()]
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": request.id, "key": name}}}
        for name in sorted(request.secrets)
    ]
    limits = _limits(request.resources)
    container = _container(request, SCRIPT, init) | {"workingDir": DATA, "env": env + secrets}
    return container | ({"resources": {"limits": limits, "requests": limits}} if limits else {})


def _container(request: RunRequest, name: str, script: str) -> dict[str, Any]:
    security: dict[str, Any] = {"allowPrivilegeEscalation": False}
    if request.user is not None and (match := USER.fullmatch(request.user)):
        security["runAsUser"] = int(match[1])
        security |= {} if match[2] is None else {"runAsGroup": int(match[2])}
    return {
        "name": name,
        "image": request.image,
        "imagePullPolicy": _PULL[request.pull],
        "command": ["/bin/sh", "-c", _literal(script)],
        "securityContext": security,
    }


def _limits(limits: Resources) -> dict[str, str]:
    values = {}
    if limits.cpus is not None:
        values["cpu"] = f"{ceil(limits.cpus * 1000)}m"
    if limits.memory is not None:
        values["memory"] = str(limits.memory)
    if limits.gpus is not None:
        values[GPU] = str(limits.gpus)
    return values


def _literal(text: str) -> str:
    """Escape *text*: Kubernetes replaces ``$(NAME)`` by variables, and $$ by $."""
    return text.replace("$", "$$")


def _counterpart(value: object, number: int, items: list[Any]) -> object:
    """Return the item for *value*: by its name, if it has one, because a cluster may insert items."""
    if isinstance(value, Mapping) and "name" in value and "mountPath" not in value:
        return next((item for item in items if isinstance(item, Mapping) and item.get("name") == value["name"]), None)
    return items[number] if number < len(items) else None


def _equal(sent: object, received: object) -> bool:
    number = parse_quantity(sent)
    return number is not None and number == parse_quantity(received)
