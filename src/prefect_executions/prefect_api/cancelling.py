"""How Prefect is asked to cancel a flow run, and what it says of one that was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from prefect_executions.errors import NotFoundError, OrchestratorError
from prefect_executions.lifecycle.history import Seen
from prefect_executions.prefect_api.client import client
from prefect_executions.prefect_api.flow_runs import flow_run, seen
from prefect_executions.prefect_api.lives import lives

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


class Answer(NamedTuple):
    """What Prefect answers who asks it to cancel: its state now, and why it refuses, if it does."""

    state: Seen
    refused: str | None


def cancel(flow_run_id: UUID, message: str) -> Answer:
    """Ask Prefect to cancel a flow run, with a *message* that says who asks.

    A run that no infrastructure works on is cancelled at once. Prefect leaves the
    message out then, so it is told once more.

    Raises:
        NotFoundError: If Prefect does not know the flow run.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    result = _set(flow_run_id, Cancelling(message=message), force=False)
    reason = getattr(result.details, "reason", None)
    if result.status == "ABORT" or result.state is None:
        run = flow_run(flow_run_id)
        if run is None or run.state is None:
            raise NotFoundError(f"Prefect does not know the flow run {flow_run_id}")
        return Answer(seen(run.state), str(reason))
    if result.state.is_cancelled() and not result.state.message:
        return Answer(set_cancelled(flow_run_id, message), None)
    return Answer(seen(result.state), None)


def set_cancelled(flow_run_id: UUID, message: str | None) -> Seen:
    """Put a flow run into Cancelled, whatever it is in now, and return that state.

    Raises:
        NotFoundError: If Prefect does not know the flow run.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    result = _set(flow_run_id, Cancelled(message=message), force=True)
    if result.state is None:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be put into Cancelled: {result.details}")
    return seen(result.state)


def asked_to_cancel(states: Sequence[Seen]) -> Seen | None:
    """Return the state that asked for the cancellation of the newest life that *states* tell, if one did."""
    newest = lives(states)[-1] if states else ()
    return next((one for one in newest if one.state.type == "CANCELLING"), None)


def _set(flow_run_id: UUID, state: State[Any], *, force: bool) -> Any:
    try:
        return client().set_flow_run_state(flow_run_id, state, force=force)
    except ObjectNotFound:
        raise NotFoundError(f"Prefect does not know the flow run {flow_run_id}") from None
    except Exception as error:
        raise OrchestratorError(f"flow run {flow_run_id} cannot be cancelled: {error}") from error
