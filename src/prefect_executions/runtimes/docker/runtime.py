"""The Docker runtime: scripts in containers, through the engine's API.

The engine keeps all state of a run: the container, found by its label, its status
and its logs. So a caller that was killed finds its run again from any machine that
can reach the engine.

Law: a plan states what the engine accepted. A warning of the engine means that it
ignored something, and counts as a refusal.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any

from docker import APIClient
from docker.errors import APIError, ImageNotFound
from docker.utils import kwargs_from_env, parse_repository_tag

from prefect_executions.errors import InfrastructureError, NotFoundError, PlanError
from prefect_executions.runtimes.container_init import OWN_FOLDER, entry_script
from prefect_executions.runtimes.docker.run import ContainerRun, translate_errors
from prefect_executions.runtimes.interface import (
    DATA,
    LABEL_PREFIX,
    RUN_LABEL,
    Capability,
    Network,
    Plan,
    Pull,
    RunRequest,
    RuntimeOptions,
    check_run_id,
    common_reasons,
    full_environment,
    plan_environment,
    refusal,
)

# This log driver stores bytes unchanged; the default driver replaces bytes that are not UTF-8.
_EXACT_LOGS = {"Type": "local", "Config": {"max-size": "1000g", "max-file": "1", "compress": "false"}}

# How registries report a wrong or forbidden name; engines forward it with varying codes.
_NOT_FOUND = re.compile("unknown|not found|denied|unauthorized|does not exist", re.IGNORECASE)


class DockerRuntime:
    """Runs each script with ``/bin/sh`` of an image, in a container of its own."""

    name = "docker"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: f"the script starts in it; mounted at `{DATA}`",
            Capability.ENVIRONMENT: "with the variables of the image, and none of the worker's",
            Capability.SECRETS: "in the container's configuration, which the engine keeps until the run is discarded",
            Capability.IMAGE: "pulled when the plan is made, as the pull policy says; "
            "the plan has its id, and its digest if it has one",
            Capability.USER: "a name or id in the image; the image's own user by default",
            Capability.OPEN_NETWORK: "a network of the engine that the operator chose, `bridge` by default",
            Capability.CLOSED_NETWORK: "loopback only",
            Capability.CPUS: "a share of CPU time (CFS quota)",
            Capability.MEMORY: "limit of the whole container, without swap if the engine supports that",
            Capability.GPUS: "if the engine has NVIDIA's runtime",
            Capability.PROCESSES: "limit of the whole container",
            Capability.TIME_LIMIT: "in seconds, rounded up; "
            "SIGTERM, then SIGKILL, to every process (uses the image's `sleep`)",
        }
    )

    def __init__(self, url: str | None = None, *, open_network: str = "bridge") -> None:
        """Connect to the engine at *url*, or to the one that ``DOCKER_HOST`` and related variables name.

        Raises:
            InfrastructureError: If it is unavailable.
        """
        options = kwargs_from_env() if url is None else {"base_url": url}
        with translate_errors("the engine's version"):
            self._api = APIClient(version="auto", **options)
        self._open_network = open_network

    @classmethod
    def open(cls, options: RuntimeOptions) -> DockerRuntime:
        """Return the runtime with *options*."""
        return cls(options.engine, open_network=options.open_network or "bridge")

    def close(self) -> None:
        """Close connections; runs continue."""
        self._api.close()

    def mount_path(self, data: Path) -> str:  # noqa: ARG002 - every data folder is mounted there
        """Return `DATA`."""
        return DATA

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Pull the image of *request* if needed; return the plan, and write it into the folder *into*."""
        with translate_errors("its capabilities"):
            engine = self._api.info()
            networks = {network["Name"] for network in self._api.networks()}
        network = self._open_network if request.network is Network.OPEN else "none"
        reasons = [*common_reasons(request, self.capabilities), *_reasons_of_engine(request, engine)]
        if network not in networks:
            reasons.append(f"{request.network} network: the engine has no network '{network}'")
        if request.image is None:
            reasons.append("image: a container needs an image, and none is given")
        if request.image is None or reasons:
            raise refusal(self.name, request, reasons)
        image = self._image(request, request.image)
        digest = registry_digest(request.image, image)
        spec = _container(request, image["Id"], network, engine)
        if digest is not None:
            spec["Labels"][f"{LABEL_PREFIX}.image-digest"] = digest
        names = tuple(sorted(request.secrets))
        plan = Plan(runtime=self.name, request=request, secret_names=names, image_digest=digest, spec=spec)
        plan.write(into)
        return plan

    def ensure_image(self, image_id: str | None, digest: str | None) -> str | None:
        """Return the name of exactly this image; a missing image is pulled by its digest."""
        with translate_errors(f"the image {digest or image_id}"):
            for name in (digest, image_id):
                if name is not None and self._has(name):
                    return name
            return digest if digest is not None and self._pull_error(digest) is None else None

    def run(self, plan: Plan) -> ContainerRun:
        """Start the container of *plan*; return once it has started."""
        values = full_environment(plan)
        with translate_errors(f"the container of {plan.id}"):
            self._refuse_second_start(plan.id)
            labels = plan.spec["Labels"] | {f"{LABEL_PREFIX}.plan": sha256(plan.canonical_bytes()).hexdigest()}
            config = plan.spec | {"Env": [f"{name}={value}" for name, value in values.items()], "Labels": labels}
            container = self._create(plan, config)
            try:
                self._api.put_archive(container, "/", _own_files(plan))
                self._api.start(container)
            except APIError as error:
                self._api.remove_container(container, force=True)
                raise refusal(self.name, plan.request, [f"image: {error.explanation}"]) from error
        return ContainerRun(self._api, plan.id, container)

    def find(self, run_id: str) -> ContainerRun:
        """Return the run with this id."""
        containers = self._containers(run_id)
        if not containers:
            raise NotFoundError(f"The engine at {self._api.base_url} has no container of a run {run_id}")
        return ContainerRun(self._api, run_id, containers[0])

    def _containers(self, name: str) -> list[str]:
        with translate_errors(f"the containers of {name}"):
            containers = self._api.containers(all=True, filters={"label": f"{RUN_LABEL}={check_run_id(name)}"})
        return [container["Id"] for container in containers]

    def _refuse_second_start(self, name: str) -> None:
        if self._containers(name):
            raise PlanError(f"A run with the id {name} was started before; find it, or use another id")

    def _create(self, plan: Plan, config: Mapping[str, Any]) -> str:
        try:
            created = _typed(self._api).create_container_from_config(config, name=f"execution-{plan.id}")
        except APIError as error:
            if error.status_code == 409:  # noqa: PLR2004 - Conflict: the name is taken
                raise PlanError(
                    f"A run with the id {plan.id} was started before; find it, or use another id"
                ) from error
            raise refusal(self.name, plan.request, [str(error.explanation)]) from error
        if created.get("Warnings"):
            self._api.remove_container(created["Id"], force=True)
            raise refusal(self.name, plan.request, created["Warnings"])
        return str(created["Id"])

    def _image(self, request: RunRequest, name: str) -> dict[str, Any]:
        with translate_errors(f"the image {name}"):
            try:
                if request.pull is Pull.ALWAYS:
                    self._pull(request, name)
                return dict(_typed(self._api).inspect_image(name))
            except ImageNotFound:
                if request.pull is not Pull.MISSING:
                    raise refusal(
                        self.name, request, [f"image: {name} is not here, and the request forbids a pull"]
                    ) from None
                self._pull(request, name)
                return dict(_typed(self._api).inspect_image(name))

    def _has(self, name: str) -> bool:
        try:
            _typed(self._api).inspect_image(name)
        except ImageNotFound:
            return False
        return True

    def _pull_error(self, name: str) -> str | None:
        repository, tag = parse_repository_tag(name)
        try:
            progress = list(self._api.pull(repository, tag=tag or "latest", stream=True, decode=True))
        except APIError as error:
            return str(error.explanation)
        return next((str(entry["error"]) for entry in progress if "error" in entry), None)

    def _pull(self, request: RunRequest, name: str) -> None:
        error = self._pull_error(name)
        if error is None:
            return
        if _NOT_FOUND.search(error):
            raise refusal(self.name, request, [f"image: {name} cannot be pulled: {error}"])
        raise InfrastructureError(f"The image {name} cannot be pulled: {error}")


def _reasons_of_engine(request: RunRequest, engine: Mapping[str, Any]) -> Iterator[str]:
    limits = request.resources
    limited = {
        "cpus": (limits.cpus, "CpuCfsQuota"),
        "memory": (limits.memory, "MemoryLimit"),
        "processes": (limits.processes, "PidsLimit"),
    }
    for word, (value, ability) in limited.items():
        if value is not None and not engine.get(ability):
            yield f"{word}: the engine cannot limit them ({ability})"
    if limits.cpus is not None and limits.cpus > engine["NCPU"]:
        yield f"cpus: {limits.cpus:g} were requested, and the engine has {engine['NCPU']}"
    if limits.gpus is not None and "nvidia" not in engine.get("Runtimes", {}):
        yield "gpus: the engine has no NVIDIA runtime"
    if ":" in str(request.data) or "," in str(request.data):
        yield f"data folder: {request.data} has a character that some engines use as a separator"


def _container(request: RunRequest, image_id: str, network: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of ``POST /containers/create``, except for the values of secrets."""
    limits = request.resources
    labels = {RUN_LABEL: request.id, f"{LABEL_PREFIX}.execution": request.execution_id}
    if limits.time_limit is not None:
        labels[f"{LABEL_PREFIX}.time-limit"] = str(ceil(limits.time_limit))
    exact = "local" in engine.get("Plugins", {}).get("Log", ())
    host: dict[str, Any] = {
        "Mounts": [{"Type": "bind", "Source": str(request.data), "Target": DATA}],
        "NetworkMode": network,
        "LogConfig": _EXACT_LOGS if exact else {"Type": "json-file", "Config": {}},
        "SecurityOpt": ["no-new-privileges"],
    }
    if limits.cpus is not None:
        host["NanoCpus"] = round(limits.cpus * 1e9)
    if limits.memory is not None:
        host |= {"Memory": limits.memory, "MemorySwap": limits.memory if engine.get("SwapLimit") else -1}
    if limits.processes is not None:
        host["PidsLimit"] = limits.processes
    if limits.gpus is not None:
        host["DeviceRequests"] = [{"Driver": "nvidia", "Count": limits.gpus, "Capabilities": [["gpu"]]}]
    spec = {
        "Image": image_id,
        "Entrypoint": ["/bin/sh", f"{OWN_FOLDER}/entry.sh"],
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in plan_environment(request).items()],
        "WorkingDir": DATA,
        "Labels": labels,
        "HostConfig": host,
    }
    return spec if request.user is None else spec | {"User": request.user}


def _own_files(plan: Plan) -> bytes:
    """Return a tar of the files for the container's init process, which it gets before it starts."""
    init = entry_script(
        f"{OWN_FOLDER}/entrypoint.sh",
        time_limit=plan.request.resources.time_limit,
        expired=f": >{OWN_FOLDER}/expired",
    )
    files = {"entry.sh": init, "entrypoint.sh": plan.request.script}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        folder = tarfile.TarInfo(OWN_FOLDER.strip("/"))
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
        for name, text in files.items():
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.mode, member.size = 0o555, len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def _typed(api: APIClient) -> Any:
    """Return the client without its published types, which lack some of its functions."""
    return api


def registry_digest(name: str, image: Mapping[str, Any]) -> str | None:
    """Return the digest of the image at the registry of *name*; None if it has none there, or several."""
    repository, _ = parse_repository_tag(name)
    plain = repository.removeprefix("docker.io/").removeprefix("library/")
    digests = {digest for digest in image.get("RepoDigests") or () if digest.partition("@")[0] in {repository, plain}}
    matching = {digest for digest in digests if name.partition("@")[2] in digest}
    return matching.pop() if len(matching) == 1 else None
