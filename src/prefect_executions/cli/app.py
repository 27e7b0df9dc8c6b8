"""The application `executions`: its list of commands, its error messages and its exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from prefect_executions.cli.deploy import cancel, deploy, submit
from prefect_executions.cli.doctor import doctor
from prefect_executions.cli.exit_codes import INTERRUPTED, NO_READER, OK, REQUEST, WORLD, code_of
from prefect_executions.cli.list import list_executions, methods
from prefect_executions.cli.output import warn, warn_error
from prefect_executions.cli.remove import gc, remove, retain
from prefect_executions.cli.replay import diff, replay, reproduce, rerun
from prefect_executions.cli.run import run
from prefect_executions.cli.server import server
from prefect_executions.cli.show import logs, outputs, prov, show
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
)
app.command(run)
app.command(deploy)
app.command(submit)
app.command(cancel)
app.command(list_executions, name="list")
app.command(watch)
app.command(show)
app.command(logs)
app.command(outputs)
app.command(prov)
app.command(diff)
app.command(rerun)
app.command(replay)
app.command(reproduce)
app.command(verify)
app.command(export)
app.command(import_executions, name="import")
app.command(share)
app.command(shares)
app.command(remove)
app.command(gc)
app.command(retain)
app.command(audit)
app.command(keys)
app.command(settle)
app.command(ledger)
app.command(methods)
app.command(doctor)
app.command(server)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
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
