"""The manifest of a Kubernetes Job: the schemas of newer clusters, and fields that a cluster drops."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_executions.runtimes.interface import Pull, Resources, RunRequest, SharedClaim
from prefect_executions.runtimes.kubernetes.manifest import (
    dropped_fields,
    job_manifest,
    parse_quantity,
    secret_manifest,
)

ALL = RunRequest(
    id="a.run",
    execution_id="9068ec87-e88e-4a19-ba3c-e37cd7720f7a",
    script="true",
    data=Path("/shared/data"),
    environment={"A": "$(B) $$"},
    secrets={"TOKEN": "sesame"},
    image="science/hello@sha256:00",
    pull=Pull.ALWAYS,
    user="1000:1000",
    resources=Resources(cpus=1.5, memory=1 << 30, gpus=2, time_limit=60.5),
)
CLAIM = SharedClaim(name="shared", root=Path("/shared"))


@pytest.mark.parametrize("version", ["1.27", "1.32", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("claim", [None, CLAIM])
def test_the_schemas_of_newer_clusters_have_every_field(version, claim):
    job = job_manifest(ALL, claim=claim, host_network=True, keep=60)
    kubernetes_validate.validate(job, version, strict=True)
    kubernetes_validate.validate(secret_manifest(ALL, {"metadata": {"uid": "1"}}), version, strict=True)


def test_a_job_states_the_whole_request_and_no_secret():
    job = job_manifest(ALL, claim=CLAIM, host_network=False, keep=60)
    pod = job["spec"]["template"]["spec"]
    script = pod["containers"][-1]
    assert "sesame" not in str(job)
    assert script["resources"]["limits"] == {"cpu": "1500m", "memory": str(1 << 30), "nvidia.com/gpu": "2"}
    assert script["resources"]["requests"] == script["resources"]["limits"]
    assert {"name": "data", "mountPath": "/ccp_data", "subPath": "data"} in script["volumeMounts"]
    assert {container["imagePullPolicy"] for container in (*pod["containers"], *pod["initContainers"])} == {"Always"}
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never"), "nothing begins twice"
    assert pod["automountServiceAccountToken"] is False
    assert "hostNetwork" not in pod
    values = {entry["name"]: entry.get("value") for entry in script["env"]}
    assert values["A"] == "$$(B) $$$$"


@settings(deadline=None)
@given(st.text(alphabet="$()AB {}", max_size=12))
def test_dollar_signs_survive_kubernetes_variable_expansion(value):
    job = job_manifest(ALL.model_copy(update={"environment": {"V": value}}), claim=None, host_network=False, keep=60)
    (variable,) = (entry for entry in job["spec"]["template"]["spec"]["containers"][-1]["env"] if entry["name"] == "V")
    assert expanded(variable["value"]) == value


def test_dropped_and_changed_fields_are_named_and_added_ones_are_not():
    sent = job_manifest(ALL, claim=None, host_network=False, keep=60)
    assert list(dropped_fields(sent, sent)) == []
    assert (
        list(
            dropped_fields(
                {"a": "1500m", "b": [{"name": "x", "c": 1}]}, {"a": "1.5", "b": [{"name": "w"}, {"name": "x", "c": 1}]}
            )
        )
        == []
    )
    assert list(dropped_fields({"value": ""}, {})) == [], "an empty value is left out and still there"
    assert list(dropped_fields({"a": {"b": [1, 2]}, "c": False}, {"a": {"b": [1]}})) == ["a.b[1]", "c"]
    assert list(dropped_fields({"memory": "1Gi"}, {"memory": "1G"})) == ["memory"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("1500m", Decimal("1.5")), ("1Ki", 1024), ("2M", 2_000_000), ("24614916Ki", 24614916 * 1024), (0, 0)],
)
def test_a_quantity_is_parsed_as_kubernetes_writes_it(text, number):
    assert parse_quantity(text) == number
    assert parse_quantity("a text") is None


def expanded(text: str) -> str:
    """Put variables into *text* as Kubernetes does when none is known (its rule: $$ is $, $(NAME) stays if unknown)."""
    expanded_text, place = "", 0
    while place < len(text):
        if text[place : place + 2] == "$$":
            expanded_text, place = expanded_text + "$", place + 2
        elif text[place : place + 2] == "$(" and ")" in text[place:]:
            end = text.index(")", place) + 1
            expanded_text, place = expanded_text + "<a variable>", end
        else:
            expanded_text, place = expanded_text + text[place], place + 1
    return expanded_text
