"""`executions cancel`: stop an execution, and keep what it has written."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from prefect_executions.cli.arguments import Json, reader, set_defaults
from prefect_executions.cli.exit_codes import FAILED, OK, WORLD
from prefect_executions.cli.output import say, show_facts, show_json, warn, working
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.dispatch.cancel import Cancelled


def cancel(execution: str, /, *, wait: float = 60.0, as_json: Json = False) -> int:
    """Cancel an execution: stop it, with all that it has started, and keep what it has written.

    Args:
        execution: The id, or its beginning; of one that has not begun yet, the whole id of the flow run.
        wait: How many seconds its record is waited for; 60 when it is not said.
        as_json: One JSON document.
    """
    settings = Settings.read()
    set_defaults()
    hall = reader(settings)
    with working("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.capture.host import this_user  # noqa: PLC0415
        from prefect_executions.dispatch.cancel import cancel as cancel_execution  # noqa: PLC0415

    cancelled = cancel_execution(
        hall,
        execution,
        by=settings.agent or this_user(),
        wait=timedelta(seconds=max(0.0, wait)),
        tell=warn,
    )
    if as_json:
        show_json(cancelled)
    else:
        _show(cancelled)
    return _code(cancelled, asked_only=wait <= 0)


def _show(cancelled: Cancelled) -> None:
    show_facts(
        [
            ("execution", cancelled.id),
            ("status", cancelled.status),
            ("Prefect", cancelled.state),
            ("message", cancelled.message),
        ]
    )
    if not cancelled.sealed:
        say("Its record is not sealed yet. Next: executions settle --once")
    elif cancelled.status is not Status.CANCELLED:
        say("It had ended before it could be cancelled.")
    else:
        say(f"Next: executions show {cancelled.id}")


def _code(cancelled: Cancelled, *, asked_only: bool) -> int:
    if cancelled.sealed:
        return OK if cancelled.status is Status.CANCELLED else FAILED
    return OK if asked_only or cancelled.state == "Cancelled" else WORLD
