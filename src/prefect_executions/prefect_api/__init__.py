"""What Prefect says and is told: state histories, workers, secrets, blocks, events, progress.

The only room below the flow that knows Prefect. It gives our own values and
hides Prefect's clients; it decides nothing.
"""
