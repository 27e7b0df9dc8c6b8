"""Scripts in containers of a Docker engine, reached by its API.

The engine keeps all there is to know of a run: the container, found by its
label, its state and its logs. So a caller that was killed finds its run again
from any machine that reaches the engine.

Law: what a plan says is what the engine took. A warning of the engine means
that it left something out, and is a refusal.
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

# The driver that keeps bytes as they came; the engine's default one writes what is not UTF-8 as something else.
_EXACT_LOGS = {"Type": "local", "Config": {"max-size": "1000g", "max-file": "1", "compress": "false"}}

# How registries say that the name is wrong or not allowed; engines pass it on with one code or another.
_NOT_THERE = re.compile("unknown|not found|denied|unauthorized|does not exist", re.IGNORECASE)


class DockerRuntime:
    """Runs scripts with ``/bin/sh`` of an image, each in a container of its own."""

    name = "docker"
    capabilities: Mapping[Capability, str] = MappingProxyType(
        {
            Capability.DATA: f"the script begins in it; it is seen as `{DATA}`",
            Capability.ENVIRONMENT: "with the image's own, and nothing of the worker",
            Capability.SECRETS: "in the container's configuration, which the engine keeps until the run is discarded",
            Capability.IMAGE: "pulled by policy when the plan is made; "
            "the plan names its id, and its digest if it has one",
            Capability.USER: "a name or id, as the image knows it; otherwise the image's own user",
            Capability.OPEN_NETWORK: "the network of the engine that the operator named, `bridge` by default",
            Capability.CLOSED_NETWORK: "loopback alone",
            Capability.CPUS: "a share of time (CFS quota)",
            Capability.MEMORY: "of the whole container, and no swap where the engine can say so",
            Capability.GPUS: "where the engine has NVIDIA's runtime",
            Capability.PROCESSES: "of the whole container",
            Capability.TIME_LIMIT: "in seconds, rounded up; "
            "SIGTERM, then SIGKILL, to every process (the image's `sleep`)",
        }
    )

    def __init__(self, url: str | None = None, *, open_network: str = "bridge") -> None:
        """Speak to the engine at *url*, or to the one that ``DOCKER_HOST`` and its kin name.

        Raises:
            InfrastructureError: If it does not answer.
        """
        told = kwargs_from_env() if url is None else {"base_url": url}
        with translate_errors("the engine's version"):
            self._api = APIClient(version="auto", **told)
        self._open_network = open_network

    @classmethod
    def open(cls, options: RuntimeOptions) -> DockerRuntime:
        """Return the runtime with *options*."""
        return cls(options.engine, open_network=options.open_network or "bridge")

    def close(self) -> None:
        """Close the connections; runs go on."""
        self._api.close()

    def mount_path(self, data: Path) -> str:  # noqa: ARG002 - it is seen alike whatever its path is here
        """Return `DATA`."""
        return DATA

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan of *request*, its image at hand, and write it into the folder *into*."""
        with translate_errors("what the engine can do"):
            engine = self._api.info()
            networks = {network["Name"] for network in self._api.networks()}
        network = self._open_network if request.network is Network.OPEN else "none"
        reasons = [*common_reasons(request, self.capabilities), *_reasons_of_engine(request, engine)]
        if network not in networks:
            reasons.append(f"{request.network} network: the engine has no network '{network}'")
        if request.image is None:
            reasons.append("image: none is named, and a container needs one")
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
        """Return the name of exactly this image, which is pulled by its digest if the engine has not got it."""
        with translate_errors(f"the image {digest or image_id}"):
            for name in (digest, image_id):
                if name is not None and self._has(name):
                    return name
            return digest if digest is not None and self._problem_of_pulling(digest) is None else None

    def run(self, plan: Plan) -> ContainerRun:
        """Start the container of *plan*; return once it has begun."""
        values = full_environment(plan)
        with translate_errors(f"the container of {plan.id}"):
            self._refuse_a_second(plan.id)
            labels = plan.spec["Labels"] | {f"{LABEL_PREFIX}.plan": sha256(plan.as_told()).hexdigest()}
            config = plan.spec | {"Env": [f"{name}={value}" for name, value in values.items()], "Labels": labels}
            container = self._created(plan, config)
            try:
                self._api.put_archive(container, "/", _own_files(plan))
                self._api.start(container)
            except APIError as error:
                self._api.remove_container(container, force=True)
                raise refusal(self.name, plan.request, [f"image: {error.explanation}"]) from error
        return ContainerRun(self._api, plan.id, container)

    def find(self, run_id: str) -> ContainerRun:
        """Return the run with this id."""
        found = self._containers(run_id)
        if not found:
            raise NotFoundError(f"The engine at {self._api.base_url} has no container of a run {run_id}")
        return ContainerRun(self._api, run_id, found[0])

    def _containers(self, name: str) -> list[str]:
        with translate_errors(f"the containers of {name}"):
            found = self._api.containers(all=True, filters={"label": f"{RUN_LABEL}={check_run_id(name)}"})
        return [container["Id"] for container in found]

    def _refuse_a_second(self, name: str) -> None:
        if self._containers(name):
            raise PlanError(f"A run with the id {name} was started before; find it, or use another id")

    def _created(self, plan: Plan, config: Mapping[str, Any]) -> str:
        try:
            made = _typed(self._api).create_container_from_config(config, name=f"execution-{plan.id}")
        except APIError as error:
            if error.status_code == 409:  # noqa: PLR2004 - Conflict: the name is taken
                raise PlanError(
                    f"A run with the id {plan.id} was started before; find it, or use another id"
                ) from error
            raise refusal(self.name, plan.request, [str(error.explanation)]) from error
        if made.get("Warnings"):
            self._api.remove_container(made["Id"], force=True)
            raise refusal(self.name, plan.request, made["Warnings"])
        return str(made["Id"])

    def _image(self, request: RunRequest, name: str) -> dict[str, Any]:
        with translate_errors(f"the image {name}"):
            try:
                if request.pull is Pull.ALWAYS:
                    self._pull(request, name)
                return dict(_typed(self._api).inspect_image(name))
            except ImageNotFound:
                if request.pull is not Pull.MISSING:
                    raise refusal(
                        self.name, request, [f"image: {name} is not here, and was not to be pulled"]
                    ) from None
                self._pull(request, name)
                return dict(_typed(self._api).inspect_image(name))

    def _has(self, name: str) -> bool:
        try:
            _typed(self._api).inspect_image(name)
        except ImageNotFound:
            return False
        return True

    def _problem_of_pulling(self, name: str) -> str | None:
        repository, tag = parse_repository_tag(name)
        try:
            told = list(self._api.pull(repository, tag=tag or "latest", stream=True, decode=True))
        except APIError as error:
            return str(error.explanation)
        return next((str(one["error"]) for one in told if "error" in one), None)

    def _pull(self, request: RunRequest, name: str) -> None:
        problem = self._problem_of_pulling(name)
        if problem is None:
            return
        if _NOT_THERE.search(problem):
            raise refusal(self.name, request, [f"image: {name} cannot be pulled: {problem}"])
        raise InfrastructureError(f"The image {name} cannot be pulled: {problem}")


def _reasons_of_engine(request: RunRequest, engine: Mapping[str, Any]) -> Iterator[str]:
    limits = request.resources
    asked = {
        "cpus": (limits.cpus, "CpuCfsQuota"),
        "memory": (limits.memory, "MemoryLimit"),
        "processes": (limits.processes, "PidsLimit"),
    }
    for word, (value, ability) in asked.items():
        if value is not None and not engine.get(ability):
            yield f"{word}: the engine says that it cannot limit them ({ability})"
    if limits.cpus is not None and limits.cpus > engine["NCPU"]:
        yield f"cpus: {limits.cpus:g} were asked for, and the engine has {engine['NCPU']}"
    if limits.gpus is not None and "nvidia" not in engine.get("Runtimes", {}):
        yield "gpus: the engine has no NVIDIA runtime"
    if ":" in str(request.data) or "," in str(request.data):
        yield f"data folder: {request.data} has a character that some engines take for a separator"


def _container(request: RunRequest, image_id: str, network: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``POST /containers/create``, but for the values of secrets."""
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
    """The archive of what the container's first process reads, put into it before it starts."""
    first = entry_script(
        f"{OWN_FOLDER}/entrypoint.sh",
        time_limit=plan.request.resources.time_limit,
        expired=f": >{OWN_FOLDER}/expired",
    )
    files = {"entry.sh": first, "entrypoint.sh": plan.request.script}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        folder = tarfile.TarInfo(OWN_FOLDER.strip("/"))
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
        for name, text in files.items():
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.mode, member.size = 0o555, len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def _typed(api: APIClient) -> Any:
    """The client for those of its functions that the published types leave out."""
    return api


def registry_digest(name: str, image: Mapping[str, Any]) -> str | None:
    """Return the one digest under which the registry of *name* knows the image; None when it has none, or several."""
    repository, _ = parse_repository_tag(name)
    plain = repository.removeprefix("docker.io/").removeprefix("library/")
    found = {told for told in image.get("RepoDigests") or () if told.partition("@")[0] in {repository, plain}}
    asked = {told for told in found if name.partition("@")[2] in told}
    return asked.pop() if len(asked) == 1 else None
