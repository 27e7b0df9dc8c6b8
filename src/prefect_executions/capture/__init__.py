"""Observes a run: its code, host, processes, output streams, parameters, input files and secrets."""
