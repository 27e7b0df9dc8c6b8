"""Settling after the fact: every execution that Prefect accepted gets its one seal, even if its process was killed."""
