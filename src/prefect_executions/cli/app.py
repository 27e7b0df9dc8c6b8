"""The application `executions`: its list of commands, its error messages and its exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from prefect_executions.cli.annotate import annotate
from prefect_executions.cli.completion import completion_command
from prefect_executions.cli.deploy import cancel, deploy, submit
from prefect_executions.cli.diff import diff
from prefect_executions.cli.doctor import doctor
from prefect_executions.cli.exit_codes import INTERRUPTED, NO_READER, OK, REQUEST, WORLD, code_of
from prefect_executions.cli.lineage import impact, lineage
from prefect_executions.cli.list import list_executions, methods
from prefect_executions.cli.output import warn, warn_error
from prefect_executions.cli.remove import gc, remove, retain
from prefect_executions.cli.replay import replay, reproduce, rerun
from prefect_executions.cli.run import run
from prefect_executions.cli.search import search
from prefect_executions.cli.serve import serve
from prefect_executions.cli.server import server
from prefect_executions.cli.show import logs, outputs, prov, show
from prefect_executions.cli.stats import stats
from prefect_executions.cli.transfer import export, import_executions, share, shares
from prefect_executions.cli.verify import audit, keys, ledger, settle, verify
from prefect_executions.cli.watch import watch
from prefect_executions.errors import ExecutionsError

app = App(
    name="executions",
    help="Run scientific Methods as Prefect flows and keep one complete, verifiable record of every run.",
    version=f"executions {version('prefect-executions')}",
    help_format="plaintext",
    # No --no-json, no empty lists.
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False
_GROUPS: dict[str, dict[str, Any]] = {
    "Run a Method": {"run": run, "deploy": deploy, "submit": submit, "watch": watch, "cancel": cancel},
    "Look at executions": {
        "list": list_executions,
        "search": search,
        "stats": stats,
        "show": show,
        "outputs": outputs,
        "logs": logs,
        "annotate": annotate,
        "diff": diff,
        "prov": prov,
        "lineage": lineage,
        "impact": impact,
        "methods": methods,
    },
    "Run again": {"rerun": rerun, "replay": replay, "reproduce": reproduce},
    "Verify and exchange bundles": {
        "verify": verify,
        "export": export,
        "import": import_executions,
        "share": share,
        "shares": shares,
        "keys": keys,
    },
    "Free space": {"gc": gc, "retain": retain, "remove": remove},
    "Operate": {
        "completion": completion_command(app),
        "doctor": doctor,
        "settle": settle,
        "audit": audit,
        "ledger": ledger,
        "serve": serve,
        "server": server,
    },
}
"""The commands, in groups by what a user wants to do, as `--help` shows them."""

for _place, (_title, _commands) in enumerate(_GROUPS.items()):
    _group = Group(_title, sort_key=_place)
    for _index, (_name, _command) in enumerate(_commands.items()):
        if isinstance(_command, App):
            _command.group, _command.sort_key = _group, _index
            app.command(_command)
        else:
            app.command(_command, name=_name, group=_group, sort_key=_index)
_OPTIONS = Group("Options", sort_key=len(_GROUPS))
for _name in ("--help", "--version"):
    app[_name].group = _OPTIONS


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative=(), show_default=False, group=_OPTIONS)] = False,
) -> Any:
    """Run a command.

    Args:
        tokens: The command and its options.
        debug: Print the traceback of an error.
    """
    try:
        return app(tokens)
    except ExecutionsError:
        if debug:
            traceback.print_exc()
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with *arguments* (default: those of the process) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            # If the terminal's encoding lacks a character, print its escape instead of failing.
            reconfigure(errors="backslashreplace")
    try:
        code = app.meta(sys.argv[1:] if arguments is None else arguments, result_action="return_value")
        sys.stdout.flush()
    except ExecutionsError as error:
        warn_error(error)
        return code_of(error)
    except CycloptsError as error:
        warn_error(error, "\nNext: executions --help, or executions COMMAND --help")
        return REQUEST
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # Rich, which writes the help, turns a broken pipe into SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_output()
        return NO_READER
    except OSError as error:
        warn_error(error)
        return WORLD
    return code if isinstance(code, int) else OK


def _drop_output() -> None:
    """Redirect buffered output to the null device, so that the interpreter does not flush it to the pipe at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
