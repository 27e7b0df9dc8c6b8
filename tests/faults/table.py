"""All faults as one table, step by fault by outcome: ``python tests/faults``.

It takes about ten minutes on two cores. S3 is harmed where EXECUTIONS_TEST_S3
names a server; small disks need root, and a clock that is moved back needs
a C compiler. What is missing is told. ``--only REGEX`` takes only those rows in
whose step or fault it is found. ``--third N`` runs the rows of one third (0, 1 or
2) and lists the others as deselected: a row is always in the same third.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import archives
from faults import harms, judging, kills, settles
from faults.harms import FROM_THE_START, Harm, Skipped
from faults.kills import Case
from faults.world import World, a_world
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.tracepoints import TracePoint

QUIET = 200.0
"""Seconds until all must be settled: a run that never opened its record is given two minutes to do it."""

_OF_ONE_FILE = (TracePoint.FOLDER_FILLED, TracePoint.FILE_READ, TracePoint.FILE_WRITTEN, TracePoint.FILE_KEPT)
"""Steps at which a single file of the bundle is read or written: wherever the archive is, they are the same."""

THIRDS = 3

Row = tuple[str, str, str, str]
"""One line of the table: whether it is true, where, the step, and the fault with its outcome."""

Make = Callable[[World, ExitStack], Iterator[Harm]]


@dataclass(frozen=True)
class Selection:
    """Which rows of the table are run."""

    only: str = ""
    """A regular expression; rows without a match are not in the table."""
    third: int | None = None
    """Rows of other thirds are listed as deselected; None runs all thirds."""

    def names(self, step: str, fault: str) -> bool:
        """Return whether the row is in the table."""
        return re.search(self.only, f"{step} {fault}") is not None

    def runs(self, where: str, step: str, fault: str) -> bool:
        """Return whether a row of the table is run: the third follows from its names, not from its position."""
        return self.third is None or crc32(f"{where} {step} {fault}".encode()) % THIRDS == self.third

    def take(self, where: str, step: str, fault: str, rows: list[Row]) -> bool:
        """Return whether a row is run; if only its third is not run, add it to *rows* as deselected."""
        if not self.names(step, fault):
            return False
        if self.runs(where, step, fault):
            return True
        rows.append(("deselected", where, step, fault))
        return False


class Lane(NamedTuple):
    """Faults that follow each other in one world, while those of other lanes strike in theirs.

    Most of the time of a fault is spent waiting, so there are more lanes than cores.
    """

    on_s3: bool = False
    makers: Sequence[Make] = ()
    """Those that need a world that nothing else happens in."""
    kills: bool = False
    settles: bool = False
    size: int = 1000


LANES = (
    Lane(makers=(harms.full_disks, harms.closed_folders)),
    Lane(makers=(harms.bad_ledgers, harms.clocks, harms.bad_apis)),
    Lane(kills=True),
    Lane(settles=True),
    Lane(on_s3=True, makers=(harms.bad_storage,), size=harms.BIG),
    Lane(on_s3=True, kills=True, size=harms.BIG),
)


def main() -> int:
    """Run all that *only* selects and return 1 when anything is not true."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--third", type=int, choices=range(THIRDS))
    told = parser.parse_args()
    selection = Selection(told.only, told.third)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ThreadPoolExecutor(len(LANES)) as pool:
        going = [pool.submit(_in_lane, lane, Path(folder, str(number)), selection) for number, lane in enumerate(LANES)]
        lines = [line for lane in going for line in lane.result()]
    if not selection.only:
        lines.append(_whole("both", "every trace point was reached", _unreached(lines)))
    _show(lines)
    untrue = sum(line[0] == "UNTRUE" for line in lines)
    skipped = sum(line[0] == "skipped" for line in lines)
    deselected = sum(line[0] == "deselected" for line in lines)
    left_out = f", {deselected} deselected (only third {selection.third} of 0, 1, 2 ran)" if deselected else ""
    print(f"{len(lines)} faults, {untrue} untrue, {skipped} skipped{left_out}, {time.monotonic() - began:.0f} s")
    return int(bool(untrue))


def _in_lane(lane: Lane, folder: Path, selection: Selection) -> list[Row]:
    began = time.monotonic()
    rows = _on_s3(lane, folder, selection) if lane.on_s3 else _in_a_folder(lane, folder, selection)
    what = [make.__name__.replace("_", " ") for make in lane.makers]
    what += [kills.FAULT] * lane.kills + [settles.FAULT] * lane.settles
    where, took = "s3" if lane.on_s3 else "folder", time.monotonic() - began
    print(f"{where}, {', '.join(what)}: {len(rows)} rows in {took:.0f} s", file=sys.stderr, flush=True)
    return rows


def _in_a_folder(lane: Lane, folder: Path, selection: Selection) -> list[Row]:
    with ExitStack() as stack:
        archive = folder / "archive"
        try:
            stack.enter_context(harms.small_disk(archive, 128))
        except Skipped:
            archive.mkdir(parents=True, exist_ok=True)
        world = stack.enter_context(a_world(folder, {"EXECUTIONS_ARCHIVE": str(archive)}))
        return _all("folder", world, lane, selection)


def _on_s3(lane: Lane, folder: Path, selection: Selection) -> list[Row]:
    endpoint = os.environ.get("EXECUTIONS_TEST_S3", "")
    if not endpoint:
        return [("skipped", "s3", "every step", "every fault: EXECUTIONS_TEST_S3 is not set")]
    place = archives.place(endpoint)
    told = {
        "EXECUTIONS_ARCHIVE": place.url,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": archives.KEY,
        "AWS_SECRET_ACCESS_KEY": archives.SECRET,
    }
    os.environ.update({name: value for name, value in told.items() if name.startswith("AWS_")})
    try:
        with a_world(folder, told) as world:
            rows = _all("s3", world, lane, selection)
            return [*rows, _whole("s3", "no upload is left open", place.unfinished())]
    finally:
        place.close()


def _all(where: str, world: World, lane: Lane, selection: Selection) -> list[Row]:
    """Every fault of a lane: those of each maker are settled one by one, all kills by one settle."""
    rows: list[Row] = []
    judged: list[str] = []
    for make in lane.makers:
        rows += _harmed(where, world, make, selection, judged)
    if lane.kills:
        rows += _settled(where, world, list(_killed(where, world, lane, selection, rows)), judged, {})
    if lane.settles and selection.names("settle:", settles.FAULT):
        steps = [
            step
            for step in settles.settle_steps(world)
            if selection.take(where, f"settle: {step}", settles.FAULT, rows)
        ]
        rows += _settled(where, world, list(settles.killed_settles(world, steps)), judged, {})
    rows += _afterwards(where, world, judged)
    return rows


def _harmed(where: str, world: World, make: Make, selection: Selection, judged: list[str]) -> Iterator[Row]:
    deselected: list[Row] = []
    with ExitStack() as stack:
        try:
            wanted = (
                harm
                for harm in make(world, stack)
                if selection.take(where, harm.step or FROM_THE_START, harm.fault, deselected)
            )
            for workbench, group in groupby(wanted, key=lambda harm: harm.workbench):
                cases = [harms.suffered(world, harm, f"{harm.fault} {harm.step}") for harm in group]
                yield from _settled(where, world, cases, judged, workbench)
        except Skipped as missing:
            yield ("skipped", where, "", f"{make.__name__.replace('_', ' ')}: {missing}")
    yield from deselected


def _settled(
    where: str, world: World, cases: Sequence[Case], judged: list[str], workbench: Mapping[str, str]
) -> Iterator[Row]:
    """Settle until every case is sealed, and judge."""
    until = time.monotonic() + QUIET
    archive = world.workbench().archive
    while cases and time.monotonic() < until:
        world.executions(*settles.SETTLE, environment=workbench)
        if all(archive.seal_of(case.execution_id) for case in cases if case.execution_id):
            break
        time.sleep(5)
    world.executions(*settles.SETTLE, environment=workbench)
    yield from (_row(where, world, case, judged) for case in cases)


def _killed(where: str, world: World, lane: Lane, selection: Selection, rows: list[Row]) -> Iterator[Case]:
    size = lane.size
    for step in kills.steps_of(world, size=size):
        if lane.on_s3 and step.startswith(_OF_ONE_FILE):
            continue
        if selection.take(where, step, kills.FAULT, rows):
            yield kills.killed_at(world, step, size=size)
    failing = kills.steps_of(world, "fails", size=size)
    for step in failing[failing.index(TracePoint.LEFT) + 1 :]:
        if step.startswith("seal:") and selection.take(where, f"{step} (fails)", kills.FAULT, rows):
            yield kills.killed_at(world, step, method="fails", size=size)


def _row(where: str, world: World, case: Case, judged: list[str]) -> Row:
    untrue = list(case.untrue)
    words = "no execution"
    if case.execution_id:
        verdict = judging.judge(world, case.execution_id, case.truth, **dict(case.workbench))
        judged.append(case.execution_id)
        words = verdict.words
        untrue += verdict.untrue
    else:
        untrue.append("there is no execution")
    told = "; ".join([words, *untrue])
    row = ("UNTRUE" if untrue else "true", where, case.step, f"{case.fault} → {told}")
    print("\t".join(row), file=sys.stderr, flush=True)
    return row


def _afterwards(where: str, world: World, judged: Sequence[str]) -> Iterator[Row]:
    """What holds for the world as a whole: nothing half-written is left, and the ledger comes back the same."""
    left = judging.unfinished(world)
    yield _whole(where, "no temporary file is left", left)
    rebuilt = {"EXECUTIONS_LEDGER": f"sqlite:///{world.folder / 'rebuilt.db'}"}
    world.executions("ledger", "rebuild", environment=rebuilt)
    with Ledger.open(world.settings().ledger_url) as one, Ledger.open(world.settings(**rebuilt).ledger_url) as other:
        unlike = [name for name in judged if one.get(name) != other.get(name)]
    yield _whole(where, f"the ledger rebuilt has the same {len(judged)} rows", unlike)


def _unreached(rows: Sequence[Row]) -> list[str]:
    """Return the trace points at which nothing was killed; the first of two sealers sets nothing aside."""
    unreached = {TracePoint.SET_ASIDE, *kills.OF_THE_INDEX}
    if _without_s3(rows):
        unreached |= {TracePoint.PART_SENT, TracePoint.DATA_SENT}
    steps = [row[2] for row in rows]
    return [point for point in TracePoint if point not in unreached and not any(s.startswith(point) for s in steps)]


def _without_s3(rows: Sequence[Row]) -> bool:
    return any(row[:2] == ("skipped", "s3") for row in rows)


def _whole(where: str, what: str, wrong: Sequence[str]) -> Row:
    told = f"{len(wrong)}: {', '.join(wrong[:5])}" if wrong else "yes"
    return ("UNTRUE" if wrong else "true", where, "at the end", f"{what} → {told}")


def _show(rows: Sequence[Row]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
