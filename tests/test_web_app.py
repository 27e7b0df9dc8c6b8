"""The application: what it says about itself, and that it can be mounted anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openapi_schema_validator import OAS30Validator

import ogc
from prefect_executions import errors
from prefect_executions.cli.app import main
from prefect_executions.web import problems
from prefect_executions.web.app import CONFORMANCE, create_app
from webs import ADDRESS, Client

ROUTES = {"/", "/conformance", "/api", "/processes", "/processes/{processID}", "/jobs", "/jobs/{jobID}"}
COMMAND = str(Path(sys.executable).with_name("executions"))


COUNT_WORDS = f"{Path(__file__).parents[1] / 'flows' / 'count_words.py'}:count_words"


def no_catalog():
    raise AssertionError("the catalog is opened only when it is needed")


@pytest.fixture
def client() -> Client:
    return Client(create_app(no_catalog))


def test_the_landing_page_links_to_everything_and_every_link_leads_somewhere(client):
    found = client.get("/").json()
    assert not ogc.faults("landingPage", found)
    relations = {each["rel"].rpartition("/")[2]: each for each in found["links"]}
    assert relations.keys() == {"self", "service-desc", "conformance", "processes", "job-list"}
    for name in relations.keys() - {"job-list"}:
        answer = client.get(relations[name]["href"])
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == relations[name]["type"]


def test_links_have_the_prefix_of_a_proxy():
    app = create_app(no_catalog)

    async def mounted(scope, receive, send):
        await app({**scope, "root_path": "/science"}, receive, send)

    found = Client(mounted).get("/science/").json()
    assert {each["href"].startswith(f"{ADDRESS}/science/") for each in found["links"]} == {True}


def test_conformance_claims_what_tests_verify(client):
    found = client.get("/conformance").json()
    assert not ogc.faults("confClasses", found)
    assert found == {"conformsTo": list(CONFORMANCE)}


def test_the_api_definition_is_openapi_3_0_and_has_every_route(client):
    found = client.get("/api")
    assert found.headers["Content-Type"] == "application/vnd.oai.openapi+json;version=3.0"
    document = found.json()
    assert document["openapi"].startswith("3.0.")
    assert document["paths"].keys() == ROUTES
    schemas = list(_schemas(document))
    assert len(schemas) > 10
    for schema in schemas:
        OAS30Validator.check_schema(schema)
        assert "anyOf" not in schema or {"type": "null"} not in schema["anyOf"]
        assert not isinstance(schema.get("type"), list)
    assert "HTTPValidationError" not in found.text
    (when,) = (each for each in document["paths"]["/jobs"]["get"]["parameters"] if each["name"] == "datetime")
    assert when["schema"]["type"] == "string"
    assert when["schema"]["nullable"] is True


def _schemas(value):
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "schema" and "$ref" not in member:
                yield member
            yield from _schemas(member)
    elif isinstance(value, list):
        for member in value:
            yield from _schemas(member)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/missing", 404), ("DELETE", "/", 405)])
def test_what_is_not_there_is_a_problem(client, method, path, status):
    found = client.request(method, path)
    assert found.status_code == found.json()["status"] == status
    assert found.headers["Content-Type"] == problems.MEDIA_TYPE
    assert not ogc.faults("exception", found.json())


def test_every_error_of_ours_has_a_status():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ExecutionsError)
    ]
    found = {kind.__name__: problems.status_of(kind.__new__(kind)) for kind in kinds}
    assert len(found) > 20
    for kind in kinds:
        expected = range(500, 504) if issubclass(kind, errors.WorldError | errors.ScriptError) else range(400, 410)
        assert kind is errors.ExecutionsError or found[kind.__name__] in expected, kind
    assert (found["NotFoundError"], found["LedgerError"], found["QueryError"]) == (404, 503, 400)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("there is no file /home/ada/data/coins.png here", "there is no file coins.png here"),
        ("'~/secret/keys/a.pem'", "'a.pem'"),
        ("/srv/x/: permission denied", "x: permission denied"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("application/json and 1/2", "application/json and 1/2"),
    ],
)
def test_a_message_loses_the_folders_of_this_machine(text, shown):
    assert problems._without_paths(text) == shown


def test_an_answer_loses_the_folders_of_this_machine():
    def no_home():
        raise errors.NotFoundError("the home folder /home/ada/executions does not exist")

    found = Client(create_app(no_home)).get("/jobs")
    assert found.status_code == 404
    assert found.json()["detail"] == "the home folder executions does not exist"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org", ""])  # noqa: S104
def test_an_address_that_other_machines_reach_is_refused(home, capsys, host):
    assert main(["serve", "--host", host]) == 2
    assert "no access control yet, so it listens on loopback only" in capsys.readouterr().err


def test_what_is_not_a_method_is_refused(home, capsys):
    assert main(["serve", "flows/missing.py:nothing"]) == 3
    assert "there is no file flows/missing.py" in capsys.readouterr().err


def test_a_port_in_use_is_reported(home, server, capsys):
    assert main(["serve", "--port", server.rpartition(":")[2]]) == 4
    assert "cannot be used: Address already in use" in capsys.readouterr().err
    assert main(["serve", "--port", "65536"]) == 2


@pytest.fixture
def server(home):
    """Run the command, and end it as Ctrl-C does."""
    process = subprocess.Popen([COMMAND, "serve", COUNT_WORDS, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:"), line
        yield line.split()[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_command_serves_on_loopback_and_refuses_other_sites(server):
    with httpx.Client(base_url=server, timeout=60) as client:
        assert client.get("/jobs").json()["numberMatched"] == 0
        (process,) = client.get("/processes").json()["processes"]
        assert process["id"] == "count-words"
        answer = client.get("/", headers={"Host": "evil.example"})
        assert answer.status_code == 403
        assert "server" not in answer.headers
        assert client.post("/jobs", headers={"Origin": "https://evil.example"}).status_code == 403


def test_the_application_is_mounted_by_its_name_and_reads_the_settings(home):
    program = "import sys; from prefect_executions import web; assert 'fastapi' not in sys.modules; print(web.app)"
    found = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert "Guard object" in found.stdout


def test_starting_the_server_does_not_import_prefect(home):
    program = "import sys; from prefect_executions.web import app, server; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
