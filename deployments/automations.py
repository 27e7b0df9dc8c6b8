"""Create Prefect automations for Methods: settle after a crash, a webhook on failure, a chain of Methods.

Run the script once against the server in PREFECT_API_URL. A second run updates the
automations, which are found by name::

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
"""Seconds: three intervals of Prefect's heartbeat, which is every three minutes by default."""

WEBHOOK = "executions-failed"
"""The Prefect block that stores the address of the webhook, which may contain a secret."""

PAYLOAD = """{
  "text": {{ ("Execution " ~ event.payload.execution ~ " of " ~ event.payload.method ~ " FAILED: "
    ~ (event.payload.message or event.payload.reason)) | tojson }},
  "event": {{ event.payload | tojson }}
}"""


def settle_on_end(deployment_id: UUID) -> AutomationCore:
    """Run `settle` when a flow run of a Method ends in another state than COMPLETED: its hooks may never run."""
    return AutomationCore(
        name="executions: settle on a crash",
        description="Seals the execution when a flow run of a Method crashed, failed or was cancelled.",
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
    """Run `settle` when a flow run sent a heartbeat and then no further event: settle checks whether the run lives.

    Prefect's heartbeat events have no tags, so this reacts to every flow run, not only to those of Methods.
    """
    return AutomationCore(
        name="executions: settle on silence",
        description="Runs settle when the heartbeats of a flow run stopped before its end.",
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
    """Send a text and the payload of the event to a webhook when an execution FAILED."""
    return AutomationCore(
        name="executions: tell of a failure",
        description="Sends a text and the event to a webhook when an execution FAILED.",
        trigger=EventTrigger(
            expect={EventName.FAILED.value},
            match=ResourceSpecification({"prefect.resource.id": f"{RESOURCE}.*"}),
            posture=Posture.Reactive,
        ),
        actions=[CallWebhook(block_document_id=block_id, payload=PAYLOAD)],
    )


def start_after(
    method: str, output: str, deployment_id: UUID, deployment: str, parameters: Mapping[str, str]
) -> AutomationCore:
    """Run *deployment* when an archived execution of *method* COMPLETED and has the output *output*.

    A value in *parameters* that contains ``{{`` is a Jinja template over the event, such as
    ``{{ event.payload.execution }}``, and gives text. Any other value is JSON if it parses, else text.
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
    """Create the automation, or update the automation with its name; return a line that says which."""
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        return f"created  {automation.name}"
    client.update_automation(existing[0].id, automation)
    return f"updated  {automation.name}"


def _template(text: str) -> Any:
    """Return a parameter's value: a Jinja template, or JSON if it parses, else text."""
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
    """Create or update the requested automations, and return the number of missing deployments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--silence",
        type=float,
        default=SILENCE,
        metavar="SECONDS",
        help="the longest time without an event; three times PREFECT_FLOWS_HEARTBEAT_FREQUENCY (default: 540)",
    )
    parser.add_argument("--webhook", help="the address to call when an execution FAILED")
    parser.add_argument("--after", metavar="METHOD", help="the Method whose completion starts a deployment")
    parser.add_argument("--output", help="the output that its execution must have")
    parser.add_argument("--start", metavar="FLOW/DEPLOYMENT", help="the deployment to start")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=TEMPLATE")
    options = parser.parse_args(arguments)
    chain = (options.after, options.output, options.start)
    if any(chain) and not all(chain):
        parser.error("--after, --output and --start require each other")
    if not 10 <= options.silence <= 86_400:  # noqa: PLR2004 - Prefect's minimum, and a day
        parser.error("--silence must be between 10 and 86400 seconds")
    wanted: list[AutomationCore] = []
    missing: list[str] = []
    with get_client(sync_client=True) as client:
        for name in filter(None, (SETTLE, options.start)):
            deployment_id = _deployment(client, name)
            if deployment_id is None:
                missing.append(f"the deployment {name} does not exist; deploy it first (prefect.yaml)")
            elif name == SETTLE:
                silence = timedelta(seconds=options.silence)
                wanted += [settle_on_end(deployment_id), settle_on_silence(deployment_id, silence)]
            else:
                parameters = dict(pair.split("=", 1) for pair in options.parameter)
                wanted.append(start_after(options.after, options.output, deployment_id, name, parameters))
        if options.webhook:
            block = Webhook(url=options.webhook).save(WEBHOOK, overwrite=True)
            wanted.append(tell_of_failure(block))
        for automation in wanted:
            print(put(client, automation))
    for problem in missing:
        print(f"missing  {problem}", file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    sys.exit(main())
