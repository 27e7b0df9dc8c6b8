"""The verdict on a replay: how far its result agrees with the recorded execution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from prefect_executions.comparison.records import Difference, compare
from prefect_executions.documents import Document, Part
from prefect_executions.errors import RequestError
from prefect_executions.executions.record import ExecutionRecord, ScriptRun
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import Comparison


class Grade(StrEnum):
    """How far an execution repeats another; each grade includes all grades before it."""

    RERUN = "rerun"
    """The same Method ran again and completed."""
    REPEAT = "repeat"
    """Also: the inputs are equal."""
    RECOMPUTE = "recompute"
    """Also: code and environment are equal."""
    REPRODUCE = "reproduce"
    """Also: the outputs agree."""


GRADES = tuple(Grade)


@dataclass(frozen=True, kw_only=True)
class ReplayGoal:
    """How a replay runs, and the grade that it must reach."""

    isolated: bool = False
    """Run in a fresh environment with the recorded package versions."""
    tolerance: float = 0.0
    """Relative difference up to which two numbers are equal (default: 0)."""
    grade: Grade = Grade.REPRODUCE
    """Grade required for exit code 0 (default: reproduce)."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise RequestError(f"the tolerance must be at least 0 and below 1, not {self.tolerance}")


class Agreement(StrEnum):
    """How one output agrees with the recorded one."""

    SAME = "same"
    """Identical bytes."""
    EQUAL = "equal"
    """Different bytes with equal content, or numbers within the tolerance."""
    VOLATILE = "volatile"
    """Differs only in parts that differ in every run; the words name them."""
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
    """How one output agrees, how it was compared, and its differences in words."""

    path: str
    agreement: Agreement
    by: str
    """``bytes``, ``JSON``, ``table``, ``pixels`` or ``lines``."""
    words: tuple[str, ...] = ()
    declared: Comparison | None = None
    """The comparison that the Method declares for this output, if the bytes differ."""


class Verdict(Document):
    """How far a replay agrees with the recorded execution; a verdict never changes.

    `grade` is absent if the Method did not complete. `inputs`, `code` and `environment`
    list the differences in words; an empty list means that everything was equal.
    """

    file_name: ClassVar[str] = "metadata/verdict.json"

    replay_of: str
    manifest_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of the manifest of the bundle that was replayed."""
    grade: Grade | None = None
    tolerance: float = Field(default=0, ge=0)
    """The relative difference up to which two numbers count as equal."""
    inputs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()

    def reaches(self, grade: Grade) -> bool:
        """Whether the verdict is at least *grade*."""
        return self.grade is not None and GRADES.index(self.grade) >= GRADES.index(grade)

    def implied_grade(self, *, completed: bool) -> Grade | None:
        """Return the grade that the lists of differences give, if the Method *completed*."""
        return _highest(
            (
                completed,
                not self.inputs,
                not self.code and not self.environment,
                all(output.agreement.agrees for output in self.outputs),
            )
        )

    @property
    def differs(self) -> tuple[str, ...]:
        """All differences in words; a difference of an output begins with its path."""
        outputs = (output for output in self.outputs if not output.agreement.agrees)
        return (
            *self.inputs,
            *self.code,
            *self.environment,
            *(f"{output.path}: {words}" for output in outputs for words in output.words or (output.agreement,)),
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
    """Return the verdict on *after* as a replay of *before*, with the verdicts on its *outputs*.

    The verdict is part of the bundle of *after*, so it is made before the seal; *status* is the final status.
    """
    differences = [difference for difference in compare(before, after) if not difference.same]
    by_part = {
        "inputs": tuple(_in_words(difference) for difference in differences if difference.part == "inputs"),
        "code": tuple(_code_differences(before, after)),
        "environment": (
            *(_in_words(difference) for difference in differences if _is_environment(difference)),
            *_image_differences(before.instance.runs or (), after.instance.runs or ()),
        ),
    }
    outputs = tuple(outputs)
    verdict = Verdict(
        replay_of=before.id, manifest_sha256=manifest_sha256, tolerance=tolerance, outputs=outputs, **by_part
    )
    same_method = before.method.id == after.method.id and status is Status.COMPLETED
    return verdict.model_copy(update={"grade": verdict.implied_grade(completed=same_method)})


def _highest(reached: Sequence[bool]) -> Grade | None:
    """Return the grade whose requirement, and every requirement before it, is *reached*, in the order of `GRADES`."""
    number = next((number for number, holds in enumerate(reached) if not holds), len(reached))
    return GRADES[number - 1] if number else None


def _code_differences(before: ExecutionRecord, after: ExecutionRecord) -> Iterator[str]:
    """Yield loaded files that are not in the recorded source; paths and unloaded files do not matter."""
    if before.method.comparisons != after.method.comparisons:
        yield "the code declares other comparisons of outputs than the recorded Method"
    known = {file.sha256 for file in (before.method.code.files if before.method.code else ())}
    files = after.method.code.files if after.method.code else ()
    if not files:
        yield "the code that ran is unknown"
    for file in files:
        if file.sha256 not in known:
            yield f"{file.path} is not one of the recorded files"


def _image_differences(before: Sequence[ScriptRun], after: Sequence[ScriptRun]) -> Iterator[str]:
    """Yield the images of scripts that were not recorded; images are equal if their ids or their digests are."""
    known = frozenset().union(*map(_image_of, before))
    unknown = {max(_image_of(run)) for run in after if known.isdisjoint(_image_of(run))}
    for image in sorted(unknown) if known else ():
        yield f"the image of the scripts was {', '.join(sorted(known))} and is {image}"


def _image_of(run: ScriptRun) -> frozenset[str]:
    return frozenset(filter(None, (run.image, run.image_digest))) or frozenset({"no container"})


def _is_environment(difference: Difference) -> bool:
    """Packages, interpreter, system and image decide; kernel and environment variables are only recorded."""
    return (
        difference.part == "packages"
        or (difference.part == "environment" and difference.name in _SAME_ENVIRONMENT)
        or (difference.part == "code" and difference.name == "image")
    )


def _in_words(difference: Difference) -> str:
    name, before, after = difference.name, _value_text(difference.before), _value_text(difference.after)
    if before is None:
        return f"{name} is {after} and was absent"
    if after is None:
        return f"{name} was {before} and is absent"
    return f"{name} was {before} and is {after}"


def _value_text(value: Any) -> Any:
    """Return a value that JSON lacks as Python writes it; any other value as it is."""
    from prefect_executions.executions.values import has_marker, text_of  # noqa: PLC0415 - start-up time of the CLI

    return text_of(value) if has_marker(value) else value
