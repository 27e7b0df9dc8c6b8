"""`executions server`: the local Prefect server that commands share when no API is configured."""

from __future__ import annotations

from types import ModuleType

from cyclopts import App

from prefect_executions.cli.arguments import Json, set_defaults
from prefect_executions.cli.output import say, show_facts, show_json, status_line
from prefect_executions.durations import format_seconds
from prefect_executions.settings import Settings

server = App(name="server", help="Show or stop the local Prefect server that commands start.")


def _load(*, quiet: bool) -> ModuleType:
    set_defaults()
    with status_line("Loading Prefect", quiet=quiet):
        # Prefect takes seconds to import; only commands that call it need it.
        from prefect_executions.prefect_api import server as local_server  # noqa: PLC0415

    return local_server


@server.command
def status(*, as_json: Json = False) -> None:
    """Show the local Prefect server of this home.

    Args:
        as_json: Print one JSON document.
    """
    settings, server_module = Settings.read(), _load(quiet=as_json)
    state = server_module.find(settings.server_folder)
    if as_json:
        show_json({"url": state and state.url, "pid": state and state.process.pid})
    elif state is None:
        say("No local Prefect server runs. 'executions run' starts one if no API is configured.")
    else:
        idle = f"{format_seconds(settings.server_idle.total_seconds())} after its last use"
        show_facts(
            [
                ("url", state.url),
                ("process", state.process.pid),
                ("ends", idle),
                ("log", server_module.log_of(settings.server_folder)),
            ]
        )


@server.command
def stop(*, as_json: Json = False) -> None:
    """Stop the local Prefect server of this home; its data stays.

    Args:
        as_json: Print one JSON document.
    """
    state = _load(quiet=as_json).stop(Settings.read().server_folder)
    if as_json:
        show_json({"stopped": state is not None})
    else:
        say("No local Prefect server runs." if state is None else f"Stopped the server at {state.url}.")
