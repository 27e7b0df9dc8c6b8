"""Answers as JSON documents: media types, links and times as OGC API - Processes 1.0 writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from prefect_executions.documents import text_of_time

JSON = "application/json"
OPENAPI = "application/vnd.oai.openapi+json;version=3.0"
"""The media type of an API definition, as OGC's clients look for it."""

REL = "http://www.opengis.net/def/rel/ogc/1.0/"
"""The prefix of OGC's link relations."""

Link = dict[str, str]
"""A link: href, rel, type, title."""

Query = Mapping[str, object] | Sequence[tuple[str, object]]


def link(request: Request, path: str, rel: str, title: str, type_: str = JSON, *, query: Query = ()) -> Link:
    """Return a link to *path* of this server, by the address and path prefix that the client used."""
    words = f"?{urlencode(query)}" if query else ""
    href = f"{str(request.base_url).rstrip('/')}{path}{words}"
    return {"href": href, "rel": rel, "type": type_, "title": title}


def answer(
    document: object, status: int = 200, *, media_type: str = JSON, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *document* as JSON. Members that are None are left out, because OGC's schemas know no null."""
    text = json.dumps(_plain(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, headers, media_type)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return text_of_time(value) if isinstance(value, datetime) else value
