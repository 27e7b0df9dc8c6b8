"""The crate around several crates: its document names each and its own document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from prefect_executions.crate import vocabulary
from prefect_executions.crate.vocabulary import Entity, uri
from prefect_executions.crate.writer import NO_LICENSE, NOT_STATED, not_stated, rendered, time_text


def collect(ids: Sequence[str], newest: datetime | None) -> bytes:
    """Return `ro-crate-metadata.json` for a folder that holds the crate of each of *ids* in a folder of its name.

    *newest* is when the last of them ended. The same ids and time give the same bytes.
    """
    return rendered(_entities(ids, newest))


def _entities(ids: Sequence[str], newest: datetime | None) -> Iterator[Entity]:
    yield {
        "@id": vocabulary.FILE,
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": vocabulary.CRATE},
    }
    folders = [uri(f"{execution_id}/") for execution_id in ids]
    yield {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{len(ids)} executions",
        "description": "Execution bundles (format 1), each of which is a Process Run Crate of its own.",
        "datePublished": time_text(newest),
        "license": NO_LICENSE,
        "publisher": NOT_STATED,
        "hasPart": [{"@id": folder} for folder in folders],
    }
    yield from not_stated()
    for execution_id, folder in zip(ids, folders, strict=True):
        document = f"{folder}{vocabulary.FILE}"
        yield {
            "@id": folder,
            "@type": "Dataset",
            "name": f"Execution {execution_id}",
            "description": f"What this crate holds, {document} tells.",
            "identifier": execution_id,
            "hasPart": {"@id": document},
        }
        yield {
            "@id": document,
            "@type": "File",
            "name": f"The crate of execution {execution_id}",
            "description": "RO-Crate metadata of the folder that it lies in.",
            "encodingFormat": "application/ld+json",
        }
