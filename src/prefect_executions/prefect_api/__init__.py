"""Access to Prefect: client, flow runs, events, blocks, artifacts.

Outside `flow`, `dispatch`, `settle` and `runtimes` no other package imports Prefect.
This package returns our own values and decides nothing.
"""
