"""The terminal's door: it parses, calls the hall and shows the answer."""

from prefect_executions.cli.door import app, main

__all__ = ["app", "main"]
