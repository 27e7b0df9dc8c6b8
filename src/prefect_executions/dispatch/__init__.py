"""What is done at the orchestrator: Methods are deployed, requests submitted, executions cancelled."""
