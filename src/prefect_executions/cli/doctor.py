"""`executions doctor`: checks of everything that a run needs, with the remedy for each problem.

Law: a check reports a problem as a finding and never raises.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter

from prefect_executions.cli.arguments import DEFAULTS, Json, open_catalog, open_workbench
from prefect_executions.cli.exit_codes import OK, WORLD
from prefect_executions.cli.output import format_size, pluralize, say, show_json, status_line
from prefect_executions.cli.tables import show_table, text_column
from prefect_executions.errors import ExecutionsError, PlanError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.runtimes.interface import Runtime
    from prefect_executions.workbench.catalog import Catalog
    from prefect_executions.workbench.workbench import Workbench

ARCHIVE_TIMEOUT = timedelta(seconds=20)
"""Time limit for the archive's answer."""

LOW_DISK_SPACE = 1 << 30
"""Free bytes of the workbench below which doctor warns: outputs need their space twice while they are zipped."""

_SUBPROCESS_TIMEOUT = 180
"""Seconds: importing Prefect's server from a cold disk is slow."""

Outcome = Literal["ok", "warn", "fail"]
_Started = subprocess.Popen[str]
_HEALTHY = "Everything that a run needs is available."


class _Tested(NamedTuple):
    """The tested versions of a package, from *oldest* to *below*, and what newer ones break."""

    oldest: str
    below: str
    breaks: tuple[tuple[str, str, Outcome], ...] = ()
    """The version that breaks something, what it breaks, and how bad that is; sorted by version."""


_OLDEST_PREFECT = "3.8.8"
_TESTED = {
    "3.8": {
        "fastapi": _Tested("0.139", "0.151", (("0.151", "its deployments", "fail"), ("0.155", "its server", "fail"))),
        "sqlalchemy": _Tested("2.0.40", "2.1", (("2.1", "its schedules, which never fire", "warn"),)),
        "pydantic": _Tested("2.12", "3"),
    },
    "3.9": {
        "fastapi": _Tested("0.139", "0.151", (("0.151", "its deployments", "fail"),)),
        "sqlalchemy": _Tested("2.0.40", "2.1"),
        "pydantic": _Tested("2.12", "3"),
    },
}
"""The tested versions of what Prefect's server depends on, for each tested series of Prefect, the newest last.

Each was measured with a server: 3.9 starts with FastAPI 0.155, but refuses the null in ``{"limit": null}``.
"""

# Code for a subprocess: if Prefect fails to import, doctor still runs.
_PROBE_API = """
import json
from prefect_executions.prefect_api import client, server
from prefect_executions.errors import ExecutionsError
from prefect_executions.settings import Settings
api = client.configured_api()
local = None if api else server.find(Settings.read().server_folder)
try:
    version = client.ping() if api else None
    print(json.dumps({"api": api, "version": version, "local": local and local.url}))
except ExecutionsError as error:
    print(json.dumps({"api": api, "error": str(error)}))
"""
_NO_API = "none is configured: commands start a local server"
_START_SERVER = "from prefect.server.api.server import create_app; create_app()"

_UPGRADE = "Run: pip install --upgrade prefect-executions"


class Diagnosis(NamedTuple):
    """The finding of one check, and the remedy if there is a problem."""

    outcome: Outcome
    subject: str
    found: str
    advice: str = ""


def examine(*, everything: bool = False) -> Iterator[Diagnosis]:
    """Run all checks; *everything* also imports Prefect's server, which takes many seconds, and lists the settings.

    A version of a package that is not tested is a reason to import the server, too.
    """
    probe = _start_python(_PROBE_API)  # runs during the other checks, because it imports Prefect
    versions = list(_versions())
    yield from versions
    remedies = [finding.advice for finding in versions if finding.outcome == "fail"]
    rest = list(_local(everything=everything))
    tries_server = everything or any(finding.outcome != "ok" for finding in versions)
    yield from _prefect(remedies[0] if remedies else _UPGRADE, probe, tries_server=tries_server)
    yield from rest


def _local(*, everything: bool) -> Iterator[Diagnosis]:
    try:
        settings = Settings.read()
    except ExecutionsError as error:
        yield Diagnosis("fail", "settings", str(error), "Correct or unset the variable.")
        return
    yield from _settings(settings) if everything else ()
    yield from check_unknown_settings(sorted(os.environ))
    yield from _workbench(settings)
    yield from _guarded("archive", lambda: _archive(settings))
    yield from _guarded("ledger", lambda: _ledger(settings))
    yield from _guarded("runtime", lambda: check_runtime(settings))
    yield from _programs()


def check_prefect(installed: str) -> Diagnosis:
    """Return whether this version of Prefect is tested."""
    if _series(installed) in _TESTED and _release(installed) >= _release(_OLDEST_PREFECT):
        return Diagnosis("ok", "prefect", installed)
    newest = _release([*_TESTED][-1])
    remedy = f"Run: pip install 'prefect>={_OLDEST_PREFECT},<{newest[0]}.{newest[1] + 1}'"
    return Diagnosis("warn", "prefect", f"{installed} is not a tested version", remedy)


def check_version(package: str, installed: str, prefect: str) -> Diagnosis:
    """Return whether this version of *package* works with this version of Prefect, as far as it is tested."""
    tested = _TESTED.get(_series(prefect), _TESTED[[*_TESTED][-1]])[package]
    remedy = f"Run: pip install '{package}>={tested.oldest},<{tested.below}'"
    release = _release(installed)
    broken = [item for item in tested.breaks if release >= _release(item[0])]
    if broken:
        since, what, outcome = broken[-1]
        found = f"{installed} is incompatible with Prefect {prefect}: since {since} it breaks {what}"
        return Diagnosis(outcome, package, found, remedy)
    if release < _release(tested.oldest):
        return Diagnosis("warn", package, f"{installed} is older than the tested versions", remedy)
    if release >= _release(tested.below):
        return Diagnosis("warn", package, f"{installed} is newer than the tested versions", remedy)
    return Diagnosis("ok", package, installed)


def _series(version_text: str) -> str:
    return ".".join(version_text.split(".")[:2])


def _release(version_text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version_text)[:3])


def _versions() -> Iterator[Diagnosis]:
    yield Diagnosis("ok", "python", f"{platform.python_version()} at {sys.executable}")
    yield Diagnosis("ok", "prefect-executions", version("prefect-executions"))
    installed = {package: _installed(package) for package in ("prefect", *_TESTED[[*_TESTED][-1]])}
    for package, found in installed.items():
        if found is None:
            yield Diagnosis("fail", package, "not installed", _UPGRADE)
        elif package == "prefect":
            yield check_prefect(found)
        else:
            yield check_version(package, found, installed["prefect"] or "")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _prefect(remedy: str, probe: _Started, *, tries_server: bool) -> Iterator[Diagnosis]:
    api = check_api(remedy, probe)
    if not tries_server:
        yield api
        return
    server = _finished(_start_python(_START_SERVER))
    if server.returncode:
        # A configured API replaces the server of this installation.
        # An API check that crashed (its advice is *remedy*) does not show that one is configured.
        outcome: Outcome = "fail" if api.found.startswith(_NO_API) or api.advice == remedy else "warn"
        yield Diagnosis(outcome, "Prefect's server", f"does not start: {_last_line(server.stderr)}", remedy)
    else:
        yield Diagnosis("ok", "Prefect's server", "can start here")
    yield api


def check_api(remedy: str, probe: _Started | None = None) -> Diagnosis:
    """Return whether the configured Prefect API answers; *remedy* is for a Prefect that fails to import.

    *probe* is the process that calls it, if it was started already.
    """
    process = _finished(probe or _start_python(_PROBE_API))
    if process.returncode:
        return Diagnosis("fail", "Prefect's API", f"cannot be called: {_last_line(process.stderr)}", remedy)
    answer = json.loads(process.stdout.splitlines()[-1])
    if "error" in answer:
        # This command is the doctor that the error proposes.
        error = answer["error"].removesuffix(" Run 'executions doctor'.").removesuffix(".")
        return Diagnosis("fail", "Prefect's API", error, "Start it (prefect server start), or correct PREFECT_API_URL.")
    if answer["api"] is None:
        local = f"{_NO_API}; it runs at {answer['local']}" if answer["local"] else _NO_API
        return Diagnosis("ok", "Prefect's API", local)
    return Diagnosis("ok", "Prefect's API", f"{answer['api']} answers, version {answer['version']}")


def check_unknown_settings(variables: Iterable[str]) -> Iterator[Diagnosis]:
    """Warn about *variables* that begin like a setting but are not one, so that the setting has its default."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in variables:
        name = variable.upper().removeprefix("EXECUTIONS_")
        # EXECUTIONS_TEST_… belong to this package's tests.
        if name != variable.upper() and name not in known and not name.startswith("TEST_"):
            near = get_close_matches(name, known, n=1)
            advice = f"Did you mean EXECUTIONS_{near[0]}?" if near else "docs/settings.md lists all settings."
            yield Diagnosis("warn", variable, "not a setting, so it has no effect", advice)


def _settings(settings: Settings) -> Iterator[Diagnosis]:
    set_here = {name.upper() for name in os.environ}
    for name in Settings.model_fields:
        variable = f"EXECUTIONS_{name.upper()}"
        source = "environment" if variable in set_here else "default"
        yield Diagnosis("ok", variable, f"{_display_value(settings, name)} ({source})")


def _display_value(settings: Settings, name: str) -> str:
    # Start-up time of the CLI. Addresses are shown without passwords.
    from prefect_executions.capture.secrets import redact_url  # noqa: PLC0415
    from prefect_executions.ledger.database import redact_dsn  # noqa: PLC0415

    archive = settings.archive_url
    locations = {
        "home": str(settings.home_folder),
        "archive": redact_url(archive, query=False) if "://" in archive else archive,
        "workbench": str(settings.workbench_folder),
        "ledger": redact_dsn(settings.ledger_url),
    }
    if name in locations:
        return locations[name]
    value = getattr(settings, name)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, bool):
        return str(value).lower()  # as in the environment
    return (", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)) or "none"


def _workbench(settings: Settings) -> Iterator[Diagnosis]:
    folder = settings.workbench_folder
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Diagnosis(
            "fail",
            "workbench",
            f"{existing} is not writable",
            "Set EXECUTIONS_WORKBENCH to a folder that you can write.",
        )
        return
    free = shutil.disk_usage(existing).free
    if free < LOW_DISK_SPACE:
        yield Diagnosis(
            "warn",
            "workbench",
            f"{folder} has {format_size(free)} left",
            "Free disk space, for example with: executions gc --yes",
        )
    else:
        yield Diagnosis("ok", "workbench", f"{folder}, {format_size(free)} free")
    yield from _open_executions(open_catalog(settings))


def _open_executions(catalog: Catalog) -> Iterator[Diagnosis]:
    """Report the executions here without a seal: those that run, and those that nothing but settle will seal."""
    running = unfinished = 0
    for execution_id in catalog.workbench.unfinished():
        try:
            if not catalog.storage_state(execution_id).sealed:  # `_ledger` counts the sealed ones
                dead = catalog.dead_process(execution_id) is not None
                running, unfinished = running + (not dead), unfinished + dead
        except ExecutionsError:  # settle names the damage
            unfinished += 1
    if running:
        yield Diagnosis("ok", "running", f"{pluralize(running, 'execution')} not ended yet")
    if unfinished:
        found = f"{pluralize(unfinished, 'execution')} not sealed, and no process is left to do it"
        yield Diagnosis("warn", "unfinished", found, "Run: executions settle --once")


def _archive(settings: Settings) -> Iterator[Diagnosis]:
    # Start-up time of the CLI: it imports the storage client.
    from prefect_executions.archive.identity import ACCEPT  # noqa: PLC0415
    from prefect_executions.objectstore.interface import honours_create_if_absent  # noqa: PLC0415

    timeout = min(settings.archive_timeout, ARCHIVE_TIMEOUT)
    bench = open_workbench(settings.model_copy(update={"archive_timeout": timeout}))
    store = bench.archive.store
    if fault := bench.archive_identity.fault():
        yield Diagnosis("fail", "archive", fault, ACCEPT)
    elif honours_create_if_absent(store):
        yield from _missing(bench) or (
            Diagnosis("ok", "archive", f"{store.url} is writable and supports create-if-absent"),
        )
    else:
        yield Diagnosis(
            "fail",
            "archive",
            f"{store.url} does not support create-if-absent, so two processes could seal one execution",
            "Use storage that supports If-None-Match: *, such as AWS S3, Ceph, MinIO or SeaweedFS.",
        )


def _missing(workbench: Workbench) -> list[Diagnosis]:
    """Report if the archive lacks all of the newest executions that the ledger lists as archived."""
    lost = workbench.lost_execution()
    if lost is None:
        return []
    found = f"{workbench.archive.store.url} has none of the newest archived executions, such as {lost}"
    advice = "Mount its disk, or correct EXECUTIONS_ARCHIVE. If the archive was emptied, run: executions ledger rebuild"
    return [Diagnosis("fail", "archive", found, advice)]


def _ledger(settings: Settings) -> Iterator[Diagnosis]:
    # Start-up time of the CLI: it imports the database driver.
    from prefect_executions.ledger.database import redact_dsn  # noqa: PLC0415
    from prefect_executions.ledger.migrate import HEAD  # noqa: PLC0415

    ledger = open_workbench(settings).ledger
    pending = len(ledger.pending())
    yield Diagnosis("ok", "ledger", f"{redact_dsn(settings.ledger_url)}, revision {HEAD}")
    if pending:
        yield Diagnosis(
            "warn", "pending", f"{pluralize(pending, 'execution')} not archived yet", "Run: executions settle --once"
        )


def check_runtime(settings: Settings) -> Iterator[Diagnosis]:
    """Check whether the configured runtime can run scripts of a descriptor Method; no script is started."""
    # Start-up time of the CLI: it imports container clients.
    from prefect_executions.runtimes.registry import RUNTIMES, open_runtime  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        state = Path(folder).resolve()
        try:
            runtime = open_runtime(settings.runtime, state=state, open_network=settings.runtime_network or None)
        except ExecutionsError as error:
            entry = RUNTIMES.get(settings.runtime)
            remedy = entry.advice if entry else f"Set EXECUTIONS_RUNTIME to one of {', '.join(RUNTIMES)}."
            yield Diagnosis("fail", "runtime", str(error), remedy)
            return
        with closing(runtime):
            in_image = RUNTIMES[runtime.name].runs_images
            if not in_image:
                yield from _unused_settings(settings, [name for name, entry in RUNTIMES.items() if entry.runs_images])
            if in_image and not settings.runtime_image:
                found = f"{runtime.name} answers; Methods without an image are refused"
                yield Diagnosis("warn", "runtime", found, "Set EXECUTIONS_RUNTIME_IMAGE to the default image.")
            else:
                yield _compiled_plan(runtime, settings, state, image=settings.runtime_image if in_image else "")


def _unused_settings(settings: Settings, image_runtimes: Sequence[str]) -> Iterator[Diagnosis]:
    for name in ("runtime_image", "runtime_network"):
        if getattr(settings, name):
            variable = f"EXECUTIONS_{name.upper()}"
            found = f"{variable} is set, but the runtime '{settings.runtime}' ignores it"
            remedy = f"Set EXECUTIONS_RUNTIME to {' or '.join(image_runtimes)}, or unset {variable}."
            yield Diagnosis("warn", "runtime", found, remedy)


def _compiled_plan(runtime: Runtime, settings: Settings, folder: Path, *, image: str) -> Diagnosis:
    # Start-up time of the CLI, as above.
    from prefect_executions.runtimes.interface import Pull, Resources, RunRequest  # noqa: PLC0415

    request = RunRequest(
        id="doctor",
        execution_id="doctor",
        script="true",
        data=folder,
        image=image or None,
        pull=Pull.NEVER,
        resources=Resources(cpus=settings.cpus, memory=settings.memory, gpus=settings.gpus),
    )
    try:
        runtime.compile(request, folder / "plan")
    except PlanError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        if reasons.startswith(f"image: {image} is not here"):
            found = f"{runtime.name} answers; {image} is not available yet, so the first run pulls it"
            return Diagnosis("warn", "runtime", found, f"Pull it now: docker pull {image}")
        return Diagnosis("fail", "runtime", reasons, "Correct the EXECUTIONS_ setting of that name.")
    return Diagnosis("ok", "runtime", f"{runtime.name} can run scripts{f' in {image}' if image else ''}")


def _programs() -> Iterator[Diagnosis]:
    for program, purpose in (
        ("git", "without it, the commit and changes of a Method's code are not recorded"),
        ("dot", "executions prov --format svg needs Graphviz"),
    ):
        path = shutil.which(program)
        if path:
            yield Diagnosis("ok", program, path)
        else:
            package = "graphviz" if program == "dot" else program
            yield Diagnosis("warn", program, f"not found: {purpose}", f"Install the system package {package}.")


def _guarded(subject: str, check: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    try:
        yield from check()
    except ExecutionsError as error:
        yield Diagnosis(
            "fail", subject, str(error), f"Check EXECUTIONS_{subject.upper()} and the service or folder that it names."
        )
    except Exception as error:  # noqa: BLE001 - the outermost entry point: doctor reports every failure
        yield Diagnosis("fail", subject, f"{type(error).__name__}: {error}", f"Check EXECUTIONS_{subject.upper()}.")


def _start_python(code: str) -> _Started:
    environment = {**DEFAULTS, **os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(  # noqa: S603 - our own code, for this interpreter
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finished(process: _Started) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            output, errors = process.communicate(timeout=_SUBPROCESS_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            return subprocess.CompletedProcess(process.args, 1, "", f"no answer in {_SUBPROCESS_TIMEOUT} s")
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def doctor(*, everything: Annotated[bool, Parameter(name="--all")] = False, as_json: Json = False) -> int:
    """Check everything that a run needs, and name the remedies.

    Args:
        everything: Also list the settings, and try whether Prefect's server can start, which takes longer.
        as_json: Print one JSON document with every finding of --all.
    """
    text = "Checking this installation (importing Prefect takes some seconds)"
    with status_line(text, quiet=as_json or not sys.stderr.isatty()):
        findings = list(examine(everything=everything or as_json))
    failed = [finding for finding in findings if finding.outcome == "fail"]
    if as_json:
        show_json({"healthy": not failed, "findings": findings})
    else:
        _show_findings(sorted(findings, key=lambda finding: ("fail", "warn", "ok").index(finding.outcome)))
        say(f"{len(failed)} of {len(findings)} checks failed" if failed else _HEALTHY)
    return WORLD if failed else OK


def _show_findings(findings: Iterable[Diagnosis]) -> None:
    """Show the findings, each with its remedy; a pipe gets the remedy as a column of its own."""
    if not sys.stdout.isatty():
        show_table((), findings)
        return
    rows = (
        (outcome, subject, f"{found}. {advice}" if advice else found) for outcome, subject, found, advice in findings
    )
    show_table(("result", "subject", text_column("what")), rows)
