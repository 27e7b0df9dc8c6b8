"""The Job that a plan for Kubernetes is, and what a cluster makes of it: values, to be read before it is started."""

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
"""What Kubernetes calls a GPU, where NVIDIA's device plug-in offers them."""

SCRIPT_KEY = "entrypoint.sh"
"""The member of the run's Secret that is the script; all others are variables."""

USER = re.compile(r"([0-9]+)(?::([0-9]+))?")
"""A user as Kubernetes takes it."""

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
# What carries the data takes its part of the node only where there is one to take.
_SMALL = {"requests": {"cpu": "0", "memory": "0"}, "limits": {"memory": "256Mi"}}
_QUANTITY = re.compile(r"([0-9.]+)([munkKMGTPE]?)(i?)")
_POWER = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def job_manifest(request: RunRequest, *, claim: SharedClaim | None, host_network: bool, keep: float) -> dict[str, Any]:
    """Return the body of the request that creates the Job of *request*, complete but for the values of secrets."""
    labels = {RUN_LABEL: request.id, f"{LABEL_PREFIX}.execution": request.execution_id}
    notes = {DATA_FOLDER: str(request.data)} if claim is None else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": request.id, "labels": labels, "annotations": notes},
        "spec": {
            "backoffLimit": 0,
            "parallelism": 1,
            "completions": 1,
            "template": {"metadata": {"labels": labels}, "spec": _pod(request, claim, keep, host_network=host_network)},
        },
    }


def secret_manifest(request: RunRequest, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Secret of a run, which is removed with its Job *job*."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": request.id, "uid": job["metadata"]["uid"]}
    values = {name: value.get_secret_value() for name, value in request.secrets.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "immutable": True,
        "metadata": {"name": request.id, "labels": {RUN_LABEL: request.id}, "ownerReferences": [owner]},
        "stringData": {SCRIPT_KEY: request.script, **values},
    }


def dropped_fields(asked: object, told: object, at: str = "") -> Iterator[str]:
    """Yield where *told*, what a cluster made of *asked*, lacks something of it; more may be there."""
    if isinstance(asked, Mapping):
        members = told if isinstance(told, Mapping) else {}
        for name, value in asked.items():
            yield from dropped_fields(value, members.get(name), f"{at}.{name}" if at else str(name))
    elif isinstance(asked, list):
        there = told if isinstance(told, list) else []
        for number, value in enumerate(asked):
            yield from dropped_fields(value, _same(value, number, there), f"{at}[{number}]")
    elif asked != told and not (asked == "" and told is None) and not _equal(asked, told):
        yield at


def parse_quantity(told: object) -> Decimal | None:
    """Return a number as Kubernetes writes it, None when it is none."""
    found = _QUANTITY.fullmatch(str(told))
    if found is None:
        return None
    number, unit, binary = found.groups()
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
        below = request.data.relative_to(claim.root).as_posix()
        data |= {} if below == "." else {"subPath": below}
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
        # Where the script has ended its own clock, the node's is the last.
        pod["activeDeadlineSeconds"] = ceil(limit) + ceil(GRACE) + ceil(keep)
    return pod | ({"hostNetwork": True} if host_network else {})


def _script(request: RunRequest) -> dict[str, Any]:
    first = entry_script(
        f"{_SCRIPTS}/{SCRIPT_KEY} >{OWN_FOLDER}/stdout 2>{OWN_FOLDER}/stderr",
        time_limit=request.resources.time_limit,
        expired=f"echo {EXPIRED} >/dev/termination-log",
        # Nothing is written after it was said that all is.
        last=f"kill -KILL -1\n: >{OWN_FOLDER}/over\n",
    )
    told = [{"name": name, "value": _literal(value)} for name, value in plan_environment(request).items()]
    withheld = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": request.id, "key": name}}}
        for name in sorted(request.secrets)
    ]
    limits = _limits(request.resources)
    container = _container(request, SCRIPT, first) | {"workingDir": DATA, "env": told + withheld}
    return container | ({"resources": {"limits": limits, "requests": limits}} if limits else {})


def _container(request: RunRequest, name: str, script: str) -> dict[str, Any]:
    security: dict[str, Any] = {"allowPrivilegeEscalation": False}
    if request.user is not None and (found := USER.fullmatch(request.user)):
        security["runAsUser"] = int(found[1])
        security |= {} if found[2] is None else {"runAsGroup": int(found[2])}
    return {
        "name": name,
        "image": request.image,
        "imagePullPolicy": _PULL[request.pull],
        "command": ["/bin/sh", "-c", _literal(script)],
        "securityContext": security,
    }


def _limits(limits: Resources) -> dict[str, str]:
    told = {}
    if limits.cpus is not None:
        told["cpu"] = f"{ceil(limits.cpus * 1000)}m"
    if limits.memory is not None:
        told["memory"] = str(limits.memory)
    if limits.gpus is not None:
        told[GPU] = str(limits.gpus)
    return told


def _literal(text: str) -> str:
    """*text* as Kubernetes will give it, which puts variables in the place of ``$(NAME)`` and $ in the place of $$."""
    return text.replace("$", "$$")


def _same(value: object, number: int, there: list[Any]) -> object:
    """The member of a list that is meant: by its name, if it has one, because others may have been put before it."""
    if isinstance(value, Mapping) and "name" in value and "mountPath" not in value:
        return next((one for one in there if isinstance(one, Mapping) and one.get("name") == value["name"]), None)
    return there[number] if number < len(there) else None


def _equal(asked: object, told: object) -> bool:
    number = parse_quantity(asked)
    return number is not None and number == parse_quantity(told)
