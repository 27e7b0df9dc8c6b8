"""Which of Prefect's flows are Methods.

Law: Prefect itself knows it, so that no database of ours is needed. A Method's
parameter schema carries a mark, which every way to deploy sends along, and a
flow that is known to be a Method gets a tag. The tag is on the flow: renaming a
deployment, or deleting it, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import FlowFilter, FlowFilterTags
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectNotFound

from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.methods.secrets import MARK
from prefect_executions.prefect_api.client import client

TAG = "prefect-executions"
"""The tag of a Prefect flow that is a Method."""

_PAGE = 200


def method_flows(deployed_since: datetime | None) -> frozenset[UUID]:
    """Return the flows that are Methods; deployments since that time, or all, are looked at for new ones.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    try:
        known = _tagged()
        fresh = _deployed(deployed_since) - known
        mark_flows(fresh)
    except Exception as error:
        raise OrchestratorError(f"Prefect's API does not tell which flows are Methods: {error}") from error
    return known | fresh


def mark_flows(flows: Iterable[UUID]) -> None:
    """Tag flows as Methods; those that Prefect does not know are passed over."""
    for flow_id in flows:
        try:
            tags = client().read_flow(flow_id).tags
            if TAG not in tags:
                client().request("PATCH", "/flows/{id}", path_params={"id": flow_id}, json={"tags": [*tags, TAG]})
        except ObjectNotFound:
            continue


def is_method(schema: Mapping[str, Any] | None, description: str | None) -> bool:
    """Whether a deployment with this parameter schema and description is that of a Method."""
    properties = (schema or {}).get("properties") or {}
    return any(MARK in one for one in properties.values() if isinstance(one, Mapping)) or MARK in (description or "")


def _tagged() -> frozenset[UUID]:
    found: set[UUID] = set()
    while True:
        page = client().read_flows(
            flow_filter=FlowFilter(tags=FlowFilterTags(all_=[TAG])), limit=_PAGE, offset=len(found)
        )
        found |= {flow.id for flow in page}
        if len(page) < _PAGE:
            return frozenset(found)


def _deployed(since: datetime | None) -> frozenset[UUID]:
    found: set[UUID] = set()
    offset = 0
    while True:
        page = client().read_deployments(sort=DeploymentSort.UPDATED_DESC, limit=_PAGE, offset=offset)
        for one in page:
            if since is not None and one.updated is not None and in_utc(one.updated) < since:
                return frozenset(found)
            if is_method(one.parameter_openapi_schema, one.description):
                found.add(one.flow_id)
        if len(page) < _PAGE:
            return frozenset(found)
        offset += _PAGE
