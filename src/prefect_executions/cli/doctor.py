"""`executions doctor`: whether everything that a run needs is there, and what to do where it is not.

What `executions doctor` looks at, one function for each subject; each tells findings and never raises.
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
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_executions.cli.arguments import DEFAULTS, Json, open_workbench
from prefect_executions.cli.exit_codes import OK, WORLD
from prefect_executions.cli.output import format_size, say, show_json, show_table, status_line
from prefect_executions.errors import ExecutionsError, PlanError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.runtimes.interface import Runtime

ARCHIVE_TIMEOUT = timedelta(seconds=20)
"""How long the archive may take to answer."""

LOW_DISK_SPACE = 1 << 30
"""Free bytes of the workbench below which a warning is due: outputs are there twice while they are zipped."""

_SLOWEST = 180
"""Seconds that a subprocess may take: importing Prefect's server on a cold disk takes long."""

# Measured with Prefect 3.8 on a fresh installation.
_BREAKS_SERVER, _BREAKS_DEPLOYMENTS, _OLDEST = (0, 155), (0, 151), (0, 139)
_BREAKS_SCHEDULES = (2, 1)
_FASTAPI_CURE = "Run: pip install 'fastapi>=0.139,<0.151'"

# In a process of their own: a Prefect that does not import must not break the doctor.
_ASK_API = """
import json
from prefect_executions.prefect_api import client
from prefect_executions.errors import ExecutionsError
api = client.configured_api()
try:
    print(json.dumps({"api": api, "version": client.greet() if api else None}))
except ExecutionsError as error:
    print(json.dumps({"api": api, "error": str(error)}))
"""
_START_SERVER = "from prefect.server.api.server import create_app; create_app()"

Outcome = Literal["ok", "warn", "fail"]


class Diagnosis(NamedTuple):
    """What was found of one subject, and what to do when it is not well."""

    outcome: Outcome
    subject: str
    found: str
    advice: str = ""


def examine() -> Iterator[Diagnosis]:
    """Look at everything; the order is that in which one thing needs another."""
    versions = list(_versions())
    yield from versions
    cures = [one.advice for one in versions if one.outcome == "fail"]
    yield from _prefect(cures[0] if cures else "Run: pip install --upgrade prefect-executions")
    try:
        settings = Settings.read()
    except ExecutionsError as error:
        yield Diagnosis("fail", "settings", str(error), "Correct or unset the variable.")
        return
    yield from _settings(settings)
    yield from check_unknown_settings(sorted(os.environ))
    yield from _workbench(settings)
    yield from _guarded("archive", lambda: _archive(settings))
    yield from _guarded("ledger", lambda: _ledger(settings))
    yield from _guarded("runtime", lambda: check_runtime(settings))
    yield from _programs()


def check_fastapi(fastapi: str) -> Diagnosis:
    """Tell whether this version of FastAPI works with Prefect 3.8."""
    numbers = re.findall(r"\d+", fastapi)
    release = (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)
    if release >= _BREAKS_DEPLOYMENTS:
        what = "server (from 0.155 on)" if release >= _BREAKS_SERVER else "deployments (from 0.151 on)"
        return Diagnosis(
            "fail",
            "fastapi",
            f"{fastapi}: this FastAPI does not work with this Prefect: it breaks its {what}",
            _FASTAPI_CURE,
        )
    if release < _OLDEST:
        return Diagnosis("warn", "fastapi", f"{fastapi} is older than what was tried", _FASTAPI_CURE)
    return Diagnosis("ok", "fastapi", fastapi)


def check_sqlalchemy(sqlalchemy: str) -> Diagnosis:
    """Tell whether this version of SQLAlchemy works with a server of Prefect 3.8."""
    release = tuple(int(number) for number in re.findall(r"\d+", sqlalchemy)[:2])
    if release >= _BREAKS_SCHEDULES:
        found = f"{sqlalchemy}: a Prefect server of this installation starts no run by a schedule (from 2.1 on)"
        return Diagnosis("warn", "sqlalchemy", found, "Run: pip install 'sqlalchemy<2.1'")
    return Diagnosis("ok", "sqlalchemy", sqlalchemy)


def _versions() -> Iterator[Diagnosis]:
    yield Diagnosis("ok", "python", f"{platform.python_version()} at {sys.executable}")
    yield Diagnosis("ok", "prefect-executions", version("prefect-executions"))
    told = {"prefect": _prefect_version, "fastapi": check_fastapi, "sqlalchemy": check_sqlalchemy}
    for package, tell in told.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Diagnosis("fail", package, "is not installed", "Run: pip install --upgrade prefect-executions")
            continue
        yield tell(found)


def _prefect_version(found: str) -> Diagnosis:
    wanted = next((one for one in requires("prefect-executions") or [] if re.match(r"prefect\b(?!-)", one)), "prefect")
    series = re.search(r">=(\d+\.\d+)", wanted)
    if series and not found.startswith(f"{series[1]}."):
        return Diagnosis("warn", "prefect", f"{found} was not tried", f"Run: pip install '{wanted}'")
    return Diagnosis("ok", "prefect", found)


def _prefect(cure: str) -> Iterator[Diagnosis]:
    server = _python(_START_SERVER)
    asked = _python(_ASK_API)
    told = json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else {}
    api = told.get("api")
    if server.returncode:
        # With a server elsewhere the one of this installation is not needed.
        outcome: Outcome = "warn" if api else "fail"
        yield Diagnosis(outcome, "Prefect's server", f"does not start: {_last_line(server.stderr)}", cure)
    else:
        yield Diagnosis("ok", "Prefect's server", "can start here")
    if asked.returncode:
        yield Diagnosis("fail", "Prefect's API", f"cannot be asked: {_last_line(asked.stderr)}", cure)
    elif told.get("error"):
        away = "Start it (prefect server start), or correct PREFECT_API_URL."
        yield Diagnosis("fail", "Prefect's API", told["error"], away)
    elif api:
        yield Diagnosis("ok", "Prefect's API", f"{api} answers, version {told['version']}")
    else:
        yield Diagnosis("ok", "Prefect's API", "none is configured: each run starts an embedded server")


def check_unknown_settings(variables: Iterable[str]) -> Iterator[Diagnosis]:
    """Tell which of *variables* look like settings and are none: what was meant by them has its default."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in variables:
        name = variable.upper().removeprefix("EXECUTIONS_")
        # EXECUTIONS_TEST_… are those of this package's own tests.
        if name != variable.upper() and name not in known and not name.startswith("TEST_"):
            near = get_close_matches(name, known, n=1)
            advice = f"Is EXECUTIONS_{near[0]} meant?" if near else "docs/settings.md tells all of them."
            yield Diagnosis("warn", variable, "there is no such setting; it changes nothing", advice)


def _settings(settings: Settings) -> Iterator[Diagnosis]:
    for name in Settings.model_fields:
        variable = f"EXECUTIONS_{name.upper()}"
        given = {one.upper() for one in os.environ}
        source = "environment" if variable in given else "default"
        yield Diagnosis("ok", variable, f"{_shown(settings, name)} ({source})")


def _shown(settings: Settings, name: str) -> str:
    # Start-up time of the CLI; and only what may be shown of an address is.
    from prefect_executions.capture.secrets import redact_url  # noqa: PLC0415
    from prefect_executions.ledger.database import redact_dsn  # noqa: PLC0415

    archive = settings.archive_url
    places = {
        "home": str(settings.home_folder),
        "archive": redact_url(archive, query=False) if "://" in archive else archive,
        "workbench": str(settings.workbench_folder),
        "ledger": redact_dsn(settings.ledger_url),
    }
    if name in places:
        return places[name]
    value = getattr(settings, name)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, bool):
        return str(value).lower()  # as it is set
    return (", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)) or "none"


def _workbench(settings: Settings) -> Iterator[Diagnosis]:
    folder = settings.workbench_folder
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Diagnosis(
            "fail", "workbench", f"{there} cannot be written", "Set EXECUTIONS_WORKBENCH to a folder of yours."
        )
        return
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_SPACE:
        yield Diagnosis("warn", "workbench", f"{folder} has {format_size(free)} left", "Free some space.")
    else:
        yield Diagnosis("ok", "workbench", f"{folder}, {format_size(free)} free")
    left = len(list(open_workbench(settings).unfinished()))
    if left:
        yield Diagnosis("warn", "unfinished", f"{left} executions run or wait", "Run: executions settle --once")


def _archive(settings: Settings) -> Iterator[Diagnosis]:
    # Start-up time of the CLI: the storage's library comes with it.
    from prefect_executions.objectstore.interface import honours_create_if_absent  # noqa: PLC0415

    patience = min(settings.archive_timeout, ARCHIVE_TIMEOUT)
    store = open_workbench(settings.model_copy(update={"archive_timeout": patience})).archive.store
    if honours_create_if_absent(store):
        yield Diagnosis("ok", "archive", f"{store.url} is written to, and creates an object only where there is none")
    else:
        yield Diagnosis(
            "fail",
            "archive",
            f"{store.url} creates an object a second time: two sealers could both believe that the seal is theirs",
            "Use storage that honours If-None-Match: *, such as AWS S3, Ceph, MinIO or SeaweedFS.",
        )


def _ledger(settings: Settings) -> Iterator[Diagnosis]:
    # Start-up time of the CLI: its driver comes with it.
    from prefect_executions.ledger.database import redact_dsn  # noqa: PLC0415
    from prefect_executions.ledger.migrate import HEAD  # noqa: PLC0415

    ledger = open_workbench(settings).ledger
    waiting = len(ledger.pending())
    yield Diagnosis("ok", "ledger", f"{redact_dsn(settings.ledger_url)}, revision {HEAD}")
    if waiting:
        yield Diagnosis(
            "warn", "pending", f"{waiting} executions wait for the archive", "Run: executions settle --once"
        )


def check_runtime(settings: Settings) -> Iterator[Diagnosis]:
    """Tell whether the scripts of a descriptor Method could be run as these settings say; nothing is started."""
    # Start-up time of the CLI: the client of an engine comes with it.
    from prefect_executions.runtimes.registry import RUNTIMES, open_runtime  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        state = Path(folder).resolve()
        try:
            runtime = open_runtime(settings.runtime, state=state, open_network=settings.runtime_network or None)
        except ExecutionsError as error:
            known = RUNTIMES.get(settings.runtime)
            cure = known.advice if known else f"Set EXECUTIONS_RUNTIME to one of {', '.join(RUNTIMES)}."
            yield Diagnosis("fail", "runtime", str(error), cure)
            return
        with closing(runtime):
            in_image = RUNTIMES[runtime.name].runs_images
            if not in_image:
                yield from _unused(settings, [name for name, entry in RUNTIMES.items() if entry.runs_images])
            if in_image and not settings.runtime_image:
                found = f"{runtime.name} answers; a Method that names no image is refused"
                yield Diagnosis("warn", "runtime", found, "Set EXECUTIONS_RUNTIME_IMAGE to the image of such Methods.")
            else:
                yield _planned(runtime, settings, state, image=settings.runtime_image if in_image else "")


def _unused(settings: Settings, image_runtimes: Sequence[str]) -> Iterator[Diagnosis]:
    for name in ("runtime_image", "runtime_network"):
        if getattr(settings, name):
            variable = f"EXECUTIONS_{name.upper()}"
            found = f"{variable} is set, and the runtime '{settings.runtime}' has no use for it"
            cure = f"Set EXECUTIONS_RUNTIME to {' or '.join(image_runtimes)}, or unset {variable}."
            yield Diagnosis("warn", "runtime", found, cure)


def _planned(runtime: Runtime, settings: Settings, folder: Path, *, image: str) -> Diagnosis:
    # As above.
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
            found = f"{runtime.name} answers; {image} is not here, and the first run pulls it"
            return Diagnosis("warn", "runtime", found, f"Pull it now: docker pull {image}")
        return Diagnosis("fail", "runtime", reasons, "Correct the setting that begins with EXECUTIONS_ and names it.")
    return Diagnosis("ok", "runtime", f"{runtime.name} can run scripts{f' in {image}' if image else ''}")


def _programs() -> Iterator[Diagnosis]:
    for program, needed in (
        ("git", "the commit and the changes of a Method's code are not recorded without it"),
        ("dot", "Graphviz draws executions prov --format svg"),
    ):
        path = shutil.which(program)
        if path:
            yield Diagnosis("ok", program, path)
        else:
            cure = f"Install the package {'graphviz' if program == 'dot' else program} of your system."
            yield Diagnosis("warn", program, f"is not there: {needed}", cure)


def _guarded(subject: str, look: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    try:
        yield from look()
    except ExecutionsError as error:
        yield Diagnosis("fail", subject, str(error), f"Check EXECUTIONS_{subject.upper()} and what it names.")
    except Exception as error:  # noqa: BLE001 - the outermost door: a doctor tells what is broken, it does not break
        yield Diagnosis("fail", subject, f"{type(error).__name__}: {error}", f"Check EXECUTIONS_{subject.upper()}.")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**DEFAULTS, **os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        return subprocess.run(  # noqa: S603 - our own text, for this interpreter
            command, env=environment, capture_output=True, text=True, timeout=_SLOWEST, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {_SLOWEST} s")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def doctor(*, as_json: Json = False) -> int:
    """Check all that a run needs, and say what to do.

    Args:
        as_json: One JSON document: every finding.
    """
    found: list[Diagnosis] = []
    for one in _examined(quiet=as_json):
        found.append(one)
        if not as_json:
            show_table((), [(one.outcome, one.subject, one.found, one.advice)])
    failed = [one for one in found if one.outcome == "fail"]
    if as_json:
        show_json({"healthy": not failed, "findings": found})
    else:
        say(f"{len(failed)} of {len(found)} checks failed" if failed else "Everything that a run needs is there.")
    return WORLD if failed else OK


def _examined(*, quiet: bool) -> Iterator[Diagnosis]:
    with status_line("Examining this installation; Prefect takes some seconds", quiet=quiet or not sys.stderr.isatty()):
        found = list(examine())
    yield from found
