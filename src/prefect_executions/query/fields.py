"""The fields of a query: one table that parser, documentation, completion and error messages read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum

from prefect_executions.lifecycle.status import AS_OGC, Reason, Status
from prefect_executions.query.tree import Link, Operator, ValueSource


class Kind(Enum):
    """What a field holds, which decides how its literals are read and compared (`KINDS`)."""

    NAME = "name"
    PROSE = "text"
    CHOICE = "choice"
    ID = "id"
    DIGEST = "digest"
    FILE = "file"
    VERSION = "version"
    NUMBER = "number"
    TIME = "time"
    DURATION = "duration"
    SIZE = "size"
    VALUE = "value"
    FLAG = "flag"
    LINK = "execution"
    PRESENCE = "presence"


KINDS: Mapping[Kind, str] = {
    Kind.NAME: "A short text. `:` compares the whole of it and ignores case; `=` is exact.",
    Kind.PROSE: "A sentence. `:` finds a part of it and ignores case; `=` compares all of it exactly.",
    Kind.CHOICE: "One of a few words; case is ignored.",
    Kind.ID: "An id. `:` compares its beginning and ignores case; `=` compares all of it.",
    Kind.DIGEST: "A SHA-256 in hex, or its beginning; `sha256:` in front is optional.",
    Kind.FILE: "A name or a path, as a whole or after its last `/`; or `sha256:` with a digest or its beginning.",
    Kind.VERSION: "`:3.11` is 3.11 and 3.11.7; `<` and `>` compare number by number; `=` is exact.",
    Kind.NUMBER: "A number.",
    Kind.TIME: "A time in UTC, or with a zone: `2026`, `2026-01`, `2026-01-31`, `2026-01-31T12:30+01:00`, `-7d`.",
    Kind.DURATION: "A duration such as `90s`, `5m`, `2h30m` or `1d`; without a unit in seconds.",
    Kind.SIZE: "A size such as `100kB`, `1.5GB` or `2GiB`; without a unit in bytes.",
    Kind.VALUE: "A number, `true`, `false` or a text.",
    Kind.FLAG: "A word.",
    Kind.LINK: "The id of another execution, or its beginning.",
    Kind.PRESENCE: "The name of a field, or of a param, metric or input.",
}
"""What each kind of field compares."""

_EQUALITY = frozenset({Operator.CONTAINS, Operator.EQUAL, Operator.DIFFERENT})
_ORDER = frozenset({Operator.LESS, Operator.LESS_EQUAL, Operator.GREATER, Operator.GREATER_EQUAL})
_PATTERN = frozenset({Operator.MATCHES})

OPERATORS: Mapping[Kind, frozenset[Operator]] = {
    Kind.NAME: _EQUALITY | _ORDER | _PATTERN,
    Kind.PROSE: _EQUALITY | _PATTERN,
    Kind.CHOICE: _EQUALITY,
    Kind.ID: _EQUALITY,
    Kind.DIGEST: _EQUALITY,
    Kind.FILE: _EQUALITY | _PATTERN,
    Kind.VERSION: _EQUALITY | _ORDER | _PATTERN,
    Kind.NUMBER: _EQUALITY | _ORDER,
    Kind.TIME: _EQUALITY | _ORDER,
    Kind.DURATION: _EQUALITY | _ORDER,
    Kind.SIZE: _EQUALITY | _ORDER,
    Kind.VALUE: _EQUALITY | _ORDER | _PATTERN,
    Kind.FLAG: frozenset({Operator.CONTAINS}),
    Kind.LINK: frozenset({Operator.CONTAINS}),
    Kind.PRESENCE: frozenset({Operator.CONTAINS}),
}
"""The operators of each kind; a kind with an order also has ranges, ``a TO b``."""


def has_order(kind: Kind) -> bool:
    """Return whether values of *kind* can be less or greater."""
    return OPERATORS[kind] >= _ORDER


@dataclass(frozen=True)
class QueryField:
    """A field: its name in canonical text, and everything that the parser and the documentation say about it."""

    name: str
    kind: Kind
    description: str
    """One line."""
    example: str
    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    """Other names, lower case; most are words of other systems."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True, hash=False)
    """For a choice: each word that may be typed, with the values that it stands for; a value stands for itself."""
    several: bool = field(default=False, kw_only=True)
    """An execution may have several values; a condition matches if one of them does."""
    searched: bool = field(default=False, kw_only=True)
    """Free text is searched in it."""


def _words(values: Iterable[str], **further: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {value.lower(): (value.lower(),) for value in values} | further


def _statuses(*statuses: Status) -> tuple[str, ...]:
    return tuple(status.lower() for status in statuses)


_OGC_STATUSES = {word: _statuses(*(one for one in Status if AS_OGC[one] == word)) for word in AS_OGC.values()}
_STATUS_WORDS = _OGC_STATUSES | _words(
    Status,
    ended=_statuses(*(status for status in Status if status.terminal)),
    pending=_statuses(Status.CREATED, Status.SCHEDULED),
    success=_statuses(Status.COMPLETED),
    succeeded=_statuses(Status.COMPLETED),
    canceled=_statuses(Status.CANCELLED),
    killed=_statuses(Status.CANCELLED),
)

FIELDS: tuple[QueryField, ...] = (
    QueryField(
        "id",
        Kind.ID,
        "The execution's id, or its beginning.",
        "id:9068ec87",
        aliases=("run", "run_id", "execution", "job", "jobid"),
        searched=True,
    ),
    QueryField(
        "method",
        Kind.NAME,
        "The id of the Method.",
        "method:mnist",
        aliases=("pipeline", "stage", "process", "processid", "workflow"),
        searched=True,
    ),
    QueryField("title", Kind.PROSE, "The title of the Method.", 'title:"handwritten digits"', searched=True),
    QueryField("version", Kind.VERSION, "The version of the Method.", "version>=1.10"),
    QueryField("type", Kind.NAME, "The type of the Method.", "type:training"),
    QueryField(
        "status",
        Kind.CHOICE,
        "The status; also `running`, `ended` and the words of OGC.",
        "status:failed,cancelled",
        aliases=("state",),
        choices=_STATUS_WORDS,
    ),
    QueryField("reason", Kind.CHOICE, "Why the execution failed.", "reason:timed_out", choices=_words(Reason)),
    QueryField(
        "date", Kind.TIME, "When the execution was first known.", "date:2026-01-01 TO 2026-01-31", aliases=("datetime",)
    ),
    QueryField("created", Kind.TIME, "When the execution was created.", "created:2026-01"),
    QueryField("scheduled", Kind.TIME, "When the execution was scheduled.", "scheduled<2026-01-31T12:00"),
    QueryField("started", Kind.TIME, "When the Method's code started.", "started:>-7d", aliases=("start_time",)),
    QueryField(
        "finished",
        Kind.TIME,
        "When the execution ended.",
        "finished>=2026-01-31T12:00:00+01:00",
        aliases=("ended", "end_time"),
    ),
    QueryField("updated", Kind.TIME, "When the record last changed.", "updated:-2h30m"),
    QueryField("duration", Kind.DURATION, "From start to end.", "duration>5m"),
    QueryField("attempt", Kind.NUMBER, "The number of the last attempt.", "attempt>1"),
    QueryField("progress", Kind.NUMBER, "The last reported progress, in percent.", "progress<50"),
    QueryField(
        "message",
        Kind.PROSE,
        "The last message, for example that of the exception.",
        'message:"out of memory"',
        searched=True,
    ),
    QueryField(
        "name",
        Kind.NAME,
        "The name of the execution: that of its annotations, else that of its flow run.",
        "name:brave-*",
        aliases=("run_name", "flow_run"),
        searched=True,
    ),
    QueryField("tag", Kind.NAME, "A tag.", "tag:baseline", aliases=("tags",), several=True, searched=True),
    QueryField("experiment", Kind.NAME, "The experiment.", "experiment:ablation", searched=True),
    QueryField("note", Kind.PROSE, "A note.", 'note:"plot 3"', aliases=("notes",), several=True, searched=True),
    QueryField(
        "agent", Kind.NAME, "Who requested the execution.", "agent:ada", aliases=("user", "owner"), searched=True
    ),
    QueryField(
        "infrastructure",
        Kind.NAME,
        "The type of the infrastructure: that of the work pool, or `direct`.",
        "infrastructure:kubernetes",
    ),
    QueryField("pool", Kind.NAME, "The work pool.", "pool:gpu", aliases=("work_pool",)),
    QueryField("worker", Kind.NAME, "The worker.", "worker:worker-1"),
    QueryField(
        "host", Kind.NAME, "The host on which the code ran.", "host:node1*", aliases=("hostname",), searched=True
    ),
    QueryField("deployment", Kind.NAME, "The name of the deployment.", "deployment:nightly", searched=True),
    QueryField("branch", Kind.NAME, "The Git branch of the code.", "NOT branch:main", searched=True),
    QueryField("commit", Kind.ID, "The Git commit of the code, or its beginning.", "commit:a3f9e2b7", searched=True),
    QueryField("author", Kind.NAME, "The author of the commit.", 'author:"Ada Lovelace"*', searched=True),
    QueryField("subject", Kind.PROSE, "The subject of the commit.", "subject:dropout", searched=True),
    QueryField("remote", Kind.NAME, "The Git repository of the code.", "remote:*/digits.git", aliases=("repository",)),
    QueryField("code", Kind.DIGEST, "The digest of the Method's code.", "code:sha256:5e884898", searched=True),
    QueryField("python", Kind.VERSION, "The version of Python.", "python:3.11"),
    QueryField("driver", Kind.VERSION, "The version of the GPU's driver.", "driver>=550"),
    QueryField("cuda", Kind.VERSION, "The version of CUDA.", "cuda:12"),
    QueryField("cpu", Kind.DURATION, "The CPU time of all attempts.", "cpu>1h", aliases=("cpu_time",)),
    QueryField("memory", Kind.SIZE, "The largest amount of memory that was used.", "memory>1.5GB"),
    QueryField(
        "input",
        Kind.FILE,
        "An input file: its name, the name of the input, or its digest. `input:seed=3` is `in:seed=3`.",
        "input:sha256:1f3c",
        several=True,
        searched=True,
    ),
    QueryField(
        "output",
        Kind.FILE,
        "An output file: its path, its name, or its digest.",
        "output:*.csv",
        aliases=("artifact",),
        several=True,
        searched=True,
    ),
    QueryField("size", Kind.SIZE, "The size of an output file.", "size>1.5GB", several=True),
    QueryField(
        "media",
        Kind.NAME,
        "The media type of an output file.",
        "media:image/*",
        aliases=("media_type", "mediatype"),
        several=True,
    ),
    QueryField(
        "param",
        Kind.VALUE,
        "A param by its name; members of nested params have dotted names.",
        "param:optimizer.name=adam",
        aliases=("params", "parameter", "parameters"),
        several=True,
    ),
    QueryField(
        "metric",
        Kind.VALUE,
        "A metric by its name: its last value, or `.min`, `.max`, `.first` or `.last`.",
        "metric:accuracy.max>0.9",
        aliases=("metrics",),
        several=True,
    ),
    QueryField("in", Kind.VALUE, "The value of an input by its name.", "in:seed=3", aliases=("inputs",), several=True),
    QueryField(
        "property",
        Kind.VALUE,
        "A param, else a metric, else an input of this name, as without a prefix.",
        "property:epochs>10",
        aliases=("prop", "properties"),
        several=True,
    ),
    QueryField(
        "has",
        Kind.PRESENCE,
        "There is a value of this field, or a param, metric or input of this name.",
        "has:metric.loss",
    ),
    QueryField("is", Kind.FLAG, "A flag is set.", "is:archived"),
    QueryField("parent", Kind.LINK, "The executions that this one started.", "parent:9068ec87"),
    QueryField("reruns", Kind.LINK, "The reruns of this one.", "reruns:9068ec87", aliases=("rerun_of",)),
    QueryField("uses", Kind.LINK, "The executions with an input file that this one made.", "uses:9068ec87"),
    QueryField(
        "usedby",
        Kind.LINK,
        "The executions that made an input file of this one.",
        "usedby:9068ec87",
        aliases=("used_by",),
    ),
)
"""Every field, in the order of the documentation."""

FLAGS: Mapping[str, str] = {
    "archived": "The sealed bundle is in the archive.",
    "dirty": "The code had uncommitted changes.",
    "imported": "The execution was imported.",
    "partial": "The record is incomplete.",
    "recalled": "The execution was recalled, because it or an input of it is wrong.",
    "signed": "The seal is signed.",
    "starred": "The execution has a star.",
}
"""The flags of ``is:``, with their descriptions."""

BY_NAME: Mapping[str, QueryField] = {name: one for one in FIELDS for name in (one.name, *one.aliases)}
"""Every field by its name and its aliases."""

SOURCES: Mapping[str, ValueSource] = {
    name: ValueSource(one.name) for name, one in BY_NAME.items() if one.kind is Kind.VALUE
}
"""The source of a named value by the name and the aliases of its field."""

LINKS: Mapping[str, Link] = {name: Link(one.name) for name, one in BY_NAME.items() if one.kind is Kind.LINK}


def searched() -> Iterator[QueryField]:
    """Yield the fields in which free text is searched."""
    return (one for one in FIELDS if one.searched)


def nearest(word: str, among: Iterable[str]) -> str | None:
    """Return the one of *among* that *word* is most likely a misspelling of; None if none is near."""
    found = get_close_matches(word.lower(), list(among), n=1, cutoff=0.7)
    return found[0] if found else None
