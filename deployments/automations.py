"""The automations of a server on which Methods run: settle on a crash or silence, tell of a failure, start another.

Run it once against the server that PREFECT_API_URL names. Each automation has a
name of its own and is brought up to date when it is there already::

    python deployments/automations.py
    python deployments/automations.py --silence 90
    python deployments/automations.py --webhook https://hooks.example.org/T0/B0
    python deployments/automations.py --after segment-coins --output coins.csv --start count-words/count-words \
        --parameter most=5 --parameter text=/data/coins.txt
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.events.actions import CallWebhook, RunDeployment
from prefect.exceptions import ObjectNotFound

from prefect_executions.events import METHOD_LABEL, OUTPUT_RESOURCE, RESOURCE, STATUS_LABEL, EventName
from prefect_executions.prefect_api.queries import TAG

SETTLE = "settle/settle"
"""The deployment of flows/settle.py, as prefect.yaml names it."""

SILENCE = 540.0
"""Seconds: three of Prefect's heartbeats, which come every three minutes where nobody says otherwise."""

WEBHOOK = "executions-failed"
"""The Prefect block that keeps the address of the webhook, which may be a secret."""

TOLD = """{
  "text": {{ ("Execution " ~ event.payload.execution ~ " of " ~ event.payload.method ~ " FAILED: "
    ~ (event.payload.message or event.payload.reason)) | tojson }},
  "event": {{ event.payload | tojson }}
}"""


def settle_on_end(deployment_id: UUID) -> AutomationCore:
    """Run `settle` at once when a flow run of a Method ended without COMPLETED: its hooks may never run."""
    return AutomationCore(
        name="executions: settle on a crash",
        description="Seals what a flow run of a Method left when it crashed, failed or was cancelled.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification(
                {
                    "prefect.resource.id": "prefect.flow-run.*",
                    "prefect.state-type": ["CRASHED", "CANCELLED", "FAILED"],
                }
            ),
            match_related=ResourceSpecification({"prefect.resource.id": f"prefect.tag.{TAG}"}),
            posture=Posture.Reactive,
        ),
        actions=[RunDeployment(deployment_id=deployment_id)],
    )


def settle_on_silence(deployment_id: UUID, silence: timedelta) -> AutomationCore:
    """Run `settle` when a flow run sent a heartbeat and then nothing, not even its end: it looks who lives.

    Prefect's heartbeats name no tags of their flow, so any flow run's silence counts.
    """
    return AutomationCore(
        name="executions: settle on silence",
        description="Looks after the executions when a flow run's heartbeats stopped before its end.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            within=silence,
        ),
        actions=[RunDeployment(deployment_id=deployment_id)],
    )


def tell_of_failure(block_id: UUID) -> AutomationCore:
    """Send what is known of an execution that FAILED to a webhook."""
    return AutomationCore(
        name="executions: tell of a failure",
        description="Sends a text and the event to a webhook when an execution FAILED.",
        trigger=EventTrigger(
            expect={EventName.FAILED.value},
            match=ResourceSpecification({"prefect.resource.id": f"{RESOURCE}.*"}),
            posture=Posture.Reactive,
        ),
        actions=[CallWebhook(block_document_id=block_id, payload=TOLD)],
    )


def start_after(
    method: str, output: str, deployment_id: UUID, deployment: str, parameters: Mapping[str, str]
) -> AutomationCore:
    """Run *deployment* when an execution of *method* COMPLETED with an output of that name and lies in the archive.

    *parameters* may be Jinja templates that use the event, such as
    ``{{ event.payload.execution }}``, which give text; others are JSON if they parse.
    """
    return AutomationCore(
        name=f"executions: {deployment} after {method} with {output}",
        description=f"Starts {deployment} when an execution of {method} COMPLETED with the output {output}.",
        trigger=EventTrigger(
            expect={EventName.ARCHIVED.value},
            match=ResourceSpecification(
                {
                    "prefect.resource.id": f"{RESOURCE}.*",
                    METHOD_LABEL: method,
                    STATUS_LABEL: "COMPLETED",
                }
            ),
            match_related=ResourceSpecification({"prefect.resource.id": f"{OUTPUT_RESOURCE}.{output}"}),
            posture=Posture.Reactive,
        ),
        actions=[
            RunDeployment(
                deployment_id=deployment_id,
                parameters={name: _template(text) for name, text in parameters.items()},
            )
        ],
    )


def put(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Create the automation, or bring the one of its name up to date; say which."""
    there = client.read_automations_by_name(automation.name)
    if not there:
        client.create_automation(automation)
        return f"created  {automation.name}"
    client.update_automation(there[0].id, automation)
    return f"updated  {automation.name}"


def _template(text: str) -> Any:
    """The value of a parameter: a template gives text, what is none is JSON if it parses."""
    if "{{" in text:
        return {"__prefect_kind": "jinja", "template": text}
    try:
        return json.loads(text)
    except ValueError:
        return text


def _deployment(client: SyncPrefectClient, name: str) -> UUID | None:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Create what was asked for, say what became of each, and return how many could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--silence",
        type=float,
        default=SILENCE,
        metavar="SECONDS",
        help="how long a flow run may send no heartbeat; three of PREFECT_FLOWS_HEARTBEAT_FREQUENCY (default: 540)",
    )
    parser.add_argument("--webhook", help="the address that is told of an execution that FAILED")
    parser.add_argument("--after", metavar="METHOD", help="the Method whose execution starts another")
    parser.add_argument("--output", help="the name of the output that it must have")
    parser.add_argument("--start", metavar="FLOW/DEPLOYMENT", help="the deployment that is started")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=TEMPLATE")
    asked = parser.parse_args(arguments)
    chain = (asked.after, asked.output, asked.start)
    if any(chain) and not all(chain):
        parser.error("--after, --output and --start belong together")
    if not 10 <= asked.silence <= 86_400:  # noqa: PLR2004 - Prefect's least, and a day
        parser.error("--silence takes from 10 to 86400 seconds")
    wanted: list[AutomationCore] = []
    missing: list[str] = []
    with get_client(sync_client=True) as client:
        for name in filter(None, (SETTLE, asked.start)):
            found = _deployment(client, name)
            if found is None:
                missing.append(f"the deployment {name} is not there: deploy it first (prefect.yaml)")
            elif name == SETTLE:
                wanted += [settle_on_end(found), settle_on_silence(found, timedelta(seconds=asked.silence))]
            else:
                parameters = dict(one.split("=", 1) for one in asked.parameter)
                wanted.append(start_after(asked.after, asked.output, found, name, parameters))
        if asked.webhook:
            block = Webhook(url=asked.webhook).save(WEBHOOK, overwrite=True)
            wanted.append(tell_of_failure(block))
        for automation in wanted:
            print(put(client, automation))
    for what in missing:
        print(f"missing  {what}", file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    sys.exit(main())
