"""`executions replay`: an execution once more from its bundle alone, with a verdict on how far it agrees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from prefect_executions.cli.asking import Json, Pairs, parameters, reader
from prefect_executions.cli.codes import FAILED, OK
from prefect_executions.cli.running import ran_here, tell_unrecorded
from prefect_executions.cli.showing import show_facts, show_json, show_table, working
from prefect_executions.errors import RequestError

if TYPE_CHECKING:
    from prefect_executions.bundles.writing import OpenBundle
    from prefect_executions.comparison.verdicts import Verdict
    from prefect_executions.workbench.replaying import Replay

# `comparison.verdicts`' Grade, whose import is not needed for --help.
GradeName = Literal["rerun", "repeat", "recompute", "reproduce"]

_COMMAND = "import sys; from prefect_executions.cli import main; sys.exit(main())"


def replay(
    target: str,
    /,
    *,
    isolated: bool = False,
    tolerance: float = 0.0,
    grade: GradeName = "reproduce",
    param: Pairs = (),
    params: str | None = None,
    as_json: Json = False,
) -> int:
    """Run an execution again from its bundle alone, compare the outputs, and give a verdict.

    The verdict is part of the new execution's bundle. What is missing is named before anything runs.

    Args:
        target: A zip or folder with one bundle, or an execution's id or its beginning.
        isolated: In a fresh environment with the recorded versions of all packages, not in this one.
        tolerance: The relative difference up to which two numbers are the same.
        grade: What must be reached for exit code 0: rerun, repeat, recompute or reproduce.
        param: A secret's name, or an input that is to be another, as name=value; may be given several times.
        params: A JSON file with an object of such inputs; - is standard input.
        as_json: One JSON document.
    """
    if not 0 <= tolerance < 1:
        raise RequestError(f"--tolerance {tolerance}: a number from 0 to below 1 is wanted")
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.comparison.verdicts import Grade  # noqa: PLC0415
    from prefect_executions.workbench.replaying import replay_of, replayable  # noqa: PLC0415

    edits = parameters(param, params)
    with replayable(reader(), target) as (record, source), replay_of(record, source, edits) as ready:
        if isolated:
            return _elsewhere(ready, target, edits, tolerance, grade, as_json=as_json)
        return _here(ready, tolerance, Grade(grade), as_json=as_json)


def _here(ready: Replay, tolerance: float, grade: Any, *, as_json: bool) -> int:
    verdicts: list[Verdict] = []

    def judged(bundle: OpenBundle, error: BaseException | None) -> None:
        verdicts.append(ready.verdict(bundle, tolerance=tolerance, well=error is None))

    sys.path[:0] = ready.paths
    tags = [ready.again.relative.tag]
    flow, ran = ran_here(
        ready.entrypoint, ready.again.parameters, tags=tags, gathered=judged, quiet=False, as_json=as_json
    )
    if ran.execution_id is None or not verdicts:
        return tell_unrecorded(flow, ran, quiet=False, as_json=as_json)
    reached = verdicts[-1].reaches(grade)
    _tell(ran.execution_id, verdicts[-1], grade, reached=reached, as_json=as_json)
    return OK if reached else FAILED


def _elsewhere(
    ready: Replay, target: str, edits: Mapping[str, Any], tolerance: float, grade: str, *, as_json: bool
) -> int:
    import json  # noqa: PLC0415 - only here

    # Start-up time of the CLI: only this needs it.
    from prefect_executions.workbench.environments import make_environment  # noqa: PLC0415

    with TemporaryDirectory(prefix="executions-environment-") as folder:
        with working(f"Installing {len(ready.record.instance.packages)} packages as recorded", quiet=as_json):
            python = make_environment(ready.record, Path(folder) / "venv")
        given = Path(folder) / "inputs.json"
        given.write_text(json.dumps(edits))
        words = ["replay", target, "--tolerance", str(tolerance), "--grade", grade, "--params", str(given)]
        # What would let packages of this environment in.
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        command = [str(python), "-c", _COMMAND, *words, *(["--json"] if as_json else [])]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - words of our own


def _tell(execution_id: str, verdict: Verdict, grade: str, *, reached: bool, as_json: bool) -> None:
    if as_json:
        show_json({"id": execution_id, "wanted": grade, "reached": reached, "verdict": verdict})
        return
    show_table(
        ("output", "agreement", "by", "what"),
        ((one.path, one.agreement, one.by, "; ".join(one.words)) for one in verdict.outputs),
    )
    for part in ("inputs", "code", "environment"):
        show_table(("what is not the same",), ((words,) for words in getattr(verdict, part)), title=part)
    show_facts(
        [
            ("execution", execution_id),
            ("replay of", verdict.replay_of),
            ("grade", verdict.grade or "none: the Method did not run to its end"),
            ("wanted", f"{grade}, which is {'reached' if reached else 'not reached'}"),
        ]
    )
