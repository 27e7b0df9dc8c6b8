from __future__ import annotations

from itertools import islice
from uuid import UUID

import pytest

from prefect_executions.executions.ids import ExecutionId, each_generation, normalize_prefix

FLOW_RUN = "0a1b2c3d-0000-4000-8000-000000000001"


@pytest.mark.parametrize(("text", "generation"), [(FLOW_RUN, 1), (f"{FLOW_RUN}.2", 2), (f"{FLOW_RUN}.17", 17)])
def test_an_execution_id_is_a_flow_run_id_and_a_generation(text, generation):
    execution_id = ExecutionId.parse(text)
    assert execution_id == (FLOW_RUN, generation)
    assert execution_id.flow_run_uuid == UUID(FLOW_RUN)
    assert str(execution_id) == text


@pytest.mark.parametrize("suffix", ["bak", "", "-1", "²"])
def test_a_name_that_only_begins_with_a_flow_run_id_still_gives_that_id(suffix):
    assert ExecutionId.parse(f"{FLOW_RUN}.{suffix}").flow_run_uuid == UUID(FLOW_RUN)


def test_the_ids_of_a_flow_run_begin_with_its_own():
    assert list(islice(each_generation(FLOW_RUN), 3)) == [FLOW_RUN, f"{FLOW_RUN}.2", f"{FLOW_RUN}.3"]


@pytest.mark.parametrize(
    ("prefix", "normal"),
    [
        ("0A1B2C3D00", "0a1b2c3d-00"),
        (FLOW_RUN.replace("-", ""), FLOW_RUN),
        (f"{FLOW_RUN.replace('-', '')}.2", f"{FLOW_RUN}.2"),
        ("0a1b", "0a1b"),
        ("Run_7", "Run_7"),
    ],
)
def test_the_prefix_of_a_uuid_is_normalized(prefix, normal):
    assert normalize_prefix(prefix) == normal
