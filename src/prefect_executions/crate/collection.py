"""The crate of several exported executions: a folder with a subfolder, and a crate of its own, for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from prefect_executions.crate import vocabulary
from prefect_executions.crate.vocabulary import Entity, uri
from prefect_executions.crate.writer import NO_LICENSE, NOT_STATED, not_stated, orcid, render, time_text
from prefect_executions.executions.record import Agent


class CollectedCrate(NamedTuple):
    """One execution of the collection: its id, which names its folder, its end, and its requester."""

    execution_id: str
    finished: datetime | None
    agent: Agent


def collect(crates: Sequence[CollectedCrate]) -> bytes:
    """Return `ro-crate-metadata.json` for a folder with a subfolder for each of *crates*.

    Its authors are the known requesters. Equal crates have equal bytes.
    """
    return render(_entities(crates))


def _entities(crates: Sequence[CollectedCrate]) -> Iterator[Entity]:
    yield {
        "@id": vocabulary.FILE,
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": vocabulary.CRATE},
    }
    ids = _author_ids(crates)
    authors = {ids[_identity(crate.agent)]: crate.agent.name for crate in crates if crate.agent.name}
    yield {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{len(crates)} executions",
        "description": "Execution bundles, each of which is a Process Run Crate of its own.",
        "datePublished": time_text(max((crate.finished for crate in crates if crate.finished), default=None)),
        "license": NO_LICENSE,
        "author": [{"@id": name} for name in authors] or NOT_STATED,
        "publisher": NOT_STATED,
        "hasPart": [{"@id": _folder(crate)} for crate in crates],
    }
    yield from not_stated()
    for author, name in authors.items():
        yield {"@id": author, "@type": "Person", "name": name, "affiliation": NOT_STATED}
    for crate in crates:
        yield from _part(crate, ids.get(_identity(crate.agent)))


def _author_ids(crates: Sequence[CollectedCrate]) -> dict[tuple[str, ...], str]:
    """Return the id in the crate of each requester with a known name."""
    agents = {_identity(crate.agent): crate.agent for crate in crates if crate.agent.name}
    return {who: orcid(agent) or f"#agent.{number}" for number, (who, agent) in enumerate(agents.items())}


def _identity(agent: Agent) -> tuple[str, ...]:
    return tuple(str(agent.claims.get(claim)) for claim in ("iss", "sub", "name"))


def _part(crate: CollectedCrate, author: str | None) -> Iterator[Entity]:
    document = f"{_folder(crate)}{vocabulary.FILE}"
    yield {
        "@id": _folder(crate),
        "@type": "Dataset",
        "name": f"Execution {crate.execution_id}",
        "description": f"{document} describes the content of this crate.",
        "identifier": crate.execution_id,
        "author": author and {"@id": author},
        "hasPart": {"@id": document},
    }
    yield {
        "@id": document,
        "@type": "File",
        "name": f"The crate of execution {crate.execution_id}",
        "description": "RO-Crate metadata of the folder that contains it.",
        "encodingFormat": "application/ld+json",
    }


def _folder(crate: CollectedCrate) -> str:
    return uri(f"{crate.execution_id}/")
