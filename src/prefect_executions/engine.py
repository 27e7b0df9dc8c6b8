"""What Prefect says and is told: state histories, workers, secrets, blocks, events, progress.

The only room below the flow that knows Prefect. It gives our own values and
hides Prefect's clients; it decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid5

import prefect
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import SyncClientContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import RemoteFileSystem
from prefect.settings import PREFECT_API_URL
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import SecretStr

from prefect_executions.capture.secrets import redact_url, redact_urls
from prefect_executions.documents import in_utc, json_value
from prefect_executions.errors import OrchestratorError, SecretError, SettingsError
from prefect_executions.executions import Deployment, Infrastructure
from prefect_executions.lifecycle import JobStatus, PrefectState, Seen, StatusEntry
from prefect_executions.methods import is_secret_reference

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

RESOURCE = "prefect-executions.execution"
METHOD_RESOURCE = "prefect-executions.method"

_clients: dict[tuple[int, str], SyncPrefectClient] = {}


class Progress(NamedTuple):
    """A progress artifact in the Prefect UI; `id` is None before the first one is made."""

    id: UUID | None


def client() -> SyncPrefectClient:
    """Return the run's own client inside a sync run, and elsewhere one that the process keeps.

    Making a client costs about 20 ms (its TLS context), so it is made once for
    each API and process; a forked child makes its own.
    """
    if SyncClientContext.get() is not None:
        return get_client(sync_client=True)
    key = (os.getpid(), PREFECT_API_URL.value() or "ephemeral")
    if key not in _clients:
        _clients[key] = get_client(sync_client=True)
    return _clients[key]


def configured_api() -> str | None:
    """Return the address of the Prefect API that is configured, without credentials; None where none is.

    Prefect then starts a server of its own for the process, at the first request.
    """
    api = PREFECT_API_URL.value()
    return redact_url(api) if api else None


def greet() -> str:
    """Ask Prefect's API for its version; the first request, which starts an embedded server where one is needed.

    Raises:
        OrchestratorError: If the API cannot be asked, or the embedded server does not start.
    """
    try:
        return client().api_version()
    except Exception as error:
        place = configured_api() or "the embedded server"
        raise OrchestratorError(
            f"Prefect's API ({place}) does not answer: {redact_urls(str(error))}. Run 'executions doctor'."
        ) from error


def seen(state: State[Any]) -> Seen:
    """Return *state* as a value of ours, its message without credentials of URLs."""
    told = PrefectState(type=state.type.value, name=state.name or state.type.value.title(), id=state.id)
    return Seen(told, in_utc(state.timestamp), redact_urls(state.message) if state.message else None)


def history(flow_run_id: UUID) -> tuple[Seen, ...]:
    """Return the states of a flow run in the order of their times, one request.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        states = client().read_flow_run_states(flow_run_id)
    except Exception as error:
        raise OrchestratorError(f"the state history of flow run {flow_run_id} cannot be read: {error}") from error
    return tuple(sorted((seen(state) for state in states), key=lambda one: one.time))


def flow_run(flow_run_id: UUID) -> FlowRun | None:
    """Return a flow run as Prefect knows it now, or None when Prefect does not know it.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        return client().read_flow_run(flow_run_id)
    except ObjectNotFound:
        return None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be read: {error}") from error


def infrastructure(run: FlowRun, environment: Mapping[str, str]) -> Infrastructure:
    """Return what Prefect and its worker say about where *run* was sent.

    Of the job variables the names in ``env`` are kept and their values are not:
    they may hold secrets.
    """
    labels = run.labels or {}
    pool_type = labels.get("prefect.worker.type")
    variables = {name: json_value(value) for name, value in (run.job_variables or {}).items()}
    if isinstance(variables.get("env"), dict):
        variables["env"] = sorted(variables["env"])
    kind = str(pool_type) if pool_type else "direct" if run.deployment_id is None else "serve"
    api = PREFECT_API_URL.value()
    return Infrastructure(
        type=kind,
        work_pool=run.work_pool_name or _text(labels.get("prefect.work-pool.name")),
        work_queue=run.work_queue_name,
        worker=_text(labels.get("prefect.worker.name")) or environment.get("PREFECT__WORKER_NAME"),
        worker_id=environment.get("PREFECT__WORKER_ID"),
        job_variables=variables,
        identifier=run.infrastructure_pid,
        prefect_version=prefect.__version__,
        prefect_api=redact_url(api) if api else None,
    )


def deployment(run: FlowRun, environment: Mapping[str, str]) -> Deployment | None:
    """Return the deployment that *run* came through; its name only where the worker told it."""
    if run.deployment_id is None:
        return None
    return Deployment(id=run.deployment_id, name=environment.get("PREFECT__DEPLOYMENT_NAME"))


def created_by(run: FlowRun) -> dict[str, str] | None:
    """Return the schedule or automation that created *run*, if Prefect says one."""
    maker = run.created_by
    if maker is None:
        return None
    told = {"type": maker.type, "id": maker.id and str(maker.id), "name": maker.display_value}
    return {key: str(value) for key, value in told.items() if value}


def secret(name: str, reference: object, environment: Mapping[str, str]) -> SecretStr:
    """Return the secret that *reference* names: a Prefect Secret block, or ``env:NAME``.

    Raises:
        SecretError: If it names nothing. The message tells the input's *name*
            and never the reference, which may be a secret given in clear.
    """
    if not isinstance(reference, str) or not is_secret_reference(reference):
        raise SecretError(
            f"input '{name}' is a secret: give the name of a Prefect Secret block or env:NAME, never the value itself. "
            "Make a block in the Prefect UI (Blocks, Secret)."
        )
    if reference.startswith("env:"):
        value: Any = environment.get(reference.removeprefix("env:"))
    else:
        value = _secret_block(name, reference)
    if value is None:
        raise SecretError(f"input '{name}': the environment variable that it names is not set where the Method runs")
    return SecretStr(value if isinstance(value, str) else str(value))


def check_secret(name: str, reference: object) -> None:
    """Refuse a secret input that is not a name of something, before a flow run is created.

    A variable of the worker cannot be looked up from here, so ``env:NAME`` is
    taken at its word.

    Raises:
        SecretError: If it is a plain value; the message does not repeat it.
    """
    if isinstance(reference, str) and reference.startswith("env:") and is_secret_reference(reference):
        return
    secret(name, reference, {})


def archive_block(name: str) -> tuple[str, dict[str, Any]]:
    """Return the URL and the fsspec options of a Prefect RemoteFileSystem block.

    Raises:
        SettingsError: If there is no such block, or its kind cannot hold an archive.
    """
    slug = name if "/" in name else f"remote-file-system/{name}"
    try:
        block: object = run_coro_as_sync(Block.aload(slug))
    except ValueError as error:
        raise SettingsError(
            f"EXECUTIONS_ARCHIVE=block:{name}: Prefect has no block {slug}. Create it, or name another."
        ) from error
    if not isinstance(block, RemoteFileSystem):
        raise SettingsError(f"EXECUTIONS_ARCHIVE=block:{name}: {slug} is no RemoteFileSystem block.")
    return block.basepath, dict(block.settings)


def tell(job_status: JobStatus, entry: StatusEntry) -> None:
    """Emit the status change *entry* as the Prefect event ``execution.<status>``, so that automations can react.

    The event's id follows from the execution and the status: telling it twice
    gives one event. It makes no request of its own, because Prefect sends events
    in the background.
    """
    execution_id = job_status.job_id
    flow_run_id = execution_id.partition(".")[0]
    emit_event(
        event=f"execution.{entry.status.value.lower()}",
        resource={
            "prefect.resource.id": f"{RESOURCE}.{execution_id}",
            "prefect.resource.name": execution_id,
            "prefect-executions.status": entry.status.value,
        },
        related=[
            {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"},
            {"prefect.resource.id": f"{METHOD_RESOURCE}.{job_status.process_id}", "prefect.resource.role": "method"},
        ],
        payload=entry.model_dump(mode="json", by_alias=True, exclude_none=True)
        | {"execution": execution_id, "method": job_status.process_id},
        occurred=entry.time,
        id=uuid5(UUID(flow_run_id), f"{execution_id} {entry.status.value}"),
    )


def show_progress(artifact: Progress, flow_run_id: UUID, percent: float, message: str | None) -> Progress:
    """Show *percent* (0-100) on the run's page in the Prefect UI and return the artifact, made at the first call."""
    if artifact.id is None:
        made = client().create_artifact(
            ArtifactCreate(
                type="progress",
                key=f"progress-{flow_run_id}",
                description=message,
                data=percent,
                flow_run_id=flow_run_id,
            )
        )
        return Progress(made.id)
    client().update_artifact(artifact.id, ArtifactUpdate(data=percent, description=message))
    return artifact


def _secret_block(name: str, block: str) -> Any:
    """Load a Secret block. What was given may be a secret all the same, and Prefect's errors repeat it."""
    loaded, failure = None, ""
    try:
        loaded = run_coro_as_sync(Secret.aload(block))
    except ValueError:
        failure = (
            "Prefect has no Secret block of the name that was given. Give the name of one, or env:NAME; "
            "never the secret itself."
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold the secret
        failure = f"Prefect's API cannot be asked for its Secret block ({type(error).__name__}). Try again later."
    if failure:  # raised here, so that no error of Prefect's hangs on it
        raise SecretError(f"input '{name}': {failure}")
    return loaded.get() if isinstance(loaded, Secret) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
