"""The check of times in a PROV-XML document: it finds contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from prefect_executions.lifecycle.history import CLOCK_SKEW
from prefect_executions.provenance.reader import Record, records


def time_faults(data: bytes) -> Iterator[str]:
    """Yield the `Times.faults` of a document.

    Raises:
        BundleError: If *data* is not XML, has a DTD, or has an invalid time.
    """
    times = Times()
    for record in records(data):
        times.add(record)
    yield from times.faults()


class _Event(NamedTuple):
    what: str
    at: datetime


@dataclass
class Times:
    """The times in a document, with the activities and entities that they belong to.

    PROV validators do not compare times, because the standard only orders events.
    """

    starts: list[tuple[str, _Event]] = field(default_factory=list)
    ends: list[tuple[str, _Event]] = field(default_factory=list)
    inside: list[tuple[str, _Event]] = field(default_factory=list)
    used: list[tuple[str, _Event]] = field(default_factory=list)
    generated: dict[str, _Event] = field(default_factory=dict)
    derived: list[tuple[str, str]] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        """Yield one sentence for each contradiction between times.

        An activity must start before it ends; it uses and generates entities in between; an entity is
        generated before it is used; and a derived entity is generated after the first use of its source.
        The times may come from two clocks, so a difference of up to `CLOCK_SKEW` is allowed.
        """
        for earlier, later in self.pairs():
            if earlier.at - later.at > CLOCK_SKEW:  # earlier.at + CLOCK_SKEW could be after the year 9999
                yield f"{later.what} at {later.at.isoformat()}, before {earlier.what} at {earlier.at.isoformat()}"

    def add(self, record: Record) -> None:
        """Add the times of a record.

        Raises:
            BundleError: If it has an invalid time.
        """
        activity, entity = record.refs.get("prov:activity", ""), record.refs.get("prov:entity", "")
        match record.kind:
            case "activity":
                self._add_span(record)
            case "wasDerivedFrom":
                ends = record.refs.get("prov:usedEntity", ""), record.refs.get("prov:generatedEntity", "")
                self.derived.append(ends)
            case "wasStartedBy" if at := record.time("prov:time"):
                self.starts.append((activity, _Event(f"{activity} started", at)))
            case "wasEndedBy" if at := record.time("prov:time"):
                self.ends.append((activity, _Event(f"{activity} ended", at)))
            case "used" if at := record.time("prov:time"):
                event = _Event(f"{entity} was used", at)
                self.used.append((entity, event))
                self.inside.append((activity, event))
            case "wasGeneratedBy" if at := record.time("prov:time"):
                event = _Event(f"{entity} was generated", at)
                self.generated[entity] = event
                self.inside.append((activity, event))

    def _add_span(self, record: Record) -> None:
        if at := record.time("prov:startTime"):
            self.starts.append((record.id, _Event(f"{record.id} started", at)))
        if at := record.time("prov:endTime"):
            self.ends.append((record.id, _Event(f"{record.id} ended", at)))

    def pairs(self) -> Iterator[tuple[_Event, _Event]]:
        """Yield each pair (earlier, later) that the order of events requires."""
        starts, ends = dict(self.starts), dict(self.ends)
        for name, event in self.ends:
            if name in starts:
                yield starts[name], event
        for name, event in self.inside:
            if name in starts:
                yield starts[name], event
            if name in ends:
                yield event, ends[name]
        for name, event in self.used:
            if name in self.generated:
                yield self.generated[name], event
        first_use = dict(sorted(self.used, key=lambda pair: pair[1].at, reverse=True))
        for source, derived in self.derived:
            if source in first_use and derived in self.generated:
                yield first_use[source], self.generated[derived]
