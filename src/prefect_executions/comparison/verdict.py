"""The verdict on an execution that ran again from its bundle: how far the second result agrees with the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from prefect_executions.comparison.records import Difference, compare
from prefect_executions.documents import Document, Part
from prefect_executions.executions.record import ExecutionRecord, ScriptRun
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import Comparison


class Grade(StrEnum):
    """How far an execution repeats another; each grade holds all that stand before it."""

    RERUN = "rerun"
    """The same Method ran again, to its end."""
    REPEAT = "repeat"
    """And with the same inputs."""
    RECOMPUTE = "recompute"
    """And with the same code, in the same environment."""
    REPRODUCE = "reproduce"
    """And to the same outputs."""


GRADES = tuple(Grade)


class Agreement(StrEnum):
    """How one output agrees with the recorded one."""

    SAME = "same"
    """Byte for byte."""
    EQUAL = "equal"
    """Other bytes with the same content, or numbers within the tolerance."""
    VOLATILE = "volatile"
    """Other only in what differs in every run, which is named."""
    DIFFERS = "differs"
    GONE = "gone"
    """The second run did not write it."""
    NEW = "new"
    """The first run did not write it."""

    @property
    def agrees(self) -> bool:
        """Whether the output counts as reproduced."""
        return self in {Agreement.SAME, Agreement.EQUAL, Agreement.VOLATILE}


class OutputVerdict(Part):
    """How one output agrees, by what it was compared, and what differs in words."""

    path: str
    agreement: Agreement
    by: str
    """``bytes``, ``JSON``, ``table``, ``pixels`` or ``lines``."""
    words: tuple[str, ...] = ()
    declared: Comparison | None = None
    """How the Method says that it is compared, where it does and the bytes are others."""


class Verdict(Document):
    """How far an execution agrees with the one that it replays; no verdict is changed later.

    `grade` is absent where not even the Method ran to its end. `inputs`, `code` and
    `environment` tell in words what was not the same; nothing there means that all was.
    """

    file_name: ClassVar[str] = "metadata/verdict.json"

    replay_of: str
    manifest_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of the manifest of the bundle that was replayed."""
    grade: Grade | None = None
    tolerance: float = Field(default=0, ge=0)
    """The relative difference of two numbers up to which they are the same."""
    inputs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()

    def reaches(self, grade: Grade) -> bool:
        """Whether the verdict is at least *grade*."""
        return self.grade is not None and GRADES.index(self.grade) >= GRADES.index(grade)

    @property
    def differs(self) -> tuple[str, ...]:
        """All that was not the same, in words; each that tells of an output begins with its path."""
        outputs = (one for one in self.outputs if not one.agreement.agrees)
        return (
            *self.inputs,
            *self.code,
            *self.environment,
            *(f"{one.path}: {words}" for one in outputs for words in one.words or (one.agreement,)),
        )


_SAME_ENVIRONMENT = frozenset({"python", "os", "architecture"})


def judge(
    before: ExecutionRecord,
    after: ExecutionRecord,
    outputs: Iterable[OutputVerdict],
    *,
    status: Status,
    tolerance: float = 0,
    manifest_sha256: str | None = None,
) -> Verdict:
    """Return the verdict on *after* as a replay of *before*; its *outputs* are judged already.

    It is made before *after* is sealed, so the *status* that it will have is said apart.
    """
    told = [one for one in compare(before, after) if not one.same]
    by_part = {
        "inputs": tuple(_in_words(one) for one in told if one.part == "inputs"),
        "code": tuple(_other_code(before, after)),
        "environment": (
            *(_in_words(one) for one in told if _is_environment(one)),
            *_other_images(before.instance.runs or (), after.instance.runs or ()),
        ),
    }
    outputs = tuple(outputs)
    same_method = before.method.id == after.method.id and status is Status.COMPLETED
    reached = (
        same_method,
        not by_part["inputs"],
        not by_part["code"] and not by_part["environment"],
        all(one.agreement.agrees for one in outputs),
    )
    number = next((number for number, held in enumerate(reached) if not held), len(reached))
    return Verdict(
        replay_of=before.id,
        manifest_sha256=manifest_sha256,
        grade=GRADES[number - 1] if number else None,
        tolerance=tolerance,
        outputs=outputs,
        **by_part,
    )


def _other_code(before: ExecutionRecord, after: ExecutionRecord) -> Iterator[str]:
    """What ran and is not of the recorded source; where a file lies, and what of it nobody loads, changes nothing."""
    known = {file.sha256 for file in (before.method.code.files if before.method.code else ())}
    files = after.method.code.files if after.method.code else ()
    if not files:
        yield "which code ran is not known"
    for file in files:
        if file.sha256 not in known:
            yield f"{file.path} is none of the recorded files"


def _other_images(before: Sequence[ScriptRun], after: Sequence[ScriptRun]) -> Iterator[str]:
    """In what scripts ran that is none of the recorded images; an image is the same by its id or by its digest."""
    known = frozenset().union(*map(_image_of, before))
    others = {max(_image_of(run)) for run in after if known.isdisjoint(_image_of(run))}
    for other in sorted(others) if known else ():
        yield f"the image of the scripts was {', '.join(sorted(known))} and is {other}"


def _image_of(run: ScriptRun) -> frozenset[str]:
    return frozenset(filter(None, (run.image, run.image_digest))) or frozenset({"no container"})


def _is_environment(one: Difference) -> bool:
    """Kernel and variables are in the records; packages, interpreter and system are what an environment is made of."""
    return (
        one.part == "packages"
        or (one.part == "environment" and one.name in _SAME_ENVIRONMENT)
        or (one.part == "code" and one.name == "image")
    )


def _in_words(one: Difference) -> str:
    if one.before is None:
        return f"{one.name} is {one.after} and was not there"
    if one.after is None:
        return f"{one.name} was {one.before} and is not there"
    return f"{one.name} was {one.before} and is {one.after}"
