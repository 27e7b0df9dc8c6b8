"""Compares two executions: their records, their outputs, and the verdict on a replay."""
