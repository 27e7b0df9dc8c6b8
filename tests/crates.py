"""The RO-Crate validator without a network: a warm cache, and what it finds in a folder."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from rocrate_validator import services  # type: ignore[import-untyped]
from rocrate_validator.models import ValidationSettings  # type: ignore[import-untyped]
from urllib3 import HTTPResponse

TERMS = "https://w3id.org/ro/terms/workflow-run"
WORKFLOW_RUN_TERMS = (
    "ParameterConnection",
    "ContainerImage",
    "DockerImage",
    "SIFImage",
    "connection",
    "sourceParameter",
    "targetParameter",
    "md5",
    "sha1",
    "sha256",
    "sha512",
    "environment",
    "registry",
    "tag",
    "containerImage",
    "resourceUsage",
)


def contexts() -> dict[str, bytes]:
    """Return the contexts that our crates name, by their addresses."""
    crate = Path(__file__).parent / "data/contexts/ro-crate-1.1.jsonld"
    run = {"@context": {term: f"{TERMS}#{term}" for term in WORKFLOW_RUN_TERMS}}
    return {
        "https://w3id.org/ro/crate/1.1/context": crate.read_bytes(),
        f"{TERMS}/context": json.dumps(run).encode(),
    }


class FromMemory(HTTPAdapter):
    """Answers each known address with its context and knows no other."""

    def send(self, request: requests.PreparedRequest, *_args: Any, **_options: Any) -> requests.Response:
        body = io.BytesIO(contexts()[str(request.url)])
        headers = {"Content-Type": "application/ld+json"}
        answer = HTTPResponse(body, headers, status=200, preload_content=False, request_url=request.url)
        return self.build_response(request, answer)


def warm_cache(folder: Path) -> Path:
    """Fill an HTTP cache, in the form that the validator keeps its own in, and return its path."""
    path = folder / "validator-cache"
    with CachedSession(str(path), backend="sqlite", expire_after=-1, allowable_methods=("GET",)) as session:
        session.mount("https://", FromMemory())
        for address in contexts():
            session.get(address, headers={"Accept": "application/ld+json"}).raise_for_status()
    return path


def issues_in(crate: Path, cache: Path) -> list[str]:
    """Return what the validator finds at the levels REQUIRED and RECOMMENDED; the crate's files must lie there."""
    settings = ValidationSettings(
        rocrate_uri=str(crate),
        profile_identifier="process-run-crate",
        requirement_severity="RECOMMENDED",
        offline=True,
        cache_path=cache,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # rdflib deprecates what its own parser uses
        result = services.validate(settings)
    return [f"{issue.severity.name} {issue.check.identifier}: {issue.message}" for issue in result.get_issues()]
