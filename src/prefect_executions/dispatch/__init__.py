"""Requests to Prefect: deploy Methods, submit runs, cancel executions."""
