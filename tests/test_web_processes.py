"""Methods as OGC's processes: the list, its pages, and the descriptions, judged by OGC's own schemas."""

from __future__ import annotations

from pathlib import Path

import pytest

import ogc
from prefect_executions.errors import RequestError
from prefect_executions.flow.entrypoints import load_deployable
from prefect_executions.methods.model import AdditionalParameter, AdditionalParameters, InputDescription
from prefect_executions.web.app import create_app
from prefect_executions.web.processes import ServedMethod
from records import a_method
from webs import ADDRESS, Client

COUNT_WORDS = f"{Path(__file__).parents[1] / 'flows' / 'count_words.py'}:count_words"


def serving(*methods) -> Client:
    served = [ServedMethod(method, f"flows.py:{method.id}") for method in methods]
    return Client(create_app(lambda: pytest.fail("no catalog is needed"), served))


def test_a_process_has_the_schemas_of_its_inputs_and_outputs_and_nothing_of_its_code():
    scripts = AdditionalParameters(parameters=(AdditionalParameter(name="execute-script", value=("echo secret",)),))
    client = serving(a_method(additional_parameters=scripts))
    found = client.get("/processes/segment-coins")
    assert not ogc.faults("process", found.json())
    assert found.json() == {
        "id": "segment-coins",
        "version": "1.2.0",
        "title": "Segment coins",
        "description": "Find the coins in a photograph.",
        "keywords": ["segmentation"],
        "metadata": [],
        "links": [
            {
                "href": f"{ADDRESS}/processes/segment-coins",
                "rel": "self",
                "type": "application/json",
                "title": "Segment coins",
            },
            {
                "href": f"{ADDRESS}/jobs?processID=segment-coins",
                "rel": "http://www.opengis.net/def/rel/ogc/1.0/job-list",
                "type": "application/json",
                "title": "Its executions",
            },
        ],
        "inputs": {
            "picture": {"minOccurs": 1, "maxOccurs": 1, "schema": {"type": "string", "format": "uri-reference"}},
            "threshold": {"minOccurs": 0, "maxOccurs": 1, "schema": {"type": "number", "default": 0.3}},
        },
        "outputs": {"regions.csv": {"schema": {"type": "string"}}},
    }


def test_a_method_in_a_file_is_described_without_the_path_of_its_default_file():
    method = load_deployable(COUNT_WORDS).method
    assert method.inputs["text"].json_schema["default"].startswith("/")
    found = serving(method).get("/processes/count-words")
    assert not ogc.faults("process", found.json())
    assert "default" not in found.json()["inputs"]["text"]["schema"]
    assert found.json()["inputs"]["most"]["schema"]["default"] == 20
    assert "/flows/" not in found.text


def test_the_default_of_a_file_that_is_a_url_is_shown():
    schema = {"type": "string", "format": "uri-reference", "default": "https://example.org/coins.png"}
    client = serving(a_method(inputs={"picture": InputDescription(json_schema=schema)}))
    assert client.get("/processes/segment-coins").json()["inputs"]["picture"]["schema"] == schema


@pytest.mark.parametrize("process_id", ["missing", "%2e%2e", "segment-coin", "SEGMENT-COINS", "x" * 3000])
def test_another_id_is_not_a_process(process_id):
    found = serving(a_method()).get(f"/processes/{process_id}")
    assert found.status_code == 404
    assert not ogc.faults("exception", found.json())
    assert found.json()["type"].endswith("/ogcapi-processes-1/1.0/no-such-process")


def test_the_list_has_pages_by_id():
    client = serving(a_method(id="c"), a_method(id="a"), a_method(id="b"))
    pages, address = [], "/processes?limit=2"
    while address:
        page = client.get(address).json()
        assert not ogc.faults("processList", page)
        pages.append([each["id"] for each in page["processes"]])
        address = next((each["href"] for each in page["links"] if each["rel"] == "next"), None)
    assert pages == [["a", "b"], ["c"]]
    assert "inputs" not in client.get("/processes").json()["processes"][0]


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_a_wrong_limit_is_refused(limit):
    assert serving().get("/processes", params={"limit": limit}).status_code == 400


def test_two_methods_of_one_id_are_refused():
    with pytest.raises(RequestError, match=r"flows.py:a and flows.py:a both have the id 'a'"):
        serving(a_method(id="a"), a_method(id="a"))
