"""Hold a crate against the record and the files that it was built of, entity by entity and word by word.

Law: a crate is a function of record and files. What `build` says in another way some
day is another way for bundles that are sealed already, too; they must still pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from prefect_executions.crate import vocabulary
from prefect_executions.crate.reader import entities_of
from prefect_executions.crate.vocabulary import Entity, uri
from prefect_executions.crate.writer import build
from prefect_executions.documents import canonical, strict_json
from prefect_executions.executions.record import BundleFile, ExecutionRecord

_SHOWN = 200


def differences(
    data: bytes, record: ExecutionRecord, files: Sequence[BundleFile], unmeasured: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield one sentence for each word in which the crate *data* differs from what *record* and *files* say.

    *files* are those that `build` was given. The sizes of those at the paths *unmeasured*
    are not known, and not looked at. The order of entities and of references says nothing.

    Raises:
        BundleError: If *data* is not the document of a crate.
    """
    built = build(record, files)
    if data == built:
        return
    told, said = strict_json(data, vocabulary.FILE), strict_json(built, vocabulary.FILE, bounded=False)
    there, ours = entities_of(told), entities_of(said)
    for path in unmeasured:
        there.get(uri(path), {}).pop("contentSize", None)
        ours[uri(path)].pop("contentSize", None)
    yield from _members(_without_graph(told), _without_graph(said), "the document")
    for name in there.keys() - ours.keys():
        yield f"{vocabulary.FILE}: it tells of {name[:_SHOWN]}; the documents do not"
    for name, entity in ours.items():
        if name in there:
            yield from _members(there[name], entity, name)
        else:
            yield f"{vocabulary.FILE}: it does not tell of {name}; the documents do"


def _without_graph(document: Entity) -> Entity:
    return {key: value for key, value in document.items() if key != "@graph"}


def _members(told: Entity, said: Entity, name: str) -> Iterator[str]:
    for key in told | said:
        if _unordered(told.get(key)) != _unordered(said.get(key)):
            yield (
                f"{vocabulary.FILE}: {key[:_SHOWN]} of {name} is {_words(told.get(key))}; "
                f"the documents say {_words(said.get(key))}"
            )


def _unordered(value: Any) -> Any:
    return sorted(map(canonical, value)) if isinstance(value, list) else value


def _words(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)[:_SHOWN]
