"""How a Method says that an output is to be compared when an execution of it is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from prefect_executions.documents import Part

OUTPUTS = "outputs/"

Kind = Literal["bytes", "JSON", "table", "pixels", "lines"]


class Comparison(Part):
    """How an output is compared with that of another execution.

    Attributes:
        by: What it is compared as; by its media type when left out. By ``bytes`` only the same bytes are the same.
        tolerance: The relative difference up to which two numbers are the same.
        absolute_tolerance: The difference up to which they are, too, however near to 0 they lie.
        volatile: Columns or JSON members that differ in every run, by their names, in which * and ? stand for
            anything; ``*`` is the whole output. They are told and not judged.
    """

    by: Kind | None = None
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    absolute_tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    volatile: tuple[str, ...] = ()

    @property
    def is_volatile(self) -> bool:
        """Whether the whole output is."""
        return "*" in self.volatile

    def is_volatile_part(self, name: str) -> bool:
        """Whether the column or member *name* is."""
        return any(fnmatchcase(name, pattern) for pattern in self.volatile)

    def at_least(self, tolerance: float) -> Comparison:
        """Return the comparison with no smaller relative tolerance than *tolerance*."""
        return self if tolerance <= self.tolerance else self.model_copy(update={"tolerance": tolerance})


def comparison_of(path: str, declared: Mapping[str, Comparison] | None) -> Comparison | None:
    """Return what is *declared* for the output at *path*: by its name, else by the first pattern that fits it."""
    name = path.removeprefix(OUTPUTS)
    if not declared or name in declared:
        return declared[name] if declared else None
    return next((one for pattern, one in declared.items() if fnmatchcase(name, pattern)), None)
